"""Builders: shapes, parameters in closed form, choices by layer, errors."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from tfscale import models
from tfscale.models import BUILDERS, build, listing


def dense_parameters(*widths):
    return sum((before + 1) * after for before, after in zip(widths, widths[1:], strict=False))


def convnet_parameters(input_shape, num_classes, filters, kernel_size, dense_units):
    height, width, channels = input_shape
    total = 0
    for channels_after in filters:
        total += (kernel_size**2 * channels + 1) * channels_after
        channels, height, width = channels_after, -(-height // 2), -(-width // 2)
    return total + dense_parameters(height * width * channels, *dense_units, num_classes)


def resnet_parameters(channels, num_classes, blocks, filters):
    """Kernels without bias, four numbers a normalized channel, a dense layer."""
    total = 9 * channels * filters[0] + 4 * filters[0]
    before = filters[0]
    for stage, (count, after) in enumerate(zip(blocks, filters, strict=True)):
        for i in range(count):
            total += 9 * (before * after + after * after) + 8 * after
            if before != after or (stage and i == 0):
                total += before * after + 4 * after
            before = after
    return total + dense_parameters(before, num_classes)


def test_package_and_names_load_without_tensorflow():
    code = (
        "import sys, tfscale.models, tfscale.optimizers, tfscale.__main__\n"
        "sorted(tfscale.models.BUILDERS)\n"
        "sys.exit(bool({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "input_shape", "arguments", "expected"),
    [
        ("mlp", (784,), {}, 407_050),
        ("mlp", (8, 8, 1), {"units": (32, 16)}, dense_parameters(64, 32, 16, 10)),
        ("mlp", (5,), {"units": ()}, dense_parameters(5, 10)),
        ("convnet", (28, 28, 1), {}, convnet_parameters((28, 28, 1), 10, (32, 64), 3, (128,))),
        ("convnet", (8, 8, 1), {}, 53_002),
        (
            "convnet",
            (7, 5, 3),
            {"filters": [4, 5, 6], "kernel_size": 5, "dense_units": ()},
            convnet_parameters((7, 5, 3), 10, (4, 5, 6), 5, ()),
        ),
        ("convnet", (1, 1, 2), {}, convnet_parameters((1, 1, 2), 10, (32, 64), 3, (128,))),
        # He et al. (2016): ResNet-20; the moving statistics are 1,568 of these.
        ("resnet", (32, 32, 3), {}, resnet_parameters(3, 10, (3, 3, 3), (16, 32, 64))),
        (
            "resnet",
            (8, 8, 1),
            {"blocks": (1, 2), "filters": (4, 4)},
            resnet_parameters(1, 10, (1, 2), (4, 4)),
        ),
    ],
)
def test_parameters_and_logits_follow_the_arguments(name, input_shape, arguments, expected):
    model = build(name, input_shape, 10, **arguments)
    assert model.count_params() == expected
    x = np.random.default_rng(0).normal(size=(3, *input_shape)).astype("float32")
    logits = keras.ops.convert_to_numpy(model(x))
    assert logits.shape == (3, 10)
    # Rows of probabilities would be positive and add up to one.
    assert (logits < 0).any()


def test_regression_predicts_numbers_whatever_the_classes():
    model = build("regression_mlp", (10,), None)
    assert model.count_params() == 121
    assert model.output_shape == (None, 1)
    assert build("regression_mlp", (4, 2), 7, num_outputs=3).output_shape == (None, 3)


def test_listing_names_every_builder_with_its_defaults():
    rows = listing()
    assert [name for name, _, _ in rows] == list(BUILDERS)
    counts = {name: count for name, count, _ in rows}
    assert counts == {"convnet": 421_642, "mlp": 407_050, "regression_mlp": 121, "resnet": 274_042}
    assert all(line.startswith("Build") and line.endswith(".") for _, _, line in rows)


def test_builders_are_attributes_of_the_package():
    assert models.mlp((4,), 2, units=(3,)).count_params() == dense_parameters(4, 3, 2)
    with pytest.raises(AttributeError, match="mlpp"):
        _ = models.mlpp


def kernels(model):
    weights = {w.path: keras.ops.convert_to_numpy(w) for w in model.trainable_weights}
    return {path.split("/")[0]: w for path, w in weights.items() if path.endswith("kernel")}


@pytest.mark.parametrize(
    ("name", "penalty", "layers"),
    [
        ("convnet", 0.5, {"conv_1": 0.5, "conv_2": 0.5, "dense_1": 0.5, "logits": 0.5}),
        ("convnet", {"conv": 0.5}, {"conv_1": 0.5, "conv_2": 0.5}),
        ("convnet", {"conv": 0.5, "conv_2": 0.25}, {"conv_1": 0.5, "conv_2": 0.25}),
        ("mlp", {"dense_1": 0.5, "logits": 2}, {"dense_1": 0.5, "logits": 2.0}),
        ("regression_mlp", {"output": 0.5}, {"output": 0.5}),
        (
            "resnet",
            {"block_1": 0.5, "stem": 0.25},
            {"stem": 0.25, "block_1_conv_1": 0.5, "block_1_conv_2": 0.5},
        ),
    ],
)
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_penalty_is_added_for_the_named_layers_alone(name, penalty, layers, kind):
    small = {
        "resnet": {"blocks": (1, 1), "filters": (2, 3)},
        "mlp": {"units": (5, 4)},
    }.get(name, {})
    model = build(name, (4, 4, 1), 3, **small, **{kind: penalty})
    power = {"l1": 1, "l2": 2}[kind]
    weights = kernels(model)
    expected = [factor * (np.abs(weights[x]) ** power).sum() for x, factor in layers.items()]
    assert len(model.losses) == len(layers)
    np.testing.assert_allclose(sorted(map(float, model.losses)), sorted(expected), rtol=1e-5)


def test_layer_eleven_is_not_taken_for_layer_one():
    model = build("mlp", (3,), 2, units=(2,) * 11, l2={"dense_1": 1.0})
    assert len(model.losses) == 1


def rates(model):
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    return {layer.name: layer.rate for layer in layers}


def test_dropout_follows_the_named_layers_and_never_the_logits():
    assert rates(build("convnet", (8, 8, 1), 10)) == {}
    everywhere = rates(build("convnet", (8, 8, 1), 10, dropout=0.25))
    layers = ("conv_1", "conv_2", "dense_1")
    assert everywhere == {f"dropout_{name}": 0.25 for name in layers}
    assert rates(build("convnet", (8, 8, 1), 10, dropout={"dense": 0.5})) == {
        "dropout_dense_1": 0.5
    }
    small = {"blocks": (1, 1), "filters": (2, 2)}
    assert rates(build("resnet", (8, 8, 1), 10, **small, dropout={"block_2": 0.1})) == {
        "dropout_block_2": 0.1
    }


def test_resnet_normalization_is_synchronized():
    model = build("resnet", (8, 8, 1), 10, blocks=(1,), filters=(2,))
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 3
    assert all(norm.synchronized for norm in norms)


def test_logits_stay_float32_in_mixed_precision():
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = build("mlp", (4,), 2, units=(3,))
    finally:
        keras.mixed_precision.set_dtype_policy(before)
    assert keras.backend.standardize_dtype(model.output.dtype) == "float32"
    assert model.get_layer("dense_1").compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("name", "input_shape", "num_classes", "arguments", "message"),
    [
        ("convnt", (8, 8, 1), 10, {}, r"'convnt'\. Did you mean 'convnet'\?.*mlp"),
        ("convnet", (64,), 10, {}, r"takes images.*input_shape=\(64,\)\. Use the model 'mlp'"),
        ("resnet", (8, 8), 10, {}, r"takes images.*input_shape=\(8, 8\)"),
        ("mlp", (0,), 10, {}, r"`input_shape\[0\]` must be .* at least 1\. Received: 0"),
        ("mlp", (None, 3), 10, {}, r"`input_shape\[0\]`.*Received: None"),
        ("mlp", (64,), None, {}, r"`num_classes` must.*Received: None.*data\.num_classes"),
        ("mlp", (64,), 1, {}, r"`num_classes` must.*at least 2\. Received: 1"),
        ("mlp", (64,), True, {}, r"`num_classes` must.*Received: True"),
        ("convnet", (8, 8, 1), 10, {"filter": (3,)}, r"'filter'\. Did you mean 'filters'\?.*l2"),
        ("mlp", (64,), 10, {"num_classes": 3}, r"comes from the data.*num_classes=3"),
        ("convnet", (8, 8, 1), 10, {"filters": 3}, r"`filters` must be a tuple.*Write \(3,\)"),
        ("convnet", (8, 8, 1), 10, {"filters": ()}, r"`filters` must name at least one"),
        ("convnet", (8, 8, 1), 10, {"filters": (8, 2.5)}, r"`filters\[1\]`.*Received: 2\.5"),
        ("convnet", (8, 8, 1), 10, {"kernel_size": "3"}, r"`kernel_size` must.*Received: '3'"),
        ("mlp", (64,), 10, {"units": "64"}, r"`units` must be a tuple.*Received: '64'"),
        ("mlp", (64,), 10, {"activation": "relo"}, r"'relo'\. Did you mean 'relu'\?.*tanh"),
        ("mlp", (64,), 10, {"dropout": 1.0}, r"`dropout` must.*below 1.*Received: 1\.0"),
        ("mlp", (64,), 10, {"l2": -0.1}, r"`l2` must be a number from 0.*Received: -0\.1"),
        ("mlp", (64,), 10, {"l2": float("nan")}, r"`l2` must.*Received: nan"),
        ("mlp", (64,), 10, {"l1": {"dense": "x"}}, r"`l1\['dense'\]` must.*Received: 'x'"),
        (
            "convnet",
            (8, 8, 1),
            10,
            {"l2": {"dence": 0.1}},
            r"layer in `l2`.*'dence'\. Did you mean 'dense_1'\?.*conv_1, conv_2, dense_1, logits",
        ),
        ("mlp", (64,), 10, {"dropout": {"logits": 0.1}}, r"'logits'.*Known: dense_1\."),
        ("resnet", (8, 8, 1), 10, {"blocks": (1, 1)}, r"one number a stage.*blocks=\(1, 1\)"),
        ("regression_mlp", (4,), 0, {"num_outputs": 0}, r"`num_outputs`.*Received: 0"),
    ],
)
def test_bad_arguments_are_refused_with_the_way_out(
    name, input_shape, num_classes, arguments, message
):
    with pytest.raises(ValueError, match=message):
        build(name, input_shape, num_classes, **arguments)
