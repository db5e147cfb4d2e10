"""Whether there is another life, when, and with whom; the clock is the test's."""

import pytest

from tfscale.cluster.life import Outcome
from tfscale.cluster.restarts import WINDOW_SECONDS, Places, Restarts

FAILED = Outcome("failed", 1, ranks=(1,), began=True)
NOT_STARTED = Outcome("failed", 1, ranks=(1,), began=False)
ASKED = Outcome("restart", 143, ranks=(0,), began=True, trained=True)
ASKED_AT_ONCE = Outcome("restart", 143, ranks=(0,), began=True)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_the_first_restart_comes_at_once_and_pauses_double_up_to_thirty_seconds():
    restarts = Restarts(9, Clock())
    pauses = [restarts.pause_after(FAILED) for _ in range(9)]
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_after_the_last_restart_it_gives_up():
    restarts = Restarts(2, Clock())
    assert [restarts.pause_after(FAILED) for _ in range(3)] == [0, 1, None]
    assert "gave up after 2 restarts" in restarts.words(FAILED, None)


def test_none_are_none_at_all():
    assert Restarts(0, Clock()).pause_after(FAILED) is None
    assert Restarts(0, Clock()).pause_after(ASKED) is None


def test_what_would_fail_again_is_not_started_again():
    full = Outcome("failed", 1, began=True, comes_again="the disk is full")
    restarts = Restarts(2, Clock())
    assert restarts.pause_after(full) is None
    assert restarts.words(full, None) == "nothing starts again: the disk is full."


def test_what_happened_an_hour_ago_no_longer_counts():
    clock = Clock()
    restarts = Restarts(2, clock)
    assert restarts.pause_after(FAILED) == 0
    clock.now += WINDOW_SECONDS / 2
    assert restarts.pause_after(FAILED) == 1
    clock.now += WINDOW_SECONDS / 2 + 1
    assert restarts.pause_after(FAILED) == 1  # one of the two is still within the hour
    assert restarts.pause_after(FAILED) is None
    clock.now += WINDOW_SECONDS + 1
    assert restarts.pause_after(FAILED) == 0


def test_a_worker_that_asks_for_a_restart_uses_none_up():
    restarts = Restarts(1, Clock())
    assert [restarts.pause_after(ASKED) for _ in range(4)] == [0, 1, 2, 4]
    assert restarts.pause_after(FAILED) == 8
    assert restarts.words(FAILED, 8.0).endswith("in 8 s (restart 1 of 1 within an hour)")
    assert restarts.pause_after(FAILED) is None


def test_asking_for_a_restart_in_a_life_without_a_step_uses_one_up():
    """Else a script that ends with 143 by itself would start again for ever."""
    restarts = Restarts(2, Clock())
    assert restarts.pause_after(ASKED_AT_ONCE) == 0
    assert restarts.words(ASKED_AT_ONCE, 0.0).endswith("(restart 1 of 2 within an hour)")
    assert restarts.pause_after(ASKED) == 1
    assert restarts.words(ASKED, 1.0) == "all workers start again in 1 s"
    assert [restarts.pause_after(ASKED_AT_ONCE) for _ in range(2)] == [2, None]
    assert "gave up after 2 restarts" in restarts.words(ASKED_AT_ONCE, None)


def test_without_bounds_the_places_stay():
    places = Places(2, None, None)
    for _ in range(4):
        assert places.next_life() == [0, 1]
        assert places.note(NOT_STARTED, [0, 1]) == ""


def test_a_place_that_fails_to_start_twice_is_left_out_once_and_tried_again():
    places = Places(3, 2, None)
    assert places.note(NOT_STARTED, [0, 1, 2]) == ""
    assert places.next_life() == [0, 1, 2]
    assert "as 2: 1 (counted from 0) failed" in places.note(NOT_STARTED, [0, 1, 2])
    assert places.next_life() == [0, 2]
    assert places.note(FAILED, [0, 2]) == ", as 3"
    assert places.next_life() == [0, 1, 2]
    places.note(NOT_STARTED, [0, 1, 2])
    assert places.next_life() == [0, 2]  # once more is enough now
    places.note(FAILED, [0, 2])
    places.note(FAILED, [0, 1, 2])  # it has come back
    places.note(NOT_STARTED, [0, 1, 2])
    assert places.next_life() == [0, 1, 2]


def test_never_fewer_than_the_fewest():
    places = Places(2, 2, None)
    for _ in range(3):
        places.note(NOT_STARTED, [0, 1])
    assert places.next_life() == [0, 1]


def test_more_take_part_from_the_first_restart_on():
    places = Places(2, 1, 3)
    assert places.next_life() == [0, 1]
    assert places.note(FAILED, [0, 1]) == ", as 3"
    assert places.next_life() == [0, 1, 2]


@pytest.mark.parametrize(("least", "most"), [(3, None), (0, None), (None, 1)])
def test_numbers_out_of_order_are_refused(least, most):
    with pytest.raises(ValueError, match="Received: 2 workers, min_workers="):
        Places(2, least, most)
