"""Score a run: python -m tfscale.evaluate --run_dir=runs/NAME

Loads the model that a run has saved, in safe mode, and scores the test split again, or another
one. As the evaluator task of a cluster it scores each new checkpoint of a run that goes on.
"""

import sys

from absl import flags

from tfscale import command_line, config_files, run_folder
from tfscale.monitor.scores import in_words

USAGE = """Score the model that a run has saved, on its test split.

  python -m tfscale.evaluate --run_dir=runs/mine
  python -m tfscale.evaluate --run_dir=runs/mine --split=train"""


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
    config = folder.saved_config()
    if not folder.model.exists():
        raise config_files.UsageError(
            "--run_dir must hold a finished run with its model.keras. "
            f"Received: {folder.path}. Finish it with tfscale.fit --run_dir={folder.path}."
        )
    with command_line.quiet_import():
        from tfscale import scoring

        scoring.strategy_lib.find_gpus()
    scores = scoring.evaluate_saved(config, folder, values.split)
    print("  ".join(f"{name} {in_words(value)}" for name, value in scores.items()))
    return 0


def evaluator_task(config, run_dir):
    """Be the evaluator of a cluster; called by `fit` where TF_CONFIG says so.

    Args:
        config: the `RunConfig` of the run.
        run_dir: the folder of the run, which the workers write.

    Returns:
        The exit code.

    Raises:
        ValueError: if there is no run folder or no validation data.
    """
    if not run_dir:
        raise config_files.UsageError(
            "An evaluator task needs --run_dir, the folder that the workers write. "
            "Received: none. Give all tasks the same --run_dir."
        )
    with command_line.quiet_import():
        from tfscale import scoring

        scoring.strategy_lib.find_gpus()
    folder = run_folder.RunFolder(run_dir)

    def report(step, scores):
        line = "  ".join(f"{name} {in_words(value)}" for name, value in scores.items())
        print(f"evaluator  step {step}  {line}", flush=True)

    scoring.evaluate_checkpoints(config, folder, report)
    return 0


def _define_flags(values):
    flags.DEFINE_string("run_dir", "", "folder of the run", flag_values=values)
    flags.DEFINE_string("split", "", "split to score; empty: the test split", flag_values=values)


if __name__ == "__main__":
    sys.exit(main())
