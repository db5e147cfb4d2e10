"""What the next step depends on, as arrays by name: read from a model, and put back.

Owns the names in a checkpoint. Reading a metric's variable is a collective between workers:
all read, the chief writes. What each replica keeps for itself is saved twice: the mean of
statistics and the sum of metrics, which any number of replicas can take, and what each has.
"""

import tensorflow as tf

from tfscale.training import prepare, saving

_OWN = "replicas/"


def variables_of(model):
    """Return the variables that a checkpoint of a model holds, by name.

    Args:
        model: a built `keras.Model`; its optimizer, where it has one, is built too.

    Returns:
        A dict from name to `keras.Variable`: weights, seeds and statistics, then the
        optimizers', then those of the metrics.
    """
    groups = {
        "model": model.variables,
        "optimizer": [v for o in prepare.optimizers_of(model) for v in o.variables],
        "metrics": _metric_variables(model),
    }
    return {
        f"{group}/{i:04d}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def _metric_variables(model):
    seen = {id(v) for v in model.variables}
    return [v for metric in model.metrics for v in metric.variables if id(v) not in seen]


def read(model):
    """Return the values of all variables by name, to be called in a graph by every worker.

    Args:
        model: a built `keras.Model`.

    Returns:
        A dict from name to tensor; those under "replicas/" have one row for each replica.
    """
    own = _read_own(model)
    means = {
        name: tf.cast(tf.reduce_mean(v, 0), v.dtype)
        for name, v in own.items()
        if not name.startswith("metrics/")
    }
    values = {
        name: means[name] if name in means else tf.identity(v.value)
        for name, v in variables_of(model).items()
    }
    return values | {_OWN + name: value for name, value in own.items()}


def _read_own(model):
    """What each replica keeps for itself, by name, of shape (replicas, ...)."""
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return {}
    kept = {id(v) for v in [*saving.statistics_of(model), *_metric_variables(model)]}
    own = {name: v for name, v in variables_of(model).items() if id(v) in kept}
    if not own:
        return {}

    def gather():
        context = tf.distribute.get_replica_context()
        return {name: context.all_gather(v.value[None], axis=0) for name, v in own.items()}

    strategy = model.distribute_strategy
    return {
        name: strategy.experimental_local_results(value)[0]
        for name, value in strategy.run(gather).items()
    }


def restore(model, strategy, arrays, source):
    """Put saved state back. Called by every worker with the same arrays.

    Args:
        model: a model built as the one that was saved.
        strategy: the strategy it was built under, with any number of replicas.
        arrays: NumPy arrays, as `read` gives them.
        source: where they come from, for the error.

    Raises:
        ValueError: if names or shapes are those of another model or optimizer.
    """
    variables = variables_of(model)
    shared = {name: array for name, array in arrays.items() if not name.startswith(_OWN)}
    _check_same(variables, shared, source)
    own = {
        name: arrays[_OWN + name]
        for name in variables
        if len(arrays.get(_OWN + name, ())) == strategy.num_replicas_in_sync
    }

    shared, own = tf.nest.map_structure(tf.convert_to_tensor, (shared, own))

    def assign_all():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for name, variable in variables.items():
            value = own[name][replica] if name in own else shared[name]
            if name.startswith("metrics/") and name not in own:
                # Summed when read: the first replica holds all of it, the others nothing.
                value = tf.where(replica == 0, value, tf.zeros_like(value))
            variable.assign(value)

    tf.function(lambda: strategy.run(assign_all), autograph=False).get_concrete_function()()


def restore_weights(model, arrays, source):
    """Put saved weights alone into a model, for scoring; see `restore`."""
    names = {name: v for name, v in variables_of(model).items() if name.startswith("model/")}
    own = {name: value for name, value in arrays.items() if name.startswith("model/")}
    _check_same(names, own, source)
    for name, variable in names.items():
        variable.assign(own[name])


def _check_same(variables, arrays, source):
    """Refuse the state of another model."""
    expected = {f"{name} {tuple(v.shape)}" for name, v in variables.items()}
    given = {f"{name} {a.shape}" for name, a in arrays.items()}
    if expected != given:
        missing = sorted(expected - given)[:3]
        foreign = sorted(given - expected)[:3]
        raise ValueError(
            "A checkpoint must be of the same model, optimizer and metrics. Received: "
            f"{source}, which lacks {missing or 'nothing'} and has {foreign or 'nothing'} that "
            "is not here. Use the configuration it was saved with, another --run_dir, or "
            "--resume=never."
        )
