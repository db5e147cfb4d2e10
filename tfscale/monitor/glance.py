"""How a run is, in a few short lines: the picture that TensorBoard's first page begins with.

Pure functions of what the run's files say, which is also what `watch` and the report show.
"""

import io
import re

from tfscale.monitor import pages, story

_WIDTH, _LINE, _MARGIN = 416, 25, 8  # pixels; a card of TensorBoard is so wide
_COLOURS = {"": (90, 90, 90), "good": (30, 130, 70), "bad": (190, 30, 30)}
_NAME = 24  # characters that are left of a long name; no other word is so long
_INDENT = "    "  # of what belongs to the line above
_IN_BRACKETS = re.compile(r" \([^()]*\)")


def facts(run):
    """Return what one wants to know of a run first.

    Args:
        run: its `run_files.RunFiles`.

    Returns:
        Pairs of a line of text and "good", "bad" or "": whether it is as it should be.
    """
    steps, epochs = run.begun.get("steps_per_epoch"), run.epochs
    of = f" of {steps * epochs:,}" if steps and epochs else ""
    lines = [(f"{run.name}: step {run.step:,}{of}", "")]
    best = run.best()
    if best is not None:
        lines.append((f"Best step: {best.step:,} (epoch {best.epoch})", "good"))
        lines.append((f"{_INDENT}{best.words()}", "good"))
    lines += [*_restarts(run), _bad_steps(run), *_slow_worker(run)]
    speed, goodput = run.examples_per_second, run.last("goodput")
    if speed is not None and goodput is not None:
        lines.append((f"{speed:,.0f} examples/s, goodput {100 * goodput:.0f} %", ""))
    return lines


def _restarts(run):
    return _failures(run) + _stops(run)


def _stops(run):
    stops = story.restarts_of(run.events, stops=True)
    if not stops:
        return []
    number, step = pages.counted(len(stops), "stop"), stops[-1][1]["step"]
    return [(f"{number} on request, the last at step {step:,}", "")]


def _failures(run):
    restarts = story.restarts_of(run.events)
    if not restarts:
        return [("No restart", "good")]
    before, last = restarts[-1]
    where = ": it went on from step" if len(restarts) == 1 else ", the last from step"
    lines = [(f"{pages.counted(len(restarts), 'restart')}{where} {last['step']:,}", "bad")]
    why = [c["text"] for c in run.causes if before["time"] <= c["time"] <= last["time"]]
    if why:
        text = _IN_BRACKETS.sub("", why[-1]).replace(" failed first:", " failed:")
        lines.append((f"{_INDENT}{text}", "bad"))
    return lines


def _bad_steps(run):
    steps = [event["step"] for event in run.events if event["event"] == "bad step"]
    if not steps:
        return "No bad step", "good"
    return f"{pages.counted(len(steps), 'bad step')}, the last was {steps[-1]:,}", "bad"


def _slow_worker(run):
    slow = run.slowest()
    if run.begun.get("num_workers", 1) == 1:
        return []
    if slow is None:
        return [("Slow worker: unknown,", ""), (run.unseen_times or "nothing is measured yet", "")]
    if slow.seems_slow and not slow.is_slow:
        text = f"Worker {slow.worker} may be slow: {slow.others:.2f} times the others,"
        return [(text, ""), (f"{_INDENT}but not steadily", "")]
    if not slow.is_slow:
        return [("No worker is slow", "good")]
    now = " now" if slow.is_recent else ""
    text = f"Slow worker: worker {slow.worker}{now}, {slow.others:.2f} times the others"
    return [(text, "bad"), (f"{_INDENT}{slow.reason}", "bad")]


def picture(lines):
    """Draw lines of text below each other.

    What is too wide for the card goes on in the next row. Of long names the middle is left out.

    Args:
        lines: as `facts` returns them.

    Returns:
        `(png, size)`: the file, as bytes, and its width and height.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(16)
    rows = []
    for text, kind in lines:
        left = _MARGIN + (18 if kind else 0)
        parts = wrapped(text, _WIDTH - _MARGIN - left, font.getlength)
        rows += [(left, part, kind, not i) for i, part in enumerate(parts)]
    page = Image.new("RGB", (_WIDTH, 2 * _MARGIN + _LINE * len(rows)), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    for i, (left, text, kind, is_first) in enumerate(rows):
        top = _MARGIN + i * _LINE
        if kind and is_first and not text.startswith(" "):
            draw.ellipse((_MARGIN, top + 6, _MARGIN + 9, top + 15), fill=_COLOURS[kind])
        draw.text((left, top), text, fill=_COLOURS[kind], font=font)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue(), page.size


def wrapped(text, room, length):
    """Cut a line of text into rows that fit.

    Args:
        text: a line; where it begins with spaces, all its rows do.
        room: pixels.
        length: a function that returns the pixels of a text.

    Returns:
        The rows. A name, which is a word of more than 24 characters, is shortened where the line
        is too long with it.
    """
    indent = text[: len(text) - len(text.lstrip())]
    words = text.split()
    if not words:
        return [text]
    names = {i: word for i, word in enumerate(words) if len(word) > _NAME}
    while names and length(indent + " ".join(words)) > room:
        longest = max(names, key=lambda i: len(words[i]))
        if len(words[longest]) <= _NAME:
            break
        words[longest] = _shortened(names[longest], len(words[longest]) - 1)
    rows = [indent + words[0]]
    for word in words[1:]:
        if length(f"{rows[-1]} {word}") <= room:
            rows[-1] += f" {word}"
        else:
            rows.append((indent or _INDENT) + word)
    return rows


def _shortened(name, count):
    """So many characters of a name, without its middle."""
    return f"{name[: count - 1 - count // 2]}…{name[-(count // 2) :]}"
