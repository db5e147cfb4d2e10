"""TensorBoard's HPARAMS page, filled: what was chosen for each trial and how it ended.

A trial's summary lies at the top of its own `tensorboard` folder, above the curves in `train` and
`validation`; what the search is lies in the search's. Files are written whole and once, without
TensorFlow, through tensorboard's own messages (those that `tensorboard.plugins.hparams.api`
gives to everyone; that name itself would import TensorFlow).
"""

import json
import math
import pathlib
import time

from tfscale.monitor import charts
from tfscale.search import table, trials

# TensorBoard reads a folder's files in the order of their names.
_EXPERIMENT = "events.out.tfevents.0000000001.experiment"
_CHOSEN = "events.out.tfevents.0000000001.chosen"
_ENDED = "events.out.tfevents.0000000002.ended"


class HParams:
    """Writes what TensorBoard needs, when it is there to be written.

    Args:
        facts: the `SearchFacts`.
    """

    def __init__(self, facts):
        self._facts = facts
        self._done = set()

    def update(self, records):
        """Write what is new since the last call, or since the life before.

        Args:
            records: all trials.
        """
        names = tuple(parameter.name for parameter in self._facts.parameters)
        if names not in self._done:  # the space of a script may grow while trials run
            place = pathlib.Path(self._facts.run_dir) / "tensorboard" / _EXPERIMENT
            _write(place, [(0, self._facts.began, self._experiment())])
            self._done.add(names)
        for record in records:
            folder = pathlib.Path(record.path) / "tensorboard"
            has_ended = record.state != trials.RUNNING
            if record.started is not None and (record.history or has_ended):
                self._once(folder / _CHOSEN, self._chosen, record)
                if has_ended:
                    self._once(folder / _ENDED, self._ended, record)

    def _once(self, path, events, record):
        if path in self._done:
            return
        self._done.add(path)
        if not path.exists():
            _write(path, events(record))

    def _experiment(self):
        """The dimensions with their ranges, and what is looked at in a trial."""
        from tensorboard.plugins.hparams import summary_v2 as messages

        short = table.short_names([parameter.name for parameter in self._facts.parameters])
        dimensions = [
            messages.HParam(p.name, domain=_domain(p), display_name=short[p.name])
            for p in self._facts.parameters
        ]
        objective = self._facts.objective
        group = "validation" if objective.startswith("val_") else "train"
        watched = [
            messages.Metric(f"best_{objective}", display_name=f"best {objective}"),
            messages.Metric(
                charts.tag(objective.removeprefix("val_")),
                group=group,
                display_name=f"last {objective}",
            ),
        ]
        return messages.hparams_config_pb(dimensions, watched, self._facts.began)

    def _chosen(self, record):
        from tensorboard.plugins.hparams import summary_v2 as messages

        values = {name: _plain(value) for name, value in record.values.items()}
        name = f"trial {record.id}"
        return [(0, record.started, messages.hparams_pb(values, name, record.started))]

    def _ended(self, record):
        """How it ended, and the best objective so far after each of its epochs."""
        objective, best = self._facts.objective, None
        events = []
        for entry in record.history:
            value = entry.get(objective)
            if value is not None and math.isfinite(value):
                best = value if self._facts.better(value, best) else best
            if best is not None:
                events.append((entry["epoch"], time.time(), _scalar(f"best_{objective}", best)))
        return [*events, (0, time.time(), _end(record.state in trials.SCORED))]


def write_chosen(folder, values, name, began):
    """Write a trial's values into a folder of a `TensorBoard` callback.

    Args:
        folder: the folder; made if it is not there.
        values: by name.
        name: what HPARAMS calls the trial.
        began: seconds since 1970.
    """
    from tensorboard.plugins.hparams import summary_v2 as messages

    chosen = {n: _plain(value) for n, value in values.items()}
    summary = messages.hparams_pb(chosen, name, began)
    _write(pathlib.Path(folder) / _CHOSEN, [(0, began, summary)])


def write_end(folder):
    """Write there that the trial has ended well."""
    _write(pathlib.Path(folder) / _ENDED, [(0, time.time(), _end(True))])


def _domain(parameter):
    """Return the range of a dimension as TensorBoard has it; None where it cannot say."""
    from tensorboard.plugins.hparams import summary_v2 as messages

    if parameter.kind == "int":
        return messages.IntInterval(int(parameter.low), int(parameter.high))
    if parameter.kind == "float":
        return messages.RealInterval(float(parameter.low), float(parameter.high))
    values = [_plain(value) for value in parameter.choices]
    kinds = {type(value) for value in values}
    return messages.Discrete(values) if len(kinds) == 1 else None


def _plain(value):
    """Return a value as TensorBoard takes it: a number, a word or a boolean."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def _scalar(tag, value):
    from tensorboard.compat.proto import summary_pb2

    return summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)])


def _end(well):
    """Return the message that a trial has ended."""
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.STATUS_SUCCESS if well else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    about = metadata.create_summary_metadata(
        plugin_data_pb2.HParamsPluginData(session_end_info=info)
    )
    value = summary_pb2.Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR
    )
    return summary_pb2.Summary(value=[value])


def _write(path, events):
    """Write an event file of (step, seconds since 1970, summary), whole."""
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".writing.{path.suffix[1:]}")  # a name TensorBoard passes over
    with open(beside, "wb") as file:
        writer = RecordWriter(file)
        first = event_pb2.Event(wall_time=events[0][1], file_version="brain.Event:2")
        writer.write(first.SerializeToString())
        for step, seconds, summary in events:
            event = event_pb2.Event(wall_time=seconds, step=step, summary=summary)
            writer.write(event.SerializeToString())
    beside.replace(path)
