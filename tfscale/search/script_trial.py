"""One trial of a script: what `Tuner.search` does in a process that has a trial to run.

The launcher runs the user's script again with an `Assignment`; where the script comes to that
tuner's `search`, the model is built from the trial's values, fitted as
`keras_tuner.HyperModel.fit` says, and the process ends. What it reports lies in the trial's
folder: `metrics.jsonl`, the best epoch's weights, and the space as the hypermodel has met it.
"""

import copy
import json
import os
import pathlib
import sys
import warnings

import keras
import keras_tuner
import numpy as np

from tfscale import strategy as strategy_lib
from tfscale.monitor.run_log import ScalarLog
from tfscale.search.scripts import BUILD, METRICS, SPACE, WEIGHTS, read_lines
from tfscale.training.checkpoint import write_whole

_REFUSED = 2  # the exit code of what another attempt would not mend


def run(assignment, build, fit, objective, executions, arguments, named):
    """Run the trial, and end the process.

    Args:
        assignment: the `scripts.Assignment`.
        build: makes a compiled model from `keras_tuner.HyperParameters`.
        fit: `keras_tuner.HyperModel.fit`: trains, given the hyperparameters, the model, and what
            `search` was given, and returns what keras-tuner allows.
        objective: the `keras_tuner.Objective`.
        executions: how often the model is made and trained; the mean of the best scores counts.
        arguments: what `search` was given.
        named: what it was given by name.

    Raises:
        SystemExit: always, with 0, or with 2 when nothing that was reported is the objective.
    """
    folder = pathlib.Path(assignment.path)
    hp = keras_tuner.HyperParameters.from_config(assignment.space)
    hp.values = dict(assignment.values)
    named = dict(named)
    if assignment.epochs:
        named |= {"epochs": assignment.epochs, "initial_epoch": assignment.initial_epoch}
    results = []
    report = _Report(folder, objective, hp)
    for execution in range(executions):
        model = build(hp)
        report.note_space()
        if assignment.parent:
            load_weights(model, assignment.parent)
        given = list(named.get("callbacks") or [])
        if executions > 1:  # what they remember is of one execution
            given = copy.deepcopy(given)
        _send_tensorboard(given, f"{assignment.id}/execution{execution}")
        report.execution = execution
        results.append(fit(hp, model, *arguments, **{**named, "callbacks": [*given, report]}))
    report.end(results)
    sys.exit(0)


def load_weights(model, folder):
    """Give a model the weights of a trial's best epoch.

    Args:
        model: made by the same function from the same values.
        folder: the trial's.
    """
    folder = pathlib.Path(folder)
    if not model.built:
        model.build_from_config(json.loads((folder / BUILD).read_text()))
    with warnings.catch_warnings():
        # The optimizer begins anew, as in keras-tuner.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        model.load_weights(folder / WEIGHTS)


def _send_tensorboard(callbacks, place):
    """Give TensorBoard callbacks a folder of this trial's, as keras-tuner does."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.TensorBoard):
            callback.log_dir = os.path.join(str(callback.log_dir), place)


class _Report(keras.callbacks.Callback):
    """Writes each epoch's metrics, and the weights of the best one.

    Every worker has one, and decides alike; the chief writes. A trial that was interrupted goes
    on in its last epoch: what an earlier life wrote of it is written anew.
    """

    def __init__(self, folder, objective, hp):
        super().__init__()
        self.execution = 0
        self._folder, self._objective, self._hp = folder, objective, hp
        self._is_chief = strategy_lib.is_chief()
        self._log = self._best = self._noted = None

    def note_space(self):
        """Write which hyperparameters there are and which were used, when they are new."""
        names = [p.name for p in self._hp.space]
        if names == self._noted or not self._is_chief:
            return
        self._noted = names
        content = {"space": self._hp.get_config(), "values": self._hp.values}
        write_whole(self._folder / SPACE, json.dumps(content, default=_plain, indent=2) + "\n")

    def on_epoch_end(self, epoch, logs=None):
        """Keras calls it; a loop of the user's own may, too."""
        logs = _numbers(logs)
        if self._objective.has_value(logs):
            logs[self._objective.name] = float(self._objective.get_value(logs))
        self.note_space()
        if self.execution == 0:
            if self._log is None:
                self._open(epoch)
            if self._is_chief:
                self._write(epoch, logs)
        self._save_if_best(logs)

    def end(self, results):
        """Write what `fit` has returned, where it says more than the epochs.

        Raises:
            SystemExit: if the objective is nowhere.
        """
        self.note_space()
        found = [_best_of(result, self._objective) for result in results]
        if any(metrics is None for metrics in found):
            self._refuse(results, found)
        if not self._is_chief:
            return
        names = set.intersection(*(set(metrics) for metrics in found))
        means = {name: float(np.mean([metrics[name] for metrics in found])) for name in names}
        history = [result for result in results if isinstance(result, keras.callbacks.History)]
        if len(results) > 1 or not history:
            self._settle(means)
        if self._log is not None:
            self._log.close()

    def _open(self, epoch):
        before = [v for e, v in _scores(self._folder / METRICS, self._objective) if e < epoch]
        for value in before:
            if self._best is None or self._objective.better_than(value, self._best):
                self._best = value
        if self._is_chief:
            self._log = ScalarLog(self._folder / METRICS, self._folder / "tensorboard", epoch)

    def _write(self, epoch, logs):
        validation = {k[len("val_") :]: v for k, v in logs.items() if k.startswith("val_")}
        training = {k: v for k, v in logs.items() if not k.startswith("val_")}
        self._log.write("train", epoch + 1, training, epoch=epoch)
        if validation:
            self._log.write("validation", epoch + 1, validation, epoch=epoch)

    def _save_if_best(self, logs):
        """Save the weights of the best epoch of all executions; of the last, if nobody knows."""
        value = logs.get(self._objective.name)
        if value is not None:
            if self._best is not None and not self._objective.better_than(value, self._best):
                return
            self._best = value
        if self.model is None:  # a loop of the user's own that does not introduce it
            return
        self.model.save_weights(self._folder / WEIGHTS)
        if self._is_chief:
            shapes = self.model.get_build_config()
            write_whole(self._folder / BUILD, json.dumps(shapes, default=_plain) + "\n")

    def _settle(self, means):
        """Let the score be the mean over executions, or what a `fit` of the user's own returned.

        The curve stays; where its best is not the score, the objective is in its last record alone.
        """
        path, name = self._folder / METRICS, self._objective.name
        score = means[name]
        values = [value for _, value in _scores(path, self._objective)]
        if values and _best(values, self._objective) == score:
            return
        if not read_lines(path):
            self._open(0)
            self._write(0, means)
        kind, key = _place_of(name)
        lines = read_lines(path)
        for line in lines:
            line.get(kind, {}).pop(key, None)
        last = lines[-1]
        if kind not in last:
            last = {field: last[field] for field in ("step", "epoch", "time")} | {kind: {}}
            lines.append(last)
        last[kind][key] = score
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))

    def _refuse(self, results, found):
        result = results[found.index(None)]
        reported = "nothing"
        if isinstance(result, keras.callbacks.History):
            reported = ", ".join(sorted(result.history)) or "nothing"
        elif isinstance(result, dict):
            reported = ", ".join(sorted(map(str, result)))
        print(
            "error: The objective must be among what `fit` reports. Received: "
            f"objective={self._objective.name!r}, where fit gave a {type(result).__name__} with "
            f"{reported}. Use one of these names, or return the number from HyperModel.fit.",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(_REFUSED)


def _best_of(result, objective):
    """Return the metrics of what `HyperModel.fit` returned; None without the objective."""
    if isinstance(result, bool) or result is None:
        return None
    if isinstance(result, (int, float, np.number)):
        return {objective.name: float(result)}
    if isinstance(result, list):
        found = [_best_of(part, objective) for part in result]
        if not found or None in found:
            return None
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    if isinstance(result, keras.callbacks.History):
        best = None
        for i in range(max(map(len, result.history.values()), default=0)):
            metrics = _numbers({k: v[i] for k, v in result.history.items() if i < len(v)})
            if not objective.has_value(metrics):
                continue
            metrics[objective.name] = float(objective.get_value(metrics))
            value = metrics[objective.name]
            if best is None or objective.better_than(value, best[objective.name]):
                best = metrics
        return best
    if isinstance(result, dict) and objective.has_value(result):
        return _numbers(result) | {objective.name: float(objective.get_value(result))}
    return None


def _best(values, objective):
    best = values[0]
    for value in values:
        best = value if objective.better_than(value, best) else best
    return best


def _scores(path, objective):
    """Return (epoch, value) of the objective in what was written, from epoch 0."""
    kind, key = _place_of(objective.name)
    found = []
    for record in read_lines(path):
        if key in record.get(kind, ()):
            found.append((record["epoch"], record[kind][key]))
    return found


def _place_of(name):
    """Return where a metric stands in the file: "validation", or "train", and its name there."""
    if name.startswith("val_"):
        return "validation", name[len("val_") :]
    return "train", name


def _numbers(logs):
    """Return metrics as Python numbers, and lists of them."""
    return {name: np.asarray(value).tolist() for name, value in (logs or {}).items()}


def _plain(value):
    return value.item() if hasattr(value, "item") else list(value)
