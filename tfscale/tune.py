"""Search hyperparameters: python -m tfscale.tune --config=experiments/digits_search.py

Reads the command line and the space, refuses what cannot be searched, and hands over to
`search.loop`, whose trials are runs of `tfscale.fit`. At the end it scores the winner on the test
split, which no trial has seen.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import sys
import time

from absl import flags

from tfscale import command_line, config_files, run_folder
from tfscale.config import STRATEGIES
from tfscale.names import nearest
from tfscale.search import checks, loop, oracles, processes, stopping, trials, views, winner
from tfscale.search import journal as journal_lib
from tfscale.search import space as space_lib
from tfscale.training import checkpoint as checkpoint_lib

USAGE = """Search hyperparameters; each trial is a run of tfscale.fit in processes of its own.

  python -m tfscale.tune --config=experiments/digits_search.py --tuner=bayesian --max_trials=30
  python -m tfscale.tune --config=FILE --parallel_trials=2       two trials at once
  python -m tfscale.tune --config=FILE --strategy=multiworker --workers_per_trial=2
  python -m tfscale.tune --config=FILE --run_dir=runs/mine       again: goes on where it stopped

FILE defines search_space(hp) beside get_config(). It names fields of the configuration:

  def search_space(hp):
      hp.Float("optimizer.learning_rate", 1e-4, 1e-1, sampling="log")
      hp.Choice("optimizer.name", ["sgd", "adam"])
      with hp.conditional_scope("optimizer.name", ["sgd"]):
          hp.Float("optimizer.arguments.momentum", 0.0, 0.95)

Trials are compared on validation data; the test split is scored once, for the winner."""

_RULE = "--config must be a .py file with get_config() and search_space(hp)."
_MAY_CHANGE = ("max_trials", "keras_tuner")
_DEFAULT_TRIALS = {"random": 10, "bayesian": 10, "grid": 0, "hyperband": 0}


def main(argv=None):
    """Run the command; return its exit code."""
    return command_line.run(_main, argv)


def _main(argv):
    values = command_line.parse(argv, USAGE, _define_flags)
    if values is None:
        return 0
    config, file = values.config, command_line.take_file(argv)[1]
    config_files.check_types(config)
    _check_flags(values)
    search_space = _search_space(file)
    gpus = _import_quietly()
    space = space_lib.define(search_space)
    space_lib.check(space, config, config_files.check_types)
    checks.check_arguments(space, config)
    objective, direction = checks.settle_objective(values.objective, values.direction, config)
    run_dir = pathlib.Path(
        values.run_dir or run_folder.default_path(config, time.time()).replace("/", "/search-", 1)
    )
    max_epochs = _max_epochs(values, config, space)
    spans = config.schedule.epochs or max_epochs
    _build_once(space_lib.trial_config(config, {}, objective, direction, max_epochs, spans))
    with contextlib.closing(_open(run_dir)) as journal:
        identity = _identity(values, config, space, objective, direction, max_epochs)
        identity = journal_lib.settle(run_dir / "search.json", identity, _MAY_CHANGE)
        facts = trials.SearchFacts(
            objective=objective,
            direction=direction,
            tuner=values.tuner,
            max_trials=identity["max_trials"],
            parameters=space_lib.parameters(space),
            run_dir=run_dir,
            began=identity["began"],
        )
        return _run(values, config, space, facts, journal, max_epochs, gpus)


def _import_quietly():
    """Import what choices and checks need, and hide the GPUs from this process.

    Returns:
        The number of GPUs, which belong to the trials.
    """
    with command_line.quiet_import():
        import keras_tuner  # noqa: F401
        import tensorflow as tf

        from tfscale import strategy

        strategy.find_gpus()
        gpus = len(tf.config.list_physical_devices("GPU"))
        if gpus:
            tf.config.set_visible_devices([], "GPU")
    return gpus


def _build_once(config):
    """Open the data and build the model: what is wrong with them would end every trial."""
    from tfscale import experiment
    from tfscale.data import load

    experiment.compiled_model(config, load.load(config.data))


def _define_flags(values):
    for name, default, text in (
        ("tuner", "random", ", ".join(oracles.TUNERS)),
        ("objective", "", "metric that is compared; empty: val_accuracy, or the first there is"),
        ("direction", "auto", "which value of it is best: max, min, or auto: by the metric"),
        ("run_dir", "", "folder of the search; empty: a new one in runs/"),
        ("strategy", "auto", "of a trial: auto, onedevice, mirrored or multiworker"),
        ("early_stopping", "", "median: stop a trial that is worse than half of the others"),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    flags.DEFINE_integer(
        "max_trials",
        None,
        "trials in all; 0: all that the tuner has  [10; grid and hyperband 0]",
        lower_bound=0,
        flag_values=values,
    )
    for name, default, least, text in (
        ("parallel_trials", 1, 1, "trials at once, each on its share of the cores"),
        ("workers_per_trial", 1, 1, "workers of a trial, with multiworker"),
        ("num_replicas", 0, 0, "replicas of a trial, with mirrored"),
        ("seed", 0, 0, "of the tuner's choices"),
        ("max_epochs", 0, 0, "hyperband: epochs of its longest trials; 0: train.epochs"),
        ("factor", 3, 2, "hyperband: one of so many trials goes on, so many times as long"),
        ("min_epochs", 1, 1, "early stopping: not before the end of this epoch"),
        ("min_trials", 4, 1, "early stopping: not before so many others have come as far"),
        ("max_retries", 1, 0, "starts again of a trial that crashed or hung"),
        ("max_restarts", 3, 0, "multiworker: failures of a trial's workers in an hour"),
        ("hang_timeout_seconds", 600, 0, "end a trial that makes no step for so long; 0: wait"),
        ("grace_seconds", 60, 0, "time for a trial to save and leave"),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    flags.DEFINE_bool(
        "deterministic", True, "trials give the same bits in every run", flag_values=values
    )
    flags.DEFINE_bool("oversubscribe", False, "allow more workers than cores", flag_values=values)


def _check_flags(values):
    """Refuse what no space would make right."""
    for name, known in (
        ("tuner", oracles.TUNERS),
        ("strategy", STRATEGIES),
        ("early_stopping", stopping.RULES),
        ("direction", checkpoint_lib.MODES),
    ):
        given = values[name].value
        if given not in known:
            listed = ", ".join(word or "nothing" for word in known)
            raise config_files.UsageError(
                f"--{name} must be one of {listed}. Received: {given!r}.{nearest(given, known)}"
            )
    workers = values.workers_per_trial
    if workers > 1 and values.strategy not in ("auto", "multiworker"):
        raise config_files.UsageError(
            "--workers_per_trial belongs to --strategy=multiworker. Received: "
            f"--workers_per_trial={workers} --strategy={values.strategy}."
        )
    if values.early_stopping and values.tuner == "hyperband":
        raise config_files.UsageError(
            "--early_stopping is for tuners that train all trials to the end. Received: "
            "--tuner=hyperband, which stops trials itself. Leave out one of them."
        )
    cores = len(os.sched_getaffinity(0))
    if values.parallel_trials * workers > cores and not values.oversubscribe:
        raise config_files.UsageError(
            "Trials that run at once need a core for each worker. Received: "
            f"--parallel_trials={values.parallel_trials} --workers_per_trial={workers} on {cores} "
            f"core{'s' if cores > 1 else ''}. Use fewer, or add --oversubscribe."
        )


def _search_space(file):
    """Return the function that a configuration's file defines."""
    path = pathlib.Path(file or "")
    if path.suffix != ".py":
        raise config_files.UsageError(
            f"{_RULE} Received: {file or 'none'}. See experiments/digits_search.py."
        )
    function = config_files.load_function(path, "search_space", _RULE)
    if not callable(function):
        raise config_files.UsageError(
            f"{_RULE} Received: {path}, which has no search_space. See "
            "experiments/digits_search.py."
        )
    return function


def _max_epochs(values, config, space):
    """Return the epochs of a trial; for hyperband, those of its longest ones."""
    if values.tuner != "hyperband":
        if values.max_epochs:
            raise config_files.UsageError(
                "--max_epochs belongs to --tuner=hyperband. Received: "
                f"--max_epochs={values.max_epochs} --tuner={values.tuner}. Use "
                f"--config.train.epochs={values.max_epochs}."
            )
        return config.train.epochs
    if any(parameter.name == "train.epochs" for parameter in space_lib.parameters(space)):
        raise config_files.UsageError(
            "hyperband chooses the epochs itself. Received: a space with 'train.epochs'. Take it "
            "out, and set --max_epochs."
        )
    return values.max_epochs or config.train.epochs


def _open(run_dir):
    """Make the folder and open its journal."""
    if (run_dir / "config.json").exists():
        raise config_files.UsageError(
            "--run_dir must be a new folder or that of this search. Received: "
            f"{run_dir}, which holds a run of tfscale.fit. Use another --run_dir."
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return journal_lib.Journal(run_dir / "journal.jsonl")
    except OSError as error:
        raise config_files.UsageError(
            f"--run_dir must be a folder that can be written. Received: {run_dir} "
            f"({error.strerror}). Use another --run_dir."
        ) from None


def _identity(values, config, space, objective, direction, max_epochs):
    """Return what makes this search another one than others."""
    names = ("tuner", "seed", "strategy", "workers_per_trial", "num_replicas", "deterministic")
    names += ("early_stopping", "min_epochs", "min_trials", "factor")
    max_trials = values.max_trials
    return {
        **{name: values[name].value for name in names},
        "objective": objective,
        "direction": direction,
        "max_epochs": max_epochs,
        "max_trials": _DEFAULT_TRIALS[values.tuner] if max_trials is None else max_trials,
        "space": space.get_config()["space"],
        "config": dataclasses.asdict(config),
        "keras_tuner": importlib.metadata.version("keras-tuner"),
    }


def _run(values, config, space, facts, journal, max_epochs, gpus):
    """Search, and say what was found; return the exit code."""
    schedule_epochs = max_epochs if values.tuner == "hyperband" else config.schedule.epochs

    def make_config(record):
        return space_lib.trial_config(
            config,
            record.values,
            facts.objective,
            facts.direction,
            record.max_epochs,
            schedule_epochs,
        )

    launches = values.workers_per_trial > 1 or values.strategy == "multiworker"
    oracle = oracles.build(
        values.tuner,
        space,
        facts.objective,
        facts.direction,
        values.seed,
        max_epochs,
        values.factor,
        repeats=bool(facts.max_trials),
    )
    shown = views.Views(facts, sys.stdout, sys.stdout.isatty())
    stops_at = functools.partial(
        stopping.stops_at,
        objective=facts.objective,
        direction=facts.direction,
        min_epochs=values.min_epochs,
        min_trials=values.min_trials,
    )
    best = winner.Winner(config, facts, journal, max_epochs, config_files.config_to_json)
    with contextlib.closing(oracles.Asker(oracle)) as asker:
        search = loop.Search(
            facts,
            journal,
            asker,
            trials.FitTrials(make_config, _fit_flags(values, launches)),
            shown,
            epochs_of=lambda chosen: chosen.get("train.epochs", max_epochs),
            slots=processes.slots(values.parallel_trials, gpus),
            max_retries=values.max_retries,
            hang_timeout_seconds=0 if launches else values.hang_timeout_seconds,
            grace_seconds=values.grace_seconds,
            stops_at=stops_at if values.early_stopping else None,
            when_ended=best.look_at,
        )
        try:
            records = search.run()
        except loop.ToldToLeave as left:
            print("stopped; the same command goes on.", file=sys.stderr, flush=True)
            return left.code
    best.look_at_all(records)
    if best.record is None:
        print("No trial has a score; see the logs in trials/.", file=sys.stderr, flush=True)
        return 1
    scores = best.test(make_config(best.record), _score)
    if scores:
        shown_scores = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        at = f"trial {best.record.id}, its epoch {best.record.best_epoch}"
        print(f"test    {shown_scores}   ({at})")
    print(f"train   python -m tfscale.fit --config={best.path}", flush=True)
    return 0


def _score(config, checkpoint):
    """Return the scores of a checkpoint on the test split."""
    with command_line.quiet_import():
        from tfscale import scoring
    return scoring.evaluate_checkpoint(config, checkpoint)


def _fit_flags(values, launches):
    """Return the flags of `tfscale.fit` that all trials share."""
    shared = ["--deterministic"] if values.deterministic else []
    if not launches:
        replicas = [f"--num_replicas={values.num_replicas}"] if values.num_replicas else []
        return [f"--strategy={values.strategy}", *replicas, *shared]
    return [
        "--strategy=multiworker",
        f"--workers={values.workers_per_trial}",
        f"--max_restarts={values.max_restarts}",
        f"--hang_timeout_seconds={values.hang_timeout_seconds}",
        f"--grace_seconds={values.grace_seconds}",
        *shared,
    ]


if __name__ == "__main__":
    sys.exit(main())
