"""The lines about a run that TensorBoard's first page begins with."""

import io

import made_runs
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tfscale.monitor import glance
from tfscale.monitor.run_files import RunFiles
from tfscale.monitor.run_log import ScalarLog


def facts(path):
    return glance.facts(RunFiles(path))


def test_best_step_restart_and_slow_worker_are_told_in_colour(tmp_path):
    told = facts(made_runs.plain(tmp_path / "plain"))
    assert told[0] == ("plain: step 30 of 30", "")
    assert ("Best step: 20 (epoch 2), validation accuracy 0.9000", "good") in told
    told = facts(made_runs.restarted(tmp_path / "restarted"))
    assert ("1 restart: it went on from step 10", "bad") in told
    assert ("1 bad step(s), the last was 12", "bad") in told
    assert ("64 examples/s; 50 % of the time trained", "") in told
    told = facts(made_runs.killed(tmp_path / "killed"))
    restart = told.index(("1 restart: it went on from step 10", "bad"))
    assert told[restart + 1] == ("    worker 1 failed: signal SIGKILL at step 17", "bad")
    told = facts(made_runs.slow(tmp_path / "slow"))
    assert ("Slow worker: worker 2, 2.36 times the others", "bad") in told


def test_where_times_are_not_measured_the_reason_is_told(tmp_path):
    begin = made_runs.begin(0, 0, unseen_times="steps on GPUs are seen by the profiler only")
    path = made_runs.write(tmp_path / "run", [made_runs.record(1, 1.0)], [begin])
    told = [("Slow worker: unknown,", ""), ("steps on GPUs are seen by the profiler only", "")]
    assert facts(path)[-2:] == told


@pytest.mark.parametrize("lines", [[("one", "")], [("a", "good"), ("b", "bad"), ("   c", "bad")]])
def test_picture_has_the_colours_of_its_lines(lines):
    png, size = glance.picture(lines)
    page = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    assert page.shape == (size[1], size[0], 3)
    red, green, _ = np.moveaxis(page, 2, 0)
    kinds = {kind for _, kind in lines}
    assert ((red - green > 100).any(), (green - red > 60).any()) == (
        "bad" in kinds,
        "good" in kinds,
    )


def test_picture_comes_with_news_and_else_now_and_then(tmp_path):
    log = ScalarLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard")
    log.write("train", 1, {"loss": 1.0})
    for step in (1, 2, 3):
        log.glance(step, is_news=False)
    log.glance(4)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard/train")).Reload()
    assert [event.step for event in events.Tensors("1 learning/0 how it is")] == [1, 4]
