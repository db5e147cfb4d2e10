"""A script for one machine: a table in a file, arguments, callbacks, files, a model loaded again.

python single_machine.py --data=digits.csv.gz --folder=FOLDER
"""

import argparse
import json
import os
import random

import keras
import numpy as np


def load_data(path):
    table = np.loadtxt(path, delimiter=",", dtype="float32")
    images, labels = table[:, :-1].reshape(-1, 8, 8, 1) / 16, table[:, -1].astype("int64")
    return (images[:1000], labels[:1000]), (images[1000:1211], labels[1000:1211])


def build_model():
    inputs = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(8, 3, activation="relu")(inputs)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(16, activation="relu", kernel_regularizer="l2")(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))


def train(args, model, x, y):
    folder = args.folder
    callbacks = [
        keras.callbacks.EarlyStopping(patience=1, start_from_epoch=2, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.3, patience=0, min_delta=0.4),
        keras.callbacks.ModelCheckpoint(os.path.join(folder, "best.keras"), save_best_only=True),
        keras.callbacks.CSVLogger(os.path.join(folder, "log.csv")),
        keras.callbacks.TensorBoard(os.path.join(folder, "tensorboard"), histogram_freq=1),
    ]
    return model.fit(
        x,
        y,
        batch_size=args.batch_size,
        epochs=args.epochs,
        validation_split=0.17,
        callbacks=callbacks,
        verbose=2,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=50)
    args = parser.parse_args()

    keras.utils.set_random_seed(11)
    (x_train, y_train), (x_test, y_test) = load_data(args.data)
    model = build_model()
    model.compile(
        optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.01, global_clipnorm=0.5),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    history = train(args, model, x_train, y_train)
    results = model.evaluate(x_test, y_test, batch_size=64, verbose=0, return_dict=True)
    predictions = model.predict(x_test, batch_size=50, verbose=0)

    # The file is whole, and the model that it holds is the one that was trained.
    path = os.path.join(args.folder, "digits.keras")
    model.save(path)
    model.save_weights(os.path.join(args.folder, "digits.weights.h5"))
    again = keras.models.load_model(path)
    loaded = again.evaluate(x_test, y_test, batch_size=64, verbose=0, return_dict=True)
    best = keras.saving.load_model(os.path.join(args.folder, "best.keras"))

    print(
        "result",
        json.dumps(
            {
                "history": history.history,
                "epochs": history.epoch,
                "test": results,
                "loaded": loaded,
                "best": best.evaluate(x_test, y_test, verbose=0),
                "predictions": predictions[::30].tolist(),
                "num_predictions": len(predictions),
                "accuracy": float(np.mean(np.argmax(predictions, axis=1) == y_test)),
                "random": random.random(),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
