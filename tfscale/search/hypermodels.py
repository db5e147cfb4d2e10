"""What a `Tuner` does with a hypermodel: takes it, builds its models, finds out its space."""

import inspect
import numbers
import sys

import keras
import keras_tuner

from tfscale.search import space


def as_hypermodel(given):
    """Return a `keras_tuner.HyperModel` for one, or for a function that builds a model.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(given, keras_tuner.HyperModel):
        return given
    if not callable(given):
        raise ValueError(
            "`hypermodel` must be a keras_tuner.HyperModel, or a function that builds a model from "
            f"hyperparameters. Received: {given!r}."
        )
    hypermodel = keras_tuner.HyperModel()
    hypermodel.build = given
    return hypermodel


def build(hypermodel, replaced, hp, max_size=None):
    """Return a compiled model.

    Args:
        hypermodel: the `keras_tuner.HyperModel`.
        replaced: arguments of `compile` that replace what the hypermodel compiles with, by name;
            None leaves one as it is.
        hp: the `keras_tuner.HyperParameters`.
        max_size: parameters that it may have; None for any number.

    Raises:
        keras_tuner.errors.FatalTypeError: if the hypermodel builds something else.
        keras_tuner.errors.FailedTrialError: if the model is too large.
    """
    model = hypermodel.build(hp)
    if not isinstance(model, keras.Model):
        raise keras_tuner.errors.FatalTypeError(
            "A hypermodel must build a keras.Model. "
            f"Received: {type(model).__name__}. Return the compiled model."
        )
    if max_size is not None and model.built and model.count_params() > max_size:
        raise keras_tuner.errors.FailedTrialError(
            f"A model may have max_model_size={max_size} parameters. "
            f"Received: {model.count_params()}."
        )
    replaced = {name: part for name, part in replaced.items() if part is not None}
    if replaced:
        if not isinstance(replaced.get("optimizer", ""), str):  # each model has its own
            config = keras.optimizers.serialize(replaced["optimizer"])
            replaced["optimizer"] = keras.optimizers.deserialize(config)
        model.compile(**{"optimizer": model.optimizer, "loss": model.loss, **replaced})
    return model


def populate(oracle, hypermodel):
    """Have an oracle know all hyperparameters that a hypermodel's `build` asks for.

    It is built once for each conditional scope; keras-tuner does the same when a tuner is made.

    Args:
        oracle: the `keras_tuner.Oracle`.
        hypermodel: the `keras_tuner.HyperModel`.
    """
    hp = oracle.get_space()
    hypermodel.declare_hyperparameters(hp)
    oracle.update_space(hp)
    entered, wanted = [], []
    while True:
        hypermodel.build(hp)
        oracle.update_space(hp)
        entered += [scope for scope in map(_scope, hp.active_scopes) if scope not in entered]
        wanted += [scope for scope in map(_scope, hp.inactive_scopes) if scope not in wanted]
        left = [scope for scope in wanted if scope not in entered]
        if not left:
            break
        entered.append(left[0])  # or tried, where its condition cannot hold
        hp = oracle.get_space()
        hp.values.update(left[0])
        hp.ensure_active_values()
    for name, wheres in space.defined_twice(oracle.get_space()).items():
        print(
            f"warning: the hyperparameter {name!r} is there {' and '.join(wheres)}. keras-tuner "
            "may lose its value in a trial: give the two of them two names.",
            file=sys.stderr,
            flush=True,
        )


def epochs_of(arguments, named):
    """Return the epochs that `keras.Model.fit` would make of what `search` was given."""
    try:
        given = inspect.signature(keras.Model.fit).bind_partial(None, *arguments, **named)
        epochs = given.arguments.get("epochs")
    except TypeError:  # arguments of a HyperModel.fit of the user's own
        epochs = named.get("epochs")
    return int(epochs) if isinstance(epochs, numbers.Integral) else 1


def _scope(conditions):
    """Return values under which a scope is active, [(name, value), ...]."""
    return [(condition.name, condition.values[0]) for condition in conditions]
