"""A search: keras-tuner's oracles choose, runs of tfscale are the trials.

`loop` is the way of a trial; `journal` is the truth on disk; `trials`, `processes`, `oracles`,
`space` and `stopping` are its parts; `service` and `joining` are the two sides of a search on
several machines; `views` is what a person sees; `tuner` is the door from Python, whose names load
here when they are first used: the command's help does not wait for keras-tuner.
"""

import importlib

__all__ = ["BayesianOptimization", "GridSearch", "Hyperband", "RandomSearch", "Tuner"]


def __getattr__(name):
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "tuner" if name == "Tuner" else "tuners"
    return getattr(importlib.import_module(f"tfscale.search.{home}"), name)
