"""Calls whose models, inputs and optimizers differ."""

import keras
import numpy as np
import tensorflow as tf
from keras_fit_calls import TOKENS, W, X, Y, case, crossentropy, dataset, dense

layers, optimizers = keras.layers, keras.optimizers


class Net(keras.Model):
    """A subclass whose layers are made in `build` and whose `call` knows nothing of training."""

    def build(self, shape):
        self.first, self.second = layers.Dense(4, "tanh"), layers.Dense(3)
        self.first.build(shape)
        self.second.build((*shape[:-1], 4))

    def call(self, x):
        return self.second(self.first(x))


class Masked(keras.Model):
    """`call` takes a mask; the layers inside make one."""

    def __init__(self):
        super().__init__()
        self.embed, self.pool = (
            layers.Embedding(9, 4, mask_zero=True),
            layers.GlobalAveragePooling1D(),
        )
        self.head = layers.Dense(3)

    def call(self, x, mask=None):
        return self.head(self.pool(self.embed(x)))


@case
def models(scope):
    def compiled(make, **options):
        with scope():
            model = make()
            model.compile(optimizers.SGD(0.1, 0.9), crossentropy(), **options)
        return model

    model = compiled(lambda: keras.Sequential([layers.Dense(4, "tanh"), layers.Dense(3)]))
    yield "unbuilt, evaluated first", model, model.evaluate(X, Y, batch_size=6, verbose=0)
    yield "unbuilt, then fit", model, model.fit(X, Y, batch_size=6, verbose=0)
    model = compiled(Net)
    yield "subclass", model, model.fit(X, Y, batch_size=6, verbose=0, validation_split=0.3)
    model = compiled(Net)
    yield "subclass, predicted first", model, model.predict(X, batch_size=7, verbose=0)
    yield "subclass, then fit", model, model.fit(X, Y, batch_size=6, verbose=0)
    with scope():
        model = Net()
    yield "uncompiled", model, model.predict(X, batch_size=7, verbose=0)
    yield "uncompiled, on batch", model, model.predict_on_batch(X[:5])
    model = compiled(Masked)
    yield "mask argument", model, model.fit(TOKENS, Y, batch_size=6, verbose=0)
    model = compiled(
        lambda: keras.Sequential([keras.Input((3,)), layers.Dense(3, trainable=False)])
    )
    yield "nothing trainable", model, model.fit(X, Y, batch_size=6, verbose=0)


@case
def masks(scope):
    """Losses and metrics of a sequence's own steps, where a mask says which count."""
    targets = np.cumsum(TOKENS, 1) % 5
    with scope():
        model = keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                layers.Embedding(9, 4, mask_zero=True),
                layers.LSTM(3, return_sequences=True),
                layers.Dense(5),
            ]
        )
        model.compile(
            optimizers.SGD(0.1, 0.9),
            crossentropy(),
            metrics=["accuracy"],
            weighted_metrics=["accuracy"],
        )
    yield "scored", model, model.evaluate(TOKENS, targets, batch_size=6, verbose=0)
    weights = np.tile(W[:, None], (1, 6))
    yield (
        "weights",
        model,
        model.fit(TOKENS, targets, sample_weight=weights, batch_size=6, verbose=0),
    )


@case
def attention(scope):
    with scope():
        tokens = keras.Input((6,), dtype="int32")
        x = layers.Embedding(9, 4)(tokens)
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 2)(x, x))
        model = keras.Model(tokens, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))
        model.compile(optimizers.SGD(0.1, 0.9), crossentropy(), metrics=["accuracy"])
    yield "fit", model, model.fit(TOKENS, Y, batch_size=6, epochs=2, verbose=0)


@case
def features(scope):
    """Text, strings, bytes: what is no float until the model has made it one."""
    words = np.array([f"word{t[0]} word{t[1]}" for t in TOKENS], dtype=object)
    with scope():
        vectorize = layers.TextVectorization(12, output_sequence_length=3)
        vectorize.adapt(words)
        model = keras.Sequential(
            [
                keras.Input((), dtype="string"),
                vectorize,
                layers.Embedding(12, 4),
                layers.GlobalAveragePooling1D(),
                layers.Dense(3),
            ]
        )
        model.compile(optimizers.SGD(0.1), crossentropy())
    text = tf.constant(words.tolist())
    yield "text", model, model.fit(text, Y, batch_size=6, verbose=0, validation_split=0.3)
    yield "text dataset", model, model.fit(dataset(text, Y), verbose=0)
    yield "predict text", None, model.predict(text, batch_size=7, verbose=0)
    with scope():
        lookup = layers.StringLookup(vocabulary=["red", "green"], output_mode="one_hot")
        model = keras.Sequential([keras.Input((1,), dtype="string"), lookup, layers.Dense(3)])
        model.compile(optimizers.SGD(0.1), crossentropy())
    colors = tf.constant(np.array(["red", "green", "blue"])[Y][:, None])
    yield "strings", model, model.fit(colors, Y, batch_size=6, verbose=0)
    images = np.random.default_rng(0).integers(0, 256, (22, 4, 4, 1)).astype("uint8")
    with scope():
        model = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                layers.Rescaling(1 / 255),
                layers.Conv2D(2, 3),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
        model.compile(optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    yield "bytes", model, model.fit(images, Y[:, None], batch_size=6, verbose=0)
    yield "byte dataset", model, model.fit(dataset(images, Y[:, None]), verbose=0)


@case
def ragged_and_sparse(scope):
    rows = tf.RaggedTensor.from_tensor(tf.constant(TOKENS, tf.int64), padding=0)
    with scope():
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int64", ragged=True),
                layers.Embedding(9, 4),
                layers.Lambda(lambda x: tf.reduce_mean(x, 1)),
                layers.Dense(3),
            ]
        )
        model.compile(optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    yield "ragged", model, model.fit(rows, Y, batch_size=6, shuffle=False, verbose=0)
    yield "ragged dataset", model, model.fit(dataset(rows, Y), verbose=0)
    yield "ragged scored", model, model.evaluate(dataset(rows, Y), verbose=0)
    yield "ragged predicted", None, model.predict(dataset(rows), verbose=0)

    sparse = tf.sparse.from_dense(np.where(X > 0, X, 0))
    with scope():
        model = keras.Sequential([keras.Input((3,), sparse=True), layers.Dense(3)])
        model.compile(optimizers.SGD(0.1), crossentropy(), metrics=["accuracy"])
    yield "sparse", model, model.fit(sparse, Y, batch_size=6, shuffle=False, verbose=0)
    yield "sparse dataset", model, model.fit(dataset(sparse, Y), verbose=0)
    yield "sparse predicted", None, model.predict(sparse, batch_size=7, verbose=0)


@case
def optimizing(scope):
    schedule = optimizers.schedules.ExponentialDecay(0.1, 3, 0.7)
    often = dict(global_clipnorm=0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)
    for name, optimizer, options in (
        ("weight decay, ema", lambda: optimizers.AdamW(0.05, 0.1, use_ema=True), {}),
        ("schedule, ema often", lambda: optimizers.SGD(schedule, **often), {}),
        ("compiled with XLA", lambda: optimizers.SGD(0.1, 0.9), {"jit_compile": True}),
        ("eagerly", lambda: optimizers.SGD(0.1, 0.9), {"run_eagerly": True}),
    ):
        model = dense(scope, optimizer=optimizer, **options)
        split = 0.3 if options else 0.0
        history = model.fit(X, Y, batch_size=6, epochs=2, validation_split=split, verbose=0)
        yield name, model, history
    yield "eager scores", model, model.evaluate(X, Y, batch_size=6, verbose=0)
    yield "eager outputs", model, model.predict(X, batch_size=7, verbose=0)
    yield "eager batch", model, model.train_on_batch(X[:5], Y[:5])


@case
def accumulation(scope):
    model = dense(scope, optimizer=lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2))
    yield "fit", model, model.fit(X, Y, batch_size=6, epochs=3, validation_split=0.3, verbose=0)


@case
def normalized(scope):
    with scope():
        parts = [layers.Dense(4), layers.BatchNormalization(synchronized=True), layers.Dense(3)]
        model = keras.Sequential([keras.Input((3,)), *parts])
        model.compile(optimizers.SGD(0.1, 0.9), crossentropy(), metrics=["accuracy"])
    yield "fit", model, model.fit(X, Y, batch_size=6, epochs=2, validation_split=0.3, verbose=0)
    yield "evaluate", None, model.evaluate(X, Y, batch_size=6, verbose=0)
    yield "predict", None, model.predict(X, batch_size=7, verbose=0)


@case
def mixed_precision(scope):
    before = keras.mixed_precision.dtype_policy()
    for policy in ("mixed_bfloat16", "mixed_float16"):
        keras.mixed_precision.set_dtype_policy(policy)
        try:
            model = dense(scope, metrics=None)  # one example near a tie would be all of accuracy
            yield policy, model, model.fit(X, Y, batch_size=6, epochs=3, verbose=0)
        finally:
            keras.mixed_precision.set_dtype_policy(before)
