"""Which step is told to be the best: by all that tell of it the same, and the right way round."""

import json
import re

import made_runs
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tfscale import fit, report
from tfscale.monitor import follow, scores
from tfscale.monitor.run_files import RunFiles
from tfscale.training import checkpoint as checkpoint_lib


def made(path, values, events=(), kind="validation", **config):
    """A run of so many epochs of 10 steps, with these numbers of a metric."""
    records = [
        {"step": 10 * n, "epoch": n - 1, "time": made_runs.BEGAN + n, kind: value}
        for n, value in enumerate(values, 1)
    ]
    return RunFiles(made_runs.write(path, records, events, **config))


def begin(best, keep_best=""):
    return [made_runs.begin(0, 0, best=best, keep_best=keep_best)]


@pytest.mark.parametrize(("direction", "step"), [("max", 20), ("min", 30)])
def test_run_says_itself_which_way_is_better(tmp_path, direction, step):
    values = [{"odd": value, "loss": 1.0} for value in (0.5, 0.9, 0.1)]
    run = made(tmp_path / "run", values, begin([["val_odd", direction]]))
    assert (run.best().name, run.best().step) == ("odd", step)


def test_what_has_no_single_number_is_passed_over(tmp_path):
    values = [{"f1": [value, value], "loss": value} for value in (0.5, 0.3)]
    run = made(tmp_path / "run", values, begin([["val_f1", "max"], ["val_loss", "min"]]))
    assert run.best()[:4] == ("loss", 0.3, 20, 2)


def test_kept_metric_of_training_counts_at_the_ends_of_epochs_as_for_the_checkpoint(tmp_path):
    records = [made_runs.record(s, float(s)) for s in range(1, 25)]
    events = begin([["loss", "min"]], "loss")
    run = RunFiles(made_runs.write(tmp_path / "run", records, events))
    assert run.best()[:4] == ("loss", 10.0, 10, 1)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("mean_io_u", "max"), ("binary_io_u_1", "max"), ("fbeta_score", "max"), ("auc", "max"),
        ("pearson_correlation", "max"), ("val_sparse_categorical_accuracy", "max"),
        ("mean_squared_error", "min"), ("out_loss", "min"), ("categorical_crossentropy", "min"),
        ("false_positives", None), ("my_quality", None),
    ],
)  # fmt: skip
def test_without_its_word_the_names_of_keras_metrics_tell(name, direction):
    assert scores.direction_by_name(name) == direction


def test_older_run_without_its_word_goes_by_names_and_by_its_configuration(tmp_path):
    values = [{"quality": 5.0, "mean_io_u": 0.5}, {"quality": 9.0, "mean_io_u": 0.8}]
    assert made(tmp_path / "a", values).best()[:3] == ("mean_io_u", 0.8, 20)
    kept = {"checkpoint__keep_best": "val_quality", "checkpoint__best_mode": "min"}
    assert made(tmp_path / "b", values, **kept).best()[:3] == ("quality", 5.0, 10)
    assert made(tmp_path / "c", values, checkpoint__keep_best="val_quality").best() is None


def test_all_that_tell_of_the_best_step_tell_of_the_checkpoint_that_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    path = tmp_path / "run"
    argv = [
        "--config.model.arguments.filters=(4,)",
        "--config.model.arguments.dense_units=(8,)",
        "--config.data.validation_fraction=0.1",
        "--config.data.global_batch_size=256",
        "--config.train.epochs=2",
        "--config.checkpoint.keep_best=val_loss",
        "--config.checkpoint.best_mode=max",  # the other way round than the name says
        "--config.checkpoint.keep_last=1",
        "--config.log.inputs=0",
        "--config.log.measures=false",
        "--config.log.graph=false",
        "--config.log.test_examples=0",
    ]
    assert fit.main([*argv, f"--run_dir={path}"]) == 0
    run, steps = RunFiles(path), checkpoint_lib.Checkpoints(path / "checkpoints").steps()
    name, value, step, _, split = run.best()
    assert split == "validation"
    assert (name, value) == ("loss", max(value for _, value in run.curve("validation", "loss")))
    assert steps == [step, run.step] and step < run.step
    summary = json.loads((path / "summary.json").read_text())["best"]
    assert (summary["name"], summary["step"], summary["value"]) == (name, step, value)
    events = EventAccumulator(str(path / "tensorboard/best")).Reload()
    assert [event.step for event in events.Tensors("1 learning/loss")] == [step]
    assert report.main([f"--run_dir={path}"]) == 0
    page = re.sub(r"<[^>]*>", "", (path / "report.html").read_text())
    assert f"loss {value:.4f} at step {step}, epoch 1" in page
    assert f"loss {value:.4f} at step {step}, epoch 1" in "\n".join(follow.lines(run))
