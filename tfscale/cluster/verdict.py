"""Which of several failed workers failed by itself, and what a report says about it.

When a worker vanishes, its peers fail within milliseconds to seconds because they lost it. The
cause is told from the consequences by what each process says at its end: a signal from outside
and an exception of its own weigh more than "my peer is gone", whichever was seen first.
"""

import dataclasses
import re
import signal
from pathlib import Path

from tfscale.cluster.pulse import Beat

ASKS_FOR_RESTART = 143
_TRACEBACK = "Traceback (most recent call last):"
# What TensorFlow and sockets say when the other end is gone.
_PEER_IS_GONE = re.compile(
    r"UnavailableError|UNAVAILABLE|ABORTED|AbortedError|[Cc]oordination ?[Ss]ervice|[Hh]eartbeat"
    r"|Connection (reset|refused|aborted|closed)|Broken ?pipe|BrokenPipe|Socket closed"
    r"|ConnectionResetError|ConnectionRefusedError|EOFError|Collective ops is aborted"
    r"|workers must meet within|Start the missing workers with the same addresses"
)
_MISSED = re.compile(r"Start the missing workers with the same addresses")  # of `rendezvous`
_REFUSED = 2  # exit code for what cannot be run as it was typed
_REFUSED_AGAIN = "the same checkpoint would be refused again"
# Errors that another life would end with as well, and why. The first two are of a disk that takes
# no checkpoint, as `saver` and the command line say it, the third is of `health`, the others are of
# `state` and `callback_state`.
_COMES_AGAIN = (
    (re.compile(r"could not write the checkpoint"), "it would fail again at its next checkpoint"),
    (re.compile(r"The disk must have room for"), "it would fail again at its next checkpoint"),
    (re.compile(r"The loss of a step must be"), "the same steps would give the same loss again"),
    (re.compile(r"A checkpoint must be of the same model"), _REFUSED_AGAIN),
    (re.compile(r"A run must go on with the callbacks"), _REFUSED_AGAIN),
)
# Of the errors with which a command ends as if it had been refused, those of one life only: of
# `health`, and of `ports`, where the next life has other ports.
_MAY_NOT_COME_AGAIN = re.compile(
    r"Weights, optimizer and seeds must be the same bits"
    r"|must be able to listen on the port of its own address"
)
_NUM_SHOWN = 10
_SAME_SECONDS = 0.2  # ends so close may have been seen in the other order


@dataclasses.dataclass(frozen=True)
class End:
    """How one worker ended.

    Args:
        rank: its rank in this life.
        code: exit code; -n for signal n.
        seconds: when it was seen, on the clock of `time.monotonic`.
        was_asked: whether the launcher had sent it a signal before.
        lines: the last lines it wrote, oldest first.
        log: the file with all of them, or `None`.
        beat: its last beat.
        was_cut_off: whether the launcher killed it because its time to leave was over.
        ran_out: how memory ran out, where the kernel killed for want of it meanwhile; else "".
    """

    rank: int
    code: int
    seconds: float
    was_asked: bool
    lines: tuple[str, ...]
    log: Path | None
    beat: Beat
    was_cut_off: bool = False
    ran_out: str = ""

    @property
    def exit_code(self) -> int:
        """The code as a shell has it: 128+n for signal n."""
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def asks_for_restart(self) -> bool:
        """Whether it left because somebody else than the launcher sent it SIGTERM."""
        return not self.was_asked and self.exit_code == ASKS_FOR_RESTART

    @property
    def is_failure(self) -> bool:
        """Whether it failed without being asked to end."""
        return not self.was_asked and self.exit_code not in (0, ASKS_FOR_RESTART)

    @property
    def lost_a_peer(self) -> bool:
        """Whether it says that it failed because another worker was gone."""
        return self.is_failure and self._says_a_peer_is_gone()

    @property
    def missed_a_peer(self) -> bool:
        """Whether it says that another worker did not come in time."""
        return self.lost_a_peer and any(_MISSED.search(line) for line in self.lines[-_NUM_SHOWN:])

    def _says_a_peer_is_gone(self) -> bool:
        if self.code not in (1, -signal.SIGABRT):
            return False
        error = self._error_lines()
        said = error if error and self.code == 1 else self.lines[-_NUM_SHOWN:]
        return any(_PEER_IS_GONE.search(line) for line in said)

    @property
    def comes_again(self) -> str:
        """Why another life would fail as this one did; "" where it may not."""
        if self.code not in (1, _REFUSED):
            return ""
        said = self._error_lines() or self.lines[-_NUM_SHOWN:]
        for words, why in _COMES_AGAIN:
            if any(words.search(line) for line in said):
                return why
        if self.code == _REFUSED and not any(_MAY_NOT_COME_AGAIN.search(line) for line in said):
            return "what it was given cannot be run, as exit code 2 says"
        return ""

    def reason(self) -> str:
        """Return the signal or exit code, the exception if there was one, and the step."""
        if self.code < 0:
            name = signal.Signals(-self.code).name
            reason = f"signal {name}"
            if self.was_cut_off:
                reason += " after --grace_seconds, before it had left by itself"
            elif self.code == -signal.SIGKILL:
                reason += f" ({self.ran_out or 'from outside, or memory ran out'})"
        else:
            reason = f"exit code {self.code}"
        error = self._error_lines()
        if error and self.code == 1:
            reason += f", {_message(error).removesuffix('.')}"
        return reason + self.beat.place()

    def _error_lines(self) -> tuple[str, ...]:
        """Return the last exception that Python showed, without its frames."""
        starts = [i for i, line in enumerate(self.lines) if line.startswith(_TRACEBACK)]
        if not starts:
            return ()
        after = self.lines[starts[-1] + 1 :]
        first = next((i for i, line in enumerate(after) if not line.startswith(" ")), len(after))
        return after[first:]


def _message(error: tuple[str, ...]) -> str:
    """The first line of an exception; of one from a graph what went wrong there."""
    head, graph = error[0], " Graph execution error:"
    if not head.endswith(graph):
        return head
    # Frames come first, then a blank line, what went wrong in some lines, and the node.
    node = next((i for i, line in enumerate(error) if "[[{{node" in line), 0)
    begins = max((i for i in range(1, node) if not error[i].strip()), default=node)
    said = error[begins + 1 : node]
    return f"{head.removesuffix(graph)} {said[0].strip()}" if said else head


def cause(ends: list[End]) -> End | None:
    """Return the end that made the others fail, or `None` where nobody failed.

    Args:
        ends: of one life, in the order in which they were seen.

    Returns:
        In this order: the first death by a signal, the first other failure of a worker's own; a
        request for a restart, of a worker that a signal has told if that is known; a worker that
        left with 0 before its peers lost it; the first of those that lost a peer.
    """
    failures = [end for end in ends if end.is_failure]
    own = [end for end in failures if not end.lost_a_peer]
    by_signal = [end for end in own if end.code < 0]
    requests = [end for end in ends if end.asks_for_restart]
    requests = [end for end in requests if end.beat.told] or requests
    left = [
        end
        for end in ends
        if end.code == 0 and not end.was_asked and end.seconds < _first(failures) + _SAME_SECONDS
    ]
    for group in (by_signal, own, requests, left if failures else [], failures):
        if group:
            return group[0]
    return None


def report(end: End, ends: list[End], sees_all: bool = True) -> str:
    """Return what a user is told about the cause of a failure: who, where, why, the last lines.

    Args:
        end: the cause, of `cause`.
        ends: all ends of that life.
        sees_all: whether these are all workers; where other launchers have others, the cause
            may be there.
    """
    told = f"tfscale: {in_a_line(end, ends, sees_all)}"
    if end.asks_for_restart:
        return f"{told}."
    where = f"; all of it: {end.log}" if end.log else ""
    lines = "".join(f"\n    {line}" for line in end.lines[-_NUM_SHOWN:]) or " none"
    whose = f"The last lines of worker {end.rank}" if end.code == 0 else "Its last lines"
    return f"{told}{where}. {whose}:{lines}"


def in_a_line(end: End, ends: list[End], sees_all: bool = True) -> str:
    """Return the beginning of a `report`: who, where and why, without the last lines."""
    who = f"worker {end.rank}"
    if end.code == 0:
        after = next(other for other in ends if other.is_failure)
        return (
            f"{who} left too early: exit code 0{end.beat.place()}, while the others went on and "
            f"lost it. Worker {after.rank} then failed: {after.reason()}"
        )
    if end.asks_for_restart:
        return f"{who} was asked to leave and did{end.beat.place()}"
    if sees_all:
        return f"{who} failed first: {end.reason()}"
    if end.lost_a_peer:
        why = "the cause is in another node's log"
        return f"{who} lost a peer, or did not meet it; {why}: {end.reason()}"
    return f"{who} failed: {end.reason()}"


def failed_to_leave(ends: list[End], at_once: bool) -> End | None:
    """Return the first worker that did not leave as it should when all were asked to.

    Args:
        ends: of one life, in the order in which they were seen.
        at_once: whether a second signal ended them all.

    Returns:
        The end; where there are several, one that did not just lose another. None where all
        left well, or had not promised to save and were killed or lost another.
    """
    well = (0, ASKS_FOR_RESTART, 128 + signal.SIGINT, *([128 + signal.SIGKILL] if at_once else []))
    wrong = [end for end in ends if end.exit_code not in well]
    lost = [end for end in wrong if end._says_a_peer_is_gone()]
    own = [end for end in wrong if end not in lost and not (end.was_cut_off and not end.beat.saves)]
    return next(iter(own + [end for end in lost if end.beat.saves]), None)


def report_of_leaving(end: End) -> str:
    """Return what a user is told about a worker that did not leave as it should."""
    where = f"; all of it: {end.log}" if end.log else ""
    lines = "".join(f"\n    {line}" for line in end.lines[-_NUM_SHOWN:]) or " none"
    return (
        f"tfscale: worker {end.rank} did not leave as it should: {end.reason()}{where}. "
        f"Its last lines:{lines}"
    )


def _first(failures: list[End]) -> float:
    return min((end.seconds for end in failures), default=0.0)
