"""What a person reads of a search, on a terminal and through a pipe."""

import dataclasses
import io
import re

import pytest
import records

from tfscale.search import table, views


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(views, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(views, "_DRAW_SECONDS", 0.0)


def test_names_are_short_and_differ():
    names = ["optimizer.learning_rate", "optimizer.name", "model.name", "model.arguments.dropout"]
    assert table.short_names([*names, "x", "schedule.x"]) == {
        "optimizer.learning_rate": "learning_rate",
        "optimizer.name": "optimizer.name",
        "model.name": "model.name",
        "model.arguments.dropout": "dropout",
        "x": "x",
        "schedule.x": "schedule.x",
    }


def test_time_left_counts_trials_to_come_and_those_that_run(tmp_path):
    facts = records.facts(tmp_path, max_trials=6)
    half = records.record(tmp_path, 2, state="running", epochs=2, seconds=8.0)
    new = records.record(tmp_path, 3, None, state="running", seconds=2.0)
    found = [records.record(tmp_path, 0), records.record(tmp_path, 1), half, new]
    # 12 s each: two to come, one with 1 of 3 epochs at 4 s each left, one with 12 - 2 s left.
    assert table.seconds_left(facts, found) == pytest.approx((2 * 12 + 4 + 10) / 2)
    assert table.seconds_left(facts, [half]) is None
    endless = records.facts(tmp_path, max_trials=0)
    assert table.seconds_left(endless, found) is None
    counted = dataclasses.replace(endless, tuner_trials=facts.max_trials)  # of a grid
    assert table.seconds_left(counted, found) == table.seconds_left(facts, found)
    assert f" of {facts.max_trials} trials" in table.headline(counted, found, 1.0)


@pytest.mark.parametrize(("direction", "best"), [("max", "0002"), ("min", "0001")])
def test_the_best_is_marked_and_first_at_the_end(tmp_path, direction, best):
    facts = records.facts(tmp_path, direction)
    found = [records.record(tmp_path, i, s) for i, s in enumerate((0.5, 0.2, 0.9))]
    found.append(records.record(tmp_path, 3, 0.1 if direction == "min" else 0.95, state="failed"))
    ranked = table.ranked(facts, found)
    assert ranked[0].id == best and ranked[-1].state == "failed"
    marked = [line for line in table.lines(facts, found, 200) if line.startswith("*")]
    assert len(marked) == 1 and best in marked[0]


def test_with_many_parameters_those_that_differ_are_shown_and_no_line_is_too_wide(tmp_path):
    names = [f"model.arguments.a{i}" for i in range(8)]
    values = dict.fromkeys(names, 1)
    found = [records.record(tmp_path, i, values=values | {names[3]: i}) for i in range(3)]
    facts = records.facts(tmp_path)
    assert table.chosen(facts, found, found[2]) == "a3=2"
    assert max(len(line) for line in table.lines(facts, found, 40)) == 40


def test_a_pipe_gets_one_line_an_event(tmp_path):
    facts, stream = records.facts(tmp_path), io.StringIO()
    view = views.Views(facts, stream, is_interactive=False)
    view.update([])
    running = records.record(tmp_path, 0, None, state="running")
    for _ in range(3):
        view.update([running])
    view.update([records.record(tmp_path, 0, 0.9)])
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("trial 0000 begins: learning_rate=0.01 filters=16")
    assert (
        lines[1]
        == "trial 0000 completed: val_accuracy 0.9000 at epoch 2 of 3, 12 s, the best so far"
    )


def test_where_a_trial_runs_is_shown_when_there_are_several_machines(tmp_path):
    facts = records.facts(tmp_path)
    found = [records.record(tmp_path, i, machine=machine) for i, machine in enumerate(("", "n2"))]
    lines = table.lines(facts, found, 200)
    assert lines[0].split()[-2:] == ["on", "chosen"]
    assert " here " in lines[1] and " n2 " in lines[2]
    assert table.begun(facts, found[1]).startswith("trial 0001 begins on n2: ")
    assert " on " not in table.lines(facts, found[:1], 200)[0]


def test_a_terminal_gets_the_table_in_its_place_and_no_more_lines_than_it_has(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "20")
    facts, stream = records.facts(tmp_path), io.StringIO()
    view = views.Views(facts, stream, is_interactive=True)
    found = records.thirty(tmp_path)
    view.update(found)
    first = stream.getvalue()
    view.update(found)
    again = stream.getvalue()[len(first) :]
    height = first.count("\n")
    assert height <= 20 and max(map(len, first.splitlines())) <= 80
    assert again.startswith(f"\x1b[{height}F\x1b[J")
    assert "0029" in first and "running" in first  # what runs is always there


def test_a_search_that_goes_on_does_not_tell_again_what_has_ended(tmp_path):
    facts, stream = records.facts(tmp_path), io.StringIO()
    view = views.Views(facts, stream, is_interactive=False)
    view.update([records.record(tmp_path, 0), records.record(tmp_path, 1, state="running")])
    lines = stream.getvalue().splitlines()
    assert lines[0] == "going on: 1 completed"
    assert len(lines) == 2 and lines[1].startswith("trial 0001 begins")


def test_the_end_names_the_best_its_values_the_failures_and_the_files(tmp_path):
    facts, stream = records.facts(tmp_path), io.StringIO()
    view = views.Views(facts, stream, is_interactive=False)
    found = records.thirty(tmp_path)
    view.update(found)
    view.finish(found)
    text = stream.getvalue()
    best = max(found, key=lambda r: r.score or 0)
    assert f"best    trial {best.id}, val_accuracy {best.score:.4f} at epoch 2 of 3" in text
    assert f"optimizer.learning_rate={best.values['optimizer.learning_rate']!r}" in text
    assert "trial 0007: loss is nan, epoch 1" in text
    assert f"tensorboard --logdir {tmp_path}" in text
    assert re.search(r"time    \d+ s, first started .+ ago", text)
    for name in ("results.csv", "objective.png", "parameters.png"):
        assert (tmp_path / name).stat().st_size > 100


def test_many_calls_without_news_write_nothing(tmp_path, monkeypatch):
    found, written = records.thirty(tmp_path), []
    for module, name in ((views.results, "write"), (views.plots, "draw")):
        monkeypatch.setattr(module, name, lambda *_, name=name: written.append(name))
    view = views.Views(records.facts(tmp_path), io.StringIO(), is_interactive=True)
    for _ in range(1000):
        monkeypatch.setattr(view, "_looked", 0.0)  # as if time had passed
        view.update(found)
    assert written == ["write"]


def test_a_picture_that_cannot_be_drawn_ends_nothing_and_is_told_once(tmp_path, capsys):
    facts, stream = records.facts(tmp_path), io.StringIO()
    found = [records.record(tmp_path, 0, score=1e308), records.record(tmp_path, 1, score=-1e308)]
    view = views.Views(facts, stream, is_interactive=False)
    view.finish(found)
    view.finish(found)
    assert capsys.readouterr().err.count("warning: pictures could not be written") == 1
    assert "trials  2: 2 completed" in stream.getvalue()


def test_a_reader_that_has_gone_and_a_folder_that_is_gone_end_nothing(tmp_path, capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    facts = records.facts(tmp_path / "none")
    view = views.Views(facts, Closed(), is_interactive=False)
    (tmp_path / "none").write_text("a file, where the folder should be")
    view.update([records.record(tmp_path, 0)])
    view.finish([records.record(tmp_path, 0)])
    assert "results.csv could not be written" in capsys.readouterr().err


def test_command_at_the_end_is_one_that_a_shell_takes(tmp_path):
    found = records.record(tmp_path, 0)
    lines = table.closing(records.facts(tmp_path / "my runs"), [found], 1.0, 1e9)
    [look] = [line for line in lines if line.startswith("look")]
    assert f"--logdir '{tmp_path / 'my runs'}' " in look
