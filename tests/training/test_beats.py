"""What fit, evaluate and predict say to the launcher while they work, and after an exception."""

import itertools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfscale
from tfscale import testing
from tfscale.cluster import pulse
from tfscale.strategy import make_strategy
from tfscale.training import loop, pace

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
BATCH_SECONDS = 0.1


@pytest.fixture
def heart(monkeypatch):
    """A launcher's view of this process."""
    made = pulse.Pulse()
    monkeypatch.setenv(pulse.VARIABLE, made.variable)
    monkeypatch.setattr(pulse, "_own", pulse._Own())
    monkeypatch.setattr("sys.excepthook", lambda *error: None)
    pulse.begin()
    yield made
    made.close()


@pytest.fixture
def beats(monkeypatch):
    """The moments of all beats, with their phases."""
    found, beat = [], pulse.beat

    def note(step, phase="train", epoch=-1, alone=False):
        found.append((time.monotonic(), phase))
        beat(step, phase, epoch, alone)

    monkeypatch.setattr(pulse, "beat", note)
    return found


@pytest.fixture
def executions(monkeypatch):
    """The batches of all executions of scoring."""
    found = []
    own = loop.Loop._agree_on_pace

    def note(self, step_seconds, ended):
        found.append(self._pace.steps)
        return own(self, step_seconds, ended)

    monkeypatch.setattr(loop.Loop, "_agree_on_pace", note)
    return found


def longest_gap(beats, phase):
    """The longest time between two beats of a phase that follow each other, in seconds."""
    pairs = itertools.pairwise(beats)
    return max(later - at for (at, first), (later, then) in pairs if first == then == phase)


def slow(x, y):
    """Batches of one that take their time."""

    def wait(value):
        time.sleep(BATCH_SECONDS)
        return value

    def waited(value, target):
        return tf.ensure_shape(tf.numpy_function(wait, [value], tf.float32), [1, 4]), target

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(1).map(waited)


class Mean(keras.Model):
    """A step of its own that reports a number which no metric holds."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def test_step(self, data):
        x, y = data
        return {"error": tf.reduce_mean(tf.abs(y - self(x))), **super().test_step(data)}


def network(kind=None):
    keras.utils.set_random_seed(2)
    model = kind() if kind else keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def test_a_slow_validation_beats_about_as_often_as_it_has_batches(beats):
    trainer = tfscale.Trainer(network())
    trainer.fit(X, Y, epochs=1, verbose=0, validation_data=slow(X[:20], Y[:20]))
    assert sum(phase == "evaluate" for _, phase in beats) >= 8
    assert longest_gap(beats, "evaluate") < 1.0  # of 20 batches of 0.1 s


@pytest.mark.parametrize("verbose", [0, 1])
def test_so_does_an_evaluation_by_keras_and_a_prediction(verbose, beats):
    tfscale.enable_keras_fit()
    try:
        with make_strategy("mirrored", 2).scope():
            model = network()
        model.evaluate(slow(X[:20], Y[:20]), verbose=verbose)
        assert longest_gap(beats, "evaluate") < 1.0
        model.predict(slow(X[:20], Y[:20]), verbose=0)
        assert longest_gap(beats, "predict") < 0.5
    finally:
        tfscale.disable_keras_fit()


def test_quick_batches_are_scored_many_at_a_time(executions):
    trainer = tfscale.Trainer(network())
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).repeat(30).batch(1)
    first = trainer.evaluate(dataset)
    assert executions[0] == 1 and len(executions) < 24 and max(executions) >= 64
    executions.clear()
    assert trainer.evaluate(dataset.take(16)) is not None
    assert executions == [16]  # a small pass behind another is one execution
    assert trainer.evaluate(dataset) == first


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("is_open_ended", [False, True])
def test_how_many_batches_are_taken_at_a_time_changes_no_bit(own, is_open_ended, monkeypatch):
    model = network(Mean if own else None)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)
    if is_open_ended:
        dataset = dataset.filter(lambda x, y: True)
    found = []
    for steps in (1, 2, 7, 14, 50):  # 14 batches
        monkeypatch.setattr(pace.ScoringPace, "begin", lambda self, k=steps: self.measured(k))
        monkeypatch.setattr(pace.ScoringPace, "choose", lambda self, seconds, k=steps: k)
        found.append(tfscale.Trainer(model).evaluate(dataset))
    assert all(scores == found[0] for scores in found) and len(found[0]) == 2 + own


class Stop(Exception):
    pass


class Fail(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise Stop

    on_test_begin = on_predict_begin = lambda self, logs=None: self.on_epoch_end(0)


def test_after_an_exception_that_a_script_catches_nothing_is_expected(heart):
    tfscale.enable_keras_fit()
    try:
        with make_strategy("mirrored", 2).scope():
            model = network()
        for work in (
            lambda: model.fit(X, Y, verbose=0, callbacks=[Fail()]),
            lambda: model.evaluate(X, Y, verbose=0, callbacks=[Fail()]),
            lambda: model.predict(X, verbose=0, callbacks=[Fail()]),
            lambda: tfscale.Trainer(model).fit(X, Y, verbose=0, callbacks=[Fail()]),
        ):
            with pytest.raises(Stop):
                work()
            assert heart.read().phase != "idle" and not heart.read().is_watched
        model.fit(X, Y, verbose=0)
        assert heart.read().phase == "idle"
    finally:
        tfscale.disable_keras_fit()


def test_after_a_step_alone_nothing_is_expected(heart):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    tfscale.Trainer(network()).take_one_step(dataset)
    assert not heart.read().is_watched


def _scoring_at_the_chiefs_pace():
    """Two workers, of which the other one's clock is no help: all take what the chief chooses."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfscale
    from tfscale import testing
    from tfscale.training import pace

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    chief, taken = tfscale.is_chief(), []
    measured = pace.ScoringPace.measured

    def note(self, chosen):
        taken.append(chosen)
        measured(self, chosen)

    pace.ScoringPace.measured = note
    if not chief:
        pace.ScoringPace.choose = lambda self, seconds: 999
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(300, 4)).astype("float32")
    scores = [
        tfscale.Trainer(model).evaluate(x, x[:, :1], global_batch_size=4)["loss"],
        tfscale.Trainer(model).evaluate(x, x[:, :1], global_batch_size=300)["loss"],
    ]
    testing.collect(taken=taken, scores=scores)


@pytest.mark.workers
def test_all_workers_score_at_the_chiefs_pace():
    chief, other = (w.arrays for w in testing.run_workers(_scoring_at_the_chiefs_pace, 2))
    np.testing.assert_array_equal(chief["taken"], other["taken"])
    assert len(chief["taken"]) > 3 and 999 not in chief["taken"]
    np.testing.assert_allclose(chief["scores"], chief["scores"][0], rtol=1e-5)
