"""Search hyperparameters: python -m tfscale.tune --config=experiments/digits_search.py

Reads the command line and the space, refuses what cannot be searched, and hands over to
`search.loop`, whose trials are runs of `tfscale.fit`. At the end it scores the winner on the test
split, which no trial has seen.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import pathlib
import shlex
import sys

from tfscale import command_line, config_files, tune_flags, tune_folder
from tfscale.monitor.scores import in_words
from tfscale.search import (
    checks,
    ends,
    joining,
    leaving,
    loop,
    oracles,
    processes,
    protocol,
    roles,
    service,
    standby,
    stopping,
    trials,
    views,
    winner,
)
from tfscale.search import journal as journal_lib
from tfscale.search import space as space_lib

_RULE = "--config must be a .py file with get_config() and search_space(hp)."
_MAY_CHANGE = ("max_trials", "keras_tuner")
_OWN_AFFAIR = ("max_trials",)  # of the chief
_DEFAULT_TRIALS = {"random": 10, "bayesian": 10, "grid": 0, "hyperband": 0}


def main(argv=None):
    """Run the command; return its exit code."""
    return command_line.run(_main, argv)


def _main(argv):
    values = command_line.parse(argv, tune_flags.USAGE, tune_flags.define)
    if values is None:
        return 0
    config, file = values.config, command_line.take_file(argv)[1]
    config_files.check_types(config)
    role = _role(values)
    num_slots = 0 if role.only_leads else values.parallel_trials
    tune_flags.check(values, num_slots, role)
    search_space = _search_space(file)
    with contextlib.closing(_starter(values, num_slots)) as starter:
        return _search(values, config, search_space, role, num_slots, starter)


def _starter(values, num_slots):
    """Return what starts the trials' processes, the first of which imports while this one does."""
    if _launches(values):
        return processes.Starter()  # a launcher imports nothing that takes long
    starter = standby.Standbys("tfscale.fit")
    if num_slots == 1:
        [slot] = processes.slots(1)
        starter.prepare(slot)
    return starter


def _search(values, config, search_space, role, num_slots, starter):
    """Check the space, and search it or join its search; return the exit code."""
    gpus = _import_quietly()
    space = space_lib.define(search_space)
    space_lib.check(space, config, config_files.check_types)
    checks.check_ends(space, values.tuner, values.max_trials)
    objective, direction = checks.settle_objective(values.objective, values.direction, config)
    checks.check_comparable(space, objective, config)
    run_dir = tune_folder.choose(values.run_dir, config, role)
    max_epochs = _max_epochs(values, config, space)
    _check_trials(values, space, config, (objective, direction, max_epochs), gpus)
    identity = _identity(values, config, space, objective, direction, max_epochs)
    shared = protocol.with_versions(identity)
    if not values.run_dir:
        print(f"the search is in {run_dir}", flush=True)
    if role.kind == "worker":
        return _join(values, role, run_dir, shared, processes.slots(num_slots, gpus), starter)
    with contextlib.closing(tune_folder.open_journal(run_dir)) as journal:
        identity = journal_lib.settle(run_dir / "search.json", identity, _MAY_CHANGE)
        oracle = oracles.build(
            values.tuner,
            space,
            objective,
            direction,
            values.seed,
            max_epochs,
            values.factor,
            repeats=bool(identity["max_trials"]),
        )
        facts = trials.SearchFacts(
            objective=objective,
            direction=direction,
            tuner=values.tuner,
            max_trials=identity["max_trials"],
            parameters=space_lib.parameters(space),
            run_dir=run_dir,
            began=identity["began"],
            tuner_trials=oracles.num_trials(oracle),
        )
        with service.offered(
            role, run_dir, shared, _OWN_AFFAIR, values.lease_seconds, sys.stdout
        ) as joined:
            slots = processes.slots(num_slots, gpus)
            return _run(values, config, oracle, facts, journal, max_epochs, slots, joined, starter)


def _role(values):
    """Return this process's role in the search."""
    role = roles.resolve(values.search_chief, values.search_role)
    if not values.parallel_trials and role.kind != "chief":
        raise config_files.UsageError(
            "Only the chief of a search on several machines may run no trials. Received: "
            f"--parallel_trials=0 in a search whose role here is {role.kind!r}. Use at least 1."
        )
    return role


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


def _check_trials(values, space, config, compared, gpus):
    """Refuse what would end every trial, or all those with some choice."""
    with command_line.quiet_import():
        from tfscale import tune_checks
    *compared, max_epochs = compared

    def make_config(chosen):
        epochs = chosen.get("train.epochs", max_epochs)
        spans = config.schedule.epochs or max_epochs
        return space_lib.trial_config(config, chosen, *compared, epochs, spans)

    mirrored = values.num_replicas or (1 if gpus else 2)
    num_replicas = mirrored if values.strategy == "mirrored" else values.workers_per_trial
    tune_checks.check_trials(space, make_config, num_replicas)


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
        "space": space_lib.described(space),
        "config": dataclasses.asdict(config),
        "keras_tuner": importlib.metadata.version("keras-tuner"),
    }


def _run(values, config, oracle, facts, journal, max_epochs, slots, joined, starter):
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

    shown = views.Views(facts, sys.stdout, sys.stdout.isatty())
    stops_at = functools.partial(
        stopping.stops_at,
        objective=facts.objective,
        direction=facts.direction,
        min_epochs=values.min_epochs,
        min_trials=values.min_trials,
    )
    best = winner.Winner(config, facts, journal, max_epochs, config_files.config_to_json)
    search = loop.Search(
        facts,
        journal,
        oracles.Asker(oracle),
        trials.FitTrials(make_config, _fit_flags(values)),
        shown,
        epochs_of=lambda chosen: chosen.get("train.epochs", max_epochs),
        slots=slots,
        service=joined,
        max_retries=values.max_retries,
        hang_timeout_seconds=_hang_timeout_seconds(values),
        grace_seconds=values.grace_seconds,
        starter=starter,
        stops_at=stops_at if values.early_stopping else None,
        when_ended=best.look_at,
    )
    try:
        records = search.run()
    except leaving.ToldToLeave as left:
        way_on = tune_folder.way_on(facts.run_dir, values.run_dir)
        print(f"stopped; {way_on} goes on.", file=sys.stderr, flush=True)
        return left.code
    except OSError as error:
        if ends.has_no_room(error) and not values.run_dir:
            way_on = tune_folder.way_on(facts.run_dir, values.run_dir)
            print(f"when there is room, {way_on} goes on.", file=sys.stderr, flush=True)
        raise
    best.look_at_all(records)
    code = _conclude(best, make_config, _strategy_flags(values))
    if joined is not None:
        joined.end_search()
    return code


def _conclude(best, make_config, strategy_flags):
    """Score the winner on the test split and say how it is trained; return the exit code."""
    if best.record is None:
        print("No trial has a score; see the logs in trials/.", file=sys.stderr, flush=True)
        return 1
    scores = best.test(make_config(best.record), _score)
    if scores:
        shown_scores = "  ".join(f"{name} {in_words(value)}" for name, value in scores.items())
        at = f"trial {best.record.id}, its epoch {best.record.best_epoch}"
        print(f"test    {shown_scores}   ({at})")
    flags = [f"--config={best.path}", *strategy_flags]
    command = " ".join(["python -m tfscale.fit", *map(shlex.quote, flags)])
    print(f"train   {command}", flush=True)
    return 0


def _score(config, checkpoint):
    """Return the scores of a checkpoint on the test split."""
    with command_line.quiet_import():
        from tfscale import scoring
    return scoring.evaluate_checkpoint(config, checkpoint)


def _join(values, role, run_dir, identity, slots, starter):
    """Run trials for the chief of the search until it is over; return the exit code."""
    try:
        joining.Member(
            role,
            run_dir,
            identity,
            lambda: trials.FitTrials(None, _fit_flags(values)),
            slots,
            hang_timeout_seconds=_hang_timeout_seconds(values),
            grace_seconds=values.grace_seconds,
            start_timeout_seconds=values.start_timeout_seconds,
            starter=starter,
        ).run()
    except leaving.ToldToLeave as left:
        print("stopped; the others go on.", file=sys.stderr, flush=True)
        return left.code
    return 0


def _launches(values):
    """Say whether a trial is a launcher, with workers that it watches itself."""
    return values.workers_per_trial > 1 or values.strategy == "multiworker"


def _hang_timeout_seconds(values):
    return 0 if _launches(values) else values.hang_timeout_seconds


def _strategy_flags(values):
    """Return the flags of `tfscale.fit` that say where a trial runs; none where fit says it."""
    if _launches(values):
        return ["--strategy=multiworker", f"--workers={values.workers_per_trial}"]
    replicas = [f"--num_replicas={values.num_replicas}"] if values.num_replicas else []
    return ([] if values.strategy == "auto" else [f"--strategy={values.strategy}"]) + replicas


def _fit_flags(values):
    """Return the flags of `tfscale.fit` that all trials share."""
    shared = ["--deterministic"] if values.deterministic else []
    if not _launches(values):
        return [*_strategy_flags(values), *shared]
    return [
        *_strategy_flags(values),
        f"--max_restarts={values.max_restarts}",
        f"--hang_timeout_seconds={values.hang_timeout_seconds}",
        f"--grace_seconds={values.grace_seconds}",
        *shared,
    ]


if __name__ == "__main__":
    sys.exit(main())
