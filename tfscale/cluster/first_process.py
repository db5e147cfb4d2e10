"""A command that is the first process of a container, which the kernel spares default signals.

Without a handler such a process would outlive SIGTERM, and be killed when the patience of whoever
stops the container is over.
"""

import os
import signal

_CODE = 143  # asks for a restart, as whoever hears such a signal later


def leave(number: int, frame) -> None:
    """End this process at once; a handler of signals, in the place of the default one."""
    os._exit(_CODE)


def end_at_signals() -> None:
    """Have SIGTERM and SIGUSR1 end the first process until somebody hears them otherwise."""
    if os.getpid() != 1:
        return
    for number in (signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)
