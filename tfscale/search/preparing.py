"""What a trial needs on the disk before it starts; again a little later, where that fails."""

import shutil
import time

from tfscale.search import ends

_FIRST_PAUSE_SECONDS = 1.0  # the next ones are twice as long each
_MOST_PAUSE_SECONDS = 32.0  # after one of these a start has failed


class Preparation:
    """Writes what trials need.

    Args:
        kind: what a trial runs, as for `loop.Search`.
    """

    def __init__(self, kind):
        self._kind = kind
        self._pauses = {}  # id -> seconds of its last pause, and when that is over

    def is_due(self, record):
        """Return whether a trial has no pause after an attempt that failed."""
        return time.monotonic() >= self._pauses.get(record.id, (0.0, 0.0))[1]

    def attempt(self, record, parent):
        """Write what a trial needs.

        Where the journal knows of no start, what is in its folder is that of a journal that was
        cut off, and is removed.

        Args:
            record: the trial's `TrialRecord`.
            parent: that of the trial which it continues, or None.

        Returns:
            True where it can start; False where it has to wait.

        Raises:
            OSError: if the disk has no room, or all pauses have not helped.
        """
        try:
            if record.started is None and record.path.exists():
                shutil.rmtree(record.path)
            self._kind.prepare(record, parent)
            record.log.parent.mkdir(exist_ok=True)
        except OSError as error:  # of a disk that is away for a moment, it may be
            before, _ = self._pauses.pop(record.id, (0.0, 0.0))
            if ends.has_no_room(error) or before >= _MOST_PAUSE_SECONDS:
                raise
            pause = max(2 * before, _FIRST_PAUSE_SECONDS)
            self._pauses[record.id] = (pause, time.monotonic() + pause)
            record.reason = str(error)
            return False
        self._pauses.pop(record.id, None)
        return True
