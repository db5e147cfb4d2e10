"""The share of a global batch that one replica works on, and which share this thread has.

Each loss that a replica computes is a mean over its share; the share says by what it counts.
"""

import contextlib
import dataclasses
import threading

import tensorflow as tf
from keras.src import backend

from tfscale.data import rows as rows_lib

_active = threading.local()


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of one global batch that one replica works on.

    A global batch smaller than the number of replicas, which only the end of an epoch brings, is
    given to every replica in whole, because kernels do not agree on batches of no examples. Then
    the rows of all replicas are `num_replicas` times the batch, and only `counted` of them enter
    the metrics.

    Args:
        global_count: examples of the global batch, an int32 scalar.
        rows: examples that this replica computes, an int32 scalar, at least 1.
        all_rows: rows of all replicas together, an int32 scalar.
        num_replicas: replicas that share the batch.
        counted: examples that this replica counts for, an int32 scalar, or `None` for `rows`.
        first_counted: the first of them among the rows, an int32 scalar.
        reduction: how gradients are summed over the replicas.
        loss_is_weighted: the step weighs its loss itself, so its gradients are not weighed again.
    """

    global_count: tf.Tensor
    rows: tf.Tensor
    all_rows: tf.Tensor
    num_replicas: int
    counted: tf.Tensor | None = None
    first_counted: tf.Tensor | None = None
    reduction: object = None
    loss_is_weighted: bool = False

    def weight(self, dtype="float32"):
        """Return what this replica's mean counts for in the global mean."""
        return tf.cast(self.rows, dtype) / tf.cast(self.all_rows, dtype)

    def of_counted(self):
        """Return the share of what `count` returns."""
        if self.counted is None:
            return self
        return dataclasses.replace(self, rows=self.counted, all_rows=self.global_count)

    def count(self, tensors):
        """Return the part of a nested structure of rows that enters the metrics."""
        if self.counted is None:
            return tensors
        return tf.nest.map_structure(self._counted_part, tensors)

    def count_if_rows(self, values):
        """As `count`, and the share to go on with, for values that may be no rows.

        Args:
            values: a nested structure; what is no tensor, or has another first axis, stays.
        """
        if self.counted is None or self.all_rows is self.global_count:
            return values, self
        return tf.nest.map_structure(self._counted_if_rows, values), self.of_counted()

    def _counted_if_rows(self, part):
        if not isinstance(part, tf.Tensor) or part.shape.rank == 0:
            return part
        size = tf.shape(part)[0]
        is_rows = size == self.rows
        mask = backend.get_keras_mask(part)
        begin = tf.where(is_rows, self.first_counted, 0)
        part, mask = rows_lib.slice_rows((part, mask), begin, tf.where(is_rows, self.counted, size))
        if mask is not None:
            backend.set_keras_mask(part, mask)
        return part

    def _counted_part(self, part):
        """Rows of one tensor, and of the mask that Keras has attached to it."""
        mask = None if part is None else backend.get_keras_mask(part)
        part, mask = rows_lib.slice_rows((part, mask), self.first_counted, self.counted)
        if mask is not None:
            backend.set_keras_mask(part, mask)
        return part


def current_share():
    """Return the `Share` of the replica whose step runs in this thread; None outside of it."""
    return getattr(_active, "share", None)


@contextlib.contextmanager
def working_on(share):
    """Inside, the calling thread's replica has this `Share`; with None it has none."""
    previous, _active.share = current_share(), share
    try:
        yield
    finally:
        _active.share = previous
