"""The way of a trial, on one screen: `Search.run`.

An oracle is asked, the journal told, a process started, its epochs read, its end judged, the
journal told again, the oracle told. What was interrupted goes on from the journal. What a trial
runs is the affair of an object such as `trials.FitTrials`, what is shown that of the views.
"""

import collections
import contextlib
import errno
import time

from tfscale.cluster import local
from tfscale.search import ends, leaving, oracles, preparing, processes, started, trials

_POLL_SECONDS = 0.1
_MOST_LOSSES = 5  # of a trial, with the machines that it ran on; then it is to blame


class Search:
    """A search that begins, or goes on, and ends.

    Args:
        facts: the `trials.SearchFacts`.
        journal: the `journal.Journal`, with the events so far.
        asker: the `oracles.Asker` of an oracle that nobody has asked.
        kind: what a trial runs: an object with the methods of `trials.FitTrials`.
        views: what a person sees: an object with `update(records)` and `finish(records)`.
        epochs_of: a function from a trial's values to its epochs, where the oracle does not say.
        slots: the `processes.Slot` of each of the trials that run at once on this machine; one by
            default.
        service: the `service.Service` of the machines that join; None without any.
        max_retries: how often a trial that has failed is started again, where it may come right;
            counted anew when it has done an epoch more.
        hang_timeout_seconds: as for `processes.TrialProcess`.
        grace_seconds: from SIGTERM to SIGKILL.
        starter: the `processes.Starter` of the trials here; one of its own by default.
        stops_at: a function from a trial's history and those of the others that have ended with
            a score to the epoch at which the trial is stopped, or None.
        when_ended: a function of a `TrialRecord` that has ended, now or in an earlier process.
    """

    def __init__(
        self,
        facts,
        journal,
        asker,
        kind,
        views,
        *,
        epochs_of=lambda values: 0,
        slots=None,
        service=None,
        max_retries=1,
        hang_timeout_seconds=0.0,
        grace_seconds=60.0,
        starter=None,
        stops_at=None,
        when_ended=None,
    ):
        self.facts, self.records = facts, []
        self._journal, self._asker, self._kind, self._views = journal, asker, kind, views
        self._epochs_of, self._service = epochs_of, service
        self._preparation = preparing.Preparation(kind)
        self._own_slots = [processes.Slot(0)] if slots is None else list(slots)
        self._max_retries, self._hang_seconds = max_retries, hang_timeout_seconds
        self._grace_seconds = grace_seconds
        self._starter = starter or processes.Starter()
        self._stops_at, self._when_ended = stops_at, when_ended
        self._waiting = collections.deque()  # records that need a slot, oldest first
        self._running = {}  # id -> started.Started
        self._tries = {}  # id -> starts that have failed since its last new epoch, and its epochs
        self._losses = collections.Counter()  # id -> machines that were lost with it
        self._sessions = {}  # id -> the session of a joined machine that may run it, and its lease
        self._began = 0.0
        self._is_exhausted = self._is_idle = False
        self._guard = None

    def run(self):
        """Search until the oracle or the number of trials ends it.

        Returns:
            All trials as a list of `TrialRecord`.

        Raises:
            ValueError: if the journal is that of another space, or of another keras-tuner.
            leaving.ToldToLeave: if a signal ended it; the same command goes on.
            OSError: if the disk has no room; the same command goes on when there is some.
        """
        self._replay()
        self._began, told = time.monotonic(), []
        with leaving.noted_signals(told), contextlib.closing(local.Guard()) as self._guard:
            try:
                while not told:
                    slots = self._free_slots()
                    self._ask(len(slots))
                    self._start(slots)
                    if not (self._running or self._waiting or self._wants_more()):
                        break
                    for running in list(self._running.values()):
                        self._look_at(running)
                    self._views.update(self.records)
                    time.sleep(_POLL_SECONDS)
                if told:
                    self._leave()
                    raise leaving.ToldToLeave(told[0])
            except OSError as error:
                if ends.has_no_room(error):
                    self._leave()
                raise
            finally:
                for running in self._running.values():
                    running.process.kill()
        self._views.finish(self.records)
        return self.records

    def _free_slots(self):
        return self._own_slots + (self._service.free_slots() if self._service else [])

    def _ask(self, num_slots):
        """Ask for as many trials as there are free slots."""
        while len(self._waiting) < num_slots and self._wants_more():
            asked = self._asker.ask()
            if asked.kind == "trial":
                self._write(
                    "created",
                    trial=asked.id,
                    values=asked.values,
                    parent=asked.parent,
                    epochs=asked.epochs,
                )
                self._waiting.append(self._create(asked))
            else:
                self._write(asked.kind)
                self._take_no(asked.kind)

    def _wants_more(self):
        limit = self.facts.max_trials
        is_full = limit and len(self.records) >= limit
        return not (is_full or self._is_exhausted or self._is_idle)

    def _take_no(self, kind):
        """An oracle that has no trial now is asked again when a trial has ended, or never."""
        self._is_exhausted = self._is_exhausted or kind == "exhausted"
        self._is_idle = True

    def _create(self, asked):
        epochs = asked.epochs or self._epochs_of(asked.values)
        record = trials.unasked(asked.id, self.facts.run_dir, asked.values, epochs, asked.parent)
        self.records.append(record)
        return record

    def _start(self, slots):
        """Start what waits, or goes on, in the free slots."""
        ready = [record for record in self._waiting if self._may_start(record)]
        for record, slot in zip(ready, slots, strict=False):
            self._waiting.remove(record)
            try:
                parent = self._record(record.parent) if record.parent else None
                if not self._preparation.attempt(record, parent):
                    self._waiting.append(record)
                    continue
            except OSError as error:
                if ends.has_no_room(error):
                    raise
                self._take_in(record, ends.End(trials.FAILED, str(error), True))
                continue
            self._running[record.id] = self._start_in(slot, record)
            record.started = record.started or self._journal.events[-1]["time"]

    def _may_start(self, record):
        """Say whether it is time, and no machine of an earlier life may still run a trial."""
        if not self._preparation.is_due(record):
            return False
        session, lease_seconds = self._sessions.get(record.id, ("", 0.0))
        if not session or (self._service is not None and self._service.is_gone(session)):
            return True
        return time.monotonic() - self._began > lease_seconds

    def _start_in(self, slot, record):
        if slot not in self._own_slots:
            record.machine = slot.machine
            self._sessions[record.id] = stay = (slot.session, slot.lease_seconds)
            place = {"on": slot.machine, "session": stay[0], "lease_seconds": stay[1]}
            self._write("started", trial=record.id, **place)
            return started.Started(record, slot.start(record.id), None)
        record.machine = ""
        self._own_slots.remove(slot)
        self._write("started", trial=record.id)
        process = processes.TrialProcess(
            self._kind.command(record),
            record.log,
            self._guard,
            self._kind.environ(record),
            slot,
            self._hang_seconds,
            self._starter,
        )
        if self._waiting or self._wants_more():
            self._starter.prepare(slot)
        return started.Started(record, process, slot)

    def _look_at(self, running):
        """Take in how far a trial is, stop it if it will not win, and take in its end."""
        record, process = running.record, running.process
        has_ended = process.has_ended()
        if not running.read(self._kind, has_ended):
            return
        self._take_history(record, running.history)
        if running.stops_at is None and self._stops_at:
            others = [
                r.history for r in self.records if r is not record and r.state in trials.SCORED
            ]
            running.stops_at = self._stops_at(record.history, others)
            if running.stops_at and not has_ended:
                process.stop(self._grace_seconds)
        if has_ended:
            del self._running[record.id]
            self._sessions.pop(record.id, None)
            if running.slot is not None:
                self._own_slots.append(running.slot)
                self._own_slots.sort(key=lambda slot: slot.number)
            self._end(running)

    def _end(self, running):
        """Judge a process that is over."""
        record = running.record
        if running.process.lost and not running.stops_at and self._goes_on_elsewhere(running):
            return
        end = running.process.end(running.diverged)
        if end.needs_room:  # it waits, as all others do, and nothing is counted
            raise OSError(errno.ENOSPC, f"trial {record.id}: {end.reason}")
        if running.unreadable:
            end = ends.End(trials.FAILED, running.unreadable, True)
        if running.stops_at:
            record.history = record.history[: running.stops_at]
            end = ends.End(trials.STOPPED, f"by the median at epoch {running.stops_at}")
        self._take_history(record, record.history)
        if end.state == trials.COMPLETED and (reason := self._kind.unfinished(record)):
            end = ends.End(trials.FAILED, reason)
        if end.state == trials.COMPLETED and record.score is None:
            end = ends.End(trials.DIVERGED, f"{self.facts.objective} was never finite")
        self._take_in(record, end)

    def _take_in(self, record, end):
        """Write how a start of a trial has ended, and have it wait again where that may help."""
        result = {"trial": record.id, "state": end.state, "reason": end.reason}
        result["seconds"] = round(record.seconds, 2)
        tries, epochs = self._tries.get(record.id, (0, 0))
        tries = tries if record.epochs <= epochs else 0
        if end.may_come_right and tries < self._max_retries:
            self._tries[record.id] = (tries + 1, record.epochs)
            self._write("retried", **result, tries=tries + 1, epochs=record.epochs)
            record.reason, record.machine = end.reason, ""
            self._waiting.append(record)
            return
        result |= {"score": record.score, "best_epoch": record.best_epoch}
        self._write("ended", **result, epochs=record.epochs, history=record.history)
        self._take_end(record, self._journal.events[-1])
        self._views.update(self.records)

    def _goes_on_elsewhere(self, running):
        """Have a trial wait again whose machine was lost, or left; no retry is used up by it."""
        record, process = running.record, running.process
        self._losses[record.id] += not process.has_left
        if self._losses[record.id] > _MOST_LOSSES:
            return False
        record.reason, record.machine = process.lost, ""
        self._write(
            "lost",
            trial=record.id,
            reason=record.reason,
            seconds=round(record.seconds, 2),
            losses=self._losses[record.id],
        )
        self._waiting.appendleft(record)
        return True

    def _take_end(self, record, event):
        record.state, record.reason = event["state"], event["reason"]
        record.seconds = event["seconds"]
        self._take_history(record, event["history"])
        self._asker.tell(record.id, record.history, record.state)
        self._is_idle = False
        if self._when_ended:
            self._when_ended(record)

    def _take_history(self, record, history):
        record.history, record.epochs = history, len(history)
        record.score, record.best_epoch = trials.best_of(
            history, self.facts.objective, self.facts.direction
        )

    def _replay(self):
        """Do again what the journal says was done; what was running then waits for a slot."""
        for event in list(self._journal.events):
            kind = event["event"]
            if kind in ("created", "idle"):  # one that was exhausted is asked once more
                self._replay_ask(event)
            elif kind == "ended":
                record = self._replayed(event)
                self._waiting.remove(record)
                self._take_end(record, event)
            elif kind in ("started", "retried", "lost"):
                self._replay_start(event)
        for record in self._waiting:
            record.machine = ""  # until it is started again

    def _replay_start(self, event):
        record = self._replayed(event)
        if event["event"] == "started":
            record.started, record.machine = record.started or event["time"], event.get("on", "")
            self._sessions.pop(record.id, None)
            if "session" in event:
                self._sessions[record.id] = (event["session"], event["lease_seconds"])
            return
        self._sessions.pop(record.id, None)
        if event["event"] == "retried":
            self._tries[record.id] = (event["tries"], event["epochs"])
        else:
            self._losses[record.id] = event["losses"]
        record.seconds, record.reason = event["seconds"], event["reason"]

    def _replay_ask(self, event):
        asked = self._asker.ask_again(event.get("values"))
        if event["event"] == "created":
            its = {name: event.get(name) for name in ("values", "parent", "epochs")}
            expected = oracles.Asked("trial", event["trial"], **its)
            self._waiting.append(self._create(asked))
        else:
            expected = oracles.Asked(event["event"])
            self._take_no(event["event"])
        oracles.check_same(asked, expected, self._journal.path)

    def _record(self, id):
        return self.records[int(id)]

    def _replayed(self, event):
        """Return the record that an event of the journal is about."""
        for record in self._waiting:
            if record.id == event["trial"]:
                return record
        raise ValueError(
            "A search goes on from its journal, line by line. Received: "
            f"{self._journal.path}, in which trial {event['trial']!r} is {event['event']!r} and "
            "has not been created, or has ended before. Cut the file off in front of that, or "
            "search in another folder."
        )

    def _write(self, event, **fields):
        self._journal.append({"event": event, **fields, "time": round(time.time(), 3)})

    def _leave(self):
        """Let the trials save and leave."""
        for running in self._running.values():
            running.process.stop(self._grace_seconds)
        while not all([running.process.has_ended() for running in self._running.values()]):
            time.sleep(_POLL_SECONDS)
