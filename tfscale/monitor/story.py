"""The story of a run over all its lives: when each began and ended, and what went wrong.

Owns `events.jsonl`, a line an event, which only grows: unlike the curves, nothing in it is taken
back when a run goes on from a checkpoint. The chief writes it; `watch` and `report` read it, and
beside it what the launcher tells of failures.
"""

import json
import os
import pathlib
import re
import time

from tfscale.cluster import causes

# What ends a life by itself: the time until the next one is nobody's loss.
_GOOD_ENDS = ("end",)
_MOST_TEXT = 300  # characters of an error
_PLACES = (  # how lines begin that say where, and not what
    "Graph execution error",
    "Detected at node",
    "File ",
    "Additional GRPC error",
    ":UNKNOWN",
    "The error could be from a previous operation",
    "[[",
)


_FUNCTION = re.compile(r"\{\{function_node [^}]*\}\}\s*")  # of a graph, with a number
_REPEATED = re.compile(r"\b(.{8,}?: )\1+")

EVENT_FIELDS = ("event", "step", "time")  # that each event has
_KINDS = {  # what a field of a line must be
    **dict.fromkeys(("step", "time", "epoch"), (int, float)),
    **dict.fromkeys(("event", "text"), str),
    **dict.fromkeys(("train", "validation", "test", "evaluator", "seconds"), dict),
    "workers": (dict, list),
}


def parsed(line, fields):
    """Return the dict in a line of JSON; None where the line is damaged or lacks a field.

    Args:
        line: bytes.
        fields: what it must have. A field that is not what it must be counts as missing.
    """
    try:
        entry = json.loads(line)
    except ValueError:  # cut off by a kill, or a disk's damage
        return None
    if not isinstance(entry, dict):
        return None
    for name, kind in _KINDS.items():
        if name in entry and not isinstance(entry[name], kind):
            del entry[name]
    return entry if all(name in entry for name in fields) else None


def read(path, fields=EVENT_FIELDS):
    """Return the lines of a file as dicts: by default the events of a run.

    A line that is being written, or damaged, is left out.
    """
    try:
        lines = pathlib.Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = [parsed(line, fields) for line in lines]
    return [entry for entry in found if entry is not None]


class Lines:
    """The lines of JSON of a file that grows, each of them read once.

    A line that is being written is left for the next look. A file that another has replaced, or
    from which lines were taken back, is read anew.

    Args:
        path: the file, which may be missing.
        *fields: what a line must have to count.
    """

    def __init__(self, path, *fields):
        self._path, self._fields = pathlib.Path(path), fields
        self._found, self._size, self._last = [], 0, b""

    def read(self):
        """Return all lines so far, a list of dicts."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._size - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._found, self._size, self._last = [], 0, b""
                    file.seek(0)
                new = file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            self._found, self._size, self._last = [], 0, b""
            return self._found
        lines = new[: new.rfind(b"\n") + 1].splitlines(keepends=True)
        for line in lines:
            self._size, self._last = self._size + len(line), line
            entry = parsed(line, self._fields)
            if entry is not None:
                self._found.append(entry)
        return self._found


def has_ended(events):
    """Say whether nothing is missing in these events: the last of them is an end, or none is."""
    return not events or events[-1]["event"] in _GOOD_ENDS


def failures_file(path):
    """Return where the launcher tells why lives of a run failed, given the run's folder."""
    path = pathlib.Path(path)
    of_script = path.parent.name == "fits"
    return (path.parent.parent if of_script else path) / "logs" / causes.FILE


def causes_of(events, failures):
    """Return those failures, as the launcher told them, that came while a run was under way.

    Args:
        events: of the run.
        failures: dicts with "time" and "text"; of a script's launcher they are of all its runs.
    """
    found = []
    for failure in failures:
        before = [event for event in events if event["time"] <= failure.get("time", 0)]
        if before and not has_ended(before):
            found.append({"event": "cause", **failure})
    return found


def restarts_of(events, stops=False):
    """Return the restarts: lives that go on with one which had not come to its end.

    Args:
        events: of the run.
        stops: those that go on with one which was told to leave, as by a preemption or Ctrl-C, and
            has saved; else those that go on after a failure.

    Returns:
        A list of pairs of events: how the life before began, and how this one does.
    """
    found, begun, before = [], None, None
    for event in events:
        if event["event"] == "begin":
            goes_on = before is not None and before["event"] not in _GOOD_ENDS
            if goes_on and stops == (before["event"] == "left"):
                found.append((begun or before, event))
            begun = event
        before = event
    return found


def seconds_paused(events):
    """Return the time between lives of which the earlier one had come to its end."""
    pairs = zip(events, events[1:], strict=False)
    return sum(
        later["time"] - earlier["time"]
        for earlier, later in pairs
        if later["event"] == "begin" and earlier["event"] in _GOOD_ENDS
    )


def _in_short(error):
    """What an error says, without the places in the code where TensorFlow's graph comes from."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(_PLACES)]
    text = _REPEATED.sub(r"\1", _FUNCTION.sub("", " ".join(said or lines[:1])))
    return text[:_MOST_TEXT]


class Story:
    """Writes the events of one life of a run.

    Args:
        path: of `events.jsonl`.
    """

    def __init__(self, path):
        self._path = pathlib.Path(path)
        self.events = read(self._path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "a")  # noqa: SIM115  (until close)
        if self._file.tell() and not self._ends_with_line():
            self._file.write("\n")

    def _ends_with_line(self):
        with open(self._path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def begin(self, step, **facts):
        """Note that a life begins, after some step, and what it is."""
        life = sum(event["event"] == "begin" for event in self.events) + 1
        self.tell("begin", step, life=life, **facts)
        self.begun = self.events[-1]
        self.restarts, self._paused = len(restarts_of(self.events)), seconds_paused(self.events)

    def tell(self, event, step, **facts):
        """Note an event.

        Args:
            event: "begin", "end", "left", "failed", "bad step", "test" or "slow worker".
            step: updates of the weights so far.
            **facts: what fits into JSON.
        """
        entry = {"event": event, "step": step, "time": round(time.time(), 3), **facts}
        self.events.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def tell_error(self, step, error):
        """Note what ended the life before its end: a request to leave, or a failure."""
        if isinstance(error, SystemExit):
            self.tell("left", step, code=error.code)
        else:
            self.tell("failed", step, error=f"{type(error).__name__}: {_in_short(error)}")

    def count(self, event):
        """Return how often something has happened, in all lives."""
        return sum(one["event"] == event for one in self.events)

    def goodput(self, trained_seconds):
        """Return the share of the run's time in which steps were taken that count.

        Args:
            trained_seconds: the time of these steps, over all lives.
        """
        passed = time.time() - self.events[0]["time"] - self._paused
        return min(trained_seconds / passed, 1.0) if passed > 0 else 0.0

    def close(self):
        """Close the file."""
        self._file.close()
