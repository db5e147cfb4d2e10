"""The repair of `keras.Model.fit`: Keras' own methods, led to tfscale's loop under replicas.

Owns which methods are replaced, for which versions of Keras, and what their arguments mean here.
Where no strategy is in use Keras' own code runs, untouched. The step, the reduction and the loop
are those of `Trainer`.
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
from tfscale.training import fit_run, fits, keras_data, loop, pace, prepare, saving
from tfscale.training import health as health_lib
from tfscale.training import reduction as reduction_lib
from tfscale.training import saver as saver_lib

SUPPORTED_KERAS = ("3.13", "3.14", "3.15")
# Before 3.15, `train_on_batch` and `test_on_batch` go on with the metrics of the batches before.
_BATCH_RESETS_METRICS = not keras.__version__.startswith(("3.13.", "3.14."))
METHODS = ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")

_keras_methods = {}
_keras_compile = []  # the class that has it, and its own
_said = []  # models that train alone
_health = {}  # what `health.Health` takes, for each call of `fit`
_LOOP = "tfscale_loop"  # on a model that came through this door, so that both go together
_VALIDATING = "validating"  # on a loop: the `FitRun` whose validation is under way


def enable_keras_fit(
    *, on_bad_loss="", max_loss=None, max_bad_steps=3, check_weights_every_steps=0
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

    Args:
        on_bad_loss: what a step does whose loss or weights are not finite: "stop", "skip",
            "rollback", or "" to look at none, as for `Trainer.fit`.
        max_loss: a step with a loss above it is bad too; None for no bound.
        max_bad_steps: bad steps that each `fit` may have before the next ends it.
        check_weights_every_steps: steps between two comparisons of all replicas' weights; 0 for
            none.

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
    health_lib.Health(**health)  # refuses what does not fit
    _health.update(health)
    if _keras_methods:
        return
    for name in METHODS:
        _keras_methods[name] = vars(keras.Model).get(name)  # None where it is inherited
        setattr(keras.Model, name, _replaced(name, getattr(keras.Model, name)))
    # Where Keras has it: a model whose class has another `compile` is not compiled when loaded.
    owner = next(kind for kind in keras.Model.__mro__ if "compile" in vars(kind))
    _keras_compile.append((owner, owner.compile))
    owner.compile = _in_scope(owner.compile)
    reduction_lib.install()
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
    owner, own = _keras_compile.pop()
    owner.compile = own
    reduction_lib.uninstall()
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
    ours = globals()[f"_{name}"]
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
            return _evaluate_in_fit(self, arguments["return_dict"])
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


def _loop_of(model):
    """The model's loop, which keeps its graphs from call to call."""
    found = vars(model).get(_LOOP)
    if found is None or found.strategy is not model.distribute_strategy:
        found = loop.Loop(model, reduction=reduction_lib.build_reduction("mean"), reports_last=True)
        vars(model)[_LOOP] = found  # past Keras, which would track it
    return found


def _fit(
    model,
    x,
    y,
    batch_size,
    epochs,
    verbose,
    callbacks,
    validation_split,
    validation_data,
    shuffle,
    class_weight,
    sample_weight,
    initial_epoch,
    steps_per_epoch,
    validation_steps,
    validation_batch_size,
    validation_freq,
):
    """`keras.Model.fit` under a strategy."""
    model._assert_compile_called("fit")
    model._should_eval(0, validation_freq)  # refuses what is neither a number nor a list
    limit = keras.config.max_epochs()
    epochs = min(epochs, limit) if limit else epochs
    if validation_split and validation_data is None:
        (x, y, sample_weight), validation_data = keras_data.split_validation(
            x, y, sample_weight, validation_split
        )
    data = keras_data.training_batches(
        x,
        y,
        sample_weight,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        shuffle=shuffle,
        class_weight=class_weight,
    )
    validation = None
    if validation_data is not None:
        validation = keras_data.scoring_batches(
            *keras.utils.unpack_x_y_sample_weight(validation_data),
            batch_size=validation_batch_size or batch_size,
            steps=validation_steps,
        )
        prepare.check_functions(model, "test")
    own = _loop_of(model)
    own.prepare(data.element_spec, "train")
    watched = own.is_true_somewhere(callbacks_lib.watches_batches(callbacks))
    saver, saved = saver_lib.Saver(), None
    if fits.of_script() is not None and not saving.rank_beside_others(own.strategy):
        saver, saved = fits.of_script().next(own.strategy, data.gives_same_again)
    health = health_lib.Health(**_health)
    health.check(saver, data)
    run = fit_run.FitRun(
        data=data,
        health=health,
        epochs=epochs,
        saver=saver,
        pace=pace.Pace(_steps_per_execution(model) if watched else None),
        first_epoch=initial_epoch,
        validation=validation,
        evaluate=_own_evaluate(
            own, validation_data, validation_batch_size or batch_size, validation_steps
        ),
        validation_freq=validation_freq,
        test_steps=_test_steps(own, callbacks, verbose=0),
        is_watched=watched,
    )
    run.callbacks = _callback_list(
        own, callbacks, verbose, epochs, data.steps_per_epoch, history=True
    )
    own.progress.start(initial_epoch, data.first_step(initial_epoch) or 0)
    if own.is_chief and verbose and own.shard.num_workers > 1:
        print(keras_data.describe(data, own.shard), flush=True)
    return own.fit(run, saved)


def _own_evaluate(own, validation_data, batch_size, steps):
    """A call of a subclass's own `evaluate`, as Keras' `fit` makes it; None without one."""
    model = own.model
    if type(model).evaluate is keras.Model.evaluate and "evaluate" not in vars(model):
        return None

    def evaluate(run):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(validation_data)
        vars(own)[_VALIDATING] = run
        return model.evaluate(
            x=x,
            y=y,
            sample_weight=sample_weight,
            batch_size=batch_size,
            steps=steps,
            callbacks=run.callbacks,
            return_dict=True,
            _use_cached_eval_dataset=True,
        )

    return evaluate


def _evaluate_in_fit(model, return_dict):
    """What such an `evaluate` gets when it calls that of `keras.Model` with all its arguments."""
    own = _loop_of(model)
    run = vars(own)[_VALIDATING]
    logs = own.evaluate(run.validation, run.callbacks, run.test_steps)
    return _as_returned(model, logs, return_dict)


def _evaluate(model, x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict):
    """`keras.Model.evaluate` under a strategy."""
    model._assert_compile_called("evaluate")
    data = keras_data.scoring_batches(x, y, sample_weight, batch_size=batch_size, steps=steps)
    own = _loop_of(model)
    own.prepare(data.element_spec, "test")
    own.average_statistics()
    called = _callback_list(own, callbacks, verbose, 1, data.steps_per_epoch)
    with own.strategy.scope():
        logs = own.evaluate(data, called, _test_steps(own, callbacks, verbose))
    return _as_returned(model, logs, return_dict)


def _predict(model, x, batch_size, verbose, steps, callbacks):
    """`keras.Model.predict` under a strategy."""
    data = keras_data.scoring_batches(
        x, None, None, batch_size=batch_size, steps=steps, reset=False
    )
    own = _loop_of(model)
    own.prepare(data.element_spec, "predict")
    own.average_statistics()
    called = _callback_list(own, callbacks, verbose, 1, data.steps_per_epoch)
    with own.strategy.scope():
        return own.predict(data, called, _steps_per_execution(model) or 16)


def _train_on_batch(model, x, y, sample_weight, class_weight, return_dict):
    """`keras.Model.train_on_batch` under a strategy; every worker gives the same global batch."""
    model._assert_compile_called("train_on_batch")
    return _on_batch(model, x, y, sample_weight, class_weight, return_dict, training=True)


def _test_on_batch(model, x, y, sample_weight, return_dict):
    """`keras.Model.test_on_batch` under a strategy; every worker gives the same global batch."""
    model._assert_compile_called("test_on_batch")
    return _on_batch(model, x, y, sample_weight, None, return_dict, training=False)


def _on_batch(model, x, y, sample_weight, class_weight, return_dict, training):
    own = _loop_of(model)
    batch = keras_data.one_batch(x, y, sample_weight, class_weight)
    own.prepare(batch.element_spec, "train" if training else "test")
    _check_alike(own, batch, "train_on_batch" if training else "test_on_batch")
    with own.strategy.scope():
        logs = own.step_on_batch(*batch.element(own.shard), training, _BATCH_RESETS_METRICS)
    return _as_returned(model, logs, return_dict)


def _predict_on_batch(model, x):
    """`keras.Model.predict_on_batch` under a strategy."""
    own = _loop_of(model)
    batch = keras_data.one_batch(x)
    own.prepare(batch.element_spec, "predict")
    _check_alike(own, batch, "predict_on_batch")
    with own.strategy.scope():
        return own.predict_on_batch(*batch.element(own.shard))


def _check_alike(own, batch, method):
    """Refuse, before anything is done with it, a batch that is another one on another worker."""
    if own.shard.num_workers > 1:
        own.check_alike(batch, batch.fingerprint(), method)


def _as_returned(model, logs, return_dict):
    """Numbers by name as Keras returns them: sorted, or in the order of the metrics."""
    if return_dict:
        return dict(sorted(logs.items()))
    return model._flatten_metrics_in_order(logs)


def _test_steps(own, callbacks, verbose):
    """Batches between two calls of the callbacks while scoring; None where nobody looks.

    The same on all workers, though callbacks and a bar may be on one alone.
    """
    steps = _steps_per_execution(own.model) or 16
    if own.is_true_somewhere(callbacks_lib.watches_batches(callbacks, "test")):
        return steps
    return max(steps, 16) if own.is_true_somewhere(verbose not in (0, 2)) else None


def _steps_per_execution(model):
    """Steps between two calls of the callbacks; None to have them chosen."""
    steps = model.steps_per_execution
    return None if steps == "auto" else steps


def _callback_list(own, callbacks, verbose, epochs, steps, history=False):
    """Keras' list of callbacks, with a bar on the chief."""
    verbose = verbose if own.is_chief else 0
    prepared = callbacks_lib.prepare(callbacks, own.strategy, own.is_chief)
    if isinstance(callbacks, keras.callbacks.CallbackList) and not history:
        return callbacks  # as in Keras; `fit` looks for its own history
    return keras.callbacks.CallbackList(
        prepared,
        add_history=history,
        add_progbar=verbose != 0,
        verbose=verbose,
        epochs=epochs,
        steps=steps,
        model=own.model,
    )
