"""Streams and random access of prepared files: contract 3 and its limits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale.config import DataConfig
from tfscale.data import batches, load, records, shards, stream

NUM_TRAIN = 1437


def digits_stream(folder, **arguments):
    config = DataConfig(data_dir=folder, memory_limit_bytes=0, seed=3, **arguments)
    return load.load(config)


def images(dataset):
    """Each share as a list of bytes, one an image, with the global count."""
    return [
        ([image.tobytes() for image in share[0]], int(count))
        for share, count in dataset.as_numpy_iterator()
    ]


@pytest.fixture(scope="module")
def all_images(sharded_digits):
    """Every training image by its bytes, from memory, in the order of the files."""
    made = load.load(DataConfig(data_dir=sharded_digits)).train
    return [i for share, _ in images(made.epoch(shards.Shard())) for i in share]


@pytest.mark.parametrize("sharding", ["file", "example"])
@pytest.mark.parametrize(
    "policy, workers, replicas",
    [("interleaved", 1, 1), ("block", 2, 1), ("random", 3, 2), ("interleaved", 4, 1)],
)
def test_streams_are_disjoint_complete_and_equally_long(
    sharded_digits, all_images, sharding, policy, workers, replicas
):
    made = digits_stream(sharded_digits, stream_sharding=sharding, shard_policy=policy).train
    assert isinstance(made, stream.StreamBatches)
    passes = [
        images(made.dataset(shards.Shard(w, workers, replicas)).take(made.steps_per_epoch))
        for w in range(workers)
    ]
    assert made.steps_per_epoch == 45
    seen = [image for one in passes for share, _ in one for image in share]
    assert sorted(seen) == sorted(all_images)
    for step in zip(*passes, strict=True):
        counts = {count for _, count in step}
        assert counts == {sum(len(share) for share, _ in step)}
        assert counts.pop() <= 32 + workers


@pytest.mark.parametrize("sharding", ["file", "example"])
@pytest.mark.parametrize("workers", [1, 3])
def test_streams_continue_exactly_on_the_same_workers(sharded_digits, sharding, workers):
    shard = shards.Shard(workers - 1, workers)
    made = digits_stream(sharded_digits, stream_sharding=sharding, shuffle_buffer=200).train
    undisturbed = images(made.dataset(shard).take(100))
    again = digits_stream(sharded_digits, stream_sharding=sharding, shuffle_buffer=200).train
    for start in (44, 70):
        assert images(again.dataset(shard, start).take(100 - start)) == undisturbed[start:]
    assert undisturbed[:45] != undisturbed[45:90]


def test_cut_by_example_the_batches_depend_on_no_number_of_workers(sharded_digits):
    made = digits_stream(sharded_digits, stream_sharding="example").train
    one = images(made.dataset(shards.Shard()).take(46))
    three = [images(made.dataset(shards.Shard(w, 3)).take(46)) for w in range(3)]
    for (whole, count), *parts in zip(one, *three, strict=True):
        assert sorted(whole) == sorted(sum((share for share, _ in parts), []))
        assert all(count == c for _, c in parts)


def test_cut_by_file_a_worker_reads_its_own_files_only(sharded_digits, all_images):
    made = digits_stream(sharded_digits, stream_sharding="file", shard_policy="block").train
    sizes = [p.num_examples for p in made.source.pieces]
    mine = images(made.dataset(shards.Shard(0, 5)).take(45))
    assert sorted(sum((s for s, _ in mine), [])) == sorted(all_images[: sizes[0]])
    lengths = [len(s) for s, _ in mine]
    assert max(lengths) - min(lengths) <= 1


def test_auto_cuts_by_file_where_files_divide_evenly(sharded_digits):
    made = digits_stream(sharded_digits).train
    assert made.sharding(shards.Shard(0, 5)) == "file"
    assert made.sharding(shards.Shard(0, 2)) == "example"
    assert digits_stream(sharded_digits, drop_remainder=True).train.sharding(
        shards.Shard(0, 5)
    ) == ("example")


def test_by_file_every_replica_has_an_example_in_every_step(sharded_digits):
    made = digits_stream(sharded_digits, stream_sharding="file").train
    with pytest.raises(ValueError, match="5 files, which give the 7 workers.*'example'"):
        made.dataset(shards.Shard(0, 7))
    with pytest.raises(ValueError, match="every replica"):
        made.dataset(shards.Shard(0, 4, 7))
    auto = digits_stream(sharded_digits).train
    assert auto.sharding(shards.Shard(0, 7)) == auto.sharding(shards.Shard(0, 4, 7)) == "example"


def test_stream_drops_the_remainder_and_epoch_keeps_the_order(sharded_digits, all_images):
    made = digits_stream(sharded_digits, drop_remainder=True).train
    assert made.steps_per_epoch == 44
    shares = images(made.dataset(shards.Shard(1, 2)).take(88))
    assert {(len(s), c) for s, c in shares} == {(16, 32)}
    passes = [images(made.epoch(shards.Shard(w, 2))) for w in range(2)]
    joined = [i for step in zip(*passes, strict=True) for share, _ in step for i in share]
    assert joined == all_images


def test_held_out_part_of_a_stream_is_disjoint_and_seeded(sharded_digits, all_images):
    splits = digits_stream(sharded_digits, validation_fraction=0.2)
    parts = [
        [i for share, _ in images(part.epoch(shards.Shard())) for i in share]
        for part in (splits.train, splits.validation)
    ]
    assert [len(p) for p in parts] == [NUM_TRAIN - 287, 287]
    assert sorted(parts[0] + parts[1]) == sorted(all_images)


def test_slices_of_a_split_are_streamed(sharded_digits, all_images):
    made = digits_stream(sharded_digits, train_split="train[10%:70%]").train
    whole = [i for share, _ in images(made.epoch(shards.Shard())) for i in share]
    assert whole == all_images[144:1006]


def test_array_record_files_are_read_at_random(record_digits, all_images):
    splits = digits_stream(record_digits, validation_fraction=0.1)
    assert isinstance(splits.train, batches.IndexedBatches)
    assert isinstance(splits.train.source, records.RecordSource)
    memory = load.load(DataConfig(data_dir=record_digits, seed=3, validation_fraction=0.1))
    for worker in range(2):
        shard = shards.Shard(worker, 2, 2)
        assert images(splits.train.dataset(shard, 30).take(20)) == images(
            memory.train.dataset(shard, 30).take(20)
        )
    whole = [i for share, _ in images(memory.train.epoch(shards.Shard())) for i in share]
    held = [i for share, _ in images(memory.validation.epoch(shards.Shard())) for i in share]
    assert sorted(whole + held) == sorted(all_images)


def test_impossible_streams_are_refused(sharded_digits):
    with pytest.raises(ValueError, match="stream_sharding='example'"):
        digits_stream(sharded_digits, stream_sharding="file", drop_remainder=True)
    with pytest.raises(ValueError, match="Did you mean 'file'"):
        digits_stream(sharded_digits, stream_sharding="files")
    with pytest.raises(ValueError, match="shuffle_buffer=0"):
        digits_stream(sharded_digits, shuffle_buffer=0)
    with pytest.raises(ValueError, match="with 40 replicas"):
        digits_stream(sharded_digits).train.dataset(shards.Shard(0, 40))


def test_pieces_are_cut_by_example():
    source = records.StreamSource([records.Piece("a", 2, 5), records.Piece("b", 0, 5)], None)
    assert source.between(3, 8).pieces == [records.Piece("a", 5, 2), records.Piece("b", 0, 3)]
    train, held = stream.held_out(source, 4, seed=1)
    assert (train.num_examples, held.num_examples) == (6, 4)
    assert np.sum([p.num_examples for p in train.pieces]) == 6


def test_files_are_read_in_an_order_of_their_own_every_epoch(sharded_digits, all_images):
    made = digits_stream(sharded_digits, shuffle_buffer=1, global_batch_size=NUM_TRAIN).train
    epochs = [share for share, _ in images(made.dataset(shards.Shard()).take(3))]
    assert len({share[0] for share in epochs}) > 1
    assert all(sorted(share) == sorted(all_images) for share in epochs)


def test_the_order_of_a_stream_is_its_own_whatever_the_global_seed(sharded_digits):
    orders = []
    for seed in (0, 7, None):
        if seed is None:
            tf.random.set_seed(1234)
        else:
            keras.utils.set_random_seed(seed)
        made = digits_stream(sharded_digits, shuffle_buffer=200).train
        orders.append(images(made.dataset(shards.Shard()).take(50)))
    assert orders[0] == orders[1] == orders[2]


def test_only_a_stream_cut_by_file_depends_on_the_number_of_workers(sharded_digits):
    by_file = digits_stream(sharded_digits, stream_sharding="file").train
    by_example = digits_stream(sharded_digits, stream_sharding="example").train
    two = shards.Shard(0, 2)
    assert by_file.same_order(two, 2) and not by_file.same_order(two, 1)
    assert not by_file.same_order(shards.Shard(), 2)
    assert by_example.same_order(two, 1)
    assert batches.from_arrays(np.zeros(9)).same_order(two, 1)
