"""What a step tells about itself from inside the graph: when its gradients are there, and how long.

Owns the clock readings around the reduction, the norm of the reduced gradients and their
histograms. They stand beside the step: nothing in it waits for them or is computed from them.
What becomes of the numbers on the host is in `measures.py`.
"""

import contextlib
import functools
import threading
import time

import numpy as np
import tensorflow as tf

from tfscale.strategy import is_deterministic

BINS = 30  # of a histogram
# Deterministic operations refuse TensorFlow's clock. Python's costs some 0.05 ms a reading, so
# there it is read in one of so many steps: by its number, so that each run reads it in the same.
_DETERMINISTIC_EVERY = 16
_ZERO = np.float64(0)
_active = threading.local()


class Step:
    """What is measured of one step; filled while it is traced.

    Args:
        is_due: a bool tensor: measure the gradients of this step.
        draws: a bool tensor: make histograms of them; None where none is ever made.
        reads: a bool tensor: read the clock; None to read it in each step.
    """

    def __init__(self, is_due, draws=None, reads=None):
        self._is_due, self._draws, self._reads = is_due, draws, reads
        self.results = {}

    def on_replica(self):
        """Return what measures one replica's step, to be made in the replica."""
        return Replica(self._is_due, self._draws, self._reads)

    def begin(self):
        """Read the clock as the step begins, before it asks for its batch."""
        self._begun = _now(self._reads)

    def has(self, element):
        """Read the clock when the batch is there."""
        with tf.control_dependencies(_tensors(element)):
            self._fed = _now(self._reads)

    def end(self, results):
        """Take what the replicas of this process measured.

        `results` are then a dict of tensors: `measured`, float64 of shape (4,): seconds of
        waiting for the batch, from there to the gradients, from there to their sums; and the
        norm of the gradients, 0 where it was not due; and `histograms`, where those are made.
        Sums over workers on the way to the gradients, such as those of a synchronized
        normalization, count with the sums of the gradients: there a worker waits for the others.
        Few operations, because each costs in every step.

        Args:
            results: what `Replica.results` returned, one a replica.
        """
        clocks = [result.pop("clocks") for result in results]
        clocks = [functools.reduce(tf.maximum, one) for one in zip(*clocks, strict=True)]
        waits = [result.pop("waits") for result in results]
        first = results[0]
        norm = first.pop("norm")
        if len(clocks) == 2:  # the step has one optimizer
            ends, begins = [self._fed, *clocks, norm], [self._begun, self._fed, clocks[0], _ZERO]
            measured = tf.stack(ends) - tf.stack(begins)
        else:
            ready, summed = clocks[0::2], clocks[1::2]
            exchange = sum((s - r for r, s in zip(ready, summed, strict=True)), _ZERO)
            parts = zip([self._fed, *summed], ready, strict=False)
            compute = sum((r - before for before, r in parts), _ZERO)
            measured = tf.stack([self._fed - self._begun, compute, exchange, norm])
        if all(waits):
            waited = functools.reduce(tf.minimum, [tf.add_n(one) for one in waits])
            waited = tf.minimum(waited, measured[1])
            measured += tf.stack([_ZERO, -waited, waited, _ZERO])
        self.results = {**first, "measured": measured}


def watching(asked, num_steps, draws):
    """Return what makes the `Step` of each turn of a loop, given its number.

    Args:
        asked: an int64 vector: whether the gradients of the last step are due, whether their
            histograms are, nanoseconds of the host, and the run's step before the first turn. None
            to measure nothing.
        num_steps: an int32 scalar, the turns that the loop takes.
        draws: histograms may be due, a Python bool.
    """
    if asked is None:
        return lambda number: None
    last = [tf.where(due > 0, num_steps - 1, -1) for due in tf.unstack(asked[:2])]
    every = steps_between_readings()

    def watch(number):
        reads = None
        if every > 1:
            reads = (asked[3] + tf.cast(number, tf.int64)) % every == 0
        step = Step(number == last[0], number == last[1] if draws else None, reads)
        step.begin()
        return step

    return watch


def nothing(num_histograms=None):
    """Return what has been measured before the first step, as `Step.results` has it."""
    found = {"measured": tf.zeros([4], tf.float64)}
    if num_histograms is not None:
        found["histograms"] = tf.zeros([num_histograms, BINS + 2], tf.float64)
    return found


def sums(measured, asked):
    """Return the norm of the gradients, and int64 nanoseconds of this worker by part.

    Args:
        measured: the sum over the steps.
        asked: as for `watching`.
    """
    return measured[3], tf.concat([tf.cast(measured[:3] * 1e9, tf.int64), asked[2:3]], 0)


class Replica:
    """What is measured of one replica's step; filled while it is traced.

    Args:
        is_due: as for `Step`.
        draws: as for `Step`.
        reads: as for `Step`.
    """

    def __init__(self, is_due, draws=None, reads=None):
        self._is_due, self._draws, self._reads = is_due, draws, reads
        self._context = _context()
        self._clocks, self._seen, self.paths = [], [], []
        self._waits, self._is_reducing = [], False

    def around(self, reduce, gradients, variables, scale=None):
        """Reduce gradients, and see when they were there and when their sums were.

        Args:
            reduce: gives the sums of a list of gradients; None where there is nothing to sum.
            gradients: tensors or `tf.IndexedSlices`, None where a variable has none.
            variables: those they are of.
            scale: what the loss was multiplied with, a scalar; None for 1.

        Returns:
            The sums.
        """
        if _context() != self._context:  # a condition or a compiled part, whose tensors stay there
            return gradients if reduce is None else reduce(gradients)
        ready = _clock_after(gradients, self._reads)
        sums, summed = gradients, ready
        if reduce is not None:
            self._is_reducing = True
            sums = reduce(gradients)
            self._is_reducing = False
            summed = _clock_after(sums, self._reads)
        self._clocks += [ready, summed]
        present = [(g, v) for g, v in zip(sums, variables, strict=True) if g is not None]
        self._seen += [(gradient, scale) for gradient, _ in present]
        self.paths += [variable.path for _, variable in present]
        return sums

    @contextlib.contextmanager
    def seeing_sums(self):
        """Inside, what the step sums over the workers before its gradients is measured too."""
        context = tf.distribute.get_replica_context()
        if not isinstance(context.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            yield
            return
        sum_up = context.all_reduce

        def all_reduce(reduce_op, value, options=None):
            if self._is_reducing or _context() != self._context:
                return sum_up(reduce_op, value, options)
            before = _clock_after(value, self._reads)
            found = sum_up(reduce_op, value, options)
            self._waits.append(_clock_after(found, self._reads) - before)
            return found

        # Of this context alone, which is of this step: gradients of such sums come here as well.
        context.all_reduce = all_reduce
        try:
            yield
        finally:
            del context.all_reduce

    def results(self):
        """Return the measured numbers, a dict of tensors for `Step.end`."""
        seen, self._seen = self._seen, []
        found = {"clocks": self._clocks, "waits": self._waits}
        found["norm"] = tf.constant(0.0, tf.float64)
        if seen:
            nothing = found["norm"]
            found["norm"] = tf.cond(self._is_due, lambda: _norm(seen), lambda: nothing)
        if self._draws is not None and not seen:
            found["histograms"] = tf.zeros([0, BINS + 2], tf.float64)
        elif self._draws is not None:
            found["histograms"] = tf.cond(
                self._draws,
                lambda: _histograms(seen),
                lambda: tf.zeros([len(seen), BINS + 2], tf.float64),
            )
        return found


def current():
    """Return the `Replica` whose step runs in this thread; None where nothing is measured."""
    return getattr(_active, "replica", None)


@contextlib.contextmanager
def measuring(replica):
    """Inside, the calling thread's step is measured by a `Replica`; by none with None."""
    previous, _active.replica = current(), replica
    try:
        with contextlib.nullcontext() if replica is None else replica.seeing_sums():
            yield
    finally:
        _active.replica = previous


def around(reduce, optimizer, gradients, variables):
    """Reduce gradients, measured if somebody measures; as `Replica.around`."""
    replica = current()
    if replica is None:
        return gradients if reduce is None else reduce(gradients)
    scale = optimizer.scale_loss(tf.constant(1.0))
    return replica.around(reduce, gradients, variables, scale)


def squares(tensors):
    """Return the sum of all squares in tensors, a float32 scalar."""
    halves = [tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors]
    return 2 * tf.add_n(halves) if halves else tf.constant(0.0)


def steps_between_readings():
    """Return of how many steps one reads the clock: that whose number is a multiple."""
    return _DETERMINISTIC_EVERY if is_deterministic() else 1


def num_readings(first, steps):
    """Return in how many of the steps first, first + 1, ... the clock is read."""
    every = steps_between_readings()
    return -(-(first + steps) // every) + (-first // every)


def _now(reads):
    """The clock in a step that reads it; otherwise 0."""
    if not is_deterministic():
        return tf.timestamp()

    def read():
        return tf.ensure_shape(tf.numpy_function(time.time, [], tf.float64), [])

    return read() if reads is None else tf.cond(reads, read, lambda: tf.constant(_ZERO))


def _context():
    return "eager" if tf.executing_eagerly() else id(tf.compat.v1.get_default_graph())


def _tensors(nested):
    """Tensors of a nested structure of them, of slices and of ragged ones."""
    return [t for t in tf.nest.flatten(nested, expand_composites=True) if t is not None]


def _clock_after(nested, reads):
    with tf.control_dependencies(_tensors(nested)):
        return _now(reads)


def _dense_rows(gradient):
    """A gradient's values, each row once."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    rows, places = tf.unique(gradient.indices)
    return tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows))


def _norm(seen):
    """The norm of all gradients together, of the loss as it is without a scale."""
    by_scale = {}
    for gradient, scale in seen:
        by_scale.setdefault(id(scale), (scale, []))[1].append(_dense_rows(gradient))
    parts = [squares(gradients) / scale**2 for scale, gradients in by_scale.values()]
    return tf.cast(tf.sqrt(tf.add_n(parts)), tf.float64)


def _histograms(seen):
    """For each gradient its least and greatest number, and how many lie in each of the bins."""
    return tf.stack([histogram(_dense_rows(g) / tf.cast(scale, g.dtype)) for g, scale in seen])


def histogram(tensor):
    """Return a float64 vector: least, greatest, and the counts in `BINS` equal bins between.

    Where a number is not finite the first two are not, and the counts mean nothing.
    """
    values = tf.cast(tf.reshape(tensor, [-1]), tf.float32)
    ends = tf.stack([tf.reduce_min(values), tf.reduce_max(values)])
    finite = tf.reduce_all(tf.math.is_finite(values))
    low, high = tf.unstack(tf.where(finite, ends, [0.0, 1.0]))
    high = tf.maximum(high, low + tf.maximum(tf.abs(low) * 1e-5, 1e-30))  # of equal numbers, too
    values = tf.where(tf.math.is_finite(values), values, 0.0)
    counts = tf.histogram_fixed_width(values, [low, high], BINS, tf.int32)
    ends = tf.where(finite, tf.stack([low, high]), float("nan"))
    return tf.cast(tf.concat([ends, tf.cast(counts, tf.float32)], 0), tf.float64)
