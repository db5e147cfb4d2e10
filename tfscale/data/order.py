"""The order of examples inside a graph: a function of seed, epoch and position alone.

Owns the shuffle of a whole split and the cut of a batch into shares, as graph operations
without state, so that any step can be computed at once on any worker. The arithmetic of
shares is that of `shards.py`.
"""

import numpy as np
import tensorflow as tf

from tfscale.data import shards


def shuffled(indices, seed, epoch, num_examples):
    """Return where the examples at these positions of a shuffled epoch stand in the split.

    Args:
        indices: int64 tensor of positions, 0 <= index < num_examples.
        seed: the seed of the order, a Python int.
        epoch: int64 scalar; each epoch has an order of its own.
        num_examples: examples in the split.

    Returns:
        An int64 tensor of the shape of `indices`. Over all positions it is a permutation.
    """
    key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    return tf.random.experimental.index_shuffle(indices, key, np.int64(num_examples - 1))


def positions(num_examples, shard, policy, key=()):
    """Return a worker's positions in a batch whose size is known in the graph only.

    Args:
        num_examples: int64 scalar tensor, the examples in the global batch.
        shard: the worker and its replicas.
        policy: "interleaved", "block" or "random".
        key: int64 tensors or ints that name the batch: (seed, epoch, step); for "random".

    Returns:
        An int64 vector, equal to `shards.worker_positions` for the same arguments.
    """
    whole = tf.tile(tf.range(num_examples), [shard.replicas_per_worker])
    return tf.cond(
        num_examples < shard.num_replicas,
        lambda: whole,
        lambda: _cut(num_examples, shard, policy, key),
    )


def _cut(num_examples, shard, policy, key):
    """`positions` of a batch with at least one example for each replica."""
    count = shard.num_replicas
    order = _random_order(num_examples, key) if policy == "random" else None
    if policy == "interleaved":
        pieces = [
            tf.range(tf.minimum(np.int64(r), num_examples), num_examples, count)
            for r in shard.replicas
        ]
        return pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0)
    quotient, rest = num_examples // count, num_examples % count
    first, end = shard.replicas[0], shard.replicas[-1] + 1
    first = first * quotient + tf.minimum(np.int64(first), rest)
    end = end * quotient + tf.minimum(np.int64(end), rest)
    return tf.range(first, end) if order is None else order[first:end]


class BatchCut:
    """A worker's positions in each global batch of a split of known size.

    A split has batches of one size and at most one short batch, the last; positions that do not
    depend on the step are computed once, in Python, so the graph only picks them.

    Args:
        shard: the worker and its replicas.
        policy: "interleaved", "block" or "random".
        seed: the seed of the policy "random".
        full: examples in a full batch.
        last: examples in the short last batch; 0 where there is none.
    """

    def __init__(self, shard, policy, seed, full, last):
        self._shard, self._policy, self._seed = shard, policy, seed
        self._full, self._last = full, last
        if policy != "random":
            self._constant = [
                shards.worker_positions(n, shard, policy)
                for n in ((full, last) if last else (full,))
            ]

    def __call__(self, is_last, epoch, step):
        """Return this worker's positions (int64 vector) and the batch's examples (int64)."""
        count = np.int64(self._full)
        if self._last:
            count = tf.where(is_last, np.int64(self._last), count)
        if self._policy == "random":
            key = (self._seed, epoch, step)
            return positions(tf.convert_to_tensor(count), self._shard, "random", key), count
        if not self._last:
            return tf.constant(self._constant[0]), count
        size, last_size = (len(p) for p in self._constant)
        begin = tf.where(is_last, size, 0)
        length = tf.where(is_last, last_size, size)
        both = tf.constant(np.concatenate(self._constant))
        return tf.slice(both, [begin], [length]), count


def _random_order(num_examples, key):
    state = tf.zeros([], tf.uint32)
    for part in key:
        low = tf.bitwise.bitwise_and(tf.cast(part, tf.int64), np.int64(0xFFFFFFFF))
        state = _mix(tf.bitwise.bitwise_xor(state, tf.cast(low, tf.uint32)))
    numbers = tf.cast(tf.range(num_examples), tf.uint32)
    hashes = _mix(tf.bitwise.bitwise_xor(state, numbers))
    return tf.cast(tf.argsort(tf.cast(hashes, tf.int64), stable=True), tf.int64)


def _mix(value):
    """`shards.mix` in the graph."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
        moved = tf.bitwise.right_shift(value, tf.constant(shift, tf.uint32))
        value = tf.bitwise.bitwise_xor(value, moved)
        if factor is not None:
            value = value * tf.constant(factor, tf.uint32)
    return value
