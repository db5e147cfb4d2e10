"""One worker of the table "N workers equal one": runs the rows it is told to, as `door:row`.

The door "raw" is `keras.Model.fit` as Keras has it; what it raises is collected.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import tfscale
from tfscale import testing
from tfscale.strategy import make_strategy

strategy = make_strategy("multiworker")

import equality_cases  # noqa: E402  (after the strategy: no TensorFlow operation before it)

arrays = {}
for argument in sys.argv[1:]:
    door, row = argument.split(":")
    if door == equality_cases.KERAS:
        tfscale.enable_keras_fit()
    try:
        outcome = equality_cases.run(row, strategy, door)
    except Exception as error:
        if door != "raw":
            raise
        outcome = {"error": f"{type(error).__name__}: {error}"}
    arrays |= {f"{argument}|{name}": array for name, array in outcome.items()}
testing.collect(**arrays)
