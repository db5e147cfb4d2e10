"""Following a folder: what there is before the first curves, and when nothing more is to come."""

import json
import subprocess
import sys
import time

import made_runs
import pytest

from tfscale import script_folder, watch
from tfscale.monitor.place import Place


def look(path):
    """What is told of a folder, and whether it has ended, long after what stands in it."""
    place = Place(path)
    place.look()
    told = place.told(made_runs.BEGAN + 14)  # of what it has, as long as it is new
    return told.removeprefix(f"{path}: "), place.has_ended()


def journal(path, *events, **identity):
    path.mkdir(exist_ok=True)
    lines = [{"event": e, "trial": t, "time": made_runs.BEGAN} for e, t in events]
    (path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "search.json").write_text(json.dumps(identity))


def test_folder_without_curves_is_told_apart_from_none(tmp_path):
    assert look(tmp_path / "none") == ("no such folder so far", False)
    assert look(tmp_path) == ("no run in this folder so far", False)
    (tmp_path / "config.json").write_text("{}")
    assert look(tmp_path) == ("a run that is starting, without curves so far", False)


def test_search_goes_on_behind_its_first_trial_until_its_journal_says_so(tmp_path):
    path = tmp_path / "search"
    made_runs.plain(path / "trials/0000")
    first = [("created", "0000"), ("started", "0000"), ("ended", "0000")]
    journal(path, *first, max_trials=2)
    assert look(path) == ("the search goes on: 1 of 2 trial(s) ended", False)
    second = [("created", "0001"), ("started", "0001")]
    journal(path, *first, *second, max_trials=2)
    assert look(path)[1] is False  # the second has no files yet
    journal(path, *first, *second, ("ended", "0001"), max_trials=2)
    assert look(path) == ("the search has ended: 2 of 2 trial(s) ended", True)
    journal(path, *first, max_trials=0)
    assert look(path)[1] is False
    journal(path, *first, *second, ("exhausted", None), max_trials=0)
    assert look(path)[1] is False  # no other will be asked for, and one is still running
    journal(path, *first, ("exhausted", None), max_trials=0)
    assert look(path)[1] is True


def test_search_says_when_its_journal_or_a_trial_last_gave_a_sign_of_life(tmp_path):
    path = tmp_path / "search"
    journal(path, ("created", "0000"), ("started", "0000"), max_trials=2)
    place = Place(path)
    place.look()
    told = f"{path}: the search goes on: 0 of 2 trial(s) ended"
    assert place.told(made_runs.BEGAN + 14) == told
    assert place.told(made_runs.BEGAN + 20) == f"{told}, last sign of life 20 s ago"
    made_runs.write(path / "trials/0000", [made_runs.record(8, 1.0)], [made_runs.begin(0, 0)])
    place.look()
    assert place.told(made_runs.BEGAN + 20) == told
    assert place.told(made_runs.BEGAN + 200) == f"{told}, last sign of life 3 min 12 s ago"


def test_search_that_was_left_with_all_its_trials_is_over(tmp_path):
    path = tmp_path / "search"
    left = [made_runs.begin(0, 0), made_runs.event("left", 3, 9, code=143)]
    made_runs.write(path / "trials/0000", [made_runs.record(1, 1.0)], left)
    journal(path, ("created", "0000"), ("started", "0000"), max_trials=2)
    assert look(path) == ("the search goes on: 0 of 2 trial(s) ended", True)


def test_script_goes_on_between_two_calls_of_fit_until_it_says_that_it_is_over(tmp_path):
    folder = script_folder.ScriptFolder(tmp_path / "script")
    folder.settle(["train.py"], 1)
    made_runs.plain(folder.fits / "1")
    assert look(folder.path) == ("the script goes on: 1 call(s) of fit", False)
    folder.tell_end([True])
    assert look(folder.path) == ("the script has ended: 1 call(s) of fit", True)
    folder.begin()  # the same command again
    assert look(folder.path)[1] is False
    folder.tell_end([])
    place = Place(folder.path)
    place.look()
    told = f"{folder.path}: the script has failed{{}}: 1 call(s) of fit"
    assert place.told() == told.format(", may be started again")
    assert place.told(time.time() + 1000) == told.format("")
    assert not place.has_ended() and place.has_ended(time.time() + 1000)  # it may be restarted


def test_calls_of_fit_without_a_launcher_are_over_a_while_behind_the_last(tmp_path):
    made_runs.plain(tmp_path / "mine/fits/1")
    place = Place(tmp_path / "mine")
    [run] = place.look()
    end = run.events[-1]["time"]
    assert not place.has_ended(end + 60) and place.has_ended(end + 180)


def test_following_waits_for_a_run_that_is_still_to_come(tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-m", "tfscale.watch", f"--run_dir={path}", "--every_seconds=0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert (
                process.stdout.readline()
                .strip()
                .endswith("no such folder so far; waiting (Ctrl-C ends)")
            )
            made_runs.plain(path)
            shown = process.communicate(timeout=120)[0]
        finally:
            process.kill()
    assert "finished" in shown and process.returncode == 0


@pytest.mark.parametrize("name", ["config.json", "launch.json", "search.json"])
def test_one_look_says_what_has_begun(tmp_path, name, capsys):
    (tmp_path / name).write_text("{}")
    assert watch.main([f"--run_dir={tmp_path}", "--once"]) == 0
    told = {"config.json": "starting", "launch.json": "the script", "search.json": "the search"}
    assert told[name] in capsys.readouterr().out
