"""The command line: flags, and a configuration file with overrides, become a `RunConfig`.

`--config=FILE` and `--config.section.field=value` go through `ml_collections.config_flags`, in
any order; names and types are checked first, so that an error names the nearest field. Nothing
here imports TensorFlow. Each entry point defines its own flags, inside its `main`.
"""

import ast
import contextlib
import dataclasses
import errno
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile
import traceback
import types
import typing

from absl import flags
from ml_collections import config_flags

from tfscale.config import RunConfig
from tfscale.names import closest


class UsageError(ValueError):
    """What was typed cannot be run; its text is all that a user is shown."""


def parse(argv, usage, define, *, with_config=True):
    """Read a command line.

    Args:
        argv: arguments without the program's name.
        usage: text that begins the help.
        define: a function that defines flags on the `flags.FlagValues` it is given.
        with_config: accept `--config` and its overrides.

    Returns:
        The `flags.FlagValues`, with the `RunConfig` as `.config`; None after `--help`, which
        has been printed.

    Raises:
        UsageError: for an unknown flag or field, a wrong type, or an unreadable file.
    """
    values = flags.FlagValues()
    define(values)
    if any(argument in ("-h", "--help", "-help", "--helpfull") for argument in argv):
        print(_help(usage, values, with_config))
        return None
    if with_config:
        argv = _define_config(values, argv)
    try:
        rest = values(["tfscale", *argv])[1:]
    except flags.Error as error:
        raise UsageError(f"{str(error).rstrip('.')}. Try --help.") from None
    if rest:
        raise UsageError(f"Every argument must be a flag. Received: {' '.join(rest)}. Try --help.")
    return values


def run(main, argv):
    """Call `main(argv)`, turning what a user can mend into one line.

    Returns:
        The exit code: 2 for what cannot be run, 1 for a disk that became full.
    """
    try:
        return main(sys.argv[1:] if argv is None else list(argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: The disk must have room for the run. Received: {error}. What was written "
            "whole stays; make room and start the same command again.",
            file=sys.stderr,
            flush=True,
        )
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
    config = _call_get_config(path, rule)
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
        _check_name(section, _names(config), "--config")
        if not isinstance(values, dict):
            raise UsageError(f"Section `{section}` must be an object. Received: {values!r}.")
        holder = getattr(config, section)
        for name, value in values.items():
            _check_name(name, _names(holder), f"--config.{section}")
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
                    f"`{section.name}.{field.name}` must be {_type_name(field.type)}. "
                    f"Received: {value!r}. Its meaning: {field.metadata['help']}."
                )


@contextlib.contextmanager
def quiet_import():
    """Keep from the terminal what TensorFlow says about itself while it is imported.

    Everything else that is written to standard error meanwhile is shown afterwards.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    noise = re.compile(
        r"WARNING: All log messages before absl|[IWE]\d{4} .*"
        r"(port\.cc|cudart_stub\.cc|cuda_platform\.cc|cpu_feature_guard\.cc)"
    )
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            caught.seek(0)
            for line in caught:
                if not noise.match(line):
                    sys.stderr.write(line)


def _define_config(values, argv):
    """Define the configuration's flags; return the arguments that are left to parse."""
    argv, file = _take_file(argv)
    config = RunConfig() if file is None else load_config(file)
    left = []
    for argument in argv:
        checked = _checked_override(config, argument)
        if checked is None:  # It is set; what was typed before it no longer counts.
            name = argument.partition("=")[0]
            left = [other for other in left if other.partition("=")[0] != name]
        else:
            left.append(checked)
    argv = left
    config_flags.DEFINE_config_dataclass(
        "config", config, "the run", flag_values=values, sys_argv=["tfscale", *argv]
    )
    return argv


def _call_get_config(path, rule):
    """Return what a Python file's `get_config()` gives, None where there is no such function."""
    spec = importlib.util.spec_from_file_location(f"tfscale_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config() if hasattr(module, "get_config") else None
    except Exception as error:  # A user's own file may fail in any way.
        frames = traceback.extract_tb(error.__traceback__)
        line = [f", line {frame.lineno}" for frame in frames if frame.filename == str(path)][-1:]
        raise UsageError(
            f"{rule} Received: {path}, which fails: {type(error).__name__}: {error}"
            f"{''.join(line)}. Mend the file."
        ) from None


def _take_file(argv):
    """Split `--config=FILE` off, wherever it stands."""
    rest, file, arguments = [], None, iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.lstrip("-") == "config":
            file = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    return rest, file


def _checked_override(config, argument):
    """Check the name of one `--config.section.field=value`, and write lists as tuples.

    Returns None for what is set here: an entry of a dict, such as a builder's argument, and the
    word none, which the flags do not take for a number.
    """
    name, equals, value = argument.partition("=")
    if not name.lstrip("-").startswith("config."):
        return argument
    path = name.lstrip("-").split(".")[1:]
    _check_name(path[0], _names(config), "--config")
    holder = getattr(config, path[0])
    if len(path) < 2:
        raise UsageError(
            f"An override must name a field. Received: {argument}. Use --config.{path[0]}."
            f"{_names(holder)[0]}=VALUE."
        )
    _check_name(path[1], _names(holder), f"--config.{path[0]}")
    kind = next(f.type for f in dataclasses.fields(holder) if f.name == path[1])
    if typing.get_origin(kind) is dict:
        _set_argument(getattr(holder, path[1]), path, argument)
        return None
    if len(path) > 2:
        raise UsageError(f"`{path[0]}.{path[1]}` has no fields of its own. Received: {argument}.")
    if type(None) in typing.get_args(kind) and value.lower() == "none":
        setattr(holder, path[1], None)
        return None
    if typing.get_origin(kind) is tuple and equals:
        return f"{name}={_parts(value, argument)!r}"
    return argument


def _parts(value, argument):
    """The tuple that `a,b` or `('a', 'b')` stands for."""
    if not value.startswith(("(", "[")):
        return tuple(part for part in value.split(",") if part)
    parts = _literal(value)
    if not isinstance(parts, (tuple, list)):
        raise UsageError(f"A list must be written as a,b or ('a', 'b'). Received: {argument}.")
    return tuple(parts)


def _set_argument(arguments, path, argument):
    """Set one entry of a dict of arguments, whose names and types the receiver knows."""
    _, equals, value = argument.partition("=")
    if len(path) < 3 or not equals:
        raise UsageError(
            f"An override of `{path[0]}.{path[1]}` must name an argument and its value. "
            f"Received: {argument}. Use --config.{path[0]}.{path[1]}.NAME=VALUE."
        )
    for key in path[2:-1]:
        arguments = arguments.setdefault(key, {})
        if not isinstance(arguments, dict):
            raise UsageError(
                f"`{path[0]}.{path[1]}`: {key} has no arguments of its own. "
                f"Received: {argument}. Its value is {arguments!r}."
            )
    arguments[path[-1]] = _literal(value)


def _literal(text):
    """A number, a tuple, True, None, ... if it reads as one; anything else is a word."""
    words = {"true": True, "false": False, "none": None}
    try:
        return words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check_name(name, known, where):
    if name not in known:
        near = closest(name, known)
        hint = f" Did you mean {where}.{near}?" if near else ""
        raise UsageError(f"{where} has no `{name}`.{hint} It has: {', '.join(known)}.")


def _names(holder):
    return [field.name for field in dataclasses.fields(holder)]


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


def _type_name(kind):
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if typing.get_origin(kind) is types.UnionType:
        return " or ".join(_type_name(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "a list, such as a,b"
    return "nothing" if kind is type(None) else names.get(kind, "an object of named values")


def _help(usage, values, with_config):
    """The text of `--help`: usage, flags, then sections and fields with their defaults."""
    lines = [usage.strip(), "", "Flags:"]
    own = [flag for flag in values.flags_by_module_dict().get(sys.argv[0], [])]
    own = own or [values[name] for name in values if name not in ("help", "helpfull")]
    for flag in own:
        default = "" if flag.default in (None, "", False, 0) else f"  [{flag.default}]"
        lines.append(f"  --{flag.name:<24}{flag.help}{default}")
    if with_config:
        lines += ["  --config=FILE             a .py file with get_config(), or .json", ""]
        lines.append("Configuration, set with --config.SECTION.FIELD=VALUE  [default]:")
        config = RunConfig()
        for section in dataclasses.fields(config):
            holder = getattr(config, section.name)
            lines += ["", f"  {section.name}: {(type(holder).__doc__ or '').strip()}"]
            for field in dataclasses.fields(holder):
                value = getattr(holder, field.name)
                shown = "" if value in ("", None, (), {}) else f"  [{value}]"
                lines.append(f"    {field.name:<22}{field.metadata['help']}{shown}")
    return "\n".join(lines)
