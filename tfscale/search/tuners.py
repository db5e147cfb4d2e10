"""keras-tuner's four tuners by their names and arguments, as classes derived from `Tuner`."""

import dataclasses
import inspect

import keras_tuner

from tfscale.names import check_known
from tfscale.search.running import Running
from tfscale.search.tuner import Tuner


class _Named(Tuner):
    """A `Tuner` that makes its oracle itself.

    Takes the arguments of keras-tuner's class of the same name, and those of `Tuner`.
    """

    like: type  # keras-tuner's class
    oracle_class: type

    def __init__(self, *given, **arguments):
        accepted = inspect.signature(self.like.__init__)
        arguments |= dict(accepted.bind_partial(self, *given).arguments)
        del arguments["self"]
        theirs = set(inspect.signature(self.oracle_class.__init__).parameters) - {"self"}
        ours = {
            *inspect.signature(Tuner.__init__).parameters,
            *(field.name for field in dataclasses.fields(Running)),
        } - {"self", "oracle", "running"}
        check_known("An argument", arguments, sorted(theirs | ours))
        oracle = self.oracle_class(**{n: v for n, v in arguments.items() if n in theirs})
        super().__init__(oracle=oracle, **{n: v for n, v in arguments.items() if n in ours})


class RandomSearch(_Named):
    """Independent draws, as `keras_tuner.RandomSearch`."""

    like, oracle_class = keras_tuner.RandomSearch, keras_tuner.oracles.RandomSearchOracle


class GridSearch(_Named):
    """All combinations, as `keras_tuner.GridSearch`."""

    like, oracle_class = keras_tuner.GridSearch, keras_tuner.oracles.GridSearchOracle


class BayesianOptimization(_Named):
    """A Gaussian process chooses, as `keras_tuner.BayesianOptimization`."""

    like = keras_tuner.BayesianOptimization
    oracle_class = keras_tuner.oracles.BayesianOptimizationOracle


class Hyperband(_Named):
    """Short trials, of which the best go on, as `keras_tuner.Hyperband`."""

    like, oracle_class = keras_tuner.Hyperband, keras_tuner.oracles.HyperbandOracle
