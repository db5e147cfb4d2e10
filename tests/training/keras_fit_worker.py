"""One worker of the table of calls of `keras.Model.fit`: makes those it is told to."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tfscale
from tfscale import testing

strategy = tfscale.make_strategy("multiworker")

import keras_fit_cases  # noqa: E402  (after the strategy: no TensorFlow operation before it)

tfscale.enable_keras_fit()
arrays = {}
for argument in sys.argv[1:]:
    case, _, num_calls = argument.partition("=")
    outcome = keras_fit_cases.run(case, strategy.scope, int(num_calls or 0) or None)
    arrays.update({f"{case}|{name}": array for name, array in outcome.items()})
testing.collect(**arrays)
