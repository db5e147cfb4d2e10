"""Rows of a batch, whatever holds them: dense, ragged and sparse tensors, nested, or `None`.

Owns counting, picking and slicing along the first axis, for graphs. What counts as a nested
structure is what `tf.nest` says, with `None` for a part that is absent.
"""

import tensorflow as tf


def count_rows(structure):
    """Return the number of examples in a batch, as an int32 scalar.

    Args:
        structure: nested tensors with one first axis; `None` parts are passed over.
    """
    part = next(t for t in tf.nest.flatten(structure) if t is not None)
    if isinstance(part, tf.RaggedTensor):
        return tf.cast(part.nrows(), tf.int32)
    if isinstance(part, tf.SparseTensor):
        return tf.cast(part.dense_shape[0], tf.int32)
    return tf.shape(part)[0]


def take_rows(structure, positions):
    """Return the examples at some positions, in that order.

    Args:
        structure: nested tensors with one first axis.
        positions: int64 vector; a position may come more than once.
    """

    def take(part):
        if part is None:
            return None
        if isinstance(part, tf.SparseTensor):
            return _take_sparse(part, positions)
        return tf.gather(part, positions)

    return tf.nest.map_structure(take, structure)


def slice_rows(structure, begin, size):
    """Return `size` examples in a row, from position `begin` on.

    Args:
        structure: nested tensors with one first axis.
        begin: int32 or int64 scalar.
        size: scalar of the same type; `begin + size` is at most the number of examples.
    """

    def cut(part):
        if part is None:
            return None
        if isinstance(part, tf.SparseTensor):
            return _slice_sparse(part, tf.cast(begin, tf.int64), tf.cast(size, tf.int64))
        return part[begin : begin + size]

    return tf.nest.map_structure(cut, structure)


def batch_spec(structure):
    """Return the spec of batches of any size.

    Args:
        structure: nested specs of tensors; of `tf.experimental.Optional` for absent parts.

    Returns:
        Nested specs whose first axis is None; `None` for a part that is absent.
    """

    def free(spec):
        if isinstance(spec, (tf.OptionalSpec, tf.NoneTensorSpec)):
            return None
        if isinstance(spec, tf.RaggedTensorSpec):
            return tf.RaggedTensorSpec(
                [None, *spec.shape[1:]], spec.dtype, spec.ragged_rank, spec.row_splits_dtype
            )
        if isinstance(spec, (tf.TensorSpec, tf.SparseTensorSpec)):
            return type(spec)([None, *spec.shape[1:]], spec.dtype)
        return spec

    return tf.nest.map_structure(free, structure)


def without_optionals(structure):
    """Return the structure with `None` for each `tf.experimental.Optional`.

    Keras stands an empty Optional where a part of a batch is absent.
    """
    return tf.nest.map_structure(
        lambda part: None if isinstance(part, tf.experimental.Optional) else part, structure
    )


def _take_sparse(sparse, positions):
    """Rows of a sparse tensor, by way of the ragged numbers of each row's values."""
    sparse = tf.sparse.reorder(sparse)
    values_of_row = tf.RaggedTensor.from_value_rowids(
        tf.range(tf.size(sparse.values)), sparse.indices[:, 0], nrows=sparse.dense_shape[0]
    )
    taken = tf.gather(values_of_row, positions)
    columns = tf.gather(sparse.indices[:, 1:], taken.flat_values)
    indices = tf.concat([taken.value_rowids()[:, None], columns], 1)
    values = tf.gather(sparse.values, taken.flat_values)
    return tf.SparseTensor(indices, values, _shape(sparse, tf.size(positions, tf.int64)))


def _slice_sparse(sparse, begin, size):
    rows = sparse.indices[:, 0]
    inside = tf.logical_and(rows >= begin, rows < begin + size)
    indices = tf.boolean_mask(sparse.indices, inside)
    offset = tf.one_hot(0, tf.shape(indices)[1], dtype=tf.int64) * begin
    return tf.SparseTensor(
        indices - offset, tf.boolean_mask(sparse.values, inside), _shape(sparse, size)
    )


def _shape(sparse, num_rows):
    """The dense shape with another number of rows; sizes that are known stay known."""
    known = sparse.shape.as_list()
    sizes = [sparse.dense_shape[i] if n is None else n for i, n in enumerate(known)]
    return tf.stack([tf.cast(n, tf.int64) for n in (num_rows, *sizes[1:])])
