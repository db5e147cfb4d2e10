"""Workers that die, freeze, hang and are preempted, and the lives after: real processes, no TF.

Workers wait for each other through files, so that what a test needs to happen first does.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tfscale.cluster import life, stall, supervise

ROOT = Path(supervise.__file__).parents[2]
HEAD = """
import ctypes, json, os, pathlib, signal, subprocess, sys, threading, time
from tfscale.cluster import pulse

config = json.loads(os.environ["TF_CONFIG"])
rank, life = config["task"]["index"], pulse.life()
num_workers = len(config["cluster"]["worker"])

def mark(name):
    file = pathlib.Path(f"{name}-{life}-{rank}")
    file.with_suffix(".new").write_text(str(os.getpid()))
    file.with_suffix(".new").rename(file)

def wait_for(name, rank):
    file = pathlib.Path(f"{name}-{life}-{rank}")
    while not file.exists():
        time.sleep(0.01)
    return int(file.read_text())

def wait_until_gone(pid):
    while True:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.01)

def lose_peer(rank):
    wait_until_gone(wait_for("here", rank))
    raise ConnectionResetError("Connection reset by peer")

def rest():
    threading.Event().wait()

def leave_well():
    print("left well in life", life)
    sys.exit(0)

pulse.begin()
"""
LAUNCHER = """
import json, sys
from tfscale.cluster import supervise
sys.exit(supervise.run_local_workers([sys.executable, "worker.py"], **json.loads(sys.argv[1])))
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def run(tmp_path, capfd):
    """Run source text as workers; returns exit code, what they printed, what was reported."""

    def run_code(code, num_workers=2, **options):
        Path("worker.py").write_text(HEAD + textwrap.dedent(code))
        shown = io.StringIO()
        handles = set(os.listdir("/proc/self/fd"))
        command = [sys.executable, "worker.py"]
        returned = supervise.run_local_workers(
            command, num_workers, stream=shown, log_dir="logs", **options
        )
        assert set(os.listdir("/proc/self/fd")) == handles
        return returned, shown.getvalue(), capfd.readouterr().err

    return run_code


@pytest.fixture
def launch(tmp_path):
    """Start a launcher of its own in a session of its own; its output goes to files."""
    started = []

    def start(code, num_workers=2, **options):
        Path("worker.py").write_text(HEAD + textwrap.dedent(code))
        options = json.dumps({"num_workers": num_workers, **options})
        with open("shown", "wb") as shown, open("told", "wb") as told:
            process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, options],
                stdout=shown,
                stderr=told,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until(condition, timeout_seconds=60.0):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.02)


def pid_of(name):
    wait_until(Path(name).exists)
    return int(Path(name).read_text())


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid):
    """Return the processes that `pid` has started, and theirs."""
    children = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, ahead = [], [pid]
    while ahead:
        own = children.get(ahead.pop(), [])
        found += own
        ahead += own
    return found


class TestRestart:
    def test_all_start_again_after_one_was_killed(self, run):
        code = """
        print("port", *[a.rpartition(":")[2] for a in config["cluster"]["worker"]])
        pulse.beat(57, "train", epoch=2)
        mark("here")
        if life == 2:
            leave_well()
        if rank == 1:
            wait_for("here", 0)
            os.kill(os.getpid(), signal.SIGKILL)
        lose_peer(1)
        """
        code, shown, told = run(code, max_restarts=3)
        assert code == 0
        assert "worker 1 failed first: signal SIGKILL" in told
        assert "at step 57 (train, epoch 3)" in told and "worker 0" not in told
        [failure] = map(json.loads, Path("logs/failures.jsonl").read_text().splitlines())
        assert failure["life"] == 1 and told.startswith(f"tfscale: {failure['text']}; all of it: ")
        assert "all workers start again now (restart 1 of 3 within an hour)" in told
        assert sorted(re.findall(r"\[\d\] left.*", shown)) == [
            "[0] left well in life 2",
            "[1] left well in life 2",
        ]
        first, second = (
            set(re.findall(r"\d{4,}", x))
            for x in (
                shown,
                Path("logs/worker-1.log")
                .read_text()
                .partition("life 2 of worker 1, ")[2]
                .partition("\n")[2],
            )
        )
        assert len(first) == 4 and len(second) == 2  # new ports
        log = Path("logs/worker-0.log").read_text()
        assert log.startswith("port") and "\ntfscale: life 2 of worker 0, " in log
        assert "ConnectionResetError" in log and log.endswith("left well in life 2\n")

    def test_the_cause_is_found_when_its_consequence_was_seen_before_it(self, run):
        code = """
        mark("here")
        if rank == 0:
            lose_peer(2)
        if rank == 1:
            pid = wait_for("here", 0)
            wait_until_gone(pid)
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for("here", 0)
        os._exit(0)
        """
        # Rank 2 leaves well, so that only order and words tell: rank 1 was killed.
        code, _, told = run(code, 3)
        assert code == 137 and "worker 1 failed first: signal SIGKILL" in told

    def test_an_exception_is_reported_with_its_last_line(self, run):
        code = """
        mark("here")
        if rank == 1:
            pulse.beat(5)
            raise ValueError("a bad batch")
        lose_peer(1)
        """
        code, _, told = run(code)
        assert code == 1
        assert "worker 1 failed first: exit code 1, ValueError: a bad batch at step 5" in told
        assert "all of it: logs/worker-1.log" in told and "Connection" not in told

    def test_nobody_waits_for_the_shutdown_of_one_that_has_failed(self, run):
        """As TensorFlow's, which waits for lost peers: here it never ends."""
        code = """
        if life == 2:
            leave_well()
        mark("here")
        if rank == 1:
            wait_for("here", 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Thread(target=rest).start()
        wait_for("here", 1)
        raise TimeoutError("heartbeat of worker 1")
        """
        code, _, told = run(code, max_restarts=1)
        assert code == 0 and "worker 1 hangs: stopped, as by SIGSTOP" in told

    def test_its_own_exception_is_the_cause_though_it_does_not_end(self, run):
        code = """
        if life == 2:
            leave_well()
        threading.Thread(target=rest).start()
        if rank == 0:
            raise ValueError("a bad batch")
        """
        code, _, told = run(code, max_restarts=1)
        assert code == 0
        assert "worker 0 failed first: exit code 1, ValueError: a bad batch" in told

    def test_one_that_leaves_with_0_too_early_is_named(self, run):
        code = """
        mark("here")
        if rank == 1:
            wait_for("here", 0)
            leave_well()
        lose_peer(1)
        """
        code, _, told = run(code)
        assert code == 1 and "worker 1 left too early: exit code 0" in told
        assert "Worker 0 then failed: exit code 1, ConnectionResetError" in told

    def test_workers_may_leave_with_0_at_different_times(self, run):
        code = """
        mark("here")
        if rank == 0:
            wait_until_gone(wait_for("here", 1))
        """
        assert run(code)[::2] == (0, "")

    def test_it_gives_up_after_the_last_restart_with_the_code_of_the_failure(self, run):
        code, shown, told = run("print('life', life); sys.exit(7)", 1, max_restarts=2)
        assert code == 7
        assert re.findall(r"life \d", shown) == ["life 1", "life 2", "life 3"]
        assert told.count("worker 0 failed first: exit code 7") == 3
        assert "start again now (restart 1 of 2" in told and "again in 1 s (restart 2" in told
        assert told.endswith(
            "gave up after 2 restarts within an hour, which is what --max_restarts allows.\n"
        )

    def test_what_cannot_be_run_is_not_started_again(self, run):
        code, shown, told = run("print('life', life); sys.exit(2)", 1, max_restarts=2)
        assert code == 2 and shown == "[0] life 1\n"
        assert told.endswith(
            "nothing starts again: what it was given cannot be run, as exit code 2 says.\n"
        )

    def test_each_life_may_have_a_command_of_its_own(self, run):
        code, shown, _ = run("sys.exit(7 * (life == 1))", 1, max_restarts=1)
        assert code == 0

        def command(life):
            return [sys.executable, "-c", f"print('command', {life}); exit({life} == 1)"]

        shown = io.StringIO()
        assert supervise.run_local_workers(command, 1, stream=shown, max_restarts=1) == 0
        assert shown.getvalue() == "[0] command 1\n[0] command 2\n"


class TestHang:
    def test_a_stopped_worker_is_named_and_the_others_write_their_stacks(self, run):
        code = """
        if life == 2:
            leave_well()
        mark("here")
        wait_for("here", 1 - rank)
        pulse.beat(5)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        rest()
        """
        code, _, told = run(code, max_restarts=1, hang_timeout_seconds=0.5)
        assert code == 0
        assert "worker 1 hangs: stopped, as by SIGSTOP at step 5 (train)" in told
        assert "worker 0 hangs" not in told and "The stacks of worker 0 are in the log" in told
        assert "in rest\n" in Path("logs/worker-0.log").read_text()
        assert "most recent call first" not in Path("logs/worker-1.log").read_text()

    @pytest.mark.parametrize(
        "hang",
        [
            "ctypes.PyDLL(None).pthread_mutex_lock(mutex)",  # holds Python's lock, in C
            "ctypes.CDLL(None).pthread_mutex_lock(mutex)",
            "while True: pass",
        ],
    )
    def test_one_that_hangs_in_c_or_in_a_loop_is_named_with_the_line(self, run, hang):
        code = f"""
        mutex = ctypes.create_string_buffer(64)
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
        def hang():
            {hang}
        mark("here")
        wait_for("here", 1 - rank)
        pulse.beat(5)
        hang() if rank == 1 else rest()
        """
        code, _, told = run(code, hang_timeout_seconds=0.5)
        assert code == 124
        assert "worker 0 hangs" not in told
        assert re.search(r"worker 1 hangs: in hang, line \d+ of .*worker\.py at step 5", told), told
        assert "The stacks of worker 0, worker 1 are in the log" in told
        for rank, function in enumerate(("rest", "hang")):
            log = Path(f"logs/worker-{rank}.log").read_text()
            assert "(most recent call first):" in log and f"in {function}\n" in log

    def test_one_that_is_a_step_behind_is_named(self, run):
        code = """
        mark("here")
        wait_for("here", 1 - rank)
        pulse.beat(6 - rank)
        rest()
        """
        code, _, told = run(code, hang_timeout_seconds=0.5)
        assert code == 124
        assert "worker 1 hangs: behind the others, which are at step 6 at step 5 (train)" in told

    def test_nobody_is_accused_where_nothing_tells(self, run):
        code = """
        mark("here")
        wait_for("here", 1 - rank)
        pulse.beat(6)
        rest()
        """
        code, _, told = run(code, hang_timeout_seconds=0.5)
        assert code == 124 and "the workers hang, and none of them more than another" in told

    def test_a_frozen_worker_is_named_when_another_loses_it(self, run):
        """As TensorFlow's heartbeat finds it, without --hang_timeout_seconds."""
        code = """
        if life == 2:
            leave_well()
        mark("here")
        if rank == 1:
            wait_for("here", 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        pid = wait_for("here", 1)
        while pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.01)
        raise TimeoutError("heartbeat of worker 1")
        """
        code, _, told = run(code, max_restarts=1)
        assert code == 0 and "worker 1 hangs: stopped, as by SIGSTOP" in told
        assert "failed first" not in told

    def test_without_a_timeout_it_says_once_that_nothing_goes_on(self, run, monkeypatch):
        monkeypatch.setattr(life, "_NOTICE_SECONDS", 0.3)
        code = """
        pulse.beat(5)
        time.sleep(2)
        """
        code, _, told = run(code, 1)
        assert code == 0 and told.count("no worker has made a step for") == 1
        assert re.search(r"worker 0 at step 5 \(train\), \d+ s ago; log logs/worker-0\.log", told)
        assert "--hang_timeout_seconds=N would end them" in told

    def test_one_that_hangs_at_the_first_batch_of_a_fit_is_found(self, run):
        code = """
        mark("here")
        wait_for("here", 1 - rank)
        pulse.beat(0, "begin")
        while rank == 1: pass
        rest()
        """
        code, _, told = run(code, hang_timeout_seconds=0.5)
        assert code == 124
        assert re.search(r"worker 1 hangs: in <module>, line \d+ of .* at step 0 \(begin\)", told)

    @pytest.mark.parametrize("phase", ["start", "idle"])
    def test_nothing_is_expected_before_training_and_after_it(self, run, phase):
        code = f"""
        pulse.beat(5, {phase!r})
        time.sleep(2)
        """
        assert run(code, hang_timeout_seconds=0.2)[::2] == (0, "")

    def test_one_that_beats_does_not_hang(self, run):
        code = """
        for step in range(40):
            pulse.beat(step)
            time.sleep(0.05)
        """
        assert run(code, hang_timeout_seconds=1.5)[::2] == (0, "")


class TestLeftTooEarly:
    """A script that ends while another needs it: both wait, neither fails."""

    CODE = """
    if life == 2:
        leave_well()
    pulse.beat(8, "idle")
    mark("here")
    wait_for("here", 1 - rank)
    if rank == 1:
        pulse.beat_done()
        rest()
    for _ in range(WORK):
        pulse.beat(8, "train")
        time.sleep(0.05)
    pulse.beat(8, "PHASE", alone=ALONE)
    SECONDS or rest()
    time.sleep(SECONDS)
    os.kill(wait_for("here", 1), signal.SIGTERM)
    os._exit(0)
    """

    def code(self, phase, work=0, alone=False, seconds=0):
        text = self.CODE.replace("PHASE", phase).replace("WORK", str(work))
        return text.replace("ALONE", str(alone)).replace("SECONDS", str(seconds))

    @pytest.mark.parametrize("phase", ["begin", "train", "evaluate"])
    def test_it_is_named_and_all_start_again(self, run, monkeypatch, phase):
        monkeypatch.setattr(stall, "_LEFT_SECONDS", 0.6)
        code, _, told = run(self.code(phase, work=20), max_restarts=1)
        assert code == 0
        assert "worker 1 left too early: its script has ended at step 8 (done). Others" in told
        assert "worker 0 left" not in told and "hangs" not in told
        assert f"worker 0 at step 8 ({phase}), " in told

    def test_a_shorter_hang_timeout_counts_for_it(self, run):
        code, _, told = run(self.code("begin"), hang_timeout_seconds=0.5)
        assert code == 124 and "worker 1 left too early" in told

    @pytest.mark.parametrize(("phase", "alone"), [("idle", False), ("begin", True)])
    def test_the_last_one_may_work_on_alone(self, run, monkeypatch, phase, alone):
        """As a chief that plots, or scores a model that it has for itself."""
        monkeypatch.setattr(stall, "_LEFT_SECONDS", 0.3)
        code, _, told = run(self.code(phase, alone=alone, seconds=1.5))
        assert "left too early" not in told and "hangs" not in told


class TestStart:
    MISSES = """
    if life == LAST:
        leave_well()
    print("life", life, "of", num_workers)
    mark("here")
    if os.environ["TFSCALE_LOCAL_PLACE"] == "1":
        rest()
    pulse.beat(-1, "meet")
    wait_for("here", 1)
    print("tfscale: all workers must meet within 1 seconds")
    print("Start the missing workers with the same addresses, or")
    sys.exit(1)
    """

    def test_the_one_that_did_not_come_is_named_and_not_those_who_say_so(self, run):
        code, _, told = run(self.MISSES.replace("LAST", "2"), 3, max_restarts=1)
        assert code == 0
        assert "worker 1 hangs: it has not come as far as meeting the others" in told
        assert "failed first" not in told and "worker 0 hangs" not in told
        assert "The stacks of worker 1 are in the log" in told

    def test_its_place_is_left_out(self, run):
        code, shown, told = run(self.MISSES.replace("LAST", "3"), 3, min_workers=2, max_restarts=3)
        assert code == 0 and "as 2: 1 (counted from 0) failed to start 2 times" in told
        assert shown.count("left well in life 3") == 2

    def test_one_that_never_comes_is_found_though_nobody_waits_for_it(self, run, monkeypatch):
        monkeypatch.setattr(stall, "_IMPORT_SECONDS", 0.3)
        code, _, told = run("rest()", 1, start_timeout_seconds=2)
        assert code == 124
        assert "worker 0 hangs: it has not come as far as meeting the others" in told
        assert (
            "--start_timeout_seconds" in told and "in rest" in Path("logs/worker-0.log").read_text()
        )

    def test_one_that_has_met_the_others_may_take_its_time(self, run, monkeypatch):
        monkeypatch.setattr(stall, "_IMPORT_SECONDS", 0.1)
        code = """
        pulse.beat(-1, "start")
        time.sleep(3)
        """
        assert run(code, 1, start_timeout_seconds=2)[::2] == (0, "")

    def test_one_that_is_stopped_before_all_have_met_is_found_at_once(self, run, monkeypatch):
        monkeypatch.setattr(stall, "_STOPPED_AT_START_SECONDS", 0.5)
        code = """
        if life == 2:
            leave_well()
        pulse.beat(-1, "meet")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        rest()
        """
        code, _, told = run(code, max_restarts=1)
        assert code == 0 and "worker 1 hangs: stopped, as by SIGSTOP in phase meet" in told


SAVES = """
got = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: got.append(number))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
pulse.promise_to_save()
mark("here")
while not got:
    time.sleep(0.01)
mark("asked")
wait_for("asked", 0)
time.sleep(0.2)
print("got", *map(int, got), "child", child.poll())
sys.exit(143)
"""
STUBBORN = """
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
pulse.promise_to_save(SAVES)
mark("here")
rest()
"""


class TestSignals:
    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)],
    )
    def test_workers_save_and_leave_and_nothing_starts_again(self, launch, number, code):
        process = launch(SAVES, max_restarts=3)
        pids = [pid_of(f"here-1-{rank}") for rank in (0, 1)]
        os.killpg(process.pid, number)
        assert process.wait(60) == code
        shown = sorted(Path("shown").read_text().splitlines())
        assert shown == [f"[{rank}] got {int(signal.SIGTERM)} child None" for rank in (0, 1)]
        assert not any(map(is_running, pids)) and not Path("here-2-0").exists()
        assert Path("told").read_text() == ""

    @pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
    def test_a_second_signal_ends_all_at_once(self, launch, second):
        process = launch(STUBBORN.replace("SAVES", "True"), grace_seconds=5000)
        pids = [pid_of(f"here-1-{rank}") for rank in (0, 1)]
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: signal_was_taken(process))
        time.sleep(supervise._SAME_SECONDS)
        assert process.poll() is None
        process.send_signal(second)
        assert process.wait(60) == 143
        assert not any(map(is_running, pids)) and Path("told").read_text() == ""

    def test_the_same_signal_within_a_second_is_one_signal(self, launch):
        """As when a cluster signals all processes of a job and the launcher hands it on."""
        process = launch(SAVES, grace_seconds=5000)
        [pid_of(f"here-1-{rank}") for rank in (0, 1)]
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            process.send_signal(number)
            wait_until(lambda: signal_was_taken(process))
        assert process.wait(60) == 143
        assert Path("shown").read_text().count("child None") == 2

    @pytest.mark.parametrize(("saves", "grace"), [(True, 0.3), (False, 5000)])
    def test_the_time_to_leave_is_bounded(self, launch, saves, grace):
        """By --grace_seconds for one that promised to save, by a few seconds for others."""
        process = launch(STUBBORN.replace("SAVES", str(saves)), grace_seconds=grace)
        pids = [pid_of(f"here-1-{rank}") for rank in (0, 1)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == (137 if saves else 143)
        assert not any(map(is_running, pids))
        told = Path("told").read_text()
        cut_off = "did not leave as it should: signal SIGKILL after --grace_seconds"
        assert (cut_off in told) == saves and (told == "") != saves

    def test_one_that_fails_to_save_is_named(self, launch):
        process = launch(SAVES.replace("sys.exit(143)", "raise OSError('No space left')"))
        [pid_of(f"here-1-{rank}") for rank in (0, 1)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        told = Path("told").read_text()
        assert "did not leave as it should: exit code 1, OSError: No space left" in told

    def test_all_follow_one_that_was_asked_to_leave_and_start_again(self, run):
        """Worker 1 alone gets SIGTERM; worker 0 learns of it as it would from a reduced flag."""
        code = """
        if life == 3:
            leave_well()
        pulse.promise_to_save()
        pulse.beat(life)
        mark("here")
        if rank == 1:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: print("asked again"))
        wait_until_gone(wait_for("here", 1))
        time.sleep(0.5)
        sys.exit(143)
        """
        code, shown, told = run(code, max_restarts=1)
        assert code == 0 and "left well in life 3" in shown and "asked again" not in shown
        assert told.count("worker 1 was asked to leave and did") == 2
        assert "restart 1 of" not in told  # it was no failure

    def test_others_that_know_nothing_of_it_are_ended(self, run):
        code = """
        if life == 2:
            leave_well()
        mark("here")
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        rest()
        """
        code, shown, told = run(code, max_restarts=1)
        assert code == 0 and "worker 1 was asked to leave and did" in told

    def test_a_script_that_always_ends_so_by_itself_uses_up_the_restarts(self, run):
        code, shown, told = run("pulse.beat(life, 'begin'); sys.exit(143)", 1, max_restarts=2)
        assert code == 143 and "all workers start again in 1 s (restart 2 of 2" in told
        assert "gave up after 2 restarts" in told

    def test_without_restarts_it_leaves_as_its_worker_did(self, run):
        code, shown, _ = run("print('life', life); sys.exit(143)", 1)
        assert code == 143 and shown == "[0] life 1\n"

    def test_a_signal_between_two_lives_ends_the_run(self, launch):
        process = launch("sys.exit(3)", 1, max_restarts=9, log_dir="logs")
        wait_until(lambda: "again in 4 s" in Path("told").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        lives = re.findall(r"life \d", Path("logs/worker-0.log").read_text())
        assert lives == ["life 2", "life 3", "life 4"]


def signal_was_taken(process):
    """Whether no signal is on its way to the main thread of a process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return all(int(mask, 16) == 0 for mask in re.findall(r"(?:Shd|Sig)Pnd:\s*(\w+)", status))


class TestNothingIsLeft:
    @pytest.mark.parametrize("private_network", [False, None])
    def test_when_the_launcher_is_killed_in_a_second_life(self, launch, private_network):
        code = """
        if life == 1:
            sys.exit(3)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        mark("here")
        rest()
        """
        process = launch(code, max_restarts=1, private_network=private_network)
        pids = [pid_of(f"here-2-{rank}") for rank in (0, 1)]
        everything = descendants(process.pid)
        assert set(pids) <= set(everything) and len(everything) >= 5  # children, and the guard
        process.kill()
        process.wait()
        wait_until(lambda: not any(map(is_running, everything)))

    def test_when_it_ends_by_itself(self, launch):
        code = """
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        mark("here")
        wait_for("go", 0)
        sys.exit(life == 1)
        """
        process = launch(code, max_restarts=1, private_network=None)
        [pid_of(f"here-1-{rank}") for rank in (0, 1)]
        first = descendants(process.pid)
        Path("go-1-0").write_text("0")
        [pid_of(f"here-2-{rank}") for rank in (0, 1)]
        second = descendants(process.pid)
        Path("go-2-0").write_text("0")
        assert process.wait(60) == 0
        assert not [pid for pid in {*first, *second} if is_running(pid)]


class TestElastic:
    def test_it_goes_on_without_a_place_that_cannot_start(self, run):
        code = """
        print("life", life, "of", num_workers)
        if os.environ["TFSCALE_LOCAL_PLACE"] == "1":
            sys.exit(5)
        mark("here")
        if num_workers == 3:
            rest()
        wait_for("here", 1 - rank)
        assert os.environ["TFSCALE_LOCAL_WORKERS"] == "2"
        """
        code, shown, told = run(code, 3, min_workers=2, max_restarts=3)
        assert code == 0
        assert "(restart 2 of 3 within an hour), as 2: 1 (counted from 0) failed to start" in told
        assert sorted(set(re.findall(r"life \d of \d", shown))) == [
            "life 1 of 3",
            "life 2 of 3",
            "life 3 of 2",
        ]
