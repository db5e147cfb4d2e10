"""The checkpoints of one run: whole or absent, checked before they are used.

A checkpoint is a folder `step-N` with the files of `checkpoint_files.py`. It is written beside,
synced and renamed. What belongs into the state is the trainer's affair, when to save the saver's.
"""

import dataclasses
import os
import pathlib
import re
import shutil

import numpy as np
from absl import logging

from tfscale.training import checkpoint_files
from tfscale.training.checkpoint_files import Damaged, sync_folder

_FOLDER = re.compile(r"step-(\d+)$")
# What a crash may leave: one half written, one half removed, and one that another of its step was
# about to replace.
_WRITING, _REMOVING, _REPLACED = ".writing", ".removing", ".replaced"
MODES = ("auto", "max", "min")


@dataclasses.dataclass
class Checkpoint:
    """What was saved.

    Args:
        step: updates of the weights so far.
        arrays: NumPy arrays by name.
        facts: what fits into JSON: epoch, position, history, versions.
        path: the folder it was read from.
    """

    step: int
    arrays: dict[str, np.ndarray]
    facts: dict
    path: pathlib.Path | None = None


@dataclasses.dataclass
class Examination:
    """What was found in the folder of a checkpoint, of which all was read.

    Args:
        path: the folder.
        num_bytes: of all its files.
        damage: which file is not as it was written, and how; "" if all are.
        manifest: what the checkpoint says of itself: "step", "facts", "saved" (seconds since
            1970); empty if that cannot be read.
    """

    path: pathlib.Path
    num_bytes: int = 0
    damage: str = ""
    manifest: dict = dataclasses.field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one run, of which the newest few are kept, and the best.

    Args:
        directory: the folder that holds them; made when the first one is saved.
        keep_last: how many of the newest to keep, at least 1.
        keep_best: keep the best one too, by this metric at the end of an epoch: "val_loss",
            "val_accuracy", ...; "" for none.
        best_mode: "max" or "min" for what is best; "auto" by the metric, as Keras' callbacks.

    Raises:
        ValueError: if `keep_last` is below 1, or the mode is unknown.
    """

    def __init__(self, directory, keep_last=2, keep_best="", best_mode="auto"):
        if keep_last < 1:
            raise ValueError(
                "`checkpoint.keep_last` must be at least 1. "
                f"Received: keep_last={keep_last}. Use 1 or more."
            )
        if best_mode not in MODES:
            raise ValueError(
                f"`checkpoint.best_mode` must be one of {', '.join(MODES)}. "
                f"Received: {best_mode!r}. Leave it out to have it chosen by the metric."
            )
        self.directory = pathlib.Path(directory)
        self.keep_last, self.keep_best, self.best_mode = keep_last, keep_best, best_mode
        self._is_made = False

    def steps(self):
        """Return the steps that have a checkpoint, in order, whole or not."""
        found = (_FOLDER.match(entry.name) for entry in self._entries())
        return sorted(int(match.group(1)) for match in found if match)

    def unfinished(self):
        """Return the folders that are being written or removed, or were when a run was killed."""
        ends = (_WRITING, _REMOVING, _REPLACED)
        return sorted(entry for entry in self._entries() if entry.name.endswith(ends))

    def path(self, step):
        """Return the folder of a step's checkpoint."""
        return self.directory / f"step-{step:08d}"

    def save(self, checkpoint, also_keep=()):
        """Write a checkpoint, then remove those that it makes needless. For the chief alone.

        These are the oldest, and those of later steps: a run that went on from an earlier
        checkpoint has left them behind, and must not find them as its newest.

        Args:
            checkpoint: a `Checkpoint`; its `path` is not used.
            also_keep: steps whose checkpoints stay however old they are.

        Raises:
            OSError: if the disk is full, not writable or gone; earlier checkpoints stay as they
                are.
        """
        final = self.path(checkpoint.step)
        beside, replaced = _with_end(final, _WRITING), _with_end(final, _REPLACED)
        if beside.exists():
            shutil.rmtree(beside)
        # A folder that is gone, as when a disk is taken away, is not made again somewhere else.
        if not self._is_made:
            _make_lasting(self.directory)
        beside.mkdir()
        self._is_made = True
        try:
            checkpoint_files.write(beside, checkpoint.step, checkpoint.arrays, checkpoint.facts)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if final.exists():
            os.rename(final, replaced)
        os.rename(beside, final)
        sync_folder(self.directory)
        shutil.rmtree(replaced, ignore_errors=True)
        steps = self.steps()
        left_behind = [step for step in steps if step > checkpoint.step]
        too_old = [step for step in steps if step <= checkpoint.step][: -self.keep_last]
        for step in {*left_behind, *too_old} - {*also_keep}:
            _remove(self.path(step))

    def displaced(self):
        """Return pairs of a folder and the name it is to have again.

        Their replacement was cut off between two renames, so the old one is the good one.
        """
        olds = (entry for entry in self.unfinished() if entry.name.endswith(_REPLACED))
        pairs = [(entry, entry.with_name(entry.name.removesuffix(_REPLACED))) for entry in olds]
        return [(entry, final) for entry, final in pairs if not final.exists()]

    def clean(self):
        """Remove what a killed run has left unfinished. For the chief alone, before it saves."""
        for entry, final in self.displaced():
            os.rename(entry, final)
        for entry in self.unfinished():
            logging.info("Removing %s, which an earlier life left unfinished.", entry)
            shutil.rmtree(entry, ignore_errors=True)

    def newest(self):
        """Return the newest step whose checkpoint is whole, or None.

        A damaged one is named in the log and passed over.
        """
        for step in reversed(self.steps()):
            damage = examine(self.path(step)).damage
            if not damage:
                return step
            logging.warning("%s Using the one before it.", _refusal(self.path(step), damage))
        return None

    def _entries(self):
        return self.directory.iterdir() if self.directory.is_dir() else ()


def read(path):
    """Read one checkpoint.

    Args:
        path: the folder of a checkpoint.

    Returns:
        A `Checkpoint`.

    Raises:
        ValueError: if there is none, or it is damaged or not one of ours.
    """
    path = pathlib.Path(path)
    try:
        manifest = checkpoint_files.read_manifest(path)
        arrays = dict(checkpoint_files.read_arrays(path, manifest))
    except Damaged as damage:
        raise _refusal(path, damage) from None
    return Checkpoint(manifest["step"], arrays, manifest["facts"], path)


def examine(path):
    """Read all of a checkpoint as `read` does, but keep none of it, however large it is.

    Args:
        path: the folder of a checkpoint.

    Returns:
        An `Examination`.
    """
    found = Examination(pathlib.Path(path))
    try:
        found.num_bytes = sum(file.stat().st_size for file in found.path.iterdir())
        found.manifest = checkpoint_files.read_manifest(found.path)
        for _ in checkpoint_files.read_arrays(found.path, found.manifest):
            pass
    except (Damaged, OSError) as damage:
        found.damage = str(damage)
    return found


def write_whole(path, content):
    """Write a small file so that a reader sees the old one or the new one, never a half.

    Args:
        path: the file.
        content: what it will hold, text or bytes.
    """
    path = pathlib.Path(path)
    beside = path.with_name(path.name + _WRITING)
    try:
        with open(beside, "wb" if isinstance(content, bytes) else "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _refusal(path, damage):
    return ValueError(
        "A checkpoint must be a folder as it was written, with state.bin and manifest.json. "
        f"Received: {path} ({damage}). Use the one before it, or --resume=never."
    )


def _with_end(path, end):
    return path.with_name(path.name + end)


def _make_lasting(folder):
    """Make a folder and those it is in, so that they last through a loss of power."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)


def _remove(path):
    """Remove a checkpoint so that a half of it is never taken for one."""
    removing = _with_end(path, _REMOVING)
    os.rename(path, removing)
    shutil.rmtree(removing, ignore_errors=True)
