"""Learning-rate schedules that Keras lacks. The others are Keras' own."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfscale")
class LinearWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise of the learning rate in front of any other schedule.

    Large global batches diverge at the full learning rate in the first steps, when the weights
    change fastest. With `peak = schedule(0)`, step `s` trains at

        peak * (s + 1) / warmup_steps      while s < warmup_steps
        schedule(s - warmup_steps)         afterwards

    so the first step moves the weights, and the last step of the warmup trains at the peak.
    P. Goyal et al., Accurate, Large Minibatch SGD (2017), section 2.2.

    Args:
        schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or a float: constant
            after the warmup.
        warmup_steps: steps of the rise, at least 1.
        name: name of the operations.

    Raises:
        ValueError: if `warmup_steps` is not a whole number of at least 1.
    """

    def __init__(self, schedule, warmup_steps, name="LinearWarmup"):
        super().__init__()
        if isinstance(warmup_steps, bool) or not isinstance(warmup_steps, int) or warmup_steps < 1:
            raise ValueError(
                "`warmup_steps` must be a whole number of at least 1. "
                f"Received: {warmup_steps!r}. For no warmup use the schedule itself."
            )
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.name = name

    def __call__(self, step):
        """Return the learning rate of a step.

        Args:
            step: a scalar, 0 at the first update; a number or a tensor.

        Returns:
            A float32 scalar tensor.
        """
        with keras.name_scope(self.name):
            step = ops.convert_to_tensor(step)
            warmup_steps = ops.cast(self.warmup_steps, step.dtype)
            peak = ops.cast(self._after_warmup(ops.zeros_like(step)), "float32")
            # In whole numbers: float32 cannot count beyond 2**24 steps.
            after = self._after_warmup(ops.maximum(step - warmup_steps, ops.zeros_like(step)))
            share = ops.cast(step + 1, "float32") / ops.cast(warmup_steps, "float32")
            return ops.where(step < warmup_steps, peak * share, ops.cast(after, "float32"))

    def _after_warmup(self, step):
        """Return the wrapped schedule's rate, `step` steps after the warmup."""
        return self.schedule(step) if callable(self.schedule) else self.schedule

    def get_config(self):
        """Return the arguments, the wrapped schedule serialized."""
        schedule = self.schedule
        if callable(schedule):
            schedule = keras.saving.serialize_keras_object(schedule)
        return {"schedule": schedule, "warmup_steps": self.warmup_steps, "name": self.name}

    @classmethod
    def from_config(cls, config):
        """Make the schedule again from `get_config`."""
        config = dict(config)
        if isinstance(config["schedule"], dict):
            config["schedule"] = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(**config)
