"""The chief's side of a search on several machines: who has joined, and what their slots do.

A joined machine has a lease, which each word from it renews. While it holds, its slots are as
good as the chief's own (`JoinedTrial` in the place of `processes.TrialProcess`); when it runs out,
its trials are given to others, and what it says later is not heard. The loop is in `loop`.
"""

import contextlib
import dataclasses
import json
import secrets
import socket
import threading
import time

from tfscale.cluster import wire
from tfscale.search import ends, journal, protocol, roles, trials

_MOST_STRANGERS = 64  # connections that have not proven anything yet
_STRANGER_SECONDS = 10.0
_LOOK_SECONDS = 0.1
_FAREWELL_SECONDS = 10.0  # for the joined machines to hear that the search is over


@contextlib.contextmanager
def offered(role, run_dir, identity, may_differ, lease_seconds, stream):
    """As a context: the `Service` of a chief, None for a search on one machine alone.

    Args:
        role: this process's `roles.Role`.
        run_dir, identity, may_differ, lease_seconds: as for `Service`.
        stream: where the line about it goes; None for nowhere.
    """
    if role.kind != "chief":
        yield None
        return
    with contextlib.closing(Service(role, run_dir, identity, may_differ, lease_seconds)) as service:
        if stream is not None:
            ip, port = service.address
            only = ", which only this machine reaches" if ip.startswith("127.") else ""
            print(
                f"leading the search at {ip}:{port}{only}; the same command elsewhere joins",
                file=stream,
                flush=True,
            )
        yield service


class Service:
    """Takes in machines that join a search, from its start until `close`.

    Args:
        role: the chief's `roles.Role`.
        run_dir: the folder of the search, which all machines see.
        identity: what the search is, a dict that fits into JSON; the same on all machines.
        may_differ: names in it that need not be the same.
        lease_seconds: how long a machine that is not heard keeps its trials.

    Raises:
        ValueError: if this process cannot listen at the address.
    """

    def __init__(self, role, run_dir, identity, may_differ=(), lease_seconds=30.0):
        self.lease_seconds = lease_seconds
        self._run_dir, self._may_differ, self._own_name = run_dir, may_differ, role.name
        self._identity = json.loads(json.dumps(identity))
        self._server = roles.listening(role)
        self._secret = protocol.write_secret(run_dir)
        self._sessions = []  # in the order in which they have joined
        self._by_id, self._replaced = {}, set()
        self._changed = threading.Condition()
        self._num_starts, self._is_over = 0, False
        self._is_closed = threading.Event()
        self._strangers = threading.BoundedSemaphore(_MOST_STRANGERS)
        self._channels, self._threads = set(), []
        self.address = self._server.getsockname()[:2]
        self._server.settimeout(_LOOK_SECONDS)
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def free_slots(self):
        """Return a `JoinedSlot` for each slot of a joined machine that has nothing to do."""
        with self._changed:
            return [
                JoinedSlot(self, session, number)
                for session in self._sessions
                if self._holds(session) and not session.is_leaving
                for number, order in enumerate(session.orders)
                if order is None
            ]

    def is_gone(self, session_id):
        """Return whether it is known that nothing runs any more of what a machine had begun, maybe
        with an earlier chief.

        Args:
            session_id: the `session` of a `JoinedSlot`, at some time.
        """
        with self._changed:
            if session_id in self._by_id:
                return not self._holds(self._by_id[session_id])
            return session_id in self._replaced

    def end_search(self):
        """From now on say that the search is over; `close` waits until all have heard it."""
        with self._changed:
            self._is_over = True

    def close(self):
        """Close the address and end all connections."""
        with self._changed:
            if self._is_over:
                self._changed.wait_for(
                    lambda: not any(self._holds(session) for session in self._sessions),
                    timeout=min(_FAREWELL_SECONDS, self.lease_seconds),
                )
        self._is_closed.set()
        self._accepting.join()
        self._server.close()
        with self._changed:
            for channel in self._channels:
                channel.close()
        for thread in self._threads:
            thread.join()
        if self._is_over:
            protocol.write_over(self._run_dir)

    def _order(self, session, number, trial):
        """Give a trial to a slot; return its start."""
        with self._changed:
            self._num_starts += 1
            session.orders[number] = protocol.Order(trial, self._num_starts)
            return self._num_starts

    def _report(self, session, number, start):
        """Return what was last said of a start, or None; and why nothing more will be."""
        with self._changed:
            report = session.reports[number]
            if report is not None and report.start != start:
                report = None
            return report, "" if self._holds(session) else session.why_gone

    def _stop(self, session, number, start):
        with self._changed:
            order = session.orders[number]
            if order is not None and order.start == start:
                session.orders[number] = dataclasses.replace(order, do=protocol.STOP)

    def _release(self, session, number, start):
        with self._changed:
            order = session.orders[number]
            if order is not None and order.start == start:
                session.orders[number] = None

    def _holds(self, session):
        """Return whether a session's lease holds; once it does not, it never will again."""
        if not session.why_gone and time.monotonic() - session.heard > self.lease_seconds:
            session.why_gone = f"{session.name} was not heard for {self.lease_seconds:g} s"
        return not session.why_gone

    def _accept(self):
        while not self._is_closed.is_set():
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                continue
            except OSError:  # the one who connected is gone, or there are no files left
                time.sleep(_LOOK_SECONDS)
                continue
            if not self._strangers.acquire(blocking=False):
                connection.close()
                continue
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()

    def _serve(self, connection):
        """Talk with one who has connected, until one of both has enough."""
        with contextlib.closing(wire.Channel(connection)) as channel:
            with self._changed:
                self._channels.add(channel)
            try:
                try:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    session = self._welcome(channel)
                finally:
                    self._strangers.release()
                while session is not None and not self._is_closed.is_set():
                    said = channel.receive(self.lease_seconds)
                    answer = self._hear(session, said)
                    channel.send(answer)
                    if said.get("bye"):
                        break
            except (wire.Lost, protocol.Wrong, OSError, RecursionError):
                pass  # a stranger, or a machine that will come again or be missed
            finally:
                with self._changed:
                    self._channels.discard(channel)

    def _welcome(self, channel):
        """Let one who has connected prove what it is; return its session, or None."""
        nonce = protocol.nonce()
        channel.send({"search": "tfscale", "nonce": nonce})
        hello = channel.receive(_STRANGER_SECONDS)
        theirs = protocol.text_of(hello.get("nonce"))
        if not protocol.is_proof(hello.get("proof"), self._secret, "worker", nonce, theirs):
            channel.send({"wrong": "secret"})
            return None
        name, old = protocol.text_of(hello.get("name")), protocol.text_of(hello.get("session"))
        num_slots = protocol.whole_of(hello.get("slots"), 1, protocol.MOST_SLOTS)
        identity = hello.get("identity")
        mine = {"proof": protocol.proof(self._secret, "chief", theirs, nonce)}
        differences = ["its identity"]
        if isinstance(identity, dict):
            differences = journal.differences(self._identity, identity, self._may_differ)
        if differences:
            channel.send(mine | {"refused": "; ".join(differences)[:400]})
            return None
        with self._changed:
            session = self._by_id.get(old)
            is_known = (
                hello.get("resumes") is True
                and session is not None
                and self._holds(session)
                and len(session.orders) == num_slots
            )
            if not is_known:
                session = self._new_session(name, num_slots, old)
        channel.send(
            mine | {"session": session.id, "known": is_known, "lease_seconds": self.lease_seconds}
        )
        return session

    def _new_session(self, name, num_slots, replaces):
        taken = {session.name for session in self._sessions if self._holds(session)}
        taken.add(self._own_name)
        numbers = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        unique = next(one for one in (name, *numbers) if one not in taken)
        session = _Session(secrets.token_hex(8), unique, num_slots, replaces)
        self._sessions.append(session)
        self._by_id[session.id] = session
        return session

    def _hear(self, session, said):
        """Take in what a joined machine says, and return the answer."""
        reports = protocol.read_reports(said.get("slots"), len(session.orders))
        with self._changed:
            if not self._holds(session):
                return {"gone": True}
            self._replace(session)
            session.heard, session.reports = time.monotonic(), reports
            session.is_leaving = said.get("leaving") is True
            if said.get("bye") is True:
                session.why_gone = f"{session.name} left"
                self._changed.notify_all()
            orders = protocol.orders_message(session.orders)
            return {"slots": orders, "over": self._is_over}

    def _replace(self, session):
        """A machine that begins anew has ended what ran before: nobody needs to wait for that."""
        old, session.replaces = session.replaces, ""
        if old in self._by_id:
            before = self._by_id[old]
            before.why_gone = before.why_gone or f"{before.name} began anew"
        elif old:
            self._replaced.add(old)


class _Session:
    """One joined machine, from its welcome until its lease runs out."""

    def __init__(self, id, name, num_slots, replaces):
        self.id, self.name, self.replaces = id, name, replaces
        self.orders, self.reports = [None] * num_slots, [None] * num_slots
        self.heard, self.why_gone, self.is_leaving = time.monotonic(), "", False


class JoinedSlot:
    """A slot of a joined machine that is free.

    Attributes:
        machine: the machine's name.
        session: what tells this stay of the machine from others.
        lease_seconds: how long what runs there may go on when its machine is not heard.
    """

    def __init__(self, service, session, number):
        self._place = (service, session, number)
        self.machine, self.session = session.name, session.id
        self.lease_seconds = service.lease_seconds

    def start(self, trial):
        """Have a trial run there; return it as a `JoinedTrial`."""
        return JoinedTrial(*self._place, trial)


class JoinedTrial:
    """A trial on a joined machine, with the methods of `processes.TrialProcess`.

    Args:
        service: the `Service`.
        session: the machine's session.
        number: its slot.
        trial: the trial's id.
    """

    def __init__(self, service, session, number, trial):
        self._service, self._session, self._number = service, session, number
        self._start = service._order(session, number, trial)
        self._report, self._end, self.lost, self.has_left = None, None, "", False

    @property
    def seconds(self):
        """How long it has run, as last heard."""
        return self._report.seconds if self._report else 0.0

    def has_ended(self):
        """Look at what was last said of it; return whether it is over, or its machine lost."""
        if self._end is None and not self.lost:
            report, why_gone = self._service._report(self._session, self._number, self._start)
            self._report = report or self._report
            end = report.end if report else None
            self.has_left = end == protocol.LEFT
            if self.has_left:
                self.lost = f"{self._session.name} left"
            elif end is not None:
                self._end = end
            else:
                self.lost = why_gone
        if self._end is None and not self.lost:
            return False
        self.kill()
        return True

    def stop(self, grace_seconds):
        """Ask it to save and leave; its own machine knows how long that may take."""
        self._service._stop(self._session, self._number, self._start)

    def kill(self):
        """Free its slot; its machine ends what still runs there."""
        self._service._release(self._session, self._number, self._start)

    def end(self, diverged):
        """Return how it ended, as its machine saw it, a `ends.End`."""
        return self._end or ends.End(trials.FAILED, self.lost)
