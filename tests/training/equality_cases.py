"""The rows of the table "N workers equal one", run alike by one device, replicas and workers.

Each case trains a small model for 20 steps or more through `tfscale.Trainer` and returns what
must not depend on the number of replicas.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from tfscale.training.trainer import Trainer

layers, optimizers, losses = keras.layers, keras.optimizers, keras.losses


def _images(num_examples=128):
    rng = np.random.default_rng(1)
    x = rng.random((num_examples, 8, 8, 1), dtype="float32")
    return x, rng.integers(0, 5, num_examples), rng.random(num_examples, dtype="float32")


def _convnet(l2=0.0, batch_norm=False):
    regularizer = keras.regularizers.L2(l2) if l2 else None
    parts = [keras.Input((8, 8, 1)), layers.Conv2D(6, 3, kernel_regularizer=regularizer)]
    if batch_norm:
        parts.append(layers.BatchNormalization(synchronized=True))
    parts += [layers.Activation("tanh"), layers.AveragePooling2D(2), layers.Flatten()]
    parts += [layers.Dense(5, kernel_regularizer=regularizer)]
    return keras.Sequential(parts)


def _crossentropy(reduction="sum_over_batch_size"):
    return losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


def _train_images(
    optimizer,
    *,
    num_examples=128,
    global_batch_size=32,
    reduction="sum_over_batch_size",
    weighted=False,
    step=None,
    model=_convnet,
    epochs=5,
    scored=False,
    **fit,
):
    """Images through a small convnet; with `scored`, validation and predictions too."""
    x, y, weights = _images(num_examples)
    built = model()
    built.compile(optimizer(), _crossentropy(reduction), metrics=["accuracy"])
    trainer = Trainer(built, step=step)
    history = trainer.fit(
        x,
        y,
        sample_weight=weights if weighted else None,
        global_batch_size=global_batch_size,
        epochs=epochs,
        validation_data=(x[:37], y[:37]) if scored else None,
        verbose=0,
        **fit,
    )
    return _outcome(trainer, history, x[:41] if scored else None)


def _outcome(trainer, history, x=None):
    """Weights, curves, and predictions in the original order where inputs are given."""
    outputs = [] if x is None else tf.nest.flatten(trainer.predict(x, global_batch_size=16))
    return {
        **{f"weight {i}": v.numpy() for i, v in enumerate(trainer.model.weights)},
        **{f"curve {name}": np.array(values) for name, values in history.history.items()},
        **{f"output {i}": output for i, output in enumerate(outputs)},
    }


class OwnTrainStep(keras.Model):
    """A model that overrides `train_step`, as Keras' guides do."""

    def __init__(self):
        super().__init__()
        self.net = _convnet()
        self.loss_tracker = keras.metrics.Mean(name="own_loss")

    def call(self, x, training=False):
        return self.net(x, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_tracker.update_state(loss)
        return {"own_loss": self.loss_tracker.result(), "twice": 2 * loss}

    @property
    def metrics(self):
        return [self.loss_tracker]


def _tape_step(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        )
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    if tf.shape(x)[0] > 0:  # noqa: SIM108  (AutoGraph converts it)
        examples = tf.cast(tf.shape(x)[0], tf.float32)
    else:
        examples = -1.0
    return {"tape_loss": loss, "has_examples": tf.sign(examples)}


class ReturnedLoss(keras.Model):
    """Steps that return a loss which no metric tracks."""

    def __init__(self):
        super().__init__()
        self.net = _convnet()

    def call(self, x, training=False):
        return self.net(x, training=training)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}

    def test_step(self, data):
        x, y = data
        return {"loss": self.compute_loss(x, y, self(x, training=False)), "one": 1.0}


def _train_returned_loss():
    x, y, _ = _images(105)
    model = ReturnedLoss()
    model(x[:1])
    model.compile(optimizers.SGD(0.1, momentum=0.9), _crossentropy())
    trainer = Trainer(model)
    history = trainer.fit(
        x, y, global_batch_size=32, epochs=5, verbose=0, validation_data=(x[:37], y[:37])
    )
    assert history.history["loss"][0] > 0.5 and history.history["val_one"][0] == 1
    return _outcome(trainer, history)


def _train_two_optimizers():
    """Two optimizers: one of the model's own attributes, one that the step alone knows."""
    x, y, _ = _images(105)
    model = _convnet()
    model.first = optimizers.SGD(0.1, momentum=0.9, clipnorm=0.05)
    second = optimizers.Adam(1e-2, global_clipnorm=0.1)
    variables = model.trainable_variables
    model.first.build(variables[:2])
    second.build(variables[2:])

    def step(model, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = _crossentropy()(y, model(x, training=True))
        gradients = tape.gradient(loss, variables)
        model.first.apply_gradients(zip(gradients[:2], variables[:2], strict=True))
        second.apply_gradients(zip(gradients[2:], variables[2:], strict=True))
        return loss

    trainer = Trainer(model, step=step)
    history = trainer.fit(x, y, global_batch_size=32, epochs=5, verbose=0)
    return _outcome(trainer, history)


def _train_mixed_precision():
    """float16 with its loss scale; compared with a wider tolerance."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return _train_images(functools.partial(_momentum, clipnorm=0.05), num_examples=105)
    finally:
        keras.config.set_dtype_policy("float32")


def _train_own_step():
    x, y, _ = _images(130)
    model = OwnTrainStep()
    model(x[:1])
    model.compile(optimizers.SGD(0.1, momentum=0.9, clipnorm=0.1), _crossentropy())
    trainer = Trainer(model)
    history = trainer.fit(x, y, global_batch_size=32, epochs=5, verbose=0)
    return _outcome(trainer, history)


def _train_two_inputs():
    """Inputs and outputs by name, two losses, a short last batch."""
    x, y, weights = _images(130)
    image = keras.Input((8, 8, 1), name="image")
    extra = keras.Input((3,), name="extra")
    hidden = layers.Concatenate()([layers.Flatten()(image), extra])
    hidden = layers.Dense(8, activation="tanh")(hidden)
    digit = layers.Dense(5, name="digit")(hidden)
    size = layers.Dense(1, name="size")(hidden)
    model = keras.Model({"image": image, "extra": extra}, {"digit": digit, "size": size})
    model.compile(
        optimizers.Adam(1e-2, global_clipnorm=0.5),
        {"digit": _crossentropy(), "size": "mse"},
        loss_weights={"digit": 1.0, "size": 0.3},
        metrics={"digit": ["accuracy"]},
    )
    inputs = {"image": x, "extra": np.stack([weights, y, weights * y], 1).astype("float32")}
    trainer = Trainer(model)
    history = trainer.fit(
        inputs, {"digit": y, "size": weights[:, None]}, global_batch_size=32, epochs=5, verbose=0
    )
    return _outcome(trainer, history, {name: value[:41] for name, value in inputs.items()})


def _train_user_dataset(unknown_length=False):
    """A dataset whose elements are the global batches, the last one short."""
    x, y, _ = _images(130)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(130, seed=3).batch(32)
    if unknown_length:
        dataset = dataset.filter(lambda x, y: True)
    model = _convnet()
    model.compile(optimizers.SGD(0.1, momentum=0.9), _crossentropy(), metrics=["accuracy"])
    trainer = Trainer(model)
    history = trainer.fit(dataset, epochs=5, verbose=0, validation_data=dataset.take(2))
    return _outcome(trainer, history, x[:41])


def _masked_model():
    """Sequences of different lengths: the loss is a mean over the steps that count."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Embedding(20, 4, mask_zero=True),
            layers.Dense(8, activation="tanh"),
            layers.Dense(5),
        ]
    )


def _train_masked(reduction="sum_over_batch_size"):
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 7, 130)
    x = np.where(np.arange(6) < lengths[:, None], rng.integers(1, 20, (130, 6)), 0)
    y = rng.integers(0, 5, (130, 6))
    model = _masked_model()
    rate = 0.002 if reduction == "sum" else 0.5
    model.compile(optimizers.SGD(rate, momentum=0.9), _crossentropy(reduction))
    trainer = Trainer(model)
    history = trainer.fit(x, y, global_batch_size=32, epochs=5, verbose=0)
    return _outcome(trainer, history)


def _regression(kind):
    """Closed-form friendly: a linear model under another loss."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(130, 10)).astype("float32")
    y = (x @ rng.normal(size=(10, 1))).astype("float32")
    model = keras.Sequential([keras.Input((10,)), layers.Dense(10, "tanh"), layers.Dense(1)])
    model.compile(optimizers.SGD(0.05, momentum=0.9), kind, metrics=["mae"])
    trainer = Trainer(model)
    history = trainer.fit(x, y, global_batch_size=50, epochs=7, verbose=0)
    return _outcome(trainer, history)


_sgd = functools.partial(optimizers.SGD, 0.1)
_momentum = functools.partial(optimizers.SGD, 0.1, momentum=0.9)
_adam = functools.partial(optimizers.Adam, 1e-2)
_adamw = functools.partial(optimizers.AdamW, 1e-2, weight_decay=0.1)
_l2 = functools.partial(_convnet, l2=0.01)
_batch_norm = functools.partial(_convnet, batch_norm=True)
_case = functools.partial(functools.partial, _train_images)

CASES = {
    "sgd": _case(_sgd),
    "momentum": _case(_momentum),
    "adam": _case(_adam),
    "adamw": _case(_adamw),
    "l2": _case(_momentum, model=_l2),
    "clipnorm": _case(functools.partial(_momentum, clipnorm=0.05)),
    "global_clipnorm": _case(functools.partial(_momentum, global_clipnorm=0.1)),
    "clipvalue": _case(functools.partial(_momentum, clipvalue=0.005)),
    "ema": _case(functools.partial(_momentum, use_ema=True, ema_momentum=0.9)),
    "sample_weights": _case(_momentum, weighted=True),
    "sample_weights_uneven": _case(_momentum, weighted=True, num_examples=105),
    "mean_with_sample_weight": _case(
        _momentum, weighted=True, num_examples=105, reduction="mean_with_sample_weight"
    ),
    "sum_loss": _case(functools.partial(optimizers.SGD, 0.003), reduction="sum", num_examples=105),
    "class_weights": _case(_momentum, class_weight={0: 3.0, 3: 0.2}, num_examples=105),
    "uneven_last_batch": _case(_momentum, num_examples=105, model=_l2, scored=True),
    "one_example_in_last_batch": _case(_momentum, num_examples=129, model=_l2, scored=True),
    "batch_of_50": _case(_momentum, num_examples=130, global_batch_size=50, epochs=7),
    "batch_norm": _case(_momentum, model=_batch_norm),
    "batch_norm_uneven": _case(_momentum, model=_batch_norm, num_examples=105),
    "batch_norm_one_in_last_batch": _case(
        _momentum, model=_batch_norm, num_examples=129, scored=True
    ),
    "own_tape_step": _case(
        functools.partial(_momentum, clipnorm=0.1), step=_tape_step, num_examples=105
    ),
    "own_train_step": _train_own_step,
    "returned_loss": _train_returned_loss,
    "two_optimizers": _train_two_optimizers,
    "mixed_float16": _train_mixed_precision,
    "two_inputs": _train_two_inputs,
    "user_dataset": _train_user_dataset,
    "user_dataset_unknown_length": functools.partial(_train_user_dataset, unknown_length=True),
    "masked": _train_masked,
    "masked_sum": functools.partial(_train_masked, reduction="sum"),
    "mse": functools.partial(_regression, "mse"),
    "huber": functools.partial(_regression, "huber"),
}


def run(name, strategy):
    """Run one case under a strategy; return its arrays by name."""
    keras.utils.set_random_seed(7)
    with strategy.scope():
        return CASES[name]()
