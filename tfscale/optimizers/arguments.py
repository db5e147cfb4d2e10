"""Checks of what a user asks of an optimizer or a schedule: numbers, steps, kinds.

No TensorFlow here.
"""

import math
import numbers


def check_positive(name, value):
    """Return a finite number above zero as a float.

    Raises:
        ValueError: if `value` is anything else.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be a finite number above 0. Received: {value!r}.")
    return float(value)


def check_steps(name, value, least=1):
    """Return a count of steps of at least `least`.

    Raises:
        ValueError: if `value` is not a whole number, or below `least`.
    """
    is_count = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_count or value < least:
        raise ValueError(
            f"`{name}` must be a whole number of steps, at least {least}. Received: {value!r}."
        )
    return int(value)


def check_like(name, value, default):
    """Return `value` if it is of the kind of the default it replaces.

    Args:
        name: the argument, for the error.
        value: what the user gave.
        default: a bool asks for a bool, an int or float for a number; any other kind of
            default asks for nothing.

    Returns:
        `value`; as a float where the default is one.

    Raises:
        ValueError: if the kinds differ.
    """
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False. Received: {value!r}.")
    elif isinstance(default, (int, float)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"`{name}` must be a number. Received: {value!r}.")
        if isinstance(default, float):
            return float(value)
    return value
