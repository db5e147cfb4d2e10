"""The folder of a launched script: one script, one seed."""

import json

import pytest

from tfscale.script_folder import ScriptFolder


def test_seed_of_the_first_life_stays(tmp_path, capsys):
    folder = ScriptFolder(tmp_path / "run")
    seed = folder.settle(["train.py", "--epochs=3"])
    assert 0 <= seed < 2**31
    assert folder.settle(["elsewhere/train.py", "--epochs=3"]) == seed
    assert not capsys.readouterr().err
    assert ScriptFolder(tmp_path / "run").settle(["train.py", "--epochs=9"]) == seed
    assert ScriptFolder(tmp_path / "run").settle(["elsewhere/train.py"], seed) == seed
    assert "is of the arguments --epochs=3; calls of fit that had ended" in capsys.readouterr().err
    content = json.loads((tmp_path / "run" / "launch.json").read_text())
    assert content == {"target": ["train.py", "--epochs=3"], "seed": seed}


def test_seeds_of_two_folders_differ(tmp_path):
    assert ScriptFolder(tmp_path / "a").settle(["x"]) != ScriptFolder(tmp_path / "b").settle(["x"])


@pytest.mark.parametrize("name", ["config.json", "search.json"])
def test_folder_of_another_run_or_of_a_search_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"holds {name} of another run"):
        ScriptFolder(tmp_path).settle(["train.py"])


def test_given_seed_counts(tmp_path):
    assert ScriptFolder(tmp_path).settle(["-m", "train"], 5) == 5
    assert ScriptFolder(tmp_path).is_visible(5)
    assert not ScriptFolder(tmp_path).is_visible(6)
    assert not ScriptFolder(tmp_path / "elsewhere").is_visible(5)


@pytest.mark.parametrize(
    ("target", "seed", "message"),
    [
        (
            ["other.py"],
            None,
            r"that of the same script\. Received: .* of train\.py, with other\.py",
        ),
        (["-m", "train.py"], None, r"with -m train\.py"),
        (["train.py"], 6, r"Received: --seed=6 .*which began with 5"),
    ],
)
def test_other_scripts_and_seeds_are_refused(tmp_path, target, seed, message):
    ScriptFolder(tmp_path).settle(["train.py"], 5)
    with pytest.raises(ValueError, match=message):
        ScriptFolder(tmp_path).settle(target, seed)


def test_damaged_file_is_named(tmp_path):
    (tmp_path / "launch.json").write_text("{")
    with pytest.raises(ValueError, match=r"must hold launch\.json as it was written"):
        ScriptFolder(tmp_path).settle(["train.py"])
