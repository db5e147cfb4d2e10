"""TensorFlow Datasets: prepared data found without network, read as arrays where it fits.

Owns the search for prepared data, the choice between memory, random access and streaming, and
what the dataset says about itself. Reading files in pieces is in `records.py`.
"""

import math
import os
import re

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tfscale.data import arrays, batches, checks, digits, records, shards
from tfscale.names import nearest

_CHUNK_BYTES = 2**23  # copied at a time while a split is loaded
OWN_NAMES = ("digits", "image_folder", "csv")


class TfdsCollection:
    """A prepared TFDS data set.

    Args:
        name: a TFDS name, with `/config` and `:version` where wanted, or "digits".
        data_dir: TFDS's data folder, or the prepared folder itself; empty for TFDS's default.
        download: let TFDS download and prepare what is missing.
        memory_limit_bytes: a split larger than this is not loaded into memory.

    Raises:
        ValueError: if there is no such data set, or it is not prepared and `download` is false.
    """

    def __init__(self, name, data_dir, download, memory_limit_bytes):
        self.name = name
        self._builder = _open_builder(name, data_dir, download)
        self._memory_limit_bytes = memory_limit_bytes
        info = self._builder.info
        keys = info.supervised_keys
        if not keys or len(keys) != 2:
            raise ValueError(
                "A TFDS data set must name its input and its label (`supervised_keys`). Received: "
                f"{name!r} with features {', '.join(info.features)}. "
                "Make a tf.data.Dataset of it in Python and use data.from_dataset."
            )
        self.split_names = sorted(info.splits)
        label = info.features[keys[1]] if isinstance(keys[1], str) else None
        is_classes = isinstance(label, tfds.features.ClassLabel)
        self.num_classes = label.num_classes if is_classes else None
        self.classes = label.names if is_classes else ()
        self.largest_value = digits.LARGEST_VALUE if info.name == digits.NAME else None

    def require(self, split):
        """Raise ValueError unless the split exists and holds an example."""
        for part in split.split("+"):
            base = part.split("[")[0].strip()
            if base not in self.split_names and base != "all":
                raise ValueError(
                    f"The split must be one of those of {self.name!r}: "
                    f"{', '.join(self.split_names)}. Received: {split!r}."
                    f"{nearest(base, self.split_names)} Slices like 'train[:80%]' work too."
                )
        try:
            num_examples = self._builder.info.splits[split].num_examples
        except (ValueError, AssertionError, KeyError) as error:
            raise ValueError(
                f"A split must read like 'train', 'train[:80%]' or 'train+test'. Received: "
                f"{split!r} ({error}). Splits of {self.name!r}: {', '.join(self.split_names)}."
            ) from error
        if num_examples <= 0:
            raise ValueError(
                f"A split must have at least one example. Received: {split!r} of {self.name!r}, "
                f"which is empty. Splits: {', '.join(self.split_names)}."
            )

    def open(self, split):
        """Return the source of a split: arrays in memory, records by index, or a stream."""
        self.require(split)
        spec = records.Decoder(self._builder).element_spec
        self._check_spec(spec, split)
        num_examples = self._builder.info.splits[split].num_examples
        leaves = tf.nest.flatten(spec)
        example_bytes = sum(math.prod(s.shape) * s.dtype.size for s in leaves)
        if num_examples * example_bytes <= self._memory_limit_bytes:
            loaded = _load(self._builder, split, spec, num_examples, example_bytes)
            return arrays.ArraySource(loaded)
        return records.open_split(self._builder, split)

    def _check_spec(self, spec, split):
        for leaf in tf.nest.flatten(spec):
            fixed = isinstance(leaf, tf.TensorSpec) and leaf.shape.is_fully_defined()
            if not fixed or leaf.dtype == tf.string:
                raise ValueError(
                    "Examples must be numbers of one shape, so that they fit into a batch. "
                    f"Received: {leaf.dtype.name} of shape {leaf.shape} in {split!r} of "
                    f"{self.name!r}. Make a tf.data.Dataset of it in Python, with a map that "
                    "resizes or encodes, and use data.from_dataset."
                )


def default_data_dir():
    """Return the folder where TFDS keeps prepared data unless told otherwise."""
    return os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")


def find_prepared(name, data_dir):
    """Return the folder of prepared data, or None; looks at files only, never at the network.

    Args:
        name: `name`, `name/config`, `name:version` or `name/config:version`.
        data_dir: TFDS's data folder, or the prepared folder itself.

    Returns:
        The folder with the newest matching version, or None.

    Raises:
        ValueError: if several configurations are prepared and `name` picks none of them.
    """
    path, _, version = name.partition(":")
    base, _, config = path.partition("/")
    if tf.io.gfile.exists(os.path.join(data_dir, "dataset_info.json")):
        return data_dir
    root = os.path.join(data_dir, path)
    found = tf.io.gfile.glob(os.path.join(root, version or "*", "dataset_info.json"))
    if not found and not config:
        found = tf.io.gfile.glob(os.path.join(root, "*", version or "*", "dataset_info.json"))
        configs = sorted({_part(f, -3) for f in found})
        if len(configs) > 1:
            raise ValueError(
                f"`data.name` must pick one configuration of {base!r}: {', '.join(configs)}. "
                f"Received: {name!r}. Use for example {base}/{configs[0]}."
            )
    return os.path.dirname(max(found, key=_version)) if found else None


def _part(path, index):
    return os.path.normpath(path).split(os.sep)[index]


def _version(path):
    return [int(n) for n in re.findall(r"\d+", _part(path, -2))]


def _open_builder(name, data_dir, download):
    folder = data_dir or default_data_dir()
    prepared = find_prepared(name, folder)
    if prepared is None and name == digits.NAME:
        prepared = digits.prepare(folder)
    if prepared is None:
        _check_name(name)
        if not download:
            raise ValueError(
                f"The data set must be prepared, or `data.download` be true. Received: {name!r}, "
                f"which is not below {folder}. Add --config.data.download=true, or name the "
                "folder that holds it with --config.data.data_dir=FOLDER."
            )
        prepared = _download(name, folder)
    return tfds.builder_from_directory(prepared)


def _check_name(name):
    known = [*OWN_NAMES, *tfds.list_builders(with_community_datasets=False)]
    base = re.split("[/:]", name)[0]
    if base not in known:
        raise ValueError(
            "`data.name` must be digits, image_folder, csv, a name TFDS knows, or that of a data "
            f"set prepared below `data.data_dir`. Received: {name!r}."
            f"{nearest(base, known) or ' See tfds.list_builders().'}"
        )


def _download(name, folder):
    """Let TFDS prepare a data set; another worker may finish it first."""
    builder = tfds.builder(name, data_dir=folder)
    try:
        builder.download_and_prepare()
    except OSError:
        if find_prepared(name, folder) is None:
            raise
    return str(builder.data_path)


def _pieces(builder, split, rows):
    """The examples of a split in the order of its files, `rows` at a time."""
    if builder.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
        source = records.RecordSource(builder, split)
        whole = batches.IndexedBatches(source, global_batch_size=rows)
        return whole.epoch(shards.Shard()).map(lambda share, _: share)
    return builder.as_dataset(
        split=split,
        as_supervised=True,
        batch_size=rows,
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    ).prefetch(1)


def _load(builder, split, spec, num_examples, example_bytes):
    """Copy a split into arrays piece by piece: it is in memory once, in its own types."""
    loaded = [
        arrays.empty_aligned((num_examples, *s.shape), s.dtype.as_numpy_dtype)
        for s in tf.nest.flatten(spec)
    ]
    rows = max(1, min(num_examples, _CHUNK_BYTES // max(1, example_bytes)))
    start = 0
    for piece in _pieces(builder, split, rows):
        leaves = [t.numpy() for t in tf.nest.flatten(piece)]
        for array, leaf in zip(loaded, leaves, strict=True):
            array[start : start + len(leaf)] = leaf
        start += len(leaves[0])
    if start != num_examples:
        raise ValueError(
            f"The files of a split must hold the examples its information promises. Received: "
            f"{start} of {num_examples} in {split!r} at {builder.data_path}. Prepare it again."
        )
    loaded = tf.nest.pack_sequence_as(spec, loaded)
    for part, what in zip(loaded, ("the input", "the label"), strict=True):
        for leaf in tf.nest.flatten(part):
            checks.check_finite(np.asarray(leaf), f"{what} of {split!r}")
    return loaded
