"""What a search has found, as keras-tuner's own `Trial` objects; read from the search's folder.

Nothing is locked: a search may be going on, in another process too. `Found` is the half of a
`Tuner` that shows what is here.
"""

import os
import pathlib

import keras_tuner

from tfscale.search import report, scripts, trials


def trials_of(run_dir, objective):
    """Return the trials that have ended, in the order of their ends.

    Args:
        run_dir: the folder of a search; there may be none yet.
        objective: the `keras_tuner.Objective`.

    Returns:
        A list of `keras_tuner.engine.trial.Trial`: COMPLETED with score, metrics and best step
        (epochs from 0), or FAILED with the reason as its message.
    """
    run_dir, values, found = pathlib.Path(run_dir), {}, []
    for event in scripts.read_lines(run_dir / "journal.jsonl"):
        if event["event"] == "created":
            values[event["trial"]] = event["values"]
        elif event["event"] == "ended":
            folder = run_dir / "trials" / event["trial"]
            found.append(_trial(event, folder, values[event["trial"]], objective))
    return found


def fill(oracle, run_dir):
    """Let an oracle that asks for nothing know what a search has found.

    Args:
        oracle: the `keras_tuner.Oracle`; what it knew of trials is forgotten.
        run_dir: the folder of the search.
    """
    ended = trials_of(run_dir, oracle.objective)
    oracle.trials = {trial.trial_id: trial for trial in ended}
    oracle.start_order = sorted(oracle.trials)
    oracle.end_order = list(oracle.trials)
    for trial in ended:
        oracle.update_space(trial.hyperparameters)


def best(oracle):
    """Return the trials of an oracle that have a score, the best first."""
    sign = -1 if oracle.objective.direction == "max" else 1
    scored = [trial for trial in oracle.trials.values() if trial.score is not None]
    return sorted(scored, key=lambda trial: (sign * trial.score, trial.trial_id))


def _trial(event, folder, values, objective):
    """Return one trial from the journal's event of its end."""
    has_score = event["state"] in trials.SCORED
    trial = keras_tuner.engine.trial.Trial(
        scripts.used(folder, values),
        trial_id=event["trial"],
        status="COMPLETED" if has_score else "FAILED",
        message=None if has_score else f"{event['state']}: {event['reason']}",
    )
    if has_score:
        trial.score, trial.best_step = event["score"], (event["best_epoch"] or 1) - 1
    for record in event["history"]:
        for name, value in record.items():
            if name == "epoch":
                continue
            if not trial.metrics.exists(name):
                direction = objective.direction if name == objective.name else None
                trial.metrics.register(name, direction)
            trial.metrics.update(name, value, step=record["epoch"] - 1)
    return trial


class Found:
    """The part of a `Tuner` that shows what its search has found.

    It reads the search's folder and needs `oracle`, `project_dir` and `build_distributed`.
    """

    def get_best_hyperparameters(self, num_trials=1):
        """Return the `keras_tuner.HyperParameters` of the best trials, the best first.

        Args:
            num_trials: how many at most.
        """
        self.reload()
        return [trial.hyperparameters for trial in best(self.oracle)[:num_trials]]

    def get_best_models(self, num_models=1):
        """Return the models of the best trials with the weights of their best epochs.

        Args:
            num_models: how many at most.
        """
        self.reload()
        return [self.load_model(trial) for trial in best(self.oracle)[:num_models]]

    def load_model(self, trial):
        """Return the model of a trial with the weights of its best epoch.

        Args:
            trial: a `keras_tuner.engine.trial.Trial`.

        Raises:
            ValueError: if the trial has saved no weights.
        """
        folder = pathlib.Path(self.get_trial_dir(trial.trial_id))
        if not (folder / scripts.WEIGHTS).exists():
            raise ValueError(
                "A model can be loaded where a trial has saved its weights, as `fit` does with "
                f"the callbacks that it is given. Received: trial {trial.trial_id}, which has "
                "saved none. Use get_best_hyperparameters(), or save_model in run_trial."
            )
        model = self.build_distributed(trial.hyperparameters)
        report.load_weights(model, folder)
        return model

    def save_model(self, trial_id, model, step=0):
        """Save what `load_model` loads; for a `run_trial` of one's own, on all workers.

        Args:
            trial_id: the trial's.
            model: a model that is built.
            step: accepted, as by keras-tuner; one model is kept.
        """
        report.save_weights(model, self.get_trial_dir(trial_id))

    def get_trial_dir(self, trial_id):
        """Return the folder of a trial."""
        return os.path.join(self.project_dir, "trials", str(trial_id))

    def results_summary(self, num_trials=10):
        """Print the best trials with their values and scores.

        Args:
            num_trials: how many at most.
        """
        self.reload()
        scored = best(self.oracle)
        failed = [trial for trial in self.oracle.trials.values() if trial not in scored]
        shown = [*scored, *failed][:num_trials]
        print(f"Results in {self.project_dir}: {len(scored)} trials with a score")
        if failed:
            print(f"Without one: {len(failed)}")
        print(f"Objective: {self.oracle.objective.name}, {self.oracle.objective.direction}")
        for trial in shown:
            print()
            trial.summary()

    def search_space_summary(self, extended=False):
        """Print the hyperparameters that are known so far.

        Args:
            extended: accepted, as by keras-tuner, which does nothing with it.
        """
        found = self.oracle.get_space().space
        print(f"Search space: {len(found)} hyperparameters")
        for hp in found:
            config = hp.get_config()
            print(f"{config.pop('name')} ({type(hp).__name__})")
            print(config)

    @property
    def remaining_trials(self):
        """How many trials are still to come; None where nobody knows."""
        self.reload()
        return self.oracle.remaining_trials()

    def reload(self):
        """Read what the search has found; what asks for it does so itself."""
        fill(self.oracle, self.project_dir)
