"""Checkpoints that are damaged on the disk, and disks that take no more: full, read-only, gone."""

import os
import shutil
import signal
import subprocess

import launched
import pytest

from tfscale.training import checkpoint

pytestmark = pytest.mark.workers
SLOW = {"STEP_SECONDS": "0.02"}
KEEP_ALL = "--keep_last=99"


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


def cut_in_half(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.slow
def test_a_run_goes_on_from_what_is_whole_and_names_the_rest(tmp_path, undisturbed):
    """Nothing of a launcher and its workers that were killed is whole but two checkpoints."""
    run = launched.launch(tmp_path / "run", KEEP_ALL, **SLOW)
    try:
        run.wait_for_step(25)
        run.signal(signal.SIGKILL)
    finally:
        assert run.finish() == -signal.SIGKILL
    first, second = (run.run_dir / "fits" / fit / "checkpoints" for fit in "12")
    cut_in_half(first / "step-00000024" / "state.bin")
    for end in (".writing", ".removing"):  # cut off within a write, and within a removal
        shutil.copytree(first / "step-00000010", first / f"step-00000090{end}")
    *older, fourth, third, newer, newest = run.steps()
    cut_in_half(second / f"step-{newest:08d}" / "state.bin")
    flip_one_bit(second / f"step-{newer:08d}" / "state.bin")
    (second / f"step-{third:08d}" / "manifest.json").unlink()
    # Cut off between the two renames that put one in the place of another.
    os.rename(second / f"step-{fourth:08d}", second / f"step-{fourth:08d}.replaced")
    again = launched.launch(tmp_path / "run", KEEP_ALL)
    assert again.finish() == 0, again.told
    for step, reason in (
        (newest, "state.bin: it has"),
        (newer, "state.bin: the checksum of"),
        (third, "manifest.json: No such file"),
    ):
        assert f"{second}/step-{step:08d} ({reason}" in again.told, again.told
    assert again.told.count("Using the one before it") == 4
    assert "fit 1 goes on at step 8, epoch 2" in again.told  # of step 20
    assert f"with {second}/step-{fourth:08d}." in again.told
    launched.check_equal(again, undisturbed())
    assert not checkpoint.Checkpoints(first).unfinished()
    assert not checkpoint.Checkpoints(second).unfinished()


@pytest.fixture
def disk(tmp_path):
    """A disk of its own; what is done with it is `mount` with options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if os.getuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a small file system")
        return folder

    mount("size=4m")
    yield mount
    while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0:
        continue


def check_ended_well(run, words):
    """One error on each worker, no restart, and whole checkpoints."""
    assert run.finish() == 1, run.told
    assert f" failed first: exit code 1, {words}" in run.told
    for rank in (0, 1):
        assert f"[{rank}] {words}: the chief could not write the checkpoint" in run.told
    assert "start again" not in run.told
    assert "tfscale: nothing starts again" in run.told


class TestTheDisk:
    @pytest.mark.slow  # tests/test_fit.py has one of a full disk, too
    def test_that_is_full_ends_the_run_for_good_until_there_is_room(
        self, tmp_path, disk, undisturbed
    ):
        folder = disk("remount", "size=140k")
        folder_of_run = {"run_dir": folder / "run"}
        run = launched.launch(tmp_path / "run", KEEP_ALL, **folder_of_run)
        check_ended_well(run, "OSError: [Errno 28] No space left on device")
        for fit in (1, 2):
            checkpoints = checkpoint.Checkpoints(run.run_dir / "fits" / str(fit) / "checkpoints")
            assert not checkpoints.unfinished()
            for step in checkpoints.steps():
                assert not checkpoint.examine(checkpoints.path(step)).damage
        disk("remount", "size=4m")
        again = launched.launch(tmp_path / "run", KEEP_ALL, **folder_of_run)
        assert again.finish() == 0, again.told
        launched.check_equal(again, undisturbed())

    @pytest.mark.faults
    def test_that_becomes_read_only_ends_the_run(self, tmp_path, disk):
        folder, logs = disk("remount", "size=4m"), f"--log_dir={tmp_path / 'logs'}"
        run = launched.launch(tmp_path / "run", KEEP_ALL, logs, run_dir=folder / "run", **SLOW)
        try:
            run.wait_for_step(10)
            # The kernel refuses it while a file is open for writing.
            remount = ["mount", "-o", "remount,ro", str(folder)]
            launched.wait_for(
                lambda: not subprocess.run(remount, capture_output=True, check=False).returncode
            )
            whole = run.steps()
        finally:
            check_ended_well(run, "OSError: [Errno 30] Read-only file system")
        assert run.steps() == whole

    @pytest.mark.slow
    def test_that_is_gone_ends_the_run(self, tmp_path):
        run = launched.launch(tmp_path / "run", **SLOW)
        try:
            run.wait_for_step(10)
            os.rename(run.run_dir, tmp_path / "elsewhere")
        finally:
            check_ended_well(run, "FileNotFoundError: [Errno 2] No such file or directory")
        assert not run.run_dir.exists()

    def test_that_is_read_only_from_the_start_is_refused_in_one_line(self, tmp_path, disk):
        folder = disk("remount", "ro")
        run = launched.launch(tmp_path / "run", run_dir=folder / "run")
        assert run.finish() == 2, run.told
        [line] = run.told.splitlines()
        assert line.startswith("error: --run_dir must be") and "Read-only" in line
