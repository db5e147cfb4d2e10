"""What chief and joined machines of a search say to each other, over `cluster.wire`.

Both prove that they see the search's folder: they know a secret that the chief has put there.
Then the joined machine says every second what its slots do, and is answered what they should do;
states, not events, so that nothing is lost with a connection. What comes is checked here.
"""

import contextlib
import dataclasses
import hashlib
import hmac
import importlib.metadata
import json
import os
import pathlib
import re
import secrets
import time

from tfscale.search import ends, trials
from tfscale.training.checkpoint import write_whole

FILE = "chief.json"  # in the folder of the search
MOST_SLOTS = 1024
_MOST_CHARACTERS = 400  # of a reason or a name
_MOST_SECONDS = 1e12
_ID = re.compile(r"[0-9]{4,9}")
_TENSORFLOW = ("tensorflow-cpu", "tensorflow-intel", "tf-nightly")  # other names of it
RUN, STOP = "run", "stop"
LEFT = "left"  # the end of a trial whose machine was told to leave


class Wrong(Exception):
    """Something was said that is not of this language."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What a slot should do.

    Args:
        trial: its id.
        start: the number of this start, so that a trial that is started again is told apart.
        do: `RUN`, or `STOP`: let it save and leave.
    """

    trial: str
    start: int
    do: str = RUN


@dataclasses.dataclass(frozen=True)
class Report:
    """What a slot does.

    Args:
        trial, start: as in the `Order`.
        seconds: how long the process has run.
        end: how it ended, a `ends.End`; `LEFT`; or None while it runs.
    """

    trial: str
    start: int
    seconds: float
    end: ends.End | str | None = None


def write_secret(run_dir):
    """Write a new secret into the folder of a search, for its owner alone, and return it."""
    path, secret = pathlib.Path(run_dir) / FILE, secrets.token_hex(32)
    path.unlink(missing_ok=True)
    before = os.umask(0o077)
    try:
        write_whole(path, json.dumps({"secret": secret}) + "\n")
    finally:
        os.umask(before)
    return secret


def write_over(run_dir):
    """Replace the secret by the moment from which on the search is over."""
    write_whole(pathlib.Path(run_dir) / FILE, json.dumps({"over": time.time()}) + "\n")


def read_file(run_dir):
    """Return what the chief has written into the folder, {} where there is nothing to read."""
    try:
        os.listdir(run_dir)  # a network's file system looks for new files then
        found = json.loads((pathlib.Path(run_dir) / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def with_versions(identity):
    """Return an identity that holds what trials are run by, too."""
    found = {}
    for name, others in (("tfscale", ()), ("keras", ()), ("tensorflow", _TENSORFLOW)):
        for package in (name, *others):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(package)
                break
    return identity | {"versions": found}


def nonce():
    """Return what nobody has said before."""
    return secrets.token_hex(16)


def proof(secret, who, *words):
    """Return what only one who knows the secret can say.

    Args:
        secret: what `write_secret` returned.
        who: "chief" or "worker".
        *words: what it belongs to.
    """
    text = json.dumps([who, *words]).encode()
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def is_proof(said, secret, who, *words):
    """Return whether what was said is `proof` of the same."""
    return isinstance(said, str) and hmac.compare_digest(
        said.encode(errors="replace"), proof(secret, who, *words).encode()
    )


def shortened(end):
    """Return a `ends.End` whose reason is not too long to be said."""
    return dataclasses.replace(end, reason=end.reason[:_MOST_CHARACTERS])


def text_of(value):
    """Return a word that came from elsewhere, made harmless for a terminal.

    Raises:
        Wrong: if it is no word, or a long one.
    """
    if not isinstance(value, str) or len(value) > _MOST_CHARACTERS:
        raise Wrong
    return "".join(c if c.isprintable() else " " for c in value)


def whole_of(value, least, most):
    """Return a whole number that came from elsewhere.

    Raises:
        Wrong: if it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Wrong
    return value


def number_of(value, least, most):
    """Return a number that came from elsewhere.

    Raises:
        Wrong: if it is none, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Wrong
    if not least <= value <= most:
        raise Wrong
    return float(value)


def orders_message(orders):
    """Return orders, one a slot or None, as JSON has them."""
    return [order and dataclasses.asdict(order) for order in orders]


def reports_message(reports):
    """Return reports, one a slot or None, as JSON has them."""
    return [report and dataclasses.asdict(report) for report in reports]


def read_orders(said, num_slots):
    """Return the orders in an answer, one a slot or None.

    Raises:
        Wrong: if that is not what was said.
    """
    return [_order(one) if one is not None else None for one in _list(said, num_slots)]


def read_reports(said, num_slots):
    """Return the reports in a message, one a slot or None.

    Raises:
        Wrong: if that is not what was said.
    """
    return [_report(one) if one is not None else None for one in _list(said, num_slots)]


def _list(said, length):
    if not isinstance(said, list) or len(said) != length:
        raise Wrong
    return said


def _order(said):
    trial, start = _place(said)
    if said.get("do") not in (RUN, STOP):
        raise Wrong
    return Order(trial, start, said["do"])


def _report(said):
    trial, start = _place(said)
    seconds, end = number_of(said.get("seconds"), 0, _MOST_SECONDS), said.get("end")
    if isinstance(end, dict):
        state, reason = end.get("state"), end.get("reason")
        words = [end.get(name) for name in ("may_come_right", "needs_room")]
        if state not in trials.STATES or state == trials.RUNNING:
            raise Wrong
        if not all(isinstance(word, bool) for word in words):
            raise Wrong
        end = ends.End(state, text_of(reason), *words)
    elif end not in (None, LEFT):
        raise Wrong
    return Report(trial, start, seconds, end)


def _place(said):
    """Return the trial and the start that something is about."""
    if not isinstance(said, dict):
        raise Wrong
    trial = said.get("trial")
    if not isinstance(trial, str) or not _ID.fullmatch(trial):
        raise Wrong
    return trial, whole_of(said.get("start"), 1, 2**53)
