"""When a trial is stopped early because it will not win."""

import statistics

RULES = ("", "median")


def stops_at(history, others, objective, direction, min_epochs=1, min_trials=3):
    """Return the epoch at whose end a trial is stopped by the median rule, or None.

    It is stopped at the first epoch e at which its best objective so far is worse than the median
    of what the others had at e: each one's mean over its epochs 1 to e. Those that had fewer
    epochs do not count. D. Golovin et al., Google Vizier (2017), section 3.2.2.

    What comes after e is not looked at, so it does not matter when this is called.

    Args:
        history: one dict of metrics an epoch, with "epoch" from 1.
        others: such histories of the trials that have ended with a score.
        objective: name of the metric.
        direction: "max" or "min".
        min_epochs: no trial is stopped before the end of this epoch.
        min_trials: nor while fewer others have come as far.

    Returns:
        The epoch, from 1.
    """
    best = None
    choose = max if direction == "max" else min
    for epoch, value in _values(history, objective):
        best = value if best is None else choose(best, value)
        if epoch < min_epochs:
            continue
        means = [
            mean for other in others if (mean := _mean_until(other, objective, epoch)) is not None
        ]
        if len(means) < min_trials:
            continue
        median = statistics.median(means)
        if best != median and choose(best, median) == median:
            return epoch
    return None


def _values(history, objective):
    return [
        (record["epoch"], record[objective])
        for record in history
        if record.get(objective) is not None and record[objective] == record[objective]
    ]


def _mean_until(history, objective, epoch):
    """The mean of an objective over the epochs up to one; None if the trial ended before."""
    found = _values(history, objective)
    if not found or found[-1][0] < epoch:
        return None
    return statistics.fmean(value for at, value in found if at <= epoch)
