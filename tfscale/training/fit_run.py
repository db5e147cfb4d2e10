"""What one call of `Trainer.fit` works with: its data, its limits, and what is due when."""

import dataclasses
from collections.abc import Callable

import keras

from tfscale.data.batches import Batches
from tfscale.training.health import Health
from tfscale.training.measures import Measures
from tfscale.training.pace import Pace
from tfscale.training.profile import Profile
from tfscale.training.saver import Saver


@dataclasses.dataclass
class FitRun:
    """One call of `fit`.

    Args:
        data: what is trained on.
        epochs: the epoch to stop after.
        pace: steps an execution.
        validation: what is scored during training, or None.
        evaluate: scores it in another way, given this run, and returns numbers by name; or None.
        validation_freq: epochs between two validations, or a list of those, counted from 1.
        saver: saves what is due; by default nothing is.
        health: looks for bad steps; by default it looks at none.
        callbacks: Keras' list of callbacks.
        first_epoch: the epoch the run began with.
        stopped: all workers have agreed to stop.
        test_steps: batches of a validation between two calls of callbacks; None for all.
        is_watched: a callback looks at single executions and may stop the run within an epoch.
        steps_per_epoch: None until it is found out, for a dataset of unknown length.
        reports: sums of what a step of the user's own reported in this epoch, and the examples.
        logs: the numbers of the last epoch, or None.
        is_finished: all of it is done, `on_train_end` included.
        restore_random: puts back the random states of an earlier life, once; or None.
        epoch_is_begun: callbacks have been told of the epoch to go on within.
        given: the data as the caller gave them, or None; the next call may get the same object.
        measures: collects what is measured of the steps; None to measure nothing.
        profile: records single steps for TensorBoard's profiler; None for none.
    """

    data: Batches
    epochs: int
    pace: Pace
    validation: Batches | None = None
    evaluate: Callable | None = None
    validation_freq: int | list = 1
    test_steps: int | None = None
    saver: Saver = dataclasses.field(default_factory=Saver)
    health: Health = dataclasses.field(default_factory=Health)
    callbacks: keras.callbacks.CallbackList | None = None
    first_epoch: int = 0
    is_watched: bool = True
    stopped: bool = False
    steps_per_epoch: int | None = None
    reports: dict = dataclasses.field(default_factory=dict)
    logs: dict | None = None
    is_finished: bool = False
    restore_random: Callable | None = None
    epoch_is_begun: bool = False
    given: object = None
    measures: Measures | None = None
    profile: Profile | None = None

    def __post_init__(self):
        self.steps_per_epoch = self.data.steps_per_epoch
        self._feed = None

    @property
    def history(self):
        """Keras' `History` among the callbacks."""
        return next(c for c in self.callbacks.callbacks if isinstance(c, keras.callbacks.History))

    @property
    def is_open_ended(self):
        """Whether the data may end at any step."""
        return self.data.is_open_ended

    def steps_in_epoch(self, at):
        """Return the steps of the epoch under way; None where it ends when the data do."""
        return self.data.steps_in(at.epoch, self.first_epoch)

    def iterator(self, shard, at):
        """Return the iterator that gives the next step's batch, once an epoch.

        Args:
            shard: this worker's `data.shards.Shard`.
            at: the loop's `Progress`.
        """
        if self._feed is None:
            self._feed = self.data.feed(shard, self.first_epoch)
        restore, self.restore_random = self.restore_random, None
        return self._feed.begin(at.epoch, at.position, restore or (lambda: None))

    def steps_left(self, at):
        """Return about how many steps are left: where nobody knows, as many as were taken."""
        if not self.steps_per_epoch:
            return at.step
        return (self.epochs - at.epoch) * self.steps_per_epoch - at.position

    def validation_is_due(self, epoch):
        """Say whether the data for validation are to be scored after an epoch."""
        if isinstance(self.validation_freq, int):
            return (epoch + 1) % self.validation_freq == 0
        return epoch + 1 in self.validation_freq

    def end_steps(self, at, exhausted):
        """Note that the steps of an epoch are done.

        Args:
            at: the loop's `Progress`.
            exhausted: the data ended before the epoch did.
        """
        self.steps_per_epoch = self.steps_per_epoch or at.position
        if self._feed is not None:
            self._feed.end(exhausted)

    def go_on_from(self, facts, position):
        """Take over what an earlier life knew of the epoch under way.

        Args:
            facts: those of its checkpoint.
            position: steps it took in that epoch.

        Raises:
            ValueError: if its epochs had another number of steps, and it stopped within one.
        """
        before, now = facts["steps_per_epoch"], self.steps_per_epoch
        if position and None not in (before, now) and before != now:
            raise ValueError(
                "A run can go on within an epoch only with the same data and global batch. "
                f"Received: a checkpoint at step {position} of {before} in its epoch, where an "
                f"epoch now has {now}. Use the same global batch, or a checkpoint from the end "
                "of an epoch."
            )
        self.reports, self.steps_per_epoch = facts["reports"], now or before
        self.saver.go_on_from(facts)
        self._feed = None  # one that goes on from here; there is another where the run went back

    def next_steps(self, at, most=None):
        """Return the steps until the host has to look again, the same on every worker.

        Args:
            at: the loop's `Progress`.
            most: how many a graph may take, or None for any number.
        """
        k, steps = most or self.pace.steps, self.steps_in_epoch(at)
        if steps is not None:
            k = min(k, steps - at.position)
        limits = [self.saver.steps_until_due(at.step), self.health.steps_until_due(at)]
        if self.profile is not None:
            limits.append(self.profile.steps_until_due(at.step))
        return min(k, *(limit or k for limit in limits))

    def mean_reports(self, reports, examples):
        """Return means over the epoch of what a step of the user's own reports.

        Args:
            reports: sums over the examples of the last execution, by name.
            examples: how many they are.
        """
        for name, value in reports.items():
            total, count = self.reports.get(name, (0.0, 0))
            self.reports[name] = (total + float(value), count + examples)
        return {name: total / (count or 1) for name, (total, count) in self.reports.items()}
