"""A Keras script that a fault strikes, once, at the moment and on the worker that FAULT names.

FAULT is JSON: `{"fault": ..., "moment": ..., "rank": ...}`, or `{}` for none. It acts in the
first life alone. In the lives that ABSENT lists, the second place's worker ends at once. The chief
leaves `weights.npz` in the folder that it is given, every worker `history-RANK.json`.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time

import keras
import numpy as np
import tensorflow as tf

FAULT = json.loads(os.environ.get("FAULT", "{}"))
RANK = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
FIRST_LIFE = os.environ["TFSCALE_LIFE"] == "1"
ABSENT = os.environ.get("ABSENT", "").split(",")
OUT = pathlib.Path(sys.argv[1])
DROPOUT = float(os.environ.get("DROPOUT", "0.2"))
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0"))
EPOCHS = int(os.environ.get("EPOCHS", "4"))
STEPS_A_EPOCH = 12
# Which of them. All are in the second call of `fit`; the first one writes six checkpoints, with
# four calls of `fsync` each.
AT = {"step": 2 * STEPS_A_EPOCH + 17, "evaluation": 5, "epochs": 4, "write": 30, "rename": 8}
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
PATIENCE_SECONDS = 30


class Fate:
    """Counts moments, and strikes at the one that was named."""

    def __init__(self):
        self.counts = {}
        self.armed = ""  # an exception that waits for the next step or input
        self.struck = threading.Event()

    def reach(self, moment):
        self.counts[moment] = self.counts.get(moment, 0) + 1
        return (
            FIRST_LIFE
            and FAULT.get("moment") == moment
            and self.counts[moment] == AT.get(moment, 1)
        )

    def strike(self, place=""):
        """Do it; `place` is where an exception can be raised at once."""
        fault = FAULT["fault"]
        print(f"fault: {fault} at {FAULT['moment']} on {RANK}", flush=True)
        if fault in SIGNALS:
            self.struck.set()
            os.kill(os.getpid(), SIGNALS[fault])
        elif fault == "leave":
            os._exit(0)
        elif fault == place:
            self.fail()
        else:
            self.armed = fault

    def fail(self):
        self.armed = ""
        self.struck.set()
        raise RuntimeError("a fault of the test")

    def pass_by(self, place):
        """Raise what waits for this place."""
        if self.armed == place:
            self.fail()


fate = Fate()
MINE = FAULT.get("rank") == RANK


class Trip(keras.layers.Layer):
    """Gives what it gets; on the way Python is called in the middle of the step."""

    def call(self, x, training=False):
        tf.py_function(self.in_step if training else self.in_evaluation, [], [])
        return tf.identity(x)

    def in_step(self):
        fate.pass_by("error")
        if fate.reach("step") and MINE:
            fate.strike("error")

    def in_evaluation(self):
        if fate.reach("evaluation") and MINE:
            fate.strike("error")


class Data(keras.utils.PyDataset):
    """Batches whose reading is the input function."""

    def __init__(self, x, y, size):
        super().__init__()
        self.x, self.y, self.size = x, y, size

    def __len__(self):
        return len(self.x) // self.size

    def __getitem__(self, index):
        fate.pass_by("input")
        part = slice(index * self.size, (index + 1) * self.size)
        return self.x[part], self.y[part]


class Watch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        time.sleep(STEP_SECONDS)

    def on_epoch_end(self, epoch, logs=None):
        if fate.reach("epochs") and MINE:
            if FAULT["fault"] == "exit":
                print(f"fault: exit at epochs on {RANK}", flush=True)
                sys.exit(0)
            fate.strike("error")


def watch_writes():
    """Strike while the chief writes: its thread stands still until that has happened."""
    sign = OUT / "writes"
    if RANK == 0:
        own_sync, own_rename = os.fsync, os.rename

        def halt(moment, path):
            if "tfscale-checkpoint" not in threading.current_thread().name:
                return
            if not fate.reach(moment):
                return
            if MINE:
                fate.strike()
                fate.struck.wait(PATIENCE_SECONDS)
            else:
                sign.touch()
                time.sleep(PATIENCE_SECONDS)  # the fault of the other ends this

        def sync(handle):
            own_sync(handle)
            halt("write", handle)

        def rename(source, target):
            if str(source).endswith(".writing"):
                halt("rename", source)
            own_rename(source, target)

        os.fsync, os.rename = sync, rename
    elif MINE:

        def wait():
            while not sign.exists():
                time.sleep(0.002)
            fate.strike()

        threading.Thread(target=wait, daemon=True).start()


if os.environ["TFSCALE_LOCAL_PLACE"] == "1" and os.environ["TFSCALE_LIFE"] in ABSENT:
    sys.exit(1)
if FIRST_LIFE and FAULT.get("moment") in ("write", "rename"):
    watch_writes()
if fate.reach("start") and MINE:
    fate.strike("error")
port = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][RANK].rpartition(":")[2]
print(f"listens on {port}", flush=True)

keras.utils.set_random_seed(3)
random = np.random.default_rng(0)
x = random.random((STEPS_A_EPOCH * 16, 6), dtype="float32")
y = (x.sum(1) > 3).astype("int32")
layers = [keras.Input((6,)), Trip(), keras.layers.Dense(12, "relu")]
if DROPOUT:
    layers += [keras.layers.Dropout(DROPOUT), keras.layers.BatchNormalization()]
model = keras.Sequential([*layers, keras.layers.Dense(2, "softmax")])
compiled = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
model.compile("adam", **compiled, jit_compile=False)
first = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[Watch()])
model.compile(keras.optimizers.Adam(0.01), **compiled, jit_compile=False)
stopping = keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True)
log = keras.callbacks.CSVLogger(str(OUT / "epochs.csv"))
second = model.fit(
    Data(x, y, 16), epochs=EPOCHS, validation_data=Data(x[:64], y[:64], 16), verbose=0,
    callbacks=[stopping, log, Watch()],
)  # fmt: skip
numbers = {"first": first.history, "second": second.history}
(OUT / f"history-{RANK}.json").write_text(json.dumps(numbers))
weights = {f"{i}": weight.numpy() for i, weight in enumerate(model.weights)}
weights |= {f"adam{i}": v.numpy() for i, v in enumerate(model.optimizer.variables)}
if RANK == 0:
    np.savez(OUT / "weights.npz", **weights)
