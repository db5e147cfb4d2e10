"""Time a step of `Trainer.fit` against `keras.Model.fit`: python tests/benchmarks/trainer_step.py

One process, MLP 784-512-10, batch 64, Adam, 256 steps a call, the two in turn. Prints medians and
the spread in ms a step; no other work should run on the machine.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser()
parser.add_argument("--steps_per_execution", type=int, default=16)
parser.add_argument("--rounds", type=int, default=9)
args = parser.parse_args()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tfscale.training.trainer import Trainer  # noqa: E402

STEPS, BATCH = 256, 64
rng = np.random.default_rng(0)
x = rng.random((BATCH * STEPS, 784), dtype="float32")
y = rng.integers(0, 10, len(x))
dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache().repeat().prefetch(8)


def model():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((784,)), keras.layers.Dense(512, "relu"), keras.layers.Dense(10)]
    made = keras.Sequential(layers)
    made.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=args.steps_per_execution,
    )
    return made


by_keras, fixed, chosen, arrays = model(), Trainer(model()), Trainer(model()), Trainer(model())
k = args.steps_per_execution
ways = {
    f"keras.Model.fit, {k} steps an execution": lambda: by_keras.fit(
        dataset, steps_per_epoch=STEPS, verbose=0
    ),
    f"Trainer.fit, {k} steps an execution": lambda: fixed.fit(
        dataset, steps_per_epoch=STEPS, steps_per_execution=k, verbose=0
    ),
    "Trainer.fit, as it comes": lambda: chosen.fit(dataset, steps_per_epoch=STEPS, verbose=0),
    "Trainer.fit, as it comes, on arrays": lambda: arrays.fit(
        x, y, global_batch_size=BATCH, verbose=0
    ),
}
times = {name: [] for name in ways}
for turn in range(args.rounds + 1):
    for name, fit in ways.items():
        began = time.perf_counter()
        fit()
        if turn:
            times[name].append((time.perf_counter() - began) / STEPS * 1e3)
for name, values in times.items():
    print(
        f"{name:<42}{statistics.median(values):6.2f} ms a step, "
        f"{min(values):.2f} to {max(values):.2f}"
    )
