"""A search as text: the table of its trials, a line for each event, the words at its end.

Pure functions of the facts and the records. Which of it is shown when is in `views`.
"""

import shlex
import statistics

from tfscale.monitor.run_files import duration
from tfscale.search import trials

_A_LIFE_BEFORE_SECONDS = 30.0  # more than what lies before the first trial
_MOST_FAILURES = 5  # that are listed at the end
_WITHOUT_FOLDING = 4  # with more parameters than these, the table shows those that differ


def short_names(names):
    """Return the shortest endings of dotted names that tell them apart, by name.

    "optimizer.learning_rate" and "model.arguments.dropout" become "learning_rate" and "dropout";
    "optimizer.name" stays, because a bare "name" says nothing.
    """
    short = {}
    for name in names:
        parts = name.split(".")
        for length in range(1 + (parts[-1] == "name"), len(parts) + 1):
            ending = ".".join(parts[-length:])
            if not any(f".{n}".endswith(f".{ending}") for n in names if n != name):
                break
        else:
            ending = name
        short[name] = ending
    return short


def short_value(value):
    """Return a value in a few characters: three significant digits of a float."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def best_of(facts, records):
    """Return the record with the best score among those whose score counts, or None."""
    found = None
    for record in records:
        counts = record.state in (*trials.SCORED, trials.RUNNING)
        if counts and facts.better(record.score, found.score if found else None):
            found = record
    return found


def chosen(facts, records, record):
    """Return what was chosen for a trial, "learning_rate=0.003 filters=32".

    With many parameters only those that differ between the trials are named.

    Args:
        facts: the `SearchFacts`.
        records: all trials of the table.
        record: the one trial.
    """
    names = [p.name for p in facts.parameters if p.kind != "fixed"]
    names += [name for name in record.values if name not in {p.name for p in facts.parameters}]
    short = short_names(names)
    shown = [name for name in names if name in record.values]
    if len(names) > _WITHOUT_FOLDING and len(records) > 1:
        # By what is shown, because a choice may hold lists.
        seen = {n: {short_value(r.values.get(n)) for r in records} for n in shown}
        shown = [name for name in shown if len(seen[name]) > 1]
    return " ".join(f"{short[name]}={short_value(record.values[name])}" for name in shown)


def trial_seconds_left(record):
    """Return the seconds that a running trial still takes at its own pace, or None."""
    if record.state != trials.RUNNING or not record.epochs or not record.seconds:
        return None
    return record.seconds / record.epochs * max(record.max_epochs - record.epochs, 0)


def seconds_left(facts, records):
    """Return the seconds until the search ends, or None where nobody can know.

    Trials that come take as long as the median of those that have ended; as many run at once as
    run now.
    """
    ended = [r.seconds for r in records if r.state != trials.RUNNING and r.seconds]
    running = [r for r in records if r.state == trials.RUNNING]
    if not facts.num_trials or not ended:
        return None
    typical = statistics.median(ended)
    total = typical * max(facts.num_trials - len(records), 0)
    for record in running:
        left = trial_seconds_left(record)
        total += max(typical - record.seconds, 0) if left is None else left
    return total / max(len(running), 1)


def counts(records):
    """Return "12 completed, 1 diverged, 2 running", in the order of the states."""
    found = [r.state for r in records]
    order = (*trials.STATES[1:], trials.RUNNING)
    return ", ".join(f"{found.count(s)} {words(s)}" for s in order if s in found) or "none yet"


def words(state):
    """Return a state as it is shown."""
    return state.replace("_", " ")


def ranked(facts, records):
    """Return records from the best score to the worst, those without one at the end."""
    sign = -1 if facts.direction == "max" else 1
    scored = [r for r in records if r.score is not None and r.state in trials.SCORED]
    rest = [r for r in records if r not in scored]
    return sorted(scored, key=lambda r: (sign * r.score, r.id)) + rest


def lines(facts, records, width, shown=None):
    """Return the table: a headline and a line a trial, none of them wider than `width`.

    Args:
        facts: the `SearchFacts`.
        records: all trials.
        width: columns of the terminal.
        shown: the trials that get a line; by default all of them.
    """
    best = best_of(facts, records)
    head = ("", "trial", "epoch", facts.objective, "best", "state", "left", "chosen")
    are_several = any(record.machine for record in records)
    if are_several:
        head = (*head[:-1], "on", head[-1])
    rows = [head]
    for record in records if shown is None else shown:
        left = trial_seconds_left(record)
        last = record.history[-1].get(facts.objective) if record.history else None
        on = (record.machine or "here",) if are_several else ()
        rows.append(
            (
                "*" if record is best else "",
                record.id + (f"<{record.parent}" if record.parent else ""),
                f"{record.epochs}/{max(record.max_epochs, record.epochs)}",
                _score(last),
                _score(record.score),
                words(record.state),
                "" if left is None else duration(left),
                *on,
                chosen(facts, records, record) + (f"  {record.reason}" if record.reason else ""),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return [
        _cropped("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip(), width)
        for row in rows
    ]


def headline(facts, records, seconds):
    """Return the line above the live table: how far, how long, how long still, the best."""
    of = f" of {facts.num_trials}" if facts.num_trials else ""
    parts = [f"{facts.tuner} search: {len(records)}{of} trials, {counts(records)}"]
    parts.append(duration(seconds))
    left = seconds_left(facts, records)
    if left is not None:
        parts.append(f"about {duration(left)} left")
    return "; ".join(parts)


def begun(facts, record):
    """Return the line of a trial that has begun."""
    text = f"trial {record.id} begins"
    if record.parent:
        text += f", continuing {record.parent}"
    if record.machine:
        text += f" on {record.machine}"
    return f"{text}: {chosen(facts, [record], record) or 'the configuration as it is'}"


def retried(record):
    """Return the line of a trial that begins again after a failure."""
    on = f" on {record.machine}" if record.machine else ""
    return f"trial {record.id} again at epoch {record.epochs}{on}: {record.reason}"


def ended(facts, records, record):
    """Return the line of a trial that has ended."""
    text = f"trial {record.id} {words(record.state)}"
    if record.score is not None:
        text += f": {facts.objective} {_score(record.score)}"
        if record.best_epoch:
            text += f" at epoch {record.best_epoch} of {record.epochs}"
    text += f", {duration(record.seconds)}"
    best = best_of(facts, records)
    if best is not None:
        mine = best is record
        text += ", the best so far" if mine else f"; best {_score(best.score)} ({best.id})"
    return text + (f"; {record.reason}" if record.reason else "")


def closing(facts, records, seconds, now):
    """Return the lines below the last table: the best, what became of the trials, the files.

    Args:
        facts, records: the search.
        seconds: how long this process of it has lasted.
        now: seconds since 1970.
    """
    best = best_of(facts, records)
    shown = []
    if best is None:
        shown.append(f"best    none: no trial reported {facts.objective}")
    else:
        shown.append(
            f"best    trial {best.id}, {facts.objective} {_score(best.score)} at epoch "
            f"{best.best_epoch} of {best.epochs}"
        )
        shown += [f"        {name}={value!r}" for name, value in best.values.items()]
    shown.append(f"trials  {len(records)}: {counts(records)}")
    begun_before = now - facts.began - seconds > _A_LIFE_BEFORE_SECONDS
    first = f", first started {duration(now - facts.began)} ago" if begun_before else ""
    shown.append(f"time    {duration(seconds)}{first}")
    failed = [r for r in records if r.state not in (*trials.SCORED, trials.RUNNING)]
    for record in failed[:_MOST_FAILURES]:
        shown.append(f"        trial {record.id}: {record.reason or words(record.state)}")
        shown.append(f"        see {record.path / 'logs' / 'trial.log'}")
    if len(failed) > _MOST_FAILURES:
        shown.append(f"        and {len(failed) - _MOST_FAILURES} more, in results.csv")
    where = facts.run_dir
    shown.append(f"files   {where}/results.csv, objective.png, parameters.png")
    shown.append(f"look    tensorboard --logdir {shlex.quote(str(where))}   (HPARAMS, TIME SERIES)")
    return shown


def _score(value):
    return "" if value is None else f"{value:.4g}" if abs(value) < 1e-3 else f"{value:.4f}"


def _cropped(text, width):
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
