"""A run that was cut off and goes on leaves its callbacks, their files and the weights as one
that was not; Keras alone is the oracle, and the functions are called by hand.
"""

import ast
import inspect
import json
import math
import shutil
import textwrap

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale import testing
from tfscale.data.shards import Shard
from tfscale.training import callback_state
from tfscale.training import callbacks as callbacks_lib
from tfscale.training.progress import Lines, Progress

EPOCHS = 9


class Record(keras.callbacks.LambdaCallback):
    """Saves after every epoch, and keeps the files as they are one epoch later, at a crash."""

    def __init__(self, callbacks, folder):
        super().__init__()
        self.callbacks, self.folder, self.saved = callbacks, folder, {}

    def on_epoch_end(self, epoch, logs=None):
        shutil.copytree(self.folder, self.folder.with_name(f"crashed-{epoch}"))
        facts, arrays = callback_state.read(self.callbacks)
        self.saved[epoch + 1] = json.dumps(facts), arrays, values(self.model)


class GoOn(keras.callbacks.LambdaCallback):
    """Stands behind the others, which have begun when it does."""

    def __init__(self, callbacks, facts, arrays, variables):
        super().__init__()
        self.callbacks, self.facts, self.arrays = callbacks, facts, arrays
        self.variables = variables

    def on_train_begin(self, logs=None):
        assign(self.model, self.variables)
        callback_state.restore(self.callbacks, self.facts, self.arrays, self.model)


def values(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def assign(model, saved):
    for variable, value in zip((*model.variables, *model.optimizer.variables), saved, strict=True):
        variable.assign(value)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(48, 4)).astype("float32")
    y = (x[:, :1] * x[:, 1:2] + rng.normal(size=(48, 1))).astype("float32")
    return x[:32], y[:32], (x[32:], y[32:])


def build(**optimizer):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh")])
    model.add(keras.layers.Dense(1))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, **optimizer)
    model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)  # traces nothing
    model.optimizer.build(model.trainable_variables)
    return model


def run(model, data, callbacks, **arguments):
    x, y, validation = data
    arguments = {"epochs": EPOCHS, "validation_data": validation, **arguments}
    model.fit(x, y, 16, shuffle=False, verbose=0, callbacks=callbacks, **arguments)


class Lives:
    """One run that is not disturbed, and others that go on from what it saved.

    Args:
        make: a function that makes the callbacks for a folder.
    """

    def __init__(self, make, data, folder, build=build, **arguments):
        self._make, self._data, self._build, self._arguments = make, data, build, arguments
        self.folder = folder / "undisturbed"
        self.folder.mkdir()
        self.callbacks, self.model = make(self.folder), build()
        record = Record(self.callbacks, self.folder)
        run(self.model, data, [*self.callbacks, record], **arguments)
        self.saved = record.saved

    def go_on_after(self, num_epochs):
        """Go on with new objects in the files of a crash one epoch later."""
        folder = self.folder.with_name(f"crashed-{num_epochs}")
        for path in folder.glob("*.csv"):
            with open(path, "a") as file:
                file.write("3,0.1")  # a row half written
        text, arrays, variables = self.saved[num_epochs]
        facts, callbacks, model = json.loads(text), self._make(folder), self._build()
        keras.callbacks.CallbackList(callbacks, model=model)
        callback_state.check(callbacks, facts, "step-1")
        callback_state.before(callbacks, facts, Progress(epoch=num_epochs).to_save())
        go_on = GoOn(callbacks, facts, arrays, variables)
        run(model, self._data, [*callbacks, go_on], initial_epoch=num_epochs, **self._arguments)
        return folder, callbacks, model

    def assert_same_after(self, num_epochs):
        folder, callbacks, model = self.go_on_after(num_epochs)
        assert_same_state(callbacks, self.callbacks)
        assert_same_values(model, self.model)
        names = sorted(path.name for path in self.folder.iterdir())
        assert sorted(path.name for path in folder.iterdir()) == names
        for name in names:
            if name.endswith(".csv"):
                assert (folder / name).read_text() == (self.folder / name).read_text()
            elif name.endswith(".weights.h5"):
                mine, theirs = arrays_in(folder / name), arrays_in(self.folder / name)
                assert mine.keys() == theirs.keys() and mine
                for key, array in mine.items():
                    np.testing.assert_array_equal(array, theirs[key])


def arrays_in(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {})
        )
    return found


def assert_same_state(callbacks, expected):
    facts, arrays = callback_state.read(callbacks)
    expected_facts, expected_arrays = callback_state.read(expected)
    assert facts == expected_facts
    assert list(arrays) == list(expected_arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected_arrays[name])


def assert_same_values(model, expected):
    for value, other in zip(values(model), values(expected), strict=True):
        np.testing.assert_array_equal(value, other)


def usual_callbacks(folder):
    return [
        keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True, min_delta=0.001),
        keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, cooldown=1),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.ModelCheckpoint(
            folder / "best.weights.h5", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.ModelCheckpoint(
            folder / "{epoch}-{batch}.weights.h5", save_freq=3, save_weights_only=True
        ),
    ]


@pytest.fixture(scope="module")
def usual(data, tmp_path_factory):
    return Lives(usual_callbacks, data, tmp_path_factory.mktemp("usual"))


def test_the_undisturbed_run_stops_early_and_lowers_its_learning_rate(usual):
    stopping = usual.callbacks[0]
    assert (stopping.best_epoch, stopping.stopped_epoch) == (3, 6)
    assert float(usual.model.optimizer.learning_rate) < 0.05


@pytest.mark.parametrize("num_epochs", range(1, 7))
def test_a_run_cut_off_after_any_epoch_ends_as_if_it_had_not_been(num_epochs, usual):
    usual.assert_same_after(num_epochs)


def test_without_the_state_of_callbacks_the_run_ends_otherwise(usual, monkeypatch):
    """So that the tests above can fail."""
    nothing = json.dumps([]), {}, usual.saved[5][2]
    monkeypatch.setitem(usual.saved, 5, nothing)
    folder = usual.folder.with_name("crashed-5")
    shutil.copytree(folder, folder.with_name("kept"))
    _, callbacks, _ = usual.go_on_after(5)
    assert callbacks[0].stopped_epoch != 6
    shutil.rmtree(folder)
    folder.with_name("kept").rename(folder)


def test_early_stopping_that_had_stopped_the_run_stops_it_again(usual):
    text, arrays, _ = usual.saved[7]
    callbacks, model = usual_callbacks(usual.folder), build()
    model.stop_training = False
    callback_state.restore(callbacks, json.loads(text), arrays, model)
    assert model.stop_training
    text, arrays, _ = usual.saved[6]
    model.stop_training = False
    callback_state.restore(usual_callbacks(usual.folder), json.loads(text), arrays, model)
    assert not model.stop_training


def test_columns_and_earlier_rows_of_a_table_stay(data, tmp_path):
    """Validated every second epoch, behind a callback that logs: the first epoch decides."""

    def make(folder):
        table = folder / "log.csv"
        if not table.exists():
            table.write_text("epoch;loss\n0;1.5\n1;1.4\n")  # of another fit
        return [
            keras.callbacks.ReduceLROnPlateau("loss", patience=9),
            keras.callbacks.CSVLogger(table, separator=";", append=True),
        ]

    lives = Lives(make, data, tmp_path, epochs=4, validation_freq=2)
    lines = (lives.folder / "log.csv").read_text().splitlines()
    assert len(lines) == 3 + 4
    assert [line.count(";") for line in lines[3:]] == [6] * 4
    for num_epochs in (1, 3):
        lives.assert_same_after(num_epochs)


def test_a_table_begins_anew_where_none_of_its_epochs_were_saved(data, tmp_path):
    path = tmp_path / "log.csv"
    table, model = keras.callbacks.CSVLogger(path), build()
    called = keras.callbacks.CallbackList([table], model=model)
    called.on_train_begin()
    facts, arrays = callback_state.read([table])
    called.on_epoch_end(0, {"loss": 1.0})
    table.csv_file.close()

    table = keras.callbacks.CSVLogger(path)
    called = keras.callbacks.CallbackList([table], model=model)
    callback_state.before([table], facts, Progress().to_save())
    called.on_train_begin()
    callback_state.restore([table], facts, arrays, model)
    called.on_epoch_end(0, {"loss": 2.0})
    called.on_train_end()
    assert path.read_text().split() == ["epoch,loss,val_loss", "0,2.0,NA"]
    run(model, data, [table], epochs=1)  # and another fit begins it anew, as it was made to
    assert len(path.read_text().split()) == 2


def test_a_table_on_a_remote_disk_is_cut_off_as_well():
    path, model = "ram://tfscale/log.csv", build()
    table = keras.callbacks.CSVLogger(path)
    keras.callbacks.CallbackList([table], model=model)
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("epoch,loss\n0,1.0\n")
    facts, _ = callback_state.read([table])
    with tf.io.gfile.GFile(path, "a") as file:
        file.write("1,0.5\n")
    callback_state.before([table], facts, Progress(epoch=1).to_save())
    assert tf.io.gfile.GFile(path).read() == "epoch,loss\n0,1.0\n"


def test_a_table_that_was_lost_gets_its_head_and_a_warning(data, tmp_path, caplog):
    lives = Lives(lambda f: [keras.callbacks.CSVLogger(f / "log.csv")], data, tmp_path, epochs=3)
    (lives.folder.with_name("crashed-2") / "log.csv").unlink()
    folder, *_ = lives.go_on_after(2)
    lines = (lives.folder / "log.csv").read_text().splitlines()
    assert (folder / "log.csv").read_text().splitlines() == [lines[0], lines[3]]
    assert "at the checkpoint after 2 epochs: rows are lost" in caplog.text


def test_swapped_averages_are_swapped_back(data, tmp_path):
    def build_averaging():
        return build(use_ema=True, ema_momentum=0.5)

    def make(folder):
        return [
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            keras.callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
        ]

    lives = Lives(make, data, tmp_path, build_averaging, epochs=3)
    assert json.loads(lives.saved[1][0])[0]["attributes"] == {"_ema_weights_in_model": True}
    lives.assert_same_after(1)


def test_tensorboard_counts_on(data, tmp_path):
    def make(folder):
        return [keras.callbacks.TensorBoard(folder / "tensorboard", update_freq=3)]

    lives = Lives(make, data, tmp_path, epochs=3)
    assert vars(lives.callbacks[0])["_global_train_batch"] == 3 * 2
    assert vars(lives.callbacks[0])["_global_test_batch"] == 3 * 1
    _, callbacks, _ = lives.go_on_after(1)
    assert_same_state(callbacks, lives.callbacks)


def test_a_backup_of_keras_is_not_gone_on_from(data, tmp_path):
    model = build()
    run(
        model, data, [keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)], epochs=2
    )

    own = keras.callbacks.BackupAndRestore(tmp_path)
    callbacks_lib.prepare([own], model.distribute_strategy, is_chief=True)
    keras.callbacks.CallbackList([own], model=model).on_train_begin()
    assert callbacks_lib.restored_position([own]) == (2, 0)
    facts, arrays = callback_state.read([own])
    callback_state.restore([own], facts, arrays, model)
    assert callbacks_lib.restored_position([own]) is None


class Keeper(keras.callbacks.EarlyStopping):
    """A user's own, on top of Keras'."""

    def __init__(self, state=None):
        super().__init__("loss", patience=3)
        self.state = state

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


STATES = {
    "nothing": None,
    "number": 3,
    "no number": [math.inf, -math.inf, 0.1, True, "é"],
    "nested": {"a": {"b": [1, {"c": 2.5}]}, "array": "text", "float": {"dict": {}}},
    "empty": {},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_state_of_ones_own_comes_back_beside_that_of_keras(state):
    callback, model = Keeper(state), build()
    keras.callbacks.CallbackList([callback], model=model)
    callback.wait = 2
    facts, arrays = callback_state.read([callback])
    facts = json.loads(json.dumps(facts, allow_nan=False))
    restored = Keeper()
    callback_state.restore([restored], facts, arrays, model)
    assert restored.state == state and type(restored.state) is type(state)
    assert restored.wait == 2 and restored.best is None


def test_arrays_of_ones_own_come_back_as_they_were_when_read():
    seen = np.arange(3)
    state = {"seen": seen, "parts": [np.float32(0.1), np.zeros((0, 2)), {"x": np.int8([1])}]}
    callback, model = Keeper(state), build()
    callback.best, callback.best_weights = math.nan, [np.ones(2), np.ones(())]
    keras.callbacks.CallbackList([callback], model=model)
    facts, arrays = callback_state.read([callback])
    facts = json.loads(json.dumps(facts, allow_nan=False))
    seen += 1
    assert set(arrays) == {
        *("callbacks/0/best_weights/0000", "callbacks/0/best_weights/0001"),
        *("callbacks/0/seen/0000", "callbacks/0/parts/0000", "callbacks/0/parts/0001"),
    }
    restored = Keeper()
    callback_state.restore([restored], facts, arrays, model)
    np.testing.assert_array_equal(restored.state["seen"], [0, 1, 2])
    assert restored.state["parts"][0] == np.float32(0.1)
    assert restored.state["parts"][1].shape == (0, 2)
    assert restored.state["parts"][2]["x"].dtype == np.int8
    assert math.isnan(restored.best)
    assert [w.shape for w in restored.best_weights] == [(2,), ()]


@pytest.mark.parametrize("state", [{"a": object()}, {1: 2}, {"a": np.array(["x"])}, {2}])
def test_state_that_cannot_be_saved_is_refused_with_its_type(state):
    callback = Keeper(state)
    keras.callbacks.CallbackList([callback], model=build())
    with pytest.raises(ValueError, match=r"Received: .* of type (object|int|ndarray|set) from Ke"):
        callback_state.read([callback])


class Counter(keras.callbacks.Callback):
    """Has state and does not say how to keep it."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def on_epoch_end(self, epoch, logs=None):
        self.seen += 1


class Pausing(keras.callbacks.EarlyStopping):
    """Has more than Keras' class, which alone is saved."""

    def on_epoch_begin(self, epoch, logs=None):
        self.paused = True


class Plain(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print(epoch)


class Named(keras.callbacks.Callback):
    """Has an attribute and no hook."""

    def __init__(self):
        super().__init__()
        self.label = "a"


@pytest.fixture
def nobody_warned_of(monkeypatch):
    monkeypatch.setattr(callback_state, "_warned", set())


def one_epoch(callbacks):
    called = keras.callbacks.CallbackList(callbacks, model=build())
    called.on_epoch_begin(0)
    called.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0})
    return callback_state.read(callbacks)


def test_callbacks_that_start_anew_are_named_once(nobody_warned_of, caplog):
    quiet = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: None)
    callbacks = [Counter(), Pausing(), Plain(), Named(), Counter(), Keeper(), quiet]
    callbacks += [keras.callbacks.TerminateOnNaN()]
    callbacks_lib.prepare(callbacks, build().distribute_strategy, is_chief=True)
    facts, _ = one_epoch(callbacks)
    one_epoch(callbacks)
    assert [entry["class"] for entry in facts] == ["Pausing", "Keeper"]
    assert caplog.text.count("start anew") == 1
    assert "Counter, Pausing." in caplog.text


def test_what_is_for_the_chief_alone_is_not_done_elsewhere(
    nobody_warned_of, caplog, monkeypatch, tmp_path
):
    table, counter, keeper = keras.callbacks.CSVLogger(tmp_path / "log.csv"), Counter(), Keeper()
    keras.callbacks.CallbackList([table, counter, keeper], model=build())
    facts, _ = callback_state.read([table])
    (tmp_path / "log.csv").write_text("of the chief")
    on_another_worker(monkeypatch)
    callback_state.before([table], facts, Progress().to_save())
    callback_state.read([table, counter])
    callback_state.check([table, keeper], facts, "step-1")
    assert (tmp_path / "log.csv").read_text() == "of the chief"
    assert not table.append and not caplog.text


def test_places_do_not_count_what_only_the_chief_has():
    bar, history = keras.callbacks.ProgbarLogger(), keras.callbacks.History()
    own, lines = Keeper(5), Lines(Progress())
    keras.callbacks.CallbackList([own], model=build())
    facts, arrays = callback_state.read([bar, lines, own, history])
    assert [entry["place"] for entry in facts] == [0]
    callback_state.check([own], facts, "step-1")
    restored = Keeper()
    callback_state.restore([restored, bar, history], facts, arrays, build())
    assert restored.state == 5


def on_another_worker(monkeypatch):
    """From here on this process is not the chief, and the others lack nothing."""
    monkeypatch.setattr(callback_state, "shard_of", lambda strategy: Shard(1, 2, 1))
    monkeypatch.setattr(callback_state, "sum_over_workers", lambda strategy, values: values)


def test_what_the_chief_alone_has_is_left_out_on_another_worker(monkeypatch, tmp_path):
    first, second, table = Pausing("loss"), Pausing("loss"), keras.callbacks.CSVLogger("log.csv")
    stopping = keras.callbacks.EarlyStopping("loss")
    callbacks = [table, first, stopping, second, Keeper(1)]
    callbacks_lib.prepare(callbacks, build().distribute_strategy, is_chief=True)
    keras.callbacks.CallbackList(callbacks, model=build())
    first.wait, second.wait, stopping.stopped_epoch = 1, 2, 3
    facts, arrays = callback_state.read(callbacks)
    on_another_worker(monkeypatch)
    mine, model = [Plain(), Pausing("loss"), Pausing("loss")], build()
    model.stop_training = False
    callback_state.check(mine, facts, "step-7")
    callback_state.restore(mine, facts, arrays, model)
    assert [mine[1].wait, mine[2].wait] == [1, 2]
    assert model.stop_training  # the chief's callback had said so, and all go by it


@pytest.mark.parametrize(
    "needed",
    [
        lambda: keras.callbacks.ReduceLROnPlateau("loss"),
        lambda: keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
    ],
)
def test_what_all_need_is_refused_on_another_worker_that_lacks_it(needed, monkeypatch):
    callbacks = [needed(), needed()]
    callbacks_lib.prepare(callbacks, build().distribute_strategy, is_chief=True)
    keras.callbacks.CallbackList(callbacks, model=build())
    facts, _ = callback_state.read(callbacks)
    on_another_worker(monkeypatch)
    callback_state.check([Plain(), *callbacks], facts, "step-7")
    with pytest.raises(ValueError, match="A run must go on with the callbacks"):
        callback_state.check([callbacks[1], Plain()], facts, "step-7")
    monkeypatch.setattr(callback_state, "sum_over_workers", lambda strategy, values: [1])
    with pytest.raises(ValueError, match="and 1 other worker.* lack some of them"):
        callback_state.check(callbacks, facts, "step-7")


def _going_on_with_callbacks_on_the_chief_alone(folder):
    """A fit that fails on both workers in its third epoch, and goes on; then one that must not."""
    import contextlib
    import pathlib

    import keras
    import numpy as np
    import tensorflow as tf

    import tfscale
    from tfscale import testing
    from tfscale.training import fits

    tfscale.enable_keras_fit()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    chief = tfscale.is_chief()
    folder = pathlib.Path(folder)
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")

    class Fail(keras.callbacks.Callback):
        def __init__(self, epoch):
            super().__init__()
            self.epoch, self.seen = epoch, []

        def on_epoch_end(self, epoch, logs=None):
            self.seen.append(epoch)
            if epoch == self.epoch:
                raise InterruptedError

    def trained(number, *callbacks):
        for fails in (Fail(2), Fail(None)):
            fits.begin_script(fits.Fits(folder / number))  # as another life does
            keras.utils.set_random_seed(1)
            with strategy.scope():
                model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
                model.compile("sgd", "mse")
            given = {"epochs": 4, "verbose": 0, "callbacks": [fails, *callbacks]}
            with contextlib.suppress(InterruptedError):
                model.fit(x, x[:, :1], 8, **given)
        return fails.seen

    stopping = keras.callbacks.EarlyStopping("loss", patience=5)
    alone = [
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.EarlyStopping("loss", patience=9),
    ]
    epochs = trained("1", *(alone if chief else []), stopping)
    rows = (folder / "log.csv").read_text().split() if chief else []
    refused = ""
    two = [keras.callbacks.ReduceLROnPlateau("loss") for _ in range(2)]
    try:
        trained("2", *(two if chief else two[:1]))
    except ValueError as error:
        refused = str(error)
    testing.collect(epochs=epochs, rows=len(rows), refused=refused)


@pytest.mark.slow
@pytest.mark.workers
def test_a_run_goes_on_with_callbacks_on_the_chief_alone_or_is_refused_by_all(tmp_path):
    workers = testing.run_workers(_going_on_with_callbacks_on_the_chief_alone, 2, args=[tmp_path])
    for worker in workers:
        assert worker.arrays["epochs"].tolist() == [2, 3]
        assert "A run must go on with the callbacks" in str(worker.arrays["refused"])
    assert workers[0].arrays["rows"] == 1 + 4
    assert "1 other worker(s) that lack some" in str(workers[0].arrays["refused"])


def test_other_callbacks_than_those_saved_are_refused(caplog):
    stopping, plateau = keras.callbacks.EarlyStopping(), keras.callbacks.ReduceLROnPlateau()
    plain, keeper = Plain(), Keeper()
    keras.callbacks.CallbackList([stopping, plateau, plain, keeper], model=build())
    facts, _ = callback_state.read([stopping, plain, plateau])
    for others in ([], [stopping], [keeper, plain, plateau]):
        with pytest.raises(ValueError, match="Received: .* runs/checkpoints/step-7 with the state"):
            callback_state.check(others, facts, "runs/checkpoints/step-7")
    callback_state.check([stopping, plain, plateau, plain], facts, "step-7")
    callback_state.check([plateau, keras.callbacks.TerminateOnNaN(), stopping], facts, "step-7")
    assert not caplog.text
    callback_state.check([stopping, plain, plateau, keeper], facts, "step-7")
    assert "Not in step-7, so these callbacks start anew: Keeper." in caplog.text


# Set outside of `__init__` as well, but again by `set_model`, `on_train_begin`, an epoch's begin or
# the first look at the metrics, or of one life alone: files, clocks, a profile under way.
MADE_ANEW = {
    "EarlyStopping": {"monitor_op", "min_delta"},
    "ReduceLROnPlateau": {"monitor_op", "min_delta"},
    "ModelCheckpoint": {"monitor_op", "min_delta"},
    "OrbaxCheckpoint": {"monitor_op", "min_delta"},
    "CSVLogger": {"csv_file", "writer"},
    "TensorBoard": {
        *("_log_write_dir", "_train_dir", "_val_dir", "_writers", "_summary_module"),
        *("_should_write_train_graph", "_previous_epoch_iterations", "_epoch_start_time"),
        *("_batch_start_time", "_start_batch", "_stop_batch", "_should_trace", "_is_tracing"),
        *("_profiler_started", "_batch_trace_context"),
    },
}
NOT_SAVED = {"Callback", "CallbackList", "History", "ProgbarLogger"}  # History by the loop


def set_while_running(keras_class):
    """Attributes that a class and those it is derived from assign outside of `__init__`."""
    names = set()
    for own in keras_class.__mro__[:-1]:
        if own is keras.callbacks.Callback:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(own)))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and function.name != "__init__":
                names |= {
                    node.attr
                    for node in ast.walk(function)
                    if isinstance(node, ast.Attribute)
                    and isinstance(node.ctx, ast.Store)
                    and ast.unparse(node.value) == "self"
                }
    return names


KERAS_CLASSES = {
    name: found
    for name, found in vars(keras.callbacks).items()
    if inspect.isclass(found) and name not in NOT_SAVED
}


@pytest.mark.parametrize("name", KERAS_CLASSES)
def test_the_table_has_every_attribute_that_a_class_of_keras_changes(name):
    keras_class = KERAS_CLASSES[name]
    listed = set(callback_state.ATTRIBUTES[keras_class])
    found = set_while_running(keras_class) - {"_model"}
    assert found - listed - MADE_ANEW.get(name, set()) == set()
    if name != "CSVLogger":  # whose `append` is set by ourselves
        assert listed - found == set()
