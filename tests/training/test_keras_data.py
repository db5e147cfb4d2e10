"""What `keras.Model.fit` calls data, as `Batches`: raw Keras on one device is the oracle."""

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale.data import batches, shards
from tfscale.training import keras_data

X = np.arange(23, dtype=np.float32).reshape(23, 1)
Y = np.arange(23) % 3


class Recorder(keras.Model):
    """Keeps what raw Keras feeds it, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.epochs_fed = []

    def train_step(self, data):
        self.epochs_fed[-1].append(numbers(data))
        return {"loss": 0.0}


class Scored(Recorder):
    """Keeps what it is scored with, pass by pass."""

    def train_step(self, data):
        self.epochs_fed.append([])
        return {"loss": 0.0}

    def test_step(self, data):
        return super().train_step(data)


class Marker(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.model.epochs_fed.append([])


def numbers(batch):
    """A batch as one table, a row an example."""
    parts = [p for p in tf.nest.flatten(batch) if p is not None]
    dense = []
    for part in parts:
        if isinstance(part, tf.SparseTensor):
            part = tf.sparse.to_dense(part)
        if isinstance(part, tf.RaggedTensor):
            part = part.to_tensor(shape=[None, 4])
        dense.append(np.asarray(part).reshape(part.shape[0], -1).astype(np.float64))
    return np.concatenate(dense, 1).tolist()


def raw_keras(make, epochs, seed=5, **arguments):
    keras.utils.set_random_seed(seed)
    model = Recorder()
    model.compile(run_eagerly=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(*make(), epochs=epochs, verbose=0, callbacks=[Marker()], **arguments)
    return model.epochs_fed


def fed(data, epochs, shard=None, first=(0, 0)):
    """What our batches feed one worker, as the loop asks for it."""
    shard = shard or shards.Shard()
    feed, found = data.feed(shard), []
    for epoch in range(first[0], epochs):
        position = first[1] if epoch == first[0] else 0
        iterator, exhausted = feed.begin(epoch, position), False
        found.append([])
        while position != data.steps_in(epoch):
            element = next(iterator, None)
            if element is None:
                exhausted = True
                break
            share, count = batches.with_count(element)
            found[-1].append((numbers(share), int(count)))
            position += 1
        feed.end(exhausted)
    return found


def ours(make, epochs, shard=None, seed=5, first=(0, 0), **arguments):
    keras.utils.set_random_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fed(keras_data.training_batches(*make(), **arguments), epochs, shard, first)


def whole(workers):
    """Global batches of several workers' shares, their examples in no order."""
    epochs = []
    for epoch in zip(*workers, strict=True):
        steps = []
        for step in zip(*epoch, strict=True):
            joined = [row for share, _ in step for row in share]
            assert {count for _, count in step} == {len(joined)}
            steps.append(sorted(joined))
        epochs.append(steps)
    return epochs


class Numbered(keras.utils.PyDataset):
    """Batches of X; the order of the examples is drawn anew at every end of an epoch."""

    def __init__(self, num_batches=6, **arguments):
        super().__init__(**arguments)
        self._count, self.order, self.heard = num_batches, np.arange(23), []

    @property
    def num_batches(self):
        return self._count

    def __getitem__(self, i):
        rows = self.order[4 * (i % 6) : 4 * (i % 6) + 4]
        return X[rows], Y[rows]

    def on_epoch_begin(self):
        self.heard.append("begin")

    def on_epoch_end(self):
        self.heard.append("end")
        if self._count:  # without end, Keras reads ahead of this while it trains
            random.shuffle(self.order)


def dataset(seed=None):
    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(23, seed=seed).batch(4)


def generator(num_batches=None):
    step = 0
    while step != num_batches:
        rows = np.arange(4 * step, 4 * step + 4) % 23
        yield X[rows], Y[rows]
        step += 1


CASES = {
    "arrays": (lambda: (X, Y), {}),
    "arrays in order": (lambda: (X, Y), {"shuffle": False, "batch_size": 5}),
    "arrays within batches": (lambda: (X, Y), {"shuffle": "batch", "batch_size": 5}),
    "one array": (lambda: (X.astype(np.float64),), {"batch_size": 23}),
    "arrays, cut short": (lambda: (X, Y), {"batch_size": 5, "steps_per_epoch": 2}),
    "arrays, steps alone": (lambda: (X, Y), {"steps_per_epoch": 7}),
    "class weights": (lambda: (X, Y), {"batch_size": 5, "class_weight": {0: 2.0, 2: 0.5}}),
    "dataset": (lambda: (dataset(),), {}),
    "seeded dataset": (lambda: (dataset(3),), {}),
    "dataset, cut short": (lambda: (dataset(),), {"steps_per_epoch": 4}),
    "dataset, too many steps": (lambda: (dataset(),), {"steps_per_epoch": 9}),
    "dataset, even": (lambda: (dataset(),), {"steps_per_epoch": 3}),
    "repeated dataset": (lambda: (dataset().repeat(),), {"steps_per_epoch": 4}),
    "dataset of unknown length": (lambda: (dataset().filter(lambda x, y: True),), {}),
    "dataset of unknown length, cut short": (
        lambda: (dataset().filter(lambda x, y: True),),
        {"steps_per_epoch": 4},
    ),
    "dataset with class weights": (lambda: (dataset(),), {"class_weight": {0: 2.0, 2: 0.5}}),
    "PyDataset": (lambda: (Numbered(),), {"shuffle": False}),
    "shuffled PyDataset": (lambda: (Numbered(),), {"shuffle": True}),
    "PyDataset without workers": (lambda: (Numbered(workers=0),), {"class_weight": {0: 2.0}}),
    "PyDataset with threads": (lambda: (Numbered(workers=2),), {"shuffle": False}),
    "PyDataset without end": (lambda: (Numbered(None),), {"steps_per_epoch": 4}),
    "generator": (lambda: (generator(),), {"steps_per_epoch": 4}),
    "generator that ends": (lambda: (generator(6),), {}),
    "generator that ends early": (lambda: (generator(6),), {"steps_per_epoch": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_batches_and_their_order_are_those_of_keras_on_one_device(case):
    make, arguments = CASES[case]
    expected = raw_keras(make, 3, **arguments)
    assert sum(map(len, expected)) >= 3
    alone = [[share for share, _ in epoch] for epoch in ours(make, 3, **arguments)]
    assert alone == expected
    workers = [ours(make, 3, shards.Shard(w, 2), **arguments) for w in range(2)]
    assert whole(workers) == [[sorted(batch) for batch in epoch] for epoch in expected]


@pytest.mark.parametrize(
    "case",
    [
        "arrays within batches",
        "arrays, cut short",
        "dataset, cut short",
        "dataset of unknown length, cut short",
        "shuffled PyDataset",
        "PyDataset with threads",
        "generator that ends early",
    ],
)
def test_starting_at_any_step_gives_what_would_have_followed(case):
    make, arguments = CASES[case]
    shard = shards.Shard(1, 2)
    undisturbed = ours(make, 3, shard, **arguments)
    for epoch, position in ((0, 1), (1, 1), (2, 0)):
        expected = [undisturbed[epoch][position:], *undisturbed[epoch + 1 :]]
        assert ours(make, 3, shard, first=(epoch, position), **arguments) == expected


def test_hooks_of_a_py_dataset_are_called_as_keras_calls_them():
    theirs, mine = Numbered(), Numbered()
    raw_keras(lambda: (theirs,), 2)
    ours(lambda: (mine,), 2)
    assert mine.heard == theirs.heard == ["end", "begin", "end", "begin", "end"]


def scored(data, shard=None):
    found = [batches.with_count(e) for e in data.epoch(shard or shards.Shard())]
    data.end_epoch()
    return [numbers(share) for share, _ in found]


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: (X, Y),
        lambda: (dataset(3),),
        lambda: (Numbered(),),
        lambda: (generator(6),),
        lambda: (tf.RaggedTensor.from_row_lengths(np.arange(23.0), [2] * 11 + [1]), Y[:12]),
    ],
)
def test_scoring_reads_what_keras_evaluates_in_its_order_twice(make, steps):
    keras.utils.set_random_seed(5)
    given, model = make(), Scored()
    model.compile(run_eagerly=True)
    model.fit(
        X[:1],
        epochs=2,
        verbose=0,
        validation_data=given if len(given) > 1 else given[0],
        validation_steps=steps,
        validation_batch_size=4,
    )
    joined = [[], []]
    for worker in range(2):
        keras.utils.set_random_seed(5)
        data = keras_data.scoring_batches(*make(), steps=steps, batch_size=4)
        passes = [scored(data, shards.Shard(worker, 2)) for _ in range(2)]
        joined = [
            [*map(lambda a, b: a + b, whole or [[]] * len(mine), mine)]
            for whole, mine in zip(joined, passes, strict=True)
        ]
    expected = model.epochs_fed
    if steps and "generator" in str(given[0]):  # Keras reads ahead of the steps it takes
        joined, expected = joined[:1], expected[:1]
    assert joined == expected


def diagonal():
    return tf.sparse.from_dense(np.diag(np.arange(1.0, 12)))


def slices(*parts):
    return tf.data.Dataset.from_tensor_slices(parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (tf.ragged.constant([[1.0], [2, 3], [], [4, 5, 6]] * 3)[:11], Y[:11]),
        lambda: (diagonal(), Y[:11]),
        lambda: ({"a": diagonal(), "b": X[:11]},),
        lambda: (slices(diagonal(), Y[:11]).batch(4),),
        lambda: (slices(np.arange(11)).map(lambda i: tf.range(i)).ragged_batch(4),),
        lambda: ([X[:11], {"c": Y[:11]}], (Y[:11], X[:11])),
        lambda: ([X[:11], None], Y[:11]),
        lambda: (np.array(list("abcdefghijk"), object),),
    ],
)
def test_ragged_sparse_nested_and_absent_parts_are_shared(make):
    data = keras_data.training_batches(*make(), batch_size=4, shuffle=False)
    alone = [share for share, _ in map(batches.with_count, data.dataset(shards.Shard()))]
    tf.nest.map_structure(
        lambda spec, part: part is None or spec.is_compatible_with(part) or pytest.fail(str(spec)),
        data.element_spec,
        alone[0],
    )
    for worker in range(2):
        for element, expected in zip(data.epoch(shards.Shard(worker, 2)), alone, strict=True):
            share, count = batches.with_count(element)
            assert len(tf.nest.flatten(share)) == len(tf.nest.flatten(expected))
            half = (
                slice(0, (int(count) + 1) // 2)
                if worker == 0
                else slice((int(count) + 1) // 2, None)
            )
            assert text(share) == [part[half] for part in text(expected)]


def text(share):
    parts = [p for p in tf.nest.flatten(share) if p is not None]
    dense = [tf.sparse.to_dense(p) if isinstance(p, tf.SparseTensor) else p for p in parts]
    return [p.to_list() if isinstance(p, tf.RaggedTensor) else p.numpy().tolist() for p in dense]


def test_optionals_of_keras_become_none():
    def absent():
        while True:
            yield {"a": X[:5], "b": None}, Y[:5]

    for shard in (shards.Shard(), shards.Shard(1, 2)):
        data = keras_data.training_batches(absent(), steps_per_epoch=2, shuffle=False)
        share, _ = batches.with_count(next(data.feed(shard).begin(0)))
        assert share[0]["b"] is None and share[0]["a"].shape[1] == 1
        assert data.element_spec[0]["b"] is None


def fingerprints(make, worker=0, workers=2, **arguments):
    data = keras_data.training_batches(*make(), **arguments)
    iterator = data.feed(shards.Shard(worker, workers)).begin(0)
    return [batches.fingerprint_of(next(iterator)) for _ in range(4)]


@pytest.mark.parametrize("make", [lambda: (X, Y), lambda: (dataset(),), lambda: (Numbered(),)])
def test_fingerprints_tell_whether_workers_read_the_same_batches(make):
    found = []
    for worker, seed in ((0, 1), (1, 1), (1, 2)):
        keras.utils.set_random_seed(seed)
        found.append([int(f) for f in fingerprints(make, worker, batch_size=4)])
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))
    assert all(0 <= f < 2**20 for f in found[0])
    assert fingerprints(make, workers=1, batch_size=4) == [None] * 4


def test_fingerprints_overlook_images_that_were_changed_at_random():
    def augmented(seed):
        noise = tf.random.Generator.from_seed(seed)
        images = tf.data.Dataset.from_tensor_slices((np.zeros((23, 4, 4, 1), np.float32), Y))
        return images.map(lambda x, y: (x + noise.normal([4, 4, 1]), y)).batch(4)

    one = fingerprints(lambda: (augmented(1),))
    assert list(map(int, one)) == list(map(int, fingerprints(lambda: (augmented(2),))))


@pytest.mark.parametrize("shard", [shards.Shard(), shards.Shard(1, 2), shards.Shard(0, 2, 2)])
def test_one_batch_is_cut_like_any_other(shard):
    batch = keras_data.one_batch({"x": X[:5]}, Y[:5], class_weight={0: 3.0})
    (x, y, weight), count = batch.element(shard)
    mine = shards.worker_positions(5, shard, "block")
    assert int(count) == 5
    assert x["x"].numpy().tolist() == X[mine].tolist()
    assert weight.numpy().tolist() == [3.0 if label == 0 else 1.0 for label in Y[mine]]
    assert batch.element_spec[1] == tf.TensorSpec([None], tf.int64)


def test_validation_is_split_off_the_end_as_keras_does():
    (x, y, weight), (val_x, val_y, _) = keras_data.split_validation(X, Y, None, 0.3)
    assert (len(x), len(val_x)) == (16, 7) and weight is None
    assert np.concatenate([y, val_y]).tolist() == Y.tolist()


def test_the_line_about_sharing_names_kind_size_workers_and_policy():
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.FILE
    data = keras_data.training_batches(dataset().with_options(options), shuffle=False)
    line = keras_data.describe(data, shards.Shard(0, 3))
    assert "tf.data.Dataset" in line and "3 worker" in line and "FILE" in line
    line = keras_data.describe(keras_data.training_batches(X), shards.Shard(0, 2, 2))
    assert "arrays" in line and "32 examples" in line and "4 replica" in line


def mirrored():
    return tf.distribute.MirroredStrategy(["CPU:0"])


@pytest.mark.parametrize(
    "make, arguments, words",
    [
        (lambda: mirrored().experimental_distribute_dataset(dataset()), {}, "dataset itself"),
        (
            lambda: mirrored().distribute_datasets_from_function(lambda _: dataset()),
            {},
            "dataset itself",
        ),
        (lambda: tf.data.Dataset.range(3), {}, "must be batched"),
        (lambda: dataset().repeat(), {}, "needs `steps_per_epoch`"),
        (lambda: Numbered(None), {}, "needs `steps_per_epoch`"),
        (lambda: dataset().take(0), {}, "at least one batch"),
        (lambda: np.zeros((0, 2)), {}, "at least one example"),
        (lambda: object(), {}, "Unrecognized data type"),
        (lambda: dataset(), {"y": Y}, "should not be passed"),
        (lambda: X, {"y": Y[:3]}, "cardinality"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        keras_data.training_batches(make(), **arguments)


def test_fewer_examples_than_replicas_are_refused_but_for_the_last_batch():
    with pytest.raises(ValueError, match="size=2 with 3 replicas"):
        keras_data.training_batches(X, batch_size=2).feed(shards.Shard(0, 3)).begin(0)
    found = fed(keras_data.training_batches(X, batch_size=22), 1, shards.Shard(1, 3))
    assert [len(share) for share, _ in found[0]] == [7, 1]
