"""The loop: k steps on the device, one look at the numbers, callbacks, checkpoint, again.

`Trainer.fit` and a repaired `keras.Model.fit` are the doors to it; a step itself is in `step.py`,
its graph in `functions.py`, what is saved in `state.py` and `checkpoint.py`. Every worker runs
this same loop and takes the same turns: what one worker alone knows is summed over all before
anyone acts on it.
"""

import itertools
import time

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfscale.cluster import pulse
from tfscale.data import elements
from tfscale.strategy import shard_of
from tfscale.training import callbacks as callbacks_lib
from tfscale.training import fit_run, own_step, pace, prepare, progress, saving, state
from tfscale.training import functions as functions_lib
from tfscale.training import reduction as reduction_lib
from tfscale.training import step as step_lib


class Loop:
    """Trains, scores and predicts with one model under the strategy it was built under.

    Args:
        model: the `keras.Model`.
        step: a step of the user's own, `step(model, data)`, or None.
        reduction: how gradients are summed over the replicas, of `training.reduction`.
        jit_compile: compile the step with XLA; None for what the model was compiled with.
        reports_last: report what a step of the user's own returned last, as Keras does, and not
            the mean over the examples.
    """

    def __init__(self, model, *, step=None, reduction=None, jit_compile=None, reports_last=False):
        self.model, self.strategy = model, model.distribute_strategy
        self.shard = shard_of(self.strategy)
        self.is_chief = self.shard.worker == 0
        self.progress = progress.Progress()
        self.reduction = reduction
        self._step = None if step is None else own_step.as_graph(step)
        self._jit_compile, self._reports_last = jit_compile, reports_last
        self._functions, self._parts, self._is_training = None, [], False
        self._is_merging = isinstance(
            self.strategy,
            (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy),
        )

    def prepare(self, spec, purpose):
        """Make all variables and the graphs' functions, anew after `compile`.

        Args:
            spec: of the batches to come, the `element_spec` of `Batches`.
            purpose: "train", "test" or "predict".
        """
        model, jit_compile = self.model, self._jit_compile
        if self._is_merging:
            with self.strategy.scope():
                reduction_lib.share_global_seed()
        prepare.build(model, spec, self.strategy, self._step, purpose)
        if jit_compile is None:
            jit_compile = bool(model.compiled and model.jit_compile)
        parts = [
            getattr(model, "optimizer", None),
            getattr(getattr(model, "optimizer", None), "built", None),
            model.compiled and model.run_eagerly,
            jit_compile,
            *model.metrics,
            *model.trainable_variables,
        ]
        if self._functions is None or not _same(parts, self._parts):
            self._parts = parts
            if self.strategy.num_replicas_in_sync > 1:
                prepare.warn_about_local_statistics(model)
            self._functions = functions_lib.Functions(
                model,
                self.strategy,
                self.shard,
                step_lib.train_function(model, self._step, jit_compile),
                step_lib.test_function(model),
                self.reduction,
                self._reports_last,
            )
        with self.strategy.scope():
            if purpose != "predict":
                self._functions.prepare(spec, training=purpose == "train")

    def fit(self, run, resume_from=None):
        """Train.

        Args:
            run: a `fit_run.FitRun`; its data are prepared.
            resume_from: a `checkpoint.Checkpoint` to go on from, at its step.

        Returns:
            Keras' `History`.
        """
        history = next(c for c in run.callbacks.callbacks if isinstance(c, keras.callbacks.History))
        self.model.stop_training, self._is_training = False, True
        with self.strategy.scope(), run.saver:
            run.saver.begin(self.model, self.is_chief, run.validation is not None)
            if run.saver.saves:
                self._functions.read_state.get_concrete_function()  # traced before it must be quick
            run.callbacks.on_train_begin()
            self._restore(resume_from, run, history)
            self._go_on_from_backup(run)
            logs = None
            while self.progress.epoch < run.epochs and not run.stopped:
                logs = self._fit_epoch(run, history)
            optimizer = getattr(self.model, "optimizer", None)
            if isinstance(optimizer, keras.optimizers.Optimizer) and run.epochs > 0:
                optimizer.finalize_variable_values(self.model.trainable_weights)
            run.callbacks.on_train_end(logs)
            self._wait_for_all(run.saver)
        self._is_training = False
        pulse.beat(self.progress.step, "idle")
        return history

    def take_one_step(self, data):
        """Take one step on the first global batch; return its numbers by name."""
        self.prepare(data.element_spec, "train")
        run = fit_run.FitRun(data, epochs=1, pace=pace.Pace(1))
        with self.strategy.scope():
            self._functions.reset_metrics()
            return self._take_steps(run, run.iterator(self.shard, self.progress), 1)[2]

    def _fit_epoch(self, run, history):
        """One epoch. The order is kept: stop? k steps, numbers, callbacks, checkpoint, done?"""
        at = self.progress
        run.callbacks.on_epoch_begin(at.epoch)
        if at.position == 0:
            self._functions.reset_metrics()
        iterator = run.iterator(self.shard, at)
        # A restored epoch may have its validation left only.
        logs = self._logs(self._functions.metrics(True)) if at.position else {}
        taken, k = 0, 0
        while at.position != run.steps_in_epoch(at) and not run.stopped:
            k = run.next_steps(at, self._functions.most_steps(iterator, run.is_open_ended))
            run.callbacks.on_train_batch_begin(at.position)
            began = time.perf_counter()
            taken, examples, chosen, votes = self._take_steps(run, iterator, k)
            if taken or not logs:
                logs = chosen
            if taken:
                at.advance(taken, examples, time.perf_counter() - began)
                pulse.beat(at.step, "train", at.epoch)
                run.pace.measured(votes[1])
                run.saver.hear(votes[2])
                run.callbacks.on_train_batch_end(at.position - 1, logs)
            if taken < k:
                break
            run.stopped = votes[0] > 0 or self._all_stop(run)
            if run.saver.is_due(at.step) and at.position != run.steps_in_epoch(at):
                self._save(run, history)
        run.end_steps(at, exhausted=taken < k)
        logs = self._end_epoch(run, logs)
        at.begin_next_epoch()
        if run.saver.is_due_after_epoch(at, logs, at.epoch == run.epochs or run.stopped):
            self._save(run, history)
        return logs

    def _take_steps(self, run, iterator, k):
        """Run k steps and read everything the host needs, once."""
        mine = [int(bool(self.model.stop_training)), 0, 0]
        if self.is_chief:
            mine[1:] = run.pace.choose(self.progress.step_seconds), run.saver.vote()
        results = self._functions.train_steps(
            iterator,
            tf.constant(k, tf.int32),
            tf.constant(mine, tf.int64),
            open_ended=run.is_open_ended,
        )
        results = tf.nest.map_structure(lambda t: t.numpy(), results)
        *votes, fingerprints, squares = (int(v) for v in results["votes"])
        if self.shard.num_workers * squares != fingerprints**2:
            raise ValueError(
                "All workers must read the same batches, of which each takes its share. Received: "
                f"other examples on one of {self.shard.num_workers} workers, in epoch "
                f"{self.progress.epoch + 1}. Give every worker the whole dataset, without "
                "shard(), and one seed: keras.utils.set_random_seed(1) at the top of the script, "
                "or seeds in its shuffles; python -m tfscale.launch does so by itself."
            )
        examples, steps = int(results["examples"]), int(results["steps"])
        self.progress.learning_rate = float(results["learning_rate"])
        reports = results["reports"]
        if not self._reports_last:
            reports = run.mean_reports(reports, examples)
        return steps, examples, self._logs(results["metrics"], reports), votes

    def _logs(self, metrics, reports=None):
        """What callbacks are told after steps of training."""
        return self._functions.in_order({**_floats(metrics), **_floats(reports or {})}, True)

    def _go_on_from_backup(self, run):
        """Go where Keras' BackupAndRestore has put the model."""
        restored = callbacks_lib.restored_position(run.callbacks.callbacks)
        if self.shard.num_workers > 1:
            place = 0 if restored is None else 1 + restored[0] * 2**20 + restored[1]
            total, squares = self._sums(place % 2**26, (place % 2**26) ** 2)
            if self.shard.num_workers * squares != total**2:
                raise ValueError(
                    "BackupAndRestore must find the same backup on every worker. Received: "
                    f"{restored or 'none'} on worker {self.shard.worker}, and another on others. "
                    "Use one `backup_dir` that all workers see, or remove what is left there."
                )
        if restored is not None:
            self.progress.start(restored[0], run.data.first_step(restored[0]) or 0)
            self.progress.advance_to(restored[1])
        self._wait_for_all()  # the chief may delete what the others read

    def _all_stop(self, run):
        """Whether a callback has just stopped the training, on any worker."""
        mine = int(bool(self.model.stop_training))
        if self.shard.num_workers == 1:
            return bool(mine)
        # Where nobody looks at single batches, nobody stops within an epoch.
        return run.is_watched and self._sum(mine) > 0

    def _sums(self, *numbers):
        """Sum whole numbers over all workers, each of which has to call this."""
        sums = self._functions.agree(tf.constant(numbers, tf.int64)).numpy()
        return [int(value) for value in sums]

    def _sum(self, number):
        return self._sums(number)[0]

    def is_true_somewhere(self, flag):
        """Say whether a flag is true on any worker, each of which has to call this."""
        if self.shard.num_workers == 1:
            return bool(flag)
        with self.strategy.scope():
            return self._sum(int(bool(flag))) > 0

    def _wait_for_all(self, saver=None):
        """Go on when all workers are here, so that the chief's files are whole for them."""
        vote = saver.finish() if saver is not None else 0
        if self.shard.num_workers > 1:
            vote = self._sum(vote)
        if saver is not None:
            saver.hear(vote)

    def _end_epoch(self, run, logs):
        """Validate, tell the callbacks, and agree on whether to stop."""
        epoch = self.progress.epoch
        self.average_statistics()
        if run.validation is not None and run.validation_is_due(epoch):
            scores = self.evaluate(run.validation, run.callbacks, run.test_steps)
            logs = {**logs, **{f"val_{name}": value for name, value in scores.items()}}
        run.callbacks.on_epoch_end(epoch, logs)
        run.reports.clear()
        mine = int(bool(self.model.stop_training))
        run.stopped = run.stopped or bool(self._sum(mine) if self.shard.num_workers > 1 else mine)
        self.model.stop_training = run.stopped
        return logs

    def average_statistics(self):
        """Make moving statistics that replicas keep for themselves equal on all of them."""
        if saving.statistics_of(self.model) and self.strategy.num_replicas_in_sync > 1:
            self._functions.average_statistics()

    def evaluate(self, data, callbacks, steps_per_execution=None):
        """Score all of the data and return the numbers by name.

        Args:
            data: prepared `Batches`.
            callbacks: Keras' list of callbacks.
            steps_per_execution: batches between two calls of the callbacks; None for all at once.
        """
        self.prepare(data.element_spec, "test")
        callbacks.on_test_begin()
        self._functions.reset_metrics()
        dataset = data.epoch(self.shard)
        iterator, num_steps = iter(dataset), int(dataset.cardinality())
        sums, position = {}, 0
        self.model.stop_evaluating = False
        while position != num_steps:
            k = steps_per_execution or 1024
            k = min(k, num_steps - position) if num_steps >= 0 else k
            callbacks.on_test_batch_begin(position)
            taken = self._functions.test_steps(iterator, tf.constant(k), open_ended=num_steps < 0)
            steps, examples = int(taken["steps"]), int(taken["examples"])
            position += steps
            pulse.beat(self.progress.step, "evaluate", self.progress.epoch)
            sums = self._added(sums, taken["reports"], examples)
            if steps and steps_per_execution:
                callbacks.on_test_batch_end(position - 1, self._scores(sums))
            if steps < k or self.model.stop_evaluating:
                break
        logs = self._scores(sums)
        if position and not steps_per_execution:
            callbacks.on_test_batch_end(position - 1, logs)
        data.end_epoch()
        pulse.beat(self.progress.step, "train" if self._is_training else "idle")
        callbacks.on_test_end(logs)
        return logs

    def _added(self, sums, reports, examples):
        """Sums of reports and of examples so far, or the last report as it is."""
        if self._reports_last:
            return {name: (float(value), 1) for name, value in reports.items()}
        return {
            name: tuple(np.add(sums.get(name, (0.0, 0)), (float(value), examples)))
            for name, value in reports.items()
        }

    def _scores(self, sums):
        reports = {name: float(total / count) for name, (total, count) in sums.items()}
        logs = {**_floats(self._functions.metrics(False)), **reports}
        return self._functions.in_order(logs, False)

    def predict(self, data, callbacks=None, steps_per_execution=1):
        """Return the outputs for all of the data, in its order, on every worker.

        Args:
            data: `Batches`; the model is built.
            callbacks: Keras' list of callbacks, or None.
            steps_per_execution: batches between two calls of the callbacks.
        """
        callbacks = callbacks or keras.callbacks.CallbackList()
        position, parts = 0, []
        self.model.stop_predicting = False
        callbacks.on_predict_begin()
        batches = iter(data.epoch(self.shard))
        while group := list(itertools.islice(batches, steps_per_execution)):
            callbacks.on_predict_batch_begin(position)
            position += len(group)
            outputs = [self.predict_on_batch(*elements.with_count(batch)) for batch in group]
            parts.append(_joined(outputs))
            callbacks.on_predict_batch_end(position - 1, {"outputs": parts[-1]})
            if self.model.stop_predicting:
                break
        data.end_epoch()
        callbacks.on_predict_end()
        return _joined(parts)

    def step_on_batch(self, share, global_count, training):
        """Take one step, or score, on a batch at hand; return its numbers by name."""
        self._functions.reset_metrics()
        results = self._functions.step_on_batch(share, global_count, training)
        return self._functions.in_order(_floats(results), training)

    def predict_on_batch(self, share, global_count):
        """Return the outputs for a batch at hand, as arrays."""
        outputs = self._functions.predict_step(share, global_count)
        return tf.nest.map_structure(
            lambda t: t if isinstance(t, tf.RaggedTensor) else t.numpy(), outputs
        )

    def _save(self, run, history):
        """Begin to write a checkpoint; every worker reads the state, the chief writes it."""
        facts = {
            "progress": self.progress.to_save(),
            "history": {"epoch": history.epoch, "history": history.history},
            "reports": run.reports,
            "steps_per_epoch": run.steps_per_epoch,
            "num_workers": self.shard.num_workers,
        }
        run.saver.save(self.progress.step, self._functions.read_state, facts)

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


def _same(parts, others):
    """Whether two lists hold the same objects."""
    return len(parts) == len(others) and all(
        mine is theirs for mine, theirs in zip(parts, others, strict=True)
    )


def _joined(outputs):
    """Nested outputs of several batches as one; ragged where sequences differ in length."""

    def join(*parts):
        if isinstance(parts[0], tf.RaggedTensor):
            return tf.concat(parts, 0)
        differing = [
            i
            for i, sizes in enumerate(zip(*(p.shape for p in parts), strict=True))
            if len(set(sizes)) > 1
        ]
        rank = max(differing, default=0)
        if rank:
            return tf.concat([tf.RaggedTensor.from_tensor(p, ragged_rank=rank) for p in parts], 0)
        return np.concatenate(parts)

    return tf.nest.map_structure(join, *outputs)


def _floats(metrics):
    """Metrics as floats; one of several numbers, such as one a class, as a list."""
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    return {name: float(a) if a.ndim == 0 else a.tolist() for name, a in arrays.items()}
