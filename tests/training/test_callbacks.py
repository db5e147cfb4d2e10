"""Callbacks on two workers, by looking at their files; decisions as on one device."""

import csv
import functools
import os
import pathlib
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale import testing
from tfscale.strategy import make_strategy, set_seed
from tfscale.training import callbacks as callbacks_lib
from tfscale.training.trainer import Trainer

WORKER = pathlib.Path(__file__).with_name("callbacks_worker.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """All of the worker's parts in one start, because a start costs more than a part."""
    folder = tmp_path_factory.mktemp("callbacks")
    temporary = tmp_path_factory.mktemp("temporary")
    environ = {"TMPDIR": str(temporary)}
    results = testing.run_workers(WORKER, 2, args=[folder], timeout_seconds=200, environ=environ)
    return folder, temporary, [result.arrays for result in results], results


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def scalars(folder):
    """Names and steps of all summaries in a folder."""
    found = set()
    for path in folder.rglob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            found |= {(value.tag, event.step) for value in event.summary.value}
    return found


class TestFiles:
    def test_the_chief_alone_writes(self, run):
        folder, _, arrays, _ = run
        assert files(folder / "worker-1") == []
        assert list((folder / "worker-1").iterdir()) == []  # nor an empty folder
        assert [int(a["posts"]) for a in arrays] == [3, 0]

    def test_nothing_temporary_is_left(self, run):
        folder, temporary, _, _ = run
        assert [p for p in folder.rglob("*") if ".unfinished" in p.name] == []
        assert list(temporary.iterdir()) == []

    def test_checkpoints_load_and_are_named_by_epoch_and_value(self, run):
        folder, _, arrays, _ = run
        paths = sorted((folder / "worker-0" / "epochs").iterdir())
        assert [p.name[:3] for p in paths] == ["01-", "02-", "03-"]
        last = keras.saving.load_model(paths[-1])
        for i, weight in enumerate(last.get_weights()):
            np.testing.assert_array_equal(weight, arrays[0][f"weight_{i}"])
        assert int(last.optimizer.iterations) == 18
        old = keras.saving.load_model(folder / "worker-0" / "old.h5", compile=False)
        np.testing.assert_array_equal(old.get_weights()[0], arrays[0]["weight_0"])

    def test_checkpoints_by_steps(self, run):
        names = files(run[0] / "worker-0" / "steps")
        assert names == [f"{at}.weights.h5" for at in ("1-4", "2-2", "2-6", "3-4")]

    def test_best_value_is_known_to_all(self, run):
        folder, _, arrays, _ = run
        assert arrays[0]["best"] == arrays[1]["best"]
        assert files(folder / "worker-0" / "best") == ["model.weights.h5"]

    def test_all_workers_have_the_same_weights_and_run_a_subclass(self, run):
        _, _, (chief, other), _ = run
        assert chief["predicted"] == other["predicted"] == 3
        np.testing.assert_array_equal(chief["curve"], other["curve"])
        for name in [n for n in chief if n.startswith("weight_")]:
            np.testing.assert_array_equal(chief[name], other[name])

    def test_csv_is_appended_to(self, run):
        with open(run[0] / "worker-0" / "log.csv") as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]
        assert all(float(row["val_loss"]) > 0 for row in rows)

    def test_tensorboard_has_histograms_scalars_and_a_profile(self, run):
        folder, _, arrays, _ = run
        drawn = scalars(folder / "worker-0" / "drawn")
        assert {("epoch_loss", epoch) for epoch in range(3)} <= drawn
        assert any(tag.endswith("moving_variance/histogram") for tag, _ in drawn)
        curves = scalars(folder / "worker-0" / "curves")
        assert {("batch_loss", 4), ("epoch_loss", 1)} <= curves
        assert list((folder / "worker-0" / "curves").rglob("*.xplane.pb"))
        assert [str(a["log_dir"]) for a in arrays] == ["drawn", "drawn"]

    def test_the_chief_alone_speaks(self, run):
        spoken = ["saving model to" in result.output for result in run[3]]
        assert spoken == [True, False]

    def test_backup_holds_the_state_twice(self, run):
        names = files(run[0] / "worker-0" / "backup")
        weights, metadata = "latest.weights.h5", "training_metadata.json"
        assert names == [weights, f"{weights}.bkp", metadata, f"{metadata}.bkp"]


class TestSaving:
    def test_chief_alone_saves_a_model_with_statistics_and_metrics(self, run):
        folder, _, arrays, _ = run
        assert float(arrays[0]["seen"]) == 0.0  # its own part: the other saw 1
        own = folder / "worker-0"
        for name in ("alone.keras", "function.keras"):
            assert zipfile.ZipFile(own / name).testzip() is None
        assert (own / "alone.weights.h5").stat().st_size > 0

    def test_exported_model_gives_the_outputs(self, run):
        folder, _, arrays, _ = run
        x = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")[:4]
        for path in (folder / "worker-0" / "exported", folder / "together"):
            loaded = tf.saved_model.load(str(path))  # whose variables it keeps
            np.testing.assert_allclose(loaded.serve(x), arrays[0]["output"], rtol=1e-5, atol=1e-6)

    def test_a_file_that_all_write_is_whole_at_any_moment(self, run):
        folder, _, arrays, _ = run
        assert all(a["problems"].size == 0 for a in arrays)
        assert zipfile.ZipFile(folder / "together.keras").testzip() is None

    def test_each_worker_writes_where_it_says(self, run):
        assert (run[0] / "model.keras").exists()
        assert (run[0] / "temporary_1" / "model.keras").exists()


@pytest.mark.parametrize(("case", "position"), [("steps", (1, 4)), ("epoch", (2, 0))])
def test_run_that_was_killed_goes_on_as_if_undisturbed(run, case, position):
    for arrays in run[2]:
        assert tuple(arrays[f"{case}_position"]) == position
        assert arrays[f"{case}_gone"]
        np.testing.assert_allclose(arrays[f"{case}_weights"], arrays["weights"], rtol=0, atol=1e-6)
        losses = arrays[f"{case}_loss"]
        np.testing.assert_allclose(losses, arrays["loss"][-len(losses) :], rtol=1e-5)


def decisions(strategy, x, y):
    """What callbacks that decide do, the same on one device and on workers.

    Args:
        strategy: the strategy to train under.
        x: inputs.
        y: targets.

    Returns:
        A dict of arrays.
    """

    def train(callbacks, wrap=lambda optimizer: optimizer, y=y, epochs=6, use_ema=False):
        set_seed(0)
        with strategy.scope():
            layers = keras.layers
            norm = layers.BatchNormalization(synchronized=True)
            model = keras.Sequential([keras.Input((4,)), layers.Dense(4), norm, layers.Dense(1)])
            sgd = keras.optimizers.SGD(0.1, use_ema=use_ema, ema_momentum=0.5)
            model.compile(wrap(sgd), "mse", metrics=["mae"])
        history = Trainer(model).fit(
            x,
            y,
            global_batch_size=8,
            steps_per_execution=1,
            epochs=epochs,
            verbose=0,
            callbacks=callbacks,
        )
        weights = np.concatenate([w.ravel() for w in model.get_weights()])
        rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
        return {"loss": history.history["loss"], "weights": weights, "rate": rate}

    c = keras.callbacks
    plateau = {"monitor": "loss", "factor": 0.5, "patience": 1, "min_delta": 0.5, "verbose": 1}
    stopping = {"monitor": "loss", "patience": 1, "min_delta": 0.3, "restore_best_weights": True}
    scaled = keras.optimizers.LossScaleOptimizer
    outcomes = {
        "early": train([c.EarlyStopping(**stopping)]),
        "plateau": train([c.ReduceLROnPlateau(**plateau)], scaled),
        "scheduler": train([c.LearningRateScheduler(lambda epoch, rate: rate * 0.7)], scaled),
        "nan": train([c.TerminateOnNaN()], y=y * 1e30),
        "ema": train([c.SwapEMAWeights(swap_on_epoch=True)], epochs=2, use_ema=True),
    }
    return {f"{k}-{name}": np.asarray(v) for k, o in outcomes.items() for name, v in o.items()}


@functools.cache
def on_one_device():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(48, 4)).astype("float32")
    y = (x @ rng.normal(size=(4, 1)) + 1).astype("float32")
    return decisions(make_strategy("onedevice"), x, y)


@pytest.mark.parametrize(
    ("case", "epochs"),
    [
        ("early", None),
        ("plateau", 6),
        ("scheduler", 6),
        ("nan", 1),
        ("ema", 2),
    ],
)
def test_decisions_are_those_of_one_device(run, case, epochs):
    expected = on_one_device()
    losses = expected[f"{case}-loss"]
    assert len(losses) == epochs or (epochs is None and 1 < len(losses) < 6)
    for arrays in run[2]:
        assert len(arrays[f"{case}-loss"]) == len(losses)
        for what in ("loss", "weights", "rate") if case != "nan" else ():
            name = f"{case}-{what}"
            np.testing.assert_allclose(arrays[name], expected[name], rtol=1e-5, atol=1e-5)
    if case in ("plateau", "scheduler"):
        assert expected[f"{case}-rate"] < 0.1


class TestWatchesBatches:
    @pytest.mark.parametrize(
        "callback",
        [
            keras.callbacks.EarlyStopping(),
            keras.callbacks.ModelCheckpoint("x.keras"),
            keras.callbacks.BackupAndRestore("x"),
            keras.callbacks.TensorBoard(),
            keras.callbacks.CSVLogger("x.csv"),
            keras.callbacks.History(),
            keras.callbacks.ProgbarLogger(),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
        ],
        ids=lambda c: type(c).__name__,
    )
    def test_epochs_are_not_batches(self, callback):
        assert not callbacks_lib.watches_batches([callback])
        prepared = callbacks_lib.prepare(callback, make_strategy("onedevice"), True)
        assert not callbacks_lib.watches_batches(prepared)

    @pytest.mark.parametrize(
        "callback",
        [
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.ModelCheckpoint("x.keras", save_freq=3),
            keras.callbacks.BackupAndRestore("x", save_freq=3),
            keras.callbacks.TensorBoard(update_freq="batch"),
            keras.callbacks.TensorBoard(write_steps_per_second=True),
            keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None),
        ],
        ids=lambda c: type(c).__name__,
    )
    def test_batches_are_seen(self, callback):
        prepared = callbacks_lib.prepare([callback], make_strategy("onedevice"), True)
        assert callbacks_lib.watches_batches(prepared)
        assert not callbacks_lib.watches_batches(prepared, "predict")

    def test_own_hook_of_a_subclass_is_seen(self):
        class Own(keras.callbacks.ModelCheckpoint):
            def on_test_batch_end(self, batch, logs=None):
                pass

        prepared = callbacks_lib.prepare([Own("x.keras")], make_strategy("onedevice"), True)
        assert isinstance(prepared[0], Own) and type(prepared[0]).__name__ == "Own"
        assert callbacks_lib.watches_batches(prepared, "test")
        assert not callbacks_lib.watches_batches(prepared, "train")


def test_lists_of_any_kind_are_taken():
    strategy = make_strategy("onedevice")
    own = keras.callbacks.EarlyStopping()
    listed = keras.callbacks.CallbackList([own], add_history=True)
    assert callbacks_lib.prepare(None, strategy, True) == []
    assert callbacks_lib.prepare(own, strategy, True) == [own]
    assert callbacks_lib.prepare(listed, strategy, True) == listed.callbacks
    bar = keras.callbacks.ProgbarLogger()
    assert callbacks_lib.prepare([bar], strategy, False) == []
    assert callbacks_lib.prepare([bar], strategy, True) == [bar]


def test_damaged_backup_is_replaced_by_the_one_before(tmp_path):
    strategy = make_strategy("onedevice")
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")

    def train(epochs):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        backup = keras.callbacks.BackupAndRestore(
            str(tmp_path / "b"), double_checkpoint=True, delete_checkpoint=False
        )
        prepared = callbacks_lib.prepare([backup], strategy, True)
        model.fit(x, y, epochs=epochs, verbose=0, callbacks=prepared)
        return callbacks_lib.restored_position(prepared)

    with strategy.scope():
        assert train(2) is None
        os.truncate(tmp_path / "b" / "latest.weights.h5", 100)
        assert train(3) == (1, 0)
