"""Check what a run has saved: python -m tfscale.doctor --run_dir=runs/NAME

Reads every checkpoint of a run as a restart would, and says which one it would go on from.
Changes nothing, and does not wait for TensorFlow.
"""

import datetime
import sys

from absl import flags

from tfscale import command_line, config_files, run_folder
from tfscale.training import checkpoint as checkpoint_lib

USAGE = """Check the checkpoints of a run, and say which one it would go on from.

  python -m tfscale.doctor --run_dir=runs/mine

The exit code is 0 if all are whole, 1 if one is damaged, 2 if there is no run to check."""


def main(argv=None):
    """Run the command; return its exit code."""
    return command_line.run(_main, argv)


def _main(argv):
    values = command_line.parse(argv, USAGE, _define_flags, with_config=False)
    if values is None:
        return 0
    if not values.run_dir:
        raise config_files.UsageError(
            "--run_dir must name the folder of a run. Received: none. Folders are in runs/."
        )
    folder = run_folder.RunFolder(values.run_dir)
    if not folder.config.exists() and not folder.checkpoints.directory.is_dir():
        raise config_files.UsageError(
            "--run_dir must be the folder of a run. Received: "
            f"{folder.path}, which has neither config.json nor checkpoints. Folders of runs are "
            "in runs/."
        )
    lines, num_damaged = report(folder.checkpoints)
    print("\n".join(lines))
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


def _define_flags(values):
    flags.DEFINE_string("run_dir", "", "folder of the run", flag_values=values)


if __name__ == "__main__":
    sys.exit(main())
