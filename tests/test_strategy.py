"""From a name and a cluster to a strategy: what is made, and what is refused."""

import functools
import json
import os
import random
import socket

import numpy as np
import pytest
import tensorflow as tf

from tfscale import strategy as strategy_lib
from tfscale import testing
from tfscale.cluster.environment import Cluster
from tfscale.data.shards import Shard
from tfscale.strategy import make_strategy

needs_no_gpu = pytest.mark.skipif(bool(strategy_lib.find_gpus()), reason="tells of a CPU machine")


@needs_no_gpu
@pytest.mark.parametrize("name", ["auto", "onedevice"])
def test_alone_there_is_one_device(name):
    strategy = make_strategy(name)
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert strategy_lib.shard_of(strategy) == Shard(0, 1, 1)


@needs_no_gpu
@pytest.mark.parametrize("name", ["onedevice", "mirrored"])
def test_a_process_alone_does_not_ask_for_its_cluster(name, monkeypatch):
    """A search or an evaluation in a container of Compose is in no list of hosts."""
    monkeypatch.setenv("TFSCALE_HOSTS", "not a list of hosts, [")
    assert strategy_lib.shard_of(make_strategy(name)).num_workers == 1


@needs_no_gpu
@pytest.mark.parametrize(("asked", "expected"), [(0, 2), (1, 1), (2, 2), (3, 3)])
def test_mirrored_has_the_replicas_asked_for(asked, expected):
    strategy = make_strategy("mirrored", asked)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert strategy.num_replicas_in_sync == expected
    assert strategy_lib.shard_of(strategy) == Shard(0, 1, expected)
    with strategy.scope():
        variable = tf.Variable(2.0)
    strategy.run(lambda: variable.assign_add(1.0))
    copies = strategy.experimental_local_results(variable)
    assert [copy.numpy() for copy in copies] == [3.0] * expected
    assert len({copy.device for copy in copies}) == expected


@needs_no_gpu
def test_mirrored_strategy_of_the_same_replicas_is_the_same():
    """Two of them would number their collectives alike."""
    assert make_strategy("mirrored", 2) is make_strategy("mirrored")
    assert make_strategy("mirrored", 3) is not make_strategy("mirrored", 2)


@needs_no_gpu
def test_replicas_after_tensorflow_has_started_are_refused():
    tf.constant(1.0)
    with pytest.raises(ValueError, match=r"before any TensorFlow operation\. Received: .*=4"):
        make_strategy("mirrored", 4)


def cluster_of(*workers, rank=0, task_type="worker"):
    return Cluster(workers, rank, task_type, "tf_config")


@pytest.mark.parametrize(
    ("name", "num_replicas", "cluster", "message"),
    [
        ("mirored", 0, None, r"must be one of auto, onedevice, .*Received: 'mirored'"),
        ("onedevice", 2, None, r"belongs to strategy 'mirrored'.*=2 with 'onedevice'"),
        ("auto", 2, None, r"belongs to strategy 'mirrored'.*--strategy=mirrored"),
        ("multiworker", 2, None, r"belongs to strategy 'mirrored'.*=2 with 'multiworker'"),
        ("multiworker", 0, None, r"needs a cluster.*--workers=N"),
        (
            "multiworker",
            0,
            cluster_of("127.0.0.1:2", rank=-1, task_type="evaluator"),
            r"evaluator task trains nothing.*'onedevice'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, num_replicas, cluster, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, num_replicas, cluster=cluster)


@pytest.mark.parametrize("name", ["auto", "multiworker"])
def test_port_in_use_is_refused_with_its_number(name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"listen on .*Received: '{address}': a port in use"):
            make_strategy(name, cluster=cluster_of(address, "127.0.0.1:1"))


def draw():
    return [tf.random.uniform([]).numpy(), np.random.uniform(), random.random()]


def test_seed_is_that_of_tensorflow_numpy_and_python():
    draws = []
    for seed in (5, 5, 6):
        strategy_lib.set_seed(seed)
        draws.append(draw())
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_draws_of_operations_without_a_seed_come_again():
    strategy_lib.set_seed(7)
    tf.random.uniform([])
    place = strategy_lib.eager_draws()
    expected = [float(tf.random.uniform([])) for _ in range(3)]
    strategy_lib.set_seed(8)
    strategy_lib.set_eager_draws(*place)
    assert [float(tf.random.uniform([])) for _ in range(3)] == expected


def test_without_a_seed_draws_have_no_place():
    strategy_lib.set_eager_draws(None, None)
    assert strategy_lib.eager_draws() == (None, None)
    assert not strategy_lib.is_seeded()


def test_a_generator_is_made_when_it_is_first_asked_for():
    tf.random.set_global_generator(None)
    assert strategy_lib.made_generator() is None
    made = tf.random.get_global_generator()
    assert strategy_lib.made_generator() is made
    tf.random.set_global_generator(None)


def test_names_of_tensorflow_behind_its_random_numbers_are_there():
    from tensorflow.python.eager import context
    from tensorflow.python.ops import stateful_random_ops

    strategy_lib.set_seed(7)
    own = context.context()
    assert own._seed == 7
    assert isinstance(own._rng, random.Random)
    assert hasattr(stateful_random_ops, "global_generator")


def test_alone_a_sum_over_workers_is_the_number_itself():
    assert strategy_lib.sum_over_workers(make_strategy("onedevice"), [3, 0]) == [3, 0]


def test_a_process_alone_is_chief(monkeypatch):
    assert strategy_lib.is_chief()
    cluster = {"chief": ["127.0.0.1:1"], "worker": ["127.0.0.1:2"], "evaluator": ["127.0.0.1:3"]}
    chiefs = []
    for kind in cluster:
        config = {"cluster": cluster, "task": {"type": kind, "index": 0}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        chiefs.append(strategy_lib.is_chief())
    assert chiefs == [True, False, False]


def be_a_worker():
    """What each of two workers does; run by `run_workers`."""
    import random

    import numpy as np
    import tensorflow as tf

    from tfscale import lending
    from tfscale import strategy as strategy_lib
    from tfscale.testing import collect

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = strategy_lib.make_strategy(start_timeout_seconds=60)
    shard = strategy_lib.shard_of(strategy)
    try:
        strategy_lib.make_strategy("multiworker")
        second = ""
    except ValueError as error:
        second = str(error)
    strategy_lib.set_seed(5)
    collect(
        is_multiworker=isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy),
        shard=[shard.worker, shard.num_workers, shard.replicas_per_worker],
        sums=strategy_lib.sum_over_workers(strategy, [10 + shard.worker, 7 * (shard.worker == 0)]),
        draws=[float(tf.random.uniform([])), np.random.uniform(), random.random()],
        second=second,
        threads=tf.config.threading.get_intra_op_parallelism_threads(),
    )
    lending.lend_to_script(strategy)

    def mirrored_sum():
        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        add = lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones([3]))  # noqa: E731
        return tf.function(lambda: mirrored.reduce("MEAN", mirrored.run(add), axis=None))()

    alone = [mirrored_sum() for _ in range(2 + shard.worker)]
    again = strategy_lib.make_strategy("multiworker") is strategy
    collect(alone=alone, again=again, together=strategy_lib.sum_over_workers(strategy, [1]))
    strategy_lib.wait_for_workers(strategy)


def be_a_chief_or_a_worker():
    """A strategy that a script makes itself, in a cluster with a chief; TF_CONFIG is taken away."""
    import json
    import os

    import tensorflow as tf

    config = json.loads(os.environ["TF_CONFIG"])
    chief, worker = config["cluster"]["worker"]
    jobs = {"chief": [chief], "worker": [worker]}
    kind = "worker" if config["task"]["index"] else "chief"
    config = {"cluster": jobs, "task": {"type": kind, "index": 0}}
    os.environ["TF_CONFIG"] = json.dumps(config)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    del os.environ["TF_CONFIG"]

    from tfscale import strategy as strategy_lib
    from tfscale.testing import collect

    shard = strategy_lib.shard_of(strategy)
    with strategy.scope():
        is_chief = strategy_lib.is_chief()
    collect(
        shard=[shard.worker, shard.num_workers, shard.replicas_per_worker],
        is_chief=is_chief,
        sums=strategy_lib.sum_over_workers(strategy, [1]),
    )
    strategy_lib.wait_for_workers(strategy)


@pytest.mark.workers
@needs_no_gpu
def test_place_in_a_strategy_of_the_scripts_own_is_that_it_was_made_with():
    results = testing.run_workers(be_a_chief_or_a_worker, 2, timeout_seconds=90)
    for rank, arrays in enumerate(result.arrays for result in results):
        assert arrays["shard"].tolist() == [rank, 2, 1]
        assert arrays["is_chief"] == (rank == 0) and arrays["sums"].tolist() == [2]


@functools.cache
def two_workers():
    return [result.arrays for result in testing.run_workers(be_a_worker, 2, timeout_seconds=90)]


@pytest.mark.workers
@needs_no_gpu
class TestTwoWorkers:
    def test_auto_finds_the_cluster_and_its_own_place(self):
        for rank, arrays in enumerate(two_workers()):
            assert arrays["is_multiworker"]
            assert arrays["shard"].tolist() == [rank, 2, 1]

    def test_cores_are_divided(self):
        expected = max(1, len(os.sched_getaffinity(0)) // 2)
        assert [int(arrays["threads"]) for arrays in two_workers()] == [expected] * 2

    def test_sums_are_known_to_all(self):
        assert [arrays["sums"].tolist() for arrays in two_workers()] == [[21, 7]] * 2

    def test_seeds_are_equal(self):
        one, other = two_workers()
        np.testing.assert_array_equal(one["draws"], other["draws"])

    def test_second_multiworker_strategy_is_refused(self):
        for arrays in two_workers():
            assert "A process can have one multi-worker strategy" in str(arrays["second"])

    def test_a_mirrored_strategy_beside_a_lent_one_reduces_within_its_worker(self):
        """Each worker makes another number of them: their collectives must not meet."""
        for rank, arrays in enumerate(two_workers()):
            np.testing.assert_array_equal(arrays["alone"], np.full([2 + rank, 3], 2.0))

    def test_a_lent_strategy_is_given_again(self):
        for arrays in two_workers():
            assert arrays["again"] and arrays["together"].tolist() == [2]
