"""Losses and metrics of a share, such that those of all replicas together are one device's.

This module owns the functions of `keras.src.losses.loss` that scale by the number of replicas,
and what `tf.nn` offers for a step that divides by the global batch itself.
"""

import contextlib
import functools
import threading

import keras
import tensorflow as tf
from keras.src.losses import loss as keras_loss

from tfscale.training import share as share_lib

_keras_scale = keras_loss.scale_loss_for_distribution
_keras_unscale = keras_loss.unscale_loss_for_distribution
_keras_reduce = keras_loss.reduce_weighted_values
_keras_update_mean = keras.metrics.Mean.update_state
_keras_update_sum = keras.metrics.Sum.update_state
_average_loss, _scale_regularization = tf.nn.compute_average_loss, tf.nn.scale_regularization_loss
_noted = threading.local()


@contextlib.contextmanager
def noted_means():
    """Give a set that receives the `id` of each `keras.metrics.Mean` updated inside, here.

    To be used around `replica.sharing`, which puts `update_state` below in its place.
    """
    previous = getattr(_noted, "means", None)
    _noted.means = set()
    try:
        yield _noted.means
    finally:
        _noted.means = previous


def _scale(value):
    return value if share_lib.current_share() else _keras_scale(value)


def _unscale(value):
    return value if share_lib.current_share() else _keras_unscale(value)


def _update_mean(self, values, sample_weight=None):
    """A mean over a share that enters a metric as one number weighs by the share.

    So do the losses of single outputs, and those that a model's own `train_step` tracks.
    """
    share = share_lib.current_share()
    if getattr(_noted, "means", None) is not None:
        _noted.means.add(id(self))
    if share is not None:
        copies = share.num_replicas  # the number is counted once on each
        values, sample_weight = _of_share(share, values, sample_weight, self.dtype, copies)
    return _keras_update_mean(self, values, sample_weight=sample_weight)


def _update_sum(self, values, sample_weight=None):
    """What is summed, one number or many, is summed over the replicas as well."""
    share = share_lib.current_share()
    if share is not None and not tf.convert_to_tensor(values).shape.rank:
        # Of a small batch that every replica has in whole, each counts for a part.
        part = tf.cast(share.global_count / share.all_rows, self.dtype)
        values = tf.cast(values, self.dtype) * part
    elif share is not None:
        values, sample_weight = _of_share(share, values, sample_weight, self.dtype, 1)
    return _keras_update_sum(self, values, sample_weight=sample_weight)


def _of_share(share, values, sample_weight, dtype, copies):
    """Values and weights of a metric, such that all replicas' are `copies` of one device's."""
    if sample_weight is None and not tf.convert_to_tensor(values).shape.rank:
        weight = copies * share.weight(dtype)
        return tf.math.multiply_no_nan(tf.cast(values, dtype), weight), None
    if share.all_rows is share.global_count:
        return values, sample_weight
    # Where every replica has all rows of a small batch, each counts for a part of it.
    part = tf.cast(share.global_count / share.all_rows, dtype)
    if sample_weight is None:
        return values, tf.fill(tf.shape(values)[:1], part)
    return values, tf.cast(sample_weight, dtype) * part


def _reduce(values, sample_weight=None, mask=None, reduction="sum_over_batch_size", dtype=None):
    """Reduce per-example losses so that the weighted sum over replicas is one device's loss."""
    loss = _keras_reduce(values, sample_weight, mask, reduction, dtype)
    share = share_lib.current_share()
    if share is None or loss.shape.rank != 0 or tf.convert_to_tensor(values).shape.rank == 0:
        return loss
    if reduction == "sum":
        return loss * tf.cast(share.global_count, loss.dtype) / tf.cast(share.rows, loss.dtype)
    divisor = _local_divisor(sample_weight, mask, reduction, loss.dtype)
    if divisor is None:
        return loss
    total = tf.distribute.get_replica_context().all_reduce("SUM", divisor)
    return loss * tf.math.divide_no_nan(divisor, total) / share.weight(loss.dtype)


def _local_divisor(sample_weight, mask, reduction, dtype):
    """What Keras divides a replica's sum by, where that is not the number of examples."""
    mask = None if mask is None else tf.cast(mask, dtype)
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        sample_weight = tf.convert_to_tensor(sample_weight, dtype)
        if mask is None:
            return tf.reduce_sum(sample_weight)
        mask, sample_weight = keras_loss.squeeze_or_expand_to_same_rank(mask, sample_weight)
        return tf.reduce_sum(mask * sample_weight)
    return None if mask is None else tf.reduce_sum(mask)


@tf.autograph.experimental.do_not_convert
@functools.wraps(_average_loss)
def _average_of_share(per_example_loss, sample_weight=None, global_batch_size=None):
    """A sum over the share, divided by the global batch, as what the share's weight makes of it.

    A step written for strategies divides like that, and one device's divides the same sum.
    """
    share = share_lib.current_share()
    if share is None:
        return _average_loss(per_example_loss, sample_weight, global_batch_size)
    size = share.rows if global_batch_size is None else global_batch_size
    loss = _average_loss(per_example_loss, sample_weight, size)
    rows = tf.cast(share.rows, loss.dtype)
    own = tf.cast(size, share.rows.dtype) == share.rows  # the size of the batch it was given
    return loss * tf.where(own, tf.ones_like(loss), tf.cast(share.global_count, loss.dtype) / rows)


@tf.autograph.experimental.do_not_convert
@functools.wraps(_scale_regularization)
def _regularization_of_share(regularization_loss):
    """The whole of it: the weights of all shares together are 1."""
    if share_lib.current_share() is None:
        return _scale_regularization(regularization_loss)
    return tf.reduce_sum(regularization_loss)


# What is replaced while replicas share a batch: its place, its name, what was there, and ours.
REPLACED = (
    (keras_loss, "scale_loss_for_distribution", _keras_scale, _scale),
    (keras_loss, "unscale_loss_for_distribution", _keras_unscale, _unscale),
    (keras_loss, "reduce_weighted_values", _keras_reduce, _reduce),
    (tf.nn, "compute_average_loss", _average_loss, _average_of_share),
    (tf.nn, "scale_regularization_loss", _scale_regularization, _regularization_of_share),
    (keras.metrics.Mean, "update_state", _keras_update_mean, _update_mean),
    (keras.metrics.Sum, "update_state", _keras_update_sum, _update_sum),
)
