"""Workers of a test: results, arrays, limits; and the fixture that finds what is left."""

import os
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from tfscale import testing


def _report_rank(text):
    import json
    import os

    from tfscale.testing import collect

    config = json.loads(os.environ["TF_CONFIG"])
    rank = config["task"]["index"]
    print(text, rank, flush=True)
    collect(rank=rank)
    collect(ports=[int(a.split(":")[1]) for a in config["cluster"]["worker"]])


def test_workers_hand_back_output_and_arrays():
    results = testing.run_workers(_report_rank, 2, args=("hello",), timeout_seconds=30)
    assert [(r.rank, r.returncode, r.output) for r in results] == [
        (0, 0, "hello 0\n"),
        (1, 0, "hello 1\n"),
    ]
    assert [int(r.arrays["rank"]) for r in results] == [0, 1]
    np.testing.assert_array_equal(results[0].arrays["ports"], results[1].arrays["ports"])
    assert len(set(results[0].arrays["ports"].tolist())) == 2


_FAILING = """
import os, sys, time
print("hello", os.environ["TFSCALE_TEST_RANK"], os.environ["FLAVOUR"], flush=True)
spoken = sys.argv[2] if len(sys.argv) > 2 else ""
if os.environ["TFSCALE_TEST_RANK"] == "1":
    while spoken and not os.path.exists(spoken):
        time.sleep(0.01)
    sys.exit(7)
if spoken:
    open(spoken, "w").close()
time.sleep(float(sys.argv[1]))
"""


def test_failure_shows_every_log_and_ends_the_others(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(_FAILING)
    args = (600, tmp_path / "worker 0 has spoken")
    with pytest.raises(AssertionError, match="Worker 1 failed first, with exit code 7") as failure:
        testing.run_workers(script, 2, args=args, environ={"FLAVOUR": "plain"})
    assert "hello 0 plain" in str(failure.value) and "hello 1 plain" in str(failure.value)


def test_expected_failures_are_returned():
    results = testing.run_workers(_FAILING, 2, args=(0.3,), environ={"FLAVOUR": "x"}, check=False)
    assert [r.returncode for r in results] == [0, 7]


def test_time_limit_kills_and_tells():
    with pytest.raises(AssertionError, match=r"within 5 seconds. Still running: 0\.") as failure:
        testing.run_workers(
            _FAILING, 2, args=(60,), timeout_seconds=5, environ={"FLAVOUR": "x"}, check=False
        )
    assert "worker 0, exit code 137" in str(failure.value)


def test_collect_outside_of_a_worker_is_refused():
    with pytest.raises(ValueError, match="run_workers"):
        testing.collect(x=1)


def _check_leak(leave, clean_up):
    """Run the fixture around `leave`, and return its complaint."""
    fixture = testing.no_leaks.__wrapped__()
    next(fixture)
    leave()
    try:
        with pytest.raises(AssertionError, match="must leave nothing behind") as complaint:
            next(fixture)
    finally:
        clean_up()
    return str(complaint.value)


@pytest.fixture
def short_settling(monkeypatch):
    monkeypatch.setattr(testing, "_SETTLE_SECONDS", 0.1)


def test_a_leaked_variable_is_found(short_settling):
    complaint = _check_leak(lambda: os.environ.update(LEAKED="1"), lambda: os.environ.pop("LEAKED"))
    assert "LEAKED=1" in complaint


def test_a_removed_variable_is_found(short_settling):
    value = os.environ["PATH"]
    complaint = _check_leak(lambda: os.environ.pop("PATH"), lambda: os.environ.update(PATH=value))
    assert "gone or changed: PATH" in complaint


def test_a_leaked_process_is_found(short_settling):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    processes = []

    def end():
        os.kill(processes[0].pid, signal.SIGKILL)
        processes[0].wait()

    complaint = _check_leak(lambda: processes.append(subprocess.Popen(command)), end)
    assert str(processes[0].pid) in complaint


def test_a_leaked_thread_and_port_are_found(short_settling):
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="leaked-thread")
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    server.close()
    opened = []

    def leave():
        thread.start()
        opened.append(socket.create_server(("127.0.0.1", port)))

    def clean_up():
        release.set()
        thread.join()
        opened[0].close()

    complaint = _check_leak(leave, clean_up)
    assert "leaked-thread" in complaint and f"port {port}" in complaint
