"""What a worker says of itself, as its launcher reads it from memory that both see."""

import os
import subprocess
import sys
import time

import pytest

from tfscale.cluster import pulse

LEAVE = """import contextlib
def leave(error):
    with contextlib.suppress(error), pulse.letting_go():
        raise error
"""


@pytest.fixture
def heart():
    made = pulse.Pulse()
    yield made
    made.close()


def run_worker(heart, code):
    """Run source text in a process that inherits the pulse."""
    root = os.path.abspath(os.path.join(os.path.dirname(pulse.__file__), "..", ".."))
    environ = {**os.environ, "PYTHONPATH": root, pulse.VARIABLE: heart.variable}
    return subprocess.run(
        [sys.executable, "-c", "from tfscale.cluster import pulse\n" + code],
        env=environ,
        pass_fds=(heart.handle,),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_nothing_was_said_before_the_first_beat(heart):
    beat = heart.read()
    assert (beat.number, beat.pid, beat.step) == (0, 0, -1)
    assert not (beat.answers or beat.saves or beat.is_watched)
    assert beat.place() == ""


def test_the_last_beat_is_what_the_launcher_reads(heart):
    before = time.monotonic()
    run_worker(heart, "pulse.begin(); pulse.beat(3); pulse.beat(7, 'evaluate', epoch=1)")
    beat = heart.read()
    assert (beat.number, beat.step, beat.epoch, beat.phase) == (2, 7, 1, "evaluate")
    assert beat.is_watched and beat.place() == " at step 7 (evaluate, epoch 2)"
    assert before <= beat.seconds <= time.monotonic()
    assert beat.pid not in (0, os.getpid())


def test_a_promise_to_save_can_be_taken_back(heart):
    run_worker(heart, "pulse.begin(); pulse.promise_to_save()")
    assert heart.read().saves and heart.read().answers
    run_worker(heart, "pulse.begin(); pulse.promise_to_save(); pulse.promise_to_save(False)")
    assert not heart.read().saves


@pytest.mark.parametrize("phase", pulse.RESTING)
def test_nothing_is_expected_of_a_worker_that_starts_or_rests(heart, phase):
    run_worker(heart, f"pulse.begin(); pulse.beat(7, {phase!r})")
    assert heart.read().number == 1 and not heart.read().is_watched


def test_others_are_missed_from_the_beginning_of_shared_work_to_its_end(heart):
    for code, alone in (
        ("pulse.beat(0, 'begin', alone=True); pulse.beat(1)", True),
        ("pulse.beat(1); leave(SystemExit)", True),
        ("leave(SystemExit); pulse.beat(1, 'idle'); pulse.beat(1)", False),
        ("leave(SystemExit); pulse.beat(1, 'begin'); pulse.beat(2)", False),
    ):
        run_worker(heart, f"{LEAVE}pulse.begin(); {code}")
        assert heart.read().alone == alone and heart.read().is_watched, code


def test_nothing_is_expected_from_an_exception_that_was_caught_to_the_next_beat(heart):
    for code, is_watched in (
        ("pulse.beat(3); leave(ValueError)", False),
        ("pulse.beat(3); leave(ValueError); pulse.promise_to_save()", False),
        ("pulse.beat(3); leave(ValueError); pulse.beat(3, 'begin')", True),
        ("pulse.beat(3); leave(KeyboardInterrupt)", True),
    ):
        run_worker(heart, f"{LEAVE}pulse.begin(); {code}")
        assert heart.read().is_watched == is_watched, code
        assert heart.read().place().startswith(" at step 3") and heart.read().has_begun


def test_the_end_is_expected_of_one_whose_exception_nothing_caught(heart):
    code = """
pulse.begin(); pulse.beat(3)
try:
    with pulse.letting_go():
        raise ValueError("a fault of the test")
except ValueError as error:
    sys.excepthook(type(error), error, error.__traceback__)
"""
    run_worker(heart, f"import sys\n{code}")
    assert heart.read().failed and heart.read().is_watched and heart.read().alone


@pytest.mark.parametrize(
    ("phases", "trained"),
    [(("begin", "idle"), False), (("begin", "evaluate", "save"), False), (("train", "idle"), True)],
)
def test_only_a_step_is_training(heart, phases, trained):
    run_worker(heart, f"pulse.begin(); [pulse.beat(5, phase) for phase in {phases}]")
    assert heart.read().trained == trained


def test_a_process_that_nobody_launched_says_nothing(heart):
    code = "pulse.begin(); pulse.beat(3); pulse.promise_to_save()"
    for place in ("", "nonsense", f"{heart.variable}0", "0:0:0"):
        run_worker(heart, f"import os; os.environ[pulse.VARIABLE] = {place!r}\n{code}")
        assert heart.read().pid == 0


def test_a_fork_of_a_worker_is_not_the_worker(heart):
    code = """
import os
pulse.begin(); pulse.beat(3)
child = os.fork()
if not child:
    pulse.beat(99)
    os._exit(0)
os.waitpid(child, 0)
"""
    run_worker(heart, code)
    assert heart.read().step == 3


def test_a_handler_of_the_scripts_own_stays(heart):
    code = """
import os, signal
got = []
signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
pulse.begin()
os.kill(os.getpid(), signal.SIGUSR2)
assert got == [1]
"""
    run_worker(heart, code)
    assert heart.read().pid and not heart.read().answers


def test_the_stacks_of_all_threads_are_written_when_asked_for():
    heart = pulse.Pulse()
    code = """
import os, threading
pulse.begin()
def sleeper():
    threading.Event().wait()
threading.Thread(target=sleeper, daemon=True).start()
os.kill(os.getpid(), pulse.STACKS_SIGNAL)
"""
    told = run_worker(heart, code).stderr
    heart.close()
    assert told.count("(most recent call first):") == 2 and "in sleeper" in told
