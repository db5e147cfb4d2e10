"""Losses and metrics by Keras' identifiers: what is minimised, and what is watched.

Owns the names, their arguments and the errors; the losses and metrics are Keras' own. A loss
is always a Keras class, so that its arguments (`from_logits`, `label_smoothing`) can be given.
"""

import inspect
import re

import keras

from tfscale.names import check_known

# Keras chooses the kind (binary, categorical, sparse) of these by the shapes, in `compile`.
_CHOSEN_BY_KERAS = ("accuracy", "acc", "crossentropy", "ce")


def build_loss(name, arguments):
    """Build a Keras loss by its identifier.

    Args:
        name: "sparse_categorical_crossentropy", "mse", "Huber", ...: the name of a class of
            `keras.losses`, in either spelling, or one of Keras' short names.
        arguments: a dict of the class's arguments: {"from_logits": True}.

    Returns:
        A `keras.losses.Loss`.

    Raises:
        ValueError: at an unknown name, an unknown argument, or a value that Keras refuses.
    """
    loss_class = _find("`loss.name`", name, keras.losses, keras.losses.Loss)
    allowed = _parameters(loss_class)
    check_known(f"An argument of the loss {name!r}", arguments, allowed)
    try:
        return loss_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`loss.arguments` must be accepted by keras.losses.{loss_class.__name__}. "
            f"Received: {dict(arguments)}. Keras says: {error}"
        ) from error


def with_logits(name, arguments):
    """Return a loss's arguments with `from_logits=True` where the loss takes it.

    The models of this package give logits, so that is the default of a configuration.

    Args:
        name: as for `build_loss`.
        arguments: as for `build_loss`; a `from_logits` of theirs stays.

    Raises:
        ValueError: at an unknown name.
    """
    loss_class = _find("`loss.name`", name, keras.losses, keras.losses.Loss)
    if "from_logits" not in _parameters(loss_class):
        return dict(arguments)
    return {"from_logits": True, **arguments}


def build_metrics(names, from_logits=False, binary=False):
    """Build Keras metrics by their identifiers.

    "accuracy" stays a name, since `compile` knows which accuracy fits the loss and the shapes.

    Args:
        names: "accuracy", "sparse_top_k_categorical_accuracy", "mae", "AUC", ...
        from_logits: whether the model gives logits, as the loss is told. Metrics that take
            probabilities are then told so, or refused if they cannot be told; a threshold of
            one half becomes 0, its logit.

        binary: whether the loss is between two classes, from one output.

    Returns:
        A list for `compile(metrics=...)`: `keras.metrics.Metric` objects, and the names that
        Keras resolves.

    Raises:
        ValueError: at an unknown or repeated name, or a metric that needs what a name cannot
            give.
    """
    if isinstance(names, str):
        raise ValueError(
            f"`metrics.names` must be a tuple of names. Received: {names!r}. Write ({names!r},)."
        )
    metrics = [_build_metric(name, from_logits) for name in names]
    if binary and from_logits:  # Keras would compare logits with one half
        zero = {"threshold": 0.0}
        metrics = [
            keras.metrics.BinaryAccuracy(name=m, **zero) if m in ("accuracy", "acc") else m
            for m in metrics
        ]
    seen = [metric if isinstance(metric, str) else type(metric) for metric in metrics]
    for i, metric in enumerate(seen):
        if metric in seen[:i]:
            raise ValueError(
                "`metrics.names` must name each metric once. "
                f"Received: {names[i]!r} twice in {tuple(names)}. Remove one."
            )
    return metrics


def _build_metric(name, from_logits):
    """Return one metric, or its name where Keras resolves it in `compile`."""
    if name in ("accuracy", "acc"):
        return "accuracy"
    if name in _CHOSEN_BY_KERAS:
        if from_logits:
            raise ValueError(
                f"Keras takes the metric {name!r} from probabilities, and the model gives logits. "
                f"Received: metrics.names with {name!r}. Name the kind: "
                "'sparse_categorical_crossentropy', or watch the loss alone."
            )
        return "crossentropy"
    metric_class = _find(
        "`metrics.names`", name, keras.metrics, keras.metrics.Metric, also=_CHOSEN_BY_KERAS
    )
    parameters = _parameters(metric_class)
    required = [key for key, p in parameters.items() if p.default is p.empty]
    if required:
        raise ValueError(
            f"`metrics.names` must hold metrics that need no arguments. Received: {name!r}, "
            f"which needs {', '.join(required)}. Make it in Python and give it to "
            "`model.compile`."
        )
    # Keras numbers some names ("auc_1") by what the process made before.
    name_in_logs = _snake_case(metric_class.__name__)
    if not from_logits:
        return metric_class(name=name_in_logs)
    if "from_logits" in parameters:
        return metric_class(name=name_in_logs, from_logits=True)
    if {"thresholds", "num_thresholds"} & set(parameters):
        raise ValueError(
            f"The metric {name!r} takes probabilities, and the model gives logits. Received: "
            f"metrics.names with {name!r}. Use 'accuracy' or 'auc', or a model that ends in a "
            "softmax."
        )
    if "threshold" in parameters and parameters["threshold"].default == 0.5:
        return metric_class(name=name_in_logs, threshold=0.0)
    return metric_class(name=name_in_logs)


def _find(what, name, module, base, also=()):
    """Return the class of `module` that Keras' identifier `name` stands for."""
    classes = {
        _snake_case(key): value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and not _is_general(value)
    }
    key = _snake_case(str(name))
    if key not in classes and isinstance(name, str):
        key = _full_name(name, module, key)
    if key not in classes:
        check_known(what, [name], [*also, *sorted(classes)])
    return classes[key]


def _full_name(name, module, otherwise):
    """Return what Keras calls the loss or metric with the short name `name` ("mse")."""
    try:
        found = module.get(name)
    except (TypeError, ValueError):
        return otherwise
    return found.__name__ if inspect.isfunction(found) else _snake_case(type(found).__name__)


def _is_general(value):
    """Whether a class is a base, not a loss or metric to ask for by name."""
    general = (keras.losses.Loss, keras.metrics.Metric, keras.metrics.MeanMetricWrapper)
    return value in (*general, keras.metrics.Mean, keras.metrics.Sum, keras.metrics.Accuracy)


def _parameters(keras_class):
    """Return the arguments of a class that make a choice, by name."""
    parameters = dict(inspect.signature(keras_class).parameters)
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {key: p for key, p in parameters.items() if p.kind not in kinds and key != "name"}


def _snake_case(name):
    """Return Keras' identifier of a class name: "KLDivergence" -> "kl_divergence"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
