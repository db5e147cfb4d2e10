"""Notes which examples each worker trains on: in datasets, in arrays, and in a `PyDataset`.

    python seen_examples.py

Without seeds and without a strategy, as scripts for one machine are. The examples are numbers,
and prints "result" with those of each epoch, by kind of data.
"""

import json

import keras
import numpy as np
import tensorflow as tf

NUM_EXAMPLES, BATCH_SIZE, EPOCHS = 50, 11, 2  # the last batch has six examples
numbers = np.arange(NUM_EXAMPLES, dtype="float32")[:, None]
seen = []


class Noting(keras.Model):
    """Notes its examples, and learns nothing."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        noted = tf.numpy_function(self.note, [x], tf.float32, stateful=True)
        with tf.control_dependencies([noted]):
            y_pred = self(x)
        return {"loss": self.compute_loss(y=y, y_pred=y_pred)}

    @staticmethod
    def note(x):
        seen.append([int(number) for number in x[:, 0]])
        return x


class Sequence(keras.utils.PyDataset):
    """Shuffled by hand after each epoch, as many are."""

    def __init__(self):
        super().__init__()
        self.order = np.random.permutation(NUM_EXAMPLES)

    def __len__(self):
        return -(-NUM_EXAMPLES // BATCH_SIZE)

    def __getitem__(self, index):
        chosen = self.order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE]
        return numbers[chosen], numbers[chosen]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


class EndOfEpoch(keras.callbacks.Callback):
    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(seen.copy())
        seen.clear()


def examples_of(*data, **arguments):
    model = Noting()
    model.compile("sgd", "mse")
    epochs = []
    model.fit(*data, epochs=EPOCHS, verbose=0, callbacks=[EndOfEpoch(epochs)], **arguments)
    return epochs


dataset = tf.data.Dataset.from_tensor_slices((numbers, numbers))
found = {
    "dataset": examples_of(dataset.shuffle(NUM_EXAMPLES).batch(BATCH_SIZE)),
    "arrays": examples_of(numbers, numbers, batch_size=BATCH_SIZE, shuffle=True),
    "PyDataset": examples_of(Sequence()),
}
print("result", json.dumps(found), flush=True)
