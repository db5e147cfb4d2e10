"""Callbacks on many workers: each runs on all of them, and writes on the chief alone.

Every class of `keras.callbacks`, and what it does on the other workers: ModelCheckpoint,
BackupAndRestore, CSVLogger, RemoteMonitor and TensorBoard decide and count alike and write
nothing; EarlyStopping, ReduceLROnPlateau and LearningRateScheduler say nothing; ProgbarLogger is
dropped; History, LambdaCallback, SwapEMAWeights, TerminateOnNaN and a user's own run as they are.
OrbaxCheckpoint is refused. Private names: BackupAndRestore's and TensorBoard's attributes.
"""

import contextlib
import functools
import json
import os
import shutil
import tempfile

import h5py
import keras
import tensorflow as tf

from tfscale.strategy import shard_of
from tfscale.training import saving, state

_HOOKS = {
    "train": ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end"),
    "test": ("on_test_batch_begin", "on_test_batch_end"),
    "predict": ("on_predict_batch_begin", "on_predict_batch_end"),
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
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    prepared = []
    for callback in keras.tree.flatten(callbacks or []):
        orbax = getattr(keras.callbacks, "OrbaxCheckpoint", ())
        if isinstance(callback, orbax) and shard_of(strategy).num_workers > 1:
            raise ValueError(
                "OrbaxCheckpoint coordinates workers under JAX only. Received: an "
                f"OrbaxCheckpoint on {shard_of(strategy).num_workers} TensorFlow workers. "
                "Use ModelCheckpoint or BackupAndRestore."
            )
        if isinstance(callback, keras.callbacks.ProgbarLogger) and not is_chief:
            continue
        for keras_class, guard in _GUARDS.items():
            if isinstance(callback, keras_class) and not isinstance(callback, _Guard):
                callback.__class__ = _guarded(type(callback), keras_class, guard)
        prepared.append(callback)
    return prepared


def watches_batches(callbacks, kind="train"):
    """Say whether a callback looks at single batches, so that each needs an execution.

    Args:
        callbacks: a list of callbacks, or None.
        kind: "train", "test" or "predict".

    Returns:
        False if all hooks for batches are Keras' empty ones, the progress bar's, tfscale's own,
        or do nothing with the options given, as those of ModelCheckpoint after epochs.
    """
    return any(
        _is_busy(callback, name)
        for callback in keras.tree.flatten(callbacks or [])
        for name in _HOOKS[kind]
    )


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
    for callback in keras.tree.flatten(callbacks or []):
        if isinstance(callback, _BackupAndRestore):
            return callback.restored
    return None


def _is_busy(callback, name):
    """Whether a hook for batches does anything that anyone could see."""
    if name in vars(callback):  # LambdaCallback's
        return True
    place = next(c for c in type(callback).__mro__ if name in vars(c) and c not in _guards())
    if place.__module__.startswith("tfscale.") or place in (
        keras.callbacks.Callback,
        keras.callbacks.History,
        keras.callbacks.ProgbarLogger,
    ):
        return False
    if place in (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore):
        return callback.save_freq != "epoch"
    if place is keras.callbacks.TensorBoard:
        by_batch = callback.update_freq != "epoch" or callback.write_steps_per_second
        return by_batch or callback._should_trace
    return True


class _Guard(keras.callbacks.Callback):
    """Stands between a class of Keras and its subclass, and has its hooks run in `at_work`."""

    writes = True

    def __init_subclass__(cls, hooks=(), **kwargs):
        super().__init_subclass__(**kwargs)
        for name in hooks:
            setattr(cls, name, _in_at_work(cls, name))

    def set_model(self, model):
        self.writes = shard_of(model.distribute_strategy).worker == 0
        super().set_model(model)

    @contextlib.contextmanager
    def at_work(self):
        """The surroundings of a hook; here those of one that does nothing but speak."""
        with contextlib.ExitStack() as stack:
            if not self.writes and hasattr(self, "verbose"):
                stack.enter_context(_replaced(self, verbose=0))
            yield


def _in_at_work(cls, name):
    def hook(self, *args, **kwargs):
        with self.at_work():
            return getattr(super(cls, self), name)(*args, **kwargs)

    return hook


@contextlib.contextmanager
def _replaced(thing, **attributes):
    """Give an object other attributes for a while."""
    before = {name: getattr(thing, name) for name in attributes}
    vars(thing).update(attributes)
    try:
        yield
    finally:
        vars(thing).update(before)


class _Speaker(_Guard, hooks=("on_epoch_begin", "on_epoch_end", "on_train_end")):
    """EarlyStopping, ReduceLROnPlateau, LearningRateScheduler: the chief alone speaks."""


class _Averaging(_Guard):
    """Averages moving statistics before a file is written within an epoch."""

    def set_model(self, model):
        super().set_model(model)
        self._average = tf.function(saving.average_statistics)

    def average(self):
        """Called by all workers; at the end of an epoch the loop has averaged already."""
        if self.save_freq != "epoch" and saving.statistics_of(self.model):
            self._average(self.model)


class _ModelCheckpoint(
    _Averaging, keras.callbacks.ModelCheckpoint, hooks=("on_train_batch_end", "on_epoch_end")
):
    """The others choose the best alike, in no folder, so that none has to be made."""

    @contextlib.contextmanager
    def at_work(self):
        with super().at_work(), saving.taking_over(), contextlib.ExitStack() as stack:
            if not self.writes:
                stack.enter_context(saving.not_writing())
                nowhere = os.path.basename(self.filepath)
                stack.enter_context(_replaced(self, filepath=nowhere))
            yield

    def _save_model(self, *args, **kwargs):
        self.average()
        super()._save_model(*args, **kwargs)


class _CSVLogger(
    _Guard, keras.callbacks.CSVLogger, hooks=("on_train_begin", "on_epoch_end", "on_train_end")
):
    """The others write to the null device."""

    @contextlib.contextmanager
    def at_work(self):
        with super().at_work(), contextlib.ExitStack() as stack:
            if not self.writes:
                stack.enter_context(_replaced(self, filename=os.devnull))
            yield


class _RemoteMonitor(_Guard, keras.callbacks.RemoteMonitor):
    """The chief alone sends."""

    def on_epoch_end(self, epoch, logs=None):
        if self.writes:
            super().on_epoch_end(epoch, logs)


class _TensorBoard(
    _Guard,
    keras.callbacks.TensorBoard,
    hooks=(
        *("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_test_begin", "on_test_end"),
        *("on_train_batch_begin", "on_train_batch_end", "on_test_batch_begin"),
    ),
):
    """The others have a folder of their own for the time of a run, and do not profile.

    TensorFlow records no summary in the place of a replica that is not the first one.
    """

    _shown_log_dir = _own_folder = None

    def set_model(self, model):
        self._leave_own_folder()
        if shard_of(model.distribute_strategy).worker:
            self._shown_log_dir = self.log_dir
            self._own_folder = tempfile.TemporaryDirectory(prefix="tfscale-")
            self.log_dir = self._own_folder.name
            self._should_trace = False
        with saving.local_reads(model.distribute_strategy):
            super().set_model(model)

    def on_train_end(self, logs=None):
        with self.at_work():
            super().on_train_end(logs)
        self._leave_own_folder()

    def _leave_own_folder(self):
        if self._own_folder is not None:
            self.log_dir = self._shown_log_dir
            self._own_folder.cleanup()
            self._own_folder = None

    @contextlib.contextmanager
    def at_work(self):
        with super().at_work(), saving.taking_over(), contextlib.ExitStack() as stack:
            stack.enter_context(saving.local_reads(self.model.distribute_strategy))
            if not self.writes:  # embeddings
                stack.enter_context(saving.not_writing())
            yield


class _BackupAndRestore(_Averaging, keras.callbacks.BackupAndRestore):
    """One whole file holds weights and position, so that they belong together.

    Keras' file of weights is written by the chief with what Keras leaves out of it: the position,
    seeds of dropout, and sums of the metrics. The JSON file beside it is as Keras writes it.
    """

    restored = None

    def on_train_begin(self, logs=None):
        self.restored = None
        with saving.local_creation():
            try:
                self._load_model()
            except OSError:
                if not os.path.exists(self._prev_weights_path):
                    raise
                self._load_previous()

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._current_epoch = epoch  # Keras leaves it at 0 after restoring.

    def on_train_end(self, logs=None):
        if self.writes:
            super().on_train_end(logs)

    def _save_model(self):
        self.average()
        within_epoch = self.save_freq != "epoch"
        position = self._last_batch_seen + 1 if within_epoch else 0
        # Metrics are summed over all workers as they are read: all read, and the chief writes.
        lacking = {name: v.numpy() for name, v in _lacking(self.model, within_epoch).items()}
        if not self.writes:
            return
        if "://" in self.backup_dir:  # where h5py cannot write
            with saving.taking_over():
                super()._save_model()
            return
        if self.double_checkpoint:
            for latest, previous in self._pairs():
                if os.path.exists(latest):
                    shutil.copy(latest, previous)
        with saving.whole(self._weights_path) as beside:
            with saving.local_reads(self.model.distribute_strategy):
                self.model.save_weights(beside)
            with h5py.File(beside, "a") as file:
                group = file.create_group("tfscale")
                group.attrs.update(epoch=self._current_epoch, position=position)
                for name, value in lacking.items():
                    group[name] = value
        with saving.whole(self._training_metadata_path) as beside, open(beside, "w") as file:
            json.dump({"epoch": self._current_epoch, "batch": self._last_batch_seen}, file)

    def _load_model(self):
        super()._load_model()
        metadata_path, path = self._training_metadata_path, self._weights_path
        if tf.io.gfile.exists(metadata_path):
            with tf.io.gfile.GFile(metadata_path) as file:
                saved = json.load(file)
            position = saved["batch"] + 1 if self.save_freq != "epoch" else 0
            self.restored = (saved["epoch"], position)
        if os.path.exists(path):
            with h5py.File(path) as file:
                group = file.get("tfscale", {})
                if group:
                    self.restored = tuple(int(group.attrs[n]) for n in ("epoch", "position"))
                _restore_lacking(self.model, group)
        if self.restored:
            self._current_epoch, position = self.restored
            self._last_batch_seen = max(position - 1, 0)

    def _load_previous(self):
        """Load the pair of before, each worker from copies of its own."""
        with tempfile.TemporaryDirectory(prefix="tfscale-") as folder:
            own = []
            for latest, previous in self._pairs():
                own.append(os.path.join(folder, os.path.basename(latest)))
                if os.path.exists(previous):
                    shutil.copy(previous, own[-1])
            with _replaced(self, _weights_path=own[0], _training_metadata_path=own[1]):
                self._load_model()

    def _pairs(self):
        return (
            (self._weights_path, self._prev_weights_path),
            (self._training_metadata_path, self._prev_training_metadata_path),
        )


def _lacking(model, with_metrics):
    """Variables that are not in Keras' file of weights, by name: seeds and metrics."""
    return {
        name: v
        for name, v in state.variables_of(model).items()
        if (name.startswith("metrics/") and with_metrics)
        or (name.startswith("model/") and not tf.as_dtype(v.dtype).is_floating)
    }


def _restore_lacking(model, arrays):
    """Put back what `_lacking` named, as far as it is there."""
    variables = {n: v for n, v in _lacking(model, with_metrics=True).items() if n in arrays}

    def assign_all():
        first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
        for name, variable in variables.items():
            value = tf.constant(arrays[name][()])
            if name.startswith("metrics/"):
                # Summed when read: the first replica holds all of it, the others nothing.
                value = tf.where(first, value, tf.zeros_like(value))
            variable.assign(value)

    if variables:
        model.distribute_strategy.run(assign_all)


_GUARDS = {
    keras.callbacks.EarlyStopping: _Speaker,
    keras.callbacks.ReduceLROnPlateau: _Speaker,
    keras.callbacks.LearningRateScheduler: _Speaker,
    keras.callbacks.ModelCheckpoint: _ModelCheckpoint,
    keras.callbacks.CSVLogger: _CSVLogger,
    keras.callbacks.RemoteMonitor: _RemoteMonitor,
    keras.callbacks.TensorBoard: _TensorBoard,
    keras.callbacks.BackupAndRestore: _BackupAndRestore,
}


def _guards():
    return {_Guard, _Averaging, *_GUARDS.values()}


@functools.cache
def _guarded(own_class, keras_class, guard):
    """A class with a guard between the class of Keras and the subclass of it, if it is one."""
    if guard is _Speaker:
        guard = type(guard.__name__, (guard, keras_class), {})
    bases = (guard,) if own_class is keras_class else (own_class, guard)
    return type(own_class.__name__, bases, {})
