"""Memory of a search over its trials: python tests/benchmarks/search_memory.py [--trials=50]

Searches with short trials and prints, as they end, the resident size and the open files of the
search's own process. What a trial used is gone with its processes; this is what could grow.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
SEARCH = """
from tfscale.config import ModelConfig, RunConfig, TrainConfig

def get_config():
    model = ModelConfig(name="mlp", arguments={"units": (16,)})
    return RunConfig(model=model, train=TrainConfig(epochs=1))

def search_space(hp):
    hp.Float("optimizer.learning_rate", 1e-4, 1e-1, sampling="log")
    hp.Float("model.arguments.dropout", 0.0, 0.5)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--tuner", default="random")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tfscale-") as folder:
        file, run_dir = pathlib.Path(folder, "search.py"), pathlib.Path(folder, "run")
        file.write_text(SEARCH)
        flags = [f"--config={file}", f"--run_dir={run_dir}", f"--max_trials={args.trials}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tfscale.tune", f"--tuner={args.tuner}", *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        sizes = {}
        try:
            while process.poll() is None:
                ended = count(run_dir / "journal.jsonl", b'"ended"') if run_dir.exists() else 0
                size, files = look(process.pid)
                if size:
                    sizes[ended] = size, files
                time.sleep(0.5)
        finally:
            process.kill()
            process.wait()
    for ended, (size, files) in sizes.items():
        if ended % 5 == 0:
            print(f"{ended:3} trials ended: {size / 1024:.0f} MiB, {files} open files")
    sys.exit(process.returncode)


def count(path, what):
    """Count the lines of a file that hold some bytes."""
    return sum(what in line for line in path.read_bytes().splitlines()) if path.exists() else 0


def look(pid):
    """Return the resident size in KiB and the number of open files of a process, 0 if it left."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0, 0
    return next((int(w.split()[1]) for w in status.splitlines() if w.startswith("VmRSS")), 0), files


if __name__ == "__main__":
    main()
