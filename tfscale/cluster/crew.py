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
from typing import Protocol

from tfscale.cluster import local, ports
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

    def members(self) -> list[Member]:
        """Return the workers of the next life."""

    def note(self, outcome: Outcome) -> str:
        """Learn from a life that ended before its time; say what changes, or ""."""


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


class TaskCrew:
    """The worker of one task; the others are watched by launchers of their own.

    Args:
        cluster: the cluster and this task's place in it.
        environ: the worker's variables beside TF_CONFIG.
    """

    is_whole = False

    def __init__(self, cluster: Cluster, environ: Mapping[str, str]):
        self.starting = f"worker {cluster.rank} starts"
        self._address = cluster.workers[cluster.rank]
        environ = {**environ, "PYTHONUNBUFFERED": "1", "TF_CONFIG": cluster.tf_config()}
        self._member = Member(cluster.rank, cluster.rank, environ)
        self._lives = 0

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
