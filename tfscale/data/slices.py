"""Split names with a slice, `train[:80%]`, for sources that are no TFDS data set.

Owns their grammar and arithmetic, which are TFDS's own: percentages round to the nearest
example, negative bounds count from the end.
"""

import re

_PATTERN = re.compile(r"(?P<base>[^\[\]]+)(\[(?P<begin>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


def base(split):
    """Return a split's name without its slice.

    Args:
        split: such as "train", "train[:80%]" or "train[100:200]".

    Raises:
        ValueError: if it does not read like that.
    """
    return _match(split)["base"].strip()


def rows(split, num_examples):
    """Return the Python slice of the examples that a split's name stands for.

    Args:
        split: such as "train", "train[:80%]" or "train[100:200]".
        num_examples: examples in the whole split.

    Raises:
        ValueError: if it does not read like that, or no example is left.
    """
    match = _match(split)
    begin = _bound(match["begin"], 0, num_examples)
    end = _bound(match["end"], num_examples, num_examples)
    if begin >= end:
        raise ValueError(
            f"A split must have at least one example. Received: {split!r}, which is empty, of "
            f"{num_examples} examples. Choose other bounds."
        )
    return slice(begin, end)


def _match(split):
    match = _PATTERN.fullmatch(split.strip())
    if not match:
        raise ValueError(
            "A split must read like 'train', 'train[:80%]' or 'train[100:200]'. "
            f"Received: {split!r}. Correct the brackets."
        )
    return match


def _bound(text, default, num_examples):
    if text is None:
        return default
    number = round(int(text[:-1]) * num_examples / 100) if text.endswith("%") else int(text)
    number = number + num_examples if number < 0 else number
    return min(max(number, 0), num_examples)
