"""Run a script on many workers: python -m tfscale.launch --workers=4 script.py

Reads the command line, refuses what cannot be started, and starts the workers on this machine,
or becomes or watches the one that this task of a cluster is. What a worker does is in `run_script`.
"""

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import secrets
import sys
import time
from pathlib import Path

from absl import flags

from tfscale import command_line, script_folder
from tfscale.cluster import environment, slurm, supervise
from tfscale.config_files import UsageError
from tfscale.monitor import pages, run_files

USAGE = """Run a Keras script, written for one machine or for many, as one job on many workers.

  python -m tfscale.launch --workers=2 script.py [arguments]   on two local workers
  python -m tfscale.launch --workers=2 -m package.module       a module, as with python -m
  srun -n4 python -m tfscale.launch script.py                  in a cluster: a worker a task

What follows the script's name belongs to the script. In the script keras.Model.fit, evaluate and
predict share the work among the workers. A script that makes no strategy trains under a
MultiWorkerMirroredStrategy; one that makes its own MultiWorkerMirroredStrategy gets that one.
All workers begin with one seed, and seeds that the script sets count. Local workers reach
each other and no other machine, unless --private_network=false says so.
The first failure ends all workers. With --max_restarts=N they start again, at most N times an
hour, in a cluster each task its own: the script begins anew. With --run_dir=DIR each of its calls
of fit is saved by its number: one that had ended then returns at once, one that was interrupted
goes on."""

_WORKER = str(Path(__file__).with_name("run_script.py"))
_RESTARTS_WITH_RUN_DIR = 3  # without it a script would begin anew, which nobody asked for


def main(argv=None):
    """Run the command; return its exit code, which is that of the worker that failed first."""
    return command_line.run(_main, argv)


def _main(argv):
    own, target = _split(argv)
    values = command_line.parse(own, USAGE, _define_flags, with_config=False)
    if values is None:
        return 0
    _check_target(target)
    cluster = environment.resolve()
    settings = {
        "seed": values.seed,
        "keras_fit": values.keras_fit,
        "start_timeout_seconds": values.start_timeout_seconds,
        "private_network": values.private_network and not cluster.workers,
        "run_dir": os.path.abspath(values.run_dir) if values.run_dir else "",
        "save": _save(values),
        "deterministic": values.deterministic,
        "health": {
            "on_bad_loss": values.on_bad_loss,
            "max_loss": values.max_loss,
            "max_bad_steps": values.max_bad_steps,
            "check_weights_every_steps": values.check_weights_every_steps,
        },
    }
    if cluster.workers:
        _check_task(values, cluster)
        supervision = command_line.task_supervision(values)
        if supervision:
            return _run_task(values, settings, target, cluster, supervision)
        _become_worker(settings, target)
    if values.workers is None:
        slurm.warn_without_srun(os.environ)
    return _run_workers(values, settings, target)


def _define_flags(values):
    flags.DEFINE_integer(
        "workers", None, "workers to start on this machine  [1]", lower_bound=1, flag_values=values
    )
    flags.DEFINE_bool(
        "keras_fit",
        True,
        "make keras.Model.fit, evaluate and predict train together",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "deterministic", False, "the same bits in every run, at some cost", flag_values=values
    )
    for name, text in (
        ("log_dir", "folder of the workers' output; empty: logs in --run_dir or runs/SCRIPT-TIME"),
        ("run_dir", "save each fit of the script in this folder, and go on from what is there"),
    ):
        flags.DEFINE_string(name, "", text, flag_values=values)
    for name, least, text in (
        ("save_every_steps", 0, "with --run_dir: steps between two checkpoints"),
        ("save_every_seconds", 0, "with --run_dir: seconds between two checkpoints"),
        ("save_every_epochs", 0, "with --run_dir: epochs between two; 1 if none is given"),
        ("keep_last", 1, "with --run_dir: checkpoints to keep of each fit; by default 2"),
    ):
        flags.DEFINE_integer(name, None, text, lower_bound=least, flag_values=values)
    flags.DEFINE_integer(
        "seed",
        None,
        "seed of all workers; by default a new one, which is shown",
        lower_bound=0,
        upper_bound=script_folder.MAX_SEED,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "start_timeout_seconds",
        300,
        "how long to wait for workers that do not come",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "private_network",
        True,
        "local workers have a network with loopback only; false: that of this machine",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "on_bad_loss",
        "",
        ["", "stop", "skip", "rollback"],
        "what a step does whose loss or weights are not finite; empty: nobody looks",
        flag_values=values,
    )
    flags.DEFINE_float(
        "max_loss", None, "a step with a loss above it is bad, too", flag_values=values
    )
    for name, default, text in (
        ("max_bad_steps", 3, "bad steps that a fit may skip or roll back; the next ends it"),
        ("check_weights_every_steps", 0, "steps between comparisons of all weights; 0: never"),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=0, flag_values=values)
    command_line.define_supervision(values, max_restarts=0, note=", with --run_dir 3")


def _save(values):
    """Return the flags that say what is saved, by name.

    Raises:
        UsageError: if they were given without a folder.
    """
    names = ("save_every_steps", "save_every_seconds", "save_every_epochs", "keep_last")
    found = {name: values[name].value for name in names if values[name].value is not None}
    if found and not values.run_dir:
        name, value = next(iter(found.items()))
        raise UsageError(
            f"--{name} belongs to --run_dir. Received: --{name}={value} without it. "
            "Add --run_dir=runs/NAME."
        )
    if values.run_dir and not values.keras_fit:
        raise UsageError(
            "--run_dir saves the calls of keras.Model.fit that tfscale runs. "
            "Received: --run_dir with --keras_fit=false. Leave out one of them."
        )
    return found


def _split(argv):
    """Split a command line into the launcher's flags and the script with its arguments."""
    known = flags.FlagValues()
    _define_flags(known)
    words = list(argv)
    own = []
    while words and words[0].startswith("-") and words[0] not in ("-", "-m", "--"):
        word = words.pop(0)
        own.append(word)
        name = word.lstrip("-")
        if words and name in known and not known[name].boolean:
            own.append(words.pop(0))
    if words and words[0] == "--":
        words.pop(0)
    return own, words


def _check_target(target):
    """Refuse a script or module that is not there."""
    if not target or target == ["-m"]:
        raise UsageError(
            "A script or `-m MODULE` must follow the flags. Received: neither. "
            "For example: python -m tfscale.launch --workers=2 script.py."
        )
    if target[0] == "-m":
        top = target[1].partition(".")[0]
        places = [os.getcwd(), *sys.path]
        if importlib.machinery.PathFinder.find_spec(top, places) is None:
            raise UsageError(
                "`-m` must name a module that Python can find. "
                f"Received: {target[1]!r}. Start in its folder, or set PYTHONPATH."
            )
        return
    script = Path(target[0])
    if not (script / "__main__.py" if script.is_dir() else script).is_file():
        raise UsageError(
            "The script must be a file that exists. "
            f"Received: {target[0]!r} in {os.getcwd()}. Flags of tfscale are written --NAME=VALUE, "
            "in front of the script."
        )


def _check_task(values, cluster):
    """Refuse what does not fit the task of a cluster that this process is."""
    if cluster.is_evaluator:
        raise UsageError(
            "The tasks of tfscale.launch train together, and an evaluator does not. "
            "Received: task type 'evaluator' in TF_CONFIG. Run the script there with python."
        )
    if values.workers not in (None, len(cluster.workers)):
        raise UsageError(
            "In a cluster --workers must be its size, or be left out. "
            f"Received: --workers={values.workers} in a cluster of {len(cluster.workers)}."
        )


def _become_worker(settings, target):
    """Turn this process into the worker that runs the script."""
    sys.stdout.flush()
    command = _command(settings, target)
    os.execv(command[0], command)


def _run_task(values, settings, target, cluster, supervision):
    """Start this task's worker, watch it, and start it again when it has failed."""
    log_dir = values.log_dir or (os.path.join(values.run_dir, "logs") if values.run_dir else None)
    if settings["seed"] is None and not values.run_dir:  # which keeps the one of its first life
        # All launchers find the same one, in every life, without asking each other.
        digest = hashlib.sha256(json.dumps(cluster.workers).encode()).digest()
        settings["seed"] = int.from_bytes(digest[:8], "big") % (script_folder.MAX_SEED + 1)
        if cluster.is_chief:
            print(f"tfscale: seed {settings['seed']}, from the cluster's addresses", flush=True)
    return supervise.run_task(_command(settings, target), cluster, log_dir=log_dir, **supervision)


def _run_workers(values, settings, target):
    """Start the workers on this machine and wait for them."""
    num_workers = values.workers or 1
    log_dir, supervision = values.log_dir, command_line.supervision(values)
    if values.run_dir:
        folder = script_folder.ScriptFolder(settings["run_dir"])
        settings["seed"] = folder.settle(target, values.seed)
        log_dir = log_dir or os.path.join(values.run_dir, "logs")
        if not values["max_restarts"].present:
            supervision["max_restarts"] = _RESTARTS_WITH_RUN_DIR
    elif settings["seed"] is None:
        settings["seed"] = secrets.randbelow(script_folder.MAX_SEED + 1)
    log_dir = log_dir or _default_log_dir(target)
    workers = "1 worker (--workers=N starts N)" if values.workers is None else None
    workers = workers or f"{num_workers} worker{'s' if num_workers > 1 else ''}"
    network = (
        "loopback only (--private_network=false opens it)"
        if values.private_network
        else "that of this machine"
    )
    print(
        f"tfscale: {workers}, seed {settings['seed']} (--seed={settings['seed']} repeats it), "
        f"network {network}, logs in {log_dir}",
        flush=True,
    )
    code = supervise.run_local_workers(
        _command(settings, target),
        num_workers,
        log_dir=log_dir,
        private_network=None if values.private_network else False,
        **supervision,
    )
    if code == 0 and values.run_dir:
        print("\n".join(f"tfscale: {line}" for line in _ending(values.run_dir)), flush=True)
    return code


def _ending(run_dir):
    """What a person wants to know of the calls of `fit` at the end, and where to look."""
    lines = []
    for run in [run_files.RunFiles(path) for path in run_files.folders(run_dir)][-_MOST_FITS:]:
        best, slow, name = run.best(), run.slowest(), f"fit {run.path.name}"
        if best is not None:
            lines.append(f"{name}: best {best.words()} at step {best.step}, epoch {best.epoch}")
        if run.restarts:
            lines.append(f"{name}: {pages.counted(run.restarts, 'restart')}")
        if slow is not None and slow.seems_slow:
            lines.append(f"{name}: {slow.words()}")
    if lines:
        lines.append(f"look   tensorboard --logdir {run_dir}")
        lines.append(f"       python -m tfscale.report --run_dir={run_dir}")
    return lines


def _command(settings, target):
    return [sys.executable, _WORKER, json.dumps(settings), *target]


_MOST_FITS = 5  # the last ones, of which is told at the end


def _default_log_dir(target):
    """Return `runs/SCRIPT-TIME/logs`."""
    name = target[1] if target[0] == "-m" else Path(target[0]).resolve().stem
    return f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}/logs"


if __name__ == "__main__":
    sys.exit(main())
