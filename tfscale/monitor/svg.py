"""Charts as SVG text: lines over steps with marks, and bars. No script, nothing from outside."""

import dataclasses
import html
import math

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40
_MOST_POINTS = 600  # of a line that are drawn
_LEAST = 1e-200  # what is smaller is drawn as 0


@dataclasses.dataclass
class Line:
    """One line of a chart.

    Args:
        name: what a pointer that rests on it is told.
        points: pairs of step and value.
        colour: of CSS.
        faint: drawn thin, behind the others.
    """

    name: str
    points: list
    colour: str
    faint: bool = False


@dataclasses.dataclass
class Mark:
    """A place on a chart: a line across it, or a star where there is a value.

    Args:
        name: what a pointer that rests on it is told.
        step: where it is.
        colour: of CSS.
        value: the height of the star; None for a line from top to bottom.
        is_dotted: the line is dotted, and not dashed.
    """

    name: str
    step: int
    colour: str
    value: float | None = None
    is_dotted: bool = False


def chart(lines, marks=()):
    """Return a chart of lines over steps.

    Args:
        lines: the `Line`s.
        marks: the `Mark`s on it.
    """
    lines = [dataclasses.replace(line, points=_thinned(line.points)) for line in lines]
    lines = [line for line in lines if line.points]
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    xs = _Scale([x for x, _ in points], _LEFT, _WIDTH - _RIGHT)
    ys = _Scale(_without_outliers([y for _, y in points]), _HEIGHT - _BOTTOM, _TOP)
    parts = [_axes(xs, ys)]
    for mark in marks:
        if mark.value is None:
            x, dashes = xs(mark.step), "2 3" if mark.is_dotted else "6 3"
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" '
                f'stroke="{mark.colour}" stroke-width="1.5" stroke-dasharray="{dashes}">'
                f"{_title(mark.name)}</line>"
            )
    for line in sorted(lines, key=lambda line: not line.faint):
        path = " ".join(f"{xs(x):.1f},{ys(y):.1f}" for x, y in line.points)
        look = 'stroke-width="1" opacity="0.45"' if line.faint else 'stroke-width="2"'
        parts.append(
            f'<polyline fill="none" stroke="{line.colour}" {look} points="{path}">'
            f"{_title(line.name)}</polyline>"
        )
        for x, y in line.points if len(line.points) <= 60 else line.points[-1:]:
            told = _title(f"{line.name}: {number(y)} at step {x}")
            radius, opacity = (1.8, 0.45) if line.faint else (2.6, 1)
            parts.append(
                f'<circle cx="{xs(x):.1f}" cy="{ys(y):.1f}" r="{radius}" opacity="{opacity}" '
                f'fill="{line.colour}">{told}</circle>'
            )
    for mark in marks:
        if mark.value is not None:
            parts.append(
                f'<text x="{xs(mark.step):.1f}" y="{ys(mark.value) + 6:.1f}" font-size="20" '
                f'text-anchor="middle" fill="{mark.colour}" stroke="#222" stroke-width="0.6">'
                f"★{_title(mark.name)}</text>"
            )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def bars(rows, unit="ms"):
    """Return horizontal bars, each cut into parts.

    Args:
        rows: pairs of a name and a list of `(part, value, colour)`.
        unit: of the values.
    """
    longest = max((sum(v for _, v, _ in parts) for _, parts in rows), default=0)
    if not longest:
        return ""
    height = 24 * len(rows) + 4
    drawn = []
    for i, (name, parts) in enumerate(rows):
        y, x = 24 * i + 4, 84.0
        drawn.append(f'<text x="80" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
        for part, value, colour in parts:
            width = value / longest * (_WIDTH - 150)
            told = _title(f"{name}, {part}: {number(value)} {unit}")
            drawn.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="17" fill="{colour}">'
                f"{told}</rect>"
            )
            x += width
        total = sum(value for _, value, _ in parts)
        drawn.append(f'<text x="{x + 5:.1f}" y="{y + 13}">{number(total)} {unit}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(drawn)}</svg>'


def number(value):
    """Return a number in a few characters."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) >= 10_000:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2g}"
    return f"{value:.4g}"


class _Scale:
    """From values to pixels, with round numbers at its ticks."""

    def __init__(self, values, begin, end):
        low, high = min(values), max(values)
        if high - low <= 1e-12 * max(abs(low), abs(high), _LEAST):
            low, high = low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1)
        self.low, self.high, self.begin, self.end = low, high, begin, end

    def __call__(self, value):
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, most):
        rough = (self.high - self.low) / most
        power = 10 ** math.floor(math.log10(rough))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)]


def _axes(xs, ys):
    parts = []
    for tick in ys.ticks(5):
        y = ys(tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
        )
    for tick in xs.ticks(6):
        x = xs(tick)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 23}" text-anchor="middle">{number(tick)}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 7}" text-anchor="middle">step</text>')
    return "".join(parts)


def _thinned(points):
    """At most so many points, the first and the last among them."""
    if len(points) <= _MOST_POINTS:
        return points
    every = (len(points) - 1) / (_MOST_POINTS - 1)
    return [points[round(i * every)] for i in range(_MOST_POINTS)]


def _without_outliers(values):
    """Values whose range is that of the chart: a few far off do not flatten the rest."""
    ordered = sorted(values)
    if len(ordered) < 20:
        return ordered
    low, high = ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]
    room = high - low
    return [v for v in ordered if low - room <= v <= high + room] or ordered


def _title(text):
    return f"<title>{html.escape(text)}</title>"
