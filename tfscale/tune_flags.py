"""The flags of `tfscale.tune`, and what is refused of them alone."""

import os

from absl import flags

from tfscale import config_files
from tfscale.config import STRATEGIES
from tfscale.names import nearest
from tfscale.search import oracles, roles, stopping
from tfscale.training import checkpoint

USAGE = """Search hyperparameters; each trial is a run of tfscale.fit in processes of its own.

  python -m tfscale.tune --config=experiments/digits_search.py --tuner=bayesian --max_trials=30
  python -m tfscale.tune --config=FILE --parallel_trials=2       two trials at once
  python -m tfscale.tune --config=FILE --strategy=multiworker --workers_per_trial=2
  python -m tfscale.tune --config=FILE --run_dir=runs/mine       again: goes on where it stopped
  python -m tfscale.tune --config=FILE --run_dir=DIR --search_chief=HOST:PORT
                       on several machines: the one that has the address leads, others join

FILE defines search_space(hp) beside get_config(). It names fields of the configuration:

  def search_space(hp):
      hp.Float("optimizer.learning_rate", 1e-4, 1e-1, sampling="log")
      hp.Choice("optimizer.name", ["sgd", "adam"])
      with hp.conditional_scope("optimizer.name", ["sgd"]):
          hp.Float("optimizer.arguments.momentum", 0.0, 0.95)

Trials are compared on validation data; the test split is scored once, for the winner."""


def define(values):
    """Define the flags."""
    for name, default, text in (
        ("tuner", "random", ", ".join(oracles.TUNERS)),
        ("objective", "", "metric that is compared; empty: val_accuracy, or the first there is"),
        ("direction", "auto", "which value of it is best: max, min, or auto: by the metric"),
        ("run_dir", "", "folder of the search; empty: a new one in runs/"),
        ("strategy", "auto", "of a trial: auto, onedevice, mirrored or multiworker"),
        ("early_stopping", "", "median: stop a trial that is worse than half of the others"),
        ("search_chief", "", "HOST:PORT of the one that leads a search on several machines"),
        ("search_role", "auto", "auto: who has that address is the chief; or chief, or worker"),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    flags.DEFINE_integer(
        "max_trials",
        None,
        "trials in all; 0: all that a tuner with an end has  [10; grid and hyperband 0]",
        lower_bound=0,
        flag_values=values,
    )
    for name, default, least, text in (
        ("parallel_trials", 1, 0, "trials at once on this machine; 0: a chief that only leads"),
        ("workers_per_trial", 1, 1, "workers of a trial; more than one: multiworker"),
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
        ("lease_seconds", 30, 1, "of the chief: how long a machine not heard of keeps its trials"),
        ("start_timeout_seconds", 600, 1, "worker: how long it looks for the chief"),
    ):
        most = roles.LONGEST_LEASE if name == "lease_seconds" else None
        flags.DEFINE_integer(name, default, text, least, most, flag_values=values)
    flags.DEFINE_bool(
        "deterministic", True, "trials give the same bits in every run", flag_values=values
    )
    flags.DEFINE_bool("oversubscribe", False, "allow more workers than cores", flag_values=values)


def check(values, num_slots, role):
    """Refuse what no space would make right.

    Args:
        values: the flags.
        num_slots: trials at once on this machine.
        role: the `roles.Role` of this process.
    """
    for name, known in (
        ("tuner", oracles.TUNERS),
        ("strategy", STRATEGIES),
        ("early_stopping", stopping.RULES),
        ("direction", checkpoint.MODES),
        ("search_role", roles.ROLES),
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
    launches = workers > 1 or values.strategy == "multiworker"
    for name, has_effect, belongs in (
        ("num_replicas", values.strategy == "mirrored", "--strategy=mirrored"),
        ("factor", values.tuner == "hyperband", "--tuner=hyperband"),
        ("min_epochs", values.early_stopping, "--early_stopping=median"),
        ("min_trials", values.early_stopping, "--early_stopping=median"),
        ("max_restarts", launches, "--strategy=multiworker"),
        ("lease_seconds", role.kind != "alone", "a search on several machines"),
    ):
        if values[name].present and not has_effect:
            raise config_files.UsageError(
                f"--{name} belongs to {belongs}. Received: --{name}={values[name].value} without. "
                "Leave it out, or add that."
            )
    if values.early_stopping and values.tuner == "hyperband":
        raise config_files.UsageError(
            "--early_stopping is for tuners that train all trials to the end. Received: "
            "--tuner=hyperband, which stops trials itself. Leave out one of them."
        )
    cores = len(os.sched_getaffinity(0))
    if num_slots * workers > cores and not values.oversubscribe:
        raise config_files.UsageError(
            "Trials that run at once need a core for each worker. Received: "
            f"--parallel_trials={values.parallel_trials} --workers_per_trial={workers} on {cores} "
            f"core{'s' if cores > 1 else ''}. Use fewer, or add --oversubscribe."
        )
