"""Where a run is, and lines that say so where there is no terminal for a bar."""

import dataclasses
import time

import keras


@dataclasses.dataclass
class Progress:
    """Where a run is.

    Args:
        epoch: the epoch under way, from 0.
        position: steps taken in it.
        step: steps taken since the run began, over all restarts.
        examples: examples trained on since the run began.
        seconds: time spent in steps since the run began.
        step_seconds: length of a step in the last execution; None before one was timed.
        examples_per_second: in the last execution, over all workers; None before one was timed.
        learning_rate: of the next step.
        epoch_is_over: all steps of the epoch were taken.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    step_seconds: float | None = None
    examples_per_second: float | None = None
    learning_rate: float = 0.0
    epoch_is_over: bool = False
    _timed_examples: int = 0
    _executions: int = 0

    def advance(self, steps, seconds):
        """Note that steps were taken; the first execution, which traces, is not timed."""
        self.position += steps
        self.step += steps
        if self._executions:
            self.seconds += seconds
            self.step_seconds = seconds / steps
            self.examples_per_second = (self.examples - self._timed_examples) / seconds
        self._timed_examples = self.examples
        self._executions += 1

    def begin_next_epoch(self):
        """Go to the first position of the next epoch."""
        self.epoch += 1
        self.position = 0

    def go_on_from(self, saved):
        """Take over the place of a saved run; times begin anew.

        Args:
            saved: a dict of this class's fields.
        """
        for name in ("epoch", "position", "step", "examples", "seconds"):
            setattr(self, name, saved[name])
        self._timed_examples = self.examples


class Lines(keras.callbacks.Callback):
    """One line an epoch, and one every few seconds in a long epoch.

    Args:
        progress: the trainer's `Progress`.
        every_seconds: time between two lines within an epoch.
    """

    def __init__(self, progress, every_seconds=15):
        super().__init__()
        self._progress, self._every_seconds = progress, every_seconds
        self._began = self._last = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        self._began = self._last = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if now - self._last >= self._every_seconds:
            self._last = now
            self._print(f"step {batch + 1}/{self.params['steps'] or '?'}", logs)

    def on_epoch_end(self, epoch, logs=None):
        self._print(f"{time.monotonic() - self._began:.1f} s", logs)

    def _print(self, where, logs):
        at = self._progress
        values = "  ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items())
        speed = f"  {at.examples_per_second:,.0f} examples/s" if at.examples_per_second else ""
        print(f"epoch {at.epoch + 1}/{self.params['epochs']}  {where}{speed}  {values}", flush=True)
