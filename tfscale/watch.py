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
from tfscale.monitor import place as place_lib

USAGE = """Follow a run: how far it is, whether it learns, how fast, what went wrong.

  python -m tfscale.watch --run_dir=runs/mine            until the run or Ctrl-C ends it; waits
                                                         for a run that is still to come
  python -m tfscale.watch --run_dir=runs/mine --once     one look, for scripts

A folder of tfscale.launch or of a search is all the runs in it."""


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
    run_files.check_folder(values.run_dir)
    is_terminal, place = sys.stdout.isatty(), place_lib.Place(values.run_dir)
    drawn, before = 0, None
    while True:
        size = shutil.get_terminal_size()
        runs = place.look()
        if values.once and not place.has_begun:
            run_files.find(values.run_dir)  # which refuses it
        now, width = time.time(), size.columns if is_terminal else None
        blocks = [follow.lines(run, now, width) for run in runs]
        blocks.append(follow.wrapped(_about(place, now, waits=not values.once), width))
        shown = "\n\n".join("\n".join(block) for block in blocks if any(block)).split("\n")
        if is_terminal and not values.once:
            # The last ones: in a folder of many runs those that go on.
            shown = shown[-(size.lines - 2) :]
        if shown != before:
            above = f"\x1b[{drawn}F\x1b[J" if drawn and is_terminal else "\n" if drawn else ""
            print(above + "\n".join(shown), flush=True)
            drawn, before = len(shown), shown
        if values.once or place.has_ended(now):
            return 0
        time.sleep(values.every_seconds)


def _about(place, now, waits):
    """The last line: what the whole is, where it is more than one run, or none yet."""
    told = place.told(now)
    return f"{told}; waiting (Ctrl-C ends)" if told and waits and not place.runs else told


def _define_flags(values):
    flags.DEFINE_string("run_dir", "", "folder of the run", flag_values=values)
    flags.DEFINE_bool("once", False, "look once, and stop", flag_values=values)
    flags.DEFINE_float(
        "every_seconds", 2.0, "time between two looks", lower_bound=0.1, flag_values=values
    )


if __name__ == "__main__":
    sys.exit(main())
