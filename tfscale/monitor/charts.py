"""The curves of a run by their names in TensorBoard, and the page that shows them side by side.

TensorBoard opens the first two groups by itself, in the order of their names: so they are
numbered, and what answers the first questions is in these two. Pure functions of records.
"""

import re
import statistics

from tfscale.monitor import workers

_LEARNING = "1 learning"
_HEALTH = "2 speed and health"
_STEP = "3 a step in ms"
_NORMS = "4 norms and bytes"
_PLACES = {  # where a number of a record is shown, which is else the first group
    "learning_rate": f"{_LEARNING}/learning rate",
    "examples_per_second": f"{_HEALTH}/examples per second",
    "goodput": f"{_HEALTH}/goodput",
    "restarts": f"{_HEALTH}/restarts",
    "bad_steps": f"{_HEALTH}/bad steps",
    "step_seconds": f"{_STEP}/all",
    "gradient_norm": f"{_NORMS}/norm of gradients",
    "weight_norm": f"{_NORMS}/norm of weights",
    "bytes_sent": f"{_NORMS}/megabytes sent by a replica",
}
_RELATIVE = f"{_HEALTH}/slow worker, times the others"
_BY_WORKER = f"{_STEP}/before the reduction, by worker"
GLANCE = f"{_LEARNING}/0 how it is"  # a picture, first of the first group
_PARTS = "(/[0-9]+)?$"  # of a metric of several numbers
_FACTORS = {"step_seconds": 1e3, "bytes_sent": 1e-6}


def tag(name):
    """Return the name in TensorBoard of a metric, or of another number of a record."""
    return _PLACES.get(name, f"{_LEARNING}/{name}")


def curves(kind, record):
    """Return the points of one record.

    Args:
        kind: "train", "validation", "test" or "evaluator".
        record: a line of `metrics.jsonl`, whose values of this kind are under its name.

    Returns:
        A dict from the run in TensorBoard, such as "train" or "worker-0", to numbers by tag.
    """
    points = {}
    for name, value in record[kind].items():
        if isinstance(value, list):  # a metric of several numbers, such as one a class
            points |= {f"{tag(name)}/{i}": part for i, part in enumerate(value)}
        else:
            points[tag(name)] = value * _FACTORS.get(name, 1)
    for name in _PLACES:
        if name in record:
            points[tag(name)] = record[name] * _FACTORS.get(name, 1)
    for name, value in record.get("seconds", {}).items():
        points[f"{_STEP}/{name}"] = 1e3 * value
    found = {kind: points}
    each = workers.before_reduction(record.get("workers"))
    for worker, seconds in enumerate(each if len(each) > 1 else []):
        others = statistics.median(each[:worker] + each[worker + 1 :])
        own = {_BY_WORKER: 1e3 * seconds}
        found[f"worker-{worker}"] = own | ({_RELATIVE: seconds / others} if others else {})
    return found


def layout(names, num_workers=1, has_times=True):
    """Return TensorBoard's message for a page of charts that answers three questions.

    Args:
        names: of its numbers, as they are in its records.
        num_workers: of the run; what there is of several only is else left out.
        has_times: the times of workers are measured; charts of them are else left out.
    """
    from tensorboard.plugins.custom_scalar import layout_pb2

    def chart(title, *tags, end="$"):
        patterns = [f"^{re.escape(t)}{end}" for t in tags]
        content = layout_pb2.MultilineChartContent(tag=patterns)
        return layout_pb2.Chart(title=title, multiline=content)

    def category(title, *charts):
        return layout_pb2.Category(title=title, chart=charts)

    parts = [f"{_STEP}/{part}" for part in (*workers.PARTS, "all")]
    step = chart("where a step's time goes, ms", *parts)
    if not has_times:
        step = chart("a step, ms", f"{_STEP}/all")
    of_workers = [
        chart("who is slow: time before the reduction, times the others", _RELATIVE),
        chart("the same in ms: all wait for the highest worker", _BY_WORKER),
    ]
    of_several = of_workers if has_times else []
    of_several = [*of_several, chart("megabytes sent by a replica", tag("bytes_sent"))]
    return layout_pb2.Layout(
        category=[
            category(
                "Does it learn?",
                *[
                    chart(f"{name}, training and validation", tag(name), end=_PARTS)
                    for name in names
                ],
                chart("learning rate", tag("learning_rate")),
            ),
            category(
                "Is it fast?",
                chart("examples per second", tag("examples_per_second")),
                step,
                *(of_several if num_workers > 1 else []),
            ),
            category(
                "Is it healthy?",
                chart("goodput: share of the time that trained", tag("goodput")),
                chart("restarts and bad steps so far", tag("restarts"), tag("bad_steps")),
                chart("norm of gradients", tag("gradient_norm")),
                chart("norm of weights", tag("weight_norm")),
            ),
        ]
    )
