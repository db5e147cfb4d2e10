"""The table of docs/numerics.md: python tests/benchmarks/equality_table.py [row ...]

Runs each row of tests/training/equality_cases.py with Keras' own `fit` on one device, then with
Keras' own `fit` and with tfscale's on two mirrored replicas and on two worker processes. Prints
Markdown: the greatest difference to one device of a weight, and of a number that training,
validation or prediction reports, relative where it is above 1; or what was raised. Takes about
six minutes on two cores.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/training"))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import tfscale  # noqa: E402
from tfscale import testing  # noqa: E402
from tfscale.strategy import make_strategy  # noqa: E402

mirrored = make_strategy("mirrored", 2)  # before the cases run any operation

import equality_cases as cases  # noqa: E402

WORKER = ROOT / "tests/training/equality_worker.py"
RAW = "raw"  # Keras' own fit, whatever the strategy


def run_here(names, door, folder):
    """Run rows on one device and on two replicas, into a file a row, up to the first failure."""
    if door != RAW:
        tfscale.enable_keras_fit()
    for name in names:
        row_door = door if cases.KERAS in cases.ROWS[name].doors else cases.TRAINER
        arrays = {}
        if door == RAW:
            arrays["one"] = cases.run(name, None, cases.KERAS)
        elif row_door == cases.TRAINER:
            arrays["one"] = cases.run(name, make_strategy("onedevice"), row_door)
        try:
            arrays["two"] = cases.run(name, mirrored, row_door)
        except Exception as error:
            arrays["two"] = {"error": f"{type(error).__name__}: {error}"}
        flat = {f"{where}|{k}": v for where, found in arrays.items() for k, v in found.items()}
        np.savez(folder / f"{name}.npz", **flat)
        if "error" in arrays["two"]:
            return


def on_replicas(names, door):
    """Return the arrays of rows on one device and on two replicas.

    Each in a process, a new one after a failure, which takes the process' collectives with it.
    """
    found = {}
    while rest := [name for name in names if name not in found]:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--door", door, "--folder", folder, *rest]
            subprocess.run(command, check=True)
            for path in pathlib.Path(folder).iterdir():
                with np.load(path) as stored:
                    found[path.stem] = _split((k.split("|"), v) for k, v in stored.items())
    return found


def on_workers(names, door):
    """Return the arrays of rows on two workers."""
    doors = {n: door if cases.KERAS in cases.ROWS[n].doors else cases.TRAINER for n in names}
    arguments = [f"{door}:{name}" for name, door in doors.items()]
    arrays = testing.run_workers(WORKER, 2, args=arguments, timeout_seconds=1800)[0].arrays
    return _split((k.partition(":")[2].split("|"), v) for k, v in arrays.items())


def _split(items):
    """Arrays by two names."""
    found = {}
    for (first, second), array in items:
        found.setdefault(first, {})[second] = array
    return found


def cell(found, expected, errors):
    """Return what is shown of a row; what is raised goes into `errors`, a list, once."""
    if "error" in found:
        text = re.sub(r"\s+", " ", re.sub(r"\x1b\[\d*m|0x[0-9a-f]+", "", str(found["error"])))
        start = text[:60]
        if start not in [known[:60] for known in errors]:
            errors.append(text if len(text) < 200 else f"{text[:90]} ... {text[-90:]}")
        return f"fails ({1 + [known[:60] for known in errors].index(start)})"
    worst = {"weight": 0.0, "report": 0.0}
    for key, array in expected.items():
        kind = "weight" if key.startswith("weight") else "report"
        if found[key].shape != array.shape:
            return f"another shape: {key}"
        difference = np.abs(found[key] - array) / np.maximum(1, np.abs(array))
        worst[kind] = max(worst[kind], float(difference.max()))
    return f"{worst['weight']:.0e}; {worst['report']:.0e}"


def print_table(names):
    by_keras = [name for name in names if cases.KERAS in cases.ROWS[name].doors]
    raw, raw_workers = on_replicas(by_keras, RAW), on_workers(by_keras, RAW)
    ours, ours_workers = on_replicas(names, cases.KERAS), on_workers(names, cases.KERAS)
    print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}:\n")
    print("| row | Keras, mirrored x2 | Keras, two workers | tfscale, mirrored x2 | two workers |")
    print("|---|---|---|---|---|")
    group, errors = None, []
    for name in names:
        if cases.ROWS[name].group != group:
            group = cases.ROWS[name].group
            print(f"| **{group}** | | | | |")
        expected = (raw if name in raw else ours)[name]["one"]
        shown = ["-", "-"]
        if name in raw:
            shown = [cell(f, expected, errors) for f in (raw[name]["two"], raw_workers[name])]
        shown += [cell(f, expected, errors) for f in (ours[name]["two"], ours_workers[name])]
        print(f"| {name} |", " | ".join(shown), "|")
    for number, error in enumerate(errors, 1):
        print(f"\nfails ({number}): `{error}`")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", default=list(cases.ROWS))
    parser.add_argument("--door", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.door:
        run_here(args.rows, args.door, args.folder)
    else:
        print_table(args.rows)


if __name__ == "__main__":
    main()
