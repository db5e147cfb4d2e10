"""A run's folder, read again: its curves, its events, and what is to be said of them.

For those who look on from outside, so nothing here imports TensorFlow, and every file may be
missing or be in the middle of being written.
"""

import functools
import itertools
import json
import pathlib
import statistics
import time

from tfscale.monitor import pages, scores, story, workers

_NOT_METRICS = ("learning_rate", "step_seconds", "examples_per_second")
_INSIDE = ("fits", "trials")  # folders of runs in that of a script or a search
# Without a sign of life for so long a run is called silent: within an epoch, and where it may be
# tracing its graph, validating or saving; and for so many times its longest gap so far.
_SILENT_SECONDS, _SILENT_BETWEEN_SECONDS, _GAPS = 60, 600, 3
# For so long what has failed or left may be started again, where nothing says that it is not.
PATIENCE_SECONDS = 120
_QUIET_SECONDS = 15  # from then on its last sign of life is told, whatever it may be doing
_MOST = 1e200  # a number whose square is infinite is not drawn


def find(path):
    """Return the runs in a folder: the one that it is of, or those of a script or a search.

    Args:
        path: a run of `tfscale.fit`, a script's folder of `tfscale.launch`, or that of a search.

    Returns:
        A list of `RunFiles`, in the order of their numbers.

    Raises:
        ValueError: if there is none.
    """
    check_folder(path)
    found = folders(path)
    if not found:
        there = "has no metrics.jsonl" if pathlib.Path(path).exists() else "is not there"
        raise ValueError(
            "--run_dir must be the folder of a run, of a script or of a search, with curves in "
            f"it. Received: {path}, which {there}. Folders of runs are in runs/."
        )
    return [RunFiles(path) for path in found]


def check_folder(path):
    """Refuse, with a ValueError, what is there and is no folder."""
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"--run_dir must be a folder. Received: {path}, a file. Folders of runs are in runs/."
        )


def folders(path):
    """Return the folders of the runs in a folder, as for `find`."""
    path = pathlib.Path(path)
    if _is_run(path):
        return [path]
    found = []
    for inside in _INSIDE:
        of_runs = [p for p in (path / inside).glob("*") if _is_run(p)]
        found += sorted(of_runs, key=lambda p: (len(p.name), p.name))
    return found


def _is_run(path):
    return (path / "metrics.jsonl").exists() or (path / "events.jsonl").exists()


class RunFiles:
    """What the files of one run say, as they are now.

    Args:
        path: the folder of the run.
        name: what it is called; by default the name of the folder, and of a script's or a
            search's in front of it.
    """

    def __init__(self, path, name=""):
        self.path = pathlib.Path(path)
        self.name = name or _name(self.path.resolve())
        self._records = story.Lines(self.path / "metrics.jsonl", "step")
        self._events = story.Lines(self.path / "events.jsonl", *story.EVENT_FIELDS)
        self._failed = story.Lines(story.failures_file(self.path.absolute()), "text")
        self._scored = story.Lines(self.path / "evaluator.jsonl", "step", "evaluator")
        self.look()

    def look(self):
        """Take in what is new in the files."""
        self.records, self.events = self._records.read(), self._events.read()
        self._evaluated, failures = self._scored.read(), self._failed.read()
        self.causes = story.causes_of(self.events, failures)
        self.config = read_json(self.path / "config.json")
        self.summary = read_json(self.path / "summary.json")

    def curve(self, kind, name):
        """Return the finite points of a number, pairs of step and value.

        A metric of several numbers, such as one a class, is here by its mean.

        Args:
            kind: "train", "validation" or "test"; "" for what stands beside them, such as
                "goodput", or "seconds/compute".
            name: of the number.
        """
        path = [kind, name] if kind else name.split("/")
        points = []
        for record in self.validations() if kind == "validation" else self.records:
            value = functools.reduce(
                lambda found, key: found.get(key, {}) if isinstance(found, dict) else {},
                path,
                record,
            )
            value = scores.one_number(value)
            if value is not None and abs(value) < _MOST:
                points.append((record["step"], value))
        return points

    def validations(self, with_evaluator=True):
        """Return the records of validation, by step.

        Args:
            with_evaluator: those of a cluster's evaluator task are among them, of steps that the
                run itself has not scored.
        """
        own = [record for record in self.records if "validation" in record]
        if not with_evaluator or not self._evaluated:
            return own
        steps = self.begun.get("steps_per_epoch") or max(self.step, 1)
        found = {
            record["step"]: {
                "step": record["step"],
                "epoch": max(record["step"] - 1, 0) // steps,
                "validation": record["evaluator"],
            }
            for record in self._evaluated
        } | {record["step"]: record for record in own}
        return [found[step] for step in sorted(found)]

    def metrics(self, of_several=False):
        """Return the names of the model's numbers, the loss first.

        Args:
            of_several: those of several numbers are among them.
        """
        names = {
            name: None
            for record in (*self.records, *self.validations())
            for kind in ("train", "validation")
            for name, value in record.get(kind, {}).items()
            if name not in _NOT_METRICS and (of_several or not isinstance(value, list))
        }
        return sorted(names, key=lambda name: (name != "loss", name))

    def best(self):
        """Return the `scores.Best` step; None where there is none.

        By `checkpoint.keep_best`, or else the first metric of which it is known which way is
        better, or else the loss; without validation it is that of training at the end of an epoch.
        """
        return scores.best(self)

    def slowest(self):
        """Return the `workers.Slowest` of this run; None for one worker."""
        return workers.slowest(self.records)

    @property
    def unseen_times(self):
        """Why it measures no times of workers, in words; "" where it does, or did not say."""
        return self.begun.get("unseen_times", "")

    def last(self, name, default=None):
        """Return the last value of a number beside the metrics, such as "goodput"."""
        for record in reversed(self.records):
            for place in (record, record.get("train", {})):
                if place.get(name) is not None:
                    return place[name]
        return default

    @property
    def tested(self):
        """Loss and metrics of the test split; {} where it was not scored."""
        last = self.records[-1].get("test") if self.records else None
        found = last or self.summary.get("test")
        return found if isinstance(found, dict) else {}

    @property
    def begun(self):
        """What was said of the run as its last life began; {} where nothing was."""
        begins = [event for event in self.events if event["event"] == "begin"]
        return begins[-1] if begins else {}

    @property
    def restarts(self):
        """How often it began again without having come to its end."""
        return len(story.restarts_of(self.events))

    @property
    def stops(self):
        """How often it was told to leave, and went on later."""
        return len(story.restarts_of(self.events, stops=True))

    @property
    def examples_per_second(self):
        """How fast it trains, or has trained on the whole once it is over; None where unknown."""
        if not self.is_over:
            return self.last("examples_per_second")
        speeds = [speed for _, speed in self.curve("train", "examples_per_second")]
        return self.summary.get("examples_per_second") or (
            statistics.median(speeds) if speeds else None
        )

    @property
    def bad_steps(self):
        """How many bad steps it had."""
        return sum(event["event"] == "bad step" for event in self.events)

    def happened(self):
        """Return pairs of an event and a sentence, in order."""
        return pages.happened(self.events, self.causes)

    @property
    def step(self):
        """The last step that it told of."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def epoch(self):
        """The epoch under way, from 1."""
        return max((record.get("epoch", 0) for record in self.records), default=0) + 1

    @property
    def epochs(self):
        """The epoch that it stops after; None where it did not say."""
        return self.begun.get("epochs") or self.config.get("train", {}).get("epochs")

    @property
    def seconds(self):
        """Time from its beginning to the last sign of life, without pauses after an end."""
        times = self._times()
        return max(times) - min(times) - story.seconds_paused(self.events) if times else 0.0

    @property
    def last_sign(self):
        """When it last gave a sign of life, in seconds since 1970; 0 where it never did."""
        return max(self._times(), default=0)

    def _times(self):
        return [entry["time"] for entry in (*self.events, *self.records) if "time" in entry]

    def state(self, now=None):
        """Return how it is, in a few words.

        Args:
            now: seconds since 1970; by default the present.
        """
        now = time.time() if now is None else now
        last = self.events[-1] if self.events else {}
        if last.get("event") == "left":
            return f"told to leave, exit code {last['code']}"
        if last.get("event") == "failed":
            return "failed" + (", may be started again" if self._may_come_again(now) else "")
        if self.is_over:
            return "finished"
        signs = self._signs()
        silent = now - (signs[-1][0] if signs else 0)
        if signs and silent > self._longest_silence(signs):
            return f"no sign of life for {duration(silent)}"
        doing = "training" if signs and signs[-1][2] != "begin" else "starting"
        return doing + (quiet_words(silent) if signs else "")

    @property
    def is_over(self):
        """Whether its last life has come to an end, a good one or not."""
        if not self.events:
            return bool(self.summary)
        return self.events[-1]["event"] in ("end", "left", "failed")

    def _may_come_again(self, now):
        """Whether a launcher, which keeps logs, may still start what has failed."""
        logs, failed = story.failures_file(self.path.absolute()).parent, self.events[-1]["time"]
        if not logs.is_dir() or now - failed > PATIENCE_SECONDS:
            return False
        words = [path.stat().st_mtime for path in logs.glob("worker-*.ended")]
        return not any(written >= failed for written in words)  # of one that has given up

    def _signs(self):
        """The signs of its last life, by time: `(time, step, what)`."""
        begun = self.begun.get("time", 0)
        signs = [(e["time"], e["step"], e["event"]) for e in self.events if e["time"] >= begun]
        signs += [
            (record["time"], record["step"], "record")
            for record in self.records
            if record.get("time", -1) >= begun
        ]
        return sorted(signs)

    def _longest_silence(self, signs):
        """How long it may be silent and well, in seconds."""
        gaps = [later[0] - earlier[0] for earlier, later in itertools.pairwise(signs)]
        steps, (_, step, what) = self.begun.get("steps_per_epoch"), signs[-1]
        is_within = what != "begin" and steps and step % steps
        least = _SILENT_SECONDS if is_within else _SILENT_BETWEEN_SECONDS
        return max(least, _GAPS * max(gaps, default=0))

    def seconds_left(self, now=None):
        """Return about how long it still takes; None where that cannot be known.

        Args:
            now: seconds since 1970. When nothing has come for so long as never between two
                records, and for 15 s, it is not known either. By default this is not looked at.
        """
        steps, epochs, begun = self.begun.get("steps_per_epoch"), self.epochs, self.begun
        mine = [r for r in self.records if "time" in r and r["step"] > begun.get("step", 0)]
        if not steps or not epochs or len(mine) < 2 or mine[-1]["step"] == mine[0]["step"]:
            return None
        gaps = [later["time"] - earlier["time"] for earlier, later in itertools.pairwise(mine)]
        if now is not None and now - mine[-1]["time"] >= max(_QUIET_SECONDS, *gaps):
            return None
        rate = (mine[-1]["time"] - mine[0]["time"]) / (mine[-1]["step"] - mine[0]["step"])
        return max(epochs * steps - self.step, 0) * rate


def quiet_words(seconds):
    """Return ", last sign of life 20 s ago" for so many seconds; "" for few of them."""
    is_quiet = seconds >= _QUIET_SECONDS
    return f", last sign of life {duration(seconds)} ago" if is_quiet else ""


def duration(seconds):
    """Return a length of time in words: "8 s", "2 min 5 s", "3 h 10 min", "2 days"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def _name(path):
    parts = path.parts[-3:] if path.parent.name in _INSIDE else path.parts[-1:]
    return "/".join(parts)


def read_json(path):
    """Return the dict in a file of JSON; {} where there is none that is whole."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
