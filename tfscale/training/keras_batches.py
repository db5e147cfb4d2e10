"""Batches as Keras makes them on one device, read through Keras' adapters and shared out.

Owns the kinds of sources: arrays by index, datasets, `PyDataset`s and generators. Which one the
data is, `keras_data.py` says; when an epoch gets which iterator, `data/feed.py`.
"""

import itertools
import random

import keras
import tensorflow as tf

from tfscale.data import batches, checks, elements, feed, order, rows


class KerasBatches(batches.Batches):
    """Batches of which every worker cuts its share; for one call of `fit`.

    `dataset` gives a single pass, from any batch of it on; `feed` gives the epochs.

    Args:
        source: one of those below.
        reset: end an epoch of the data before each pass for scoring.

    Attributes:
        num_batches: global batches in a pass; None where it is unknown or without end.
        given_steps: the caller's `steps_per_epoch`, or None.
        is_open_ended: the data may end before the steps of an epoch are taken.
    """

    def __init__(self, source, reset=True):
        self.source, self._reset, self._made = source, reset, {}
        self.num_batches, self.given_steps = source.num_batches, source.given_steps
        self.steps_per_epoch = self.given_steps or self.num_batches
        self.global_batch_size = source.global_batch_size
        if self.num_batches == 0:
            raise ValueError(
                "The data must have at least one batch. Received: an empty "
                f"{source.kind}. Check its source and `drop_remainder`."
            )
        if source.endless and not self.given_steps:
            raise ValueError(
                "Data without end needs `steps_per_epoch` (`steps`, `validation_steps`). "
                f"Received: none with an endless {source.kind}. Give it, or do not repeat."
            )

    @property
    def is_open_ended(self):
        return self.source.is_open_ended

    @property
    def element_spec(self):
        return rows.batch_spec(self.source.element_spec)

    def steps_in(self, epoch, first_epoch=0):
        if not (self.given_steps and self.num_batches):
            return self.steps_per_epoch
        of_pass = (epoch - first_epoch) % self._epochs_a_pass
        return min(self.given_steps, self.num_batches - of_pass * self.given_steps)

    def first_step(self, epoch, first_epoch=0):
        if not (self.given_steps and self.num_batches):
            return super().first_step(epoch, first_epoch)
        passes, of_pass = divmod(epoch - first_epoch, self._epochs_a_pass)
        return passes * self.num_batches + of_pass * self.given_steps

    @property
    def _epochs_a_pass(self):
        return -(-self.num_batches // self.given_steps)

    def dataset(self, shard, start_step=0):
        checks.check_enough_replicas(self.global_batch_size, shard)
        if (shard, start_step) not in self._made:  # tracing costs as much as ten small steps
            shares = self.source.shares(shard, "interleaved", start_step)
            self._made[shard, start_step] = shares
        return self._made[shard, start_step]

    def epoch(self, shard):
        if self._reset:
            self.source.reset()
        steps = self.steps_in(0)
        self.source.begin(steps)
        if shard not in self._made:
            shares = self.source.shares(shard, "block", 0, steps)
            if steps is not None and not self.is_open_ended:
                shares = shares.apply(tf.data.experimental.assert_cardinality(steps))
            self._made[shard] = shares
        return self._made[shard]

    def end_epoch(self):
        if self.num_batches and self.steps_in(0) == self.num_batches:
            iter(self.source.whole)  # as Keras does, for the next draw of a shuffle
        self.source.end(exhausted=self.steps_per_epoch is None)

    def gives_same_again(self):
        return self.source.gives_same_again()

    def reads_again(self):
        return self.source.reads_again()

    def has_state(self):
        return self.source.has_state()

    def feed(self, shard, first_epoch=0):
        self.source.restart()
        kind = feed.EpochFeed if self.source.is_python else feed.PassFeed
        return kind(self, self.source, shard, first_epoch)


class Source:
    """Where the global batches of `KerasBatches` come from.

    Attributes:
        kind: how a user would call it.
        whole: a dataset of the global batches of a pass.
        given_steps: the caller's `steps_per_epoch`, or None.
        num_batches: in a pass; None where it is unknown or without end.
        endless: there is no end.
        starts_anywhere: `shares` from a later batch on costs no reading of those before.
        is_python: Python code makes each batch.
        replay_reads: `replay` of such a source reads the batches.
    """

    endless = starts_anywhere = is_python = replay_reads = False
    auto_shard_policy = None

    def __init__(self, adapter, given_steps, kind):
        self._adapter, self.given_steps, self.kind = adapter, given_steps, kind
        self.whole = adapter.get_tf_dataset()
        elements.check_batched(self.whole.element_spec)
        self.num_batches, self.global_batch_size = adapter.num_batches, None

    @property
    def element_spec(self):
        return self.whole.element_spec

    @property
    def is_open_ended(self):
        return self.num_batches is None and not self.endless

    def shares(self, shard, policy, start=0, steps=None):
        """Return a worker's shares of a pass.

        Args:
            shard: the worker and its replicas.
            policy: "interleaved" or "block".
            start: the first batch to give.
            steps: batches to give; None for all.
        """
        return elements.shares_of(self._cut(start, steps), shard, policy)

    def _cut(self, start, steps):
        whole = self.whole.skip(start) if start else self.whole
        return whole if steps is None else whole.take(steps)

    def gives_same_again(self):
        """Say whether the same script, run again, surely reads the same batches."""
        return True

    def reads_again(self):
        """Say whether this process surely reads the same batches when it reads them twice."""
        return True

    def has_state(self):
        """Say whether equal examples may have other values on another worker."""
        return elements.has_state(self.whole)

    def restart(self):
        """Forget how far a pass is that was begun."""

    def reset(self):
        """Do what Keras does with its data before the first epoch, and before each scoring."""
        self._adapter.on_epoch_end()

    def begin(self, steps, skip=0):
        """Begin an epoch of so many steps, some of which are done already."""
        self._adapter.on_epoch_begin()

    def end(self, exhausted=False):
        """End it."""
        self._adapter.on_epoch_end()


class ArraySource(Source):
    """Dense arrays; each worker copies its own rows only.

    Args:
        indices: Keras' adapter of the array 0, 1, 2, ...
        arrays: `x`, or a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)`, of nested tensors.
        given_steps: the caller's `steps_per_epoch`, or None.
    """

    starts_anywhere = True

    def __init__(self, indices, arrays, given_steps):
        super().__init__(indices, given_steps, "arrays")
        self.global_batch_size, self._arrays = indices.batch_size, arrays

    @property
    def element_spec(self):
        specs = tf.nest.map_structure(
            lambda t: None if t is None else tf.TensorSpec(t.shape, t.dtype), self._arrays
        )
        return rows.batch_spec(specs)

    def has_state(self):
        return False

    def shares(self, shard, policy, start=0, steps=None):
        def read(indices):
            count = rows.count_rows(indices)
            mine = indices
            if shard.num_replicas > 1:
                mine = tf.gather(indices, order.positions(tf.cast(count, tf.int64), shard, policy))
            share = rows.take_rows(self._arrays, mine)
            if shard.num_workers == 1:
                return share, count
            samples = tf.gather(indices, elements.sampled_positions(count))
            parts = [p for p in tf.nest.flatten(self._arrays) if p is not None]
            parts = [samples, *rows.take_rows(parts, samples)]
            return share, count, elements.fingerprint(parts, count)

        return elements.pipeline(self._cut(start, steps), read)


class DatasetSource(Source):
    """A `tf.data.Dataset`, or what Keras makes one of: sparse arrays, loaders, own adapters.

    Args:
        adapter: Keras' adapter.
        given_steps: the caller's `steps_per_epoch`, or None.
        x: what the user gave.
    """

    def __init__(self, adapter, given_steps, x):
        super().__init__(adapter, given_steps, type(x).__name__)
        shapes = [s.shape for s in tf.nest.flatten(self.element_spec) if hasattr(s, "shape")]
        self.global_batch_size = shapes[0][0]
        if isinstance(x, tf.data.Dataset):
            self.kind = "tf.data.Dataset"
            self.endless = int(x.cardinality()) == tf.data.INFINITE_CARDINALITY
            self.auto_shard_policy = x.options().experimental_distribute.auto_shard_policy

    def gives_same_again(self):
        return elements.gives_same_again(self.whole)

    def reads_again(self):
        return elements.reads_again(self.whole)


class PositionedPyDataset(keras.utils.PyDataset):
    """The batches of a user's `PyDataset` at positions that are chosen epoch by epoch.

    Args:
        dataset: the user's.
        shuffle: a new order of the batches every pass, as Keras draws it.
    """

    def __init__(self, dataset, shuffle):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset, self._shuffle = dataset, shuffle
        self.total = dataset.num_batches
        self._left, self._next = [], 0
        # Keras looks at the first batches for their types.
        self._positions = range(2 if self.total is None else self.total)

    def choose(self, steps, skip=0):
        """Choose the next `steps` batches, and leave out the first `skip` of them."""
        if self.total is None:
            chosen = range(self._next, self._next + steps)
            self._next += steps
        else:
            if not self._left:
                self._left = list(range(self.total))
                if self._shuffle:
                    random.shuffle(self._left)
            chosen, self._left = self._left[:steps], self._left[steps:]
        self._positions = chosen[skip:]

    def restart(self):
        """Begin the pass again."""
        self._left, self._next = [], 0

    @property
    def has_hooks(self):
        """Whether code of the user's is told where epochs begin and end."""
        hooks = ("on_epoch_begin", "on_epoch_end")
        plain = keras.utils.PyDataset
        return any(getattr(type(self._dataset), h) is not getattr(plain, h) for h in hooks)

    @property
    def num_batches(self):
        return len(self._positions)

    def __getitem__(self, index):
        return self._dataset[self._positions[index]]

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()


class PyDatasetSource(Source):
    """A `keras.utils.PyDataset`, asked for the batches of an epoch and no others.

    Args:
        positioned: a `PositionedPyDataset`.
        adapter: Keras' adapter of it.
        given_steps: the caller's `steps_per_epoch`, or None.
    """

    is_python = True

    def __init__(self, positioned, adapter, given_steps):
        self._positioned = positioned
        super().__init__(adapter, given_steps, "PyDataset")
        self.num_batches, self.endless = positioned.total, positioned.total is None
        workers, processes = positioned.workers, positioned.use_multiprocessing
        self._reads_ahead = workers > 1 or (workers > 0 and processes)

    def reads_again(self):
        return not self._positioned.has_hooks

    def restart(self):
        self._positioned.restart()

    def reset(self):
        super().reset()
        self.restart()

    def begin(self, steps, skip=0):
        if self._reads_ahead:  # Keras' threads ask from the beginning of the epoch on
            self._positioned.choose(steps, skip)
            self._adapter.on_epoch_begin()
        else:
            self._adapter.on_epoch_begin()
            self._positioned.choose(steps, skip)

    def replay(self, steps):
        """Have an epoch without its batches: the draws and the hooks, which may draw as well."""
        self._positioned.on_epoch_begin()
        self._positioned.choose(steps)
        self._positioned.on_epoch_end()


class GeneratorSource(Source):
    """A Python generator, asked for the batches of an epoch and no others.

    Args:
        adapter: Keras' adapter, which looked at the first two batches and gives them again in
            each pass.
        given_steps: the caller's `steps_per_epoch`, or None.
    """

    is_python = replay_reads = True

    def __init__(self, adapter, given_steps):
        super().__init__(adapter, given_steps, "generator")
        self._restored, self._stream = adapter.generator, None

    def gives_same_again(self):
        return False

    def reads_again(self):
        return False

    def begin(self, steps, skip=0):
        if self._stream is None:
            self._stream = self._restored()
        epoch = itertools.islice(self._stream, steps)
        for _ in itertools.islice(epoch, skip):
            pass
        self._adapter.generator = lambda: epoch

    def end(self, exhausted=False):
        super().end()
        if exhausted:
            self._stream = None

    def replay(self, steps):
        """Read an epoch and forget it."""
        if self._stream is None:
            self._stream = self._restored()
        taken = sum(1 for _ in itertools.islice(self._stream, steps))
        self.end(exhausted=taken != steps)

    def reset(self):
        super().reset()
        self._stream = None
