"""A worker of two: trains without and with measures, the second time with a slow worker 1.

The same again with synchronized normalization, and then with deterministic operations, where worker
1 computes longer. Then it predicts a test split that worker 1 cannot read, and one that it can.
"""

import itertools
import sys
import time

from tfscale.strategy import make_strategy, shard_of

strategy = make_strategy("multiworker")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tfscale import models  # noqa: E402
from tfscale.data import batches  # noqa: E402
from tfscale.testing import collect  # noqa: E402
from tfscale.training import tested  # noqa: E402
from tfscale.training.measures import Measures  # noqa: E402
from tfscale.training.trainer import Trainer  # noqa: E402

rank = shard_of(strategy).worker
x = np.random.default_rng(0).random((320, 8, 8, 1), dtype="float32")
y = np.random.default_rng(1).integers(0, 10, len(x))


class Busy(keras.callbacks.Callback):
    """Keeps the host of worker 1 between two executions, far longer than these take.

    By the clock, so that it is the slow one however long another worker is kept from computing.
    """

    def on_train_begin(self, logs=None):
        self.was_free = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        if rank == 1:
            time.sleep(min(0.02 + 4 * (time.monotonic() - self.was_free), 3))
        self.was_free = time.monotonic()


own_vote, voted = Measures.vote, itertools.cycle([0, 0, 1])
Measures.vote = lambda *_: next(voted)  # of the chief: leaves out every third execution


class Longer(keras.layers.Layer):
    """Gives what it gets, on worker 1 after some time."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds if rank == 1 else 0

    def wait(self):
        time.sleep(self.seconds)

    def call(self, inputs):
        with tf.control_dependencies([tf.numpy_function(self.wait, [], [])]):
            return tf.identity(inputs)


def weights(run_dir, callbacks, layers=lambda: (), **options):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        convnet = models.build("convnet", (8, 8, 1), 10, filters=(4,), dropout=0.2)
        before = layers()
        model = keras.Sequential([*before, convnet]) if before else convnet
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=0.5), loss)
    given = {"global_batch_size": 16, "epochs": 3, "steps_per_execution": 2, "verbose": 0}
    Trainer(model, run_dir=run_dir).fit(x, y, callbacks=callbacks, **given | options)
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


options = {"epochs": 3, "steps_per_execution": 5}
trained = {"plain": weights("", []), "observed": weights(sys.argv[1], [Busy()])}
Measures.vote = own_vote
for name, run_dir, seconds in ("", "", 0), ("observed ", sys.argv[3], 0.03):
    options["layers"] = lambda s=seconds: [
        *(keras.Input((8, 8, 1)), Longer(s)),
        keras.layers.BatchNormalization(synchronized=True),
        Longer(s),
        keras.layers.BatchNormalization(synchronized=True),
    ]
    trained[f"{name}synchronized"] = weights(run_dir, [], **options | {"epochs": 3})
tf.config.experimental.enable_op_determinism()
for name, run_dir, seconds in ("", "", 0), ("observed ", sys.argv[2], 0.06):
    options = {"epochs": 10, "steps_per_execution": 5}
    options["layers"] = lambda s=seconds: [keras.Input((8, 8, 1)), Longer(s)]
    trained[f"{name}deterministic"] = weights(run_dir, [], **options)


class Unreadable(batches.Batches):
    """A test split of which worker 1 cannot read the third batch."""

    num_examples = 80

    def __init__(self):
        self._data = batches.from_arrays(x[:80], y[:80], global_batch_size=16)
        self.element_spec = self._data.element_spec

    def epoch(self, shard):
        for position, element in enumerate(self._data.epoch(shard)):
            if rank == 1 and position == 2:
                raise OSError("the disk of worker 1")
            yield element


with strategy.scope():
    asked = models.build("convnet", (8, 8, 1), 10, filters=(4,))
    asked.compile("sgd", "mse")
asked = Trainer(asked)
try:
    tested.probabilities(asked, Unreadable(), 10, True)
    failed = "nothing"
except (OSError, RuntimeError) as error:
    failed = str(error)
whole = tested.probabilities(asked, batches.from_arrays(x, y, global_batch_size=30), 10, True)
collect(**trained, failed=np.array(failed), sums=whole.sum(1))
