"""The handwritten digits that ship with the package, behind a TFDS builder of our own.

Owns their preparation: no network, on first use, by any number of processes at once.
"""

import contextlib
import io
import os
import random
import shutil
import stat
import tempfile

import numpy as np
import tensorflow_datasets as tfds

from tfscale.data.digits_file import LARGEST_VALUE, NUM_CLASSES, load_digits

__all__ = ["LARGEST_VALUE", "NAME", "NUM_CLASSES", "Digits", "prepare"]

NAME = "digits"


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,797 images of 8x8 pixels, 0 to 16, in ten classes: 1,437 to train on, 360 to test."""

    name = NAME
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The test part of the UCI set, shuffled and split."}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Optical Recognition of Handwritten Digits, UCI, test part.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        train, test = load_digits()
        return {"train": self._generate_examples(*train), "test": self._generate_examples(*test)}

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


def prepare(data_dir, *, num_shards=None, file_format=None):
    """Prepare the digits below a folder unless they are there, and return their folder.

    Each process prepares into a folder of its own, which is renamed into place whole; the first
    one wins and the others use what it left. Where `data_dir` cannot be written, a folder of
    this user below the system's temporary folder takes its place.

    Args:
        data_dir: the TFDS data folder; made if it is missing.
        num_shards: files a split; None for one.
        file_format: "array_record" or TFDS's default where None.

    Returns:
        The path of the prepared folder, `<data_dir>/digits/1.0.0`.
    """
    prepared = os.path.join(data_dir, NAME, str(Digits.VERSION))
    if os.path.exists(os.path.join(prepared, "dataset_info.json")):
        return prepared
    try:
        os.makedirs(os.path.dirname(prepared), exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=".prepare-", dir=os.path.dirname(prepared))
    except OSError:
        fallback = _temporary_data_dir()
        if os.path.abspath(data_dir) == os.path.abspath(fallback):
            raise
        return prepare(fallback, num_shards=num_shards, file_format=file_format)
    try:
        tfds.disable_progress_bar()
        builder = Digits(data_dir=scratch, file_format=file_format)
        config = tfds.download.DownloadConfig(num_shards=num_shards)
        # TFDS announces a download on standard output, where there is none.
        with contextlib.redirect_stdout(io.StringIO()), _random_state_kept():
            builder.download_and_prepare(download_config=config)
        try:
            os.rename(os.path.join(scratch, NAME, str(Digits.VERSION)), prepared)
        except OSError:
            if not os.path.exists(os.path.join(prepared, "dataset_info.json")):
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return prepared


@contextlib.contextmanager
def _random_state_kept():
    """Have the run that prepares draw the seeds that later runs draw: TFDS draws names of files."""
    python, array = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _temporary_data_dir():
    """A folder that only this user can write, the same for all of this user's processes."""
    path = os.path.join(tempfile.gettempdir(), f"tfscale-data-{os.getuid()}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    status = os.lstat(path)
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        return tempfile.mkdtemp(prefix="tfscale-data-")
    return path
