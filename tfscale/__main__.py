"""The `tfscale` command: `tfscale fit` is `python -m tfscale.fit`.

Owns the choice of the sub-command; each sub-command reads its own flags. A sub-command is
imported when it is called, so that help and errors do not wait for TensorFlow.
"""

import importlib
import sys

import tfscale
from tfscale import names

COMMANDS = {
    "fit": "train a model",
    "evaluate": "score a run",
    "tune": "search hyperparameters",
    "watch": "follow a run from another terminal",
    "report": "compare runs on one page",
    "doctor": "check a cluster before a job, or the checkpoints of a run",
    "launch": "run a script of your own on many workers",
}


def usage() -> str:
    """Return the text of `tfscale --help`."""
    rows = "\n".join(f"  {name:<10}{does}" for name, does in COMMANDS.items())
    return (
        "Trains Keras 3 models on TensorFlow, on one device or on many machines.\n\n"
        f"usage: tfscale COMMAND [FLAGS]\n       tfscale --version\n\ncommands:\n{rows}\n\n"
        "Flags of a command: tfscale COMMAND --help"
    )


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command.

    Args:
        argv: the command line without the program's name; None reads the process's own.

    Returns:
        The exit code: 0 on success, 2 if there is no such sub-command.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(usage(), file=sys.stderr)
        return 2
    command, *rest = argv
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command == "--version":
        print(f"tfscale {tfscale.__version__}")
        return 0
    if command not in COMMANDS:
        print(
            f"tfscale has the commands {', '.join(COMMANDS)}. Received: {command!r}."
            f"{names.nearest(command, COMMANDS)} See tfscale --help.",
            file=sys.stderr,
        )
        return 2
    return importlib.import_module(f"tfscale.{command}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
