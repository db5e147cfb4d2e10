"""A start that is bounded, for workers whose peers do not come."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfscale import testing
from tfscale.cluster import ports, rendezvous
from tfscale.cluster.environment import Cluster

# PyDLL calls C without releasing Python's global lock, as TensorFlow does while it waits.
_BLOCKED = """
import ctypes, sys
from tfscale.cluster import environment, rendezvous
print("before")
with rendezvous.StartWatch(environment.resolve(), float(sys.argv[1])):
    ctypes.PyDLL(None).usleep(int(float(sys.argv[2]) * 1e6))
print("after")
"""
_TENSORFLOW = """
import os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = ""
import tensorflow as tf
from tfscale.cluster import environment, rendezvous
with rendezvous.StartWatch(environment.resolve(), float(sys.argv[1])):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
print("joined", strategy.num_replicas_in_sync, flush=True)
"""


def _start(code, workers, rank, *args, before=()):
    """Run one worker of a cluster; return its exit code, stdout, stderr and seconds."""
    config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    root = str(Path(rendezvous.__file__).parents[2])
    started = time.monotonic()
    done = subprocess.run(
        [*before, sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "TF_CONFIG": json.dumps(config), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - started


def _loopback(num_addresses):
    return [f"127.0.0.1:{port}" for port in ports.free_ports(num_addresses)]


@pytest.mark.parametrize("rank", [0, 1])
def test_tensorflow_worker_whose_peer_never_comes_ends_and_names_it(rank):
    workers = _loopback(2)
    code, _, told, seconds = _start(_TENSORFLOW, workers, rank, 3)
    assert code == 1
    assert f"worker {1 - rank} at {workers[1 - rank]}: refused" in told
    assert f"as seen by worker {rank}" in told and f"worker {rank} at" not in told
    assert told.count("tfscale: ") == 1 and seconds < 30


def test_tensorflow_workers_that_meet_in_time_go_on():
    results = testing.run_workers(_TENSORFLOW, 2, args=(30,), timeout_seconds=60)
    assert ["joined 2" in result.output for result in results] == [True, True]
    assert not any("tfscale: " in result.output for result in results)


def test_each_peer_gets_its_own_reason():
    mine, gone, up, frozen = _loopback(4)
    with (
        socket.create_server(("127.0.0.1", int(up.split(":")[1]))),
        socket.create_server(("127.0.0.1", int(frozen.split(":")[1])), backlog=0) as full,
        socket.create_connection(full.getsockname()),
        socket.socket() as second,
    ):
        second.setblocking(False)
        second.connect_ex(full.getsockname())
        workers = [mine, gone, up, frozen, "no-such-host.invalid:2222"]
        code, shown, told, seconds = _start(_BLOCKED, workers, 0, 0.5, 30)
    assert (code, shown) == (1, "before\n")
    assert f"worker 1 at {gone}: refused" in told
    assert f"worker 2 at {up}: is up but has not joined" in told
    assert f"worker 3 at {frozen}: silent" in told
    assert "worker 4 at no-such-host.invalid:2222: unresolvable" in told
    assert "within 0.5 seconds" in told and "--start_timeout_seconds" in told
    assert seconds < 15


# A network of its own with a wire: who is not on it does not answer.
_ON_A_WIRE = """
ip link set lo up && ip link add wire type veth peer name end && ip link set end up &&
ip link set wire up && ip addr add 10.77.0.1/24 dev wire && echo ready && exec "$@"
"""


def test_on_a_network_hosts_that_are_off_are_silent_and_others_refuse():
    """Packets that nobody answers, as between machines, and a name that no server knows."""
    workers = ["10.77.0.1:2222", "10.77.0.1:2223", "10.77.0.9:2222", "host9.invalid:2222"]
    before = ("unshare", "-n", "sh", "-c", _ON_A_WIRE, "sh")
    code, shown, told, _ = _start(_BLOCKED, workers, 0, 1, 30, before=before)
    if not shown.startswith("ready"):
        pytest.skip(f"needs root and iproute2: {told}")
    assert code == 1
    assert f"worker 1 at {workers[1]}: refused" in told
    assert f"worker 2 at {workers[2]}: silent" in told
    assert f"worker 3 at {workers[3]}: unresolvable" in told


def test_a_block_that_is_left_in_time_leaves_nothing():
    code, shown, told, seconds = _start(_BLOCKED, _loopback(2), 0, 1, 0.1)
    assert (code, shown, told) == (0, "before\nafter\n", "") and seconds < 15


def test_an_error_in_the_block_is_raised_and_nothing_ends_later(monkeypatch):
    monkeypatch.setattr(rendezvous, "_REPORT_SECONDS", 0.2)
    cluster = Cluster(tuple(_loopback(2)), 0, "worker", "tf_config")
    with pytest.raises(RuntimeError, match="mine"), rendezvous.StartWatch(cluster, 0.5):
        raise RuntimeError("mine")
    time.sleep(1.0)


@pytest.mark.parametrize(
    "cluster",
    [
        Cluster((), 0, "worker", "none"),
        Cluster(("a:1",), 0, "worker", "tf_config"),
        Cluster(("a:1", "b:1"), -1, "evaluator", "tf_config"),
    ],
)
def test_nothing_is_watched_without_peers(cluster, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # a watch would call it
    with rendezvous.StartWatch(cluster, 0.01):
        time.sleep(0.05)


def test_a_time_of_zero_is_refused():
    with pytest.raises(ValueError, match="Received: 0"):
        rendezvous.StartWatch(Cluster((), 0, "worker", "none"), 0)
