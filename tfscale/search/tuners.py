"""keras-tuner's four tuners by their names and arguments, as functions that make a `Tuner`."""

import dataclasses
import inspect

import keras_tuner

from tfscale.names import check_known
from tfscale.search.running import Running
from tfscale.search.tuner import Tuner


def _of(oracle_class):
    """Return a function that makes a `Tuner` as keras-tuner's class for that oracle is made."""
    theirs = set(inspect.signature(oracle_class.__init__).parameters) - {"self"}
    ours = {
        *inspect.signature(Tuner.__init__).parameters,
        *(f.name for f in dataclasses.fields(Running)),
    }
    ours -= {"self", "hypermodel", "oracle", "running"}

    def make(hypermodel=None, **arguments):
        check_known("An argument", arguments, sorted(theirs | ours))
        oracle = oracle_class(**{n: v for n, v in arguments.items() if n in theirs})
        return Tuner(hypermodel, oracle, **{n: v for n, v in arguments.items() if n in ours})

    make.__doc__ = (
        f"Return a `Tuner` with a `keras_tuner.oracles.{oracle_class.__name__}`.\n\n"
        "    Takes the arguments of keras-tuner's class of the same name, and those of `Tuner`."
    )
    return make


RandomSearch = _of(keras_tuner.oracles.RandomSearchOracle)
GridSearch = _of(keras_tuner.oracles.GridSearchOracle)
BayesianOptimization = _of(keras_tuner.oracles.BayesianOptimizationOracle)
Hyperband = _of(keras_tuner.oracles.HyperbandOracle)
