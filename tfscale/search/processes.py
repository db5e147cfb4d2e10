"""A trial's process: its start on some of the cores, its watch and its end.

Nothing of it outlives the search, not even after `kill -9` (`cluster.local`). What it died of is
found out in `ends`.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import signal
import time

from tfscale.cluster import local, pulse, stall
from tfscale.search import ends, trials

_STACKS_SECONDS = 1.0
# What would make a trial part of another job.
_CLUSTER = ("TF_CONFIG", "SLURM_", "TFSCALE_", "KERASTUNER_")
_LOCK = "trial.lock"  # beside the log; the running process holds it
_LOCKED_SECONDS = 300.0  # that a trial waits for an older process of it to end


class TrialProcess:
    """A running trial.

    One process at a time has a trial's folder: while an older one, maybe on another machine, has
    not ended yet, this one waits for it. One that the system does not let start has failed.

    Args:
        command: program and arguments.
        log: file that its output is appended to; its folder must exist.
        guard: the `local.Guard` of the search.
        environ: variables beside those of this process.
        slot: the `Slot` that it and what it starts may use.
        hang_timeout_seconds: how long it may stand still in the middle of its work; 0 for ever,
            and for a launcher, which watches its workers itself.
        starter: the `Starter` of the search; one of its own by default.
    """

    lost = ""  # a trial here is never lost with its machine

    def __init__(
        self,
        command,
        log,
        guard,
        environ=None,
        slot=None,
        hang_timeout_seconds=0.0,
        starter=None,
    ):
        self.log = pathlib.Path(log)
        self.began = time.monotonic()
        self.pulse = self.process = None
        self._starter = starter or Starter()
        self._guard, self._slot, self._command = guard, slot or Slot(0), list(command)
        self._kill_at, self._hung, self._is_over = float("inf"), "", False
        self._refused = None  # the error with which the system did not let it start
        self._watch = stall.Watch(hang_timeout_seconds, hang_timeout_seconds)
        self._environ, self._log_began = environ or {}, 0
        self._oom_kills = ends.oom_kills()
        self._start()

    def _start(self):
        """Start the process, unless another one has the folder."""
        try:
            with contextlib.ExitStack() as stack:
                lock = _locked(self.log.with_name(_LOCK), stack)
                if lock is not None:
                    self._start_with(lock)
        except OSError as error:  # a folder that has gone, a disk that is full
            self._refused = error

    def _start_with(self, lock):
        environ = self._starter.environment(self._slot) | self._environ
        with open(self.log, "ab") as output:
            self._log_began = output.tell()
            self.process, self.pulse = self._starter.start(
                self._command, environ, output, lock, self._slot
            )
        self._guard.watch(self.process)

    @property
    def seconds(self):
        """How long it has run."""
        return time.monotonic() - self.began

    def has_ended(self):
        """Look at the process: end it if it hangs or its time to leave is over; say if it is over.

        When it is, nothing that it started in its group is left.
        """
        if self.process is None:
            return self._has_waited_in_vain()
        if not local.has_ended(self.process):
            now = time.monotonic()
            hang = None if self._hung else self._watch.look([self], now)
            if hang:
                self._end_hung(hang)
            elif now >= self._kill_at:
                local.signal_group(self.process, signal.SIGKILL)
            return False
        self._reap()
        return True

    def stop(self, grace_seconds):
        """Ask it to save and leave; SIGKILL follows after the time of grace."""
        if self.process is None:
            self._kill_at = 0.0
        elif self._kill_at == float("inf") and not local.has_ended(self.process):
            self._kill_at = time.monotonic() + grace_seconds
            os.kill(self.process.pid, signal.SIGTERM)  # not reaped yet, so it is still this one

    def kill(self):
        """End it at once."""
        self._kill_at = 0.0
        self._reap()

    def end(self, diverged):
        """Return how it ended, as an `ends.End`.

        Args:
            diverged: what the run said of numbers that were not finite; "" for nothing.
        """
        if self.process is None:
            if self._refused is not None:
                return ends.of_refused(self._refused)
            return ends.End(trials.FAILED, "another process had its folder until now", True)
        if self._hung:
            return ends.End(trials.HUNG, self._hung, True)
        code = self.process.returncode
        return ends.of_process(
            128 - code if code < 0 else code,
            self._last_lines(),
            self.log.parent,
            diverged,
            ends.oom_kills() > self._oom_kills,
        )

    def beating_pid(self):
        """Return the process whose pulse is seen; `stall` asks for it."""
        return self.pulse.read().pid or self.process.pid

    def _has_waited_in_vain(self):
        """Start if the folder is free by now; give up when told to, or after a long time."""
        may_wait = self._kill_at == float("inf") and self.seconds < _LOCKED_SECONDS
        if may_wait and not self._refused:
            self._start()
            return False
        self._reap()
        return True

    def _end_hung(self, hang):
        """Have it write its stacks into its log, and kill it."""
        beat = self.pulse.read()
        stopped = bool(stall.stopped([self]))
        self._hung = (
            "stopped, as by SIGSTOP" if stopped else f"stood still{beat.place()}.{hang.text}"
        )
        if beat.answers and not stopped:
            os.kill(beat.pid, pulse.STACKS_SIGNAL)
            time.sleep(_STACKS_SECONDS)
        local.signal_group(self.process, signal.SIGKILL)

    def _reap(self):
        if self._is_over:
            return
        self._is_over = True
        if self.process is not None:
            local.reap_group(self.process)
            self._guard.release(self.process)
            self.pulse.close()

    def _last_lines(self):
        """The end of what this process, not one before it, has written."""
        with open(self.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_began, size - 2**16))
            return file.read().decode(errors="replace").splitlines()[-200:]


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a trial runs: its share of the machine.

    Args:
        number: from 0.
        cores: those that it may use; None for all.
        gpus: CUDA_VISIBLE_DEVICES of it; None for as it is.
    """

    number: int
    cores: frozenset | None = None
    gpus: str | None = None


class Starter:
    """Starts trials' processes, with the variables that this process has when the object is made.

    Libraries that are imported later may add some.
    """

    def __init__(self):
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith(_CLUSTER)}
        self._environ["PYTHONUNBUFFERED"] = "1"

    def environment(self, slot):
        """Return the variables of a trial's process in a slot."""
        gpus = {} if slot.gpus is None else {"CUDA_VISIBLE_DEVICES": slot.gpus}
        return self._environ | gpus

    def prepare(self, slot):
        """Called when a trial has begun in a slot, and another one will follow there."""

    def start(self, command, environ, output, handles, slot):
        """Start a process on the cores of a slot.

        Args:
            command: program and arguments.
            environ: its variables.
            output: the file that it writes into.
            handles: open files that it inherits.
            slot: a `Slot`.

        Returns:
            A `(subprocess.Popen, pulse.Pulse)` pair.

        Raises:
            OSError: if the system does not let it start.
        """
        own_pulse, before = pulse.Pulse(), os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, slot.cores or before)  # inherited by the process
            process = local.start_worker(
                command,
                environ | {pulse.VARIABLE: own_pulse.variable},
                output,
                pass_handles=(own_pulse.handle, *handles),
            )
        except OSError:
            own_pulse.close()
            raise
        finally:
            os.sched_setaffinity(0, before)
        return process, own_pulse

    def close(self):
        """End what was prepared and is not needed."""


def slots(num_slots, num_gpus=0, cores=None):
    """Divide this machine among the trials that run at once.

    Args:
        num_slots: trials at once.
        num_gpus: GPUs of this machine.
        cores: the cores there are; by default those that this process may use.

    Returns:
        A list of `Slot`. Cores and GPUs are disjoint, and as many as differ by one at most; with
        more trials than cores all have all of them, with more trials than GPUs they take turns.
    """
    cores = sorted(os.sched_getaffinity(0) if cores is None else cores)
    shares = [None] * num_slots
    if 1 < num_slots <= len(cores):
        shares = [frozenset(share) for share in _cut(cores, num_slots)]
    gpus = [None] * num_slots
    if num_slots > 1 and num_gpus:
        there = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        there = there if there != [""] else [str(i) for i in range(num_gpus)]
        cut = _cut(there, num_slots) if num_gpus >= num_slots else None
        gpus = [",".join(cut[i]) if cut else there[i % num_gpus] for i in range(num_slots)]
    return [Slot(i, shares[i], gpus[i]) for i in range(num_slots)]


def _locked(path, stack):
    """Lock a file for the process that inherits it.

    Returns:
        Its handle in a tuple, which `stack` closes here; an empty one where the file system has no
        locks; None while another process has it.
    """
    file = stack.enter_context(open(path, "ab"))  # noqa: SIM115  (it enters)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:
        return ()
    return (file.fileno(),)


def _cut(things, num_parts):
    bounds = [len(things) * i // num_parts for i in range(num_parts + 1)]
    return [things[begin:end] for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
