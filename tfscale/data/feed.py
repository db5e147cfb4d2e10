"""The iterators of one call of `fit`: which one gives an epoch, when it is made.

Owns the state between epochs. How many iterators are made matters: a shuffle of `tf.data` draws
its next seed whenever one is made, read or not; and so does when earlier random states come back.
"""

import warnings


class Feed:
    """One iterator for all epochs, so that none begins with a wait.

    Where the length of an epoch is found out while running, each epoch has its own.

    Args:
        data: the `Batches`.
        shard: the worker and its replicas.
        first_epoch: the epoch that the run began with.
    """

    def __init__(self, data, shard, first_epoch=0):
        self._data, self._shard, self._first_epoch = data, shard, first_epoch
        self._iterator = None

    def begin(self, epoch, position=0, restore=lambda: None):
        """Return the iterator that gives the next steps.

        Call it once for every epoch, in turn. The first call may be for any epoch and position:
        what comes is what would have come had the feed given everything before.

        Args:
            epoch: the epoch to begin, or to go on with.
            position: steps of it that are done already.
            restore: puts random states back as they were at this position. An epoch may draw its
                order as it begins, so it is called before the draw at the first position, and
                after it at any other.
        """
        restore()
        steps = self._data.steps_per_epoch
        if steps is None:
            return iter(self._data.dataset(self._shard, position))
        if self._iterator is None:
            self._iterator = iter(self._data.dataset(self._shard, epoch * steps + position))
        return self._iterator

    def end(self, exhausted=False):
        """Tell the feed that the epoch's steps are done.

        Args:
            exhausted: the iterator came to its end before the epoch did.
        """

    reads_to_pass_over = False

    @property
    def passes_over_surely(self):
        # What is read in advance may go into the next order of a shuffle that is repeated.
        return self._data.reads_again()

    def pass_over(self, epoch):
        """Do to the data what the epochs before this one did, for a run that takes no step.

        The next run on the same data then gets what it would have got, if `passes_over_surely`.
        Where `reads_to_pass_over`, that means reading all of them.
        """


class PassFeed(Feed):
    """Iterators as `keras.Model.fit` makes them on one device, for data that is read in passes.

    Without `steps_per_epoch` an epoch is a pass. With it, one pass goes on over epochs, and the
    epoch that meets its end is cut short.

    Args:
        data: the `Batches`; its `dataset(shard, start)` gives one pass, from a batch on.
        source: tells `num_batches` (of a pass; None where unknown or without end),
            `given_steps` (the caller's `steps_per_epoch`, or None), `endless`, and
            `starts_anywhere` (whether a pass begins at any batch without reading those before);
            hears of epochs through `begin` and `end`.
        shard: the worker and its replicas.
        first_epoch: the epoch that the run began with.
    """

    def __init__(self, data, source, shard, first_epoch=0):
        super().__init__(data, shard, first_epoch)
        self._source, self._epoch = source, None
        self._taken = 0  # batches of the current pass

    def begin(self, epoch, position=0, restore=lambda: None):
        if self._epoch is None and (epoch > self._first_epoch or position):
            return self._go_to(epoch, position, restore)
        restore()
        self._epoch = epoch
        self._source.begin(self._data.steps_in(epoch, self._first_epoch))
        if self._iterator is None or self._source.given_steps is None:
            self._open()
        return self._iterator

    def end(self, exhausted=False):
        source, steps = self._source, self._data.steps_in(self._epoch, self._first_epoch)
        self._taken += steps or 0
        _warn_if_cut_short(steps, source.given_steps, exhausted)
        if exhausted:
            self._iterator = None
        elif source.num_batches and self._taken >= source.num_batches:
            self._open()  # Keras makes one here, and another at the next begin without steps
        source.end(exhausted)

    @property
    def passes_over_surely(self):
        return not self._source.endless or super().passes_over_surely

    def pass_over(self, epoch):
        if not self._source.starts_anywhere:
            self._pass_over(epoch, reads=False)

    def _pass_over(self, epoch, reads=True):
        for before in range(self._first_epoch, epoch):
            steps = self._data.steps_in(before, self._first_epoch)
            iterator = self.begin(before)
            ended = not _skip(iterator, steps) if reads else steps is None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it was warned of in its time
                self.end(exhausted=ended)

    def _open(self, start=0):
        self._iterator, self._taken = iter(self._data.dataset(self._shard, start)), start

    def _go_to(self, epoch, position, restore):
        """Begin at any step: reading what comes before, where that decides what follows."""
        if self._source.starts_anywhere:
            restore()
            step = self._data.first_step(epoch, self._first_epoch) + position
            self._epoch = epoch
            self._source.begin(self._data.steps_in(epoch, self._first_epoch))
            self._open(step % self._source.num_batches)
            self._taken -= position  # `end` counts the whole epoch
            return self._iterator
        self._pass_over(epoch)
        if not position:
            restore()
        iterator = self.begin(epoch)
        _skip(iterator, position)
        if position:
            restore()
        return iterator


class EpochFeed(Feed):
    """An iterator for each epoch, which reads as many batches as the epoch has and no more.

    For batches made by Python code: what that code has given, or been asked for, is then the
    same on every worker, whatever was fetched in advance.

    Args:
        data: the `Batches`.
        source: begins with `begin(steps, skip)` and ends with `end(exhausted)` an epoch, and
            passes over one with `replay(steps)`, which reads its batches if `replay_reads`;
            tells `given_steps` like that of `PassFeed`.
        shard: the worker and its replicas.
        first_epoch: the epoch that the run began with.
    """

    def __init__(self, data, source, shard, first_epoch=0):
        super().__init__(data, shard, first_epoch)
        self._source, self._epoch = source, None

    def begin(self, epoch, position=0, restore=lambda: None):
        if self._epoch is None:
            self.pass_over(epoch)
        if not position:
            restore()
        self._epoch = epoch
        self._source.begin(self._data.steps_in(epoch, self._first_epoch), position)
        if position:
            restore()
        return iter(self._data.dataset(self._shard))

    def end(self, exhausted=False):
        steps = self._data.steps_in(self._epoch, self._first_epoch)
        _warn_if_cut_short(steps, self._source.given_steps, exhausted)
        self._source.end(exhausted)

    @property
    def reads_to_pass_over(self):
        return self._source.replay_reads

    @property
    def passes_over_surely(self):
        return True

    def pass_over(self, epoch):
        for before in range(self._first_epoch, epoch):
            self._source.replay(self._data.steps_in(before, self._first_epoch))


def _warn_if_cut_short(steps, given_steps, exhausted):
    """Warn of an epoch that met the end of the data, as Keras does."""
    if exhausted or (given_steps and steps < given_steps):
        warnings.warn(
            "Your input ran out of data; the epoch is cut short. Give at least steps_per_epoch * "
            "epochs batches, for example with `dataset.repeat()`, or leave steps_per_epoch out.",
            stacklevel=3,
        )


def _skip(iterator, num_batches):
    """Read some batches, or all where `num_batches` is None; say whether there were as many."""
    taken = 0
    while taken != num_batches:
        if next(iterator, None) is None:
            return False
        taken += 1
    return True
