"""A search of one trial that is trained twice: python executions_script.py FOLDER.

The second time it learns nothing, so that the best weights are those of the first. It prints what
the best model scores.
"""

import os
import sys
import time

import keras
import keras_tuner
from keras import layers

import tfscale
import tfscale.search

folder = sys.argv[1]
(x, y), (x_val, y_val) = tfscale.load_digits()
x, y, x_val = x[:512] / 16.0, y[:512], x_val / 16.0


class Digits(keras_tuner.HyperModel):
    executions = 0

    def build(self, hp):
        units = hp.Choice("units", [16, 32])
        model = keras.Sequential(
            [
                layers.Flatten(),
                layers.Dense(units, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )
        optimizer = keras.optimizers.Adam(1e-2)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    def fit(self, hp, model, *args, **kwargs):
        self.executions += 1
        if self.executions == 2:
            model.optimizer.learning_rate = 1e-12
            if os.path.exists(f"{folder}/slow"):  # time to be killed
                pause = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: time.sleep(3))
                kwargs["callbacks"].append(pause)
        return model.fit(*args, **kwargs)


tuner = tfscale.search.RandomSearch(
    Digits(),
    objective="val_accuracy",
    max_trials=1,
    seed=1,
    executions_per_trial=2,
    directory=folder,
    project_name="digits",
)
tuner.search(x, y, epochs=3, validation_data=(x_val, y_val))
print(tuner.get_best_models()[0].evaluate(x_val, y_val, verbose=0)[1])
