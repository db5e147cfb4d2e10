"""A launcher that is told to leave, and what the same command makes of it: as many, or others."""

import json
import signal
import time

import launched
import numpy as np
import pytest

pytestmark = pytest.mark.workers
SLOW = {"STEP_SECONDS": "0.05"}  # time for a signal to come within an epoch
PLAIN = {"DROPOUT": "0", **SLOW}  # the same numbers on any number of workers


def stop(run, number, step, fit, code):
    """Send a signal to the launcher behind a checkpoint; return the step that was saved."""
    try:
        run.wait_for_step(step, fit)
        run.signal(number)
    finally:
        found = run.finish()
    assert found == code, run.told
    assert "leaves after this step" in run.told and "tfscale: saved at step" in run.told
    assert "start again" not in run.told and "failed first" not in run.told
    assert not json.loads((run.run_dir / "ended.json").read_text())["well"]
    return max(run.steps(fit))


def finish(run):
    assert run.finish() == 0, run.told
    assert json.loads((run.run_dir / "ended.json").read_text())["well"]
    return run


def check_losses(run, undisturbed):
    for name in ("loss", "accuracy"):
        found, expected = launched.losses(run, name), launched.losses(undisturbed, name)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.fixture
def plain(undisturbed):
    """An undisturbed run on two workers, without what depends on their number."""
    return undisturbed(DROPOUT="0")


@pytest.mark.slow
def test_the_same_command_goes_on_after_any_signal(tmp_path, undisturbed):
    """First SIGTERM, then Ctrl-C, then SIGTERM twice, within a step that takes long."""
    folder = tmp_path / "run"
    stop(launched.launch(folder, **SLOW), signal.SIGTERM, 5, 1, 143)
    stop(launched.launch(folder, **SLOW), signal.SIGINT, 15, 2, 130)
    run = launched.launch(folder, STEP_SECONDS="60")
    try:
        launched.wait_for(lambda: "fit 2 goes on" in run.told)
        launched.wait_for(lambda: run.steps()[-1] % launched.SAVE_EVERY == 0, 2, must=False)
        run.signal(signal.SIGTERM)
        launched.wait_for(lambda: run.told.count("leaves after this step") == 2)
        time.sleep(1.0)  # what comes sooner is the same signal
        told = time.monotonic()
        run.signal(signal.SIGTERM)
        assert run.process.wait(60) == 143
        assert time.monotonic() - told < 5
    finally:
        run.finish()
    assert "saved at step" not in run.told
    run = finish(launched.launch(folder))
    assert "fit 1 had ended" in run.told and "fit 2 goes on" in run.told
    launched.check_equal(run, undisturbed())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_on_two_then_one_then_three_workers_the_losses_are_the_same(tmp_path, plain):
    folder = tmp_path / "run"
    stop(launched.launch(folder, workers=2, **PLAIN), signal.SIGTERM, 5, 1, 143)
    stop(launched.launch(folder, workers=1, **PLAIN), signal.SIGTERM, 15, 2, 143)
    check_losses(finish(launched.launch(folder, workers=3, DROPOUT="0")), plain)


@pytest.mark.faults
class TestElastic:
    @pytest.mark.timeout(400)
    def test_it_goes_on_with_one_and_takes_the_other_in_again(self, tmp_path, plain):
        run = launched.launch(tmp_path / "run", "--min_workers=1", ABSENT="1,2", **PLAIN)
        try:
            run.wait_for_step(15)
            launched.strike(run.worker(0, life=3), signal.SIGTERM)
        finally:
            finish(run)
        assert run.told.count("tfscale: worker 1 failed first: exit code 1") == 2
        assert ", as 1: 1 (counted from 0) failed to start 2 times or more" in run.told
        assert "all workers start again in 2 s, as 2" in run.told
        check_losses(run, plain)

    @pytest.mark.timeout(400)
    def test_from_two_to_three_and_without_one_of_them(self, tmp_path, plain):
        own = ["--min_workers=1", "--max_workers=3"]
        run = launched.launch(tmp_path / "run", *own, ABSENT="1,2", **PLAIN)
        try:
            run.wait_for_step(15)
            launched.strike(run.worker(1, life=3), signal.SIGKILL)
        finally:
            finish(run)
        assert "all workers start again now (restart 1 of 3 within an hour), as 3" in run.told
        assert ", as 2: 1 (counted from 0) failed to start 2 times or more" in run.told
        assert "worker 1 failed first: signal SIGKILL" in run.told
        assert (tmp_path / "run" / "history-2.json").exists()
        check_losses(run, plain)
