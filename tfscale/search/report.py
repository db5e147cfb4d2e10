"""What a trial of a script reports, written into its folder: curve, best weights, space, score.

The search reads the curve while the trial runs; `found` and `scripts` read what it has left.
"""

import json
import pathlib
import warnings

import h5py
import keras
import keras_tuner

from tfscale import strategy as strategy_lib
from tfscale.monitor.run_log import ScalarLog
from tfscale.search import returned, scripts
from tfscale.training import saving
from tfscale.training.checkpoint import write_whole

_VALUE = "tfscale_objective"  # an attribute of the weights' file, so that one is never without


class Report(keras.callbacks.Callback):
    """Writes each epoch's metrics, and the weights of the best one.

    Every worker has one, and decides alike; the chief writes. A trial that was interrupted goes
    on in its last epoch: what an earlier life wrote of it is written anew.
    """

    def __init__(self, folder, oracle, trial):
        super().__init__()
        self._folder, self._oracle, self._trial = folder, oracle, trial
        self._objective, self._hp = oracle.objective, trial.hyperparameters
        self._is_chief, self._execution = strategy_lib.is_chief(), 0
        self._log = self._best = self._noted = None

    def begin(self, execution):
        """Begin an execution of the trial; the curve is that of the first one, 0.

        Where an earlier life has ended the executions before, the weights that it has kept say
        what this one has to be better than.
        """
        self._execution = execution
        if execution > 0 and self._best is None:
            self._best = _value_of_weights(self._folder)

    def note_space(self):
        """Write which hyperparameters there are and which were used, when they are new.

        Raises:
            keras_tuner.errors.FatalRuntimeError: if the oracle allows no new ones.
        """
        names = [p.name for p in self._hp.space]
        if names == self._noted:
            return
        try:
            self._oracle.update_space(self._hp)
        except RuntimeError as error:
            raise keras_tuner.errors.FatalRuntimeError(str(error)) from None
        self._noted = names
        if self._is_chief:
            values = scripts.without_oracle(self._hp.values)
            content = {"space": self._hp.get_config(), "values": values}
            text = json.dumps(content, default=scripts.plain, indent=2) + "\n"
            write_whole(self._folder / scripts.SPACE, text)

    def on_epoch_end(self, epoch, logs=None):
        """Keras calls it; a loop of the user's own may, too."""
        logs = returned.numbers(logs)
        if self._objective.has_value(logs):
            logs[self._objective.name] = float(self._objective.get_value(logs))
        self.note_space()
        if self._execution == 0:
            if self._log is None:
                self._open(epoch)
            if self._is_chief:
                self._write(epoch, logs)
        self._save_if_best(logs)

    def end(self, result):
        """Write what the trial has returned, where it says more than the epochs; it is done.

        Args:
            result: see `returned.best_of`.

        Returns:
            The metrics.

        Raises:
            keras_tuner.errors.FatalValueError: if the objective is nowhere.
        """
        self.note_space()
        metrics = returned.told_of(self._trial, self._objective)
        is_curve = metrics is None and returned.is_history(result)
        metrics = metrics or returned.best_of(result, self._objective)
        if metrics is None and result is None and self._best is not None:
            metrics, is_curve = {self._objective.name: self._best}, True
        if metrics is None:
            raise returned.refusal(result, self._objective)
        if self._is_chief:
            if not is_curve:
                self._settle(metrics)
            elif not scripts.read_lines(self._folder / scripts.METRICS):
                self._write_curve(result)
            if self._log is not None:
                self._log.close()
            write_whole(self._folder / scripts.DONE, "\n")
        return metrics

    def _write_curve(self, result):
        """Write the epochs of a `fit` that was given none of the callbacks."""
        history = result[0].history if isinstance(result, list) else result.history
        self._open(0)
        for epoch in range(max(map(len, history.values()))):
            logs = returned.numbers({n: v[epoch] for n, v in history.items() if epoch < len(v)})
            if self._objective.has_value(logs):
                logs[self._objective.name] = float(self._objective.get_value(logs))
            self._write(epoch, logs)

    def _open(self, epoch):
        scores = _scores(self._folder / scripts.METRICS, self._objective)
        before = [value for number, value in scores if number < epoch]
        kept = _value_of_weights(self._folder) if before else None  # maybe of another execution
        if kept is not None:
            before.append(kept)
        if before:
            self._best = _best(before, self._objective)
        if self._is_chief:
            self._log = ScalarLog(
                self._folder / scripts.METRICS, self._folder / "tensorboard", epoch
            )

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
        save_weights(self.model, self._folder, value)

    def _settle(self, means):
        """Let the score be the mean over executions, or what a `fit` of the user's own returned.

        The curve stays; where its best is not the score, the objective is in its last record alone.
        """
        path, name = self._folder / scripts.METRICS, self._objective.name
        score = means[name]
        values = [value for _, value in _scores(path, self._objective)]
        if values and _best(values, self._objective) == score:
            return
        if not scripts.read_lines(path):
            self._open(0)
            self._write(0, means)
        kind, key = _place_of(name)
        lines = scripts.read_lines(path)
        for line in lines:
            line.get(kind, {}).pop(key, None)
        last = lines[-1]
        if kind not in last:
            last = {field: last[field] for field in ("step", "epoch", "time")} | {kind: {}}
            lines.append(last)
        last[kind][key] = score
        write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def _best(values, objective):
    best = values[0]
    for value in values:
        best = value if objective.better_than(value, best) else best
    return best


def _scores(path, objective):
    """Return (epoch, value) of the objective in what was written, from epoch 0."""
    kind, key = _place_of(objective.name)
    found = []
    for record in scripts.read_lines(path):
        if key in record.get(kind, ()):
            found.append((record["epoch"], record[kind][key]))
    return found


def _place_of(name):
    """Return where a metric stands in the file: "validation", or "train", and its name there."""
    if name.startswith("val_"):
        return "validation", name[len("val_") :]
    return "train", name


def save_weights(model, folder, value=None):
    """Save what `load_weights` loads, as the chief; each file is whole or absent.

    Args:
        model: a model that is built.
        folder: the trial's.
        value: the objective that these weights have, where somebody knows it.
    """
    if not strategy_lib.is_chief():
        return
    folder = pathlib.Path(folder)
    shapes = model.get_build_config()
    write_whole(folder / scripts.BUILD, json.dumps(shapes, default=scripts.plain) + "\n")
    with saving.whole(folder / scripts.WEIGHTS) as beside:
        model.save_weights(beside)
        if value is not None:
            with h5py.File(beside, "r+") as file:
                file.attrs[_VALUE] = value


def _value_of_weights(folder):
    """Return the objective that the weights in a folder have; None if it or they are not there."""
    path = folder / scripts.WEIGHTS
    if not path.exists():
        return None
    with h5py.File(path) as file:
        value = file.attrs.get(_VALUE)
    return None if value is None else float(value)


def load_weights(model, folder):
    """Give a model the weights of a trial's best epoch.

    Args:
        model: made by the same function from the same values.
        folder: the trial's.
    """
    folder = pathlib.Path(folder)
    if not model.built:
        model.build_from_config(json.loads((folder / scripts.BUILD).read_text()))
    with warnings.catch_warnings():
        # The optimizer begins anew, as in keras-tuner.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        model.load_weights(folder / scripts.WEIGHTS)
