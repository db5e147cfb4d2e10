"""What is refused before a trial starts, because every trial, or some, would fail by it.

The names in a space are the affair of `space`; here are the builders' arguments and the objective.
"""

import inspect

from tfscale.names import check_known, nearest
from tfscale.search import space as space_lib


def check_arguments(space, config):
    """Refuse arguments of models, optimizers and schedules that their builders do not know.

    Args:
        space: the `keras_tuner.HyperParameters`.
        config: the base `RunConfig`.

    Raises:
        ValueError: with the nearest name.
    """
    from tfscale import models, optimizers

    for values in space_lib.corners(space):
        chosen = space_lib.apply(config, values)
        name = chosen.model.name
        check_known("`model.name`", [name], models.BUILDERS)
        allowed = inspect.signature(getattr(models, name)).parameters
        check_known(f"An argument of the model {name!r}", chosen.model.arguments, allowed)
        optimizers.build_optimizer(chosen.optimizer, chosen.optimizer.learning_rate)
        optimizers.build_schedule(
            chosen.schedule.name,
            chosen.optimizer.learning_rate,
            chosen.schedule.warmup_steps,
            chosen.schedule.arguments,
            _MANY_STEPS,
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
    losses = [p.name for p in space_lib.parameters(space) if p.name.split(".")[0] == "loss"]
    if losses and objective.endswith("loss"):
        raise ValueError(
            "Trials with different losses are compared by a metric. Received: "
            f"{losses[0]!r} in the space and --objective={objective}. Use another objective, such "
            "as val_accuracy, or take it out of the space."
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


_MANY_STEPS = 10**6  # a schedule of a run whose data nobody has looked at yet
