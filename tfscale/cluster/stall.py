"""Workers that stand still: how long nobody has made a step, and which of them holds all up.

The runtime finds a process that does not answer at all; what it cannot find is one that answers
and does not go on, such as an endless input function. Nothing is ended here.
"""

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


class Quiet:
    """Counts how long no worker has beaten while at least one is in the middle of its work.

    Only time in which this process itself ran is counted, so a machine that was paused with all
    that runs on it is not taken for a hang.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._numbers: list[int] = []
        self._looked = 0.0

    def look(self, beats: Sequence[Beat], now: float) -> float:
        """Take in the last beat of every living worker; return the quiet seconds so far."""
        numbers = [beat.number for beat in beats]
        if numbers != self._numbers or not any(beat.is_watched for beat in beats):
            self._numbers, self.seconds = numbers, 0.0
        else:
            self.seconds += min(now - self._looked, _MOST_A_LOOK_SECONDS)
        self._looked = now
        return self.seconds


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
        return [(worker, "stopped, as by SIGSTOP") for worker in halted]
    mute = [w for w in workers if w.pulse.read().answers and w not in answered]
    if mute:
        return [(worker, "gave no answer") for worker in mute]
    steps = {worker: worker.pulse.read().step for worker in workers if worker.pulse.read().number}
    last = max(steps.values(), default=0)
    behind = [worker for worker, step in steps.items() if step < last]
    if behind:
        return [(worker, f"behind the others, which are at step {last}") for worker in behind]
    places = {worker: _place_in_script(worker.output.last_lines()) for worker in answered}
    inside = [(worker, f"in {place}") for worker, place in places.items() if place]
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
