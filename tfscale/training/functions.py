"""The graphs a run is made of: k steps, a pass over test data, one prediction, one agreement.

Each is a `tf.function` around `strategy.run` of a function in `step.py`. The host calls one, and
waits for the device once: the numbers it needs come back together.
"""

import contextlib
import functools

import tensorflow as tf

from tfscale.data import elements
from tfscale.training import bad_steps, own_step, saving, state, weight_sums
from tfscale.training import step as step_lib

NUM_VOTES = 4  # of the host, in every execution


class Functions:
    """The compiled functions of one model.

    Args:
        model: the `keras.Model`; one with `run_eagerly` is run step by step without a graph.
        strategy: the strategy it was built under.
        shard: the `data.shards.Shard` of this process.
        train: a function `(data, share)` that takes one replica's step and returns a dict of
            weighted scalars to report, the same names in every step; or an `OwnStep`.
        test: the same for scoring.
        reduction: how gradients are summed over the replicas.
        reports_last: report what a step of the user's own returned last, as Keras does, and not
            the mean over the examples.
    """

    def __init__(self, model, strategy, shard, train, test, reduction, reports_last=False):
        self._model, self._strategy, self._shard = model, strategy, shard
        self._steps = {True: train, False: test}  # of training, of scoring
        self._reduction, self._reports_last = reduction, reports_last
        self._report_names, self._is_traced = {True: None, False: None}, False
        self._components = None  # the variables that a bad step is undone with

        plain = functools.partial(tf.function, autograph=False)  # to convert costs 0.1 s each

        def graph(function, **options):
            if getattr(model, "run_eagerly", False):
                return function
            return plain(function, **options)

        self.train_steps = graph(self._train_steps)
        self.test_steps = graph(self._test_steps)
        self.step_on_batch = graph(self._step_on_batch, reduce_retracing=True)
        self.predict_step = graph(self._predict_step, reduce_retracing=True)
        self.metrics = graph(self._metrics)
        self.reset_metrics = plain(model.reset_metrics)
        self.agree = plain(self._agree)
        self.read_state = plain(lambda: state.read(model))
        self.average_statistics = plain(lambda: saving.average_statistics(model))
        self.weight_sums = plain(lambda: weight_sums.sums(model, strategy))

    def prepare(self, spec, training=True):
        """Trace one step on batches of a spec, to learn what a step of the user's own reports."""
        own = isinstance(self._steps[training], own_step.OwnStep)
        if not own:
            self._report_names[training] = ()
        if self._report_names[training] is None:
            self._trace_once(spec, training)

    def prepare_undo(self, spec):
        """Find the variables that a step on batches of a spec may change."""
        if self._components is None:
            graph = self._trace_once(spec, True)
            self._components = bad_steps.components_of(self._model, self._strategy, graph)

    def _trace_once(self, spec, training):
        once = tf.function(lambda s, n: self._run(s, n, training)[0], autograph=False)
        return once.get_concrete_function(spec, tf.TensorSpec([], tf.int32)).graph

    def most_steps(self, iterator, open_ended, bounds=None):
        """Return how many steps one execution may take; None for any number.

        Args:
            iterator: as for `train_steps`, which is traced for it, once.
            open_ended: the same.
            bounds: the same.
        """
        trace = getattr(self.train_steps, "get_concrete_function", None)
        if trace is None or self._strategy.num_replicas_in_sync == 1:
            return None
        if not self._is_traced:
            votes = tf.zeros([NUM_VOTES], tf.int64)
            trace(iterator, tf.constant(1), votes, open_ended=open_ended, bounds=bounds)
            self._is_traced = True
        return 1 if self._reduction.gathers_rows else None

    def in_order(self, logs, training):
        """Return numbers by name in the order in which the user's own step returned them."""
        step = self._steps[training]
        return step.in_order(logs) if isinstance(step, own_step.OwnStep) else logs

    def _train_steps(self, iterator, num_steps, votes, open_ended=False, bounds=None):
        """Take `num_steps` steps, or fewer where open-ended data end or a step is bad before.

        Args:
            iterator: of this worker's `Batches.dataset`.
            num_steps: an int32 scalar.
            votes: an int64 vector that is summed over all workers.
            open_ended: the data may end at any step, a Python bool.
            bounds: the `bad_steps.Bounds` that a good step keeps; None to look at no step.

        Returns:
            A dict: the `metrics` by name, the `reports` of the steps by name (sums over
            examples, or the last), the `steps` taken, the `examples` seen, the `learning_rate`
            of the next step, and the sum of `votes`, where two more entries stand for the
            fingerprint of the data and its square. With bounds also what was `bad` about the
            last step, 0 for nothing, and its `loss`; a bad one counts among the steps, but not
            in examples and reports.
        """
        taken = self._loop(iterator, num_steps, True, open_ended, bounds)
        print_ = taken.pop("fingerprint", tf.constant(0, tf.int64)) % 2**20
        rate = getattr(getattr(self._model, "optimizer", None), "learning_rate", 0.0)
        return {
            **taken,
            "metrics": self._metrics(True),
            "learning_rate": tf.convert_to_tensor(rate),
            "votes": self._agree(tf.concat([votes, [print_, print_ * print_]], 0)),
        }

    def _test_steps(self, iterator, num_steps, sums, open_ended=False):
        """Score `num_steps` batches; return a dict of `reports`, `steps` and `examples`.

        The reports go on from `sums`, those of the batches before, and `examples` do not.
        """
        return self._loop(iterator, num_steps, False, open_ended, reports=sums)

    def sums_of(self, reports):
        """Return reports of scoring as `test_steps` goes on from them; zeros for none."""
        if not reports:
            return tf.zeros([len(self._report_names[False])])
        return tf.stack(list(reports.values()))

    def _step_on_batch(self, share, global_count, training):
        """Take one step on a batch at hand; return metrics and reports by name."""
        report, names = self._run(share, global_count, training)
        return {**self._metrics(training), **dict(zip(names, tf.unstack(report), strict=True))}

    def _metrics(self, training):
        """Numbers that metrics hold, over all replicas."""
        step = self._steps[training]
        own = isinstance(step, own_step.OwnStep)
        return step.metrics() if own else self._model.get_metrics_result()

    def _loop(self, iterator, num_steps, training, open_ended, bounds=None, reports=None):
        """Take steps in the graph, up to the first bad one; reports go on from earlier ones."""
        names = self._report_names[training]
        # Each loop variable costs in every step, so they are there only if needed.
        totals = {"examples": tf.constant(0, tf.int64)}
        if names:
            totals["reports"] = tf.zeros([len(names)]) if reports is None else reports
        if elements.fingerprint_of(iterator.element_spec) is not None:
            totals["fingerprint"] = tf.constant(0, tf.int64)
        if bounds is not None:
            totals |= {"bad": tf.constant(0), "loss": tf.constant(0.0)}

        def add(element, totals):
            share, count = elements.with_count(element)
            if bounds is None:
                report, verdict = self._run(share, count, training)[0], {}
            else:
                report, verdict = self._run_judged(share, count, bounds)
            examples = tf.cast(count, tf.int64)
            added = {"examples": totals["examples"] + examples}
            if names:
                mean = report if self._reports_last else report * tf.cast(count, tf.float32)
                added["reports"] = mean if self._reports_last else totals["reports"] + mean
            if verdict:
                is_bad = verdict["bad"] > 0
                added = {n: tf.where(is_bad, totals[n], value) for n, value in added.items()}
            if "fingerprint" in totals:
                added["fingerprint"] = totals["fingerprint"] + elements.fingerprint_of(element)
            return added | verdict

        def goes_on(step, totals):
            more = step < num_steps
            return more if bounds is None else more & (totals["bad"] == 0)

        def take(step, totals):
            return step + 1, add(next(iterator), totals)

        def take_if_any(step, more, totals):
            optional = iterator.get_next_as_optional()
            return tf.cond(
                optional.has_value(),
                lambda: (step + 1, True, add(optional.get_value(), totals)),
                lambda: (step, False, totals),
            )

        if open_ended:
            steps, _, totals = tf.while_loop(
                lambda step, more, totals: more & goes_on(step, totals),
                take_if_any,
                (tf.constant(0), tf.constant(True), totals),
            )
        else:
            steps, totals = tf.while_loop(goes_on, take, (tf.constant(0), totals))
        values = tf.unstack(totals["reports"]) if names else []
        return {**totals, "steps": steps, "reports": dict(zip(names, values, strict=True))}

    def _run_judged(self, share, global_count, bounds):
        """Take one step, and undo it where that is asked for and it was bad.

        Returns:
            The vector of its reports, and a dict of what was `bad`, and the `loss`.
        """
        held = bad_steps.hold(self._components) if bounds.undoes else None
        values, names = self._run(share, global_count, True, judged=True)
        own = len(self._report_names[True])
        by_name = list(zip(names, tf.unstack(values), strict=True))
        bad, loss = bad_steps.judge(dict(by_name[:own]), dict(by_name[own:]), bounds)
        if bounds.undoes:
            bad_steps.undo_if(bad, self._components, held)
        return values[:own], {"bad": bad, "loss": loss}

    def _run(self, share, global_count, training, judged=False):
        """Run one step on all replicas; return a vector of its reports, and their names.

        Where it is `judged`, what that needs follows behind the reports.
        """
        names, step, num_own = [], self._steps[training], []

        def replica(share, global_count):
            before = bad_steps.losses_before(self._model) if judged else None
            report = step(*self._cut(share, global_count))
            num_own[:] = [len(report)]
            if judged:
                report = {**report, **bad_steps.numbers_after(self._model, before)}
            names[:] = report
            return tf.stack([report[name] for name in names]) if names else tf.zeros([0])

        own = isinstance(step, own_step.OwnStep)
        with step.watched() if own else contextlib.nullcontext():
            report = self._strategy.run(replica, args=(share, global_count))
        # With nothing to report there is nothing to sum: no collective in the step.
        report = self._strategy.reduce("SUM", report, axis=None) if names else tf.zeros([0])
        self._report_names[training] = tuple(names[: num_own[0]])
        return report, tuple(names)

    def _predict_step(self, share, global_count):
        """Return the outputs for one global batch, in its order, on every worker."""
        outputs = self._strategy.run(
            lambda s, n: step_lib.predict_replica(self._model, *self._cut(s, n)),
            args=(share, global_count),
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

    def _cut(self, share, global_count):
        replicas = self._shard.replicas_per_worker
        return step_lib.cut_share(share, global_count, replicas, self._reduction)
