"""tfscale: Keras 3 models on TensorFlow, on one device or on many machines.

The public names load when first used: importing tfscale does not import TensorFlow.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Trainer": "tfscale.training.trainer",
    "make_strategy": "tfscale.strategy",
    "set_seed": "tfscale.strategy",
    "is_chief": "tfscale.strategy",
    "enable_keras_fit": "tfscale.training.keras_fit",
    "disable_keras_fit": "tfscale.training.keras_fit",
    "distribute": "tfscale.training.distribute",
    "replica_share": "tfscale.training.distribute",
    "global_mean": "tfscale.training.distribute",
    "RunConfig": "tfscale.config",
    "load_digits": "tfscale.data.digits_file",
}
__all__ = [
    "RunConfig",
    "Trainer",
    "disable_keras_fit",
    "distribute",
    "enable_keras_fit",
    "global_mean",
    "is_chief",
    "load_digits",
    "make_strategy",
    "replica_share",
    "set_seed",
]


def __getattr__(name):
    """Import a public name when it is first used."""
    if name == "search":
        return importlib.import_module("tfscale.search")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
