"""Contract 1: N workers equal one, row by row."""

import functools
import pathlib

import equality_cases
import numpy as np
import pytest

from tfscale import testing
from tfscale.strategy import make_strategy

# What three workers add: shares of different sizes, and a batch smaller than their number.
ON_THREE_WORKERS = (
    "adam",
    "global_clipnorm",
    "sample_weights_uneven",
    "sum_loss",
    "one_example_in_last_batch",
    "batch_of_50",
    "batch_norm_one_in_last_batch",
    "own_train_step",
    "two_inputs",
    "masked",
    "masked_sum",
)
WORKER = pathlib.Path(__file__).with_name("equality_worker.py")


@functools.cache
def one_device(case):
    return equality_cases.run(case, make_strategy("onedevice"))


@functools.cache
def mirrored(case):
    return equality_cases.run(case, make_strategy("mirrored", 2))


@functools.cache
def workers(num_workers):
    """All cases in one start of the workers, because a start costs more than a case."""
    cases = equality_cases.CASES if num_workers == 2 else ON_THREE_WORKERS
    return testing.run_workers(WORKER, num_workers, args=cases, timeout_seconds=280)


def multiworker(case, num_workers=2):
    results = workers(num_workers)
    own = [
        {k.split("|")[1]: v for k, v in result.arrays.items() if k.split("|")[0] == case}
        for result in results
    ]
    for name, array in own[0].items():
        for other in own[1:]:
            np.testing.assert_array_equal(array, other[name], err_msg=f"{name} on two workers")
    return own[0]


def check_equal(outcome, reference, case):
    """Weights within 1e-5, losses within 1e-5 relative, other metrics within 1e-6."""
    assert outcome.keys() == reference.keys()
    for name, expected in reference.items():
        if case == "mixed_float16":
            np.testing.assert_allclose(outcome[name], expected, atol=3e-2, err_msg=name)
            continue
        if name.startswith("curve") and "loss" not in name:
            tolerance = {"rtol": 0, "atol": 1e-6 if "accuracy" in name else 1e-5}
        elif name.startswith("curve"):
            tolerance = {"rtol": 1e-5, "atol": 1e-7}
        else:
            tolerance = {"rtol": 0, "atol": 1e-5}
        np.testing.assert_allclose(outcome[name], expected, **tolerance, err_msg=name)


def test_one_device_follows_keras_fit():
    """The reference itself: Keras alone, on the same batches."""
    import keras

    case = "uneven_last_batch"
    reference = one_device(case)
    keras.utils.set_random_seed(7)
    x, y, _ = equality_cases._images(105)
    model = equality_cases._convnet(l2=0.01)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    order = [_epoch_order(105, epoch) for epoch in range(5)]
    curve = []
    for indices in order:
        history = model.fit(x[indices], y[indices], batch_size=32, shuffle=False, verbose=0)
        curve += history.history["loss"]
    for i, weight in enumerate(model.weights):
        np.testing.assert_allclose(reference[f"weight {i}"], weight.numpy(), atol=1e-5)
    np.testing.assert_allclose(reference["curve loss"], curve, rtol=1e-5)


def _epoch_order(num_examples, epoch):
    """The order of an epoch as the data room gives it on one device."""
    from tfscale.data import batches, shards

    data = batches.from_arrays(np.arange(num_examples), shuffle=True)
    steps = data.steps_per_epoch
    dataset = data.dataset(shards.Shard(), epoch * steps).take(steps)
    return np.concatenate([share[0].numpy() for share, _ in dataset])


@pytest.mark.parametrize("case", equality_cases.CASES)
def test_two_replicas_equal_one_device(case):
    check_equal(mirrored(case), one_device(case), case)


@pytest.mark.workers
@pytest.mark.parametrize("case", equality_cases.CASES)
def test_two_workers_equal_one_device(case):
    check_equal(multiworker(case), one_device(case), case)


@pytest.mark.workers
@pytest.mark.parametrize("case", ON_THREE_WORKERS)
def test_three_workers_equal_one_device(case):
    check_equal(multiworker(case, 3), one_device(case), case)
