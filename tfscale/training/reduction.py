"""How what each replica computed becomes one: losses weighted by count, gradients summed.

The rule inside a replica is: write the step as for one device. Each loss is a mean over this
replica's share; the share weighs by its count, and the weighted gradients are
summed over all replicas *before* clipping and the optimizer's update.
This module owns the private names that this needs: the reduction of Keras' TensorFlow optimizer
and the functions in `keras.src.losses.loss` that scale by the number of replicas. It also owns
what `tf.nn` offers for a step that divides by the global batch itself.
"""

import contextlib
import dataclasses
import functools
import random
import threading

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.losses import loss as keras_loss
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from tfscale.data import rows as rows_lib
from tfscale.names import check_known
from tfscale.strategy import shard_of
from tfscale.training import accumulation

_active = threading.local()


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of one global batch that one replica works on.

    A global batch smaller than the number of replicas, which only the end of an epoch brings, is
    given to every replica in whole, because kernels do not agree on batches of no examples. Then
    the rows of all replicas are `num_replicas` times the batch, and only `counted` of them enter
    the metrics.

    Args:
        global_count: examples of the global batch, an int32 scalar.
        rows: examples that this replica computes, an int32 scalar, at least 1.
        all_rows: rows of all replicas together, an int32 scalar.
        num_replicas: replicas that share the batch.
        counted: examples that this replica counts for, an int32 scalar, or `None` for `rows`.
        first_counted: the first of them among the rows, an int32 scalar.
        reduction: how gradients are summed over the replicas.
        loss_is_weighted: the step weighs its loss itself, so its gradients are not weighed again.
    """

    global_count: tf.Tensor
    rows: tf.Tensor
    all_rows: tf.Tensor
    num_replicas: int
    counted: tf.Tensor | None = None
    first_counted: tf.Tensor | None = None
    reduction: object = None
    loss_is_weighted: bool = False

    def weight(self, dtype="float32"):
        """Return what this replica's mean counts for in the global mean."""
        return tf.cast(self.rows, dtype) / tf.cast(self.all_rows, dtype)

    def of_counted(self):
        """Return the share of what `count` returns."""
        if self.counted is None:
            return self
        return dataclasses.replace(self, rows=self.counted, all_rows=self.global_count)

    def count(self, tensors):
        """Return the part of a nested structure of rows that enters the metrics."""
        if self.counted is None:
            return tensors
        return tf.nest.map_structure(self._counted_part, tensors)

    def count_if_rows(self, values):
        """As `count`, and the share to go on with, for values that may be no rows.

        Args:
            values: a nested structure; what is no tensor, or has another first axis, stays.
        """
        if self.counted is None or self.all_rows is self.global_count:
            return values, self
        return tf.nest.map_structure(self._counted_if_rows, values), self.of_counted()

    def _counted_if_rows(self, part):
        if not isinstance(part, tf.Tensor) or part.shape.rank == 0:
            return part
        size = tf.shape(part)[0]
        is_rows = size == self.rows
        mask = backend.get_keras_mask(part)
        begin = tf.where(is_rows, self.first_counted, 0)
        part, mask = rows_lib.slice_rows((part, mask), begin, tf.where(is_rows, self.counted, size))
        if mask is not None:
            backend.set_keras_mask(part, mask)
        return part

    def _counted_part(self, part):
        """Rows of one tensor, and of the mask that Keras has attached to it."""
        mask = None if part is None else backend.get_keras_mask(part)
        part, mask = rows_lib.slice_rows((part, mask), self.first_counted, self.counted)
        if mask is not None:
            backend.set_keras_mask(part, mask)
        return part


@contextlib.contextmanager
def sharing(share):
    """Inside, Keras losses, loss trackers and random seeds are those of one replica of many.

    Entered by the replica's own thread while its step is traced.

    Args:
        share: the `Share` of this replica. The only replica is one device already, and nothing
            changes for it, but that it may accumulate gradients.
    """
    install()
    if _host.get("generator") is not None:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, _host["generator"])
    if share.num_replicas == 1:
        yield share
        return
    previous = getattr(_active, "share", None)
    _active.share = share
    try:
        with _seed_of_worker():
            yield share
    finally:
        _active.share = previous


def current_share():
    """Return the `Share` of the replica whose step runs in this thread; None outside of it."""
    return getattr(_active, "share", None)


_host = {}  # what the threads of the replicas find of the thread that starts them


def share_global_seed():
    """Give replicas the generator behind `keras.random` without a seed, which is a thread's own.

    Called in the strategy's scope, by all workers, before a step is traced.
    """
    with _own_draws():
        found = global_seed_generator()
        if not _is_shared(found):
            state = _state_of(found)
            global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
            with tf.init_scope():
                found = global_seed_generator()
                if _is_shared(found):
                    found.state.assign(state)
    _host["generator"] = found


def read_global_seed():
    """Return the state of the generator behind `keras.random` without a seed; None if unmade."""
    found = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return None if found is None else _state_of(found)


def _is_shared(generator):
    """Whether a seed generator is one that the replicas of the strategy in scope share."""
    value = generator.state.value
    if not isinstance(value, tf.distribute.DistributedValues):
        return False
    return value.distribute_strategy is tf.distribute.get_strategy()


def _state_of(generator):
    """The state of a seed generator, of whatever strategy."""
    value = generator.state.value
    return (
        value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value
    ).numpy()


def restore_global_seed(state):
    """Put back what `read_global_seed` returned, in the strategy's scope, on all workers.

    Where there was none, the next draw makes one, with Python's next random number for its seed;
    but one that replicas share stays, because their graphs hold it.
    """
    found = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if state is None:
        if found is not _host.get("generator"):
            global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
        return
    is_foreign = (
        found is not None
        and isinstance(found.state.value, tf.distribute.DistributedValues)
        and not _is_shared(found)
    )
    if found is None or is_foreign:
        with tf.init_scope():
            found = keras.random.SeedGenerator(seed=0)
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, found)
    found.state.assign(state)


@contextlib.contextmanager
def _own_draws():
    """Inside, Keras draws seeds of its own, so that those outside come as on one device.

    A layer that is made later, or a shuffle, would else get the number after the one it gets there.
    """
    before = random.getstate()
    random.seed(f"keras.random {random.random()}")
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def _seed_of_worker():
    """Let `tf.random` draw other numbers on each worker; replicas of one have other operations."""
    graph = tf.compat.v1.get_default_graph()
    worker = shard_of(tf.distribute.get_strategy()).worker
    if not worker or tf.executing_eagerly() or graph.seed is None:
        yield
        return
    before = graph.seed
    graph.seed = (before + worker * 1_000_003) % 2**31
    try:
        yield
    finally:
        graph.seed = before


@contextlib.contextmanager
def noted_means():
    """Give a set that receives the `id` of each `keras.metrics.Mean` updated inside, here."""
    install()
    previous = getattr(_active, "updated", None)
    _active.updated = set()
    try:
        yield _active.updated
    finally:
        _active.updated = previous


_keras_scale = keras_loss.scale_loss_for_distribution
_keras_unscale = keras_loss.unscale_loss_for_distribution
_keras_reduce = keras_loss.reduce_weighted_values
_keras_next_seed = keras.random.SeedGenerator.next
_keras_update_mean = keras.metrics.Mean.update_state
_keras_update_sum = keras.metrics.Sum.update_state
_keras_apply = keras.optimizers.Optimizer.apply
_keras_scaled_apply = keras.optimizers.LossScaleOptimizer.apply
_keras_sum = keras.optimizers.Optimizer._all_reduce_sum_gradients
_keras_update = keras.optimizers.Optimizer._backend_apply_gradients
_keras_overwrite = keras.optimizers.Optimizer._overwrite_model_variables_with_average_value
_average_loss, _scale_regularization = tf.nn.compute_average_loss, tf.nn.scale_regularization_loss
# On an optimizer while it applies gradients: they are reduced, or it reduces them by itself.
_SUMMED, _REDUCTION = "tfscale_gradients_are_summed", "tfscale_reduction"


def _scale(value):
    return value if getattr(_active, "share", None) else _keras_scale(value)


def _unscale(value):
    return value if getattr(_active, "share", None) else _keras_unscale(value)


def _update_mean(self, values, sample_weight=None):
    """A mean over a share that enters a metric as one number weighs by the share.

    So do the losses of single outputs, and those that a model's own `train_step` tracks.
    """
    share = getattr(_active, "share", None)
    if getattr(_active, "updated", None) is not None:
        _active.updated.add(id(self))
    if share is not None:
        copies = share.num_replicas  # the number is counted once on each
        values, sample_weight = _of_share(share, values, sample_weight, self.dtype, copies)
    return _keras_update_mean(self, values, sample_weight=sample_weight)


def _update_sum(self, values, sample_weight=None):
    """What is summed, one number or many, is summed over the replicas as well."""
    share = getattr(_active, "share", None)
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
    share = getattr(_active, "share", None)
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
    share = getattr(_active, "share", None)
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
    if getattr(_active, "share", None) is None:
        return _scale_regularization(regularization_loss)
    return tf.reduce_sum(regularization_loss)


def _next_seed(self, ordered=True):
    """Every replica draws from a stream of its own; the state advances alike on all."""
    seed = _keras_next_seed(self, ordered)
    context = tf.distribute.get_replica_context()
    if getattr(_active, "share", None) is None or context is None:
        return seed
    replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
    # A large odd stride keeps replica r's stream apart from the stream of another seed.
    return seed + tf.stack([replica * 1_000_003, tf.zeros_like(replica)])


def _replacements():
    """Each function that is replaced: its place, its name, the one that was there, and ours."""
    optimizer = keras.optimizers.Optimizer
    scaled = keras.optimizers.LossScaleOptimizer
    average = "_overwrite_model_variables_with_average_value"
    return (
        (keras_loss, "scale_loss_for_distribution", _keras_scale, _scale),
        (keras_loss, "unscale_loss_for_distribution", _keras_unscale, _unscale),
        (keras_loss, "reduce_weighted_values", _keras_reduce, _reduce),
        (tf.nn, "compute_average_loss", _average_loss, _average_of_share),
        (tf.nn, "scale_regularization_loss", _scale_regularization, _regularization_of_share),
        (keras.random.SeedGenerator, "next", _keras_next_seed, _next_seed),
        (keras.metrics.Mean, "update_state", _keras_update_mean, _update_mean),
        (keras.metrics.Sum, "update_state", _keras_update_sum, _update_sum),
        (optimizer, "apply", _keras_apply, _apply_after_reduction(_keras_apply)),
        (scaled, "apply", _keras_scaled_apply, _apply_after_reduction(_keras_scaled_apply)),
        (optimizer, "_all_reduce_sum_gradients", _keras_sum, _sum_unless_done),
        (optimizer, "_backend_apply_gradients", _keras_update, _update),
        (optimizer, average, _keras_overwrite, _overwrite),
    )


def install():
    """Put the functions above in place; without an active share they do nothing.

    An optimizer that accumulates on the only replica of a strategy is mended in any case.
    """
    for place, name, _, ours in _replacements():
        setattr(place, name, ours)


def uninstall():
    """Put back what was there; the next step on replicas takes the functions above again."""
    for place, name, own, _ in _replacements():
        setattr(place, name, own)


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
        share = getattr(_active, "share", None)
        if share is None:
            return keras_apply(self, gradients, trainable_variables)
        if not share.loss_is_weighted:
            gradients = [_times(gradient, share.weight()) for gradient in gradients]
        gradients = [_rows_once(gradient, share) for gradient in gradients]
        variables = trainable_variables or self._trainable_variables
        for gradient, variable in zip(gradients, variables, strict=True):
            if isinstance(gradient, tf.Tensor):
                gradient.set_shape(variable.shape)  # TensorFlow packs no unknown shapes
        reduction = None
        if accumulation.accumulates(self):
            reduction = share.reduction
            if isinstance(self, keras.optimizers.LossScaleOptimizer):
                gradients = accumulation.agree_on_finite(gradients)
        else:
            gradients = share.reduction.reduce(gradients)
        with _marked(accumulation.leaves(self), reduction):
            return keras_apply(self, gradients, trainable_variables)

    return apply


@contextlib.contextmanager
def _marked(optimizers, reduction):
    """Tell optimizers that their gradients are summed, or else how they sum them.

    Kept on the optimizer, because loss scaling applies it in other threads. One replica's thread
    may leave while others have yet to, but all are past their last look at it by then: they meet
    when Keras counts the step.
    """
    share, _active.share = _active.share, None
    for optimizer in optimizers:
        setattr(optimizer, _SUMMED, True)
        setattr(optimizer, _REDUCTION, reduction)
    try:
        yield
    finally:
        _active.share = share
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
