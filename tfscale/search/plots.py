"""Two pictures of a search: `objective.png` over the trials, `parameters.png` against them.

matplotlib is imported when a picture is drawn, without its `pyplot`: nothing opens a window and
no figure is kept in memory.
"""

import gc
import math
import os
import pathlib
import statistics

from tfscale.search import table, trials
from tfscale.search.importance import FEWEST, importances, is_number

_LOOKS = {  # marker and colour of a state
    trials.COMPLETED: ("o", "#1f77b4"),
    trials.STOPPED: ("^", "#ff7f0e"),
    trials.RUNNING: (".", "#7f7f7f"),
    trials.DIVERGED: ("x", "#d62728"),
    trials.OUT_OF_MEMORY: ("s", "#9467bd"),
    trials.HUNG: ("D", "#8c564b"),
    trials.FAILED: ("P", "#e377c2"),
}
_OFF = "worse than the axis shows"
_COLUMNS = 3
_MOST_PARAMETERS = 18  # the most important ones are drawn


def draw(facts, records, folder):
    """Draw both pictures; each file is whole at each moment.

    Args:
        facts: the `SearchFacts`.
        records: all trials.
        folder: where `objective.png` and `parameters.png` go.
    """
    for name, draw_one in (("objective.png", _objective), ("parameters.png", _parameters)):
        figure = draw_one(facts, records)
        path = pathlib.Path(folder) / name
        beside = path.with_name(f".{name}.writing")
        try:
            figure.savefig(beside, format="png", dpi=110)
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        finally:
            del figure
            gc.collect()  # a figure holds itself in cycles, some megabytes each


def _objective(facts, records):
    """The score of each trial in the order of creation, and the best so far."""
    figure = _figure(9, 4.8)
    axes = figure.add_subplot()
    low, high = _range(facts, records)
    for state in _LOOKS:
        mine = [(i, r) for i, r in enumerate(records) if r.state == state]
        if mine:
            label = f"{table.words(state)} ({len(mine)})"
            scores = [r.score for _, r in mine]
            _dots(axes, facts, [i for i, _ in mine], scores, (low, high), state, label, 36)
    best, xs, ys = None, [], []
    for i, record in enumerate(records):
        if record.state in trials.SCORED and facts.better(record.score, best):
            best = record.score
        if best is not None:
            xs.append(i)
            ys.append(_height(facts, best, low, high))
    axes.step(xs, ys, where="post", color="#2ca02c", label="best so far", zorder=2)
    winner = table.best_of(facts, records)
    if winner is not None:
        title = f"{facts.tuner} search: best {facts.objective} {winner.score:.4f}"
        axes.set_title(f"{title}, trial {winner.id}", fontsize=11)
    axes.set_xlabel("trial")
    _scale_objective(axes, facts, low, high)
    axes.xaxis.get_major_locator().set_params(integer=True)
    handles = {handle.get_label(): handle for handle in axes.get_legend_handles_labels()[0]}
    axes.legend(handles=[*handles.values()], fontsize=8, loc="best")
    return figure


def _parameters(facts, records):
    """The objective against each parameter, the most important first."""
    found = importances(facts, records)[:_MOST_PARAMETERS]
    parameters = {parameter.name: parameter for parameter in facts.parameters}
    short = table.short_names([importance.name for importance in found])
    columns = max(min(_COLUMNS, len(found)), 1)
    rows = max(math.ceil(len(found) / columns), 1)
    figure = _figure(4.2 * columns, 3.6 * rows + 0.5)
    low, high = _range(facts, records)
    for place, importance in enumerate(found):
        axes = figure.add_subplot(rows, columns, place + 1)
        _one_parameter(axes, facts, records, parameters[importance.name], low, high)
        text = f"{short[importance.name]}: importance {importance.share:.2f}"
        if importance.num_trials < FEWEST:
            text = f"{short[importance.name]}: too few trials"
        if importance.correlation is not None:
            text += f", ρ = {importance.correlation:+.2f}"
        axes.set_title(text, fontsize=10)
        axes.set_xlabel(importance.name, fontsize=8)
        _scale_objective(axes, facts, low, high)
        axes.tick_params(labelsize=8)
    if figure.axes:
        found = [h for a in figure.axes for h in a.collections if h.get_offsets().size]
        handles = {handle.get_label(): handle for handle in reversed(found)}
        figure.legend(
            handles=[*handles.values()][::-1],
            loc="outside lower center",
            ncols=len(_LOOKS),
            fontsize=8,
        )
    figure.suptitle(
        f"{facts.objective} against each parameter (importance: share of the variance of ranks)",
        fontsize=9,
    )
    return figure


def _one_parameter(axes, facts, records, parameter, low, high):
    places = None
    if not is_number(parameter):
        known = list(map(str, parameter.choices))
        values = [str(r.values[parameter.name]) for r in records if parameter.name in r.values]
        known += sorted(set(values) - set(known))
        places = {value: place for place, value in enumerate(known)}
    for state in _LOOKS:
        mine = [r for r in records if r.state == state and parameter.name in r.values]
        xs = [r.values[parameter.name] for r in mine]
        if places is not None:  # beside each other, the same in every drawing
            aside = [0.3 * (0.618 * records.index(r) % 1 - 0.5) for r in mine]
            xs = [places[str(x)] + a for x, a in zip(xs, aside, strict=True)]
        scores = [r.score for r in mine]
        _dots(axes, facts, xs, scores, (low, high), state, table.words(state), 26)
    if places is not None:
        axes.set_xticks(range(len(places)), list(places))
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif parameter.sampling == "log":
        axes.set_xscale("log")
        axes.set_xlim(parameter.low / 1.3, parameter.high * 1.3)
    elif parameter.sampling == "reverse_log" and parameter.low > 0:
        _reverse_log(axes, parameter.low, parameter.high)


def _dots(axes, facts, xs, scores, ends, state, label, size):
    """Draw the trials of one state; those that are worse than the axis shows are hollow."""
    marker, colour = _LOOKS[state]
    off = [s is not None and math.isfinite(s) and not ends[0] <= s <= ends[1] for s in scores]
    ys = [_height(facts, score, *ends) for score in scores]
    shown = [(x, y) for x, y, is_off in zip(xs, ys, off, strict=True) if not is_off]
    hollow = [(x, y) for x, y, is_off in zip(xs, ys, off, strict=True) if is_off]
    look = {"marker": marker, "s": size, "zorder": 3, "clip_on": False}
    axes.scatter(*_columns(shown), color=colour, label=label, **look)
    if hollow:
        xs, ys = _columns(hollow)
        axes.scatter(xs, ys, facecolors="none", edgecolors=colour, label=_OFF, **look)


def _columns(points):
    return [x for x, _ in points], [y for _, y in points]


def _reverse_log(axes, low, high):
    """Stretch the upper end of an axis as `reverse_log` sampling does.

    keras-tuner draws `low + high - low * (high / low) ** p`, p uniform.
    """

    def forward(x):
        from numpy import log, maximum

        return -log(maximum(low + high - x, low * 1e-3))

    def backward(x):
        from numpy import exp

        return low + high - exp(-x)

    axes.set_xscale("function", functions=(forward, backward))
    axes.set_xlim(low, high)


def _figure(width, height):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _range(facts, records):
    """Return the ends of the axis of the objective, so that bad trials do not flatten the rest.

    What is worse than the median by more than three times what the best is better is drawn at
    the edge.
    """
    scores = [r.score for r in records if r.score is not None and math.isfinite(r.score)]
    if not scores:
        return 0.0, 1.0
    middle = statistics.median(scores)
    best = max(scores) if facts.direction == "max" else min(scores)
    reach = 3 * abs(best - middle)
    if facts.direction == "max":
        low, high = (max(min(scores), middle - reach) if reach else min(scores)), best
    else:
        low, high = best, (min(max(scores), middle + reach) if reach else max(scores))
    margin = 0.06 * (high - low) or 0.01 * abs(high) or 0.01
    return low - margin, high + margin


def _height(facts, score, low, high):
    """Return where a score is drawn; one that is missing or off the axis at the bad edge."""
    edge = low if facts.direction == "max" else high
    if score is None or not math.isfinite(score):
        return edge
    return min(max(score, low), high)


def _scale_objective(axes, facts, low, high):
    margin = 0.03 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel(facts.objective)
    axes.grid(True, alpha=0.3)
