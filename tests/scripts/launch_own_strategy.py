"""A script with absl flags, its own strategy and its own loop, as for TensorFlow alone.

Says what it found in FOLDER/worker-RANK.json.
"""

import json
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import random
import sys
import time

import keras
import launch_neighbour
import numpy as np
import tensorflow as tf
from absl import app, flags

found = {"flags_before": sorted(flags.FLAGS.flags_by_module_dict())}
flags.DEFINE_string("folder", None, "where to write what is found")
flags.DEFINE_integer("workers", 0, "named as a flag of the launcher is")

tf_config = json.loads(os.environ["TF_CONFIG"])
num_workers = len(tf_config["cluster"]["worker"])
rank = tf_config["task"]["index"]


def draw():
    return [
        float(tf.random.uniform([])),
        float(keras.random.uniform([])),
        np.random.uniform(),
        random.random(),
    ]


found["draws"] = draw()
keras.utils.set_random_seed(7)
found["draws_of_seven"] = draw()
keras.utils.set_random_seed(3)
found["draws_of_three"] = draw()
tf.config.threading.set_intra_op_parallelism_threads(7)
tf.config.set_visible_devices([], "GPU")
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()])
tf.config.experimental.enable_op_determinism()
found["data"] = [int(n) for n in tf.data.Dataset.range(6).shuffle(6).batch(6).get_single_element()]
found["default_before"] = tf.distribute.has_strategy()
os.environ.pop("TF_CONFIG")


def make_strategies():
    """Ask for the same strategy in all ways there are."""
    kind = tf.distribute.MultiWorkerMirroredStrategy
    options = tf.distribute.experimental.CommunicationOptions()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    experimental = tf.distribute.experimental
    old_argument = experimental.CollectiveCommunication.RING
    strategies = [kind(), kind(resolver, options), kind(communication_options=options)]
    strategies.append(experimental.MultiWorkerMirroredStrategy(old_argument))
    import tfscale

    strategies += [tfscale.make_strategy("multiworker"), tfscale.make_strategy()]
    found["is_chief"] = tfscale.is_chief()
    found["same"] = all(strategy is strategies[0] for strategy in strategies)
    old_kind = experimental.MultiWorkerMirroredStrategy
    found["isinstance"] = [isinstance(strategies[0], k) for k in (kind, old_kind)]
    with kind().scope() as scoped:
        found["scoped"] = scoped is strategies[0]
    return strategies[0]


def train(strategy):
    """A quadratic by hand: each replica has its own target, all end at their mean."""
    with strategy.scope():
        weight = tf.Variable(0.0)

    def step():
        context = tf.distribute.get_replica_context()
        target = tf.cast(context.replica_id_in_sync_group, tf.float32)
        with tf.GradientTape() as tape:
            loss = (weight - target) ** 2
        gradient = context.all_reduce("MEAN", tape.gradient(loss, weight) * 1.0)
        weight.assign_sub(0.25 * gradient)

    @tf.function
    def run():
        for _ in tf.range(30):
            strategy.run(step)

    run()
    return float(weight.numpy())


def main(argv):
    strategy = make_strategies()
    resolver = strategy.cluster_resolver
    found["task"] = [
        resolver.task_type,
        resolver.task_id,
        resolver.cluster_spec().num_tasks("worker"),
    ]
    found["default_after"] = tf.distribute.has_strategy()
    if rank == 0:  # of this worker alone: not a collective
        found["local"] = type(tf.Variable(1.0)).__name__
    from tfscale.strategy import shard_of

    found["shard"] = [shard_of(strategy).worker, shard_of(strategy).num_workers]
    found["weight"] = train(strategy)
    found["argv"] = [os.path.basename(argv[0]), *argv[1:]]
    found["workers_flag"] = flags.FLAGS.workers
    found["name"], found["main"] = launch_neighbour.NAME, sys.modules["__main__"].__file__
    found["path"], found["file"] = sys.path[0], __file__
    found["num_workers"], found["pid"] = num_workers, os.getpid()
    write(f"worker-{rank}.json")
    if rank == 0:
        return  # and is still there when the other one ends
    while not os.path.exists(os.path.join(flags.FLAGS.folder, "worker-0.json")):
        time.sleep(0.01)
    time.sleep(2)
    with open(os.path.join(flags.FLAGS.folder, "worker-0.json")) as file:
        os.kill(json.load(file)["pid"], 0)
    found["waited"] = True
    write(f"worker-{rank}.json")


def write(name):
    path = os.path.join(flags.FLAGS.folder, name)
    with open(path + ".part", "w") as file:
        json.dump(found, file)
    os.replace(path + ".part", path)


if __name__ == "__main__":
    app.run(main)
