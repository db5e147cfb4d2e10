"""Calls of `fit` in a folder: what had ended returns at once, what was interrupted goes on."""

import json
import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import tfscale
from tfscale.monitor import story
from tfscale.strategy import make_strategy
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import fits
from tfscale.training.checkpoint import Checkpoints
from tfscale.training.loop import Loop
from tfscale.training.trainer import Trainer

X = np.random.default_rng(0).normal(size=(80, 4)).astype("float32")
Y = X @ np.ones((4, 1), "float32")
SMALL = {"global_batch_size": 10, "verbose": 0, "steps_per_execution": 1, "save_every_steps": 3}


class Interrupted(Exception):
    pass


class After(keras.callbacks.Callback):
    """Does something once, behind the steps that it counts."""

    def __init__(self, steps, action):
        super().__init__()
        self.left, self.action = steps, action

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            self.action()


def fail():
    raise Interrupted


def begin_anew():
    """Let this process be a new one, as far as the numbers of calls go."""
    fits._of_folders.clear()


def small_trainer(seed, **options):
    keras.utils.set_random_seed(seed)
    within = tf.distribute.has_strategy()  # another's `fit`
    strategy = tf.distribute.get_strategy() if within else make_strategy("onedevice")
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.01), "mse")
    return Trainer(model, **options)


def test_without_a_strategy_a_call_is_logged_too(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    Trainer(model, run_dir=tmp_path).fit(X, Y, epochs=1, **SMALL)
    [begin, *_] = story.read(tmp_path / "fits/1/events.jsonl")
    assert begin["best"] == [["mae", "min"], ["loss", "min"]]


def program(folder, steps=10**6, action=fail):
    """Two calls of `fit` of one program, interrupted behind so many steps; what they gave."""
    begin_anew()
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    with make_strategy("mirrored", 2).scope():
        layers = [keras.layers.Dense(8), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    trainer = Trainer(model, run_dir=folder)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    after = After(steps, action)
    data = {"validation_data": (X[:20], Y[:20]), **SMALL}
    first = trainer.fit(X, Y, epochs=2, callbacks=[after], **data)
    second = trainer.fit(X, Y, epochs=4, callbacks=[stopping, after], seed=5, **data)
    steps = trainer.progress.step
    return model.get_weights(), (first.history, second.history), stopping.best, steps, after.left


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return program(tmp_path_factory.mktemp("undisturbed"))


def check_same(found, undisturbed):
    for own, expected in zip(found[0], undisturbed[0], strict=True):
        np.testing.assert_array_equal(own, expected)
    assert found[1:4] == undisturbed[1:4]


@pytest.mark.parametrize("steps", [2, 16, pytest.param(31, marks=pytest.mark.slow)])
def test_program_interrupted_anywhere_ends_with_the_same_bits(tmp_path, undisturbed, steps):
    with pytest.raises(Interrupted):
        program(tmp_path, steps)
    check_same(program(tmp_path), undisturbed)


def check_pages(folder):
    """The pages that TensorBoard has of a call that failed at its end, step 8, and went on."""
    folders = (folder / "train", folder / "best", folder.parent / "restarts")
    shown = {path.name: EventAccumulator(str(path)).Reload() for path in folders}
    arrays = {
        tag: tf.make_ndarray(shown["train"].Tensors(tag)[-1].tensor_proto)
        for tag in ("about this run", "what happened", "custom_scalars__config__")
    }
    text, happened, page = (array.flat[0] for array in arrays.values())
    assert b"| versions |" in text and b"ends at step 8" in happened
    first = layout_pb2.Layout.FromString(page).category[0]
    assert [chart.title.split(",")[0] for chart in first.chart] == ["loss", "learning rate"]
    assert [event.step for event in shown["restarts"].Tensors("1 learning/loss")] == [8]
    assert len(shown["best"].Tensors("1 learning/loss")) == 1


def test_end_is_told_when_the_last_checkpoint_is_kept_and_the_pages_are_there(
    tmp_path, monkeypatch
):
    path, saved, told = tmp_path / "fits/1/events.jsonl", Loop._save, []

    def events():
        return [json.loads(line)["event"] for line in path.read_text().splitlines()]

    def fit():
        begin_anew()
        small_trainer(0, run_dir=tmp_path).fit(X, Y, epochs=1, **SMALL)

    def save(loop, run):
        told.append(events())
        if run.is_finished:
            raise OSError("no space left")
        saved(loop, run)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_save", save)
        with pytest.raises(OSError, match="no space left"):
            fit()
    assert set(map(tuple, told)) == {("begin",)}
    fit()
    assert events() == ["begin", "failed", "begin", "end"]
    check_pages(path.parent / "tensorboard")
    fit()
    assert events() == ["begin", "failed", "begin", "end"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # as if killed before the end was told
    fit()
    assert events() == ["begin", "failed", "begin", "end"]


def test_calls_that_had_ended_take_no_step(tmp_path, undisturbed):
    program(tmp_path)
    found = program(tmp_path, steps=100)
    check_same(found, undisturbed)
    assert found[4] == 100  # the callback was not called
    assert [len(os.listdir(tmp_path / "fits" / n / "checkpoints")) for n in "12"] == [2, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_signal_saves_at_this_step_and_leaves(tmp_path, undisturbed, number, code):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left:
        program(tmp_path, 5, lambda: os.kill(os.getpid(), number))
    assert left.value.code == code
    assert signal.getsignal(number) is before
    # The step under way when the signal came, and the one in whose votes it was heard.
    assert Checkpoints(tmp_path / "fits" / "1" / "checkpoints").steps() == [3, 6]
    check_same(program(tmp_path), undisturbed)


def test_signal_that_the_program_handles_itself_is_left_to_it(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        program(tmp_path, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_nothing_is_saved_where_nobody_asked_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program("")
    assert not os.listdir(tmp_path)


def test_more_epochs_than_before_go_on(tmp_path):
    small_trainer(3, run_dir=tmp_path).fit(X, Y, epochs=2, **SMALL)
    begin_anew()
    longer, whole = small_trainer(3, run_dir=tmp_path), small_trainer(3)
    history = longer.fit(X, Y, epochs=4, **SMALL).history
    assert history == whole.fit(X, Y, epochs=4, **SMALL).history
    np.testing.assert_array_equal(longer.model.get_weights()[0], whole.model.get_weights()[0])


def test_trainers_of_one_folder_count_together(tmp_path):
    def losses():
        begin_anew()
        trainers = [small_trainer(seed, run_dir=tmp_path) for seed in (1, 2)]
        return [trainer.fit(X, Y, **SMALL).history["loss"] for trainer in trainers]

    first = losses()
    assert first[0] != first[1]
    assert losses() == first
    assert sorted(os.listdir(tmp_path / "fits")) == ["1", "2"]


def test_call_that_was_interrupted_keeps_its_number_in_this_process(tmp_path):
    again, whole = small_trainer(3, run_dir=tmp_path), small_trainer(3)
    with pytest.raises(Interrupted):
        again.fit(X, Y, callbacks=[After(5, fail)], **SMALL)
    assert again.fit(X, Y, **SMALL).history == whole.fit(X, Y, **SMALL).history
    assert os.listdir(tmp_path / "fits") == ["1"]


def test_call_behind_one_that_failed_is_another_one_for_another_model(tmp_path):
    """As where a search prunes a trial by an exception and goes on with the next."""
    for _ in range(2):
        begin_anew()
        with pytest.raises(Interrupted):
            small_trainer(3, run_dir=tmp_path).fit(X, Y, callbacks=[After(5, fail)], **SMALL)
        found = small_trainer(4, run_dir=tmp_path).fit(X, Y, **SMALL)
        assert found.history == small_trainer(4).fit(X, Y, **SMALL).history
    assert sorted(os.listdir(tmp_path / "fits")) == ["1", "2"]


def test_call_within_another_belongs_to_it(tmp_path):
    """As a probe that a callback trains; its checkpoints would stand among the other's."""

    class Probe(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found = small_trainer(epoch, run_dir=tmp_path).fit(X, Y, **SMALL)
            probes.append((epoch, found.history["loss"]))

    def program(action):
        begin_anew()
        trainer = small_trainer(3, run_dir=tmp_path)
        probe = Probe()
        return trainer.fit(X, Y, epochs=3, callbacks=[probe, After(12, action)], **SMALL).history

    probes = []
    with pytest.raises(Interrupted):
        program(fail)
    program(lambda: None)
    assert [epoch for epoch, _ in probes] == [0, 1, 2]
    assert probes[1][1] == small_trainer(1).fit(X, Y, **SMALL).history["loss"]
    assert os.listdir(tmp_path / "fits") == ["1"]


def test_what_a_folder_has_goes_before_a_checkpoint_to_begin_with(tmp_path):
    before = Checkpoints(tmp_path / "before")
    small_trainer(3).fit(X, Y, checkpoints=before, **SMALL)
    saved = checkpoint_lib.read(before.path(before.newest()))
    histories = []
    for _ in range(2):
        begin_anew()
        trainer = small_trainer(3, run_dir=tmp_path / "run")
        history = trainer.fit(X, Y, epochs=2, resume_from=saved, **SMALL)
        histories.append((history.epoch, history.history["loss"]))
    assert histories[0] == histories[1]
    assert Checkpoints(tmp_path / "run" / "fits" / "1" / "checkpoints").steps() == [15, 16]


def test_signal_at_the_end_of_an_epoch_loses_no_best_checkpoint(tmp_path):
    class AtEnd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0 and signals:
                os.kill(os.getpid(), signals.pop())

    arguments = {"epochs": 4, "callbacks": [AtEnd()], "global_batch_size": 10, "verbose": 0}
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best="loss", best_mode="max")  # the first
    signals = [signal.SIGTERM]
    with pytest.raises(SystemExit):
        small_trainer(3).fit(X, Y, checkpoints=checkpoints, **arguments)
    saved = checkpoint_lib.read(checkpoints.path(checkpoints.newest()))
    small_trainer(3).fit(X, Y, checkpoints=checkpoints, resume_from=saved, **arguments)
    assert checkpoints.steps() == [8, 32]


def test_signal_behind_the_last_step_is_not_forgotten(tmp_path):
    class AtEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        small_trainer(3, run_dir=tmp_path).fit(X, Y, callbacks=[AtEnd()], **SMALL)
    assert left.value.code == 143
    begin_anew()
    history = small_trainer(3, run_dir=tmp_path).fit(X, Y, callbacks=[AtEnd()], **SMALL)
    assert history.epoch == [0]  # nothing is trained, and nobody told


def test_another_model_is_refused(tmp_path):
    program(tmp_path)
    begin_anew()
    with make_strategy("mirrored", 2).scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile("adam", "mse")
    with pytest.raises(ValueError, match="must be of the same model"):
        Trainer(model, run_dir=tmp_path).fit(X, Y, epochs=2, **SMALL)


@pytest.mark.parametrize("kind", ["python", "random"])
def test_data_that_are_drawn_anew_are_warned_of_within_an_epoch(tmp_path, caplog, kind):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    if kind == "python":
        data = data.map(
            lambda x, y: (tf.ensure_shape(tf.numpy_function(abs, [x], tf.float32), x.shape), y)
        )
    elif kind == "random":
        data = data.map(lambda x, y: (x + tf.random.uniform([]), y))

    def trained(steps):
        begin_anew()
        with make_strategy("onedevice").scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            model.compile("adam", "mse")
        arguments = {"steps_per_execution": 1, "save_every_steps": 3, "verbose": 0}
        Trainer(model, run_dir=tmp_path).fit(data, callbacks=[After(steps, fail)], **arguments)

    with pytest.raises(Interrupted):
        trained(5)
    assert "drawn anew" not in caplog.text
    trained(100)
    assert "drawn anew; those of this epoch's first 3 steps are left out" in caplog.text


class Shuffled(keras.utils.PyDataset):
    """Batches in an order that it draws itself, behind each epoch."""

    def __init__(self):
        super().__init__()
        self.order, self.generator = np.arange(80), np.random.RandomState(0)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        chosen = self.order[10 * index : 10 * index + 10]
        return X[chosen], Y[chosen]

    def on_epoch_end(self):
        self.generator.shuffle(self.order)


def generated():
    generator = np.random.RandomState(3)
    while True:
        chosen = generator.randint(0, 80, 10)
        yield X[chosen], Y[chosen]


def shuffled():
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(80, seed=5).batch(10)


@pytest.fixture
def repaired():
    tfscale.enable_keras_fit()
    yield
    tfscale.disable_keras_fit()
    fits.begin_script(None)


@pytest.mark.parametrize(
    ("make_data", "options", "interrupted"),
    [
        (shuffled, {}, 11),
        (shuffled, {"steps_per_epoch": 6}, 7),
        (Shuffled, {}, 11),
        (generated, {"steps_per_epoch": 8}, 11),
    ],
    ids=["dataset", "steps", "py_dataset", "generator"],
)
def test_second_call_on_the_same_data_goes_on_in_their_order(
    tmp_path, repaired, make_data, options, interrupted
):
    """A call that had ended is not run again, but the next gets the batches behind its own."""

    def program(folder, steps=10**6):
        fits.begin_script(fits.Fits(folder))
        keras.utils.set_random_seed(3)
        with make_strategy("mirrored", 2).scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            model.compile(keras.optimizers.SGD(0.05), "mse", steps_per_execution=1)
        data = make_data()
        model.fit(data, epochs=2, verbose=0, **options)
        callbacks = [After(steps, fail)]
        history = model.fit(data, epochs=2, verbose=0, callbacks=callbacks, **options).history
        return history, model.get_weights()

    expected = program(tmp_path / "undisturbed")
    with pytest.raises(Interrupted):
        program(tmp_path / "run", interrupted)
    found = program(tmp_path / "run")
    assert found[0] == expected[0]
    for own, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(own, other)


def test_data_that_were_left_unread_are_told_from_arrays(repaired):
    """Arrays compare element by element, so only what is the same object counts."""
    read, data = [], generated()
    fits.leave_unread(data, lambda: read.append(1))
    fits.read_what_was_left(X)
    assert not read
    fits.read_what_was_left(data)
    fits.read_what_was_left(data)
    assert read == [1]


def test_order_that_may_not_come_again_is_warned_of(tmp_path, caplog):
    fit = {"verbose": 0, "steps_per_execution": 1}
    for data in (tf.data.Dataset.from_tensor_slices((X, Y)).batch(10), shuffled()):
        begin_anew()
        folder = tmp_path / str(id(data))
        small_trainer(3, run_dir=folder).fit(data, **fit)
        begin_anew()
        assert "may get another order" not in caplog.text
        small_trainer(3, run_dir=folder).fit(data, **fit)
    assert caplog.text.count("may get another order") == 1
