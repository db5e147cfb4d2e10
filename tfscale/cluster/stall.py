"""Workers that stand still: for how long, whether that is too long, and who holds all up.

The runtime finds a process that does not answer at all; what it cannot find is one that answers
and does not go on, such as an endless input function. Nothing is ended here.
"""

import dataclasses
import os
import re
import site
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tfscale.cluster import local
from tfscale.cluster.pulse import STACKS_SIGNAL, Beat

_MOST_A_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 3.0
# How long a stopped worker may stand still where its peers are on other machines: TensorFlow's
# heartbeat takes 10 to find it there, and nobody else can tell this launcher.
_STOPPED_SECONDS = 15.0
_STOPPED_AT_START_SECONDS = 5.0  # before the heartbeat begins
_IMPORT_SECONDS = 60.0  # beside the time to meet: until TensorFlow is there, on a slow disk
_LEFT_SECONDS = 60.0  # how long others may wait for one whose script has ended
STOPPED = "hangs: stopped, as by SIGSTOP"
ABSENT = "hangs: it has not come as far as meeting the others"
_LAST_LINE_SECONDS = 0.2  # after the first lines of an answer, how long others may follow
_FRAME = re.compile(r'\s*File "(.+)", line (\d+) in (.+)')
_PACKAGES = tuple(
    f"{folder}{os.sep}"
    for folder in (
        *site.getsitepackages(),
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
        Path(__file__).parents[1],
    )
)


class Still:
    """Counts how long something has stayed as it is, while that matters.

    Only time in which this process itself ran is counted, so a machine that was paused with all
    that runs on it is not taken for a hang.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._state: object = self  # like nothing that is looked at
        self._looked = 0.0

    def look_at(self, state: object, matters: bool, now: float) -> float:
        """Take in what is now; return the seconds so far."""
        if state != self._state or not matters:
            self._state, self.seconds = state, 0.0
        else:
            self.seconds += min(now - self._looked, _MOST_A_LOOK_SECONDS)
        self._looked = now
        return self.seconds


class Quiet(Still):
    """Counts how long no worker has beaten while at least one is in the middle of its work."""

    def look(self, beats: Sequence[Beat], now: float) -> float:
        """Take in the last beat of every living worker; return the quiet seconds so far."""
        is_watched = any(beat.is_watched for beat in beats)
        return self.look_at([beat.number for beat in beats], is_watched, now)


@dataclasses.dataclass(frozen=True)
class Hang:
    """That workers have stood still for too long.

    Args:
        found: pairs of a worker that holds up the others and the sign of it; None where `who` is
            to find out.
        text: what has happened, as a sentence with a space in front; "" for no more to say.
    """

    found: list[tuple] | None = None
    text: str = ""


class Watch:
    """Looks at all living workers of a life for such that have stood still for too long.

    Args:
        hang_timeout_seconds: how long no worker may beat while one is watched; 0 for no bound.
        start_timeout_seconds: how long workers wait for each other; 0 where nobody bounds it.
        peers_give_up: whether there are workers of other launchers, which lose one that is
            stopped here.
    """

    def __init__(
        self,
        hang_timeout_seconds: float = 0.0,
        start_timeout_seconds: float = 0.0,
        peers_give_up: bool = False,
    ):
        self._hang_seconds = hang_timeout_seconds
        self._start_seconds = start_timeout_seconds
        self._peers_give_up = peers_give_up
        self.quiet = Quiet()
        self._left, self._absent, self._halted = Still(), Still(), Still()

    def look(self, workers: Sequence, now: float) -> Hang | None:
        """Return who stands still for too long; None where nobody does."""
        beats = [worker.pulse.read() for worker in workers]
        quiet = self.quiet.look(beats, now)
        hang = self._look_for_left(workers, beats, now) or self._look_at_start(workers, beats, now)
        if hang:
            return hang
        if 0 < self._hang_seconds <= quiet:
            return Hang(text=f" No worker made a step for {quiet:.0f} s.")
        if self._peers_give_up and quiet >= _STOPPED_SECONDS and stopped(workers):
            return Hang()
        return None

    def _look_for_left(self, workers, beats, now) -> Hang | None:
        """Find those whose scripts have ended while others need them for what they have begun."""
        done = [worker for worker, b in zip(workers, beats, strict=True) if b.phase == "done"]
        is_needed = any(beat.is_watched and not beat.alone for beat in beats)
        waited = self._left.look_at([b.number for b in beats], bool(done) and is_needed, now)
        if waited < min(_LEFT_SECONDS, self._hang_seconds or _LEFT_SECONDS):
            return None
        sign = "left too early: its script has ended"
        return Hang(
            [(worker, sign) for worker in done], f" Others have waited for it for {waited:.0f} s."
        )

    def _look_at_start(self, workers, beats, now) -> Hang | None:
        """Find those that were stopped before the heartbeat begins, and those that never come."""
        pairs = list(zip(workers, beats, strict=True))
        halted = stopped([worker for worker, beat in pairs if beat.phase in ("", "start", "meet")])
        ranks = [worker.rank for worker in halted]
        if self._halted.look_at(ranks, bool(halted), now) >= _STOPPED_AT_START_SECONDS:
            return Hang([(worker, STOPPED) for worker in halted])
        missing = [worker for worker, beat in pairs if not beat.has_come]
        waited = self._absent.look_at(None, bool(missing), now)
        if 0 < self._start_seconds <= waited - _IMPORT_SECONDS:
            return Hang(
                [(worker, ABSENT) for worker in missing],
                f" It was started {waited:.0f} s ago; --start_timeout_seconds bounds that.",
            )
        return None


def stopped(workers: Sequence) -> list:
    """Return the workers that a signal or a debugger has stopped."""
    return [worker for worker in workers if local.state_of(worker.beating_pid()) in ("T", "t")]


def write_stacks(workers: Sequence, read_output: Callable[[float], None]) -> list:
    """Let every worker that can write the stacks of all its threads into its log.

    Args:
        workers: those that live, with `output`, `pulse` and `signal_alone`.
        read_output: reads what the workers write, for at most so many seconds.

    Returns:
        The workers that answered.
    """
    halted = stopped(workers)
    before = {}
    for worker in workers:
        if worker.pulse.read().answers and worker not in halted:
            before[worker] = worker.output.num_stacks
            worker.signal_alone(STACKS_SIGNAL)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        silent = [worker for worker, number in before.items() if worker.output.num_stacks == number]
        if not silent:
            deadline = min(deadline, time.monotonic() + _LAST_LINE_SECONDS)
        read_output(0.05)
    return [worker for worker, number in before.items() if worker.output.num_stacks > number]


def who(workers: Sequence, answered: Sequence) -> list[tuple]:
    """Return the workers that hold up the others, each with the sign of it.

    Args:
        workers: those that live.
        answered: those of them that have just written their stacks.

    Returns:
        Pairs of a worker and a text: those that are stopped, or else do not answer, or are a step
        behind, or are the only ones in code of the script; empty where nothing tells.
    """
    halted = stopped(workers)
    if halted:
        return [(worker, STOPPED) for worker in halted]
    mute = [w for w in workers if w.pulse.read().answers and w not in answered]
    if mute:
        return [(worker, "hangs: gave no answer") for worker in mute]
    steps = {worker: worker.pulse.read().step for worker in workers if worker.pulse.read().number}
    last = max(steps.values(), default=0)
    behind = [worker for worker, step in steps.items() if step < last]
    if behind:
        return [
            (worker, f"hangs: behind the others, which are at step {last}") for worker in behind
        ]
    places = {worker: _place_in_script(worker.output.last_lines()) for worker in answered}
    inside = [(worker, f"hangs: in {place}") for worker, place in places.items() if place]
    return inside if len(inside) < len(workers) else []


def _place_in_script(lines: Sequence[str]) -> str:
    """Return where a thread stands in code that belongs to no package, from the stacks shown."""
    for before, line in zip(lines, lines[1:], strict=False):
        frame = _FRAME.match(line)
        if frame is None or not before.endswith("(most recent call first):"):
            continue
        if not frame[1].startswith(("<", *_PACKAGES)):
            return f"{frame[3]}, line {frame[2]} of {frame[1]}"
    return ""
