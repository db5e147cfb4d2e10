"""Waits for what another machine has just written into a folder that all of them see."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

_SECONDS = 10.0
_POLL_SECONDS = 0.2


def is_seen(folder: Path, look: Callable[[], bool], seconds: float = _SECONDS) -> bool:
    """Return whether a process sees what is in a folder, now or within some seconds.

    A network file system may keep for a while what it knew of a folder; listing it makes NFS ask.

    Args:
        folder: that all machines should see.
        look: returns whether what is looked for is there.
        seconds: to wait for it.
    """
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() >= deadline:
            return False
        with contextlib.suppress(OSError):
            os.listdir(folder)
        time.sleep(_POLL_SECONDS)
    return True
