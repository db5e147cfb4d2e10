"""What is measured of the steps is right, and measuring changes no bit of what they do."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale import models
from tfscale.strategy import make_strategy
from tfscale.training import probe
from tfscale.training.measures import Measures
from tfscale.training.profile import Profile
from tfscale.training.trainer import Trainer

X = np.random.default_rng(0).normal(size=(44, 4)).astype("float32")
Y = (X @ np.ones((4, 1), "float32")) + 1
STRATEGIES = {"one": ("onedevice", 0), "mirrored": ("mirrored", 2)}


class Taken(keras.callbacks.Callback):
    """Takes what was measured after each execution."""

    def __init__(self, measures):
        super().__init__()
        self.measures, self.taken, self.histograms = measures, [], []

    def on_train_batch_end(self, batch, logs=None):
        self.taken.append(self.measures.take())
        self.histograms.append(self.measures.take_histograms())


def linear(strategy, optimizer):
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="d")])
        model.compile(optimizer(), "mse")
    return model


def fitted(model, measures, x=X, y=Y, **options):
    """Train, and return what was taken after each execution."""
    callback = Taken(measures)
    given = {"global_batch_size": 8, "shuffle": False, "verbose": 0, "steps_per_execution": 1}
    Trainer(model).fit(x, y, measures=measures, callbacks=[callback], **given | options)
    return callback


def arrays(model):
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


@pytest.mark.parametrize("where", STRATEGIES)
@pytest.mark.parametrize("clipnorm", [None, 0.01])
def test_norm_of_gradients_is_that_of_the_whole_batch_before_clipping(where, clipnorm):
    """The last batch has four examples, so two replicas have two each."""
    strategy = make_strategy(*STRATEGIES[where])
    keras.utils.set_random_seed(1)
    model = linear(strategy, lambda: keras.optimizers.SGD(0.1, clipnorm=clipnorm))
    expected, weights = [], [w.copy() for w in model.get_weights()]
    for begin in range(0, len(X), 8):
        x, y = X[begin : begin + 8], Y[begin : begin + 8]
        error = x @ weights[0] + weights[1] - y
        gradients = [2 * x.T @ error / len(x), 2 * error.mean(0)]
        expected.append(np.sqrt(sum(np.sum(g**2) for g in gradients)))
        for w, g in zip(weights, gradients, strict=True):
            norm = np.sqrt(np.sum(g**2))
            w -= 0.1 * g * (min(1, clipnorm / norm) if clipnorm else 1)
    found = fitted(model, Measures(1)).taken
    assert [t["gradient_norm"] for t in found] == pytest.approx(expected, rel=1e-4)
    last = np.sqrt(sum(np.sum(w**2) for w in model.get_weights()))
    assert found[-1]["weight_norm"] == pytest.approx(last, rel=1e-5)


def test_norms_come_at_multiples_and_at_the_end_of_an_epoch():
    model = linear(make_strategy("onedevice"), keras.optimizers.SGD)
    found = fitted(model, Measures(4)).taken
    assert ["gradient_norm" in t for t in found] == [False, False, False, True, False, True]


def test_rows_of_an_embedding_count_once_in_the_norm():
    with make_strategy("onedevice").scope():
        model = keras.Sequential(
            [keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 2, name="e")]
        )
        model.compile(keras.optimizers.SGD(1.0), "mse")
    x, y = np.array([[1, 1, 2]] * 2, "int32"), np.ones((2, 3, 2), "float32")
    before = arrays(model)
    found = fitted(model, Measures(1), x, y).taken
    step = np.linalg.norm(arrays(model) - before)
    assert found[0]["gradient_norm"] == pytest.approx(step, rel=1e-5)


def test_histograms_count_every_number_of_weights_and_gradients():
    model = linear(make_strategy("onedevice"), keras.optimizers.SGD)
    found = fitted(model, Measures(1, 3)).histograms
    assert [bool(h) for h in found] == [False, False, True, False, False, True]
    paths = [v.path for v in model.weights]
    assert found[-1].keys() == {f"{k}/{p}" for k in ("weights", "gradients") for p in paths}
    kernel = model.get_weights()[0]
    low, high, *counts = found[-1][f"weights/{paths[0]}"]
    assert (low, high) == pytest.approx((kernel.min(), kernel.max()))
    assert sum(counts) == kernel.size
    assert sum(found[-1][f"gradients/{paths[1]}"][2:]) == 1  # of one number alone


@pytest.mark.parametrize("values", [[0.0] * 3, [5.0], [-1e30, 1e30], [1.0, np.nan], [np.inf, 0.0]])
def test_histogram_of_any_numbers_ends_well(values):
    low, high, *counts = probe.histogram(tf.constant(values)).numpy()
    assert np.isfinite([low, high]).all() == np.isfinite(values).all()
    assert sum(counts) == len(values)


def _sleep(value):
    time.sleep(0.05)
    return value


def test_waiting_for_input_is_told_from_computing():
    def slowly(x, y):
        [x] = tf.py_function(lambda v: [_sleep(v)], [x], [tf.float32])
        return tf.ensure_shape(x, [None, 4]), y

    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).map(slowly)
    model = linear(make_strategy("onedevice"), keras.optimizers.SGD)
    measures = Measures(1)
    Trainer(model).fit(data, measures=measures, verbose=0, steps_per_execution=3)
    times = measures.take()["workers"]
    assert times["input"][0] > 0.02
    assert times["input"][0] > times["compute"][0] + times["exchange"][0]


def _own_step(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((y - model(x, training=True)) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return {"loss": loss}


def _accumulating():
    return keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)


CASES = {
    "adam": {"optimizer": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1)},
    "skip": {"optimizer": keras.optimizers.Adam, "fit": {"on_bad_loss": "skip"}},
    "own": {"optimizer": keras.optimizers.Adam, "trainer": {"step": _own_step}},
    "accumulation": {"optimizer": _accumulating},
    "float16": {"optimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())},
    "jit": {"optimizer": keras.optimizers.Adam, "trainer": {"jit_compile": True}},
}


class EveryThird(Measures):
    """Leaves two of three executions without measuring, as the chief does with short steps."""

    def vote(self, step_seconds, steps_left):
        self.voted = getattr(self, "voted", 0) + 1
        return int(self.voted % 3 > 0)


@pytest.mark.parametrize("where", STRATEGIES)
def test_what_is_due_while_nothing_is_measured_comes_when_something_is(where):
    """Two epochs of six steps; the norm is due in the third, sixth, ninth and last step."""
    model = linear(make_strategy(*STRATEGIES[where]), keras.optimizers.SGD)
    found = fitted(model, EveryThird(3, 6), epochs=2)
    measured = [0, 3, 6, 9]
    assert [i for i, t in enumerate(found.taken) if "workers" in t] == measured[1:]
    assert [i for i, t in enumerate(found.taken) if "gradient_norm" in t] == measured[1:]
    assert [i for i, h in enumerate(found.histograms) if h] == [6]


@pytest.mark.parametrize(
    ("step_seconds", "steps_left", "share"),
    [(0.1, 1e9, 1), (0.002, 1e6, 1 / 4), (0.0005, 1e6, 1 / 16), (0.002, 1000, 1), (None, 9, 1)],
)
def test_of_short_steps_few_are_measured_if_it_repays_the_trace(step_seconds, steps_left, share):
    measures = Measures(1)
    measures.begin(None, None, [])
    time.sleep(0.05)  # as if it were traced
    measures.is_on = False
    measures.add({}, 1)
    votes = [measures.vote(step_seconds, steps_left) for _ in range(48)]
    assert votes.count(0) / len(votes) == share


def weights_after(case, where, measures):
    strategy = make_strategy(*STRATEGIES[where])
    keras.utils.set_random_seed(3)
    x = np.random.default_rng(1).random((60, 8, 8, 1), dtype="float32")
    y = np.random.default_rng(2).random((60, 10), dtype="float32")
    with strategy.scope():
        model = models.build("convnet", (8, 8, 1), 10, dropout=0.2)
        model.compile(case["optimizer"](), "mse")
    trainer = Trainer(model, **case.get("trainer", {}))
    options = {"global_batch_size": 16, "epochs": 2, "verbose": 0, "steps_per_execution": 2}
    trainer.fit(x, y, measures=measures, **options, **case.get("fit", {}))
    return arrays(model)


def _slow(names):
    """Each case traces two or three models: one goes into `make test`, the others do not."""
    return [n if n == names[0] else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("where", STRATEGIES)
@pytest.mark.parametrize("name", _slow(list(CASES)))
def test_measuring_changes_no_bit_of_the_weights(name, where):
    plain = weights_after(CASES[name], where, None)
    np.testing.assert_array_equal(plain, weights_after(CASES[name], where, Measures(1, 4)))
    np.testing.assert_array_equal(plain, weights_after(CASES[name], where, EveryThird(1, 4)))
    assert np.isfinite(plain).all()


@pytest.mark.parametrize("steps", ["", "10", "7:7", "9:3", "a:b", "1:2:3"])
def test_steps_to_profile_are_two_numbers(steps, tmp_path):
    with pytest.raises(ValueError, match="FIRST:LAST"):
        Profile(steps, tmp_path)


def test_profile_is_of_these_steps_and_ends_with_the_run(tmp_path):
    model = linear(make_strategy("onedevice"), keras.optimizers.SGD)
    looks = []

    class Looks(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            looks.append(batch + 1)

    options = {"global_batch_size": 4, "verbose": 0, "steps_per_execution": 5}
    profile = Profile("3:4", tmp_path)
    Trainer(model).fit(X, Y, profile=profile, callbacks=[Looks()], **options)
    assert looks == [3, 4, 9, 11]
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    Trainer(model).fit(X, Y, profile=Profile("9:99", tmp_path / "late"), **options)
    assert len(list((tmp_path / "late").rglob("*.xplane.pb"))) == 1
