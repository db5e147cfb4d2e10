"""Twenty faults at random moments in one run; and the other door, `tfscale.fit`.

TFSCALE_FAULTS_SEED=N repeats one series of them.
"""

import json
import os
import random
import re
import secrets
import signal
import sys
import time

import launched
import pytest

pytestmark = [pytest.mark.workers, pytest.mark.faults]
NUM_FAULTS = 20
EPOCHS = "150"
LONGEST_SECONDS = 30.0  # between two faults: some come while the workers start
QUICK = ("--hang_timeout_seconds=6", "--start_timeout_seconds=30")
FIT = (
    *("--strategy=multiworker", "--workers=2", "--deterministic"),
    "--config.model.arguments.filters=(4,)",
    "--config.model.arguments.dense_units=(8,)",
    "--config.train.epochs=20",
    "--config.train.steps_per_execution=4",
    "--config.checkpoint.save_every_steps=10",
    "--config.log.every_steps=4",
    "--config.log.tensorboard=false",
)


def living_workers(run):
    """Return the processes of the workers of the life under way, by rank."""
    found = {}
    for pid in launched.children_of(run.process.pid):
        own = launched.environ_of(pid).get("TF_CONFIG")
        if own and "run_script.py" in launched.command_of(pid):
            found[json.loads(own)["task"]["index"]] = pid
    return found


@pytest.mark.timeout(5400)
def test_twenty_random_faults_in_one_run_cost_no_bit(tmp_path, undisturbed, capsys):
    seed = int(os.environ.get("TFSCALE_FAULTS_SEED") or secrets.randbelow(10**6))
    chance = random.Random(seed)

    def say(text):
        with capsys.disabled():
            print(f"\n  {text}", end="", flush=True)

    say(f"seed {seed}")
    expected = undisturbed(EPOCHS=EPOCHS)
    run = launched.launch(
        tmp_path / "run", "--max_restarts=99", *QUICK, EPOCHS=EPOCHS, STEP_SECONDS="0.1"
    )
    struck = 0
    try:
        for number in range(NUM_FAULTS):
            time.sleep(chance.uniform(0, LONGEST_SECONDS))
            workers = launched.wait_for(
                lambda: living_workers(run) or run.process.poll() is not None
            )
            if run.process.poll() is not None:
                break
            rank = chance.choice(sorted(workers))
            fault = chance.choice(["kill", "stop", "term"])
            struck += launched.strike(workers[rank], launched.signal_of(fault))
            place = f"fit 2 at step {max(run.steps(), default=0)} or behind"
            say(f"{number + 1}: {fault} {rank}, {place}")
            # The next one meets another life.
            launched.wait_for(lambda pid=workers[rank]: pid not in living_workers(run).values())
    finally:
        code = run.finish(1800)
    say(f"{struck} faults")
    assert code == 0, run.told
    assert struck == NUM_FAULTS, f"it ended after {struck} faults: more EPOCHS are needed"
    launched.check_equal(run, expected)


def start_fit(folder, *flags):
    run_dir = folder / "run"
    command = [sys.executable, "-m", "tfscale.fit", *FIT, f"--run_dir={run_dir}", *flags]
    return launched.start(command, folder, run_dir)


def strike_fit(run, step, rank, life, number):
    """Send a signal to a worker of `fit` once a checkpoint of this step or a later one is there."""
    folder = run.run_dir / "checkpoints"

    def is_there():
        assert run.process.poll() is None, run.told
        return max((int(p.name[5:]) for p in folder.glob("step-*[0-9]")), default=0) >= step

    launched.wait_for(is_there)
    assert launched.strike(run.worker(rank, life), number)


@pytest.mark.timeout(900)
def test_fit_that_is_frozen_and_told_to_leave_costs_no_step_and_no_bit(tmp_path):
    undisturbed = start_fit(tmp_path / "undisturbed")
    assert undisturbed.finish() == 0, undisturbed.told
    run = start_fit(tmp_path / "run", "--hang_timeout_seconds=6")
    try:
        strike_fit(run, 20, 0, 1, signal.SIGSTOP)
        strike_fit(run, 100, 1, 2, signal.SIGTERM)
        strike_fit(run, 200, 0, 3, signal.SIGTERM)
    finally:
        assert run.finish() == 0, run.told
    assert "tfscale: worker 0 hangs: stopped, as by SIGSTOP" in run.told
    assert re.findall(r"worker (\d) was asked to leave and did", run.told) == ["1", "0"]
    found, expected = (
        json.loads((r.run_dir / "summary.json").read_text()) for r in (run, undisturbed)
    )
    for part in ("test", "train", "steps", "epochs"):
        assert found[part] == expected[part]
