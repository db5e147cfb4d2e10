"""What a `fit` or `run_trial` of the user's own may return, as keras-tuner has it."""

import keras
import keras_tuner
import numpy as np


def best_of(result, objective):
    """Return the metrics of what was returned.

    Args:
        result: a History, of whose epochs the best one counts; a number, which is the objective;
            a dict of metrics; or a list of these, over which the mean is taken.
        objective: the `keras_tuner.Objective`.

    Returns:
        A dict with the objective in it, or None where it is not in the result.
    """
    if isinstance(result, bool) or result is None:
        return None
    if isinstance(result, (int, float, np.number)):
        return {objective.name: float(result)}
    if isinstance(result, list):
        found = [best_of(part, objective) for part in result]
        if not found or None in found:
            return None
        names = set.intersection(*(set(metrics) for metrics in found))
        return {name: float(np.mean([f[name] for f in found])) for name in names}
    if isinstance(result, keras.callbacks.History):
        return _best_epoch(result.history, objective)
    if isinstance(result, dict) and objective.has_value(result):
        return numbers(result) | {objective.name: float(objective.get_value(result))}
    return None


def told_of(trial, objective):
    """Return the metrics that `oracle.update_trial` was told of a trial, None without any."""
    if not trial.metrics.exists(objective.name):
        return None
    return {name: float(trial.metrics.get_best_value(name)) for name in trial.metrics.metrics}


def is_history(result):
    """Say whether a result is one training, whose curve says all of it."""
    if isinstance(result, list) and len(result) == 1:
        return is_history(result[0])
    return isinstance(result, keras.callbacks.History)


def refusal(result, objective):
    """Return the error for a result in which the objective is not."""
    while isinstance(result, list) and result:
        result = next((part for part in result if best_of(part, objective) is None), None)
    reported = "nothing"
    if isinstance(result, keras.callbacks.History):
        reported = ", ".join(sorted(result.history)) or "nothing"
    elif isinstance(result, dict):
        reported = ", ".join(sorted(map(str, result))) or "nothing"
    given = (
        "no objective, so that a number has to be returned"
        if isinstance(objective, type(keras_tuner.Oracle().objective))
        else f"objective={objective.name!r}"
    )
    way_out = "Use one of these names, or return the number from HyperModel.fit or run_trial."
    if is_history(result) and "objective='val_" in given and "val_" not in reported:
        way_out = "Give `search` validation_data or validation_split, or use one of these names."
    return keras_tuner.errors.FatalValueError(
        f"The objective must be among what a trial reports. Received: {given}, where a "
        f"{type(result).__name__} came with {reported}. {way_out}"
    )


def numbers(logs):
    """Return metrics as Python numbers, and lists of them."""
    return {name: np.asarray(value).tolist() for name, value in (logs or {}).items()}


def _best_epoch(history, objective):
    best = None
    for i in range(max(map(len, history.values()), default=0)):
        metrics = numbers({k: v[i] for k, v in history.items() if i < len(v)})
        if not objective.has_value(metrics):
            continue
        metrics[objective.name] = float(objective.get_value(metrics))
        if best is None or objective.better_than(metrics[objective.name], best[objective.name]):
            best = metrics
    return best
