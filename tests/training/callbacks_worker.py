"""One worker of the tests of callbacks and saving; relative names lead to a folder of its own."""

import http.server
import os
import pathlib
import sys
import threading

from tfscale import testing
from tfscale.strategy import make_strategy, set_seed, shard_of, sum_over_workers

strategy = make_strategy("multiworker")

import keras  # noqa: E402  (after the strategy: no TensorFlow operation before it)
import numpy as np  # noqa: E402

from tfscale.training import saving  # noqa: E402
from tfscale.training.trainer import Trainer  # noqa: E402

SHARED = pathlib.Path(sys.argv[1])
RANK = shard_of(strategy).worker
OWN = SHARED / f"worker-{RANK}"
OWN.mkdir()
os.chdir(OWN)

rng = np.random.default_rng(0)
X = rng.normal(size=(48, 4)).astype("float32")
Y = (X @ rng.normal(size=(4, 1)) + 1).astype("float32")


class Scored(keras.Model):
    """A model whose metric is an attribute, so that its variables are saved with it."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm = keras.layers.Dense(3), keras.layers.BatchNormalization()
        self.seen = keras.metrics.Mean(name="seen")

    def call(self, x, training=False):
        return keras.ops.sum(self.norm(self.dense(x), training=training), axis=-1, keepdims=True)


def build_model(seed=0, scaled=False, dropout=0.0):
    set_seed(seed)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(8, activation="tanh"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(dropout),
                keras.layers.Dense(1),
            ]
        )
        adam = keras.optimizers.Adam(0.02)
        optimizer = keras.optimizers.LossScaleOptimizer(adam) if scaled else adam
        model.compile(optimizer, "mse", metrics=["mae"])
    return model


def fit(model, callbacks, **arguments):
    given = {"global_batch_size": 8, "steps_per_execution": 1, "verbose": 0, **arguments}
    return Trainer(model).fit(X, Y, callbacks=callbacks, **given)


def barrier():
    sum_over_workers(strategy, [0])


class Posts(http.server.BaseHTTPRequestHandler):
    count = 0

    def do_POST(self):  # noqa: N802
        Posts.count += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Drawing(keras.callbacks.TensorBoard):
    """A user's own, which predicts by a collective and writes a summary."""

    predicted, trainer = 0, None

    def on_epoch_end(self, epoch, logs=None):
        self.trainer = self.trainer or Trainer(self.model)
        logs["predicted"] = float(self.trainer.predict(X[:6]).mean())
        self.predicted += 1
        super().on_epoch_end(epoch, logs)


def write_files():
    """Every callback that writes, by relative names."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Posts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model = build_model(scaled=True)
    keras_callbacks = keras.callbacks
    best = keras_callbacks.ModelCheckpoint(
        "best/model.weights.h5", save_best_only=True, save_weights_only=True, verbose=1
    )
    drawing = Drawing("drawn", histogram_freq=1, write_images=True)
    callbacks = [
        drawing,
        keras_callbacks.ModelCheckpoint("epochs/{epoch:02d}-{val_mae:.3f}.keras"),
        keras_callbacks.ModelCheckpoint(
            "steps/{epoch}-{batch}.weights.h5", save_freq=4, save_weights_only=True
        ),
        best,
        keras_callbacks.BackupAndRestore("backup", delete_checkpoint=False, double_checkpoint=True),
        keras_callbacks.CSVLogger("log.csv", append=True),
        keras_callbacks.RemoteMonitor(f"http://127.0.0.1:{server.server_port}"),
        keras_callbacks.TensorBoard(
            "curves", update_freq=2, write_steps_per_second=True, profile_batch=(2, 3)
        ),
    ]
    histories = [fit(model, callbacks, epochs=2, validation_data=(X[:10], Y[:10]))]
    # Not before: Keras 3.15 forgets the optimizer of a model once it has saved it as .h5.
    callbacks[4] = keras_callbacks.ModelCheckpoint("old.h5", save_best_only=True)
    histories.append(
        fit(model, callbacks, epochs=3, initial_epoch=2, validation_data=(X[:10], Y[:10]))
    )
    server.shutdown()
    server.server_close()
    testing.collect(
        posts=Posts.count,
        predicted=drawing.predicted,
        best=float(best.best),
        log_dir=drawing.log_dir,
        curve=[x for history in histories for x in history.history["predicted"]],
        **{f"weight_{i}": w for i, w in enumerate(model.get_weights())},
    )


def save_at_any_place():
    """The chief alone, all at one path, each at its own."""
    with strategy.scope():
        model = Scored()
        model.compile("adam", "mse")
    fit(model, [], epochs=1)
    model.seen.update_state(float(RANK))
    saving.install()
    with strategy.scope():
        if RANK == 0:
            model.save_weights("alone.weights.h5")
            model.save("alone.keras")
            keras.saving.save_model(model, "function.keras")
            model.export("exported")
            model.get_weights()
            with saving.local_reads(strategy):
                testing.collect(seen=float(model.seen.result()))
    barrier()
    stop = threading.Event()
    problems = []

    def look():
        while not stop.is_set():
            try:
                if (SHARED / "together.keras").exists():
                    keras.src.saving.saving_lib.zipfile.ZipFile(SHARED / "together.keras").testzip()
            except Exception as error:
                problems.append(repr(error))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(5):
        model.save(SHARED / "together.keras")
        model.export(SHARED / "together", verbose=False)
    stop.set()
    reader.join()
    name = "model.keras" if RANK == 0 else f"temporary_{RANK}/model.keras"
    keras.saving.save_model(model, SHARED / name)
    testing.collect(problems=problems, output=model(X[:4]).numpy())
    saving.uninstall()


class StopHere(keras.callbacks.Callback):
    """Ends a run as a kill would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise InterruptedError


def go_on_after_kill():
    """Undisturbed, and killed within and after an epoch."""
    arguments = {"epochs": 3, "validation_data": (X[:10], Y[:10])}
    undisturbed = build_model(dropout=0.3)
    history = fit(undisturbed, [], **arguments)
    testing.collect(loss=history.history["loss"], weights=flat(undisturbed))
    for name, save_freq, at in (("steps", 2, (1, 4)), ("epoch", "epoch", (2, 1))):
        folder = str(SHARED / f"backup-{name}")
        keep = {"save_freq": save_freq, "double_checkpoint": True}
        with_kill = [keras.callbacks.BackupAndRestore(folder, **keep), StopHere(*at)]
        try:
            fit(build_model(dropout=0.3), with_kill, **arguments)
        except InterruptedError:
            barrier()
        backup = keras.callbacks.BackupAndRestore(folder, **keep)
        restarted = build_model(seed=1, dropout=0.3)
        history = fit(restarted, [backup], **arguments)
        testing.collect(
            **{
                f"{name}_position": backup.restored,
                f"{name}_gone": not os.path.exists(folder),
                f"{name}_loss": history.history["loss"],
                f"{name}_weights": flat(restarted),
            }
        )


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def decide():
    """Callbacks that decide, as a test on one device does; see `test_callbacks.decisions`."""
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import test_callbacks

    testing.collect(**test_callbacks.decisions(strategy, X, Y))


write_files()
save_at_any_place()
go_on_after_kill()
decide()
