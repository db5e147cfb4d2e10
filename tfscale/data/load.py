"""From the data section of a run to its splits: the one door to all sources.

Owns the choice of the source, the held-out validation data, the transforms measured on the
training split, and the fingerprint of what is trained on.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfscale.config import DataConfig
from tfscale.data import arrays, batches, checks, idx, records, shards, stream, transforms
from tfscale.names import check_known

_MEASURE_EXAMPLES = 1024  # looked at together while mean and deviation are measured


@dataclasses.dataclass
class Splits:
    """The data of a run.

    Attributes:
        train: what is trained on.
        validation: what is scored during training, or None.
        num_classes: classes of the label; None for a regression.
        class_names: what the source calls them; () where it has no names.
        input_shape: shape of one example's x after the transforms, such as (8, 8, 1); a nest of
            shapes where x is a nest.
        fingerprint: short hash of the training data (name, size, a sample of the content), the
            same on all workers.
        read_test: opens the test split; see `test`.
    """

    train: batches.Batches
    validation: batches.Batches | None
    num_classes: int | None
    input_shape: Any
    fingerprint: str
    read_test: Callable[[], batches.Batches | None]
    class_names: tuple[str, ...] = ()

    def test(self) -> batches.Batches | None:
        """Return the test split, which is read now for the first time; None where there is none."""
        return self.read_test()


def load(config: DataConfig) -> Splits:
    """Open the data of a run; everything that can be refused without training is refused here.

    Args:
        config: the data section. `name` is "digits", "image_folder", "csv" or a TFDS name. For
            "mnist", "fashion_mnist" and "kmnist" `data_dir` may also be a folder of the original
            idx files.

    Returns:
        The splits; the test split is checked but not read.

    Raises:
        ValueError: naming what is wrong with the configuration or the data, and the way out.
    """
    _check(config)
    collection = _open(config)
    for split in (config.train_split, config.validation_split, config.test_split):
        if split:
            collection.require(split)
    num_classes = config.num_classes or collection.num_classes
    names = tuple(collection.classes)
    train = collection.open(config.train_split)
    fingerprint = _fingerprint(config, train)
    train, train_subset, held_out, held_out_subset = _hold_out(config, train)
    if config.validation_split:
        held_out = collection.open(config.validation_split)
    for source in (train, held_out):
        _check_labels(source, num_classes)
    transform = _transform(config, collection, train, train_subset, num_classes)

    def read_test():
        if not config.test_split:
            return None
        source = collection.open(config.test_split)
        _check_labels(source, num_classes)
        return _batches(config, source, transform)

    trained = _batches(config, train, transform, train_subset, training=True)
    validation = _batches(config, held_out, transform, held_out_subset) if held_out else None
    return Splits(
        train=trained,
        validation=validation,
        num_classes=num_classes,
        input_shape=tf.nest.map_structure(lambda s: tuple(s.shape[1:]), trained.element_spec[0]),
        fingerprint=fingerprint,
        read_test=read_test,
        class_names=names if len(names) == num_classes else (),
    )


def _check(config):
    checks.check_global_batch_size(config.global_batch_size)
    check_known("`data.shard_policy`", [config.shard_policy], shards.POLICIES)
    check_known("`data.stream_sharding`", [config.stream_sharding], stream.SHARDINGS)
    checks.check_fraction(config.validation_fraction)
    transforms.check_names(config.transforms, config.transform_arguments)
    if not config.train_split:
        raise ValueError(
            "`data.train_split` must name a split. Received: an empty name. Use 'train'."
        )
    if config.validation_split and config.validation_fraction:
        raise ValueError(
            "Validation data is a split of its own or a part of the training split. Received: "
            f"validation_split={config.validation_split!r} with "
            f"validation_fraction={config.validation_fraction}. Set one of them."
        )
    if config.num_classes < 0:
        raise ValueError(
            "`data.num_classes` must be at least 0. Received: "
            f"num_classes={config.num_classes}. Use 0 for what the source says."
        )


def _open(config):
    """The collection of splits that a configuration names."""
    # Each source is imported when it is used: TFDS takes a second, and not all need it.
    if config.name == "image_folder":
        from tfscale.data import folder

        return folder.FolderCollection(config.data_dir, config.train_split, config.image_size)
    if config.name == "csv":
        from tfscale.data import tables

        return tables.CsvCollection(
            config.data_dir, config.feature_columns, config.label_column, config.num_classes
        )
    if config.name in idx.NAMES and config.data_dir and idx.found(config.data_dir):
        return idx.IdxCollection(config.data_dir)
    from tfscale.data import tfds_source

    return tfds_source.TfdsCollection(
        config.name, config.data_dir, config.download, config.memory_limit_bytes
    )


def _hold_out(config, source):
    """The training source and subset, then those of the validation data; None for all or none."""
    if not config.validation_fraction:
        return source, None, None, None
    total = source.num_examples
    num_held_out = max(1, round(total * config.validation_fraction))
    if num_held_out >= total:
        raise ValueError(
            "`data.validation_fraction` must leave examples to train on. Received: "
            f"validation_fraction={config.validation_fraction} of {total} examples. Use less."
        )
    if isinstance(source, records.StreamSource):
        train, held_out = stream.held_out(source, num_held_out, config.seed)
        return train, None, held_out, None
    order = np.random.RandomState(config.seed % 2**32).permutation(total)
    return source, np.sort(order[num_held_out:]), source, np.sort(order[:num_held_out])


def _batches(config, source, transform, subset=None, training=False):
    """Batches of a source; only those that are trained on are shuffled or drop a remainder."""
    arguments = {
        "global_batch_size": config.global_batch_size,
        "shuffle": config.shuffle and training,
        "seed": config.seed,
        "drop_remainder": config.drop_remainder and training,
        "shard_policy": config.shard_policy,
        "transform": transform,
    }
    if isinstance(source, records.StreamSource):
        return stream.StreamBatches(
            source,
            sharding=config.stream_sharding,
            shuffle_buffer=config.shuffle_buffer,
            **arguments,
        )
    return batches.IndexedBatches(source, subset=subset, **arguments)


def _transform(config, collection, train, subset, num_classes):
    """The transforms, with what they need to know measured on the training examples."""

    def whole(transform=None):
        large = dataclasses.replace(config, global_batch_size=_MEASURE_EXAMPLES)
        return _batches(large, train, transform, subset)

    def measure(before):
        return transforms.measure(whole(before).epoch(shards.Shard()))

    about = transforms.About(
        input_spec=tf.nest.map_structure(
            lambda s: tf.TensorSpec(s.shape[1:], s.dtype), whole().element_spec[0]
        ),
        num_classes=num_classes,
        largest_value=collection.largest_value,
        measure=measure,
    )
    return transforms.build(config.transforms, config.transform_arguments, about)


def _check_labels(source, num_classes):
    """Refuse labels outside the classes where they are in memory and can be looked at."""
    if num_classes and isinstance(source, arrays.ArraySource) and tf.is_tensor(source.elements[1]):
        checks.check_labels(source.elements[1].numpy(), num_classes)


def _fingerprint(config, source):
    digest = hashlib.sha256(f"{config.name}/{config.train_split}".encode())
    digest.update(f"{source.num_examples}/{config.validation_fraction}/{config.seed}".encode())
    for part in source.content():
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
