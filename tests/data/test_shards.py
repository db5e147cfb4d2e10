"""Shares of a global batch: arithmetic without TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest

from tfscale.data import shards

COUNTS = (1, 2, 3, 4, 7)


@pytest.mark.parametrize("policy", shards.POLICIES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("num_examples", [0, 1, 5, 41, 50])
def test_shares_are_disjoint_cover_the_batch_and_differ_by_at_most_one(policy, count, num_examples):
    shares = [
        list(shards.share_positions(num_examples, i, count, policy, (3, 1, 4)))
        for i in range(count)
    ]
    assert sorted(sum(shares, [])) == list(range(num_examples))
    sizes = [len(s) for s in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [shards.share_size(num_examples, i, count) for i in range(count)]


def test_policies_are_what_their_names_say():
    assert list(shards.share_positions(7, 1, 3, "interleaved")) == [1, 4]
    assert list(shards.share_positions(7, 1, 3, "block")) == [3, 4]


def test_random_shares_depend_on_the_key_alone():
    first = shards.share_positions(100, 0, 2, "random", (0, 0, 5))
    assert np.array_equal(first, shards.share_positions(100, 0, 2, "random", (0, 0, 5)))
    assert not np.array_equal(first, shards.share_positions(100, 0, 2, "random", (0, 0, 6)))
    assert not np.array_equal(np.sort(first), np.arange(50))


def test_mix_is_one_to_one():
    numbers = np.random.RandomState(0).randint(0, 2**32, 100_000, dtype=np.uint32)
    assert len(np.unique(shards.mix(numbers))) == len(np.unique(numbers))


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_share_splits_among_local_replicas_as_among_all(workers, replicas):
    for num_examples in range(60):
        for worker in range(workers):
            shard = shards.Shard(worker, workers, replicas)
            local = sum(
                shards.share_size(num_examples, r, shard.num_replicas) for r in shard.replicas
            )
            assert [shards.share_size(local, i, replicas) for i in range(replicas)] == [
                shards.share_size(num_examples, r, shard.num_replicas) for r in shard.replicas
            ]


@pytest.mark.parametrize(
    "arguments, words",
    [((2, 2), "below `num_workers`"), ((0, 0), "at least 1"), ((0, 1, 0), "at least 1")],
)
def test_impossible_shards_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        shards.Shard(*arguments)


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match="below `count`"):
        shards.share_size(5, 3, 3)
    with pytest.raises(ValueError, match="Received: policy='blok'"):
        shards.share_positions(5, 0, 3, "blok")
    with pytest.raises(ValueError, match="needs a `key`"):
        shards.share_positions(5, 0, 3, "random")


def test_a_batch_smaller_than_the_replicas_goes_to_each_in_whole():
    for worker in range(2):
        shard = shards.Shard(worker, 2, 2)
        assert shards.worker_positions(3, shard, "random", (0,)).tolist() == [0, 1, 2] * 2


def test_importing_shards_imports_no_tensorflow():
    code = "import sys, tfscale.data, tfscale.data.shards; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
