"""The lines about a run that TensorBoard's first page begins with."""

import io
import json

import made_runs
import numpy as np
import pytest
from PIL import Image, ImageFont
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tfscale.monitor import follow, glance
from tfscale.monitor.run_files import RunFiles
from tfscale.monitor.run_log import ScalarLog


def facts(path):
    return glance.facts(RunFiles(path))


def test_best_step_restart_and_slow_worker_are_told_in_colour(tmp_path):
    told = facts(made_runs.plain(tmp_path / "plain"))
    assert told[0] == ("plain: step 30 of 30", "")
    best = told.index(("Best step: 20 (epoch 2)", "good"))
    assert told[best + 1] == ("    validation accuracy 0.9000", "good")
    told = facts(made_runs.restarted(tmp_path / "restarted"))
    assert ("1 restart: it went on from step 10", "bad") in told
    assert ("1 bad step, the last was 12", "bad") in told
    assert ("64 examples/s, goodput 50 %", "") in told
    told = facts(made_runs.killed(tmp_path / "killed"))
    restart = told.index(("1 restart: it went on from step 10", "bad"))
    assert told[restart + 1] == ("    worker 1 failed: signal SIGKILL at step 17", "bad")
    told = facts(made_runs.slow(tmp_path / "slow"))
    assert ("Slow worker: worker 2, 2.36 times the others", "bad") in told


def test_restart_keeps_its_step_and_its_cause_when_the_run_is_continued(tmp_path):
    told = facts(made_runs.continued(tmp_path / "run"))
    restart = told.index(("1 restart: it went on from step 10", "bad"))
    assert told[restart + 1] == ("    worker 1 failed: signal SIGKILL at step 17", "bad")


def test_of_several_restarts_the_last_is_told_with_its_cause(tmp_path):
    path = made_runs.continued(tmp_path / "run")
    with open(path / "events.jsonl", "a") as file:
        file.write(json.dumps(made_runs.begin(40, 300, life=4)) + "\n")
    with open(path / "logs/failures.jsonl", "a") as file:
        file.write(json.dumps({"time": made_runs.BEGAN + 250, "text": "worker 0 failed"}) + "\n")
    told = facts(path)
    restart = told.index(("2 restarts, the last from step 40", "bad"))
    assert told[restart + 1] == ("    worker 0 failed", "bad")


def fitted(text, room=382):
    """The rows of a line, in the letters of the picture; none of them is too wide."""
    font = ImageFont.load_default(16)
    rows = glance.wrapped(text, room, font.getlength)
    assert max(map(font.getlength, rows)) <= room
    return rows


@pytest.mark.parametrize("length", [3, 30, 90])
def test_names_of_any_length_leave_the_numbers_of_their_line(length):
    name = "x" * (length - 2) + "_1"
    [best] = fitted(f"    validation {name} 0.9861")
    assert best.startswith("    validation x") and best.endswith("_1 0.9861")
    rows = fitted(f"{name}: step 1,234,567 of 9,876,543")
    assert " ".join(" ".join(rows).split()).endswith("_1: step 1,234,567 of 9,876,543")
    assert ("…" in rows[0]) == (length > 24)


def test_sentence_that_is_too_wide_goes_on_below_whole():
    text = "its host is busy between steps, as with callbacks, and so it goes on and on"
    rows = fitted(f"    {text}")
    assert len(rows) > 1 and all(row.startswith("    ") for row in rows)
    assert " ".join(row.strip() for row in rows) == text
    one, two = glance.picture([("a", "bad")]), glance.picture([(f"    {text}", "bad")])
    assert two[1][1] == one[1][1] + 25 * (len(rows) - 1)


def test_a_stop_on_request_is_no_trouble(tmp_path):
    events = [made_runs.begin(0, 0), made_runs.event("left", 10, 10, code=143)]
    events.append(made_runs.begin(10, 20, life=2))
    path = made_runs.write(tmp_path / "run", [made_runs.record(1, 1.0)], events)
    told = facts(path)
    assert ("No restart", "good") in told
    assert ("1 stop on request, the last at step 10", "") in told
    assert "1 stop on request" in "\n".join(follow.lines(RunFiles(path)))


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
