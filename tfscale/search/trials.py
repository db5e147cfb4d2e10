"""What a trial is: its record and its states; and the facts of the search it belongs to.

These two dataclasses are all that the views (table, csv, plots, TensorBoard) are given. How a
trial is started and watched is in `processes`, how one follows the other in `loop`.
"""

import dataclasses
import pathlib
from typing import Any

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
    """

    objective: str
    direction: str
    tuner: str
    max_trials: int
    parameters: list[Parameter]
    run_dir: pathlib.Path
    began: float

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
