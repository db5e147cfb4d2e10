"""Losses and metrics by Keras' identifiers."""

import keras
import numpy as np
import pytest

from tfscale.models.objectives import build_loss, build_metrics, with_logits

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]], "float32")
LABELS = np.array([0, 2])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize(
    "name", ["sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"]
)
def test_loss_takes_the_arguments_of_its_class(name):
    loss = build_loss(name, {"from_logits": True})
    expected = -log_softmax(LOGITS)[[0, 1], LABELS].mean()
    np.testing.assert_allclose(float(loss(LABELS, LOGITS)), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss_class"),
    [
        ("mse", keras.losses.MeanSquaredError),
        ("MAE", keras.losses.MeanAbsoluteError),
        ("mean_squared_error", keras.losses.MeanSquaredError),
        ("kld", keras.losses.KLDivergence),
        ("bce", keras.losses.BinaryCrossentropy),
        ("log_cosh", keras.losses.LogCosh),
        ("Huber", keras.losses.Huber),
    ],
)
def test_every_spelling_of_a_loss_is_the_class(name, loss_class):
    assert type(build_loss(name, {})) is loss_class


def test_every_loss_of_keras_is_found_by_its_function():
    functions = [name for name in dir(keras.losses) if name.islower() and name[0] != "_"]
    for name in set(functions) - {"get", "serialize", "deserialize"}:
        assert isinstance(build_loss(name, {}), keras.losses.Loss)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mean_square_error", {}, r"`loss\.name`.*Did you mean 'mean_squared_error'\?.*huber"),
        (3, {}, r"`loss\.name` is unknown\. Received: 3"),
        ("mse", {"from_logits": True}, r"the loss 'mse'.*'from_logits'"),
        ("huber", {"detla": 1.0}, r"'detla'\. Did you mean 'delta'\?"),
        ("huber", {"reduction": "some"}, r"`loss\.arguments` must.*Received: .*Keras says:.*some"),
    ],
)
def test_bad_loss_is_refused_with_the_way_out(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_loss(name, arguments)


def test_accuracy_is_left_to_compile_which_knows_the_shapes():
    assert build_metrics(("accuracy",), from_logits=True) == ["accuracy"]
    assert build_metrics(["acc"]) == ["accuracy"]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Identity()])
    loss = build_loss("sparse_categorical_crossentropy", {"from_logits": True})
    model.compile(loss=loss, metrics=build_metrics(("accuracy",), from_logits=True))
    scores = model.evaluate(LOGITS, LABELS, verbose=0, return_dict=True)
    assert scores["accuracy"] == 0.5


def test_names_in_the_log_do_not_depend_on_what_was_made_before():
    for _ in range(2):
        names = [metric.name for metric in build_metrics(("AUC", "mae", "recall"))]
        assert names == ["auc", "mean_absolute_error", "recall"]


def test_crossentropy_metric_is_told_about_logits():
    (metric,) = build_metrics(("sparse_categorical_crossentropy",), from_logits=True)
    metric.update_state(LABELS, LOGITS)
    expected = -log_softmax(LOGITS)[[0, 1], LABELS].mean()
    np.testing.assert_allclose(float(metric.result()), expected, rtol=1e-6)


def test_half_is_the_threshold_of_a_probability_and_zero_of_a_logit():
    truth = np.array([[1.0], [1.0], [0.0]])
    logits = np.array([[0.2], [-0.2], [-3.0]])
    for from_logits, predictions in ((True, logits), (False, 1 / (1 + np.exp(-logits)))):
        (metric,) = build_metrics(("binary_accuracy",), from_logits=from_logits)
        metric.update_state(truth, predictions)
        np.testing.assert_allclose(float(metric.result()), 2 / 3, rtol=1e-6)


def test_logits_are_the_default_where_a_loss_takes_them():
    assert with_logits("sparse_categorical_crossentropy", {}) == {"from_logits": True}
    assert with_logits("binary_crossentropy", {"from_logits": False}) == {"from_logits": False}
    assert with_logits("mse", {}) == {}


@pytest.mark.parametrize(
    ("names", "from_logits", "message"),
    [
        (("acuracy",), False, r"`metrics\.names`.*'acuracy'\. Did you mean 'accuracy'\?"),
        ("accuracy", False, r"must be a tuple.*Write \('accuracy',\)"),
        (("mse", "mean_squared_error"), False, r"once.*'mean_squared_error' twice"),
        (("mean_io_u",), False, r"need no arguments.*needs num_classes"),
        (("precision",), True, r"takes probabilities.*'precision'"),
        (("ce",), True, r"from probabilities.*'sparse_categorical_crossentropy'"),
    ],
)
def test_bad_metric_is_refused_with_the_way_out(names, from_logits, message):
    with pytest.raises(ValueError, match=message):
        build_metrics(names, from_logits=from_logits)
