"""The whole table of calls of `keras.Model.fit` and its kin; `keras_fit_calls` says what one is."""

import keras_fit_arguments  # noqa: F401  (each puts its cases into the table)
import keras_fit_models  # noqa: F401
import keras_fit_own  # noqa: F401
from keras_fit_calls import CASES, Recorder, X, Y, dataset, dense, run

__all__ = ["CASES", "Recorder", "X", "Y", "dataset", "dense", "run"]
