"""What is refused of a search before a trial starts: its objective, its end, what it compares.

The names in a space are the affair of `space`, the configurations of its trials of `tune_checks`.
"""

from tfscale.names import nearest
from tfscale.search import space as space_lib

_PENALTIES = (["model", "arguments", "l1"], ["model", "arguments", "l2"])


def check_ends(space, tuner, max_trials):
    """Refuse a search without a number of trials whose tuner never comes to an end.

    Args:
        space: the `keras_tuner.HyperParameters`.
        tuner: one of `oracles.TUNERS`.
        max_trials: trials at most; 0 for all that the tuner has, None for its default.

    Raises:
        ValueError: with the range that has no end.
    """
    if max_trials != 0 or tuner not in ("random", "bayesian"):
        return
    endless = [hp.name for hp in space.space if hasattr(hp, "min_value") and hp.step is None]
    if tuner == "random" and not endless:
        return
    why = f" with {endless[0]!r}, a range without a step" if endless else ""
    way = "" if tuner == "bayesian" else ", or each range a step"
    raise ValueError(
        "--max_trials=0 is for a tuner that has an end. Received: "
        f"--max_trials=0 --tuner={tuner}{why}. Give a number of trials{way}, or use --tuner=grid."
    )


def check_comparable(space, objective, config):
    """Refuse what would make the scores of trials tell nothing, or the test split choose.

    Args:
        space: the `keras_tuner.HyperParameters`.
        objective: the metric that is compared.
        config: the base `RunConfig`.

    Raises:
        ValueError: naming the hyperparameter, or the split.
    """
    names = [parameter.name for parameter in space_lib.parameters(space)]
    if objective.endswith("loss"):
        for name in names:
            which = "losses" if name.split(".")[0] == "loss" else ""
            if name.split(".")[:3] in _PENALTIES:
                which = "penalties, which are part of the loss,"
            if which:
                raise ValueError(
                    f"Trials with different {which} are compared by a metric. Received: "
                    f"{name!r} in the space and --objective={objective}. Use another objective, "
                    "such as val_accuracy, or take it out of the space."
                )
    data = config.data
    test = _parts(data.test_split)
    for name in ("train_split", "validation_split"):
        if test & _parts(getattr(data, name)):
            raise ValueError(
                "No trial sees the test split: it scores the winner. Received: "
                f"data.{name}={getattr(data, name)!r} and data.test_split={data.test_split!r}. "
                "Hold validation data out of the training split (data.validation_fraction=0.2), or "
                "set data.test_split to another one, or to nothing."
            )


def _parts(split):
    return {part.strip() for part in split.split("+")} - {""}


def settle_objective(objective, direction, config):
    """Return the metric that is compared, and which value of it is best.

    Args:
        objective: its name; "" for the first one on validation data.
        direction: "max", "min", or "auto": by the metric.
        config: the base `RunConfig`.

    Returns:
        The name, and "max" or "min".

    Raises:
        ValueError: if the run does not report it, with what it does; or if nothing says which
            value of it is best.
    """
    import keras_tuner

    from tfscale.models import objectives

    loss = objectives.with_logits(config.loss.name, config.loss.arguments)
    metrics = objectives.build_metrics(config.metrics.names, bool(loss.get("from_logits", False)))
    names = [metric if isinstance(metric, str) else metric.name for metric in metrics] + ["loss"]
    reported = [f"val_{name}" for name in names] + names
    objective = objective or reported[0]
    if objective not in reported:
        raise ValueError(
            f"--objective must be a metric that the run reports. Received: {objective!r}."
            f"{nearest(objective, reported)} It reports: {', '.join(reported)}."
        )
    if direction == "auto":
        direction = keras_tuner.engine.metrics_tracking.infer_metric_direction(objective)
    if direction is None:
        raise ValueError(
            "--direction must say which value of the objective is best, where the metric does not. "
            f"Received: --objective={objective}. Add --direction=max or --direction=min."
        )
    return objective, direction
