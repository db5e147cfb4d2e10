"""Processes that have imported TensorFlow before their trial is known.

Importing takes longer than many a trial trains. So the next process of a slot imports while the
trial before it works, and is given the arguments, the log and the lock of its trial when that is
due. It has the environment and the cores of the slot from the beginning, and is a trial's process
like any other from then on. Run as a module this is that process.
"""

import contextlib
import importlib
import json
import os
import socket
import subprocess
import sys

from tfscale.cluster import local
from tfscale.search import processes

_MOST_HANDLES = 2  # the log and the lock


class Standbys(processes.Starter):
    """Starts the processes of trials, where it can in one that has imported already.

    Args:
        module: what a trial runs, as `python -m MODULE ARGUMENTS`; it has `main(argv)`, and
            `import_ahead()`, which imports what that will need.
    """

    def __init__(self, module):
        super().__init__()
        self._module = module
        self._waiting = {}  # number of a slot -> _Standby

    def prepare(self, slot):
        """Have the next process of a slot begin to import, unless one waits there already."""
        if slot.number not in self._waiting:
            with contextlib.suppress(OSError):  # then its trial starts as the first one did
                self._waiting[slot.number] = _Standby(self, slot, self._module)

    def start(self, command, environ, output, handles, slot):
        """Start a trial's process; arguments and result are those of `processes.Starter`."""
        waiting = self._waiting.pop(slot.number, None)
        if waiting is not None:
            is_for_it = command[:3] == [sys.executable, "-m", self._module]
            if is_for_it and waiting.is_like(slot, environ):
                with contextlib.suppress(OSError):  # it has just died
                    waiting.give(command[3:], (output.fileno(), *handles))
                    return waiting.process, waiting.pulse
            waiting.end()
        return super().start(command, environ, output, handles, slot)

    def close(self):
        """End those that got no trial."""
        while self._waiting:
            self._waiting.popitem()[1].end()


class _Standby:
    """A process that imports, and waits.

    Args:
        starter: the `processes.Starter` that it comes from.
        slot: the `processes.Slot` of its trial.
        module: what that runs.
    """

    def __init__(self, starter, slot, module):
        self._slot, self._environ = slot, starter.environment(slot)
        self._ours, theirs = socket.socketpair()
        with theirs:
            handle = theirs.fileno()
            self.process, self.pulse = processes.Starter.start(
                starter,
                [sys.executable, "-m", __name__, str(handle), module],
                self._environ,
                subprocess.DEVNULL,
                (handle,),
                slot,
            )

    def is_like(self, slot, environ):
        """Return whether it lives, and has the place and the variables that its trial is to get."""
        is_same = (self._slot, self._environ) == (slot, environ)
        return is_same and not local.has_ended(self.process)

    def give(self, argv, handles):
        """Have it run its trial.

        Args:
            argv: the arguments.
            handles: the trial's log, and files that the process is to keep open.

        Raises:
            OSError: if it is gone.
        """
        with self._ours:
            socket.send_fds(self._ours, [b"+"], handles)
            self._ours.sendall(json.dumps(argv).encode())

    def end(self):
        """End it."""
        self._ours.close()
        local.reap_group(self.process)
        self.pulse.close()


def _main(handle, module):
    """Import, wait for a trial, and run it; leave when there will be none."""
    program, failure = importlib.import_module(module), None
    try:
        program.import_ahead()
    except Exception as error:  # its trial has a log for it
        failure = error
    with socket.socket(fileno=handle) as channel:
        data, handles, *_ = socket.recv_fds(channel, 1, _MOST_HANDLES)
        if not data:
            return 0
        with channel.makefile("rb") as rest:
            argv = json.loads(rest.read())
    sys.stdout.flush()
    sys.stderr.flush()
    for number in (1, 2):
        os.dup2(handles[0], number)
    os.close(handles[0])  # the lock stays open
    if failure is not None:
        raise failure
    sys.argv[:] = [program.__file__, *argv]
    return program.main(argv)


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), sys.argv[2]))
