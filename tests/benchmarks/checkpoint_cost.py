"""What checkpoints cost a run: python tests/benchmarks/checkpoint_cost.py

One process, an MLP of three hidden layers under Adam, whose state is 100 MB. Calls of
`Trainer.fit` that save every 100 steps and calls that save nothing, in turn. Prints how long the
loop stands still from the end of one execution to the beginning of the next, where it saves and
where it does not, and what saving adds to a step. No other work should run on the machine.
"""

import argparse
import os
import statistics
import tempfile
import time

parser = argparse.ArgumentParser()
parser.add_argument("--units", type=int, default=1850, help="in each hidden layer")
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--save_every_steps", type=int, default=100)
parser.add_argument("--saves", type=int, default=3, help="checkpoints a call, besides the last")
parser.add_argument("--rounds", type=int, default=7)
args = parser.parse_args()
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # noqa: E402
import numpy as np  # noqa: E402

from tfscale.strategy import make_strategy  # noqa: E402
from tfscale.training.checkpoint import Checkpoints  # noqa: E402
from tfscale.training.trainer import Trainer  # noqa: E402

STEPS = args.save_every_steps * args.saves
rng = np.random.default_rng(0)
x = rng.random((args.batch * STEPS, 784), dtype="float32")
y = rng.integers(0, 10, len(x))


class Gaps(keras.callbacks.Callback):
    """Seconds from the end of one execution's callbacks to the beginning of the next's."""

    def __init__(self):
        super().__init__()
        self.with_save, self.without, self._ended = [], [], None

    def on_train_begin(self, logs=None):
        self._ended = None

    def on_train_batch_begin(self, batch, logs=None):
        if self._ended is not None:
            gaps = self.without if batch % args.save_every_steps else self.with_save
            gaps.append(time.perf_counter() - self._ended)

    def on_train_batch_end(self, batch, logs=None):
        self._ended = time.perf_counter()


def trainer():
    """A trainer with a model of 100 MB."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        hidden = [keras.layers.Dense(args.units, "relu") for _ in range(3)]
        model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss)
    return Trainer(model)


def spread(values, digits=1):
    """Median, least and most, in milliseconds."""
    median, *ends = (v * 1e3 for v in (statistics.median(values), min(values), max(values)))
    return f"{median:.{digits}f} ms ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


strategy = make_strategy("onedevice")
ways = {False: trainer(), True: trainer()}
gaps, wall, processor, added = Gaps(), {False: [], True: []}, {False: [], True: []}, []
with tempfile.TemporaryDirectory() as folder:
    for turn in range(args.rounds + 1):
        # The epoch goes on behind its last step, so that the last save is one as any other.
        for saves in (False, True) if turn % 2 else (True, False):
            began = time.perf_counter(), time.process_time()
            ways[saves].fit(
                x,
                y,
                global_batch_size=args.batch,
                steps_per_execution=10,
                checkpoints=Checkpoints(folder) if saves else None,
                save_every_steps=args.save_every_steps,
                callbacks=[gaps] if saves and turn else None,
                verbose=0,
            )
            if turn:
                wall[saves].append((time.perf_counter() - began[0]) / STEPS)
                processor[saves].append((time.process_time() - began[1]) / STEPS)
        if turn:
            added.append(wall[True][-1] / wall[False][-1] - 1)
    steps = Checkpoints(folder).steps()
    size = sum(p.stat().st_size for p in Checkpoints(folder).path(steps[-1]).iterdir())

print(f"checkpoint                        {size / 1e6:.0f} MB, every {args.save_every_steps} steps")
print(f"loop stands still, with a save    {spread(gaps.with_save)}")
print(f"loop stands still, without        {spread(gaps.without)}")
for name, values in (("by the clock", wall), ("processor time", processor)):
    off, on = (statistics.median(values[saves]) for saves in (False, True))
    print(f"a step, {name:<16}          {spread(values[False], 2)} saving off")
    print(f"{'':<34}{spread(values[True], 2)} saving on: {on / off - 1:+.1%}")
print(f"cost of each round                {', '.join(f'{a:+.1%}' for a in added)}")
