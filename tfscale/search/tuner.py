"""A search from Python: `Tuner` in the place of a `keras_tuner.Tuner`.

The hypermodel, the oracle and what they mean are keras-tuner's. A trial is a process group that
runs the user's script again, up to this tuner's `search`; the rest is the loop of `tfscale.tune`.
"""

import contextlib
import copy
import dataclasses
import itertools
import json
import pathlib
import signal
import sys

import keras_tuner
import tensorflow as tf

from tfscale import strategy as strategy_lib
from tfscale.names import check_known
from tfscale.search import (
    endings,
    found,
    hooks,
    hypermodels,
    identity,
    imported,
    joining,
    journal,
    leaving,
    loop,
    oracles,
    places,
    protocol,
    script_trial,
    scripts,
    service,
    space,
    trials,
    tuner_checks,
    views,
)
from tfscale.search.running import Running
from tfscale.training.checkpoint import write_whole

_NO_BOUND = 10**9
_OWN_MODULES = ("tfscale.search.tuner", "tfscale.search.tuners")
_RUNNING = [field.name for field in dataclasses.fields(Running)]
_numbers = itertools.count(1)  # of the tuners that this process makes
oracles.note_seeds()


class Tuner(hooks.Hooks, found.Found):
    """Searches the hyperparameters of a hypermodel, each trial in processes of its own.

    What is called `search` in the user's script becomes, in the processes of a trial, the
    training of one model: they run the script again, with the same arguments, under
    `tfscale.launch`. Everything in front of `search` runs there too, and nothing behind it.
    A class derived from this one may override `run_trial` and what is called `on_...`.

    Args:
        hypermodel: a `keras_tuner.HyperModel`, or a function from `keras_tuner.HyperParameters`
            to a compiled model; None for a class with a `run_trial` of its own.
        oracle: a `keras_tuner.Oracle`, such as `keras_tuner.oracles.BayesianOptimizationOracle`.
        directory: as in keras-tuner, "." by default.
        project_name: the search's folder in `directory`, "untitled_project" by default.
        overwrite: begin anew where the folder holds a search; otherwise it goes on.
        executions_per_trial: how often each model is trained; the mean of the best scores counts.
        optimizer, loss, metrics: replace what the hypermodel compiles with.
        distribution_strategy: a `tf.distribute.Strategy` of one machine for each trial's model;
            with several workers a trial theirs takes its place.
        max_model_size: parameters that a model may have; a trial with more has failed.
        max_consecutive_failed_trials: end the search when so many trials in a row have no score;
            by default no trial ends it, but for one that raises `keras_tuner.errors.FatalError`.
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
        distribution_strategy=None,
        max_model_size=None,
        max_consecutive_failed_trials=None,
        **running,
    ):
        self._number = next(_numbers)
        self._assignment = scripts.assigned()
        self._given, self.hypermodel = hypermodel, None
        if hypermodel is not None or not self.overridden(["run_trial"]):
            self.hypermodel = hypermodels.as_hypermodel(hypermodel)
        self.oracle = tuner_checks.checked_oracle(oracle)
        oracles.keep_no_files(self.oracle)
        self.directory = str(directory or ".")
        self.project_name = str(project_name or "untitled_project")
        self.executions_per_trial = executions_per_trial
        self._replaced = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
        self.distribution_strategy = tuner_checks.checked_strategy(distribution_strategy)
        self.max_model_size = max_model_size
        self._max_failures = endings.failures_allowed(self.oracle, max_consecutive_failed_trials)
        check_known("An argument of Tuner", running, _RUNNING)
        self._running = Running(**running)
        if executions_per_trial < 1:
            raise ValueError(
                "executions_per_trial must be at least 1. "
                f"Received: executions_per_trial={executions_per_trial}."
            )
        if self._assignment is not None:
            if self._assignment.tuner == self._number:
                self.trial_here = script_trial.ScriptTrial(self._assignment, self)
            self.reload()
            return  # the oracle that is asked is elsewhere
        tuner_checks.refuse_worker()
        self._role = self._running.role()
        self._running.check(self._role)
        if self._role.kind != "worker":
            lease_seconds = self._running.lease_seconds
            places.take(self.directory, self.project_name, self._number, overwrite, lease_seconds)
        if self.hypermodel is not None:
            hypermodels.populate(self.oracle, self.hypermodel)
        self._unasked = copy.deepcopy(self.oracle)  # for each call of search
        self.reload()

    @property
    def project_dir(self):
        """The folder of the search."""
        return places.folder_of(self.directory, self.project_name, self._number)

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
            keras_tuner.errors.FatalError: if a trial has raised it.
            RuntimeError: if more trials than allowed have failed in a row.
        """
        if self._assignment is None:
            self.on_search_begin()
            try:
                if self._role.kind == "worker":
                    self._join(fit_kwargs)
                else:
                    self._search(fit_args, fit_kwargs)
            except leaving.ToldToLeave as left:
                if left.code == 128 + signal.SIGINT:
                    raise KeyboardInterrupt from None
                sys.exit(left.code)
            finally:
                self.reload()
            self.on_search_end()
        elif self.trial_here is not None:
            self.trial_here.run(fit_args, fit_kwargs)
        else:
            self.reload()  # a tuner of the same script whose search is over

    def build_distributed(self, hp):
        """Return the compiled model of some values, under the strategy that the tuner was given.

        Args:
            hp: the `keras_tuner.HyperParameters`.

        Raises:
            keras_tuner.errors.FailedTrialError: if it has more parameters than `max_model_size`.
        """
        strategy = self.distribution_strategy
        if strategy is not None and self._running.workers_per_trial > 1 and self.trial_here:
            strategy = strategy_lib.make_strategy("multiworker")
            if strategy_lib.is_chief():
                print(
                    "tfscale: the workers of the trial train together, in the place of "
                    "distribution_strategy.",
                    flush=True,
                )
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            return hypermodels.build(self.hypermodel, self._replaced, hp, self.max_model_size)

    def _search(self, fit_args, fit_kwargs):
        """Lead the loop through all trials."""
        run_dir = pathlib.Path(self.project_dir).absolute()
        target, number = self._target(run_dir, fit_args, fit_kwargs)
        run_dir.mkdir(parents=True, exist_ok=True)
        oracle = copy.deepcopy(self._unasked)
        oracle.max_consecutive_failed_trials = _NO_BOUND  # `ending` counts
        stream = _stream(fit_kwargs)
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(
                contextlib.closing(journal.Journal(run_dir / "journal.jsonl"))
            )
            ending = endings.Endings(self._max_failures, log)
            epochs = hypermodels.epochs_of(fit_args, fit_kwargs)
            says_epochs = isinstance(oracle, keras_tuner.oracles.HyperbandOracle)
            facts, seed = self._settle(run_dir, oracle, 0 if says_epochs else epochs)
            joined = stack.enter_context(self._offered(run_dir, stream))
            asker = scripts.ScriptAsker(oracle, run_dir)
            kind = scripts.ScriptTrials(
                number,
                oracle,
                facts.parameters,
                target,
                self._running.launch_flags(seed),
                says_epochs,
            )
            shown = views.Views(facts, stream, stream is not None and stream.isatty())
            search = loop.Search(
                facts,
                log,
                asker,
                kind,
                scripts.ScriptViews(shown, kind),
                epochs_of=lambda values: epochs,
                slots=self._running.slots(self._role, _num_gpus()),
                service=joined,
                max_retries=oracle.max_retries_per_trial or self._running.max_retries,
                stops_at=self._running.stops_at(facts),
                when_ended=ending.take,
            )
            try:
                search.run()
            except endings.ERRORS:
                shown.finish(search.records)
                _end_for_all(joined)
                raise
            self._write_best(run_dir)
            _end_for_all(joined)

    def _offered(self, run_dir, stream):
        """As a context: the service for machines that join, if this process leads them."""
        shared, lease = self._shared_identity(), self._running.lease_seconds
        return service.offered(self._role, run_dir, shared, identity.MAY_CHANGE, lease, stream)

    def _write_best(self, run_dir):
        self.reload()
        for trial in found.best(self.oracle)[:1]:
            values = scripts.without_oracle(trial.hyperparameters.values)
            best = {"trial": trial.trial_id, "score": trial.score, "values": values}
            write_whole(run_dir / "best.json", json.dumps(best, indent=2) + "\n")

    def _join(self, fit_kwargs):
        """Run trials for the chief until the search is over."""
        run_dir = pathlib.Path(self.project_dir).absolute()

        def make_kind():
            seed = journal.read_identity(run_dir / "search.json")["seed"]
            flags, target = self._running.launch_flags(seed), scripts.target()
            number = self._number if target else 1
            target = target or imported.target(run_dir)
            return scripts.ScriptTrials(number, self.oracle, [], target, flags)

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
        """Return how a trial is started, the script again or what can be imported.

        Returns:
            What `scripts.target` does, and which tuner this is in that process.
        """
        target = scripts.target()
        if target is not None:
            return target, self._number
        replaced = [*self._replaced.values(), self.distribution_strategy, self.max_model_size]
        if any(part is not None for part in replaced) or type(self).__module__ not in _OWN_MODULES:
            raise ValueError(
                "Without a script the hypermodel says all of a trial. Received: optimizer, loss, "
                "metrics, distribution_strategy, max_model_size or a class derived from Tuner in "
                "an interactive session. Write them into `build` and `fit` of the hypermodel, or "
                "put all of it into a script and run that."
            )
        target = imported.pack(
            run_dir,
            self.hypermodel,
            self._given,
            self.oracle.objective,
            self.executions_per_trial,
            fit_args,
            fit_kwargs,
        )
        return target, 1

    def _settle(self, run_dir, oracle, epochs):
        """Write what this search is, or check it; return its facts and its seed."""
        found = identity.settle(run_dir / "search.json", self._identity(oracle), oracle, epochs)
        facts = trials.SearchFacts(
            objective=oracle.objective.name,
            direction=oracle.objective.direction,
            tuner=found["tuner"].removesuffix("Oracle"),
            max_trials=found["max_trials"],
            parameters=space.parameters(oracle.get_space()),
            run_dir=run_dir,
            began=found["began"],
            tuner_trials=0 if epochs else oracles.num_trials(oracle),  # a grid may still grow
        )
        return facts, found["seed"]

    def _identity(self, oracle):
        return identity.of_search(oracle, self.executions_per_trial, self._running)

    def _shared_identity(self):
        """Return what has to be the same on all machines of a search."""
        script = {"number": self._number, **scripts.fingerprint(scripts.target())}
        return protocol.with_versions(self._identity(self._unasked) | {"script": script})


def _stream(fit_kwargs):
    return None if fit_kwargs.get("verbose") == 0 else sys.stdout


def _end_for_all(joined):
    if joined is not None:
        joined.end_search()


def _num_gpus():
    return len(tf.config.list_physical_devices("GPU"))
