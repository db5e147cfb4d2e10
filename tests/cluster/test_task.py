"""One launcher a task of a cluster, on loopback: each starts its own worker again. No TensorFlow.

Workers meet through a socket at the chief's address, as TensorFlow's do, and lose each other by
its end.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tfscale import fit
from tfscale.cluster import environment, ports, supervise

ROOT = Path(supervise.__file__).parents[2]
# A chief that listens at its address, and workers that connect to it; each step needs all.
WORKER = """
import json, os, pathlib, socket, sys, time
from tfscale.cluster import pulse

config = json.loads(os.environ["TF_CONFIG"])
addresses, rank, life = config["cluster"]["worker"], config["task"]["index"], pulse.life()
host, port = addresses[0].split(":")

def meet():
    if rank:
        until = time.monotonic() + 60
        while True:
            try:
                return [socket.create_connection((host, int(port)), 60)]
            except ConnectionRefusedError:
                assert time.monotonic() < until, "the chief did not come"
                time.sleep(0.05)
    with socket.create_server((host, int(port)), reuse_port=False) as server:
        server.settimeout(60)
        return [server.accept()[0] for _ in addresses[1:]]

def step():
    for peer in peers:
        peer.sendall(b"x")
    for peer in peers:
        if not peer.recv(1):
            raise ConnectionResetError("Connection reset by peer")

pulse.begin()
peers = meet()
pathlib.Path(f"met-{life}-{rank}.new").write_text(str(os.getpid()))
os.rename(f"met-{life}-{rank}.new", f"met-{life}-{rank}")
for number in range(10**9):
    step()
    pulse.beat(number + 1)
    time.sleep(0.01)
    if pathlib.Path("enough").exists() and number % 20 == 19 and life > 1:
        break
"""
AS_TASK = """
import json, sys
from tfscale.cluster import environment, supervise
sys.exit(supervise.run_task(
    [sys.executable, "worker.py"], environment.resolve(), log_dir="logs", **json.loads(sys.argv[1])
))
"""


@pytest.fixture
def tasks(tmp_path):
    """Start a launcher a task, each in a session of its own; returns processes."""
    started = []

    def start(code=WORKER, num_tasks=2, **options):
        (tmp_path / "worker.py").write_text(textwrap.dedent(code))
        addresses = [f"127.0.0.1:{port}" for port in ports.free_ports(num_tasks)]
        for rank in range(num_tasks):
            task = {"type": "worker", "index": rank}
            text = json.dumps({"cluster": {"worker": addresses}, "task": task})
            with open(tmp_path / f"told-{rank}", "wb") as told:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-c", AS_TASK, json.dumps(options)],
                        cwd=tmp_path,
                        env={**os.environ, "TF_CONFIG": text, "PYTHONPATH": str(ROOT)},
                        stdout=told,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def pid_of(path, timeout_seconds=60.0):
    deadline = time.monotonic() + timeout_seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)
    return int(path.read_text())


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(processes, folder):
    codes = [process.wait(timeout=60) for process in processes]
    return codes, [(folder / f"told-{rank}").read_text() for rank in range(len(processes))]


@pytest.mark.parametrize("victim", [0, 1])
def test_all_meet_again_after_one_was_killed(tasks, tmp_path, victim):
    processes = tasks(max_restarts=2)
    pids = [pid_of(tmp_path / f"met-1-{rank}") for rank in (0, 1)]
    os.kill(pids[victim], signal.SIGKILL)
    for rank in (0, 1):
        pid_of(tmp_path / f"met-2-{rank}")
    (tmp_path / "enough").touch()
    codes, told = ends(processes, tmp_path)
    assert codes == [0, 0]
    other = 1 - victim
    assert f"tfscale: worker {victim} failed: signal SIGKILL" in told[victim]
    lost = f"tfscale: worker {other} lost a peer, or did not meet it; the cause is in another"
    assert lost in told[other] and "ConnectionResetError" in told[other]
    for rank in (0, 1):
        assert f"tfscale: worker {rank} starts again now (restart 1 of 2" in told[rank]
        assert f"worker {1 - rank}" not in told[rank]
        assert f"life 2 of worker {rank}" in (tmp_path / "logs" / f"worker-{rank}.log").read_text()


def test_a_stopped_worker_is_ended_though_nobody_else_can_tell(tasks, tmp_path):
    # A bound on the silence of a peer, as TensorFlow has one.
    code = WORKER.replace("if not peer.recv(1)", "peer.settimeout(2)\n        if not peer.recv(1)")
    processes = tasks(code, max_restarts=5)
    os.kill(pid_of(tmp_path / "met-1-1"), signal.SIGSTOP)
    pid_of(tmp_path / "met-2-1")
    (tmp_path / "enough").touch()
    codes, told = ends(processes, tmp_path)
    assert codes == [0, 0]
    # It may have been stopped before it told its step.
    assert "tfscale: worker 1 hangs: stopped, as by SIGSTOP" in told[1]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--max_restarts=2"], "must have --run_dir"),
        (["--hang_timeout_seconds=9"], "must have --run_dir"),
        (["--max_restarts=2", "--run_dir=r", "--resume=r/checkpoints/step-1"], "--resume=r/che"),
    ],
)
def test_a_fit_that_could_not_go_on_is_refused(argv, reason, monkeypatch, capsys):
    task = {"type": "worker", "index": 0}
    text = json.dumps({"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": task})
    monkeypatch.setenv("TF_CONFIG", text)
    assert fit.main(argv) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_handed_on_and_nothing_starts_again(tasks, tmp_path, number, code):
    processes = tasks(max_restarts=2)
    pids = [pid_of(tmp_path / f"met-1-{rank}") for rank in (0, 1)]
    for process in processes:
        process.send_signal(number)
    codes, told = ends(processes, tmp_path)
    assert codes == [code, code]
    assert not any("again" in text for text in told)
    assert not any(map(is_running, pids))


def test_it_gives_up_with_the_code_of_its_own_worker(tasks, tmp_path):
    processes = tasks("import sys\nsys.exit(7)", max_restarts=1)
    codes, told = ends(processes, tmp_path)
    assert codes == [7, 7]
    # Each by itself, or the second because the first has.
    assert any("gave up after 1 restart" in text for text in told)
    words = ("gave up after 1 restart", "another one has given up")
    assert all(any(said in text for said in words) for text in told)


@pytest.mark.parametrize(("is_over", "code"), [(True, 0), (False, 7)])
def test_one_that_comes_after_the_end_ends_well(is_over, code, capfd):
    """Its worker fails before it meets the others, who have gone."""
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    cluster = environment.resolve({"TF_CONFIG": json.dumps(config)})
    command = [sys.executable, "-c", "import sys; sys.exit(7)"]
    assert supervise.run_task(command, cluster, max_restarts=1, is_over=lambda: is_over) == code
    assert ("this task ends with them" in capfd.readouterr().err) == is_over


def test_a_launcher_that_was_killed_is_told_of_by_its_successor(tasks, tmp_path):
    """As where all of a container is killed; one that ended in order leaves nothing to tell."""
    processes = tasks(max_restarts=3)
    pid_of(tmp_path / "met-1-0")
    processes[1].kill()
    processes[1].wait()
    marks = [tmp_path / "logs" / f"worker-{rank}.running" for rank in (0, 1)]
    assert marks[1].exists()
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    cluster = environment.resolve({"TF_CONFIG": json.dumps(config)})
    for _ in range(2):
        supervise.run_task([sys.executable, "-c", ""], cluster, log_dir=str(tmp_path / "logs"))
    lines = (tmp_path / "logs" / "failures.jsonl").read_text().splitlines()
    told = [json.loads(line)["text"] for line in lines]
    assert [t for t in told if "killed with its launcher" in t] == [
        f"worker 1 failed first: killed with its launcher, on {socket.gethostname()}"
    ]
    processes[0].terminate()
    processes[0].wait(timeout=60)
    assert not any(mark.exists() for mark in marks)


def test_the_port_of_the_last_life_is_waited_for(tasks, tmp_path):
    """What a dying worker has left listens for a moment; the next life begins after it."""
    code = """
    import json, os, signal, socket, subprocess, sys
    from tfscale.cluster import ports
    config = json.loads(os.environ["TF_CONFIG"])
    address = config["cluster"]["worker"][0]
    if os.environ["TFSCALE_LIFE"] == "1":
        keep = "import socket, sys, time\\nport = int(sys.argv[1])\\n"
        keep += "server = socket.create_server(('127.0.0.1', port))\\nprint('up', flush=True)\\n"
        keep += "time.sleep(2)"
        port = address.split(":")[1]
        child = subprocess.Popen(
            [sys.executable, "-c", keep, port], stdout=subprocess.PIPE, start_new_session=True
        )
        child.stdout.readline()
        os.kill(os.getpid(), signal.SIGKILL)
    ports.check_port_free(address)
    """
    codes, told = ends(tasks(code, num_tasks=1, max_restarts=1), tmp_path)
    assert codes == [0], told
