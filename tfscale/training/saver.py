"""When a run saves, and the writing behind it.

The loop stands still for the copy out of the device; the files are written by a thread, one at a
time, and a run does not end before its last one is. What the chief alone knows (its clock, a
full disk) is its vote in the loop's reduction: all workers save, or fail, at the same turn.
"""

import contextlib
import errno
import json
import os
import threading
import time

import keras
import numpy as np
from absl import logging

from tfscale.training.checkpoint import Checkpoint

_SAVE = 1  # a vote; a failed write is the negative of its errno


class Saver:
    """Decides when a run saves and what of it stays; every worker has one, the chief's writes.

    In use as a context, it waits at the end for the write under way.

    Args:
        checkpoints: the `checkpoint.Checkpoints` to write to; None to save nothing.
        save_every_steps: steps between two checkpoints; 0 for none by steps.
        save_every_seconds: seconds between two checkpoints, by the chief's clock; 0 for none.
        save_every_epochs: epochs between two checkpoints; 0 for one after each epoch where there
            are none by steps or seconds. The end of a run is always saved.
        saves_end: save once more behind `on_train_end`, so that a script that runs again finds
            how this call of `fit` ended.

    Raises:
        ValueError: if a number is negative.
    """

    def __init__(
        self,
        checkpoints=None,
        *,
        save_every_steps=0,
        save_every_seconds=0,
        save_every_epochs=0,
        saves_end=False,
    ):
        for name, value in (
            ("save_every_steps", save_every_steps),
            ("save_every_seconds", save_every_seconds),
            ("save_every_epochs", save_every_epochs),
        ):
            if value < 0:
                raise ValueError(
                    f"`checkpoint.{name}` must be at least 0. Received: {value}. "
                    "Leave it out for a checkpoint after each epoch."
                )
        self._checkpoints, self._is_chief = checkpoints, False
        self.saves_end = saves_end and checkpoints is not None
        self.is_open = False  # the call of `fit` is under way
        self.has_ended = False  # it is over
        self._steps, self._seconds = save_every_steps, save_every_seconds
        self._epochs = save_every_epochs or int(not save_every_steps and not save_every_seconds)
        self._name = checkpoints.keep_best if checkpoints else ""
        self._sign, self._best, self._is_warned = 1, None, False
        self._clock_is_due, self._last = False, time.monotonic()
        self._thread, self._error, self._failed_step = None, None, None

    @property
    def saves(self):
        """Whether anything is saved at all."""
        return self._checkpoints is not None

    @property
    def checkpoints(self):
        """The `checkpoint.Checkpoints` that it writes to, or None."""
        return self._checkpoints

    def begin(self, model, is_chief, validates):
        """Get ready, before the first step and before an earlier life is taken over.

        Args:
            model: the built `keras.Model`, whose metrics say which way is better.
            is_chief: whether this worker writes.
            validates: whether the run scores validation data.

        Raises:
            ValueError: if the run has no metric named `keep_best`, or nothing says whether its
                best value is high or low.
        """
        self._is_chief, self._last = is_chief, time.monotonic()
        if self._name:
            if self._name.startswith("val_") and not validates:
                raise ValueError(
                    "`checkpoint.keep_best` must name a metric of the run. Received: "
                    f"{self._name!r} in a run without validation data. Name a metric of the "
                    "training, or give validation data."
                )
            mode = self._checkpoints.best_mode
            is_max = mode == "max" or mode == "auto" and higher_is_better(model, self._name)
            self._sign = 1 if is_max else -1
        if self.saves and is_chief:
            self._checkpoints.clean()

    def go_on_from(self, facts):
        """Take over what an earlier life knew of the best checkpoint, from its facts."""
        best = facts.get("best")
        self._best = best if best and best["metric"] == self._name else None

    def steps_until_due(self, step):
        """Return the steps from here to the next checkpoint by steps, or None."""
        return self._steps - step % self._steps if self._steps else None

    def vote(self):
        """Return the chief's vote for this turn, the one that `hear` expects."""
        if self._error is not None:
            return -(getattr(self._error, "errno", None) or errno.EIO)
        elapsed = time.monotonic() - self._last
        return _SAVE if self._seconds and elapsed >= self._seconds else 0

    def hear(self, vote):
        """Take over the chief's vote as it came back from the reduction to all workers.

        Raises:
            OSError: on all workers if the chief could not write the checkpoint before; those
                before that one are whole.
        """
        self._clock_is_due = vote == _SAVE
        if vote >= 0:
            return
        folder = self._checkpoints.directory
        if self._error is not None and not isinstance(self._error, OSError):
            raise self._error
        which = f"of step {self._failed_step}" if self._is_chief else "that its log names"
        raise OSError(
            -vote,
            f"{os.strerror(-vote)}: the chief could not write the checkpoint {which} in {folder}; "
            "those before it are whole",
        ) from self._error

    def is_due(self, step):
        """Say whether a checkpoint is due after this step, within an epoch."""
        by_steps = bool(self._steps) and step % self._steps == 0
        return self.saves and (by_steps or self._clock_is_due)

    def is_due_after_epoch(self, at, logs, is_last):
        """Say whether a checkpoint is due at the end of an epoch.

        Args:
            at: the loop's `Progress`, at the first position of the next epoch.
            logs: the numbers of the epoch that has ended, the same on all workers.
            is_last: the run ends here.
        """
        if not self.saves:
            return False
        is_best = self._is_best(at, logs)
        by_epochs = bool(self._epochs) and at.epoch % self._epochs == 0
        return is_last or is_best or by_epochs or self.is_due(at.step)

    def save(self, step, read, facts, arrays=None):
        """Copy the state out of the device, and begin to write it. Called by every worker.

        Waits for the write before, if it is still under way. After one that failed, nothing is
        written: the next vote says so.

        Args:
            step: updates of the weights so far.
            read: a function that returns the state as tensors by name; all workers run it.
            facts: what fits into JSON; it is copied.
            arrays: further NumPy arrays by name, which nobody changes later.
        """
        self._clock_is_due, self._last = False, time.monotonic()
        self._wait()
        tensors = read()
        if not self._is_chief or self._error is not None:
            return
        # Tensors never change: an update of a variable whose value is still held here makes a
        # new one. So this copies from another device, and on the CPU not at all.
        arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()} | (arrays or {})
        facts = json.loads(json.dumps({**facts, "best": self._best}))
        self._thread = threading.Thread(
            target=self._write,
            args=(Checkpoint(step, arrays, facts),),
            name="tfscale-checkpoint",
            daemon=True,  # a killed interpreter does not wait; an orderly end does, in `finish`
        )
        self._thread.start()

    def finish(self):
        """Wait until what was saved is on disk; return the chief's vote, for `hear`."""
        self._wait()
        return self.vote() if self._error is not None else 0

    def __enter__(self):
        self.is_open = True
        return self

    def __exit__(self, kind, error, traceback):
        self.is_open = False
        self._wait()
        is_told = self._error in (error, getattr(error, "__cause__", None))
        if self._error is not None and not is_told:
            logging.error("The checkpoint of step %s: %s", self._failed_step, self._error)

    def _is_best(self, at, logs):
        """Whether this epoch's metric is the best so far, which it then is for the next."""
        if not self._name:
            return False
        value = logs.get(self._name)
        if not isinstance(value, (int, float)):
            if not self._is_warned and not self._name.startswith("val_"):
                logging.warning(
                    "`checkpoint.keep_best` must name a number that the run reports. Received: "
                    "%r, where an epoch has %s. No checkpoint is kept as the best.",
                    self._name,
                    ", ".join(logs),
                )
            self._is_warned = True
            return False
        before = None if self._best is None else self._best["value"]
        if value != value or before is not None and self._sign * value <= self._sign * before:
            return False
        self._best = {"metric": self._name, "value": value, "step": at.step}
        return True

    def _write(self, checkpoint):
        best = checkpoint.facts["best"]
        try:
            self._checkpoints.save(checkpoint, [best["step"]] if best else [])
        except BaseException as error:  # the loop's affair, at its next turn
            self._failed_step, self._error = checkpoint.step, error

    def _wait(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def what_is_best(model, checkpoints, validates):
    """Return by what the best step of a run is told, for those who look on.

    Args:
        model: a built `keras.Model`.
        checkpoints: the `checkpoint.Checkpoints` of the run, whose metric comes first; or None.
        validates: whether the run scores validation data.

    Returns:
        A dict: "keep_best", the metric of the checkpoints, and "best", a list of `[name,
        direction]`, names in the logs with "max" or "min", those first that are rather wanted.
    """
    kept, mode = (checkpoints.keep_best, checkpoints.best_mode) if checkpoints else ("", "auto")
    lists = [getattr(metric, "metrics", ()) for metric in model.metrics]
    names = [f"{'val_' * validates}{metric.name}" for metrics in lists for metric in metrics]
    found = []
    for name in [kept] if kept else [*names, "val_loss" if validates else "loss"]:
        with contextlib.suppress(ValueError):  # nobody knows which way is better
            is_max = mode == "max" or mode == "auto" and higher_is_better(model, name)
            found.append([name, "max" if is_max else "min"])
    return {"keep_best": kept, "best": found}


def higher_is_better(model, name):
    """Say which way a metric gets better, as Keras' own callbacks decide it.

    Args:
        model: a built `keras.Model`.
        name: a name in the logs: "val_loss", "accuracy", ...

    Raises:
        ValueError: if Keras does not know.
    """
    judge = keras.callbacks.EarlyStopping(name, patience=9, mode="auto")
    judge.set_model(model)
    judge.on_train_begin()
    try:
        for epoch, value in enumerate((0.0, 1.0)):
            judge.on_epoch_end(epoch, {name: value})
    except ValueError:
        raise ValueError(
            "`checkpoint.keep_best` needs a metric of which Keras knows which way is better. "
            f"Received: {name!r}. Set checkpoint.best_mode to max or min, or name a metric of "
            "the model."
        ) from None
    return judge.best == 1.0
