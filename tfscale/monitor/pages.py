"""Words about a run: the page of text in TensorBoard. Pure functions of plain values."""

import bisect
import shlex


def counted(number, noun):
    """Return how many there are in words: "1 restart", "2 restarts"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def about(config, facts):
    """Return the page of a run: how to repeat it, where it runs, with what, and what it is.

    Args:
        config: the configuration, a dict of sections.
        facts: `num_workers`, `num_replicas`, `workers` (their addresses), `host`, `parameters`,
            `steps_per_epoch`, `versions` (a dict), `life` and `step`; and where they are known
            `command` and `strategy`.

    Returns:
        Markdown.
    """
    where = ", ".join(facts["workers"]) or facts["host"]
    replicas = f"{facts['num_replicas']} replica(s)"
    strategy = [("strategy", f"{facts['strategy']}, {replicas}")] if "strategy" in facts else []
    rows = [
        *(strategy or [("replicas", facts["num_replicas"])]),
        ("workers", f"{facts['num_workers']}: {where}"),
        ("parameters", f"{facts['parameters']:,}"),
        ("steps an epoch", facts["steps_per_epoch"] or "found out while running"),
        ("life", f"{facts['life']}, from step {facts['step']} on"),
        ("versions", ", ".join(f"{n} {v}" for n, v in facts["versions"].items())),
    ]
    sections = []
    for section, values in config.items():
        fields = [(name, "" if v in (None, "", {}, ()) else v) for name, v in values.items()]
        sections += ["", f"### {section}", "", _table(("field", "value"), fields)]
    again = ["### To repeat this run", "", f"    {facts.get('command')}", ""]
    return "\n".join([*(again if "command" in facts else ()), _table(("", ""), rows), *sections])


def command(run_dir, strategy, num_workers, num_replicas, deterministic):
    """Return the command that repeats a run.

    Args:
        run_dir: its folder.
        strategy: its name.
        num_workers: how many processes it had.
        num_replicas: replicas over all of them.
        deterministic: whether it had the same bits in every run.
    """
    words = ["python", "-m", "tfscale.fit", f"--config={run_dir}/config.json"]
    if strategy == "multiworker":
        words += ["--strategy=multiworker", f"--workers={num_workers}"]
    elif strategy == "mirrored":
        words += ["--strategy=mirrored", f"--num_replicas={num_replicas}"]
    return shlex.join(words + ["--deterministic"] * deterministic)


def happened(events, causes=()):
    """Return what happened in a run, for people, in the order in which it did.

    Args:
        events: those of `story`.
        causes: why lives failed, of `story.causes_of`. Where one is known, what the chief itself
            said of that end, such as that it lost another worker, is left out.

    Returns:
        Pairs of an event and a sentence.
    """
    begins = [event["time"] for event in events if event["event"] == "begin"]
    explained = {bisect.bisect(begins, cause["time"]) for cause in causes}
    found, before, life = [], None, 0
    for event in events:
        life += event["event"] == "begin"
        is_noise = event["event"] == "failed" and life in explained
        text = "" if is_noise else _sentence(event, before)
        if text:
            found.append((event, text))
        before = event
    if not causes:
        return found
    found += [(cause, cause["text"]) for cause in causes]
    return sorted(found, key=lambda pair: pair[0]["time"])


def _sentence(event, before):
    kind, step = event["event"], event["step"]
    if kind == "begin":
        workers = f"{event.get('num_workers', 1)} worker(s)"
        if before is None:
            return f"begins, with {workers}"
        if before["event"] == "end":
            return f"is continued at step {step}, with {workers}"
        gap = event["time"] - max(before["time"], event.get("seen_time") or 0)
        lost = max((event.get("seen_step") or step) - step, 0)
        was_told = before["event"] == "left"
        why = "after a stop or a preemption" if was_told else "restarted after a failure"
        return (
            f"{why}: goes on at step {step}, {gap:.0f} s after the last sign of life, "
            f"{lost} steps taken again, {workers}"
        )
    if kind == "end":
        return f"ends at step {step}"
    if kind == "left":
        return f"told to leave at step {step}, exit code {event['code']}"
    if kind == "failed":
        return f"fails at step {step}: {event['error']}"
    if kind == "bad step":
        return f"bad step {step}: {event['bad']}, loss {event['loss']}, {event['action']}"
    if kind == "slow worker":
        return f"at step {step}: {event['text']}"
    return ""


def _table(head, rows):
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in cells])
