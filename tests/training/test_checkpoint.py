"""A checkpoint is whole or absent: damage is found, and what is on disk stays usable."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zlib

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


def rename_a_key(path):
    path.write_text(path.read_text().replace('"crc32"', '"crc31"'))


DAMAGES = [
    ("state.bin", truncate, "bytes and not"),
    ("state.bin", flip_a_bit, "the checksum of model/0000 is another"),
    ("state.bin", pathlib.Path.unlink, "No such file"),
    ("state.bin", lambda path: path.write_bytes(b""), "0 bytes and not"),
    ("state.bin", lambda path: path.write_bytes(path.read_bytes() + b"0"), "bytes and not"),
    ("manifest.json", truncate, "Unterminated|Expecting"),
    ("manifest.json", flip_a_bit, "its checksum is another|Expecting|Invalid"),
    ("manifest.json", pathlib.Path.unlink, "No such file"),
    ("manifest.json", lambda path: path.write_text("[]"), "indices"),
    ("manifest.json", lambda path: path.write_bytes(b"\xff{}"), "decode"),
    ("manifest.json", rename_a_key, "crc32"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_damage_is_found_and_the_one_before_is_used(checkpoints, caplog, name, damage, reason):
    damage(checkpoints.path(2) / name)
    refusal = rf"(?s)A checkpoint must .*step-00000002 \({name}: .*({reason}).*--resume=never"
    with pytest.raises(ValueError, match=refusal):
        checkpoint_lib.read(checkpoints.path(2))
    assert checkpoint_lib.examine(checkpoints.path(2)).damage.startswith(f"{name}: ")
    with caplog.at_level("WARNING", logger="absl"):
        assert checkpoints.newest() == 1
    assert "step-00000002" in caplog.text
    assert "Using the one before it" in caplog.text


@pytest.mark.parametrize("name", ["state.bin", "manifest.json"])
def test_any_bit_that_is_flipped_is_found(checkpoints, name):
    path = checkpoints.path(2) / name
    content = path.read_bytes()
    missed = []
    for i in range(0, 8 * len(content), 3):  # of every byte another bit
        damaged = bytearray(content)
        damaged[i // 8] ^= 1 << i % 8
        path.write_bytes(damaged)
        if not checkpoint_lib.examine(path.parent).damage:
            missed.append(i)
    assert not missed
    path.write_bytes(content)
    assert not checkpoint_lib.examine(path.parent).damage


def write_manifest(folder, manifest):
    """A manifest with the right checksum."""
    body = json.dumps(manifest)[1:]
    text = f'{{"crc32": {zlib.crc32(body.encode())},\n{body}'
    (folder / "manifest.json").write_text(text)


@pytest.mark.parametrize("field", ["version", "step", "arrays", "facts"])
def test_manifest_without_a_field_is_refused(checkpoints, field):
    manifest = json.loads((checkpoints.path(2) / "manifest.json").read_text())
    del manifest["crc32"], manifest[field]
    write_manifest(checkpoints.path(2), manifest)
    with pytest.raises(ValueError, match=f"it has no '{field}'"):
        checkpoint_lib.read(checkpoints.path(2))


def test_a_later_version_is_refused(checkpoints):
    manifest = json.loads((checkpoints.path(2) / "manifest.json").read_text())
    del manifest["crc32"]
    write_manifest(checkpoints.path(2), manifest | {"version": 3})
    with pytest.raises(ValueError, match="its version is 3, of another tfscale"):
        checkpoint_lib.read(checkpoints.path(2))


def write_version_1(folder, saved):
    """The files as the first version wrote them."""
    folder.mkdir(parents=True)
    np.savez(
        folder / "state.npz",
        **{
            f"a{i}": np.frombuffer(array.tobytes(), "u1")
            for i, array in enumerate(saved.arrays.values())
        },
    )
    manifest = {
        "step": saved.step,
        "sha256": hashlib.sha256((folder / "state.npz").read_bytes()).hexdigest(),
        "arrays": [(n, a.dtype.name, a.shape) for n, a in saved.arrays.items()],
        "facts": saved.facts,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_the_first_version_saved_is_read(tmp_path):
    checkpoints, saved = Checkpoints(tmp_path), example(step=4)
    write_version_1(checkpoints.path(4), saved)
    assert checkpoints.newest() == 4
    read = checkpoint_lib.read(checkpoints.path(4))
    assert (read.step, read.facts) == (4, saved.facts)
    for name, expected in saved.arrays.items():
        assert read.arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(read.arrays[name], expected)
    flip_a_bit(checkpoints.path(4) / "state.npz")
    with pytest.raises(ValueError, match=r"state\.npz: its checksum is another"):
        checkpoint_lib.read(checkpoints.path(4))


def test_pickle_in_the_place_of_arrays_is_refused(tmp_path):
    folder = Checkpoints(tmp_path).path(4)
    write_version_1(folder, example(step=4))
    np.savez(folder / "state.npz", a0=np.array([{"a": 1}], object))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"] = hashlib.sha256((folder / "state.npz").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint_lib.read(folder)


@pytest.mark.parametrize("array", [np.array([{}], object), np.array(["words"]), np.array([b"x"])])
def test_only_numbers_are_saved(checkpoints, array):
    with pytest.raises(TypeError):
        checkpoints.save(Checkpoint(3, {"a": array}, {}))
    assert checkpoints.newest() == 2 and not checkpoints.unfinished()


def test_nothing_whole_is_nothing(checkpoints, tmp_path):
    for step in (1, 2):
        truncate(checkpoints.path(step) / "state.bin")
    assert checkpoints.newest() is None
    assert Checkpoints(tmp_path / "missing").newest() is None
    assert Checkpoints(tmp_path / "missing").steps() == []


def names(checkpoints):
    return sorted(entry.name for entry in checkpoints.directory.iterdir())


def test_one_that_was_being_written_does_not_count(checkpoints):
    """A kill before the rename leaves such a folder; the next save of that step replaces it."""
    unfinished = checkpoints.directory / "step-00000003.writing"
    os.rename(checkpoints.path(2), unfinished)
    (unfinished / "stale").write_text("")
    assert checkpoints.steps() == [1]
    assert checkpoints.newest() == 1
    assert checkpoints.unfinished() == [unfinished]
    checkpoints.save(example(3))
    assert checkpoints.newest() == 3
    assert not unfinished.exists()
    assert not (checkpoints.path(3) / "stale").exists()


def test_what_a_crash_has_left_is_cleaned_up(checkpoints):
    for end in (".writing", ".removing", ".replaced"):
        shutil.copytree(checkpoints.path(2), checkpoints.directory / f"step-00000002{end}")
    truncate(checkpoints.directory / "step-00000002.replaced" / "state.bin")
    checkpoints.clean()
    assert names(checkpoints) == ["step-00000001", "step-00000002"]
    assert not checkpoint_lib.examine(checkpoints.path(2)).damage


def test_half_a_rename_gives_the_replaced_one_back(checkpoints):
    """Killed between the two renames that put a new checkpoint in the place of an old one."""
    os.rename(checkpoints.path(2), checkpoints.directory / "step-00000002.replaced")
    os.mkdir(checkpoints.directory / "step-00000002.writing")
    checkpoints.clean()
    assert names(checkpoints) == ["step-00000001", "step-00000002"]
    assert checkpoints.newest() == 2


def test_to_clean_a_folder_that_is_not_there_is_nothing(tmp_path):
    Checkpoints(tmp_path / "missing").clean()
    assert not (tmp_path / "missing").exists()


KILLED_WRITER = """
import sys
import numpy as np
from tfscale.training.checkpoint import Checkpoint, Checkpoints

checkpoints = Checkpoints(sys.argv[1], keep_last=2)
step = max(checkpoints.steps(), default=0)
checkpoints.clean()
while True:
    step += 1
    arrays = {f"a{i}": np.full(2**18, step, np.int32) for i in range(8)}
    checkpoints.save(Checkpoint(step, arrays, {"step": step}))
    checkpoints.save(Checkpoint(step, arrays, {"step": step}))  # replaces
    print(step, flush=True)
"""


def test_killed_at_any_moment_a_writer_leaves_whole_checkpoints(tmp_path):
    """Ten lives of a process that does nothing but save; each is killed a little later."""
    checkpoints, written, leftovers = Checkpoints(tmp_path / "checkpoints"), 0, set()
    for life in range(10):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, str(checkpoints.directory)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            child.stdout.readline()
            time.sleep(0.017 * life)
        finally:
            child.kill()
            rest = child.communicate()[0].split()
        written = max([written + 1, *map(int, rest)])
        leftovers |= {entry.suffix for entry in checkpoints.unfinished()}
        checkpoints.clean()
        assert not checkpoints.unfinished()
        newest = checkpoints.newest()
        assert newest >= written
        assert 1 <= len(checkpoints.steps()) <= 3
        for step in checkpoints.steps():  # whole, all of them
            arrays = checkpoint_lib.read(checkpoints.path(step)).arrays
            assert {int(value) for array in arrays.values() for value in array[:1]} == {step}
        written = newest
    assert ".writing" in leftovers, "no kill came in the middle of a write"


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


def test_the_best_is_kept_beside_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for step in (10, 20, 30, 40):
        checkpoints.save(example(step), also_keep=[20])
    assert checkpoints.steps() == [20, 30, 40]
    checkpoints.save(example(50), also_keep=[50])
    assert checkpoints.steps() == [40, 50]


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`checkpoint\.best_mode` must be one of.*'highest'"):
        Checkpoints(tmp_path, best_mode="highest")


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
    assert names(checkpoints) == ["step-00000001", "step-00000002"]


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
