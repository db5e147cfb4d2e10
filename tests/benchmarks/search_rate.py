"""Trials an hour: python tests/benchmarks/search_rate.py [--trials=10] [--epochs=15] [--rounds=3]

Searches with `python -m tfscale.tune`, and then runs the configurations of the same trials by
hand, one `python -m tfscale.fit` after the other; in turn, for some rounds. With `--peer` each
round also has two trials at once, and keras-tuner's RandomSearch in one process on the same
convnet, data, batch size and epochs. All are whole processes, from command to exit; the search
draws its pictures and scores its winner on the test split besides.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
SEARCH = """
from tfscale.config import DataConfig, RunConfig, TrainConfig

def get_config():
    data = DataConfig(global_batch_size=32, validation_fraction=0.2)
    return RunConfig(data=data, train=TrainConfig(epochs={epochs}))

def search_space(hp):
    hp.Float("optimizer.learning_rate", 1e-4, 1e-2, sampling="log")
    hp.Float("model.arguments.dropout", 0.0, 0.5)
"""
PEER = """
import keras, keras_tuner, tfscale
from tfscale import models
import tensorflow as tf

tf.config.experimental.enable_op_determinism()
keras.utils.set_random_seed(0)
(x, y), _ = tfscale.load_digits()
x = x.astype("float32").reshape(len(x), 8, 8, 1) / x.max()
held_out = len(x) // 5

def build(hp):
    model = models.build("convnet", (8, 8, 1), 10, dropout=hp.Float("dropout", 0.0, 0.5))
    rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model

tuner = keras_tuner.RandomSearch(
    build, "val_accuracy", max_trials={trials}, seed=0, directory="{folder}", project_name="peer"
)
tuner.search(
    x[held_out:], y[held_out:], batch_size=32, epochs={epochs}, verbose=0,
    validation_data=(x[:held_out], y[:held_out]),
)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true", help="also two at once, and keras-tuner")
    args = parser.parse_args()
    rates = {}
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="tfscale-") as folder:
            for name, seconds in one_round(pathlib.Path(folder), args).items():
                rates.setdefault(name, []).append(3600 * args.trials / seconds)
        shown = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
        print(f"round {number + 1}: trials an hour: {shown}", flush=True)
    print(f"{args.trials} trials of {args.epochs} epochs, medians (and all) of {args.rounds}:")
    for name, values in rates.items():
        every = ", ".join(f"{value:.0f}" for value in values)
        against = [a / b for a, b in zip(values, rates["by hand"], strict=True)]
        ratio = f"{statistics.median(against):.2f} of by hand"
        print(f"  {name:<16} {statistics.median(values):5.0f} an hour  ({every}), {ratio}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def one_round(folder, args):
    """Run each side once; return how many seconds each took."""
    file = folder / "search.py"
    file.write_text(SEARCH.format(epochs=args.epochs))
    tune = ["tfscale.tune", f"--config={file}", f"--max_trials={args.trials}"]
    seconds = {"tfscale.tune": run(*tune, f"--run_dir={folder / 'search'}")}
    seconds["by hand"] = sum(
        run(
            "tfscale.fit",
            f"--config={trial / 'config.json'}",
            f"--run_dir={folder / 'hand' / trial.name}",
            "--deterministic",
        )
        for trial in sorted((folder / "search" / "trials").iterdir())
    )
    if args.peer:
        two = ["--parallel_trials=2", f"--run_dir={folder / 'two'}"]
        seconds["two at once"] = run(*tune, *two)
        script = folder / "peer.py"
        script.write_text(PEER.format(trials=args.trials, epochs=args.epochs, folder=folder))
        seconds["keras-tuner"] = run(script)
    return seconds


def run(module, *arguments):
    """Run a module or a script to its end; return the seconds it took."""
    command = [str(module)] if isinstance(module, pathlib.Path) else ["-m", module]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}")
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
