"""A script whose tuner overrides `run_trial`: python run_trial_script.py WORKERS FOLDER.

Each trial ends in another way; it prints one line of JSON: what the search's process sees.
"""

import json
import os
import sys

import keras
import keras_tuner
import numpy as np
import tensorflow as tf

import tfscale.search

workers, folder = int(sys.argv[1]), sys.argv[2]
if os.path.exists(os.path.join(folder, "leaves")) and "TFSCALE_TRIAL" in os.environ:
    sys.exit()


class Tuner(tfscale.search.GridSearch):
    def run_trial(self, trial, base, **kwargs):
        does = trial.hyperparameters.Choice(
            "does", ["number", "tells", "epochs", "model", "loop", "gives up", "leaves", "ends all"]
        )
        if does == "number":
            return base + 0.5
        if does == "tells":
            self.oracle.update_trial(trial.trial_id, {"cost": base + 0.25, "other": 1})
        if does == "gives up":
            raise keras_tuner.errors.FailedTrialError("no such layer")
        if does == "ends all":
            raise keras_tuner.errors.FatalValueError("the data are gone")
        if does == "leaves":
            sys.exit()
        if does == "epochs":
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            for epoch, cost in enumerate([base + 3, base + 2, base + 4]):
                model.set_weights([np.full((1, 1), epoch, "float32"), np.zeros(1, "float32")])
                self.on_epoch_end(trial, model, epoch, {"cost": cost})
        if does == "model":
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
            history = model.fit(np.ones((8, 1)), np.ones((8, 1)), epochs=2, verbose=0)
            self.save_model(trial.trial_id, model)
            return {"cost": base + 10, "loss": history.history["loss"][-1]}
        if does == "loop":  # written for one device
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
            optimizer = keras.optimizers.SGD(0.5)
            model.set_weights([np.ones((1, 1))])
            with tf.GradientTape() as tape:
                cost = tf.reduce_mean(model(np.ones((4, 1))) ** 2)
            gradients = tape.gradient(cost, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return base + 20 + float(model.get_weights()[0][0, 0])  # 1 - 0.5 * 2
        return None

    def load_model(self, trial):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.load_weights(os.path.join(self.get_trial_dir(trial.trial_id), "best.weights.h5"))
        return model

    def on_trial_end(self, trial):
        print(f"trial {trial.trial_id} has {trial.score}")


tuner = Tuner(
    objective=keras_tuner.Objective("cost", "min"),
    strategy="multiworker",
    workers_per_trial=workers,
    directory=folder,
    project_name="costs",
    parallel_trials=2,
    oversubscribe=True,
)
ended_by = ""
try:
    tuner.search(base=1, verbose=0)
except keras_tuner.errors.FatalValueError as error:
    ended_by = str(error)
trials = {
    trial.hyperparameters.values.get("does"): [trial.status, trial.score, trial.message]
    for trial in tuner.oracle.trials.values()
}
best = {trial.hyperparameters.get("does"): trial for trial in tuner.oracle.get_best_trials(4)}
weights = tuner.load_model(best["epochs"]).get_weights()[0].tolist() if "epochs" in best else None
print(json.dumps({"trials": trials, "ended_by": ended_by, "weights": weights}))
