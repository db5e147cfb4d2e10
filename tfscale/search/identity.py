"""What the search of a `Tuner` is: what has to be the same when it goes on, and on all machines."""

import math

from tfscale.search import journal, oracles, space

_RUNNING = ("strategy", "workers_per_trial", "deterministic")
_ORACLE = ("max_epochs", "factor", "hyperband_iterations", "alpha", "beta", "num_initial_points")
MAY_CHANGE = ("max_trials",)


def of_search(oracle, executions_per_trial, running):
    """Return what a search is, as far as the script says it without `search`; fits into JSON.

    Args:
        oracle: the `keras_tuner.Oracle`.
        executions_per_trial: as for `Tuner`.
        running: the `running.Running`.
    """
    settings = {name: getattr(oracle, name) for name in _ORACLE if hasattr(oracle, name)}
    return {
        "tuner": type(oracle).__name__,
        "objective": oracle.objective.name,
        "direction": oracle.objective.direction,
        "max_trials": oracle.max_trials or 0,
        "executions_per_trial": executions_per_trial,
        **{name: getattr(running, name) for name in _RUNNING},
        **{name: _finite(value) for name, value in settings.items()},
        "space": space.described(oracle.get_space()),
    }


def settle(path, found, oracle, epochs):
    """Write what a search is, or check that the folder's search is this one.

    Args:
        path: the search's search.json.
        found: what `of_search` returned.
        oracle: the `keras_tuner.Oracle`, which gets the seed of the search.
        epochs: those of each trial; 0 where the oracle says them.

    Returns:
        The identity as it holds from now on, as `journal.settle` has it.

    Raises:
        ValueError: if the folder holds another search, with what differs.
    """
    before = journal.read_identity(path)
    # An oracle that was given no seed has drawn another one than that of the life before.
    seed = oracles.given_seed(oracle) or before.get("seed", oracle.seed)
    found = journal.settle(path, found | {"epochs": epochs, "seed": seed}, MAY_CHANGE)
    oracles.reseed(oracle, seed)
    return found


def _finite(value):
    """JSON has no infinity: an oracle without a bound has 0."""
    return 0 if isinstance(value, float) and math.isinf(value) else value
