"""`python -m tfscale.doctor` on one machine: what a run has saved, and checks without a cluster.

How tasks of a cluster check each other is in `cluster/test_checkup.py`.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tfscale import doctor
from tfscale.__main__ import main
from tfscale.training.checkpoint import Checkpoint, Checkpoints

ROOT = pathlib.Path(doctor.__file__).parents[1]


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
        ("manifest.json", 100, "damaged: manifest.json: "),
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
        (["--workers=-1"], "--workers"),
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


def test_the_fits_of_a_script_are_listed_as_well(run_dir, capsys):
    for number in (1, 2):
        shutil.copytree(run_dir / "checkpoints", run_dir / "fits" / str(number) / "checkpoints")
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "config.json").unlink()
    os.truncate(run_dir / "fits" / "2" / "checkpoints" / "step-00000040" / "state.bin", 5)
    code, lines = look(capsys, run_dir)
    assert code == 1
    assert [line for line in lines if line.startswith("fit ")] == ["fit 1", "fit 2"]
    assert [line.split(", ")[0] for line in lines if "goes on" in line] == [
        "A run goes on from step 40",
        "A run goes on from step 30",
    ]


def test_a_machine_alone_is_checked_without_a_port(capsys):
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["ok", "versions"], ["ok", "GPUs"]]
    assert lines[3] == "2 checks: all is well"


def check(folder, *argv):
    """Run the command in a process of its own, since it changes TensorFlow's devices."""
    return subprocess.run(
        [sys.executable, "-m", "tfscale.doctor", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_model_and_data_of_a_configuration_are_looked_at(tmp_path):
    done = check(
        tmp_path,
        *("--run_dir=runs/mine", "--config.model.name=mlp", "--config.checkpoint.keep_last=1"),
        *("--config.model.arguments.units=(1000,)", "--config.optimizer.name=adam"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout
    # 64 inputs, 1000 hidden units, 10 classes: three times for Adam, three files at once.
    size = 4 * 3 * (64 * 1000 + 1000 + 1000 * 10 + 10)
    found = float(re.search(r"3 checkpoints of ([0-9.]+) kB take", shown)[1]) * 1000
    assert found == pytest.approx(size, rel=0.001)
    assert re.search(r"ok +data +fingerprint [0-9a-f]{16}\n", shown)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_a_configuration_is_one_line(tmp_path):
    done = check(tmp_path, "--config.data.name=csv", "--config.data.data_dir=/nowhere.csv")
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if "failed  " in line]
    assert line.split()[:2] == ["failed", "data"] and "/nowhere.csv" in line
