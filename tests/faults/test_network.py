"""Two tasks in network namespaces: the cable between them is pulled out, and put back."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time

import launched
import pytest

pytestmark = [pytest.mark.workers, pytest.mark.slow]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
FLAGS = [
    *("--deterministic", "--seed=1", "--max_restarts=3", "--start_timeout_seconds=60"),
    f"--save_every_steps={launched.SAVE_EVERY}",
]


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@pytest.fixture
def rooms():
    """Names of two network namespaces with a cable between them."""
    if shutil.which("ip") is None or os.getuid():
        pytest.skip("network namespaces need root and iproute2")
    names = [f"tfscale-{os.getpid()}-{number}" for number in (0, 1)]
    cable = [f"ts{os.getpid()}n{number}" for number in (0, 1)]
    with contextlib.ExitStack() as cleanup:
        for name in names:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"the kernel gives no network namespace: {made.stderr.strip()}")
            cleanup.callback(ip, "netns", "del", name)
        made = ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        if made.returncode:
            pytest.skip(f"the kernel gives no cable: {made.stderr.strip()}")
        for name, end, address in zip(names, cable, ADDRESSES, strict=True):
            for words in (
                ("link", "set", end, "netns", name),
                ("-n", name, "link", "set", end, "name", "eth0"),
                ("-n", name, "address", "add", f"{address}/24", "dev", "eth0"),
                ("-n", name, "link", "set", "lo", "up"),
                ("-n", name, "link", "set", "eth0", "up"),
            ):
                assert ip(*words).returncode == 0, words
        yield names


def start(names, folder):
    """Start the launcher of either task in its room."""
    tasks = []
    for rank, name in enumerate(names):
        task = {"type": "worker", "index": rank}
        workers = [f"{address}:{23450 + number}" for number, address in enumerate(ADDRESSES)]
        own = {"TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task})}
        own |= {"TFSCALE_LOCAL_WORKERS": "2", "STEP_SECONDS": "0.05", "FAULT": "{}"}
        command = [sys.executable, "-m", "tfscale.launch", *FLAGS, f"--run_dir={folder / 'run'}"]
        command += [str(launched.SCRIPT), str(folder)]
        command = ["ip", "netns", "exec", name, *command]
        tasks.append(launched.start(command, folder, folder / "run", f"told-{rank}", **own))
    return tasks


def end(tasks, folder):
    """Wait for all; return their exit codes and what they said."""
    codes = []
    try:
        for task in tasks:
            codes.append(task.process.wait(240))
    finally:
        for task in tasks:
            task.end()
    assert launched.wait_for(lambda: not launched.processes_of(folder), 5, must=False)
    return codes, [task.told for task in tasks]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seconds", "lives"),
    [
        pytest.param(4, 1, marks=pytest.mark.faults),  # nobody notices: the bytes come later
        (25, 2),  # longer than TensorFlow's heartbeat
    ],
)
def test_a_cable_that_was_pulled_out_and_put_back_costs_no_bit(
    rooms, tmp_path, undisturbed, seconds, lives
):
    folder = tmp_path / "run"
    tasks = start(rooms, folder)
    try:
        tasks[0].wait_for_step(15)
        assert ip("-n", rooms[1], "link", "set", "eth0", "down").returncode == 0
        time.sleep(seconds)  # this is the fault, and not a hope
        assert ip("-n", rooms[1], "link", "set", "eth0", "up").returncode == 0
    finally:
        codes, told = end(tasks, folder)
    assert codes == [0, 0], told
    for rank in (0, 1):
        log = (folder / "run" / "logs" / f"worker-{rank}.log").read_text()
        assert (f"life 2 of worker {rank}" in log) == (lives > 1)
        if lives > 1:
            assert f"tfscale: worker {rank} lost a peer, or did not meet it" in told[rank]
    launched.check_equal(tasks[0], undisturbed())
