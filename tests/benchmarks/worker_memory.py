"""Peak memory of a worker: python tests/benchmarks/worker_memory.py [--model=mlp] [--workers=2]

Trains 60 steps of batch 64 a worker on random data, on as many local workers, and prints the
largest resident size of each process. The models: `cnn` 28x28x1, conv 32, pool, conv 64, pool,
dense 10 (34,826 parameters); `mlp` 784-2048-2048-10 (5,824,522 parameters).
"""

import argparse
import os
import resource
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=["cnn", "mlp"], default="mlp")
parser.add_argument("--workers", type=int, default=2)
args = parser.parse_args()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

if args.workers > 1 and "TF_CONFIG" not in os.environ:
    from tfscale.cluster import supervise

    sys.exit(supervise.run_local_workers([sys.executable, *sys.argv], args.workers))

import keras  # noqa: E402
import numpy as np  # noqa: E402

import tfscale  # noqa: E402

strategy = tfscale.make_strategy("multiworker" if args.workers > 1 else "onedevice")
tfscale.set_seed(0)
layers = keras.layers
with strategy.scope():
    if args.model == "cnn":
        shape = (28, 28, 1)
        hidden = [
            *(layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()),
        ]
    else:
        shape = (784,)
        hidden = [layers.Dense(2048, activation="relu"), layers.Dense(2048, activation="relu")]
    model = keras.Sequential([keras.Input(shape), *hidden, layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
batch = 64 * args.workers
rng = np.random.default_rng(0)
x, y = rng.random((batch, *shape), dtype="float32"), rng.integers(0, 10, batch)
trainer = tfscale.Trainer(model)
trainer.fit(x, y, global_batch_size=batch, epochs=60, verbose=0)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"peak {peak / 1024:.0f} MiB", flush=True)
