"""Preprocessing by name: from a share as stored to a share as the model wants it.

Owns the named transforms and class weights. They work on a whole share at a time inside one
map of the input pipeline; affine transforms that follow each other become one.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfscale.names import check_known

# What each transform takes, by name.
ARGUMENTS = {
    "rescale": ("scale", "offset"),
    "standardize": ("mean", "stddev"),
    "flatten": (),
    "one_hot": ("num_classes",),
}


@dataclasses.dataclass(frozen=True)
class About:
    """What the transforms need to know about a source.

    Args:
        input_spec: spec of x, without the axis of examples; a nest where x is one.
        num_classes: classes of the label; None for a regression.
        largest_value: largest value of the input, where the source knows it.
        measure: maps a transform of shares to (mean, stddev) of the training split after it,
            one array for each leaf of x; called only by a `standardize` without arguments.
    """

    input_spec: object
    num_classes: int | None
    largest_value: float | None
    measure: Callable


def check_names(names, arguments):
    """Raise ValueError unless every transform and each of its arguments is known.

    Args:
        names: transforms in their order.
        arguments: dict from a transform's name to its arguments.

    Raises:
        ValueError: naming the nearest known name.
    """
    if isinstance(names, str):
        names = (names,)
    for name in names:
        check_known("`data.transforms`", [name], ARGUMENTS)
    for name, given in arguments.items():
        check_known("A key of `data.transform_arguments`", [name], names)
        for argument in given:
            check_known(f"An argument of {name!r}", [argument], ARGUMENTS[name])


def build(names, arguments, about):
    """Return one function that applies the named transforms to a share, in their order.

    "rescale" gives `x * scale + offset`, by default over the largest value of the source.
    "standardize" gives `(x - mean) / stddev` with one mean and deviation for each entry of the
    last axis (a channel of an image, a column of a table); measured on the training split where
    they are not given. Where a measured deviation is zero the entry is constant and is only
    centred, to 0. "flatten" gives x of shape (examples, features). "one_hot" gives y of shape
    (examples, classes). Both of the first cast x to float32.

    Args:
        names: transforms in their order.
        arguments: dict from a transform's name to its arguments.
        about: what the source knows.

    Returns:
        A function from a share to a share, for the graph.

    Raises:
        ValueError: if a name or argument is unknown, a given deviation is not above zero, or the
            source does not know what a transform needs.
    """
    check_names(names, arguments)
    steps = []
    for name in names:
        given = arguments.get(name, {})
        if name == "flatten":
            steps.append(_flatten)
        elif name == "one_hot":
            steps.append(_one_hot(given.get("num_classes") or about.num_classes))
        else:
            _check_numbers(name, about.input_spec)
            chosen = _rescale if name == "rescale" else _standardize
            steps.append(chosen(about, given, _chain(steps)))
    return _chain(steps)


class _Affine:
    """`x * scale + offset` for each leaf of x, in float32."""

    def __init__(self, scales, offsets):
        self.scales = [np.asarray(s, np.float64) for s in scales]
        self.offsets = [np.asarray(o, np.float64) for o in offsets]

    def then(self, other):
        """Return the two, one after the other, as one."""
        scales = [a * b for a, b in zip(self.scales, other.scales, strict=True)]
        offsets = [
            o * b + p for o, b, p in zip(self.offsets, other.scales, other.offsets, strict=True)
        ]
        return _Affine(scales, offsets)

    def __call__(self, share):
        leaves = [
            self._apply(tf.cast(leaf, tf.float32), scale, offset)
            for leaf, scale, offset in zip(
                tf.nest.flatten(share[0]), self.scales, self.offsets, strict=True
            )
        ]
        return (tf.nest.pack_sequence_as(share[0], leaves), *share[1:])

    @staticmethod
    def _apply(x, scale, offset):
        x = x if np.all(scale == 1) else x * scale.astype(np.float32)
        return x if np.all(offset == 0) else x + offset.astype(np.float32)


def _chain(steps):
    """One function for all steps; affine neighbours are merged."""
    merged = []
    for step in steps:
        if merged and isinstance(step, _Affine) and isinstance(merged[-1], _Affine):
            step = merged.pop().then(step)
        merged.append(step)

    def transform(share):
        for step in merged:
            share = step(share)
        return share

    return transform


def _rescale(about, given, _):
    leaves = tf.nest.flatten(about.input_spec)
    scales = [given.get("scale")] * len(leaves)
    if scales[0] is None:
        largest = [about.largest_value or (255 if s.dtype == tf.uint8 else None) for s in leaves]
        if None in largest:
            raise ValueError(
                "'rescale' needs a scale where the source does not know its largest value. "
                f"Received: inputs of type {leaves[largest.index(None)].dtype.name} without a "
                "scale. Use transform_arguments={'rescale': {'scale': ...}}, or the transform "
                "'standardize', or none."
            )
        scales = [1 / value for value in largest]
    return _Affine(scales, [given.get("offset", 0.0)] * len(leaves))


def _standardize(about, given, before):
    if ("mean" in given) != ("stddev" in given):
        raise ValueError(
            "'standardize' takes both mean and stddev, or measures both. Received: "
            f"{', '.join(given)} alone. Give the other one too, or neither."
        )
    if given:
        mean, stddev = (np.asarray(given[k], np.float64) for k in ("mean", "stddev"))
        if not np.all(stddev > 0) or not np.all(np.isfinite(mean)):
            raise ValueError(
                "'standardize' needs a stddev above zero and a finite mean. Received: "
                f"mean={given['mean']}, stddev={given['stddev']}. "
                "Leave both out to measure them on the training split."
            )
        leaves = tf.nest.flatten(about.input_spec)
        means, stddevs = [mean] * len(leaves), [stddev] * len(leaves)
    else:
        means, stddevs = about.measure(before)
        stddevs = [np.where(s > 0, s, 1.0) for s in stddevs]
    pairs = list(zip(means, stddevs, strict=True))
    return _Affine([1 / s for _, s in pairs], [-m / s for m, s in pairs])


def _flatten(share):
    def flat(x):
        return tf.reshape(x, [-1, math.prod(x.shape[1:])])

    return (tf.nest.map_structure(flat, share[0]), *share[1:])


def _one_hot(num_classes):
    if not num_classes:
        raise ValueError(
            "'one_hot' needs the number of classes. Received: a source that does not name it. "
            "Set `data.num_classes`."
        )

    def one_hot(share):
        x, y, *rest = share
        y = tf.squeeze(y, -1) if y.shape.rank == 2 and y.shape[-1] == 1 else y
        return (x, tf.one_hot(y, num_classes), *rest)

    return one_hot


def _check_numbers(name, input_spec):
    for leaf in tf.nest.flatten(input_spec):
        if leaf.dtype == tf.string:
            raise ValueError(
                f"{name!r} needs numbers. Received: inputs of type string. Encode them first."
            )


def measure(shares):
    """Return mean and standard deviation of x over all examples and all axes but the last.

    Args:
        shares: finite iterable of `(share, global_count)` that covers the training split.

    Returns:
        Two lists of float64 arrays, means and deviations, one array for each leaf of x.
    """
    totals = None
    for share, _ in shares:
        pieces = [_moments(leaf.numpy()) for leaf in tf.nest.flatten(share[0])]
        totals = (
            pieces if totals is None else [_joined(*p) for p in zip(totals, pieces, strict=True)]
        )
    return [mean for _, mean, _ in totals], [np.sqrt(m2 / n) for n, _, m2 in totals]


def _moments(x):
    rows = x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1).astype(np.float64)
    mean = rows.mean(0)
    return len(rows), mean, ((rows - mean) ** 2).sum(0)


def _joined(a, b):
    """Moments of two samples together (T. Chan, G. Golub, R. LeVeque, 1979)."""
    (n, mean, m2), (k, other, other_m2) = a, b
    delta = other - mean
    return n + k, mean + delta * k / (n + k), m2 + other_m2 + delta**2 * n * k / (n + k)


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
