"""One split, cut into global batches: the interface between data and training.

Owns `Batches` and its two kinds for random access sources and for a user's own dataset; files
too large for memory are in `stream.py`. Every worker asks for its share of each global batch
and learns how many examples the whole batch has, so that shares can be weighed by count.
"""

import functools

import numpy as np
import tensorflow as tf

from tfscale.data import arrays, checks, elements, feed, order, rows, shards, transforms
from tfscale.data.elements import fingerprint_of, pipeline, with_count
from tfscale.names import check_known

__all__ = [
    "Batches",
    "DatasetBatches",
    "IndexedBatches",
    "fingerprint_of",
    "from_arrays",
    "from_dataset",
    "pipeline",
    "with_count",
]


class Batches:
    """One split, cut into global batches.

    Attributes:
        num_examples: examples in the split; None where it is not known.
        global_batch_size: examples in a full global batch; None where a dataset does not say.
        steps_per_epoch: global batches in an epoch; None where it is found out while running.
        may_end_early: the data may end before the steps of an epoch are taken.
    """

    may_end_early: bool = False
    num_examples: int | None = None
    global_batch_size: int | None = None
    steps_per_epoch: int | None = None

    def dataset(self, shard: shards.Shard, start_step: int = 0) -> tf.data.Dataset:
        """Return a worker's shares of the global batches, over epochs without end.

        Args:
            shard: the worker and its replicas.
            start_step: the first global step to give; its epoch is `start_step //
                steps_per_epoch`. The result equals skipping that many elements.

        Returns:
            A prefetched dataset of `(share, global_count)`. A share holds the examples of the
            worker's first replica, then of its second, and so on; a global batch smaller than
            the number of replicas is given to each of them in whole. Replica i
            of the m on a worker has `shards.share_size(len(share), i, m)` of them.
            `global_count` is an int32 scalar, the examples in the whole global batch. Where
            several workers each read whole batches, a fingerprint of the batch may come third.
            Read the elements with `with_count` and `fingerprint_of`: where a share is the whole
            batch, an element may be the share alone.

        Raises:
            ValueError: if the global batch is smaller than the number of replicas.
        """
        raise NotImplementedError

    def epoch(self, shard: shards.Shard) -> tf.data.Dataset:
        """Return one pass in the original order, for evaluation and prediction.

        Nothing is shuffled or dropped and each replica has a consecutive block of every global
        batch, so the workers' shares put one after another are in the order of the split; a
        batch smaller than the number of replicas is given to each of them in whole.

        Args:
            shard: the worker and its replicas.

        Returns:
            A dataset of elements like those of `dataset`, finite.

        Raises:
            ValueError: if the global batch is smaller than the number of replicas.
        """
        raise NotImplementedError

    def steps_in(self, epoch: int, first_epoch: int = 0) -> int | None:
        """Return the steps of one epoch; None where only its end tells.

        Args:
            epoch: counted from 0.
            first_epoch: the one that the run began with.
        """
        return self.steps_per_epoch

    def first_step(self, epoch: int, first_epoch: int = 0) -> int | None:
        """Return the steps from the start of the run to that of an epoch, or None as above."""
        steps = self.steps_per_epoch
        return None if steps is None else (epoch - first_epoch) * steps

    def feed(self, shard: shards.Shard, first_epoch: int = 0) -> feed.Feed:
        """Return what gives the iterators of one call of `fit`, epoch by epoch.

        Args:
            shard: the worker and its replicas.
            first_epoch: the epoch that the run began with.
        """
        return feed.Feed(self, shard, first_epoch)

    def iterator_spec(self, shard: shards.Shard) -> tf.data.IteratorSpec:
        """Return the spec of the feed's iterators, for tracing: no iterator is made for it."""
        return tf.data.IteratorSpec(self.dataset(shard).element_spec)

    def has_state(self) -> bool:
        """Say whether equal examples may have other values on another worker."""
        return False

    def gives_same_again(self) -> bool:
        """Say whether the data surely give the same batches when they are read again."""
        return True

    def reads_again(self) -> bool:
        """Say whether `dataset`, called again in this process, surely gives the same batches."""
        return True

    def examples_of(self, epoch: int, position: int) -> list[int] | None:
        """Return where the examples of one global batch stand in the source; None if unknown.

        Args:
            epoch: counted from 0.
            position: the batch in this epoch, from 0.
        """
        return None

    def end_epoch(self) -> None:
        """Tell the data that the dataset from `epoch` has been read."""

    @property
    def is_open_ended(self) -> bool:
        """Whether the data may end before the steps of an epoch are taken."""
        return self.steps_per_epoch is None

    def same_order(self, shard: shards.Shard, num_workers: int) -> bool:
        """Say whether a run of `num_workers` workers saw the batches that these workers see.

        Where it did not, a run that goes on begins the epoch again.
        """
        return True

    @functools.cached_property
    def element_spec(self):
        """The spec of a share, `x` or a tuple `(x, ...)` as the data are; first axis None."""
        spec = self.epoch(shards.Shard()).element_spec
        spec = spec[0] if elements.has_count(spec) else spec
        return rows.batch_spec(spec)


class IndexedBatches(Batches):
    """Global batches of a source that is read by index: arrays, folders, array_record files.

    The order is a function of seed, epoch and position, so any step can be made at once and no
    number of workers changes it.

    Args:
        source: has `num_examples`, `read(indices)` for the graph and `content()`.
        global_batch_size: examples in a full global batch.
        shuffle: a new order every epoch.
        seed: seed of the order and of the policy "random".
        drop_remainder: leave out the short last batch of an epoch in `dataset`.
        shard_policy: "interleaved", "block" or "random".
        transform: maps a share of the source to a share of the batches, in the graph.
        subset: int64 vector of the source's examples that belong to this split; None for all.

    Raises:
        ValueError: if an argument is out of range, or dropping the remainder leaves nothing.
    """

    def __init__(
        self,
        source,
        *,
        global_batch_size,
        shuffle=False,
        seed=0,
        drop_remainder=False,
        shard_policy="interleaved",
        transform=None,
        subset=None,
    ):
        checks.check_global_batch_size(global_batch_size)
        check_known("`data.shard_policy`", [shard_policy], shards.POLICIES)
        self.source, self.subset = source, subset
        self.num_examples = source.num_examples if subset is None else len(subset)
        self.global_batch_size = int(global_batch_size)
        full, rest = divmod(self.num_examples, self.global_batch_size)
        self.steps_per_epoch = full if drop_remainder else full + bool(rest)
        self._shuffle, self._seed, self._policy = shuffle, seed, shard_policy
        self._transform = transform or (lambda share: share)
        self._subset = None if subset is None else arrays.as_tensor(np.asarray(subset, np.int64))
        self._drop_remainder = drop_remainder
        checks.check_not_empty(self.num_examples, self.steps_per_epoch, self.global_batch_size)

    def dataset(self, shard, start_step=0):
        checks.check_enough_replicas(self.global_batch_size, shard)
        last = 0 if self._drop_remainder else self.num_examples % self.global_batch_size
        read = self._reader(shard, self._policy, self._shuffle, self.steps_per_epoch, last)
        return pipeline(tf.data.Dataset.range(start_step, np.iinfo(np.int64).max), read)

    def epoch(self, shard):
        checks.check_enough_replicas(self.global_batch_size, shard)
        steps = -(-self.num_examples // self.global_batch_size)
        last = self.num_examples % self.global_batch_size
        read = self._reader(shard, "block", False, steps, last)
        return pipeline(tf.data.Dataset.range(steps), read)

    def examples_of(self, epoch, position):
        first = position * self.global_batch_size
        end = min(first + self.global_batch_size, self.num_examples)
        positions = tf.range(first, end, dtype=tf.int64)
        return self._indices(positions, epoch, self._shuffle).numpy().tolist()

    def _indices(self, positions, epoch, shuffle):
        """Where the examples at these positions of an epoch stand in the source."""
        if shuffle:
            positions = order.shuffled(positions, self._seed, epoch, self.num_examples)
        return positions if self._subset is None else tf.gather(self._subset, positions)

    def _reader(self, shard, policy, shuffle, steps, last):
        """The function from a global step to a worker's share of it."""
        full = min(self.global_batch_size, self.num_examples)
        cut = order.BatchCut(shard, policy, self._seed, full, 0 if last == full else last)

        def read(step):
            epoch, within = step // steps, step % steps
            positions, count = cut(tf.equal(within, steps - 1), epoch, within)
            indices = self._indices(positions + within * self.global_batch_size, epoch, shuffle)
            share = self._transform(self.source.read(indices))
            return share, tf.cast(count, tf.int32)

        return read


class DatasetBatches(Batches):
    """A user's batched `tf.data.Dataset`: each of its elements is one global batch.

    Every worker reads all of it and keeps its share, so the dataset must give the same batches
    on every worker: seed its shuffles. A dataset of unknown length without `steps_per_epoch`
    gives one epoch from `dataset` and ends; `start_step` then counts within that epoch. In all
    other cases it repeats without end, and `start_step` replays what comes before, which keeps
    the order of seeded shuffles exact.

    Args:
        dataset: elements `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`; each part may be
            nested; the first axis counts examples and may vary.
        steps_per_epoch: batches in an epoch; needed where the dataset is infinite.
        shard_policy: "interleaved", "block" or "random".
        transform: maps a share to a share, in the graph.

    Raises:
        ValueError: if the elements are not batches, or an infinite dataset has no
            `steps_per_epoch`.
    """

    def __init__(
        self, dataset, *, steps_per_epoch=None, shard_policy="interleaved", transform=None
    ):
        check_known("`data.shard_policy`", [shard_policy], shards.POLICIES)
        elements.check_batched(dataset.element_spec)
        cardinality = int(dataset.cardinality())
        self._check_steps(cardinality, steps_per_epoch)
        known = cardinality if cardinality >= 0 else None
        self.steps_per_epoch = steps_per_epoch or known
        self.global_batch_size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
        self._dataset, self._policy = dataset, shard_policy
        self._transform = transform
        self._made = {}

    def dataset(self, shard, start_step=0):
        checks.check_enough_replicas(self.global_batch_size, shard)
        if (shard, start_step) not in self._made:  # tracing costs as much as ten small steps
            whole = self._dataset if self.steps_per_epoch is None else self._dataset.repeat()
            shares = self._shares(whole, start_step, shard, self._policy)
            self._made = {(shard, start_step): shares}
        return self._made[shard, start_step]

    def has_state(self):
        return elements.has_state(self._dataset)

    def gives_same_again(self):
        return elements.gives_same_again(self._dataset)

    def reads_again(self):
        return elements.reads_again(self._dataset)

    def epoch(self, shard):
        checks.check_enough_replicas(self.global_batch_size, shard)
        steps = -1 if self.steps_per_epoch is None else self.steps_per_epoch
        return self._shares(self._dataset.take(steps), 0, shard, "block")

    def _shares(self, whole, start_step, shard, policy):
        """A worker's share of each global batch from a step on."""
        if policy == "random":
            whole = whole.enumerate()
        whole = whole.skip(start_step) if start_step else whole
        return elements.shares_of(whole, shard, policy, self._transform)

    @staticmethod
    def _check_steps(cardinality, steps_per_epoch):
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ValueError(
                "`steps_per_epoch` must be at least 1. Received: "
                f"steps_per_epoch={steps_per_epoch}. Leave it out for one pass an epoch."
            )
        if cardinality == 0:
            raise ValueError(
                "The dataset must have at least one batch. Received: an empty dataset. "
                "Check its source and `drop_remainder`."
            )
        if cardinality == tf.data.INFINITE_CARDINALITY and steps_per_epoch is None:
            raise ValueError(
                "An infinite dataset needs `steps_per_epoch`. Received: steps_per_epoch=None with "
                "a dataset that repeats without end. Give steps_per_epoch, or do not repeat it."
            )


def from_arrays(
    x,
    y=None,
    sample_weight=None,
    *,
    global_batch_size=32,
    shuffle=False,
    seed=0,
    drop_remainder=False,
    shard_policy="interleaved",
    class_weight=None,
) -> IndexedBatches:
    """Return batches of arrays in memory, to train on or to score.

    Args:
        x: inputs; an array of shape (examples, ...), or a dict, tuple or list of such arrays.
        y: outputs, like `x`; None where there are none.
        sample_weight: weights of the examples, of shape (examples,), or like `y`.
        global_batch_size: examples an update, over all replicas.
        shuffle: a new order every epoch.
        seed: seed of the order.
        drop_remainder: leave out the short last batch of an epoch.
        shard_policy: "interleaved", "block" or "random".
        class_weight: dict from class number to weight; multiplies `sample_weight`, and a class
            without an entry weighs 1.

    Returns:
        Batches with random access.

    Raises:
        ValueError: if lengths differ, numbers are not finite, or an argument is out of range.
    """
    checked = alone, *rest = arrays.checked_elements(x, y, sample_weight)
    is_alone = not rest and not isinstance(alone, tuple)  # then a step gets `x`, as in Keras
    return IndexedBatches(
        arrays.ArraySource(alone if is_alone else checked),
        global_batch_size=global_batch_size,
        shuffle=shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        shard_policy=shard_policy,
        transform=transforms.class_weights(class_weight, len(checked)),
    )


def from_dataset(dataset, *, steps_per_epoch=None, class_weight=None) -> DatasetBatches:
    """Return batches of a user's batched dataset; see `DatasetBatches`.

    Args:
        dataset: a `tf.data.Dataset` whose elements are global batches.
        steps_per_epoch: batches in an epoch; needed where the dataset is infinite.
        class_weight: dict from class number to weight; multiplies the sample weights.

    Returns:
        Batches of which every worker keeps its share.

    Raises:
        ValueError: if the elements are not batches, or the length of an epoch is unknowable.
    """
    spec = dataset.element_spec
    width = len(spec) if isinstance(spec, tuple) else 1
    weights = transforms.class_weights(class_weight, width)
    return DatasetBatches(dataset, steps_per_epoch=steps_per_epoch, transform=weights)
