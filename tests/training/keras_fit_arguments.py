"""Calls whose data and arguments differ, of one small model."""

import tempfile

import keras
import numpy as np
import tensorflow as tf
from keras_fit_calls import (
    W_TEST,
    X_TEST,
    Y_TEST,
    Batches,
    Recorder,
    W,
    X,
    Y,
    case,
    crossentropy,
    dataset,
    dense,
    generator,
)

layers, optimizers = keras.layers, keras.optimizers


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
    model.reset_metrics()
    yield "on batch", model, model.train_on_batch(*small)
    model.reset_metrics()
    yield "on batch to dict", model, model.train_on_batch(*small, return_dict=True)
    model.reset_metrics()
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
    model.reset_metrics()
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
    # Since 3.15 Keras resets metrics by itself. Before it does not, and how it weighs the losses of
    # single outputs then depends on what has been traced.
    model = dense(scope, weighted_metrics=["accuracy"])
    yield "predict", None, model.predict_on_batch(X[:5])
    model.reset_metrics()
    yield "test", None, model.test_on_batch(X[:5], Y[:5])
    model.reset_metrics()
    yield "train", model, model.train_on_batch(X[:5], Y[:5])
    model.reset_metrics()
    yield (
        "class weights",
        model,
        model.train_on_batch(X[:5], Y[:5], class_weight={0: 1.0, 1: 0.5, 2: 3.0}),
    )
    model.reset_metrics()
    yield "weights", model, model.train_on_batch(X[:5], Y[:5], W[:5], return_dict=True)
    model.reset_metrics()
    yield "one", model, model.train_on_batch(X[:1], Y[:1])
    model.reset_metrics()
    yield "test weights", None, model.test_on_batch(X[:5], Y[:5], W[:5], return_dict=True)
    model.reset_metrics()
    yield "test one", None, model.test_on_batch(X[:1], Y[:1])
    yield "predict one", None, model.predict_on_batch(X[:1])
    model.reset_metrics()
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
