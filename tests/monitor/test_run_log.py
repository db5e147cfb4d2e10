"""The curves of a run: which lines are written, when, and what a later life keeps."""

import itertools
import json
import re
import threading

import made_runs
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from tfscale.monitor import cadence, run_log, workers
from tfscale.monitor.event_file import EventFile
from tfscale.monitor.run_log import RunLog, ScalarLog
from tfscale.monitor.story import Story
from tfscale.training.progress import Progress


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


def test_record_is_a_line_and_a_point(path, tmp_path):
    log = ScalarLog(path, tmp_path / "tensorboard")
    log.write("train", 3, {"loss": 0.5, "accuracy": 0.25}, epoch=1)
    log.write("validation", 3, {"loss": 0.75})
    log.close()
    one, other = lines(path)
    assert one.pop("time") <= other.pop("time")
    assert one == {"step": 3, "epoch": 1, "train": {"loss": 0.5, "accuracy": 0.25}}
    assert other == {"step": 3, "validation": {"loss": 0.75}}
    for kind, expected in (("train", 0.5), ("validation", 0.75)):
        events = EventAccumulator(str(tmp_path / "tensorboard" / kind)).Reload()
        [event] = events.Tensors("1 learning/loss")
        assert (event.step, float(tf.make_ndarray(event.tensor_proto))) == (3, expected)


def test_lines_are_there_while_the_run_goes_on(path):
    log = ScalarLog(path)
    log.write("train", 1, {"loss": 1.0})
    assert len(lines(path)) == 1
    log.close()


def test_without_a_folder_there_are_no_event_files(path):
    log = ScalarLog(path)
    log.write("train", 1, {"loss": 1.0})
    log.close()
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("first_step", "kept"),
    [
        (0, []),
        (10, [("train", 5), ("train", 10), ("validation", 10)]),
        (12, [("train", 5), ("train", 10), ("validation", 10), ("test", 10)]),
        (20, [("train", 5), ("train", 10), ("validation", 10), ("test", 10), ("train", 20)]),
    ],
)
def test_later_life_keeps_what_came_before_its_checkpoint(path, first_step, kept):
    log = ScalarLog(path)
    for kind, step in [("train", 5), ("train", 10), ("validation", 10), ("test", 10)]:
        log.write(kind, step, {"loss": 1.0})
    log.write("train", 20, {"loss": 1.0})
    log.close()
    ScalarLog(path, first_step=first_step).close()
    found = [(kind, r["step"]) for r in lines(path) for kind in r if kind not in ("step", "time")]
    assert found == kept


def shown(folder, tag="1 learning/loss"):
    """The steps that TensorBoard shows of a run."""
    events = EventAccumulator(str(folder)).Reload()
    return [e.step for e in events.Tensors(tag)] if tag in events.Tags()["tensors"] else []


def test_later_life_doubles_no_point_in_tensorboard(path, tmp_path):
    """Even where it has not yet written anything of its own."""
    folder = tmp_path / "tensorboard"
    log = ScalarLog(path, folder)
    for step in (5, 10, 15, 20):
        log.write("train", step, {"loss": 1.0})
    log.write("validation", 10, {"loss": 1.0})
    log.write("validation", 20, {"loss": 1.0})
    log.write("test", 10, {"loss": 1.0})
    log.close()
    assert (shown(folder / "train"), shown(folder / "test")) == ([5, 10, 15, 20], [10])
    log = ScalarLog(path, folder, first_step=10)
    log.forget_later_points()
    assert shown(folder / "validation") == [10] and shown(folder / "test") == []
    log.write("train", 15, {"loss": 2.0})
    log.write("test", 15, {"loss": 2.0})
    log.close()
    assert (shown(folder / "train"), shown(folder / "test")) == ([5, 10, 15], [15])


def test_run_does_not_wait_for_tensorboards_files(path, tmp_path, monkeypatch):
    held = threading.Event()
    real = EventFile.scalars
    monkeypatch.setattr(EventFile, "scalars", lambda *a: held.wait(60) and real(*a))
    log = ScalarLog(path, tmp_path)
    for step in range(5):
        log.write("train", step, {"loss": 1.0})
    log.events("train")
    assert len(lines(path)) == 5 and shown(tmp_path / "train") == []
    held.set()
    log.close()
    assert shown(tmp_path / "train") == [0, 1, 2, 3, 4]


def test_run_that_goes_back_leaves_no_branch_in_the_curves(path, tmp_path):
    """As `on_bad_loss="rollback"` does, within an epoch and to the one before."""
    log, progress = ScalarLog(path, tmp_path), Progress()
    callback = RunLog(log, progress, 1)

    def steps(first, last):
        for step in range(first, last + 1):
            callback.on_train_batch_begin(step - 1)
            progress.advance(1, 10, 0.1)
            callback.on_train_batch_end(step - 1, {"loss": float(step)})

    callback.on_epoch_begin(0)
    steps(1, 8)
    bad = {"step": 9, "epoch": 0, "loss": "nan", "bad": "loss", "action": "rollback"}
    callback.on_bad_step(bad)
    progress.step = 6
    steps(7, 8)
    callback.on_epoch_end(0, {"loss": 1.0, "val_loss": 2.0})
    progress.step = 4
    callback.on_epoch_begin(0)
    steps(5, 6)
    log.close()
    assert [r["step"] for r in lines(path) if "train" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in lines(path) if "bad_step" in r] == [9]
    assert not [r for r in lines(path) if "validation" in r]
    assert shown(tmp_path / "train") == [1, 2, 3, 4, 5, 6]
    assert shown(tmp_path / "validation") == []


def test_line_that_was_cut_off_is_dropped(path):
    log = ScalarLog(path)
    log.write("train", 5, {"loss": 1.0})
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 6, "tr')
    log = ScalarLog(path, first_step=9)
    log.write("train", 10, {"loss": 1.0})
    log.close()
    assert [record["step"] for record in lines(path)] == [5, 10]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"3\n", b'{"step": null, "train": {}}\n'])
def test_damaged_line_is_a_gap_and_the_run_goes_on_and_back(path, damage):
    log = ScalarLog(path)
    for step in (5, 8):
        log.write("train", step, {"loss": 1.0})
    log.close()
    path.write_bytes(path.read_bytes() + damage)
    log = ScalarLog(path, first_step=8)
    assert log.seen["seen_step"] == 8
    log.write("train", 10, {"loss": 1.0})
    with open(path, "ab") as file:
        file.write(damage)
    log.take_back(8)
    log.write("train", 9, {"loss": 1.0})
    log.close()
    assert [record["step"] for record in lines(path)] == [5, 8, 9]


def run_log_steps(path, progress, every_steps, looks, steps_per_epoch):
    """The steps of the records of training, if the host looks at these steps."""
    log = ScalarLog(path)
    callback = RunLog(log, progress, every_steps)
    callback.on_epoch_begin(0)
    for step in looks:
        progress.advance(step - progress.step, 10, 0.1)
        callback.on_train_batch_end(progress.position - 1, {"loss": 0.5})
        if progress.position == steps_per_epoch:
            callback.on_epoch_end(progress.epoch, {"loss": 0.5, "val_loss": 0.25})
            progress.begin_next_epoch()
            callback.on_epoch_begin(progress.epoch)
    log.close()
    return [record["step"] for record in lines(path) if "train" in record]


@pytest.mark.parametrize(
    ("every_steps", "looks", "expected"),
    [
        (1, range(1, 13), list(range(1, 13))),
        (5, range(1, 13), [5, 10, 12]),
        (5, range(4, 13, 4), [8, 12]),
        (100, range(1, 13), [12]),
        (4, range(4, 13, 4), [4, 8, 12]),
        (5, range(1, 25), [5, 10, 12, 15, 20, 24]),
    ],
)
def test_training_is_recorded_at_multiples_and_ends_of_epochs(path, every_steps, looks, expected):
    assert run_log_steps(path, Progress(), every_steps, looks, 12) == expected


def test_data_of_unknown_length_give_ever_fewer_records(path):
    found = run_log_steps(path, Progress(), cadence.every_steps(None), range(1, 5001), 5000)
    assert found[:40] == list(range(1, 41))
    assert found[40:43] == [42, 44, 46] and found[-3:-1] == [4864, 4992]
    assert len(found) < 200
    later = Progress(epoch=0, position=4870, step=4870)
    assert run_log_steps(path, later, 0, range(4871, 5001), 5000) == [4992, 5000]


def test_life_that_goes_on_records_at_the_same_steps(path):
    progress = Progress(epoch=0, position=7, step=7)
    assert run_log_steps(path, progress, 5, range(8, 13), 12) == [10, 12]


def test_speed_and_rate_are_recorded_and_not_those_of_the_first_execution(path):
    """It traces the graph, which takes longer than the steps."""
    progress = Progress()
    progress.learning_rate = 0.125
    run_log_steps(path, progress, 1, range(1, 4), 3)
    first, *others = [record["train"] for record in lines(path) if "train" in record]
    assert first == {"loss": 0.5, "learning_rate": 0.125}
    for values in others:
        assert values["step_seconds"] == pytest.approx(0.1)
        assert values["examples_per_second"] == pytest.approx(100)
    [validation] = [record for record in lines(path) if "validation" in record]
    assert validation["validation"] == {"loss": 0.25}
    assert (validation["step"], validation["epoch"]) == (3, 0)


class Measured:
    """Stands where the loop's measures stand: the times of two workers, one of which is slow."""

    meet_between = False

    def __init__(self):
        self.taken = 0

    def take(self):
        self.taken += 1
        return {"workers": made_runs.times(5, 12 + self.taken % 2), "gradient_norm": 2.0}

    def take_histograms(self):
        return {"weights/w": np.array([0.0, 1.0, *[2.0] * 30])}


def test_measures_and_the_story_stand_beside_the_numbers(path, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "RECENT_SECONDS", 0)
    monkeypatch.setattr(run_log, "_GLANCE_SHARE", 1e9)  # it looks however long that takes
    log, story = ScalarLog(path, tmp_path / "tensorboard"), Story(tmp_path / "events.jsonl")
    story.begin(0)
    progress = Progress()
    callback = RunLog(log, progress, 1, Measured(), story, update_bytes=100)
    callback.on_epoch_begin(0)
    logs = {"mean_absolute_error": 0.25, "iou": [0.5, 0.25], "loss": 0.5}
    for step in range(15):
        progress.advance(1, 10, 0.02)
        if step == 7:
            bad = {"step": 7, "epoch": 0, "position": 6, "loss": "nan", "bad": "loss"}
            callback.on_bad_step(bad | {"action": "skip", "examples": None})
        callback.on_train_batch_end(step, logs)
    log.close()
    story.close()
    last = lines(path)[-1]
    assert (last["gradient_norm"], last["bytes_sent"]) == (2.0, 1500)
    assert (last["restarts"], last["bad_steps"]) == (0, 1)
    assert last["seconds"]["wait"] == pytest.approx((12 + 1 - 5) / 2 / 1e3, rel=0.2)
    told = [event["event"] for event in story.events]
    assert told == ["begin", "bad step", "slow worker"]  # once, however long it is slow
    assert story.events[-1]["worker"] == 1
    worker = EventAccumulator(str(tmp_path / "tensorboard" / "worker-1")).Reload()
    tag = "2 speed and health/slow worker, times the others"
    assert float(tf.make_ndarray(worker.Tensors(tag)[-1].tensor_proto)) > 2
    train_ = EventAccumulator(str(tmp_path / "tensorboard" / "train")).Reload()
    assert tf.make_ndarray(train_.Tensors("5 weights/w")[0].tensor_proto).shape == (30, 3)
    [page] = train_.Tensors("custom_scalars__config__")  # of names as they are in the logs
    page = layout_pb2.Layout.FromString(tf.make_ndarray(page.tensor_proto).item())
    patterns = [chart.multiline.tag[0] for chart in page.category[0].chart]
    shown = [next((t for t in train_.Tags()["tensors"] if re.match(p, t)), p) for p in patterns]
    names = ["loss", "mean_absolute_error", "iou/0", "learning rate"]
    assert shown == [f"1 learning/{name}" for name in names]


def test_bytes_of_earlier_lives_count(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"step": 5, "bytes_sent": 500, "train": {"loss": 1.0}}) + "\n")
    log, progress = ScalarLog(path, first_step=5), Progress(step=5)
    callback = RunLog(log, progress, 1, update_bytes=10)  # of other workers than before
    for step in range(3):
        progress.advance(1, 10, 0.02)
        callback.on_train_batch_end(step, {"loss": 1.0})
    log.close()
    assert [line["bytes_sent"] for line in lines(path)] == [500, 510, 520, 530]


def test_two_workers_slow_in_turn_are_told_once_each(path, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "RECENT_SECONDS", 0)
    monkeypatch.setattr(run_log, "_GLANCE_SHARE", 1e9)
    own = {"seconds": 0.01, "others": 2.0, "own_best": 1.0, "part": "input", "errors": 9.0}
    slow = itertools.cycle(workers.Slowest(worker, **own) for worker in (0, 1))
    monkeypatch.setattr(workers, "slowest", lambda records: next(slow))
    log, story, progress = ScalarLog(path), Story(tmp_path / "events.jsonl"), Progress()
    story.begin(0)
    callback = RunLog(log, progress, 1, Measured(), story)
    for step in range(6):
        progress.advance(1, 10, 0.02)
        callback.on_train_batch_end(step, {"loss": 1.0})
    log.close()
    story.close()
    told = [event["worker"] for event in story.events if event["event"] == "slow worker"]
    assert told == [0, 1]


def test_what_the_disk_refuses_ends_the_file_and_not_the_run(tmp_path, caplog):
    events = EventFile(tmp_path)
    events.scalars(1, {"x": 1.0})
    events._writer.close()  # as a disk that is gone
    for step in (2, 3):
        events.scalars(step, {"x": 1.0})
    events.close()
    assert caplog.text.count("TensorBoard gets no more of") == 1
