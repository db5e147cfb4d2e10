"""Where a run is, and what says so to a person: a bar on a terminal, lines elsewhere."""

import collections
import dataclasses
import shutil
import sys
import time

import keras


@dataclasses.dataclass
class Progress:
    """Where a run is.

    Args:
        epoch: the epoch under way, from 0.
        position: steps taken in it.
        step: steps taken since the run began, over all its lives.
        examples: examples trained on in these steps.
        timed_examples: those of executions that were timed: not the first of a life, which
            traces the graph.
        timed_seconds: the time they took.
        between_seconds: the time between them, within epochs: callbacks, and waiting for those of
            other workers.
        timed_steps: steps of this life that were timed.
        taken_steps: steps that this life has taken, those that it took again included.
        earlier_seconds: wall time of the run's earlier lives.
        step_seconds: length of a step in the last timed execution, without what is between.
        recent: how fast timed steps are now.
        learning_rate: of the next step.
        began: when this life began, on the monotonic clock.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    examples: int = 0
    timed_examples: int = 0
    timed_seconds: float = 0.0
    between_seconds: float = 0.0
    timed_steps: int = 0
    taken_steps: int = 0
    earlier_seconds: float = 0.0
    step_seconds: float | None = None
    learning_rate: float = 0.0
    began: float = dataclasses.field(default_factory=time.monotonic)
    is_traced: bool = False
    recent: "Recent" = dataclasses.field(default_factory=lambda: Recent())

    @property
    def wall_seconds(self):
        """Wall time of the run, over all its lives."""
        return self.earlier_seconds + time.monotonic() - self.began

    def start(self, epoch, step):
        """Begin a life at the first position of an epoch."""
        vars(self).update(vars(Progress(epoch=epoch, step=step)))

    def advance(self, steps, examples, seconds, between_seconds=0.0):
        """Note that steps were taken.

        Args:
            steps: how many.
            examples: in their global batches.
            seconds: the time they took.
            between_seconds: the time since the steps before, in the same epoch.
        """
        self.position += steps
        self.step += steps
        self.taken_steps += steps
        self.examples += examples
        if self.is_traced:
            self.timed_steps += steps
            self.timed_examples += examples
            self.timed_seconds += seconds
            self.between_seconds += between_seconds
            self.step_seconds = seconds / steps
            self.recent.add(steps, examples, seconds + between_seconds)
        self.is_traced = True

    def advance_to(self, position):
        """Go on by some positions of this epoch whose steps this life does not take."""
        self.position += position
        self.step += position

    def begin_next_epoch(self):
        """Go to the first position of the next epoch."""
        self.epoch += 1
        self.position = 0

    def to_save(self):
        """Return what a later life needs to go on."""
        names = ("epoch", "position", "step", "examples")
        names += ("timed_examples", "timed_seconds", "between_seconds")
        return {name: getattr(self, name) for name in names} | {"wall_seconds": self.wall_seconds}

    def go_on_from(self, saved):
        """Take over the place of an earlier life, as `to_save` gave it."""
        self.earlier_seconds = saved["wall_seconds"]
        for name in saved.keys() - {"wall_seconds"}:
            setattr(self, name, saved[name])


class Recent:
    """How fast steps are: over the last seconds, as single executions differ too much."""

    def __init__(self):
        self._executions = collections.deque()
        self._steps, self._examples, self._seconds = 0, 0, 0.0

    def add(self, steps, examples, seconds):
        """Note an execution, with the time since the one before."""
        self._executions.append((steps, examples, seconds))
        self._count(steps, examples, seconds)
        while self._seconds - self._executions[0][2] >= _RECENT_SECONDS:
            steps, examples, seconds = self._executions.popleft()
            self._count(-steps, -examples, -seconds)

    def _count(self, steps, examples, seconds):
        self._steps += steps
        self._examples += examples
        self._seconds += seconds

    @property
    def step_seconds(self):
        """Seconds a step; None before one was timed."""
        return self._seconds / self._steps if self._executions else None

    @property
    def examples_per_second(self):
        """Examples a second, over all workers; None before a step was timed."""
        return self._examples / self._seconds if self._executions else None


class Lines(keras.callbacks.Callback):
    """One line an epoch, and one every few seconds in a long epoch.

    Args:
        progress: the trainer's `Progress`.
        every_seconds: time between two lines within an epoch.
    """

    def __init__(self, progress, every_seconds=15):
        super().__init__()
        self._progress, self._every_seconds = progress, every_seconds
        self._began = self._last = self._first = time.monotonic()
        self._first_step = None

    def on_epoch_begin(self, epoch, logs=None):
        self._began = self._last = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        now = time.monotonic()
        if self._first_step is None:  # what comes before, such as tracing, comes once
            self._first, self._first_step = now, self._progress.step
        if now - self._last >= self._every_seconds:
            self._last = now
            left = self._left(batch + 1)
            self._print(f"step {batch + 1}/{self.params['steps'] or '?'}", logs, left)

    def on_epoch_end(self, epoch, logs=None):
        left = self._left(self.params["steps"] or 0) if self.params["steps"] else ""
        self._print(f"{time.monotonic() - self._began:.1f} s", logs, left)

    def _left(self, position):
        """How long the run still takes at the pace of this life so far; "" where nobody knows."""
        at, steps, epochs = self._progress, self.params["steps"], self.params["epochs"]
        taken = at.step - (at.step if self._first_step is None else self._first_step)
        left = (epochs - at.epoch) * steps - position if steps else 0
        if taken <= 0 or left <= 0:
            return ""
        return f"  {_clock((time.monotonic() - self._first) / taken * left)} left"

    def _print(self, where, logs, left=""):
        print(self._line(where, logs, left), flush=True)

    def _line(self, where, logs, left):
        at = self._progress
        numbers = {n: v for n, v in (logs or {}).items() if not isinstance(v, list)}
        values = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        speed = at.recent.examples_per_second
        speed = f"  {speed:,.0f} examples/s" if speed else ""
        return f"epoch {at.epoch + 1}/{self.params['epochs']}  {where}{speed}{left}  {values}"


class Bar(Lines):
    """The same on a terminal: a line that is drawn again in its place, and stays for each epoch.

    Args:
        progress: the trainer's `Progress`.
        stream: the terminal.
    """

    def __init__(self, progress, stream=None):
        super().__init__(progress, _REDRAWN_SECONDS)
        self._stream, self._drawn = stream or sys.stdout, ""

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self._stream.write("\n")
        self._stream.flush()

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params["steps"]
        done = int(_BAR * min((batch + 1) / steps, 1)) if steps else 0
        self._drawn = f"{'█' * done}{'░' * (_BAR - done)} " if steps else ""
        super().on_train_batch_end(batch, logs)
        self._drawn = ""

    def _print(self, where, logs, left=""):
        line = self._drawn + self._line(where, logs, left)
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{line[:width]}")
        self._stream.flush()


_RECENT_SECONDS = 5.0  # of steps, so many at least say how fast they are now
_BAR = 20  # characters
_REDRAWN_SECONDS = 0.2


def _clock(seconds):
    """A length of time, such as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
