"""How many steps the device takes between two looks of the host."""

TARGET_SECONDS = 0.25
MOST_STEPS = 1024
_FIRST_BATCHES = 16  # of a pass, which may be over slower data than the one before
_GROWTH = 4  # batches that were read ahead say little about those behind them


class Pace:
    """Steps an execution: given, or chosen by the chief from the length of a step.

    The choice changes how often callbacks are called and nothing that is computed.

    Args:
        steps_per_execution: a fixed number; None or 0 to choose.

    Raises:
        ValueError: if it is negative.
    """

    def __init__(self, steps_per_execution=None):
        if steps_per_execution is not None and steps_per_execution < 0:
            raise ValueError(
                "`steps_per_execution` must be at least 1, or 0 to have it chosen. "
                f"Received: {steps_per_execution}. Leave it out."
            )
        self._fixed = steps_per_execution or 0
        self.steps = self._fixed or 1

    def choose(self, step_seconds):
        """Return the chief's choice for the execution after next.

        Args:
            step_seconds: the length of a step in the last execution; None before one was timed.
        """
        if self._fixed or not step_seconds:
            return self.steps
        return int(min(max(TARGET_SECONDS / step_seconds, 1), MOST_STEPS))

    def measured(self, chosen):
        """Take over what the chief chose, as it came back from the reduction to all workers."""
        self.steps = max(chosen, 1)


class ScoringPace(Pace):
    """Batches an execution while scoring; the first pass begins with one."""

    def begin(self):
        """Begin a pass over the data, with few batches, the same number on all workers."""
        self.steps = min(self.steps, _FIRST_BATCHES)

    def choose(self, step_seconds):
        """Return the chief's choice for the next execution.

        Args:
            step_seconds: the length of a batch in the last one; None where it had none.
        """
        return min(super().choose(step_seconds), _GROWTH * self.steps)
