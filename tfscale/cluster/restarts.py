"""Whether and when there is another life of the workers, and with how many of them.

Pure decisions: nothing is started, nothing waits, the clock comes from outside.
"""

import time
from collections.abc import Callable, Sequence

from tfscale.cluster.life import Outcome

WINDOW_SECONDS = 3600.0
_LONGEST_PAUSE_SECONDS = 30.0
_START_FAILURES = 2  # in a row, until a place is left out


class Restarts:
    """Decides whether there is another life, and how long to wait for it.

    Only what happened within the last hour counts, so a run that fails seldom never runs out of
    restarts. The first of them comes at once, the next after 1, 2, 4, ... at most 30 seconds.

    Args:
        max_restarts: failures within the window that are followed by a restart; 0 for none.
        clock: returns seconds.
    """

    def __init__(self, max_restarts: int, clock: Callable[[], float] = time.monotonic):
        self._max_restarts = max_restarts
        self._clock = clock
        self._all: list[float] = []
        self._failures: list[float] = []

    def pause_after(self, outcome: Outcome) -> float | None:
        """Return the seconds until the next life; None if there is none.

        A worker that asks for a restart, with exit code 143, does not use one up if any worker
        has taken a step in that life; one that asks in each life would never end else. A failure
        that would come again is not followed by a restart.
        """
        now = self._clock()
        recent = now - WINDOW_SECONDS
        self._all = [moment for moment in self._all if moment > recent]
        self._failures = [moment for moment in self._failures if moment > recent]
        if self._max_restarts == 0 or outcome.comes_again:
            return None
        if _counts(outcome):
            if len(self._failures) >= self._max_restarts:
                return None
            self._failures.append(now)
        self._all.append(now)
        return min(2.0 ** (len(self._all) - 2), _LONGEST_PAUSE_SECONDS) if self._all[1:] else 0.0

    def words(
        self, outcome: Outcome, pause: float | None, starting: str = "all workers start"
    ) -> str:
        """Say what `pause_after` has decided; `starting` begins with who starts."""
        if pause is None and outcome.comes_again:
            return f"nothing starts again: {outcome.comes_again}."
        if pause is None:
            number = len(self._failures)
            return (
                f"gave up after {number} restart{'s' * (number != 1)} within an hour, which is "
                "what --max_restarts allows."
            )
        when = f"in {pause:g} s" if pause else "now"
        if not _counts(outcome):
            return f"{starting} again {when}"
        return (
            f"{starting} again {when} (restart {len(self._failures)} of "
            f"{self._max_restarts} within an hour)"
        )


def _counts(outcome: Outcome) -> bool:
    """Say whether a life that ended so uses up a restart."""
    return outcome.kind == "failed" or not outcome.trained


class Places:
    """Which of this machine's places for workers take part in a life.

    A worker that fails twice in a row before anything was trained cannot come back. The others
    go on without it, and it is tried again at the restart after that.

    Args:
        num_workers: at first.
        min_workers: the fewest; None for `num_workers`.
        max_workers: the most, from the first restart on; None for `num_workers`.

    Raises:
        ValueError: if these are not in order, or there is no worker at all.
    """

    def __init__(self, num_workers: int, min_workers: int | None, max_workers: int | None):
        self._least = num_workers if min_workers is None else min_workers
        self._most = num_workers if max_workers is None else max_workers
        if num_workers < 1:
            raise ValueError(
                "At least one worker must be started. "
                f"Received: num_workers={num_workers}. Use 1 or more."
            )
        if not 1 <= self._least <= num_workers <= self._most:
            raise ValueError(
                "The workers to begin with must be between --min_workers, at least 1, and "
                f"--max_workers. Received: {num_workers} workers, min_workers={self._least}, "
                f"max_workers={self._most}. Leave out what should be --workers."
            )
        self._next = list(range(num_workers))
        self._start_failures = [0] * self._most

    def next_life(self) -> list[int]:
        """Return the places of the workers of the next life, in rank order."""
        return self._next

    def note(self, outcome: Outcome, places: Sequence[int]) -> str:
        """Learn from a life that ended before its time; say what changes, or "".

        Args:
            outcome: of the life.
            places: that took part in it.
        """
        at_start = outcome.kind == "failed" and not outcome.began
        failed = [places[rank] for rank in outcome.ranks] if at_start else []
        for place in places:
            self._start_failures[place] = self._start_failures[place] + 1 if place in failed else 0
        left_out = [place for place in failed if self._start_failures[place] >= _START_FAILURES]
        left_out = left_out[: self._most - self._least]
        self._next = [place for place in range(self._most) if place not in left_out]
        if left_out:
            return (
                f", as {len(self._next)}: {', '.join(map(str, left_out))} (counted from 0) failed "
                f"to start {_START_FAILURES} times or more, and is tried again at the next restart"
            )
        return f", as {len(self._next)}" if len(self._next) != len(places) else ""
