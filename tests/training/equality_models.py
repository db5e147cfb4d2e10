"""Data and models of the table "N workers equal one": tiny, and drawn from fixed seeds.

`equality_cases.py` says which of them make a row.
"""

import keras
import numpy as np
import tensorflow as tf

layers, losses, optimizers = keras.layers, keras.losses, keras.optimizers


def images(num_examples=128, weighted=False):
    rng = np.random.default_rng(1)
    x = rng.random((num_examples, 8, 8, 1), dtype="float32")
    y, weights = rng.integers(0, 5, num_examples), rng.random(num_examples, dtype="float32")
    return x, y, weights if weighted else None


def named_images(num_examples=130):
    """Two inputs and two targets, by name."""
    x, y, weights = images(num_examples, weighted=True)
    extra = np.stack([weights, y, weights * y], 1).astype("float32")
    return {"image": x, "extra": extra}, {"digit": y, "size": weights[:, None]}, None


def binary_images(num_examples=105):
    x, y, _ = images(num_examples)
    return x, (y > 2).astype("float32")[:, None], None


def images_and_noise(num_examples=105):
    """What a generator starts from is given, so that it is the same on any number of replicas."""
    noise = np.random.default_rng(5).normal(size=(num_examples, 6)).astype("float32")
    return {"image": images(num_examples)[0], "noise": noise}, None, None


def image_dataset(unknown_length=False):
    """A dataset whose elements are the global batches, the last one short."""
    x, y, _ = images(130)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(130, seed=3).batch(32)
    return dataset.filter(lambda x, y: True) if unknown_length else dataset, None, None


def numbers(num_examples=130):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(num_examples, 10)).astype("float32")
    return x, (x @ rng.normal(size=(10, 1))).astype("float32"), None


def sequences(num_examples=130, targets="class", weighted=False):
    """Token numbers, 0 after the end; `targets` are a class or one a token."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 7, num_examples)
    x = np.where(np.arange(6) < lengths[:, None], rng.integers(1, 20, (num_examples, 6)), 0)
    shape = (num_examples, 6) if targets == "tokens" else num_examples
    y = rng.integers(0, 5, shape)
    return x, y, rng.random(shape, dtype="float32") if weighted else None


def crossentropy(reduction="sum_over_batch_size"):
    return losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)


def convnet(regularizer=None, normalisation=None, activity=None, extra=()):
    parts = [keras.Input((8, 8, 1)), layers.Conv2D(6, 3, kernel_regularizer=regularizer)]
    if normalisation is not None:
        parts.append(layers.BatchNormalization(synchronized=normalisation == "synchronized"))
    parts += [layers.Activation("tanh", activity_regularizer=activity)]
    parts += [layers.AveragePooling2D(2), layers.Flatten(), *extra]
    return keras.Sequential([*parts, layers.Dense(5, kernel_regularizer=regularizer)])


class Penalty(layers.Layer):
    """Adds the mean of its squared input to the loss."""

    def call(self, x):
        self.add_loss(0.3 * keras.ops.mean(keras.ops.square(x)))
        return x


def regression():
    return keras.Sequential([keras.Input((10,)), layers.Dense(10, "tanh"), layers.Dense(1)])


def two_inputs():
    image = keras.Input((8, 8, 1), name="image")
    extra = keras.Input((3,), name="extra")
    hidden = layers.Concatenate()([layers.Flatten()(image), extra])
    hidden = layers.Dense(8, activation="tanh")(hidden)
    digit = layers.Dense(5, name="digit")(hidden)
    size = layers.Dense(1, name="size")(hidden)
    return keras.Model({"image": image, "extra": extra}, {"digit": digit, "size": size})


def tagger():
    """One class a token: the loss is a mean over the tokens that count."""
    embedding = layers.Embedding(20, 4, mask_zero=True)
    return keras.Sequential(
        [keras.Input((6,)), embedding, layers.Dense(8, "tanh"), layers.Dense(5)]
    )


def embedding():
    return keras.Sequential(
        [keras.Input((6,)), layers.Embedding(20, 4), layers.Flatten(), layers.Dense(5)]
    )


def lstm():
    parts = [layers.Embedding(20, 4, mask_zero=True), layers.LSTM(6), layers.Dense(5)]
    return keras.Sequential([keras.Input((6,)), *parts])


def attention():
    tokens = keras.Input((6,))
    x = layers.Embedding(20, 8)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    return keras.Model(tokens, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def detector():
    """A probability, for metrics of a yes or a no."""
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1, "sigmoid")])


class OwnTrainStep(keras.Model):
    """A model that overrides `train_step`, as Keras' guides do."""

    def __init__(self):
        super().__init__()
        self.net = convnet()
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
        return {"own_loss": self.loss_tracker.result()}

    @property
    def metrics(self):
        return [self.loss_tracker]


class ReturnedLoss(OwnTrainStep):
    """Steps that return numbers which no metric tracks."""

    def train_step(self, data):
        return {"loss": super().train_step(data)["own_loss"], "two": 2.0}

    def test_step(self, data):
        x, y = data
        return {"loss": self.compute_loss(x, y, self(x, training=False)), "one": 1.0}


class Gan(keras.Model):
    """Two optimizers, of a discriminator and a generator that learn from each other."""

    def __init__(self):
        super().__init__()
        parts = [layers.Dense(16, "tanh"), layers.Dense(64, "sigmoid")]
        self.generator = keras.Sequential([keras.Input((6,)), *parts, layers.Reshape((8, 8, 1))])
        self.discriminator = keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(8, "tanh"), layers.Dense(1)]
        )
        self.trackers = [keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")]

    @property
    def metrics(self):
        return self.trackers

    def compile(self, d_optimizer, g_optimizer, loss):
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss

    def train_step(self, data):
        inputs = keras.utils.unpack_x_y_sample_weight(data)[0]
        real, noise = inputs["image"], inputs["noise"]
        count = tf.shape(real)[0]
        labels = tf.concat([tf.zeros((count, 1)), tf.ones((count, 1))], 0)
        both = tf.concat([self.generator(noise), real], 0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        self._descend(tape, d_loss, self.d_optimizer, self.discriminator.trainable_weights)
        with tf.GradientTape() as tape:
            fooled = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(tf.ones((count, 1)), fooled)
        self._descend(tape, g_loss, self.g_optimizer, self.generator.trainable_weights)
        for tracker, loss in zip(self.trackers, (d_loss, g_loss), strict=True):
            tracker.update_state(loss)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    @staticmethod
    def _descend(tape, loss, optimizer, weights):
        gradients = tape.gradient(loss, weights)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))


def gan():
    model = Gan()
    model.compile(
        optimizers.SGD(0.1, momentum=0.9, clipnorm=0.05),
        optimizers.Adam(1e-2),
        losses.BinaryCrossentropy(from_logits=True),
    )
    return model


def tape_step(model, data):
    """A step of a user's own; it averages by itself, and asks for the size of its batch."""
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


def two_optimizers():
    """A step with an optimizer of the model's for one layer, and its own for the other."""
    model = convnet()
    variables = model.trainable_variables
    model.first = optimizers.SGD(0.1, momentum=0.9, clipnorm=0.05)
    second = optimizers.Adam(1e-2, global_clipnorm=0.1)
    model.first.build(variables[:2])
    second.build(variables[2:])

    def step(model, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = crossentropy()(y, model(x, training=True))
        gradients = tape.gradient(loss, variables)
        model.first.apply_gradients(zip(gradients[:2], variables[:2], strict=True))
        second.apply_gradients(zip(gradients[2:], variables[2:], strict=True))
        return loss

    model.own_step = step
    return model
