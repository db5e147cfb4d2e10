"""A search from Python: `Tuner` in the place of a `keras_tuner.Tuner`.

The hypermodel, the oracle and what they mean are keras-tuner's. A trial is a process group that
runs the user's script again, up to this tuner's `search`; the rest is the loop of `tfscale.tune`.
"""

import functools
import inspect
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys

import keras_tuner

from tfscale.config import STRATEGIES
from tfscale.names import check_known
from tfscale.search import (
    imported,
    journal,
    loop,
    oracles,
    processes,
    scripts,
    space,
    stopping,
    table,
    trials,
    views,
)

_NO_BOUND = 10**9
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
        strategy: "multiworker" for several workers a trial; "auto", "onedevice" and "mirrored"
            are one worker with the devices that this machine has.
        workers_per_trial: workers of each trial, on this machine.
        directory: as in keras-tuner, "." by default.
        project_name: the search's folder in `directory`, "untitled_project" by default.
        overwrite: begin anew where the folder holds a search; otherwise it goes on.
        executions_per_trial: how often each model is trained; the mean of the best scores counts.
        parallel_trials: trials that run at once.
        max_retries: how often a trial that has failed is started again, where it may come right.
        early_stopping: "median" stops trials that will not win; "" stops none.
        min_epochs: epochs that early stopping leaves to each trial.
        min_trials: trials that must have come as far before early stopping stops another.
        hang_timeout_seconds: end a trial whose workers make no step for so long; 0 for never.
        deterministic: the same bits in every run, at some cost.
        private_network: workers reach each other and no other machine.
        oversubscribe: allow more workers at once than there are cores.
        optimizer, loss, metrics: replace what the hypermodel compiles with.

    Raises:
        ValueError: if an argument is out of range, the folder holds something else than a search,
            or the hypermodel fails.
    """

    def __init__(
        self,
        hypermodel=None,
        oracle=None,
        *,
        strategy="auto",
        workers_per_trial=1,
        directory=None,
        project_name=None,
        overwrite=False,
        executions_per_trial=1,
        parallel_trials=1,
        max_retries=1,
        early_stopping="",
        min_epochs=1,
        min_trials=3,
        hang_timeout_seconds=0,
        deterministic=True,
        private_network=True,
        oversubscribe=False,
        optimizer=None,
        loss=None,
        metrics=None,
    ):
        self._number = next(_numbers)
        self._assignment = scripts.assigned()
        self.hypermodel, self.oracle = as_hypermodel(hypermodel), _oracle(oracle)
        self._given = hypermodel
        self.directory = str(directory or ".")
        self.project_name = str(project_name or "untitled_project")
        self.executions_per_trial = executions_per_trial
        self._compile = {"optimizer": optimizer, "loss": loss, "metrics": metrics}
        self._num_workers, self._parallel_trials = workers_per_trial, parallel_trials
        self._max_retries, self._hang_seconds = max_retries, hang_timeout_seconds
        self._stops = (early_stopping, min_epochs, min_trials)
        self._is_deterministic, self._private_network = deterministic, private_network
        if self._assignment is not None:
            return  # the oracle is elsewhere
        _refuse_launched()
        self._check(strategy, oversubscribe)
        if overwrite:
            self._clear()
        _populate(self.oracle, self.hypermodel)

    @property
    def project_dir(self):
        """The folder of the search."""
        return os.path.join(self.directory, self.project_name)

    def search(self, *fit_args, **fit_kwargs):
        """Search until the oracle has had its trials, or go on with a search that was cut off.

        In the process of a trial it trains that trial's model, and does not return.

        Args:
            *fit_args: what `HyperModel.fit`, and so `keras.Model.fit`, is given.
            **fit_kwargs: the same, by name. `verbose=0` shows nothing of the search either.

        Raises:
            ValueError: if this process is neither a script nor a module, or the folder holds
                another search.
        """
        if self._assignment is not None:
            if self._assignment.tuner == self._number:
                self._run_trial(fit_args, fit_kwargs)
            return  # a tuner of the same script whose search is over
        try:
            self._search(fit_args, fit_kwargs)
        except loop.ToldToLeave as left:
            if left.code == 128 + signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(left.code)

    def get_best_hyperparameters(self, num_trials=1):
        """Return the `keras_tuner.HyperParameters` of the best trials, the best first.

        Args:
            num_trials: how many at most.
        """
        return [
            scripts.hyperparameters(scripts.read_space(self._trials / id))
            for id, _, _ in self._best()[:num_trials]
        ]

    def get_best_models(self, num_models=1):
        """Return the models of the best trials with the weights of their best epochs.

        Args:
            num_models: how many at most.
        """
        from tfscale.search import script_trial

        models = []
        for id, _, _ in self._best()[:num_models]:
            model = self._build(scripts.hyperparameters(scripts.read_space(self._trials / id)))
            script_trial.load_weights(model, self._trials / id)
            models.append(model)
        return models

    def results_summary(self, num_trials=10):
        """Print the best trials with their values and scores.

        Args:
            num_trials: how many at most.
        """
        best = self._best()[:num_trials]
        print(f"Results in {self.project_dir}: the {len(best)} best trials")
        objective = self.oracle.objective
        print(f"Objective: {objective.name}, {objective.direction}")
        for id, score, state in best:
            print(f"\nTrial {id}, {table.words(state)}")
            for name, value in scripts.read_space(self._trials / id)["values"].items():
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

    @property
    def _trials(self):
        return pathlib.Path(self.project_dir) / "trials"

    def _best(self):
        """Return (id, score, state) of the trials that have a score, the best first."""
        sign = -1 if self.oracle.objective.direction == "max" else 1
        found = scripts.ended_trials(self.project_dir)
        return sorted(found, key=lambda trial: (sign * trial[1], trial[0]))

    def _build(self, hp):
        """Return a model, compiled with what this tuner replaces."""
        import keras

        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model):
            raise ValueError(
                "A hypermodel must build a keras.Model. "
                f"Received: {type(model).__name__}. Return the compiled model."
            )
        replaced = {name: part for name, part in self._compile.items() if part is not None}
        if replaced:
            if not isinstance(replaced.get("optimizer", ""), str):  # each model has its own
                config = keras.optimizers.serialize(replaced["optimizer"])
                replaced["optimizer"] = keras.optimizers.deserialize(config)
            model.compile(**{"optimizer": model.optimizer, "loss": model.loss, **replaced})
        return model

    def _run_trial(self, fit_args, fit_kwargs):
        from tfscale.search import script_trial

        script_trial.run(
            self._assignment,
            self._build,
            self.hypermodel.fit,
            self.oracle.objective,
            self.executions_per_trial,
            fit_args,
            fit_kwargs,
        )

    def _search(self, fit_args, fit_kwargs):
        """Lead the loop through all trials."""
        run_dir = pathlib.Path(self.project_dir).absolute()
        target = self._target(run_dir, fit_args, fit_kwargs)
        run_dir.mkdir(parents=True, exist_ok=True)
        facts, seed = self._settle(run_dir)
        verbose = fit_kwargs.get("verbose", "auto")
        stream = None if verbose == 0 else sys.stdout
        rule, min_epochs, min_trials = self._stops
        stops_at = None
        if rule:
            stops_at = functools.partial(
                stopping.stops_at,
                objective=facts.objective,
                direction=facts.direction,
                min_epochs=min_epochs,
                min_trials=min_trials,
            )
        self.oracle.max_consecutive_failed_trials = _NO_BOUND  # no trial ends the search
        log = journal.Journal(run_dir / "journal.jsonl")
        asker = scripts.ScriptAsker(self.oracle, run_dir)
        says_epochs = isinstance(self.oracle, keras_tuner.oracles.HyperbandOracle)
        try:
            loop.Search(
                facts,
                log,
                asker,
                scripts.ScriptTrials(
                    self._number,
                    self.oracle,
                    facts.parameters,
                    target,
                    self._launch_flags(seed),
                    says_epochs,
                ),
                views.Views(facts, stream, stream is not None and sys.stdout.isatty()),
                epochs_of=lambda values: _epochs_of(fit_args, fit_kwargs),
                slots=processes.slots(self._parallel_trials),
                max_retries=self._max_retries,
                stops_at=stops_at,
            ).run()
        finally:
            asker.close()
            log.close()

    def _target(self, run_dir, fit_args, fit_kwargs):
        """Return how a trial is started: the script again, or what can be imported."""
        target = scripts.target()
        if target is not None:
            return target
        if any(part is not None for part in self._compile.values()):
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
        identity = {
            "tuner": type(self.oracle).__name__,
            "objective": objective.name,
            "direction": objective.direction,
            "max_trials": self.oracle.max_trials or 0,
            "executions_per_trial": self.executions_per_trial,
            "seed": self.oracle.seed,
            "space": {p.name: repr(p) for p in space.parameters(self.oracle.get_space())},
        }
        before = json.loads(path.read_text()) if path.exists() else {}
        # An oracle without a seed draws another one each time.
        identity["seed"] = before.get("seed", identity["seed"])
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

    def _launch_flags(self, seed):
        flags = [f"--workers={self._num_workers}", f"--seed={seed}", "--max_restarts=0"]
        flags += ["--on_bad_loss=stop", f"--hang_timeout_seconds={self._hang_seconds}"]
        flags.append(f"--deterministic={str(self._is_deterministic).lower()}")
        flags.append(f"--private_network={str(self._private_network).lower()}")
        return flags

    def _check(self, strategy, oversubscribe):
        check_known("strategy", [strategy], STRATEGIES)
        check_known("early_stopping", [self._stops[0]], stopping.RULES)
        for name, value, least in (
            ("workers_per_trial", self._num_workers, 1),
            ("parallel_trials", self._parallel_trials, 1),
            ("executions_per_trial", self.executions_per_trial, 1),
            ("max_retries", self._max_retries, 0),
            ("hang_timeout_seconds", self._hang_seconds, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}. Received: {name}={value}.")
        if self._num_workers > 1 and strategy != "multiworker":
            raise ValueError(
                'Several workers a trial need strategy="multiworker". Received: '
                f"workers_per_trial={self._num_workers}, strategy={strategy!r}."
            )
        cores, needed = len(os.sched_getaffinity(0)), self._num_workers * self._parallel_trials
        if needed > cores and not oversubscribe:
            raise ValueError(
                "All workers that run at once must have a core each. Received: "
                f"workers_per_trial={self._num_workers} and parallel_trials="
                f"{self._parallel_trials} on {cores} cores. Use fewer, or oversubscribe=True."
            )

    def _clear(self):
        """Remove the search that is in the folder."""
        folder = pathlib.Path(self.project_dir)
        if not folder.exists():
            return
        if any(folder.iterdir()) and not (folder / "search.json").exists():
            raise ValueError(
                "overwrite=True removes an older search. Received: "
                f"{folder}, which is not empty and has no search.json. Use another project_name."
            )
        shutil.rmtree(folder)


def _refuse_launched():
    if "TFSCALE_LOCAL_WORKERS" in os.environ or "TF_CONFIG" in os.environ:
        raise ValueError(
            "A Tuner starts the workers of its trials itself. Received: a process that is a worker "
            "already, of tfscale.launch or by TF_CONFIG. Run the script with python, and use "
            "workers_per_trial."
        )


def as_hypermodel(given):
    """Return a `keras_tuner.HyperModel`."""
    if isinstance(given, keras_tuner.HyperModel):
        return given
    if not callable(given):
        raise ValueError(
            "`hypermodel` must be a keras_tuner.HyperModel, or a function that builds a model from "
            f"hyperparameters. Received: {given!r}."
        )
    hypermodel = keras_tuner.HyperModel()
    hypermodel.build = given
    return hypermodel


def _oracle(given):
    if not isinstance(given, keras_tuner.Oracle):
        raise ValueError(
            "`oracle` must be a keras_tuner.Oracle, such as "
            "keras_tuner.oracles.RandomSearchOracle(objective='val_accuracy', max_trials=10). "
            f"Received: {given!r}."
        )
    return given


def _populate(oracle, hypermodel):
    """Have the oracle know all hyperparameters that the hypermodel's `build` asks for.

    A conditional scope is entered once each; keras-tuner does the same when a tuner is made.
    """
    hp = oracle.get_space()
    hypermodel.declare_hyperparameters(hp)
    oracle.update_space(hp)
    entered, wanted = [], []
    while True:
        hypermodel.build(hp)
        oracle.update_space(hp)
        entered += [scope for scope in map(_scope, hp.active_scopes) if scope not in entered]
        wanted += [scope for scope in map(_scope, hp.inactive_scopes) if scope not in wanted]
        left = [scope for scope in wanted if scope not in entered]
        if not left:
            return
        entered.append(left[0])  # or tried, where its condition cannot hold
        hp = oracle.get_space()
        hp.values.update(left[0])
        hp.ensure_active_values()


def _scope(conditions):
    """Return values under which a scope is active, [(name, value), ...]."""
    return [(condition.name, condition.values[0]) for condition in conditions]


def _epochs_of(fit_args, fit_kwargs):
    """Return the epochs that `keras.Model.fit` would make of what `search` was given."""
    import keras

    try:
        given = inspect.signature(keras.Model.fit).bind_partial(None, *fit_args, **fit_kwargs)
    except TypeError:  # arguments of a HyperModel.fit of the user's own
        return fit_kwargs.get("epochs", 1)
    return given.arguments.get("epochs", 1)


def _of(oracle_class):
    """Return a function that makes a `Tuner` as keras-tuner's class for that oracle is made."""
    own = set(inspect.signature(Tuner.__init__).parameters)

    def make(hypermodel=None, **arguments):
        known = set(inspect.signature(oracle_class.__init__).parameters) - {"self"}
        check_known(
            "An argument", arguments, sorted((known | own) - {"self", "oracle", "hypermodel"})
        )
        oracle = oracle_class(**{n: v for n, v in arguments.items() if n in known})
        return Tuner(hypermodel, oracle, **{n: v for n, v in arguments.items() if n in own})

    make.__doc__ = (
        f"Return a `Tuner` with a `keras_tuner.oracles.{oracle_class.__name__}`.\n\n"
        "    Takes the arguments of keras-tuner's class of the same name, and those of `Tuner`."
    )
    return make


RandomSearch = _of(keras_tuner.oracles.RandomSearchOracle)
GridSearch = _of(keras_tuner.oracles.GridSearchOracle)
BayesianOptimization = _of(keras_tuner.oracles.BayesianOptimizationOracle)
Hyperband = _of(keras_tuner.oracles.HyperbandOracle)
