"""Numbers gone wrong: bad steps are undone, gone back from or end the run; weights that differ."""

import csv
import json
import math
import os
import re
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfscale
from tfscale import testing
from tfscale.config import RunConfig
from tfscale.data import batches
from tfscale.data.shards import Shard
from tfscale.monitor import run_log
from tfscale.strategy import make_strategy
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import fits, health, progress, weight_sums
from tfscale.training.checkpoint import Checkpoints
from tfscale.training.trainer import Trainer

BATCH, STEPS, BAD = 5, 8, 2  # examples a batch, steps an epoch, the bad batch of each epoch
rng = np.random.default_rng(0)
X = rng.normal(size=(BATCH * STEPS, 4)).astype("float32")
Y = (X @ rng.normal(size=(4, 1)) + 1).astype("float32")
OVERFLOWS = X.copy()
OVERFLOWS[BAD * BATCH + 3] = 1e38
WITHOUT = np.delete(np.arange(BATCH * STEPS).reshape(STEPS, BATCH), BAD, axis=0).reshape(-1)
FIT = {"global_batch_size": BATCH, "shuffle": False, "verbose": 0, "steps_per_execution": 5}


class OwnTrainStep(keras.Model):
    """A `train_step` of its own, which reports one number and one metric."""

    def __init__(self):
        super().__init__()
        self.dense, self.drop = keras.layers.Dense(1), keras.layers.Dropout(0.2)
        self.loss_tracker = keras.metrics.Mean(name="loss")

    def call(self, x, training=False):
        return self.dense(self.drop(x, training=training))

    @property
    def metrics(self):
        return [self.loss_tracker]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self.loss_tracker.update_state(loss)
        return {"loss": self.loss_tracker.result(), "largest": tf.reduce_max(x)}


def own_step(model, data):
    """A step that reports its loss as a plain number."""
    x, y = data
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return {"loss": loss}


def dense_model(optimizer="sgd", embeds=False):
    first = keras.layers.Dense(8, "relu")
    if embeds:  # its gradient is rows, of which a graph takes one step at a time
        first = keras.layers.Lambda(lambda x: tf.cast(tf.clip_by_value(x, 0, 9), tf.int32))
        rows = [keras.layers.Embedding(10, 4), keras.layers.Flatten()]
    model = keras.Sequential(
        [
            keras.Input((4,)),
            first,
            *(rows if embeds else []),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.Dropout(0.2, seed=3),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def own_model():
    model = OwnTrainStep()
    model.compile(keras.optimizers.SGD(0.05))
    return model


def adam():
    return keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.5))


CASES = {
    "sgd": dense_model,
    "adam": lambda: dense_model(adam()),
    "ema": lambda: dense_model(keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True)),
    "accumulation": lambda: dense_model(keras.optimizers.SGD(0.05, gradient_accumulation_steps=2)),
    "train_step": own_model,
    "step": lambda: dense_model(keras.optimizers.SGD(0.01)),
    "float16": lambda: dense_model(keras.optimizers.SGD(0.01)),
    "jit": lambda: dense_model(adam()),
    "embedding": lambda: dense_model(adam(), embeds=True),
}


def trainer_of(case, strategy):
    """A trainer of one of the cases, the same each time."""
    strategy = make_strategy(strategy, 2 if strategy == "mirrored" else 0)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_float16" if case == "float16" else "float32")
    try:
        with strategy.scope():
            model = CASES[case]()
    finally:
        keras.config.set_dtype_policy("float32")
    step = own_step if case == "step" else None
    return Trainer(model, step=step, jit_compile=case == "jit")


def state_of(trainer):
    """Everything that the next step depends on, as arrays."""
    with trainer.strategy.scope():
        read = trainer._loop._functions.read_state()
    return {name: value.numpy() for name, value in read.items()}


def fit(case, strategy, x, y, epochs=2, data=None, **options):
    trainer = trainer_of(case, strategy)
    given = {**FIT, **options}
    if data is not None:
        x, y = data(x, y), None
        given = {k: v for k, v in given.items() if k not in ("global_batch_size", "shuffle")}
    history = trainer.fit(x, y, epochs=epochs, **given)
    return trainer, history.history


class TestSkip:
    """A run that skips a batch is one whose data lack it, in all of its state."""

    @pytest.mark.parametrize(
        ("case", "strategy"),
        [
            ("adam", "onedevice"),
            pytest.param("jit", "onedevice", marks=pytest.mark.slow),
            ("float16", "onedevice"),
            ("sgd", "mirrored"),
            pytest.param("ema", "mirrored", marks=pytest.mark.slow),
            pytest.param("accumulation", "mirrored", marks=pytest.mark.slow),
            ("train_step", "mirrored"),
            ("step", "mirrored"),
            pytest.param("embedding", "mirrored", marks=pytest.mark.slow),
        ],
    )
    def test_equals_a_run_without_the_batch(self, case, strategy, caplog):
        x, y = OVERFLOWS, Y
        if case == "embedding":
            x, y = np.abs(X) * 3, Y.copy()
            y[BAD * BATCH] = 1e38
        skipped, history = fit(case, strategy, x, y, on_bad_loss="skip")
        assert caplog.text.count("The step is undone") == 2
        lacking, expected = fit(case, strategy, x[WITHOUT], y[WITHOUT])
        for name in expected:  # what a step reports is summed execution by execution
            np.testing.assert_allclose(history[name], expected[name], rtol=1e-6)
        np.testing.assert_equal(state_of(skipped), state_of(lacking))
        assert all(np.isfinite(w).all() for w in skipped.model.get_weights())
        assert (skipped.progress.step, lacking.progress.step) == (2 * STEPS, 2 * STEPS - 2)
        assert skipped.progress.examples == lacking.progress.examples
        counts = [t.model.optimizer.iterations.numpy() for t in (skipped, lacking)]
        assert counts[0] == counts[1]

    def test_two_replicas_equal_one_device(self):
        found = []
        for name in ("mirrored", "onedevice"):
            strategy = make_strategy(name, 2 if name == "mirrored" else 0)
            keras.utils.set_random_seed(1)
            with strategy.scope():
                model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
                model.compile(keras.optimizers.SGD(0.05), "mse")
            Trainer(model).fit(OVERFLOWS, Y, epochs=2, on_bad_loss="skip", **FIT)
            found.append(model.get_weights())
        for mine, theirs in zip(*found, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)

    @pytest.mark.parametrize("eagerly", [False, True])
    def test_variables_that_no_model_holds_are_undone(self, eagerly):
        """An optimizer, a running mean and a seed outside of the model."""
        found = []
        for x, y in ((OVERFLOWS, Y), (X[WITHOUT], Y[WITHOUT])):
            strategy = make_strategy("onedevice" if eagerly else "mirrored", 0 if eagerly else 2)
            keras.utils.set_random_seed(1)
            with strategy.scope():
                model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
                if eagerly:
                    model.compile(run_eagerly=True)
                optimizer = keras.optimizers.Adam(0.05)
                mean = keras.Variable(0.0, trainable=False, aggregation="mean")

            def step(model, data, optimizer=optimizer, mean=mean, eagerly=eagerly):
                x, y = data
                if not eagerly:  # the seed behind this belongs to one strategy of a process
                    x += keras.random.normal((1, 4))
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean((model(x) - y) ** 2)
                gradients = tape.gradient(loss, model.trainable_variables)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
                mean.assign(0.9 * mean + 0.1 * loss)
                return {"loss": loss}

            Trainer(model, step=step).fit(x, y, epochs=2, on_bad_loss="skip", **FIT)
            found.append([*model.get_weights(), *(v.numpy() for v in (mean, *optimizer.variables))])
        np.testing.assert_equal(*found)
        assert len(found[0]) == 2 + 1 + 6 and all(np.isfinite(a).all() for a in found[0])

    def test_a_dataset_of_unknown_length_with_a_nan(self, caplog):
        bad = X.copy()
        bad[BAD * BATCH] = np.nan

        def unknown(x, y):
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
            return data.filter(lambda *_: True)

        skipped, history = fit("sgd", "onedevice", bad, Y, data=unknown, on_bad_loss="skip")
        lacking, expected = fit("sgd", "onedevice", X[WITHOUT], Y[WITHOUT], data=unknown)
        assert history == expected
        np.testing.assert_equal(state_of(skipped), state_of(lacking))
        assert "batch 3 of epoch 2." in caplog.text and "examples" not in caplog.text

    def test_a_loss_above_the_bound(self, caplog):
        far = Y.copy()
        far[BAD * BATCH] = 1e3
        skipped, _ = fit("adam", "onedevice", X, far, on_bad_loss="skip", max_loss=1e4)
        lacking, _ = fit("adam", "onedevice", X[WITHOUT], Y[WITHOUT])
        np.testing.assert_equal(state_of(skipped), state_of(lacking))
        assert "must be finite and at most 10000" in caplog.text
        loss = float(re.search(r"Received: loss ([\d.]+), at step 3", caplog.text).group(1))
        assert 1e5 < loss < 1e6  # a fifth of the square of 1e3

    def test_a_weight_that_is_not_finite_though_the_loss_is(self, caplog):
        def step(model, data):
            report = own_step(model, data)
            kernel = model.layers[-1].kernel
            kernel.assign(tf.where(tf.reduce_any(data[1] > 1e3), np.inf, kernel))
            return {"loss": tf.minimum(report["loss"], 1.0)}

        far = Y.copy()
        far[BAD * BATCH] = 2e3
        trainer = trainer_of("step", "mirrored")
        trainer = Trainer(trainer.model, step=step)
        trainer.fit(X, far, on_bad_loss="skip", **FIT)
        assert "Received: weights that are not finite, loss " in caplog.text
        assert all(np.isfinite(w).all() for w in trainer.model.get_weights())

    def test_gradients_that_loss_scaling_skips_are_no_bad_step(self, caplog):
        trainer = trainer_of("float16", "onedevice")
        trainer.model.optimizer.initial_scale = 1e38
        trainer.fit(X, Y, on_bad_loss="stop", **FIT)
        assert trainer.model.optimizer.inner_optimizer.iterations.numpy() < STEPS
        assert trainer.progress.step == STEPS

    def test_one_more_than_the_most_ends_the_run(self, caplog):
        with pytest.raises(health.BadNumbers, match="those before were at steps 3, 11"):
            fit("sgd", "onedevice", OVERFLOWS, Y, 3, on_bad_loss="skip", max_bad_steps=2)
        assert "bad step 2 of at most 2" in caplog.text


def test_bad_steps_are_counted_over_all_lives():
    data, at = batches.from_arrays(X, Y, global_batch_size=BATCH), progress.Progress(step=9)
    first, later = health.Health("rollback"), health.Health("skip")
    for position in range(3):
        assert first.took(at, data, position + 1, bad=1, loss=math.inf)["action"] == "rollback"
    later.go_on_from(json.loads(json.dumps(first.to_save())), step=5)
    assert later.steps_until_due(at) == 1 and later.leaves_out(at)
    event = later.took(at, data, 5, bad=1, loss=7.0)
    assert (event["step"], event["position"], event["action"]) == (14, 4, "stop")
    with pytest.raises(health.BadNumbers, match="steps 10, 11, 12.*last checkpoint is of step 5"):
        later.act(event, is_chief=True)


class TestStop:
    def test_says_where_and_on_which_examples(self, tmp_path):
        shuffled = {**FIT, "shuffle": True, "seed": 7}
        bad = X.copy()
        bad[13] = 1e38
        trainer = trainer_of("sgd", "mirrored")
        data = batches.from_arrays(bad, Y, global_batch_size=BATCH, shuffle=True, seed=7)
        places = [p for p in range(STEPS) if 13 in data.examples_of(0, p)]
        with pytest.raises(health.BadNumbers) as raised:
            trainer.fit(
                bad, Y, on_bad_loss="stop", checkpoints=Checkpoints(tmp_path), save_every_steps=1,
                **shuffled,
            )  # fmt: skip
        [place] = places
        text = str(raised.value)
        assert f"at step {place + 1}, batch {place + 1} of epoch 1, the examples " in text
        listed = re.search(r"the examples ([\d, ]+)\.", text).group(1)
        assert listed == ", ".join(map(str, data.examples_of(0, place)))
        last = Checkpoints(tmp_path).steps()[-1] if place else None
        assert last == (place or None)
        if place:
            assert f"The last checkpoint is of step {place}." in text
            saved = checkpoint_lib.read(Checkpoints(tmp_path).path(last))
            assert all(np.isfinite(array).all() for array in saved.arrays.values())

    def test_examples_are_those_that_the_graph_reads(self):
        data = batches.IndexedBatches(
            batches.arrays.ArraySource((np.arange(100, 123),)), global_batch_size=4, shuffle=True,
            seed=5, subset=np.arange(1, 20),
        )  # fmt: skip
        elements = data.dataset(Shard(), 5).take(7)  # the second epoch begins with step 5
        for step, (share, _) in enumerate(elements, 5):
            examples = data.examples_of(*divmod(step, data.steps_per_epoch))
            assert (share[0].numpy() - 100).tolist() == examples

    def test_nothing_is_in_the_graph_of_a_run_that_does_not_look(self):
        loop = trainer_of("sgd", "mirrored")._loop
        data = batches.from_arrays(X, Y, global_batch_size=BATCH)
        loop.prepare(data.element_spec, "train")

        def operations(**options):
            with loop.strategy.scope():
                graph = loop._functions.train_steps.get_concrete_function(
                    iter(data.dataset(loop.shard)),
                    tf.constant(1),
                    tf.zeros([4], tf.int64),
                    **options,
                ).graph.as_graph_def()
            nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
            return {node.op for node in nodes}

        assert "IsFinite" not in operations(open_ended=False, bounds=None)
        assert "IsFinite" in operations(open_ended=False, bounds=health.Health("stop").bounds)


class TestRollback:
    SAVE = {"save_every_steps": 5, "on_bad_loss": "rollback"}

    @pytest.mark.parametrize(
        ("case", "strategy"), [("adam", "onedevice"), ("train_step", "mirrored")]
    )
    def test_equals_a_run_without_the_batch(self, case, strategy, tmp_path, caplog):
        table = keras.callbacks.CSVLogger(tmp_path / "bad.csv")
        back, history = fit(
            case, strategy, OVERFLOWS, Y, 3, checkpoints=Checkpoints(tmp_path / "run"),
            callbacks=[table], **self.SAVE,
        )  # fmt: skip
        assert caplog.text.count("Going back to the last checkpoint") == 3
        lacking, expected = fit(case, strategy, X[WITHOUT], Y[WITHOUT], 3)
        np.testing.assert_equal(state_of(back), state_of(lacking))
        for name in expected:  # metrics go through the mean of a checkpoint's
            np.testing.assert_allclose(history[name], expected[name], rtol=1e-6)
        rows = list(csv.reader((tmp_path / "bad.csv").read_text().splitlines()))
        assert [row[0] for row in rows] == ["epoch", *"012"]
        assert back.progress.step == 3 * STEPS

    def test_a_later_life_leaves_the_batch_out(self, tmp_path, caplog):
        class Leaves(keras.callbacks.Callback):
            """SIGTERM behind the second time that step 1 is taken, so in front of the bad one."""

            seen = 0

            def on_train_batch_end(self, batch, logs=None):
                self.seen += batch == 0
                if self.seen == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

        checkpoints = Checkpoints(tmp_path)
        one = {"steps_per_execution": 1, "checkpoints": checkpoints}
        with pytest.raises(SystemExit):
            fit("adam", "onedevice", OVERFLOWS, Y, 1, callbacks=[Leaves()], **one, **self.SAVE)
        saved = checkpoint_lib.read(checkpoints.path(checkpoints.steps()[-1]))
        assert saved.step in (1, 2)
        [event] = saved.facts["health"]["events"]
        assert (event["position"], event["loss"], event["action"]) == (BAD, "nan", "rollback")
        caplog.clear()
        later, _ = fit("adam", "onedevice", OVERFLOWS, Y, 1, resume_from=saved, **one)
        assert "Received: loss" not in caplog.text
        lacking, _ = fit("adam", "onedevice", X[WITHOUT], Y[WITHOUT], 1)
        np.testing.assert_equal(state_of(later), state_of(lacking))

    def test_is_refused_without_checkpoints(self):
        with pytest.raises(ValueError, match="goes back to a checkpoint.*`run_dir`"):
            fit("sgd", "onedevice", X, Y, on_bad_loss="rollback")

    def test_is_refused_for_data_that_come_in_another_order(self, tmp_path):
        def shuffled(x, y):
            return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(40, seed=1).batch(BATCH)

        with pytest.raises(ValueError, match="in another order each time"):
            fit(
                "sgd", "onedevice", X, Y, data=shuffled, checkpoints=Checkpoints(tmp_path),
                on_bad_loss="rollback",
            )  # fmt: skip
        assert not Checkpoints(tmp_path).steps()

    def test_is_refused_in_a_repaired_fit_too(self, tmp_path):
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(40, seed=1).batch(BATCH)
        with make_strategy("mirrored", 2).scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        tfscale.enable_keras_fit(on_bad_loss="rollback")
        fits.begin_script(fits.Fits(tmp_path))
        try:
            for changing in (data.map(lambda x, y: (x, y)).prefetch(2), Drawn(workers=0)):
                with pytest.raises(ValueError, match="in another order each time"):
                    model.fit(changing, verbose=0)
        finally:
            fits.begin_script(None)
            tfscale.disable_keras_fit()


class Drawn(keras.utils.PyDataset):
    """One batch, and code at the end of an epoch, which may draw another order."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return X[:BATCH], Y[:BATCH]

    def on_epoch_end(self):
        pass


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"on_bad_loss": "skipp"}, "Received: 'skipp'. Did you mean 'skip'"),
            ({"max_loss": 3.0}, "`max_loss` must be a number, beside `on_bad_loss`"),
            ({"on_bad_loss": "stop", "max_loss": math.nan}, "max_loss=nan"),
            ({"max_bad_steps": -1}, "`max_bad_steps` must be at least 0"),
            ({"check_weights_every_steps": -1}, "`check_weights_every_steps` must be"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            health.Health(**options)

    def test_a_bound_needs_a_loss(self):
        with make_strategy("onedevice").scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        trainer = Trainer(model, step=lambda model, data: {"mean": tf.reduce_mean(model(data[0]))})
        with pytest.raises(ValueError, match="needs a step that reports a loss.*reports mean"):
            trainer.fit(X, Y, on_bad_loss="skip", max_loss=1.0, **FIT)

    def test_the_configuration_has_them(self):
        from tfscale import experiment

        config = RunConfig()
        config.train.on_bad_loss = "rolback"
        with pytest.raises(ValueError, match="Did you mean 'rollback'"):
            experiment.build(config, "onedevice")


def test_callbacks_and_metrics_jsonl_are_told(tmp_path):
    trainer = trainer_of("sgd", "onedevice")
    log = run_log.ScalarLog(tmp_path / "metrics.jsonl")
    callback = run_log.RunLog(log, trainer.progress, 4)
    trainer.fit(OVERFLOWS, Y, on_bad_loss="skip", callbacks=[callback], **FIT)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    [noted] = [line for line in lines if "bad_step" in line]
    assert (noted["step"], noted["epoch"]) == (BAD + 1, 0)
    assert noted["bad_step"]["examples"] == [10, 11, 12, 13, 14]
    assert (noted["bad_step"]["loss"], noted["bad_step"]["action"]) == ("nan", "skip")


def test_steps_that_are_taken_again_are_recorded_once(tmp_path):
    trainer = trainer_of("sgd", "onedevice")
    log = run_log.ScalarLog(tmp_path / "metrics.jsonl")
    options = FIT | {"steps_per_execution": 1, "save_every_steps": 5, "epochs": 2}
    trainer.fit(
        OVERFLOWS, Y, on_bad_loss="rollback", checkpoints=Checkpoints(tmp_path / "run"),
        callbacks=[run_log.RunLog(log, trainer.progress, 1)], **options,
    )  # fmt: skip
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train" in line]
    assert steps == list(range(1, 2 * STEPS + 1))
    assert sum("bad_step" in line for line in lines) == 2


class FlipsOneBit(keras.callbacks.Callback):
    """Changes the lowest bit of one number on one replica, after a step."""

    def __init__(self, trainer, step, replica=1):
        super().__init__()
        self.trainer, self.step, self.replica = trainer, step, replica

    def on_train_batch_end(self, batch, logs=None):
        if self.trainer.progress.step == self.step:
            kernel = self.trainer.model.layers[-1].kernel.value
            part = self.trainer.strategy.experimental_local_results(kernel)[self.replica]
            value = part.numpy()
            value.view("int32").reshape(-1)[2] ^= 1
            part.assign(value)


class TestWeightsCompared:
    SMALL = {**FIT, "steps_per_execution": 1, "check_weights_every_steps": 5}

    def test_nothing_is_found_in_50_steps(self):
        strategy = make_strategy("mirrored", 2)
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = dense_model(keras.optimizers.Adam(0.05, global_clipnorm=0.1))
            model.add(keras.layers.BatchNormalization(name="apart"))  # each replica's statistics
            model.compile(model.optimizer, "mse", metrics=["mae"])
        trainer = Trainer(model)
        trainer.fit(X, Y, epochs=7, **self.SMALL)
        compared = [v.path for v in weight_sums.compared_variables(model)]
        assert trainer.progress.step == 56
        assert any("kernel" in p for p in compared) and any("seed" in p for p in compared)
        assert any("adam" in p for p in compared)
        assert not any("apart/moving" in p or "mae" in p for p in compared)

    def test_one_bit_is_found_and_named(self, tmp_path):
        trainer = trainer_of("sgd", "mirrored")
        with pytest.raises(health.BadNumbers) as raised:
            trainer.fit(
                X, Y, epochs=3, callbacks=[FlipsOneBit(trainer, 17)],
                checkpoints=Checkpoints(tmp_path), save_every_steps=6, **self.SMALL,
            )  # fmt: skip
        # Compared in front of the checkpoint of step 18, which is not written.
        text = str(raised.value)
        assert "after step 18, others of" in text
        assert "on replica 0 and replica 1, of which none is with a majority" in text
        assert trainer.model.layers[-1].kernel.path in text
        assert "The last checkpoint is of step 12." in text
        assert Checkpoints(tmp_path).steps() == [6, 12]

    def test_of_many_the_majority_is_right(self):
        table = np.array([[1, 5], [1, 6], [1, 5], [2, 5]])
        assert weight_sums.differences(table, ["a", "b"], Shard(0, 2, 2)) == [
            "a on worker 1, replica 3, while the others agree",
            "b on worker 0, replica 1, while the others agree",
        ]
        assert weight_sums.differences(table[:1], ["a", "b"], Shard()) == []


def _on_two_workers(directory):
    """Skip, go back, and one bit of one weight on worker 1."""
    import keras
    import numpy as np

    from tfscale import testing
    from tfscale.strategy import make_strategy
    from tfscale.training.checkpoint import Checkpoints
    from tfscale.training.health import BadNumbers
    from tfscale.training.trainer import Trainer

    strategy = make_strategy("multiworker")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(45, 4)).astype("float32")
    y = x @ np.ones((4, 1), "float32")
    bad = x.copy()
    bad[13] = 1e38

    class FlipsOneBit(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if trainer.shard.worker == 1 and trainer.progress.step == 13:
                [part] = strategy.experimental_local_results(trainer.model.layers[0].kernel.value)
                value = part.numpy()
                value.view("int32").reshape(-1)[2] ^= 1
                part.assign(value)

    def fitted(x, **options):
        nonlocal trainer
        keras.utils.set_random_seed(1)
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
            model.compile(keras.optimizers.Adam(0.05), "mse")
        trainer = Trainer(model)
        trainer.fit(
            x, y, epochs=2, global_batch_size=5, shuffle=False, verbose=0, steps_per_execution=3,
            check_weights_every_steps=5, **options,
        )  # fmt: skip
        return model.get_weights()[0]

    trainer, raised = None, ""
    found = {"skip": fitted(bad, on_bad_loss="skip")}
    checkpoints = Checkpoints(directory)
    found["rollback"] = fitted(
        bad, on_bad_loss="rollback", checkpoints=checkpoints, save_every_steps=7
    )
    try:
        fitted(x, callbacks=[FlipsOneBit()])
    except BadNumbers as error:
        raised = str(error)
    testing.collect(**found, raised=raised)


@pytest.mark.workers
def test_two_workers_decide_alike_and_name_who_differs(tmp_path):
    chief, other = testing.run_workers(_on_two_workers, 2, args=[tmp_path / "run"])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(45, 4)).astype("float32")
    y = x @ np.ones((4, 1), "float32")
    keep = np.delete(np.arange(45), np.arange(10, 15))
    keras.utils.set_random_seed(1)
    with make_strategy("onedevice").scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.05), "mse")
    Trainer(model).fit(x[keep], y[keep], epochs=2, **FIT)
    for worker in (chief, other):
        for action in ("skip", "rollback"):
            np.testing.assert_allclose(worker.arrays[action], model.get_weights()[0], atol=1e-5)
        np.testing.assert_array_equal(worker.arrays["skip"], chief.arrays["skip"])
        np.testing.assert_array_equal(worker.arrays["rollback"], chief.arrays["skip"])
        text = str(worker.arrays["raised"])
        assert "after step 15, others of" in text and "dense" in text and "kernel" in text
        assert "worker 0 and worker 1, of which none is with a majority" in text
    assert chief.output.count("The step is undone") == 2
    assert "The step is undone" not in other.output
