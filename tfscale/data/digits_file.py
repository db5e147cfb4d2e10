"""The file of handwritten digits that ships with the package, as arrays.

Writers differ along the file, so it is shuffled once, by a fixed seed, before the split.
"""

import gzip
import pathlib

import numpy as np

LARGEST_VALUE = 16
NUM_CLASSES = 10

_FILE = pathlib.Path(__file__).parent / "files" / "digits.csv.gz"
_NUM_TRAIN = 1437
_SPLIT_SEED = 0


def load_digits():
    """Return the digits as arrays, as the functions of `keras.datasets` do for their data.

    Returns:
        `(x_train, y_train), (x_test, y_test)`: images of shape (1437, 8, 8, 1) and
        (360, 8, 8, 1), uint8 from 0 to 16; labels int64 from 0 to 9.
    """
    with gzip.open(_FILE, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    rows = rows[np.random.RandomState(_SPLIT_SEED).permutation(len(rows))]
    images, labels = rows[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1), rows[:, -1]
    train, test = slice(0, _NUM_TRAIN), slice(_NUM_TRAIN, None)
    return (images[train], labels[train]), (images[test], labels[test])
