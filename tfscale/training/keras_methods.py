"""What `fit`, `evaluate`, `predict` and the calls on one batch mean under replicas.

Each takes the arguments of Keras' own method, all of them, and leads to the step, the reduction
and the loop of `Trainer`. This module owns the private names of `keras.Model` that this needs.
"""

import keras

from tfscale.cluster import pulse
from tfscale.training import callbacks as callbacks_lib
from tfscale.training import fit_log, fit_run, fits, keras_data, loop, pace, prepare, saving
from tfscale.training import health as health_lib
from tfscale.training import reduction as reduction_lib
from tfscale.training import saver as saver_lib

# Before 3.15, `train_on_batch` and `test_on_batch` go on with the metrics of the batches before.
_BATCH_RESETS_METRICS = not keras.__version__.startswith(("3.13.", "3.14."))
_LOOP = "tfscale_loop"  # on a model that came through this door, so that both go together
_VALIDATING = "validating"  # on a loop: the `FitRun` whose validation is under way

_health = {}  # what `health.Health` takes, for each call of `fit`


def set_health(health):
    """Say what each `fit` does about bad steps, with arguments of `health.Health`.

    What is not among them stays as it was said before.

    Raises:
        ValueError: if one is out of range.
    """
    health_lib.Health(**{**_health, **health})
    _health.update(health)


def forget_health():
    """Take back what `set_health` has said."""
    _health.clear()


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
    with model.distribute_strategy.scope():
        fits.read_what_was_left(x)
    given = x
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
    saver, saved, place = saver_lib.Saver(), None, None
    if fits.of_script() is not None and not saving.rank_beside_others(own.strategy):
        saver, saved = fits.of_script().next(model, own.strategy, data.gives_same_again)
        place = fits.of_script().place if saver.saves else None
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
        given=given,
    )
    run.callbacks = _callback_list(
        own, callbacks, verbose, epochs, data.steps_per_epoch, history=True
    )
    own.progress.start(initial_epoch, data.first_step(initial_epoch) or 0)
    if own.is_chief and verbose and own.shard.num_workers > 1:
        print(keras_data.describe(data, own.shard), flush=True)
    with fit_log.kept(run, own, place, saved):
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


def evaluate_in_fit(model, return_dict):
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


def _predict_on_batch(model, x):
    """`keras.Model.predict_on_batch` under a strategy."""
    own = _loop_of(model)
    batch = keras_data.one_batch(x)
    own.prepare(batch.element_spec, "predict")
    _check_alike(own, batch, "predict_on_batch")
    with own.strategy.scope():
        return own.predict_on_batch(*batch.element(own.shard))


def _on_batch(model, x, y, sample_weight, class_weight, return_dict, training):
    own = _loop_of(model)
    batch = keras_data.one_batch(x, y, sample_weight, class_weight)
    own.prepare(batch.element_spec, "train" if training else "test")
    _check_alike(own, batch, "train_on_batch" if training else "test_on_batch")
    with own.strategy.scope():
        logs = own.step_on_batch(*batch.element(own.shard), training, _BATCH_RESETS_METRICS)
    return _as_returned(model, logs, return_dict)


def _check_alike(own, batch, method):
    """Refuse, before anything is done with it, a batch that is another one on another worker."""
    if own.shard.num_workers > 1:
        own.check_alike(batch, batch.fingerprint(), method)


def _loop_of(model):
    """The model's loop, which keeps its graphs from call to call."""
    found = vars(model).get(_LOOP)
    if found is None or found.strategy is not model.distribute_strategy:
        found = loop.Loop(model, reduction=reduction_lib.build_reduction("mean"), reports_last=True)
        vars(model)[_LOOP] = found  # past Keras, which would track it
    return found


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


METHODS = {
    "fit": pulse.letting_go()(_fit),
    "evaluate": pulse.letting_go()(_evaluate),
    "predict": pulse.letting_go()(_predict),
    "train_on_batch": pulse.letting_go()(_train_on_batch),
    "test_on_batch": pulse.letting_go()(_test_on_batch),
    "predict_on_batch": pulse.letting_go()(_predict_on_batch),
}
