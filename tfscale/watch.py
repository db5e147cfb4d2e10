"""Follow a run from another terminal: python -m tfscale.watch --run_dir=runs/NAME

Reads the files that the run writes, so that it works from any machine that sees them, costs the
run nothing, and may begin and end at any time.
"""

import shutil
import sys
import time

from absl import flags

from tfscale import command_line, config_files
from tfscale.monitor import follow, run_files

USAGE = """Follow a run: how far it is, whether it learns, how fast, what went wrong.

  python -m tfscale.watch --run_dir=runs/mine            until the run or Ctrl-C ends it
  python -m tfscale.watch --run_dir=runs/mine --once     one look, for scripts

A folder of tfscale.launch or of a search is all the runs in it."""

_WIDTH = 160  # where there is no terminal
_PATIENCE_SECONDS = 120  # for a run that has failed or left, and may be started again


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
    is_terminal = sys.stdout.isatty()
    drawn = 0
    while True:
        size = shutil.get_terminal_size()
        runs = run_files.find(values.run_dir)
        width = size.columns if is_terminal else _WIDTH
        shown = [line for run in runs for line in [*follow.lines(run, width=width), ""]][:-1]
        if is_terminal and not values.once:
            # The last ones: in a folder of many runs those that go on.
            shown = shown[-(size.lines - 2) :]
        above = f"\x1b[{drawn}F\x1b[J" if drawn and is_terminal else "\n" if drawn else ""
        print(above + "\n".join(shown), flush=True)
        drawn = len(shown)
        if values.once or all(_has_ended(run) for run in runs):
            return 0
        time.sleep(values.every_seconds)


def _has_ended(run):
    """Whether nothing more is to be expected of a run."""
    last = run.events[-1] if run.events else {}
    gone = last.get("event") in ("failed", "left")
    return run.state() == "finished" or (gone and time.time() - last["time"] > _PATIENCE_SECONDS)


def _define_flags(values):
    flags.DEFINE_string("run_dir", "", "folder of the run", flag_values=values)
    flags.DEFINE_bool("once", False, "look once, and stop", flag_values=values)
    flags.DEFINE_float(
        "every_seconds", 2.0, "time between two looks", lower_bound=0.1, flag_values=values
    )


if __name__ == "__main__":
    sys.exit(main())
