"""Schedules: values in closed form, serialization, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale.optimizers import LinearWarmup, build_schedule

PEAK = 0.2
STEPS = np.arange(120)


def values(schedule, steps=STEPS):
    return np.array([float(schedule(int(step))) for step in steps])


def exponential(s, decay_steps=100, rate=0.1, staircase=False):
    exponent = s // decay_steps if staircase else s / decay_steps
    return PEAK * rate**exponent


def cosine(s, decay_steps=100, alpha=0.0):
    s = np.minimum(s, decay_steps)
    return PEAK * ((1 - alpha) * (1 + np.cos(np.pi * s / decay_steps)) / 2 + alpha)


def stairs(s, boundaries=(50, 75), factor=0.1):
    return PEAK * factor ** sum((s >= boundary).astype(int) for boundary in boundaries)


CASES = [
    ("exponential", {}, exponential),
    (
        "exponential",
        {"decay_steps": 30, "decay_rate": 0.5, "staircase": True},
        lambda s: exponential(s, 30, 0.5, staircase=True),
    ),
    ("step", {}, stairs),
    ("step", {"boundaries": (3, 10), "factor": 0.5}, lambda s: stairs(s, (3, 10), 0.5)),
    ("cosine", {}, cosine),
    ("cosine", {"decay_steps": 40, "alpha": 0.25}, lambda s: cosine(s, 40, 0.25)),
]


@pytest.mark.parametrize(("name", "arguments", "formula"), CASES)
def test_schedule_equals_its_formula(name, arguments, formula):
    schedule = build_schedule(name, PEAK, 0, arguments, total_steps=100)
    np.testing.assert_allclose(values(schedule), formula(STEPS), rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "arguments", "formula"), CASES)
def test_warmup_rises_to_the_peak_and_delays_the_schedule(name, arguments, formula):
    schedule = build_schedule(name, PEAK, 20, arguments, total_steps=120)
    expected = np.where(STEPS < 20, PEAK * (STEPS + 1) / 20, formula(np.maximum(STEPS - 20, 0)))
    np.testing.assert_allclose(values(schedule), expected, rtol=2e-5, atol=1e-8)


def test_constant_is_a_plain_number_and_warms_up_to_it():
    assert build_schedule("constant", PEAK) == PEAK
    schedule = build_schedule("constant", PEAK, 4, {}, total_steps=4)
    np.testing.assert_allclose(
        values(schedule, range(6)), PEAK * np.array([0.25, 0.5, 0.75, 1, 1, 1]), rtol=1e-6
    )


def test_step_is_counted_exactly_in_long_runs():
    far = 2**24
    schedule = build_schedule("step", PEAK, far, {"boundaries": (1,), "factor": 0.5})
    # float32 has no 2**24 + 1.
    np.testing.assert_allclose(values(schedule, [far, far + 1]), [PEAK, PEAK / 2], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_schedule_gives_the_same_in_a_graph(dtype):
    schedule = build_schedule("cosine", PEAK, 5, {}, total_steps=25)
    traced = tf.function(schedule)
    for step in (0, 4, 5, 13, 30):
        in_graph = traced(tf.constant(step, dtype))
        np.testing.assert_allclose(float(in_graph), float(schedule(step)), rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "exponential", "step", "cosine"])
def test_schedule_survives_serialization(name):
    schedule = build_schedule(name, PEAK, 7, {}, total_steps=50)
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, LinearWarmup)
    assert again.get_config() == schedule.get_config()
    steps = range(0, 60, 3)
    np.testing.assert_array_equal(values(again, steps), values(schedule, steps))


@pytest.mark.parametrize("warmup_steps", [0, -1, 1.5, True])
def test_warmup_needs_a_step(warmup_steps):
    with pytest.raises(ValueError, match=f"`warmup_steps` must.*Received: {warmup_steps}"):
        LinearWarmup(0.1, warmup_steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 0.1), r"`schedule\.name`.*'cosin'\. Did you mean 'cosine'\?.*constant"),
        (("constant", 0), r"`optimizer\.learning_rate` must.*Received: 0"),
        (("constant", float("nan")), r"`optimizer\.learning_rate` must.*Received: nan"),
        (("constant", "0.1"), r"`optimizer\.learning_rate` must.*Received: '0\.1'"),
        (("constant", 0.1, -1), r"`schedule\.warmup_steps` must.*at least 0\. Received: -1"),
        (("constant", 0.1, 2.5), r"`schedule\.warmup_steps` must.*Received: 2\.5"),
        (("constant", 0.1, 11, {}, 10), r"warmup_steps=11 in a run of 10 steps"),
        (("cosine", 0.1, 10, {}, 10), r"must leave steps for the schedule"),
        (("cosine", 0.1, 0, {}, None), r"decay_steps` must be given.*unknown length"),
        (("step", 0.1, 0, {}, None), r"boundaries` must be given"),
        (("constant", 0.1, 0, {"alpha": 0}, 10), r"schedule 'constant'.*'alpha'.*Known: none"),
        (("cosine", 0.1, 0, {"decay_step": 3}, 10), r"'decay_step'\. Did you mean 'decay_steps'"),
        (("cosine", 0.1, 0, {"decay_steps": 0}, 10), r"decay_steps` must.*Received: 0"),
        (("cosine", 0.1, 0, {"alpha": 2}, 10), r"alpha` must be a share.*Received: 2"),
        (("exponential", 0.1, 0, {"decay_rate": 0}, 10), r"decay_rate` must.*Received: 0"),
        (("exponential", 0.1, 0, {"staircase": 1}, 10), r"staircase` must be True or False"),
        (("step", 0.1, 0, {"boundaries": 5}, 10), r"boundaries` must be a tuple.*Received: 5"),
        (("step", 0.1, 0, {"boundaries": (5, 5)}, 10), r"must increase\. Received: \[5, 5\]"),
        (("step", 0.1, 0, {"boundaries": (-2,)}, 10), r"boundaries\[0\]` must.*Received: -2"),
        (("step", 0.1, 0, {"factor": -1}, 10), r"factor` must.*Received: -1"),
    ],
)
def test_bad_schedule_is_refused_with_the_way_out(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_schedule(*arguments)
