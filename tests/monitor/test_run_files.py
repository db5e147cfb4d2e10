"""What is said of a run from its files alone."""

import itertools
import json
import os

import made_runs
import pytest

from tfscale.monitor import follow
from tfscale.monitor.run_files import RunFiles, find


def test_curves_skip_what_is_no_number(tmp_path):
    records = [made_runs.record(1, 2.0), made_runs.record(2, float("nan")), {"step": 3}]
    run = RunFiles(made_runs.write(tmp_path / "run", records))
    assert run.curve("train", "loss") == [(1, 2.0)]
    assert run.metrics() == ["loss"]


def test_best_step_is_that_of_the_best_validation(tmp_path):
    run = made_runs.plain(tmp_path / "run")
    assert RunFiles(run).best()[:4] == ("accuracy", 0.9, 20, 2)


def test_best_step_by_the_metric_whose_checkpoint_is_kept(tmp_path):
    run = made_runs.plain(tmp_path / "run", checkpoint__keep_best="val_loss")
    assert RunFiles(run).best()[:4] == ("loss", 0.4, 20, 2)


def test_without_validation_training_counts_at_the_ends_of_epochs(tmp_path):
    losses = {1: 0.1, 10: 0.5, 11: 0.2, 20: 0.4, 21: 0.3, 30: 0.6}  # low where an epoch begins
    records = [made_runs.record(step, loss) for step, loss in losses.items()]
    events = [made_runs.begin(0, 0), made_runs.event("end", 30, 30)]
    run = RunFiles(made_runs.write(tmp_path / "run", records, events))
    assert run.best() == ("loss", 0.4, 20, 2, "training")
    assert "training loss 0.4000 at step 20" in "\n".join(follow.lines(run))


def test_state_is_told_by_the_last_event_and_by_the_clock(tmp_path):
    assert RunFiles(made_runs.plain(tmp_path / "a")).state() == "finished"
    running = RunFiles(made_runs.restarted(tmp_path / "b"))
    assert running.state(made_runs.BEGAN + 90) == "training"
    assert running.state(made_runs.BEGAN + 80 + 15) == "training, last sign of life 15 s ago"
    assert running.state(made_runs.BEGAN + 80 + 125) == "no sign of life for 2 min 5 s"
    left = [made_runs.begin(0, 0), made_runs.event("left", 4, 9, code=143)]
    run = RunFiles(made_runs.write(tmp_path / "c", events=left))
    assert run.state() == "told to leave, exit code 143"


@pytest.mark.parametrize(
    ("told", "silent", "state"),
    [
        ([(1, 30), (2, 60), (3, 90)], 10, "training"),  # a record in half a minute
        ([(1, 30), (2, 60), (3, 90)], 29, "training, last sign of life 29 s ago"),
        ([(1, 30), (2, 60), (3, 90)], 80, "training, last sign of life 1 min 20 s ago"),
        ([(1, 30), (2, 60), (3, 90)], 100, "no sign of life for 1 min 40 s"),
        ([(1, 300), (2, 600), (3, 900)], 800, "training, last sign of life 13 min 20 s ago"),
        ([(9, 9), (10, 10)], 14, "training"),
        ([(9, 9), (10, 10)], 15, "training, last sign of life 15 s ago"),
        # The end of an epoch: it may validate.
        ([(9, 9), (10, 10)], 500, "training, last sign of life 8 min 20 s ago"),
        ([(9, 9), (10, 10)], 700, "no sign of life for 11 min 40 s"),
        ([], 500, "starting, last sign of life 8 min 20 s ago"),  # it may trace
        ([], 700, "no sign of life for 11 min 40 s"),
    ],
)
def test_silence_is_measured_by_the_run_itself(tmp_path, told, silent, state):
    records = [made_runs.record(step, 1.0) | {"time": made_runs.BEGAN + s} for step, s in told]
    run = RunFiles(made_runs.write(tmp_path / "run", records, [made_runs.begin(0, 0)]))
    now = made_runs.BEGAN + (told[-1][1] if told else 0) + silent
    assert run.state(now) == state
    longest = max((b[1] - a[1] for a, b in itertools.pairwise(told)), default=0)
    is_usual = silent < max(longest, 15)
    assert (" left" in follow.lines(run, now)[1]) == (bool(told) and is_usual)


def test_life_that_begins_again_is_not_judged_by_the_one_before(tmp_path):
    records = [made_runs.record(step, 1.0) for step in range(1, 16)]
    events = [made_runs.begin(0, 0), made_runs.begin(10, 5000)]
    run = RunFiles(made_runs.write(tmp_path / "run", records, events))
    assert run.state(made_runs.BEGAN + 5100).startswith("starting")
    assert run.state(made_runs.BEGAN + 5700).startswith("no sign of life")


def test_time_left_is_at_the_pace_of_this_life(tmp_path):
    records = [made_runs.record(s, 1.0) for s in range(1, 6)]
    run = RunFiles(made_runs.write(tmp_path / "run", records, [made_runs.begin(0, 0)]))
    assert run.seconds_left() == pytest.approx(25)  # of 3 epochs of 10 steps, one a second


def test_half_written_files_are_read_as_far_as_they_go(tmp_path):
    path = made_runs.plain(tmp_path / "run")
    whole = len(RunFiles(path).records)
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "tr')
    (path / "config.json").write_text('{"train"')
    run = RunFiles(path)
    assert len(run.records) == whole and run.config == {}


def test_look_takes_in_what_is_new_and_a_half_written_line_when_it_is_whole(tmp_path):
    path = made_runs.plain(tmp_path / "run")
    run, whole = RunFiles(path), json.dumps(made_runs.record(40, 0.5)) + "\n"
    before = list(run.records)
    with open(path / "metrics.jsonl", "a") as file:
        for part, expected in ((whole[:20], 30), (whole[20:], 40), ("3\n{}\n" + whole[:9], 40)):
            file.write(part)
            file.flush()
            run.look()
            assert run.step == expected
    assert len(run.records) == len(before) + 1
    assert run.records[0] is before[0]  # what was read before is not read again
    (path / "events.jsonl").unlink()
    run.look()
    assert run.events == []


def test_look_reads_anew_what_a_later_life_has_taken_back(tmp_path):
    path = made_runs.plain(tmp_path / "run")
    run, lines = RunFiles(path), (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    again = json.dumps(made_runs.record(11, 9.0)) + "\n"
    beside = tmp_path / "beside"
    beside.write_text("".join(lines[:11]) + again * 30)  # longer than what was there
    beside.replace(path / "metrics.jsonl")
    run.look()
    assert run.step == 11 and len(run.records) == 11 + 30


def test_scores_of_an_evaluator_are_further_validations(tmp_path):
    path = made_runs.plain(tmp_path / "run")
    scored = [{"step": s, "evaluator": {"loss": s / 100, "accuracy": 0.95}} for s in (15, 20)]
    (path / "evaluator.jsonl").write_text("".join(json.dumps(one) + "\n" for one in scored))
    run = RunFiles(path)
    found = [(10, 0.5), (15, 0.15), (20, 0.4), (30, 0.45)]
    assert run.curve("validation", "loss") == found
    assert run.best()[:4] == ("accuracy", 0.9, 20, 2)  # of its own, as its summary says
    (path / "metrics.jsonl").write_text(json.dumps(made_runs.record(30, 1.0)) + "\n")
    alone = RunFiles(path)
    assert alone.best()[:4] == ("accuracy", 0.95, 15, 2) and alone.metrics() == ["loss", "accuracy"]
    assert "validation 0.2" in "\n".join(follow.lines(alone))


def test_folder_of_a_script_or_a_search_is_the_runs_in_it(tmp_path):
    for number in (1, 2, 10):
        made_runs.plain(tmp_path / "mine/fits" / str(number))
    made_runs.plain(tmp_path / "search/trials/0003")
    assert [r.name for r in find(tmp_path / "mine")] == [f"mine/fits/{n}" for n in (1, 2, 10)]
    assert [r.name for r in find(tmp_path / "search")] == ["search/trials/0003"]
    with pytest.raises(ValueError, match="which has no metrics.jsonl"):
        find(tmp_path)


def test_text_says_how_far_how_good_how_fast_and_what_happened(tmp_path):
    run = RunFiles(made_runs.restarted(tmp_path / "run"))
    text = "\n".join(follow.lines(run, made_runs.BEGAN + 90))
    for part in ("epoch 2/3  step 15/30", " 50 %", "64 examples/s", "goodput 50 %", "1 restart ",
                 "1 bad step", "goes on at step 10", "training 1"):  # fmt: skip
        assert part in text


def test_cause_that_the_launcher_tells_stands_for_the_noise_of_the_chief(tmp_path):
    run = RunFiles(made_runs.killed(tmp_path / "run"))
    told = [text for _, text in run.happened()]
    assert told[1] == made_runs.KILLED and told[2].startswith("restarted after a failure")
    text = "\n".join(follow.lines(run, made_runs.BEGAN + 90))
    assert made_runs.KILLED in text and "UnavailableError" not in text
    (run.path / "logs/failures.jsonl").unlink()
    run.look()
    assert run.happened()[1][1] == f"fails at step 17: {made_runs.NOISE}"


def test_cause_of_one_end_leaves_the_word_of_another_end(tmp_path):
    path = made_runs.killed(tmp_path / "run")
    with open(path / "events.jsonl", "a") as file:
        file.write(json.dumps(made_runs.event("failed", 14, 90, error="ValueError: x")) + "\n")
    told = [text for _, text in RunFiles(path).happened()]
    assert told[1] == made_runs.KILLED and told[-1] == "fails at step 14: ValueError: x"


def test_failures_of_a_script_belong_to_the_fit_that_was_under_way(tmp_path):
    one, two = (made_runs.write(tmp_path / f"mine/fits/{n}", [], e) for n, e in (
        (1, [made_runs.begin(0, 0), made_runs.event("end", 30, 31)]),
        (2, [made_runs.begin(0, 40), made_runs.begin(0, 60)]),
    ))  # fmt: skip
    made_runs.tell_failures(tmp_path / "mine", (-5, "too early"), (50, "worker 1 failed first"))
    assert [text for _, text in RunFiles(one).happened()][1:] == ["ends at step 30"]
    assert RunFiles(two).happened()[1][1] == "worker 1 failed first"
    assert [cause["text"] for cause in RunFiles(two).causes] == ["worker 1 failed first"]


def test_text_says_first_who_is_slow_how_much_and_why(tmp_path):
    run = RunFiles(made_runs.slow(tmp_path / "run"))
    told = "Worker 2 is slow: 2.36 times the others, it waits for its input; "
    assert f"workers   {told}" in "\n".join(follow.lines(run))


@pytest.mark.parametrize("width", [40, 80, 99, 100, 160])
def test_text_goes_on_below_where_the_terminal_is_too_narrow_and_loses_no_word(tmp_path, width):
    run = RunFiles(made_runs.killed(tmp_path / "a_long_name" / "run"))
    found = follow.lines(run, made_runs.BEGAN + 90, width)
    assert max(map(len, found)) <= width
    whole = follow.lines(run, made_runs.BEGAN + 90)
    assert max(map(len, whole)) > 100
    assert "".join(found).count("█") + "".join(found).count("░") == (12 if width < 100 else 30)
    blocks = str.maketrans("", "", "█░▁▂▃▄▅▆▇")
    one, other = (" ".join(lines).translate(blocks).split() for lines in (found, whole))
    assert "".join(one) == "".join(other)  # a long path is broken


def failed(path, told_by=()):
    """A run that failed at 20 s; with files in its folder of logs."""
    events = [made_runs.begin(0, 0), made_runs.event("failed", 4, 20, error="ValueError: x")]
    made_runs.write(path, events=events)
    for name, seconds in told_by:
        (path / "logs").mkdir(exist_ok=True)
        (path / "logs" / name).touch()
        os.utime(path / "logs" / name, (made_runs.BEGAN + seconds,) * 2)
    return RunFiles(path)


@pytest.mark.parametrize(
    ("told_by", "after", "state"),
    [
        ([], 5, "failed"),  # nobody is there to start it again
        ([("worker-0.log", 20)], 5, "failed, may be started again"),
        ([("worker-0.log", 20)], 130, "failed"),
        ([("worker-1.ended", 21)], 5, "failed"),  # its launcher has given up
        ([("worker-1.ended", -9)], 5, "failed, may be started again"),  # that was another time
    ],
)
def test_failed_run_may_be_started_again_while_nothing_says_otherwise(
    tmp_path, told_by, after, state
):
    run = failed(tmp_path / "run", told_by)
    assert run.state(made_runs.BEGAN + 20 + after) == state


def test_files_of_an_older_run_without_events_are_enough(tmp_path):
    path = made_runs.plain(tmp_path / "run")
    (path / "events.jsonl").unlink()
    (path / "summary.json").write_text(json.dumps({"test": {"loss": 0.1}}))
    assert RunFiles(path).state() == "finished"
    assert follow.lines(RunFiles(path))
