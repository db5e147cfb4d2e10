"""What a `Tuner` refuses of its arguments and its place, before it does anything."""

import os

import keras_tuner
import tensorflow as tf


def checked_oracle(given):
    """Return an oracle.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(given, keras_tuner.Oracle):
        raise ValueError(
            "`oracle` must be a keras_tuner.Oracle, such as "
            "keras_tuner.oracles.RandomSearchOracle(objective='val_accuracy', max_trials=10). "
            f"Received: {given!r}."
        )
    return given


def checked_strategy(given):
    """Return a strategy that the model of a trial can be built under, or None.

    Raises:
        ValueError: for one of several machines, whose workers the tuner would have to start.
    """
    if given is None:
        return None
    several = (
        tf.distribute.MultiWorkerMirroredStrategy,
        tf.distribute.ParameterServerStrategy,
        tf.distribute.experimental.ParameterServerStrategy,
    )
    if not isinstance(given, tf.distribute.Strategy) or isinstance(given, several):
        raise ValueError(
            "`distribution_strategy` must be a tf.distribute.Strategy of one machine. Received: "
            f"{type(given).__name__}. For several workers a trial use strategy='multiworker' and "
            "workers_per_trial."
        )
    return given


def refuse_worker():
    """Refuse to search in a process that is a worker already.

    Raises:
        ValueError: if this is one.
    """
    if "TFSCALE_LOCAL_WORKERS" in os.environ or "TF_CONFIG" in os.environ:
        raise ValueError(
            "A Tuner starts the workers of its trials itself. Received: a process that is a worker "
            "already, of tfscale.launch or by TF_CONFIG. Run the script with python, and use "
            "workers_per_trial."
        )
