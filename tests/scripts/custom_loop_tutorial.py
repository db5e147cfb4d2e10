"""A loop of one's own, in the manner of TensorFlow's tutorials "Custom training loop with Keras
and MultiWorkerMirroredStrategy" and "Custom training with tf.distribute.Strategy".

    python custom_loop_tutorial.py --data=digits.csv.gz --folder=FOLDER --per_worker_batch_size=32

in a cluster by `TF_CONFIG`. First with datasets from a function, which each worker shards itself,
and a checkpoint at the end of each epoch; then with a dataset that TensorFlow distributes.
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
parser.add_argument("--per_worker_batch_size", type=int, default=32)
args = parser.parse_args()

NUM_EPOCHS, NUM_STEPS = 3, 8
num_workers = len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])
global_batch_size = args.per_worker_batch_size * num_workers

strategy = tf.distribute.MultiWorkerMirroredStrategy()

rows = np.loadtxt(args.data, delimiter=",", dtype="float32")
images, labels = rows[:, :-1].reshape(-1, 8, 8, 1) / 16, rows[:, -1].astype("int64")


def dataset_fn(global_batch_size, input_context):
    batch_size = input_context.get_per_replica_batch_size(global_batch_size)
    dataset = tf.data.Dataset.from_tensor_slices((images[:960], labels[:960]))
    dataset = dataset.shuffle(960)
    dataset = dataset.shard(input_context.num_input_pipelines, input_context.input_pipeline_id)
    return dataset.batch(batch_size).repeat()


def build_cnn_model():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


with strategy.scope():
    multi_worker_dataset = strategy.distribute_datasets_from_function(
        lambda input_context: dataset_fn(global_batch_size, input_context)
    )
    multi_worker_model = build_cnn_model()
    optimizer = keras.optimizers.RMSprop(learning_rate=0.002)
    train_accuracy = keras.metrics.SparseCategoricalAccuracy(name="train_accuracy")
    # Kept per example, because the average over the global batch is taken by hand.
    loss_object = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")


@tf.function
def train_step(iterator):
    """One update of all replicas; returns the loss of the global batch."""

    def step_fn(inputs):
        x, y = inputs
        with tf.GradientTape() as tape:
            predictions = multi_worker_model(x, training=True)
            loss = tf.nn.compute_average_loss(
                loss_object(y, predictions), global_batch_size=global_batch_size
            )
        gradients = tape.gradient(loss, multi_worker_model.trainable_variables)
        optimizer.apply_gradients(
            zip(gradients, multi_worker_model.trainable_variables, strict=True)
        )
        train_accuracy.update_state(y, predictions)
        return loss

    per_replica_losses = strategy.run(step_fn, args=(next(iterator),))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica_losses, axis=None)


def is_chief(task_type, task_id, cluster_spec):
    return task_type == "chief" or (
        task_type == "worker" and task_id == 0 and "chief" not in cluster_spec.as_dict()
    )


resolver = strategy.cluster_resolver
chief = is_chief(resolver.task_type, resolver.task_id, resolver.cluster_spec())
checkpoint_dir = os.path.join(args.folder, "ckpt")
write_checkpoint_dir = checkpoint_dir
if not chief:
    write_checkpoint_dir = os.path.join(args.folder, f"workertemp_{resolver.task_id}")

epoch = tf.Variable(0, dtype=tf.int64, name="epoch")
step_in_epoch = tf.Variable(0, dtype=tf.int64, name="step_in_epoch")
checkpoint = tf.train.Checkpoint(model=multi_worker_model, epoch=epoch, step_in_epoch=step_in_epoch)
manager = tf.train.CheckpointManager(checkpoint, directory=write_checkpoint_dir, max_to_keep=1)
latest = tf.train.latest_checkpoint(checkpoint_dir)
if latest:
    checkpoint.restore(latest)
first_epoch = int(epoch.numpy())

losses, accuracies = [], []
while epoch.numpy() < NUM_EPOCHS:
    iterator = iter(multi_worker_dataset)
    total_loss = 0.0
    while step_in_epoch.numpy() < NUM_STEPS:
        total_loss += train_step(iterator)
        step_in_epoch.assign_add(1)
    losses.append(float(total_loss) / NUM_STEPS)
    accuracies.append(float(train_accuracy.result()))
    print(f"Epoch: {int(epoch.numpy())}, accuracy: {accuracies[-1]:f}, loss: {losses[-1]:f}.")
    train_accuracy.reset_state()
    epoch.assign_add(1)
    step_in_epoch.assign(0)
    manager.save()
    if not chief:
        tf.io.gfile.rmtree(write_checkpoint_dir)

# The other tutorial: a dataset of global batches, cut by TensorFlow, and a test loop.
train_dataset = tf.data.Dataset.from_tensor_slices((images[:960], labels[:960]))
train_dataset = train_dataset.shuffle(960).batch(global_batch_size)
test_dataset = tf.data.Dataset.from_tensor_slices((images[960:1440], labels[960:1440])).batch(
    global_batch_size
)
train_dist_dataset = strategy.experimental_distribute_dataset(train_dataset)
test_dist_dataset = strategy.experimental_distribute_dataset(test_dataset)

with strategy.scope():
    model = build_cnn_model()
    adam = keras.optimizers.Adam(learning_rate=0.003)
    test_loss = keras.metrics.Mean(name="test_loss")
    test_accuracy = keras.metrics.SparseCategoricalAccuracy(name="test_accuracy")


def compute_loss(y, predictions):
    loss = tf.nn.compute_average_loss(
        loss_object(y, predictions), global_batch_size=global_batch_size
    )
    if model.losses:
        loss += tf.nn.scale_regularization_loss(tf.add_n(model.losses))
    return loss


def one_train_step(inputs):
    x, y = inputs
    with tf.GradientTape() as tape:
        loss = compute_loss(y, model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    adam.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


def one_test_step(inputs):
    x, y = inputs
    predictions = model(x, training=False)
    test_loss.update_state(loss_object(y, predictions))
    test_accuracy.update_state(y, predictions)


@tf.function
def distributed_train_step(dataset_inputs):
    per_replica_losses = strategy.run(one_train_step, args=(dataset_inputs,))
    return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica_losses, axis=None)


@tf.function
def distributed_test_step(dataset_inputs):
    return strategy.run(one_test_step, args=(dataset_inputs,))


other_losses = []
for _ in range(2):
    total, num_batches = 0.0, 0
    for x in train_dist_dataset:
        total += distributed_train_step(x)
        num_batches += 1
    other_losses.append(float(total) / num_batches)
for x in test_dist_dataset:
    distributed_test_step(x)

print(
    "result",
    json.dumps(
        {
            "first_epoch": first_epoch,
            "losses": losses,
            "accuracies": accuracies,
            "other_losses": other_losses,
            "test_loss": float(test_loss.result()),
            "test_accuracy": float(test_accuracy.result()),
        }
    ),
    flush=True,
)
