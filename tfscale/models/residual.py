"""A residual network for small images, normalized over all replicas."""

import keras

from tfscale.models.arguments import (
    by_layer,
    check_image_shape,
    check_num_classes,
    check_sizes,
)
from tfscale.models.layers import check_activation, dropout_after, output_layer, regularizer


def resnet(
    input_shape=(32, 32, 3),
    num_classes=10,
    blocks=(3, 3, 3),
    filters=(16, 32, 64),
    activation="relu",
    l1=0.0,
    l2=0.0,
    dropout=0.0,
):
    """Build a residual network for small images, ResNet-20 for CIFAR as it comes.

    Batch normalization is synchronized: its mean and variance are those of the global batch,
    so N replicas compute what one device does. Every stage but the first halves height and
    width. Layers: stem; block_N_conv_1, block_N_conv_2 and, where the shape changes,
    block_N_project; logits. ResNet-20 has 272,474 trainable parameters and 1,568 moving
    statistics. K. He, X. Zhang, S. Ren and J. Sun, Deep Residual Learning (2016), section 4.2,
    with projection shortcuts; dropout inside the block: S. Zagoruyko and N. Komodakis (2016).

    Args:
        input_shape: (height, width, channels) of one image.
        num_classes: classes, at least 2.
        blocks: residual blocks of each stage; two convolutions a block.
        filters: channels of each stage, as many as `blocks` has.
        activation: a Keras identifier, after each normalization and each sum.
        l1: factor of the sum of absolute kernel values added to the loss: a number for all
            layers, or a mapping from layer ("stem", "block_2_conv_1", "logits") or first words
            ("block_2").
        l2: factor of the sum of squared kernel values; as `l1`.
        dropout: share dropped between the two convolutions of a block in training,
            0 <= dropout < 1: a number, or a mapping from block ("block_2").

    Returns:
        A `keras.Model`: (batch, height, width, channels) -> logits (batch, num_classes), float32.

    Raises:
        ValueError: if an argument has the wrong type or range, or names no layer.
    """
    input_shape = check_image_shape("resnet", input_shape)
    num_classes = check_num_classes(num_classes)
    blocks = check_sizes("blocks", blocks)
    filters = check_sizes("filters", filters)
    if len(blocks) != len(filters):
        raise ValueError(
            "`blocks` and `filters` must have one number a stage each. "
            f"Received: blocks={blocks}, filters={filters}."
        )
    check_activation(activation)
    plan = _plan(blocks, filters)
    l1 = by_layer("l1", l1, _kernel_names(plan))
    l2 = by_layer("l2", l2, _kernel_names(plan))
    dropout = by_layer("dropout", dropout, [name for name, *_ in plan], below=1.0)

    inputs = keras.Input(input_shape, name="input")
    x = _convolution(inputs, "stem", filters[0], 3, 1, l1, l2)
    x = keras.layers.Activation(activation, name="stem_activation")(x)
    for block in plan:
        x = _block(x, block, activation, l1, l2, dropout)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, output_layer(x, num_classes, "logits", l1, l2), name="resnet")


def _plan(blocks, filters):
    """Return (name, channels, strides, whether the shortcut is projected) of every block."""
    plan = []
    before = filters[0]
    for stage, (count, channels) in enumerate(zip(blocks, filters, strict=True)):
        for i in range(count):
            strides = 2 if stage and i == 0 else 1
            project = strides != 1 or channels != before
            plan.append((f"block_{len(plan) + 1}", channels, strides, project))
            before = channels
    return plan


def _kernel_names(plan):
    """Return the names of all layers with a kernel."""
    names = ["stem"]
    for name, _, _, project in plan:
        names += [f"{name}_conv_1", f"{name}_conv_2"]
        names += [f"{name}_project"] if project else []
    return [*names, "logits"]


def _block(x, block, activation, l1, l2, dropout):
    """Return `x` after one residual block."""
    name, channels, strides, project = block
    y = _convolution(x, f"{name}_conv_1", channels, 3, strides, l1, l2)
    y = keras.layers.Activation(activation, name=f"{name}_activation_1")(y)
    y = dropout_after(y, name, dropout)
    y = _convolution(y, f"{name}_conv_2", channels, 3, 1, l1, l2)
    if project:
        x = _convolution(x, f"{name}_project", channels, 1, strides, l1, l2)
    x = keras.layers.Add(name=f"{name}_add")([x, y])
    return keras.layers.Activation(activation, name=f"{name}_activation_2")(x)


def _convolution(x, name, channels, kernel_size, strides, l1, l2):
    """Return `x` after a convolution without bias and a synchronized normalization."""
    x = keras.layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=regularizer(name, l1, l2),
        name=name,
    )(x)
    return keras.layers.BatchNormalization(momentum=0.9, synchronized=True, name=f"{name}_norm")(x)
