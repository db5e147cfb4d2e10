"""The second door where scripts are not as one expects: seeds, scopes, memory, one replica."""

import gc
import weakref

import keras
import keras_fit_cases
import numpy as np
import pytest
import tensorflow as tf

import tfscale
from tfscale import testing
from tfscale.strategy import make_strategy
from tfscale.training import replica, saving

X = np.random.default_rng(0).normal(size=(14, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
LABELS = (Y[:13] > 0).astype("float32")


@pytest.fixture(autouse=True)
def repaired():
    tfscale.enable_keras_fit()
    yield
    tfscale.disable_keras_fit()


def network(**compiled):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(**{"optimizer": keras.optimizers.SGD(0.1), "loss": "mse", **compiled})
    return model


def on_both(run):
    """What a function gives on one device, then on two replicas, with the same seeds."""
    keras.utils.set_random_seed(5)
    one = run()
    keras.utils.set_random_seed(5)
    with make_strategy("mirrored", 2).scope():
        return one, run()


class Stepwise(keras.Model):
    """Draws without a seed and counts its examples, in a step that is a graph of its own."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.count = keras.metrics.Sum(name="count")

    def call(self, x):
        return self.dense(x)

    @tf.function
    def train_step(self, data):
        x, y = data
        noise = keras.random.normal(tf.shape(x))
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x + 0 * noise))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.count.update_state(tf.shape(x)[0])
        return {"last": loss, "count": self.count.result()}


def test_unseeded_noise_sums_and_a_graph_of_its_own_give_the_numbers_of_one_device():
    def run():
        model = Stepwise()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model.fit(X, Y, batch_size=4, epochs=2, verbose=0).history

    one, two = on_both(run)
    assert one["count"] == two["count"] == [14.0, 14.0]
    np.testing.assert_allclose(two["last"], one["last"], rtol=1e-5)


class Hits(keras.metrics.Metric):
    """Counts hits, and their mean in a metric of its own; told the threshold beside the rows."""

    def __init__(self):
        super().__init__(name="hits")
        self.hits = self.add_weight(name="hits", initializer="zeros")
        self.mean = keras.metrics.Mean()

    def update_state(self, y, prediction, thresholds):
        hit = tf.cast((y > 0.5) == (prediction > thresholds[0]), tf.float32)
        self.hits.assign_add(tf.reduce_sum(hit))
        self.mean.update_state(hit)

    def result(self):
        return self.hits + self.mean.result()


class Classifier(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, activation="sigmoid")
        self.scores = [keras.metrics.AUC(name="auc"), keras.metrics.F1Score(name="f1")]
        self.hits = Hits()

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            predicted = self(x)
            loss = self.compute_loss(x, y, predicted)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self.scored(y, predicted)

    def test_step(self, data):
        return self.scored(data[1], self(data[0]))

    def scored(self, y, predicted):
        for metric in self.scores:
            metric.update_state(y, predicted)
        self.hits.update_state(y, predicted, tf.constant([0.5, 0.6, 0.7]))
        return {metric.name: metric.result() for metric in [*self.scores, self.hits]}


def test_metrics_of_a_step_of_ones_own_count_a_last_example_once():
    def run():
        model = Classifier()
        model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
        arguments = {"batch_size": 4, "verbose": 0}
        trained = model.fit(X[:13], LABELS, epochs=2, **arguments).history
        scored = model.evaluate(X[:13], LABELS, return_dict=True, **arguments)
        return np.hstack([np.ravel(trained[k] + [scored[k]]) for k in ("auc", "f1", "hits")])

    one, two = on_both(run)
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_predictions_and_scores_of_one_example_at_a_time():
    def run():
        model = network()
        model.build((None, 4))
        loss = model.evaluate(X[:3], Y[:3], batch_size=1, verbose=0)
        return np.append(model.predict(X[:3], batch_size=1, verbose=0), loss)

    one, two = on_both(run)
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_accumulation_under_a_strategy_of_one_replica():
    def run():
        return network(optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))

    keras.utils.set_random_seed(5)
    one = run().fit(X, Y, batch_size=4, epochs=2, verbose=0).history["loss"]
    keras.utils.set_random_seed(5)
    with make_strategy("mirrored", 1).scope():
        model = run()
    alone = model.fit(X, Y, batch_size=4, epochs=2, verbose=0).history["loss"]
    np.testing.assert_allclose(alone, one, rtol=1e-5)


class WrittenForStrategies(keras.Model):
    """Divides by the global batch itself, as TensorFlow's tutorials do, which is 4 or its own."""

    def __init__(self, size):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_regularizer="l2")
        self.size = size

    def call(self, x):
        return self.dense(x)

    def loss_of(self, data):
        x, y = data
        size = tf.shape(x)[0] if self.size == "own" else self.size
        errors = tf.reduce_sum((self(x) - y) ** 2, axis=1)
        loss = tf.nn.compute_average_loss(errors, global_batch_size=size)
        return loss + tf.nn.scale_regularization_loss(tf.add_n(self.losses))

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.loss_of(data)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"own": loss}

    def test_step(self, data):
        return {"own": self.loss_of(data)}


@pytest.mark.parametrize("size", [4, None, "own"])
def test_a_step_that_divides_by_the_global_batch_gives_the_numbers_of_one_device(size):
    def run():
        model = WrittenForStrategies(size)
        model.compile(keras.optimizers.SGD(0.1))
        arguments = {"batch_size": 4, "verbose": 0}
        losses = model.fit(X[:12], Y[:12], epochs=2, **arguments).history["own"]
        model.fit(X[:13], Y[:13], **arguments)  # a last batch of one
        scores = model.evaluate(X[:12], Y[:12], return_dict=True, **arguments)
        return [*losses, scores["own"], *model.get_weights()[0].flat]

    one, two = on_both(run)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-7)


def test_the_global_mean_in_a_loop_of_ones_own():
    strategy = make_strategy("mirrored", 2)

    def step(element):
        with tfscale.replica_share(element) as x:
            return tfscale.global_mean(tf.reduce_mean(x))

    [element] = tfscale.distribute(tf.data.Dataset.from_tensors(X[:5]), strategy)
    means = tf.function(lambda e: strategy.run(step, args=(e,)))(element)
    for mean in strategy.experimental_local_results(means):
        np.testing.assert_allclose(mean, X[:5].mean(), rtol=1e-5)


def test_a_model_made_outside_of_the_scope_is_refused():
    model = network()
    with make_strategy("mirrored", 2).scope():
        model = keras.Sequential([model])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(ValueError, match="must be made in the scope"):
        model.fit(X, Y, verbose=0)


def test_a_model_is_freed():
    with make_strategy("mirrored", 2).scope():
        model = network()
    model.fit(X, Y, verbose=0)
    alive = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert alive() is None


def test_optimizers_numbers_are_numbers():
    with make_strategy("mirrored", 2).scope():
        optimizer = keras.optimizers.SGD(0.25)
    assert float(optimizer.learning_rate) == 0.25
    assert int(optimizer.iterations) == 0
    assert float(keras.Variable(2.5)) == 2.5
    with pytest.raises(TypeError):
        float(keras.Variable([1.0, 2.0]))


def test_calling_it_again_changes_only_what_is_given():
    """A launched script may call it as well, as the documentation says, and flags still count."""
    tfscale.disable_keras_fit()
    tfscale.enable_keras_fit(on_bad_loss="skip")
    tfscale.enable_keras_fit()
    x = np.where(np.arange(12)[:, None] == 7, np.nan, keras_fit_cases.X[:12])
    model = keras_fit_cases.dense(make_strategy("mirrored", 2).scope)
    model.fit(x, keras_fit_cases.Y[:12], batch_size=4, verbose=0)
    assert np.isfinite(model.get_weights()[0]).all()
    tfscale.enable_keras_fit(on_bad_loss="")
    model.fit(x, keras_fit_cases.Y[:12], batch_size=4, verbose=0)
    assert not np.isfinite(model.get_weights()[0]).all()
    tfscale.disable_keras_fit()


def test_undone_means_that_all_is_keras_own():
    tfscale.disable_keras_fit()
    assert not {"fit", "evaluate", "predict"} & set(vars(keras.Model))
    for place, name, own, _ in replica.REPLACED:
        assert getattr(place, name) is own
    assert not {"__int__", "__float__"} & set(vars(keras.Variable))
    tfscale.enable_keras_fit()
    assert "fit" in vars(keras.Model)


@pytest.fixture
def warnings(monkeypatch):
    """What is warned of, line by line."""
    said = []
    monkeypatch.setattr("absl.logging.warning", lambda text, *values: said.append(text % values))
    return said


def masked(**compiled):
    layers = [keras.layers.Masking(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3, 4)), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse", **compiled)
    return model


def weighted(**compiled):
    loss = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    return network(loss=loss, **compiled)


def normalized(**compiled):
    layers = [keras.layers.BatchNormalization(synchronized=True), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(0.1), "mse", **compiled)
    return model


@pytest.mark.parametrize("make", [masked, weighted, normalized])
def test_xla_is_left_out_where_the_loss_needs_the_other_replicas(make, warnings):
    x, y, weights = X, Y, np.arange(1.0, 15.0) / 15
    if make is masked:
        x, y = np.stack([X, X, 0 * X], 1), np.repeat(Y[:, None], 3, 1)
        x[:6, 1], weights = 0.0, None

    def run():
        model = make(jit_compile=tf.distribute.has_strategy())
        return model.fit(x, y, sample_weight=weights, batch_size=5, epochs=2, verbose=0)

    one, two = on_both(run)
    np.testing.assert_allclose(two.history["loss"], one.history["loss"], rtol=1e-5)
    assert len([line for line in warnings if "without XLA" in line]) == 1


def test_xla_is_no_part_of_a_step_of_ones_own_and_that_is_said_once(warnings):
    with make_strategy("mirrored", 2).scope():
        model = Stepwise()
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=True)
    model.fit(X, Y, epochs=2, verbose=0)
    model.fit(X, Y, verbose=0)
    assert len([line for line in warnings if "step of your own" in line]) == 1


class Divides(WrittenForStrategies):
    def train_step(self, data):
        self.dense.trainable = bool(tf.distribute.get_strategy().num_replicas_in_sync)
        return super().train_step(data)


@pytest.mark.parametrize(("kind", "num_said"), [(Divides, 1), (WrittenForStrategies, 0)])
def test_a_step_that_reads_the_number_of_replicas_is_warned_of(kind, num_said, warnings):
    with make_strategy("mirrored", 2).scope():
        model = kind(4)
        model.compile(keras.optimizers.SGD(0.1))
    model.fit(X[:4], Y[:4], batch_size=4, epochs=2, verbose=0)
    assert len([line for line in warnings if "num_replicas_in_sync" in line]) == num_said


class OwnEvaluate(keras.Model):
    """Scores in a way of its own, which `fit` uses for validation, as in Keras."""

    def __init__(self, passes_all):
        super().__init__()
        self.dense, self.passes_all, self.asked = keras.layers.Dense(1), passes_all, []

    def call(self, x):
        return self.dense(x)

    def evaluate(self, x=None, y=None, **arguments):
        self.asked.append(sorted(arguments))
        if not self.passes_all:
            arguments = {"verbose": 0, "return_dict": True, "callbacks": arguments["callbacks"]}
        return {**super().evaluate(x, y, **arguments), "twice": 2.0}


@pytest.mark.parametrize("passes_all", [True, False])
def test_an_evaluate_of_ones_own_scores_the_validation(passes_all):
    heard = []
    hear = {"on_test_end": lambda logs: heard.append(sorted(logs))}

    def run():
        model = OwnEvaluate(passes_all)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        callback = keras.callbacks.LambdaCallback()
        vars(callback).update(hear)
        fit = {"validation_data": (X[:7], Y[:7]), "callbacks": [callback], "verbose": 0}
        return model.fit(X, Y, batch_size=4, epochs=2, **fit).history, model.asked

    (one, asked_of_one), (two, asked) = on_both(run)
    assert two["val_twice"] == [2.0, 2.0] and asked == asked_of_one
    np.testing.assert_allclose(two["val_loss"], one["val_loss"], rtol=1e-5)
    assert heard[:2] == heard[2:]


@pytest.mark.parametrize("purpose", ["train", "test", "predict"])
def test_a_graph_of_ones_own_is_refused_before_the_first_step(purpose):
    own = type("Own", (keras.Sequential,), {f"make_{purpose}_function": lambda self, **_: None})
    with make_strategy("mirrored", 2).scope():
        model = own([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    steps = []
    begun = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: steps.append(1))
    with pytest.raises(ValueError, match=f"overrides it. Override `{purpose}_step`"):
        model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[begun])
        model.predict(X, verbose=0)
    assert len(steps) == (purpose == "predict")


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin"])
def test_a_stop_before_the_first_step_ends_after_it(hook):
    asked = []

    class Stop(keras.callbacks.Callback):
        def stop(self, epoch=0, logs=None):
            asked.append(epoch)
            self.model.stop_training = epoch == 3 or hook == "on_train_begin"

    setattr(Stop, hook, lambda self, *args: self.stop(*args[:-1]))

    def run():
        model = network()
        x, y = np.tile(X, (20, 1)), np.tile(Y, (20, 1))
        model.fit(x, y, batch_size=2, epochs=5, callbacks=[Stop()], verbose=0)
        return int(model.optimizer.iterations.numpy())

    one, two = on_both(run)
    assert two == one == (1 if hook == "on_train_begin" else 3 * 140 + 1)


class Sparse(keras.Model):
    def call(self, x):
        return {"sparse": tf.sparse.from_dense(tf.nn.relu(x)), "dense": x}


def test_sparse_predictions_are_those_of_one_device():
    def run():
        return Sparse().predict(X[:13], batch_size=5, verbose=0)

    one, two = on_both(run)
    np.testing.assert_array_equal(two["dense"], one["dense"])
    for part in ("indices", "values", "dense_shape"):
        np.testing.assert_array_equal(getattr(two["sparse"], part), getattr(one["sparse"], part))


def test_callbacks_are_left_as_they_came(tmp_path):
    class Own(keras.callbacks.EarlyStopping):
        pass

    class Failing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise InterruptedError

    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "m.keras"))
    given = [checkpoint, Own("loss"), keras.callbacks.TensorBoard(str(tmp_path / "t"))]
    before = [type(callback) for callback in given]
    with make_strategy("mirrored", 2).scope():
        model = network()
    nested = keras.callbacks.LambdaCallback()
    nested.on_epoch_begin = lambda *_: model.evaluate(X, Y, callbacks=given, verbose=0)
    model.fit(X, Y, callbacks=[*given, nested], verbose=0)
    assert [type(callback) for callback in given] == before
    with pytest.raises(InterruptedError):
        model.fit(X, Y, callbacks=[*given, Failing()], verbose=0)
    assert [type(callback) for callback in given] == before
    tfscale.disable_keras_fit()
    network().fit(X, Y, callbacks=given, verbose=0)  # Keras' own, with the same callbacks


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_worker_beside_the_first_writes_what_the_first_has_not(tmp_path, num_replicas):
    kinds = keras.callbacks
    given = [
        kinds.CSVLogger(str(tmp_path / "log.csv")),
        kinds.TensorBoard(str(tmp_path / "board")),
        kinds.BackupAndRestore(str(tmp_path / "backup"), delete_checkpoint=False),
        kinds.ModelCheckpoint(str(tmp_path / "{epoch}.keras")),
    ]
    before = [{n: v for n, v in vars(c).items() if isinstance(v, str)} for c in given]
    with make_strategy("mirrored", num_replicas).scope():
        model = network()
    saving.set_process(rank=1, num_workers=2)
    (tmp_path / "2.keras").write_text("of the first")
    model.fit(X, Y, epochs=3, callbacks=given, verbose=0)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["1.keras", "2.keras", "3.keras", "backup-worker-1"]
    assert (tmp_path / "2.keras").read_text() == "of the first"
    assert [{n: vars(c).get(n) for n in b} for c, b in zip(given, before, strict=True)] == before
    model.save(tmp_path / "3.keras")
    saving.set_process(rank=0, num_workers=2)
    model.save(tmp_path / "2.keras")
    for name in ("2.keras", "3.keras"):
        keras.models.load_model(tmp_path / name)


def _on_one_worker_alone():
    """Callbacks and a bar on the chief alone; noise of workers; a backup that one has alone."""
    import os
    import tempfile

    import keras
    import numpy as np
    import tensorflow as tf

    import tfscale
    from tfscale import testing

    tfscale.enable_keras_fit()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x = np.ones((8, 4), "float32")

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            pass

        def on_test_batch_end(self, batch, logs=None):
            pass

    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    chief = tfscale.is_chief()
    mine = [Watch()] if chief else []
    history = model.fit(x, x[:, :1], epochs=2, validation_data=(x, x[:, :1]), callbacks=mine)
    model.evaluate(x, x[:, :1], verbose=1 if chief else 0, callbacks=mine)

    drawn = []

    def step(element):
        with tfscale.replica_share(element):
            drawn.append(tf.random.normal([3]))
        return drawn[-1]

    tf.random.set_seed(3)
    data = tfscale.distribute(tf.data.Dataset.from_tensors(x), strategy)
    run = tf.function(lambda element: strategy.run(step, args=(element,)))
    noise = run(next(iter(data))).numpy()

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    before = int(model.optimizer.iterations.numpy())
    many = {"batch_size": 2, "epochs": 4, "verbose": 0}
    model.fit(np.tile(x, (20, 1)), np.ones((160, 1)), callbacks=[Stop()] if chief else [], **many)
    steps = int(model.optimizer.iterations.numpy()) - before

    with tempfile.TemporaryDirectory() as folder:
        backup = keras.callbacks.BackupAndRestore(os.path.join(folder, "b"))
        if chief:
            model.save_weights(os.path.join(folder, "w.weights.h5"))
            os.mkdir(backup.backup_dir)
            os.rename(os.path.join(folder, "w.weights.h5"), backup._weights_path)
            with open(backup._training_metadata_path, "w") as file:
                file.write('{"epoch": 1, "batch": 0}')
        try:
            model.fit(x, x[:, :1], epochs=2, callbacks=[backup], verbose=0)
            refused = ""
        except ValueError as error:
            refused = str(error)
    testing.collect(loss=history.history["loss"], noise=noise, refused=refused, steps=steps)


def _callbacks_on_the_chief_alone():
    """Each kind of Keras' callbacks on the chief alone: it does its work, or is refused by all."""
    import os
    import tempfile

    import keras
    import numpy as np
    import tensorflow as tf

    import tfscale
    from tfscale import testing

    tfscale.enable_keras_fit()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    kinds, chief = keras.callbacks, tfscale.is_chief()

    with strategy.scope():
        layers = [keras.layers.BatchNormalization(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile("sgd", "mse", metrics=["mae"])

    class Own(kinds.Callback):
        """Sets the learning rate by itself, which nobody can know before."""

        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.01 / (epoch + 1)

    def trained(*callbacks):
        fit = {"batch_size": 4, "epochs": 3, "validation_data": (x, x[:, :1]), "verbose": 0}
        history = model.fit(x, x[:, :1], callbacks=list(callbacks) if chief else [], **fit)
        return len(history.epoch)

    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/{epoch}.keras"
        lambdas = dict.fromkeys(["on_epoch_end", "on_train_batch_end"], lambda *_, **__: None)
        works = trained(
            kinds.ModelCheckpoint(path, save_best_only=True),
            kinds.CSVLogger(folder + "/log.csv"),
            kinds.TensorBoard(folder, histogram_freq=1, update_freq=1),
            kinds.TerminateOnNaN(),
            kinds.ProgbarLogger(),
            kinds.LambdaCallback(**lambdas),
        )
        stops = trained(kinds.EarlyStopping("loss", min_delta=9.0, patience=1))
        testing.collect(works=works, stops=stops, files=sorted(os.listdir(folder)))
        refused = {
            "steps": kinds.ModelCheckpoint(path, save_freq=1),
            "backup": kinds.BackupAndRestore(folder + "/b"),
            "schedule": kinds.LearningRateScheduler(lambda epoch, rate: rate / 2),
            "plateau": kinds.ReduceLROnPlateau(),
            "restoring": kinds.EarlyStopping(restore_best_weights=True),
            "swap": kinds.SwapEMAWeights(),
            "own": Own(),
        }
        for name, callback in refused.items():
            try:
                trained(callback)
                testing.collect(**{name: ""})
            except ValueError as error:
                testing.collect(**{name: str(error)})


@pytest.mark.workers
def test_callbacks_on_the_chief_alone_work_or_are_refused_by_all():
    workers = testing.run_workers(_callbacks_on_the_chief_alone, 2)
    for arrays in (worker.arrays for worker in workers):
        assert arrays["works"] == 3
        assert arrays["stops"] == 2  # the chief's decision stops both
        for name in ("steps", "backup", "schedule", "plateau", "restoring", "swap"):
            assert "Give it on all of them" in str(arrays[name]), name
        assert "must train with the same learning rate" in str(arrays["own"])
    chief, other = workers
    assert {"1.keras", "log.csv", "train", "validation"} <= set(chief.arrays["files"])
    assert len(other.arrays["files"]) == 0


@pytest.mark.workers
def test_what_one_worker_alone_has_neither_hangs_nor_is_silent():
    first, second = testing.run_workers(_on_one_worker_alone, 2)
    np.testing.assert_array_equal(first.arrays["loss"], second.arrays["loss"])
    assert not np.array_equal(first.arrays["noise"], second.arrays["noise"])
    for worker in (first, second):
        assert "the same backup on every worker" in str(worker.arrays["refused"])
        assert worker.arrays["steps"] == 2 * 80 + 1


def _on_images_without_labels():
    """Image to image: transformed at random on each worker, then other examples on one."""
    import keras
    import numpy as np
    import tensorflow as tf
    from absl import logging

    import tfscale
    from tfscale import testing

    tfscale.enable_keras_fit()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank = 0 if tfscale.is_chief() else 1
    said = []
    logging.log_first_n = lambda level, text, n, *values: said.append(text % values)
    images = np.zeros((12, 8, 8, 1), "float32")
    images[:, 2:6, 2:6] = np.random.default_rng(0).normal(size=(12, 4, 4, 1))
    with strategy.scope():
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3)])
        model.compile("sgd", loss=lambda y, p: tf.reduce_mean(p**2, axis=[1, 2, 3]))

    def pairs(image):
        return image, image[:, 1:7, 1:7]

    whole = tf.data.Dataset.from_tensor_slices(images)
    noise = np.random.default_rng(rank)

    def noisy(image):
        added = tf.numpy_function(lambda: noise.normal(size=(4, 8, 8, 1)), [], tf.float64)
        return tf.ensure_shape(image + tf.cast(added, tf.float32), [None, 8, 8, 1])

    model.fit(whole.batch(4).map(pairs), verbose=0)
    testing.collect(said_of_same=len(said))
    model.fit(whole.batch(4).map(noisy).map(pairs), verbose=0)
    testing.collect(said_of_transformed=said)
    order = np.random.default_rng(rank).permutation(12)
    try:
        model.fit(tf.data.Dataset.from_tensor_slices(images[order]).batch(4).map(pairs), verbose=0)
        testing.collect(refused="")
    except ValueError as error:
        testing.collect(refused=str(error))


@pytest.mark.workers
def test_other_images_without_labels_are_refused_and_transformed_ones_named():
    chief, other = testing.run_workers(_on_images_without_labels, 2)
    for worker in (chief, other):
        assert worker.arrays["said_of_same"] == 0
        assert "same batches" in str(worker.arrays["refused"])
        assert "default_rng(1)" in str(worker.arrays["refused"])
    assert len(chief.arrays["said_of_transformed"]) > 0
    assert len(other.arrays["said_of_transformed"]) == 0
