"""Elements of a worker's dataset: its share of a global batch, the count, the fingerprint.

Owns how they are made from whole batches and read again. The fingerprint tells whether all
workers cut the same batch; it is made only where there are several.
"""

import numpy as np
import tensorflow as tf
from absl import logging

from tfscale.data import order, rows

FINGERPRINT_BITS = 20  # N workers sum its squares in int64, which holds for N up to 2,000
_NUM_ROWS, _NUM_VALUES = 16, 16  # looked at in every part of a batch, at most
_WEIGHTS = np.random.RandomState(0).randint(2**62, size=(_NUM_ROWS, _NUM_VALUES)) * 2 + 1


def with_count(element):
    """Return an element of a `Batches` dataset as its share and the global count.

    The share is structured as the data are: `x` alone, or a tuple `(x, ...)`.

    Args:
        element: `(share, global_count)`, `(share, global_count, fingerprint)`, or a share that
            is the whole global batch.
    """
    if has_count(element):
        return element[:2]
    return element, rows.count_rows(element)


def fingerprint_of(element):
    """Return an element's fingerprint, or None where it has none.

    Args:
        element: of a `Batches` dataset.

    Returns:
        An int64 scalar, 0 <= fingerprint < 2**20, equal on all workers that cut the same global
        batch, and different with high probability where they cut different ones.
    """
    return element[2] if has_count(element) and len(element) == 3 else None


def has_count(element):
    """Whether an element, or its spec, is more than a share alone."""
    return (
        isinstance(element, tuple)
        and len(element) in (2, 3)
        and all(_is_scalar(part) for part in element[1:])
    )


def _is_scalar(value):
    return hasattr(value, "shape") and value.shape.rank == 0


def shares_of(whole, shard, policy, transform=None):
    """Return a worker's shares of the global batches of a dataset.

    Args:
        whole: a dataset of global batches; what `check_batched` lets pass.
        shard: the worker and its replicas.
        policy: "interleaved" or "block"; "random" for a dataset that is enumerated, of
            `(number of the batch, batch)`.
        transform: maps a share to a share; None for none.

    Returns:
        A prefetched dataset of elements for `with_count` and `fingerprint_of`.
    """
    absent = any(isinstance(s, tf.OptionalSpec) for s in tf.nest.flatten(whole.element_spec))
    in_parts = isinstance(whole.element_spec, tuple)  # which `map` takes apart
    if shard.num_replicas == 1 and transform is None and not absent and policy != "random":
        return whole.prefetch(tf.data.AUTOTUNE)  # a map costs a hand-over between threads

    def read(*batch):
        key = ()
        if policy == "random":
            key, batch = (batch[0],), batch[1]
        elif not in_parts:
            [batch] = batch
        batch = rows.without_optionals(batch)
        count = rows.count_rows(batch)
        share = batch
        if shard.num_replicas > 1:
            positions = order.positions(tf.cast(count, tf.int64), shard, policy, key)
            share = rows.take_rows(batch, positions)
        share = transform(share) if transform else share
        if shard.num_workers == 1:
            return share, count
        return share, count, fingerprint_of_batch(batch, count)

    return pipeline(whole, read)


def fingerprint_of_batch(batch, count):
    """Return the `fingerprint` of a global batch.

    Args:
        batch: `x`, or a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)`, of nested tensors.
        count: examples in it, an int32 scalar of at least 1.
    """
    return fingerprint(rows.take_rows(_telling_parts(batch), sampled_positions(count)), count)


def sampled_positions(count):
    """Return the positions in a global batch that its fingerprint looks at: 16 of them."""
    return tf.range(_NUM_ROWS) * (count - 1) // (_NUM_ROWS - 1)


def fingerprint(parts, count):
    """Return a number below 2**20 made of a global batch, at a cost that does not grow with it.

    Args:
        parts: tensors, the examples at `sampled_positions` of the global batch.
        count: examples in it, an int32 scalar of at least 1.
    """
    total = tf.cast(count, tf.uint64) * tf.constant(_WEIGHTS[0, 0], tf.uint64)
    for i, part in enumerate(parts):
        total += _hash(part, i)
    return tf.cast(tf.bitwise.right_shift(total, np.uint64(64 - FINGERPRINT_BITS)), tf.int64)


def tells_examples(spec):
    """Say whether batches that differ between workers surely hold other examples.

    With labels they do. Where all parts have more than two axes, such as images, random
    transforms in a parallel `Dataset.map` may give these other values on every worker, though
    the examples are the same.

    Args:
        spec: of the batches, `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
    """
    return any(p.shape.rank in (1, 2) for p in _parts(spec) if isinstance(p, tf.TensorSpec))


def refuse_other_batches(data, shard, epoch=None, method="fit"):
    """Refuse batches that differ between workers; where transforms may be the reason, warn once.

    Args:
        data: the `Batches`.
        shard: this worker, of several.
        epoch: in which they were seen, from 0; or None.
        method: what they were given to, where that is no epoch.

    Raises:
        ValueError: if the batches surely hold other examples.
    """
    way_out = (
        "Give every worker the whole dataset, without shard(), and one seed: "
        "keras.utils.set_random_seed(1) at the top of the script, or seeds in its shuffles; "
        "python -m tfscale.launch does so by itself. A generator of NumPy needs a seed of its "
        "own: np.random.default_rng(1)."
    )
    where = f"`{method}`" if epoch is None else f"epoch {epoch + 1}"
    if tells_examples(data.element_spec) or not data.has_state():
        raise ValueError(
            "All workers must read the same batches, of which each takes its share. Received: "
            f"other examples on one of {shard.num_workers} workers, in {where}. {way_out}"
        )
    if shard.worker == 0:
        logging.log_first_n(
            logging.WARNING,
            "Workers read batches with other values, in %s. Random transforms of the same "
            "examples do that, and are right; other examples do it too, and are not. %s",
            1,
            where,
            way_out,
        )


def _telling_parts(batch):
    """Parts of a batch that are the same on all workers if the examples are, or are likely to be.

    They are the labels, or the inputs where there are no labels; those with more than two axes
    only if there is nothing else.
    """
    dense = [p for p in _parts(batch) if isinstance(p, tf.Tensor)]
    return [p for p in dense if p.shape.rank in (1, 2)] or dense


def _parts(batch):
    has_labels = isinstance(batch, tuple) and len(batch) > 1 and batch[1] is not None
    return tf.nest.flatten(batch[1] if has_labels else batch)


def _hash(values, number):
    """A sum of products with odd numbers, whose high bits depend on every value."""
    values = tf.reshape(values, [_NUM_ROWS, -1])
    width = tf.shape(values)[1]
    looked_at = tf.minimum(width, _NUM_VALUES)  # from the first to the last: margins are empty
    columns = tf.range(looked_at) * (width - 1) // tf.maximum(looked_at - 1, 1)
    values = tf.gather(values, columns, axis=1)
    if values.dtype == tf.string:
        values = tf.strings.to_hash_bucket_fast(values, 2**31)
    elif values.dtype.is_floating:
        values = tf.bitcast(tf.cast(values, tf.float32), tf.int32)
    weights = tf.constant(np.roll(_WEIGHTS, number + 1).astype(np.uint64))
    values = tf.cast(tf.cast(values, tf.int64), tf.uint64)
    return tf.reduce_sum(values * weights[:, : tf.shape(values)[1]])


def pipeline(dataset, read):
    """Map, prefetch, and keep tf.data from sharding what is a share already."""
    options, policies = tf.data.Options(), tf.data.experimental.AutoShardPolicy
    if dataset.options().experimental_distribute.auto_shard_policy == policies.AUTO:
        options.experimental_distribute.auto_shard_policy = policies.OFF  # a change is warned of
    options.deterministic = True
    read = tf.autograph.experimental.do_not_convert(read)
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def check_batched(spec):
    """Raise ValueError unless elements of this spec are batches.

    Args:
        spec: the element spec of a dataset.
    """
    if isinstance(spec, tuple) and not 1 <= len(spec) <= 3:
        raise ValueError(
            "Elements of a dataset must be x, (x,), (x, y) or (x, y, sample_weight). Received: "
            f"tuples of {len(spec)}. Put several inputs into a dict or a nested tuple."
        )
    tensors = (tf.TensorSpec, tf.RaggedTensorSpec, tf.SparseTensorSpec)
    for leaf in tf.nest.flatten(spec):
        if isinstance(leaf, tf.OptionalSpec) or leaf == tf.NoneTensorSpec():
            continue
        if not isinstance(leaf, tensors) or leaf.shape.rank == 0:
            raise ValueError(
                "The dataset must be batched, and its elements tensors. Received: "
                f"{leaf}. Use dataset.batch(global_batch_size)."
            )


def has_state(dataset):
    """Say whether a dataset may give a worker other values than the next, as random maps do.

    Args:
        dataset: a `tf.data.Dataset`.
    """
    try:
        tf.raw_ops.DatasetToGraphV2(
            input_dataset=tf.data.experimental.to_variant(dataset), external_state_policy=2
        )
    except tf.errors.FailedPreconditionError:
        return True
    return False


def gives_same_again(dataset):
    """Say whether a dataset surely gives the same elements when it is made and read again.

    Not with Python code in it, or random operations that count by themselves. Random numbers of
    a `keras.random.SeedGenerator`, and shuffles, come again as they were.

    Args:
        dataset: a `tf.data.Dataset`.
    """
    try:
        _graph_of(dataset)
    except tf.errors.FailedPreconditionError as error:
        return not any(kind in error.message for kind in ("PyFunc", "Random"))
    return True


def reads_again(dataset):
    """Say whether a dataset surely gives the same elements when this process reads it twice.

    Not with state in it, as Python code has, nor with a shuffle that draws a new order each time.

    Args:
        dataset: a `tf.data.Dataset`.
    """
    try:
        graph = tf.compat.v1.GraphDef.FromString(_graph_of(dataset).numpy())
    except tf.errors.FailedPreconditionError:
        return False
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return not any(node.attr["reshuffle_each_iteration"].b for node in nodes)


def _graph_of(dataset):
    """A dataset as a serialized graph; fails where there is state in it."""
    return tf.raw_ops.DatasetToGraphV2(
        input_dataset=tf.data.experimental.to_variant(dataset),
        external_state_policy=2,
        strip_device_assignment=False,
    )
