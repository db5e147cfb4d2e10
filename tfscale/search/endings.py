"""What ends a search of a `Tuner` before its oracle does, as in keras-tuner.

A trial that raises `keras_tuner.errors.FatalError`, and as many failed trials in a row as
`max_consecutive_failed_trials` says, where the user has said it.
"""

import inspect
import json
import time

import keras_tuner

from tfscale.search import scripts, trials

ERRORS = (keras_tuner.errors.FatalError, RuntimeError)  # what `Endings` raises


def failures_allowed(oracle, given=None):
    """Return how many trials in a row may fail, or None where the user has set no bound.

    Args:
        oracle: the `keras_tuner.Oracle`; its default bound is none.
        given: what the user has set by name, None for nothing.
    """
    parameters = inspect.signature(keras_tuner.Oracle.__init__).parameters
    default = parameters["max_consecutive_failed_trials"].default
    if given is None and oracle.max_consecutive_failed_trials != default:
        return oracle.max_consecutive_failed_trials
    return given


class Endings:
    """Looks at each trial that has ended.

    Args:
        max_failures: what `failures_allowed` has returned.
        journal: the `journal.Journal` of the search.
    """

    def __init__(self, max_failures, journal):
        self._max_failures, self._failures, self._journal = max_failures, 0, journal
        self._ended_by = {e["trial"] for e in journal.events if e["event"] == "given_up"}

    def take(self, record):
        """Look at a `TrialRecord`, for `loop.Search`.

        Raises:
            keras_tuner.errors.FatalError: what the trial has raised, or the class of keras-tuner's
                that it was derived from.
            RuntimeError: if too many have failed in a row.
        """
        path = record.path / scripts.FATAL
        if path.exists():
            told = json.loads(path.read_text())
            path.unlink()  # the same command then goes on behind it
            named = (getattr(keras_tuner.errors, kind, None) for kind in told["kinds"])
            raise next(filter(None, named))(f"{told['message']} (trial {record.id})")
        self._failures = 0 if record.state in trials.SCORED else self._failures + 1
        if record.id in self._ended_by:  # in an earlier process; the same command tries again
            self._failures = 0
        if self._failures == self._max_failures:
            self._journal.append(
                {"event": "given_up", "trial": record.id, "time": round(time.time(), 3)}
            )
            raise RuntimeError(
                f"{self._failures} trials in a row have no score, as many as "
                f"max_consecutive_failed_trials allows. The last one: trial {record.id}, "
                f"{record.reason or record.state}. See {record.path / 'logs' / 'trial.log'}. "
                "The same command goes on with other trials."
            )
