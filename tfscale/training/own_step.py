"""A step of the user's own: what it returns becomes what a run reports.

A model's own `train_step` or a function `step(model, data)` returns numbers by name. Those that
are a metric's result are read once, over all replicas; any other is one replica's number, and
the mean over the global batch is reported. Which is which is seen while the step is traced.
"""

import contextlib
import inspect

import keras
import tensorflow as tf
from absl import logging

from tfscale.training import losses, replica
from tfscale.training import share as share_lib


class OwnStep:
    """A step of the user's own on one replica: `(data, share) -> numbers to sum`.

    Args:
        model: the `keras.Model` it is called with.
        step: `step(model, data)`, written as for one device; it updates weights itself.
        shows_updated: report metrics that the step updates and does not return, too.
        takes_share: the step is `step(model, data, share)`: one of `step.py`, in which the model
            returns what it likes.
    """

    def __init__(self, model, step, shows_updated=False, takes_share=False):
        self._model, self._step, self._shows_updated = model, step, shows_updated
        self._takes_share = takes_share
        self._names, self._results, self._updated = [], {}, {}
        self._sources = {}  # of each returned number: a metric, a metric's name, or None
        replicas = model.distribute_strategy.num_replicas_in_sync
        if replicas > 1 and "num_replicas_in_sync" in _names_in(getattr(step, "__code__", None)):
            logging.warning(
                "The step of %s reads num_replicas_in_sync. If it divides the loss by it, it "
                "trains at 1/%d of the rate: leave that out, a loss is a mean over the share.",
                model.name,
                replicas,
            )

    def __call__(self, data, share):
        """Take the step.

        Args:
            data: `x`, or a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as Keras gives it.
            share: the `share.Share` of this replica.

        Returns:
            A dict of scalars, each times this replica's weight, so that the sum over replicas is
            the mean over the global batch. Numbers that a metric holds are not in it.
        """
        with losses.noted_means() as means, replica.sharing(share):
            more = (share,) if self._takes_share else ()
            report = self._step(self._model, data, *more)
        report = _flat(report)
        held = self._held(means) == set(report)
        self._names, self._sources = list(report), {}
        for name, value in report.items():
            metric = self._results.get(id(value), (None,))[0]
            self._sources[name] = name if held and metric is None else metric
        return {
            name: tf.reduce_mean(tf.cast(value, tf.float32)) * share.weight()
            for name, value in report.items()
            if self._sources[name] is None
        }

    def _held(self, means):
        """Names of the model's metrics, without a loss that is tracked nowhere."""
        if not all(getattr(metric, "built", True) for metric in self._model.metrics):
            return set()  # compiled metrics that the step does not use
        names = set(self._model.get_metrics_result())
        tracker = next((m for m in self._model.metrics if m.name == "loss"), None)
        if tracker is not None and id(tracker) not in means:
            names.discard("loss")
        return names

    @contextlib.contextmanager
    def watched(self):
        """Inside, while a step is traced on all replicas, see which numbers are metrics'."""
        leaves = [leaf for metric in self._model.metrics for leaf in leaf_metrics(metric)]
        for metric in leaves:
            metric.result = self._noting_results(metric, metric.result)
            metric.update_state = self._noting_updates(metric, metric.update_state)
        try:
            yield
        finally:
            for metric in leaves:
                del metric.result, metric.update_state
            self._results = {}

    def _noting_results(self, metric, method):
        def result(*args, **kwargs):
            value = method(*args, **kwargs)
            self._results[id(value)] = (metric, value)  # the value is kept, so its id stays its
            return value

        return result

    def _noting_updates(self, metric, method):
        counts_itself = isinstance(metric, (keras.metrics.Mean, keras.metrics.Sum))

        def update_state(*args, **kwargs):
            self._updated[id(metric)] = metric
            share = share_lib.current_share()
            if counts_itself or share is None:
                return method(*args, **kwargs)
            # Of a small batch that every replica has in whole, each counts for its rows.
            (args, kwargs), counted = share.count_if_rows((args, kwargs))
            with replica.sharing(counted):
                return method(*args, **kwargs)

        return update_state

    def metrics(self):
        """Return the numbers that metrics hold, by the step's names, over all replicas.

        Called in the graph, outside of the replicas, after the step has been traced.
        """
        names = {source for source in self._sources.values() if isinstance(source, str)}
        shown = [m for m in self._updated.values() if self._shows_updated]
        by_name = self._model.get_metrics_result() if names or shown else {}
        found = {}
        for name in self._names:
            source = self._sources[name]
            if isinstance(source, str):
                found[name] = by_name[source]
            elif source is not None:
                found[name] = source.result()
        for metric in shown:
            if metric.name in by_name:
                found.setdefault(metric.name, by_name[metric.name])
        return found

    def in_order(self, logs):
        """Return numbers by name in the order in which the step returned them."""
        first = {name: logs[name] for name in self._names if name in logs}
        return {**first, **logs}


def _names_in(code):
    """Names that Python code reads, the functions inside of it included; none of None."""
    inner = [c for c in getattr(code, "co_consts", ()) if inspect.iscode(c)]
    return {*getattr(code, "co_names", ()), *(name for c in inner for name in _names_in(c))}


def _flat(report):
    """What a step returned as a dict of numbers; a number alone is the loss."""
    if report is None:
        return {}
    if not isinstance(report, dict):
        return {"loss": report}
    found = {}
    for name, value in report.items():
        found.update(_flat(value) if isinstance(value, dict) else {name: value})
    return found


def leaf_metrics(metric):
    """Return a metric, or those it is made of, as the compiled ones are, in a list."""
    inner = getattr(metric, "metrics", None)
    return [leaf for m in inner for leaf in leaf_metrics(m)] if inner else [metric]


def overrides(model, method):
    """Say whether a model brings a step of its own, such as `train_step`."""
    return getattr(type(model), method) is not getattr(keras.Model, method)


def method_of(model, name):
    """Return a model's own step as a plain function, also where it is a `tf.function`."""
    method = getattr(type(model), name)
    return getattr(method, "python_function", method)


def as_graph(step):
    """Return a function in which a Python `if` may depend on a tensor, as in a `tf.function`."""
    if inspect.isfunction(step) and step.__name__ != "<lambda>":
        with contextlib.suppress(OSError):  # no source, as in a shell: it stays as it is
            inspect.getsource(step)
            return tf.autograph.to_graph(step)
    return step
