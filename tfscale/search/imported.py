"""A search from a notebook: its trials import the hypermodel, because there is no script to run.

`pack` writes what `search` was called with into the search's folder, arrays as `.npy` data and
the rest as JSON, nothing pickled. A trial runs this module: `python -m tfscale.search.imported
CALL`, where CALL is that file.
"""

import functools
import importlib
import json
import pathlib
import sys

import numpy as np

from tfscale.training.checkpoint import write_whole

_ARRAYS = "call.npz"
_CALL = "call.json"
_RULE = (
    "Trials run in processes of their own. In a notebook or an interactive shell, where there is "
    "no script that they could run again, the hypermodel must be importable"
)


def pack(run_dir, hypermodel, given, objective, executions, arguments, named):
    """Write what a trial needs to know that has no script.

    Args:
        run_dir: the folder of the search.
        hypermodel: the `keras_tuner.HyperModel`.
        given: what the user gave as such: it, or a function.
        objective: the `keras_tuner.Objective`.
        executions: as for a `Tuner`.
        arguments: what `search` was given.
        named: what it was given by name.

    Returns:
        How a trial is started, for `scripts.ScriptTrials`.

    Raises:
        ValueError: if the hypermodel cannot be imported, or an argument is neither an array nor
            fits into JSON.
    """
    arrays = {}
    several = getattr(objective, "objectives", [objective])
    call = {
        "hypermodel": _name_of(given, hypermodel),
        "objective": [[one.name, one.direction] for one in several],
        "executions": executions,
        "arguments": [_packed(value, f"argument {i}", arrays) for i, value in enumerate(arguments)],
        "named": {name: _packed(value, name, arrays) for name, value in named.items()},
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    beside = run_dir / f".writing.{_ARRAYS}"
    np.savez(beside, **arrays)
    beside.replace(run_dir / _ARRAYS)
    write_whole(run_dir / _CALL, json.dumps(call, indent=2) + "\n")
    return target(run_dir)


def target(run_dir):
    """Return how a trial is started of what `pack` has written, here or on another machine."""
    return ["-m", "tfscale.search.imported", str(run_dir / _CALL)]


def main(argv):
    """Run the trial that this process has been given, as `scripts.assigned` says."""
    import keras_tuner

    from tfscale.search.tuner import Tuner

    path = pathlib.Path(argv[0])
    call = json.loads(path.read_text())
    module, _, name = call["hypermodel"].partition(":")
    found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    is_class = isinstance(found, type) and issubclass(found, keras_tuner.HyperModel)
    objective = [keras_tuner.Objective(name, direction) for name, direction in call["objective"]]
    oracle = keras_tuner.oracles.RandomSearchOracle(objective if objective[1:] else objective[0])
    tuner = Tuner(found() if is_class else found, oracle, executions_per_trial=call["executions"])
    with np.load(path.with_name(_ARRAYS), allow_pickle=False) as arrays:
        arguments = [_unpacked(value, arrays) for value in call["arguments"]]
        named = {name: _unpacked(value, arrays) for name, value in call["named"].items()}
    tuner.search(*arguments, **named)


def _name_of(given, hypermodel):
    """Return "module:name" of a hypermodel.

    Raises:
        ValueError: if another process could not make the same one from it.
    """
    what = type(given) if given is hypermodel else given
    module, name = getattr(what, "__module__", None), getattr(what, "__qualname__", "<none>")
    if module in (None, "__main__") or "<" in name:
        raise ValueError(
            f"{_RULE}. Received: {name.rpartition('.')[2]!r}, which is defined in the session "
            "itself. Write it into a file, such as model.py, and use `from model import ...`; or "
            "put all of it into a script and run that. What a search has found can be read here."
        )
    if given is hypermodel and not _makes_itself(given):
        raise ValueError(
            f"{_RULE} by its class, called without arguments. Received: an object of {name} with "
            "arguments or attributes of its own. Derive a class that sets them itself, or put all "
            "of it into a script and run that."
        )
    return f"{module}:{name}"


def _makes_itself(hypermodel):
    """Say whether a hypermodel's class gives the same one without arguments."""
    import keras_tuner

    try:
        another = type(hypermodel)()
    except TypeError:
        return False
    shared = vars(keras_tuner.HyperModel())
    own, others = (
        {n: repr(v) for n, v in vars(one).items() if n not in shared}
        for one in (hypermodel, another)
    )
    return own == others


def _packed(value, what, arrays):
    """Return what JSON holds of a value; arrays go into `arrays`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {"dict": [[k, _packed(v, what, arrays)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_packed(part, what, arrays) for part in value]}
    if isinstance(value, np.ndarray) and value.dtype != object:
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    raise ValueError(
        "Without a script, `search` takes NumPy arrays, numbers, words, and lists, tuples and "
        f"dicts of them. Received: {what} with a {type(value).__name__}. Make it in the `fit` of "
        "the hypermodel, or put all of it into a script and run that."
    )


def _unpacked(value, arrays):
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _unpacked(part, arrays) for key, part in content}
    parts = [_unpacked(part, arrays) for part in content]
    return tuple(parts) if kind == "tuple" else parts


if __name__ == "__main__":
    main(sys.argv[1:])
