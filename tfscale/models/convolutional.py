"""The small convolutional network that tfscale trains as it comes."""

import keras

from tfscale.models.arguments import (
    by_layer,
    check_image_shape,
    check_num_classes,
    check_size,
    check_sizes,
)
from tfscale.models.layers import (
    check_activation,
    dense_names,
    dense_stack,
    dropout_after,
    output_layer,
    regularizer,
)


def convnet(
    input_shape=(28, 28, 1),
    num_classes=10,
    filters=(32, 64),
    kernel_size=3,
    dense_units=(128,),
    activation="relu",
    l1=0.0,
    l2=0.0,
    dropout=0.0,
):
    """Build a convolutional network: blocks of convolution and 2x2 max-pooling, a dense head.

    Convolutions and pools pad ("same"), so images of any size fit, 8x8 digits included.
    There is no dropout as it comes, so that one device and many give the same curve.
    Parameters: (kernel_size**2 * channels + 1) * filters a convolution, (inputs + 1) * outputs
    a dense layer; 421,642 for 28x28x1, 53,002 for 8x8x1. Y. LeCun, L. Bottou, Y. Bengio and
    P. Haffner (1998), with ReLU, V. Nair and G. Hinton (2010).

    Args:
        input_shape: (height, width, channels) of one image.
        num_classes: classes, at least 2.
        filters: channels of each block's convolution conv_1, conv_2, ...
        kernel_size: height and width of every kernel, in pixels.
        dense_units: width of each hidden layer dense_1, ... of the head; () for none.
        activation: a Keras identifier, after each convolution and hidden layer.
        l1: factor of the sum of absolute kernel values added to the loss: a number for all
            layers, or a mapping from layer ("conv_1", "dense_1", "logits") or first word
            ("conv", "dense").
        l2: factor of the sum of squared kernel values; as `l1`.
        dropout: share of a layer's output (of a convolution's after its pool) dropped in
            training, 0 <= dropout < 1; as `l1`, but not for "logits".

    Returns:
        A `keras.Model`: (batch, height, width, channels) -> logits (batch, num_classes), float32.

    Raises:
        ValueError: if an argument has the wrong type or range, or names no layer.
    """
    input_shape = check_image_shape("convnet", input_shape)
    num_classes = check_num_classes(num_classes)
    filters = check_sizes("filters", filters)
    kernel_size = check_size("kernel_size", kernel_size)
    dense_units = check_sizes("dense_units", dense_units, allow_empty=True)
    check_activation(activation)
    convolutions = [f"conv_{i + 1}" for i in range(len(filters))]
    hidden = [*convolutions, *dense_names(dense_units)]
    l1 = by_layer("l1", l1, [*hidden, "logits"])
    l2 = by_layer("l2", l2, [*hidden, "logits"])
    dropout = by_layer("dropout", dropout, hidden, below=1.0)

    inputs = x = keras.Input(input_shape, name="input")
    for i, (name, channels) in enumerate(zip(convolutions, filters, strict=True)):
        x = keras.layers.Conv2D(
            channels,
            kernel_size,
            padding="same",
            activation=activation,
            kernel_regularizer=regularizer(name, l1, l2),
            name=name,
        )(x)
        x = keras.layers.MaxPooling2D(padding="same", name=f"pool_{i + 1}")(x)
        x = dropout_after(x, name, dropout)
    x = keras.layers.Flatten(name="flatten")(x)
    x = dense_stack(x, dense_units, activation, l1, l2, dropout)
    return keras.Model(inputs, output_layer(x, num_classes, "logits", l1, l2), name="convnet")
