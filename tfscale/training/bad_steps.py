"""What a step in the graph tells about its numbers, and how it is undone there.

Owns the loss of one step over the global batch, whether weights are finite, and the copy of all
variables that a bad step is undone with. What follows from a bad step is decided in `health.py`.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfscale.training import own_step, state

LOSS, WEIGHTS = 1, 2  # what was bad; 0 for a good step
_TOTAL, _COUNT = 0, 1  # of a mean, in this order
_FAILED = ("weights", "")


class Bounds(NamedTuple):
    """What makes a step bad, for the graph.

    Args:
        max_loss: the highest good loss; infinity for any finite one.
        undoes: a bad step is undone in the graph.
    """

    max_loss: float
    undoes: bool


def losses_before(model):
    """Return what the trackers of losses hold on this replica, to be called before a step.

    Args:
        model: the `keras.Model`.

    Returns:
        A dict from a tracker's name to its sum and its weight.
    """
    return {metric.name: _held(metric) for metric in _trackers(model)}


def numbers_after(model, before):
    """Return what this replica has to say about its step, as scalars to be summed over replicas.

    Args:
        model: the `keras.Model`.
        before: what `losses_before` returned.

    Returns:
        A dict of float32 scalars, for `judge`.
    """
    numbers = {}
    for metric in _trackers(model):
        then = before[metric.name]
        for what, value in zip((_TOTAL, _COUNT), _held(metric), strict=True):
            numbers[what, metric.name] = value - then[what]
    weights = [tf.convert_to_tensor(w.value) for w in model.trainable_variables]
    # One operation a weight: a sum is finite where all are, unless they are as large as 1e30.
    weights = [tf.cast(w, tf.float32) if w.dtype == tf.float16 else w for w in weights]
    sums = [tf.cast(tf.reduce_sum(w), tf.float32) for w in weights if w.dtype.is_floating]
    failed = ~tf.math.is_finite(tf.add_n(sums)) if sums else tf.constant(False)
    return numbers | {_FAILED: tf.cast(failed, tf.float32)}


def judge(report, numbers, bounds):
    """Say whether a step was bad, from numbers that are the same on all workers.

    The loss is what the step reports, or what a metric was updated with, by the name "loss"; where
    there is none, all whose names end in "loss".

    Args:
        report: scalars by name that a step of the user's own reports, over the global batch.
        numbers: what `numbers_after` gave, summed over all replicas.
        bounds: the `Bounds`.

    Returns:
        `(bad, loss)`: 0, `LOSS` or `WEIGHTS` as an int32 scalar, and the first loss beyond a
        bound, or the first one, as a float32 scalar; NaN for a step without a loss.

    Raises:
        ValueError: while it is traced, if there is a `max_loss` and the step has no loss.
    """
    found = {name: value for name, value in report.items() if name.endswith("loss")}
    for what, name in numbers:
        if what == _TOTAL:
            total, count = numbers[_TOTAL, name], numbers[_COUNT, name]
            value = tf.where(count == 0, total, total / count)  # not finite where the total is not
            found.setdefault(name, value)
    losses = [found["loss"]] if "loss" in found else list(found.values())
    if not losses and bounds.max_loss != float("inf"):
        raise ValueError(
            "`max_loss` needs a step that reports a loss. Received: "
            f"max_loss={bounds.max_loss} with a step that reports {', '.join(report) or 'nothing'}"
            '. Return {"loss": loss} from the step, or leave max_loss out.'
        )
    weights_failed = numbers[_FAILED] > 0
    if not losses:
        return tf.where(weights_failed, WEIGHTS, 0), tf.constant(float("nan"))
    losses = tf.stack([tf.cast(loss, tf.float32) for loss in losses])
    beyond = ~tf.math.is_finite(losses) | (losses > bounds.max_loss)
    bad = tf.where(tf.reduce_any(beyond), LOSS, tf.where(weights_failed, WEIGHTS, 0))
    return bad, losses[tf.argmax(tf.cast(beyond, tf.int32))]


def components_of(model, strategy, graph):
    """Return the plain variables of this process that a step may change.

    Args:
        model: the built `keras.Model`.
        strategy: its strategy.
        graph: of a traced step; what it reads is among them, also where no model holds it.
    """
    local = strategy.experimental_local_results
    known = [c for v in state.variables_of(model).values() for c in local(v.value)]
    return list({id(variable): variable for variable in (*known, *graph.variables)}.values())


def hold(components):
    """Return the values of variables, in the graph; nothing is copied until they change."""
    return [component.value() for component in components]


def undo_if(bad, components, values):
    """Give variables the values of before where a step was bad."""

    def undo():
        for component, value in zip(components, values, strict=True):
            component.assign(value)
        return tf.constant(True)

    tf.cond(bad > 0, undo, lambda: tf.constant(False))


def _trackers(model):
    """The means among the model's metrics that follow a loss."""
    found = [m for metric in model.metrics for m in own_step.leaf_metrics(metric)]
    return [m for m in found if isinstance(m, keras.metrics.Mean) and m.name.endswith("loss")]


def _held(metric):
    """The sum and the weight in a mean, on this replica."""
    return [
        tf.cast(tf.convert_to_tensor(v.value), tf.float32) for v in (metric.total, metric.count)
    ]
