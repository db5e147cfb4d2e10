"""The folder of a launched script: its command and seed, its logs, the checkpoints of its fits.

The launcher settles it, or in a cluster the chief. What is in a checkpoint is not its affair.
"""

import contextlib
import json
import secrets
import sys
import time
from pathlib import Path

from tfscale.training import checkpoint as checkpoint_lib

MAX_SEED = 2**31 - 1


class ScriptFolder:
    """The folder that `tfscale.launch --run_dir` names.

    Args:
        path: the folder; made by `settle`.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.launch = self.path / "launch.json"
        self.end = self.path / "ended.json"
        self.logs = self.path / "logs"
        self.fits = self.path / "fits"

    def settle(self, target, seed=None):
        """Make the folder, or check that it is this script's; for one process alone.

        Args:
            target: the script and its arguments, or `-m`, the module and its arguments.
            seed: the seed of all workers; None for the one of the life before, or a new one.

        Returns:
            The seed.

        Raises:
            ValueError: if the folder is that of another script, has another seed, or cannot be
                written.
        """
        before = self._read()
        others = [n for n in ("config.json", "search.json") if (self.path / n).exists()]
        if before is None and others:
            raise ValueError(
                "--run_dir must be a new folder, or that of the same script. Received: "
                f"{self.path}, which holds {others[0]} of another run. Name another folder."
            )
        if before is None:
            seed = secrets.randbelow(MAX_SEED + 1) if seed is None else seed
            content = {"target": list(target), "seed": seed}
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                checkpoint_lib.write_whole(self.launch, json.dumps(content, indent=2) + "\n")
            except OSError as error:
                raise ValueError(
                    "--run_dir must be a folder that can be written. "
                    f"Received: {self.path} ({error.strerror}). Name another folder."
                ) from None
            return seed
        if _name(before["target"]) != _name(target):
            raise ValueError(
                "--run_dir must be a new folder, or that of the same script. Received: "
                f"{self.path}, which is that of {_name(before['target'])}, with "
                f"{_name(target)}. Name another folder."
            )
        if list(before["target"][1:]) != list(target[1:]):
            print(
                f"warning: {self.path} is of the arguments {' '.join(before['target'][1:])}; calls "
                "of fit that had ended there are not trained again with others. Name another "
                "folder with --run_dir to begin anew.",
                file=sys.stderr,
                flush=True,
            )
        if seed not in (None, before["seed"]):
            raise ValueError(
                "A script goes on with the seed that it began with. Received: "
                f"--seed={seed} with --run_dir={self.path}, which began with {before['seed']}. "
                "Leave --seed out, or name another folder."
            )
        return before["seed"]

    def begin(self):
        """Note that the script runs; for the chief."""
        self.end.unlink(missing_ok=True)

    def tell_end(self, ended_well):
        """Note that the script is over, for those who look on; for the chief.

        Args:
            ended_well: true where it has come to its end.
        """
        word = {"well": bool(ended_well), "time": round(time.time(), 3)}
        with contextlib.suppress(OSError):  # of a full disk the script itself has told
            checkpoint_lib.write_whole(self.end, json.dumps(word) + "\n")

    def is_visible(self, seed):
        """Say whether this process sees the folder that was settled with this seed."""
        found = self._read()
        return found is not None and found["seed"] == seed

    def _read(self):
        try:
            return json.loads(self.launch.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ValueError(
                "--run_dir must hold launch.json as it was written. Received: "
                f"{self.launch} ({error}). Name another folder."
            ) from None


def _name(target):
    return f"-m {target[1]}" if target[0] == "-m" else Path(target[0]).name
