"""The loop: k steps on the device, one look at the numbers, callbacks, checkpoint, again.

`Trainer.fit` and a repaired `keras.Model.fit` are the doors to it; a step itself is in `step.py`,
its graph in `functions.py`, what is saved in `run_state.py`. Every worker runs
this same loop and takes the same turns: what one worker alone knows is summed over all before
anyone acts on it.
"""

import contextlib
import time

import keras
import tensorflow as tf

from tfscale import strategy as strategy_lib
from tfscale.cluster import pulse
from tfscale.data import elements
from tfscale.training import alike, fit_run, fits, pace, preemption, run_state, scorer, weight_sums
from tfscale.training import callbacks as callbacks_lib
from tfscale.training import functions as functions_lib
from tfscale.training import health as health_lib


class Loop(scorer.Scorer):
    """Trains one model, and scores and predicts with it as its base does."""

    def fit(self, run, resume_from=None):
        """Train.

        Args:
            run: a `fit_run.FitRun`; its data are prepared.
            resume_from: a `checkpoint.Checkpoint` to go on from, at its step.

        Returns:
            Keras' `History`.

        Raises:
            SystemExit: when all workers have saved because one was told to leave.
        """
        self.model.stop_training, self._is_training = False, True
        listening = preemption.heard_in_loop() if run.saver.saves else contextlib.nullcontext()
        try:
            with pulse.letting_go(), self.strategy.scope(), run.saver, listening:
                self._begin(run, resume_from)
                while self.progress.epoch < run.epochs and not run.stopped:
                    self._fit_epoch(run)
                if not run.is_finished:
                    self._end(run)
        finally:
            self._is_training = False
            if run.profile is not None:
                run.profile.end()
        pulse.beat(self.progress.step, "idle")
        return run.history

    def _begin(self, run, saved):
        """Get ready, and go where a checkpoint or Keras' backup says."""
        callbacks_lib.check_alike(run.callbacks.callbacks, self.strategy, self.sums)
        alike.check_limits(self, run)
        run.saver.begin(self.model, self.is_chief, run.validation is not None)
        if run.saver.saves:
            self._functions.read_state.get_concrete_function()  # traced before it must be quick
        if saved is not None and run_state.is_end(saved, run):
            run_state.take_over_end(self, run, saved)
            return
        if saved is not None:
            run_state.before_callbacks(run, saved, self.is_chief)
        run.callbacks.on_train_begin()
        if saved is not None:
            run_state.go_on_from(self, run, saved)
        backup = alike.backup_of_all(self, run)
        if backup is not None and saved is None:
            self.progress.start(backup[0], run.data.first_step(backup[0]) or 0)
            self.progress.advance_to(backup[1])
        self._wait_for_all()  # the chief may delete the backup that the others read
        if run.health.bounds is not None and run.health.bounds.undoes:
            self._functions.prepare_undo(run.data.element_spec)
        if run.measures is not None:
            devices = strategy_lib.own_devices(self.strategy)
            run.measures.begin(self._functions, run.data.element_spec, devices)
            run.measures.meet_between = run.is_watched and self.shard.num_workers > 1
        folder = run.saver.checkpoints and run.saver.checkpoints.directory
        if run.health.needs_checkpoint and (saved is None or saved.path.parent != folder):
            self._save(run)

    def _end(self, run):
        """Finish the weights, tell the callbacks, and wait for what is written."""
        optimizer = getattr(self.model, "optimizer", None)
        if isinstance(optimizer, keras.optimizers.Optimizer) and run.epochs > 0:
            optimizer.finalize_variable_values(self.model.trainable_weights)
        run.callbacks.on_train_end(run.logs)
        run.is_finished = True
        if run.saver.saves_end:
            self._save(run)
        code = self._wait_for_all(run.saver)
        run.saver.has_ended = True
        if code and run.saver.saves:
            raise preemption.Leaving(code)

    def take_one_step(self, data):
        """Take one step on the first global batch; return its numbers by name."""
        self.prepare(data.element_spec, "train")
        run = fit_run.FitRun(data, epochs=1, pace=pace.Pace(1))
        with self.strategy.scope():
            self._functions.reset_metrics()
            iterator = run.iterator(self.shard, self.progress)
            logs = self._take_steps(run, iterator, 1)[2]
        self._beat_end()
        return logs

    def _fit_epoch(self, run):
        """One epoch. The order is kept: stop? k steps, numbers, callbacks, checkpoint, done?"""
        at = self.progress
        if not run.epoch_is_begun:
            run.callbacks.on_epoch_begin(at.epoch)
        run.epoch_is_begun = False
        if at.position == 0:
            self._functions.reset_metrics()
        iterator = run.iterator(self.shard, at)
        # A restored epoch may have its validation left only.
        logs = self._logs(self._functions.metrics(True)) if at.position else {}
        taken, k, code, ended, looked = 0, 0, 0, False, None
        stops = self.is_true_somewhere(self.model.stop_training)  # before a step, as Keras may
        options = self._options(run, run.measures and [0] * functions_lib.NUM_ASKED)
        while at.position != run.steps_in_epoch(at) and not run.stopped:
            if run.profile is not None:
                run.profile.at(at.step)
            most = self._functions.most_steps(iterator, **options)
            k = run.next_steps(at, 1 if stops else most)
            run.callbacks.on_train_batch_begin(at.position)
            began = time.perf_counter()
            between = began - looked if looked else 0.0
            taken, examples, chosen, votes = self._take_steps(run, iterator, k)
            looked = time.perf_counter()
            if run.health.goes_back:
                self._go_back(run)
                return
            if taken or not logs:
                logs = chosen
            if taken:
                if examples:
                    at.advance(taken, examples, looked - began, between)
                else:  # left out, which says nothing about the length of a step
                    at.advance_to(taken)
                pulse.beat(at.step, "train", at.epoch)
                run.pace.measured(votes[1])
                run.saver.hear(votes[2])
                run.callbacks.on_train_batch_end(at.position - 1, logs)
                if run.measures is not None:
                    run.measures.host_is_done()
            ended = taken < k and not run.health.is_bad
            if ended:
                break
            if run.health.compares(at):
                self._compare_weights(run)
            run.stopped = votes[0] > 0 or self._all_stop(run)
            code = preemption.exit_code(votes[3]) if run.saver.saves else 0
            if code:
                self._save_and_leave(run, code)
            if run.saver.is_due(at.step) and at.position != run.steps_in_epoch(at):
                self._save(run)
        run.end_steps(at, exhausted=ended)
        run.logs, code = self._end_epoch(run, logs)
        at.begin_next_epoch()
        is_last = at.epoch == run.epochs or run.stopped
        is_due = run.saver.is_due_after_epoch(at, run.logs, is_last)
        if code:
            self._save_and_leave(run, code)
        if is_due:
            self._save(run)

    def _save(self, run):
        """Begin to write a checkpoint; every worker reads the state, the chief writes it."""
        if run.health.compares_before_saving(self.progress):
            self._compare_weights(run)
        facts, arrays = run_state.to_save(self, run)
        run.saver.save(self.progress.step, self._functions.read_state, facts, arrays)
        run.health.saved(self.progress.step)

    def _save_and_leave(self, run, code):
        """Save what was done so far, and end this process, as all workers do."""
        pulse.beat(self.progress.step, "save", self.progress.epoch)
        self._save(run)
        self._wait_for_all(run.saver)
        if self.is_chief:
            print(f"tfscale: saved at step {self.progress.step}, and leaves.", flush=True)
        raise preemption.Leaving(code)

    @staticmethod
    def _options(run, asked):
        """What the graph of a run's steps is made with: one that measures, or one that does not."""
        options = {"open_ended": run.is_open_ended, "bounds": run.health.bounds}
        if asked is not None:
            options |= {"asked": tf.constant(asked, tf.int64), "draws": run.measures.draws}
        return options

    def _take_steps(self, run, iterator, k):
        """Run k steps and read everything the host needs, once."""
        at, measures = self.progress, run.measures
        asked = measures and measures.asked(at, k, run.steps_in_epoch(at))
        if measures and measures.begins_other_graph:
            at.is_traced = False  # which takes longer than the steps
        mine = [int(bool(self.model.stop_training)), 0, 0, preemption.vote(), 0]
        if self.is_chief:
            mine[1:3] = run.pace.choose(at.step_seconds), run.saver.vote()
            if measures is not None:
                mine[4] = measures.vote(at.step_seconds, run.steps_left(at))
        left_out = run.health.leaves_out(at) and next(iterator, None) is not None
        results = self._functions.train_steps(
            iterator,
            tf.constant(0 if left_out else k, tf.int32),
            tf.constant(mine, tf.int64),
            **self._options(run, asked),
        )
        # Where steps run eagerly, Keras 3.13 gives metrics as Python's numbers.
        results = tf.nest.map_structure(lambda t: t.numpy() if tf.is_tensor(t) else t, results)
        *votes, fingerprints, squares = (int(v) for v in results["votes"])
        if self.shard.num_workers * squares != fingerprints**2:
            elements.refuse_other_batches(run.data, self.shard, self.progress.epoch)
        examples, steps = int(results["examples"]), int(results["steps"]) + left_out
        if measures is not None:
            measures.add(results, int(results["steps"]))
            measures.hear(votes[4])
        if run.health.bounds is not None:
            self._look_at_last(run, steps, results)
        self.progress.learning_rate = float(results["learning_rate"])
        reports = results["reports"]
        if not self._reports_last:
            reports = run.mean_reports(reports, examples)
        return steps, examples, self._logs(results["metrics"], reports), votes

    def _look_at_last(self, run, steps, results):
        """Tell of a bad step, the last of an execution; the run may end here."""
        bad, loss = int(results["bad"]), float(results["loss"])
        event = run.health.took(self.progress, run.data, steps, bad, loss)
        if event is None:
            return
        for callback in run.callbacks.callbacks:
            if hasattr(callback, "on_bad_step"):
                callback.on_bad_step(event)
        run.health.act(event, self.is_chief)

    def _go_back(self, run):
        """Put the newest checkpoint's state back, on all workers."""
        self._wait_for_all(run.saver)
        saved = fits.newest_of_all(self.strategy, run.saver.checkpoints, self.is_chief)
        if saved is None:
            raise health_lib.BadNumbers(
                '`on_bad_loss="rollback"` goes back to a checkpoint. Received: none that is whole '
                f"in {run.saver.checkpoints.directory}."
            )
        run_state.go_back_to(self, run, saved)

    def _compare_weights(self, run):
        """End the run if weights differ between replicas; a collective where there are several."""
        if self.strategy.num_replicas_in_sync > 1:
            table = self._functions.weight_sums().numpy()
            paths = [v.path for v in weight_sums.compared_variables(self.model)]
            run.health.compare(self.progress.step, table, paths, self.shard)

    def _logs(self, metrics, reports=None):
        """What callbacks are told after steps of training."""
        logs = {**scorer.floats(metrics), **scorer.floats(reports or {})}
        return self._functions.in_order(logs, True)

    def _all_stop(self, run):
        """Whether a callback has just stopped the training, on any worker."""
        mine = int(bool(self.model.stop_training))
        if self.shard.num_workers == 1:
            return bool(mine)
        # Where nobody looks at single batches, nobody stops within an epoch.
        return run.is_watched and self.sums(mine)[0] > 0

    def _wait_for_all(self, saver=None):
        """Go on when all workers are here, so that the chief's files are whole for them.

        Returns:
            The exit code that all leave with because one was told to; 0 to stay.
        """
        votes = [saver.finish() if saver is not None else 0, preemption.vote()]
        if self.shard.num_workers > 1:
            votes = self.sums(*votes)
        if saver is not None:
            saver.hear(votes[0])
        return preemption.exit_code(votes[1])

    def _end_epoch(self, run, logs):
        """Validate, tell the callbacks, and agree on whether to stop or to leave."""
        epoch = self.progress.epoch
        self.average_statistics()
        if run.validation is not None and run.validation_is_due(epoch):
            if run.evaluate is not None:
                scores = run.evaluate(run)
            else:
                scores = self.evaluate(run.validation, run.callbacks, run.test_steps)
            logs = {**logs, **{f"val_{name}": value for name, value in scores.items()}}
        run.callbacks.on_epoch_end(epoch, logs)
        run.reports.clear()
        votes = [int(bool(self.model.stop_training)), preemption.vote()]
        if self.shard.num_workers > 1:
            votes = self.sums(*votes)
            alike.check_rate(self)
        run.stopped = run.stopped or votes[0] > 0
        self.model.stop_training = run.stopped
        return logs, preemption.exit_code(votes[1]) if run.saver.saves else 0
