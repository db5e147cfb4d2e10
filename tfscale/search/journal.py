"""The truth about a search: its events in order, one JSON line each, and what the search is.

An event is on disk before anything follows from it, so a search that is killed at any moment
finds out from here what it had begun. Nothing here knows what the events mean.
"""

import fcntl
import json
import os
import pathlib
import time

from tfscale.training.checkpoint import write_whole


class Journal:
    """The events of one search, and a lock that keeps a second process out.

    Args:
        path: the file; made if it is not there.

    Raises:
        ValueError: if another process has it open, a line of it is damaged, or it is not there
            though its trials are.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._file = open_alone(self.path)
        try:
            self.events = self._read()
            self._check_there()
        except ValueError:
            self._file.close()
            raise

    def append(self, event):
        """Write an event; it lasts when this returns.

        Args:
            event: a dict that fits into JSON.
        """
        self._file.write(json.dumps(event).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.events.append(event)

    def close(self):
        """Close the file and let others in."""
        self._file.close()

    def _read(self):
        """Return the events, and cut off what a killed process has half written."""
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        events = []
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                events.append(json.loads(line))
            except ValueError:
                raise ValueError(
                    "A search goes on from its journal, line by line. Received: "
                    f"{self.path}, whose line {number} is not JSON. Cut the file off in front of "
                    "it, or search in another folder."
                ) from None
        return events

    def _check_there(self):
        """Refuse to begin anew beside trials of which the journal knows nothing."""
        trials = self.path.parent / "trials"
        if not self.events and trials.is_dir() and any(trials.iterdir()):
            raise ValueError(
                "A search goes on from its journal. Received: "
                f"{self.path.parent}, which has trials and no {self.path.name}, or an empty one. "
                "Put it back, remove the folder, or search in another one."
            )


def open_alone(path):
    """Open the journal of a search, and keep other processes out until it is closed.

    Args:
        path: the file; made if it is not there.

    Raises:
        ValueError: if another process has it open.
    """
    path = pathlib.Path(path)
    file = open(path, "a+b")  # noqa: SIM115  (until close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(
            "A folder holds one search at a time. Received: "
            f"{path.parent}, in which a search is going on. Wait for it, or search in another "
            "folder."
        ) from None
    return file


def settle(path, identity, may_change):
    """Write what a search is, or check that the folder's search is this one.

    Args:
        path: the file.
        identity: a dict that fits into JSON.
        may_change: names in it that may be other ones when the search goes on.

    Returns:
        The identity as it holds from now on, with "began", the seconds since 1970 when the search
        was first started.

    Raises:
        ValueError: if the folder holds another search, with what differs.
    """
    path = pathlib.Path(path)
    identity = {"began": round(time.time(), 3)} | json.loads(json.dumps(identity))
    before = read_identity(path)
    if before:
        identity["began"] = before["began"]
        found = differences(before, identity, may_change)
        if found:
            raise ValueError(
                "A search goes on as the one it began as. Received: "
                f"{path.parent} with {'; '.join(found[:5])}. Go back to that, or search in another "
                "folder."
            )
    write_whole(path, json.dumps(identity, indent=2) + "\n")
    return identity


def read_identity(path):
    """Return what the search of a folder is, {} where there is none.

    Args:
        path: the file that `settle` writes.

    Raises:
        ValueError: if it is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        float(found["began"])
    except (ValueError, TypeError, KeyError) as error:
        why = "no time at which it began" if isinstance(error, KeyError) else error
        raise ValueError(
            "A search goes on as what its search.json says, whole. Received: "
            f"{path} ({why}). Put it back as it was, or search in another folder."
        ) from None
    return found


def differences(there, here, may_differ=()):
    """Return in words what is not the same in two identities, as a list.

    Args:
        there: one identity, a dict that fits into JSON.
        here: the other one.
        may_differ: names that do not count, "section.field".
    """
    return [
        f"{name}: {_short(one)} there and {_short(other)} here"
        for name, one, other in _differences(there, here)
        if name not in may_differ
    ]


def _differences(there, here, prefix=""):
    """Yield the names, dots between them, of what is not the same in two dicts."""
    for name in dict.fromkeys((*here, *there)):
        one, other = there.get(name), here.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield prefix + name, one, other


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
