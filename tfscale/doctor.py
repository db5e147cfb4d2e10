"""Checks before a job, and of what a job has saved: python -m tfscale.doctor

Every task of a cluster runs it with the job's --config and --run_dir; they meet, and the chief
prints one table, see `cluster.checkup`. Here are the checks that need the configuration, and
the list of a run's checkpoints. Needs TensorFlow only where a configuration is given.
"""

import contextlib
import dataclasses
import datetime
import math
import os
import sys
import time

from absl import flags

from tfscale import command_line, config_files, run_folder
from tfscale.cluster import environment, examination, findings, local, meeting
from tfscale.cluster.checkup import Checkup
from tfscale.cluster.findings import Finding
from tfscale.training import checkpoint as checkpoint_lib

USAGE = """Check a cluster before a job, or what a job has saved.

  srun -n4 python -m tfscale.doctor --run_dir=runs/mine --config=FILE   the tasks of a cluster
  python -m tfscale.doctor --workers=2 --run_dir=runs/mine              two local workers
  python -m tfscale.doctor                                              this machine alone
  python -m tfscale.doctor --run_dir=runs/mine                          the checkpoints of a run

In a cluster (TF_CONFIG or Slurm) every task runs it with the same command line, before the job
and at its addresses. The data and the size of the model are looked at where there is a
configuration: --config, an override of it, or a run in --run_dir.
The exit code is 0 if all is well or there are only warnings, 1 if a check failed or a checkpoint
is damaged, 2 if nothing can be checked."""

_POLL_SECONDS = 0.05


def main(argv=None):
    """Run the command; return its exit code."""
    return command_line.run(_main, argv)


def _main(argv):
    values = command_line.parse(argv, USAGE, _define_flags)
    if values is None:
        return 0
    config_files.check_types(values.config)
    cluster = environment.resolve()
    if cluster.workers:
        if values.workers not in (0, len(cluster.workers)):
            raise config_files.UsageError(
                "In a cluster --workers must be its size, or be left out. "
                f"Received: --workers={values.workers} in a cluster of {len(cluster.workers)}."
            )
        return _check_job(values, argv, meeting.Party.of(cluster))
    if values.workers:
        return _check_local_workers(values.workers, argv)
    if values.run_dir and not _names_config(argv):
        return _check_checkpoints(values.run_dir)
    return _check_job(values, argv, meeting.Party((), 0, 1))


def _define_flags(values):
    flags.DEFINE_string("run_dir", "", "folder of the run", flag_values=values)
    for name, default, least, text in (
        ("workers", 0, 0, "check so many workers on this machine"),
        ("start_timeout_seconds", 300, 1, "how long to wait for other tasks, and for their data"),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)


def _names_config(argv):
    """Whether a configuration was typed."""
    names = [argument.partition("=")[0].lstrip("-") for argument in argv]
    return any(name == "config" or name.startswith("config.") for name in names)


def _check_local_workers(num_workers, argv):
    """Start the tasks of a cluster on this machine and wait for them; return the exit code."""
    command = [sys.executable, "-m", "tfscale.doctor", *argv, "--workers=0"]
    sys.stdout.flush()
    with contextlib.ExitStack() as cleanup:
        processes = []
        for own in local.worker_environments(num_workers, os.environ):
            processes.append(local.start_worker(command, own, None))
            cleanup.callback(local.reap_group, processes[-1])
        while not all(local.has_ended(process) for process in processes):
            time.sleep(_POLL_SECONDS)
        return max(local.reap_group(process) for process in processes)


def _check_job(values, argv, party):
    """Check together with the other tasks of the party; return the exit code."""
    folder = run_folder.RunFolder(values.run_dir) if values.run_dir else None
    config = values.config if _names_config(argv) else None
    if config is None and folder is not None and folder.config.exists():
        config = folder.saved_config()
    job = _Job(party, config, folder, values.start_timeout_seconds)
    return Checkup(
        party,
        folder.path if folder else None,
        values.start_timeout_seconds,
        {"config": job.say_config, "look": job.look},
        job.findings,
    ).run()


@dataclasses.dataclass
class _Job:
    """What is to be run, as far as this task knows it.

    Args:
        party: the tasks that check together.
        config: a `RunConfig`, or None.
        folder: the `RunFolder`, or None.
        timeout_seconds: how long the others may take to open their data.
    """

    party: meeting.Party
    config: object
    folder: object
    timeout_seconds: float

    def say_config(self, question):
        """Answer with this task's configuration."""
        return {"config": dataclasses.asdict(self.config) if self.config else None}

    def look(self, question):
        """Open the data, and build the model on one task; for what is asked of TensorFlow."""
        devices = {"devices": examination.num_gpu_devices()}
        if self.config is None:
            return devices
        return devices | _look(self.config, with_model=self.party.own == 0)

    def findings(self, circle, folder):
        """Judge configuration, data, room for checkpoints and GPUs; called on the chief."""
        rows = []
        if self.config is not None:
            rows += self._config_findings(circle.ask("config", self.timeout_seconds))
        answers = circle.ask("look", self.timeout_seconds)
        num_bytes = answers[0].get("state_bytes", 0)
        if self.config is not None:
            rows += self._data_findings(answers)
        if folder is not None and not folder.problem:
            keep = self.config.checkpoint if self.config is not None else None
            num_kept = keep.keep_last + 2 + bool(keep.keep_best) if keep else 0
            rows.append(findings.room(folder.free_bytes(), num_bytes, num_kept))
        return rows + self._gpu_findings(answers)

    def _config_findings(self, answers):
        known = {
            number: findings.flatten(answer["config"])
            for number, answer in answers.items()
            if answer["config"]
        }
        rows = [
            Finding(
                "configuration",
                findings.FAILED,
                f"{self.party.name(number)} has none: it sees no run in --run_dir. Use a folder "
                "that all share, or --config on all tasks.",
            )
            for number in answers
            if number not in known
        ]
        rows += findings.same(
            "configuration",
            self.party,
            known,
            "Give all tasks the same command line and files.",
            well=lambda _: f"{self.config.data.name}, {self.config.model.name}, the same on all",
        )
        if self.folder is not None and self.folder.config.exists():
            try:
                self.folder.check_same(self.config)
            except ValueError as error:
                rows.append(Finding("configuration", findings.FAILED, str(error)))
        return rows

    def _data_findings(self, answers):
        rows = [
            Finding(
                "data",
                findings.WARNING if answer.get("may_download") else findings.FAILED,
                f"{self.party.name(number)}: {answer['error']}",
            )
            for number, answer in answers.items()
            if "error" in answer
        ]
        opened = {
            number: {"fingerprint": answer["fingerprint"]}
            for number, answer in answers.items()
            if "fingerprint" in answer
        }
        if opened:
            rows += findings.same(
                "data",
                self.party,
                opened,
                "Copy the data of one machine to the others, or read it from a shared folder.",
                well=lambda one: f"fingerprint {one['fingerprint']}",
            )
        return rows

    def _gpu_findings(self, answers):
        """Warn where machines have different numbers, or TensorFlow does not find them."""
        usable = {
            number: {"GPUs": answer.get("gpus", answer["devices"])}
            for number, answer in answers.items()
        }
        rows = [
            Finding(
                "GPUs",
                findings.WARNING,
                f"{self.party.name(number)}: TensorFlow finds {answer['gpus']} of "
                f"{answer['devices']} GPUs. Look at CUDA_VISIBLE_DEVICES, the driver and CUDA.",
            )
            for number, answer in answers.items()
            if answer.get("gpus", answer["devices"]) < answer["devices"]
        ]
        return rows + findings.same(
            "GPUs",
            self.party,
            usable,
            "The slowest sets the pace: use machines that are alike.",
            state=findings.WARNING,
            well=lambda one: f"{one['GPUs']} a task" if self.party.others else f"{one['GPUs']}",
        )


def _look(config, with_model):
    """Return what TensorFlow knows: GPUs, the data's fingerprint, the bytes of a checkpoint."""
    with command_line.quiet_import():
        import keras
        import tensorflow as tf

        from tfscale import experiment

        found = {"gpus": len(tf.config.list_physical_devices("GPU"))}
    tf.config.set_visible_devices([], "GPU")  # a look at the data takes none of their memory
    try:
        data = dataclasses.replace(config.data, download=False)
        splits = experiment.load_lib.load(data)
        found["fingerprint"] = splits.fingerprint
        if with_model:
            keras.config.set_dtype_policy(config.train.mixed_precision or "float32")
            model = experiment.compiled_model(config, splits)
            model.optimizer.build(model.trainable_variables)
            variables = {id(v): v for v in (*model.variables, *model.optimizer.variables)}
            found["state_bytes"] = sum(
                math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables.values()
            )
    except Exception as error:  # a user's data and builders may fail in any way
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        found["error"] = " ".join(f"{kind}{error}".split())
        found["may_download"] = config.data.download and "fingerprint" not in found
    return found


def _check_checkpoints(run_dir):
    """List the checkpoints of a run and of the fits of its script; return the exit code."""
    folder = run_folder.RunFolder(run_dir)
    fits = sorted(folder.path.glob("fits/*/checkpoints"))
    if not folder.config.exists() and not folder.checkpoints.directory.is_dir() and not fits:
        raise config_files.UsageError(
            "--run_dir must be the folder of a run. Received: "
            f"{folder.path}, which has neither config.json nor checkpoints. Folders of runs are "
            "in runs/. To check a folder before a job, add --workers=N or --config.x.y=VALUE."
        )
    named = {f"fit {path.parent.name}": checkpoint_lib.Checkpoints(path) for path in fits}
    if not fits or folder.checkpoints.directory.is_dir():
        named = {"": folder.checkpoints, **named}
    blocks, num_damaged = [], 0
    for name, checkpoints in named.items():
        lines, num_more = report(checkpoints)
        blocks.append("\n".join([name, *lines] if name else lines))
        num_damaged += num_more
    print("\n\n".join(blocks))
    return 1 if num_damaged else 0


def report(checkpoints):
    """Read all checkpoints of a run.

    Args:
        checkpoints: its `checkpoint.Checkpoints`.

    Returns:
        Lines of text, and how many checkpoints are damaged.
    """
    places = [(checkpoints.path(step), step) for step in checkpoints.steps()]
    places += [(old, int(final.name[5:])) for old, final in checkpoints.displaced()]
    found = [(step, checkpoint_lib.examine(path)) for path, step in places]
    # A run that goes on meanwhile may have removed one of them.
    found = sorted(((step, one) for step, one in found if one.path.exists()), key=lambda x: x[0])
    whole = [(step, one) for step, one in found if not one.damage]
    best = (whole[-1][1].manifest["facts"].get("best") or {}).get("step") if whole else None
    lines = [f"{'step':>10}  {'epochs':>6}  {'saved':<19}  {'size':>12}"]
    lines += [_row(step, one, step == best) for step, one in found]
    if not found:
        lines = [f"There is no checkpoint in {checkpoints.directory}."]
    used = [one.path for _, one in found]
    lines += [
        f"{path} is being written or removed, or a crash has left it so. It is not used."
        for path in checkpoints.unfinished()
        if path not in used
    ]
    if whole:
        lines.append(f"A run goes on from step {whole[-1][0]}, with {whole[-1][1].path}.")
    else:
        lines.append("A run begins at its first step.")
    return lines, len(found) - len(whole)


def _row(step, one, is_best):
    """A line on one checkpoint: finished epochs, when it was saved, its size, what is wrong."""
    epochs = one.manifest.get("facts", {}).get("progress", {}).get("epoch", "")
    saved = ""
    if "saved" in one.manifest:
        moment = datetime.datetime.fromtimestamp(one.manifest["saved"])
        saved = moment.strftime("%Y-%m-%d %H:%M:%S")
    state = f"damaged: {one.damage}" if one.damage else "whole"
    size = f"{one.num_bytes / 1e6:,.2f} MB"
    return f"{step:>10}  {epochs:>6}  {saved:<19}  {size:>12}  {state}{', the best' * is_best}"


if __name__ == "__main__":
    sys.exit(main())
