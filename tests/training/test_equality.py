"""Contract 1: N workers equal one, row by row, through both doors.

One device is `keras.Model.fit` as Keras has it, for both doors, but for the few rows whose order
or reports are a door's own.
"""

import functools
import pathlib

import equality_cases
import keras
import numpy as np
import pytest
from equality_cases import KERAS, ROWS, TRAINER

import tfscale
from tfscale import testing
from tfscale.strategy import make_strategy

layers = keras.layers

WORKER = pathlib.Path(__file__).with_name("equality_worker.py")
# Both doors lead to one step: where data, callbacks and reports are the same too, one is enough.
THROUGH_DOORS = [
    (name, door)
    for name, row in ROWS.items()
    for door in row.doors[: 2 if row.both else 1]
    if row.equal
]
# What each replica computes alone, or the rows beside them show as well: `make test-slow`.
LESS_TOLD_BY_WORKERS = {
    "momentum",
    "adamw",
    "weight_decay",
    "ema",
    "exponential_decay",
    "cosine_decay",
    "clipvalue",
    "accumulation_4",
    "accumulated_batches",
    "accumulated_batches_at_once",
    "dataset_unknown_length",
    "sample_weights",
    "sample_weights_uneven",
    "mse",
    "huber",
    "mask_and_sum_loss",
    "l1",
    "l2",
    "embedding",
    "attention",
    "batch_norm_synchronized",
    "mixed_bfloat16",
    "two_optimizers",
}
ON_TWO_WORKERS = [(n, door) for n, door in THROUGH_DOORS if n not in LESS_TOLD_BY_WORKERS]
OTHERS_ON_TWO_WORKERS = [(n, door) for n, door in THROUGH_DOORS if n in LESS_TOLD_BY_WORKERS]
# What three workers add: shares of different sizes, and a batch smaller than their number.
ON_THREE_WORKERS = [
    ("global_clipnorm", KERAS),
    ("accumulation_2", KERAS),
    ("one_in_last_batch", KERAS),
    ("one_in_last_batch", TRAINER),
    ("batch_of_50", KERAS),
    ("batch_of_50", TRAINER),
    ("dataset", KERAS),
    ("mask_and_weights_uneven", KERAS),
    ("sum_loss", KERAS),
    ("two_inputs_and_outputs", TRAINER),
    ("embedding_adam", KERAS),
    ("batch_norm_synchronized_one_in_last", KERAS),
    ("own_train_step", KERAS),
    ("gan", KERAS),
    ("early_stopping", KERAS),
]


@pytest.fixture(autouse=True, scope="module")
def _both_doors():
    tfscale.enable_keras_fit()
    yield
    tfscale.disable_keras_fit()


@functools.cache
def one_device(name, door):
    strategy = None if door == KERAS else make_strategy("onedevice")
    return equality_cases.run(name, strategy, door)


def reference(name, door):
    """What Keras gives on one device, or the door itself where it has its own order."""
    return one_device(name, KERAS if ROWS[name].alike and KERAS in ROWS[name].doors else door)


@functools.cache
def workers(num_workers, rows):
    """All rows in one start of the workers, because a start costs more than a row.

    Returns the results, or what a failed start said, so that no row starts it again.
    """
    arguments = [f"{door}:{name}" for name, door in rows]
    try:
        return testing.run_workers(WORKER, num_workers, args=arguments, timeout_seconds=560)
    except AssertionError as error:
        return str(error)


def multiworker(name, door, num_workers=2, rows=ON_TWO_WORKERS):
    alone = (("dropout", KERAS), ("batch_norm", KERAS)) if rows is ON_TWO_WORKERS else ()
    results = workers(num_workers, (*rows, *alone))
    assert not isinstance(results, str), results
    own = [
        {k.split("|")[1]: v for k, v in r.arrays.items() if k.split("|")[0] == f"{door}:{name}"}
        for r in results
    ]
    for key, array in own[0].items():
        for other in own[1:]:
            np.testing.assert_array_equal(array, other[key], err_msg=f"{key} on other workers")
    return own[0]


def check_equal(outcome, expected, name):
    """Weights within 1e-5, losses within 1e-5 relative, other metrics within 1e-6.

    A prediction is a sum over many weights, so it has three times their tolerance.
    """
    assert outcome.keys() == expected.keys()
    for key, array in expected.items():
        if ROWS[name].policy != "float32":
            tolerance = {"rtol": 0, "atol": 3e-2}
        elif key.startswith("curve") and "loss" in key:
            tolerance = {"rtol": 1e-5, "atol": 1e-7}
        elif key.startswith("curve"):
            tolerance = {"rtol": 0, "atol": 1e-6}
        else:
            tolerance = {"rtol": 0, "atol": 3e-5 if key.startswith("output") else 1e-5}
        np.testing.assert_allclose(outcome[key], array, **tolerance, err_msg=key)


@pytest.mark.parametrize(("name", "door"), THROUGH_DOORS)
def test_two_replicas_equal_one_device(name, door):
    outcome = equality_cases.run(name, make_strategy("mirrored", 2), door)
    check_equal(outcome, reference(name, door), name)


@pytest.mark.workers
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "door"), ON_TWO_WORKERS)
def test_two_workers_equal_one_device(name, door):
    check_equal(multiworker(name, door), reference(name, door), name)


@pytest.mark.slow
@pytest.mark.workers
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "door"), ON_THREE_WORKERS)
def test_three_workers_equal_one_device(name, door):
    check_equal(multiworker(name, door, 3, ON_THREE_WORKERS), reference(name, door), name)


@pytest.mark.slow
@pytest.mark.workers
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "door"), OTHERS_ON_TWO_WORKERS)
def test_two_workers_equal_one_device_in_the_other_rows_too(name, door):
    outcome = multiworker(name, door, rows=OTHERS_ON_TWO_WORKERS)
    check_equal(outcome, reference(name, door), name)


@pytest.mark.workers
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["dropout", "batch_norm"])
def test_what_depends_on_the_number_of_replicas_is_the_same_in_one_process_or_two(name):
    outcome = equality_cases.run(name, make_strategy("mirrored", 2), KERAS)
    check_equal(multiworker(name, KERAS), outcome, name)


def test_accumulated_small_batches_equal_a_large_one():
    small = equality_cases.run("accumulated_batches", make_strategy("mirrored", 2), KERAS)
    large = one_device("accumulated_batches_at_once", KERAS)
    for key in (key for key in large if key.startswith("weight")):
        np.testing.assert_allclose(small[key], large[key], atol=1e-5, err_msg=key)


def _averages_of_dropout(steps):
    """Each step shows the mean of the masks of two examples of ones, one on each replica."""
    keras.utils.set_random_seed(3)
    with make_strategy("mirrored", 2).scope():
        kernel = layers.Dense(1, use_bias=False, kernel_initializer="ones")
        model = keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), kernel])
        model.compile(keras.optimizers.SGD(1.0), lambda y_true, y_pred: y_pred)
    x = np.ones((2 * steps, 64), "float32")
    model.fit(x, x[:, :1], batch_size=2, verbose=0)
    return 1 - model.get_weights()[0][:, 0]  # the mean of masks is the gradient


def test_dropout_differs_between_replicas_and_repeats_between_runs():
    once = _averages_of_dropout(1)
    assert set(once) == {0.0, 1.0, 2.0}, "1 is where one replica keeps what the other drops"
    np.testing.assert_array_equal(_averages_of_dropout(1), once)


def test_dropout_keeps_the_expectation():
    # The mean of 64 * 2 * 200 masks of variance 1 lies within five deviations of 1.
    assert abs(_averages_of_dropout(200).mean() / 200 - 1) < 5 / np.sqrt(64 * 2 * 200)


def test_moving_statistics_of_replicas_become_their_mean(caplog):
    strategy = make_strategy("mirrored", 2)
    with strategy.scope():
        model = keras.Sequential(
            [keras.Input((3,)), layers.BatchNormalization(momentum=0.5), layers.Dense(1)]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    y = x[:, :1]
    for _ in range(2):
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, validation_data=(x, y))
    mean, variance = np.zeros(3), np.ones(3)
    for batch in (x[:4], x[4:], x[:4], x[4:]):
        halves = batch[::2], batch[1::2]  # shares are interleaved
        mean = 0.5 * mean + 0.5 * np.mean([half.mean(0) for half in halves], 0)
        variance = 0.5 * variance + 0.5 * np.mean([half.var(0) for half in halves], 0)
    norm = model.layers[0]
    for variable, expected in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
        for own in strategy.experimental_local_results(variable.value):
            np.testing.assert_allclose(own.numpy(), expected, atol=1e-6)
    warnings = [r for r in caplog.records if "synchronized=True" in r.getMessage()]
    assert len(warnings) == 1, "two calls of fit warn once"
