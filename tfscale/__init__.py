"""tfscale: Keras 3 models on TensorFlow, on one device or on many machines.

The public names load when first used: importing tfscale does not import TensorFlow.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Trainer": "tfscale.training.trainer",
    "make_strategy": "tfscale.strategy",
    "set_seed": "tfscale.strategy",
    "RunConfig": "tfscale.config",
}
__all__ = ["RunConfig", "Trainer", "make_strategy", "set_seed"]


def __getattr__(name):
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
