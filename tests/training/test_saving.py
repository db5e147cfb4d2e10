"""What saving does, in one process; two workers are in test_callbacks.py."""

import json
import os
import pathlib
import threading
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale.strategy import make_strategy
from tfscale.training import saving


@pytest.fixture
def installed():
    assert saving.install()
    yield
    saving.uninstall()


def build_model(strategy, synchronized=False):
    with strategy.scope():
        norm = keras.layers.BatchNormalization
        inner = keras.Sequential([norm(synchronized=synchronized, name="inner")])
        frozen = keras.layers.Dense(3, name="frozen")
        frozen.trainable = False
        model = keras.Sequential(
            [
                keras.Input((3,)),
                frozen,
                keras.layers.Dropout(0.5),
                norm(synchronized=synchronized, dtype="float64", name="outer"),
                inner,
                keras.layers.Dense(1),
            ]
        )
        model.compile("adam", "mse", metrics=["mae"])
        model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def mirrored():
    return make_strategy("mirrored", 2)


class TestAverageStatistics:
    def test_all_replicas_get_the_mean(self, mirrored):
        model = build_model(mirrored)
        names = [v.path.split("/", 1)[1] for v in saving.statistics_of(model)]
        assert len(names) == 4 and all("moving" in name for name in names)
        norms = [model.get_layer("outer"), model.layers[-2].get_layer("inner")]

        @tf.function
        def differ():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            for i, norm in enumerate(norms):
                value = tf.cast([1.0, 2.0, 3.0], norm.moving_mean.dtype)
                norm.moving_mean.assign(value * tf.cast(replica + i, value.dtype))

        mirrored.run(differ)
        tf.function(saving.average_statistics)(model)
        for i, norm in enumerate(norms):
            for replica in mirrored.experimental_local_results(norm.moving_mean.value):
                np.testing.assert_allclose(replica, (0.5 + i) * np.array([1, 2, 3]))
            np.testing.assert_array_equal(norm.moving_variance, np.ones(3))

    @pytest.mark.parametrize("synchronized", [True, False])
    def test_one_collective_for_each_type_and_none_without_need(self, mirrored, synchronized):
        model = build_model(mirrored, synchronized)
        graph = tf.function(saving.average_statistics).get_concrete_function(model).graph
        assert bool(graph.get_operations()) == (not synchronized)
        packed = [op for op in graph.get_operations() if op.type == "ConcatV2"]
        assert len(packed) == (0 if synchronized else 4)  # two types on two replicas

    def test_synchronized_statistics_are_equal_already(self, mirrored):
        model = build_model(mirrored, synchronized=True)
        x = tf.constant(np.random.default_rng(0).normal(size=(8, 3)), tf.float32)

        @tf.function
        def step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            model(x[replica * 4 : replica * 4 + 4], training=True)

        mirrored.run(step)
        mean = model.get_layer("outer").moving_mean
        one, other = mirrored.experimental_local_results(mean.value)
        np.testing.assert_array_equal(one, other)
        assert np.abs(one).max() > 0

    def test_one_device_has_nothing_to_average(self):
        assert saving.statistics_of(build_model(make_strategy("onedevice"))) == []


class TestWhole:
    def test_failure_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "file"
        path.write_text("before")
        with pytest.raises(OSError, match="full"), saving.whole(path) as beside:
            with open(beside, "w") as file:
                file.write("half")
            raise OSError("disk full")
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["file"]

    def test_file_is_seen_before_or_after(self, tmp_path):
        path = tmp_path / "new" / "file"
        with saving.whole(path) as beside:
            with open(beside, "w") as file:
                file.write("all")
            assert not path.exists()
        assert path.read_text() == "all"
        assert os.listdir(path.parent) == ["file"]

    def test_folder_takes_over_file_by_file(self, tmp_path):
        target = tmp_path / "folder"
        (target / "variables").mkdir(parents=True)
        (target / "notes.txt").write_text("mine")
        (target / "variables" / "data").write_text("old")
        with saving.whole(target) as beside:
            os.makedirs(os.path.join(beside, "variables"))
            os.makedirs(os.path.join(beside, "assets"))
            for name in ("variables/data", "saved_model.pb"):
                with open(os.path.join(beside, name), "w") as file:
                    file.write("new")
        assert (target / "notes.txt").read_text() == "mine"
        assert (target / "variables" / "data").read_text() == "new"
        assert (target / "saved_model.pb").read_text() == "new"
        assert (target / "assets").is_dir()

    def test_a_link_leads_to_the_file_that_is_replaced(self, tmp_path):
        (tmp_path / "there").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
        with saving.whole(tmp_path / "link") as beside, open(beside, "w") as file:
            file.write("x")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_text() == "x"

    def test_a_folder_in_the_place_of_a_file_is_refused(self, tmp_path):
        (tmp_path / "x").mkdir()
        with pytest.raises(IsADirectoryError), saving.whole(tmp_path / "x") as beside:
            pathlib.Path(beside).write_text("x")


class TestInstall:
    def test_is_idempotent_and_can_be_undone(self):
        before = [getattr(place, name) for place, name in saving._SAVERS]
        assert saving.install() and not saving.install()
        assert keras.Model.save is not before[0]
        assert keras.Model.save.__doc__ == before[0].__doc__
        with saving.taking_over():
            pass
        assert keras.Model.save is not before[0]
        saving.uninstall()
        saving.uninstall()
        assert [getattr(place, name) for place, name in saving._SAVERS] == before
        with saving.taking_over():
            assert keras.Model.save is not before[0]
        assert keras.Model.save is before[0]

    def test_one_device_saves_as_before(self, installed, tmp_path):
        model = build_model(make_strategy("onedevice"))
        with saving.not_writing():
            model.save(tmp_path / "x.keras")
        assert (tmp_path / "x.keras").exists()

    def test_every_kind_of_file(self, installed, mirrored, tmp_path, capsys):
        model = build_model(mirrored)
        for strategy_scope in (False, True):
            folder = tmp_path / str(strategy_scope)
            with mirrored.scope() if strategy_scope else open(os.devnull):
                model.save(folder / "a.keras")
                model.save(filepath=str(folder / "folder"), zipped=False)
                keras.saving.save_model(model, folder / "b.keras")
                keras.models.save_model(model, filepath=folder / "c.h5", include_optimizer=False)
                model.save_weights(folder / "d.weights.h5")
                model.save_weights(folder / "e.weights.json", max_shard_size=1e-7)
                model.export(folder / "f", "tf_saved_model")
            assert zipfile.ZipFile(folder / "a.keras").testzip() is None
            assert {"a.keras", "b.keras", "c.h5", "d.weights.h5", "f"} <= set(os.listdir(folder))
            assert not [name for name in os.listdir(folder) if name.startswith(".")]
            shards = json.loads((folder / "e.weights.json").read_text())["weight_map"]
            named = {name for shard in shards.values() for name in np.ravel(shard)}
            assert len(named) > 1 and named <= set(os.listdir(folder))
            assert f"Saved artifact at '{folder / 'f'}'." in capsys.readouterr().out
            other = build_model(make_strategy("onedevice"))
            for name in ("d.weights.h5", "e.weights.json", "a.keras"):
                other.set_weights([0 * w for w in other.get_weights()])
                other.load_weights(folder / name)
                for mine, saved in zip(other.get_weights(), model.get_weights(), strict=True):
                    np.testing.assert_array_equal(mine, saved)

    def test_nothing_is_written_where_it_shall_not(self, installed, mirrored, tmp_path):
        model = build_model(mirrored)
        with saving.not_writing():
            model.save(tmp_path / "no" / "x.keras")
            model.save_weights(tmp_path / "x.weights.h5")
            model.export(tmp_path / "x")
            keras.saving.save_model(model, tmp_path / "x.keras")
            other = threading.Thread(target=model.save, args=[tmp_path / "thread.keras"])
            other.start()
            other.join()
        assert os.listdir(tmp_path) == ["thread.keras"]

    def test_overwriting_asks_as_keras_does(self, installed, mirrored, tmp_path, monkeypatch):
        model = build_model(mirrored)
        (tmp_path / "x.keras").write_text("kept")
        monkeypatch.setattr("builtins.input", lambda question: "n")
        model.save(tmp_path / "x.keras", overwrite=False)
        assert (tmp_path / "x.keras").read_text() == "kept"
