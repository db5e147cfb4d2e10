"""What one replica does with its share of one global batch: train, test or predict.

The functions here run inside `strategy.run`, while TensorFlow traces them into one graph.
A step is written as for one device; `replica.sharing` makes it one of many.
"""

import dataclasses
import functools
import inspect
import weakref

import keras
import tensorflow as tf
from absl import logging

from tfscale.data import rows as rows_lib
from tfscale.strategy import shard_of
from tfscale.training import own_step, replica
from tfscale.training import share as share_lib


def cut_share(worker_share, global_count, replicas_per_worker, reduction=None):
    """Return the examples of the calling replica and its `Share` of the global batch.

    Args:
        worker_share: a nested structure of tensors, the examples of this worker's replicas one
            after the other; where the global batch has fewer examples than there are replicas,
            the whole of it for each of them.
        global_count: examples of the global batch, an int32 scalar.
        replicas_per_worker: replicas that this worker runs.
        reduction: how gradients are summed over the replicas, of `training.reduction`.

    Returns:
        The replica's part of the structure and its `share.Share`.
    """
    context = tf.distribute.get_replica_context()
    num_replicas = context.num_replicas_in_sync
    if num_replicas == 1:
        return worker_share, share_lib.Share(global_count, global_count, global_count, 1)
    replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
    worker_rows = rows_lib.count_rows(worker_share)
    local = replica % replicas_per_worker
    begin = _first_position(local, worker_rows, replicas_per_worker)
    rows = _first_position(local + 1, worker_rows, replicas_per_worker) - begin
    small = global_count < num_replicas
    share = share_lib.Share(
        global_count=global_count,
        rows=rows,
        all_rows=tf.where(small, global_count * num_replicas, global_count),
        num_replicas=num_replicas,
        counted=tf.where(small, tf.cast(replica < global_count, tf.int32), rows),
        first_counted=tf.where(small, replica, 0),
        reduction=reduction,
    )
    if replicas_per_worker == 1:
        return worker_share, share
    # On the host, so that only this replica's examples travel to its device.
    with tf.device("/device:CPU:0"):
        part = rows_lib.slice_rows(worker_share, begin, rows)
    return part, share


def _first_position(share, num_examples, num_shares):
    """Where a share begins when shares that differ by at most one stand in a row."""
    quotient, rest = num_examples // num_shares, num_examples % num_shares
    return share * quotient + tf.minimum(share, rest)


def train_replica(model, data, share, jit_compile=False):
    """Take one step of a compiled model on one replica's share.

    Args:
        model: a compiled `keras.Model` whose optimizer is built.
        data: `x`, or a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
        share: the `share.Share` of this replica.
        jit_compile: compile the forward and backward pass with XLA; a reduction between workers
            cannot be compiled.

    Returns:
        What the model's `compute_metrics` returned: numbers by name.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    optimizer = model.optimizer

    def forward_backward():
        with tf.GradientTape() as tape:
            y_pred = call(model, x, training=True)
            loss = model.compute_loss(x, y, y_pred, sample_weight, training=True)
            weighted = loss if share.num_replicas == 1 else loss * share.weight(loss.dtype)
            scaled = optimizer.scale_loss(weighted)
        return tape.gradient(scaled, model.trainable_variables), loss, y_pred

    if jit_compile:
        forward_backward = _compiled_if_alone(model, forward_backward)
    with replica.sharing(dataclasses.replace(share, loss_is_weighted=True)):
        gradients, loss, y_pred = forward_backward()
        optimizer.apply(gradients, model.trainable_variables)
        return _track(model, loss, share, x, y, y_pred, sample_weight)


def _compiled_if_alone(model, function):
    """Compile with XLA what needs nothing of other replicas, and leave the rest as it is.

    A loss that is divided by the global sum of a mask or of weights does, and so does
    BatchNormalization that is synchronized.
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)

    def run():
        if model in _not_compiled:
            return function()
        try:
            return compiled()
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
        # All replicas come here: they are traced by the same code.
        if model not in _not_compiled:
            _not_compiled.add(model)
            _say(
                model,
                "The step is run without XLA, which cannot sum over replicas within what it "
                "compiles. Received: jit_compile=True for %s, with a mask, a loss with "
                'reduction="mean_with_sample_weight" or synchronized BatchNormalization. Leave '
                "out jit_compile=True.",
                model.name,
            )
        return function()

    return run


_not_compiled = weakref.WeakSet()  # models whose forward and backward pass is no replica's alone


def _say(model, text, *values):
    """Warn on the chief."""
    if shard_of(model.distribute_strategy).worker == 0:
        logging.warning(text, *values)


def call(model, x, training):
    """Return the model's outputs; its `call` need not have a `training` argument."""
    if "training" in inspect.signature(model.call).parameters:
        return model(x, training=training)
    return model(x)


def test_replica(model, data, share):
    """Score one replica's share: update the model's loss and metrics, change no weight.

    Returns:
        What the model's `compute_metrics` returned: numbers by name.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    with replica.sharing(share):
        y_pred = call(model, x, training=False)
        loss = model.compute_loss(x, y, y_pred, sample_weight, training=False)
        return _track(model, loss, share, x, y, y_pred, sample_weight)


def predict_replica(model, data, share):
    """Return the model's outputs for the whole global batch, in its order, on every replica.

    Returns:
        A nested structure of tensors, the outputs of replica 0 first.
    """
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    if own_step.overrides(model, "predict_step"):
        outputs = share.count(model.predict_step(data))
    else:
        outputs = share.count(call(model, x, training=False))
    if share.num_replicas == 1:
        return outputs
    context = tf.distribute.get_replica_context()
    return tf.nest.map_structure(functools.partial(_gather, context), outputs)


def _gather(context, tensor):
    """The rows of all replicas, those of replica 0 first."""
    if isinstance(tensor, tf.SparseTensor):
        return _gather_sparse(context, tensor)
    if not isinstance(tensor, tf.RaggedTensor):
        return context.all_gather(tensor, axis=0)
    lengths = [context.all_gather(rows, axis=0) for rows in tensor.nested_row_lengths()]
    values = context.all_gather(tensor.flat_values, axis=0)
    return tf.RaggedTensor.from_nested_row_lengths(values, lengths)


def _gather_sparse(context, tensor):
    """As `_gather`; a replica's rows come after those of the replicas in front of it."""
    rows = context.all_gather(tensor.dense_shape[:1], axis=0)
    first = tf.reduce_sum(rows[: context.replica_id_in_sync_group])
    offset = first * tf.one_hot(0, tf.size(tensor.dense_shape), dtype=tf.int64)
    return tf.SparseTensor(
        context.all_gather(tensor.indices + offset, axis=0),
        context.all_gather(tensor.values, axis=0),
        tf.concat([[tf.reduce_sum(rows)], tensor.dense_shape[1:]], 0),
    )


def train_function(model, step=None, jit_compile=False):
    """Return what one replica does to train: `(data, share) -> dict of weighted reports`.

    Args:
        model: the `keras.Model`; one that overrides `train_step` is trained by that.
        step: a step of the user's own, which comes before both; or None.
        jit_compile: compile with XLA, all of the step under no strategy or one device's, else the
            forward and backward pass.
    """
    merging = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    on_replicas = isinstance(model.distribute_strategy, merging)
    own = step is not None or own_step.overrides(model, "train_step")
    if own and jit_compile and on_replicas:
        _say(
            model,
            "A step of your own is run without XLA under several replicas. Received: "
            "jit_compile=True for %s. Compile what it calls with "
            "tf.function(jit_compile=True), if that needs nothing of other replicas.",
            model.name,
        )
    if step is not None:
        return own_step.OwnStep(model, step, shows_updated=True)
    if own:
        return own_step.OwnStep(model, own_step.method_of(model, "train_step"))
    if own_step.overrides(model, "compute_metrics"):
        return own_step.OwnStep(model, train_replica, takes_share=True)

    if jit_compile and not on_replicas:
        # Without a reduction in it, the whole step compiles: a quarter less time a step.
        compiled = tf.function(functools.partial(_train_alone, model), jit_compile=True)

        def train(data, share):
            compiled(data, share.rows)
            return {}

    else:

        def train(data, share):
            train_replica(model, data, share, jit_compile)
            return {}

    return train


def _train_alone(model, data, count):
    """The step of a single replica, of tensors alone, to be compiled by XLA."""
    train_replica(model, data, share_lib.Share(count, count, count, 1))


def test_function(model):
    """Return what one replica does to score: `(data, share) -> dict of weighted reports`."""
    if own_step.overrides(model, "test_step"):
        return own_step.OwnStep(model, own_step.method_of(model, "test_step"))
    if own_step.overrides(model, "compute_metrics"):
        return own_step.OwnStep(model, test_replica, takes_share=True)

    def test(data, share):
        test_replica(model, data, share)
        return {}

    return test


def _track(model, loss, share, x, y, y_pred, sample_weight):
    """Update the metrics with the examples that this replica counts for; return their numbers."""
    tracker = next((m for m in model.metrics if m.name == "loss"), None)
    with replica.sharing(share.of_counted()) as counted:
        if tracker is not None:
            tracker.update_state(loss, sample_weight=tf.cast(counted.rows, loss.dtype))
        return model.compute_metrics(*share.count((x, y, y_pred)), share.count(sample_weight))
