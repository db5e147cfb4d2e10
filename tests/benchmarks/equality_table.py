"""The table of docs/numerics.md: python tests/benchmarks/equality_table.py [row ...]

Runs each row of tests/training/equality_cases.py with Keras' own `fit` on one device, then with
Keras' own `fit` and with tfscale's on two mirrored replicas and on two worker processes. Prints
Markdown: the greatest difference of a weight to one device, and of a number that training,
validation or prediction reports; or what was raised. Takes about five minutes on two cores.
"""

import argparse
import os
import pathlib
import re
import sys

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
RAW = "raw"


def outcome(name, strategy, door):
    """A row's arrays by name, or the error."""
    try:
        return cases.run(name, strategy, door)
    except Exception as error:
        return {"error": np.array(f"{type(error).__name__}: {error}")}


def on_workers(names, door):
    """The outcomes of rows on two workers, by row; `door` is for those that Keras can run."""
    doors = {n: door if cases.KERAS in cases.ROWS[n].doors else cases.TRAINER for n in names}
    arguments = [f"{door}:{name}" for name, door in doors.items()]
    arrays = testing.run_workers(WORKER, 2, args=arguments, timeout_seconds=900)[0].arrays
    found = {name: {} for name in names}
    for key, array in arrays.items():
        name, part = key.partition(":")[2].split("|")
        found[name][part] = array
    return found


def cell(found, expected):
    """What is shown of a row: differences to one device, or how it fails."""
    if "error" in found:
        return f"fails ({_first_words(str(found['error']))})"
    weights = max(_difference(found, expected, "weight"))
    reports = max(_difference(found, expected, "curve") + _difference(found, expected, "output"))
    return f"{weights:.0e}; {reports:.0e}"


def _difference(found, expected, kind):
    keys = [key for key in expected if key.startswith(kind)]
    return [
        float(np.abs(found[key] - expected[key]).max())
        if found[key].shape == expected[key].shape
        else float("inf")
        for key in keys
    ] or [0.0]


_errors = []  # those met so far; the table numbers them


def _first_words(error):
    text = re.sub(r"\s+", " ", error)
    text = re.sub(r"0x[0-9a-f]+|\d{6,}", "...", text)[:160]
    kind = text[:60]
    if kind not in [known[:60] for known in _errors]:
        _errors.append(text)
    return 1 + [known[:60] for known in _errors].index(kind)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", default=list(cases.ROWS))
    names = parser.parse_args().rows
    by_keras = [name for name in names if cases.KERAS in cases.ROWS[name].doors]
    one_device = {name: outcome(name, None, cases.KERAS) for name in by_keras}
    raw_mirrored = {name: outcome(name, mirrored, RAW) for name in by_keras}
    raw_workers = on_workers(by_keras, RAW)
    tfscale.enable_keras_fit()
    ours = {}
    for name in names:
        door = cases.KERAS if name in by_keras else cases.TRAINER
        ours[name] = outcome(name, mirrored, door)
        if name not in by_keras:
            one_device[name] = outcome(name, make_strategy("onedevice"), door)
    ours_workers = on_workers(names, cases.KERAS)
    print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}:\n")
    columns = "Keras, mirrored x2", "Keras, two workers", "tfscale, mirrored x2", "two workers"
    print("| row |", " | ".join(columns), "|\n|---|---|---|---|---|")
    group = None
    for name in names:
        if cases.ROWS[name].group != group:
            group = cases.ROWS[name].group
            print(f"| **{group}** | | | | |")
        raw = [
            cell(found[name], one_device[name]) if name in by_keras else "-"
            for found in (raw_mirrored, raw_workers)
        ]
        scaled = [cell(found[name], one_device[name]) for found in (ours, ours_workers)]
        print(f"| {name} |", " | ".join(raw + scaled), "|")
    for number, error in enumerate(_errors, 1):
        print(f"\nfails ({number}): `{error}`")


if __name__ == "__main__":
    main()
