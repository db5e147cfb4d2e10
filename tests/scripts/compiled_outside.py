"""As people write it: the model is made in the scope, and compiled below it.

With `outside`, the model is made below it as well, and has no strategy.
"""

import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(1)
x = np.random.default_rng(0).random((50, 4), dtype="float32")
y = x.sum(1, keepdims=True)


def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])


if "TF_CONFIG" in os.environ and "outside" not in sys.argv:
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        model = build()
elif "TF_CONFIG" in os.environ:
    tf.distribute.MultiWorkerMirroredStrategy()
    model = build()
else:
    model = build()
model.compile("adam", "mse", metrics=["mae"])
history = model.fit(x, y, batch_size=16, epochs=2, validation_data=(x[:21], y[:21]), verbose=0)
print("result", json.dumps({"fit": history.history, "scores": model.evaluate(x, y, verbose=0)}))
