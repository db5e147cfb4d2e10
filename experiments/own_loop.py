r"""A training loop of one's own around `strategy.run`, with tfscale's shares and reduction.

    python experiments/own_loop.py
    python -m tfscale.launch --workers=2 experiments/own_loop.py

`tfscale.distribute` cuts each global batch among workers and replicas. Inside of
`tfscale.replica_share` a step is written as for one device: the gradients that the optimizer gets
are weighted by the size of the share and summed before they are clipped.

Data: 1,437 images of 8x8 pixels to train on, 360 to test. Model: 9,610 parameters.
Cost: 450 steps. 5 s of processor time on one device, 14 s over two local workers, start included.
Result: loss 0.0366 in the last epoch, test accuracy 0.9833, the same with two workers.
"""

import keras
import tensorflow as tf

import tfscale

GLOBAL_BATCH_SIZE = 32


def build_model():
    """Return a small network."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def main(epochs=10):
    """Train on the digits; return the loss of each epoch and the accuracy on test images."""
    tfscale.set_seed(1)
    strategy = tfscale.make_strategy()
    (x_train, y_train), (x_test, y_test) = tfscale.load_digits()
    train = tf.data.Dataset.from_tensor_slices((x_train, y_train))
    train = tfscale.distribute(train.shuffle(len(x_train)).batch(GLOBAL_BATCH_SIZE), strategy)
    test = tf.data.Dataset.from_tensor_slices((x_test, y_test)).batch(100)
    test = tfscale.distribute(test, strategy)

    with strategy.scope():
        model = build_model()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0)
        optimizer.build(model.trainable_variables)
        loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        mean_loss = keras.metrics.Mean()
        accuracy = keras.metrics.SparseCategoricalAccuracy()

    def train_replica(element):
        with tfscale.replica_share(element) as (x, y):
            with tf.GradientTape() as tape:
                loss = loss_fn(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            mean_loss.update_state(loss)

    def test_replica(element):
        with tfscale.replica_share(element) as (x, y):
            accuracy.update_state(y, model(x, training=False))

    @tf.function
    def train_epoch():
        for element in train:  # in the graph: the host waits once an epoch
            strategy.run(train_replica, args=(element,))
        return mean_loss.result()

    @tf.function
    def test_accuracy():
        for element in test:
            strategy.run(test_replica, args=(element,))
        return accuracy.result()

    losses = []
    for epoch in range(epochs):
        mean_loss.reset_state()
        losses.append(float(train_epoch()))
        if tfscale.is_chief():
            print(f"epoch {epoch + 1}  loss {losses[-1]:.4f}")
    score = float(test_accuracy())
    if tfscale.is_chief():
        print(f"test accuracy {score:.4f}")
    return losses, score


if __name__ == "__main__":
    main()
