"""A script for one machine that makes no strategy, and then those that train alone.

Run as a module. Says what it found in FOLDER/worker-RANK.json, FOLDER being its argument.
"""

import argparse
import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("folder")
parser.add_argument("--seed", type=int)
arguments = parser.parse_args()
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
found = {"seed": arguments.seed, "argv0": sys.argv[0], "path": sys.path[0], "name": __name__}

os.mkdir(os.path.join(arguments.folder, "of_all"))  # as where nobody has made it yet
try:
    os.mkdir(os.path.join(arguments.folder, "of_all"))
except FileExistsError:
    found["exists"] = True

strategy = tf.distribute.get_strategy()
found["default"] = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
with strategy.scope():
    found["variable"] = type(tf.Variable(1.0)).__name__


def fit(scope):
    keras.utils.set_random_seed(1)
    examples = np.arange(32, dtype="float32").reshape(16, 2) / 32
    with scope:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    return model.fit(examples, examples[:, :1], batch_size=8, verbose=0).history["loss"][0]


def error_of(function):
    try:
        return str(function())
    except (ValueError, RuntimeError) as error:
        return str(error)


# Their collectives must not meet those of the other worker, which makes them at other times.
if rank == 0:
    found["mirrored_twice"] = tf.distribute.MirroredStrategy().num_replicas_in_sync
mirrored = tf.distribute.MirroredStrategy()
found["replicas"] = mirrored.num_replicas_in_sync
found["losses"] = [
    fit(mirrored.scope()),
    fit(tf.distribute.OneDeviceStrategy("CPU:0").scope()),
]
if rank == 1:  # alone, and nobody waits for the other worker
    found["losses"].append(fit(mirrored.scope()))
tf.distribute.experimental_set_strategy(mirrored)
found["set"] = tf.distribute.get_strategy() is mirrored
tf.distribute.experimental_set_strategy(None)
found["errors"] = [
    error_of(lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:7"])),
    error_of(lambda: tf.distribute.ParameterServerStrategy(None)),
    error_of(lambda: tf.distribute.experimental.TPUStrategy()),
    error_of(
        lambda: tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )
    ),
]
with open(os.path.join(arguments.folder, f"worker-{rank}.json"), "w") as file:
    json.dump(found, file)
