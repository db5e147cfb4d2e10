"""Time `fit` through the repair against raw `keras.Model.fit`: python tests/benchmarks/keras_fit.py

Two networks (MLP 784-512-10; CNN of 35k parameters on 28x28), batch 64, Adam, 128 steps a call
from arrays with shuffle=True, in one process: Keras without a strategy, the same with the repair
on (Keras' own code runs, untouched), Keras under `MirroredStrategy` on two logical CPUs, and the
same through the repair; in turn. Prints medians and the spread in ms a step; no other work should
run on the machine.
"""

import argparse
import os
import statistics
import time

parser = argparse.ArgumentParser()
parser.add_argument("--rounds", type=int, default=9)
parser.add_argument("--verbose", type=int, default=0, help="as for fit: 1 shows Keras' bar")
args = parser.parse_args()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # noqa: E402
import numpy as np  # noqa: E402

import tfscale  # noqa: E402

STEPS, BATCH = 128, 64
mirrored = tfscale.make_strategy("mirrored", 2)
rng = np.random.default_rng(0)
images = rng.random((BATCH * STEPS, 28, 28, 1), dtype="float32")
labels = rng.integers(0, 10, len(images))


def mlp():
    hidden = keras.layers.Dense(512, "relu")
    return [keras.Input((28, 28, 1)), keras.layers.Flatten(), hidden, keras.layers.Dense(10)]


def cnn():
    return [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(36, "relu"),
        keras.layers.Dense(10),
    ]


def compiled(layers):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    return model


def seconds(model, repaired):
    if repaired:
        tfscale.enable_keras_fit()
    began = time.perf_counter()
    model.fit(images, labels, batch_size=BATCH, verbose=args.verbose)
    taken = time.perf_counter() - began
    tfscale.disable_keras_fit()
    return taken


for layers in (mlp, cnn):
    models = {}
    for repaired in (False, True):
        door = "repaired" if repaired else "raw"
        models[f"no strategy, {door}"] = compiled(layers), repaired
        with mirrored.scope():
            models[f"MirroredStrategy x2, {door}"] = compiled(layers), repaired
    times = {name: [] for name in sorted(models)}
    for turn in range(args.rounds + 1):
        for name in times:
            taken = seconds(*models[name])
            if turn:
                times[name].append(taken / STEPS * 1e3)
    for name, values in times.items():
        print(
            f"{layers.__name__}  {name:<32}{statistics.median(values):6.2f} ms a step, "
            f"{min(values):.2f} to {max(values):.2f}",
            flush=True,
        )
