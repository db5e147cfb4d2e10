"""How much each parameter says about the objective, from the trials of a search.

Everything is done on ranks, so that a log axis or one trial far off changes little. For numbers
it is the variance of the objective's ranks that a parabola in the parameter's ranks explains
(the rank transform of R. L. Iman and W. J. Conover, Technometrics 21, 1979; without the square it
would be Spearman's correlation squared, which does not see that the middle is best). For choices
it is eta squared, the variance between their groups. Both are adjusted for what chance alone
explains (M. Ezekiel, 1930; for groups epsilon squared, T. L. Kelley, 1935) and bounded by 0. A
parameter that only some trials have can explain no more than what varies among those.
"""

import dataclasses

import numpy as np

from tfscale.search import trials

FEWEST = 5  # trials; with fewer nothing is said


@dataclasses.dataclass(frozen=True)
class Importance:
    """What is known of one parameter.

    Args:
        name: the parameter.
        explained: adjusted share of the variance of the objective's ranks, 0 to 1.
        share: `explained` as a part of the sum over all parameters, 0 to 1.
        correlation: Spearman's, between a number and the objective; None for choices.
        num_trials: how many trials it was found from.
    """

    name: str
    explained: float
    share: float
    correlation: float | None
    num_trials: int


def importances(facts, records):
    """Return what each parameter says about the objective, the most important first.

    Each parameter is looked at alone, over the trials in which it is active. Trials with a score
    count, and so do those that diverged, as the worst. With fewer than five of them, or where a
    parameter or the objective has one value, its importance is 0.

    Args:
        facts: the `SearchFacts`.
        records: the trials.

    Returns:
        A list of `Importance`, without what is fixed.
    """
    found = []
    everyone = [goodness for _, goodness in _scored(facts, records)]
    for parameter in facts.parameters:
        if parameter.kind == "fixed":
            continue
        values, goodness = of_parameter(facts, records, parameter.name)
        explained, correlation = 0.0, None
        part = _part_of_variance(goodness, everyone)
        if len(values) >= FEWEST and len(set(map(repr, values))) > 1 and len(set(goodness)) > 1:
            if is_number(parameter):
                explained, correlation = _of_numbers(values, goodness)
            else:
                explained = _of_groups(values, goodness)
        found.append((parameter.name, part * explained, correlation, len(values)))
    total = sum(explained for _, explained, _, _ in found)
    result = [
        Importance(name, explained, explained / total if total else 0.0, correlation, count)
        for name, explained, correlation, count in found
    ]
    return sorted(result, key=lambda importance: -importance.explained)


def is_number(parameter):
    """Say whether a parameter's values lie on an axis of numbers."""
    return parameter.kind in ("float", "int")


def of_parameter(facts, records, name):
    """Return the values of a parameter and how good the objective was, as two lists."""
    active = [(r.values[name], good) for r, good in _scored(facts, records) if name in r.values]
    return [value for value, _ in active], [good for _, good in active]


def _scored(facts, records):
    """Yield the trials that count, each with how good it was."""
    sign = 1 if facts.direction == "max" else -1
    for record in records:
        if record.state == trials.DIVERGED:
            yield record, -np.inf
        elif record.state in trials.SCORED and record.score is not None:
            yield record, sign * record.score


def _part_of_variance(some, everyone):
    """Return the share of the variance of all ranks that lies among some of the trials."""
    if len(some) == len(everyone):
        return 1.0
    place = dict(zip(everyone, ranks(everyone), strict=True))
    y, within = ranks(everyone), np.array([place[goodness] for goodness in some])
    whole = np.sum((y - y.mean()) ** 2)
    return float(np.sum((within - within.mean()) ** 2) / whole) if len(some) and whole else 0.0


def ranks(values):
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    _, places, numbers = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(numbers)
    return (last - (numbers - 1) / 2)[places]


def _of_numbers(values, goodness):
    """Return the adjusted share a parabola explains, and Spearman's correlation."""
    x, y = ranks(values), ranks(goodness)
    x = (x - x.mean()) / x.std()
    correlation = float(np.corrcoef(x, y)[0, 1])
    terms = np.stack([np.ones_like(x), x, x**2], axis=1)
    fitted = terms @ np.linalg.lstsq(terms, y, rcond=None)[0]
    share = 1 - np.sum((y - fitted) ** 2) / np.sum((y - y.mean()) ** 2)
    return _adjusted(share, len(x), np.linalg.matrix_rank(terms)), correlation


def _of_groups(values, goodness):
    """Return eta squared of the ranks, adjusted."""
    y = ranks(goodness)
    _, groups = np.unique([repr(value) for value in values], return_inverse=True)
    within = sum(np.sum((y[groups == g] - y[groups == g].mean()) ** 2) for g in set(groups))
    share = 1 - within / np.sum((y - y.mean()) ** 2)
    return _adjusted(share, len(y), len(set(groups)))


def _adjusted(share, count, terms):
    if count <= terms:
        return 0.0
    return float(max(1 - (1 - share) * (count - 1) / (count - terms), 0.0))
