"""The folder of each tuner of a script, also where a later one has taken its place.

With overwrite=True a tuner removes the search in its folder. Where that was found by an earlier
tuner of the same script it is put aside instead: the trials of the later one run the script
again, and come to what the earlier one has found.
"""

import contextlib
import os
import pathlib
import shutil
import time

from tfscale.search import journal, scripts

_JOURNAL = "journal.jsonl"
_taken = {}  # folder -> the number of the tuner of this process that has it


def folder_of(directory, project_name, number):
    """Return the folder of a tuner's search.

    Args:
        directory: as for `Tuner`.
        project_name: as for `Tuner`.
        number: which tuner of the script it is.
    """
    folder = os.path.join(directory, project_name)
    aside = _aside(folder, number)
    return aside if os.path.isdir(aside) else folder


def take(directory, project_name, number, overwrite, lease_seconds):
    """Take a folder for a tuner, in the process that is to search.

    Args:
        directory, project_name, number: as for `folder_of`.
        overwrite: remove the search that is there, of tfscale or of keras-tuner, and nothing else.
        lease_seconds: how long machines that had joined that search may still write there.

    Raises:
        ValueError: if the folder is that of something else, or what is to be removed goes on.
    """
    folder = pathlib.Path(directory) / project_name
    _check(folder, overwrite)
    aside, owner = _aside(folder, number), _taken.get(folder.resolve())
    if overwrite and folder.exists():
        with contextlib.closing(journal.open_alone(folder / _JOURNAL)):
            _wait_for_machines(folder, lease_seconds)
            shutil.rmtree(aside, ignore_errors=True)  # an older run's
            if owner is None:
                shutil.rmtree(folder)
            else:
                os.rename(folder, _aside(folder, owner))
    elif os.path.isdir(aside) and not _goes_on(folder):
        shutil.rmtree(aside)
    _taken[folder.resolve()] = number


def _check(folder, overwrite):
    """Refuse a folder that is neither new nor that of a search."""
    is_search = (folder / "search.json").exists()
    is_keras_tuners = (folder / "oracle.json").exists()
    rule = "The folder of a Tuner must be new or that of a search. Received: "
    if (folder / "config.json").exists():
        raise ValueError(
            f"{rule}{folder}, which holds a run of tfscale.fit. Use another project_name."
        )
    is_empty = not folder.exists() or not any(folder.iterdir())
    if overwrite and not (is_search or is_keras_tuners or is_empty):
        raise ValueError(
            "overwrite=True removes an older search. Received: "
            f"{folder}, which is not empty and has no search.json. Use another project_name."
        )
    if is_keras_tuners and not (is_search or overwrite):
        raise ValueError(
            f"{rule}{folder}, which holds a search of keras-tuner itself, with which tfscale "
            "cannot go on. Use another project_name, or overwrite=True to remove it."
        )


def _goes_on(folder):
    """Say whether another process searches in a folder."""
    if not folder.exists():
        return False
    try:
        journal.open_alone(folder / _JOURNAL).close()
    except ValueError:
        return True
    return False


def _wait_for_machines(folder, lease_seconds):
    """Wait until nothing runs any more of what a search that was cut off had begun elsewhere."""
    events = scripts.read_lines(folder / _JOURNAL)
    last = {event["trial"]: event for event in events if "trial" in event}
    if any(event["event"] == "started" and event.get("on") for event in last.values()):
        print(
            f"tfscale: waiting {lease_seconds:g} s for the machines that had joined the search in "
            f"{folder}, which is then removed.",
            flush=True,
        )
        time.sleep(lease_seconds)


def _aside(folder, number):
    parent, name = os.path.split(os.path.normpath(folder))
    return os.path.join(parent, f".{name}.tuner{number}")
