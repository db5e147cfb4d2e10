"""A trial that has a process: how long it has run, and what it has reported so far."""

import time

from tfscale.search import trials

_READ_SECONDS = 0.5  # between two looks at what a trial has reported
_UNREAD_SECONDS = 60.0  # that a disk may not tell what a trial that has ended has reported


class Started:
    """A trial that has a process.

    Args:
        record: the trial's `TrialRecord`.
        process: a `processes.TrialProcess`, or what runs it on a joined machine.
        slot: the `processes.Slot` of this machine; None on a joined one.

    Attributes:
        history: what it has reported, as last read.
        diverged: what it has said of numbers that were not finite, when it has ended.
        unreadable: why what it has reported cannot be read; "" where it can.
        stops_at: the epoch at which it is stopped, or None.
    """

    def __init__(self, record, process, slot):
        self.record, self.process, self.slot = record, process, slot
        self.history, self.diverged, self.unreadable = record.history, "", ""
        self.stops_at = None
        self._seconds_before, self._reads_at = record.seconds, 0.0
        self._unread_since = None

    def read(self, kind, has_ended):
        """Read what it has reported, where it is time for that.

        A disk may be away for a moment: then it is read at the next occasion.

        Args:
            kind: what the trial runs, as for `loop.Search`.
            has_ended: whether its process is over.

        Returns:
            True when there may be something new, and always at its end, once that is known.
        """
        self.record.seconds = self._seconds_before + self.process.seconds
        if not has_ended and self.process.seconds < self._reads_at:
            return False
        self._reads_at = self.process.seconds + _READ_SECONDS
        if has_ended and self.slot is None:
            trials.look_anew(self.record.path)
        try:
            self.history = kind.history(self.record)
            if has_ended:
                self.diverged = kind.diverged(self.record)
        except (OSError, ValueError) as error:
            now = time.monotonic()
            self._unread_since = self._unread_since or now
            if not has_ended or now - self._unread_since < _UNREAD_SECONDS:
                return False
            self.unreadable = f"what it has reported cannot be read: {error}"
        self._unread_since = None
        return True
