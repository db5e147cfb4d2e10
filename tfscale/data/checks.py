"""Refusals of bad data before work starts: the rule, what came, the way out.

Owns the checks that several sources share. It reads NumPy arrays and plain values only.
"""

import numpy as np

_CHUNK_BYTES = 2**24  # looked at together, so that a check never holds a copy of the data


def check_global_batch_size(global_batch_size):
    """Raise ValueError unless the global batch holds at least one example."""
    if isinstance(global_batch_size, bool) or not isinstance(global_batch_size, (int, np.integer)):
        raise ValueError(
            "`global_batch_size` must be a whole number. Received: "
            f"global_batch_size={global_batch_size!r}. Use for example 32."
        )
    if global_batch_size < 1:
        raise ValueError(
            "`global_batch_size` must be at least 1. Received: "
            f"global_batch_size={global_batch_size}. Use the number of replicas or more."
        )


def check_enough_replicas(global_batch_size, shard):
    """Raise ValueError if some replica could get no example of a full global batch."""
    if global_batch_size is not None and global_batch_size < shard.num_replicas:
        raise ValueError(
            "A global batch (`data.global_batch_size`, in Keras `batch_size`) must be at least the "
            f"number of replicas. Received: global_batch_size={global_batch_size} with "
            f"{shard.num_replicas} replicas. "
            f"Use {shard.num_replicas} or more, or fewer workers."
        )


def check_not_empty(num_examples, num_steps, global_batch_size):
    """Raise ValueError if a split has no example, or no batch is left of it."""
    if not num_examples:
        raise ValueError(
            "A split must have at least one example. Received: an empty split. "
            "Choose another split or a smaller `data.validation_fraction`."
        )
    if not num_steps:
        raise ValueError(
            "`drop_remainder` must leave at least one full batch. Received: "
            f"{num_examples} examples with global_batch_size={global_batch_size}. "
            f"Use a global batch of {num_examples} or less."
        )


def check_fraction(fraction):
    """Raise ValueError unless a share of the training data may be held out like this."""
    if not 0 <= fraction < 1:
        raise ValueError(
            "`data.validation_fraction` must be at least 0 and below 1. Received: "
            f"validation_fraction={fraction}. Use for example 0.1."
        )


def check_finite(array, what):
    """Raise ValueError at the first number of an array that is NaN or infinite.

    Args:
        array: any array; only floating point ones are looked at, in pieces.
        what: how the user calls the array, such as "x" or "the CSV file".

    Raises:
        ValueError: naming the position of the first such number.
    """
    if array.dtype.kind != "f" or not array.size:
        return
    rows = max(1, _CHUNK_BYTES * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        good = np.isfinite(array[start : start + rows])
        if not good.all():
            position = np.argwhere(~good)[0]
            position[0] += start
            where = ", ".join(str(int(i)) for i in position)
            raise ValueError(
                f"{what} must hold finite numbers only. Received: "
                f"{array[tuple(position)]} at position [{where}]. "
                "Remove the example or replace the number."
            )


def check_labels(labels, num_classes, what="the labels"):
    """Raise ValueError if a whole-numbered label is not a class.

    Args:
        labels: integer array of class numbers.
        num_classes: classes; labels are 0 .. num_classes - 1.
        what: how the user calls the labels.

    Raises:
        ValueError: naming the first label outside the classes and its position.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub" or not labels.size:
        return
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        position = np.argwhere(wrong)[0]
        raise ValueError(
            f"{what} must be at least 0 and below the number of classes, {num_classes}. Received: "
            f"{labels[tuple(position)]} at position {int(position[0])}. "
            "Correct the label, or set `data.num_classes`."
        )
