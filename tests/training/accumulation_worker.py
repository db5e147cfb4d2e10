"""Optimizers that accumulate gradients: the cases, and one worker that runs them.

Each case returns the state of a checkpoint and the curves, either of Keras' own `fit`, which is
the oracle on one device, or of `tfscale.Trainer`.
"""

import functools
import sys

import keras
import numpy as np
import tensorflow as tf

from tfscale import testing
from tfscale.strategy import make_strategy
from tfscale.training import state
from tfscale.training.trainer import Trainer

layers, optimizers = keras.layers, keras.optimizers

NUM_EXAMPLES, BATCH, EPOCHS = 105, 32, 5  # 4 steps an epoch, the last of 9 examples


def images(num_examples=NUM_EXAMPLES, huge_example=None):
    rng = np.random.default_rng(1)
    x = rng.random((num_examples, 8, 8, 1), dtype="float32")
    if huge_example is not None:
        x[huge_example] = 3e38
    return x, rng.integers(0, 5, num_examples)


def convnet(constraint=None):
    parts = [keras.Input((8, 8, 1)), layers.Conv2D(6, 3), layers.Activation("tanh")]
    parts += [layers.AveragePooling2D(2), layers.Flatten()]
    parts += [layers.Dense(5, kernel_constraint=constraint)]
    return keras.Sequential(parts)


def linear():
    """What a huge example makes infinite: weights of one sign, and no activation."""
    outputs = layers.Dense(5, kernel_initializer="ones")
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), outputs])


class TwoOptimizers(keras.Model):
    """One optimizer accumulates, the other takes its gradient after the first has updated."""

    def __init__(self):
        super().__init__()
        self.net = convnet()
        self.first = optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3)
        self.second = optimizers.Adam(1e-2, global_clipnorm=0.1)
        self.first.build(self.net.trainable_variables[:2])
        self.second.build(self.net.trainable_variables[2:])

    def call(self, x, training=False):
        return self.net(x, training=training)

    def train_step(self, data):
        x, y = data
        for optimizer, part in ((self.first, slice(0, 2)), (self.second, slice(2, 4))):
            variables = self.net.trainable_variables[part]
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, variables)
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return {"last_loss": loss}


def train(
    optimizer, by_keras, *, model=convnet, data=images, batch=BATCH, epochs=EPOCHS, policy="float32"
):
    """Train from a fixed beginning, with every example in its place."""
    keras.config.set_dtype_policy(policy)
    try:
        built = model()
        x, y = data()
        built(x[:1])
        built.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        built.optimizer.build(built.trainable_variables)
        if by_keras:
            history = built.fit(x, y, batch_size=batch, epochs=epochs, shuffle=False, verbose=0)
        else:
            history = Trainer(built).fit(
                x, y, global_batch_size=batch, epochs=epochs, shuffle=False, verbose=0
            )
    finally:
        keras.config.set_dtype_policy("float32")
    return outcome(built, history)


def outcome(model, history):
    arrays = {name: v.numpy() for name, v in tf.function(lambda: state.read(model))().items()}
    arrays = {name: v for name, v in arrays.items() if not name.startswith(("metrics", "replicas"))}
    if not isinstance(model, TwoOptimizers):  # Keras reports its last loss, not the mean
        arrays["curve"] = np.array(history.history["loss"])
    return arrays


def _sequences():
    rng = np.random.default_rng(2)
    return rng.integers(0, 20, (NUM_EXAMPLES, 6)), rng.integers(0, 5, NUM_EXAMPLES)


def _embedding():
    parts = [keras.Input((6,)), layers.Embedding(20, 4), layers.Flatten(), layers.Dense(5)]
    return keras.Sequential(parts)


def _scaled(**arguments):
    """Loss scaling that grows every three steps, and an optimizer inside that accumulates."""
    inner = optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3)
    return optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=3, **arguments)


def _scheduled():
    schedule = optimizers.schedules.ExponentialDecay(0.2, 3, 0.7)
    return optimizers.SGD(schedule, gradient_accumulation_steps=3)


def _adamw():
    return optimizers.AdamW(
        1e-2,
        weight_decay=0.1,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=2,
        gradient_accumulation_steps=3,
    )


def _divided():
    """Loss scaling around two optimizers, of which one accumulates."""
    by_name = {".*bias": optimizers.SGD(0.05)}
    weights = optimizers.SGD(0.1, gradient_accumulation_steps=3)
    both = optimizers.MultiOptimizer(optimizers.OptimizerMap(weights, by_name))
    return optimizers.LossScaleOptimizer(both, initial_scale=8.0)


_case = functools.partial(functools.partial, train)
_max_norm = functools.partial(convnet, constraint=keras.constraints.MaxNorm(0.5))
# The huge example is in the third batch. Odd positions are the second replica's, while it is the
# first replica that Keras asks.
_infinite = functools.partial(_case, model=linear, data=functools.partial(images, huge_example=91))

# 20 steps: 2 and 4 divide an epoch, 3 does neither divide an epoch nor the run.
CASES = {
    "adam_2": _case(functools.partial(optimizers.Adam, 1e-2, gradient_accumulation_steps=2)),
    "clipnorm_4": _case(
        functools.partial(
            optimizers.SGD, 0.1, momentum=0.9, clipnorm=0.05, gradient_accumulation_steps=4
        )
    ),
    "adamw_ema_3": _case(_adamw),
    "schedule_constraint_3": _case(_scheduled, model=_max_norm),
    "sparse_gradients_2": _case(
        functools.partial(optimizers.Adam, 1e-2, gradient_accumulation_steps=2),
        model=_embedding,
        data=_sequences,
    ),
    "mixed_float16_3": _case(_scaled, policy="mixed_float16"),
    "infinite_on_one_replica_3": _infinite(functools.partial(_scaled, initial_scale=8.0)),
    "two_optimizers": _case(functools.partial(optimizers.SGD, 0.1), model=TwoOptimizers),
}
if hasattr(optimizers, "MultiOptimizer"):  # Keras 3.15 and newer
    CASES["multi_optimizer_3"] = _infinite(_divided)


def run(case, strategy, by_keras=False):
    """Run one case under a strategy; return its arrays by name."""
    keras.utils.set_random_seed(7)
    with strategy.scope():
        return CASES[case](by_keras=by_keras)


def main(cases):
    strategy = make_strategy("multiworker")
    arrays = {}
    for case in cases:
        arrays |= {f"{case}|{name}": array for name, array in run(case, strategy).items()}
    testing.collect(**arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
