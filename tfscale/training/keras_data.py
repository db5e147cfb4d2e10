"""What `keras.Model.fit` calls data, as `Batches`: the order and number of one device.

Owns the choice among Keras' own adapters, and what of Keras' private names that takes; no other
module knows them. How they are read is in `keras_batches.py`.
"""

import keras
import numpy as np
import tensorflow as tf
from keras.src.trainers import epoch_iterator
from keras.src.trainers.data_adapters import (
    array_data_adapter,
    array_slicing,
    data_adapter_utils,
    generator_data_adapter,
    py_dataset_adapter,
)

from tfscale.data import checks, elements, order, rows
from tfscale.training import keras_batches


def training_batches(
    x,
    y=None,
    sample_weight=None,
    *,
    batch_size=None,
    steps_per_epoch=None,
    shuffle=True,
    class_weight=None,
):
    """Return the batches that `keras.Model.fit` trains on, in its order.

    Args:
        x: whatever Keras takes: arrays or nested arrays, a `tf.data.Dataset` of global batches,
            a `keras.utils.PyDataset`, a generator, a loader of PyTorch or Grain.
        y, sample_weight: beside arrays.
        batch_size: examples in a global batch of arrays; None for Keras' choice.
        steps_per_epoch: batches in an epoch, or None for a pass over the data.
        shuffle: True, False or "batch".
        class_weight: dict from class number to weight.

    Returns:
        A `keras_batches.KerasBatches`, for one call of `fit`.

    Raises:
        ValueError: if Keras does not take the data, or several workers cannot share them.
    """
    source = _source(x, y, sample_weight, batch_size, steps_per_epoch, shuffle, class_weight)
    source.reset()
    return keras_batches.KerasBatches(source)


def scoring_batches(x, y=None, sample_weight=None, *, batch_size=None, steps=None, reset=True):
    """Return the batches that `keras.Model.evaluate` scores or `predict` predicts.

    Args:
        x, y, sample_weight, batch_size: as for training.
        steps: batches in a pass, or None for all.
        reset: end an epoch of the data before each pass, as Keras does but in `predict`.

    Returns:
        A `keras_batches.KerasBatches`; call its `epoch` for a pass, and `end_epoch` after it.

    Raises:
        ValueError: as for training.
    """
    source = _source(x, y, sample_weight, batch_size, steps, False, None)
    return keras_batches.KerasBatches(source, reset)


def one_batch(x, y=None, sample_weight=None, class_weight=None):
    """Return the batch that `train_on_batch` and its like are given.

    Args:
        x, y, sample_weight: the global batch, the same on every worker.
        class_weight: dict from class number to weight.

    Returns:
        A `OneBatch`.

    Raises:
        ValueError: if there are no examples, or both kinds of weights.
    """
    if class_weight is not None:
        if sample_weight is not None:
            raise ValueError(
                "`sample_weight` and `class_weight` exclude each other, as in Keras. Received: "
                f"both, class_weight={class_weight}. Multiply them into `sample_weight`."
            )
        sample_weight = data_adapter_utils.class_weight_to_sample_weights(y, class_weight)
    parts = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    return OneBatch(_as_tensors(parts if isinstance(parts, tuple) else (parts,)))


class OneBatch:
    """One global batch, of which every worker takes its share.

    Args:
        batch: a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)` of nested tensors.
    """

    def __init__(self, batch):
        self._batch, self._count = batch, rows.count_rows(batch)
        if not int(self._count):
            raise ValueError(
                "A batch must have at least one example. Received: a batch of none. "
                "Leave empty batches out."
            )
        specs = tf.nest.map_structure(
            lambda part: None if part is None else tf.type_spec_from_value(part), batch
        )
        self.element_spec = rows.batch_spec(specs)

    def element(self, shard):
        """Return `(share, global_count)`: replica by replica, consecutive examples.

        Args:
            shard: the worker and its replicas.
        """
        if shard.num_replicas == 1:
            return self._batch, self._count
        positions = order.positions(tf.cast(self._count, tf.int64), shard, "block")
        return rows.take_rows(self._batch, positions), self._count

    def fingerprint(self):
        """Return what is the same on all workers that were given the same batch."""
        return int(_fingerprint(self._batch, self._count))

    def has_state(self):
        """Say whether equal examples may have other values on another worker."""
        return False


_fingerprint = tf.function(  # without a graph it takes 5 ms
    elements.fingerprint_of_batch, autograph=False, reduce_retracing=True
)


def split_validation(x, y, sample_weight, validation_split):
    """Cut the last examples off arrays, for validation.

    Args:
        x, y, sample_weight: arrays, nested arrays, or None.
        validation_split: the share to cut off, above 0 and below 1.

    Returns:
        `((x, y, sample_weight), (x, y, sample_weight))`: what is left, and what was cut off.

    Raises:
        ValueError: if they are no arrays, or one of the two would be empty.
    """
    return array_slicing.train_validation_split((x, y, sample_weight), validation_split)


def describe(data, shard):
    """Return one line: what the data is, the global batch, and how workers share it.

    Args:
        data: a `keras_batches.KerasBatches`.
        shard: a worker of several, and its replicas.
    """
    size, policy = data.global_batch_size, data.source.auto_shard_policy
    size = f"{size} examples" if size else "as many examples as the data gives"
    line = (
        f"Data: {data.source.kind}; global batch: {size}; read by each of {shard.num_workers} "
        f"workers, which cut it for {shard.num_replicas} replicas."
    )
    if policy is None:
        return line
    return f"{line} AutoShardPolicy.{policy.name} has no effect: the dataset is not cut by files."


def _source(x, y, sample_weight, batch_size, steps, shuffle, class_weight):
    """Keras' own checks and choice of adapter, and the source that reads through it."""
    if isinstance(x, tf.distribute.DistributedDataset):  # and what comes from a function
        raise ValueError(
            "`x` must be the dataset itself, whose elements are global batches; they are shared "
            f"among the workers here. Received: {type(x).__name__}. Leave out "
            "experimental_distribute_dataset or distribute_datasets_from_function."
        )
    opened = epoch_iterator.EpochIterator(
        x,
        y,
        sample_weight,
        batch_size=batch_size,
        steps_per_epoch=steps,
        shuffle=shuffle,
        class_weight=class_weight,
    )
    adapter, steps = opened.data_adapter, opened.steps_per_epoch
    if isinstance(adapter, array_data_adapter.ArrayDataAdapter):
        return _array_source(adapter, steps, shuffle)
    if isinstance(adapter, py_dataset_adapter.PyDatasetAdapter):
        positioned = keras_batches.PositionedPyDataset(x, shuffle)
        adapter = py_dataset_adapter.PyDatasetAdapter(positioned, class_weight)
        return keras_batches.PyDatasetSource(positioned, adapter, steps)
    if isinstance(adapter, generator_data_adapter.GeneratorDataAdapter):
        return keras_batches.GeneratorSource(adapter, steps)
    return keras_batches.DatasetSource(adapter, steps, x)


def _array_source(adapter, steps, shuffle):
    """Dense arrays are read by index, in the order of Keras' adapter for the indices alone."""
    arrays = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    leaves = [leaf for leaf in keras.tree.flatten(arrays) if leaf is not None]
    if any(isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)) for leaf in leaves):
        return keras_batches.DatasetSource(adapter, steps, leaves[0])
    num_examples = leaves[0].shape[0]
    checks.check_not_empty(num_examples, 1, adapter.batch_size)
    indices = array_data_adapter.ArrayDataAdapter(
        np.arange(num_examples), batch_size=adapter.batch_size, shuffle=shuffle
    )
    arrays = _as_tensors(keras.tree.lists_to_tuples(arrays))
    return keras_batches.ArraySource(indices, arrays, steps)


def _as_tensors(structure):
    """Nested arrays as tensors in host memory; what is no array stays as it is."""

    def as_tensor(part):
        if part is None or isinstance(part, (tf.RaggedTensor, tf.SparseTensor)):
            return part
        return tf.convert_to_tensor(part)

    with tf.device("CPU:0"):
        return tf.nest.map_structure(as_tensor, structure)
