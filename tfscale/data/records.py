"""Prepared TFDS files read in pieces: by index where the format allows it, else as a stream.

Owns raw records and their decoding inside the graph. What order and share they are given out
in is the business of `batches.py` and `stream.py`.
"""

import dataclasses
import os

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive records of one file: `num_examples` of them after the first `skip`."""

    path: str
    skip: int
    num_examples: int


class Decoder:
    """Turns serialized records into `(x, y)`, in the graph.

    Args:
        builder: the TFDS builder of the data set.

    Attributes:
        element_spec: spec of one `(x, y)`.
    """

    def __init__(self, builder):
        self._features = builder.info.features
        self._keys = builder.info.supervised_keys
        self.element_spec = self._supervised(self._features.get_tensor_spec())

    def __call__(self, serialized):
        """Return the examples of a vector of records."""

        def one(record):
            return self._supervised(self._features.deserialize_example(record))

        return tf.map_fn(one, serialized, fn_output_signature=self.element_spec)

    def _supervised(self, example):
        """The input and the label of an example, or of its spec."""
        return tf.nest.map_structure(lambda key: example[key], self._keys)


class RecordSource:
    """A split in array_record format, read by index; raw bytes are fetched by C++ threads.

    Args:
        builder: the TFDS builder.
        split: a split of it, slices included.
    """

    def __init__(self, builder, split):
        # Only array_record has files to read at random, and wheels on few platforms.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        info = builder.info.splits[split]
        self.num_examples = info.num_examples
        self._records = ArrayRecordDataSource(info.file_instructions)
        self._decode = Decoder(builder)

    def read(self, indices):
        """Return the examples at these positions (int64 vector), as tensors; for the graph."""
        serialized = tf.numpy_function(self._fetch, [indices], tf.string, stateful=False)
        return self._decode(tf.ensure_shape(serialized, [None]))

    def content(self):
        """Yield bytes that tell this source from another: some of its records."""
        picks = np.unique(np.linspace(0, self.num_examples - 1, 64).astype(np.int64))
        yield from self._fetch(picks)

    def _fetch(self, indices):
        return np.array(self._records.__getitems__(indices.tolist()), dtype=object)


class StreamSource:
    """A split read from its files in order, not by index.

    Args:
        pieces: the files, in order.
        decode: maps a vector of records to `(x, y)`, in the graph.
    """

    def __init__(self, pieces, decode):
        self.pieces, self.decode = list(pieces), decode
        self.num_examples = sum(p.num_examples for p in self.pieces)

    def between(self, begin, end):
        """Return the source of the examples `begin` to `end` of this one."""
        kept, first = [], 0
        for piece in self.pieces:
            start = max(begin - first, 0)
            stop = min(end - first, piece.num_examples)
            if start < stop:
                kept.append(Piece(piece.path, piece.skip + start, stop - start))
            first += piece.num_examples
        return StreamSource(kept, self.decode)

    def joined(self, other):
        """Return the source of the examples of this one, then those of another."""
        return StreamSource(self.pieces + other.pieces, self.decode)

    def content(self):
        """Yield bytes that tell this source from another: files, lengths, first records."""
        for piece in self.pieces:
            yield f"{os.path.basename(piece.path)}[{piece.skip}:+{piece.num_examples}]".encode()
        for record in tf.data.TFRecordDataset(self.pieces[0].path).take(8):
            yield record.numpy()


def open_split(builder, split):
    """Return the source of a split that is too large for memory.

    Args:
        builder: the TFDS builder.
        split: a split of it, slices included.

    Returns:
        A `RecordSource` for array_record files, a `StreamSource` for TFRecord files.

    Raises:
        ValueError: if the files have another format.
    """
    file_format = builder.info.file_format
    if file_format is tfds.core.FileFormat.ARRAY_RECORD:
        return RecordSource(builder, split)
    if file_format is not tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            "A split larger than `data.memory_limit_bytes` must be prepared as array_record or "
            f"tfrecord. Received: {file_format.value} for {builder.info.name!r}. Raise "
            "--config.data.memory_limit_bytes, or prepare it again with file_format='array_record'."
        )
    pieces = []
    for part in builder.info.splits[split].file_instructions:
        pieces.append(Piece(str(part.filename), part.skip, part.take))
    return StreamSource(pieces, Decoder(builder))
