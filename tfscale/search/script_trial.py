"""One trial of a script: what `Tuner.search` does in a process that has a trial to run.

The launcher runs the user's script again with an `Assignment`; where the script comes to that
tuner's `search`, its `run_trial` is called with the trial's values, and the process ends. What
it writes is in `report`.
"""

import copy
import json
import os
import pathlib
import sys
import time

import keras
import keras_tuner
import tensorflow as tf

from tfscale import strategy as strategy_lib
from tfscale.search import hparams, scripts
from tfscale.search.report import Report, load_weights
from tfscale.training.checkpoint import write_whole

_HOOKS = ("on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end")
_REFUSED = 2  # the exit code of what another attempt would not mend
_OWN_LOOP = "not available outside the replica context"


class ScriptTrial:
    """The trial that this process has been given.

    Args:
        assignment: the `scripts.Assignment`.
        tuner: the `Tuner` of the script, which may be of a class of the user's own.
    """

    def __init__(self, assignment, tuner):
        self._assignment, self._tuner = assignment, tuner
        self._report = self._trains = None

    def run(self, arguments, named):
        """Run the trial, and end the process.

        Args:
            arguments: what `search` was given.
            named: what it was given by name.

        Raises:
            SystemExit: with 0, or with 2 when another attempt would not go better.
            Exception: what the user's code raises.
        """
        try:
            self._run(arguments, named)
        except keras_tuner.errors.FailedTrialError as error:
            _leave(error)
        except keras_tuner.errors.FatalError as error:
            if strategy_lib.is_chief():
                kinds = [kind.__name__ for kind in type(error).__mro__]
                content = {"kinds": kinds, "message": str(error)}
                path = pathlib.Path(self._assignment.path) / scripts.FATAL
                write_whole(path, json.dumps(content) + "\n")
            _leave(error)
        sys.exit(0)

    def train(self, trial, arguments, named):
        """Build and fit the model of a trial, as `keras_tuner.Tuner.run_trial` does.

        Args:
            trial: the `keras_tuner.engine.trial.Trial`.
            arguments: what `HyperModel.fit` is given after the model.
            named: what it is given by name.

        Returns:
            A list of what it has returned, one for each execution.
        """
        task, tuner, hp, named = self._assignment, self._tuner, trial.hyperparameters, dict(named)
        if task.epochs:
            named |= {"epochs": task.epochs, "initial_epoch": task.initial_epoch}
        self._trains, results = True, []
        for execution in range(tuner.executions_per_trial):
            model = tuner.build_distributed(hp)
            self._report.note_space()
            if task.parent:
                load_weights(model, task.parent)
            given = list(named.get("callbacks") or [])
            if tuner.executions_per_trial > 1:  # what they remember is of one execution
                given = copy.deepcopy(given)
            boards = _send_tensorboard(given, trial, execution)
            self._report.begin(execution)
            callbacks = [*given, *self._callback(trial), self._report]
            fit_named = {**named, "callbacks": callbacks}
            results.append(tuner.hypermodel.fit(hp, model, *arguments, **fit_named))
            for board in boards:
                hparams.write_end(board)
        return results

    def note_epoch(self, model, epoch, logs):
        """Take in an epoch of a `run_trial` with a loop of its own; `train` needs none of it."""
        if not self._trains:
            self._report.set_model(model)
            self._report.on_epoch_end(epoch, logs)

    def _run(self, arguments, named):
        """Call what a subclass may have overridden, in keras-tuner's order."""
        tuner, trial = self._tuner, self._begin()
        tuner.on_trial_begin(trial)
        try:
            result = tuner.run_trial(trial, *arguments, **named)
        except ValueError as error:
            if _OWN_LOOP not in str(error):
                raise
            # A loop of the user's own, written for one device: each worker runs all of it.
            tf.distribute.experimental_set_strategy(None)
            trial = self._begin()
            result = tuner.run_trial(trial, *arguments, **named)
        metrics = self._report.end(result)
        trial.status, trial.score = "COMPLETED", metrics[tuner.oracle.objective.name]
        tuner.on_trial_end(trial)

    def _begin(self):
        """Return the trial as nothing has run of it."""
        task, oracle = self._assignment, self._tuner.oracle
        hp = keras_tuner.HyperParameters.from_config(task.space)
        hp.values = {**task.values, **scripts.oracle_values(task)}
        trial = keras_tuner.engine.trial.Trial(hp, trial_id=task.id)
        oracle.trials[trial.trial_id] = trial  # for a run_trial that tells the oracle itself
        self._report, self._trains = Report(pathlib.Path(task.path), oracle, trial), False
        return trial

    def _callback(self, trial):
        """Return a callback that calls the hooks that the user has overridden, in a list."""

        def caller(method):
            return lambda self, number, logs=None: method(trial, self.model, number, logs)

        methods = {
            name.replace("on_batch", "on_train_batch"): caller(getattr(self._tuner, name))
            for name in self._tuner.overridden(_HOOKS)
        }
        return [type("Hooks", (keras.callbacks.Callback,), methods)()] if methods else []


def _leave(error):
    """End the process because of an error that says enough."""
    words = " ".join(str(error).split()) or type(error).__name__
    print(f"error: {words}", file=sys.stderr, flush=True)
    sys.exit(_REFUSED)


def _send_tensorboard(callbacks, trial, execution):
    """Give TensorBoard callbacks a folder of this trial's, with its values for HPARAMS.

    Returns:
        These folders, in the chief.
    """
    boards = []
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.TensorBoard):
            place = os.path.join(trial.trial_id, f"execution{execution}")
            callback.log_dir = os.path.join(str(callback.log_dir), place)
            boards.append(callback.log_dir)
    if not strategy_lib.is_chief():
        return []
    for board in boards:
        values = scripts.without_oracle(trial.hyperparameters.values)
        hparams.write_chosen(board, values, f"trial {trial.trial_id}", time.time())
    return boards
