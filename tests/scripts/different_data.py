"""A script whose workers read different data: each seeds its shuffle, or cuts, by its index.

    python different_data.py

in a cluster by `TF_CONFIG`.
"""

import json
import os

import keras
import numpy as np
import tensorflow as tf

index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
x = np.arange(64, dtype="float32")[:, None] / 64
dataset = tf.data.Dataset.from_tensor_slices((x, 3 * x)).shuffle(64, seed=index).batch(16)
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
whole = tf.data.Dataset.from_tensor_slices((x, 3 * x)).batch(16)
shard = tf.data.Dataset.from_tensor_slices((x, 3 * x)).shard(2, index).batch(8)
mine = x[index::2]
calls = {
    "fit": lambda: model.fit(dataset, epochs=3, verbose=0),
    "validation": lambda: model.fit(whole, validation_data=shard, verbose=0),
    "evaluate": lambda: model.evaluate(shard, verbose=0),
    "predict": lambda: model.predict(shard, verbose=0),
    "train_on_batch": lambda: model.train_on_batch(mine, 3 * mine),
    "predict_on_batch": lambda: model.predict_on_batch(mine),
}
said = {}
for name, call in calls.items():
    try:
        call()
        said[name] = ""
    except ValueError as error:
        said[name] = str(error)
model.fit(whole, validation_data=whole, verbose=0)
print("result", json.dumps(said), flush=True)
