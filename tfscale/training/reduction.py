"""Gradients summed over all replicas, weighted by their shares, before clipping and the update.

This module owns the private names of Keras' TensorFlow optimizer that this needs.
"""

import contextlib
import functools

import keras
import tensorflow as tf

from tfscale.names import check_known
from tfscale.training import accumulation, probe
from tfscale.training import share as share_lib

_keras_apply = keras.optimizers.Optimizer.apply
_keras_scaled_apply = keras.optimizers.LossScaleOptimizer.apply
_keras_sum = keras.optimizers.Optimizer._all_reduce_sum_gradients
_keras_update = keras.optimizers.Optimizer._backend_apply_gradients
_keras_overwrite = keras.optimizers.Optimizer._overwrite_model_variables_with_average_value
# On an optimizer while it applies gradients: they are reduced, or it reduces them by itself.
_SUMMED, _REDUCTION = "tfscale_gradients_are_summed", "tfscale_reduction"


class MeanReduction:
    """The exact average: one sum over all replicas, in buckets.

    A sparse gradient, such as an embedding's, becomes the rows of all replicas one after another,
    because Keras' optimizers do not sum rows of the same index: Adam squares each by itself. From
    when one has been seen, in a trace, `gathers_rows` is True. A collective in a graph's loop
    keeps the shape of its first turn, so a graph that gathers rows may take one step only.

    Args:
        bucket_bytes: gradients are packed into messages of about this size. Between two workers
            100 MB took 0.27 s in buckets of 1 to 32 MB and 0.63 to 0.93 s unpacked.
    """

    name = "mean"

    def __init__(self, bucket_bytes=8 * 2**20):
        if not isinstance(bucket_bytes, int) or bucket_bytes < 0:
            raise ValueError(
                "`reduction.arguments.bucket_bytes` must be a whole number of bytes, 0 for no "
                f"packing. Received: bucket_bytes={bucket_bytes!r}."
            )
        self.bucket_bytes, self.gathers_rows = bucket_bytes, False

    def reduce(self, gradients):
        """Sum gradients over all replicas.

        Args:
            gradients: a list of tensors or `tf.IndexedSlices`, `None` where a variable has none.

        Returns:
            The sums, in the same order.
        """
        present = [gradient for gradient in gradients if gradient is not None]
        if not present:
            return list(gradients)
        self.gathers_rows |= any(isinstance(gradient, tf.IndexedSlices) for gradient in present)
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=self.bucket_bytes)
        context = tf.distribute.get_replica_context()
        sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present, options=options))
        return [None if gradient is None else next(sums) for gradient in gradients]

    def bytes_per_update(self, variables, num_replicas):
        """Return the bytes that one replica sends for one update, in a ring all-reduce.

        Each replica sends 2 (N - 1) / N times the gradients (P. Patarasuk and X. Yuan, 2009).
        """
        gradients = sum(v.shape.num_elements() * tf.as_dtype(v.dtype).size for v in variables)
        return 2 * (num_replicas - 1) * gradients // num_replicas


_REDUCTIONS = {"mean": MeanReduction}


def build_reduction(name="mean", arguments=None):
    """Make a reduction by name.

    Args:
        name: one of the names in the configuration's `reduction.name`.
        arguments: a dict of the reduction's own arguments.

    Returns:
        An object with `reduce(gradients)` and `bytes_per_update(variables)`.

    Raises:
        ValueError: for an unknown name or argument.
    """
    check_known("`reduction.name`", [name], _REDUCTIONS)
    try:
        return _REDUCTIONS[name](**(arguments or {}))
    except TypeError as error:
        raise ValueError(
            f"`reduction.arguments` do not fit {name!r}: {error}. Received: {arguments}."
        ) from None


def _apply_after_reduction(keras_apply):
    """An optimizer's `apply` that sums gradients over the replicas, then clips and updates.

    Keras clips each replica's own gradient and sums afterwards, so that the result changes with
    the number of replicas. An optimizer with loss scaling hands its sums to an inner one. Where
    one accumulates, gradients stay what each replica has, and `_update` reduces.
    """

    @functools.wraps(keras_apply)
    def apply(self, gradients, trainable_variables=None):
        share = share_lib.current_share()
        if share is None and probe.current() is None:
            return keras_apply(self, gradients, trainable_variables)
        variables = trainable_variables or self._trainable_variables
        if share is None:
            gradients = probe.around(None, self, gradients, variables)
            with probe.measuring(None):
                return keras_apply(self, gradients, trainable_variables)
        if not share.loss_is_weighted:
            gradients = [_times(gradient, share.weight()) for gradient in gradients]
        gradients = [_rows_once(gradient, share) for gradient in gradients]
        for gradient, variable in zip(gradients, variables, strict=True):
            if isinstance(gradient, tf.Tensor):
                gradient.set_shape(variable.shape)  # TensorFlow packs no unknown shapes
        reduction = None
        if accumulation.accumulates(self):
            reduction = share.reduction
            if isinstance(self, keras.optimizers.LossScaleOptimizer):
                gradients = accumulation.agree_on_finite(gradients)
        else:
            gradients = probe.around(share.reduction.reduce, self, gradients, variables)
        with _marked(accumulation.leaves(self), reduction), probe.measuring(None):
            return keras_apply(self, gradients, trainable_variables)

    return apply


@contextlib.contextmanager
def _marked(optimizers, reduction):
    """Tell optimizers that their gradients are summed, or else how they sum them.

    Kept on the optimizer, because loss scaling applies it in other threads. One replica's thread
    may leave while others have yet to, but all are past their last look at it by then: they meet
    when Keras counts the step.
    """
    for optimizer in optimizers:
        setattr(optimizer, _SUMMED, True)
        setattr(optimizer, _REDUCTION, reduction)
    try:
        with share_lib.working_on(None):
            yield
    finally:
        for optimizer in optimizers:
            setattr(optimizer, _SUMMED, False)
            setattr(optimizer, _REDUCTION, None)


def _update(self, gradients, trainable_variables):
    """Keras' update, or where the optimizer accumulates, the one that replicas can take."""
    reduction = getattr(self, _REDUCTION, None)
    if reduction is None and not accumulation.fails_alone(self):
        return _keras_update(self, gradients, trainable_variables)
    if accumulation.accumulates(self):
        return accumulation.apply(self, gradients, trainable_variables, reduction)
    return _keras_update(self, reduction.reduce(gradients), trainable_variables)


def _overwrite(self, trainable_variables):
    """Overwrite weights with their averages; in a replica its own, so that a condition may."""
    if tf.distribute.in_cross_replica_context():
        return _keras_overwrite(self, trainable_variables)
    averages = self._model_variables_moving_average
    for variable, average in zip(trainable_variables, averages, strict=True):
        if average is not None:
            variable.assign(average)


def _sum_unless_done(self, grads_and_vars):
    """Keras' own sum over the replicas, where `apply` has not summed before."""
    if getattr(self, _SUMMED, False):
        return list(grads_and_vars)
    return _keras_sum(self, grads_and_vars)


def _rows_once(gradient, share):
    """A gradient's rows; of a batch that every replica has in whole, those of the first one.

    They are to be as many as on one device, because an optimizer may square each.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
    alone = tf.where(first, share.num_replicas, 0)
    return _times(gradient, tf.where(share.all_rows > share.global_count, alone, 1))


def _times(gradient, factor):
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values * tf.cast(factor, gradient.values.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return gradient * tf.cast(factor, gradient.dtype)


def _replaced():
    optimizer = keras.optimizers.Optimizer
    scaled = keras.optimizers.LossScaleOptimizer
    average = "_overwrite_model_variables_with_average_value"
    return (
        (optimizer, "apply", _keras_apply, _apply_after_reduction(_keras_apply)),
        (scaled, "apply", _keras_scaled_apply, _apply_after_reduction(_keras_scaled_apply)),
        (optimizer, "_all_reduce_sum_gradients", _keras_sum, _sum_unless_done),
        (optimizer, "_backend_apply_gradients", _keras_update, _update),
        (optimizer, average, _keras_overwrite, _overwrite),
    )


# What is replaced while replicas share a batch: its place, its name, what was there, and ours.
REPLACED = _replaced()
