"""Trials that run a user's script again, through the launcher; the search's side of them.

Owns the command that leads back to the script, what lies in such a trial's folder, and what the
oracle learns from it: hyperparameters that the script has only met while a trial ran. What the
script does there is in `script_trial`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys

from tfscale.search import oracles, space, trials
from tfscale.training.checkpoint import write_whole

VARIABLE = "TFSCALE_TRIAL"
WEIGHTS = "best.weights.h5"
BUILD = "build.json"  # the shapes that a model was built for, when it does not say so itself
SPACE = "space.json"
METRICS = "metrics.jsonl"
DONE = "done"  # the script has come to `search` and the trial to its end
FATAL = "fatal.json"  # what is to end the search
_OWN = "tuner/"  # keras-tuner's prefix of values that are not hyperparameters
_TASK = "trial.json"
_DIVERGED = "BadNumbers:"  # in the log, when the loss was not finite
_TAIL_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What a process is to do; the file that `TFSCALE_TRIAL` names holds it as JSON.

    Args:
        tuner: which `Tuner` of the script this is for, from 1 in the order in which they are made.
        id: the trial.
        path: its folder.
        space: `keras_tuner.HyperParameters.get_config()` of the search.
        values: the values of all hyperparameters.
        epochs: epochs to have done at the end; 0 where `search` says it.
        initial_epoch: epochs that the trial it continues has done.
        parent: the folder of that trial, "" if none.
    """

    tuner: int
    id: str
    path: str
    space: dict
    values: dict
    epochs: int = 0
    initial_epoch: int = 0
    parent: str = ""


def oracle_values(task):
    """Return what keras-tuner keeps of an `Assignment` among a trial's values, as a dict."""
    if not task.epochs:
        return {}
    values = {_OWN + "epochs": task.epochs, _OWN + "initial_epoch": task.initial_epoch}
    return values | ({_OWN + "trial_id": pathlib.Path(task.parent).name} if task.parent else {})


def without_oracle(values):
    """Return values by name without those that `oracle_values` has added."""
    return {name: value for name, value in values.items() if not name.startswith(_OWN)}


def assigned():
    """Return this process's `Assignment`, or None where it is not a trial."""
    if VARIABLE not in os.environ:
        return None
    path = pathlib.Path(os.environ[VARIABLE])
    assignment = Assignment(**json.loads(path.read_text()))
    # The machine that wrote it may see the folder at another place.
    parent = assignment.parent and str(path.parents[1] / pathlib.Path(assignment.parent).name)
    return dataclasses.replace(assignment, path=str(path.parent), parent=parent)


def target():
    """Return how this process was started: a script or `-m MODULE`, and its arguments.

    Returns:
        A list for `tfscale.launch`; None in an interactive shell, a notebook or `python -c`.
    """
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return ["-m", main.__spec__.name.removesuffix(".__main__"), *sys.argv[1:]]
    path = getattr(main, "__file__", None)
    if path is None or not os.path.isfile(path):
        return None
    return [os.path.abspath(path), *sys.argv[1:]]


def fingerprint(target):
    """Return what has to be the same where trials of one search run: the script, its arguments.

    Args:
        target: what `target` returned.
    """
    if target is None:
        return {"script": "", "arguments": [], "sha256": ""}
    path = pathlib.Path(sys.modules["__main__"].__file__)
    is_module = target[0] == "-m"
    return {
        "script": target[1] if is_module else path.name,
        "arguments": target[2:] if is_module else target[1:],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


class ScriptTrials:
    """Trials that are runs of the user's script; the loop asks it what depends on that.

    Args:
        tuner: which `Tuner` of the script this is, from 1.
        oracle: the `keras_tuner.Oracle`, for the space as it is known.
        parameters: the list in `SearchFacts`, which grows with the space.
        target: what `target` returned.
        flags: arguments of `tfscale.launch`, beside the folder.
        says_epochs: whether the oracle chooses the epochs of each trial.
    """

    def __init__(self, tuner, oracle, parameters, target, flags, says_epochs=False):
        self._tuner, self._oracle, self._parameters = tuner, oracle, parameters
        self._says_epochs = says_epochs
        self._target, self._flags = list(target), list(flags)

    def prepare(self, record, parent):
        """Write what a trial needs; one that continues another begins with its curves and weights.

        Args:
            record: the trial's `TrialRecord`.
            parent: that of the trial which it continues, or None.
        """
        record.path.mkdir(parents=True, exist_ok=True)
        task = Assignment(
            tuner=self._tuner,
            id=record.id,
            path=str(record.path),
            space=self._oracle.get_space().get_config(),
            values=record.values,
            epochs=record.max_epochs if self._says_epochs else 0,
            initial_epoch=parent.max_epochs if parent else 0,
            parent=str(parent.path) if parent else "",
        )
        for name in (DONE, FATAL):  # of a life that was killed right after
            (record.path / name).unlink(missing_ok=True)
        if parent is not None and not (record.path / _TASK).exists():
            for name in (METRICS, WEIGHTS, BUILD):
                if (parent.path / name).exists():
                    shutil.copy2(parent.path / name, record.path / name)
        text = json.dumps(dataclasses.asdict(task), indent=2) + "\n"
        write_whole(record.path / _TASK, text)

    def command(self, record):
        """Return the command that runs a trial, or goes on with it."""
        launch = [sys.executable, "-m", "tfscale.launch", *self._flags]
        return [*launch, f"--run_dir={record.path}", "--", *self._target]

    def environ(self, record):
        """Return variables that a trial's process gets beside those of the search."""
        return {VARIABLE: str(record.path / _TASK)}

    def history(self, record):
        """Return the metrics of a trial's epochs, and take in what its script has met."""
        self.complete(record)
        return read_history(record.path / METRICS)

    def complete(self, record):
        """Give a record the values of hyperparameters that only its script has met."""
        met = read_space(record.path)
        new = {n: v for n, v in met.get("values", {}).items() if n not in record.values}
        if new:
            record.values = {**record.values, **new}
            known = {parameter.name for parameter in self._parameters}
            self._parameters += [
                p for p in space.parameters(hyperparameters(met)) if p.name not in known
            ]

    def unfinished(self, record):
        """Return why a trial whose processes have left with 0 has not come to its end, or ""."""
        if (record.path / DONE).exists():
            return ""
        return "the script ended before the `search` of this tuner had trained the trial"

    def diverged(self, record):
        """Return how the run has ended itself at a number that was not finite, "" if it has not."""
        if not record.log.exists():  # it never came to run
            return ""
        with open(record.log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL_BYTES, 0))
            ended_so = _DIVERGED in file.read().decode(errors="replace")
        return "its loss or a weight was not finite" if ended_so else ""


class ScriptViews:
    """Views whose records are complete, also those of trials that an earlier life has ended.

    Args:
        views: the `views.Views`.
        kind: the `ScriptTrials`.
    """

    def __init__(self, views, kind):
        self._views, self._kind, self._complete = views, kind, set()

    def update(self, records):
        """Show what has changed; see `views.Views`."""
        self._complete_all(records)
        self._views.update(records)

    def finish(self, records):
        """Show the end; see `views.Views`."""
        self._complete_all(records)
        self._views.finish(records)

    def _complete_all(self, records):
        for record in records:
            if record.state != trials.RUNNING and record.id not in self._complete:
                with contextlib.suppress(OSError, ValueError):  # of a disk that is away
                    self._kind.complete(record)
                    self._complete.add(record.id)


class ScriptAsker(oracles.Asker):
    """Asks an oracle, and tells it too of hyperparameters that a trial was the first to meet.

    Args:
        oracle: a `keras_tuner.Oracle` that nobody has asked yet.
        run_dir: the folder of the search.
    """

    def __init__(self, oracle, run_dir):
        super().__init__(oracle)
        self._folder = pathlib.Path(run_dir) / "trials"

    def ask(self):
        """Return what to try next; the first trial of a space that only it will know runs alone."""
        if self._oracle.ongoing_trials and not self._oracle.get_space().space:
            return oracles.Asked("idle")
        return super().ask()

    def tell(self, id, history, state):
        """Tell how a trial ended; arguments as for `oracles.Asker`."""
        met = read_space(self._folder / id)
        if met:
            trial = self._oracle.get_trial(self._ids[id])
            values = dict(trial.hyperparameters.values)
            trial.hyperparameters = hyperparameters(met)
            trial.hyperparameters.values = {**values, **met["values"]}
        super().tell(id, history, state)


def hyperparameters(met):
    """Return the `keras_tuner.HyperParameters` that a trial has used, from `read_space`."""
    import keras_tuner

    found = keras_tuner.HyperParameters.from_config(met["space"])
    found.values = dict(met["values"])
    return found


def read_space(path):
    """Return {"space": ..., "values": ...} of a trial's folder, {} where it has not said yet."""
    return _read(path / SPACE)


def read_history(path):
    """Return one dict of metrics an epoch, {"epoch": 1, ...}, from a trial's `metrics.jsonl`."""
    found = {}
    for record in [line for line in read_lines(path) if "epoch" in line]:
        epoch = found.setdefault(record["epoch"], {"epoch": record["epoch"] + 1})
        for kind, prefix in (("train", ""), ("validation", "val_")):
            numbers = record.get(kind, {}).items()
            epoch |= {prefix + n: v for n, v in numbers if isinstance(v, (int, float))}
    return [found[epoch] for epoch in sorted(found)]


def read_lines(path):
    """Return the records of a file of JSON lines, without one that is being written or damaged."""
    try:
        lines = pathlib.Path(path).read_text(errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return trials.records_of(line for line in lines if line.endswith("\n"))


def used(path, values):
    """Return the `keras_tuner.HyperParameters` of a trial, with what the oracle kept there.

    Args:
        path: its folder.
        values: what was chosen for it, for a trial that has not said what it has used.
    """
    import keras_tuner

    met, task = read_space(path), _read(path / _TASK)
    found = hyperparameters(met) if met else keras_tuner.HyperParameters()
    found.values = {**(found.values or values)}
    found.values |= oracle_values(Assignment(**task)) if task else {}
    return found


def plain(value):
    """Return what JSON holds of a value of NumPy's or TensorFlow's."""
    return value.item() if hasattr(value, "item") else list(value)


def _read(path):
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
