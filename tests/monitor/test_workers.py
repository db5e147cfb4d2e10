"""Where a step's time goes, and who is slow."""

import random

import made_runs
import numpy as np
import pytest

from tfscale.monitor import workers


def slowest(all_times, seconds=1.0):
    """Judge records that lie so many seconds apart."""
    return workers.slowest(
        [{"time": i * seconds, "workers": times} for i, times in enumerate(all_times)]
    )


def test_parts_of_a_step_add_up():
    found = workers.split(made_runs.times(5, 9), 0.012)
    assert tuple(found) == ("input", "compute", "reduction", "wait", "host", "other")
    assert sum(found.values()) == pytest.approx(0.012)
    assert found["reduction"] == pytest.approx(0.001)
    assert found["wait"] == pytest.approx(0.002)  # 4 ms of one, none of the other


def test_those_that_meet_between_executions_wait_for_the_longest_host():
    times = made_runs.times(5, 9) | {"host": [0.001, 0.021]}
    alone, together = workers.split(times, 0.05), workers.split(times, 0.05, True)
    assert alone["host"] == together["host"] == pytest.approx(0.011)
    assert together["wait"] - alone["wait"] == pytest.approx(0.01)
    assert sum(alone.values()) == sum(together.values()) == pytest.approx(0.05)


def test_slow_worker_is_named_with_its_reason():
    found = slowest([made_runs.times(5, 6, 12 + i % 2) for i in range(10)])
    assert (found.worker, found.part, found.is_slow) == (2, "input", True)
    assert found.others == pytest.approx(12.5 / 5.5)
    assert found.own_best == pytest.approx(12.5 / 12)
    assert found.words().startswith("Worker 2 is slow: 2.27 times the others, it waits")


@pytest.mark.parametrize("part", ["input", "compute", "host"])
def test_reason_is_the_part_that_is_longer(part):
    records = [made_runs.times(5, 5) for _ in range(10)]
    for i, times in enumerate(records):
        times[part][1] += 0.01 + 0.001 * (i % 2)
    found = slowest(records)
    assert (found.worker, found.part, found.is_slow) == (1, part, True)


def test_chance_makes_nobody_slow():
    draw = random.Random(0)
    records = [
        made_runs.times(draw.uniform(1.5, 20), draw.uniform(1.5, 20), draw.uniform(1.5, 20))
        for _ in range(30)
    ]
    found = slowest(records)
    assert not found.is_slow and found.words().startswith("No worker is slow")


@pytest.mark.parametrize("before", [(5.0, 5.2), (0.1, 0.4)])
def test_what_costs_little_is_no_slow_worker(before):
    assert not slowest([made_runs.times(*before)] * 10).is_slow


def test_worker_that_was_fast_before_is_slow_by_its_own_measure():
    records = [made_runs.times(5, 5)] * 5 + [made_runs.times(5, 10 + i % 2) for i in range(20)]
    found = slowest(records)
    assert found.worker == 1 and found.is_slow
    assert found.own_best == pytest.approx(found.seconds / 0.005)


@pytest.mark.parametrize(("number", "is_slow"), [(20, True), (8, False)])
def test_worker_that_is_slow_since_a_while_is_named_now(number, is_slow):
    """The last of three hundred records: of 5 s that is told, of 2 s it is not."""
    records = [made_runs.times(5.1, 5)] * (300 - number) + [made_runs.times(5, 10)] * number
    found = slowest(records, 0.25)
    assert found.is_slow == is_slow
    if is_slow:
        assert found.worker == 1 and found.words().startswith("Worker 1 is now slow: 1.46 times")


def test_of_a_long_run_all_parts_count():
    fast, slow = [made_runs.times(5, 5)] * 1500, [made_runs.times(5, 12)] * 6000
    assert slowest(fast + slow + fast, 0.01).worker == 1
    assert not slowest(slow[:100] + fast * 4, 0.01).is_slow
    assert slowest(fast * 4 + slow[:100]).is_recent


def test_slow_worker_is_named_although_a_few_records_are_far_off():
    records = [made_runs.times(5, 12) for _ in range(20)]
    records[3], records[9] = made_runs.times(5, 9000), made_runs.times(20, 12)
    found = slowest(records)
    assert (found.worker, found.is_slow) == (1, True)


def test_worker_that_is_throttled_a_third_of_the_time_is_slow():
    """As by a container's share of processor time: most of its records are as short as others."""
    draw = random.Random(0)
    records = [
        made_runs.times(draw.uniform(4, 6), draw.uniform(4, 6) + 10 * (draw.random() < 1 / 3))
        for _ in range(60)
    ]
    found = slowest(records)
    assert (found.worker, found.is_slow) == (1, True)
    few = slowest(records[:8])
    assert few.seems_slow and not few.is_slow
    assert few.words().startswith("Worker 1 may be slow: ")


def test_errors_are_those_of_a_mean_without_the_ends():
    """Of 40 numbers two are cut off at each end; the deviation has the next ones in their place."""
    numbers = [1e6, -1e6, 5e5, -5e5] + [float(i) for i in range(36)]
    ordered = np.array([0.0] * 2 + sorted(numbers)[2:-2] + [35.0] * 2)
    expected = 17.5 / (ordered.std(ddof=1) / (0.9 * np.sqrt(40)))
    assert workers.errors_of_mean(numbers) == pytest.approx(expected)


def test_a_few_long_waits_make_nobody_slow():
    records = [made_runs.times(5, 5.1) for _ in range(20)]
    records[3] = records[9] = made_runs.times(5, 9000)
    assert not slowest(records).is_slow


def test_one_worker_is_compared_with_nobody():
    assert slowest([made_runs.times(5)] * 3) is None
    assert slowest([None, None]) is None


def test_after_a_restart_with_fewer_workers_only_those_count():
    records = [made_runs.times(5, 5, 50)] * 5 + [made_runs.times(5, 9 + i % 2) for i in range(5)]
    assert slowest(records).worker == 1
