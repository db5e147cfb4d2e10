"""Keras' guides on one machine, one after the other: own steps, own callbacks, a GAN, transfer.

    python guides.py --data=digits.csv.gz

In the manner of "Customizing what happens in fit()", "Writing your own callbacks", and
"Transfer learning & fine-tuning"; and a loop around `train_on_batch`.
"""

import argparse
import json

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers


class CustomModel(keras.Model):
    """Trains and tests by hand, with trackers of its own and weights of the examples."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")
        self.loss_fn = keras.losses.MeanSquaredError()

    def train_step(self, data):
        if len(data) == 3:
            x, y, sample_weight = data
        else:
            sample_weight = None
            x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.loss_fn(y, y_pred, sample_weight=sample_weight)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, y_pred, sample_weight=sample_weight)
        return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

    def test_step(self, data):
        x, y = data
        y_pred = self(x, training=False)
        self.loss_tracker.update_state(self.loss_fn(y, y_pred))
        self.mae_metric.update_state(y, y_pred)
        return {m.name: m.result() for m in self.metrics}

    @property
    def metrics(self):
        return [self.loss_tracker, self.mae_metric]


def customize_fit():
    x, y = np.random.random((104, 16)).astype("float32"), np.random.random((104, 1))
    inputs = keras.Input(shape=(16,))
    model = CustomModel(inputs, layers.Dense(1)(layers.Dense(8, activation="relu")(inputs)))
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    sample_weight = np.random.random((104, 1))
    first = model.fit(x, y, sample_weight=sample_weight, epochs=3, verbose=0)
    second = model.fit(x, y, epochs=2, validation_split=0.25, verbose=0)
    return {"weighted": first.history, "plain": second.history, "test": model.evaluate(x, y)}


class GAN(keras.Model):
    def __init__(self, discriminator, generator, latent_dim):
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.latent_dim = latent_dim
        self.d_loss_tracker = keras.metrics.Mean(name="d_loss")
        self.g_loss_tracker = keras.metrics.Mean(name="g_loss")
        self.count_tracker = keras.metrics.Sum(name="images")
        self.seed_generator = keras.random.SeedGenerator(1337)

    @property
    def metrics(self):
        return [self.d_loss_tracker, self.g_loss_tracker, self.count_tracker]

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    def train_step(self, real_images):
        if isinstance(real_images, tuple):
            real_images = real_images[0]
        batch_size = tf.shape(real_images)[0]
        noise = keras.random.normal((batch_size, self.latent_dim), seed=self.seed_generator)
        generated = self.generator(noise)
        combined = tf.concat([generated, real_images], axis=0)
        labels = tf.concat([tf.ones((batch_size, 1)), tf.zeros((batch_size, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(combined))
        grads = tape.gradient(d_loss, self.discriminator.trainable_weights)
        self.d_optimizer.apply(grads, self.discriminator.trainable_weights)

        noise = keras.random.normal((batch_size, self.latent_dim), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            predictions = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(tf.zeros((batch_size, 1)), predictions)
        grads = tape.gradient(g_loss, self.generator.trainable_weights)
        self.g_optimizer.apply(grads, self.generator.trainable_weights)

        self.d_loss_tracker.update_state(d_loss)
        self.g_loss_tracker.update_state(g_loss)
        self.count_tracker.update_state(tf.ones(batch_size))
        return {m.name: m.result() for m in self.metrics}


def end_to_end_gan(images):
    discriminator = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, strides=2),
            layers.LeakyReLU(negative_slope=0.2),
            layers.GlobalMaxPooling2D(),
            layers.Dense(1),
        ]
    )
    generator = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(64, activation="sigmoid"),
            layers.Reshape((8, 8, 1)),
        ]
    )
    gan = GAN(discriminator, generator, latent_dim=6)
    gan.compile(
        d_optimizer=keras.optimizers.Adam(0.003),
        g_optimizer=keras.optimizers.Adam(0.003),
        loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    history = gan.fit(images, batch_size=64, epochs=2, verbose=0).history
    return history["images"], history["d_loss"] + history["g_loss"]


class CustomCallback(keras.callbacks.Callback):
    """Notes each call that it gets."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("train begins")

    def on_train_end(self, logs=None):
        self.calls.append(f"train ends: {list(logs.keys())}")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(f"epoch {epoch} begins")

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(f"epoch {epoch} ends: {list(logs.keys())}")

    def on_test_begin(self, logs=None):
        self.calls.append("test begins")

    def on_test_end(self, logs=None):
        self.calls.append(f"test ends: {list(logs.keys())}")

    def on_predict_batch_end(self, batch, logs=None):
        self.calls.append(f"predicted batch {batch}")

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(f"batch {batch}: {list(logs.keys())}")


class EarlyStoppingAtMinLoss(keras.callbacks.Callback):
    """Stops when the loss is at its least, and puts the weights of that epoch back."""

    def __init__(self, patience=0):
        super().__init__()
        self.patience, self.best_weights = patience, None

    def on_train_begin(self, logs=None):
        self.wait, self.stopped_epoch, self.best = 0, 0, np.inf

    def on_epoch_end(self, epoch, logs=None):
        current = logs.get("loss")
        if np.less(current, self.best):
            self.best, self.wait = current, 0
            self.best_weights = self.model.get_weights()
        else:
            self.wait += 1
            if self.wait >= self.patience:
                self.stopped_epoch = epoch
                self.model.stop_training = True
                self.model.set_weights(self.best_weights)


class CustomLearningRateScheduler(keras.callbacks.Callback):
    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.rates = schedule, []

    def on_epoch_begin(self, epoch, logs=None):
        rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        self.model.optimizer.learning_rate = self.schedule(epoch, rate)
        self.rates.append(float(self.model.optimizer.learning_rate.numpy()))


def own_callbacks(images, labels):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(10)])
    model.compile(
        keras.optimizers.SGD(0.2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x = images[:300].reshape(-1, 64)
    noting, stopping = CustomCallback(), EarlyStoppingAtMinLoss()
    rates = CustomLearningRateScheduler(lambda epoch, rate: rate * 1.5 if epoch < 3 else 150.0)
    history = model.fit(
        x,
        labels[:300],
        batch_size=100,
        epochs=9,
        verbose=0,
        validation_split=0.3,
        callbacks=[noting, stopping, rates],
    )
    model.evaluate(x, labels[:300], batch_size=128, verbose=0, callbacks=[noting])
    model.predict(x, batch_size=128, verbose=0, callbacks=[noting])
    return {
        "calls": noting.calls,
        "stopped": stopping.stopped_epoch,
        "rates": rates.rates,
        "history": history.history,
        "test": model.evaluate(x, labels[:300], verbose=0),
    }


def transfer_learning(images, labels):
    base = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
        ]
    )
    base.trainable = False
    inputs = keras.Input((8, 8, 1))
    x = base(layers.Rescaling(2.0, offset=-1)(inputs), training=False)
    model = keras.Model(inputs, layers.Dense(10)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    dataset = tf.data.Dataset.from_tensor_slices((images[:330], labels[:330])).cache().batch(50)
    frozen = [w.copy() for w in base.get_weights()]
    top = model.fit(dataset.prefetch(4), epochs=2, validation_data=dataset, verbose=0)
    unchanged = all(np.array_equal(a, b) for a, b in zip(frozen, base.get_weights(), strict=True))
    base.trainable = True
    base.layers[1].trainable = False  # its statistics stay those it was trained with
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    fine = model.fit(dataset, epochs=2, validation_data=dataset, verbose=0)
    changed = not np.array_equal(frozen[0], base.get_weights()[0])
    return {"top": top.history, "fine": fine.history, "frozen": unchanged, "thawed": changed}


def loop_over_batches(images, labels):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, kernel_regularizer="l2")]
    )
    model.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    losses = []
    for step in range(6):
        batch = slice(50 * step, 50 * step + 45 + step)
        losses.append(model.train_on_batch(images[batch], labels[batch], return_dict=True))
    tested = model.test_on_batch(images[:77], labels[:77], return_dict=True)
    return {"train": losses, "test": tested, "sum": float(model.predict_on_batch(images[:7]).sum())}


parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
args = parser.parse_args()
keras.utils.set_random_seed(1)
table = np.loadtxt(args.data, delimiter=",", dtype="float32")
digits, classes = table[:, :-1].reshape(-1, 8, 8, 1) / 16, table[:, -1].astype("int64")

found = {"customize_fit": customize_fit()}
found["own_callbacks"] = own_callbacks(digits, classes)
found["transfer_learning"] = transfer_learning(digits, classes)
found["loop_over_batches"] = loop_over_batches(digits, classes)
found["gan"] = end_to_end_gan(digits[:330])
print("result", json.dumps(found), flush=True)
