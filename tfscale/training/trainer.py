"""`Trainer`: a Keras model, trained, scored and asked under any strategy.

What a user gives becomes `Batches`, callbacks and limits here; the loop itself is in `loop.py`.
"""

import sys
from pathlib import Path

import keras

from tfscale.data import accept
from tfscale.training import callbacks as callbacks_lib
from tfscale.training import fit_log, fit_run, fits, health, loop, pace, prepare, progress, saver
from tfscale.training import reduction as reduction_lib


class Trainer:
    """Trains, scores and predicts with a Keras model under any strategy.

    The numbers are those of one device, whatever the number of replicas: the global batch is cut
    among them, shares are weighed by count, gradients are summed before they are clipped.

    Args:
        model: a compiled `keras.Model`, built in the scope of the strategy it shall train under.
        step: a step of your own, `step(model, data) -> dict of scalars`, written as for one
            device with a `tf.GradientTape`; it calls an optimizer's `apply_gradients`. Without
            it, the step is the compiled one, or the model's own `train_step`.
        reduction: how gradients of all replicas become one, by name or as an object of
            `training.reduction`.
        jit_compile: compile the step with XLA: all of it on one replica, the forward and backward
            pass on several.
        run_dir: a folder that all workers see, in which each call of `fit` is saved, by its
            number, which all trainers of the program with this folder count together: when it
            runs again, calls that had ended return their history at once, and the one that was
            interrupted goes on. "" for none, or the one that `tfscale.launch` was given.

    Raises:
        ValueError: if the model has neither been compiled nor a step of its own.
    """

    def __init__(self, model, *, step=None, reduction="mean", jit_compile=False, run_dir=""):
        if isinstance(reduction, str):
            reduction = reduction_lib.build_reduction(reduction)
        prepare.check_model(model, step)
        self.model, self.reduction = model, reduction
        self._loop = loop.Loop(model, step=step, reduction=reduction, jit_compile=jit_compile)
        self.strategy, self.shard = self._loop.strategy, self._loop.shard
        self.is_chief = self._loop.is_chief
        self._fits = fits.of_folder(Path(run_dir) / "fits") if run_dir else None

    @property
    def progress(self):
        """Where the run is: a `progress.Progress`."""
        return self._loop.progress

    def fit(
        self,
        x,
        y=None,
        *,
        sample_weight=None,
        global_batch_size=32,
        epochs=1,
        initial_epoch=0,
        steps_per_epoch=None,
        steps_per_execution=None,
        shuffle=True,
        seed=0,
        class_weight=None,
        validation_data=None,
        validation_freq=1,
        callbacks=None,
        checkpoints=None,
        save_every_steps=0,
        save_every_seconds=0,
        save_every_epochs=0,
        resume_from=None,
        on_bad_loss="",
        max_loss=None,
        max_bad_steps=3,
        check_weights_every_steps=0,
        measures=None,
        profile=None,
        verbose="auto",
    ):
        """Train the model.

        Args:
            x: `data.batches.Batches`, a `tf.data.Dataset` whose elements are global batches, or
                arrays: one, or a dict, tuple or list of them, of shape (examples, ...).
            y: targets, like `x`; none where `x` holds them.
            sample_weight: weights of the examples, of shape (examples,).
            global_batch_size: examples an update, over all replicas; for arrays.
            epochs: the epoch to stop after, counted from 0.
            initial_epoch: the epoch to begin with.
            steps_per_epoch: steps in an epoch of a `tf.data.Dataset`; needed if it is infinite.
            steps_per_execution: steps between two looks of the host at the device, and between
                two calls of `on_train_batch_end`. By default the chief chooses, so that one
                execution takes about a quarter of a second.
            shuffle: a new order every epoch; for arrays.
            seed: of that order.
            class_weight: dict from class number to weight.
            validation_data: scored during training: `(x, y)`, `(x, y, sample_weight)`, a
                dataset or `Batches`.
            validation_freq: epochs between two validations.
            callbacks: a list of `keras.callbacks.Callback`, run on every worker.
            checkpoints: a `checkpoint.Checkpoints` to write to; by default those of `run_dir`,
                and without it nothing is saved.
            save_every_steps: steps between two checkpoints; 0 for none by steps.
            save_every_seconds: seconds between two, by the chief's clock; 0 for none.
            save_every_epochs: epochs between two; 0 for one after each epoch, unless steps or
                seconds are given. The end of a run is always saved.
            resume_from: a `checkpoint.Checkpoint` to go on from, at its step.
            on_bad_loss: what a step does whose loss, or a weight after it, is not finite: "stop"
                ends the run; "skip" undoes the step and goes on with the next batch; "rollback"
                goes back to the last checkpoint and takes the steps since then again, without
                the bad batch. By default nobody looks. A callback with a method
                `on_bad_step(event)` is told.
            max_loss: a step with a loss above it is bad, too; None for no bound.
            max_bad_steps: bad steps that a run may have, over all its lives; the next ends it.
            check_weights_every_steps: steps between two comparisons of all replicas' weights,
                which are compared before each checkpoint, too; 0 for none.
            measures: a `measures.Measures`, which then collects where each worker's time goes and
                how long gradients are, the same on all workers; None to measure nothing.
            profile: a `profile.Profile` of this worker, with the same steps on all; None for none.
            verbose: 0 for silence; 1 for a bar; 2 for lines; "auto" for a bar on a terminal and
                lines elsewhere. The chief alone speaks.

        Returns:
            A `keras.callbacks.History`, the same on every worker.

        Raises:
            ValueError: if data, batch size or arguments do not fit, before the first step.
            health.BadNumbers: on all workers, if a bad step ends the run, or weights differ.
        """
        own_health = health.Health(on_bad_loss, max_loss, max_bad_steps, check_weights_every_steps)
        data = accept.as_batches(
            x,
            y,
            sample_weight,
            global_batch_size=global_batch_size,
            steps_per_epoch=steps_per_epoch,
            shuffle=shuffle,
            seed=seed,
            class_weight=class_weight,
        )
        validation = None
        if validation_data is not None:
            parts = (
                validation_data if isinstance(validation_data, (tuple, list)) else [validation_data]
            )
            sizes = {"global_batch_size": global_batch_size}
            validation = accept.as_batches(*parts, **sizes)
            prepare.check_functions(self.model, "test")
        self._loop.prepare(data.element_spec, "train")
        save_every = {
            "save_every_steps": save_every_steps,
            "save_every_seconds": save_every_seconds,
            "save_every_epochs": save_every_epochs,
        }
        own_saver = saver.Saver(checkpoints, **save_every)
        numbered, place = self._fits or fits.of_script(), None
        if numbered is not None and checkpoints is None:
            own = save_every if any(save_every.values()) else {}
            own_saver, saved = numbered.next(
                self.model, self.strategy, data.gives_same_again, **own
            )
            resume_from = saved or resume_from
            place = numbered.place if own_saver.saves else None
        own_health.check(own_saver, data)
        run = fit_run.FitRun(
            data=data,
            health=own_health,
            validation=validation,
            validation_freq=validation_freq,
            epochs=epochs,
            saver=own_saver,
            pace=pace.Pace(steps_per_execution),
            measures=measures,
            profile=profile,
            first_epoch=initial_epoch,
            is_watched=self._loop.is_true_somewhere(callbacks_lib.watches_batches(callbacks)),
        )
        self.progress.start(initial_epoch, data.first_step(initial_epoch) or 0)
        with callbacks_lib.given_back(callbacks):
            run.callbacks = self._callback_list(callbacks, run, verbose)
            with fit_log.kept(run, self._loop, place, resume_from):
                return self._loop.fit(run, resume_from)

    def evaluate(
        self, x, y=None, *, sample_weight=None, global_batch_size=32, steps_per_epoch=None
    ):
        """Score the model; every example counts once.

        Args:
            x: as for `fit`.
            y: as for `fit`.
            sample_weight: as for `fit`.
            global_batch_size: examples scored at a time, over all replicas; for arrays.
            steps_per_epoch: batches to score of a `tf.data.Dataset`; needed if it is infinite.

        Returns:
            A dict of loss and metrics, the same on every worker.

        Raises:
            ValueError: if the data do not fit.
        """
        data = accept.as_batches(
            x,
            y,
            sample_weight,
            global_batch_size=global_batch_size,
            steps_per_epoch=steps_per_epoch,
        )
        with self.strategy.scope():
            return self._loop.evaluate(data, keras.callbacks.CallbackList(model=self.model))

    def predict(self, x, *, global_batch_size=32, steps_per_epoch=None):
        """Return the model's outputs in the order of the data, all of them on every worker.

        Args:
            x: inputs, as for `fit`; targets that come with them are not used.
            global_batch_size: examples at a time, over all replicas; for arrays.
            steps_per_epoch: batches to take of a `tf.data.Dataset`; needed if it is infinite.

        Returns:
            An array of shape (examples, ...), or a nested structure of them.

        Raises:
            ValueError: if the data do not fit.
        """
        data = accept.as_batches(
            x, global_batch_size=global_batch_size, steps_per_epoch=steps_per_epoch
        )
        self._loop.prepare(data.element_spec, "predict")
        with self.strategy.scope():
            return self._loop.predict(data)

    def take_one_step(self, data):
        """Take one step on the first global batch: a proof that everything fits together.

        Args:
            data: as `x` for `fit`.

        Returns:
            A dict of loss and metrics.
        """
        return self._loop.take_one_step(accept.as_batches(data))

    def _callback_list(self, callbacks, run, verbose):
        """Keras' list of callbacks, with a history, and a bar or lines on the chief."""
        if verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        if not self.is_chief:
            verbose = 0
        callbacks = callbacks_lib.prepare(callbacks, self.strategy, self.is_chief)
        shown = {1: progress.Bar, 2: progress.Lines}.get(verbose)
        if shown is not None:
            callbacks.append(shown(self.progress))
        return keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            model=self.model,
            verbose=verbose,
            epochs=run.epochs,
            steps=run.steps_per_epoch,
        )
