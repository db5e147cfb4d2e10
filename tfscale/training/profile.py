"""TensorFlow's profiler around a few steps, on each worker, into the run's TensorBoard folder."""

import re

import tensorflow as tf


class Profile:
    """Records the steps of one call of `fit` from one to another.

    Args:
        steps: "FIRST:LAST": the steps FIRST + 1 to LAST are recorded.
        folder: where the recording goes, of this worker alone.

    Raises:
        ValueError: if `steps` is something else.
    """

    def __init__(self, steps, folder):
        match = re.fullmatch(r"(\d+):(\d+)", steps)
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(
                "`log.profile_steps` must be FIRST:LAST, with FIRST < LAST. "
                f"Received: {steps!r}. Write 100:110, for ten steps behind step 100."
            )
        self._first, self._last = int(match[1]), int(match[2])
        self._folder, self._is_on = str(folder), False

    def steps_until_due(self, step):
        """Return the steps until it begins or ends; None behind it."""
        return next((at - step for at in (self._first, self._last) if at > step), None)

    def at(self, step):
        """Begin or end, if it is due after this step; between two executions."""
        if self._is_on != (self._first <= step < self._last):
            self._is_on = not self._is_on
            if self._is_on:
                tf.profiler.experimental.start(self._folder)
            else:
                tf.profiler.experimental.stop()

    def end(self):
        """End; the run does."""
        self.at(self._last)
