"""Order and shares of global batches: contract 3, for arrays and a user's datasets."""

import numpy as np
import pytest
import tensorflow as tf

from tfscale.data import arrays, batches, order, rows, shards

CLUSTERS = [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (4, 1), (4, 3)]


def numbered(num_examples, **arguments):
    """Batches whose every example is its own number."""
    return batches.from_arrays(np.arange(num_examples), **arguments)


def shares(made, shard, num_steps, start_step=0):
    dataset = made.dataset(shard, start_step).take(num_steps)
    found = (batches.with_count(element) for element in dataset)
    return [(share.numpy().tolist(), int(count)) for share, count in found]


def global_batches(made, workers, replicas, num_steps):
    """The content of each global batch, and its count, checked to be equal on all workers."""
    all_shares = [
        shares(made, shards.Shard(w, workers, replicas), num_steps) for w in range(workers)
    ]
    found = []
    for step in zip(*all_shares, strict=True):
        counts = {count for _, count in step}
        assert len(counts) == 1
        joined = sum((share for share, _ in step), [])
        assert len(joined) == counts.pop()
        found.append(joined)
    return found


def test_order_is_the_stateless_shuffle_of_seed_epoch_and_position():
    made = numbered(103, global_batch_size=10, shuffle=True, seed=7)
    seen = [shares(made, shards.Shard(), 11, 11 * epoch) for epoch in range(2)]
    for epoch in range(2):
        expected = [
            int(tf.random.experimental.index_shuffle(i, np.array([7, epoch]), 102))
            for i in range(103)
        ]
        assert sum((share for share, _ in seen[epoch]), []) == expected
        assert sorted(expected) == list(range(103))
    assert seen[0] != seen[1]


def test_same_seed_repeats_and_another_differs():
    first, again, other = (
        shares(numbered(64, global_batch_size=8, shuffle=True, seed=s), shards.Shard(), 8)
        for s in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize("policy", shards.POLICIES)
@pytest.mark.parametrize("workers, replicas", CLUSTERS)
def test_workers_and_policy_change_no_global_batch(policy, workers, replicas):
    made = numbered(113, global_batch_size=50, shuffle=True, seed=3, shard_policy=policy)
    one = [
        s
        for s, _ in shares(
            numbered(113, global_batch_size=50, shuffle=True, seed=3), shards.Shard(), 6
        )
    ]
    many = global_batches(made, workers, replicas, 6)
    assert [len(b) for b in many] == [50, 50, 13, 50, 50, 13]
    assert [sorted(b) for b in many] == [sorted(b) for b in one]
    assert sorted(sum(many[:3], [])) == list(range(113))


def test_shares_follow_the_policy_replica_by_replica():
    for policy in shards.POLICIES:
        made = numbered(23, global_batch_size=10, shard_policy=policy, seed=5)
        for step, size in enumerate((10, 10, 3)):
            for worker in range(2):
                shard = shards.Shard(worker, 2, 2)
                positions = shards.worker_positions(size, shard, policy, (5, 0, step))
                share, count = shares(made, shard, 1, step)[0]
                assert (share, count) == ((positions + 10 * step).tolist(), size)


def test_a_batch_smaller_than_the_replicas_goes_to_each_in_whole():
    for policy in shards.POLICIES:
        made = numbered(23, global_batch_size=10, shuffle=True, shard_policy=policy)
        one = shares(made, shards.Shard(), 1, 2)[0][0]
        for worker in range(2):
            share, count = shares(made, shards.Shard(worker, 2, 2), 1, 2)[0]
            assert sorted(share[:3]) == sorted(share[3:]) == sorted(one)
            assert count == 3


@pytest.mark.parametrize("start", [1, 2, 3, 7, 1000])
def test_starting_at_a_step_equals_skipping(start):
    made = numbered(29, global_batch_size=10, shuffle=True, shard_policy="random")
    shard = shards.Shard(1, 2, 1)
    whole = made.dataset(shard).skip(start).take(4)
    skipped = [(s.tolist(), int(c)) for s, c in whole.as_numpy_iterator()]
    assert shares(made, shard, 4, start) == skipped


def test_drop_remainder_gives_full_batches_only():
    made = numbered(29, global_batch_size=10, shuffle=True, drop_remainder=True)
    assert made.steps_per_epoch == 2
    assert {count for _, count in shares(made, shards.Shard(), 6)} == {10}
    assert sum(int(c) for _, c in made.epoch(shards.Shard())) == 29


def test_epoch_keeps_the_original_order_over_workers():
    made = numbered(29, global_batch_size=10, shuffle=True, shard_policy="random")
    passes = [list(made.epoch(shards.Shard(w, 3, 2)).as_numpy_iterator()) for w in range(3)]
    joined = [x for step in zip(*passes, strict=True) for share, _ in step for x in share]
    assert joined == list(range(29))


def test_nested_inputs_and_outputs_keep_their_structure():
    x = {"a": np.zeros((6, 2), np.uint8), "b": [np.zeros(6, np.float16), np.ones((6, 1))]}
    y = (np.arange(6), np.arange(6.0))
    made = batches.from_arrays(x, y, np.ones(6, np.float32), global_batch_size=4)
    spec_x, spec_y, spec_weight = made.element_spec
    assert spec_x["a"] == tf.TensorSpec([None, 2], tf.uint8)
    assert [s.dtype for s in spec_x["b"]] == [tf.float16, tf.float64]
    assert [s.dtype for s in spec_y] == [tf.int64, tf.float64]
    assert spec_weight == tf.TensorSpec([None], tf.float32)
    share, _ = next(iter(made.dataset(shards.Shard(), 1)))
    assert share[1][0].numpy().tolist() == [4, 5]


@pytest.mark.parametrize(
    "y",
    [
        np.array([0, 1, 2, 1]),
        np.array([[0], [1], [2], [1]]),
        np.eye(3, dtype=np.float32)[[0, 1, 2, 1]],
    ],
)
def test_class_weights_multiply_sample_weights(y):
    weights = {0: 2.0, 2: 5.0}
    made = batches.from_arrays(np.zeros(4), y, global_batch_size=4, class_weight=weights)
    assert next(iter(made.epoch(shards.Shard())))[0][2].numpy().tolist() == [2, 1, 5, 1]
    made = batches.from_arrays(
        np.zeros(4), y, np.array([1, 2, 3, 4]), global_batch_size=4, class_weight=weights
    )
    assert next(iter(made.epoch(shards.Shard())))[0][2].numpy().tolist() == [2, 2, 15, 4]
    user = tf.data.Dataset.from_tensor_slices((np.zeros(4), y)).batch(4)
    made = batches.from_dataset(user, class_weight=weights)
    assert next(iter(made.dataset(shards.Shard(1, 2))))[0][2].numpy().tolist() == [1, 1]


@pytest.mark.parametrize("workers, replicas", CLUSTERS)
def test_every_worker_keeps_its_share_of_a_users_batches(workers, replicas):
    user = tf.data.Dataset.range(23).map(lambda i: {"n": i}).batch(12)
    made = batches.from_dataset(user)
    assert (made.steps_per_epoch, made.global_batch_size) == (2, None)
    found = []
    for worker in range(workers):
        shard = shards.Shard(worker, workers, replicas)
        elements = [batches.with_count(e) for e in made.dataset(shard).take(3)]
        assert [int(c) for _, c in elements] == [12, 11, 12]
        for (share, count), first in zip(elements, (0, 12, 0), strict=True):
            positions = shards.worker_positions(int(count), shard, "interleaved") + first
            assert share["n"].numpy().tolist() == positions.tolist()
        found += elements[0][0]["n"].numpy().tolist()
    assert sorted(found) == list(range(12))


def test_a_users_seeded_shuffle_continues_exactly():
    user = tf.data.Dataset.range(20).shuffle(20, seed=4).batch(6)
    made = batches.from_dataset(user)
    undisturbed = shares(made, shards.Shard(), 12)
    user = tf.data.Dataset.range(20).shuffle(20, seed=4).batch(6)
    assert shares(batches.from_dataset(user), shards.Shard(), 5, 7) == undisturbed[7:]
    assert undisturbed[:4] != undisturbed[4:8]


def test_a_users_dataset_of_unknown_length_is_one_epoch():
    made = batches.from_dataset(tf.data.Dataset.range(10).batch(3).filter(lambda b: b[0] < 7))
    assert made.steps_per_epoch is None
    assert len(shares(made, shards.Shard(), 100)) == 3
    assert len(shares(made, shards.Shard(), 100, 1)) == 2


def test_an_infinite_dataset_takes_its_epoch_from_the_caller():
    endless = tf.data.Dataset.range(10).repeat().batch(4)
    made = batches.from_dataset(endless, steps_per_epoch=3)
    assert made.steps_per_epoch == 3
    assert shares(made, shards.Shard(), 2, 3) == [([2, 3, 4, 5], 4), ([6, 7, 8, 9], 4)]
    assert len(list(made.epoch(shards.Shard()))) == 3


def fingerprints(dataset, worker, workers=2):
    elements = batches.from_dataset(dataset).dataset(shards.Shard(worker, workers)).take(6)
    found = [batches.fingerprint_of(element) for element in elements]
    return [None if f is None else int(f) for f in found]


@pytest.mark.parametrize(
    "label",
    [lambda i: i, lambda i: tf.one_hot(i, 23), lambda i: tf.strings.as_string(i)],
)
def test_fingerprints_differ_where_workers_read_other_batches(label):
    def dataset(seed):
        numbers = tf.data.Dataset.range(23).shuffle(23, seed=seed)
        return numbers.map(lambda i: (tf.zeros([4, 4, 1]), label(i))).batch(6)

    one = fingerprints(dataset(1), 0)
    assert one == fingerprints(dataset(1), 1)
    assert all(0 <= f < 2**20 for f in one)
    assert not set(one) & set(fingerprints(dataset(2), 1))
    assert fingerprints(dataset(1), 0, workers=1) == [None] * 6


def test_fingerprints_differ_by_the_number_of_examples():
    images = tf.data.Dataset.from_tensors(tf.zeros([4, 4, 1])).repeat(20)
    full, short = images.batch(20), images.take(19).batch(20)
    assert fingerprints(full, 0)[0] != fingerprints(short, 1)[0]


@pytest.mark.parametrize("start", [0, 3])
def test_a_feed_goes_on_over_epochs_and_begins_anywhere(start):
    made = numbered(10, global_batch_size=4, shuffle=True)
    feed = made.feed(shards.Shard())
    found = []
    for epoch in range(start // 3, 3):
        iterator = feed.begin(epoch)
        assert (made.steps_in(epoch), made.first_step(epoch)) == (3, 3 * epoch)
        found += [next(iterator)[0].numpy().tolist() for _ in range(3)]
        feed.end()
    assert found == [share for share, _ in shares(made, shards.Shard(), 9 - start, start)]
    assert not made.is_open_ended


@pytest.mark.parametrize("kind", ["dense", "ragged", "sparse"])
def test_rows_are_counted_taken_and_sliced_alike(kind):
    dense = np.array([[0, 1, 0], [2, 0, 3], [0, 0, 0], [4, 5, 0]])
    make = {
        "dense": tf.constant,
        "ragged": lambda a: tf.RaggedTensor.from_tensor(a, padding=0),
        "sparse": lambda a: tf.sparse.reorder(tf.sparse.from_dense(a)),
    }[kind]
    batch = {"a": make(dense), "b": None}

    def expect(found, chosen):
        assert found["b"] is None and int(rows.count_rows(found)) == len(chosen)
        parts = (tf.nest.flatten(part, True) for part in (found["a"], make(chosen)))
        for a, b in zip(*parts, strict=True):
            assert a.numpy().tolist() == b.numpy().tolist()

    expect(batch, dense)
    expect(rows.take_rows(batch, tf.constant([3, 0, 3], tf.int64)), dense[[3, 0, 3]])
    expect(rows.slice_rows(batch, 1, 3), dense[1:4])
    expect(rows.slice_rows(batch, 2, 0), dense[2:2])
    graph = tf.function(lambda b: rows.take_rows(b, tf.constant([1], tf.int64)))
    assert graph(batch)["a"].shape[1:].as_list() == ([None] if kind == "ragged" else [3])


def test_positions_in_the_graph_equal_those_of_plain_python():
    for policy in shards.POLICIES:
        for size in (1, 5, 50):
            shard = shards.Shard(1, 2, 3)
            key = (11, 2**40, size)
            found = order.positions(tf.constant(size, tf.int64), shard, policy, key)
            expected = shards.worker_positions(size, shard, policy, key)
            assert found.numpy().tolist() == expected.tolist()


def test_aligned_arrays_are_shared_and_not_copied():
    array = arrays.empty_aligned((100, 3), np.float32)
    array[...] = 1
    tensor = arrays.as_tensor(array)
    array[50, 1] = 7
    assert float(tensor[50, 1]) == 7
    assert arrays.as_tensor(np.ones(5, np.float32)).numpy().tolist() == [1] * 5


@pytest.mark.parametrize("global_batch_size, replicas", [(2, 3), (1, 2)])
def test_fewer_examples_than_replicas_are_refused(global_batch_size, replicas):
    made = numbered(9, global_batch_size=global_batch_size)
    fixed = tf.data.Dataset.range(8).batch(global_batch_size, drop_remainder=True)
    for split in (made, batches.from_dataset(fixed)):
        for ask in (split.dataset, split.epoch):
            with pytest.raises(ValueError, match=f"size={global_batch_size} with {replicas} repl"):
                ask(shards.Shard(0, replicas))


@pytest.mark.parametrize(
    "x, y, words",
    [
        (np.zeros(3), np.zeros(4), "same length.*x: 3, y: 4"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, None, "same length.*x\\['b'\\]: 2"),
        (np.zeros((0, 2)), None, "at least one example"),
        (
            np.array([[1.0, 2.0], [3.0, np.nan]]),
            None,
            "`x` must hold finite.*nan at position .1, 1",
        ),
        (np.zeros(2), np.array([0.0, np.inf]), "`y` must hold finite.*position .1"),
        (3.0, None, "first axis counts examples"),
        ([1.0, object()], None, "numbers or strings"),
    ],
)
def test_bad_arrays_are_refused(x, y, words):
    with pytest.raises(ValueError, match=words):
        batches.from_arrays(x, y)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"global_batch_size": 0}, "at least 1"),
        ({"global_batch_size": 2.5}, "whole number"),
        ({"shard_policy": "blok"}, "Did you mean 'block'"),
        ({"drop_remainder": True, "global_batch_size": 11}, "at least one full batch"),
        ({"class_weight": {0: 1.0}}, "needs labels"),
        ({"sample_weight": np.ones(10)}, "needs `y`"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        batches.from_arrays(np.zeros(10), **arguments)


@pytest.mark.parametrize(
    "make, arguments, words",
    [
        (lambda numbers: numbers, {}, "must be batched"),
        (lambda numbers: numbers.repeat().batch(2), {}, "needs `steps_per_epoch`"),
        (lambda numbers: numbers.take(0).batch(2), {}, "at least one batch"),
        (lambda numbers: numbers.batch(2), {"steps_per_epoch": 0}, "at least 1"),
        (lambda numbers: numbers.batch(2).map(lambda x: (x,) * 4), {}, "tuples of 4"),
        (lambda numbers: numbers.batch(2), {"class_weight": {0: 1}}, "needs labels"),
        (
            lambda numbers: numbers.batch(2).map(lambda x: (x, x)),
            {"class_weight": {-1: 1}},
            "whole and from 0",
        ),
    ],
)
def test_bad_datasets_are_refused(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        batches.from_dataset(make(tf.data.Dataset.range(3)), **arguments)
