"""How a trial's process ended, and what it died of: from its exit code and its last lines.

What follows from an end is decided in `loop`.
"""

import dataclasses
import errno
import pathlib
import re
import signal
import tempfile

from tfscale.search import trials

HUNG_CODE = 124  # of a launcher whose workers hung
_NO_MEMORY = re.compile(r"MemoryError|RESOURCE_EXHAUSTED|ResourceExhaustedError|bad_alloc")
_ERROR = re.compile(r"^(?:\[\d+\] )?(error: .+|[\w.]*(?:Error|Exception)\b.*|\w*Interrupt)$")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_ROOM = re.compile(
    rf"\[Errno (?:{errno.ENOSPC}|{errno.EDQUOT})\]|No space left on device|Disk quota exceeded"
)
# What stands around the reason in the words of `command_line` and of Python.
_AROUND = re.compile(
    r"^(?:error: The disk must have room .*?Received: |OSError: )?\[Errno \d+\] "
    r"|\. What was written whole stays.*$"
)
_PROBE_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class End:
    """How a process ended.

    Args:
        state: one of `trials.STATES`.
        reason: in words; "" for one that went well.
        may_come_right: whether another start may go better.
        needs_room: whether the disk had no room: no trial can go on before there is some.
    """

    state: str
    reason: str = ""
    may_come_right: bool = False
    needs_room: bool = False


def has_no_room(error):
    """Return whether an `OSError` says that a disk, or somebody's share of it, is full."""
    return error.errno in _FULL


def of_refused(error):
    """Return the `End` of a process that the system did not let start, with an `OSError`."""
    return End(trials.FAILED, str(error), True, has_no_room(error))


def of_process(code, lines, folder, diverged="", ran_out_of_memory=False):
    """Return the `End` of a process that has run.

    Args:
        code: its exit code, 128+n for signal n.
        lines: the last ones that it wrote.
        folder: one on the disk that it wrote to.
        diverged: what the run said of numbers that were not finite; "" for nothing.
        ran_out_of_memory: whether the kernel ended processes for want of memory meanwhile.
    """
    errors = [match[1] for line in lines if (match := _ERROR.match(line))]
    error = _shortened(errors[-1].removeprefix("error: ")) if errors else ""
    if code == HUNG_CODE:
        return End(trials.HUNG, "its workers made no step for too long", True)
    if code == 0:
        return End(trials.COMPLETED)
    if diverged:
        return End(trials.DIVERGED, diverged)
    full = next((one for one in errors if _NO_ROOM.search(one)), "")
    if full:
        return End(trials.FAILED, _shortened(_AROUND.sub("", full)), True, True)
    if any(_NO_MEMORY.search(line) for line in lines):
        return End(trials.OUT_OF_MEMORY, error or "it asked for more memory than there is")
    if code == 128 + signal.SIGKILL and ran_out_of_memory:
        return End(trials.OUT_OF_MEMORY, "the kernel ended it for want of memory", True)
    if code == 2 and error:
        return End(trials.FAILED, f"it was refused: {error}")
    names = {128 + number: number.name for number in signal.Signals}
    what = f"signal {names[code]}" if code in names else f"exit code {code}"
    last = error or _shortened(next((line for line in reversed(lines) if line.strip()), ""))
    return End(trials.FAILED, f"{what}: {last}" if last else what, True, not _has_room(folder))


def _has_room(folder):
    """Say whether a disk takes a small file: one that is full takes no last words either."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return not has_no_room(error)
    return True


def oom_kills():
    """Return how many processes the kernel has ended for want of memory, as far as it tells."""
    found = 0
    for name in ("/sys/fs/cgroup/memory.events", "/proc/vmstat"):
        try:
            for line in pathlib.Path(name).read_text().splitlines():
                if line.startswith("oom_kill "):
                    found += int(line.split()[1])
        except OSError:
            continue
    return found


def _shortened(text):
    return text if len(text) <= 300 else f"{text[:297]}..."
