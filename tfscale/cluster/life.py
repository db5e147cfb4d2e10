"""One life of the workers: from their start until the last of them has ended, and why.

Shows what they print, hands signals on, and ends all when one has failed, hangs, or has left.
Whether another life follows is decided in `supervise`; who failed first, in `verdict`.
"""

import dataclasses
import selectors
import signal
import sys
import time
from collections.abc import Callable, Sequence

from tfscale.cluster import stall, verdict
from tfscale.cluster.ended import Word
from tfscale.cluster.worker import END_SECONDS, Worker

HUNG = 124  # exit code of a run that ends because its workers hang; that of timeout(1)
_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 0.3  # deaths within it count as one: the cause may be seen after its consequence
_PEER_SECONDS = 3.0  # how long the cause may be waited for when only consequences were seen
# From SIGTERM to SIGKILL where another life waits. What a worker has to say about a lost peer it
# says in one; TensorFlow's shutdown then waits for that peer, for up to 15, and saves nothing.
_HURRIED_SECONDS = 2.0
_WORD_SECONDS = 2.0  # between two looks for word from other tasks
_NOTICE_SECONDS = 600.0  # of standing still until the launcher says so


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a life ended.

    Args:
        kind: "done" (all left with 0), "failed", "restart" (a worker asked for it) or "stopped"
            (a signal to this process).
        code: the exit code of a run that ends here.
        report: what a user is told; "" for "done".
        ranks: of the workers that were the cause.
        began: whether any worker has come farther than to the beginning of its first work.
        trained: whether any worker has taken a step of training.
        word: of another task that has given up, where that was the cause.
        comes_again: why another life would fail as this one, such as on a full disk; "" where it
            may not.
        cause: why a life failed, in a line; "" where another task's launcher knows that.
    """

    kind: str
    code: int = 0
    report: str = ""
    ranks: tuple[int, ...] = ()
    began: bool = False
    comes_again: str = ""
    trained: bool = False
    word: Word | None = None
    cause: str = ""


class Life:
    """Watches workers until all have ended.

    Args:
        workers: started ones.
        signals: numbers of the signals that this process got, which a handler appends to.
        hang_timeout_seconds: how long no worker may make a step once training has begun; 0 for
            as long as they like.
        start_timeout_seconds: how long they wait for each other at their start; 0 where nobody
            bounds that.
        grace_seconds: time to save and to leave after a signal, for workers that promised to.
        hurries: whether another life waits for the end of this one, so that nobody waits for
            what a worker does after it has failed, or has lost one that did.
        sees_all: whether these are all workers of the cluster, so that the cause of a failure
            must be among them.
        look_for_word: returns the word of another task that has given up, or None.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        signals: list[int],
        *,
        hang_timeout_seconds: float = 0.0,
        start_timeout_seconds: float = 0.0,
        grace_seconds: float = 60.0,
        hurries: bool = False,
        sees_all: bool = True,
        look_for_word: Callable[[], Word | None] = lambda: None,
    ):
        self._workers = workers
        self._signals = signals
        self._num_signals = 0
        self._hang_timeout_seconds = hang_timeout_seconds
        self._grace_seconds = grace_seconds
        self._hurries = hurries
        self._sees_all = sees_all
        self._end_seconds = min(_HURRIED_SECONDS if hurries else END_SECONDS, grace_seconds)
        self._still = stall.Watch(
            hang_timeout_seconds, start_timeout_seconds, peers_give_up=hurries and not sees_all
        )
        self._noticed = False
        self._look_for_word = look_for_word
        self._look_again_at = 0.0
        self._word: Word | None = None
        self._hang: tuple[tuple[int, ...], str, str] | None = None
        self._selector = selectors.DefaultSelector()

    def watch(self) -> Outcome:
        """Show the workers' output until all have ended, and say why they did."""
        with self._selector:
            for worker in self._workers:
                self._selector.register(worker.output.pipe, selectors.EVENT_READ, worker)
            while self._alive():
                self._read(_POLL_SECONDS)
                self._hand_signals_on()
                for worker in self._alive():
                    worker.see_end()
                    if self._hurries:
                        worker.see_failure()
                if not self._num_signals and not self._is_ending():
                    self._look_for_failures()
                if not self._num_signals and not self._is_ending():
                    self._look_for_progress()
                if not self._num_signals and not self._is_ending():
                    self._look_at_others()
                for worker in self._alive():
                    worker.cut_off_in_time()
        return self._outcome()

    def _alive(self) -> list[Worker]:
        return [worker for worker in self._workers if not worker.has_ended]

    def _ends(self) -> list[verdict.End]:
        """Return the ends so far, in the order in which they were seen."""
        ends = [worker.end for worker in self._workers if worker.end is not None]
        return sorted(ends, key=lambda end: end.seconds)

    def _is_ending(self) -> bool:
        """Whether the workers were already asked to end, or given a time to leave."""
        return any(worker.kill_at < float("inf") for worker in self._workers)

    def _read(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            if not key.data.output.read_some():
                self._selector.unregister(key.fileobj)

    def _hand_signals_on(self) -> None:
        """Tell the workers of a first signal; a second one ends them at once."""
        if len(self._signals) == self._num_signals:
            return
        again = self._num_signals > 0 or len(self._signals) > 1
        self._num_signals = len(self._signals)
        number = self._signals[0] if self._signals[0] == signal.SIGINT else signal.SIGTERM
        for worker in self._alive():
            worker.ask_to_end(signal.SIGKILL if again else number, self._grace_seconds)

    def _look_for_failures(self) -> None:
        """End all once it is known, or will not be known better, who failed first."""
        ends = self._ends()
        failures = [end for end in ends if end.is_failure or end.asks_for_restart]
        if not failures or not self._alive():
            return
        waited = time.monotonic() - failures[0].seconds
        cause = verdict.cause(ends)
        if cause is None or waited < _SETTLE_SECONDS:
            return
        if cause.asks_for_restart:
            self._let_follow()
        elif not cause.lost_a_peer:
            self._end_all(self._alive())
        elif stall.stopped(self._alive()):
            self._hold_responsible(stall.Hang())
        elif cause.missed_a_peer and (absent := self._absent()):
            self._hold_responsible(stall.Hang([(worker, stall.ABSENT) for worker in absent]))
        elif waited >= _PEER_SECONDS or not self._sees_all:
            self._end_all(self._alive())

    def _absent(self) -> list[Worker]:
        """Return those that have not come as far as the others, who give up waiting for them."""
        return [w for w in self._alive() if w.end is None and not w.pulse.read().has_come]

    def _let_follow(self) -> None:
        """Give the others time to leave as one of them did, on the step they agreed on."""
        for worker in self._alive():
            if worker.pulse.read().saves:
                worker.kill_at = time.monotonic() + self._grace_seconds
            else:
                worker.ask_to_end(signal.SIGTERM, self._grace_seconds)

    def _end_all(self, alive: Sequence[Worker]) -> None:
        for worker in alive:
            if worker.end is not None:  # it ends by itself
                worker.was_asked = True
                worker.kill_at = time.monotonic() + self._end_seconds
            else:
                worker.ask_to_end(signal.SIGTERM, self._end_seconds)

    def _look_at_others(self) -> None:
        """End all if another task of the cluster, without which they cannot go on, has given up."""
        if time.monotonic() >= self._look_again_at:
            self._look_again_at = time.monotonic() + _WORD_SECONDS
            self._word = self._look_for_word()
            if self._word:
                self._end_all(self._alive())

    def _look_for_progress(self) -> None:
        """Say when nobody makes a step, and end all when that has lasted for too long."""
        alive = self._alive()
        hang = self._still.look(alive, time.monotonic())
        quiet = self._still.quiet.seconds
        if hang:
            self._hold_responsible(hang)
        elif quiet < _NOTICE_SECONDS:
            self._noticed = False
        elif not self._noticed:
            self._noticed = True
            end = "" if self._hang_timeout_seconds else " --hang_timeout_seconds=N would end them."
            self._say(f"no worker has made a step for {quiet:.0f} s.{self._places(alive)}{end}")

    def _hold_responsible(self, hang: stall.Hang) -> None:
        """Have all write their stacks, find out who hangs if that is not known, and end all."""
        alive = [worker for worker in self._alive() if worker.end is None]
        answered = stall.write_stacks(alive, self._read)
        found = stall.who(alive, answered) if hang.found is None else hang.found
        ranks = tuple(worker.rank for worker, _ in found)
        names = "; ".join(
            f"worker {worker.rank} {sign}{worker.pulse.read().place()}" for worker, sign in found
        )
        if not found:
            names = "the workers hang, and none of them more than another"
        logs = [f"worker {worker.rank}" for worker in answered]
        stacks = f" The stacks of {', '.join(logs)} are in the log." if logs else ""
        told = f"{names}.{hang.text}"
        self._hang = ranks, f"tfscale: {told}{self._places(alive)}{stacks}", told
        for worker, _ in found:
            worker.ask_to_end(signal.SIGKILL, 0.0)
        self._end_all([worker for worker in self._alive() if worker.rank not in ranks])

    def _places(self, alive: Sequence[Worker]) -> str:
        """Return a line for each worker: how far it is, and since when."""
        now, text = time.monotonic(), ""
        for worker in alive:
            beat = worker.pulse.read()
            place = f"{beat.place()}, {now - beat.seconds:.0f} s ago" if beat.number else " unknown"
            log = f"; log {worker.output.log}" if worker.output.log else ""
            text += f"\n    worker {worker.rank}{place}{log}"
        return f" Last heard of:{text}\n   "

    def _say(self, text: str) -> None:
        print(f"tfscale: {text}", file=sys.stderr, flush=True)

    def _outcome(self) -> Outcome:
        """Judge a life that is over."""
        beats = [worker.pulse.read() for worker in self._workers]
        began = any(beat.has_begun for beat in beats)
        ends = self._ends()
        cause = verdict.cause(ends)
        report = verdict.report(cause, ends, self._sees_all) if cause else ""
        if self._num_signals:
            code = 130 if self._signals[0] == signal.SIGINT else verdict.ASKS_FOR_RESTART
            failed = verdict.failed_to_leave(ends, at_once=self._num_signals > 1)
            if failed:
                code = failed.exit_code
                report = report or verdict.report_of_leaving(failed)
            return Outcome("stopped", code, report, (), began)
        if self._word:
            report = f"tfscale: this task ends, as another one has given up.\n{self._word.text}"
            missing = "that task does not come back"
            return Outcome("failed", self._word.code, report, (), began, missing, word=self._word)
        if self._hang:
            ranks, report, told = self._hang
            return Outcome("failed", HUNG, report, ranks, began, cause=told)
        if cause is None:
            return Outcome("done")
        if cause.asks_for_restart:
            trained = any(beat.trained for beat in beats)
            return Outcome(
                "restart", cause.exit_code, report, (cause.rank,), began, trained=trained
            )
        code = cause.exit_code or next(e.exit_code for e in ends if e.is_failure)
        blamed = () if cause.lost_a_peer else (cause.rank,)
        is_elsewhere = cause.lost_a_peer and not self._sees_all
        told = "" if is_elsewhere else verdict.in_a_line(cause, ends, self._sees_all)
        return Outcome("failed", code, report, blamed, began, cause.comes_again, cause=told)
