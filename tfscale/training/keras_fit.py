"""The repair of `keras.Model.fit`: where it is put in place, for which versions, for which models.

Owns which methods are replaced; what each does then is in `keras_methods`. Where no strategy is
in use Keras' own code runs, untouched.
"""

import functools
import inspect
import sys
import zlib

import keras
import tensorflow as tf

from tfscale.cluster import environment
from tfscale.strategy import is_seeded, set_seed
from tfscale.training import callbacks as callbacks_lib
from tfscale.training import keras_methods, replica, saving

SUPPORTED_KERAS = ("3.13", "3.14", "3.15")

_keras_methods = {}
_keras_compile = []  # the class that has it, and its own
_said = []  # models that train alone
_NUMBERS = {"__int__": int, "__float__": float}


def enable_keras_fit(
    *, on_bad_loss=None, max_loss=None, max_bad_steps=None, check_weights_every_steps=None
):
    """Make `keras.Model.fit` and its kin work, and right, on several replicas and workers.

    Call it once, before `fit`. From then on `fit`, `evaluate`, `predict`, `train_on_batch`,
    `test_on_batch` and `predict_on_batch` of models made under a `MirroredStrategy` or a
    `MultiWorkerMirroredStrategy` give the numbers of one device: gradients are summed before
    they are clipped, uneven shares are weighed by count, dropout differs between replicas,
    gradients are accumulated, moving statistics are averaged before they are scored or saved;
    callbacks that write do so on the chief alone. Models without a strategy are not touched.

    In a cluster of several workers, a script that has not seeded TensorFlow gets a seed that is
    the same on all of them, so that an unseeded shuffle gives each the same order. One that has
    seeds NumPy and Python itself, as `keras.utils.set_random_seed` does.

    Called again it changes what is given; the rest stays as an earlier call, or the launcher's
    flags, have set it.

    Args:
        on_bad_loss: what a step does whose loss or weights are not finite: "stop", "skip",
            "rollback", or "" to look at none, as for `Trainer.fit`. By default "".
        max_loss: a step with a loss above it is bad too; by default there is no bound.
        max_bad_steps: bad steps that each `fit` may have before the next ends it; by default 3.
        check_weights_every_steps: steps between two comparisons of all replicas' weights; by
            default 0, for none.

    Raises:
        ValueError: if an argument is unknown or out of range.
        RuntimeError: if the version of Keras is not one that this was tested with.
    """
    _check_version(keras.__version__)
    health = {
        "on_bad_loss": on_bad_loss,
        "max_loss": max_loss,
        "max_bad_steps": max_bad_steps,
        "check_weights_every_steps": check_weights_every_steps,
    }
    keras_methods.set_health({name: v for name, v in health.items() if v is not None})
    if _keras_methods:
        return
    for name in keras_methods.METHODS:
        _keras_methods[name] = vars(keras.Model).get(name)  # None where it is inherited
        setattr(keras.Model, name, _replaced(name, getattr(keras.Model, name)))
    # Where Keras has it: a model whose class has another `compile` is not compiled when loaded.
    owner = next(kind for kind in keras.Model.__mro__ if "compile" in vars(kind))
    _keras_compile.append((owner, owner.compile))
    owner.compile = _in_scope(owner.compile)
    for name, kind in _NUMBERS.items():
        setattr(keras.Variable, name, _as_number(kind, getattr(keras.Variable, name)))
    replica.install()
    saving.install()
    cluster = environment.resolve()
    if cluster.num_workers == 1 or cluster.is_evaluator:
        return
    saving.set_process(cluster.rank, cluster.num_workers)
    if not is_seeded():
        set_seed(zlib.crc32(" ".join(cluster.workers).encode()))


def disable_keras_fit():
    """Give `keras.Model` its own methods back; does nothing where they are in place."""
    if not _keras_methods:
        return
    for name, own in _keras_methods.items():
        delattr(keras.Model, name)
        if own is not None:
            setattr(keras.Model, name, own)
    _keras_methods.clear()
    keras_methods.forget_health()
    owner, own = _keras_compile.pop()
    owner.compile = own
    for name in _NUMBERS:
        delattr(keras.Variable, name)  # where it was inherited
    replica.uninstall()
    saving.uninstall()
    saving.set_process(0, 1)


def _check_version(version):
    if ".".join(version.split(".")[:2]) not in SUPPORTED_KERAS:
        raise RuntimeError(
            "enable_keras_fit() replaces methods of Keras "
            f"{', '.join(SUPPORTED_KERAS)}. Received: Keras {version}. Install one of these, "
            "for example with: pip install 'keras=="
            f"{SUPPORTED_KERAS[-1]}.*', or train with tfscale.Trainer."
        )


def _in_scope(own):
    """`keras.Model.compile`, which makes metrics, in the scope of the model's strategy."""

    @functools.wraps(own)
    def compile(self, *args, **kwargs):
        if not _is_distributed(self):
            return own(self, *args, **kwargs)
        with self.distribute_strategy.scope():
            return own(self, *args, **kwargs)

    return compile


def _as_number(kind, own):
    """What `float(optimizer.learning_rate)` calls, which fails where replicas have copies of it."""

    @functools.wraps(own)
    def number(self):
        copies = isinstance(self.value, tf.distribute.DistributedValues)
        return kind(self.numpy()) if copies and self.shape.rank == 0 else own(self)

    return number


def _warn_alone(model):
    """Say once, on the chief, that a model without a strategy trains on each worker by itself."""
    kinds = (tf.distribute.MirroredStrategy, tf.distribute.OneDeviceStrategy)  # lending warns
    cluster = environment.resolve()
    if _said or isinstance(model.distribute_strategy, kinds) or cluster.num_workers == 1:
        return
    _said.append(model.name)
    if cluster.is_chief:
        print(
            f"warning: The model {model.name!r} was made outside of the scope of a strategy, so "
            f"each of the {cluster.num_workers} workers trains it alone. To train together make "
            "it below `with strategy.scope():`, or make no strategy under tfscale.launch.",
            file=sys.stderr,
            flush=True,
        )


def _replaced(name, own):
    """A method of `keras.Model` that is ours under a strategy and Keras' own elsewhere."""
    ours = keras_methods.METHODS[name]
    signature = inspect.signature(own)

    @functools.wraps(own)
    def method(self, *args, **kwargs):
        if name == "fit" and not _is_distributed(self):
            _warn_alone(self)
        rank = saving.rank_beside_others(self.distribute_strategy)
        if not _is_distributed(self) and not rank:
            return own(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        if not _is_distributed(self):
            with callbacks_lib.apart(bound.arguments.get("callbacks"), rank):
                return own(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        arguments.pop(next(iter(arguments)))
        extra = arguments.pop("kwargs", {})
        if name == "evaluate" and extra.pop("_use_cached_eval_dataset", False):
            return keras_methods.evaluate_in_fit(self, arguments["return_dict"])
        if extra:
            raise ValueError(f"Arguments not recognized: {extra}")
        called = arguments.get("callbacks")
        with callbacks_lib.apart(called, rank), callbacks_lib.given_back(called):
            return ours(self, **arguments)

    return method


def _is_distributed(model):
    """Whether a model was made under a strategy with replicas or workers."""
    strategy = model.distribute_strategy
    return strategy.num_replicas_in_sync > 1 or isinstance(
        strategy, tf.distribute.MultiWorkerMirroredStrategy
    )
