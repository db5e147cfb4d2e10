"""Compare runs on one page: python -m tfscale.report --run_dir=runs/A --run_dir=runs/B

Writes one HTML file with all that it shows, which any browser opens without a server.
"""

import contextlib
import os
import pathlib
import sys
import time

from absl import flags

from tfscale import command_line, config_files
from tfscale.monitor import report_page, run_files

USAGE = """Write a page about one run, or about several side by side.

  python -m tfscale.report --run_dir=runs/A
  python -m tfscale.report --run_dir=runs/A --run_dir=runs/B --output=compare.html

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
            "--run_dir must name the folder of a run, once for each. Received: none. "
            "Folders are in runs/."
        )
    runs = [run for path in values.run_dir for run in run_files.find(path)]
    output = pathlib.Path(values.output or pathlib.Path(values.run_dir[0]) / "report.html")
    beside = output.with_name(output.name + ".writing")  # so that a reader sees no half
    try:
        beside.write_text(report_page.page(runs, time.time()), encoding="utf-8")
        os.replace(beside, output)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise config_files.UsageError(
            f"--output must be a file that can be written. Received: {output} ({error.strerror}). "
            "Name another place, such as --output=report.html."
        ) from None
    print(output)
    return 0


def _define_flags(values):
    flags.DEFINE_multi_string("run_dir", [], "folder of a run; may be repeated", flag_values=values)
    flags.DEFINE_string(
        "output", "", "the file; empty: report.html in the first folder", flag_values=values
    )


if __name__ == "__main__":
    sys.exit(main())
