"""What looking for bad steps adds to a step: python tests/benchmarks/bad_steps.py

One process, the digits' convnet under Adam. Calls of `Trainer.fit` that look at no step, that would
stop, and that would skip, in turn; then, on two mirrored replicas, what one comparison of all
weights takes. No other work should run on the machine.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--batch", type=int, default=32)
args = parser.parse_args()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from tfscale.strategy import make_strategy  # noqa: E402

mirrored = make_strategy("mirrored", 2)  # before any operation of TensorFlow

import keras  # noqa: E402
import numpy as np  # noqa: E402

from tfscale import models  # noqa: E402
from tfscale.training.trainer import Trainer  # noqa: E402

rng = np.random.default_rng(0)
x = rng.random((args.batch * args.steps, 8, 8, 1), dtype="float32")
y = rng.integers(0, 10, len(x))


def trainer(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = models.build("convnet", (8, 8, 1), 10)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return Trainer(model)


def spread(values):
    """Median, least and most, in milliseconds."""
    median, *ends = (v * 1e3 for v in (statistics.median(values), min(values), max(values)))
    return f"{median:.3f} ms ({ends[0]:.3f} to {ends[1]:.3f})"


given = {"global_batch_size": args.batch, "steps_per_execution": 50, "verbose": 0}
ways = {action: trainer(make_strategy("onedevice")) for action in ("", "stop", "skip")}
clocks = {"by the clock": time.perf_counter, "processor time": time.process_time}
taken = {name: {action: [] for action in ways} for name in clocks}
for turn in range(args.rounds + 1):
    for action in list(ways) if turn % 2 else reversed(list(ways)):
        began = {name: clock() for name, clock in clocks.items()}
        ways[action].fit(x, y, on_bad_loss=action, **given)
        if turn:  # the first round traces
            for name, clock in clocks.items():
                taken[name][action].append((clock() - began[name]) / args.steps)
for name, steps in taken.items():
    for action, values in steps.items():
        more = [mine / other - 1 for mine, other in zip(values, steps[""], strict=True)]
        rounds = ", ".join(f"{m:+.0%}" for m in more)
        print(f"a step, {name:<15} {action or 'no look':<8} {spread(values)}  rounds {rounds}")

compared = trainer(mirrored)
compared.fit(x[: 4 * args.batch], y[: 4 * args.batch], check_weights_every_steps=2, **given)
times = []
for _ in range(50):
    began = time.perf_counter()
    with mirrored.scope():
        compared._loop._functions.weight_sums().numpy()
    times.append(time.perf_counter() - began)
print(f"a comparison of {compared.model.count_params():,} parameters  {spread(times)}")
