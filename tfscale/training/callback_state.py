"""What callbacks know, for a checkpoint: an explicit table for Keras' own, `get_state` for others.

Owns which attributes those are, and how they become facts that fit into JSON and arrays by name.
Attributes are private names of `keras.callbacks`, the same in Keras 3.13 to 3.15. A callback is
found again as the first, second, ... of its class, since the chief may have some that others lack.
"""

import collections
import csv
import dis
import inspect
import os

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfscale.strategy import shard_of, sum_over_workers
from tfscale.training import callbacks as callbacks_lib
from tfscale.training import guards

_COUNTS_OF_BATCHES = ("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch")

# What each class changes while it runs and does not find out again by itself.
ATTRIBUTES = {
    keras.callbacks.EarlyStopping: (
        *("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    ),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
    keras.callbacks.ModelCheckpoint: (*_COUNTS_OF_BATCHES, "best"),
    keras.callbacks.BackupAndRestore: _COUNTS_OF_BATCHES,
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
    keras.callbacks.CSVLogger: ("append", "append_header", "keys"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.TerminateOnNaN: (),
    keras.callbacks.RemoteMonitor: (),
    keras.callbacks.LambdaCallback: (),
}
if hasattr(keras.callbacks, "OrbaxCheckpoint"):
    ATTRIBUTES[keras.callbacks.OrbaxCheckpoint] = (
        *("_batches_seen_since_last_saving", "_last_batch_seen", "_total_batches_seen", "best"),
    )

_SIZE = "size_bytes"  # of CSVLogger's file, beside its attributes
_ON_ALL = "on_all"  # whether each worker needs it
_warned = set()


def read(callbacks):
    """Return what the callbacks know, at the end of a turn of the loop.

    Every worker may call it; the chief's facts and arrays are those to save, and what callbacks
    that start anew are is said once, there.

    Args:
        callbacks: the flat list in a `CallbackList`.

    Returns:
        `(facts, arrays)`: a list that fits into JSON, with an entry for each callback that has
        state, and NumPy arrays by names `callbacks/PLACE/ATTRIBUTE/NNNN`.

    Raises:
        ValueError: if a callback's `get_state()` gives what fits into neither.
    """
    facts, arrays = [], {}
    for place, callback in enumerate(_counted(callbacks)):
        if not _has_state(callback):
            continue
        is_on_all = callbacks_lib.is_needed_on_all(callback)
        entry = {"place": place, "class": type(callback).__name__, _ON_ALL: is_on_all}
        writer = _Writer(callback, f"callbacks/{place}", arrays)
        entry["attributes"] = {
            name: writer.encode(name, getattr(callback, name))
            for name in _attributes_of(callback)
            if hasattr(callback, name)
        }
        if isinstance(callback, keras.callbacks.CSVLogger) and _is_chief(callback):
            entry[_SIZE] = _size_of(callback.filename)
        if _keeps_itself(callback):
            state = callback.get_state()
            parts = state if isinstance(state, dict) else {"state": state}
            entry["is_dict"] = isinstance(state, dict)
            entry["state"] = {
                writer.checked_key(name): writer.encode(name, part, np.array)
                for name, part in parts.items()
            }
        facts.append(entry)
    _warn_of_those_without(callbacks)
    return facts, arrays


def check(callbacks, facts, source):
    """Refuse, on all workers, to go on with other callbacks than those that were saved.

    Each worker calls this in the scope of the strategy. The chief needs all that have saved state,
    another worker those that the training needs on all. Callbacks that were not there may be there
    now, behind those of their class.

    Args:
        callbacks: the flat list in a `CallbackList`.
        facts: what `read` returned on the chief.
        source: where it comes from, for the error.

    Raises:
        ValueError: if a callback that has saved state is missing on a worker that needs it.
    """
    strategy = tf.distribute.get_strategy()
    is_chief = shard_of(strategy).worker == 0
    pairs = _matched(callbacks, facts)
    lacking = [e for callback, e in pairs if callback is None and (is_chief or e.get(_ON_ALL))]
    [num_lacking] = sum_over_workers(strategy, [int(bool(lacking))])
    if num_lacking:
        here = [type(callback).__name__ for callback in _counted(callbacks)]
        listed = ", ".join(entry["class"] for entry in facts)
        elsewhere = "" if lacking else f", and {num_lacking} other worker(s) that lack some of them"
        raise ValueError(
            "A run must go on with the callbacks that it was saved with, those of one class in the "
            f"same order. Received: {here}, and {source} with the state of {listed}{elsewhere}. "
            "Give the same callbacks, others behind them, or use another --run_dir, or "
            "--resume=never."
        )
    known = [callback for callback, _ in pairs]
    added = [c for c in _counted(callbacks) if _has_state(c) and c not in known]
    if added and is_chief:
        logging.warning(
            "Not in %s, so these callbacks start anew: %s.",
            source,
            ", ".join(type(callback).__name__ for callback in added),
        )


def before(callbacks, facts, progress):
    """Do what must come before `on_train_begin` of a run that goes on.

    CSVLogger would begin its file anew: it is to append, behind the rows that were there when
    the checkpoint was saved. Those that came later are cut off, because their epochs come again.

    Args:
        callbacks: the flat list in a `CallbackList`.
        facts: what `read` returned.
        progress: the saved facts of the loop's `Progress`.
    """
    for callback, entry in _paired(callbacks, facts):
        if isinstance(callback, keras.callbacks.CSVLogger) and _is_chief(callback):
            callback.append = True
            _cut_off(callback.filename, entry[_SIZE], progress["epoch"])


def restore(callbacks, facts, arrays, model):
    """Put back what callbacks knew, after `on_train_begin`, which resets some of them.

    Within an epoch it comes after `on_epoch_begin` too: a LearningRateScheduler or a count did its
    work for this epoch before the checkpoint, and what it does again is undone with the rest.
    Every worker calls it with the same facts. Where EarlyStopping had stopped the run,
    `model.stop_training` is set, as it was. Of a run that has ended it may be called without
    `on_train_begin`.

    Args:
        callbacks: the flat list in a `CallbackList`.
        facts: what `read` returned, or what JSON made of it.
        arrays: those that `read` returned.
        model: the model that is trained.
    """
    for callback, entry in _paired(callbacks, facts):
        attributes = {n: _decode(part, arrays) for n, part in entry["attributes"].items()}
        if isinstance(callback, keras.callbacks.CSVLogger):
            _open_table(callback, attributes.get("keys"))
        for name, value in attributes.items():
            setattr(callback, name, value)
        if isinstance(callback, guards.BackupAndRestore):
            callback.restored = None  # its own backup is not what the run goes on from
        if "state" in entry and _keeps_itself(callback):
            state = {name: _decode(part, arrays) for name, part in entry["state"].items()}
            callback.set_state(state if entry["is_dict"] else state["state"])
    if any(entry["attributes"].get("stopped_epoch", 0) > 0 for entry in facts):
        model.stop_training = True  # of EarlyStopping, which the chief may have alone


class _Writer:
    """Makes values fit into JSON, with the arrays in them beside.

    An object in JSON has one key that says what it is: "float" for one that JSON does not have,
    "dict", or "array" for the name of one.
    """

    def __init__(self, callback, prefix, arrays):
        self._class, self._prefix, self._arrays = type(callback).__name__, prefix, arrays
        self._counts = collections.Counter()

    def encode(self, name, value, take=np.asarray):
        """Return a value as it fits into JSON, its arrays added under `name`.

        `take` is `np.array` for a copy, where an array may change in place.
        """
        if isinstance(value, tf.Tensor):
            value = value.numpy()
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if np.isfinite(value) else {"float": str(value)}
        if isinstance(value, (list, tuple)):
            return [self.encode(name, part, take) for part in value]
        if isinstance(value, dict):
            parts = {self.checked_key(k): self.encode(name, v, take) for k, v in value.items()}
            return {"dict": parts}
        if isinstance(value, np.ndarray) and value.dtype.kind not in "OSUMm":
            key = f"{self._prefix}/{name}/{self._counts[name]:04d}"
            self._counts[name] += 1
            self._arrays[key] = take(value)
            return {"array": key}
        raise self._refusal(name, value)

    def checked_key(self, key):
        """Return a dict's key, which JSON wants to be text."""
        if not isinstance(key, str):
            raise self._refusal("a key", key)
        return key

    def _refusal(self, name, value):
        return ValueError(
            "`get_state()` of a callback must return what fits into JSON, NumPy arrays, or dicts "
            f"and lists of both. Received: {name} of type {type(value).__name__} from "
            f"{self._class}. Return numbers, text or numpy arrays, for example with .numpy()."
        )


def _decode(part, arrays):
    """The value that `_Writer.encode` was given."""
    if isinstance(part, list):
        return [_decode(p, arrays) for p in part]
    if not isinstance(part, dict):
        return part
    (kind, content), *_ = part.items()
    if kind == "array":
        return arrays[content]
    if kind == "float":
        return float(content)
    return {name: _decode(p, arrays) for name, p in content.items()}


def _counted(callbacks):
    """The callbacks that have a place: without progress bars, History and tfscale's own."""
    passing = (keras.callbacks.History, keras.callbacks.ProgbarLogger)
    return [
        callback
        for callback in callbacks
        if not isinstance(callback, passing)
        and (isinstance(callback, guards.Guard) or not _is_tfscale(type(callback)))
    ]


def _matched(callbacks, facts):
    """Saved facts with their callbacks here, by class and number among those of it, or None."""
    found = {}
    for callback in sorted(_counted(callbacks), key=lambda c: not _has_state(c)):
        found.setdefault(type(callback).__name__, []).append(callback)
    left = {name: iter(of_class) for name, of_class in found.items()}
    return [(next(left.get(entry["class"], iter(())), None), entry) for entry in facts]


def _paired(callbacks, facts):
    """Callbacks with their saved facts, without those that this worker does not have."""
    return [(c, entry) for c, entry in _matched(callbacks, facts) if c is not None]


def _is_tfscale(own_class):
    return own_class.__module__.partition(".")[0] == "tfscale"


def _is_chief(callback):
    return shard_of(callback.model.distribute_strategy).worker == 0


def _attributes_of(callback):
    """Names in the table for a callback's class and those that it is derived from."""
    return [
        name
        for keras_class, names in ATTRIBUTES.items()
        if isinstance(callback, keras_class)
        for name in names
    ]


def _keeps_itself(callback):
    return all(callable(getattr(callback, name, None)) for name in ("get_state", "set_state"))


def _has_state(callback):
    return bool(_attributes_of(callback)) or _keeps_itself(callback)


def _warn_of_those_without(callbacks):
    """Name, once, the user's own classes that seem to have state which nobody saves."""
    new = [c for c in _counted(callbacks) if _forgets(c) and type(c) not in _warned]
    _warned.update(type(c) for c in new)
    if new and _is_chief(new[0]):
        logging.warning(
            "Callbacks without get_state() and set_state(state) start anew when a run goes on "
            "from a checkpoint: %s.",
            ", ".join(sorted({type(c).__name__ for c in new})),
        )


def _forgets(callback):
    """Whether a class of the user's has a hook, and attributes beyond those of Keras' class."""
    if _keeps_itself(callback):
        return False
    classes = type(callback).__mro__
    own = [c for c in classes if c.__module__.partition(".")[0] not in ("keras", "tfscale")]
    has_hook = any(name.startswith("on_") for c in own if c is not object for name in vars(c))
    known = {name for c in classes if c not in own for name in _stored_by(c)}
    return has_hook and bool(set(vars(callback)) - known)


def _stored_by(own_class):
    """Names of the attributes that a class' functions assign."""
    return {
        step.argval
        for function in vars(own_class).values()
        if inspect.isfunction(function)
        for step in dis.get_instructions(function)
        if step.opname == "STORE_ATTR"
    }


def _size_of(path):
    return tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else 0


def _cut_off(path, size, epoch):
    """Cut a table off behind the rows that were there when it had `size` bytes."""
    found = _size_of(path)
    if found < size:
        logging.warning(
            "CSVLogger's file %s has %d bytes, where it had %d at the checkpoint after %d epochs: "
            "rows are lost.",
            path,
            found,
            size,
            epoch,
        )
    elif found > size and "://" not in path:
        os.truncate(path, size)
    elif found > size:
        with tf.io.gfile.GFile(path, "rb") as file:
            kept = file.read(size)
        with tf.io.gfile.GFile(f"{path}.writing", "wb") as file:
            file.write(kept)
        tf.io.gfile.rename(f"{path}.writing", path, overwrite=True)


def _open_table(callback, keys):
    """Go on with the columns that CSVLogger chose after its first epoch."""
    if keys is None or callback.csv_file is None or callback.csv_file.closed:
        return
    columns = ["epoch", *keys]
    callback.writer = csv.DictWriter(callback.csv_file, columns, delimiter=callback.sep)
    if callback.append_header:
        callback.writer.writeheader()
