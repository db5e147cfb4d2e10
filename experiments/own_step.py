r"""A step of one's own in a `tf.GradientTape`, handed to `tfscale.Trainer`.

    python experiments/own_step.py
    python -m tfscale.launch --workers=2 experiments/own_step.py

The step is written as for one device. `Trainer` cuts each global batch among the replicas, sums
the gradients before they are clipped, runs many steps in one graph, and brings callbacks,
validation and checkpoints.

Data: 1,437 images of 8x8 pixels to train on, 360 to test. Model: 74,762 parameters.
Cost: 450 steps. 5 s of processor time on one device, 15 s over two local workers, start included.
Result: loss 0.0936 in the last epoch, test accuracy 0.9806, the same with two workers.
"""

import keras
import tensorflow as tf

import tfscale


def build_model():
    """Return a small convolutional network, compiled for its metrics and optimizer."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(1e-3, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def step(model, data):
    """One update: the compiled loss, and a penalty on large logits."""
    x, y = data
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        penalty = 1e-4 * tf.reduce_mean(tf.reduce_sum(logits**2, axis=1))
        loss = model.compute_loss(x, y, logits) + penalty
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    model.compute_metrics(x, y, logits)
    return {"loss": loss, "penalty": penalty}


def main(epochs=10):
    """Train on the digits; return the scores on the test images."""
    tfscale.set_seed(1)
    (x_train, y_train), test = tfscale.load_digits()
    strategy = tfscale.make_strategy()
    with strategy.scope():
        model = build_model()
    trainer = tfscale.Trainer(model, step=step)
    trainer.fit(x_train, y_train, global_batch_size=32, epochs=epochs)
    scores = trainer.evaluate(*test)
    if tfscale.is_chief():
        print(f"test accuracy {scores['accuracy']:.4f}")
    return scores


if __name__ == "__main__":
    main()
