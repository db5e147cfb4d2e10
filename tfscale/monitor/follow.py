"""A run as a few lines of text, as it is now: what `tfscale.watch` shows again and again."""

import textwrap
import time

from tfscale.monitor import pages
from tfscale.monitor.run_files import duration

_BLOCKS = "▁▂▃▄▅▆▇█"
_BAR, _SHORT_BAR, _NARROW = 30, 12, 100  # the shorter one below so many columns
_NEWS = 6  # events that are shown


def lines(run, now=None, width=None):
    """Return what is to be said of a run.

    Args:
        run: its `run_files.RunFiles`.
        now: seconds since 1970; by default the present.
        width: columns of the terminal; None where there is none, and each fact is one line.

    Returns:
        Lines of text. What is longer than `width` goes on in the next line, behind spaces.
    """
    now = time.time() if now is None else now
    bar = _SHORT_BAR if width is not None and width < _NARROW else _BAR
    rows = [("run", f"{run.state(now)}: {run.path}"), ("progress", _progress(run, now, bar))]
    for name in run.metrics(of_several=True):
        trained, validated = run.curve("train", name), run.curve("validation", name)
        text = _curve(validated or trained, bar)
        if trained:
            text += f"  training {trained[-1][1]:.4g}"
        if validated:
            text += f"  validation {validated[-1][1]:.4g}"
        rows.append((name, text))
    best = run.best()
    if best is not None:
        rows.append(("best", f"{best.words()} at step {best.step}, epoch {best.epoch}"))
    rows.append(("speed", _speed(run)))
    seconds = [record["seconds"] for record in run.records if "seconds" in record]
    if seconds:
        parts = "  ".join(f"{n} {1e3 * v:.2f}" for n, v in seconds[-1].items() if v >= 5e-6)
        rows.append(("step, ms", parts))
    slow = run.slowest()
    if slow is not None:
        rows.append(("workers", slow.words()))
    elif run.unseen_times:
        rows.append(("workers", f"times unknown: {run.unseen_times}"))
    rows.append(("health", _health(run)))
    told = run.happened()[-_NEWS:]
    for event, text in told:
        rows.append((time.strftime("%H:%M:%S", time.localtime(event["time"])), text))
    wide = max(len(name) for name, _ in rows)
    found = [f"{name:<{wide}}  {text}" for name, text in rows if text]
    return [line for row in found for line in wrapped(row, width, wide + 2)]


def wrapped(text, width, indent=2):
    """Cut a line of text into lines for a terminal.

    Args:
        text: the line.
        width: columns; None for as many as it has.
        indent: spaces before each line but the first, or a third of the width if that is less.
    """
    if width is None or len(text) <= width:
        return [text]
    spaces = " " * min(indent, width // 3)
    return textwrap.wrap(text, width, subsequent_indent=spaces, break_on_hyphens=False)


def _progress(run, now, length):
    steps, epochs = run.begun.get("steps_per_epoch"), run.epochs
    text = f"step {run.step:,}"
    if epochs:
        text = f"epoch {min(run.epoch, epochs)}/{epochs}  {text}"
    if not steps or not epochs:
        return text
    total = steps * epochs
    done = min(run.step / total, 1.0)
    bar = "█" * int(done * length) + "░" * (length - int(done * length))
    text = f"{bar} {100 * done:3.0f} %  {text}/{total:,}"
    left = run.seconds_left(now)
    return text + (f"  about {duration(left)} left" if left and not run.is_over else "")


def _speed(run):
    speed = run.examples_per_second
    if speed is None:
        return ""
    text = f"{speed:,.0f} examples/s"
    step = run.last("step_seconds")
    if step:
        text += f"  {1e3 * step:.3g} ms a step"
    sent = run.last("bytes_sent")
    if sent:
        text += f"  {sent / 1e6:,.1f} MB sent by a replica"
    return text


def _health(run):
    parts = []
    goodput = run.last("goodput")
    if goodput is not None:
        parts.append(f"goodput {100 * goodput:.0f} %")
    parts.append(pages.counted(run.restarts, "restart"))
    if run.stops:
        parts.append(f"{pages.counted(run.stops, 'stop')} on request")
    parts.append(pages.counted(run.bad_steps, "bad step"))
    norm = run.last("gradient_norm")
    if norm is not None:
        parts.append(f"norm of gradients {norm:.3g}")
    return "  ".join(parts)


def _curve(points, length):
    """The shape of a curve in a few blocks."""
    values = [value for _, value in points]
    if len(values) > length:
        every = (len(values) - 1) / (length - 1)
        values = [values[round(i * every)] for i in range(length)]
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1
    return "".join(_BLOCKS[int((value - low) / span * (len(_BLOCKS) - 1))] for value in values)
