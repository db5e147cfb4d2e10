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

STEPS_PER_EXECUTION = args.save_every_steps // 10
EXECUTIONS = args.save_every_steps // STEPS_PER_EXECUTION
STEPS = args.save_every_steps * args.saves
rng = np.random.default_rng(0)
x = rng.random((args.batch * STEPS, 784), dtype="float32")
y = rng.integers(0, 10, len(x))


class Times(keras.callbacks.Callback):
    """What executions take, by their number since the last save, and the gaps between them."""

    def __init__(self):
        super().__init__()
        self.with_save, self.without, self._ended, self._began = [], [], None, None
        self.wall, self.processor = ([[] for _ in range(EXECUTIONS)] for _ in range(2))

    def on_train_begin(self, logs=None):
        self._ended = None

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.perf_counter(), time.process_time()
        if self._ended is not None:
            gaps = self.without if batch % args.save_every_steps else self.with_save
            gaps.append(self._began[0] - self._ended)

    def on_train_batch_end(self, batch, logs=None):
        self._ended, processor = time.perf_counter(), time.process_time()
        if batch >= args.save_every_steps:  # behind a first save
            number = batch % args.save_every_steps // STEPS_PER_EXECUTION
            self.wall[number].append(self._ended - self._began[0])
            self.processor[number].append(processor - self._began[1])


def behind_a_save(executions):
    """Seconds that a save adds to the executions behind it, and its share of them all.

    Those of the second half, when the write is over, are what the others are compared with, each
    with those of its own interval: other work on the machine changes from one to the next.
    """
    half = EXECUTIONS // 2
    added = []
    for interval in zip(*executions, strict=True):
        usual = statistics.median(interval[half:])
        added.append((sum(interval[:half]) - half * usual, EXECUTIONS * usual))
    return [seconds for seconds, _ in added], [seconds / total for seconds, total in added]


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
times, wall, processor, added = Times(), {False: [], True: []}, {False: [], True: []}, []
with tempfile.TemporaryDirectory() as folder:
    for turn in range(args.rounds + 1):
        for saves in (False, True) if turn % 2 else (True, False):
            began = time.perf_counter(), time.process_time()
            ways[saves].fit(
                x,
                y,
                global_batch_size=args.batch,
                steps_per_execution=STEPS_PER_EXECUTION,
                checkpoints=Checkpoints(folder) if saves else None,
                save_every_steps=args.save_every_steps,
                callbacks=[times] if saves and turn else None,
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
print(f"loop stands still, with a save    {spread(times.with_save)}")
print(f"loop stands still, without        {spread(times.without)}")
for name, values in (("by the clock", wall), ("processor time", processor)):
    off, on = (statistics.median(values[saves]) for saves in (False, True))
    print(f"a step, {name:<16}          {spread(values[False], 2)} saving off")
    print(f"{'':<34}{spread(values[True], 2)} saving on: {on / off - 1:+.1%}")
for name, values in (("by the clock", times.wall), ("processor time", times.processor)):
    seconds, shares = behind_a_save(values)
    share = statistics.median(shares)
    print(f"behind a save, {name:<16}   {spread(seconds)} more: {share:+.1%}")
print(f"cost of each round                {', '.join(f'{a:+.1%}' for a in added)}")
