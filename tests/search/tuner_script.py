"""A search with `tfscale.search.Tuner`: python tuner_script.py WORKERS FOLDER [TUNER].

In the manner of keras-tuner's getting-started guide: a HyperModel that chooses in `build` and in
`fit`. It prints one line of JSON: the trials, and what the best model scores.
"""

import json
import os
import sys
import time

import keras
import keras_tuner
from keras import layers

import tfscale
import tfscale.search

workers, folder = int(sys.argv[1]), sys.argv[2]
(x, y), (x_val, y_val) = tfscale.load_digits()
x, y, x_val = x[:512] / 16.0, y[:512], x_val / 16.0


class Digits(keras_tuner.HyperModel):
    def build(self, hp):
        model = keras.Sequential([layers.Flatten()])
        model.add(layers.Dense(hp.Choice("units", [16, 32]), activation="relu"))
        model.add(layers.Dense(10, activation="softmax"))
        rate = hp.Float("rate", 1e-3, 1e-1, sampling="log")
        model.compile(
            keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
        return model

    def fit(self, hp, model, *args, **kwargs):
        if os.path.exists(f"{folder}/slow"):  # time to be killed
            pause = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: time.sleep(3))
            kwargs["callbacks"].append(pause)
        return model.fit(*args, batch_size=hp.Choice("batch_size", [32, 64]), **kwargs)


oracles = {
    "random": keras_tuner.oracles.RandomSearchOracle("val_accuracy", max_trials=2, seed=4),
    "hyperband": keras_tuner.oracles.HyperbandOracle("val_accuracy", max_epochs=3, seed=4),
}
tuner = tfscale.search.Tuner(
    hypermodel=Digits(),
    oracle=oracles[(sys.argv[3:] or ["random"])[0]],
    strategy="multiworker",
    workers_per_trial=workers,
    directory=folder,
    project_name="digits",
    oversubscribe=True,
)
tuner.search(x, y, epochs=2, validation_data=(x_val, y_val))
best = tuner.get_best_hyperparameters(2)
scores = tuner.get_best_models()[0].evaluate(x_val, y_val, verbose=0)
tuner.results_summary()
print(json.dumps({"values": [hp.values for hp in best], "again": scores[1]}))
