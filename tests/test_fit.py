"""`python -m tfscale.fit` from end to end: what a run leaves, how it goes on, what it refuses."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf  # noqa: F401  (conftest then gives this process three CPUs)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.plugins.custom_scalar import layout_pb2

from tfscale import config_files, evaluate, experiment, fit
from tfscale.cluster import ports
from tfscale.monitor import charts, run_log
from tfscale.monitor.run_files import RunFiles
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import tested

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
    "--config.model.arguments.filters=(4,)",
    "--config.model.arguments.dense_units=(8,)",
    "--config.data.validation_fraction=0.1",
    "--config.train.epochs=1",
)
# Three epochs of 41 steps, a checkpoint every ten steps, the host looks every four.
LONG = (
    *SMALL,
    "--config.train.epochs=3",
    "--config.train.steps_per_execution=4",
    "--config.checkpoint.save_every_steps=10",
    "--config.checkpoint.keep_last=3",
    "--config.log.every_steps=5",
    "--config.log.tensorboard=false",
)
STEPS = 41


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Runs land in the test's folder; what the command sets in the environment is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def train(run_dir, *argv):
    assert fit.main([*argv, f"--run_dir={run_dir}"]) == 0


def refusal(capsys, *argv, main=fit.main):
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback" not in "".join(lines)
    [line] = [line for line in lines if not line.startswith(("W0", "I0"))]
    assert line.startswith("error: ")
    return line


def read_summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def read_metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights(run_dir):
    return keras.models.load_model(run_dir / "model.keras").get_weights()


def last_checkpoint(run_dir):
    checkpoints = checkpoint_lib.Checkpoints(run_dir / "checkpoints")
    return checkpoint_lib.read(checkpoints.path(checkpoints.newest()))


def checkpoints_of(run_dir):
    return checkpoint_lib.Checkpoints(run_dir / "checkpoints").steps()


def scalars(records):
    """Lines of metrics.jsonl without what a clock says."""
    by_clock = ("time", "step_seconds", "examples_per_second", "seconds", "workers", "goodput")
    by_clock += ("restarts", "bytes_sent")  # of this life, and of its replicas
    return [
        {
            key: {k: v for k, v in value.items() if k not in by_clock}
            if isinstance(value, dict)
            else value
            for key, value in record.items()
            if key not in by_clock
        }
        for record in records
    ]


def check_equal_runs(run_dir, reference):
    """Weights, scores, history and curves to rounding, and no line twice."""
    for own, expected in zip(weights(run_dir), weights(reference), strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-5)
    own, expected = read_summary(run_dir), read_summary(reference)
    for part in ("test", "validation", "train"):
        assert own[part] == pytest.approx(expected[part], rel=1e-5, abs=1e-6)
    assert (own["steps"], own["epochs"]) == (expected["steps"], expected["epochs"])
    own, expected = (last_checkpoint(path).facts["history"] for path in (run_dir, reference))
    assert own["epoch"] == expected["epoch"]
    for name, values in expected["history"].items():
        assert own["history"][name] == pytest.approx(values, rel=1e-5, abs=1e-6)
    own, expected = (scalars(read_metrics(path)) for path in (run_dir, reference))
    assert [sorted(record) for record in own] == [sorted(record) for record in expected]
    for record, other in zip(own, expected, strict=True):
        for key, value in other.items():
            assert record[key] == pytest.approx(value, rel=1e-4, abs=1e-6), (record, other)


@pytest.fixture
def stop_at(monkeypatch):
    """A function that makes the next run fail once it has taken so many steps."""

    def arm(step):
        original = run_log.RunLog.on_train_batch_end

        def stop(self, batch, logs=None):
            original(self, batch, logs)
            if self._progress.step >= step:
                monkeypatch.setattr(run_log.RunLog, "on_train_batch_end", original)
                raise RuntimeError("stopped by the test")

        monkeypatch.setattr(run_log.RunLog, "on_train_batch_end", stop)

    return arm


@pytest.fixture
def stopped(tmp_path, stop_at):
    """The folder of a run that was stopped in its second epoch, seven steps after a checkpoint."""
    stop_at(57)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train(tmp_path / "stopped", *LONG)
    assert checkpoints_of(tmp_path / "stopped") == [30, 40, 50]
    return tmp_path / "stopped"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of the run of `LONG`."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    train(folder, *LONG)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run of one epoch, with everything on."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    train(folder, *SMALL, "--config.train.steps_per_execution=10", "--config.log.every_steps=10")
    return folder


class TestWhatARunLeaves:
    def test_files(self, finished):
        left = {path.name for path in finished.iterdir()}
        assert left == {
            "config.json", "checkpoints", "tensorboard", "metrics.jsonl", "model.keras",
            "summary.json", "events.jsonl", "pictures",
        }  # fmt: skip
        assert checkpoints_of(finished) == [STEPS]
        assert not list(finished.rglob("*writing*"))

    def test_config_is_that_of_the_run(self, finished):
        config = config_files.load_config(finished / "config.json")
        assert config.model.arguments == {"filters": [4], "dense_units": [8]} or (
            config.model.arguments == {"filters": (4,), "dense_units": (8,)}
        )
        assert config.train.epochs == 1

    def test_summary(self, finished):
        summary = read_summary(finished)
        for part in ("test", "validation", "train"):
            assert summary[part].keys() == {"loss", "accuracy"}
            assert all(isinstance(value, float) for value in summary[part].values())
        expected = {"steps": STEPS, "epochs": 1, "num_workers": 1, "num_replicas": 1}
        assert {name: summary[name] for name in expected} == expected
        assert summary["strategy"] == "onedevice"
        assert summary["parameters"] == 4 * 10 + (4 * 4 * 4 + 1) * 8 + 9 * 10
        assert summary["examples_per_second"] > 0
        assert summary["wall_seconds"] > 0
        assert len(summary["data_fingerprint"]) == 16
        assert summary["versions"]["keras"] == keras.__version__
        assert summary["versions"].keys() >= {"tfscale", "python", "tensorflow", "numpy"}

    def test_lines_of_metrics(self, finished):
        records = read_metrics(finished)
        train_steps = [record["step"] for record in records if "train" in record]
        assert train_steps == [10, 20, 30, 40, STEPS]
        assert [r["step"] for r in records if "validation" in r] == [STEPS]
        assert [r["step"] for r in records if "test" in r] == [STEPS]
        summary = read_summary(finished)
        assert records[-1]["test"] == summary["test"]
        assert records[-2]["validation"] == summary["validation"]
        last = records[-3]["train"]
        assert {name: last[name] for name in ("loss", "accuracy")} == summary["train"]

    @pytest.mark.parametrize(
        ("kind", "steps", "names"),
        [
            ("train", [10, 20, 30, 40, 41], {"loss", "accuracy", "learning_rate"}),
            ("train", [20, 30, 40, 41], {"examples_per_second"}),
            ("validation", [41], {"loss", "accuracy"}),
            ("test", [41], {"loss", "accuracy"}),
        ],
    )
    def test_tensorboard_reads_the_curves(self, finished, kind, steps, names):
        events = EventAccumulator(str(finished / "tensorboard" / kind)).Reload()
        assert set(events.Tags()["tensors"]) >= {charts.tag(name) for name in names}
        lines = {r["step"]: r[kind] for r in read_metrics(finished) if kind in r}
        for name in names:
            curve = events.Tensors(charts.tag(name))
            assert [event.step for event in curve] == steps
            values = [float(tf.make_ndarray(event.tensor_proto)) for event in curve]
            assert values == pytest.approx([lines[step][name] for step in steps], rel=1e-5)

    def test_tensorboard_has_the_pages_beside_the_curves(self, finished):
        events = EventAccumulator(str(finished / "tensorboard" / "train"))
        tags = events.Reload().Tags()
        assert tags["graph"]
        assert set(tags["tensors"]) >= {
            "about this run", "what happened", "inputs", "confusion matrix", "class 9",
            "custom_scalars__config__", "2 speed and health/goodput",
            "3 a step in ms/compute", "4 norms and bytes/norm of gradients",
        }  # fmt: skip
        [about] = events.Tensors("about this run")
        text = tf.make_ndarray(about.tensor_proto)[0].decode()
        assert f"--config={finished}/config.json" in text
        assert "| validation_fraction | 0.1 |" in text and f"keras {keras.__version__}" in text
        _, _, png = tf.make_ndarray(events.Tensors("inputs")[0].tensor_proto)
        assert tf.io.decode_png(png).shape[0] > 100
        page = layout_pb2.Layout.FromString(
            tf.make_ndarray(events.Tensors("custom_scalars__config__")[0].tensor_proto).item()
        )
        questions = ["Does it learn?", "Is it fast?", "Is it healthy?"]
        assert [category.title for category in page.category] == questions
        for chart in (chart for category in page.category for chart in category.chart):
            for pattern in chart.multiline.tag:
                wanted = "bytes" in pattern or any(re.match(pattern, t) for t in tags["tensors"])
                assert wanted, f"{chart.title}: no curve fits {pattern}"
        counts = tf.make_ndarray(events.Tensors("class 3")[0].tensor_proto)
        assert counts.shape == (6, 101)
        np.testing.assert_array_equal(counts[:4].sum(0), 360)
        best = EventAccumulator(str(finished / "tensorboard" / "best")).Reload()
        assert best.Tensors("1 learning/accuracy")[0].step == STEPS

    def test_story_and_measures(self, finished):
        lines = (finished / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        assert [(e["event"], e["step"]) for e in events] == [("begin", 0), ("end", STEPS)]
        assert events[0]["steps_per_epoch"] == STEPS
        last = [record for record in read_metrics(finished) if "train" in record][-1]
        assert last["gradient_norm"] > 0 and last["weight_norm"] > 0
        assert 0 < last["goodput"] <= 1 and last["restarts"] == last["bad_steps"] == 0
        assert last["seconds"]["compute"] > 0 and len(last["workers"]["input"]) == 1
        pictures = {path.name for path in (finished / "pictures").iterdir()}
        assert pictures >= {"inputs.png", "confusion_matrix.png"}
        assert read_summary(finished)["best"]["step"] == STEPS

    def test_last_learning_rate_is_the_end_of_the_schedule(self, finished):
        assert read_metrics(finished)[-3]["train"]["learning_rate"] == pytest.approx(0, abs=1e-9)

    def test_evaluate_repeats_the_test_of_the_summary(self, finished, capsys):
        assert evaluate.main([f"--run_dir={finished}"]) == 0
        scores = read_summary(finished)["test"]
        expected = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        assert capsys.readouterr().out.strip() == expected

    def test_evaluate_scores_another_split(self, finished, capsys):
        assert evaluate.main([f"--run_dir={finished}", "--split=train"]) == 0
        accuracy = float(capsys.readouterr().out.split()[-1])
        assert accuracy != pytest.approx(read_summary(finished)["test"]["accuracy"], abs=1e-4)

    def test_run_without_a_name_gets_one_of_data_model_and_time(self, capsys):
        assert fit.main([*SMALL, "--config.log.tensorboard=false"]) == 0
        [folder] = pathlib.Path("runs").iterdir()
        assert folder.name.startswith("digits-convnet-20")
        assert not (folder / "tensorboard").exists()
        assert str(folder) in capsys.readouterr().out


class TestTheEndOfARun:
    def test_what_fails_after_the_last_step_is_told_and_pictures_come_last(
        self, tmp_path, monkeypatch, caplog
    ):
        run_dir, argv = tmp_path / "run", (*SMALL, "--config.log.tensorboard=false")

        def fails(*_):
            raise OSError("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(experiment, "save_model", fails)
            with pytest.raises(OSError, match="no space left"):
                train(run_dir, *argv)
        told = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
        assert [event["event"] for event in told] == ["begin", "failed"]
        assert told[-1]["error"] == "OSError: no space left"

        def fails_late(*_):
            assert read_summary(run_dir)["steps"] == STEPS
            raise MemoryError("too many classes")

        monkeypatch.setattr(tested, "probabilities", fails_late)
        train(run_dir, *argv)
        told = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
        assert [event["event"] for event in told] == ["begin", "failed", "begin", "end"]
        assert "could not be shown: MemoryError: too many classes" in caplog.text


class TestGoingOn:
    def test_run_stopped_in_an_epoch_ends_as_if_it_had_not(self, stopped, undisturbed):
        train(stopped, *LONG)
        check_equal_runs(stopped, undisturbed)
        events = [json.loads(e) for e in (stopped / "events.jsonl").read_text().splitlines()]
        assert [e["event"] for e in events] == ["begin", "failed", "begin", "end"]
        assert (events[2]["step"], events[2]["seen_step"]) == (50, 58)
        rates = [
            {r["step"]: r["train"]["learning_rate"] for r in read_metrics(path) if "train" in r}
            for path in (stopped, undisturbed)
        ]
        assert rates[0][58] == pytest.approx(rates[1][58], rel=1e-6)  # the first after going on

    def test_on_two_replicas_it_ends_the_same(self, stopped, undisturbed):
        train(stopped, *LONG, "--strategy=mirrored", "--num_replicas=2")
        assert read_summary(stopped)["num_replicas"] == 2
        check_equal_runs(stopped, undisturbed)

    def test_damaged_checkpoint_is_passed_over(self, stopped, undisturbed, caplog):
        state = stopped / "checkpoints" / "step-00000050" / "state.bin"
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
        with caplog.at_level("WARNING", logger="absl"):
            train(stopped, *LONG)
        assert "step-00000050" in caplog.text
        check_equal_runs(stopped, undisturbed)

    def test_from_a_named_checkpoint_in_a_new_folder(self, stopped, undisturbed, tmp_path):
        path = stopped / "checkpoints" / "step-00000030"
        train(tmp_path / "new", *LONG, f"--resume={path}")
        for own, expected in zip(weights(tmp_path / "new"), weights(undisturbed), strict=True):
            np.testing.assert_allclose(own, expected, atol=1e-5)
        assert checkpoints_of(stopped) == [30, 40, 50]

    def test_from_an_earlier_checkpoint_of_the_same_run(self, stopped, undisturbed, stop_at):
        """What the run did after it is left behind, and never gone on from."""
        stop_at(45)
        with pytest.raises(RuntimeError, match="stopped by the test"):
            train(stopped, *LONG, f"--resume={stopped}/checkpoints/step-00000030")
        assert checkpoints_of(stopped) == [30, 40]
        train(stopped, *LONG)
        check_equal_runs(stopped, undisturbed)

    def test_never_moves_the_old_run_aside(self, stopped, capsys):
        for life in (1, 2):
            train(stopped, *SMALL, "--config.log.tensorboard=false", "--resume=never")
            aside = stopped.with_name(f"stopped.{life}")
            assert f"was moved to {aside}" in capsys.readouterr().out
        assert checkpoints_of(stopped.with_name("stopped.1")) == [30, 40, 50]
        assert checkpoints_of(stopped.with_name("stopped.2")) == [STEPS]
        assert read_summary(stopped)["steps"] == STEPS

    def test_line_cut_off_by_a_kill_is_written_again(self, stopped, undisturbed):
        with open(stopped / "metrics.jsonl", "a") as file:
            file.write('{"step": 5')
        train(stopped, *LONG)
        check_equal_runs(stopped, undisturbed)

    def test_another_configuration_is_refused_and_nothing_is_touched(self, stopped, capsys):
        before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
        line = refusal(
            capsys, *LONG, f"--run_dir={stopped}",
            "--config.optimizer.learning_rate=0.5", "--config.data.seed=3",
        )  # fmt: skip
        assert "optimizer.learning_rate=0.003 there and 0.5 here" in line
        assert "data.seed=0 there and 3 here" in line
        assert "--resume=never" in line
        assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}

    def test_checkpoint_of_another_model_is_refused(self, stopped, capsys, tmp_path):
        argv = [*LONG, f"--run_dir={tmp_path / 'new'}", "--config.model.arguments.filters=(5,)"]
        line = refusal(capsys, *argv, f"--resume={stopped}/checkpoints/step-00000050")
        assert "A checkpoint must be of the same model" in line
        assert "step-00000050" in line

    def test_missing_checkpoint_is_refused(self, capsys, tmp_path):
        line = refusal(capsys, *SMALL, f"--run_dir={tmp_path / 'new'}", "--resume=nowhere")
        assert "nowhere" in line and "manifest.json" in line

    def test_full_disk_ends_the_run_with_a_word_and_all_it_had(self, tmp_path, capsys):
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(disk)]
        if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small file system")
        try:
            keep = "--config.checkpoint.keep_last=100"
            assert fit.main([*LONG, keep, f"--run_dir={disk / 'run'}"]) == 1
            [line] = capsys.readouterr().err.splitlines()
            assert line.startswith("error: The disk must have room for the run.")
            steps = checkpoints_of(disk / "run")
            assert steps == list(range(10, steps[-1] + 1, 10))
            assert last_checkpoint(disk / "run").step == steps[-1]
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_finished_run_is_not_trained_again(self, tmp_path, capsys):
        run_dir = tmp_path / "run"
        train(run_dir, *LONG, "--config.train.epochs=1")
        before = read_summary(run_dir), read_metrics(run_dir), weights(run_dir)
        train(run_dir, *LONG, "--config.train.epochs=1")
        after = read_summary(run_dir), read_metrics(run_dir), weights(run_dir)
        assert scalars(after[1]) == scalars(before[1])
        for own, expected in zip(after[2], before[2], strict=True):
            np.testing.assert_array_equal(own, expected)
        assert after[0] == before[0]
        assert "Finished already, at step" in capsys.readouterr().out

    def test_finished_run_is_made_longer(self, tmp_path):
        """With a constant rate, two epochs and then one more are three."""
        constant = (*LONG, "--config.schedule.name=constant")
        train(tmp_path / "one", *constant)
        seen = "--config.log.tensorboard=true"
        train(tmp_path / "two", *constant, seen, "--config.train.epochs=2")
        train(tmp_path / "two", *constant, seen)
        best = PluginEventAccumulator(str(tmp_path / "two" / "tensorboard" / "best")).Reload()
        found = [e.step for e in best.Tensors("1 learning/accuracy")]
        assert found == [read_summary(tmp_path / "two")["best"]["step"]]
        for own, expected in zip(weights(tmp_path / "two"), weights(tmp_path / "one"), strict=True):
            np.testing.assert_allclose(own, expected, atol=1e-5)
        tests = [r["step"] for r in read_metrics(tmp_path / "two") if "test" in r]
        assert tests == [3 * STEPS]


class TestOtherAnswers:
    def test_dry_run_says_what_a_run_would_be_and_leaves_nothing(self, capsys):
        argv = (*SMALL, "--dry_run", "--strategy=mirrored", "--num_replicas=2")
        assert fit.main(list(argv)) == 0
        rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert rows["model"] == "convnet, 650 parameters"
        assert rows["input"] == "(None, 8, 8, 1)"
        assert rows["output"] == "(None, 10)"
        assert rows["strategy"] == "mirrored, 1 worker(s), 2 replica(s)"
        assert rows["data"] == "1293 examples, global batch 32, 41 steps an epoch"
        assert rows["sends"] == "2,600 bytes an update, each replica"
        assert rows["one"].startswith("step")
        assert not list(pathlib.Path().iterdir())

    def test_list_names_every_model_with_its_size(self, capsys):
        from tfscale import models

        assert fit.main(["--list"]) == 0
        rows = capsys.readouterr().out.splitlines()
        assert [row.split()[0] for row in rows] == list(models.BUILDERS)
        assert all("parameters" in row for row in rows)

    @pytest.mark.parametrize(
        ("argv", "texts"),
        [
            (
                ["--strategy=mirrored", "--num_replicas=3", "--config.data.global_batch_size=2"],
                ["global_batch_size=2 with 3 replicas", "Use 3 or more"],
            ),
            (["--num_replicas=2"], ["`num_replicas` belongs to strategy 'mirrored'"]),
            (["--run_dir=/proc/here"], ["--run_dir must be a folder that can be written"]),
            (["--config.model.name=convnt"], ["Did you mean 'convnet'?"]),
            (["--config.model.arguments.filter=(3,)"], ["Did you mean 'filters'?"]),
            (["--config.optimizer.name=adm"], ["Did you mean 'adam'?"]),
            (["--config.schedule.name=cosin"], ["Did you mean 'cosine'?"]),
            (["--config.reduction.name=meen"], ["`reduction.name`", "Did you mean 'mean'?"]),
            (["--config.data.train_split=tran"], ["Did you mean 'train'?"]),
            (["--config.train.epochs=0"], ["`train.epochs` must be at least 1"]),
            (["--config.train.seed=-1"], ["`train.seed` must be at least 0"]),
            (["--config.checkpoint.keep_last=0"], ["`checkpoint.keep_last` must be at least 1"]),
            (["--config.log.inputs=-1"], ["`log.inputs` must be at least 0"]),
            (["--profile_steps=9:3"], ["`log.profile_steps` must be FIRST:LAST", "'9:3'"]),
            (["--config.train.mixed_precision=bfloat16"], ["mixed_bfloat16", "'bfloat16'"]),
        ],
    )
    def test_what_does_not_fit_is_refused_before_work(self, capsys, argv, texts):
        line = refusal(capsys, *SMALL, *argv)
        for text in texts:
            assert text in line
        assert not list(pathlib.Path().iterdir())

    def test_file_in_the_place_of_the_folder_is_refused(self, capsys, tmp_path):
        (tmp_path / "file").write_text("")
        for run_dir in ("file", "file/run"):
            line = refusal(capsys, *SMALL, f"--run_dir={run_dir}")
            assert "--run_dir must be a folder that can be written" in line

    @pytest.mark.parametrize(
        ("argv", "text"),
        [
            ([], "--run_dir must name the folder of a run"),
            (["--run_dir=nowhere"], "nowhere, which has no config.json"),
        ],
    )
    def test_evaluate_refuses_what_is_no_run(self, capsys, argv, text):
        assert text in refusal(capsys, *argv, main=evaluate.main)

    def test_evaluate_refuses_a_run_that_is_not_finished(self, capsys, stopped):
        line = refusal(capsys, f"--run_dir={stopped}", main=evaluate.main)
        assert "Finish it with tfscale.fit" in line

    def test_evaluate_refuses_an_unknown_split(self, capsys, finished):
        line = refusal(capsys, f"--run_dir={finished}", "--split=tset", main=evaluate.main)
        assert "Did you mean 'test'?" in line

    @pytest.mark.parametrize("task", ["worker", "evaluator"])
    def test_cluster_refuses_what_does_not_belong(self, capsys, monkeypatch, task):
        cluster = {"worker": ["127.0.0.1:2", "127.0.0.1:3"]}
        text = json.dumps({"cluster": cluster, "task": {"type": task, "index": 0}})
        monkeypatch.setenv("TF_CONFIG", text)
        if task == "worker":
            line = refusal(capsys, *SMALL, "--strategy=multiworker", "--workers=3")
            assert "--workers=3 in a cluster of 2" in line
        else:
            assert "An evaluator task needs --run_dir" in refusal(capsys, *SMALL)


def processes_with(*texts, environ=""):
    """Ids of the processes that have all texts in their command line, and `environ` around them."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            around = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(text in command for text in texts) and environ in around:
            found.append(int(folder.name))
    return found


def kill_when(run_dir, step, rank):
    """A thread that ends a worker with SIGKILL once a checkpoint of this step is there."""

    def watch():
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            if max(checkpoints_of(run_dir), default=0) >= step:
                for pid in processes_with("tfscale.fit", str(run_dir), environ=f'"index": {rank}'):
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.005)

    return threading.Thread(target=watch)


@pytest.mark.workers
def test_workers_killed_at_a_moment_end_with_the_bits_of_the_undisturbed_run(tmp_path, capfd):
    argv = [
        "--strategy=multiworker", "--workers=2", "--deterministic", *LONG,
        "--config.train.epochs=8",
    ]  # fmt: skip
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train(undisturbed, *argv)
    killer = kill_when(killed, step=40, rank=1)
    killer.start()
    code = fit.main([*argv, f"--run_dir={killed}", "--max_restarts=0"])
    killer.join()
    assert code == 128 + signal.SIGKILL
    assert "worker 1 failed first: signal SIGKILL" in capfd.readouterr().err
    cause = next(text for _, text in RunFiles(killed).happened() if "fail" in text)
    assert cause.startswith("worker 1 failed first: signal SIGKILL")
    assert not (killed / "summary.json").exists()
    assert not processes_with("tfscale.fit", str(killed))
    train(killed, *argv)
    assert read_summary(killed)["num_workers"] == 2
    one, other = last_checkpoint(killed), last_checkpoint(undisturbed)
    assert one.step == other.step == 8 * STEPS
    assert one.arrays.keys() == other.arrays.keys()
    for name, expected in other.arrays.items():
        np.testing.assert_array_equal(one.arrays[name], expected, err_msg=name)
    check_equal_runs(killed, undisturbed)
    for rank in (0, 1):
        assert (killed / "logs" / f"worker-{rank}.log").is_file()
    assert "epoch 8/8" in (killed / "logs" / "worker-0.log").read_text()


@pytest.mark.workers
@pytest.mark.slow
def test_evaluator_task_scores_every_checkpoint_as_the_workers_do(tmp_path):
    """The workers validate at each end of an epoch; the evaluator's scores there are the same."""
    addresses = [f"127.0.0.1:{port}" for port in ports.free_ports(3)]
    cluster = {"chief": addresses[:1], "worker": addresses[1:2], "evaluator": addresses[2:]}
    run_dir = tmp_path / "run"
    command = [
        sys.executable, "-m", "tfscale.fit", *LONG, "--config.checkpoint.keep_last=20",
        f"--run_dir={run_dir}", "--start_timeout_seconds=60",
    ]  # fmt: skip
    processes = []
    try:
        for task in ("chief", "worker", "evaluator"):
            text = json.dumps({"cluster": cluster, "task": {"type": task, "index": 0}})
            with open(tmp_path / f"{task}.log", "w") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, "TF_CONFIG": text, "TFSCALE_LOCAL_WORKERS": "2"},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = [process.wait(timeout=150) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in sorted(tmp_path.glob("*.log")):
            print(f"--- {log.name}\n{log.read_text()}")
    assert codes == [0, 0, 0]
    lines = (run_dir / "evaluator.jsonl").read_text().splitlines()
    scores = {record["step"]: record["evaluator"] for record in map(json.loads, lines)}
    assert sorted(scores) == [*range(10, 121, 10), 3 * STEPS]
    assert len(lines) == len(scores)
    assert f"evaluator  step {3 * STEPS}  " in (tmp_path / "evaluator.log").read_text()
    assert scores[3 * STEPS] == pytest.approx(read_summary(run_dir)["validation"], rel=1e-5)


@pytest.mark.workers
def test_worker_that_fails_at_start_ends_the_others(tmp_path, monkeypatch, capfd):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif '\"index\": 1' in os.environ.get('TF_CONFIG', ''):\n    os._exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    run_dir = tmp_path / "run"
    began = time.monotonic()
    argv = ["--strategy=multiworker", "--workers=2", f"--run_dir={run_dir}", *SMALL]
    assert fit.main(argv) == 7
    assert time.monotonic() - began < 60  # not the bound on the start, which is 300 seconds
    assert "worker 1 failed first: exit code 7" in capfd.readouterr().err
    assert not processes_with("tfscale.fit", str(run_dir))
