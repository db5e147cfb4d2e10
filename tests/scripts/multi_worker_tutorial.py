"""Many workers, in the manner of TensorFlow's tutorial "Multi-worker training with Keras".

    python multi_worker_tutorial.py --data=digits.csv.gz --folder=FOLDER --per_worker_batch_size=64

in a cluster by `TF_CONFIG`. The chief saves to the right place, the others beside it.
"""

import argparse
import json
import os

import keras
import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--folder", required=True)
parser.add_argument("--per_worker_batch_size", type=int, default=64)
args = parser.parse_args()

tf_config = json.loads(os.environ["TF_CONFIG"])
num_workers = len(tf_config["cluster"]["worker"])
global_batch_size = args.per_worker_batch_size * num_workers

strategy = tf.distribute.MultiWorkerMirroredStrategy()


def digits_dataset(batch_size):
    rows = np.loadtxt(args.data, delimiter=",", dtype="float32")[:960]
    images, labels = rows[:, :-1].reshape(-1, 8, 8) / 16, rows[:, -1].astype("int64")
    return (
        tf.data.Dataset.from_tensor_slices((images, labels))
        .shuffle(len(images))
        .repeat()
        .batch(batch_size)
    )


def build_and_compile_model():
    model = keras.Sequential(
        [
            keras.Input(shape=(8, 8)),
            keras.layers.Reshape(target_shape=(8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.SGD(learning_rate=0.1, momentum=0.9, clipnorm=1.0),
        metrics=["accuracy"],
    )
    return model


def is_chief(task_type, task_id, cluster_spec):
    return (
        task_type is None
        or task_type == "chief"
        or (task_type == "worker" and task_id == 0 and "chief" not in cluster_spec.as_dict())
    )


def write_filepath(path, task_type, task_id, cluster_spec):
    dirpath, base = os.path.split(path)
    if not is_chief(task_type, task_id, cluster_spec):
        dirpath = os.path.join(dirpath, f"workertemp_{task_id}")
    tf.io.gfile.makedirs(dirpath)
    return os.path.join(dirpath, base)


task_type, task_id = strategy.cluster_resolver.task_type, strategy.cluster_resolver.task_id
cluster_spec = strategy.cluster_resolver.cluster_spec()
chief = is_chief(task_type, task_id, cluster_spec)

with strategy.scope():
    dataset = digits_dataset(global_batch_size)
    model = build_and_compile_model()

# Training, with callbacks that restore after a failure and keep each epoch's weights.
callbacks = [
    keras.callbacks.BackupAndRestore(backup_dir=os.path.join(args.folder, "backup")),
    keras.callbacks.ModelCheckpoint(
        filepath=os.path.join(args.folder, "epoch-{epoch}.weights.h5"), save_weights_only=True
    ),
]
history = model.fit(dataset, epochs=3, steps_per_epoch=10, callbacks=callbacks)

# A whole model: the chief's is kept, what the others wrote is deleted.
model_path = os.path.join(args.folder, "keras-model.keras")
write_model_path = write_filepath(model_path, task_type, task_id, cluster_spec)
model.save(write_model_path)
if not chief:
    tf.io.gfile.rmtree(os.path.dirname(write_model_path))

# Checkpoints by hand.
checkpoint_dir = os.path.join(args.folder, "ckpt")
checkpoint = tf.train.Checkpoint(model=model)
write_checkpoint_dir = write_filepath(checkpoint_dir, task_type, task_id, cluster_spec)
checkpoint_manager = tf.train.CheckpointManager(
    checkpoint, directory=write_checkpoint_dir, max_to_keep=1
)
checkpoint_manager.save()
if not chief:
    tf.io.gfile.rmtree(write_checkpoint_dir)
before = [w.copy() for w in model.get_weights()]
model.set_weights([np.zeros_like(w) for w in before])
while tf.train.latest_checkpoint(checkpoint_dir) is None:  # until the chief has saved
    pass
checkpoint.restore(tf.train.latest_checkpoint(checkpoint_dir))
restored = all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))

# The model is loaded in the scope, and trained further.
while not tf.io.gfile.exists(model_path):
    pass
with strategy.scope():
    loaded_model = keras.models.load_model(model_path)
again = loaded_model.fit(dataset, epochs=1, steps_per_epoch=10)
scores = loaded_model.evaluate(dataset, steps=5, return_dict=True)

print(
    "result",
    json.dumps(
        {
            "losses": history.history["loss"],
            "accuracy": history.history["accuracy"],
            "restored": restored,
            "again": again.history["loss"],
            "scores": scores,
        }
    ),
    flush=True,
)
