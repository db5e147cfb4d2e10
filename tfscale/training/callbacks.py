"""Callbacks on many workers: each runs on all of them, and writes on the chief alone.

Every class of `keras.callbacks`, and what it does on the other workers: ModelCheckpoint,
BackupAndRestore, CSVLogger, RemoteMonitor and TensorBoard decide and count alike and write
nothing; EarlyStopping, ReduceLROnPlateau and LearningRateScheduler say nothing; ProgbarLogger is
dropped; History, LambdaCallback, SwapEMAWeights, TerminateOnNaN and a user's own run as they are.
OrbaxCheckpoint is refused, and so is what only some workers have and all need. How each works is
in `guards.py`.
"""

import contextlib
import functools

import keras

from tfscale.strategy import shard_of
from tfscale.training import guards

_HOOKS = {
    "train": ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"),
    "test": ("on_test_batch_begin", "on_test_batch_end"),
    "predict": ("on_predict_batch_begin", "on_predict_batch_end"),
}


# What changes the training, or sums over the workers, so that one alone would leave the others.
_NEEDED_ON_ALL = {
    keras.callbacks.EarlyStopping: lambda callback: callback.restore_best_weights,
    keras.callbacks.ReduceLROnPlateau: lambda callback: True,
    keras.callbacks.LearningRateScheduler: lambda callback: True,
    keras.callbacks.SwapEMAWeights: lambda callback: True,
    keras.callbacks.BackupAndRestore: lambda callback: True,
    guards.ModelCheckpoint: lambda callback: callback.averages(),
}


def prepare(callbacks, strategy, is_chief):
    """Make callbacks fit for every worker of a strategy.

    Keras' own that write files get a guard between their class and a user's subclass: what Keras
    does in a hook is then done as the chief or as another worker, and what the subclass adds runs
    on all workers, where it may call `evaluate` or `predict`. A subclass that writes by itself
    writes on every worker: `tfscale.is_chief()` tells.

    The loop needs a barrier for BackupAndRestore: after `on_train_begin`, where all read what the
    chief may delete, and after `on_train_end`, where the chief deletes it.

    Args:
        callbacks: a list of `keras.callbacks.Callback`, one, a `CallbackList`, or None.
        strategy: the strategy of the model.
        is_chief: whether this worker is the chief.

    Returns:
        A list of the same objects, for a `CallbackList`.

    Raises:
        ValueError: for a callback that cannot work on many workers.
    """
    prepared = []
    for callback in _listed(callbacks):
        orbax = getattr(keras.callbacks, "OrbaxCheckpoint", ())
        if isinstance(callback, orbax) and shard_of(strategy).num_workers > 1:
            raise ValueError(
                "OrbaxCheckpoint coordinates workers under JAX only. Received: an "
                f"OrbaxCheckpoint on {shard_of(strategy).num_workers} TensorFlow workers. "
                "Use ModelCheckpoint or BackupAndRestore."
            )
        if isinstance(callback, keras.callbacks.ProgbarLogger) and not is_chief:
            continue
        for keras_class, guard in guards.GUARDS.items():
            if isinstance(callback, keras_class) and not isinstance(callback, guards.Guard):
                callback.__class__ = _guarded(type(callback), keras_class, guard)
        prepared.append(callback)
    return prepared


@contextlib.contextmanager
def given_back(callbacks):
    """Leave callbacks as they came: what `prepare` has made of them inside ends with it.

    Args:
        callbacks: as for `prepare`. Those that have a guard already keep it.
    """
    before = [(callback, type(callback)) for callback in _listed(callbacks)]
    try:
        yield
    finally:
        for callback, own_class in before:
            if type(callback) is not own_class:
                callback.unguard()
                callback.__class__ = own_class


@contextlib.contextmanager
def apart(callbacks, rank):
    """Inside, callbacks leave alone what those of a worker write that trains beside this one.

    Logs are written by the first worker alone, and each has a backup of its own. Checkpoints are
    written by all, in whole files, because each may read what it wrote.

    Args:
        callbacks: as for `prepare`.
        rank: this worker among those that each train alone; the first one does all.
    """
    with contextlib.ExitStack() as stack:
        for callback in _listed(callbacks) if rank else ():
            for keras_class, attributes in guards.APART.items():
                if isinstance(callback, keras_class):
                    own = attributes(callback, rank, stack)
                    stack.callback(_put_back, callback, dict(vars(callback)), list(own))
                    vars(callback).update(own)
        yield


def _put_back(callback, before, names):
    for name in names:
        vars(callback).pop(name)
        if name in before:
            vars(callback)[name] = before[name]


def check_alike(callbacks, strategy, sums):
    """Refuse, on all workers, what only some of them have and all of them need.

    What only writes or looks may be on the chief alone.

    Args:
        callbacks: a list of prepared callbacks, whose model is set.
        strategy: the strategy of the model.
        sums: sums whole numbers over all workers, each of which has to call this.

    Raises:
        ValueError: if a kind of them is on some workers and not on others.
    """
    num_workers = shard_of(strategy).num_workers
    if num_workers == 1:
        return
    has = [
        int(any(isinstance(c, kind) and is_needed(c) for c in callbacks))
        for kind, is_needed in _NEEDED_ON_ALL.items()
    ]
    number = sum(flag << i for i, flag in enumerate(has))
    total, squares = sums(number, number**2)
    if num_workers * squares == total**2:
        return
    counts = zip(_NEEDED_ON_ALL, sums(*has), strict=True)
    named = [f"{kind.__name__} on {n}" for kind, n in counts if 0 < n < num_workers]
    raise ValueError(
        "A callback that changes the training, or sums over the workers, must be there on each of "
        f"them. Received: {', '.join(named)} of {num_workers} workers. Give it on all of them; "
        "the chief alone writes."
    )


def is_needed_on_all(callback):
    """Say whether a prepared callback does what all workers must do, or none."""
    return any(
        isinstance(callback, c) and is_needed(callback) for c, is_needed in _NEEDED_ON_ALL.items()
    )


def watches_batches(callbacks, kind="train"):
    """Say whether a callback looks at single batches, so that each needs an execution.

    Args:
        callbacks: a list of callbacks, or None.
        kind: "train", "test" or "predict".

    Returns:
        False if all hooks for batches are Keras' empty ones, the progress bar's, tfscale's own,
        or do nothing with the options given, as those of ModelCheckpoint after epochs.
    """
    return any(_is_busy(callback, name) for callback in _listed(callbacks) for name in _HOOKS[kind])


def restored_position(callbacks):
    """Return where BackupAndRestore found the run, to be asked after `on_train_begin`.

    Weights, optimizer, seeds and the metrics of the epoch under way are restored by then.

    Args:
        callbacks: a list of prepared callbacks.

    Returns:
        `(epoch, position)`, both from 0: the epoch to go on with, and the steps taken in it
        already. The position may be the whole epoch, of which only validation and `on_epoch_end`
        are left. None if nothing was restored.
    """
    for callback in _listed(callbacks):
        if isinstance(callback, guards.BackupAndRestore):
            return callback.restored
    return None


def _listed(callbacks):
    """Callbacks as a list, as Keras takes them: a list, one, a `CallbackList`, or None."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    return keras.tree.flatten(callbacks or [])


def _is_busy(callback, name):
    """Whether a hook for batches does anything that anyone could see."""
    if name in vars(callback):  # LambdaCallback's
        return True
    place = next(
        c for c in type(callback).__mro__ if name in vars(c) and c.__module__ != guards.__name__
    )
    if place.__module__.startswith("tfscale.") or place in (
        keras.callbacks.Callback,
        keras.callbacks.History,
        keras.callbacks.ProgbarLogger,
    ):
        return False
    return guards.works_on_batches(place, callback)


@functools.cache
def _guarded(own_class, keras_class, guard):
    """A class with a guard between the class of Keras and the subclass of it, if it is one."""
    if guard is guards.Speaker:
        guard = type(guard.__name__, (guard, keras_class), {})
    bases = (guard,) if own_class is keras_class else (own_class, guard)
    return type(own_class.__name__, bases, {})
