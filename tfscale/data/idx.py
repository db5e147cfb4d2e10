"""MNIST-like data in its original idx files, read as they are.

Owns the idx format (Y. LeCun) for the data sets that share MNIST's file names, so that a folder
of downloaded or packaged files needs no preparation.
"""

import gzip
import math
import os

import numpy as np

from tfscale.data import arrays, checks, slices
from tfscale.names import nearest

NAMES = ("mnist", "fashion_mnist", "kmnist")
NUM_CLASSES = 10

_PREFIXES = {"train": "train", "test": "t10k"}
_UINT8 = 8  # the type of the numbers in all of these files


class IdxCollection:
    """A folder of idx files: `train-images-idx3-ubyte`, with or without `.gz`, and so on.

    Args:
        folder: the folder that holds the files.
    """

    num_classes = NUM_CLASSES
    classes = ()  # have no names
    largest_value = 255

    def __init__(self, folder):
        self.folder = folder
        self.split_names = sorted(s for s in _PREFIXES if _path(folder, s, "images"))

    def require(self, split):
        """Raise ValueError unless the split's files exist."""
        name = slices.base(split)
        if name not in self.split_names:
            raise ValueError(
                f"The split must be one of those in {self.folder}: {', '.join(self.split_names)}. "
                f"Received: {split!r}.{nearest(name, self.split_names)}"
            )
        if not _path(self.folder, name, "labels"):
            raise ValueError(
                "Images need labels beside them. Received: images without "
                f"{_PREFIXES[name]}-labels-idx1-ubyte in {self.folder}. Add the file."
            )

    def open(self, split):
        """Return the split's images (uint8, one channel) and labels as arrays in memory."""
        self.require(split)
        name = slices.base(split)
        images = _read(_path(self.folder, name, "images"))[..., np.newaxis]
        labels = _read(_path(self.folder, name, "labels"))
        if len(images) != len(labels):
            raise ValueError(
                "There must be one label an image. Received: "
                f"{len(images)} images and {len(labels)} labels in {self.folder}. "
                "Take both files from one source."
            )
        chosen = slices.rows(split, len(images))
        images, labels = images[chosen], labels[chosen]
        checks.check_labels(labels, NUM_CLASSES, f"the labels of {split!r}")
        return arrays.ArraySource((images, labels.astype(np.int64)))


def found(folder):
    """Return whether a folder holds idx files under MNIST's names."""
    return any(_path(folder, split, "images") for split in _PREFIXES)


def _path(folder, split, kind):
    """The path of a file that exists, or None."""
    dimensions = {"images": 3, "labels": 1}[kind]
    stem = os.path.join(folder, f"{_PREFIXES[split]}-{kind}-idx{dimensions}-ubyte")
    return next((p for p in (stem, f"{stem}.gz") if os.path.isfile(p)), None)


def _read(path):
    """The array of an idx file, read straight into its final memory."""
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        header = file.read(4)
        if len(header) < 4 or header[:2] != b"\0\0" or header[2] != _UINT8:
            raise ValueError(
                "An idx file of images must begin with two zero bytes and the type 8. Received: "
                f"{header!r} in {path}. Download it again."
            )
        shape = tuple(int(n) for n in np.frombuffer(file.read(4 * header[3]), ">u4"))
        array = arrays.empty_aligned(shape, np.uint8)
        wanted = math.prod(shape)
        got = file.readinto(memoryview(array.reshape(-1)))
        if got != wanted or file.read(1):
            raise ValueError(
                f"An idx file must hold what its header says, {wanted} bytes. Received: "
                f"{'more' if got == wanted else got} in {path}. Download it again."
            )
    return array
