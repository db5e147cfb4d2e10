"""The events of a run over all its lives."""

import time

import made_runs
import pytest

from tfscale.monitor import pages, story


def test_an_error_of_a_graph_is_told_without_names_of_functions_and_said_once(tmp_path):
    one = story.Story(tmp_path / "events.jsonl")
    one.begin(0)
    text = "{{function_node __inference_<lambda>_1551}} Collective ops is aborted by: "
    one.tell_error(5, RuntimeError(text + "Collective ops is aborted by: Socket closed"))
    one.close()
    assert one.events[-1]["error"] == "RuntimeError: Collective ops is aborted by: Socket closed"


def told(path):
    return [(event["event"], event["step"]) for event in story.read(path)]


def test_lives_are_counted_and_a_life_that_goes_on_after_a_failure_is_a_restart(tmp_path):
    path = tmp_path / "events.jsonl"
    for life, error in enumerate([RuntimeError("broken"), SystemExit(143), None]):
        one = story.Story(path)
        one.begin(10 * life)
        assert (one.events[-1]["life"], one.restarts) == (life + 1, min(life, 1))
        if error is None:
            one.tell("end", 30)
        else:
            one.tell_error(10 * life + 5, error)
        one.close()
    again = story.Story(path)
    again.begin(30)
    assert again.restarts == 1  # more epochs of a finished run are no restart, nor is a stop
    [(_, stop)] = story.restarts_of(again.events, stops=True)
    assert stop["step"] == 20
    again.close()
    assert told(path)[:4] == [("begin", 0), ("failed", 5), ("begin", 10), ("left", 15)]
    sentences = [text for _, text in pages.happened(story.read(path))]
    assert sentences[1] == "fails at step 5: RuntimeError: broken"
    assert sentences[3] == "told to leave at step 15, exit code 143"
    assert sentences[4].startswith("after a stop or a preemption: goes on at step 20")
    assert sentences[6] == "is continued at step 30, with 1 worker(s)"


def test_error_of_a_graph_is_told_without_the_code_it_comes_from(tmp_path):
    text = (
        "Graph execution error:\n\nDetected at node while/Sum defined at (most recent call last):\n"
        '  File "<frozen runpy>", line 198, in _run\n\n  File "fit.py", line 33, in main\n\n'
        "Collective ops is aborted by: Connection reset by peer\n\t [[{{node while/Sum}}]]"
    )
    one = story.Story(tmp_path / "events.jsonl")
    one.begin(0)
    one.tell_error(5, RuntimeError(text))
    one.close()
    told = "RuntimeError: Collective ops is aborted by: Connection reset by peer"
    assert one.events[-1]["error"] == told


def test_line_that_a_kill_cut_off_hurts_nobody(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "begin", "step": 0, "time": 1.0}\n{"event": "bad st')
    one = story.Story(path)
    one.begin(7)
    one.close()
    assert told(path) == [("begin", 0), ("begin", 7)]


@pytest.mark.parametrize(
    "damage", [b"\xff\xfe\n", b"\x00\x80\n", b"3\n", b"[]\n", b"null\n", b'{"event": "end"}\n']
)
def test_damaged_line_is_passed_over_and_the_story_goes_on(tmp_path, damage):
    path = tmp_path / "events.jsonl"
    whole = b'{"event": "begin", "step": 0, "time": 1.0}\n'
    path.write_bytes(whole + damage)
    one = story.Story(path)
    one.begin(7)
    one.close()
    assert told(path) == [("begin", 0), ("begin", 7)] and one.restarts == 1


def test_goodput_is_of_the_time_from_the_first_life_on_but_for_pauses(tmp_path):
    path = tmp_path / "events.jsonl"
    now = time.time() - made_runs.BEGAN
    lives = [("begin", 0, -1000), ("begin", 5, -800), ("end", 9, -700), ("begin", 9, -100)]
    events = [made_runs.event(kind, step, now + at) for kind, step, at in lives]
    made_runs.write(tmp_path / "run", events=events)
    (tmp_path / "run/events.jsonl").rename(path)
    one = story.Story(path)
    one.begin(9)
    assert one.goodput(200) == pytest.approx(200 / 400, abs=0.01)
    one.close()


def test_restart_tells_what_it_cost(tmp_path):
    run = made_runs.restarted(tmp_path / "run")
    sentences = [text for _, text in pages.happened(story.read(run / "events.jsonl"))]
    assert sentences[1] == (
        "restarted after a failure: goes on at step 10, 60 s after the last sign of life, "
        "7 steps taken again, 2 worker(s)"
    )
    assert sentences[2] == "bad step 12: loss, loss nan, skip"
