"""In the manner of TensorFlow's tutorials "Distributed training with Keras", "Save and load a
model using a distribution strategy" and Keras' guide "Distributed training with TensorFlow".

    python mirrored_tutorial.py --data=digits.csv.gz [--folder=FOLDER] [--one_device]
"""

import argparse
import json
import os
import tempfile

import keras
import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--folder", help="by default a temporary one")
parser.add_argument("--one_device", action="store_true")
args = parser.parse_args()
folder = args.folder or tempfile.mkdtemp()

strategy = tf.distribute.get_strategy() if args.one_device else tf.distribute.MirroredStrategy()
print(f"Number of devices: {strategy.num_replicas_in_sync}")

keras.utils.set_random_seed(5)
table = np.loadtxt(args.data, delimiter=",", dtype="float32")[:1000]
images, labels = table[:, :-1].reshape(-1, 8, 8, 1), table[:, -1].astype("int64")

BATCH_SIZE = 72  # of all replicas together; the last batch of an epoch is smaller


def scale(image, label):
    return image / 16, label


train = tf.data.Dataset.from_tensor_slices((images[:805], labels[:805]))
train_dataset = train.map(scale).cache().shuffle(805).batch(BATCH_SIZE)
eval_dataset = tf.data.Dataset.from_tensor_slices((images[805:], labels[805:]))
eval_dataset = eval_dataset.map(scale).batch(BATCH_SIZE)

with strategy.scope():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(clipnorm=0.5),
        metrics=["accuracy"],
    )


def decay(epoch):
    return 1e-2 if epoch < 2 else 1e-3


rates = []


class PrintLR(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        rates.append(float(self.model.optimizer.learning_rate.numpy()))
        print(f"\nLearning rate for epoch {epoch + 1} is {rates[-1]}")


checkpoint_dir = os.path.join(folder, "ckpt")
if not os.path.exists(checkpoint_dir):
    os.makedirs(checkpoint_dir)
checkpoint_prefix = os.path.join(folder, "ckpt_{epoch}.weights.h5")
callbacks = [
    keras.callbacks.TensorBoard(log_dir=os.path.join(folder, "logs")),
    keras.callbacks.ModelCheckpoint(filepath=checkpoint_prefix, save_weights_only=True),
    keras.callbacks.ModelCheckpoint(filepath=checkpoint_dir + "/ckpt-{epoch}.keras"),
    keras.callbacks.CSVLogger(os.path.join(folder, "log.csv")),
    keras.callbacks.BackupAndRestore(os.path.join(folder, "backup")),
    keras.callbacks.LearningRateScheduler(decay),
    PrintLR(),
]
EPOCHS = 3
history = model.fit(train_dataset, epochs=EPOCHS, callbacks=callbacks, verbose=2)

model.load_weights(checkpoint_prefix.format(epoch=EPOCHS))
eval_loss, eval_acc = model.evaluate(eval_dataset, verbose=0)
path = os.path.join(folder, "model.keras")
model.save(path)
unreplicated_model = keras.models.load_model(path)
alone = unreplicated_model.evaluate(eval_dataset, verbose=0)
with strategy.scope():
    replicated_model = keras.models.load_model(path)
together = replicated_model.evaluate(eval_dataset, verbose=0)
checkpoints = [os.path.join(checkpoint_dir, name) for name in os.listdir(checkpoint_dir)]
with strategy.scope():
    restored_model = keras.models.load_model(max(checkpoints, key=os.path.getctime))
restored = restored_model.evaluate(eval_dataset, verbose=0)

print(
    "result",
    json.dumps(
        {
            "replicas": strategy.num_replicas_in_sync,
            "history": history.history,
            "rates": rates,
            "eval": [eval_loss, eval_acc],
            "alone": alone,
            "together": together,
            "restored": restored,
        }
    ),
    flush=True,
)
