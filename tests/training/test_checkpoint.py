"""A checkpoint is whole or absent: damage is found, and what is on disk stays usable."""

import contextlib
import json
import os
import pathlib
import subprocess

import ml_dtypes
import numpy as np
import pytest

from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training.checkpoint import Checkpoint, Checkpoints


def example(step=1, size=50):
    arrays = {
        "model/0000": np.arange(size, dtype=np.float32).reshape(-1, 5) / 7,
        "model/0001": (np.arange(6) / 3).astype(ml_dtypes.bfloat16).reshape(2, 3),
        "optimizer/0000": np.array(2**40 + 1, np.int64),
        "metrics/0000": np.zeros((0, 4), np.float16),
        "seed": np.array([1, 2**32 - 1], np.uint32),
        "flag": np.array([True, False]),
    }
    return Checkpoint(step, arrays, {"progress": {"epoch": 3}, "history": {"loss": [0.1, 1e-30]}})


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints, of steps 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(example(step))
    return checkpoints


def test_what_was_saved_is_read(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    saved = example(step=7)
    checkpoints.save(saved)
    read = checkpoint_lib.read(checkpoints.path(7))
    assert (read.step, read.facts, read.path) == (7, saved.facts, checkpoints.path(7))
    assert list(read.arrays) == list(saved.arrays)
    for name, expected in saved.arrays.items():
        assert read.arrays[name].dtype == expected.dtype, name
        assert read.arrays[name].shape == expected.shape, name
        np.testing.assert_array_equal(read.arrays[name], expected)


def test_arrays_of_any_layout_are_read_as_they_look(tmp_path):
    arrays = {"transposed": np.arange(6.0).reshape(2, 3).T, "strided": np.arange(10)[::3]}
    Checkpoints(tmp_path).save(Checkpoint(1, arrays, {}))
    read = checkpoint_lib.read(Checkpoints(tmp_path).path(1))
    for name, expected in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], expected)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def change_a_fact(path):
    path.write_text(path.read_text().replace('"sha256"', '"sha1"'))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("state.npz", truncate),
        ("state.npz", flip_a_bit),
        ("state.npz", pathlib.Path.unlink),
        ("state.npz", lambda path: path.write_bytes(b"")),
        ("manifest.json", truncate),
        ("manifest.json", pathlib.Path.unlink),
        ("manifest.json", lambda path: path.write_text("[]")),
        ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("manifest.json", change_a_fact),
    ],
)
def test_damage_is_found_and_the_one_before_is_used(checkpoints, caplog, name, damage):
    damage(checkpoints.path(2) / name)
    with pytest.raises(ValueError, match=r"A checkpoint must be .*step-00000002.*--resume=never"):
        checkpoint_lib.read(checkpoints.path(2))
    with caplog.at_level("WARNING", logger="absl"):
        assert checkpoints.newest() == 1
    assert "step-00000002" in caplog.text
    assert "Using the one before it" in caplog.text


@pytest.mark.parametrize("field", ["step", "arrays", "facts"])
def test_manifest_without_a_field_is_refused(checkpoints, field):
    path = checkpoints.path(2) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[field]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=field):
        checkpoint_lib.read(checkpoints.path(2))


def test_nothing_whole_is_nothing(checkpoints, tmp_path):
    for step in (1, 2):
        truncate(checkpoints.path(step) / "state.npz")
    assert checkpoints.newest() is None
    assert Checkpoints(tmp_path / "missing").newest() is None
    assert Checkpoints(tmp_path / "missing").steps() == []


def test_one_that_was_being_written_does_not_count(checkpoints):
    """A kill before the rename leaves such a folder; the next save of that step replaces it."""
    unfinished = checkpoints.directory / "step-00000003.writing"
    os.rename(checkpoints.path(2), unfinished)
    (unfinished / "stale").write_text("")
    assert checkpoints.steps() == [1]
    assert checkpoints.newest() == 1
    checkpoints.save(example(3))
    assert checkpoints.newest() == 3
    assert not unfinished.exists()
    assert not (checkpoints.path(3) / "stale").exists()


def test_the_same_step_is_replaced(checkpoints):
    again = example(2)
    again.facts["progress"] = {"epoch": 9}
    checkpoints.save(again)
    assert checkpoint_lib.read(checkpoints.path(2)).facts["progress"] == {"epoch": 9}


@pytest.mark.parametrize(
    ("keep_last", "expected"), [(1, [40]), (2, [30, 40]), (9, [1, 20, 30, 40])]
)
def test_the_newest_are_kept(tmp_path, keep_last, expected):
    checkpoints = Checkpoints(tmp_path, keep_last)
    for step in (1, 20, 30, 40):
        checkpoints.save(example(step))
    assert checkpoints.steps() == expected


def test_those_of_a_life_that_was_left_behind_go(checkpoints):
    """Gone on from step 1, a run must not find step 2 of its earlier life as the newest."""
    checkpoints.save(example(5))
    assert checkpoints.steps() == [2, 5]
    checkpoints.save(example(3))
    assert checkpoints.steps() == [2, 3]


def test_to_keep_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`checkpoint\.keep_last` must be at least 1.*=0"):
        Checkpoints(tmp_path, 0)


def test_failed_write_leaves_what_was_there(checkpoints):
    """An array of objects cannot be stored: pickle is never used."""
    wrong = example(3)
    wrong.facts["unknown"] = {1, 2}
    with pytest.raises(TypeError):
        checkpoints.save(wrong)
    assert checkpoints.newest() == 2
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == [
        "step-00000001",
        "step-00000002",
    ]


def test_pickle_in_the_place_of_arrays_is_refused(checkpoints):
    import hashlib

    folder = checkpoints.path(2)
    np.savez(folder / "state.npz", a0=np.array([{"a": 1}], object))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = hashlib.sha256((folder / "state.npz").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint_lib.read(folder)


@contextlib.contextmanager
def small_disk(path, num_bytes):
    """A file system that is soon full."""
    path.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    try:
        mounted = subprocess.run(options, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    with small_disk(tmp_path / "disk", 2**20) as disk:
        checkpoints = Checkpoints(disk / "checkpoints")
        checkpoints.save(example(1, size=100_000))
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(example(2, size=300_000))
        assert checkpoints.steps() == [1]
        assert checkpoints.newest() == 1
        assert not list(checkpoints.directory.glob("*.writing"))
        checkpoints.save(example(2))  # There is room again.
        assert checkpoints.newest() == 2


class TestWriteWhole:
    def test_new_text_takes_the_place_of_the_old(self, tmp_path):
        path = tmp_path / "summary.json"
        for text in ("old", "new\n"):
            checkpoint_lib.write_whole(path, text)
            assert path.read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]

    def test_full_disk_leaves_the_old_text(self, tmp_path):
        with small_disk(tmp_path / "disk", 2**16) as disk:
            checkpoint_lib.write_whole(disk / "summary.json", "old")
            with pytest.raises(OSError, match="No space left"):
                checkpoint_lib.write_whole(disk / "summary.json", "x" * 2**17)
            assert (disk / "summary.json").read_text() == "old"
            assert [p.name for p in disk.iterdir()] == ["summary.json"]
