"""What a folder holds for those who look on: one run, or those of a script or of a search.

Remembers the runs between two looks, so that only what is new is read; says what there is while
there are no curves; and knows when nothing more is to come: by the word of the run, of the script
or of the search itself.
"""

import pathlib
import time

from tfscale.monitor import run_files, story

_PATIENCE_SECONDS = run_files.PATIENCE_SECONDS
_NO_MORE = ("exhausted", "idle", "given_up", "tested")  # behind which a search asks for no trial


class Place:
    """A folder that is looked at again and again.

    Args:
        path: as for `run_files.find`; there may be nothing yet.
    """

    def __init__(self, path):
        self.path, self.runs = pathlib.Path(path), []
        self._known = {}
        self._journal = story.Lines(self.path / "journal.jsonl", "event")
        self._events = []

    def look(self):
        """Take in what is new; return the runs, a list of `run_files.RunFiles`."""
        self._events = self._journal.read()
        folders = run_files.folders(self.path)
        self._known = {path: run for path, run in self._known.items() if path in folders}
        for run in self._known.values():
            run.look()
        for path in folders:
            if path not in self._known:
                self._known[path] = run_files.RunFiles(path)
        self.runs = [self._known[path] for path in folders]
        return self.runs

    @property
    def has_begun(self):
        """Whether something of this package has begun there, with curves or without."""
        begun = ("config.json", "launch.json", "search.json", "journal.jsonl")
        return bool(self.runs) or any((self.path / name).exists() for name in begun)

    def told(self, now=None):
        """Return what is to be said of the whole, a line of text; "" for the folder of one run.

        Args:
            now: seconds since 1970; by default the present.
        """
        if self._is_search:
            created, ended = self._trials()
            limit = self._most_trials()
            of = f" of {limit}" if limit else ""
            has_ended = self._search_has_ended(created, ended)
            text = "the search has ended" if has_ended else "the search goes on"
            quiet = "" if has_ended else self._quiet_words(time.time() if now is None else now)
            return f"{self.path}: {text}: {len(ended)}{of} trial(s) ended{quiet}"
        if (self.path / "launch.json").exists():
            word = self._script_end()
            state = "goes on" if word is None else "has ended" if word["well"] else "has failed"
            if state == "has failed" and not self.has_ended(now):
                state += ", may be started again"
            return f"{self.path}: the script {state}: {len(self.runs)} call(s) of fit"
        if self.runs:
            return ""
        if self.has_begun:
            return f"{self.path}: a run that is starting, without curves so far"
        is_there = self.path.exists()
        return f"{self.path}: {'no run in this folder' if is_there else 'no such folder'} so far"

    def has_ended(self, now=None):
        """Say whether nothing more is to be expected.

        Args:
            now: seconds since 1970; by default the present.
        """
        now = time.time() if now is None else now
        if self._is_search:
            created, ended = self._trials()
            if self._search_has_ended(created, ended):
                return True
            going_on = [run for run in self.runs if run.path.name not in ended]
            silent = now - max((event.get("time", 0) for event in self._events), default=now)
            found = len(going_on) == len(created - ended) > 0 and silent > _PATIENCE_SECONDS
            return found and all(_is_gone(run, now) for run in going_on)
        if (self.path / "launch.json").exists():
            word = self._script_end()
            return word is not None and (word["well"] or now - word["time"] > _PATIENCE_SECONDS)
        if [run.path for run in self.runs] == [self.path]:
            return self.runs[0].state(now) == "finished" or _is_gone(self.runs[0], now)
        # Of a program without a launcher nobody says that there is no other call of `fit`.
        return bool(self.runs) and all(_is_gone(run, now) for run in self.runs)

    @property
    def _is_search(self):
        return bool(self._events) or (self.path / "search.json").exists()

    def _trials(self):
        """The trials that were begun, and those of them that have ended."""
        named = [(event["event"], event.get("trial")) for event in self._events]
        return tuple({trial for kind, trial in named if kind == k} for k in ("created", "ended"))

    def _most_trials(self):
        return run_files.read_json(self.path / "search.json").get("max_trials") or 0

    def _search_has_ended(self, created, ended):
        if created - ended or not self._events:
            return False
        no_more = any(event["event"] == "exhausted" for event in self._events)
        is_full = 0 < self._most_trials() <= len(ended)
        return is_full or no_more or self._events[-1]["event"] in _NO_MORE

    def _quiet_words(self, now):
        """When the journal or a trial last gave a sign of life, where that is a while ago."""
        signs = [event.get("time", 0) for event in self._events]
        last = max([*signs, *(run.last_sign for run in self.runs)], default=0)
        return run_files.quiet_words(now - last) if last else ""

    def _script_end(self):
        """What the script's chief has said at its end, or None."""
        word = run_files.read_json(self.path / "ended.json")
        return word if {"well", "time"} <= set(word) else None


def _is_gone(run, now):
    """Whether the last life of a run has ended, and no other has begun for a while."""
    last = run.events[-1] if run.events else {}
    return run.is_over and now - last.get("time", 0) > _PATIENCE_SECONDS
