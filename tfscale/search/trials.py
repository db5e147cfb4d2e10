"""What a trial is: its record, its states, its folder; and the facts of the search it belongs to.

`TrialRecord` and `SearchFacts` are all that the views (table, csv, plots, TensorBoard) are given.
`FitTrials` knows what a trial's folder holds. How a trial's process is started and watched is in
`processes`, how one trial follows the other in `loop`.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import sys
from typing import Any

from tfscale.training import checkpoint

# A trial that has ended keeps its state; only "running" changes.
RUNNING = "running"
COMPLETED = "completed"
STOPPED = "stopped"  # early, by the search, which saw that it would not win
DIVERGED = "diverged"  # its loss was not finite
OUT_OF_MEMORY = "out_of_memory"
HUNG = "hung"
FAILED = "failed"
STATES = (RUNNING, COMPLETED, STOPPED, DIVERGED, OUT_OF_MEMORY, HUNG, FAILED)
SCORED = (COMPLETED, STOPPED)  # the states whose score counts


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One dimension of the space.

    Args:
        name: the field of the configuration, "optimizer.learning_rate".
        kind: "float", "int", "choice", "boolean" or "fixed".
        low, high: the range of a number; None otherwise.
        choices: the values of a choice, of a boolean, or of what is fixed; empty for a range.
        sampling: "linear", "log" or "reverse_log"; "" where there is no range.
    """

    name: str
    kind: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    sampling: str = ""


@dataclasses.dataclass(frozen=True)
class SearchFacts:
    """What a search is, as far as those who show it need to know.

    Args:
        objective: name of the metric at an epoch's end, "val_accuracy".
        direction: "max" or "min".
        tuner: "random", "grid", "bayesian" or "hyperband", or the class of an oracle.
        max_trials: trials at most; 0 where the tuner alone knows.
        parameters: the dimensions, in the order of the space.
        run_dir: the folder of the search.
        began: seconds since 1970 when the search was first started.
        tuner_trials: trials that the tuner has in all, 0 where that cannot be counted.
    """

    objective: str
    direction: str
    tuner: str
    max_trials: int
    parameters: list[Parameter]
    run_dir: pathlib.Path
    began: float
    tuner_trials: int = 0

    @property
    def num_trials(self):
        """Trials in all, as far as that is known; 0 where it is not."""
        known = [count for count in (self.max_trials, self.tuner_trials) if count]
        return min(known, default=0)

    def better(self, a, b):
        """Return whether score `a` is better than score `b`; any is better than None."""
        if a is None or b is None:
            return b is None and a is not None
        return a > b if self.direction == "max" else a < b


@dataclasses.dataclass
class TrialRecord:
    """One trial as it stands.

    Args:
        id: "0000", in the order of creation.
        values: active hyperparameters by name, without keras-tuner's own (`tuner/...`).
        state: one of `STATES`.
        score: the objective of its best epoch so far; None before the first.
        best_epoch: that epoch, from 1.
        epochs: epochs done.
        max_epochs: epochs it has to do.
        started: seconds since 1970 of its first start; None before it.
        seconds: how long its processes have run, over all lives.
        reason: why it ended as it did; "" for one that went well.
        history: one dict an epoch: {"epoch": 1, "loss": ..., "val_accuracy": ...}.
        path: its folder.
        parent: id of the trial that it continues, "" if none.
        machine: the joined machine that it runs on; "" for that of the search.
    """

    id: str
    values: dict[str, Any]
    state: str
    score: float | None
    best_epoch: int | None
    epochs: int
    max_epochs: int
    started: float | None
    seconds: float
    reason: str
    history: list[dict]
    path: pathlib.Path
    parent: str = ""
    machine: str = ""

    @property
    def log(self):
        """The file that its processes write into."""
        return self.path / "logs" / "trial.log"


def unasked(id, run_dir, values=None, max_epochs=0, parent=""):
    """Return the record of a trial that nothing has happened to yet.

    Args:
        id: the trial.
        run_dir: the folder of the search.
        values, max_epochs, parent: as in `TrialRecord`.
    """
    return TrialRecord(
        id=id,
        values=values or {},
        state=RUNNING,
        score=None,
        best_epoch=None,
        epochs=0,
        max_epochs=max_epochs,
        started=None,
        seconds=0.0,
        reason="",
        history=[],
        path=pathlib.Path(run_dir) / "trials" / id,
        parent=parent,
    )


class FitTrials:
    """Trials that are runs of `tfscale.fit`, each in its folder.

    The loop asks an object like this one for all that depends on what a trial runs.

    Args:
        make_config: a function from a `TrialRecord` to its `RunConfig`.
        flags: arguments of `tfscale.fit` beside configuration and folder.
    """

    def __init__(self, make_config, flags=()):
        self._make_config, self._flags = make_config, list(flags)

    def prepare(self, record, parent):
        """Write what a trial needs before its first start; again, where that was cut off.

        One that continues another begins with that one's checkpoints, its best one too, and with
        its curves; anew, where that one has saved nothing.

        Args:
            record: the trial's `TrialRecord`.
            parent: that of the trial which it continues, or None.
        """
        record.path.mkdir(parents=True, exist_ok=True)
        config = json.dumps(dataclasses.asdict(self._make_config(record)), indent=2) + "\n"
        checkpoint.write_whole(record.path / "config.json", config)
        checkpoints = record.path / "checkpoints"
        if parent is None or checkpoints.exists():
            return
        older = checkpoint.Checkpoints(parent.path / "checkpoints")
        if not older.steps():
            return
        checkpoint.write_whole(
            record.path / "metrics.jsonl", (parent.path / "metrics.jsonl").read_text()
        )
        beside = checkpoints.with_name("checkpoints.copying")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for step in older.steps():
            shutil.copytree(
                older.path(step), beside / older.path(step).name, copy_function=_link_or_copy
            )
        os.rename(beside, checkpoints)

    def command(self, record):
        """Return the command that runs a trial, or goes on with it."""
        own = [f"--config={record.path / 'config.json'}", f"--run_dir={record.path}"]
        return [sys.executable, "-m", "tfscale.fit", *own, *self._flags]

    def environ(self, record):
        """Return variables that a trial's process gets beside those of the search."""
        return {}

    def history(self, record):
        """Return the metrics of a trial's finished epochs; see `TrialRecord`."""
        return read_history(record.path / "metrics.jsonl")

    def unfinished(self, record):
        """Return why a trial whose process has left with 0 has not come to its end, or ""."""
        return ""

    def diverged(self, record):
        """Return how the run has ended itself at a number that was not finite, "" if it has not."""
        for line in _lines(record.path / "metrics.jsonl")[-1:]:
            bad = line.get("bad_step", {})
            if bad.get("action") == "stop":
                return f"{bad['bad']} not finite at step {line['step']}, loss {bad['loss']}"
        return ""


def read_history(path):
    """Return the metrics of each finished epoch of a run, from its `metrics.jsonl`.

    An epoch is finished when it has been validated.

    Args:
        path: the file, which `monitor.run_log` writes, maybe at this moment.

    Returns:
        One dict an epoch: {"epoch": 1, "loss": ..., "val_loss": ...}.
    """
    train, finished = {}, {}
    for line in _lines(path):
        if "train" in line:
            train[line["epoch"]] = _numbers(line["train"])
        elif "validation" in line:
            values = {f"val_{k}": v for k, v in _numbers(line["validation"]).items()}
            epoch = line["epoch"]
            finished[epoch] = {"epoch": epoch + 1, **train.get(epoch, {}), **values}
    return [finished[epoch] for epoch in sorted(finished)]


def look_anew(path):
    """Have a network's file system look for what another machine has written.

    It may remember for some seconds that a file was not there.

    Args:
        path: a trial's folder.
    """
    for folder in (path.parent, path):
        with contextlib.suppress(OSError):
            os.listdir(folder)


def best_of(history, objective, direction):
    """Return the best value of an objective and its epoch, or `(None, None)`.

    The first epoch counts where several are equal, as for the checkpoint that is kept.
    """
    found = [
        (record[objective], record["epoch"])
        for record in history
        if isinstance(record.get(objective), (int, float)) and math.isfinite(record[objective])
    ]
    if not found:
        return None, None
    sign = 1 if direction == "max" else -1
    return max(found, key=lambda pair: (sign * pair[0], -pair[1]))


def best_step(path):
    """Return the step of the checkpoint of a run's best epoch; the newest where none is known.

    Args:
        path: the run's folder.

    Raises:
        ValueError: if it has no checkpoint that is whole.
    """
    checkpoints = checkpoint.Checkpoints(path / "checkpoints")
    newest = checkpoints.newest()
    if newest is None:
        raise ValueError(
            f"A trial is scored by its checkpoints. Received: {path}, which has none that is whole."
        )
    best = checkpoint.examine(checkpoints.path(newest)).manifest["facts"].get("best")
    return best["step"] if best and best["step"] in checkpoints.steps() else newest


def _lines(path):
    """The records in a file of JSON lines; one that is being written is left out."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return records_of(text.splitlines())


def records_of(lines):
    """Return the dicts that lines of JSON hold; what is half written or damaged is left out."""
    records = []
    for line in lines:
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


_NOT_METRICS = ("learning_rate", "step_seconds", "examples_per_second")


def _numbers(values):
    return {
        name: value
        for name, value in values.items()
        if name not in _NOT_METRICS and isinstance(value, (int, float))
    }


def _link_or_copy(source, target):
    """Files of a checkpoint never change, so two runs may hold the same ones."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
