"""What a user sees of `Trainer` beside equal numbers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale import testing
from tfscale.data import accept
from tfscale.strategy import make_strategy
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training.trainer import Trainer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [3.0]])).astype("float32")


def linear_trainer(strategy="onedevice", optimizer=None, layers=(), **trainer):
    made = make_strategy(strategy, 2 if strategy == "mirrored" else 0)
    keras.utils.set_random_seed(0)
    with made.scope():
        optimizer = keras.optimizers.SGD(0.1) if optimizer is None else optimizer
        optimizer = optimizer() if callable(optimizer) else optimizer
        model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
        model.compile(optimizer, "mse", metrics=["mae"])
    return Trainer(model, **trainer)


def test_a_linear_problem_is_solved():
    """The oracle is the closed form: the data are made from these weights."""
    trainer = linear_trainer("mirrored")
    history = trainer.fit(X, Y, global_batch_size=20, epochs=40, verbose=0)
    np.testing.assert_allclose(trainer.model.weights[0].numpy()[:, 0], [1, -2, 0.5, 3], atol=1e-3)
    assert history.history["loss"][-1] < 1e-5
    assert trainer.evaluate(X, Y)["mae"] < 1e-3


def test_a_model_that_was_made_without_a_strategy_trains():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    expected = keras.models.clone_model(model)
    expected.set_weights(model.get_weights())
    expected.compile(keras.optimizers.Adam(0.1), "mse")
    Trainer(model).fit(X, Y, global_batch_size=20, epochs=2, shuffle=False, verbose=0)
    expected.fit(X, Y, batch_size=20, epochs=2, shuffle=False, verbose=0)
    for own, other in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-6)


def test_metrics_count_every_example_once():
    trainer = linear_trainer("mirrored")
    scores = trainer.evaluate(X[:37], Y[:37], global_batch_size=16)
    errors = X[:37] @ trainer.model.weights[0].numpy() + trainer.model.weights[1].numpy() - Y[:37]
    np.testing.assert_allclose(scores["loss"], np.mean(errors**2), rtol=1e-5)
    np.testing.assert_allclose(scores["mae"], np.mean(np.abs(errors)), rtol=1e-5)


@pytest.mark.parametrize("strategy", ["onedevice", "mirrored"])
def test_predictions_are_in_the_original_order(strategy):
    trainer = linear_trainer(strategy)
    expected = X[:37] @ trainer.model.weights[0].numpy() + trainer.model.weights[1].numpy()
    outputs = trainer.predict(X[:37], global_batch_size=16)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_steps_per_execution_changes_no_number():
    curves = [
        linear_trainer().fit(X, Y, epochs=3, steps_per_execution=k, verbose=0).history["loss"]
        for k in (1, 3, None)
    ]
    np.testing.assert_array_equal(curves[0], curves[1])
    np.testing.assert_array_equal(curves[0], curves[2])


def test_callbacks_are_called_once_an_execution():
    seen = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: seen.append(step)
    )
    linear_trainer().fit(
        X, Y, global_batch_size=10, epochs=1, steps_per_execution=4, callbacks=[callback], verbose=0
    )
    assert seen == [3, 7, 9]


def test_early_stopping_stops_and_restores():
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    trainer = linear_trainer("mirrored", keras.optimizers.SGD(1.2))
    before = trainer.model.get_weights()
    history = trainer.fit(X, Y, epochs=9, validation_data=(X, Y), callbacks=[stopping], verbose=0)
    assert len(history.history["loss"]) < 9
    assert not np.array_equal(before[0], trainer.model.get_weights()[0])


class _Drop(keras.layers.Layer):
    """Shows the masks: its output does not depend on the input."""

    def __init__(self):
        super().__init__()
        self.dropout = keras.layers.Dropout(0.5, seed=3)

    def call(self, x, training=False):
        return self.dropout(tf.ones_like(x), training=training)


def _masks(strategy):
    """The dropout masks that each replica draws in two steps."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = keras.Sequential([keras.Input((64,)), _Drop()])
        model.compile(keras.optimizers.SGD(0.0), "mse")
    masks = []

    def step(model, data):
        mask = model(data[0], training=True)
        tf.py_function(lambda m: masks.append(m.numpy()), [mask], [])
        return {"mean": tf.reduce_mean(mask)}

    history = Trainer(model, step=step).fit(
        np.ones((8, 64), "float32"), np.ones((8, 64), "float32"), global_batch_size=4, verbose=0
    )
    return masks, history.history["mean"][0]


def test_dropout_masks_differ_between_replicas_and_repeat_between_runs():
    masks, mean = _masks(make_strategy("mirrored", 2))
    again, mean_again = _masks(make_strategy("mirrored", 2))
    assert len(masks) == 4
    flat = {mask.tobytes() for mask in masks}
    assert len(flat) == 4, "two replicas or two steps drew the same mask"
    assert flat == {mask.tobytes() for mask in again}
    assert mean == mean_again and 0.8 < mean < 1.2


def test_local_batch_normalization_is_named(caplog):
    layers = [keras.layers.BatchNormalization(name="local_norm")]
    linear_trainer("mirrored", layers=layers).fit(X, Y, verbose=0)
    assert "local_norm" in caplog.text and "synchronized=True" in caplog.text


def test_one_replica_is_not_warned_about_batch_normalization(caplog):
    linear_trainer("onedevice", layers=[keras.layers.BatchNormalization()]).fit(X, Y, verbose=0)
    assert "synchronized" not in caplog.text


@pytest.mark.parametrize("strategy", ["onedevice", "mirrored"])
def test_a_run_cut_off_in_an_epoch_goes_on_at_its_step(strategy, tmp_path):
    def trainer():
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
        return linear_trainer(strategy, lambda: keras.optimizers.Adam(schedule))

    arguments = {"global_batch_size": 10, "epochs": 3, "steps_per_execution": 2, "verbose": 0}
    undisturbed = trainer()
    expected = undisturbed.fit(X, Y, **arguments)

    class CutOff(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() >= 17:
                raise InterruptedError

    checkpoints = checkpoint_lib.Checkpoints(tmp_path)
    saving = {**arguments, "checkpoints": checkpoints, "save_every_steps": 4}
    with pytest.raises(InterruptedError):
        trainer().fit(X, Y, **saving, callbacks=[CutOff()])
    saved = checkpoint_lib.read(checkpoints.path(checkpoints.newest()))
    assert saved.step == 16, "in the middle of the second epoch"
    resumed = trainer()
    history = resumed.fit(X, Y, **saving, resume_from=saved)
    for mine, theirs in zip(resumed.model.weights, undisturbed.model.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-7)
    assert history.epoch == expected.epoch
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-6)
    np.testing.assert_allclose(history.history["mae"], expected.history["mae"], rtol=1e-6)


def test_callbacks_begin_an_epoch_once_where_a_run_goes_on_within_it(tmp_path):
    class Begun(keras.callbacks.Callback):
        epochs = ()

        def on_epoch_begin(self, epoch, logs=None):
            self.epochs = [*self.epochs, epoch]

        def get_state(self):
            return self.epochs

        def set_state(self, state):
            self.epochs = state

    class CutOff(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() >= 17:
                raise InterruptedError

    def fit(own=(), **saving):
        trainer, begun = linear_trainer(), Begun()
        slower = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate)
        arguments = {"global_batch_size": 10, "epochs": 3, "steps_per_execution": 2, "verbose": 0}
        trainer.fit(X, Y, callbacks=[begun, slower, *own], **arguments, **saving)
        return trainer.model, begun

    expected, begun = fit()
    checkpoints = checkpoint_lib.Checkpoints(tmp_path)
    saving = {"checkpoints": checkpoints, "save_every_steps": 4}
    with pytest.raises(InterruptedError):
        fit([CutOff()], **saving)
    saved = checkpoint_lib.read(checkpoints.path(checkpoints.newest()))
    resumed, begun_again = fit(resume_from=saved, **saving)
    assert begun_again.epochs == begun.epochs == [0, 1, 2]
    for mine, theirs in zip(resumed.weights, expected.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-7)


def test_a_run_that_early_stopping_had_ended_does_not_go_on(tmp_path):
    checkpoints = checkpoint_lib.Checkpoints(tmp_path)
    arguments = {"epochs": 5, "global_batch_size": 10, "verbose": 0}

    def fit(resume_from=None):
        stopping = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
        return linear_trainer().fit(
            X,
            Y,
            callbacks=[stopping],
            checkpoints=checkpoints,
            resume_from=resume_from,
            **arguments,
        )

    ended = fit()
    assert ended.epoch == [0, 1]
    saved = checkpoint_lib.read(checkpoints.path(checkpoints.newest()))
    assert fit(saved).epoch == [0, 1]


def test_two_replicas_go_on_with_what_one_device_saved(tmp_path):
    checkpoints = checkpoint_lib.Checkpoints(tmp_path)
    arguments = {"global_batch_size": 10, "verbose": 0}
    linear_trainer().fit(X, Y, epochs=1, checkpoints=checkpoints, **arguments)
    saved = checkpoint_lib.read(checkpoints.path(checkpoints.newest()))
    resumed = linear_trainer("mirrored").fit(X, Y, epochs=3, resume_from=saved, **arguments)
    expected = linear_trainer().fit(X, Y, epochs=3, **arguments)
    np.testing.assert_allclose(resumed.history["loss"], expected.history["loss"], rtol=1e-5)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = checkpoint_lib.Checkpoints(tmp_path)
    linear_trainer().fit(X, Y, checkpoints=checkpoints, verbose=0)
    saved = checkpoint_lib.read(checkpoints.path(checkpoints.newest()))
    other = linear_trainer(layers=[keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"same model, optimizer and metrics.*Received"):
        other.fit(X, Y, resume_from=saved, verbose=0)


def test_a_model_that_nothing_says_how_to_train_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"must be compiled.*step"):
        Trainer(model)


def test_an_optimizer_made_outside_the_scope_is_refused():
    trainer = linear_trainer("mirrored", keras.optimizers.Adam(0.1))
    with pytest.raises(ValueError, match="in the scope of the strategy.*Adam"):
        trainer.fit(X, Y, verbose=0)


def test_a_batch_smaller_than_the_number_of_replicas_is_refused():
    with pytest.raises(ValueError, match=r"global_batch_size=1 with 2 replicas"):
        linear_trainer("mirrored").fit(X, Y, global_batch_size=1, verbose=0)


def test_lines_are_printed_where_there_is_no_terminal(capsys):
    linear_trainer().fit(X, Y, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert "loss" in lines[0] and "mae" in lines[0]


def _stop_on_one_worker():
    """Only the last worker asks to stop; all must stop at the same step."""
    import keras
    import numpy as np

    from tfscale import testing
    from tfscale.strategy import make_strategy
    from tfscale.training.trainer import Trainer

    strategy = make_strategy("multiworker")
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    trainer = Trainer(model)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if trainer.shard.worker == 1 and trainer.progress.step == 3:
                self.model.stop_training = True

    x = np.ones((80, 4), "float32")
    history = trainer.fit(
        x, x[:, :1], global_batch_size=8, epochs=9, steps_per_execution=1, callbacks=[Stop()]
    )
    predictions = trainer.predict(np.arange(28, dtype="float32").reshape(7, 4))
    testing.collect(
        step=trainer.progress.step,
        loss=history.history["loss"],
        predictions=predictions,
        chief=trainer.is_chief,
    )


@pytest.mark.workers
def test_one_worker_stops_all_at_the_same_step():
    first, second = testing.run_workers(_stop_on_one_worker, 2)
    assert first.arrays["step"] == second.arrays["step"] == 3
    np.testing.assert_array_equal(first.arrays["loss"], second.arrays["loss"])
    assert first.arrays["predictions"].shape == (7, 1)
    np.testing.assert_array_equal(first.arrays["predictions"], second.arrays["predictions"])
    assert "loss" in first.output and "loss" not in second.output, "the chief alone speaks"


def test_a_stream_cut_by_file_begins_the_epoch_again_on_other_workers(tmp_path, caplog):
    class ByFile(type(accept.as_batches(X))):
        def same_order(self, shard, num_workers):
            return num_workers == shard.num_workers

    def data():
        made = accept.as_batches(X, Y, global_batch_size=10)
        made.__class__ = ByFile
        return made

    checkpoints = checkpoint_lib.Checkpoints(tmp_path, keep_last=9)
    arguments = {"epochs": 2, "verbose": 0, "checkpoints": checkpoints, "save_every_steps": 4}
    linear_trainer().fit(data(), **arguments)
    saved = checkpoint_lib.read(checkpoints.path(16))
    trainer = linear_trainer()
    trainer.fit(data(), **arguments, resume_from=saved)
    assert trainer.progress.step == 20 and "begins again" not in caplog.text
    saved.facts["num_workers"] = 2
    trainer = linear_trainer()
    trainer.fit(data(), **arguments, resume_from=saved)
    assert trainer.progress.step == 16 + 10 and "Epoch 2 begins again" in caplog.text


def test_another_number_of_steps_an_epoch_is_refused_within_one(tmp_path):
    checkpoints = checkpoint_lib.Checkpoints(tmp_path, keep_last=9)
    linear_trainer().fit(
        X, Y, global_batch_size=10, checkpoints=checkpoints, save_every_steps=4, verbose=0
    )
    within = checkpoint_lib.read(checkpoints.path(8))
    with pytest.raises(ValueError, match=r"at step 8 of 10 in its epoch.*now has 5"):
        linear_trainer().fit(X, Y, global_batch_size=20, resume_from=within, verbose=0)
    at_the_end = checkpoint_lib.read(checkpoints.path(10))
    history = linear_trainer().fit(
        X, Y, global_batch_size=20, epochs=2, resume_from=at_the_end, verbose=0
    )
    assert history.epoch == [0, 1]


@pytest.mark.parametrize("strategy", ["onedevice", "mirrored"])
def test_a_compiled_step_gives_the_same_numbers(strategy):
    curves = [
        linear_trainer(strategy, jit_compile=jit).fit(X, Y, epochs=3, verbose=0).history
        for jit in (False, True)
    ]
    for name, values in curves[0].items():
        np.testing.assert_allclose(curves[1][name], values, rtol=1e-5, err_msg=name)


def test_a_model_compiled_anew_is_trained_anew():
    trainer = linear_trainer("mirrored")
    trainer.fit(X, Y, verbose=0)
    with trainer.strategy.scope():
        trainer.model.compile(keras.optimizers.SGD(1e-9), "mse", metrics=["mae"])
    before = trainer.model.get_weights()
    trainer.fit(X, Y, verbose=0)
    np.testing.assert_allclose(before[0], trainer.model.get_weights()[0], atol=1e-6)
    assert trainer.model.optimizer.iterations.numpy() == 4


class OwnLoop:
    """A step as a bound method, for a model that was never compiled."""

    def __init__(self, model):
        self.optimizer = keras.optimizers.SGD(0.1)
        self.optimizer.build(model.trainable_variables)

    def step(self, model, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        self.optimizer.apply(gradients, model.trainable_variables)
        return {"loss": loss}


def test_a_step_trains_a_model_without_compile():
    curves = []
    for strategy in (make_strategy("onedevice"), make_strategy("mirrored", 2)):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            loop = OwnLoop(model)
        trainer = Trainer(model, step=loop.step)
        curves.append(trainer.fit(X, Y, epochs=3, verbose=0).history["loss"])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
    assert curves[0][-1] < curves[0][0] / 2


def test_a_callback_that_stops_stops_at_once():
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda step, logs: setattr(trainer.model, "stop_training", step == 3)
    )
    trainer = linear_trainer("mirrored")
    trainer.fit(
        X, Y, global_batch_size=10, steps_per_execution=2, epochs=3, callbacks=[stop], verbose=0
    )
    assert trainer.progress.step == 4


def test_a_metric_of_several_numbers_is_a_list():
    trainer = linear_trainer("mirrored")
    with trainer.strategy.scope():
        trainer.model.compile("sgd", "mse", metrics=[keras.metrics.F1Score()])
    history = trainer.fit(X, (Y > 0).astype("float32"), epochs=1, verbose=2)
    assert len(history.history["f1_score"][0]) == 1


def test_a_step_without_source_is_taken_as_it_is():
    names = {"tf": tf}
    exec(
        "def step(model, data):\n"
        "    with tf.GradientTape() as tape:\n"
        "        loss = tf.reduce_mean(tf.square(model(data[0], training=True) - data[1]))\n"
        "    gradients = tape.gradient(loss, model.trainable_variables)\n"
        "    model.optimizer.apply(gradients, model.trainable_variables)\n"
        "    return loss\n",
        names,
    )
    trainer = linear_trainer("mirrored", step=names["step"])
    history = trainer.fit(X, Y, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
