"""A loop in the manner of Keras' guide "Writing a training loop from scratch", for one device.

python loop_from_scratch.py
"""

import keras
import numpy as np
import tensorflow as tf

inputs = keras.Input(shape=(4,))
model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8, activation="relu")(inputs)))
optimizer = keras.optimizers.Adam(learning_rate=1e-3)
loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
train_acc_metric = keras.metrics.SparseCategoricalAccuracy()

x, y = np.random.rand(64, 4).astype("float32"), np.random.randint(0, 3, 64)
train_dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(64).batch(16)


@tf.function
def train_step(x, y):
    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        loss_value = loss_fn(y, logits)
    grads = tape.gradient(loss_value, model.trainable_weights)
    optimizer.apply(grads, model.trainable_weights)
    train_acc_metric.update_state(y, logits)
    return loss_value


for epoch in range(2):
    for step, (x_batch_train, y_batch_train) in enumerate(train_dataset):
        loss_value = train_step(x_batch_train, y_batch_train)
        print(f"Training loss at step {step}: {float(loss_value):.4f}")
    print(f"Training acc over epoch {epoch}: {float(train_acc_metric.result()):.4f}")
    train_acc_metric.reset_state()
