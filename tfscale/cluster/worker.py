"""One worker as its launcher knows it: process, output, pulse, and its end once that has come."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

from tfscale.cluster import local, memory, verdict
from tfscale.cluster.output import WorkerOutput
from tfscale.cluster.pulse import Pulse

END_SECONDS = 5.0  # from SIGTERM to SIGKILL for a worker that did not promise to save


class Worker:
    """A started worker.

    Args:
        rank: its rank in this life.
        process: the process, or a shell around it.
        output: reads what it prints.
        pulse: reads how far it is.
        when_ended: called once it is reaped.
    """

    def __init__(
        self,
        rank: int,
        process: subprocess.Popen,
        output: WorkerOutput,
        pulse: Pulse,
        when_ended: Callable[[], None],
    ):
        self.rank = rank
        self.process = process
        self.output = output
        self.pulse = pulse
        self._when_ended = when_ended
        self._num_kills = memory.read().num_kills
        self.end: verdict.End | None = None
        self.has_ended = False
        self.kill_at = float("inf")
        self.was_asked = self.was_cut_off = False

    def beating_pid(self) -> int:
        """Return the process that beats; the one that was started where none does."""
        pid = self.pulse.read().pid
        try:
            return pid if pid and os.getpgid(pid) == self.process.pid else self.process.pid
        except ProcessLookupError:
            return self.process.pid

    def signal_alone(self, number: int) -> None:
        """Send a signal to the worker and to nothing that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.beating_pid(), number)

    def ask_to_end(self, number: int, grace_seconds: float) -> None:
        """Send a signal, and have SIGKILL follow once the time of grace is over."""
        if number == signal.SIGKILL:
            local.signal_group(self.process, number)
        elif self.pulse.read().saves:
            self.signal_alone(signal.SIGTERM)
        else:
            local.signal_group(self.process, number)
            grace_seconds = min(grace_seconds, END_SECONDS)
        self.was_asked = True
        self.kill_at = min(self.kill_at, time.monotonic() + grace_seconds)

    def cut_off_in_time(self) -> None:
        """Kill it if its time to leave is over."""
        if time.monotonic() >= self.kill_at and not self.has_ended:
            self.was_cut_off = True
            self.ask_to_end(signal.SIGKILL, 0.0)

    def see_failure(self) -> None:
        """Take a worker that has shown its last exception for one that has ended with code 1."""
        if self.end is None and not self.was_asked and self.pulse.read().failed:
            self.output.read_some()
            self.end = self._end_with(1)

    def see_end(self) -> None:
        """Take note of the worker's end."""
        if not local.has_ended(self.process):
            return
        local.reap_group(self.process)
        self._when_ended()
        self.output.drain()
        self.has_ended = True
        if self.end is None or not self.was_asked:
            self.end = self._end_with(self.process.returncode)

    def _end_with(self, code: int) -> verdict.End:
        now = memory.read()
        was_killed = code == -signal.SIGKILL and now.num_kills > self._num_kills
        return verdict.End(
            self.rank,
            code,
            time.monotonic(),
            self.was_asked,
            self.output.last_lines(),
            self.output.log,
            self.pulse.read(),
            self.was_cut_off and code == -signal.SIGKILL,
            now.ran_out() if was_killed else "",
        )
