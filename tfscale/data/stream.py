"""Global batches of files too large for memory, which are read as streams.

Owns the order of a stream, how workers divide it, and its resumption. Cut by example, every
worker reads all records and decodes its own: the batches depend on no number of workers. Cut by
file, each worker reads its own files only, and its share of every step follows from their size.
"""

import numpy as np
import tensorflow as tf

from tfscale.data import batches, checks, order, records, shards
from tfscale.names import check_known

SHARDINGS = ("auto", "file", "example")

_IMBALANCE = 1.05  # "auto" cuts by file while no worker has more than this times its even part
_OPEN_FILES = 8  # read in turn while shuffling
_BLOCK = 16  # records in a row from one of them


class StreamBatches(batches.Batches):
    """Global batches of a stream of records.

    Every epoch has `ceil(num_examples / global_batch_size)` steps on every worker, with either
    cut. By example, the batches are full but for the last. By file, each worker spreads its
    examples evenly over the steps, so a global batch may differ from the others by one example
    a worker, no worker runs out early, and every replica has an example in every step.

    Args:
        source: a `records.StreamSource`.
        global_batch_size: examples an update.
        shuffle: a new order of files, and a shuffle through a buffer, every epoch.
        seed: seed of the order.
        drop_remainder: leave out the short last batch; cuts by example only.
        shard_policy: "interleaved", "block" or "random": how files, or the examples of a batch,
            are dealt to the workers.
        sharding: "file", "example", or "auto": by file where the files divide evenly.
        shuffle_buffer: examples shuffled at a time.
        transform: maps a decoded share to a share, in the graph.

    Raises:
        ValueError: if an argument is out of range or the arguments exclude each other.
    """

    def __init__(
        self,
        source,
        *,
        global_batch_size,
        shuffle=False,
        seed=0,
        drop_remainder=False,
        shard_policy="interleaved",
        sharding="auto",
        shuffle_buffer=10_000,
        transform=None,
    ):
        checks.check_global_batch_size(global_batch_size)
        check_known("`data.shard_policy`", [shard_policy], shards.POLICIES)
        check_known("`data.stream_sharding`", [sharding], SHARDINGS)
        if shuffle_buffer < 1:
            raise ValueError(
                "`data.shuffle_buffer` must be at least 1. Received: "
                f"shuffle_buffer={shuffle_buffer}. Use 1 to shuffle files only."
            )
        if drop_remainder and sharding == "file":
            raise ValueError(
                "`data.drop_remainder` needs whole batches, which streams cut by file do not have. "
                "Received: drop_remainder=True with stream_sharding='file'. "
                "Use stream_sharding='example'."
            )
        self.source = source
        self.num_examples = source.num_examples
        self.global_batch_size = int(global_batch_size)
        full, rest = divmod(self.num_examples, self.global_batch_size)
        self.steps_per_epoch = full if drop_remainder else full + bool(rest)
        checks.check_not_empty(self.num_examples, self.steps_per_epoch, self.global_batch_size)
        self._shuffle, self._seed, self._policy = shuffle, seed, shard_policy
        self._sharding = "example" if drop_remainder else sharding
        self._buffer = shuffle_buffer
        self._transform = transform or (lambda share: share)

    def sharding(self, shard):
        """Return "file" or "example": how this many workers divide the stream.

        Raises:
            ValueError: if it is to be cut by file, and some replica would have no example.
        """
        if self._sharding == "example" or shard.num_workers == 1:
            return "example"
        sizes = [_size(self._files_of(w, shard)) for w in range(shard.num_workers)]
        enough = min(sizes) // self.steps_per_epoch >= shard.replicas_per_worker
        if self._sharding == "auto":
            even = self.num_examples / shard.num_workers
            return "file" if enough and max(sizes) <= _IMBALANCE * even else "example"
        if not enough:
            raise ValueError(
                "A stream cut by file must have an example a step for every replica. Received: "
                f"{len(self.source.pieces)} files, which give the {shard.num_workers} workers "
                f"{', '.join(map(str, sizes))} examples for {self.steps_per_epoch} steps. "
                "Use stream_sharding='example', or prepare the data with more files."
            )
        return "file"

    def same_order(self, shard, num_workers):
        """A stream cut by file has other batches on another number of workers."""
        if num_workers == shard.num_workers:
            return True
        before = shards.Shard(0, num_workers, shard.replicas_per_worker)
        return "file" not in (self.sharding(shard), self.sharding(before))

    def dataset(self, shard, start_step=0):
        checks.check_enough_replicas(self.global_batch_size, shard)
        epoch_shares = self._by_file if self.sharding(shard) == "file" else self._by_example
        first_epoch, first_step = divmod(start_step, self.steps_per_epoch)

        def epoch_of(epoch):
            start = tf.where(tf.equal(epoch, first_epoch), np.int64(first_step), np.int64(0))
            return epoch_shares(shard, self._policy, epoch, start)

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        epoch_of = tf.autograph.experimental.do_not_convert(epoch_of)
        return batches.pipeline(epochs.flat_map(epoch_of), self._decode)

    def epoch(self, shard):
        checks.check_enough_replicas(self.global_batch_size, shard)
        return batches.pipeline(self._by_example(shard, "block"), self._decode)

    def _by_example(self, shard, policy, epoch=None, start=0):
        """One epoch of (records of this worker, global count), cut within each batch."""
        kept = self.steps_per_epoch * self.global_batch_size if epoch is not None else -1
        stream = self._records(self.source.pieces, epoch).take(kept)
        stream = stream.skip(start * self.global_batch_size).batch(self.global_batch_size)

        def cut(step, batch):
            count = tf.shape(batch, tf.int64)[0]
            if shard.num_replicas > 1:
                key = (self._seed, 0 if epoch is None else epoch, step + start)
                batch = tf.gather(batch, order.positions(count, shard, policy, key))
            return batch, tf.cast(count, tf.int32)

        cut = tf.autograph.experimental.do_not_convert(cut)
        return stream.enumerate().map(cut, num_parallel_calls=tf.data.AUTOTUNE)

    def _by_file(self, shard, policy, epoch, start):
        """One epoch of (records of this worker, global count), from this worker's files.

        Where n examples are spread over T steps, step s takes floor((s + 1) n / T) - floor(s n /
        T) of them. A step has as many slots as the largest share; slots without an example are
        filled with empty records, which are cut off before decoding.
        """
        steps = self.steps_per_epoch
        sizes = [_size(self._files_of(w, shard)) for w in range(shard.num_workers)]
        mine, slots = sizes[shard.worker], -(-sizes[shard.worker] // steps)
        all_sizes = tf.constant(sizes, tf.int64)
        files = self._files_of(shard.worker, shard)
        examples = self._records(files, epoch).skip(start * mine // steps)

        def share(step, sizes):
            return (step + 1) * sizes // steps - step * sizes // steps

        def choices(step):
            empty = tf.range(np.int64(slots)) >= share(step, mine)
            return tf.data.Dataset.from_tensor_slices(tf.cast(empty, tf.int64))

        def cut(step, batch):
            counts = share(step, all_sizes)
            return batch[: share(step, mine)], tf.cast(tf.reduce_sum(counts), tf.int32)

        numbers = tf.data.Dataset.range(start, steps)
        padding = tf.data.Dataset.from_tensors("").repeat()
        filled = tf.data.Dataset.choose_from_datasets(
            [examples, padding], numbers.flat_map(choices), stop_on_empty_dataset=False
        )
        return tf.data.Dataset.zip(numbers, filled.batch(slots)).map(cut)

    def _files_of(self, worker, shard):
        pieces = self.source.pieces
        picks = shards.share_positions(
            len(pieces), worker, shard.num_workers, self._policy, (self._seed,)
        )
        return [pieces[i] for i in picks]

    def _records(self, pieces, epoch):
        """The serialized records of some files, in the order of an epoch; None: as they stand."""
        paths = tf.constant([p.path for p in pieces])
        skips = tf.constant([p.skip for p in pieces], tf.int64)
        sizes = tf.constant([p.num_examples for p in pieces], tf.int64)
        shuffle = self._shuffle and epoch is not None

        def read(i):
            if shuffle:
                i = order.shuffled(i, self._seed, epoch, len(pieces))
            return tf.data.TFRecordDataset(paths[i]).skip(skips[i]).take(sizes[i])

        numbers = tf.data.Dataset.range(len(pieces))
        if not shuffle:
            return numbers.flat_map(read)
        stream = numbers.interleave(
            read,
            cycle_length=min(len(pieces), _OPEN_FILES),
            block_length=_BLOCK,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        seed = self._seed * np.int64(1_000_003) + epoch
        # `Dataset.shuffle` mixes the process's global seed in, and fails where that is 0. Inside
        # this graph, and nowhere else, the global seed is another: the order is that of `seed`.
        tf.random.set_seed(1)
        return stream.shuffle(self._buffer, seed=seed, reshuffle_each_iteration=False)

    def _decode(self, serialized, count):
        return self._transform(self.source.decode(serialized)), count


def held_out(source: records.StreamSource, num_held_out: int, seed: int):
    """Cut a stream into a training and a validation part.

    The held-out part is one consecutive piece of the split, placed by the seed: it costs no
    reading and depends on no number of workers. TFDS shuffles most splits when preparing them.

    Args:
        source: the training split.
        num_held_out: examples of the validation part.
        seed: places the held-out piece.

    Returns:
        The sources of the training and of the validation part.
    """
    total = source.num_examples
    begin = int(np.random.RandomState(seed % 2**32).randint(total - num_held_out + 1))
    end = begin + num_held_out
    train = source.between(0, begin).joined(source.between(end, total))
    return train, source.between(begin, end)


def _size(pieces):
    return sum(p.num_examples for p in pieces)
