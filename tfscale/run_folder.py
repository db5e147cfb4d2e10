"""One run, one folder: what it holds, and whether this run may go on in it.

The chief writes, all workers must see the same folder. Checkpoints' contents are not its affair.
"""

import datetime
import json
import pathlib

from tfscale import config_files
from tfscale.training import checkpoint as checkpoint_lib

# What may change between two lives of one run: how long it goes on, what it shows and keeps.
_MAY_CHANGE = {
    "data": ("data_dir", "download"),
    "train": ("epochs", "steps_per_execution", "validate_every"),
    "checkpoint": None,
    "log": None,
}


def default_path(config, seconds):
    """Return the folder of a run that names none: `runs/DATA-MODEL-TIME`.

    Args:
        config: the `RunConfig`.
        seconds: the time of its start, in seconds since 1970.
    """
    moment = datetime.datetime.fromtimestamp(seconds).strftime("%Y%m%d-%H%M%S")
    data = config.data.name.replace("/", "-").replace(":", "-")
    return f"runs/{data}-{config.model.name}-{moment}"


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made by `open`.
        keep_last: checkpoints to keep.
        keep_best: metric by which the best one is kept too.
        best_mode: which value is best.
    """

    def __init__(self, path, keep_last=2, keep_best="", best_mode="auto"):
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.pictures = self.path / "pictures"
        self.model = self.path / "model.keras"
        self.summary = self.path / "summary.json"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = checkpoint_lib.Checkpoints(
            self.path / "checkpoints", keep_last, keep_best, best_mode
        )

    def open(self, config, resume):
        """Make the folder, or check that a run in it may go on. For the chief alone.

        Args:
            config: the `RunConfig`.
            resume: "never" moves a run that is there aside; anything else leaves it.

        Raises:
            ValueError: if the folder holds a run of another configuration, or cannot be written.
        """
        if resume == "never":
            self.move_aside()
        if self.config.exists():
            self.check_same(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            checkpoint_lib.write_whole(self.config, config_files.config_to_json(config) + "\n")
        except OSError as error:
            raise ValueError(
                f"--run_dir must be a folder that can be written. Received: {self.path} "
                f"({error.strerror}). Use another --run_dir."
            ) from None

    def move_aside(self):
        """Move a run that is in the folder to NAME.1, or the next number that is free.

        Raises:
            ValueError: if that cannot be done.
        """
        if not self.config.exists():
            return
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        try:
            self.path.rename(aside)
        except OSError as error:
            raise ValueError(
                "--resume=never moves the run in --run_dir aside. "
                f"Received: {self.path} ({error.strerror}). Use another --run_dir."
            ) from None
        print(f"The run in {self.path} was moved to {aside}.", flush=True)

    def is_visible(self, config):
        """Say whether this process sees the configuration that the chief wrote."""
        expected = config_files.config_to_json(config) + "\n"
        return self.config.exists() and self.config.read_text() == expected

    def is_finished(self, epochs):
        """Say whether the run has its summary, after so many epochs."""
        return bool(self.summary_of(epochs))

    def summary_of(self, epochs):
        """Return the summary of the run, a dict; {} where it has none after so many epochs."""
        if not self.summary.exists():
            return {}
        found = json.loads(self.summary.read_text())
        return found if found["epochs"] >= epochs else {}

    def saved_config(self):
        """Return the `RunConfig` that was saved here.

        Raises:
            ValueError: if there is no run here.
        """
        if not self.config.exists():
            raise ValueError(
                "--run_dir must be the folder of a run. "
                f"Received: {self.path}, which has no config.json. Folders of runs are in runs/."
            )
        return config_files.load_config(self.config)

    def check_same(self, config):
        """Refuse to go on with, or to score, a run of another configuration.

        Raises:
            ValueError: naming the fields that differ.
        """
        before = self.saved_config()
        differences = []
        for section in vars(config):
            for name, value in vars(getattr(config, section)).items():
                allowed = _MAY_CHANGE.get(section, ())
                old = getattr(getattr(before, section), name)
                same = _plain(old) == _plain(value)
                if not same and allowed is not None and name not in allowed:
                    differences.append(f"{section}.{name}={old!r} there and {value!r} here")
        if differences:
            raise ValueError(
                "A run goes on with the configuration it began with. Received: "
                f"--run_dir={self.path} with {'; '.join(differences)}. Use another --run_dir, or "
                "--resume=never, which moves the old run aside."
            )


def _plain(value):
    """JSON has no tuples."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value
