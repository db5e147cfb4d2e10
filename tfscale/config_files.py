"""A configuration from and to files, its names and types checked.

A file is Python with `get_config()`, or JSON. What is wrong is named with the field, what came,
and the nearest name. Nothing here imports TensorFlow.
"""

import dataclasses
import importlib.util
import json
import pathlib
import traceback
import types
import typing

from tfscale.config import RunConfig
from tfscale.names import closest


class UsageError(ValueError):
    """What was typed cannot be run; its text is all that a user is shown."""


def load_config(path):
    """Return the `RunConfig` of a file.

    Args:
        path: a Python file with `get_config()`, or JSON as `--show_config` prints it.

    Raises:
        UsageError: if there is no such file, or it holds something else.
    """
    rule = "--config must be a .py file with get_config() or a .json file."
    if not str(path):
        raise UsageError(f"{rule} Received: no name. Write --config=FILE, or leave it out.")
    path = pathlib.Path(path)
    if not path.is_file():
        raise UsageError(f"{rule} Received: {path}, which does not exist. See experiments/.")
    if path.suffix == ".json":
        try:
            fields = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{rule} Received: {path}, which is not JSON: {error}.") from None
        return config_from_dict(fields)
    if path.suffix != ".py":
        raise UsageError(f"{rule} Received: {path}.")
    config = _call(path, "get_config", rule)
    if not isinstance(config, RunConfig):
        raise UsageError(f"{rule} Received: {path}, whose get_config() gives {type(config)}.")
    check_types(config)
    return config


def config_from_dict(fields):
    """Return the `RunConfig` that a nested dict describes; what it leaves out is the default.

    Raises:
        UsageError: for an unknown name or a value of another type.
    """
    config = RunConfig()
    if not isinstance(fields, dict):
        raise UsageError(f"A configuration must be an object of sections. Received: {fields!r}.")
    for section, values in fields.items():
        check_name(section, field_names(config), "--config")
        if not isinstance(values, dict):
            raise UsageError(f"Section `{section}` must be an object. Received: {values!r}.")
        holder = getattr(config, section)
        for name, value in values.items():
            check_name(name, field_names(holder), f"--config.{section}")
            setattr(holder, name, tuple(value) if isinstance(value, list) else value)
    check_types(config)
    return config


def config_to_json(config):
    """Return a configuration as JSON text that `load_config` reads back."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def check_types(config):
    """Refuse a value that is not of its field's type; whole numbers pass for floats.

    Raises:
        UsageError: naming the field, its type, and what came.
    """
    for section in dataclasses.fields(config):
        holder = getattr(config, section.name)
        if not isinstance(holder, section.default_factory):
            raise UsageError(
                f"Section `{section.name}` must be a {section.default_factory.__name__}. "
                f"Received: {holder!r}."
            )
        for field in dataclasses.fields(holder):
            value = getattr(holder, field.name)
            if not _fits(value, field.type):
                raise UsageError(
                    f"`{section.name}.{field.name}` must be {type_name(field.type)}. "
                    f"Received: {value!r}. Its meaning: {field.metadata['help']}."
                )


def check_name(name, known, where):
    if name not in known:
        near = closest(name, known)
        hint = f" Did you mean {where}.{near}?" if near else ""
        raise UsageError(f"{where} has no `{name}`.{hint} It has: {', '.join(known)}.")


def field_names(holder):
    return [field.name for field in dataclasses.fields(holder)]


def load_function(path, name, rule):
    """Return a function that a Python file defines; None where it does not.

    Args:
        path: the file.
        name: the function's name.
        rule: what a file must be, to begin an error with.

    Raises:
        UsageError: if the file cannot be run.
    """
    return _guarded(path, rule, lambda: getattr(_run(path), name, None))


def _call(path, name, rule):
    """Return what a function of a Python file gives, None where there is no such function."""
    return _guarded(path, rule, lambda: getattr(_run(path), name, lambda: None)())


def _run(path):
    """Run a Python file and return the module that it is."""
    spec = importlib.util.spec_from_file_location(f"tfscale_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _guarded(path, rule, read):
    try:
        return read()
    except Exception as error:  # A user's own file may fail in any way.
        frames = traceback.extract_tb(error.__traceback__)
        line = [f", line {frame.lineno}" for frame in frames if frame.filename == str(path)][-1:]
        raise UsageError(
            f"{rule} Received: {path}, which fails: {type(error).__name__}: {error}"
            f"{''.join(line)}. Mend the file."
        ) from None


def _fits(value, kind):
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        return any(_fits(value, option) for option in typing.get_args(kind))
    if origin is tuple:
        return isinstance(value, tuple) and all(
            _fits(part, typing.get_args(kind)[0]) for part in value
        )
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def type_name(kind):
    """Return what a field of this type holds, in words."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if typing.get_origin(kind) is types.UnionType:
        return " or ".join(type_name(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "a list, such as a,b"
    return "nothing" if kind is type(None) else names.get(kind, "an object of named values")
