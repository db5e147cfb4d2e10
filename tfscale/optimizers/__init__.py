"""What Keras lacks around its optimizers: schedules with warmup, and errors before work starts.

recipe.py builds a schedule and an optimizer from a config, schedules.py holds `LinearWarmup`.
Importing this package does not import TensorFlow; the names below load when first used.
"""

import importlib

_HOMES = {
    "LinearWarmup": "tfscale.optimizers.schedules",
    "build_optimizer": "tfscale.optimizers.recipe",
    "build_schedule": "tfscale.optimizers.recipe",
}
__all__ = ["LinearWarmup", "build_optimizer", "build_schedule"]


def __getattr__(name):
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
