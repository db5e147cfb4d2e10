"""Data that several tests read: the digits prepared as several files, in two formats."""

import pytest

from tfscale.data import digits


@pytest.fixture(scope="session")
def sharded_digits(tmp_path_factory):
    """A TFDS folder with the digits as five TFRecord files a split."""
    folder = tmp_path_factory.mktemp("tfrecord")
    digits.prepare(str(folder), num_shards=5)
    return str(folder)


@pytest.fixture(scope="session")
def record_digits(tmp_path_factory):
    """A TFDS folder with the digits as three array_record files a split."""
    pytest.importorskip("array_record")
    folder = tmp_path_factory.mktemp("array_record")
    digits.prepare(str(folder), num_shards=3, file_format="array_record")
    return str(folder)
