"""What TensorBoard's first page gets as a life begins."""

import made_runs
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tfscale.monitor.first_page import FirstPage
from tfscale.monitor.run_log import ScalarLog
from tfscale.monitor.story import Story

FACTS = {"workers": [], "host": "here", "num_workers": 1, "num_replicas": 1, "parameters": 3,
         "steps_per_epoch": 10, "epochs": 3, "versions": {}}  # fmt: skip


def next_life(path, step):
    """Begin another life of a run after a step; return what is shown of it."""
    log = ScalarLog(path / "metrics.jsonl", path / "tensorboard", step)
    log.forget_later_points()
    story = Story(path / "events.jsonl")
    story.begin(step, **FACTS)
    FirstPage(log, story, path).begin(step)
    story.close()
    log.close()
    glances = shown(path / "tensorboard/train", "1 learning/0 how it is")
    return marks(path), [event.step for event in glances]


def shown(folder, tag):
    if not folder.exists():
        return []
    events = EventAccumulator(str(folder)).Reload()
    return events.Tensors(tag) if tag in events.Tags()["tensors"] else []


def marks(path):
    """Pairs of a step and a number, where the run went on after a failure."""
    found = shown(path / "restarts", "2 speed and health/restarts")
    return [(e.step, float(tf.make_ndarray(e.tensor_proto))) for e in found]


def test_restart_is_marked_on_the_curves_and_told_and_a_continuation_is_not_marked(tmp_path):
    path = made_runs.killed(tmp_path / "run")
    assert next_life(path, 10) == (
        [(10, 2.0)],
        [10],
    )  # the second, of a run that had no event files
    [loss] = shown(path / "restarts", "1 learning/loss")
    assert (loss.step, float(tf.make_ndarray(loss.tensor_proto))) == (10, 1.0)
    with_end = Story(path / "events.jsonl")
    with_end.tell("end", 30)
    with_end.close()
    assert next_life(path, 30) == ([(10, 2.0)], [10, 30])
    assert next_life(path, 5) == ([(5, 3.0)], [5])  # from an earlier checkpoint


@pytest.mark.parametrize("ended", ["failed", "left", "killed"])
def test_restart_from_the_first_step_is_marked_and_told(tmp_path, ended):
    story = Story(tmp_path / "events.jsonl")
    story.begin(0, **FACTS)
    if ended != "killed":
        story.tell_error(0, SystemExit(143) if ended == "left" else ValueError("x"))
    story.close()
    assert next_life(tmp_path, 0) == ([(0, 1.0)], [0])


def test_first_life_has_neither_mark_nor_words(tmp_path):
    assert next_life(tmp_path, 0) == ([], [])
