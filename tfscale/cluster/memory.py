"""The memory that a control group allows to this process, and whether the kernel has killed for it.

Containers, Slurm's jobs and pods have such a group each. Both versions of Linux' control groups
are read; elsewhere nothing is known.
"""

import contextlib
import dataclasses
import re
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 says so with a number near 2^63
_FILES = (("memory.max", "memory.events"), ("memory.limit_in_bytes", "memory.oom_control"))


@dataclasses.dataclass(frozen=True)
class Memory:
    """What is known of a group's memory.

    Args:
        limit_bytes: the smallest limit of the group and those around it; None for none.
        num_kills: processes of the group that the kernel has killed for want of memory so far.
    """

    limit_bytes: int | None = None
    num_kills: int = 0

    def ran_out(self) -> str:
        """Return how a report says that memory ran out, with the limit and the way out."""
        if self.limit_bytes is None:
            return "the memory of this machine ran out; use smaller batches or a larger machine"
        return (
            f"memory ran out at the limit of {self.limit_bytes / 2**20:,.0f} MiB; raise the limit "
            "of this container or job, or use smaller batches"
        )


def read(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Memory:
    """Return what the control group of this process says.

    Args:
        root: where the control groups are.
        own: the file that names those of this process.
    """
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            version = 1 if "memory" in controllers.split(",") else 0
            if version == 0 and controllers:
                continue
            top = root / "memory" if version else root
            found = _read_group(top, path, *_FILES[version])
            if found is not None:
                return found
    return Memory()


def _read_group(top: Path, path: str, limit_file: str, kills_file: str) -> Memory | None:
    """Read a group and those around it; None where the kernel counts memory elsewhere."""
    group = top / path.strip("/")
    limit, num_kills = None, None
    # A container sees its own group at the top, and not the way to it that `path` names.
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError):
            text = (folder / limit_file).read_text().strip()
            if text.isdecimal() and int(text) < _NO_LIMIT:
                limit = min(int(text), limit or int(text))
        with contextlib.suppress(OSError):
            match = re.search(r"^oom_kill (\d+)", (folder / kills_file).read_text(), re.M)
            if match and num_kills is None:
                num_kills = int(match[1])
        if folder == top:
            break
    if limit is None and num_kills is None:
        return None
    return Memory(limit, num_kills or 0)
