"""Checks before a job: real tasks that meet over TCP, with real faults. Few need TensorFlow."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfscale.cluster import checkup, meeting, ports

ROOT = Path(checkup.__file__).parents[2]


def loopback(num_addresses):
    return [f"127.0.0.1:{port}" for port in ports.free_ports(num_addresses)]


def start(addresses, rank, *argv, cwd, environ=None, before=(), **cluster):
    """Start one task; its output is in what is returned."""
    task = {"type": "worker", "index": rank}
    text = json.dumps({"cluster": {"worker": list(addresses), **cluster}, "task": task})
    return subprocess.Popen(
        [*before, sys.executable, "-m", "tfscale.doctor", *argv],
        cwd=cwd,
        env={**os.environ, "TF_CONFIG": text, "PYTHONPATH": str(ROOT), **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ends(tasks):
    """Return exit codes and outputs."""
    try:
        told = [task.communicate(timeout=100)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    return [task.returncode for task in tasks], told


def rows(text, state):
    """Return the findings of one state as (check, text)."""
    found = [line[2:].split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    named = [(row[0], row[1]) for row in found if len(row) == 2]
    return [text for own, text in named if own == state]


@pytest.fixture
def check(tmp_path):
    """Run two tasks that differ in what is given a rank; returns codes and outputs."""

    def run(*argv, own=((), ()), environ=({}, {}), addresses=None, cwd=(None, None)):
        addresses = addresses or loopback(2)
        tasks = [
            start(
                addresses,
                rank,
                *argv,
                *own[rank],
                cwd=cwd[rank] or tmp_path,
                environ=environ[rank],
            )
            for rank in (0, 1)
        ]
        return ends(tasks)

    return run


def test_all_is_well_and_nothing_is_left(check, tmp_path):
    addresses = loopback(2)
    codes, told = check("--run_dir=a/b", addresses=addresses)
    assert (codes, told[1]) == ([0, 0], "")
    checks = [row.split("  ")[0] for row in rows(told[0], "ok")]
    assert checks == [
        *("met", "versions", "own address", "port", "peers", "clocks"),
        *("run folder", "write access", "disk", "GPUs"),
    ]
    assert told[0].endswith("10 checks: all is well\n")
    assert list(tmp_path.iterdir()) == []
    for address in addresses:
        ports.check_port_free(address)
        assert ports.probe(address, 1.0) == "refused"


def test_who_did_not_come_is_named_with_the_reason(tmp_path):
    chief, gone = loopback(2)
    addresses = [chief, gone, "no-such-host.invalid:2222"]
    [code], [told] = ends([start(addresses, 0, "--start_timeout_seconds=1", cwd=tmp_path)])
    assert code == 1
    unmet = [row for row in rows(told, "failed") if row.startswith("met")]
    assert f"worker 1 at {gone} did not come within 1 s: refused" in unmet[0]
    assert "worker 2 at no-such-host.invalid:2222 did not come" in unmet[1]
    assert "unresolvable" in unmet[1]


def test_a_worker_without_its_chief_says_so_and_what_it_knows(tmp_path):
    addresses = loopback(2)
    [code], [told] = ends([start(addresses, 1, "--start_timeout_seconds=1", cwd=tmp_path)])
    assert code == 1
    [row] = rows(told, "failed")
    assert f"the chief, worker 0 at {addresses[0]}, was not met within 1 s: refused" in row
    assert "versions" in told


@pytest.mark.parametrize(("seconds", "state", "code"), [(3.0, "warning", 0), (-60.0, "failed", 1)])
def test_clocks_that_differ(check, tmp_path, seconds, state, code):
    """One task's clock goes wrong: its Python counts from another moment."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + {seconds}\n"
    )
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    codes, told = check(environ=({}, {"PYTHONPATH": path}))
    assert codes == [code, code]
    [row] = rows(told[0], state)
    side = "3.0 s ahead of" if seconds > 0 else "60.0 s behind"
    assert f"the clock of worker 1 is {side} that of worker 0 (to within " in row


def test_versions_that_differ(check, tmp_path):
    other = tmp_path / "other" / "keras-3.1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 3.1.0\n")
    path = os.pathsep.join((str(other.parent), str(ROOT)))
    codes, told = check(environ=({}, {"PYTHONPATH": path}))
    assert codes == [1, 1]
    [row] = rows(told[0], "failed")
    assert row.startswith("versions") and "; 3.1.0 on worker 1. Install the same" in row
    assert "worker 1: checks failed; worker 0 at" in told[1]


def test_a_port_that_is_taken(check):
    addresses = loopback(2)
    with socket.create_server(("127.0.0.1", ports.split_address(addresses[1])[1])):
        codes, told = check(addresses=addresses)
    assert codes == [1, 1]
    port, peers = rows(told[0], "failed")
    assert "worker 1: A worker must be able to listen on the port of its own address. " in port
    assert f"Received: {addresses[1]!r}: a port in use" in port
    assert f"worker 0 cannot reach worker 1 at {addresses[1]}: something else listens" in peers


def test_an_address_of_another_machine(check):
    """A task with the index of another one, or an address that was copied wrongly."""
    [chief] = loopback(1)
    codes, told = check(addresses=[chief, "203.0.113.7:2222"])
    assert codes == [1, 1]
    own = next(row for row in rows(told[0], "failed") if row.startswith("own address"))
    assert "worker 1: 203.0.113.7:2222 is 203.0.113.7, which is not of its machine" in own


def test_tasks_that_know_other_addresses_or_are_the_same_twice(tmp_path):
    addresses = loopback(4)
    argv = ["--start_timeout_seconds=30"]
    tasks = [start(addresses, 1, *argv, cwd=tmp_path) for _ in range(2)]
    tasks.append(start([addresses[0], "127.0.0.1:9", *addresses[2:]], 2, *argv, cwd=tmp_path))
    while ports.probe(addresses[1], 1.0) != "up":
        assert tasks[0].poll() is None or tasks[1].poll() is None
    # Worker 3 never comes, so the chief is there for the second worker 1 too.
    tasks.append(start(addresses, 0, "--start_timeout_seconds=5", cwd=tmp_path))
    codes, (*twice, other, chief) = ends(tasks)
    assert codes == [1] * 4
    met = [row for row in rows(chief, "failed") if row.startswith("met")]
    assert any("worker 2 knows other addresses than the chief" in row for row in met)
    assert any("another task is worker 1 already" in row for row in met)
    assert "did not take it in: worker 2 knows other addresses" in other
    assert sum("another task is worker 1 already" in text for text in twice) == 1


def test_a_run_folder_that_is_not_shared(check, tmp_path):
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        (folder / "runs").mkdir(parents=True)
    codes, told = check("--run_dir=runs", cwd=folders)
    assert codes == [1, 1]
    [row] = rows(told[0], "failed")
    assert row.startswith("run folder") and f"worker 1 does not see in {folders[1]}/runs" in row
    assert [list((folder / "runs").iterdir()) for folder in folders] == [[], []]


def test_a_run_folder_that_cannot_be_made(check, tmp_path):
    (tmp_path / "file").touch()
    codes, told = check("--run_dir=file/runs")
    assert codes == [1, 1]
    [row] = rows(told[0], "failed")
    assert f"worker 0 cannot use {tmp_path}/file/runs: not a directory" in row


def test_what_disturbs_the_meeting_point_is_ignored(tmp_path):
    """Somebody who talks nonsense, too much, or nothing at all."""
    addresses = loopback(2)
    chief = start(addresses, 0, "--start_timeout_seconds=30", cwd=tmp_path)
    host, port = ports.split_address(addresses[0])
    held = []
    try:
        deadline = time.monotonic() + 20
        while ports.probe(addresses[0], 1.0) != "up":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for words in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"[1]\n",
            b'{"want": "tea"}\n',
            b"x" * 10**6,
        ):
            held.append(socket.create_connection((host, port)))
            held[-1].sendall(words)
        codes, told = ends([chief, start(addresses, 1, cwd=tmp_path)])
    finally:
        for one in held:
            one.close()
    assert codes == [0, 0] and "2 of 2 tasks" in told[0]


def test_an_evaluator_takes_part(tmp_path):
    chief, evaluator = loopback(2)
    cluster = {"chief": [chief], "evaluator": [evaluator]}
    tasks = []
    for kind in ("chief", "evaluator"):
        text = json.dumps({"cluster": cluster, "task": {"type": kind, "index": 0}})
        tasks.append(start([], 0, cwd=tmp_path, environ={"TF_CONFIG": text}))
    codes, told = ends(tasks)
    assert codes == [0, 0] and "2 of 2 tasks" in told[0]


@pytest.mark.workers
def test_configuration_and_data_that_differ_are_named(check, tmp_path):
    folders = [tmp_path / name for name in ("here", "there")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        lines = ["a,b,label", *(f"{i + number},{i},{i % 2}" for i in range(40))]
        (folder / "data.csv").write_text("\n".join(lines) + "\n")
    codes, told = check(
        *("--config.data.name=csv", "--config.data.data_dir=.", "--config.model.name=mlp"),
        *("--config.data.train_split=data.csv", "--config.data.test_split="),
        *("--config.data.transforms=", "--config.data.num_classes=2"),
        f"--run_dir={tmp_path}/run",
        own=((), ("--config.train.epochs=7",)),
        cwd=folders,
    )
    assert codes == [1, 1]
    configuration, data = rows(told[0], "failed")
    assert "train.epochs: 15 on worker 0; 7 on worker 1. Give all tasks the same" in configuration
    assert data.startswith("data") and "on worker 0" in data and "on worker 1" in data


def test_a_name_that_is_loopback_on_its_own_machine_is_listened_for_on_the_way_to_the_others():
    """Many machines have their own name as 127.0.1.1 in /etc/hosts."""
    distant = "203.0.113.7:2222"
    expected = [ip for ip in [ports.source_towards(distant)] if ip]
    [own] = loopback(1)
    port = ports.split_address(own)[1]
    with meeting.Post(meeting.Party((own, distant), 0, 2)) as post:
        for ip in ["127.0.0.1", *expected]:
            assert meeting.greet(f"{ip}:{port}")[1]["nonce"] == post.nonce
    with meeting.Post(meeting.Party((own, "127.0.0.1:9"), 0, 2)):
        for ip in expected:
            assert ports.probe(f"{ip}:{port}", 2.0) == "refused"


def can_make_networks():
    done = shutil.which("ip") and subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b"],
        capture_output=True,
        check=False,
    )
    return bool(done) and done.returncode == 0


@pytest.fixture
def hosts():
    """Two hosts on one wire, each a network namespace, at 10.77.0.1 and .2; yields their names."""
    names = [f"tfs{os.getpid()}{letter}" for letter in "xab"]
    switch, *hosts = names

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(hosts, 1):
            ends_of_wire = f"w{number}"
            ip("-n", name, "link", "add", "wire", "type", "veth", "peer", "name", ends_of_wire)
            ip("-n", name, "link", "set", ends_of_wire, "netns", switch)
            ip("-n", switch, "link", "set", ends_of_wire, "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.skipif(not can_make_networks(), reason="needs root and iproute2")
def test_hosts_of_their_own_check_each_other(hosts, tmp_path):
    """Two hosts meet; of the others one refuses and one is silent."""
    addresses = [f"10.77.0.{number}:2222" for number in (1, 2)]
    addresses += ["10.77.0.2:2223", "10.77.0.9:2222"]
    tasks = [
        start(
            addresses,
            rank,
            "--start_timeout_seconds=8",
            cwd=tmp_path,
            before=("ip", "netns", "exec", host),
        )
        for rank, host in enumerate(hosts)
    ]
    codes, told = ends(tasks)
    assert codes == [1, 1]
    refused, silent = rows(told[0], "failed")
    assert "worker 2 at 10.77.0.2:2223 did not come within 8 s: refused" in refused
    assert "worker 3 at 10.77.0.9:2222 did not come within 8 s: silent" in silent
    assert "each reaches each other, 2 ways" in told[0]
    assert "each task's address leads to its machine" in told[0]
