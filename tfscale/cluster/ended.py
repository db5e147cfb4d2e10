"""Word from a task that has given up, left where the other tasks of its cluster see it.

The launchers of a cluster do not talk to each other. One that will not start its worker again
leaves a file beside the worker's log in the run's folder, so that the others end with its reason
at once instead of waiting for it. The clock is that of the folder, so machines may differ.
"""

import contextlib
import dataclasses
import json
import os
import socket
import tempfile
import time
from pathlib import Path

FINAL_VARIABLE = "TFSCALE_FINAL_SECONDS"


@dataclasses.dataclass(frozen=True)
class Word:
    """Why a task ended for good.

    Args:
        code: the exit code it ended with.
        text: what a user is told.
        host: the host, or container, on which the task ended.
    """

    code: int
    text: str
    host: str = dataclasses.field(default_factory=socket.gethostname)


class Board:
    """What the tasks of a cluster leave for each other.

    Args:
        folder: the folder of logs that all of them see; made if missing.
        rank: of this task.
    """

    def __init__(self, folder: Path, rank: int):
        self._folder = folder
        self._rank = rank
        self._own = folder / f"worker-{rank}.ended"
        self._mark = folder / f"worker-{rank}.running"
        self._began = 0.0

    def begin(self, final_seconds: float) -> Word | None:
        """Begin anew: only what is left from now on counts.

        Args:
            final_seconds: a word of this task on this host that was younger than this when this
                process was started still holds, and is then as new again, since what starts the
                task again, such as a container's engine, knows nothing of it.

        Returns:
            That word, which stays; None where there is none.
        """
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".clock-") as file:
                self._began = os.fstat(file.fileno()).st_mtime
            if self._own.exists():
                word = _read(self._own)
                # A container that has little memory may take a minute to come as far as this.
                age = self._began - _own_age() - self._own.stat().st_mtime
                young = max(0.0, age) < final_seconds
                if word and young and word.host == socket.gethostname():
                    self.leave(word)
                    return word
                self._own.unlink()
        return None

    def begin_to_run(self) -> str:
        """Leave a mark until `end`; return a line about one that was left, or "".

        A launcher that was killed, or whose machine was lost, can tell nobody: its successor does.
        """
        killed = ""
        with contextlib.suppress(OSError):
            if self._mark.exists():
                host = self._mark.read_text()
                killed = f"worker {self._rank} failed first: killed with its launcher, on {host}"
            self._mark.write_text(socket.gethostname())
        return killed

    def end(self) -> None:
        """Take the mark of `begin_to_run` away."""
        with contextlib.suppress(OSError):
            self._mark.unlink(missing_ok=True)

    def leave(self, word: Word) -> None:
        """Leave word that this task will not come back; it may be that of another one."""
        word = dataclasses.replace(word, host=socket.gethostname())
        beside = self._own.with_suffix(".unfinished")
        with contextlib.suppress(OSError):  # a full disk may be the reason
            beside.write_text(json.dumps(dataclasses.asdict(word)))
            beside.replace(self._own)

    def look(self) -> Word | None:
        """Return the first word of another task since `begin`; None while there is none."""
        found = []
        for path in self._folder.glob("worker-*.ended"):
            with contextlib.suppress(OSError):
                changed = path.stat().st_mtime
                if path != self._own and changed > self._began:
                    found.append((changed, path))
        return _read(min(found)[1]) if found else None


def _own_age() -> float:
    """Return the seconds since this process was started; 0 where the system does not tell."""
    with contextlib.suppress(OSError):
        after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    return 0.0


def _read(path: Path) -> Word | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Word(**json.loads(path.read_text()))
    return None
