"""Runs side by side on one page of HTML that needs no server and nothing from outside.

What one wants to know first stands at the top: a line a run, then what happened. Charts, the
workers' times, pictures and the configurations follow.
"""

import base64
import datetime
import html
import shlex

from tfscale.monitor import story, svg, workers
from tfscale.monitor.run_files import duration, read_json
from tfscale.monitor.scores import in_words

_COLOURS = ("#1f77b4", "#d9730d", "#2a9d4e", "#b3261e", "#7e57c2", "#8d6e63", "#c2418f", "#555")
_PARTS = {
    "input": "#8ecae6",
    "compute": "#219ebc",
    "reduction": "#ffb703",
    "wait": "#d62828",
    "exchange": "#f2cc8f",
    "host": "#9d4edd",
    "other": "#bbbbbb",
}
_PICTURES = ("inputs", "worst_mistakes", "confusion_matrix")
_BESIDE = (  # what stands beside the metrics, in charts of their own
    ("learning rate", "train", "learning_rate"),
    ("examples per second", "train", "examples_per_second"),
    ("goodput: share of the time that trained", "", "goodput"),
    ("norm of gradients", "", "gradient_norm"),
    ("norm of weights", "", "weight_norm"),
)
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:1500px;padding:18px 26px;
color:#1c1c1c;background:#fafafa}
h1{font-size:22px;margin:4px 0 12px}h2{font-size:18px;margin:30px 0 8px}
h3{font-size:14px;margin:4px 0;font-weight:600}
table{border-collapse:collapse;background:#fff}td,th{border:1px solid #ddd;padding:5px 9px;
text-align:left;vertical-align:top}th{background:#f0f0f0;font-weight:600}
.scroll{overflow-x:auto}.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));
gap:14px}.card{background:#fff;border:1px solid #ddd;border-radius:6px;padding:8px 12px}
svg{width:100%;font:11px system-ui,sans-serif;fill:#333}.grid{stroke:#e8e8e8}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px}
.bad{background:#fde7e7}.good{background:#e6f5ea}
ul{margin:4px 0;padding-left:20px}img{max-width:100%;border:1px solid #ddd}
code{font:13px ui-monospace,monospace;word-break:break-all}small{color:#666}
"""


def page(runs, now):
    """Return the page.

    Args:
        runs: a list of `run_files.RunFiles`.
        now: the time that it shows, in seconds since 1970.
    """
    moment = datetime.datetime.fromtimestamp(now).strftime("%Y-%m-%d %H:%M:%S")
    colours = {run.path: _COLOURS[i % len(_COLOURS)] for i, run in enumerate(runs)}
    title = ", ".join(run.name for run in runs)
    parts = [
        f"<h1>{_text(title)} <small>as of {moment}</small></h1>",
        _overview(runs, colours, now),
        "<h2>What happened</h2>",
        _happened(runs, colours),
        "<h2>Does it learn?</h2>",
        "<p><small>Thick: validation; thin: training. A star is the best step, a dashed line "
        "a restart, a dotted one in red a bad step. Rest the pointer on a point for its "
        "value.</small></p>",
        _curves(runs, colours),
        "<h2>Is it fast, is it healthy?</h2>",
        _beside(runs, colours),
        _times(runs, colours),
        _pictures(runs, colours),
        "<h2>Configuration</h2>",
        _configurations(runs, colours),
    ]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>'
        f"{''.join(part for part in parts if part)}</body></html>\n"
    )


def _overview(runs, colours, now):
    """A row a run; what is out of order has a colour."""
    head = (
        "run", "state", "best", "test", "steps", "time", "examples/s", "goodput", "restarts",
        "bad steps", "slow worker",
    )  # fmt: skip
    rows = []
    for run in runs:
        best, slow = run.best(), run.slowest()
        is_slow = slow is not None and slow.is_slow
        alone = (
            "one worker"
            if run.begun.get("num_workers", 1) == 1
            else run.unseen_times or "not measured"
        )
        who = f"worker {slow.worker}: {slow.others:.2f} times the others" if is_slow else "none"
        cells = [
            (f"<nobr>{_key(colours[run.path])}<b>{_text(run.name)}</b></nobr>", ""),
            (_text(run.state(now)), "good" if run.state(now) == "finished" else ""),
            (_best_text(best), ""),
            (" ".join(f"{_text(n)} {in_words(v)}" for n, v in run.tested.items()), ""),
            (f"{run.step:,}", ""),
            (f"<nobr>{duration(run.seconds)}</nobr>", ""),
            (f"{run.examples_per_second:,.0f}" if run.examples_per_second else "", ""),
            (_percent(run.last("goodput")), ""),
            (str(run.restarts), "bad" if run.restarts else ""),
            (str(run.bad_steps), "bad" if run.bad_steps else ""),
            (_text(alone) if slow is None else who, "bad" if is_slow else ""),
        ]
        rows.append("".join(f'<td class="{kind}">{text}</td>' for text, kind in cells))
    titles = "".join(f"<th>{name}</th>" for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{titles}</tr>{body}</table></div>'


def _best_text(best):
    if best is None:
        return ""
    what = f"{best.split} {_text(best.name)} <b>{in_words(best.value)}</b>"
    return f"{what} at step <b>{best.step:,}</b>, epoch {best.epoch}"


def _happened(runs, colours):
    cards = []
    for run in runs:
        lines = [text for _, text in run.happened()]
        slow = run.slowest()
        if slow is not None:
            lines.append(slow.words())
        if not lines:
            lines = ["It did not say."]
        items = "".join(f"<li>{_text(line[0].upper() + line[1:])}</li>" for line in lines)
        command = run.begun.get("command", "")
        again = f"<p>Again: <code>{_text(command)}</code></p>" if command else ""
        cards.append(_card(_key(colours[run.path]) + _text(run.name), f"<ul>{items}</ul>{again}"))
    return f'<div class="charts">{"".join(cards)}</div>'


def _curves(runs, colours):
    names = list(dict.fromkeys(name for run in runs for name in run.metrics(of_several=True)))
    names.sort(key=lambda name: (name != "loss", name))
    cards = []
    for name in names:
        lines, marks = [], []
        for run in runs:
            colour = colours[run.path]
            trained, validated = run.curve("train", name), run.curve("validation", name)
            label = f"{run.name} training"
            lines.append(svg.Line(label, trained, colour, faint=bool(validated)))
            lines.append(svg.Line(f"{run.name} validation", validated, colour))
            marks += _marks(run, colour)
            best = run.best()
            if best is not None and best.name == name:
                told = f"best step of {run.name}: {best.words()} at step {best.step}"
                marks.append(svg.Mark(told, best.step, colour, best.value))
        cards.append(_card(_text(name), svg.chart(lines, marks)))
    return f'<div class="charts">{"".join(cards)}</div>'


def _marks(run, colour):
    """Restarts, also those after a stop, and bad steps."""
    pairs = story.restarts_of(run.events) + story.restarts_of(run.events, stops=True)
    marks, restarts = [], [begun for _, begun in pairs]
    for event, text in run.happened():
        if event in restarts:
            marks.append(svg.Mark(f"{run.name}: {text}", event["step"], colour))
        elif event["event"] == "bad step":
            marks.append(svg.Mark(f"{run.name}: {text}", event["step"], "#d62828", is_dotted=True))
    return marks


def _beside(runs, colours):
    cards = []
    for title, kind, name in _BESIDE:
        lines = [svg.Line(r.name, r.curve(kind, name), colours[r.path]) for r in runs]
        drawn = svg.chart(lines, [mark for run in runs for mark in _marks(run, colours[run.path])])
        if drawn:
            cards.append(_card(title, drawn))
    return f'<div class="charts">{"".join(cards)}</div>'


def _times(runs, colours):
    """Where a step's time goes, of each run and of each of its workers."""
    split, cards = [], []
    for run in runs:
        found = {part: run.curve("", f"seconds/{part}") for part in workers.PARTS}
        if found["compute"]:
            typical = {p: 1e3 * workers.mean(v for _, v in c) for p, c in found.items() if c}
            split.append((run.name[-14:], [(p, v, _PARTS[p]) for p, v in typical.items()]))
        each = _worker_rows(run)
        if len(each) > 1:
            lines = []
            for worker in range(len(each)):
                points = [
                    (r["step"], 1e3 * before[worker])
                    for r in run.records
                    if len(before := workers.before_reduction(r.get("workers"))) > worker
                ]
                lines.append(svg.Line(f"worker {worker}", points, _COLOURS[worker % 8]))
            slow = run.slowest()
            cards.append(
                _card(
                    f"{_key(colours[run.path])}{_text(run.name)}: ms a step, by worker",
                    f"{svg.bars(each)}<p>{_text(slow.words())}</p>",
                )
            )
            keys = " ".join(f"{_key(line.colour)}{line.name}" for line in lines)
            cards.append(
                _card(
                    f"{_key(colours[run.path])}{_text(run.name)}: ms before the reduction",
                    f"{svg.chart(lines, _marks(run, '#999'))}<p>{keys}</p>",
                )
            )
    unseen = [run for run in runs if run.unseen_times]
    told = "".join(f"<p>{_text(r.name)}: unknown, {_text(r.unseen_times)}.</p>" for r in unseen)
    if not split:
        return f"<h2>Where a step's time goes</h2>{told}" if told else ""
    keys = " ".join(f"{_key(colour)}{part}" for part, colour in _PARTS.items())
    first = _card("a step, mean ms", svg.bars(split) + f"<p><small>{keys}</small></p>")
    return (
        f'<h2>Where a step\'s time goes</h2>{told}<div class="charts">{first}{"".join(cards)}</div>'
        "<p><small>The worker with the longest time before the reduction (input, compute, host) "
        "is the one that all others wait for. Exchange is the reduction and the wait for the "
        "last one.</small></p>"
    )


def _worker_rows(run):
    """A bar a worker: means over the records of the last number of workers."""
    times = [record["workers"] for record in run.records if record.get("workers")]
    count = len(times[-1]["host"]) if times else 0
    times = [one for one in times if len(one["host"]) == count]
    rows = []
    for worker in range(count):
        parts = []
        for part in ("input", "compute", "host", "exchange"):
            typical = workers.mean(one[part][worker] for one in times)
            parts.append((part, 1e3 * typical, _PARTS[part]))
        rows.append((f"worker {worker}", parts))
    return rows


def _pictures(runs, colours):
    cards = []
    for name in _PICTURES:
        for run in runs:
            path = run.path / "pictures" / f"{name}.png"
            if path.exists():
                content = base64.b64encode(path.read_bytes()).decode()
                image = f'<img alt="{name}" src="data:image/png;base64,{content}">'
                title = f"{_key(colours[run.path])}{_text(run.name)}: {name.replace('_', ' ')}"
                cards.append(_card(title, image))
    return f'<h2>Pictures</h2><div class="charts">{"".join(cards)}</div>' if cards else ""


def _configurations(runs, colours):
    """The fields that differ, and all of them folded away."""
    flat = [_flat(run.config) for run in runs]
    for run, fields in zip(runs, flat, strict=True):
        about = ("strategy", "num_workers", "num_replicas", "host", "parameters")
        fields |= {n: run.begun[n] for n in about if n in run.begun}
        script = read_json(run.path.parent.parent / "launch.json").get("target")
        fields |= {"script": shlex.join(script)} if script else {}
        fields |= {f"version of {n}": v for n, v in run.begun.get("versions", {}).items()}
    names = list(dict.fromkeys(name for fields in flat for name in fields))
    differ = [name for name in names if len({str(fields.get(name, "")) for fields in flat}) > 1]
    head = "".join(f"<th>{_key(colours[run.path])}{_text(run.name)}</th>" for run in runs)

    def table(shown):
        rows = "".join(
            f"<tr><td>{_text(name)}</td>"
            + "".join(f"<td>{_text(str(fields.get(name, '')))}</td>" for fields in flat)
            + "</tr>"
            for name in shown
        )
        return f'<div class="scroll"><table><tr><th></th>{head}</tr>{rows}</table></div>'

    found = table(differ) if differ else "<p>All fields are equal.</p>" if len(runs) > 1 else ""
    return f"{found}<details><summary>all fields</summary>{table(names)}</details>"


def _flat(config):
    return {
        f"{section}.{name}": value
        for section, values in config.items()
        if isinstance(values, dict)
        for name, value in values.items()
    }


def _percent(share):
    return "" if share is None else f"{100 * share:.0f} %"


def _card(title, content):
    return f'<div class="card"><h3>{title}</h3>{content}</div>'


def _key(colour):
    return f'<span class="key" style="background:{colour}"></span>'


def _text(text):
    return html.escape(str(text))
