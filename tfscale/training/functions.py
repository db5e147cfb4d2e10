"""The graphs a trainer runs: k steps, a pass over test data, one prediction, one agreement.

Each is a `tf.function` around `strategy.run` of a function in `step.py`. The host calls one, and
waits for the device once: the numbers it needs come back together.
"""

import tensorflow as tf

from tfscale.data import batches
from tfscale.training import state
from tfscale.training import step as step_lib


class Functions:
    """The compiled functions of one trainer.

    Args:
        model: the `keras.Model`.
        strategy: the strategy it was built under.
        shard: the `data.shards.Shard` of this process.
        train: a function `(data, share)` that takes one replica's step and returns a dict of
            weighted scalars to report, the same names in every step.
        test: the same for scoring.
        reduction: how gradients are summed over the replicas.
    """

    def __init__(self, model, strategy, shard, train, test, reduction):
        self._model, self._strategy, self._shard = model, strategy, shard
        self._train, self._test, self._reduction = train, test, reduction
        self.report_names = {True: (), False: ()}  # of training, of scoring
        self.train_steps = tf.function(self._train_steps, autograph=False)
        self.test_steps = tf.function(self._test_steps, autograph=False)
        self.metrics = tf.function(model.get_metrics_result)
        self.predict_step = tf.function(self._predict_step, autograph=False, reduce_retracing=True)
        self.reset_metrics = tf.function(model.reset_metrics)
        self.agree = tf.function(self._agree)
        self.read_state = tf.function(lambda: state.read(model))

    def find_report_names(self, iterator, training=True):
        """Trace one step to learn what a step of the user's own reports."""

        def once(iterator):
            _, _, self.report_names[training] = self._one_step(iterator, training)

        tf.function(once, autograph=False).get_concrete_function(iterator)

    def _train_steps(self, iterator, num_steps, votes):
        """Take `num_steps` steps.

        Args:
            iterator: of this worker's `Batches.dataset`.
            num_steps: an int32 scalar.
            votes: an int64 vector that is summed over all replicas.

        Returns:
            The metrics by name, the reports of the steps by name (sums over examples), the
            examples seen, the learning rate of the next step, and the sum of votes.
        """
        reports, examples = self._loop(iterator, num_steps, training=True)
        rate = getattr(getattr(self._model, "optimizer", None), "learning_rate", 0.0)
        return (
            self._model.get_metrics_result(),
            reports,
            examples,
            tf.convert_to_tensor(rate),
            self._agree(votes),
        )

    def _test_steps(self, iterator, num_steps):
        """Score `num_steps` batches; return sums of reports by name, and the examples."""
        return self._loop(iterator, num_steps, training=False)

    def _loop(self, iterator, num_steps, training):
        """Take `num_steps` steps in the graph."""
        names = self.report_names[training]

        def take(step, examples, *sums):
            report, count, _ = self._one_step(iterator, training)
            weighted = report * tf.cast(count, tf.float32)
            return step + 1, examples + count, *(total + weighted for total in sums)

        # Each loop variable costs in every step, so sums of reports are there only if needed.
        sums = (tf.zeros([len(names)]),) if names else ()
        _, examples, *sums = tf.while_loop(
            lambda step, *_: step < num_steps, take, (0, tf.constant(0, tf.int64), *sums)
        )
        values = tf.unstack(sums[0]) if sums else []
        return dict(zip(names, values, strict=True)), examples

    def _one_step(self, iterator, training):
        """Run one step on all replicas; return its reports, its examples, and their names."""
        batch, global_count = batches.with_count(next(iterator))
        names, step = [], self._train if training else self._test

        def replica(batch, global_count):
            report = step(*self._cut(batch, global_count))
            names[:] = report
            return tf.stack([report[name] for name in names]) if names else tf.zeros([0])

        report = self._strategy.run(replica, args=(batch, global_count))
        # With nothing to report there is nothing to sum: no collective in the step.
        report = self._strategy.reduce("SUM", report, axis=None) if names else tf.zeros([0])
        return report, tf.cast(global_count, tf.int64), tuple(names)

    def _predict_step(self, batch, global_count):
        """Return the outputs for one global batch, in its order, on every worker."""
        outputs = self._strategy.run(
            lambda b, n: step_lib.predict_replica(self._model, *self._cut(b, n)),
            args=(batch, global_count),
        )
        return tf.nest.map_structure(
            lambda value: self._strategy.experimental_local_results(value)[0], outputs
        )

    def _agree(self, votes):
        """Sum a vector over all workers.

        What one worker alone knows travels to all before anyone acts on it.
        """
        on_replicas = self._strategy.run(lambda v: tf.identity(v), args=(votes,))
        total = self._strategy.reduce("SUM", on_replicas, axis=None)
        return total // self._shard.replicas_per_worker

    def _cut(self, batch, global_count):
        replicas = self._shard.replicas_per_worker
        return step_lib.cut_share(batch, global_count, replicas, self._reduction)
