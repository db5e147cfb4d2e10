"""A cluster becomes a `tf.distribute` strategy; devices, threads, seeds and determinism.

Call `make_strategy` before any other TensorFlow operation: devices, and the connection between
workers, can be set up only once in a process. On GPUs memory grows as needed and NCCL reduces.
"""

import functools
import json
import os

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.framework import config as framework_config
from tensorflow.python.ops import stateful_random_ops

from tfscale.cluster import environment, ports, pulse, rendezvous
from tfscale.config import STRATEGIES
from tfscale.data.shards import Shard


def make_strategy(
    name="auto", num_replicas=0, *, cluster=None, start_timeout_seconds=300, deterministic=False
):
    """Make the strategy that a model is built and trained under.

    In a script that `tfscale.launch` runs, "multiworker" and "auto" give the strategy of its
    process, however often.

    Args:
        name: "onedevice"; "mirrored", replicas in this process; "multiworker", one process a
            worker, found through `TF_CONFIG` or Slurm's variables; "auto", multiworker in a
            cluster, mirrored on several GPUs, else onedevice.
        num_replicas: replicas of "mirrored"; 0 means every GPU, or 2 logical CPUs where there
            is none.
        cluster: a `cluster.environment.Cluster`; by default what the environment says.
        start_timeout_seconds: bound on waiting for the other workers, who are then named.
        deterministic: same bits in every run, at some cost in speed.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: for an unknown name, more replicas than devices, a port in use, or a second
            multi-worker strategy in one process.
    """
    pulse.begin()
    if name not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}. Received: {name!r}.")
    if name in ("auto", "multiworker"):  # a process alone asks nobody who else there is
        cluster = cluster or environment.resolve()
    if name == "auto":
        many_gpus = len(find_gpus()) > 1
        in_cluster = cluster.workers or _multiworker_here.get("lent")
        name = "multiworker" if in_cluster else "mirrored" if many_gpus else "onedevice"
    if num_replicas and name != "mirrored":
        raise ValueError(
            "`num_replicas` belongs to strategy 'mirrored'. "
            f"Received: num_replicas={num_replicas} with {name!r}. Leave it out, or use "
            "--strategy=mirrored."
        )
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if not _multiworker_here.get("lent"):
        _share_this_machine(cluster)
    elif name == "multiworker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "onedevice":
        gpus = tf.config.list_logical_devices("GPU")
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if name == "mirrored":
        return _mirrored(tuple(_mirrored_devices(num_replicas)))
    return _multiworker(cluster, start_timeout_seconds)


def find_gpus():
    """Return the GPUs of this machine; the first call loads CUDA's driver."""
    return tf.config.list_physical_devices("GPU")


def set_seed(seed):
    """Seed TensorFlow, NumPy and Python alike on every worker.

    Args:
        seed: a whole number, the same on all workers.
    """
    keras.utils.set_random_seed(seed)


def is_seeded():
    """Return whether TensorFlow has a seed; asking `tf.compat.v1.get_seed` would use one up."""
    return context.global_seed() is not None


def is_deterministic():
    """Return whether operations give the same bits in every run, or fail."""
    return framework_config.is_op_determinism_enabled()


def eager_draws():
    """Return where TensorFlow's own random numbers are, for `set_eager_draws`.

    Outside of a graph every operation without a seed of its own, `tf.random.uniform` and the
    making of a shuffled dataset alike, takes the next number of one Python generator. Asking
    takes none.

    Returns:
        `(seed, state)`: what `tf.random.set_seed` got, and a `random.Random.getstate()`; both
        None where nothing was seeded, and operations are random.
    """
    if not is_seeded():
        return None, None
    own = context.context()
    return int(np.array(own._seed)), own._rng.getstate()


def set_eager_draws(seed, state):
    """Go on with TensorFlow's own random numbers at a place that `eager_draws` returned.

    Operations that have a seed of their own, and those in graphs, begin to count anew, as after
    `tf.random.set_seed`.
    """
    tf.random.set_seed(seed)
    if state is not None:
        context.context()._rng.setstate(state)


def made_generator():
    """Return what `tf.random.get_global_generator` returns, or None where it would make one."""
    return stateful_random_ops.global_generator


def shard_of(strategy):
    """Return which part of every global batch this process trains on.

    Args:
        strategy: a strategy of `make_strategy`, or one that a script made itself.

    Returns:
        A `data.shards.Shard`; the chief is worker 0, the tasks of the job `worker` follow.
    """
    num_replicas = strategy.num_replicas_in_sync
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Shard(0, 1, num_replicas)
    # What the strategy was made with: `cluster_resolver` would read TF_CONFIG again, which a
    # script may have changed since.
    replicas_per_worker = len(strategy.extended.worker_devices)
    rank = strategy.extended._id_in_cluster
    return Shard(rank, num_replicas // replicas_per_worker, replicas_per_worker)


def own_devices(strategy):
    """Return the names of the devices that this worker trains on.

    Args:
        strategy: any, TensorFlow's default included, which trains on the first device there is.
    """
    try:
        return strategy.extended.worker_devices
    except RuntimeError:  # the default strategy has no list of them
        pass
    gpus = tf.config.list_logical_devices("GPU")
    return [device.name for device in (gpus or tf.config.list_logical_devices("CPU"))[:1]]


def is_chief():
    """Return whether this process writes what must exist once.

    Returns:
        True on the worker of rank 0, and in a process that is no worker of a cluster.
    """
    for strategy in (_multiworker_here.get("strategy"), tf.distribute.get_strategy()):
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return shard_of(strategy).worker == 0
    return environment.resolve().is_chief


def sum_over_workers(strategy, values):
    """Return the sums of whole numbers over all workers, on each of them.

    What one worker alone knows, such as a refused folder, travels so to all before anyone acts
    on it. Every worker calls this at the same place. The chief's choice is the sum where the
    others give 0.

    Args:
        strategy: the strategy of the run.
        values: a list of whole numbers, the same length everywhere.
    """
    shard = shard_of(strategy)
    if shard.num_workers == 1:
        return list(values)

    return [int(v) for v in _sums(strategy)(tf.constant(values, tf.int64)).numpy()]


@functools.cache
def _sums(strategy):
    """The graph of `sum_over_workers`, traced once for each number of values."""
    replicas_per_worker = shard_of(strategy).replicas_per_worker

    @tf.function
    def sums(values):
        on_replicas = strategy.run(tf.identity, args=(values,))
        return strategy.reduce("SUM", on_replicas, axis=None) // replicas_per_worker

    return sums


def set_lent():
    """Say that the multi-worker strategy of this process is the one that TensorFlow's class gives.

    `make_strategy` then asks the class for it again instead of refusing a second one.
    """
    _multiworker_here["lent"] = True


def wait_for_workers(strategy):
    """Wait until every worker has come here, or one has died; for the end of a process.

    The others take a worker that leaves before them for a crash, and lose their collectives.
    Python's threads stand still meanwhile, and so do its handlers of signals.

    Args:
        strategy: the multi-worker strategy of this process.
    """
    if shard_of(strategy).num_workers > 1:
        try:
            context.context().wait_at_barrier("tfscale/end", _END_SECONDS * 1000)
        except tf.errors.OpError:
            return  # a worker has died: who waits for it, or its launcher, says so


def _share_this_machine(cluster):
    """Let GPU memory grow, and divide cores and GPUs among workers of one launcher."""
    local_workers = int(os.environ.get("TFSCALE_LOCAL_WORKERS", "1"))
    gpus = find_gpus()
    if local_workers > 1:
        cores = len(os.sched_getaffinity(0))
        tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // local_workers))
        if gpus:
            if local_workers > len(gpus):
                raise ValueError(
                    "Workers on one machine must have a GPU each. "
                    f"Received: {local_workers} workers and {len(gpus)} GPUs. "
                    "Use fewer workers, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1."
                )
            gpus = gpus[(cluster or environment.resolve()).rank :: local_workers]
            tf.config.set_visible_devices(gpus, "GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)


def _mirrored_devices(num_replicas):
    """Name the devices of a mirrored strategy, making logical CPUs where there is no GPU."""
    gpus = find_gpus()
    if gpus:
        if num_replicas > len(gpus):
            raise ValueError(
                "`num_replicas` must be at most the number of GPUs. "
                f"Received: num_replicas={num_replicas} with {len(gpus)} GPUs. "
                "Use fewer, or hide the GPUs with CUDA_VISIBLE_DEVICES=-1."
            )
        return [f"GPU:{i}" for i in range(num_replicas or len(gpus))]
    num_replicas = num_replicas or 2
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or []) < num_replicas:
        logical = [tf.config.LogicalDeviceConfiguration()] * num_replicas
        try:
            tf.config.set_logical_device_configuration(cpu, logical)
        except RuntimeError:
            raise ValueError(
                "A mirrored strategy on CPUs must be made before any TensorFlow operation. "
                f"Received: num_replicas={num_replicas} after TensorFlow had started. "
                "Call tfscale.make_strategy first in the script, and run it without tfscale.launch."
            ) from None
    return [f"CPU:{i}" for i in range(num_replicas)]


@functools.cache
def _mirrored(devices):
    """The one mirrored strategy over these devices.

    A second one would number its collectives from the start again, and TensorFlow 2.21 refuses a
    number that it has seen with another shape: "Shape mismatch in the collective instance".
    """
    return tf.distribute.MirroredStrategy(devices)


def _multiworker(cluster, start_timeout_seconds):
    if isinstance(_multiworker_here.get("strategy"), tf.distribute.Strategy):
        raise ValueError(
            "A process can have one multi-worker strategy. Received: a second call of "
            "make_strategy('multiworker'). Keep the first one and pass it on."
        )
    if cluster.is_evaluator:
        raise ValueError(
            "The evaluator task trains nothing and takes strategy 'onedevice'. "
            "Received: strategy='multiworker' with task type 'evaluator'."
        )
    if not cluster.workers:
        raise ValueError(
            "Strategy 'multiworker' needs a cluster. Received: neither TF_CONFIG nor Slurm's "
            "variables in the environment. Use --workers=N to start N workers on this machine."
        )
    ports.check_port_free(cluster.workers[cluster.rank])
    os.environ["TF_CONFIG"] = cluster.tf_config()
    gpus = find_gpus()
    implementation = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=implementation.NCCL if gpus else implementation.RING
    )
    with rendezvous.StartWatch(cluster, start_timeout_seconds):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            _StartResolver(cluster.tf_config()), options
        )
    _multiworker_here["strategy"] = strategy
    return strategy


class _StartResolver(tf.distribute.cluster_resolver.TFConfigClusterResolver):
    """The cluster as it was at the start, whatever a script does to TF_CONFIG afterwards."""

    def __init__(self, text):
        config = json.loads(text)
        task = config["task"]
        super().__init__(task["type"], int(task["index"]), config.get("rpc_layer", "grpc"))
        self._spec = tf.train.ClusterSpec(config["cluster"])

    def cluster_spec(self):
        return self._spec


# The multi-worker strategy of this process, of which there can be one, and whether it is "lent".
_multiworker_here = {}
_END_SECONDS = 24 * 3600  # the most that workers wait for each other at the end
