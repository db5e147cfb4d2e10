"""An unknown name and the known one that was probably meant.

Every room that takes names says the same when one is wrong. No TensorFlow here.
"""

import difflib
from collections.abc import Iterable


def closest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, whatever its case; None if none is like it."""
    by_lower = {str(k).lower(): str(k) for k in known}
    matches = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None


def nearest(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" to end an error with, "" if no known name is like `name`."""
    match = closest(name, known)
    return f" Did you mean {match!r}?" if match else ""


def check_known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a name that is not among the known ones.

    Args:
        what: the thing that takes the names, as the error shall call it.
        given: names as the user typed them.
        known: names that exist.

    Raises:
        ValueError: at the first unknown name, with the nearest and all known ones.
    """
    known = list(known)
    for name in given:
        if name not in known:
            listed = ", ".join(known) if known else "none"
            raise ValueError(
                f"{what} is unknown. Received: {name!r}.{nearest(name, known)} Known: {listed}."
            )
