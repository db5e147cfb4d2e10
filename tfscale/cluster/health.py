"""Whether the workers that run here are well: python -m tfscale.cluster.health

For the health check of a container: a process of its own that looks at the pulse of each worker
that a launcher has started in this container, and ends with 1 where one has not beaten for too
long. Nothing acts on it; a launcher with --hang_timeout_seconds does.
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tfscale.cluster import pulse

_QUIET_SECONDS = 600.0  # as the launcher's own notice; a first step may take minutes


def beats() -> Iterator[pulse.Beat]:
    """Yield the last beat of each worker that this user's launchers run here."""
    seen = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for variable in (folder / "environ").read_bytes().split(b"\0"):
                name, _, value = variable.decode(errors="replace").partition("=")
                if name != pulse.VARIABLE or value in seen:
                    continue
                found = pulse.look(folder / "fd", value)
                if found is not None:
                    seen.add(value)
                    yield found


def main() -> int:
    """Print a line a worker; return 1 if one of them stands still, else 0."""
    code, now = 0, time.monotonic()
    for beat in beats():
        if not beat.number:
            print("a worker starts")
            continue
        quiet = now - beat.seconds
        stands = beat.is_watched and quiet > _QUIET_SECONDS
        code = 1 if stands else code
        print(
            f"process {beat.pid}{beat.place()}, {quiet:.0f} s ago{': too long' if stands else ''}"
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
