"""The one door to all sources: what comes out of each, and what is refused."""

import gzip
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfscale.config import DataConfig
from tfscale.data import digits, digits_file, folder, load, shards, tfds_source

RANDOM = np.random.RandomState(0)


def whole(made):
    """x and y of a split in its original order."""
    parts = [share for share, _ in made.epoch(shards.Shard()).as_numpy_iterator()]
    return tuple(np.concatenate([p[i] for p in parts]) for i in range(2))


# Digits


def test_digits_are_the_embedded_file_shuffled_and_split(sharded_digits):
    splits = load.load(DataConfig(data_dir=sharded_digits))
    assert (splits.num_classes, splits.input_shape) == (10, (8, 8, 1))
    train, test = whole(splits.train), whole(splits.test())
    assert (len(train[0]), len(test[0])) == (1437, 360)
    with gzip.open(digits_file._FILE, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",")
    found = np.concatenate(
        [np.concatenate([t[0].reshape(-1, 64) * 16, t[1][:, None]], 1) for t in (train, test)]
    )
    assert np.array_equal(np.unique(found, axis=0), np.unique(rows, axis=0))
    assert np.bincount(test[1].astype(int)).min() > 20


def test_two_processes_prepare_the_digits_at_once(tmp_path):
    code = "import sys; from tfscale.data import digits; print(digits.prepare(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    last_lines = [p.communicate(timeout=120)[0].split()[-1] for p in started]
    assert [p.returncode for p in started] == [0, 0]
    assert last_lines == [str(tmp_path / "digits" / "1.0.0")] * 2
    assert os.listdir(tmp_path / "digits") == ["1.0.0"]
    assert load.load(DataConfig(data_dir=str(tmp_path))).train.num_examples == 1437


def test_digits_fall_back_to_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepared = digits.prepare(str(tmp_path / "file" / "below"))
    assert prepared.startswith(str(tmp_path / f"tfscale-data-{os.getuid()}"))
    assert digits.prepare(str(tmp_path / "file" / "below")) == prepared


def test_validation_is_held_out_by_the_seed(sharded_digits):
    splits = [
        load.load(DataConfig(data_dir=sharded_digits, validation_fraction=0.25, seed=seed))
        for seed in (0, 0, 1)
    ]
    parts = [[x.tobytes() for x in whole(s.validation)[0]] for s in splits]
    rest = [x.tobytes() for x in whole(splits[0].train)[0]]
    everything = [
        x.tobytes() for x in whole(load.load(DataConfig(data_dir=sharded_digits)).train)[0]
    ]
    assert len(parts[0]) == 359
    assert parts[0] == parts[1] != parts[2]
    assert sorted(parts[0] + rest) == sorted(everything)


def test_standardize_measures_the_training_part_and_serves_all_splits(sharded_digits):
    arguments = {"data_dir": sharded_digits, "validation_fraction": 0.25}
    raw = load.load(DataConfig(transforms=(), **arguments))
    made = load.load(DataConfig(transforms=("standardize", "flatten"), **arguments))
    train = whole(raw.train)[0].astype(np.float64)
    assert made.input_shape == (64,)
    for a, b in ((raw.validation, made.validation), (raw.test(), made.test())):
        expected = (whole(a)[0] - train.mean()) / train.std()
        assert np.allclose(whole(b)[0], expected.reshape(-1, 64), atol=1e-5)


def test_fingerprint_names_the_training_data(sharded_digits, record_digits):
    same = [load.load(DataConfig(data_dir=d)).fingerprint for d in (sharded_digits, record_digits)]
    assert same[0] == same[1]
    other = load.load(DataConfig(data_dir=sharded_digits, train_split="train[:50%]"))
    assert other.fingerprint != same[0]


# TFDS


def test_prepared_data_is_found_by_name_configuration_and_version(tmp_path):
    for path in ("a/1.0.0", "a/1.10.0", "a/1.9.0", "b/small/1.0.0", "b/large/1.0.0"):
        os.makedirs(tmp_path / path)
        (tmp_path / path / "dataset_info.json").touch()
    find = {
        n: tfds_source.find_prepared(n, str(tmp_path)) for n in ("a", "a:1.9.0", "b/small", "c")
    }
    assert find["a"].endswith("a/1.10.0")
    assert find["a:1.9.0"].endswith("a/1.9.0")
    assert find["b/small"].endswith("b/small/1.0.0")
    assert find["c"] is None
    with pytest.raises(ValueError, match="b/large"):
        tfds_source.find_prepared("b", str(tmp_path))


def test_labels_outside_the_classes_are_refused(sharded_digits):
    with pytest.raises(ValueError, match="below the number of classes, 5"):
        load.load(DataConfig(data_dir=sharded_digits, num_classes=5))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"name": "mnits"}, "Did you mean 'mnist'"),
        ({"name": "digit"}, "Did you mean 'digits'"),
        ({"name": "mnist"}, "data.download=true"),
        ({"train_split": "tran"}, "test, train. Received: 'tran'. Did you mean 'train'"),
        ({"test_split": "tset"}, "Did you mean 'test'"),
        ({"train_split": "train[:x%]"}, "must read like"),
        ({"train_split": "train[:0%]"}, "at least one example"),
        ({"train_split": ""}, "must name a split"),
        ({"global_batch_size": 0}, "at least 1"),
        ({"shard_policy": "blocks"}, "Did you mean 'block'"),
        ({"validation_fraction": 1.0}, "below 1"),
        ({"validation_fraction": -0.1}, "at least 0"),
        ({"validation_fraction": 0.9999}, "leave examples"),
        ({"validation_fraction": 0.1, "validation_split": "test"}, "Set one of them"),
        ({"transforms": ("standardise",)}, "Did you mean 'standardize'"),
        ({"transform_arguments": {"rescale": {"scal": 1}}}, "Did you mean 'scale'"),
        ({"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_bad_configurations_are_refused(sharded_digits, arguments, words):
    with pytest.raises(ValueError, match=words):
        load.load(DataConfig(**{"data_dir": sharded_digits, **arguments}))


class Shapeless(tfds.core.GeneratorBasedBuilder):
    """A data set whose images differ in size."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": np.zeros((i + 4, 4, 3), np.uint8), "label": 0}


def test_images_of_different_sizes_are_refused(tmp_path):
    Shapeless(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(ValueError, match="numbers of one shape"):
        load.load(DataConfig(name="shapeless", data_dir=str(tmp_path)))


# idx files


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture
def idx_folder(tmp_path):
    for prefix, count in (("train", 30), ("t10k", 8)):
        write_idx(
            tmp_path / f"{prefix}-images-idx3-ubyte.gz",
            RANDOM.randint(0, 256, (count, 28, 28)).astype(np.uint8),
        )
        write_idx(
            tmp_path / f"{prefix}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8)
        )
    return tmp_path


def test_idx_files_are_read_as_they_are(idx_folder):
    splits = load.load(DataConfig(name="fashion_mnist", data_dir=str(idx_folder)))
    assert (splits.num_classes, splits.input_shape) == (10, (28, 28, 1))
    x, y = whole(splits.train)
    with gzip.open(idx_folder / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(30, 28, 28, 1)
    assert np.allclose(x, pixels / 255, atol=1e-7)
    assert y.tolist() == [i % 10 for i in range(30)]
    assert splits.test().num_examples == 8
    part = DataConfig(name="mnist", data_dir=str(idx_folder), train_split="train[50%:]")
    assert np.array_equal(whole(load.load(part).train)[0], x[15:])


def test_bad_idx_files_are_refused(idx_folder):
    config = DataConfig(name="mnist", data_dir=str(idx_folder))
    path = idx_folder / "train-labels-idx1-ubyte"
    for content, words in (
        (b"\0\0\x08\x01\0\0\0\x1e" + bytes(29), "30 bytes. Received: 29"),
        (b"nothing", "two zero bytes"),
        (b"\0\0\x08\x01\0\0\0\x1d" + bytes(29), "30 images and 29 labels"),
        (b"\0\0\x08\x01\0\0\0\x1e" + bytes(29) + b"\x0a", "number of classes, 10"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load.load(config)
    path.unlink()
    with pytest.raises(ValueError, match="need labels"):
        load.load(config)
    with pytest.raises(ValueError, match="test, train. Received: 'val'"):
        load.load(DataConfig(name="mnist", data_dir=str(idx_folder), train_split="val"))


# Folders of images


def write_images(root, split, counts):
    for name, count in counts.items():
        os.makedirs(root / split / name)
        for i in range(count):
            pixels = np.full((12, 9, 3), 40 * (ord(name[0]) - ord("a")) + i, np.uint8)
            tf.io.write_file(str(root / split / name / f"{i}.png"), tf.io.encode_png(pixels))


def test_folder_gives_images_by_class(tmp_path):
    write_images(tmp_path, "train", {"a": 3, "b": 2})
    write_images(tmp_path, "test", {"b": 1})
    config = DataConfig(name="image_folder", data_dir=str(tmp_path), image_size=6, transforms=())
    splits = load.load(config)
    x, y = whole(splits.train)
    assert (splits.num_classes, splits.input_shape, x.dtype) == (2, (6, 6, 3), np.uint8)
    assert splits.class_names == ("a", "b")
    assert x[:, 0, 0, 0].tolist() == [0, 1, 2, 40, 41]
    assert y.tolist() == [0, 0, 0, 1, 1]
    assert whole(splits.test())[1].tolist() == [1]
    shuffled = [
        int(v) for s, _ in splits.train.dataset(shards.Shard()).take(1) for v in s[0][:, 0, 0, 0]
    ]
    assert sorted(shuffled) == [0, 1, 2, 40, 41]


def test_flat_folder_holds_out_its_validation_data(tmp_path):
    write_images(tmp_path, ".", {"a": 5, "b": 5})
    config = DataConfig(
        name="image_folder", data_dir=str(tmp_path), test_split="", validation_fraction=0.3
    )
    splits = load.load(config)
    assert (splits.train.num_examples, splits.validation.num_examples) == (7, 3)
    assert splits.test() is None


def test_bad_folders_are_refused(tmp_path):
    def attempt(root=tmp_path, **arguments):
        return load.load(DataConfig(name="image_folder", data_dir=str(root), **arguments))

    with pytest.raises(ValueError, match="is no folder"):
        attempt(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="one folder a class"):
        attempt()
    write_images(tmp_path, "train", {"a": 1})
    with pytest.raises(ValueError, match="train. Received: 'test'"):
        attempt()
    os.makedirs(tmp_path / "test" / "z")
    with pytest.raises(ValueError, match="z in"):
        attempt()
    os.makedirs(tmp_path / "empty" / "a")
    with pytest.raises(ValueError, match="at least one image"):
        attempt(train_split="empty", test_split="")
    with pytest.raises(ValueError, match="image_size=0"):
        attempt(image_size=0)


def test_random_access_of_a_folder_equals_its_list(tmp_path):
    write_images(tmp_path, "train", {"a": 3, "b": 2})
    source = folder.FolderCollection(str(tmp_path), "train", 4).open("train")
    images, labels = tf.function(source.read)(tf.constant([4, 0], tf.int64))
    assert images[:, 0, 0, 0].numpy().tolist() == [41, 0]
    assert labels.numpy().tolist() == [1, 0]


# CSV


def write_csv(path, rows, header="u,v,label"):
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "wt") as file:
        file.write("\n".join([header, *rows]) + "\n")


def csv_config(path, **arguments):
    return DataConfig(
        **{"name": "csv", "data_dir": str(path), "transforms": (), "test_split": "", **arguments}
    )


def test_csv_gives_features_and_targets(tmp_path):
    write_csv(tmp_path / "all.csv", ["1,2,0.5", '"3",4,1.5', "5,6,2.5", "7,8,3.5"])
    splits = load.load(
        csv_config(tmp_path / "all.csv", train_split="train[:50%]", test_split="train[50%:]")
    )
    x, y = whole(splits.train)
    assert (splits.num_classes, splits.input_shape, x.dtype, y.dtype) == (
        None, (2,), np.float32, np.float32)  # fmt: skip
    assert x.tolist() == [[1, 2], [3, 4]]
    assert y.tolist() == [0.5, 1.5]
    assert whole(splits.test())[0].tolist() == [[5, 6], [7, 8]]


def test_csv_splits_are_files_of_a_folder(tmp_path):
    write_csv(tmp_path / "train.csv.gz", ["1,2,0", "3,4,1"])
    write_csv(tmp_path / "test.csv", ["5,6,1"])
    splits = load.load(
        csv_config(tmp_path, test_split="test", num_classes=2, feature_columns=("v",))
    )
    x, y = whole(splits.train)
    assert (x.tolist(), y.tolist(), y.dtype) == ([[2], [4]], [0, 1], np.int64)
    assert whole(splits.test())[0].tolist() == [[6]]


@pytest.mark.parametrize(
    "rows, arguments, words",
    [
        (["1,2,0"], {"label_column": "lable"}, "u, v, label. Received: 'lable'.*mean 'label'"),
        (["1,2,0"], {"feature_columns": ("w",)}, "Received: 'w'"),
        (["1,2,0", "3,four,1"], {}, "Received: 'four' in row 2, column 'v'"),
        (["1,2,0", "3,4"], {}, "must have 3 columns. Received: 2 in row 2"),
        (["1,2,0", "3,nan,1"], {}, "Column 'v'.*finite.*nan at position .1"),
        (["1,2,0", "3,4,2"], {"num_classes": 2}, "number of classes, 2. Received: 2 at position 1"),
        (["1,2,0", "3,4,-1"], {"num_classes": 2}, "Received: -1"),
        (["1,2,0", "3,4,0.5"], {"num_classes": 2}, "whole number. Received: 0.5 in row 2"),
        ([], {}, "at least one example"),
        (["1,2,0"], {"test_split": "test"}, "data.csv. Received: 'test'"),
        (["1,2,0"], {"train_split": "train[:"}, "Correct the brackets"),
        (["1,2,0"], {"transforms": ("rescale",)}, "needs a scale"),
        (["1,2,0"], {"transforms": ("one_hot",)}, "needs the number of classes"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_bad_tables_are_refused(tmp_path, rows, arguments, words):
    write_csv(tmp_path / "data.csv", rows)
    with pytest.raises(ValueError, match=words):
        load.load(csv_config(tmp_path / "data.csv", **arguments))


def test_missing_tables_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load.load(csv_config(tmp_path / "nowhere.csv"))


def test_preparing_the_digits_draws_no_random_number_of_the_run(tmp_path):
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    digits.prepare(str(tmp_path))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
