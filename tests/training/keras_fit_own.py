"""Calls of models that bring losses, metrics and steps of their own."""

import keras
import numpy as np
import tensorflow as tf
from keras_fit_calls import X_TEST, Y_TEST, Recorder, W, X, Y, case, crossentropy

layers, optimizers = keras.layers, keras.optimizers
IS_KERAS_313 = keras.__version__.startswith("3.13.")


class Penalty(layers.Layer):
    """Adds a loss while it computes."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(x**2))
        return x


class OwnLoss(keras.Model):
    """Overrides `compute_loss` and `compute_metrics`, as Keras' documentation has it."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = layers.Dense(3), keras.metrics.Mean(name="seen")
        self.error = keras.metrics.MeanAbsoluteError(name="error")

    def call(self, x):
        return self.net(x)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, True))
        loss += sum(self.losses)
        self.seen.update_state(loss)
        return loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        found = super().compute_metrics(x, y, y_pred, sample_weight)
        self.error.update_state(y, keras.ops.argmax(y_pred, -1))
        return {**found, "error": self.error.result()}

    def reset_metrics(self):
        self.seen.reset_state()
        self.error.reset_state()

    @property
    def metrics(self):
        return [self.seen]


class Spread(keras.metrics.Metric):
    """A metric of the user's own."""

    def __init__(self, name="spread"):
        super().__init__(name=name)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(keras.ops.sum(keras.ops.std(y_pred, axis=1)))
        self.count.assign_add(keras.ops.cast(keras.ops.shape(y_pred)[0], "float32"))

    def result(self):
        return self.total / self.count


class Watching(keras.Model):
    """A metric as an attribute, updated in `call`."""

    def __init__(self):
        super().__init__()
        self.net, self.mean_output = layers.Dense(3), keras.metrics.Mean(name="mean_output")
        self.total = keras.metrics.Sum(name="total")

    def call(self, x):
        y = self.net(x)
        self.mean_output.update_state(y)
        self.total.update_state(keras.ops.sum(y))
        return y


@case
def added_losses(scope):
    def fit(model, y=Y, **arguments):
        return model.fit(X, y, batch_size=6, epochs=2, verbose=0, **arguments)

    with scope():
        inputs = keras.Input((3,))
        activity = None if IS_KERAS_313 else "l2"  # there it sums over the batch
        x = layers.Dense(3, activity_regularizer=activity, kernel_regularizer="l1")(
            Penalty()(inputs)
        )
        model = keras.Model(inputs, Penalty()(x))
        model.compile(optimizers.SGD(0.1, 0.9), crossentropy(), metrics=["accuracy"])
    yield "add_loss", model, fit(model, validation_split=0.3)
    yield "evaluate", None, model.evaluate(X, Y, batch_size=6, verbose=0)
    with scope():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(3), Penalty()])
        model.compile(optimizers.SGD(0.1))
    yield "no loss compiled", model, fit(model)
    yield "no labels", model, fit(model, y=None)
    yield "no labels, evaluate", None, model.evaluate(X, batch_size=6, verbose=0)
    with scope():
        model = OwnLoss()
        model.compile(optimizers.SGD(0.1))
    yield "own loss", model, fit(model, validation_split=0.3)


@case
def metrics(scope):
    one_hot = np.eye(3, dtype="float32")[Y]
    with scope():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(3, "softmax")])
        model.compile(
            optimizers.SGD(0.1, 0.9),
            "categorical_crossentropy",
            metrics=[
                "accuracy",
                keras.metrics.F1Score(),
                keras.metrics.AUC(num_thresholds=20),
                keras.metrics.Precision(),
                keras.metrics.MeanSquaredError(),
                Spread(),
                lambda y, p: keras.ops.max(keras.ops.abs(y - p), axis=-1),
            ],
            weighted_metrics=[keras.metrics.CategoricalCrossentropy()],
        )
    yield (
        "compiled",
        model,
        model.fit(
            X, one_hot, sample_weight=W, batch_size=7, epochs=2, verbose=0, validation_split=0.3
        ),
    )
    yield "evaluate", None, model.evaluate(X, one_hot, batch_size=7, verbose=0)
    with scope():
        model = Watching()
        model.compile(optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    yield "attribute", model, model.fit(X, Y, batch_size=6, verbose=0, validation_split=0.3)


class Guide(keras.Model):
    """`train_step` as Keras' guide writes it."""

    def __init__(self):
        super().__init__()
        self.net = layers.Dense(3)

    def call(self, x, training=False):
        return self.net(x)

    def train_step(self, data):
        x, y, w = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred, sample_weight=w)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return self.results()

    def results(self):
        if IS_KERAS_313:  # which mixes up the numbers of training and validation in nested dicts
            return self.get_metrics_result()
        return {metric.name: metric.result() for metric in self.metrics}

    def test_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        loss = self.compute_loss(y=y, y_pred=y_pred)
        for metric in self.metrics:
            if metric.name != "loss":
                metric.update_state(y, y_pred)
            else:
                metric.update_state(loss)
        return self.results()

    def predict_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"kind": keras.ops.argmax(self(x, training=False), -1)}


class OwnTrackers(Guide):
    """Metrics of its own, no compiled loss."""

    def __init__(self):
        super().__init__()
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.mae_metric = keras.metrics.MeanAbsoluteError(name="mae")

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred, True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.loss_tracker.update_state(loss)
        self.mae_metric.update_state(y, keras.ops.argmax(y_pred, -1))
        return {"loss": self.loss_tracker.result(), "mae": self.mae_metric.result()}

    def test_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        loss = keras.losses.sparse_categorical_crossentropy(y, self(x, training=False), True)
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result()}

    @property
    def metrics(self):
        return [self.loss_tracker, self.mae_metric]


class Untracked(Guide):
    """Returns a loss that no metric holds: Keras shows the last batch's."""

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss, "twice": 2 * loss}

    def test_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        return {"loss": self.compute_loss(y=y, y_pred=self(x, training=False)), "one": 1.0}


class Extended(Guide):
    """Calls the step of its parent, and adds a number."""

    train_step = keras.Model.train_step
    test_step = keras.Model.test_step
    predict_step = keras.Model.predict_step


class Wrapped(Extended):
    def train_step(self, data):
        found = super().train_step(data)
        return {**found, "rate": self.optimizer.learning_rate}


@case
def own_steps(scope):
    for name, kind, options in (
        ("guide", Guide, dict(loss=crossentropy(), metrics=["accuracy"])),
        ("own trackers", OwnTrackers, {}),
        ("untracked", Untracked, dict(loss=crossentropy())),
        ("wrapped", Wrapped, dict(loss=crossentropy(), metrics=["accuracy"])),
    ):
        with scope():
            model = kind()
            model.compile(optimizers.SGD(0.1, 0.9), **options)
        yield f"{name}, one left", model, model.fit(X[:13], Y[:13], 6, shuffle=False, verbose=0)
        recorder = Recorder()
        history = model.fit(
            X,
            Y,
            batch_size=6,
            epochs=2,
            verbose=0,
            validation_data=(X_TEST, Y_TEST),
            callbacks=[recorder],
        )
        yield name, model, (history, recorder.all())
        yield f"{name}, evaluate", None, model.evaluate(X, Y, batch_size=6, verbose=0)
        if name == "guide":
            yield f"{name}, predict", None, model.predict(X, batch_size=7, verbose=0)
            model.reset_metrics()
            yield f"{name}, on batch", model, model.train_on_batch(X[:5], Y[:5], return_dict=True)
            model.reset_metrics()
            yield f"{name}, test on batch", model, model.test_on_batch(X[:5], Y[:5])
