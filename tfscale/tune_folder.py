"""The folder of a search of `tfscale.tune`: where it is, whether it may be taken, the way on."""

import pathlib
import shlex
import time

from tfscale import run_folder
from tfscale.config_files import UsageError
from tfscale.search import journal

_OURS = ("search.json", "journal.jsonl")
# What may be in a new folder before a search: what the system, Slurm and other machines put there.
_LEFT_ALONE = ("lost+found", "logs", "chief.json")
_LOGS = (".out", ".err", ".log")


def choose(run_dir, config, role):
    """Return the folder of the search, the same on all machines.

    Args:
        run_dir: what --run_dir says; "" for a new one.
        config: the base `RunConfig`.
        role: the `roles.Role` of this process.

    Raises:
        UsageError: if several machines would each take another one.
    """
    if run_dir:
        return pathlib.Path(run_dir)
    default = run_folder.default_path(config, time.time()).replace("/", "/search-", 1)
    if role.kind == "alone":
        return pathlib.Path(default)
    if not role.job:
        raise UsageError(
            "The machines of a search share one folder. Received: a search on several machines "
            "without --run_dir. Name a folder that all of them see."
        )
    return pathlib.Path(f"{default.rsplit('-', 2)[0]}-job{role.job}")


def way_on(run_dir, typed):
    """Return the words for what goes on with a search.

    Args:
        run_dir: its folder.
        typed: what --run_dir said, "" where it was left out.
    """
    return "the same command" + ("" if typed else f" with --run_dir={shlex.quote(str(run_dir))}")


def open_journal(run_dir):
    """Make the folder and open its journal.

    Raises:
        UsageError: if the folder holds something else, or cannot be written.
    """
    rule = "--run_dir must be a new folder or that of this search. Received: "
    for file, what in (("config.json", "a run of tfscale.fit"), ("oracle.json", "keras-tuner's")):
        if (run_dir / file).exists():
            raise UsageError(f"{rule}{run_dir}, which holds {what}. Use another --run_dir.")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not any((run_dir / name).exists() for name in _OURS):
            for path in sorted(run_dir.iterdir()):
                if not _is_left_alone(path.name):
                    raise UsageError(
                        f"{rule}{run_dir}, which has {path.name} and no search.json. Use another "
                        "--run_dir."
                    )
        return journal.Journal(run_dir / "journal.jsonl")
    except OSError as error:
        raise UsageError(
            f"--run_dir must be a folder that can be written. Received: {run_dir} "
            f"({error.strerror}). Use another --run_dir."
        ) from None


def _is_left_alone(name):
    return name.startswith(".") or name in _LEFT_ALONE or name.endswith(_LOGS)
