"""What a builder's arguments may be, and what is said when they are not.

Owns the checks of shapes, sizes and shares, and the choice of a number by layer.
Does not own the builders. No TensorFlow here.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from tfscale.names import check_known


def check_size(name: str, value: Any) -> int:
    """Return a count of at least one.

    Raises:
        ValueError: if `value` is anything but a whole number from 1 upwards.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1. Received: {value!r}.")
    return int(value)


def check_sizes(name: str, value: Any, allow_empty: bool = False) -> tuple[int, ...]:
    """Return a tuple of counts, each at least one.

    Args:
        name: the argument, for the error.
        value: a tuple or list of whole numbers.
        allow_empty: whether `()` is a choice.

    Raises:
        ValueError: if `value` is no sequence, empty without leave, or holds anything else.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        hint = f" Write ({value},)." if isinstance(value, int) else ""
        raise ValueError(
            f"`{name}` must be a tuple of whole numbers, one a layer. Received: {value!r}.{hint}"
        )
    if not value and not allow_empty:
        raise ValueError(f"`{name}` must name at least one layer. Received: {value!r}.")
    return tuple(check_size(f"{name}[{i}]", size) for i, size in enumerate(value))


def check_input_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of one example, without the batch dimension.

    Raises:
        ValueError: if `value` is not a sequence of positive whole numbers.
    """
    return check_sizes("input_shape", value)


def check_image_shape(model: str, value: Any) -> tuple[int, ...]:
    """Return the shape (height, width, channels) of one image.

    Args:
        model: the builder that needs images, for the error.
        value: the shape of one example.

    Raises:
        ValueError: if the shape has other than three dimensions.
    """
    shape = check_input_shape(value)
    if len(shape) != 3:
        raise ValueError(
            f"The model {model!r} takes images (height, width, channels). "
            f"Received: input_shape={shape}. Use the model 'mlp', or leave out the transform "
            "'flatten'."
        )
    return shape


def check_num_classes(value: Any) -> int:
    """Return the number of classes.

    Raises:
        ValueError: if `value` is not a whole number of at least 2.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 2:
        raise ValueError(
            f"`num_classes` must be a whole number of at least 2. Received: {value!r}. "
            "Set data.num_classes, or predict numbers with the model 'regression_mlp'."
        )
    return int(value)


def by_layer(name: str, value: Any, layers: Sequence[str], below: float = math.inf) -> dict:
    """Return one number for each layer, from a number for all or a mapping by layer.

    A key of the mapping is a layer's name ("dense_1") or the words it begins with ("dense",
    which is every dense_N). The longest key that fits a layer wins; layers without one get 0.

    Args:
        name: the argument, for the errors: "l1", "l2" or "dropout".
        value: a number >= 0, or a mapping from layer to such a number.
        layers: the layers that this argument can be given for.
        below: numbers must be below this bound.

    Returns:
        A dict from each name in `layers` to a float.

    Raises:
        ValueError: at an unknown layer, with the names that exist, or at a number out of range.
    """
    if not isinstance(value, Mapping):
        number = _check_number(name, value, below)
        return dict.fromkeys(layers, number)
    numbers_by_key = {key: _check_number(f"{name}[{key!r}]", value[key], below) for key in value}
    chosen = {}
    unused = set(numbers_by_key)
    for layer in layers:
        fitting = [key for key in numbers_by_key if f"{layer}_".startswith(f"{key}_")]
        unused.difference_update(fitting)
        chosen[layer] = numbers_by_key[max(fitting, key=len)] if fitting else 0.0
    check_known(f"A layer in `{name}`", sorted(unused, key=str), layers)
    return chosen


def _check_number(name, value, below):
    """Return `value` as a float in [0, below)."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value < below:
        bound = f", below {below:g}" if below < math.inf else ", finite"
        raise ValueError(
            f"`{name}` must be a number from 0{bound}, or a mapping from layer to number. "
            f"Received: {value!r}."
        )
    return float(value)
