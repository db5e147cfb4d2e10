"""SIGTERM and SIGINT, to a process that leads a search or has joined one: leave in order."""

import contextlib
import signal
import threading


class ToldToLeave(Exception):
    """SIGTERM or SIGINT has come; `code` is what the process is to exit with."""

    def __init__(self, number):
        super().__init__(f"signal {number}")
        self.code = 130 if number == signal.SIGINT else 143


@contextlib.contextmanager
def noted_signals(told):
    """As a context: the first SIGTERM or SIGINT is noted in `told`; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number, _):
        signal.signal(number, signal.SIG_DFL)
        told.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
