"""The median rule, against numbers worked out by hand."""

import pytest

from tfscale.search import stopping


def history(*values):
    return [{"epoch": e, "val_accuracy": value} for e, value in enumerate(values, 1)]


# Means after 1, 2, 3 epochs: 0.5 0.6 0.7; 0.2 0.3 0.4; 0.8 0.8 0.8. Medians 0.5 0.6 0.7.
OTHERS = [history(0.5, 0.7, 0.9), history(0.2, 0.4, 0.6), history(0.8, 0.8, 0.8)]


def stops_at(trial, others=OTHERS, direction="max", **bounds):
    return stopping.stops_at(trial, others, "val_accuracy", direction, **{"min_trials": 3} | bounds)


def test_trial_is_stopped_at_the_first_epoch_below_the_median_of_the_means():
    assert stops_at(history(0.4)) == 1
    assert stops_at(history(0.55, 0.58, 0.9)) == 2
    assert stops_at(history(0.55, 0.61, 0.65)) == 3


def test_its_best_epoch_counts_and_equal_is_not_worse():
    assert stops_at(history(0.75, 0.1, 0.1)) is None
    assert stops_at(history(0.5), [history(0.5), history(0.5), history(0.1)]) is None


def test_smaller_is_better_where_the_objective_is_a_loss():
    assert stops_at(history(0.6), direction="min") == 1
    assert stops_at(history(0.4, 0.9, 0.9), direction="min") is None


@pytest.mark.parametrize("bounds", [{"min_epochs": 2}, {"min_trials": 4}])
def test_nothing_is_stopped_before_there_is_enough_to_compare(bounds):
    assert stops_at(history(0.1), **bounds) is None


def test_trials_that_ended_before_that_epoch_do_not_count():
    assert stops_at(history(0.9, 0.1), [*OTHERS[:2], history(0.99)]) is None
    assert stops_at(history(0.58, 0.59), [*OTHERS, history(1.0)]) == 1


def test_what_comes_later_changes_nothing():
    assert stops_at(history(0.55, 0.58, 1.0, 1.0)) == stops_at(history(0.55, 0.58))
