"""Scores: one as a number and in words, and at which step a run was best.

What is best a run says itself as it begins, as its checkpoints decide it. The rule by name is for
folders in which nothing says so, and knows Keras' own metrics alone.
"""

import math
import re
from typing import NamedTuple

_HIGHER = (
    "accuracy", "acc", "auc", "precision", "recall", "f1_score", "fbeta_score", "io_u", "r2_score",
    "cosine_similarity", "pearson_correlation", "concordance_correlation", "precision_at_recall",
    "recall_at_precision", "sensitivity_at_specificity", "specificity_at_sensitivity",
)  # fmt: skip
_LOWER = (
    "loss", "error", "crossentropy", "hinge", "kl_divergence", "logcosh", "poisson", "mae", "mse",
)  # fmt: skip


class Best(NamedTuple):
    """The best step of a run.

    Args:
        name: of the metric, without "val_".
        value: of it.
        step: updates of the weights.
        epoch: from 1.
        split: "validation" or "training": which of the two it is of.
    """

    name: str
    value: float
    step: int
    epoch: int
    split: str

    def words(self):
        """Return what was best in words, without where."""
        return f"{self.split} {self.name} {in_words(self.value)}"


def one_number(value):
    """Return a score as one number: of several, such as one a class, their mean; or None."""
    if isinstance(value, list):
        parts = [one_number(part) for part in value]
        return None if None in parts or not parts else sum(parts) / len(parts)
    return value if isinstance(value, (int, float)) and value == value else None


def in_words(value):
    """Return a score in a few characters."""
    value = one_number(value)
    if value is None:
        return "nan"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def direction_by_name(name):
    """Return "max" or "min" for a metric of Keras, by its name in the logs; None for others."""
    name = re.sub(r"_\d+$", "", name.removeprefix("val_").lower())
    for direction, known in (("max", _HIGHER), ("min", _LOWER)):
        if any(name == one or name.endswith(f"_{one}") for one in known):
            return direction
    return "min" if name == "mean_absolute_percentage_error" else None


def best(run):
    """Return the `Best` step, as `RunFiles.best` says."""
    for name, direction in _wanted(run):
        sign, found = (1 if direction == "max" else -1), None
        split, candidates = _candidates(run, name)
        for record, value in candidates:
            if found is None or sign * value > sign * found.value:
                epoch = record.get("epoch", 0) + 1
                found = Best(name.removeprefix("val_"), value, record["step"], epoch, split)
        if found is not None:
            return found
    return None


def _kept(run):
    """The metric by which the best checkpoint is kept, "" where none is."""
    said = run.begun.get("keep_best")
    return run.config.get("checkpoint", {}).get("keep_best", "") if said is None else said


def _wanted(run):
    """Pairs of a name and a direction, those that are rather wanted first."""
    if "best" in run.begun:
        return run.begun["best"]
    kept, mode = _kept(run), run.config.get("checkpoint", {}).get("best_mode", "auto")
    if kept:
        direction = direction_by_name(kept) if mode == "auto" else mode
        return [(kept, direction)] if direction else []
    names = [name for name in run.metrics() if name != "loss"]
    known = [(name, direction_by_name(name)) for name in names]
    return [*((name, direction) for name, direction in known if direction), ("loss", "min")]


def _candidates(run, name):
    """The split, and pairs of a record and its value, that the best is chosen from.

    An evaluator's validations count where the run has none of its own, and no checkpoint is kept by
    them. Of training the ends of epochs count: within an epoch it is the mean of a few batches.
    """
    is_kept, bare = name == _kept(run), name.removeprefix("val_")
    records = run.validations(with_evaluator=False) or ([] if is_kept else run.validations())
    validated = _values(records, "validation", bare)
    if name != bare or validated and not is_kept:
        return "validation", validated
    return "training", _values(_ends_of_epochs(run), "train", bare)


def _values(records, kind, name):
    found = [(record, record.get(kind, {}).get(name)) for record in records]
    return [(r, v) for r, v in found if isinstance(v, (int, float)) and math.isfinite(v)]


def _ends_of_epochs(run):
    """The last record of training in each epoch that has come to its end."""
    lasts = {record.get("epoch", 0): record for record in run.records if "train" in record}
    steps, newest = run.begun.get("steps_per_epoch"), max(lasts, default=0)
    has_ended = bool(run.events) and run.events[-1]["event"] == "end"
    return [
        record
        for epoch, record in lasts.items()
        if epoch < newest or has_ended or (steps and record["step"] % steps == 0)
    ]
