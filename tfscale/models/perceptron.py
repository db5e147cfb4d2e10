"""Multilayer perceptrons, for classes and for numbers."""

import keras

from tfscale.models.arguments import (
    by_layer,
    check_input_shape,
    check_num_classes,
    check_size,
    check_sizes,
)
from tfscale.models.layers import check_activation, dense_names, dense_stack, output_layer


def mlp(
    input_shape=(784,),
    num_classes=10,
    units=(512,),
    activation="relu",
    l1=0.0,
    l2=0.0,
    dropout=0.0,
):
    """Build a multilayer perceptron, 784-512-10 with ReLU as it comes.

    The first model to try on anything, and the one whose gradients are large for its work:
    good for measuring a reduction. Parameters: sum of (inputs + 1) * outputs over the layers;
    784-512-10 has 407,050. Backpropagation: D. Rumelhart, G. Hinton and R. Williams (1986);
    ReLU: X. Glorot, A. Bordes and Y. Bengio (2011).

    Args:
        input_shape: shape of one example; anything but a vector is flattened.
        num_classes: classes, at least 2.
        units: width of each hidden layer dense_1, dense_2, ...; () is a linear model.
        activation: a Keras identifier, after each hidden layer.
        l1: factor of the sum of absolute kernel values added to the loss: a number for all
            layers, or a mapping from layer ("dense_1", "logits") or first word ("dense").
        l2: factor of the sum of squared kernel values; as `l1`.
        dropout: share of a hidden layer's output dropped in training, 0 <= dropout < 1; as
            `l1`, hidden layers only.

    Returns:
        A `keras.Model`: (batch, *input_shape) -> logits (batch, num_classes), float32.

    Raises:
        ValueError: if an argument has the wrong type or range, or names no layer.
    """
    num_classes = check_num_classes(num_classes)
    return _perceptron(
        "mlp", input_shape, num_classes, "logits", units, activation, l1, l2, dropout
    )


def regression_mlp(
    input_shape=(10,),
    num_outputs=1,
    units=(10,),
    activation="relu",
    l1=0.0,
    l2=0.0,
    dropout=0.0,
):
    """Build a multilayer perceptron that predicts numbers, 10-10-1 as it comes.

    For a loss such as mean_squared_error. Parameters: as `mlp`; 10-10-1 has 121.

    Args:
        input_shape: shape of one example; anything but a vector is flattened.
        num_outputs: numbers to predict for one example.
        units: width of each hidden layer dense_1, dense_2, ...; () is linear regression.
        activation: a Keras identifier, after each hidden layer.
        l1: factor of the sum of absolute kernel values added to the loss: a number for all
            layers, or a mapping from layer ("dense_1", "output") or first word ("dense").
        l2: factor of the sum of squared kernel values; as `l1`.
        dropout: share of a hidden layer's output dropped in training, 0 <= dropout < 1; as
            `l1`, hidden layers only.

    Returns:
        A `keras.Model`: (batch, *input_shape) -> (batch, num_outputs), float32, linear.

    Raises:
        ValueError: if an argument has the wrong type or range, or names no layer.
    """
    num_outputs = check_size("num_outputs", num_outputs)
    return _perceptron(
        "regression_mlp", input_shape, num_outputs, "output", units, activation, l1, l2, dropout
    )


def _perceptron(model, input_shape, width, last, units, activation, l1, l2, dropout):
    """Build the model `model` whose last layer is called `last` and has `width` outputs."""
    input_shape = check_input_shape(input_shape)
    units = check_sizes("units", units, allow_empty=True)
    check_activation(activation)
    hidden = dense_names(units)
    l1 = by_layer("l1", l1, [*hidden, last])
    l2 = by_layer("l2", l2, [*hidden, last])
    dropout = by_layer("dropout", dropout, hidden, below=1.0)

    inputs = keras.Input(input_shape, name="input")
    x = keras.layers.Flatten(name="flatten")(inputs) if len(input_shape) > 1 else inputs
    x = dense_stack(x, units, activation, l1, l2, dropout)
    return keras.Model(inputs, output_layer(x, width, last, l1, l2), name=model)
