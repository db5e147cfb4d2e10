"""The loop: k steps on the device, one look at the numbers, callbacks, checkpoint, again.

`Trainer.fit` is the door; a step itself is in `step.py`, its graph in `functions.py`, what is
saved in `state.py` and `checkpoint.py`. Every worker runs this same loop and takes the same
turns: what one worker alone knows is summed over all before anyone acts on it.
"""

import contextlib
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfscale.data import accept, batches
from tfscale.strategy import shard_of
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import fit_run, pace, prepare, progress, state
from tfscale.training import functions as functions_lib
from tfscale.training import reduction as reduction_lib
from tfscale.training import step as step_lib


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

    Raises:
        ValueError: if the model has neither been compiled nor a step of its own.
    """

    def __init__(self, model, *, step=None, reduction="mean", jit_compile=False):
        self.model, self.strategy = model, model.distribute_strategy
        self.shard = shard_of(self.strategy)
        self.is_chief = self.shard.worker == 0
        self.progress = progress.Progress()
        if isinstance(reduction, str):
            reduction = reduction_lib.build_reduction(reduction)
        self.reduction = reduction
        self._step, self._jit_compile = step, jit_compile
        self._functions, self._parts = None, []
        prepare.check_model(model, step)

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
        resume_from=None,
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
            checkpoints: a `checkpoint.Checkpoints` to write to; by default nothing is saved.
            save_every_steps: steps between two checkpoints; 0 for one after each epoch.
            resume_from: a `checkpoint.Checkpoint` to go on from, at its step.
            verbose: 0 for silence; 1 for a bar; 2 for lines; "auto" for a bar on a terminal and
                lines elsewhere. The chief alone speaks.

        Returns:
            A `keras.callbacks.History`, the same on every worker.

        Raises:
            ValueError: if data, batch size or arguments do not fit, before the first step.
        """
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
        validation = self._as_validation(validation_data, global_batch_size)
        prepare.build(self.model, data, self.strategy)
        self._prepare_functions(data)
        run = fit_run.FitRun(
            data=data,
            validation=validation,
            validation_freq=validation_freq,
            epochs=epochs,
            checkpoints=checkpoints,
            save_every_steps=save_every_steps,
            pace=pace.Pace(steps_per_execution),
        )
        first_step = initial_epoch * (data.steps_per_epoch or 0)
        self.progress.start(initial_epoch, first_step)
        run.callbacks = self._callback_list(callbacks, run, verbose)
        history = next(c for c in run.callbacks.callbacks if isinstance(c, keras.callbacks.History))
        self.model.stop_training = False
        with self.strategy.scope():
            run.callbacks.on_train_begin()
            self._restore(resume_from, run, history)
            logs = {}
            while self.progress.epoch < epochs and not run.stopped:
                logs = self._fit_epoch(run, history)
            if (
                isinstance(getattr(self.model, "optimizer", None), keras.optimizers.Optimizer)
                and epochs > 0
            ):
                self.model.optimizer.finalize_variable_values(self.model.trainable_weights)
            run.callbacks.on_train_end(logs)
        return history

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
        prepare.build(self.model, data, self.strategy)
        self._prepare_functions()
        with self.strategy.scope():
            return self._evaluate(data)

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
        self._prepare_functions()
        parts = []
        with self.strategy.scope():
            for element in data.epoch(self.shard):
                outputs = self._functions.predict_step(*batches.with_count(element))
                parts.append(tf.nest.map_structure(lambda t: t.numpy(), outputs))
        return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *parts)

    def take_one_step(self, data):
        """Take one step on the first global batch: a proof that everything fits together.

        Args:
            data: as `x` for `fit`.

        Returns:
            A dict of loss and metrics.
        """
        data = accept.as_batches(data)
        prepare.build(self.model, data, self.strategy)
        self._prepare_functions(data)
        run = fit_run.FitRun(data, epochs=1, pace=pace.Pace(1))
        with self.strategy.scope():
            self._functions.reset_metrics()
            logs, _, _ = self._take_steps(run, run.iterator(self.shard, self.progress), 1)
        return logs

    def _fit_epoch(self, run, history):
        """One epoch. The order is kept: stop? k steps, numbers, callbacks, checkpoint, done?"""
        at = self.progress
        run.callbacks.on_epoch_begin(at.epoch)
        if at.position == 0:
            self._functions.reset_metrics()
        iterator = run.iterator(self.shard, at)
        logs = {}
        while at.position != run.steps_per_epoch and not run.stopped:
            k = run.next_steps(at)
            run.callbacks.on_train_batch_begin(at.position)
            began = time.perf_counter()
            try:
                logs, examples, votes = self._take_steps(run, iterator, k)
            except tf.errors.OutOfRangeError:
                if run.steps_per_epoch is not None or at.position == 0:
                    raise
                run.steps_per_epoch = at.position
                break
            at.advance(k, examples, time.perf_counter() - began)
            run.pace.measured(votes[1])
            run.callbacks.on_train_batch_end(at.position - 1, logs)
            run.stopped = votes[0] > 0
            if self.shard.num_workers == 1:  # nobody else to ask
                run.stopped = bool(self.model.stop_training)
            if run.save_is_due(at) and at.position != run.steps_per_epoch:
                self._save(run, history)
        logs = self._end_epoch(run, logs)
        at.begin_next_epoch()
        if run.save_after_epoch(at):
            self._save(run, history)
        return logs

    def _take_steps(self, run, iterator, k):
        """Run k steps and read everything the host needs, once."""
        mine = [int(bool(self.model.stop_training)), 0]
        if self.is_chief:
            mine[1] = run.pace.choose(self.progress.step_seconds)
        results = self._functions.train_steps(
            iterator, tf.constant(k, tf.int32), tf.constant(mine, tf.int64)
        )
        metrics, reports, examples, rate, votes = tf.nest.map_structure(
            lambda t: t.numpy(), results
        )
        self.progress.learning_rate = float(rate)
        reports = run.mean_reports(reports, int(examples))
        logs = {**_floats(metrics), **reports}
        return logs, int(examples), [int(v) for v in votes]

    def _end_epoch(self, run, logs):
        """Validate, tell the callbacks, and agree on whether to stop."""
        epoch = self.progress.epoch
        due = run.validation is not None and (epoch + 1) % run.validation_freq == 0
        if due:
            scores = self._evaluate(run.validation)
            logs = {**logs, **{f"val_{name}": value for name, value in scores.items()}}
        run.callbacks.on_epoch_end(epoch, logs)
        run.reports.clear()
        mine = [int(bool(self.model.stop_training))]
        if self.shard.num_workers > 1:
            mine = self._functions.agree(tf.constant(mine, tf.int64)).numpy()
        run.stopped = run.stopped or int(mine[0]) > 0
        self.model.stop_training = run.stopped
        return logs

    def _evaluate(self, data):
        """Score all of the data and return the metrics by name."""
        self._functions.reset_metrics()
        dataset = data.epoch(self.shard)
        if step_lib.overrides(self.model, "test_step"):
            self._functions.find_report_names(iter(dataset), training=False)
        iterator, num_steps = iter(dataset), int(dataset.cardinality())
        taken = []
        if num_steps >= 0:
            taken.append(self._functions.test_steps(iterator, tf.constant(num_steps)))
        else:  # A user's dataset of unknown length: the end of it is the same on every worker.
            with contextlib.suppress(tf.errors.OutOfRangeError):
                while True:
                    taken.append(self._functions.test_steps(iterator, tf.constant(1)))
        total = sum(int(examples) for _, examples in taken)
        names = taken[0][0] if taken else ()
        reports = {n: sum(float(sums[n]) for sums, _ in taken) / total for n in names}
        return {**_floats(self._functions.metrics()), **reports}

    def _save(self, run, history):
        """Write a checkpoint; every worker reads the state, the chief writes it."""
        if run.checkpoints is None:
            return
        arrays = {name: v.numpy() for name, v in self._functions.read_state().items()}
        if self.is_chief:
            facts = {
                "progress": self.progress.to_save(),
                "history": {"epoch": history.epoch, "history": history.history},
                "reports": run.reports,
                "steps_per_epoch": run.steps_per_epoch,
                "num_workers": self.shard.num_workers,
            }
            run.checkpoints.save(checkpoint_lib.Checkpoint(self.progress.step, arrays, facts))

    def _restore(self, saved, run, history):
        """Put a checkpoint's state back, to go on at its step."""
        if saved is None:
            return
        state.restore(self.model, self.strategy, saved.arrays, saved.path)
        self.progress.go_on_from(saved.facts["progress"])
        run.go_on_from(saved.facts, self.progress.position)
        if not run.data.same_order(self.shard, saved.facts["num_workers"]):
            logging.warning(
                "The data is a stream cut by file, whose order depends on the number of workers. "
                "Received: %d workers, and %d before. Epoch %d begins again.",
                self.shard.num_workers,
                saved.facts["num_workers"],
                self.progress.epoch + 1,
            )
            self.progress.position = 0
            run.reports = {}
        history.epoch = saved.facts["history"]["epoch"]
        history.history = saved.facts["history"]["history"]
        logging.info("Going on from %s, at step %d.", saved.path, saved.step)

    def _as_validation(self, data, global_batch_size):
        if data is None:
            return None
        if isinstance(data, (tuple, list)):
            return accept.as_batches(*data, global_batch_size=global_batch_size)
        return accept.as_batches(data)

    def _prepare_functions(self, data=None):
        """Make the graphs' functions, anew after `compile`; learn what own steps report."""
        model = self.model
        parts = [getattr(model, "optimizer", None), *model.metrics, *model.trainable_variables]
        if self._functions is None or not _same(parts, self._parts):
            self._parts = parts
            if self.strategy.num_replicas_in_sync > 1:
                prepare.warn_about_local_statistics(model)
            self._functions = functions_lib.Functions(
                model,
                self.strategy,
                self.shard,
                step_lib.train_function(model, self._step, self._jit_compile),
                step_lib.test_function(model),
                self.reduction,
            )
        own_step = self._step is not None or step_lib.overrides(model, "train_step")
        if data is not None and own_step and not self._functions.report_names[True]:
            with self.strategy.scope():
                self._functions.find_report_names(iter(data.dataset(self.shard)))

    def _callback_list(self, callbacks, run, verbose):
        """Keras' list of callbacks, with a history, and a bar or lines on the chief."""
        if verbose == "auto":
            verbose = 1 if sys.stdout.isatty() else 2
        if not self.is_chief:
            verbose = 0
        callbacks = list(callbacks or [])
        if verbose == 2:
            callbacks.append(progress.Lines(self.progress))
        return keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=verbose == 1,
            model=self.model,
            verbose=verbose,
            epochs=run.epochs,
            steps=run.steps_per_epoch,
        )


def _same(parts, others):
    """Whether two lists hold the same objects."""
    return len(parts) == len(others) and all(
        mine is theirs for mine, theirs in zip(parts, others, strict=True)
    )


def _floats(metrics):
    """Metrics as floats; one of several numbers, such as one a class, as a list."""
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    return {name: float(a) if a.ndim == 0 else a.tolist() for name, a in arrays.items()}
