"""The graphs a run is made of: k steps, a pass over test data, one prediction, one agreement.

Each is a `tf.function` around `strategy.run` of a function in `step.py`. The host calls one, and
waits for the device once: the numbers it needs come back together.
"""

import contextlib
import functools

import tensorflow as tf

from tfscale.data import elements
from tfscale.training import bad_steps, own_step, probe, saving, state, turns, weight_sums
from tfscale.training import step as step_lib

NUM_VOTES = 5  # of the host, in every execution
NUM_ASKED = 4  # what is to be measured, how long this worker's host took before, and the step


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
        self.weight_histograms = plain(lambda: [probe.histogram(w) for w in self._weights()])
        self.gradient_paths = ()  # of the variables that the histograms of gradients are of

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

    def prepare_histograms(self, spec):
        """Find the variables that have gradients, in a step on batches of a spec."""
        if not self.gradient_paths:
            self._trace_once(spec, True, is_watched=True)

    def weight_paths(self):
        """Return the paths of the variables whose norm and histograms there are."""
        return [v.path for v in self._model.trainable_variables if _is_floating(v)]

    def _trace_once(self, spec, training, is_watched=False):
        def step(share, count):
            watched = None
            if is_watched:
                watched = probe.Step(tf.constant(False))
                watched.begin()
                watched.has(share)
            return self._run(share, count, training, watched)[0]

        once = tf.function(step, autograph=False)
        return once.get_concrete_function(spec, tf.TensorSpec([], tf.int32)).graph

    def most_steps(self, iterator, **options):
        """Return how many steps one execution may take; None for any number.

        Args:
            iterator: as for `train_steps`, which is traced for it, once.
            **options: the same as for `train_steps`.
        """
        trace = getattr(self.train_steps, "get_concrete_function", None)
        if trace is None or self._strategy.num_replicas_in_sync == 1:
            return None
        if not self._is_traced:
            votes = tf.zeros([NUM_VOTES], tf.int64)
            trace(iterator, tf.constant(1), votes, **options)
            self._is_traced = True
        return 1 if self._reduction.gathers_rows else None

    def in_order(self, logs, training):
        """Return numbers by name in the order in which the user's own step returned them."""
        step = self._steps[training]
        return step.in_order(logs) if isinstance(step, own_step.OwnStep) else logs

    def _train_steps(
        self, iterator, num_steps, votes, open_ended=False, bounds=None, asked=None, draws=False
    ):
        """Take `num_steps` steps, or fewer where open-ended data end or a step is bad before.

        Args:
            iterator: of this worker's `Batches.dataset`.
            num_steps: an int32 scalar.
            votes: an int64 vector that is summed over all workers.
            open_ended: the data may end at any step, a Python bool.
            bounds: the `bad_steps.Bounds` that a good step keeps; None to look at no step.
            asked: to measure the steps, an int64 vector of `NUM_ASKED`: whether the gradients of
                the last one are due, whether their histograms are, the nanoseconds that this
                worker's host took since the steps before, and how many steps the run has taken.
                None to measure nothing.
            draws: histograms may be due, a Python bool.

        Returns:
            A dict: the `metrics` by name, the `reports` of the steps by name (sums over
            examples, or the last), the `steps` taken, the `examples` seen, the `learning_rate`
            of the next step, and the sum of `votes`, where two more entries stand for the
            fingerprint of the data and its square. With bounds also what was `bad` about the
            last step, 0 for nothing, and its `loss`; a bad one counts among the steps, but not
            in examples and reports. With `asked` also the `gradient_norm` of the last step (0
            where it is not due) and the `weight_norm` after it (then NaN); `workers`, int64 of
            shape (workers, 4): nanoseconds that each waited for batches, from there to gradients,
            from there to their sums, and on its host; and the `histograms`.
        """
        taken = self._loop(iterator, num_steps, True, open_ended, bounds, None, asked, draws)
        workers = []
        if asked is not None:
            taken["weight_norm"] = tf.cond(
                asked[0] > 0,
                lambda: tf.sqrt(probe.squares(self._weights())),
                lambda: tf.constant(float("nan")),
            )
            taken["gradient_norm"], mine = probe.sums(taken.pop("measured"), asked)
            place = tf.one_hot(self._shard.worker, self._shard.num_workers, dtype=tf.int64)
            workers = [tf.reshape(place[:, None] * mine, [-1])]
        print_ = taken.pop("fingerprint", tf.constant(0, tf.int64)) % 2**20
        rate = getattr(getattr(self._model, "optimizer", None), "learning_rate", 0.0)
        votes = self._agree(tf.concat([votes, [print_, print_ * print_], *workers], 0))
        if workers:
            taken["workers"] = tf.reshape(votes[NUM_VOTES + 2 :], [-1, 4])
        return {
            **taken,
            "metrics": self._metrics(True),
            "learning_rate": tf.convert_to_tensor(rate),
            "votes": votes[: NUM_VOTES + 2],
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

    def _loop(
        self,
        iterator,
        num_steps,
        training,
        open_ended,
        bounds=None,
        reports=None,
        asked=None,
        draws=False,
    ):
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
        if asked is not None:
            totals |= probe.nothing(len(self.gradient_paths) if draws else None)

        def add(element, totals, watched):
            share, count = elements.with_count(element)
            if watched is not None:
                watched.has(share)
            if bounds is None:
                report, verdict = self._run(share, count, training, watched)[0], {}
            else:
                report, verdict = self._run_judged(share, count, bounds, watched)
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
            if watched is not None:
                added |= watched.results
                added["measured"] += totals["measured"]
            return added | verdict

        watch = probe.watching(asked, num_steps, draws)
        steps, totals = turns.take(iterator, num_steps, add, totals, watch, open_ended)
        values = tf.unstack(totals["reports"]) if names else []
        return {**totals, "steps": steps, "reports": dict(zip(names, values, strict=True))}

    def _weights(self):
        """The weights that are trained and hold numbers of floating point, on this worker."""
        local = self._strategy.experimental_local_results
        trained = [v.value for v in self._model.trainable_variables if _is_floating(v)]
        return [tf.convert_to_tensor(local(v)[0]) for v in trained]

    def _run_judged(self, share, global_count, bounds, watched=None):
        """Take one step, and undo it where that is asked for and it was bad.

        Returns:
            The vector of its reports, and a dict of what was `bad`, and the `loss`.
        """
        held = bad_steps.hold(self._components) if bounds.undoes else None
        values, names = self._run(share, global_count, True, watched, judged=True)
        own = len(self._report_names[True])
        by_name = list(zip(names, tf.unstack(values), strict=True))
        bad, loss = bad_steps.judge(dict(by_name[:own]), dict(by_name[own:]), bounds)
        if bounds.undoes:
            bad_steps.undo_if(bad, self._components, held)
        return values[:own], {"bad": bad, "loss": loss}

    def _run(self, share, global_count, training, watched=None, judged=False):
        """Run one step on all replicas; return a vector of its reports, and their names.

        Where it is `judged`, what that needs follows behind the reports. The `probe.Step`, if
        there is one, gets what the replicas measured.
        """
        names, step, num_own = [], self._steps[training], []

        def replica(share, global_count):
            before = bad_steps.losses_before(self._model) if judged else None
            measured = watched and watched.on_replica()
            with probe.measuring(measured):
                report = step(*self._cut(share, global_count))
            num_own[:] = [len(report)]
            if judged:
                report = {**report, **bad_steps.numbers_after(self._model, before)}
            names[:] = report
            stacked = tf.stack([report[name] for name in names]) if names else tf.zeros([0])
            if not watched:
                return stacked, {}
            self.gradient_paths = tuple(measured.paths)
            return stacked, measured.results()

        own = isinstance(step, own_step.OwnStep)
        with step.watched() if own else contextlib.nullcontext():
            report, found = self._strategy.run(replica, args=(share, global_count))
        if watched:
            watched.end(self._strategy.experimental_local_results(found))
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


def _is_floating(variable):
    return tf.as_dtype(variable.dtype).is_floating
