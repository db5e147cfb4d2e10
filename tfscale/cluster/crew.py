"""Who takes part in the next life of the workers, and with which environment.

A `LocalCrew` is all workers of a cluster on this machine, on new ports in each life; a `TaskCrew`
is the one worker of a larger cluster that this task is, at the address that the others know.
Nothing is started here.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tfscale.cluster import local, ports
from tfscale.cluster.ended import FINAL_VARIABLE, Board, Word
from tfscale.cluster.environment import Cluster
from tfscale.cluster.life import Outcome
from tfscale.cluster.restarts import Places

_PORT_SECONDS = 10.0  # how long the own port of a task may stay taken after its worker's end
_POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Member:
    """A worker to start: its rank, its place on this machine, its environment."""

    rank: int
    place: int
    environ: dict[str, str]


class Crew(Protocol):
    """What `supervise` asks before and after each life.

    Attributes:
        starting: the beginning of "all workers start again now".
        is_whole: whether all workers of the cluster are in it, so that a cause is seen here.
    """

    starting: str
    is_whole: bool

    def begin(self) -> Word | None:
        """Begin; return the word of an earlier end that still holds, or None."""

    def begin_to_run(self) -> str:
        """Begin to start workers; return what is to be told of an earlier launcher, or ""."""

    def end(self) -> None:
        """Note that no worker will be started any more."""

    def members(self) -> list[Member]:
        """Return the workers of the next life."""

    def note(self, outcome: Outcome) -> str:
        """Learn from a life that ended before its time; say what changes, or ""."""

    def look_for_word(self) -> Word | None:
        """Return the word of another task that has given up, or None."""

    def give_up(self, word: Word) -> None:
        """Let the other tasks know that this one does not come back."""


class LocalCrew:
    """All workers of a cluster on loopback.

    Args:
        places: decides how many there are.
        environ: variables that all share.
    """

    starting = "all workers start"
    is_whole = True

    def __init__(self, places: Places, environ: Mapping[str, str]):
        self._places = places
        self._environ = environ
        self._taking_part: list[int] = []
        self._ports: tuple[int, ...] = ()

    def begin(self) -> Word | None:
        """Return None: what ended before is no affair of these workers."""

    def begin_to_run(self) -> str:
        """Return "": the workers end with their launcher, and all with it."""
        return ""

    def end(self) -> None:
        """Do nothing: nobody else asks."""

    def members(self) -> list[Member]:
        """Return a worker a place, on ports that are not those of the life before."""
        self._taking_part = self._places.next_life()
        found = local.worker_environments(len(self._taking_part), self._environ, self._ports)
        addresses = json.loads(found[0]["TF_CONFIG"])["cluster"]["worker"]
        self._ports = tuple(ports.split_address(address)[1] for address in addresses)
        places = enumerate(zip(self._taking_part, found, strict=True))
        return [Member(rank, place, environ) for rank, (place, environ) in places]

    def note(self, outcome: Outcome) -> str:
        """Leave out a place that cannot start, or take it in again; say so, or ""."""
        return self._places.note(outcome, self._taking_part)

    def look_for_word(self) -> Word | None:
        """Return None: there is no other task."""

    def give_up(self, word: Word) -> None:
        """Do nothing: there is no other task."""


class TaskCrew:
    """The worker of one task; the others are watched by launchers of their own.

    Args:
        cluster: the cluster and this task's place in it.
        environ: the worker's variables beside TF_CONFIG. TFSCALE_FINAL_SECONDS is how long it
            stays ended once it has given up, whoever starts it again.
        log_dir: a folder that all tasks see, or None: then they do not know of each other.
    """

    is_whole = False

    def __init__(self, cluster: Cluster, environ: Mapping[str, str], log_dir: str | None = None):
        self.starting = f"worker {cluster.rank} starts"
        self._address = cluster.workers[cluster.rank]
        environ = {**environ, "PYTHONUNBUFFERED": "1", "TF_CONFIG": cluster.tf_config()}
        self._member = Member(cluster.rank, cluster.rank, environ)
        self._lives = 0
        self._board = Board(Path(log_dir), cluster.rank) if log_dir else None
        self._final_seconds = float(environ.get(FINAL_VARIABLE) or 0)

    def begin(self) -> Word | None:
        """Return the word that this task left a moment ago, if it is to stay ended."""
        return self._board.begin(self._final_seconds) if self._board else None

    def begin_to_run(self) -> str:
        """Return a line about a launcher of this task that was killed, or ""."""
        return self._board.begin_to_run() if self._board else ""

    def end(self) -> None:
        """Note that this launcher ends in order."""
        if self._board:
            self._board.end()

    def members(self) -> list[Member]:
        """Return the one worker, once nothing of its last life listens at its address.

        A port that stays taken is left to the worker, which says so.
        """
        self._lives += 1
        deadline = time.monotonic() + _PORT_SECONDS
        while self._lives > 1 and time.monotonic() < deadline:
            with contextlib.suppress(ValueError):
                ports.check_port_free(self._address)
                break
            time.sleep(_POLL_SECONDS)
        return [self._member]

    def note(self, outcome: Outcome) -> str:
        """Return "": the place of a task does not change."""
        return ""

    def look_for_word(self) -> Word | None:
        """Return the word of another task that has given up since this one began."""
        return self._board.look() if self._board else None

    def give_up(self, word: Word) -> None:
        """Leave word for the other tasks."""
        if self._board:
            self._board.leave(word)
