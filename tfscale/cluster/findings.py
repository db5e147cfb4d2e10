"""What the answers of all tasks say together: a finding a check, and with whom it is wrong.

A failed one says what came and the way out, in one line. Pure: nothing is asked here.
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from tfscale.cluster.meeting import Answer, Party
from tfscale.cluster.rendezvous import REASONS

OK, WARNING, FAILED = "ok", "warning", "failed"
NOT_INSTALLED = "not installed"
_WARN_SECONDS, _FAIL_SECONDS = 1.0, 30.0  # between two clocks
_SHOWN = 60  # characters of a value

Answers = Mapping[int, Answer]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: its name.
        state: "ok", "warning" or "failed".
        text: what was found; where it is not "ok", with whom, and the way out.
    """

    check: str
    state: str
    text: str


def table(findings: Sequence[Finding]) -> list[str]:
    """Return a line a finding, and one that counts those that are not well."""
    width = max(len(finding.check) for finding in findings)
    lines = [f"  {one.state:<8} {one.check:<{width}}  {one.text}" for one in findings]
    counts = {state: sum(one.state == state for one in findings) for state in (FAILED, WARNING)}
    words = [f"{number} {state}" for state, number in counts.items() if number]
    checks = len({finding.check for finding in findings})
    return [*lines, f"{checks} checks: " + (", ".join(words) if words else "all is well")]


def who(party: Party, numbers: Iterable[int]) -> str:
    """Return the names of tasks: "worker 1", "worker 0 and worker 2", "all"."""
    names = [party.name(number) for number in numbers]
    if len(names) == max(1, len(party.addresses)) > 1:
        return "all"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def came(
    party: Party,
    num_present: int,
    reasons: Mapping[int, str],
    strangers: Sequence[str],
    post_problem: str,
    seconds: float,
) -> list[Finding]:
    """Judge who has joined the chief.

    Args:
        party: who meets.
        num_present: those that came, the chief included.
        reasons: what `ports.probe` says of those that did not.
        strangers: of the chief's post.
        post_problem: likewise.
        seconds: that were waited.
    """
    check, total = "met", len(party.addresses)
    found = [
        Finding(check, FAILED, f"{text}. Give all tasks the same list of addresses.")
        for text in strangers
    ]
    if post_problem:
        text = f"worker 0, the chief, cannot listen at {party.addresses[0]}: {post_problem}"
        return [*found, Finding(check, FAILED, f"{text}. Nobody can join; see the checks below.")]
    found += [
        Finding(
            check,
            FAILED,
            f"{party.name(number)} at {party.addresses[number]} did not come within "
            f"{seconds:.0f} s: {REASONS[reason]}. Start the same command there.",
        )
        for number, reason in reasons.items()
    ]
    return found or [Finding(check, OK, f"{num_present} of {total} tasks, after {seconds:.1f} s")]


def installed(party: Party, answers: Answers) -> list[Finding]:
    """Name what is missing on some task."""
    return [
        Finding("versions", FAILED, f"{party.name(number)} has no {package}. Install it there.")
        for number, answer in answers.items()
        for package, version in answer["versions"].items()
        if version == NOT_INSTALLED
    ]


def addresses(party: Party, answers: Answers) -> list[Finding]:
    """Judge whether each task's address in the cluster leads to it."""
    check, found = "own address", []
    for number, answer in answers.items():
        about, address = answer["address"], party.addresses[number]
        if about["leads_here"] or (about["local"] and answer["post"]):
            continue  # what is wrong with its port is said there
        where = ", ".join(about["resolved"])
        if not about["resolved"]:
            text = f"{address} does not resolve there. Correct the name, or its name server"
        elif not about["local"]:
            text = (
                f"{address} is {where}, which is not of its machine, {answer['host']}. "
                "Give the task its own index, or correct the address"
            )
        else:
            text = f"{address} ({where}) does not lead to it. Look for a firewall on its machine"
        found.append(Finding(check, FAILED, f"{party.name(number)}: {text}."))
    return found or [Finding(check, OK, "each task's address leads to its machine")]


def free_ports(party: Party, answers: Answers) -> list[Finding]:
    """Judge whether each task can listen at its port."""
    found = [
        Finding("port", FAILED, f"{party.name(number)}: {text}")
        for number, answer in answers.items()
        if (text := answer["port"])
    ]
    return found or [Finding("port", OK, "each task can listen at its own")]


def reachable(party: Party, answers: Answers, present: Iterable[int]) -> list[Finding]:
    """Judge who reaches whom, among those that came."""
    check = "peers"
    failed: dict[tuple[int, str], list[int]] = {}
    present = set(present)
    num_ways = 0
    for number, answer in answers.items():
        for peer, reason in answer["reach"].items():
            if int(peer) in present:
                num_ways += 1
                if reason != "up":
                    failed.setdefault((int(peer), reason), []).append(number)
    return [
        Finding(
            check,
            FAILED,
            f"{who(party, numbers)} cannot reach {party.name(peer)} at {party.addresses[peer]}: "
            f"{REASONS[reason]}. Open that port between them.",
        )
        for (peer, reason), numbers in failed.items()
    ] or [Finding(check, OK, f"each reaches each other, {num_ways} ways")]


def clocks(party: Party, found: Mapping[int, tuple[float, float]]) -> list[Finding]:
    """Judge how far the clocks are apart, given (seconds ahead of the chief's, bound) each."""
    wrong, largest = [], 0.0
    for number, (ahead, bound) in found.items():
        apart = max(0.0, abs(ahead) - bound)
        largest = max(largest, abs(ahead) + bound)
        if apart > _WARN_SECONDS:
            side = "ahead of" if ahead > 0 else "behind"
            text = (
                f"the clock of {party.name(number)} is {abs(ahead):.1f} s {side} that of "
                f"{party.name(0)} (to within {bound * 1000:.1f} ms). Let NTP set both."
            )
            wrong.append(Finding("clocks", FAILED if apart > _FAIL_SECONDS else WARNING, text))
    return wrong or [Finding("clocks", OK, f"at most {largest * 1000:.1f} ms apart")]


def same(
    check: str,
    party: Party,
    values: Mapping[int, Mapping[str, Any]],
    way_out: str,
    *,
    state: str = FAILED,
    well: Callable[[Mapping[str, Any]], str],
) -> list[Finding]:
    """Judge whether values of some names are equal on all tasks.

    Args:
        check: its name.
        party: who meets.
        values: by task, then by name.
        way_out: what to do where they differ.
        state: of what differs.
        well: makes the text of a good result from the values of all.
    """
    found = []
    names = dict.fromkeys(name for own in values.values() for name in own)
    for name in names:
        groups: dict[Hashable, list[int]] = {}
        for number, own in values.items():
            groups.setdefault(str(own.get(name, "missing"))[:_SHOWN], []).append(number)
        if len(groups) > 1:
            text = "; ".join(f"{value} on {who(party, who_)}" for value, who_ in groups.items())
            found.append(Finding(check, state, f"{name}: {text}. {way_out}"))
    return found or [Finding(check, OK, well(next(iter(values.values()))))]


def flatten(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return a configuration's fields as one dict, by "section.field"."""
    return {
        f"{section}.{name}": value for section, own in config.items() for name, value in own.items()
    }


def folder_seen(
    party: Party, answers: Answers, content: str, problem: str, path: str
) -> list[Finding]:
    """Judge whether all tasks see the chief's file in the run's folder."""
    if problem or not content:
        text = f"worker 0 cannot use {path}: {problem or 'no file can be made in it'}"
        return [Finding("run folder", FAILED, f"{text}. Use another --run_dir.")]
    found = [
        Finding(
            "run folder",
            FAILED,
            f"{party.name(number)} does not see in {answer['path']} what worker 0 wrote to "
            f"{path}. Use a --run_dir on a file system that all share.",
        )
        for number, answer in answers.items()
        if answer["content"] != content
    ]
    return found or [Finding("run folder", OK, f"all see {path}")]


def folder_written(party: Party, answers: Answers, path: str) -> list[Finding]:
    """Judge whether all tasks can write to the run's folder."""
    found = [
        Finding(
            "write access",
            FAILED,
            f"{party.name(number)} cannot write to {path}: {text}. Change its rights, or use "
            "another --run_dir.",
        )
        for number, answer in answers.items()
        if (text := answer["problem"])
    ]
    return found or [Finding("write access", OK, "written, synced, renamed and removed")]


def room(free_bytes: int, state_bytes: int, num_kept: int) -> Finding:
    """Judge whether the checkpoints of a run find room.

    Args:
        free_bytes: in the run's folder.
        state_bytes: of one checkpoint; 0 where that is not known.
        num_kept: how many are there at most at one time.
    """
    free = f"{_size(free_bytes)} free"
    if not state_bytes:
        return Finding("disk", OK, free)
    needed = f"{num_kept} checkpoints of {_size(state_bytes)} take {_size(num_kept * state_bytes)}"
    if num_kept * state_bytes > free_bytes:
        return Finding(
            "disk", FAILED, f"{needed}, {free}. Make room, lower keep_last, or use another folder."
        )
    return Finding("disk", OK, f"{needed}, {free}")


def lost(party: Party, reasons: Mapping[int, str]) -> list[Finding]:
    """Name tasks that went away during the checks."""
    return [
        Finding("met", FAILED, f"{party.name(number)} came and {text}. Its own output says why.")
        for number, text in reasons.items()
    ]


def _size(num_bytes: int) -> str:
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.1f} {unit}" if unit != "B" else f"{amount:.0f} B"
        amount /= 1000
    return f"{amount:,.1f} TB"
