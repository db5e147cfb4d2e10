"""A worker's pulse: how far it is and what it is doing, written where its launcher can see it.

The launcher makes a `Pulse` a worker; the worker inherits its memory through the file that
TFSCALE_PULSE names, and `beat` writes into it. A beat costs about a microsecond and no system
call. In a process that no launcher started, or whose launcher watches nothing, nothing happens.
"""

import contextlib
import dataclasses
import faulthandler
import mmap
import os
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "TFSCALE_PULSE"
STACKS_SIGNAL = signal.SIGUSR2
RESTING = ("start", "meet", "idle", "done")  # phases in which no progress is expected
_NO_TRAINING = (*RESTING, "begin", "evaluate", "predict", "save")  # in which no step is taken

# Number of the record, beats, process, flags, step, epoch, time, phase, and the number again:
# where both numbers agree, all between them was written together.
_RECORD = struct.Struct("=QQqQqqd16sQ")
_ANSWERS, _SAVES, _FAILED, _TOLD, _ALONE, _LET_GO, _TRAINED = 1, 2, 4, 8, 16, 32, 64


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a worker last said of itself.

    Args:
        number: beats so far; 0 where there was none.
        pid: the process that beats; 0 before `begin`.
        answers: whether it writes its stacks when it gets `STACKS_SIGNAL`.
        saves: whether it saves and leaves when it gets SIGTERM.
        failed: whether it has shown an exception that nothing caught, and is about to end.
        step: updates of the weights so far; -1 before the first beat with one.
        epoch: the epoch under way, from 0; -1 where it was not said.
        seconds: when, on the clock of `time.monotonic`.
        phase: "start", "meet", "begin", "train", "evaluate", "predict", "save", "idle", "done",
            or a word of the script's own.
        told: whether a signal has told it to leave; the others leave with it.
        alone: whether what it does needs no other worker.
        let_go: whether an exception has ended its work, and it has not begun any since.
        trained: whether it has taken a step of training in this life.
    """

    number: int
    pid: int
    answers: bool
    saves: bool
    failed: bool
    step: int
    epoch: int
    seconds: float
    phase: str
    told: bool = False
    alone: bool = False
    let_go: bool = False
    trained: bool = False

    @property
    def is_watched(self) -> bool:
        """Whether the worker said that it is in the middle of work that goes on step by step."""
        return self.number > 0 and self.phase not in RESTING and not self.let_go

    @property
    def has_begun(self) -> bool:
        """Whether the worker has come farther than to the beginning of its first work."""
        return self.step > 0 or (self.number > 0 and self.phase not in (*RESTING, "begin"))

    @property
    def has_come(self) -> bool:
        """Whether the worker has come as far as to meeting the others."""
        return self.number > 0

    def place(self) -> str:
        """Return where the worker was, as a report says it; "" where it never said."""
        if not self.number:
            return ""
        if self.step < 0:
            return "" if self.phase == "start" else f" in phase {self.phase}"
        epoch = f", epoch {self.epoch + 1}" if self.epoch >= 0 else ""
        return f" at step {self.step} ({self.phase}{epoch})"


class Pulse:
    """The launcher's end: memory for one worker's beats. It has no name in any folder."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.handle = os.memfd_create("tfscale-pulse")
        else:
            with tempfile.TemporaryFile() as file:
                self.handle = os.dup(file.fileno())
        os.write(self.handle, bytes(_RECORD.size))  # a page that cannot be missing later
        self._memory = mmap.mmap(self.handle, _RECORD.size)
        found = os.fstat(self.handle)
        self.variable = f"{self.handle}:{found.st_dev}:{found.st_ino}"

    def read(self) -> Beat:
        """Return the last beat."""
        return _unpack(self._memory)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self.handle)


def look(handles: Path, variable: str) -> Beat | None:
    """Return the last beat of another process, given by its open files; None if it has no pulse.

    Args:
        handles: its folder `/proc/PID/fd`.
        variable: what its environment says in `VARIABLE`.
    """
    number, _, rest = variable.partition(":")
    with contextlib.suppress(OSError, ValueError), open(handles / number, "rb") as file:
        found = os.fstat(file.fileno())
        if rest == f"{found.st_dev}:{found.st_ino}":
            with mmap.mmap(file.fileno(), _RECORD.size, prot=mmap.PROT_READ) as memory:
                return _unpack(memory)
    return None


def _unpack(memory: mmap.mmap) -> Beat:
    for _ in range(100):
        first, number, pid, flags, step, epoch, at, phase, last = _RECORD.unpack(memory)
        if first == last:
            break
    name = phase.rstrip(b"\0").decode("ascii", "replace")
    answers, saves, failed, *others = (
        bool(flags & flag) for flag in (_ANSWERS, _SAVES, _FAILED, _TOLD, _ALONE, _LET_GO, _TRAINED)
    )
    step = step if number else -1
    return Beat(number, pid, answers, saves, failed, step, epoch, at, name, *others)


class _Own:
    """What this process, as a worker, said last."""

    def __init__(self) -> None:
        self.memory: mmap.mmap | None = None
        self.pid = self.records = self.number = self.flags = 0
        self.step = self.epoch = -1
        self.phase = b"start"


_own = _Own()


def begin() -> None:
    """Let the launcher see this worker, and let it ask for the stacks of all threads.

    A worker calls this early, on its main thread. From then on the signal `STACKS_SIGNAL` writes
    them to standard error, also while Python waits in C++, unless the script has a handler of
    its own for that signal; and the launcher learns of an exception when it is shown, and not
    when TensorFlow's shutdown has waited for lost peers. Calling it again does nothing.
    """
    if _own.memory is not None:
        return
    handle = _inherited_handle(os.environ.get(VARIABLE, ""))
    if handle is None:
        return
    _own.memory, _own.pid = mmap.mmap(handle, _RECORD.size), os.getpid()
    os.register_at_fork(after_in_child=_forget)
    if signal.getsignal(STACKS_SIGNAL) == signal.SIG_DFL:
        faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)
        _own.flags |= _ANSWERS
    show = sys.excepthook

    def show_and_tell(*error):
        show(*error)
        sys.stderr.flush()
        _own.flags &= ~_LET_GO  # nothing has caught it, so this process must come to its end
        _set_flag(_FAILED | _ALONE, True)

    sys.excepthook = show_and_tell
    _write()


def beat(step: int, phase: str = "train", epoch: int = -1, alone: bool = False) -> None:
    """Say that this worker is alive and how far it is.

    The launcher's `--hang_timeout_seconds` begins anew with every beat. In the phases "start",
    which begins a process, "meet", in which it waits for the others to come, "idle", in which a
    script does other things, and "done", in which it waits for them to end, nothing is expected
    of a worker.

    Args:
        step: updates of the weights so far.
        phase: "begin", "train", "evaluate", "predict", "save" or "idle", or a word of the
            script's own of at most 16 ASCII letters.
        epoch: the epoch under way, from 0; -1 for none.
        alone: whether it begins work that needs no other worker, which then may end before it;
            so until the next "begin", or phase in which nothing is expected.
    """
    if _own.memory is None:
        return
    _own.number += 1
    _own.step, _own.epoch, _own.phase = step, epoch, phase.encode("ascii", "replace")
    _own.flags &= ~_LET_GO
    if alone:
        _own.flags |= _ALONE
    elif phase in (*RESTING, "begin"):
        _own.flags &= ~_ALONE
    if phase not in _NO_TRAINING:
        _own.flags |= _TRAINED
    _write()


@contextlib.contextmanager
def letting_go() -> Iterator[None]:
    """Inside is work that an exception may end, which a script may catch to do other things.

    From then to the next beat nothing is expected of this worker. After one that asks to leave,
    such as SystemExit, its end is, but no other worker is missed by it. Step and phase stay, for
    a report.
    """
    try:
        yield
    except BaseException as error:
        _set_flag(_LET_GO if isinstance(error, Exception) else _ALONE, True)
        raise


def beat_done() -> None:
    """Say that this worker's script has ended well, and that it waits for the others."""
    beat(_own.step, "done", _own.epoch)


def promise_to_save(saves: bool = True) -> None:
    """Say whether this worker, at SIGTERM, saves and leaves by itself.

    The launcher gives it `--grace_seconds` then; a worker that has not promised anything gets 5
    seconds at most. What it has started itself is left alone meanwhile.

    Args:
        saves: True from when the handler is set, False when it is no longer.
    """
    _set_flag(_SAVES, saves)


def told_to_leave() -> None:
    """Say that a signal has told this worker to leave, so that it is named and no other."""
    _set_flag(_TOLD, True)


def life() -> int:
    """Return which start of this run's workers this is: 1, and 2 after the first restart."""
    return int(os.environ.get("TFSCALE_LIFE", "1"))


def _set_flag(flag: int, value: bool) -> None:
    if _own.memory is not None:
        _own.flags = _own.flags | flag if value else _own.flags & ~flag
        _write()


def _forget() -> None:
    """A fork of the worker is not the worker."""
    _own.memory = None


def _write() -> None:
    own = _own
    assert own.memory is not None
    own.records += 1
    _RECORD.pack_into(
        own.memory,
        0,
        own.records,
        own.number,
        own.pid,
        own.flags,
        own.step,
        own.epoch,
        time.monotonic(),
        own.phase,
        own.records,
    )


def _inherited_handle(text: str) -> int | None:
    """Return the file that the launcher gave to this process; None if another has its number."""
    try:
        handle, device, inode = map(int, text.split(":"))
    except ValueError:
        return None
    with contextlib.suppress(OSError):
        found = os.fstat(handle)
        if (found.st_dev, found.st_ino) == (device, inode):
            return handle
    return None
