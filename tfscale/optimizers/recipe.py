"""From a config to a learning-rate schedule and a Keras optimizer.

Owns the names, the defaults that follow from the length of the run, and the errors. The
optimizers and all schedules but the warmup are Keras' own.
"""

import inspect

import keras

from tfscale.names import check_known
from tfscale.optimizers.arguments import check_like, check_positive, check_steps
from tfscale.optimizers.schedules import LinearWarmup

_CLIPS = ("clipnorm", "global_clipnorm", "clipvalue")
_WRAPPERS = ("optimizer", "lossscaleoptimizer", "multioptimizer")


def build_schedule(name, learning_rate, warmup_steps=0, arguments=None, total_steps=None):
    """Build a learning-rate schedule by name, with linear warmup in front.

    Steps in `arguments` are counted after the warmup. Without arguments a schedule spans what
    the run has left after it.

        constant      learning_rate
        exponential   learning_rate * decay_rate ** (step / decay_steps), the exponent rounded
                      down if staircase. decay_steps: the rest of the run; decay_rate: 0.1;
                      staircase: False
        step          learning_rate * factor ** (number of boundaries <= step). boundaries:
                      increasing steps, the first ones at a lower rate; a half and three
                      quarters of the rest of the run. factor: 0.1. K. He et al. (2016)
        cosine        learning_rate * ((1 - alpha) * (1 + cos(pi * step / decay_steps)) / 2
                      + alpha), then constant. decay_steps: the rest of the run; alpha: 0.
                      I. Loshchilov and F. Hutter (2017)

    Args:
        name: constant, exponential, step or cosine.
        learning_rate: the peak, above 0.
        warmup_steps: steps of linear warmup, see `LinearWarmup`; 0 for none.
        arguments: a dict of the schedule's arguments.
        total_steps: updates of the whole run, warmup included; None if not known.

    Returns:
        A float if the rate never changes, a `keras.optimizers.schedules.LearningRateSchedule`
        otherwise.

    Raises:
        ValueError: at an unknown name or argument, a value out of range, a warmup longer than
            the run, or a default that needs a `total_steps` that is not known.
    """
    check_known("`schedule.name`", [name], _SCHEDULES)
    learning_rate = check_positive("optimizer.learning_rate", learning_rate)
    warmup_steps = check_steps("schedule.warmup_steps", warmup_steps, least=0)
    if total_steps is not None and warmup_steps > total_steps:
        raise ValueError(
            "`schedule.warmup_steps` must not be more than the steps of the run. "
            f"Received: warmup_steps={warmup_steps} in a run of {total_steps} steps. "
            "Train longer, or use a shorter warmup."
        )
    builder = _SCHEDULES[name]
    arguments = dict(arguments or {})
    allowed = list(inspect.signature(builder).parameters)[2:]
    check_known(f"An argument of the schedule {name!r}", arguments, allowed)
    rest = None if total_steps is None else total_steps - warmup_steps
    schedule = builder(learning_rate, rest, **arguments)
    return LinearWarmup(schedule, warmup_steps) if warmup_steps else schedule


def _constant(learning_rate, rest):
    """Return the rate itself."""
    return learning_rate


def _exponential(learning_rate, rest, decay_steps=None, decay_rate=0.1, staircase=False):
    """Return an exponential decay."""
    return keras.optimizers.schedules.ExponentialDecay(
        learning_rate,
        _decay_steps(decay_steps, rest),
        check_positive("schedule.arguments.decay_rate", decay_rate),
        staircase=check_like("schedule.arguments.staircase", staircase, False),
    )


def _step(learning_rate, rest, boundaries=None, factor=0.1):
    """Return a rate that falls by a factor at every boundary."""
    factor = check_positive("schedule.arguments.factor", factor)
    if boundaries is None:
        rest = _decay_steps(None, rest, argument="boundaries")
        # A run of one step has no room for both.
        boundaries = sorted({max(1, rest // 2), max(1, rest * 3 // 4)})
    if not isinstance(boundaries, (tuple, list)) or not boundaries:
        raise ValueError(
            "`schedule.arguments.boundaries` must be a tuple of steps. "
            f"Received: {boundaries!r}. Write (1000, 2000)."
        )
    name = "schedule.arguments.boundaries"
    boundaries = [check_steps(f"{name}[{i}]", step) for i, step in enumerate(boundaries)]
    if sorted(set(boundaries)) != boundaries:
        raise ValueError(f"`{name}` must increase. Received: {boundaries}.")
    # Keras keeps the old value at a boundary; here the boundary is the first step of the new.
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [boundary - 1 for boundary in boundaries],
        [learning_rate * factor**i for i in range(len(boundaries) + 1)],
    )


def _cosine(learning_rate, rest, decay_steps=None, alpha=0.0):
    """Return half a wave of a cosine."""
    alpha = check_like("schedule.arguments.alpha", alpha, 0.0)
    if not 0 <= alpha <= 1:
        raise ValueError(
            f"`schedule.arguments.alpha` must be a share from 0 to 1. Received: {alpha!r}."
        )
    return keras.optimizers.schedules.CosineDecay(
        learning_rate, _decay_steps(decay_steps, rest), alpha=alpha
    )


_SCHEDULES = {
    "constant": _constant,
    "exponential": _exponential,
    "step": _step,
    "cosine": _cosine,
}


def _decay_steps(decay_steps, rest, argument="decay_steps"):
    """Return the steps of a decay: as given, or what the run has left after the warmup."""
    if decay_steps is not None:
        return check_steps(f"schedule.arguments.{argument}", decay_steps)
    if rest is None:
        raise ValueError(
            f"`schedule.arguments.{argument}` must be given where the steps of the run are not "
            f"known. Received: no {argument} and data of unknown length."
        )
    if rest == 0:
        raise ValueError(
            "`schedule.warmup_steps` must leave steps for the schedule. Received: a warmup as "
            "long as the run. Train longer, use a shorter warmup, or the schedule 'constant'."
        )
    return rest


def build_optimizer(config, schedule):
    """Build a Keras optimizer.

    Args:
        config: an `OptimizerConfig`; its learning rate is not read, see `build_schedule`.
        schedule: the learning rate: a float or a
            `keras.optimizers.schedules.LearningRateSchedule`.

    Returns:
        A `keras.optimizers.Optimizer`, not built.

    Raises:
        ValueError: at an unknown optimizer or argument, a value that Keras refuses, or more
            than one kind of clipping.
    """
    known = {
        name.lower(): value
        for name, value in vars(keras.optimizers).items()
        if inspect.isclass(value) and issubclass(value, keras.optimizers.Optimizer)
    }
    known = {name: known[name] for name in sorted(known) if name not in _WRAPPERS}
    identifier = str(config.name).lower()
    if identifier not in known:
        check_known("`optimizer.name`", [config.name], known)
    optimizer_class = known[identifier]
    arguments = _arguments(optimizer_class, config) | _clipping(config)
    try:
        return optimizer_class(learning_rate=schedule, **arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`optimizer.arguments` must be accepted by "
            f"keras.optimizers.{optimizer_class.__name__}. Received: {arguments}. "
            f"Keras says: {error}"
        ) from error


def _arguments(optimizer_class, config):
    """Return the optimizer's own arguments, checked against its signature."""
    elsewhere = {
        "learning_rate": "Set optimizer.learning_rate.",
        "gradient_accumulation_steps": "Keras accumulates inside the optimizer, which fails with "
        "more than one replica. Use a larger data.global_batch_size.",
        **{clip: f"Set optimizer.{clip}." for clip in _CLIPS},
    }
    for key in config.arguments:
        if key in elsewhere:
            raise ValueError(
                f"`optimizer.arguments` must not hold {key!r}. "
                f"Received: {key}={config.arguments[key]!r}. {elsewhere[key]}"
            )
    parameters = {
        key: parameter.default
        for key, parameter in inspect.signature(optimizer_class).parameters.items()
        if key not in (*elsewhere, "name") and parameter.kind is not parameter.VAR_KEYWORD
    }
    check_known(f"An argument of the optimizer {config.name!r}", config.arguments, parameters)
    return {
        key: check_like(f"optimizer.arguments.{key}", value, parameters[key])
        for key, value in config.arguments.items()
    }


def _clipping(config):
    """Return the one kind of clipping that is asked for, as a dict."""
    asked = {clip: getattr(config, clip) for clip in _CLIPS if getattr(config, clip) is not None}
    if len(asked) > 1:
        received = ", ".join(f"{clip}={value}" for clip, value in asked.items())
        raise ValueError(
            "`optimizer` must have at most one of clipnorm, global_clipnorm and clipvalue. "
            f"Received: {received}. Leave the others None."
        )
    return {clip: check_positive(f"optimizer.{clip}", value) for clip, value in asked.items()}
