"""Why the lives of a run failed, as its launcher saw it, in a file for those who look on.

The workers' own files cannot have it: one that is killed says nothing, and its peers only that they
lost it. A line of JSON for each failure, beside the workers' logs.
"""

import contextlib
import json
import time
from pathlib import Path

FILE = "failures.jsonl"


def note(log_dir: Path, life: int, text: str) -> None:
    """Add a failure to the file; where that cannot be written the run goes on without.

    Args:
        log_dir: the folder of the workers' logs.
        life: the launcher's number of the life that failed, from 1; 0 for one of another launcher.
        text: who failed and why, in a line.
    """
    line = json.dumps({"time": round(time.time(), 3), "life": life, "text": text}) + "\n"
    with contextlib.suppress(OSError), open(log_dir / FILE, "a") as file:
        file.write(line)
