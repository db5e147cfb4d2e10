"""What saving a model does on many workers: every worker may, none waits, files are whole.

Owns `local_reads`, in which nothing is a collective, `average_statistics`, the one collective
that has to come before, and what `install` puts in place of `Model.save`, `save_weights`,
`export` and `keras.saving.save_model`. Which worker writes what a callback writes is decided in
`callbacks.py`. `Model.get_weights` needs nothing: weights are mirrored, so each read is local.
"""

import concurrent.futures
import contextlib
import functools
import inspect
import os
import tempfile
import threading
import time

import keras
import tensorflow as tf

from tfscale.strategy import shard_of
from tfscale.training import accumulation, prepare

_SAVERS = (
    (keras.Model, "save"),
    (keras.Model, "save_weights"),
    (keras.Model, "export"),
    (keras.saving, "save_model"),
    (keras.saving, "save_weights"),
    (keras.models, "save_model"),
)
_originals = {}
_silence = threading.local()
_process = {"rank": 0, "num_workers": 1, "began": 0.0}  # among those that run the same script
_written = {}  # the inode of what this process has written, by its path


def set_process(rank, num_workers):
    """Say which of the workers that run the same script this process is.

    A model that each of them trains alone, under a strategy of one machine or none, is then saved
    to the same paths by all, in whole files; what another has written stays, but for the first.

    Args:
        rank: this worker, 0 <= rank < num_workers.
        num_workers: workers that run the script.
    """
    began = time.time() - 1  # a file system's clock may be behind
    _process.update(rank=rank, num_workers=num_workers, began=began)


def is_beside_others(strategy):
    """Say whether the other workers each train a model of their own where this one trains one.

    Args:
        strategy: the strategy of the model.
    """
    alone = not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return alone and _process["num_workers"] > 1


def rank_beside_others(strategy):
    """Return this worker's rank among those that each train alone; 0 where they do not."""
    return _process["rank"] if is_beside_others(strategy) else 0


@contextlib.contextmanager
def local_reads(strategy):
    """Make reading and creating variables local to this worker for a while.

    Outside of it, reading a metric's variable is a collective, and so is making any variable in
    the scope of the strategy, as Keras does while it saves: a worker that saves alone would wait
    for the others without end. Inside, a metric's variable has this worker's own part, and
    nothing can be assigned. Under a strategy of one process it changes nothing.

    Args:
        strategy: the strategy of what is read.
    """
    replica = tf.distribute.get_replica_context()
    inside = replica is not None and replica.strategy is strategy
    if inside or not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        yield
        return
    shard = shard_of(strategy)
    first = shard.worker * shard.replicas_per_worker
    with local_creation(), tf.distribute.ReplicaContext(strategy, first):
        yield


def local_creation():
    """Make new variables plain ones of this worker, as a context; for what Keras makes aside.

    Keras 3.13 to 3.15 makes an optimizer while it saves or loads, only to look at its attributes.
    """
    return tf.variable_creator_scope(_create_locally)


def _create_locally(next_creator, **arguments):
    if not tf.executing_eagerly():
        return next_creator(**arguments)
    initial_value = arguments["initial_value"]
    names = ("trainable", "name", "dtype", "shape")
    plain = {name: arguments[name] for name in names if arguments.get(name) is not None}
    if callable(initial_value):
        initial_value = initial_value()
    # Scopes of strategies are those of a thread, and another one has none.
    with concurrent.futures.ThreadPoolExecutor(1) as free_of_scopes:
        return free_of_scopes.submit(tf.Variable, initial_value, **plain).result()


def statistics_of(model):
    """Return the variables that each replica updates on its own.

    They are moving means and variances, and gradients that an optimizer has added up.

    Args:
        model: a built `keras.Model`.

    Returns:
        A list of `keras.Variable`; empty where there is one replica, or where normalisation is
        synchronized, so that all replicas have the same.
    """
    if model.distribute_strategy.num_replicas_in_sync == 1:
        return []
    equal = {
        id(variable)
        for layer in prepare.layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized
        for variable in layer.variables
    }
    metrics = {id(variable) for metric in model.metrics for variable in metric.variables}
    # A frozen layer's weights were made to be trained: TensorFlow's variable remembers it.
    own = [
        v
        for v in model.non_trainable_variables
        if id(v) not in equal | metrics
        and not v.value.trainable
        and tf.as_dtype(v.dtype).is_floating
        and v.aggregation in ("none", "mean")
    ]
    optimizers = [o for o in prepare.optimizers_of(model) if o.built]
    return own + [v for o in optimizers for v in accumulation.accumulators_of(o)]


def average_statistics(model):
    """Give all replicas the mean of their moving statistics, before they are saved or scored.

    To be called in a `tf.function` in cross-replica context by all workers at the same place. One
    collective for each data type; none, and no operation, where `statistics_of` finds nothing.

    Args:
        model: a built `keras.Model`.
    """
    by_dtype = {}
    for variable in statistics_of(model):
        by_dtype.setdefault(variable.dtype, []).append(variable)

    def replica(variables):
        packed = tf.concat([tf.reshape(v.value, [-1]) for v in variables], axis=0)
        context = tf.distribute.get_replica_context()
        mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, packed)
        parts = tf.split(mean, [v.shape.num_elements() for v in variables])
        for variable, part in zip(variables, parts, strict=True):
            variable.assign(tf.reshape(part, variable.shape))

    for variables in by_dtype.values():
        model.distribute_strategy.run(replica, args=(variables,))


@contextlib.contextmanager
def whole(path):
    """Yield a path to write to; at the end what is there is synced and renamed to `path`.

    Whoever reads `path` finds the file of before or the new one. A folder's files are replaced
    one by one, those that name the others last; files that are only in the old one stay.

    Args:
        path: a file or folder. Its parent is made where there is none. On a remote file system
            ("://"), which shows a file once it is closed, it is yielded itself.
    """
    if "://" in str(path):
        yield str(path)
        return
    parent, name = os.path.split(os.path.realpath(path))
    os.makedirs(parent, exist_ok=True)
    place = _place_beside(parent)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=place) as beside:
        yield os.path.join(beside, name)
        _move(beside, parent)


def _place_beside(parent):
    """Where to write what is to be in a folder: above it if other workers may list it meanwhile."""
    above = os.path.dirname(parent)
    if _process["num_workers"] == 1 or not os.access(above, os.W_OK):
        return parent
    return above if os.stat(above).st_dev == os.stat(parent).st_dev else parent


def _move(source, target):
    """Rename all files of one folder into another on the same file system."""
    files, folders = [], []
    for folder, _, names in os.walk(source):
        relative = os.path.relpath(folder, source)
        folders.append(os.path.normpath(os.path.join(target, relative)))
        files += [os.path.normpath(os.path.join(relative, name)) for name in names]
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    for file in sorted(files, key=lambda f: (f.endswith((".json", ".pb")), f)):
        _sync(os.path.join(source, file))
        os.replace(os.path.join(source, file), os.path.join(target, file))
    for folder in folders:
        _sync(folder)


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def not_writing():
    """Let `install`ed functions do nothing in this thread: for callbacks on other workers."""
    before = getattr(_silence, "is_on", False)
    _silence.is_on = True
    try:
        yield
    finally:
        _silence.is_on = before


def install():
    """Make Keras' functions that save a model fit for many workers; see this module.

    They may then be called on all workers, on one alone, or with another path on each. Models of
    one device are saved as before where this process is the only one.

    Returns:
        Whether anything was put in place: False if it was there already.
    """
    if _originals:
        return False
    for place, name in _SAVERS:
        if hasattr(place, name):  # Keras adds to them from version to version.
            _originals[place, name] = getattr(place, name)
            setattr(place, name, _fit_for_workers(_originals[place, name]))
    return True


def uninstall():
    """Put Keras' own functions back."""
    for (place, name), original in _originals.items():
        setattr(place, name, original)
    _originals.clear()


@contextlib.contextmanager
def taking_over():
    """Have `install`ed functions in place for a while."""
    is_mine = install()
    try:
        yield
    finally:
        if is_mine:
            uninstall()


def _is_anothers(path):
    """Whether another worker has written a file, or the first one has since this one did."""
    if not os.path.exists(path):
        return False
    found, mine = os.stat(path), _written.get(os.path.realpath(path))
    return found.st_ctime >= _process["began"] and found.st_ino != mine


def _fit_for_workers(original):
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save(model, filepath, *args, **kwargs):
        strategy = model.distribute_strategy
        many_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        many_workers |= is_beside_others(strategy)
        if not many_workers and strategy.num_replicas_in_sync == 1:
            return original(model, filepath, *args, **kwargs)
        if getattr(_silence, "is_on", False):
            return None
        if not isinstance(filepath, (str, os.PathLike)):
            with local_reads(strategy):
                return original(model, filepath, *args, **kwargs)
        bound = signature.bind(model, filepath, *args, **kwargs)
        given = bound.arguments
        if not given.get("overwrite", True):
            if many_workers:
                raise ValueError(
                    "`overwrite=False` asks a person, whom workers cannot ask. "
                    f"Received: overwrite=False for {str(filepath)!r} on many workers. "
                    "Look for the file first, and leave `overwrite` out."
                )
            return original(model, filepath, *args, **kwargs)
        rank = rank_beside_others(strategy)
        if rank and _is_anothers(filepath):
            return None
        speaks = original.__name__ == "export" and given.get("verbose") is not False
        if speaks:  # Keras would name the path beside.
            given["verbose"] = False
        with whole(filepath) as given["filepath"], local_reads(strategy):
            result = original(*bound.args, **bound.kwargs)
        if rank and os.path.exists(filepath):
            _written[os.path.realpath(filepath)] = os.stat(filepath).st_ino
        if speaks and shard_of(strategy).worker == rank == 0:
            print(f"Saved artifact at '{filepath}'.", flush=True)
        return result

    return save
