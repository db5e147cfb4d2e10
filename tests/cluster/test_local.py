"""Local workers that print, fail, hang and outlive their launcher: real processes throughout."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tfscale.cluster import local, spawn, supervise

_HEAD = """
import json, os, signal, subprocess, sys, time
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
"""
_LAUNCHER = """
import sys
from tfscale.cluster import supervise
sys.exit(supervise.run_local_workers(
    [sys.executable, *sys.argv[3:]], int(sys.argv[1]), grace_seconds=float(sys.argv[2])
))
"""


def _run(code, num_workers=2, **options):
    """Run source text as workers; return the exit code and what was shown."""
    shown = io.StringIO()
    command = [sys.executable, "-c", _HEAD + textwrap.dedent(code)]
    returned = supervise.run_local_workers(command, num_workers, stream=shown, **options)
    return returned, shown.getvalue()


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _wait_until(condition, timeout_seconds=15.0):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.02)


@pytest.fixture
def launch(tmp_path):
    """Start a launcher of its own and wait for its workers' pids."""
    started = []

    def start(code, num_workers=2, grace_seconds=5.0):
        script = tmp_path / "worker.py"
        script.write_text(
            _HEAD
            + textwrap.dedent(code).replace(
                "READY",
                "open(f'pid-{rank}.new', 'w').write(str(os.getpid())); "
                "os.rename(f'pid-{rank}.new', f'pid-{rank}')",
            )
        )
        root = str(Path(local.__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(num_workers), str(grace_seconds), str(script)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        files = [tmp_path / f"pid-{rank}" for rank in range(num_workers)]
        _wait_until(lambda: all(file.exists() for file in files))
        return process, [int(file.read_text()) for file in files]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_every_worker_knows_its_place():
    code = """
    names = ["PYTHONUNBUFFERED", "TFSCALE_LOCAL_WORKERS", "TF_CONFIG", "FLAVOUR"]
    print(json.dumps([os.environ[name] for name in names]))
    """
    returned, shown = _run(code, 3, environ={**os.environ, "FLAVOUR": "plain"})
    assert returned == 0
    lines = sorted(shown.splitlines())
    for rank, line in enumerate(lines):
        assert line.startswith(f"[{rank}] ")
        unbuffered, num_workers, config, flavour = json.loads(line[4:])
        assert (unbuffered, num_workers, flavour) == ("1", "3", "plain")
        config = json.loads(config)
        assert config["task"] == {"type": "worker", "index": rank}
        assert len(set(config["cluster"]["worker"])) == 3
        assert all(a.startswith("127.0.0.1:") for a in config["cluster"]["worker"])
    assert len(lines) == 3


def test_output_is_marked_kept_in_order_and_logged_whole(tmp_path):
    code = r"""
    for i in range(50):
        os.write(1 + i % 2, f"line {i}\n".encode())
    os.write(1, b"\xff\xfe not text\n")
    os.write(1, b"first half, ")
    time.sleep(0.1)
    os.write(1, b"second half\n")
    os.write(1, b"x" * 100_000 + b"\n")
    os.write(1, b"no end")
    """
    logs = tmp_path / "a" / "logs"
    returned, shown = _run(code, 2, log_dir=str(logs))
    assert returned == 0
    for rank in (0, 1):
        mark = f"[{rank}] "
        lines = [x.removeprefix(mark) for x in shown.split("\n") if x.startswith(mark)]
        assert lines[:50] == [f"line {i}" for i in range(50)]
        assert lines[50:52] == ["\ufffd\ufffd not text", "first half, second half"]
        assert lines[-1] == "no end"
        assert "".join(lines[52:-1]) == "x" * 100_000
        raw = (logs / f"worker-{rank}.log").read_bytes()
        expected = "".join(f"line {i}\n" for i in range(50)).encode()
        expected += b"\xff\xfe not text\nfirst half, second half\n" + b"x" * 100_000 + b"\nno end"
        assert raw == expected


def test_first_failure_is_reported_and_ends_the_others(capfd):
    code = """
    if rank == 1:
        print("about to fail")
        sys.exit(7)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))  # a later, other failure
    print("waiting"); time.sleep(60)
    """
    started = time.monotonic()
    returned, _ = _run(code, 3)
    told = capfd.readouterr().err
    assert returned == 7
    assert "worker 1 failed first: exit code 7" in told and "about to fail" in told
    assert "worker 0" not in told and "worker 2" not in told
    assert time.monotonic() - started < 10


def test_a_signal_is_128_plus_its_number(capfd):
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else time.sleep(60)"
    assert _run(code)[0] == 137
    assert "worker 0 failed first: signal SIGKILL" in capfd.readouterr().err


def test_a_worker_that_ignores_sigterm_is_killed_after_the_grace_period():
    code = """
    if rank == 1:
        time.sleep(0.5); sys.exit(3)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
    """
    started = time.monotonic()
    assert _run(code, grace_seconds=0.5)[0] == 3
    assert 1.0 <= time.monotonic() - started < 10


def test_what_a_worker_started_ends_with_it():
    code = """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid)
    """
    started = time.monotonic()
    returned, shown = _run(code, 1)
    assert returned == 0 and time.monotonic() - started < 10
    _wait_until(lambda: not _is_running(int(shown.split()[-1])))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_launcher_reaches_each_worker_once(launch, number, code):
    process, pids = launch(
        """
        got = []
        def note(number, frame):
            got.append(number)
        signal.signal(signal.SIGINT, note); signal.signal(signal.SIGTERM, note)
        READY
        while not got:
            time.sleep(0.02)
        time.sleep(0.3)
        print("got", *map(int, got), flush=True)
        """
    )
    assert [os.getsid(pid) for pid in pids] == pids
    os.killpg(process.pid, number)  # as a terminal does: to the launcher's whole group
    shown, _ = process.communicate(timeout=15)
    assert process.returncode == code
    assert sorted(shown.decode().splitlines()) == [
        f"[0] got {int(number)}",
        f"[1] got {int(number)}",
    ]
    assert not any(map(_is_running, pids))


_STUBBORN = """
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
READY
time.sleep(60)
"""


def test_second_ctrl_c_kills_at_once(launch):
    process, pids = launch(_STUBBORN, grace_seconds=50.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert not any(map(_is_running, pids))


def test_stubborn_workers_are_killed_after_ctrl_c(launch):
    process, pids = launch(_STUBBORN, grace_seconds=0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert not any(map(_is_running, pids))


def test_workers_end_with_a_launcher_that_is_killed(launch):
    process, pids = launch(_STUBBORN)
    assert all(map(_is_running, pids))
    process.kill()
    process.wait()
    _wait_until(lambda: not any(map(_is_running, pids)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_guard_stays_when_all_processes_of_a_job_are_told_to_leave(number):
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]  # until the guard ends it
    guard = subprocess.Popen(
        [sys.executable, spawn.__file__, "0", "0", "guard"], stdin=subprocess.PIPE, bufsize=0
    )
    watched = [subprocess.Popen(sleep, start_new_session=True) for _ in range(2)]
    try:
        guard.stdin.write(b"+%d\n=0\n" % watched[0].pid)  # to be ended now: it has begun
        assert watched[0].wait(timeout=15) == -signal.SIGKILL
        guard.send_signal(number)
        guard.stdin.write(b"+%d\n" % watched[1].pid)
        assert watched[1].wait(timeout=15) == -signal.SIGKILL
        guard.stdin.close()
        assert guard.wait(timeout=15) == 0
    finally:
        for process in (guard, *watched):
            process.kill()
            process.wait()


def test_a_broken_pipe_does_not_end_the_run(launch, tmp_path):
    process, _ = launch(
        """
        READY
        for i in range(200):
            print("line", i)
            time.sleep(0.005)
        open(f"finished-{rank}", "w").close()
        """
    )
    process.stdout.close()
    process.stdout = None
    _, told = process.communicate(timeout=15)
    assert (process.returncode, told) == (0, b"")
    assert (tmp_path / "finished-0").exists() and (tmp_path / "finished-1").exists()


def test_signal_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    _run("pass", 1)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_private_network_has_loopback_and_nothing_else():
    code = r"""
    import socket
    names = [name for _, name in socket.if_nameindex()]
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    print(names, os.getuid())
    """
    try:
        returned, shown = _run(code, 2, private_network=True)
    except ValueError as refused:
        pytest.skip(str(refused))
    assert returned == 0
    expected = f"['lo'] {os.getuid()}"
    assert sorted(shown.splitlines()) == [f"[0] {expected}", f"[1] {expected}"]


def test_a_command_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="Received: .*no-such-program"):
        supervise.run_local_workers(["no-such-program"], 2)


def test_no_worker_is_refused():
    with pytest.raises(ValueError, match="Received: num_workers=0"):
        supervise.run_local_workers([sys.executable], 0)
