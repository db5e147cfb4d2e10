"""The command line: flags, and a configuration file with overrides, become a `RunConfig`.

`--config=FILE` and `--config.section.field=value` go through `ml_collections.config_flags`, in
any order; names and types are checked first, so that an error names the nearest field. Nothing
here imports TensorFlow. Each entry point defines its own flags, inside its `main`.
"""

import ast
import contextlib
import dataclasses
import errno
import os
import re
import sys
import tempfile
import typing

from absl import flags
from ml_collections import config_flags

from tfscale.cluster import first_process
from tfscale.config import RunConfig
from tfscale.config_files import (
    UsageError,
    check_name,
    field_names,
    load_config,
    type_name,
)


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
        raise UsageError(_wrong_value(error)) from None
    if rest:
        names = "run_dir" in values and len(rest) == 1 and os.path.exists(rest[0])
        hint = f"Write --run_dir={rest[0]}." if names else "Try --help."
        raise UsageError(f"Every argument must be a flag. Received: {' '.join(rest)}. {hint}")
    return values


def define_supervision(values, max_restarts, note=""):
    """Define the flags of `cluster.supervise`, for commands that start workers on this machine.

    Args:
        values: the `flags.FlagValues`.
        max_restarts: how often, by default, all workers are started again.
        note: what else is to be said of that.
    """
    for name, default, text in (
        (
            "max_restarts",
            max_restarts,
            f"failures within an hour that restart the workers{note}; in a cluster 0, unless given",
        ),
        (
            "hang_timeout_seconds",
            0,
            "restart when no step, or first step, ends for so long; 0: wait",
        ),
        ("grace_seconds", 60, "time for workers to save and leave after a signal"),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=0, flag_values=values)
    for name, text in (
        ("min_workers", "go on with as few when some cannot start; by default --workers"),
        ("max_workers", "go on with as many after a restart; by default --workers"),
    ):
        flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=values)


def supervision(values):
    """Return the values of `define_supervision`'s flags, by name, and --start_timeout_seconds."""
    names = ("max_restarts", "hang_timeout_seconds", "start_timeout_seconds", "grace_seconds")
    names += ("min_workers", "max_workers")
    return {name: values[name].value for name in names}


def task_supervision(values):
    """Return the values of the flags that hold for the worker of one task of a cluster.

    Nothing restarts or watches it unless that was typed: the cluster has a policy of its own.

    Args:
        values: those of `define_supervision`.

    Returns:
        The arguments of `supervise.run_task` by name; None where it is not wanted.
    """
    names = ("hang_timeout_seconds", "start_timeout_seconds", "grace_seconds")
    found = {name: values[name].value for name in names}
    restarts = values["max_restarts"]
    found["max_restarts"] = restarts.value if restarts.present else 0
    return found if found["max_restarts"] or found["hang_timeout_seconds"] else None


def run(main, argv):
    """Call `main(argv)`, turning what a user can mend into one line.

    Returns:
        The exit code: 2 for what cannot be run, 1 for a disk that became full.
    """
    first_process.end_at_signals()
    try:
        code = main(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with contextlib.suppress(OSError):  # standard error may be a file on that disk
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
    argv, file = take_file(argv)
    config = RunConfig() if file is None else load_config(file)
    left = []
    for argument in _joined(config, argv):
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


def _joined(config, argv):
    """Write `--config.x.y VALUE` as one word with `=`; true or false may stand for itself."""
    words = iter(argv)
    for word in words:
        section, _, name = word.lstrip("-").removeprefix("config.").partition(".")
        is_override = word.lstrip("-").startswith("config.") and "=" not in word
        holder = getattr(config, section, None) if is_override else None
        if holder is not None and not isinstance(getattr(holder, name, None), bool):
            value = next(words, None)
            word = word if value is None else f"{word}={value}"
        yield word


def _wrong_value(error):
    """What absl says of a flag, or, of a field of the configuration, what it must be."""
    match = re.match(r"flag --config\.(\w+)\.(\w+)=(.*?): ", str(error))
    if match is None:
        return f"{str(error).rstrip('.')}. Try --help."
    section, name, value = match.groups()
    holder = getattr(RunConfig(), section)
    field = next(f for f in dataclasses.fields(holder) if f.name == name)
    return (
        f"--config.{section}.{name} must be {type_name(field.type)}. Received: {value!r}. "
        f"Its meaning: {field.metadata['help']}."
    )


def take_file(argv):
    """Split `--config=FILE` off, wherever it stands; return the other arguments and the file."""
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
    check_name(path[0], field_names(config), "--config")
    holder = getattr(config, path[0])
    if len(path) < 2:
        raise UsageError(
            f"An override must name a field. Received: {argument}. Use --config.{path[0]}."
            f"{field_names(holder)[0]}=VALUE."
        )
    check_name(path[1], field_names(holder), f"--config.{path[0]}")
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


def _help(usage, values, with_config):
    """The text of `--help`: usage, flags, then sections and fields with their defaults."""
    lines = [usage.strip(), "", "Flags:"]
    hidden = ("help", "helpfull", "helpshort", "helpxml")
    names = [name for name in values if name not in hidden and name.partition(".")[0] != "config"]
    for flag in (values[name] for name in names):
        default = "" if flag.default in (None, "", False, 0) else f"  [{flag.default}]"
        lines.append(f"  --{flag.name:<28}{flag.help}{default}")
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
                lines.append(f"    {field.name:<26}{field.metadata['help']}{shown}")
    return "\n".join(lines)
