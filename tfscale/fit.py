"""Train a model: python -m tfscale.fit

With nothing else it trains a small convnet on the digits that ship with the package, in one
process. Reads the command line, starts workers on this machine where they are asked for, and
hands over to `experiment`.
"""

import os
import sys
import time

from absl import flags

from tfscale import command_line, config_files, evaluate, run_folder
from tfscale.cluster import environment, restarts, slurm, supervise
from tfscale.config import STRATEGIES
from tfscale.monitor import pages, scores
from tfscale.monitor.run_files import duration
from tfscale.names import nearest

USAGE = """Train a Keras model on one device, on several replicas, or on many workers.

  python -m tfscale.fit                                      the digits, in one process
  python -m tfscale.fit --strategy=multiworker --workers=2   the same on two local workers
  python -m tfscale.fit --config=experiments/mnist_cnn.py --config.train.epochs=2
  python -m tfscale.fit --run_dir=runs/mine                  again: goes on where it stopped

When a local worker fails, all of them start again from the last checkpoint.
In a cluster, TF_CONFIG or Slurm's variables say who this task is; with --max_restarts=N on all
tasks each of them starts its own worker again."""

_NO_CLUSTER = "neither TF_CONFIG, nor TFSCALE_HOSTS, nor a Slurm step of several tasks"


def main(argv=None):
    """Run the command; return its exit code."""
    return command_line.run(_main, argv)


def _main(argv):
    values = command_line.parse(argv, USAGE, _define_flags)
    if values is None:
        return 0
    if values.profile_steps is not None:
        values.config.log.profile_steps = values.profile_steps
    config_files.check_types(values.config)
    if values.show_config:
        print(config_files.config_to_json(values.config))
        return 0
    if values.list:
        return _list_models()
    cluster = environment.resolve()
    if _starts_workers(values, cluster):
        return _run_workers(values, argv)
    supervision = command_line.task_supervision(values)
    if supervision and cluster.workers and not cluster.is_evaluator and not values.dry_run:
        return _run_task(values, argv, cluster, supervision)
    return _train(values, cluster)


def _define_flags(values):
    for name, default, text in (
        ("workers", 0, "with multiworker: start so many workers on this machine"),
        ("num_replicas", 0, "with mirrored: replicas in this process; 0: all GPUs, or 2 CPUs"),
        ("start_timeout_seconds", 300, "how long to wait for workers that do not come"),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=0, flag_values=values)
    for name, default, text in (
        ("strategy", "auto", "auto, onedevice, mirrored or multiworker"),
        ("run_dir", "", "folder of the run; empty: a new one in runs/"),
        ("resume", "auto", "auto: go on with the run in run_dir; never; or a checkpoint's path"),
    ):
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, text in (
        ("deterministic", "the same bits in every run, at some cost in speed"),
        ("show_config", "print the configuration as JSON and stop"),
        ("dry_run", "build everything, take one step, say what a run would be, and stop"),
        ("list", "print the models there are and stop"),
    ):
        flags.DEFINE_bool(name, False, text, flag_values=values)
    flags.DEFINE_string(
        "profile_steps",
        None,
        "FIRST:LAST: record these steps for TensorBoard's profiler, as --config.log.profile_steps",
        flag_values=values,
    )
    command_line.define_supervision(values, max_restarts=3)


def _starts_workers(values, cluster):
    """Whether this process is the one that starts the others."""
    if values.strategy not in STRATEGIES:
        raise config_files.UsageError(
            f"--strategy must be one of {', '.join(STRATEGIES)}. "
            f"Received: {values.strategy!r}.{nearest(values.strategy, STRATEGIES)}"
        )
    if cluster.workers:
        alone = values.strategy in ("onedevice", "mirrored") and not cluster.is_evaluator
        if alone and len(cluster.workers) > 1:
            raise config_files.UsageError(
                "The tasks of a cluster train together, with --strategy=multiworker or auto. "
                f"Received: --strategy={values.strategy} in a cluster of "
                f"{len(cluster.workers)} tasks. Leave --strategy out, or unset TF_CONFIG."
            )
        if values.workers not in (0, len(cluster.workers)) and not cluster.is_evaluator:
            raise config_files.UsageError(
                "In a cluster --workers must be its size, or be left out. "
                f"Received: --workers={values.workers} in a cluster of {len(cluster.workers)}."
            )
        return False
    if values.strategy != "multiworker":
        if values.workers > 1:
            raise config_files.UsageError(
                "--workers belongs to --strategy=multiworker. "
                f"Received: --workers={values.workers} --strategy={values.strategy}. "
                "Add --strategy=multiworker."
            )
        slurm.warn_without_srun(os.environ)
        return False
    if not values.workers:
        raise config_files.UsageError(
            "--strategy=multiworker needs a cluster or --workers=N. Received: "
            f"{slurm.without_srun(os.environ) or _NO_CLUSTER}. Add --workers=2; in a Slurm job "
            "put `srun -n2` in front of the command instead."
        )
    return True


def _run_workers(values, argv):
    """Start the workers on this machine and wait for them."""
    restarts.Places(values.workers, values.min_workers, values.max_workers)  # refuses, or nothing
    run_dir = values.run_dir or run_folder.default_path(values.config, time.time())
    if values.resume == "never":  # before the workers' logs are opened in it
        run_folder.RunFolder(run_dir).move_aside()
    supervision = command_line.supervision(values)
    if values.dry_run:
        supervision["max_restarts"] = 0
    # TensorFlow's ports are open on all interfaces, so workers that need no other machine get a
    # network of their own.
    needs_network = values.config.data.download or any(
        "://" in path for path in (values.config.data.data_dir, run_dir)
    )
    return supervise.run_local_workers(
        _commands(values, argv, run_dir),
        values.workers,
        log_dir=None if values.dry_run else os.path.join(run_dir, "logs"),
        private_network=False if needs_network else None,
        **supervision,
    )


def _run_task(values, argv, cluster, supervision):
    """Start this task's worker, watch it, and start it again when it has failed."""
    if not values.run_dir:
        raise config_files.UsageError(
            "A task that starts its worker again must have --run_dir, the same on all tasks. "
            "Received: --max_restarts or --hang_timeout_seconds without it. Name a folder that "
            "all tasks see."
        )
    if values.resume not in ("auto", "never"):
        raise config_files.UsageError(
            "Tasks that start again go on from the newest checkpoint in --run_dir. "
            f"Received: --resume={values.resume} in a cluster, with --max_restarts or "
            "--hang_timeout_seconds. Start once without these flags, until a checkpoint is "
            "written."
        )
    folder, again = run_folder.RunFolder(values.run_dir), values.resume == "auto"
    if not again and cluster.is_chief:
        folder.move_aside()
    own = ["--resume=auto", "--max_restarts=0", "--hang_timeout_seconds=0"]
    return supervise.run_task(
        [sys.executable, "-m", "tfscale.fit", *argv, *own],
        cluster,
        log_dir=os.path.join(values.run_dir, "logs"),
        is_over=lambda: again and folder.is_finished(values.config.train.epochs),
        **supervision,
    )


def _commands(values, argv, run_dir):
    """Return the function that gives the workers' command in each of their lives.

    A restart goes on from the newest checkpoint in the run's folder, whatever --resume said to
    the first life, unless that one has not written any. How many they are is said by TF_CONFIG.
    """
    checkpoints = run_folder.RunFolder(run_dir).checkpoints.directory

    def last_written():
        return os.stat(checkpoints).st_mtime_ns if os.path.isdir(checkpoints) else None

    before = last_written()

    def command(life):
        begins = life == 1 or last_written() == before
        resume = values.resume if begins and values.resume != "never" else "auto"
        own = [f"--run_dir={run_dir}", "--workers=0", f"--resume={resume}"]
        own += ["--max_restarts=0", "--hang_timeout_seconds=0"]  # this process sees to that
        return [sys.executable, "-m", "tfscale.fit", *argv, *own]

    return command


def _list_models():
    with command_line.quiet_import():
        from tfscale import models

        rows = models.listing()
    for name, parameters, text in rows:
        print(f"{name:<16}{parameters:>10,} parameters   {text}")
    return 0


def import_ahead():
    """Import what a run needs, in a process that does not know yet which one it will be."""
    with command_line.quiet_import():
        from tfscale import experiment  # noqa: F401


def _train(values, cluster):
    if cluster.is_evaluator:
        return evaluate.evaluator_task(values.config, values.run_dir)
    with command_line.quiet_import():
        from tfscale import experiment

        experiment.strategy_lib.find_gpus()
    run = experiment.build(
        values.config,
        values.strategy,
        values.num_replicas,
        deterministic=values.deterministic,
        start_timeout_seconds=values.start_timeout_seconds,
    )
    is_chief = run.trainer.is_chief
    if values.dry_run:
        lines = run.dry_run()
        if is_chief:
            print("\n".join(lines))
        return 0
    with run.told_to_leave():
        summary = run.train(values.run_dir, values.resume)
    if is_chief:
        print(_ending(summary, run.folder.path))
    return 0


def _ending(summary, path):
    """What a person wants to know at the end: one table, and where to look."""
    splits = [name for name in ("train", "validation", "test") if summary.get(name)]
    names = list(dict.fromkeys(name for split in splits for name in summary[split]))
    rows = [["", *splits]]
    for name in names:
        rows.append([name, *(_number(summary[split].get(name)) for split in splits)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [""]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    lines.append("")
    best = summary.get("best")
    if best is not None:
        value, place = scores.in_words(best["value"]), f"step {best['step']}, epoch {best['epoch']}"
        lines.append(f"best    {best['split']} {best['name']} {value} at {place}")
    speed, goodput = summary["examples_per_second"], summary.get("goodput")
    text = f"steps   {summary['steps']}"
    lines.append(text + (f", {speed:,.0f} examples/s while it trains" if speed else ""))
    text = f"time    {duration(summary['wall_seconds'])}"
    text += f", goodput {100 * goodput:.0f} %" if goodput is not None else ""
    lines.append(text + (" (the share in which it trains)" if goodput is not None else ""))
    restarts, bad_steps = summary.get("restarts", 0), summary.get("bad_steps", 0)
    if restarts or bad_steps:
        trouble = pages.counted(restarts, "restart"), pages.counted(bad_steps, "bad step")
        lines.append(f"trouble {', '.join(trouble)}")
    if "slowest_worker" in summary:
        lines.append(f"workers {summary['slowest_worker']}")
    lines.append(f"run     {path}")
    look = os.environ.get("TFSCALE_LOOK")  # where the run can be seen, as in a container
    lines.append(f"look    {look or f'tensorboard --logdir {path.parent}'}")
    if not look:
        lines.append(f"        python -m tfscale.report --run_dir={path}")
    return "\n".join(lines)


def _number(value):
    """A score in the table; one of several numbers, such as one a class, by its mean."""
    if value is None:
        return ""
    return f"{sum(value) / len(value):.4f}" if isinstance(value, list) else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
