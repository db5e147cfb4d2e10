"""Scoring and predicting with one model: the part of the loop that changes no weight.

Owns the model's graphs, which are made anew after `compile`. Training is in `loop.py`; both are
reached through `Trainer` and through a repaired `keras.Model`.
"""

import itertools
import math
import time

import keras
import numpy as np
import tensorflow as tf

from tfscale.cluster import pulse
from tfscale.data import elements
from tfscale.strategy import shard_of
from tfscale.training import functions as functions_lib
from tfscale.training import own_step, pace, prepare, progress, saving, seeds
from tfscale.training import step as step_lib


class Scorer:
    """Scores and predicts with one model under the strategy it was built under.

    Args:
        model: the `keras.Model`.
        step: a step of training of the user's own, `step(model, data)`, or None.
        reduction: how gradients are summed over the replicas, of `training.reduction`.
        jit_compile: compile the step with XLA; None for what the model was compiled with.
        reports_last: report what a step of the user's own returned last, as Keras does, and not
            the mean over the examples.
    """

    def __init__(self, model, *, step=None, reduction=None, jit_compile=None, reports_last=False):
        self.model, self.strategy = model, model.distribute_strategy
        self.shard = shard_of(self.strategy)
        self.is_chief = self.shard.worker == 0
        self.progress, self._pace = progress.Progress(), pace.ScoringPace()
        self.reduction = reduction
        self._step = None if step is None else own_step.as_graph(step)
        self._jit_compile, self._reports_last = jit_compile, reports_last
        self._functions, self._parts, self._is_training = None, [], False
        self._is_merging = isinstance(
            self.strategy,
            (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy),
        )

    @pulse.letting_go()
    def prepare(self, spec, purpose):
        """Make all variables and the graphs' functions, anew after `compile`.

        All work begins here, so the launcher is told of it: the workers may wait for each other
        from now on.

        Args:
            spec: of the batches to come, the `element_spec` of `Batches`.
            purpose: "train", "test" or "predict".
        """
        if not self._is_training:
            pulse.beat(self.progress.step, "begin", alone=self.shard.num_workers == 1)
        model, jit_compile = self.model, self._jit_compile
        if self._is_merging:
            with self.strategy.scope():
                seeds.share_global_seed()
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

    def average_statistics(self):
        """Make moving statistics that replicas keep for themselves equal on all of them."""
        if saving.statistics_of(self.model) and self.strategy.num_replicas_in_sync > 1:
            self._functions.average_statistics()

    @pulse.letting_go()
    def evaluate(self, data, callbacks, steps_per_execution=None):
        """Score all of the data and return the numbers by name.

        The device takes fewer batches at a time than that where they are slow, so that the
        launcher hears of each quarter of a second, or of each batch.

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
        position, examples, fingerprint, reports = 0, 0, 0, {}
        period, agrees = steps_per_execution or math.inf, steps_per_execution != 1
        self.model.stop_evaluating = False
        self._pace.begin()
        while position != num_steps:
            began, k = time.perf_counter(), min(self._pace.steps, period - position % period)
            k = min(k, num_steps - position) if num_steps >= 0 else k
            if position % period == 0:
                callbacks.on_test_batch_begin(position)
            taken = self._functions.test_steps(
                iterator, tf.constant(k), self._functions.sums_of(reports), open_ended=num_steps < 0
            )
            steps, reports = int(taken["steps"]), taken["reports"]
            position += steps
            examples += int(taken["examples"])
            fingerprint += int(taken.get("fingerprint", 0))
            pulse.beat(self.progress.step, "evaluate", self.progress.epoch)
            ended = steps < k or position == num_steps
            seconds = time.perf_counter() - began
            if steps_per_execution and (ended if position % period else steps):
                callbacks.on_test_batch_end(position - 1, self._scores(reports, examples))
            ended = ended or self.model.stop_evaluating
            if agrees:
                agrees = self._agree_on_pace(seconds / steps if steps else None, ended)
            if ended:
                break
        logs = self._scores(reports, examples)
        self.check_alike(data, fingerprint, "evaluate", self.model.stop_evaluating)
        if position and not steps_per_execution:
            callbacks.on_test_batch_end(position - 1, logs)
        data.end_epoch()
        self._beat_end()
        callbacks.on_test_end(logs)
        return logs

    def _agree_on_pace(self, step_seconds, ended):
        """Take over the chief's choice for the next execution, on all workers.

        Returns:
            Whether to agree again after it: not with a worker whose data have ended.
        """
        votes = [self._pace.choose(step_seconds) if self.is_chief else 0, int(ended)]
        if self.shard.num_workers > 1:
            votes = self.sums(*votes)
        self._pace.measured(votes[0])
        return not votes[1]

    def _beat_end(self):
        """Tell the launcher that work outside of `fit` has ended."""
        pulse.beat(self.progress.step, "train" if self._is_training else "idle")

    def _scores(self, reports, examples):
        """Numbers by name: metrics, and what a step of the user's own reported, of all so far."""
        count = 1 if self._reports_last else examples
        means = {name: float(np.divide(float(value), count)) for name, value in reports.items()}
        return self._functions.in_order({**floats(self._functions.metrics(False)), **means}, False)

    @pulse.letting_go()
    def predict(self, data, callbacks=None, steps_per_execution=1):
        """Return the outputs for all of the data, in its order, on every worker.

        Args:
            data: `Batches`; the model is built.
            callbacks: Keras' list of callbacks, or None.
            steps_per_execution: batches between two calls of the callbacks.
        """
        callbacks = callbacks or keras.callbacks.CallbackList()
        position, parts, fingerprint = 0, [], 0
        self.model.stop_predicting = False
        callbacks.on_predict_begin()
        batches = iter(data.epoch(self.shard))
        while group := list(itertools.islice(batches, steps_per_execution)):
            callbacks.on_predict_batch_begin(position)
            position += len(group)
            fingerprint += sum(int(elements.fingerprint_of(batch) or 0) for batch in group)
            parts.append(_joined([self._outputs_of_one(batch) for batch in group]))
            callbacks.on_predict_batch_end(position - 1, {"outputs": parts[-1]})
            if self.model.stop_predicting:
                break
        self.check_alike(data, fingerprint, "predict", self.model.stop_predicting)
        data.end_epoch()
        self._beat_end()
        callbacks.on_predict_end()
        return _joined(parts)

    def check_alike(self, data, fingerprint, method, ended_early=False):
        """Refuse batches that differ between workers, each of which has to call this.

        Args:
            data: what they come from, for `elements.refuse_other_batches`.
            fingerprint: theirs, or the sum of theirs, of this worker.
            method: what they were given to.
            ended_early: this worker stopped among them, so there is nothing to compare.

        Raises:
            ValueError: if the batches surely hold other examples.
        """
        if self.shard.num_workers == 1:
            return
        bits = fingerprint % 2**elements.FINGERPRINT_BITS
        with self.strategy.scope():
            total, squares, ended = self.sums(bits, bits**2, int(bool(ended_early)))
        if not ended and self.shard.num_workers * squares != total**2:
            elements.refuse_other_batches(data, self.shard, method=method)

    def step_on_batch(self, share, global_count, training, resets=True):
        """Take one step, or score, on a batch at hand; return its numbers by name.

        Args:
            share: this worker's share of it.
            global_count: its examples.
            training: whether to take a step.
            resets: whether metrics begin anew, or go on from the batches before.
        """
        if resets:
            self._functions.reset_metrics()
        results = self._functions.step_on_batch(share, global_count, training)
        self._beat_end()
        return self._functions.in_order(floats(results), training)

    def predict_on_batch(self, share, global_count):
        """Return the outputs for a batch at hand, as arrays."""
        outputs = self._outputs(share, global_count)
        self._beat_end()
        return outputs

    def _outputs_of_one(self, batch):
        outputs = self._outputs(*elements.with_count(batch))
        pulse.beat(self.progress.step, "predict", self.progress.epoch)
        return outputs

    def _outputs(self, share, global_count):
        outputs = self._functions.predict_step(share, global_count)
        return tf.nest.map_structure(
            lambda t: t if isinstance(t, (tf.RaggedTensor, tf.SparseTensor)) else t.numpy(),
            outputs,
        )

    def sums(self, *numbers):
        """Sum whole numbers over all workers, each of which has to call this."""
        rest = (0,) * (-len(numbers) % 8)  # few lengths, because each is traced
        sums = self._functions.agree(tf.constant([*numbers, *rest], tf.int64)).numpy()
        return [int(value) for value in sums[: len(numbers)]]

    def differing(self, *numbers):
        """Say of each of these whole numbers whether another worker has another one.

        Every worker has to call this.
        """
        mine = [number >> shift & _LIMB for number in numbers for shift in _LIMB_SHIFTS]
        found = self.sums(*mine, *(limb * limb for limb in mine))
        pairs = zip(found[: len(mine)], found[len(mine) :], strict=True)
        differs = [self.shard.num_workers * squares != total**2 for total, squares in pairs]
        width = len(_LIMB_SHIFTS)
        return [any(differs[i : i + width]) for i in range(0, len(differs), width)]

    def is_true_somewhere(self, flag):
        """Say whether a flag is true on any worker, each of which has to call this."""
        if self.shard.num_workers == 1:
            return bool(flag)
        with self.strategy.scope():
            return self.sums(int(bool(flag)))[0] > 0


# Parts of a number whose squares, summed over all workers, fit into 64 bits.
_LIMB, _LIMB_SHIFTS = 2**21 - 1, (0, 21, 42)


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
        if isinstance(parts[0], tf.SparseTensor):
            return tf.sparse.concat(0, list(parts))
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


def floats(metrics):
    """Metrics as floats; one of several numbers, such as one a class, as a list."""
    arrays = {name: np.asarray(value) for name, value in metrics.items()}
    return {name: float(a) if a.ndim == 0 else a.tolist() for name, a in arrays.items()}
