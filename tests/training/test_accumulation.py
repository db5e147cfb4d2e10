"""Optimizers that accumulate gradients give on replicas what Keras gives on one device."""

import functools
import pathlib

import accumulation_worker as cases
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale import testing
from tfscale.strategy import make_strategy
from tfscale.training import checkpoint, reduction, replica, state, step
from tfscale.training.trainer import Trainer

ON_TWO_WORKERS = (
    "adamw_ema_3",
    "mixed_float16_3",
    "infinite_on_one_replica_3",
    "two_optimizers",
)
WORKER = pathlib.Path(cases.__file__)


@functools.cache
def by_keras(case):
    return cases.run(case, tf.distribute.get_strategy(), by_keras=True)


@functools.cache
def on_workers(num_workers):
    names = ON_TWO_WORKERS if num_workers > 1 else ["adam_2"]
    return testing.run_workers(WORKER, num_workers, args=names, timeout_seconds=200)


def check_equal(arrays, reference, case):
    """All of a checkpoint, the accumulators and counters in it too, and the losses."""
    assert arrays.keys() == reference.keys()
    tolerance = 3e-3 if "float16" in case else 1e-5
    for name, expected in reference.items():
        assert name == "curve" or np.isfinite(expected).all()
        np.testing.assert_allclose(arrays[name], expected, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", cases.CASES)
def test_two_replicas_accumulate_as_keras_on_one_device(case):
    check_equal(cases.run(case, make_strategy("mirrored", 2)), by_keras(case), case)


def test_a_single_replica_of_the_mirrored_strategy_accumulates():
    check_equal(cases.run("adam_2", make_strategy("mirrored", 1)), by_keras("adam_2"), "adam_2")


@pytest.mark.workers
@pytest.mark.slow  # the equality table has two of them
@pytest.mark.parametrize("case", ON_TWO_WORKERS)
def test_two_workers_accumulate_as_keras_on_one_device(case):
    for result in on_workers(2):
        prefix = f"{case}|"
        own = {k.removeprefix(prefix): v for k, v in result.arrays.items() if k.startswith(prefix)}
        check_equal(own, by_keras(case), case)


@pytest.mark.workers
@pytest.mark.slow
def test_a_single_worker_of_the_multiworker_strategy_accumulates():
    arrays = on_workers(1)[0].arrays
    own = {name.removeprefix("adam_2|"): array for name, array in arrays.items()}
    check_equal(own, by_keras("adam_2"), "adam_2")


def test_four_small_batches_equal_a_large_one():
    data = functools.partial(cases.images, 128)
    momentum = functools.partial(keras.optimizers.SGD, 0.1, momentum=0.9, global_clipnorm=0.1)
    keras.utils.set_random_seed(7)
    large = cases.train(momentum, by_keras=True, data=data)
    accumulating = functools.partial(momentum, gradient_accumulation_steps=4)
    keras.utils.set_random_seed(7)
    with make_strategy("mirrored", 2).scope():
        small = cases.train(accumulating, by_keras=False, data=data, batch=8)
    for name, expected in large.items():
        if name.startswith("model"):
            np.testing.assert_allclose(small[name], expected, atol=1e-5, err_msg=name)


def test_replicas_reduce_once_an_update():
    class Counted(reduction.MeanReduction):
        def __init__(self):
            super().__init__()
            self.calls = tf.Variable(0)

        def reduce(self, gradients):
            self.calls.assign_add(1)
            return super().reduce(gradients)

    counted = Counted()
    x, y = cases.images(128)
    with make_strategy("mirrored", 2).scope():
        model = cases.convnet()
        model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), "mse")
        Trainer(model, reduction=counted).fit(
            x, np.eye(5)[y], global_batch_size=16, epochs=2, verbose=0
        )
    assert int(counted.calls) == 2 * (16 // 4)  # two replicas, 16 steps


def test_a_run_saved_between_two_updates_goes_on_with_other_replicas(tmp_path):
    """Seven steps of four on two replicas, saved, then the rest on one device."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    x, y = cases.images(7 * 16)

    def fit(strategy, epochs, **arguments):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            model = cases.convnet()
            model.compile(
                keras.optimizers.Adam(1e-2, gradient_accumulation_steps=4),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            history = Trainer(model).fit(
                x, y, global_batch_size=16, epochs=epochs, verbose=0, **arguments
            )
        return cases.outcome(model, history)

    mirrored, alone = make_strategy("mirrored", 2), make_strategy("onedevice")
    fit(mirrored, 1, checkpoints=checkpoints)
    reference = fit(alone, 2)
    for strategy in (alone, mirrored):
        saved = checkpoint.read(checkpoints.path(checkpoints.newest()))
        assert saved.step == 7
        check_equal(fit(strategy, 2, resume_from=saved), reference, "adam")


@pytest.mark.parametrize("in_graph", [True, False])
def test_a_loop_written_by_hand_accumulates(in_graph):
    strategy = make_strategy("mirrored", 2)
    x, y = cases.images(3 * 16)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def build():
        keras.utils.set_random_seed(7)
        model = cases.convnet()
        model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), loss)
        model.optimizer.build(model.trainable_variables)
        return model

    def on_replica(batch, global_count):
        (x, y), share = step.cut_share(batch, global_count, 2, reduction.build_reduction())
        with replica.sharing(share):
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True))
            gradients = tape.gradient(value, model.trainable_variables)
            model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    def take(x, y):
        strategy.run(on_replica, args=((x, y), tf.shape(x)[0]))

    take = tf.function(take) if in_graph else take
    with strategy.scope():
        model = build()
        for begin in range(0, len(x), 16):
            take(tf.constant(x[begin : begin + 16]), tf.constant(y[begin : begin + 16]))
    expected = build()
    expected.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    mine, theirs = state.read(model), state.read(expected)
    for name in (name for name in mine if not name.startswith(("metrics", "replicas"))):
        np.testing.assert_allclose(mine[name], theirs[name], rtol=0, atol=1e-6, err_msg=name)


def test_an_infinite_gradient_on_one_replica_is_skipped_by_all():
    """Without accumulation: the step is skipped and the scale halved, as on one device."""

    def optimizer():
        inner = keras.optimizers.SGD(0.1, momentum=0.9)
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)

    data = functools.partial(cases.images, 64, huge_example=31)
    outcomes = {}
    for name, strategy in (
        ("keras", tf.distribute.get_strategy()),
        ("replicas", make_strategy("mirrored", 2)),
    ):
        keras.utils.set_random_seed(7)
        with strategy.scope():
            outcomes[name] = cases.train(
                optimizer, by_keras=name == "keras", model=cases.linear, data=data, epochs=2
            )
    check_equal(outcomes["replicas"], outcomes["keras"], "scaled")
    scale = [v for v in outcomes["replicas"].values() if v.shape == () and v == 2.0]
    assert len(scale) >= 1  # halved in each of two epochs
