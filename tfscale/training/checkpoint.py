"""State on disk: whole or absent, checked before it is used.

A checkpoint is a folder `step-N` with the arrays in `state.npz` and, in `manifest.json`, what
they are, their checksum, and a few numbers and words about the run. It is written beside, synced
and renamed; pickle is never used. What belongs into the state is the trainer's affair.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil

import ml_dtypes
import numpy as np
from absl import logging

_FOLDER = re.compile(r"step-(\d+)$")


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


class Checkpoints:
    """The checkpoints of one run, of which the newest few are kept.

    Args:
        directory: the folder that holds them; made when the first one is saved.
        keep_last: how many to keep, at least 1.

    Raises:
        ValueError: if `keep_last` is below 1.
    """

    def __init__(self, directory, keep_last=2):
        if keep_last < 1:
            raise ValueError(
                "`checkpoint.keep_last` must be at least 1. "
                f"Received: keep_last={keep_last}. Use 1 or more."
            )
        self.directory = pathlib.Path(directory)
        self.keep_last = keep_last

    def steps(self):
        """Return the steps that have a checkpoint, in order, whole or not."""
        if not self.directory.is_dir():
            return []
        found = (_FOLDER.match(entry.name) for entry in self.directory.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def path(self, step):
        """Return the folder of a step's checkpoint."""
        return self.directory / f"step-{step:08d}"

    def save(self, checkpoint):
        """Write a checkpoint, then remove those that it makes needless. For the chief alone.

        These are the oldest, and those of later steps: a run that went on from an earlier
        checkpoint has left them behind, and must not find them as its newest.

        Args:
            checkpoint: a `Checkpoint`; its `path` is not used.

        Raises:
            OSError: if the disk is full or not writable; earlier checkpoints stay as they are.
        """
        final = self.path(checkpoint.step)
        beside = final.with_name(final.name + ".writing")
        if beside.exists():
            shutil.rmtree(beside)
        beside.mkdir(parents=True)
        try:
            _write(beside, checkpoint)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if final.exists():
            shutil.rmtree(final)
        os.rename(beside, final)
        _sync(self.directory)
        steps = self.steps()
        left_behind = [step for step in steps if step > checkpoint.step]
        too_old = [step for step in steps if step <= checkpoint.step][: -self.keep_last]
        for step in left_behind + too_old:
            shutil.rmtree(self.path(step))

    def newest(self):
        """Return the newest step whose checkpoint is whole, or None.

        A damaged one is named in the log and passed over.
        """
        for step in reversed(self.steps()):
            try:
                read(self.path(step))
                return step
            except ValueError as error:
                logging.warning("%s Using the one before it.", error)
        return None


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
    rule = "A checkpoint must be a folder with a whole state.npz and its manifest.json."
    way_out = "Use the one before it, or --resume=never."
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        state = (path / "state.npz").read_bytes()
        if hashlib.sha256(state).hexdigest() != manifest["sha256"]:
            raise ValueError("the checksum of state.npz is another")
        with np.load(path / "state.npz", allow_pickle=False) as stored:
            arrays = {
                name: stored[f"a{i}"].view(_dtype(kind)).reshape(shape)
                for i, (name, kind, shape) in enumerate(manifest["arrays"])
            }
        return Checkpoint(manifest["step"], arrays, manifest["facts"], path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{rule} Received: {path} ({reason}). {way_out}") from None


def _write(folder, checkpoint):
    """Write the two files of a checkpoint and sync them."""
    names = list(checkpoint.arrays)
    with open(folder / "state.npz", "wb") as file:
        # Bytes, because .npz has no bfloat16; the manifest says what they are.
        np.savez(
            file,
            **{
                f"a{i}": np.frombuffer(
                    np.ascontiguousarray(checkpoint.arrays[name]).tobytes(), "u1"
                )
                for i, name in enumerate(names)
            },
        )
        file.flush()
        os.fsync(file.fileno())
    arrays = [(n, checkpoint.arrays[n].dtype.name, checkpoint.arrays[n].shape) for n in names]
    manifest = {
        "step": checkpoint.step,
        "sha256": hashlib.sha256((folder / "state.npz").read_bytes()).hexdigest(),
        "arrays": arrays,
        "facts": checkpoint.facts,
    }
    with open(folder / "manifest.json", "w") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def write_whole(path, text):
    """Write a small file so that a reader sees the old one or the new one, never a half.

    Args:
        path: the file.
        text: what it will hold.
    """
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".writing")
    try:
        with open(beside, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _dtype(name):
    return np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)


def _sync(folder):
    """Make a rename last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
