"""Builders: a few arguments -> a `keras.Model`.

`build` makes a model by its name, `listing` tells which there are. The builders live in
perceptron.py, convolutional.py and residual.py; losses and metrics in objectives.py.
Importing this package does not import TensorFlow.
"""

import importlib
import inspect

from tfscale.names import check_known

BUILDERS = {
    "convnet": "tfscale.models.convolutional:convnet",
    "mlp": "tfscale.models.perceptron:mlp",
    "regression_mlp": "tfscale.models.perceptron:regression_mlp",
    "resnet": "tfscale.models.residual:resnet",
}
_FROM_DATA = ("input_shape", "num_classes")


def build(name, input_shape, num_classes, /, **arguments):
    """Build a model by name, as a config does.

    The shape of the input and the number of classes come from the data, all else is the
    builder's own.

    Args:
        name: a key of `BUILDERS`.
        input_shape: shape of one example.
        num_classes: classes of the data; not used by a model that predicts numbers, which may
            get None or 0.
        **arguments: the builder's arguments.

    Returns:
        A `keras.Model` that gives logits, not compiled.

    Raises:
        ValueError: if no model has this name, or the builder refuses an argument.
    """
    check_known("`model.name`", [name], BUILDERS)
    builder = _builder(name)
    parameters = list(inspect.signature(builder).parameters)
    for key in _FROM_DATA:
        if key in arguments:
            raise ValueError(
                f"`model.arguments` must not hold {key!r}, which comes from the data. "
                f"Received: {key}={arguments[key]!r}. Remove it."
            )
    allowed = [parameter for parameter in parameters if parameter not in _FROM_DATA]
    check_known(f"An argument of the model {name!r}", arguments, allowed)
    if "num_classes" in parameters:
        arguments["num_classes"] = num_classes
    return builder(input_shape, **arguments)


def listing():
    """Return what there is to build, with the builders' own defaults.

    Returns:
        A list of (name, number of parameters, first line of the docstring).
    """
    rows = []
    for name in BUILDERS:
        builder = _builder(name)
        rows.append((name, builder().count_params(), inspect.getdoc(builder).splitlines()[0]))
    return rows


def _builder(name):
    """Return the function that builds the model `name`."""
    module, function = BUILDERS[name].split(":")
    return getattr(importlib.import_module(module), function)


def __getattr__(name):
    """Import a builder when it is first used: `tfscale.models.convnet`."""
    if name not in BUILDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _builder(name)
