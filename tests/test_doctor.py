"""`python -m tfscale.doctor` reads what a run has saved and says what a restart would use."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tfscale import doctor
from tfscale.__main__ import main
from tfscale.training.checkpoint import Checkpoint, Checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture
def run_dir(tmp_path):
    """A run with checkpoints of the steps 10 to 40, of which that of 20 is the best."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    checkpoints = Checkpoints(folder / "checkpoints", keep_last=9)
    for step in (10, 20, 30, 40):
        arrays = {"model/0000": np.full(50_000, step, np.float32), "model/0001": np.arange(3)}
        best = {"metric": "val_loss", "value": 0.5, "step": min(step, 20)}
        facts = {"progress": {"epoch": step // 15}, "best": best}
        checkpoints.save(Checkpoint(step, arrays, facts))
    return folder


def look(capsys, run_dir):
    code = main(["doctor", f"--run_dir={run_dir}"])
    return code, capsys.readouterr().out.splitlines()


def test_whole_checkpoints_are_listed(run_dir, capsys):
    code, lines = look(capsys, run_dir)
    assert code == 0
    rows = [line.split() for line in lines[1:5]]
    assert [row[0] for row in rows] == ["10", "20", "30", "40"]
    assert [row[1] for row in rows] == ["0", "1", "2", "2"]
    assert [row[4:6] for row in rows] == [["0.20", "MB"]] * 4
    assert [" ".join(row[6:]) for row in rows] == ["whole", "whole, the best", "whole", "whole"]
    newest = run_dir / "checkpoints" / "step-00000040"
    assert lines[5:] == [f"A run goes on from step 40, with {newest}."]


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("state.bin", 100_000, "damaged: state.bin: it has 100000 bytes and not 200024"),
        ("manifest.json", 100, "damaged: manifest.json: Unterminated"),
    ],
)
def test_a_damaged_one_is_named_and_passed_over(run_dir, capsys, name, size, reason):
    os.truncate(run_dir / "checkpoints" / "step-00000040" / name, size)
    code, lines = look(capsys, run_dir)
    assert code == 1
    assert reason in lines[4]
    assert lines[5].startswith("A run goes on from step 30, ")


def test_the_array_that_is_damaged_is_named(run_dir, capsys):
    with open(run_dir / "checkpoints" / "step-00000020" / "state.bin", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x80")
    code, lines = look(capsys, run_dir)
    assert code == 1
    assert lines[2].endswith("damaged: state.bin: the checksum of model/0001 is another, the best")
    assert lines[5].startswith("A run goes on from step 40, ")


def test_with_nothing_whole_a_run_begins_anew(run_dir, capsys):
    for path in (run_dir / "checkpoints").iterdir():
        (path / "manifest.json").unlink()
    code, lines = look(capsys, run_dir)
    assert code == 1
    assert all("manifest.json: No such file" in line for line in lines[1:5])
    assert lines[5] == "A run begins at its first step."


def test_what_a_crash_has_left_is_said_and_left_alone(run_dir, capsys):
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "step-00000040", folder / "step-00000050.writing")
    os.rename(folder / "step-00000040", folder / "step-00000040.replaced")
    before = sorted(path.name for path in folder.iterdir())
    code, lines = look(capsys, run_dir)
    assert code == 0
    assert lines[5].startswith(f"{folder / 'step-00000050.writing'} is being written or removed")
    assert lines[6].startswith("A run goes on from step 40, with ")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_run_that_has_not_saved_yet(run_dir, capsys):
    shutil.rmtree(run_dir / "checkpoints")
    assert look(capsys, run_dir)[0] == 0
    (run_dir / "checkpoints").mkdir()
    assert look(capsys, run_dir)[0] == 0


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "Received: none"),
        (["--run_dir=nowhere"], "nowhere, which has neither config.json nor checkpoints"),
        (["--run_dri=x"], "run_dri"),
    ],
)
def test_bad_usage_is_refused(argv, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert doctor.main(argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and reason in line


def test_the_command_does_not_wait_for_tensorflow(run_dir):
    code = (
        "import json, sys\nfrom tfscale import doctor\n"
        f"code = doctor.main(['--run_dir={run_dir}'])\n"
        "print(json.dumps([code, sorted({'tensorflow', 'keras'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
