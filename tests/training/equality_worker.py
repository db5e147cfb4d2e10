"""One worker of the table "N workers equal one": runs the cases it is told to."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from tfscale import testing
from tfscale.strategy import make_strategy

strategy = make_strategy("multiworker")

import equality_cases  # noqa: E402  (after the strategy: no TensorFlow operation before it)

arrays = {}
for case in sys.argv[1:]:
    outcome = equality_cases.run(case, strategy)
    arrays.update({f"{case}|{name}": array for name, array in outcome.items()})
testing.collect(**arrays)
