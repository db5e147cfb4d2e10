"""What Keras' own callbacks that write do on a worker: the work of the chief, or of the others.

A guard stands between a class of `keras.callbacks` and a user's subclass of it, so that what
Keras does in a hook is done as this worker should. `callbacks.py` puts it there. Private names:
attributes of TensorBoard, ModelCheckpoint and BackupAndRestore, the same in Keras 3.13 to 3.15.
"""

import contextlib
import json
import os
import shutil
import tempfile

import h5py
import keras
import tensorflow as tf

from tfscale.strategy import shard_of
from tfscale.training import saving, state


class Guard(keras.callbacks.Callback):
    """Stands between a class of Keras and its subclass, and has its hooks run in `at_work`."""

    writes = True

    def __init_subclass__(cls, hooks=(), **kwargs):
        super().__init_subclass__(**kwargs)
        for name in hooks:
            setattr(cls, name, _in_at_work(cls, name))

    def set_model(self, model):
        self.writes = shard_of(model.distribute_strategy).worker == 0
        super().set_model(model)

    def unguard(self):
        """Undo what this guard has changed, before the callback gets its own class back."""
        vars(self).pop("writes", None)

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


class Speaker(Guard, hooks=("on_epoch_begin", "on_epoch_end", "on_train_end")):
    """EarlyStopping, ReduceLROnPlateau, LearningRateScheduler: the chief alone speaks."""


class Averaging(Guard):
    """Averages moving statistics before a file is written within an epoch."""

    def set_model(self, model):
        super().set_model(model)
        self._average = tf.function(saving.average_statistics)

    def unguard(self):
        super().unguard()
        vars(self).pop("_average", None)

    def averages(self):
        """Whether it sums over all workers before it writes."""
        return self.save_freq != "epoch" and bool(saving.statistics_of(self.model))

    def average(self):
        """Called by all workers; at the end of an epoch the loop has averaged already."""
        if self.averages():
            self._average(self.model)


class ModelCheckpoint(
    Averaging, keras.callbacks.ModelCheckpoint, hooks=("on_train_batch_end", "on_epoch_end")
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


class CSVLogger(
    Guard, keras.callbacks.CSVLogger, hooks=("on_train_begin", "on_epoch_end", "on_train_end")
):
    """The others write to the null device."""

    @contextlib.contextmanager
    def at_work(self):
        with super().at_work(), contextlib.ExitStack() as stack:
            if not self.writes:
                stack.enter_context(_replaced(self, filename=os.devnull))
            yield


class RemoteMonitor(Guard, keras.callbacks.RemoteMonitor):
    """The chief alone sends."""

    def on_epoch_end(self, epoch, logs=None):
        if self.writes:
            super().on_epoch_end(epoch, logs)


class TensorBoard(
    Guard,
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

    def unguard(self):
        super().unguard()
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


class BackupAndRestore(Averaging, keras.callbacks.BackupAndRestore):
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


def works_on_batches(keras_class, callback):
    """Say whether a class' hooks for batches do something with the options of a callback."""
    if keras_class in (keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore):
        return callback.save_freq != "epoch"
    if keras_class is keras.callbacks.TensorBoard:
        by_batch = callback.update_freq != "epoch" or callback.write_steps_per_second
        return by_batch or callback._should_trace
    return True


GUARDS = {
    keras.callbacks.EarlyStopping: Speaker,
    keras.callbacks.ReduceLROnPlateau: Speaker,
    keras.callbacks.LearningRateScheduler: Speaker,
    keras.callbacks.ModelCheckpoint: ModelCheckpoint,
    keras.callbacks.CSVLogger: CSVLogger,
    keras.callbacks.RemoteMonitor: RemoteMonitor,
    keras.callbacks.TensorBoard: TensorBoard,
    keras.callbacks.BackupAndRestore: BackupAndRestore,
}


def _no_file(callback, rank, stack):
    return {"filename": os.devnull}


def _no_message(callback, rank, stack):
    return {"on_epoch_end": lambda epoch, logs=None: None}


def _folder_for_a_while(callback, rank, stack):
    return {"log_dir": stack.enter_context(tempfile.TemporaryDirectory(prefix="tfscale-"))}


def _own_backup(callback, rank, stack):
    """All paths of a backup, in a folder beside that of the first worker."""
    shared = callback.backup_dir
    own = f"{shared.rstrip('/')}-worker-{rank}"
    paths = {n: p for n, p in vars(callback).items() if isinstance(p, str)}
    return {n: own + p[len(shared) :] for n, p in paths.items() if p.startswith(shared)}


# What a worker's callback has of its own where a worker of lower rank trains beside it:
# attributes, given the callback, the rank and a stack of contexts that end with the training.
APART = {
    keras.callbacks.CSVLogger: _no_file,
    keras.callbacks.RemoteMonitor: _no_message,
    keras.callbacks.TensorBoard: _folder_for_a_while,
    keras.callbacks.BackupAndRestore: _own_backup,
}
