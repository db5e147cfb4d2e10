"""Examples a second of the input alone: python tests/benchmarks/input_rate.py

60,000 images of 28x28x1 bytes, rescaled, in batches of 64: `data.batches` against
`from_tensor_slices().shuffle().batch().map()`, in turn. Prints medians and the spread; no other
work should run on the machine.
"""

import os
import statistics
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tfscale.data import arrays, batches, shards  # noqa: E402

EXAMPLES, BATCH, ROUNDS = 60_000, 64, 7
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (EXAMPLES, 28, 28, 1), dtype=np.uint8)
labels = rng.integers(0, 10, EXAMPLES)


def rescale(image, label):
    return tf.cast(image, tf.float32) / 255.0, label


plain = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(EXAMPLES).batch(BATCH)
plain = plain.map(rescale, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
source = arrays.ArraySource(arrays.checked_elements(images, labels, None))
ours = batches.IndexedBatches(
    source, global_batch_size=BATCH, shuffle=True, transform=lambda share: rescale(*share)
)
steps = ours.steps_per_epoch
ways = {
    "from_tensor_slices, shuffle, batch, map": plain,
    "data.batches": ours.dataset(shards.Shard()).take(steps),
}
rates = {name: [] for name in ways}
for turn in range(ROUNDS + 1):
    for name, dataset in ways.items():
        began = time.perf_counter()
        dataset.reduce(np.int64(0), lambda count, *_: count + 1).numpy()
        if turn:
            rates[name].append(EXAMPLES / (time.perf_counter() - began))
for name, values in rates.items():
    print(
        f"{name:<42}{statistics.median(values):10,.0f} examples/s, "
        f"{min(values):,.0f} to {max(values):,.0f}"
    )
