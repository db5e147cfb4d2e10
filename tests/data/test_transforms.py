"""Transforms against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tfscale.data import shards, transforms
from tfscale.data.batches import from_arrays

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (50, 4, 5, 3)).astype(np.uint8)
LABELS = RANDOM.randint(0, 4, 50)


def about(x=IMAGES, largest_value=None, num_classes=4):
    """What the transforms know about arrays, measured as `load` does it."""

    def measure(before):
        made = from_arrays(x, LABELS, global_batch_size=16)
        shares = made.epoch(shards.Shard())
        return transforms.measure([(before(share), count) for share, count in shares])

    spec = tf.nest.map_structure(lambda a: tf.TensorSpec(a.shape[1:], a.dtype), x)
    return transforms.About(spec, num_classes, largest_value, measure)


def applied(names, arguments=None, x=IMAGES, **known):
    transform = transforms.build(names, arguments or {}, about(x, **known))
    return transform((tf.nest.map_structure(tf.constant, x), tf.constant(LABELS)))


def test_rescale_divides_by_the_largest_value():
    assert np.allclose(applied(("rescale",))[0], IMAGES / 255, atol=1e-7)
    small = applied(("rescale",), largest_value=16)[0]
    assert small.dtype == tf.float32
    assert np.allclose(small, IMAGES / 16)
    given = applied(("rescale",), {"rescale": {"scale": 0.5, "offset": -1}})[0]
    assert np.allclose(given, IMAGES * 0.5 - 1)


def test_standardize_measures_each_channel():
    mean, stddev = IMAGES.mean((0, 1, 2)), IMAGES.std((0, 1, 2))
    assert np.allclose(applied(("standardize",))[0], (IMAGES - mean) / stddev, atol=1e-5)
    after = applied(("rescale", "standardize"))[0]
    assert np.allclose(after, (IMAGES - mean) / stddev, atol=1e-5)


def test_standardize_takes_given_numbers():
    given = {"standardize": {"mean": 0.25, "stddev": [1, 2, 4]}}
    expected = (IMAGES / 255 - 0.25) / np.array([1, 2, 4])
    assert np.allclose(applied(("rescale", "standardize"), given)[0], expected, atol=1e-6)


def test_standardize_measures_each_column_after_flatten_and_centres_constants():
    x = IMAGES.copy()
    x[:, 0, 0, 0] = 9
    found = applied(("flatten", "standardize"), x=x)[0].numpy()
    flat = x.reshape(50, -1).astype(np.float64)
    assert found.shape == (50, 60)
    assert np.all(found[:, 0] == 0)
    rest = (flat[:, 1:] - flat[:, 1:].mean(0)) / flat[:, 1:].std(0)
    assert np.allclose(found[:, 1:], rest, atol=1e-5)


def test_one_hot_encodes_labels():
    x, y = applied(("rescale", "one_hot"))
    assert y.dtype == tf.float32
    assert np.array_equal(y, np.eye(4)[LABELS])
    assert applied(("one_hot",), {"one_hot": {"num_classes": 7}})[1].shape == (50, 7)


def test_every_leaf_of_nested_inputs_is_transformed():
    x = {"a": IMAGES, "b": RANDOM.rand(50, 2).astype(np.float32)}
    found = applied(("standardize",), x=x)[0]
    assert np.allclose(found["b"], (x["b"] - x["b"].mean(0)) / x["b"].std(0), atol=1e-5)
    assert np.allclose(found["a"].numpy().mean((0, 1, 2)), 0, atol=1e-5)


def test_no_transform_keeps_the_type():
    assert applied(())[0].dtype == tf.uint8


@pytest.mark.parametrize(
    "names, arguments, words",
    [
        (("recsale",), {}, "Did you mean 'rescale'"),
        (("rescale",), {"rescale": {"scal": 1}}, "Did you mean 'scale'"),
        (("rescale",), {"flatten": {}}, "transform_arguments"),
        (("standardize",), {"standardize": {"mean": 0.1}}, "both mean and stddev"),
        (("standardize",), {"standardize": {"mean": 0.1, "stddev": 0}}, "stddev above zero"),
    ],
)
def test_bad_transforms_are_refused(names, arguments, words):
    with pytest.raises(ValueError, match=words):
        applied(names, arguments)


def test_transforms_refuse_what_they_cannot_know():
    with pytest.raises(ValueError, match="needs a scale"):
        applied(("rescale",), x=RANDOM.rand(50, 2))
    with pytest.raises(ValueError, match="needs the number of classes"):
        applied(("one_hot",), num_classes=None)
    with pytest.raises(ValueError, match="needs numbers"):
        applied(("rescale",), x=np.array([b"a"] * 50))
