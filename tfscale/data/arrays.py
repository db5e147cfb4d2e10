"""Arrays as a random access source: held once in memory, in their own small types.

Owns the passage from NumPy to tensors without a second copy where that is possible, and the
checks of arrays from Python. Casting to float32 happens in the transforms, a batch at a time.
"""

import math

import numpy as np
import tensorflow as tf

from tfscale.data import checks

ALIGNMENT_BYTES = 64  # what TensorFlow's CPU kernels demand of memory they did not allocate


class ArraySource:
    """Examples in memory, read by index.

    Args:
        elements: `(x,)`, `(x, y)` or `(x, y, sample_weight)`; each part an array or a nest of
            dicts and tuples of arrays, all of the same length.
    """

    def __init__(self, elements):
        self.num_examples = len(tf.nest.flatten(elements)[0])
        self.elements = tf.nest.map_structure(as_tensor, elements)

    def read(self, indices):
        """Return the examples at these positions (int64 vector), as tensors; for the graph."""
        return tf.nest.map_structure(lambda t: tf.gather(t, indices), self.elements)

    def content(self):
        """Yield bytes that tell this source from another: types and some examples."""
        picks = np.unique(np.linspace(0, self.num_examples - 1, 64).astype(np.int64))
        for tensor in tf.nest.flatten(self.elements):
            yield tf.io.serialize_tensor(tf.gather(tensor, picks)).numpy()


def empty_aligned(shape, dtype):
    """Return a NumPy array, not filled, whose memory TensorFlow can use as it is.

    Args:
        shape: tuple of ints.
        dtype: a NumPy type of fixed size.

    Returns:
        An array that `as_tensor` turns into a tensor without a copy.
    """
    dtype = np.dtype(dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT_BYTES
    return buffer[start : start + num_bytes].view(dtype).reshape(shape)


def as_tensor(array):
    """Return a tensor in host memory, sharing the array's memory where its alignment allows.

    TensorFlow's own conversion always copies. An array that is shared must not be changed
    afterwards; those of `empty_aligned` are shared.
    """
    with tf.device("CPU:0"):
        shareable = (
            array.flags.c_contiguous
            and array.flags.writeable
            and array.size
            and array.dtype.kind in "iuf"
            and array.ctypes.data % ALIGNMENT_BYTES == 0
        )
        if shareable:
            return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
        return tf.convert_to_tensor(array)


def checked_elements(x, y, sample_weight):
    """Return `(x,)`, `(x, y)` or `(x, y, sample_weight)` with arrays for leaves, or refuse.

    Args:
        x, y, sample_weight: arrays, or nests of dicts, tuples and lists of arrays; lists become
            tuples. `None` for what is absent.

    Returns:
        A tuple whose leaves are NumPy arrays of one length.

    Raises:
        ValueError: if lengths differ, an array is empty, or its values are no finite numbers.
    """
    if y is None and sample_weight is not None:
        raise ValueError(
            "`sample_weight` needs `y`: it weighs the loss of the labels. Received: y=None with "
            "a sample_weight. Give both or neither."
        )
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    parts = {k: _arrays(k, v) for k, v in parts.items() if v is not None}
    lengths = {
        f"{name}{_path(path)}": len(a) for name, part in parts.items() for path, a in _flatten(part)
    }
    if len(set(lengths.values())) != 1:
        listing = ", ".join(f"{k}: {v}" for k, v in lengths.items())
        raise ValueError(
            "All arrays must have the same length, the number of examples. Received: "
            f"{listing}. Cut them to one length."
        )
    if 0 in lengths.values():
        raise ValueError(
            "There must be at least one example. Received: arrays of length 0. "
            "Check how `x` was made."
        )
    return tuple(parts.values())


def _arrays(name, part):
    """Lists to tuples, leaves to checked arrays."""
    if isinstance(part, dict):
        return {key: _arrays(f"{name}[{key!r}]", value) for key, value in part.items()}
    if isinstance(part, (tuple, list)) and part and not np.isscalar(part[0]):
        return tuple(_arrays(f"{name}[{i}]", value) for i, value in enumerate(part))
    array = np.asarray(part)
    if array.ndim == 0 or array.dtype.kind not in "biufSU":
        raise ValueError(
            f"`{name}` must be an array of numbers or strings whose first axis counts examples. "
            f"Received: type {type(part).__name__}, dtype {array.dtype}, shape {array.shape}. "
            "Convert it with numpy.asarray(..., dtype=...)."
        )
    checks.check_finite(array, f"`{name}`")
    return array


def _flatten(part, path=()):
    if isinstance(part, dict):
        return [pair for k, v in part.items() for pair in _flatten(v, (*path, k))]
    if isinstance(part, tuple):
        return [pair for i, v in enumerate(part) for pair in _flatten(v, (*path, i))]
    return [(path, part)]


def _path(path):
    return "".join(f"[{key!r}]" for key in path)
