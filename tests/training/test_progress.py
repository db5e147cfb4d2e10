"""What a person is told while a run goes on: lines, or a bar on a terminal."""

import io
import re

import pytest

from tfscale.training import progress as progress_lib


def run(kind, capsys, looks=range(4, 21, 4), steps=20, epochs=2):
    """Show a run of one epoch of two, in which each look took a second; what was written."""
    at = progress_lib.Progress()
    stream = io.StringIO()
    shown = kind(at, stream) if kind is progress_lib.Bar else kind(at, every_seconds=0)
    if kind is progress_lib.Bar:
        shown._every_seconds = 0
    shown.set_params({"steps": steps, "epochs": epochs})
    shown.on_epoch_begin(0)
    for step in looks:
        at.advance(step - at.step, 64, 1.0)
        shown.on_train_batch_end(at.position - 1, {"loss": 0.5})
    shown.on_epoch_end(0, {"loss": 0.25, "per_class": [1.0, 2.0]})
    return stream.getvalue() or capsys.readouterr().out


def test_lines_say_where_how_fast_how_long_still_and_how_good(capsys):
    lines = run(progress_lib.Lines, capsys).splitlines()
    assert len(lines) == 6
    assert lines[0] == "epoch 1/2  step 4/20  loss 0.5"  # it has traced, which says nothing
    number = r"epoch 1/2  step 12/20  64 examples/s  \d+:\d\d left  loss 0.5"
    assert re.fullmatch(number, lines[2])
    assert re.fullmatch(r"epoch 1/2  \d+\.\d s  64 examples/s  \d+:\d\d left  loss 0.25", lines[-1])


def test_without_a_length_there_is_no_time_left(capsys):
    assert "left" not in run(progress_lib.Lines, capsys, steps=None)


def test_at_the_end_of_the_last_epoch_nothing_is_left(capsys):
    assert "left" not in run(progress_lib.Lines, capsys, epochs=1).splitlines()[-1]


def test_bar_is_drawn_in_its_place_and_stays_for_each_epoch(capsys):
    text = run(progress_lib.Bar, capsys)
    assert text.count("\n") == 1 and text.endswith("loss 0.25\n")
    drawn = text.split("\r\x1b[K")[1:]
    assert drawn[0].startswith("████░░░░░░░░░░░░░░░░ epoch 1/2  step 4/20")
    assert drawn[-2].startswith("█" * 20)
    assert all(len(line) < 80 for line in drawn)


def test_speed_is_that_of_the_last_seconds_with_what_is_between():
    """A short last execution of an epoch, or a long one, says little by itself."""
    at = progress_lib.Progress()
    at.advance(10, 640, 9.0)  # traces
    assert at.recent.examples_per_second is None
    for _ in range(20):
        at.advance(10, 640, 0.3, 0.1)
        at.advance(1, 8, 0.3, 0.3)
    assert at.recent.examples_per_second == pytest.approx(648)
    assert at.recent.step_seconds == pytest.approx(1 / 11)
    assert (at.timed_steps, at.taken_steps, at.step_seconds) == (220, 230, 0.3)
    assert (at.timed_seconds, at.between_seconds) == pytest.approx((12, 8))
    for _ in range(20):  # ten seconds later nothing is left of those
        at.advance(10, 100, 0.5)
    assert at.recent.examples_per_second == pytest.approx(200)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0:00"), (61, "1:01"), (3_599.6, "1:00:00"), (36_610, "10:10:10")]
)
def test_length_of_time(seconds, words):
    assert progress_lib._clock(seconds) == words
