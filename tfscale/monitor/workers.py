"""Where a step's time goes, and which worker the others wait for. Pure functions of numbers.

Synchronous workers share one step time, so it cannot tell who is slow. What a worker needs before
the reduction can: waiting for its batch, computing its gradients, and what its host does between
two executions. The last one to come waits for nobody, so the shortest time in the reduction is
what the reduction itself takes.
"""

import dataclasses
import math
import statistics

PARTS = ("input", "compute", "reduction", "wait", "host", "other")
SLOW = 1.25  # times the others, from when on a worker is called slow
_LEAST_SECONDS = 5e-4  # that a slow worker costs in a step, for a word about it
_BEHIND = 1.1  # times the others, from when on it is behind them in one record
_SURE = 3.0  # standard errors by which it is behind the others, because chance makes one last
_FEWEST_RECORDS = 9  # that say so
_MOST_RECORDS = 1000  # that are looked at, of those of a run
RECENT_RECORDS, RECENT_SECONDS = 20, 10  # so many at least, and so long, say how it is now
_LEFT_OUT = 20  # of so many records the one with the longest time does not count


@dataclasses.dataclass(frozen=True)
class Slowest:
    """The worker with the longest time before the reduction.

    Args:
        worker: its rank.
        seconds: a step, before the reduction; a mean over records.
        others: times the median of the other workers.
        own_best: times its own best.
        part: what it has most more of than the others: "input", "compute" or "host".
        errors: standard errors by which it is behind the others, record by record.
        is_recent: only the last records were looked at.
    """

    worker: int
    seconds: float
    others: float
    own_best: float
    part: str
    errors: float
    is_recent: bool = False

    @property
    def seems_slow(self):
        """Whether it takes so much longer that the others wait for it, be it by chance."""
        extra = self.seconds * (1 - 1 / self.others)
        return self.others >= SLOW and extra >= _LEAST_SECONDS

    @property
    def is_slow(self):
        """Whether the others wait for it in a way worth a word."""
        return self.seems_slow and self.errors >= _SURE

    @property
    def reason(self):
        """Where it loses the time, in words."""
        return {
            "input": "it waits for its input",
            "compute": "it computes longer",
            "host": "its host is busy between steps, as with callbacks",
        }[self.part]

    def words(self):
        """Return what is to be said of this worker, a sentence: who, how slow and why first."""
        times = f"{self.others:.2f} times the others"
        more = (
            f"{1e3 * self.seconds:.3g} ms a step before the reduction, {self.own_best:.2f} times "
            "its own best"
        )
        if self.is_slow:
            now = "now " if self.is_recent else ""
            return f"Worker {self.worker} is {now}slow: {times}, {self.reason}; {more}."
        if self.seems_slow:
            return f"Worker {self.worker} may be slow: {times}, but not steadily; {more}."
        extra = 1e3 * self.seconds * (1 - 1 / self.others)
        return (
            f"No worker is slow: worker {self.worker} needs most, {1e3 * self.seconds:.3g} ms a "
            f"step before the reduction, {extra:.2g} ms more than the others."
        )


def before_reduction(times):
    """Return the seconds a step that each worker needs before the reduction.

    Args:
        times: the field `workers` of a record: lists of seconds a step by "input", "compute",
            "exchange" and "host"; None where nothing was measured.

    Returns:
        A list, one number a worker; empty where nothing was measured.
    """
    if not times:
        return []
    return [sum(parts) for parts in zip(*_own(times), strict=True)]


def _own(times):
    return times["input"], times["compute"], times["host"]


def split(times, step_seconds, meet_between=False):
    """Return where a step's time goes, by `PARTS`: means over the workers, seconds a step.

    Args:
        times: as for `before_reduction`.
        step_seconds: the length of a step, with what the host does between executions.
        meet_between: the workers wait for each other's hosts before they begin the next steps.
    """
    reduction, host = min(times["exchange"]), statistics.fmean(times["host"])
    found = {
        "input": statistics.fmean(times["input"]),
        "compute": statistics.fmean(times["compute"]),
        "reduction": reduction,
        "wait": statistics.fmean(times["exchange"]) - reduction,
        "host": host,
    }
    if meet_between:
        found["wait"] += max(times["host"]) - host
    return {**found, "other": max(step_seconds - sum(found.values()), 0.0)}


def slowest(records):
    """Find the worker that the others wait for: in all records, or else in the last ones.

    Whoever shows a slow worker asks here, so that all say the same.

    Args:
        records: in order, with their `time` in seconds, and `workers` where that was measured.

    Returns:
        A `Slowest`; None for less than two workers.
    """
    records = [record for record in records if record.get("workers")]
    if not records or len(records[-1]["workers"]["host"]) < 2:
        return None
    count = len(records[-1]["workers"]["host"])  # there may have been another number before
    times = [r["workers"] for r in records if len(r["workers"]["host"]) == count]
    last = sum(r["time"] > records[-1]["time"] - RECENT_SECONDS for r in records[-_MOST_RECORDS:])
    recent = times[-max(last, RECENT_RECORDS) :]
    are_all = len(recent) == len(times)
    if len(times) > 2 * _MOST_RECORDS:  # of a long run every n-th tells as much
        times = times[:: len(times) // _MOST_RECORDS]
    found = _slowest(times, times)
    if found.is_slow or are_all:
        return found
    now = _slowest(recent, times)
    return dataclasses.replace(now, is_recent=True) if now.is_slow else found


def _slowest(times, all_times):
    """The slowest worker in some records; its own best is looked for in all."""
    rows = [before_reduction(one) for one in times]
    means = [mean(column) for column in zip(*rows, strict=True)]
    worker = max(range(len(means)), key=means.__getitem__)
    rest = statistics.median(m for w, m in enumerate(means) if w != worker)
    best = min(before_reduction(one)[worker] for one in all_times)
    pairs = [
        (row[worker], statistics.median(t for w, t in enumerate(row) if w != worker))
        for row in rows
    ]
    return Slowest(
        worker,
        means[worker],
        means[worker] / rest if rest else float("inf"),
        means[worker] / best if best else 1.0,
        _part(times, worker),
        _errors(pairs),
    )


def _errors(pairs):
    """Standard errors by which a worker is behind the others, in pairs of its seconds and theirs.

    By the records in which it is behind, against half of them, which finds one that is slow in most
    of them, however unevenly; or by its mean, which finds one that is throttled now and then.
    """
    if len(pairs) < _FEWEST_RECORDS:
        return 0.0
    num_behind = sum(own > _BEHIND * others for own, others in pairs)
    by_number = (2 * num_behind - len(pairs)) / len(pairs) ** 0.5
    return max(by_number, errors_of_mean([own - others for own, others in pairs]))


def errors_of_mean(values):
    """Return how many standard errors values are above 0, without those that are far off.

    The trimmed mean over the winsorized deviation (J. Tukey and D. McLaughlin, Sankhya A 25, 1963):
    few long waits neither hide a slow worker nor make one.
    """
    number = len(values)
    ordered, cut = sorted(values), number // _LEFT_OUT
    inner = ordered[cut : number - cut]
    trimmed = statistics.fmean(inner)
    deviation = statistics.stdev([inner[0]] * cut + inner + [inner[-1]] * cut)
    if not deviation:
        return math.copysign(math.inf, trimmed)
    return len(inner) / number * number**0.5 * trimmed / deviation


def mean(values):
    """Return the mean of values over records without the few that are longest by far."""
    ordered = sorted(values)
    return statistics.fmean(ordered[: len(ordered) - len(ordered) // _LEFT_OUT])


def _part(records, worker):
    """The part in which a worker has most more than the others."""
    more = {}
    for part in ("input", "compute", "host"):
        means = [mean(column) for column in zip(*[r[part] for r in records], strict=True)]
        more[part] = means[worker] - statistics.median(
            m for w, m in enumerate(means) if w != worker
        )
    return max(more, key=more.__getitem__)
