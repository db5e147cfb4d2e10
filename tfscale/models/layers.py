"""Layers that several builders share: regularized by layer, named so that a user can point at them.

A layer that computes has a name ("conv_1", "dense_1", "logits"); a dropout layer is called
after the layer it follows ("dropout_dense_1"). Logits stay in float32 under mixed precision.
"""

import keras

from tfscale.names import check_known


def check_activation(activation):
    """Refuse an activation that Keras does not know.

    Raises:
        ValueError: with the nearest name and all names.
    """
    known = [name for name in dir(keras.activations) if not name.startswith("_")]
    known = [name for name in known if name not in ("get", "serialize", "deserialize")]
    check_known("`activation`", [activation], known)


def regularizer(layer, l1, l2):
    """Return the penalty of a layer's kernel, or None if it has none.

    Args:
        layer: the layer's name.
        l1: factor of the sum of absolute values, by layer.
        l2: factor of the sum of squares, by layer.

    Returns:
        A `keras.regularizers.Regularizer` or None.
    """
    if not l1[layer] and not l2[layer]:
        return None
    return keras.regularizers.L1L2(l1=l1[layer], l2=l2[layer])


def dropout_after(x, layer, dropout):
    """Return `x` with the layer's share of elements dropped while training.

    Args:
        x: output of the layer, (batch, ...).
        layer: the layer's name.
        dropout: share to drop, by layer.

    Returns:
        A tensor like `x`; `x` itself where the share is 0.
    """
    if not dropout[layer]:
        return x
    return keras.layers.Dropout(dropout[layer], name=f"dropout_{layer}")(x)


def dense_stack(x, units, activation, l1, l2, dropout):
    """Return `x` after the hidden dense layers dense_1, dense_2, ...

    Args:
        x: (batch, features).
        units: width of each layer.
        activation: a Keras identifier.
        l1, l2, dropout: numbers by layer.

    Returns:
        A tensor (batch, units[-1]), or `x` where there are no units.
    """
    for name, width in zip(dense_names(units), units, strict=True):
        penalty = regularizer(name, l1, l2)
        layer = keras.layers.Dense(
            width, activation=activation, kernel_regularizer=penalty, name=name
        )
        x = dropout_after(layer(x), name, dropout)
    return x


def dense_names(units):
    """Return the names of the hidden dense layers, in order."""
    return [f"dense_{i + 1}" for i in range(len(units))]


def output_layer(x, width, name, l1, l2):
    """Return the last layer's output: linear, float32.

    Args:
        x: (batch, features).
        width: classes or predicted numbers.
        name: the layer's name.
        l1, l2: numbers by layer.

    Returns:
        A float32 tensor (batch, width).
    """
    penalty = regularizer(name, l1, l2)
    return keras.layers.Dense(width, kernel_regularizer=penalty, dtype="float32", name=name)(x)
