"""The tasks of a cluster meet at the chief's address before TensorFlow does.

Each task listens at its own address, which is what others will connect to in the job, and at no
other; the chief takes in those that join. Nothing is open afterwards. What the chief then asks
goes through `questions`.
"""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import selectors
import socket
import threading
import time
from typing import Any

from tfscale.cluster import ports
from tfscale.cluster.environment import Cluster
from tfscale.cluster.rendezvous import REASONS
from tfscale.cluster.wire import Channel, Lost

PROTOCOL = 1
_CONNECT_SECONDS = 2.0
_FIRST_WORD_SECONDS = 5.0
_AGAIN_SECONDS = 0.2
_MOST_AT_ONCE = 256

Answer = dict[str, Any]


class NotMet(Exception):
    """This task could not join the others; the text says why, and the way out."""


@dataclasses.dataclass(frozen=True)
class Party:
    """All tasks that meet.

    Args:
        addresses: "host:port" of each, the chief first.
        own: the number of this task.
        num_workers: those that train; what comes behind them is the evaluator.
    """

    addresses: tuple[str, ...]
    own: int
    num_workers: int

    @classmethod
    def of(cls, cluster: Cluster) -> "Party":
        """Return the party of a cluster.

        Raises:
            ValueError: for an evaluator without an address.
        """
        addresses = cluster.workers + cluster.evaluators
        own = len(cluster.workers) if cluster.is_evaluator else cluster.rank
        if own >= len(addresses):
            raise ValueError(
                "An evaluator can be checked with the others where TF_CONFIG has its address. "
                "Received: none. Add it to `cluster` on all tasks."
            )
        return cls(addresses, own, len(cluster.workers))

    @property
    def others(self) -> list[int]:
        """The numbers of the other tasks."""
        return [number for number in range(len(self.addresses)) if number != self.own]

    def name(self, number: int) -> str:
        """Return what a task is called."""
        return f"worker {number}" if number < self.num_workers else "the evaluator"

    def digest(self) -> str:
        """Return a text that is the same for tasks that know the same addresses."""
        text = json.dumps([PROTOCOL, self.num_workers, self.addresses])
        return hashlib.sha256(text.encode()).hexdigest()


class Post:
    """Listens at this task's own address, from `with` to its end.

    Args:
        party: who meets.

    Attributes:
        problem: why it cannot listen; "" if it does.
        strangers: what the chief has to say about tasks that it did not take in, and which of
            the party they said they were.
    """

    def __init__(self, party: Party):
        self._party = party
        self.nonce = secrets.token_hex(8)
        self.problem = ""
        self.strangers: dict[str, int | None] = {}
        self._joined: dict[int, Channel] = {}
        self._changed = threading.Condition()
        self._stack = contextlib.ExitStack()
        self._selector = selectors.DefaultSelector()
        self._is_over = threading.Event()
        self._busy = threading.BoundedSemaphore(_MOST_AT_ONCE)

    def __enter__(self) -> "Post":
        with contextlib.ExitStack() as stack:
            stack.callback(self._selector.close)
            for ip in _places_to_listen(self._party):
                self._listen(ip, stack)
            if not self._selector.get_map() and not self.problem:
                self.problem = "its address is not of this machine"
            thread = threading.Thread(target=self._accept, name="tfscale-post")
            thread.start()
            stack.callback(thread.join)
            stack.callback(self._is_over.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()
        with self._changed:
            for channel in self._joined.values():
                channel.close()

    def gather(self, seconds: float) -> dict[int, Channel]:
        """Wait until all others have joined, or the time is over; return those that have.

        One that was not taken in is not waited for: it has ended.
        """
        if self.problem:
            return {}
        with self._changed:
            self._changed.wait_for(
                lambda: {*self._joined, *self.strangers.values()} >= {*self._party.others},
                timeout=seconds,
            )
            return dict(self._joined)

    def _listen(self, ip: str, stack: contextlib.ExitStack) -> None:
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        port = ports.split_address(self._party.addresses[self._party.own])[1]
        server = stack.enter_context(socket.socket(family))
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((ip, port))
            server.listen(_MOST_AT_ONCE)
        except OSError as error:
            self.problem = f"{ip}:{port}: {error.strerror}"
            return
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ)

    def _accept(self) -> None:
        while not self._is_over.is_set():
            for key, _ in self._selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                with contextlib.suppress(OSError):
                    connection, _ = key.fileobj.accept()
                    if not self._busy.acquire(blocking=False):
                        connection.close()
                        continue
                    threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        """Hear what somebody who connected wants, and do that or close."""
        channel = Channel(connection)
        keep = False
        try:
            message = channel.receive(_FIRST_WORD_SECONDS)
            if message.get("want") == "greeting":
                greeting = {"number": self._party.own, "nonce": self.nonce}
                channel.send({**greeting, "cluster": self._party.digest()})
            elif message.get("want") == "join":
                refusal = self._take_in(message, channel)
                keep = not refusal
                if refusal:
                    channel.send({"refused": refusal})
        except Lost:
            pass  # somebody who was not meant; one who joined is missed when it is asked
        finally:
            self._busy.release()
            if not keep:
                channel.close()

    def _take_in(self, message: Answer, channel: Channel) -> str:
        """Welcome a task, or return why not."""
        party, number = self._party, message.get("number")
        refusal = ""
        with self._changed:
            if party.own != 0:
                refusal = f"this is {party.name(party.own)} and not the chief"
            elif number not in party.others:
                refusal = "it has no place in the chief's cluster"
            elif message.get("cluster") != party.digest():
                refusal = f"{party.name(number)} knows other addresses than the chief"
            elif number in self._joined:
                refusal = f"another task is {party.name(number)} already"
            else:
                channel.send({"welcome": True})  # before anybody can ask it something
                self._joined[number] = channel
            if refusal and party.own == 0:
                self.strangers[refusal] = number if number in party.others else None
            self._changed.notify_all()
        return refusal


def join(party: Party, seconds: float) -> Channel:
    """Connect to the chief, trying until it is there.

    Args:
        party: who meets.
        seconds: how long to try.

    Raises:
        NotMet: if it was not there in time, or refused.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer, connection = ports.connect(party.addresses[0], _CONNECT_SECONDS)
        if connection is not None:
            channel = Channel(connection)
            with contextlib.suppress(Lost):
                channel.send({"want": "join", "number": party.own, "cluster": party.digest()})
                reply = channel.receive(_FIRST_WORD_SECONDS)
                if reply.get("welcome"):
                    return channel
                if "refused" in reply:
                    channel.close()
                    raise NotMet(
                        f"the chief, worker 0 at {party.addresses[0]}, did not take it in: "
                        f"{str(reply['refused'])[:200]}. Give all tasks the same list of "
                        "addresses, and each its own place in it."
                    )
            channel.close()
            answer = "stranger"
        if time.monotonic() + _AGAIN_SECONDS >= deadline:
            raise NotMet(
                f"the chief, worker 0 at {party.addresses[0]}, was not met within {seconds:g} s: "
                f"{REASONS[answer]}. Start the same command there."
            )
        time.sleep(_AGAIN_SECONDS)


def greet(address: str, seconds: float = _CONNECT_SECONDS) -> tuple[str, Answer]:
    """Connect to a post and ask who it is.

    Returns:
        What `ports.connect` says, or "stranger" if something else listens there; and the
        greeting: "number", "nonce" and "cluster" of the post.
    """
    answer, connection = ports.connect(address, seconds)
    if connection is None:
        return answer, {}
    channel = Channel(connection)
    try:
        channel.send({"want": "greeting"})
        reply = channel.receive(_FIRST_WORD_SECONDS)
        return ("up", reply) if "nonce" in reply else ("stranger", {})
    except Lost:
        return "stranger", {}
    finally:
        channel.close()


def _places_to_listen(party: Party) -> list[str]:
    """Return the IP addresses of this machine at which the others look for this task.

    These are what its own name stands for. Where that is loopback only (a host's name often is
    in its own /etc/hosts), or an address that is translated on the way, it is the one from which
    this machine reaches the others.
    """
    own = party.addresses[party.own]
    found = [ip for ip in ports.resolve(own) if ports.is_local(ip)]
    host = ports.split_address(own)[0]
    distant = [
        party.addresses[number]
        for number in party.others
        if ports.split_address(party.addresses[number])[0] != host
    ]
    if all(_is_loopback(ip) for ip in found):
        for address in distant:
            source = ports.source_towards(address)
            if source and not _is_loopback(source):
                return [*found, source]
    return found


def _is_loopback(ip: str) -> bool:
    return ip.startswith("127.") or ip == "::1"
