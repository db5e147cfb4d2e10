"""The folder of each tuner of a script, also where a later one has taken its place.

With overwrite=True a tuner removes the search in its folder. Where that was found by an earlier
tuner of the same script it is put aside instead: the trials of the later one run the script
again, and come to what the earlier one has found.
"""

import os
import pathlib
import shutil

_taken = {}  # folder -> the number of the tuner of this process that has it


def folder_of(directory, project_name, number):
    """Return the folder of a tuner's search.

    Args:
        directory: as for `Tuner`.
        project_name: as for `Tuner`.
        number: which tuner of the script it is.
    """
    aside = _aside(directory, project_name, number)
    return aside if os.path.isdir(aside) else os.path.join(directory, project_name)


def take(directory, project_name, number, overwrite):
    """Take a folder for a tuner, in the process that is to search.

    Args:
        directory, project_name, number: as for `folder_of`.
        overwrite: remove the search that is there, of tfscale or of keras-tuner, and nothing else.

    Raises:
        ValueError: if what is to be removed is something else.
    """
    shutil.rmtree(_aside(directory, project_name, number), ignore_errors=True)  # an older run's
    folder = pathlib.Path(directory) / project_name
    owner, _taken[folder.resolve()] = _taken.get(folder.resolve()), number
    if not overwrite or not folder.exists():
        return
    is_search = any((folder / name).exists() for name in ("search.json", "oracle.json"))
    if any(folder.iterdir()) and not is_search:
        raise ValueError(
            "overwrite=True removes an older search. Received: "
            f"{folder}, which is not empty and has no search.json. Use another project_name."
        )
    if owner is None:
        shutil.rmtree(folder)
    else:
        os.rename(folder, _aside(directory, project_name, owner))


def _aside(directory, project_name, number):
    return os.path.join(directory, f".{project_name}.tuner{number}")
