"""What looking at a run costs: python tests/benchmarks/monitor_cost.py

One process, the digits' convnet under Adam. Calls of `Trainer.fit` that show nothing, that measure
all steps, that measure those of every n-th execution, as a long run of short steps does, and that
write the curves as well, in turn; by the clock and in processor time. Then what one record of a run
of two workers costs. No other work should run on the machine.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--batch", type=int, default=32)
parser.add_argument("--deterministic", action="store_true", help="with deterministic operations")
args = parser.parse_args()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tfscale import models  # noqa: E402
from tfscale.monitor.run_log import RunLog, ScalarLog  # noqa: E402
from tfscale.monitor.story import Story  # noqa: E402
from tfscale.strategy import make_strategy  # noqa: E402
from tfscale.training.measures import Measures  # noqa: E402
from tfscale.training.trainer import Trainer  # noqa: E402

if args.deterministic:
    tf.config.experimental.enable_op_determinism()
rng = np.random.default_rng(0)
x = rng.random((args.batch * args.steps, 8, 8, 1), dtype="float32")
y = rng.integers(0, 10, len(x))
folder = pathlib.Path(tempfile.mkdtemp())
every = max(1, args.steps // 20)


def trainer():
    keras.utils.set_random_seed(0)
    with make_strategy("onedevice").scope():
        model = models.build("convnet", (8, 8, 1), 10)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return Trainer(model)


class OfAll(Measures):
    """Measures all executions."""

    def vote(self, step_seconds, steps_left):
        return 0


class Longer(Measures):
    """Measures as a run that goes on for long."""

    def vote(self, step_seconds, steps_left):
        return super().vote(step_seconds, 10**9)


def fit(way):
    own, more = ways[way], {}
    if way != "nothing":
        more["measures"] = (OfAll if way == "all" else Longer)(every)
    if way == "curves":
        story = Story(folder / "events.jsonl")
        story.begin(0)
        log = ScalarLog(folder / "metrics.jsonl", folder / "tensorboard")
        more["callbacks"] = [RunLog(log, own.progress, every, more["measures"], story, 0)]
    own.fit(x, y, global_batch_size=args.batch, epochs=args.epochs, verbose=0, **more)


ways = {way: trainer() for way in ("nothing", "all", "measures", "curves")}
clocks = {"by the clock": time.perf_counter, "processor time": time.process_time}
taken = {name: {way: [] for way in ways} for name in clocks}
for turn in range(args.rounds + 1):
    for way in list(ways) if turn % 2 else reversed(list(ways)):
        began = {name: clock() for name, clock in clocks.items()}
        fit(way)
        if turn:  # the first round traces
            for name, clock in clocks.items():
                taken[name][way].append((clock() - began[name]) / args.steps / args.epochs * 1e3)
for name, steps in taken.items():
    for way, values in steps.items():
        more = [mine / other - 1 for mine, other in zip(values, steps["nothing"], strict=True)]
        print(
            f"ms a step, {name:<15} {way:<9} {statistics.median(values):.3f} "
            f"({min(values):.3f} to {max(values):.3f})  median {statistics.median(more):+.1%}  "
            f"least {min(values) / min(steps['nothing']) - 1:+.1%}"
        )

log = ScalarLog(folder / "one.jsonl", folder / "one")
values = {"loss": 0.5, "accuracy": 0.5, "learning_rate": 0.1, "step_seconds": 0.1}
parts = dict.fromkeys(("input", "compute", "reduction", "wait", "host", "other"), 0.1)
times = {part: [0.1, 0.1] for part in ("input", "compute", "exchange", "host")}
log.write("train", 0, values, seconds=parts, workers=times, goodput=0.5)
log.close()
log = ScalarLog(folder / "one.jsonl", folder / "one")
times_taken = []
for step in range(500):
    began = time.perf_counter()
    log.write("train", step, values, seconds=parts, workers=times, goodput=0.5)
    times_taken.append((time.perf_counter() - began) * 1e3)
began = time.perf_counter()
log.close()
whole = (sum(times_taken) + (time.perf_counter() - began) * 1e3) / len(times_taken)
print(
    f"ms a record that the run waits {statistics.median(times_taken):.3f} "
    f"(most {max(times_taken):.3f}), in all {whole:.3f}"
)
