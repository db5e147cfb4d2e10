"""Signals that ask a process to leave: noted here, acted on by the loop at a step all agree on.

SIGTERM and SIGUSR1 (which Slurm sends with --signal=USR1@60) mean: finish the step, save, leave
with exit code 143, which asks for a restart. Ctrl-C means the same with 130. A second signal
leaves at once. What one worker alone has heard travels to all as a vote in the loop.
"""

import contextlib
import os
import signal
import sys
import threading
import time

from tfscale.cluster import first_process, pulse

ASKS_FOR_RESTART, INTERRUPTED = 143, 130
_CODES = {
    signal.SIGTERM: ASKS_FOR_RESTART,
    signal.SIGUSR1: ASKS_FOR_RESTART,
    signal.SIGINT: INTERRUPTED,
}
_INTERRUPT_VOTE = 2**20  # more than there are workers
_SAME_SECONDS = 1.0  # the launcher hands on what Slurm or a terminal may send to all processes too


class Leaving(SystemExit):
    """Ends a process that has saved what it was asked to."""


class _Heard:
    """What this process has heard, and whether a loop is there to act on it."""

    def __init__(self):
        self.code, self.seconds = 0, 0.0
        self.num_loops, self.before = 0, None


_heard = _Heard()


def listen():
    """From now on, for the rest of this process, let the loop act on signals.

    While no loop runs, a signal ends the process at once with its exit code. Called on the main
    thread, after the strategy is made: TensorFlow catches SIGTERM while it waits for peers.
    """
    if _heard.before is not None:
        return
    _heard.before = {number: signal.signal(number, _hear) for number in _CODES}
    pulse.promise_to_save()


@contextlib.contextmanager
def listening():
    """Inside, `listen`; for a command that a program may call. Nothing on another thread."""
    if _heard.before is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    listen()
    try:
        yield
    finally:
        for number, handler in _heard.before.items():
            signal.signal(number, handler)
        _heard.before, _heard.code = None, 0
        pulse.promise_to_save(False)


@contextlib.contextmanager
def heard_in_loop():
    """Inside, signals wait for the loop to act on them, as votes.

    In a process that does not listen, it does so inside of this, on the main thread alone; a
    signal that somebody else has a handler for is left to that. One that came too late for the
    loop ends the process when the loop is over.

    Raises:
        Leaving: for such a signal.
    """
    own = _heard.before is None and threading.current_thread() is threading.main_thread()
    before = {}
    if own:
        usual = (signal.SIG_DFL, signal.default_int_handler, first_process.leave)
        taken = [number for number in _CODES if signal.getsignal(number) in usual]
        before = {number: signal.signal(number, _hear) for number in taken}
        pulse.promise_to_save()
    _heard.num_loops += 1
    try:
        yield
    finally:
        _heard.num_loops -= 1
        for number, handler in before.items():
            signal.signal(number, handler)
        code = _heard.code
        if own:
            _heard.code = 0
            pulse.promise_to_save(False)
    if code and not _heard.num_loops:
        raise Leaving(code)


def vote():
    """Return what this worker has heard, as a number to be summed over all."""
    return {0: 0, INTERRUPTED: _INTERRUPT_VOTE}.get(_heard.code, 1)


def exit_code(votes):
    """Return the exit code that all workers leave with, from the sum of votes; 0 to stay."""
    return INTERRUPTED if votes >= _INTERRUPT_VOTE else ASKS_FOR_RESTART if votes else 0


def _hear(number, frame):
    code = _CODES[number]
    now = time.monotonic()
    if _heard.code and now - _heard.seconds < _SAME_SECONDS:
        return
    if _heard.code:
        os._exit(code)
    _heard.code, _heard.seconds = code, now
    pulse.told_to_leave()
    if not _heard.num_loops:
        raise Leaving(code)
    text = "tfscale: told to leave: leaves after this step. A second signal: at once.\n"
    with contextlib.suppress(OSError):  # no lock of Python's is needed for this
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())
