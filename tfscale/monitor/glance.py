"""How a run is, in six short lines: the picture that TensorBoard's first page begins with.

Pure functions of what the run's files say, which is also what `watch` and the report show.
"""

import io
import re

_WIDTH, _LINE, _MARGIN = 416, 25, 8  # pixels; a card of TensorBoard is so wide
_COLOURS = {"": (90, 90, 90), "good": (30, 130, 70), "bad": (190, 30, 30)}
_MOST_CHARACTERS = 52  # of a line
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
        lines.append((f"Best step: {best.step:,} (epoch {best.epoch}), {best.words()}", "good"))
    lines += [*_restarts(run), _bad_steps(run), *_slow_worker(run)]
    speed, goodput = run.last("examples_per_second"), run.last("goodput")
    if speed is not None and goodput is not None:
        lines.append((f"{speed:,.0f} examples/s; {100 * goodput:.0f} % of the time trained", ""))
    return lines


def _restarts(run):
    if not run.restarts:
        return [("No restart", "good")]
    before, last = [event for event in run.events if event["event"] == "begin"][-2:]
    step = f"{last['step']:,}"
    one = f"1 restart: it went on from step {step}"
    several = f"{run.restarts} restarts, the last from step {step}"
    lines = [(one if run.restarts == 1 else several, "bad")]
    why = [c["text"] for c in run.causes if before["time"] <= c["time"] <= last["time"]]
    if why:
        text = _IN_BRACKETS.sub("", why[-1]).replace(" failed first:", " failed:")
        lines.append((f"    {text}", "bad"))
    return lines


def _bad_steps(run):
    steps = [event["step"] for event in run.events if event["event"] == "bad step"]
    if not steps:
        return "No bad step", "good"
    return f"{len(steps)} bad step(s), the last was {steps[-1]:,}", "bad"


def _slow_worker(run):
    slow = run.slowest()
    if run.begun.get("num_workers", 1) == 1:
        return []
    if slow is None:
        return [("Slow worker: unknown,", ""), (run.unseen_times or "nothing is measured yet", "")]
    if not slow.is_slow:
        return [("No worker is slow", "good")]
    now = " now" if slow.is_recent else ""
    text = f"Slow worker: worker {slow.worker}{now}, {slow.others:.2f} times the others"
    return [(text, "bad"), (f"    {slow.reason}", "bad")]


def picture(lines):
    """Draw lines of text below each other.

    Args:
        lines: as `facts` returns them.

    Returns:
        `(png, size)`: the file, as bytes, and its width and height.
    """
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (_WIDTH, 2 * _MARGIN + _LINE * len(lines)), (255, 255, 255))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    for i, (text, kind) in enumerate(lines):
        top = _MARGIN + i * _LINE
        if kind and not text.startswith(" "):
            draw.ellipse((_MARGIN, top + 6, _MARGIN + 9, top + 15), fill=_COLOURS[kind])
        left = _MARGIN + (18 if kind else 0)
        draw.text((left, top), text[:_MOST_CHARACTERS], fill=_COLOURS[kind], font=font)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue(), page.size
