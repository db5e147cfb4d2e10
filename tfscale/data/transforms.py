"""Preprocessing by name: from a share as stored to a share as the model wants it.

Owns the named transforms and class weights. They work on a whole share at a time inside one
map of the input pipeline; affine transforms that follow each other become one.
"""

import numpy as np
import tensorflow as tf


def class_weights(weights, width):
    """Return a function that multiplies class weights into a share's sample weights.

    Args:
        weights: dict from class number to weight, or None.
        width: parts of a share: 1 for `(x,)`, 2 for `(x, y)`, 3 with sample weights.

    Returns:
        A function from a share to a share of three parts, or None where `weights` is None.

    Raises:
        ValueError: if there are no labels to weigh, or a class is not a whole number from 0.
    """
    if weights is None:
        return None
    if width < 2:
        raise ValueError(
            "`class_weight` needs labels. Received: class_weight with data that has no y. "
            "Give (x, y), or leave class_weight out."
        )
    if not weights or any(int(c) != c or c < 0 for c in weights):
        raise ValueError(
            "`class_weight` must map class numbers, whole and from 0, to weights. Received: "
            f"class_weight={weights!r}. Use for example {{0: 1.0, 1: 2.5}}."
        )
    table = np.ones(int(max(weights)) + 2, np.float32)  # the last entry: classes without a weight
    for label, weight in weights.items():
        table[int(label)] = weight

    def weigh(share):
        x, y, *rest = share
        if not tf.is_tensor(y):
            raise ValueError(
                "`class_weight` needs a single output. Received: y with several parts. "
                "Use sample_weight instead."
            )
        label = y
        if y.shape.rank and y.shape.rank > 1:
            label = tf.squeeze(y, -1) if y.shape[-1] == 1 else tf.argmax(y, -1)
        label = tf.cast(tf.round(label) if label.dtype.is_floating else label, tf.int64)
        unweighted = len(table) - 1
        known = (label >= 0) & (label < unweighted)
        weight = tf.gather(table, tf.where(known, label, unweighted))
        return x, y, weight * tf.cast(rest[0], tf.float32) if rest else weight

    return weigh
