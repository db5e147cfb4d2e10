"""Calls of `keras.Model.fit` and its kin, made alike on one device, replicas and workers.

Each case is a generator: it makes models in the scope it is given and yields, call by call, a
name, the model or None, and what the call returned. `run` turns that into plain arrays.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

layers, losses, optimizers = keras.layers, keras.losses, keras.optimizers

_rng = np.random.default_rng(3)
X = _rng.normal(size=(22, 3)).astype("float32")
Y = _rng.integers(0, 3, 22)
W = _rng.random(22, dtype="float32")
X_TEST, Y_TEST, W_TEST = X[::-1][:13].copy(), Y[::-1][:13].copy(), W[:13].copy()
TOKENS = np.where(np.arange(6) < _rng.integers(1, 7, (22, 1)), _rng.integers(1, 9, (22, 6)), 0)

CASES = {}


def case(function):
    """Put a case into the table."""
    CASES[function.__name__] = function
    return function


def run(name, scope, num_calls=None):
    """Run a case.

    Args:
        name: of the case.
        scope: makes a context in which models are made.
        num_calls: the first calls only; None for all.

    Returns:
        A dict of flat names to arrays, in the order of the calls.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(7)
    found = {}
    for call, model, result in itertools.islice(CASES[name](scope), num_calls):
        found.update(_flat(f"{call}: result", result))
        if model is not None:
            for i, value in enumerate(model.get_weights()):
                found.update(_flat(f"{call}: weight {i}", value))
    return found


def _flat(name, value):
    """Nested results as arrays by name; the order of a dict's keys is kept as text."""
    if isinstance(value, keras.callbacks.History):
        value = {"epochs": value.epoch, "params": value.params, **value.history}
    if isinstance(value, dict):
        found = {f"{name} keys": np.array(",".join(map(str, value)))}
        for key, part in value.items():
            found.update(_flat(f"{name} {key}", part))
        return found
    if isinstance(value, tuple) or (isinstance(value, list) and name.endswith("result")):
        parts = [_flat(f"{name} {i}", part) for i, part in enumerate(value)]
        return {n: v for part in parts for n, v in part.items()}
    if value is None:
        return {name: np.array("None")}
    if isinstance(value, tf.RaggedTensor):
        value = value.to_tensor(-1)
    return {name: np.asarray(value)}


class Recorder(keras.callbacks.Callback):
    """Notes each call of a hook: its name, its number, the keys of its logs and their values."""

    def __init__(self):
        super().__init__()
        self.calls, self.values = [], []

    def note(self, hook, number=None, logs=None):
        logs = logs or {}
        if "outputs" in logs:
            shapes = [tuple(np.shape(t)) for t in tf.nest.flatten(logs["outputs"])]
            logs = {f"outputs {shapes}": 0.0}
        self.calls.append(f"{hook} {number} {' '.join(logs)}")
        self.values += [np.mean(value) for value in logs.values()]

    def all(self):
        return {"calls": np.array(self.calls), "values": np.array(self.values, "float64")}


def _noting(hook, numbered):
    if numbered:
        return lambda self, number, logs=None: self.note(hook, number, logs)
    return lambda self, logs=None: self.note(hook, None, logs)


for _kind in ("train", "test", "predict"):
    for _end in ("begin", "end"):
        setattr(Recorder, f"on_{_kind}_{_end}", _noting(f"on_{_kind}_{_end}", False))
        hook = f"on_{_kind}_batch_{_end}"
        setattr(Recorder, hook, _noting(hook, True))
for _end in ("begin", "end"):
    setattr(Recorder, f"on_epoch_{_end}", _noting(f"on_epoch_{_end}", True))


class Batches(keras.utils.PyDataset):
    """Batches of 6 of the examples."""

    def __init__(self, x=X, y=Y, w=None, **arguments):
        super().__init__(**arguments)
        self._parts = [p for p in (x, y, w) if p is not None]

    def __len__(self):
        return -(-len(self._parts[0]) // 6)

    def __getitem__(self, i):
        return tuple(p[6 * i : 6 * i + 6] for p in self._parts)


def generator(x=X, y=Y, size=6, endless=True):
    while True:
        for i in range(0, len(x), size):
            yield x[i : i + size], y[i : i + size]
        if not endless:
            return


def dataset(*parts, size=6):
    parts = parts or (X, Y)
    return tf.data.Dataset.from_tensor_slices(parts).batch(size)


def crossentropy():
    return losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(scope, *, optimizer=None, hidden=(), **options):
    """A small classifier, compiled; `optimizer` makes one."""
    with scope():
        parts = [layers.Dense(size, "tanh") for size in hidden]
        model = keras.Sequential([keras.Input((3,)), *parts, layers.Dense(3)])
        options = {"metrics": ["accuracy"], **options}
        made = optimizer() if optimizer else optimizers.SGD(0.1, 0.9)
        model.compile(made, crossentropy(), **options)
    return model
