"""Trials as a search would have them, for the tests of what is shown."""

import pathlib

import numpy as np

from tfscale.search.trials import Parameter, SearchFacts, TrialRecord

RATE = Parameter("optimizer.learning_rate", "float", 1e-4, 1e-1, sampling="log")
FILTERS = Parameter("model.arguments.filters", "int", 8, 64, sampling="linear")
NAME = Parameter("optimizer.name", "choice", choices=("adam", "sgd"))
MOMENTUM = Parameter("optimizer.arguments.momentum", "float", 0.0, 0.99, sampling="linear")


def facts(run_dir, direction="max", max_trials=30, parameters=(RATE, FILTERS, NAME, MOMENTUM)):
    """A random search by validation accuracy, or by loss."""
    objective = "val_accuracy" if direction == "max" else "val_loss"
    return SearchFacts(
        objective, direction, "random", max_trials, list(parameters), pathlib.Path(run_dir), 1e9
    )


def record(run_dir, number, score=0.9, state="completed", values=None, epochs=3, **changes):
    """One trial of three epochs whose second is the best, with a rate of 0.01 unless said."""
    history = []
    if score is not None:
        curve = [score - 0.05, score, score - 0.01][:epochs]
        history = [{"epoch": i + 1, "val_accuracy": v, "loss": 1 - v} for i, v in enumerate(curve)]
    fields = {
        "id": f"{number:04d}",
        "values": {RATE.name: 0.01, FILTERS.name: 16, NAME.name: "adam"} | (values or {}),
        "state": state,
        "score": score,
        "best_epoch": None if score is None else min(2, epochs),
        "epochs": len(history),
        "max_epochs": 3,
        "started": 1e9 + number,
        "seconds": 12.0,
        "reason": "",
        "history": history,
        "path": pathlib.Path(run_dir) / "trials" / f"{number:04d}",
    }
    return TrialRecord(**(fields | changes))


def thirty(run_dir):
    """Thirty trials: the rate decides with a best value in the middle, the optimizer a little."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(30):
        rate = float(10 ** draw.uniform(-4, -1))
        values = {RATE.name: rate, FILTERS.name: int(draw.integers(8, 65))}
        values[NAME.name] = str(draw.choice(["adam", "sgd"]))
        if values[NAME.name] == "sgd":
            values[MOMENTUM.name] = float(draw.uniform(0, 0.99))
        score = 0.98 - 0.05 * (np.log10(rate) + 2.2) ** 2 - 0.02 * (values[NAME.name] == "sgd")
        score += float(draw.normal(0, 0.004))
        state = "stopped" if score < 0.9 else "completed"
        found.append(record(run_dir, number, float(score), state, values))
    found[7] = record(run_dir, 7, None, "diverged", found[7].values, reason="loss is nan, epoch 1")
    found[11] = record(run_dir, 11, 0.3, "failed", found[11].values, reason="exit code 1: boom")
    found[29] = record(run_dir, 29, 0.8, "running", found[29].values, epochs=2)
    return found
