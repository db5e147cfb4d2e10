"""A machine that has joined a search: its slots run what the chief says, until the search is over.

It is told ids, and builds each trial's command from its own command line and files. When it has
not been answered for two thirds of its lease, its trials are ended, by `local.Guard` even while
this process is stopped; then it tries to join again. The chief's side is in `service`.
"""

import contextlib
import pathlib
import sys
import time

from tfscale.cluster import local, ports, rendezvous, wire
from tfscale.search import leaving, processes, protocol, roles, trials

_SHARE_OF_LEASE = 2 / 3
_TICK_SECONDS = 0.1
_BEAT_SECONDS = 1.0  # between two words to the chief
_IDLE_BEAT_SECONDS = 0.2  # while a slot is free
_CONNECT_SECONDS = 2.0
_AGAIN_SECONDS = 1.0
_FIRST_WORD_SECONDS = 10.0
_UNSEEN_SECONDS = 30.0  # that a folder may take to show what the chief has written
_UNSEEN = "other"  # one of rendezvous.REASONS


class Member:
    """Runs trials for the chief of a search.

    Args:
        role: this process's `roles.Role`.
        run_dir: the folder of the search, as this machine sees it.
        identity: what the search is, a dict that fits into JSON.
        make_kind: a function that returns what a trial runs, an object with `command`, `environ`
            and `diverged` as those of `trials.FitTrials`; called when the chief has been met.
        slots: the `processes.Slot` of the trials that may run here at once.
        hang_timeout_seconds: as for `processes.TrialProcess`.
        grace_seconds: from SIGTERM to SIGKILL.
        start_timeout_seconds: how long the chief may not be found.
        starter: the `processes.Starter` of the trials here; one of its own by default.
        stream: where lines about what happens go; None for nowhere.
    """

    def __init__(
        self,
        role,
        run_dir,
        identity,
        make_kind,
        slots,
        *,
        hang_timeout_seconds=0.0,
        grace_seconds=60.0,
        start_timeout_seconds=600.0,
        starter=None,
        stream=sys.stdout,
    ):
        self._role, self._run_dir, self._identity = role, pathlib.Path(run_dir), identity
        self._make_kind, self._kind = make_kind, None
        self._slots, self._stream = list(slots), stream
        self._hang_seconds, self._grace_seconds = hang_timeout_seconds, grace_seconds
        self._timeout_seconds = start_timeout_seconds
        self._starter = starter or processes.Starter()
        self._running = [None] * len(self._slots)  # a _Started each
        self._channel, self._session, self._lease_seconds = None, "", 0.0
        self._lease_ends = 0.0  # no trial runs here after it
        self._asked_at = None  # when what has not been answered yet was said
        self._asked_last = False
        self._beats_at = 0.0
        self._guard = None

    def run(self):
        """Work until the search is over.

        Raises:
            ValueError: if the chief is not found, does not see this folder, or leads another
                search.
            leaving.ToldToLeave: if a signal ended it; the others go on with its trials.
        """
        told = []
        with leaving.noted_signals(told), contextlib.closing(local.Guard()) as self._guard:
            try:
                while self._meet(told) and not self._work(told):
                    pass
            finally:
                self._end_all()
                self._hang_up()
        if told:
            raise leaving.ToldToLeave(told[0])
        self._say(f"the search is over; its results are in {self._run_dir}")

    def _meet(self, told):
        """Connect to the chief; return False when told to leave, or where all is over."""
        begins, unseen_since, said_so = time.monotonic(), None, False
        before = protocol.read_file(self._run_dir)
        while not told or self._running_trials():
            self._look_after_trials(told)
            reason = self._try_to_join()
            now = time.monotonic()
            if not reason:
                return True
            unseen_since = (unseen_since or now) if reason == _UNSEEN else None
            if unseen_since and now - unseen_since > min(_UNSEEN_SECONDS, self._timeout_seconds):
                raise ValueError(
                    "All machines of a search must see its folder. Received: --run_dir="
                    f"{self._run_dir}, in which {protocol.FILE} is not what the chief at "
                    f"{self._role.address} has written. Use a folder that they share, with the "
                    "same path or not, and that this user may read."
                )
            if not said_so:
                said_so = True
                self._say(f"looking for the chief: {self._role.address} {_brief(reason)}")
            found = protocol.read_file(self._run_dir)
            is_late = now - begins > self._timeout_seconds
            if found.get("over") and (is_late or self._session or before != found):
                return False
            if is_late:
                raise ValueError(
                    f"A search is led by its chief. Received: {self._role.address} "
                    f"{rendezvous.REASONS[reason]} for {self._timeout_seconds:g} s. Start the same "
                    "command there, or wait longer (--start_timeout_seconds)."
                )
            _wait(_AGAIN_SECONDS, told)
        return False

    def _try_to_join(self):
        """Return "" when the chief has taken this machine in, or why not yet."""
        reason, connection = ports.connect(self._role.address, _CONNECT_SECONDS)
        if connection is None:
            return reason
        channel = wire.Channel(connection)
        try:
            reason = self._introduce(channel)
        except wire.Late:
            reason = "silent"
        except (wire.Lost, protocol.Wrong):
            reason = "stranger"
        if reason:
            channel.close()
        else:
            self._channel, self._asked_at, self._beats_at = channel, None, 0.0
        return reason

    def _introduce(self, channel):
        """Prove what both are; return "", or why the chief did not take this machine in."""
        theirs = protocol.text_of(channel.receive(_FIRST_WORD_SECONDS).get("nonce"))
        secret = protocol.read_file(self._run_dir).get("secret", "")
        mine = protocol.nonce()
        channel.send(
            {
                "proof": protocol.proof(secret, "worker", theirs, mine),
                "nonce": mine,
                "name": self._role.name[:200],
                "slots": len(self._slots),
                "session": self._session,
                "resumes": time.monotonic() < self._lease_ends,
                "identity": self._identity,
            }
        )
        reply = channel.receive(_FIRST_WORD_SECONDS)
        if not protocol.is_proof(reply.get("proof"), secret, "chief", mine, theirs) or not secret:
            return _UNSEEN
        if "refused" in reply:
            raise ValueError(
                "All machines of a search run the same command. Received: "
                f"{protocol.text_of(reply['refused'])}. Use the chief's files, flags and "
                "versions, or another address."
            )
        self._lease_seconds = protocol.number_of(reply.get("lease_seconds"), 1, roles.LONGEST_LEASE)
        if not reply.get("known"):
            self._end_all()
            self._lease_ends, self._kind = 0.0, self._make_kind()
            place = f"with {len(self._slots)} slot{'s' if len(self._slots) > 1 else ''}"
            self._say(f"joined the search at {self._role.address} {place}")
        self._session = protocol.text_of(reply.get("session"))
        return ""

    def _work(self, told):
        """Do what the chief says; return whether that is all, or False to look for it again."""
        while True:
            self._look_after_trials(told)
            is_last = bool(told) and not self._running_trials()
            try:
                answer = self._exchange(bool(told), is_last)
            except (wire.Lost, protocol.Wrong):
                self._hang_up()
                if is_last:
                    return True
                self._say("lost the connection to the chief; trying again")
                return False
            if answer is not None and (is_last or answer.get("over")):
                if not is_last:
                    self._end_all()
                    self._farewell()
                return True
            time.sleep(_TICK_SECONDS if self._asked_at is None else 0.0)

    def _exchange(self, is_leaving, is_last):
        """Say what the slots do when it is time for it, and do what the answer says.

        Returns:
            The answer, if it has come.
        """
        now = time.monotonic()
        if self._asked_at is None:
            if now < self._beats_at and not is_last:
                return None
            self._asked_at, self._asked_last = now, is_last
            self._channel.send(self._words(is_leaving, is_last))
        try:
            answer = self._channel.receive(_TICK_SECONDS)
        except wire.Late:
            if now - self._asked_at > _SHARE_OF_LEASE * self._lease_seconds:
                raise
            return None
        if answer.get("gone"):
            self._end_all()
            self._lease_ends = 0.0
            raise wire.Lost("has given the trials to others")
        orders = protocol.read_orders(answer.get("slots"), len(self._slots))
        if self._lease_ends and time.monotonic() > self._lease_ends:
            self._end_all_in_time()
        self._lease_ends = self._asked_at + _SHARE_OF_LEASE * self._lease_seconds
        self._guard.hold_until(self._lease_ends)
        self._asked_at = None
        if not is_leaving and time.monotonic() < self._lease_ends:
            for number, order in enumerate(orders):
                self._follow(number, order)
        is_idle = any(one is None or one.end for one in self._running)
        pace = _IDLE_BEAT_SECONDS if is_idle else _BEAT_SECONDS
        self._beats_at = now + min(pace, self._lease_seconds / 10)
        return answer if self._asked_last == is_last else None

    def _words(self, is_leaving, is_last):
        reports = [started and started.report() for started in self._running]
        words = {"slots": protocol.reports_message(reports), "leaving": is_leaving}
        return words | ({"bye": True} if is_last else {})

    def _follow(self, number, order):
        """Have a slot do what the chief says."""
        started = self._running[number]
        if started is not None and (order is None or order.start != started.order.start):
            self._end_one(number)
            started = None
        if order is None:
            return
        if started is None:
            self._start(number, order)
        elif order.do == protocol.STOP:
            started.process.stop(self._grace_seconds)

    def _start(self, number, order):
        record = trials.unasked(order.trial, self._run_dir)
        process = processes.TrialProcess(
            self._kind.command(record),
            record.log,
            self._guard,
            self._kind.environ(record),
            self._slots[number],
            self._hang_seconds,
            self._starter,
        )
        self._starter.prepare(self._slots[number])
        self._running[number] = _Started(order, record, process)
        self._say(f"trial {order.trial} begins")

    def _look_after_trials(self, told):
        """End trials where that is due, and take in which have ended."""
        for started in self._running_trials() if told else ():
            started.is_leaving = True
            started.process.stop(self._grace_seconds)
        if self._lease_ends and time.monotonic() > self._lease_ends:
            self._end_all_in_time()
        for started in self._running_trials():
            if started.process.has_ended():
                end = started.process.end(self._kind.diverged(started.record))
                started.ended(end)
                self._beats_at = 0.0  # there is something to say
                self._say(f"trial {started.record.id} ends: {started.words()}")

    def _running_trials(self):
        return [started for started in self._running if started and not started.end]

    def _end_all_in_time(self):
        """The lease is over: the chief may give the trials to others, and the guard ended them."""
        if any(self._running):
            self._say("the chief did not answer in time; its trials here were ended")
        self._end_all()

    def _end_all(self):
        for number in range(len(self._running)):
            self._end_one(number)

    def _end_one(self, number):
        started, self._running[number] = self._running[number], None
        if started is not None and not started.end:
            started.process.kill()

    def _farewell(self):
        """Say goodbye, and wait until that was heard."""
        with contextlib.suppress(wire.Lost):
            self._channel.send(self._words(True, True))
            self._channel.receive(_CONNECT_SECONDS)

    def _hang_up(self):
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _say(self, line):
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                print(line, file=self._stream, flush=True)


class _Started:
    """A trial that was started here."""

    def __init__(self, order, record, process):
        self.order, self.record, self.process = order, record, process
        self.end, self.seconds, self.is_leaving = None, 0.0, False

    def ended(self, end):
        """Take in its end; one that was cut off because this machine leaves goes on elsewhere."""
        self.seconds = self.process.seconds
        cut_off = self.is_leaving and end.state != trials.COMPLETED
        self.end = protocol.LEFT if cut_off else protocol.shortened(end)

    def report(self):
        """Return what the chief is told of it."""
        seconds = self.seconds if self.end else self.process.seconds
        return protocol.Report(self.order.trial, self.order.start, seconds, self.end)

    def words(self):
        """Return its end for a person."""
        if self.end == protocol.LEFT:
            return "it goes on elsewhere"
        return " ".join(filter(None, (self.end.state.replace("_", " "), self.end.reason)))


def _brief(reason):
    return rendezvous.REASONS[reason].partition(" (")[0]


def _wait(seconds, told):
    deadline, was_told = time.monotonic() + seconds, bool(told)
    while bool(told) == was_told and time.monotonic() < deadline:
        time.sleep(_TICK_SECONDS)
