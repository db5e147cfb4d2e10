"""CSV files as arrays: columns of numbers to learn from, one column to predict.

Owns the format: a header line with the names of the columns, comma separated, `.gz` or not.
Numbers become float32; a label is a class where the number of classes is set, else a target.
"""

import csv
import gzip
import os

import numpy as np

from tfscale.data import arrays, checks, slices
from tfscale.names import nearest


class CsvCollection:
    """One CSV file, or a folder of one file a split.

    Where `path` is a file, the split "train" is that file and any other split the file of that
    name beside it. Where it is a folder, each split is a file in it. A split may be named with
    or without `.csv` or `.csv.gz`, and may be sliced: "train[:80%]" is the first part of the
    rows in the order of the file, "train[80%:]" the rest.

    Args:
        path: the file or folder.
        feature_columns: names of the columns to learn from; empty for all but the label.
        label_column: name of the column to predict.
        num_classes: classes of the label, which is then a whole number; 0 for a regression.

    Raises:
        ValueError: if there is no such file or folder.
    """

    largest_value = None

    def __init__(self, path, feature_columns, label_column, num_classes):
        if not os.path.exists(path):
            raise ValueError(
                "`data.data_dir` must be a CSV file or a folder of CSV files. Received: "
                f"{path!r}, which does not exist. Use --config.data.data_dir=FILE."
            )
        self.path = path
        self._features, self._label = tuple(feature_columns), label_column
        self.num_classes, self.classes = num_classes or None, ()

    def require(self, split):
        """Raise ValueError unless the split's file exists and has the columns."""
        with _open(self._file(split)) as lines:
            self._columns(next(csv.reader(lines), []), split)

    def open(self, split):
        """Return the split's features (float32) and labels (int64 or float32) in memory."""
        path = self._file(split)
        with _open(path) as lines:
            header = next(csv.reader(lines), [])
        names, picks = self._columns(header, split)
        table = _read(path, header, picks)
        table = table[slices.rows(split, len(table))]
        features, labels = table[:, :-1], table[:, -1]
        for column, name in enumerate(names):
            checks.check_finite(table[:, column], f"Column {name!r} of {path}")
        if self.num_classes is None:
            labels = labels.astype(np.float32)
        else:
            labels = self._classes(labels, path)
        copied = arrays.empty_aligned(features.shape, np.float32)
        copied[...] = features
        return arrays.ArraySource((copied, labels))

    def _file(self, split):
        """The path of a split's file."""
        name = slices.base(split)
        folder, only = self.path, os.path.isfile(self.path)
        if only:
            folder = os.path.dirname(self.path)
            if name in ("train", os.path.basename(self.path)):
                return self.path
        for candidate in (name, f"{name}.csv", f"{name}.csv.gz"):
            path = os.path.join(folder, candidate)
            if os.path.isfile(path):
                return path
        found = sorted(f for f in os.listdir(folder or ".") if f.endswith((".csv", ".csv.gz")))
        raise ValueError(
            f"A split must be a CSV file in {folder or '.'}: {', '.join(found) or 'none found'}. "
            f"Received: {split!r}. Name one of them, use a slice such as 'train[80%:]', or '' for "
            "no such split."
        )

    def _columns(self, header, split):
        """Names and positions of the features, then the label."""
        features = self._features or tuple(c for c in header if c != self._label)
        names = [*features, self._label]
        for name in names:
            if name not in header:
                raise ValueError(
                    f"`data.label_column` and `data.feature_columns` must be columns of the file: "
                    f"{', '.join(header) or 'it is empty'}. Received: {name!r} for {split!r}."
                    f"{nearest(name, header)}"
                )
        return names, [header.index(name) for name in names]

    def _classes(self, labels, path):
        whole = np.round(labels)
        if not np.array_equal(whole, labels):
            row = int(np.argmax(whole != labels))
            raise ValueError(
                f"A class must be a whole number. Received: {labels[row]} in row {row + 1} of "
                f"{path}. Correct it, or set data.num_classes=0 for a regression."
            )
        labels = labels.astype(np.int64)
        checks.check_labels(labels, self.num_classes, f"Column {self._label!r} of {path}")
        return labels


def _open(path):
    return gzip.open(path, "rt", newline="") if path.endswith(".gz") else open(path, newline="")


def _read(path, header, picks):
    """The chosen columns of a file as a float64 table."""
    with _open(path) as lines:
        next(lines)
        try:
            table = np.loadtxt(
                lines, delimiter=",", usecols=picks, ndmin=2, quotechar='"', comments=None
            )
        except ValueError as error:
            raise ValueError(_fault(path, header, picks) or f"{path}: {error}") from error
    return table


def _fault(path, header, picks):
    """What is wrong with the first bad cell of a file, found slowly."""
    with _open(path) as lines:
        rows = csv.reader(lines)
        next(rows)
        for number, row in enumerate(rows, start=1):
            if not row:
                continue
            if len(row) != len(header):
                return (
                    f"Every row must have {len(header)} columns. Received: {len(row)} in row "
                    f"{number} of {path}. Correct the row."
                )
            for column in picks:
                try:
                    float(row[column])
                except ValueError:
                    return (
                        f"Every cell must hold a number. Received: {row[column]!r} in row "
                        f"{number}, column {header[column]!r} of {path}. Correct it, or choose "
                        "other columns with `data.feature_columns`."
                    )
    return None
