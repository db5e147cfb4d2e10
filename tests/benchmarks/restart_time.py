"""How long from a fault to training again: python tests/benchmarks/restart_time.py

Trains the digits on two local workers, sends a signal to one of them in the middle, and takes
the time until new workers are started, and until these report their first steps in
metrics.jsonl. Beside it stands how long the run took from its command to its first steps, which
is what TensorFlow's start costs on this machine at that moment.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
_WAIT_SECONDS = 180


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--signal", default="KILL", help="KILL or STOP")
    parser.add_argument("--flags", nargs="*", default=[], help="more flags for tfscale.fit")
    args = parser.parse_args()
    number = signal.Signals[f"SIG{args.signal}"]
    for rank in (0, 1):
        rounds = [one_round(rank, number, args.flags) for _ in range(args.rounds)]
        print(f"SIG{args.signal} to worker {rank}, medians (and all) of {args.rounds}, in seconds:")
        names = ("command to first steps", "fault to new workers", "fault to training again")
        for name, seconds in zip(names, zip(*rounds, strict=True), strict=True):
            shown = ", ".join(f"{value:.1f}" for value in seconds)
            print(f"  {name:<24} {statistics.median(seconds):5.1f}  ({shown})", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def one_round(rank, number, flags):
    """Run, disturb and measure once; return three durations in seconds."""
    with tempfile.TemporaryDirectory(prefix="tfscale-") as folder:
        run_dir = pathlib.Path(folder, "run")
        command = [sys.executable, "-m", "tfscale.fit", "--strategy=multiworker", "--workers=2"]
        command += ["--config.train.epochs=400", "--config.checkpoint.save_every_steps=20"]
        command += ["--config.log.every_steps=5", "--config.log.tensorboard=false"]
        commanded = time.time()
        with open(pathlib.Path(folder, "output"), "wb") as output:
            launcher = subprocess.Popen(
                [*command, f"--run_dir={run_dir}", *flags],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        metrics = run_dir / "metrics.jsonl"
        try:
            wait_for(lambda: last_step(metrics) >= 100)
            first_steps = first_record_after(metrics, commanded)
            inode, log = metrics.stat().st_ino, run_dir / "logs" / "worker-0.log"
            fault = time.time()
            os.kill(worker_pid(launcher.pid, rank), number)
            wait_for(lambda: "tfscale: life 2 " in log.read_text(errors="replace"))
            new_workers = time.time()
            wait_for(lambda: metrics.stat().st_ino != inode)  # the second life writes its own
            again = wait_for(lambda: first_record_after(metrics, fault))
            return first_steps - commanded, new_workers - fault, again - fault
        finally:
            launcher.send_signal(signal.SIGINT)
            launcher.send_signal(signal.SIGTERM)
            launcher.wait()


def wait_for(look):
    deadline = time.monotonic() + _WAIT_SECONDS
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError("this took too long")
        time.sleep(0.02)
    return found


def records(path):
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_step(path):
    return max((record["step"] for record in records(path)), default=0)


def first_record_after(path, moment):
    return next((r["time"] for r in records(path) if r["time"] > moment), None)


def worker_pid(launcher, rank):
    """Return the process of a worker, by its TF_CONFIG."""
    for pid in pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        for variable in environ:
            name, _, value = variable.partition(b"=")
            if name == b"TF_CONFIG" and json.loads(value)["task"]["index"] == rank:
                return int(pid)
    raise ProcessLookupError(f"worker {rank} is not there")


if __name__ == "__main__":
    main()
