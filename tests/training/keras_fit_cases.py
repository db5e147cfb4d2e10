"""Calls of `keras.Model.fit` and its kin, made alike on one device, replicas and workers.

Each case is a generator: it makes models in the scope it is given and yields, call by call, a
name, the model or None, and what the call returned. `run` turns that into plain arrays.
"""

import itertools
import tempfile

import keras
import numpy as np
import tensorflow as tf

layers, losses, optimizers = keras.layers, keras.losses, keras.optimizers

_rng = np.random.default_rng(3)
X = _rng.normal(size=(22, 3)).astype("float32")
Y = _rng.integers(0, 3, 22)
W = _rng.random(22, dtype="float32")
X_TEST, Y_TEST, W_TEST = X[::-1][:13].copy(), Y[::-1][:13].copy(), W[:13].copy()
TOKENS = np.where(np.arange(6) < _rng.integers(1, 7, (22, 1)), _rng.integers(1, 9, (22, 6)), 0)

CASES = {}


def case(function):
    """Put a case into the table."""
    CASES[function.__name__] = function
    return function


def run(name, scope, num_calls=None):
    """Run a case.

    Args:
        name: of the case.
        scope: makes a context in which models are made.
        num_calls: the first calls only; None for all.

    Returns:
        A dict of flat names to arrays, in the order of the calls.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(7)
    found = {}
    for call, model, result in itertools.islice(CASES[name](scope), num_calls):
        found.update(_flat(f"{call}: result", result))
        if model is not None:
            for i, value in enumerate(model.get_weights()):
                found.update(_flat(f"{call}: weight {i}", value))
    return found


def _flat(name, value):
    """Nested results as arrays by name; the order of a dict's keys is kept as text."""
    if isinstance(value, keras.callbacks.History):
        value = {"epochs": value.epoch, "params": value.params, **value.history}
    if isinstance(value, dict):
        found = {f"{name} keys": np.array(",".join(map(str, value)))}
        for key, part in value.items():
            found.update(_flat(f"{name} {key}", part))
        return found
    if isinstance(value, tuple) or (isinstance(value, list) and name.endswith("result")):
        parts = [_flat(f"{name} {i}", part) for i, part in enumerate(value)]
        return {n: v for part in parts for n, v in part.items()}
    if value is None:
        return {name: np.array("None")}
    if isinstance(value, tf.RaggedTensor):
        value = value.to_tensor(-1)
    return {name: np.asarray(value)}


class Recorder(keras.callbacks.Callback):
    """Notes each call of a hook: its name, its number, the keys of its logs and their values."""

    def __init__(self):
        super().__init__()
        self.calls, self.values = [], []

    def note(self, hook, number=None, logs=None):
        logs = logs or {}
        if "outputs" in logs:
            shapes = [tuple(np.shape(t)) for t in tf.nest.flatten(logs["outputs"])]
            logs = {f"outputs {shapes}": 0.0}
        self.calls.append(f"{hook} {number} {' '.join(logs)}")
        self.values += [np.mean(value) for value in logs.values()]

    def all(self):
        return {"calls": np.array(self.calls), "values": np.array(self.values, "float64")}


def _noting(hook, numbered):
    if numbered:
        return lambda self, number, logs=None: self.note(hook, number, logs)
    return lambda self, logs=None: self.note(hook, None, logs)


for _kind in ("train", "test", "predict"):
    for _end in ("begin", "end"):
        setattr(Recorder, f"on_{_kind}_{_end}", _noting(f"on_{_kind}_{_end}", False))
        hook = f"on_{_kind}_batch_{_end}"
        setattr(Recorder, hook, _noting(hook, True))
for _end in ("begin", "end"):
    setattr(Recorder, f"on_epoch_{_end}", _noting(f"on_epoch_{_end}", True))


class Batches(keras.utils.PyDataset):
    """Batches of 6 of the examples."""

    def __init__(self, x=X, y=Y, w=None, **arguments):
        super().__init__(**arguments)
        self._parts = [p for p in (x, y, w) if p is not None]

    def __len__(self):
        return -(-len(self._parts[0]) // 6)

    def __getitem__(self, i):
        return tuple(p[6 * i : 6 * i + 6] for p in self._parts)


def generator(x=X, y=Y, size=6, endless=True):
    while True:
        for i in range(0, len(x), size):
            yield x[i : i + size], y[i : i + size]
        if not endless:
            return


def dataset(*parts, size=6):
    parts = parts or (X, Y)
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


def crossentropy():
    return losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(scope, *, optimizer=None, hidden=(), **options):
    """A small classifier, compiled; `optimizer` makes one."""
    with scope():
        parts = [layers.Dense(size, "tanh") for size in hidden]
        model = keras.Sequential([keras.Input((3,)), *parts, layers.Dense(3)])
        options = {"metrics": ["accuracy"], **options}
        made = optimizer() if optimizer else optimizers.SGD(0.1, 0.9)
        model.compile(made, crossentropy(), **options)
    return model


@case
def arrays(scope):
    model = dense(scope, weighted_metrics=["accuracy"])

    def fit(**arguments):
        return model.fit(X, Y, **{"batch_size": 6, "epochs": 2, "verbose": 0, **arguments})

    yield "plain", model, fit()
    yield "no shuffle, batch of 32", model, fit(shuffle=False, batch_size=None)
    yield "split", model, fit(validation_split=0.3)
    yield "split, weighted", model, fit(validation_split=0.3, sample_weight=W)
    yield "weights", model, fit(sample_weight=W, validation_data=(X_TEST, Y_TEST, W_TEST))
    yield "class weights", model, fit(class_weight={0: 1.0, 1: 0.5, 2: 3.0})
    yield (
        "validation freq",
        model,
        fit(epochs=4, validation_freq=2, validation_data=(X_TEST, Y_TEST)),
    )
    yield (
        "validation list",
        model,
        fit(epochs=3, validation_freq=[1, 3], validation_data=(X_TEST, Y_TEST)),
    )
    yield (
        "validation steps",
        model,
        fit(validation_data=(X_TEST, Y_TEST), validation_steps=2, validation_batch_size=5),
    )
    yield "validation dataset", model, fit(validation_data=dataset(X_TEST, Y_TEST))
    yield "validation PyDataset", model, fit(validation_data=Batches(X_TEST, Y_TEST, W_TEST))
    yield "few steps", model, fit(epochs=5, steps_per_epoch=3)
    yield "many steps", model, fit(steps_per_epoch=9)
    yield "initial epoch", model, fit(epochs=4, initial_epoch=2)
    yield "no epochs", model, fit(epochs=2, initial_epoch=2)
    yield "tensors", model, model.fit(tf.constant(X), tf.constant(Y), batch_size=6, verbose=0)


@case
def datasets(scope):
    model = dense(scope)

    def fit(x, **arguments):
        return model.fit(x, **{"epochs": 2, "verbose": 0, **arguments})

    whole = dataset()
    unknown = whole.filter(lambda x, y: True)
    yield "batched", model, fit(whole, validation_data=(X_TEST, Y_TEST))
    yield "unknown length", model, fit(unknown, validation_data=unknown.take(2))
    yield (
        "infinite",
        model,
        fit(whole.repeat(), steps_per_epoch=5, validation_data=whole.repeat(), validation_steps=3),
    )
    yield "unknown length, few steps", model, fit(unknown, steps_per_epoch=2, epochs=3)
    yield "unknown length, many steps", model, fit(unknown, steps_per_epoch=9)
    yield "few steps", model, fit(whole, steps_per_epoch=3, epochs=3)
    yield "many steps", model, fit(whole, steps_per_epoch=9)
    yield "weights", model, fit(dataset(X, Y, W), validation_data=dataset(X_TEST, Y_TEST, W_TEST))
    yield "class weights", model, fit(whole, class_weight={0: 1.0, 1: 0.5, 2: 3.0})
    shuffled = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(22).batch(6)
    yield "shuffled", model, fit(shuffled, epochs=3, validation_data=shuffled)


@case
def python_data(scope):
    model = dense(scope)
    made = Batches(workers=1)
    yield "PyDataset", model, model.fit(made, epochs=3, verbose=0, validation_data=made)
    yield (
        "PyDataset, steps",
        model,
        model.fit(made, epochs=3, steps_per_epoch=3, shuffle=False, verbose=0),
    )
    yield (
        "PyDataset, class weights",
        model,
        model.fit(Batches(workers=2), class_weight={0: 1.0, 1: 0.5, 2: 3.0}, verbose=0),
    )
    yield (
        "generator",
        model,
        model.fit(
            generator(),
            steps_per_epoch=5,
            epochs=2,
            verbose=0,
            validation_data=generator(X_TEST, Y_TEST),
            validation_steps=2,
        ),
    )
    yield "finite generator", model, model.fit(generator(endless=False), verbose=0)
    yield "evaluated generator", model, model.evaluate(generator(endless=False), verbose=0)
    yield "predicted PyDataset", model, model.predict(Batches(y=None), verbose=0)


def two_by_two(scope, named=True):
    """Two inputs and two outputs."""
    with scope():
        first, second = keras.Input((3,), name="first"), keras.Input((2,), name="second")
        joined = layers.Concatenate()([first, second])
        outputs = [layers.Dense(3, name="kind")(joined), layers.Dense(1, name="size")(joined)]
        inputs = [first, second]
        if named:
            inputs = {"first": first, "second": second}
            outputs = {"kind": outputs[0], "size": outputs[1]}
        model = keras.Model(inputs, outputs)
        chosen = {"kind": crossentropy(), "size": "mse"}
        metrics = {"kind": ["accuracy"], "size": ["mae"]}
        if not named:
            chosen, metrics = list(chosen.values()), list(metrics.values())
        model.compile(
            optimizers.SGD(0.05, 0.9),
            chosen,
            loss_weights={"kind": 1.0, "size": 0.3} if named else [1.0, 0.3],
            metrics=metrics,
            weighted_metrics=metrics,
        )
    return model


@case
def nested(scope):
    second, size = X[:, :2] ** 2, X.sum(1, keepdims=True)
    model = two_by_two(scope)
    x, y = {"first": X, "second": second}, {"kind": Y, "size": size}
    yield "dicts", model, model.fit(x, y, batch_size=6, validation_split=0.3, verbose=0)
    weights = {"kind": W, "size": 1 - W}
    yield "weights", model, model.fit(x, y, batch_size=6, sample_weight=weights, verbose=0)
    yield "dataset of dicts", model, model.fit(dataset(x, y), epochs=2, verbose=0)
    yield "evaluate", model, model.evaluate(x, y, batch_size=6, verbose=0)
    yield "evaluate to dict", model, model.evaluate(x, y, 6, verbose=0, return_dict=True)
    yield "predict dict", model, model.predict(x, batch_size=7, verbose=0)
    small = [tf.nest.map_structure(lambda a: a[:5], part) for part in (x, y, weights)]
    yield "on batch", model, model.train_on_batch(*small)
    yield "on batch to dict", model, model.train_on_batch(*small, return_dict=True)
    yield "test on batch", model, model.test_on_batch(*small)
    yield "predict on batch", model, model.predict_on_batch(small[0])

    model = two_by_two(scope, named=False)
    yield "lists", model, model.fit([X, second], [Y, size], batch_size=6, epochs=2, verbose=0)
    given = ([X[:7], second[:7]], [Y[:7], size[:7]])
    yield (
        "validation lists",
        model,
        model.fit([X, second], [Y, size], sample_weight=[W, W], verbose=0, validation_data=given),
    )
    yield "predict list", model, model.predict([X, second], batch_size=7, verbose=0)
    yield "train on batch of lists", model, model.train_on_batch(*given)


@case
def callbacks(scope):
    """Epochs are whole numbers of executions: else Keras' last number is not the last batch's."""
    for steps in (1, 3):
        model = dense(scope, steps_per_execution=steps)
        kinds = {
            "arrays": dict(x=X, y=Y, batch_size=4),
            "unknown": dict(x=dataset(X, Y, size=4).filter(lambda x, y: True)),
            "many steps": dict(x=dataset(X, Y, size=4), steps_per_epoch=9),
        }
        if steps > 1:
            del kinds["arrays"]
        for name, x in kinds.items():
            recorder = Recorder()
            history = model.fit(
                **x,
                epochs=2,
                callbacks=[recorder],
                validation_data=(X, Y),
                validation_batch_size=4,
                verbose=0,
            )
            yield f"fit {name} by {steps}", model, (history, recorder.all())
        recorder = Recorder()
        scores = model.evaluate(X, Y, batch_size=4, callbacks=[recorder], verbose=0)
        yield f"evaluate by {steps}", None, (scores, recorder.all())
        recorder = Recorder()
        outputs = model.predict(X, batch_size=4, callbacks=[recorder], verbose=0)
        yield f"predict by {steps}", None, (outputs, recorder.all())
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", batch == 2)
    )
    recorder = Recorder()
    model = dense(scope)
    yield "stopped", model, (model.fit(X, Y, 6, 3, 0, [stop, recorder]), recorder.all())


@case
def scoring(scope):
    model = dense(scope, weighted_metrics=["accuracy"])
    yield "before fit", model, model.evaluate(X, Y, batch_size=6, verbose=0)
    for name, arguments in (
        ("weights", dict(x=X, y=Y, sample_weight=W, batch_size=6)),
        ("to dict", dict(x=X, y=Y, sample_weight=W, return_dict=True)),
        ("steps", dict(x=X, y=Y, batch_size=4, steps=3)),
        ("dataset, steps", dict(x=dataset(), steps=2, return_dict=True)),
        ("infinite", dict(x=dataset().repeat(), steps=5)),
        ("unknown", dict(x=dataset().filter(lambda x, y: True))),
    ):
        yield f"evaluate {name}", None, model.evaluate(**arguments, verbose=0)
    for name, arguments in (
        ("arrays", dict(x=X, batch_size=6)),
        ("steps", dict(x=X, batch_size=4, steps=3)),
        ("dataset", dict(x=dataset())),
        ("unknown", dict(x=dataset().filter(lambda x, y: True))),
        ("one", dict(x=X[:1])),
        ("last of one", dict(x=X[:7], batch_size=6)),
    ):
        yield f"predict {name}", None, model.predict(**arguments, verbose=0)
    yield "fit", model, model.fit(X, Y, batch_size=6, verbose=0)


@case
def on_batch(scope):
    model = dense(scope, weighted_metrics=["accuracy"])
    yield "predict", None, model.predict_on_batch(X[:5])
    yield "test", None, model.test_on_batch(X[:5], Y[:5])
    yield "train", model, model.train_on_batch(X[:5], Y[:5])
    yield (
        "class weights",
        model,
        model.train_on_batch(X[:5], Y[:5], class_weight={0: 1.0, 1: 0.5, 2: 3.0}),
    )
    yield "weights", model, model.train_on_batch(X[:5], Y[:5], W[:5], return_dict=True)
    yield "one", model, model.train_on_batch(X[:1], Y[:1])
    yield "test weights", None, model.test_on_batch(X[:5], Y[:5], W[:5], return_dict=True)
    yield "test one", None, model.test_on_batch(X[:1], Y[:1])
    yield "predict one", None, model.predict_on_batch(X[:1])
    yield "tensors", model, model.train_on_batch(tf.constant(X), tf.constant(Y))


@case
def again(scope):
    model = dense(scope, optimizer=lambda: optimizers.Adam(0.05), hidden=[4])
    shuffled = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(22, seed=3).batch(6)
    yield "first", model, model.fit(X, Y, batch_size=6, epochs=2, verbose=0)
    yield "second", model, model.fit(X, Y, batch_size=6, epochs=2, verbose=0)
    yield "dataset", model, model.fit(shuffled, epochs=2, verbose=0)
    yield "dataset again", model, model.fit(shuffled, epochs=2, verbose=0)
    with scope():
        model.compile(
            optimizers.SGD(0.01), crossentropy(), metrics=["sparse_top_k_categorical_accuracy"]
        )
    yield "compiled again", model, model.fit(X, Y, batch_size=6, verbose=0)
    model.optimizer.learning_rate = 0.2
    yield "another rate", model, model.fit(X, Y, batch_size=6, verbose=0)
    model.layers[0].trainable = False
    with scope():
        model.compile(optimizers.SGD(0.01), crossentropy())
    yield "frozen", model, model.fit(X, Y, batch_size=6, verbose=0)
    model.set_weights([np.full_like(w, 0.1) for w in model.get_weights()])
    yield "set weights", model, model.fit(X, Y, batch_size=6, verbose=0)
    with tempfile.TemporaryDirectory() as folder, scope():
        model.save_weights(f"{folder}/pretrained.weights.h5")
        model = dense(scope, hidden=[4])
        model.load_weights(f"{folder}/pretrained.weights.h5")
    yield "pretrained", model, model.fit(X, Y, batch_size=6, verbose=0)


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
        x = layers.Dense(3, activity_regularizer="l2", kernel_regularizer="l1")(Penalty()(inputs))
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
        return {metric.name: metric.result() for metric in self.metrics}

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
            yield f"{name}, on batch", model, model.train_on_batch(X[:5], Y[:5], return_dict=True)
            yield f"{name}, test on batch", model, model.test_on_batch(X[:5], Y[:5])


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
