"""A search from Python: `Tuner` in the place of a `keras_tuner.Tuner`.

The hypermodel, the oracle and what they mean are keras-tuner's. A trial is a process group that
runs the user's script again, up to this tuner's `search`; the rest is the loop of `tfscale.tune`.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys

import keras_tuner
import tensorflow as tf

from tfscale.names import check_known
from tfscale.search import (
    hypermodels,
    imported,
    joining,
    journal,
    leaving,
    loop,
    oracles,
    protocol,
    script_trial,
    scripts,
    service,
    space,
    table,
    trials,
    views,
)
from tfscale.search.running import Running
from tfscale.training.checkpoint import write_whole

_NO_BOUND = 10**9
_RUNNING = [field.name for field in dataclasses.fields(Running)]
_SHARED = ("strategy", "workers_per_trial", "deterministic")  # of them, by all machines
_numbers = itertools.count(1)  # of the tuners that this process makes


class Tuner:
    """Searches the hyperparameters of a hypermodel, each trial in processes of its own.

    What is called `search` in the user's script becomes, in the processes of a trial, the
    training of one model: they run the script again, with the same arguments, under
    `tfscale.launch`. Everything in front of `search` runs there too, and nothing behind it.

    Args:
        hypermodel: a `keras_tuner.HyperModel`, or a function from `keras_tuner.HyperParameters`
            to a compiled model.
        oracle: a `keras_tuner.Oracle`, such as `keras_tuner.oracles.BayesianOptimizationOracle`.
        directory: as in keras-tuner, "." by default.
        project_name: the search's folder in `directory`, "untitled_project" by default.
        overwrite: begin anew where the folder holds a search; otherwise it goes on.
        executions_per_trial: how often each model is trained; the mean of the best scores counts.
        optimizer, loss, metrics: replace what the hypermodel compiles with.
        **running: how trials run: `strategy`, `workers_per_trial`, `parallel_trials` and the
            other arguments of `tfscale.search.running.Running`.

    Raises:
        ValueError: if an argument is unknown or out of range, the folder holds something else
            than a search, or this process is a worker.
    """

    def __init__(
        self,
        hypermodel=None,
        oracle=None,
        *,
        directory=None,
        project_name=None,
        overwrite=False,
        executions_per_trial=1,
        optimizer=None,
        loss=None,
        metrics=None,
        **running,
    ):
        self._number = next(_numbers)
        self._assignment = scripts.assigned()
        self._given, self.hypermodel = hypermodel, hypermodels.as_hypermodel(hypermodel)
        self.oracle = _checked_oracle(oracle)
        self.directory = str(directory or ".")
        self.project_name = str(project_name or "untitled_project")
        self.executions_per_trial = executions_per_trial
        self._replaced = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
        self._build = functools.partial(hypermodels.build, self.hypermodel, self._replaced)
        check_known("An argument of Tuner", running, _RUNNING)
        self._running = Running(**running)
        if executions_per_trial < 1:
            raise ValueError(
                "executions_per_trial must be at least 1. "
                f"Received: executions_per_trial={executions_per_trial}."
            )
        if self._assignment is not None:
            return  # the oracle is elsewhere
        _refuse_worker()
        self._role = self._running.role()
        self._running.check(self._role)
        if overwrite and self._role.kind != "worker":
            _remove_search(pathlib.Path(self.project_dir))
        hypermodels.populate(self.oracle, self.hypermodel)
        self._unasked = copy.deepcopy(self.oracle)  # for each call of search

    @property
    def project_dir(self):
        """The folder of the search."""
        return os.path.join(self.directory, self.project_name)

    def search(self, *fit_args, **fit_kwargs):
        """Search until the oracle has had its trials, or go on with a search that was cut off.

        In the process of a trial it trains that trial's model, and does not return. On a machine
        that joins a search it runs trials until the search is over.

        Args:
            *fit_args: what `HyperModel.fit`, and so `keras.Model.fit`, is given.
            **fit_kwargs: the same, by name. `verbose=0` shows nothing of the search either.

        Raises:
            ValueError: if the folder holds another search, the chief leads another one or is not
                found, or if there is no script and the hypermodel cannot be imported.
        """
        if self._assignment is None:
            try:
                if self._role.kind == "worker":
                    self._join(fit_kwargs)
                else:
                    self._search(fit_args, fit_kwargs)
            except leaving.ToldToLeave as left:
                if left.code == 128 + signal.SIGINT:
                    raise KeyboardInterrupt from None
                sys.exit(left.code)
        elif self._assignment.tuner == self._number:
            script_trial.run(
                self._assignment,
                self._build,
                self.hypermodel.fit,
                self.oracle.objective,
                self.executions_per_trial,
                fit_args,
                fit_kwargs,
            )
        # else a tuner of the same script whose search is over

    def get_best_hyperparameters(self, num_trials=1):
        """Return the `keras_tuner.HyperParameters` of the best trials, the best first.

        Args:
            num_trials: how many at most.
        """
        return [
            scripts.hyperparameters(scripts.read_space(self._folder_of(id)))
            for id, _, _ in self._best()[:num_trials]
        ]

    def get_best_models(self, num_models=1):
        """Return the models of the best trials with the weights of their best epochs.

        Args:
            num_models: how many at most.
        """
        models = []
        for id, _, _ in self._best()[:num_models]:
            hp = scripts.hyperparameters(scripts.read_space(self._folder_of(id)))
            model = self._build(hp)
            script_trial.load_weights(model, self._folder_of(id))
            models.append(model)
        return models

    def results_summary(self, num_trials=10):
        """Print the best trials with their values and scores.

        Args:
            num_trials: how many at most.
        """
        best = self._best()[:num_trials]
        print(f"Results in {self.project_dir}: the {len(best)} best trials")
        print(f"Objective: {self.oracle.objective.name}, {self.oracle.objective.direction}")
        for id, score, state in best:
            print(f"\nTrial {id}, {table.words(state)}")
            for name, value in scripts.read_space(self._folder_of(id))["values"].items():
                print(f"{name}: {value}")
            print(f"Score: {score}")

    def search_space_summary(self, extended=False):
        """Print the hyperparameters that are known so far.

        Args:
            extended: accepted, as by keras-tuner, which does nothing with it.
        """
        if self._assignment is not None:
            return
        found = self.oracle.get_space().space
        print(f"Search space: {len(found)} hyperparameters")
        for hp in found:
            config = hp.get_config()
            print(f"{config.pop('name')} ({type(hp).__name__})")
            print(config)

    def _best(self):
        """Return (id, score, state) of the trials that have a score, the best first."""
        sign = -1 if self.oracle.objective.direction == "max" else 1
        found = scripts.ended_trials(self.project_dir)
        return sorted(found, key=lambda trial: (sign * trial[1], trial[0]))

    def _folder_of(self, id):
        return pathlib.Path(self.project_dir) / "trials" / id

    def _search(self, fit_args, fit_kwargs):
        """Lead the loop through all trials."""
        run_dir = pathlib.Path(self.project_dir).absolute()
        target = self._target(run_dir, fit_args, fit_kwargs)
        run_dir.mkdir(parents=True, exist_ok=True)
        self.oracle = copy.deepcopy(self._unasked)
        self.oracle.max_consecutive_failed_trials = _NO_BOUND  # no trial ends the search
        stream = _stream(fit_kwargs)
        asker = scripts.ScriptAsker(self.oracle, run_dir)
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(
                contextlib.closing(journal.Journal(run_dir / "journal.jsonl"))
            )
            facts, seed = self._settle(run_dir)
            joined = stack.enter_context(
                service.offered(
                    self._role,
                    run_dir,
                    self._shared_identity(),
                    ("max_trials",),
                    self._running.lease_seconds,
                    stream,
                )
            )
            kind = scripts.ScriptTrials(
                self._number,
                self.oracle,
                facts.parameters,
                target,
                self._running.launch_flags(seed),
                says_epochs=isinstance(self.oracle, keras_tuner.oracles.HyperbandOracle),
            )
            shown = views.Views(facts, stream, stream is not None and stream.isatty())
            loop.Search(
                facts,
                log,
                asker,
                kind,
                scripts.ScriptViews(shown, kind),
                epochs_of=lambda values: hypermodels.epochs_of(fit_args, fit_kwargs),
                slots=self._running.slots(self._role, _num_gpus()),
                service=joined,
                max_retries=self._running.max_retries,
                stops_at=self._running.stops_at(facts),
            ).run()
            for id, score, _ in self._best()[:1]:
                values = scripts.read_space(self._folder_of(id))["values"]
                best = {"trial": id, "score": score, "values": values}
                write_whole(run_dir / "best.json", json.dumps(best, indent=2) + "\n")
            if joined is not None:
                joined.end_search()

    def _join(self, fit_kwargs):
        """Run trials for the chief until the search is over."""
        run_dir = pathlib.Path(self.project_dir).absolute()

        def make_kind():
            seed = json.loads((run_dir / "search.json").read_text())["seed"]
            flags = self._running.launch_flags(seed)
            target = scripts.target() or imported.target(run_dir)
            return scripts.ScriptTrials(self._number, self.oracle, [], target, flags)

        joining.Member(
            self._role,
            run_dir,
            self._shared_identity(),
            make_kind,
            self._running.slots(self._role, _num_gpus()),
            start_timeout_seconds=self._running.start_timeout_seconds,
            stream=_stream(fit_kwargs),
        ).run()

    def _target(self, run_dir, fit_args, fit_kwargs):
        """Return how a trial is started: the script again, or what can be imported."""
        target = scripts.target()
        if target is not None:
            return target
        if any(part is not None for part in self._replaced.values()):
            raise ValueError(
                "Without a script the hypermodel itself compiles the model. Received: optimizer, "
                "loss or metrics in an interactive session. Write them into its `build`."
            )
        return imported.pack(
            run_dir,
            self.hypermodel,
            self._given,
            self.oracle.objective,
            self.executions_per_trial,
            fit_args,
            fit_kwargs,
        )

    def _settle(self, run_dir):
        """Write what this search is, or check it; return its facts and its seed."""
        path, objective = run_dir / "search.json", self.oracle.objective
        before = json.loads(path.read_text()) if path.exists() else {}
        # An oracle without a seed draws another one each time.
        identity = self._identity() | {"seed": before.get("seed", self.oracle.seed)}
        identity = journal.settle(path, identity, ["max_trials"])
        oracles.reseed(self.oracle, identity["seed"])
        facts = trials.SearchFacts(
            objective=objective.name,
            direction=objective.direction,
            tuner=identity["tuner"].removesuffix("Oracle"),
            max_trials=identity["max_trials"],
            parameters=space.parameters(self.oracle.get_space()),
            run_dir=run_dir,
            began=identity["began"],
        )
        return facts, identity["seed"]

    def _identity(self):
        """Return what this search is, as far as the script says it."""
        objective, parameters = self.oracle.objective, space.parameters(self.oracle.get_space())
        return {
            "tuner": type(self.oracle).__name__,
            "objective": objective.name,
            "direction": objective.direction,
            "max_trials": self.oracle.max_trials or 0,
            "executions_per_trial": self.executions_per_trial,
            "space": {parameter.name: repr(parameter) for parameter in parameters},
        }

    def _shared_identity(self):
        """Return what has to be the same on all machines of a search."""
        running = {name: getattr(self._running, name) for name in _SHARED}
        script = {"number": self._number, **scripts.fingerprint(scripts.target())}
        return protocol.with_versions(self._identity() | running | {"script": script})


def _stream(fit_kwargs):
    return None if fit_kwargs.get("verbose") == 0 else sys.stdout


def _num_gpus():
    return len(tf.config.list_physical_devices("GPU"))


def _checked_oracle(given):
    if not isinstance(given, keras_tuner.Oracle):
        raise ValueError(
            "`oracle` must be a keras_tuner.Oracle, such as "
            "keras_tuner.oracles.RandomSearchOracle(objective='val_accuracy', max_trials=10). "
            f"Received: {given!r}."
        )
    return given


def _refuse_worker():
    if "TFSCALE_LOCAL_WORKERS" in os.environ or "TF_CONFIG" in os.environ:
        raise ValueError(
            "A Tuner starts the workers of its trials itself. Received: a process that is a worker "
            "already, of tfscale.launch or by TF_CONFIG. Run the script with python, and use "
            "workers_per_trial."
        )


def _remove_search(folder):
    """Remove the search that is in a folder, and nothing else."""
    if not folder.exists():
        return
    if any(folder.iterdir()) and not (folder / "search.json").exists():
        raise ValueError(
            "overwrite=True removes an older search. Received: "
            f"{folder}, which is not empty and has no search.json. Use another project_name."
        )
    shutil.rmtree(folder)
