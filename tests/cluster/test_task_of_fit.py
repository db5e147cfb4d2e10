"""Two tasks of a cluster run `tfscale.fit --max_restarts`: each brings its own worker back."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tfscale.cluster import ports

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
    *("--max_restarts=3", "--deterministic", "--start_timeout_seconds=60"),
    "--config.model.arguments.filters=(4,)",
    "--config.model.arguments.dense_units=(8,)",
    "--config.train.epochs=12",
    "--config.train.steps_per_execution=4",
    "--config.checkpoint.save_every_steps=10",
    "--config.log.every_steps=4",
    "--config.log.tensorboard=false",
)


def start(folder):
    """Start both tasks; each writes into a file of its own."""
    addresses = [f"127.0.0.1:{port}" for port in ports.free_ports(2)]
    tasks = []
    for rank in (0, 1):
        task = {"type": "worker", "index": rank}
        own = {
            "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task}),
            **{"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "TFSCALE_LOCAL_WORKERS": "2"},
        }
        with open(folder / f"told-{rank}", "wb") as told:
            command = [sys.executable, "-m", "tfscale.fit", *FLAGS, f"--run_dir={folder / 'run'}"]
            tasks.append(
                subprocess.Popen(
                    command, env={**os.environ, **own}, stdout=told, stderr=subprocess.STDOUT
                )
            )
    return tasks


def worker_of(launcher):
    """Return the process of the worker that a launcher has started; 0 while there is none."""
    for pid in pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"--max_restarts=0" in command and b"spawn.py" not in command:
            return int(pid)
    return 0


def wait_for_checkpoint(folder, after_step, tasks):
    """Wait for a checkpoint of a later step; return its step."""
    deadline = time.monotonic() + 120
    while True:
        steps = [int(path.name[5:]) for path in folder.glob("run/checkpoints/step-*[0-9]")]
        if max(steps, default=0) > after_step:
            return max(steps)
        running = all(task.poll() is None for task in tasks) and time.monotonic() < deadline
        assert running, [(folder / f"told-{rank}").read_text() for rank in (0, 1)]
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.workers
@pytest.mark.timeout(400)
def test_tasks_meet_again_after_the_worker_of_either_was_killed(tmp_path):
    tasks = start(tmp_path)
    try:
        step = wait_for_checkpoint(tmp_path, 10, tasks)
        os.kill(worker_of(tasks[1].pid), signal.SIGKILL)
        step = wait_for_checkpoint(tmp_path, step + 40, tasks)
        os.kill(worker_of(tasks[0].pid), signal.SIGKILL)
        codes = [task.wait(timeout=200) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    told = [(tmp_path / f"told-{rank}").read_text() for rank in (0, 1)]
    assert codes == [0, 0], told
    for rank in (0, 1):
        assert f"tfscale: worker {rank} failed: signal SIGKILL" in told[rank]
        assert f"tfscale: worker {rank} lost a peer, or did not meet it" in told[rank]
        assert f"worker {rank} starts again" in told[rank]
        log = (tmp_path / "run" / "logs" / f"worker-{rank}.log").read_text()
        assert f"life 3 of worker {rank}" in log
    assert "Going on from step" in told[0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["epochs"] == 12 and summary["num_workers"] == 2
