"""The tasks of a cluster from one list of hosts that is the same on all of them, TFSCALE_HOSTS.

For what starts tasks and tells them no more than that: containers of Docker Compose, the pods of
an indexed Job of Kubernetes, machines that one logs in to. A task's rank is said, or found out by
the host that is this machine. Names are looked up, and nothing else is asked of the network.
"""

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Mapping

from tfscale.cluster import ports, slurm

VARIABLE = "TFSCALE_HOSTS"
_RANKS = ("TFSCALE_RANK", "JOB_COMPLETION_INDEX")
_PORT = 2222
_FIRST_SECONDS = 300.0  # how long the name of the first host may be missing
_EXPECTED_SECONDS = 20.0  # and then those of the others, which Docker restarts within seconds
_OWN_SECONDS = 20.0
_POLL_SECONDS = 0.5
_OPEN = re.compile(r"\[(\d+)-(\d+)\+\]")
_ITEM = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+|[\[\]]")
_EXAMPLE = "trainer:2222,host[1-3]:2222"

Lookup = Callable[[str], tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Tasks:
    """Addresses of all tasks in rank order, and the rank of this one."""

    addresses: tuple[str, ...]
    rank: int


def tasks(
    environ: Mapping[str, str],
    lookup: Lookup = ports.resolve,
    is_own: Callable[[str], bool] = ports.is_local,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Tasks | None:
    """Return the tasks that TFSCALE_HOSTS lists, and which of them this one is.

    Args:
        environ: environment variables. TFSCALE_HOSTS is a list such as `a:2222,n[1-3]:2222`;
            without a port it is 2222. `n[1-3+]` are 3 or however many names from n1 on there
            are, as all tasks see it once the first host of the list has its name: so a service
            of Docker Compose is as large as it was started. TFSCALE_RANK, or the
            JOB_COMPLETION_INDEX of a Kubernetes Job, is the rank; without both it is found by
            the addresses of this machine.
        lookup: returns the IP addresses of "host:port".
        is_own: whether an IP address is of this machine.
        clock: returns seconds.
        sleep: waits for so many seconds.

    Returns:
        The tasks; None where TFSCALE_HOSTS is not set.

    Raises:
        ValueError: if the list cannot be read, or this task is not in it.
    """
    text = environ.get(VARIABLE, "").strip()
    if not text:
        return None
    wait = _Wait(lookup, clock, sleep)
    if _OPEN.search(text):
        if not any(environ.get(name, "").strip() for name in _RANKS):
            _check_listed(text, wait, is_own)
        text = _counted(text, wait)
    addresses = expand(text)
    rank = _given_rank(environ, addresses)
    return Tasks(addresses, _own_rank(addresses, wait, is_own) if rank is None else rank)


def expand(text: str) -> tuple[str, ...]:
    """Return the addresses of a list such as `a,n[1-3]:2223`, in its order.

    Raises:
        ValueError: if it cannot be read.
    """
    addresses = []
    for item in _ITEM.findall(text):
        name, colon, port = item.strip().rpartition(":")
        if not colon or "]" in port:
            name, port = item.strip(), str(_PORT)
        if ":" in name:
            raise _unreadable(text)
        try:
            addresses += [f"{host}:{port}" for host in slurm.expand_nodes(name)]
        except ValueError:
            raise _unreadable(text) from None
    for address in addresses:
        ports.split_address(address)
    if not addresses:
        raise _unreadable(text)
    return tuple(addresses)


def _unreadable(text: str) -> ValueError:
    return ValueError(
        f"{VARIABLE} must be a list of hosts like '{_EXAMPLE}'. Received: {text!r}. "
        "Write the same list on all tasks, the chief first."
    )


@dataclasses.dataclass(frozen=True)
class _Wait:
    """Waits until a name can be looked up."""

    lookup: Lookup
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def until(self, seconds: float, is_so: Callable[[], bool]) -> bool:
        """Return whether it became so within the time; asked once at least."""
        deadline = self.clock() + seconds
        while not is_so():
            if self.clock() >= deadline:
                return False
            self.sleep(_POLL_SECONDS)
        return True


def _first(text: str) -> str:
    """Return the first address of a list with `[1-3+]`."""
    return expand(_OPEN.sub(r"\1", text))[0]


def _check_listed(text: str, wait: _Wait, is_own: Callable[[str], bool]) -> None:
    """Refuse a task without a name in a list with `[1-3+]`, that waited for the first host in vain.

    A container has its own name from its start, whoever else is there.
    """

    def look() -> bool:
        ips = [ip for address in _there(text, wait) for ip in wait.lookup(address)]
        return bool(wait.lookup(_first(text))) or any(is_own(ip) for ip in ips)

    if not wait.until(_OWN_SECONDS, look):
        raise _not_listed(text)


def _there(text: str, wait: _Wait) -> list[str]:
    """Return the addresses of a list with `[1-3+]` whose names there are now."""
    found = []
    for item in _ITEM.findall(text):
        match = _OPEN.search(item)
        if match is None:
            found += [address for address in expand(item) if wait.lookup(address)]
            continue
        found += [expand(_OPEN.sub(str(number), item))[0] for number in _numbers(item, wait)]
    return found


def _numbers(item: str, wait: _Wait) -> list[int]:
    """Return the numbers of an item with `[1-3+]` whose names there are now.

    A name server that has an answer for every name gives the same address again, which ends the
    range as a name without one does.
    """
    match = _OPEN.search(item)
    assert match is not None
    found: list[int] = []
    known: set[str] = set()
    for number in itertools.count(int(match[1])):
        ips = set(wait.lookup(expand(_OPEN.sub(str(number), item))[0]))
        if ips - known:
            found.append(number)
        elif number >= int(match[2]):
            break
        known |= ips
    return found


def _not_listed(listed: str) -> ValueError:
    return ValueError(
        f"One host of {VARIABLE} must be this machine. Received: {listed}, of "
        "which none has an address of this machine. Correct the list, or say which it is "
        f"with {_RANKS[0]}; unset {VARIABLE} for a task alone. A container of `docker compose "
        "run` has its service's name with --use-aliases only."
    )


def _counted(text: str, wait: _Wait) -> str:
    """Replace `[1-3+]` by the range of names that there are."""
    first = _first(text)
    if not wait.until(_FIRST_SECONDS, lambda: bool(wait.lookup(first))):
        raise ValueError(
            f"The first host of {VARIABLE} must be found within {_FIRST_SECONDS:g} seconds. "
            f"Received: {first}, a name that does not resolve. Start it; with Docker Compose, "
            "`docker compose up trainer`."
        )
    items = []
    for item in _ITEM.findall(text):
        match = _OPEN.search(item)
        if match is None:
            items.append(item)
            continue
        begin, expected = int(match[1]), int(match[2])

        def there(number: int, item: str = item) -> bool:
            return bool(wait.lookup(expand(_OPEN.sub(str(number), item))[0]))

        wait.until(
            _EXPECTED_SECONDS,
            lambda: all(there(number) for number in range(begin, expected + 1)),  # noqa: B023
        )
        numbers = _numbers(item, wait)
        if numbers:
            items.append(_OPEN.sub(f"[{begin}-{numbers[-1]}]", item))
    return ",".join(items)


def _given_rank(environ: Mapping[str, str], addresses: tuple[str, ...]) -> int | None:
    """Return the rank that a variable says; None where none does."""
    for name in _RANKS:
        text = environ.get(name, "").strip()
        if not text:
            continue
        if not text.isdecimal() or int(text) >= len(addresses):
            raise ValueError(
                f"{name} must be a task's place in {VARIABLE}, counted from 0. "
                f"Received: {name}={text!r} with {len(addresses)} hosts. Correct one of them."
            )
        return int(text)
    return None


def _own_rank(addresses: tuple[str, ...], wait: _Wait, is_own: Callable[[str], bool]) -> int:
    """Return the rank of the one host that is this machine."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [
            rank
            for rank, address in enumerate(addresses)
            if any(is_own(ip) for ip in wait.lookup(address))
        ]
        return bool(found)

    if not wait.until(_OWN_SECONDS, look):
        raise _not_listed(", ".join(addresses))
    if len(found) > 1:
        raise ValueError(
            f"Only one host of {VARIABLE} may be this machine where no rank is said. Received: "
            f"{', '.join(addresses[rank] for rank in found)}. Say which one with {_RANKS[0]}."
        )
    return found[0]
