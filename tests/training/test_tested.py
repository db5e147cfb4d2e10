"""What is kept and drawn of a test split: little of it, whatever its size."""

import io
import weakref

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfscale.data import batches
from tfscale.monitor import pictures
from tfscale.training import tested


def split(num_examples, classes, size=8):
    """A split of noise whose images tell their position, and outputs of which half are wrong."""
    x = np.random.default_rng(0).random((num_examples, size, size, 1), np.float32)
    x[:, 0, 0, 0] = np.arange(num_examples)
    y = np.arange(num_examples) % classes
    outputs = np.full((num_examples, classes), 0.1 / classes, np.float32)
    said = np.where(np.arange(num_examples) % 2, (y + 1) % classes, y)
    outputs[np.arange(num_examples), said] = 0.9
    return batches.from_arrays(x, y, global_batch_size=10), outputs


def test_of_a_split_two_batches_are_held_at_once_and_the_worst_are_found(monkeypatch):
    data, outputs = split(400, 4)
    outputs[[7, 251, 399]] = np.eye(4)[[(i + 1) % 4 for i in (7, 251, 399)]]  # the worst ones
    read, alive = data.epoch, []

    def epoch(shard):
        for element in read(shard):
            alive.append(weakref.ref(element[0][0]))
            yield element
            assert sum(ref() is not None for ref in alive) <= 2

    data.epoch = epoch
    drawn = []
    monkeypatch.setattr(pictures, "grid", lambda images, captions: drawn.append((images, captions)))
    result = tested.Tested(data, outputs)
    result.worst()
    [(images, captions)] = drawn
    assert images[:3, 0, 0, 0].tolist() == [7, 251, 399] and len(images) == 32
    assert captions[:3] == ["3 as 0"] * 3
    assert len(alive) == 2 * 40


@pytest.mark.parametrize(("classes", "shown"), [(4, 4), (200, 200), (10_000, 40)])
def test_of_many_classes_the_most_confused_are_drawn(monkeypatch, classes, shown):
    data, outputs = split(30, classes)
    drawn = []
    monkeypatch.setattr(pictures, "confusion", lambda *arguments: drawn.append(arguments))
    tested.Tested(data, outputs).confusion()
    [(counts, names, totals, title)] = drawn
    assert counts.shape == (shown, shown)
    assert bool(title) == (classes > shown)
    assert counts.sum() == 30 and totals.sum() == 30
    assert counts[names.index("1"), names.index("2")] == (8 if classes == 4 else 1)


@pytest.mark.parametrize(("num_examples", "classes"), [(10_001, 5000), (2**40, 2)])
def test_outputs_that_fill_the_memory_are_not_asked_for(num_examples, classes):
    class Asked:
        class model:
            output_shape = (None, classes)

    data, _ = split(10, 2)
    data.num_examples = num_examples
    assert tested.probabilities(Asked, data, classes, True) is None


def test_large_images_are_drawn_small_and_noise_of_them_is_no_large_file():
    images = np.random.default_rng(0).random((32, 512, 384, 3), np.float32)
    png, size = pictures.grid(images, ["a" * 80] * 32)
    assert len(png) < 2_000_000
    assert size == (8 * max(120, 24 * 6) + 8 * 8, 4 * (160 + 13 + 8))
    assert Image.open(io.BytesIO(png)).size == size


@pytest.mark.parametrize(
    ("y", "num_classes", "names", "captions"),
    [
        ([2, 0], 3, (), ["2", "0"]),
        ([[2], [0]], 3, ("a", "b", "c"), ["c", "a"]),
        ([[0.0, 1, 0], [1, 0, 0]], 3, ("a", "b", "c"), ["b", "a"]),
        ([[0.25, 1.5], [1, 2]], None, (), ["0.25 1.5", "1 2"]),
        ([0.125, 3], None, (), ["0.125", "3"]),
        ([[[1.0]], [[2.0]]], None, (), ["", ""]),
        ({"a": [1, 2], "b": [3.0, 4.0]}, 3, (), ["", ""]),
    ],
)
def test_captions_say_what_the_target_is(y, num_classes, names, captions):
    y = {k: tf.constant(v) for k, v in y.items()} if isinstance(y, dict) else tf.constant(y)
    assert tested.captions(y, num_classes, names) == captions


def test_mistakes_and_curves_have_the_names_of_the_classes(monkeypatch):
    data, outputs = split(8, 2)
    drawn = []
    monkeypatch.setattr(pictures, "grid", lambda images, captions: drawn.extend(captions))
    result = tested.Tested(data, outputs, ("cat", "dog"))
    result.worst()
    assert drawn == ["dog as cat"] * 4
    assert [name for name, _ in result.counts()] == ["cat", "dog"]
