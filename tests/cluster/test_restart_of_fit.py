"""`tfscale.fit --workers=2` goes on after kill -9 as if nothing had happened."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
    *("--strategy=multiworker", "--workers=2", "--deterministic"),
    "--config.model.arguments.filters=(4,)",
    "--config.model.arguments.dense_units=(8,)",
    "--config.train.epochs=20",
    "--config.train.steps_per_execution=4",
    "--config.checkpoint.save_every_steps=10",
    "--config.log.every_steps=4",
    "--config.log.tensorboard=false",
)


def start(run_dir):
    return subprocess.Popen(
        [sys.executable, "-m", "tfscale.fit", *FLAGS, f"--run_dir={run_dir}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, run_dir):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return json.loads((run_dir / "summary.json").read_text()), output


def checkpoint_steps(run_dir):
    return [int(path.name[5:]) for path in run_dir.glob("checkpoints/step-*[0-9]")]


def worker_pid(launcher, rank):
    """Return the process of a worker, by its TF_CONFIG."""
    for pid in pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        for variable in pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name == b"TF_CONFIG" and json.loads(value)["task"]["index"] == rank:
                return int(pid)
    raise AssertionError(f"worker {rank} is not there")


def kill_at(process, run_dir, step, rank):
    """Kill a worker once a checkpoint of that step or a later one has been written."""
    deadline = time.monotonic() + 200
    while max(checkpoint_steps(run_dir), default=0) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.kill(worker_pid(process.pid, rank), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.workers
@pytest.mark.timeout(600)
def test_killed_workers_cost_no_step_and_no_bit(tmp_path):
    undisturbed, _ = finish(start(tmp_path / "undisturbed"), tmp_path / "undisturbed")
    run_dir = tmp_path / "run"
    process = start(run_dir)
    kill_at(process, run_dir, 20, rank=0)
    kill_at(process, run_dir, 200, rank=1)
    summary, output = finish(process, run_dir)
    for rank, when in ((0, "now (restart 1"), (1, "in 1 s (restart 2")):
        assert f"tfscale: worker {rank} failed first: signal SIGKILL" in output
        assert f"all workers start again {when} of 3 within an hour)" in output
    assert output.count("Going on from step") == 2
    for part in ("test", "train", "steps", "epochs"):
        assert summary[part] == undisturbed[part]
