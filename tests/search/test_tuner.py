"""`tfscale.search.Tuner`: keras-tuner's interface, trials that run the script again."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import keras
import keras_tuner
import numpy as np
import psutil
import pytest
import tensorflow as tf

from tfscale.cluster import ports
from tfscale.search import (
    endings,
    imported,
    journal,
    places,
    report,
    returned,
    scripts,
    tuner,
    tuners,
)

SCRIPT = pathlib.Path(__file__).with_name("tuner_script.py")
ROOT = str(pathlib.Path(__file__).parents[2])
SECONDS = 240


def start(folder, workers=1, *more, **variables):
    return start_script(SCRIPT, str(workers), str(folder), *more, **variables)


def start_script(script, *arguments, **variables):
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        env=dict(os.environ, PYTHONPATH=ROOT, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """Return what a script printed last, and all of it."""
    shown, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, shown
    return json.loads(shown.splitlines()[-1]), shown


def table(folder):
    """The rows of results.csv without the times."""
    with open(folder / "digits" / "results.csv", newline="") as file:
        return [{n: v for n, v in row.items() if n != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search of two trials on one worker, undisturbed: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, *finish(start(folder))


@pytest.mark.workers
class TestSearch:
    def test_trials_are_listed_with_what_build_and_fit_have_chosen(self, searched):
        folder, said, _ = searched
        rows = table(folder)
        assert [row["state"] for row in rows] == ["completed"] * 2
        best = max(rows, key=lambda row: float(row["score"]))
        assert said["values"][0]["units"] == int(best["units"])
        assert said["values"][0]["batch_size"] == int(best["batch_size"])
        assert {row["rate"] for row in rows} == {str(v["rate"]) for v in said["values"]}
        written = json.loads((folder / "digits" / "best.json").read_text())
        assert written["values"] == said["values"][0] and written["trial"] == best["id"]

    def test_the_best_model_scores_what_its_trial_did(self, searched):
        folder, said, _ = searched
        best = max(float(row["score"]) for row in table(folder))
        assert said["again"] == pytest.approx(best, abs=1e-6)

    def test_each_trial_has_curves_weights_and_a_log(self, searched):
        folder, _, _ = searched
        for trial in ("0000", "0001"):
            path = folder / "digits" / "trials" / trial
            history = scripts.read_history(path / scripts.METRICS)
            assert [epoch["epoch"] for epoch in history] == [1, 2]
            assert {"accuracy", "loss", "val_accuracy", "val_loss"} <= set(history[0])
            assert (path / scripts.WEIGHTS).exists() and (path / "logs" / "trial.log").exists()
            assert list((path / "tensorboard" / "validation").glob("*tfevents*"))

    def test_the_same_script_again_trains_nothing_and_says_the_same(self, searched):
        folder, said, _ = searched
        journal, before = (folder / "digits" / "journal.jsonl").read_text(), table(folder)
        assert all(row["batch_size"] for row in before)
        again, shown = finish(start(folder))
        assert again == said and table(folder) == before and "going on: 2 completed" in shown
        assert (folder / "digits" / "journal.jsonl").read_text() == journal


def run_costs(folder, workers=1):
    """Run `run_trial_script.py`; return what it printed last, and its folder."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT.with_name("run_trial_script.py")), str(workers), str(folder)],
        env=dict(os.environ, PYTHONPATH=ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.workers
@pytest.mark.parametrize("workers", [1, 2])
def test_run_trial_of_ones_own_ends_in_many_ways(tmp_path, workers):
    said = run_costs(tmp_path, workers)
    assert said["ended_by"] == "the data are gone (trial 0007)"
    trials, early = said["trials"], "the script ended before the `search` of this tuner"
    assert trials["number"] == ["COMPLETED", 1.5, None]
    assert trials["tells"] == ["COMPLETED", 1.25, None]
    assert trials["epochs"] == ["COMPLETED", 3.0, None] and said["weights"] == [[1.0]]
    assert trials["model"] == ["COMPLETED", 11.0, None]
    assert trials["loop"] == ["COMPLETED", 21.0, None]
    assert trials["gives up"] == ["FAILED", None, "failed: it was refused: no such layer"]
    assert trials["leaves"][0] == "FAILED" and early in trials["leaves"][2]
    assert trials["ends all"][0] == "FAILED"
    log = tmp_path / "costs" / "trials" / "0000" / "logs" / "trial.log"
    assert "trial 0000 has 1.5" in log.read_text()


@pytest.mark.slow
@pytest.mark.workers
def test_two_workers_a_trial_find_what_one_finds(searched, tmp_path):
    folder, said, _ = searched
    two, _ = finish(start(tmp_path, workers=2))
    assert two["values"] == said["values"]
    for one, other in zip(table(folder), table(tmp_path), strict=True):
        assert float(other["score"]) == pytest.approx(float(one["score"]), abs=1 / 360 + 1e-6)
    logs = tmp_path / "digits" / "trials" / "0000" / "logs"
    assert {"worker-0.log", "worker-1.log"} <= {path.name for path in logs.iterdir()}


@pytest.mark.slow
@pytest.mark.workers
def test_a_search_that_is_killed_goes_on_and_ends_as_an_undisturbed_one(searched, tmp_path):
    (tmp_path / "slow").touch()
    process = start(tmp_path)
    second = tmp_path / "digits" / "trials" / "0001"
    wait_for_checkpoint(process, second / "fits" / "1")  # the first of two epochs is saved
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert children and not [child for child in alive if child.status() != "zombie"]
    (tmp_path / "slow").unlink()
    said, shown = finish(start(tmp_path))
    assert "going on: 1 completed" in shown
    assert said == searched[1] and table(tmp_path) == table(searched[0])
    events = scripts.read_lines(tmp_path / "digits" / "journal.jsonl")
    assert [e["event"] for e in events].count("created") == 2
    assert "goes on at step" in (second / "logs" / "trial.log").read_text()


def wait_for_checkpoint(process, fit):
    deadline = time.monotonic() + SECONDS
    while not list(fit.glob("checkpoints/step-*[0-9]")):  # not one that is being written
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.workers
def test_best_weights_are_of_all_executions_after_a_kill_in_the_second(tmp_path):
    script, trial = SCRIPT.with_name("executions_script.py"), tmp_path / "digits/trials/0000"
    (tmp_path / "slow").touch()
    process = start_script(script, str(tmp_path))
    wait_for_checkpoint(process, trial / "fits" / "2")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "slow").unlink()
    first = scripts.read_history(trial / scripts.METRICS)
    said, _ = finish(start_script(script, str(tmp_path)))
    assert "goes on at step" in (trial / "logs" / "trial.log").read_text()
    assert said == pytest.approx(max(epoch["val_accuracy"] for epoch in first), abs=1e-6)


@pytest.mark.slow
@pytest.mark.workers
def test_keras_tuners_variables_make_the_script_a_chief_that_leads_and_a_tuner(searched, tmp_path):
    port = str(ports.free_ports(1)[0])
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    chief = start(tmp_path, KERASTUNER_TUNER_ID="chief", **address)
    joined = start(tmp_path, KERASTUNER_TUNER_ID="tuner0", **address)
    said, shown = finish(joined)
    assert "joined the search at 127.0.0.1" in shown
    assert finish(chief)[0] == said == searched[1]  # each reads the results
    assert table(tmp_path) == table(searched[0])
    events = scripts.read_lines(tmp_path / "digits" / "journal.jsonl")
    assert {e["on"] for e in events if e["event"] == "started"} == {"tuner0"}


@pytest.mark.slow
@pytest.mark.workers
def test_hyperband_goes_on_with_its_best_trials(tmp_path):
    said, _ = finish(start(tmp_path, 1, "hyperband"))
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["completed"] * len(rows)
    [row] = [row for row in rows if row["parent"]]
    older = next(other for other in rows if other["id"] == row["parent"])
    assert (older["epochs"], row["epochs"]) == ("1", "3") and row["rate"] == older["rate"]
    curves = tmp_path / "digits" / "trials"
    one, both = (scripts.read_history(curves / t["id"] / scripts.METRICS) for t in (older, row))
    assert both[:1] == one and both[1]["loss"] < one[0]["loss"]
    assert {"tuner/epochs": 3, "tuner/initial_epoch": 1, "tuner/trial_id": older["id"]}.items() <= (
        scripts.used(curves / row["id"], {}).values.items()
    )
    assert not [name for name in row if name.startswith("tuner/")]
    assert said["again"] == pytest.approx(max(float(row["score"]) for row in rows), abs=1e-6)


def build(hp):
    """A model without data of its own; a branch that few values lead to."""
    model = keras.Sequential([keras.Input((4,))])
    kind = hp.Choice("kind", ["small", "large"])
    with hp.conditional_scope("kind", ["large"]):
        if kind == "large":
            model.add(keras.layers.Dense(hp.Int("units", 8, 64)))
            deep = hp.Boolean("deep")
            with hp.conditional_scope("deep", [True]):
                if deep:
                    model.add(keras.layers.Dense(hp.Int("more_units", 8, 64)))
    model.add(keras.layers.Dense(1))
    model.compile("sgd", "mse")
    return model


def make(tmp_path, **changes):
    oracle = keras_tuner.oracles.RandomSearchOracle(objective="val_loss", max_trials=2)
    return tuner.Tuner(build, oracle, directory=tmp_path, **changes)


def test_all_conditional_scopes_are_found(tmp_path, capsys):
    found = make(tmp_path)
    names = {parameter.name for parameter in found.oracle.get_space().space}
    assert names == {"kind", "units", "deep", "more_units"}
    found.search_space_summary()
    assert "more_units (Int)" in capsys.readouterr().out


def test_a_name_with_two_conditions_is_warned_of(tmp_path, capsys):
    def build_either(hp):
        kind = hp.Choice("kind", ["small", "large"])
        for name, most in (("small", 8), ("large", 64)):
            with hp.conditional_scope("kind", [name]):
                if kind == name:
                    hp.Int("units", 1, most)
        return build(keras_tuner.HyperParameters())

    oracle = keras_tuner.oracles.RandomSearchOracle(objective="val_loss")
    tuner.Tuner(build_either, oracle, directory=tmp_path)
    assert "'units' is there where kind in ['small'] and where kind in" in capsys.readouterr().err


def test_search_with_other_epochs_than_its_folder_is_refused(tmp_path):
    began = make(tmp_path)
    (run_dir := pathlib.Path(began.project_dir)).mkdir()
    began._settle(run_dir, began.oracle, epochs=3)
    with pytest.raises(ValueError, match="with epochs: 3 there and 5 here"):
        make(tmp_path).search(np.ones((8, 4)), np.ones((8, 1)), 4, 5, verbose=0)  # by place
    assert not (run_dir / "trials").exists()


def test_damaged_lines_of_a_curve_are_left_out(tmp_path):
    lines = ['{"epoch": 0, "train": {"loss": 2.0}}', '{"epoch": 0, "val', "7", '{"at": 1}']
    (tmp_path / scripts.METRICS).write_text("\n".join(lines) + "\n")
    assert scripts.read_history(tmp_path / scripts.METRICS) == [{"epoch": 1, "loss": 2.0}]


SESSION = """
import numpy as np, tfscale.search, sys
from space import build
t = tfscale.search.RandomSearch(
    build, objective="val_loss", max_trials=1, directory=sys.argv[1], project_name="p"
)
x = np.ones((40, 4), np.float32)
t.search(x, x[:, :1], epochs=2, validation_data=(x[:8], x[:8, :1]))
print(len(t.get_best_models()))
"""
SPACE = """
import keras
def build(hp):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.Choice("units", [1, 2]))])
    model.compile("sgd", "mse")
    return model
"""


@pytest.mark.slow
@pytest.mark.workers
def test_a_session_without_a_script_searches_what_can_be_imported(tmp_path):
    (tmp_path / "space.py").write_text(SPACE)
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(tmp_path)],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=ROOT),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 0000 completed" in done.stdout and done.stdout.splitlines()[-1] == "1"


def test_a_session_without_a_script_needs_a_hypermodel_that_can_be_imported(tmp_path, monkeypatch):
    class Stateful(keras_tuner.HyperModel):
        def __init__(self, units):
            super().__init__()
            self.units = units

        def build(self, hp):
            return build(hp)

    monkeypatch.setattr(scripts, "target", lambda: None)
    monkeypatch.setitem(globals(), "Stateful", Stateful)
    oracle = keras_tuner.oracles.RandomSearchOracle(objective="val_loss")
    with pytest.raises(ValueError, match="must be importable. Received: '<lambda>'"):
        tuner.Tuner(lambda hp: build(hp), oracle, directory=tmp_path).search()
    Stateful.__qualname__ = "Stateful"
    with pytest.raises(ValueError, match="an object of Stateful with arguments"):
        tuner.Tuner(Stateful(3), oracle, directory=tmp_path).search()
    with pytest.raises(ValueError, match="callbacks with a EarlyStopping"):
        make(tmp_path).search(callbacks=[keras.callbacks.EarlyStopping()])
    assert not list(tmp_path.iterdir())


def test_what_a_session_hands_over_comes_back_as_it_was(tmp_path):
    arrays = {}
    given = {"x": (np.arange(3), [1, 2.5, "a", None, True]), "d": {1: np.float32(0.5)}}
    packed = imported._packed(given, "x", arrays)
    back = imported._unpacked(json.loads(json.dumps(packed)), arrays)
    assert isinstance(back["x"], tuple) and back["x"][1] == given["x"][1] and back["d"] == {1: 0.5}
    np.testing.assert_array_equal(back["x"][0], given["x"][0])
    with pytest.raises(ValueError, match="Received: callbacks with a EarlyStopping"):
        imported._packed([keras.callbacks.EarlyStopping()], "callbacks", arrays)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"strategy": "mirored"}, "Did you mean 'mirrored'"),
        ({"workers_per_trial": 2}, 'need strategy="multiworker"'),
        ({"parallel_trials": 1000}, "a core for each worker"),
        ({"tuner_id": None}, "An argument of Tuner is unknown"),
        ({"distribution_strategy": "mirrored"}, "must be a tf.distribute.Strategy"),
        ({"early_stopping": "medan"}, "Did you mean 'median'"),
        ({"executions_per_trial": 0}, "at least 1"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, changes, text):
    with pytest.raises(ValueError, match=text):
        make(tmp_path, **changes)


def test_what_is_no_hypermodel_and_no_oracle_is_refused(tmp_path):
    oracle = keras_tuner.oracles.RandomSearchOracle(objective="val_loss")
    with pytest.raises(ValueError, match="`hypermodel` must be"):
        tuner.Tuner(None, oracle)
    with pytest.raises(ValueError, match="`oracle` must be"):
        tuner.Tuner(build, "random")
    with pytest.raises(ValueError, match="Did you mean 'max_trials'"):
        tuners.RandomSearch(build, objective="val_loss", max_trial=3)


def test_a_worker_may_not_start_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(ValueError, match="starts the workers of its trials itself"):
        make(tmp_path)


def test_overwrite_removes_a_search_and_nothing_else(tmp_path):
    folder = tmp_path / "untitled_project"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    with pytest.raises(ValueError, match="no search.json"):
        make(tmp_path, overwrite=True)
    assert (folder / "thesis.txt").exists()
    for name in ("search.json", "oracle.json"):  # the second is keras-tuner's
        places._taken.clear()
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
        make(tmp_path, overwrite=True)
        assert not folder.exists()


def test_a_later_tuner_of_the_script_puts_the_search_of_an_earlier_one_aside(tmp_path):
    first = make(tmp_path, overwrite=True)
    leave_search(tmp_path / "untitled_project")
    second = make(tmp_path, overwrite=True)
    assert first.get_best_hyperparameters()[0].get("units") == 16
    assert not second.get_best_hyperparameters()
    assert second.project_dir == str(tmp_path / "untitled_project")


def test_overwrite_leaves_alone_a_search_that_is_going_on(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "_taken", {})
    folder, aside = tmp_path / "untitled_project", tmp_path / ".untitled_project.tuner1"
    leave_search(folder)
    leave_search(aside)  # of the first tuner of that script
    with contextlib.closing(journal.Journal(folder / "journal.jsonl")):
        with pytest.raises(ValueError, match="a search is going on"):
            places.take(tmp_path, folder.name, 1, True, 30)
        places.take(tmp_path, folder.name, 1, False, 30)  # to look at it
        assert (folder / "search.json").exists() and (aside / "search.json").exists()
    places._taken.clear()
    places.take(tmp_path, folder.name, 1, True, 30)
    assert not folder.exists() and not aside.exists()


def test_overwrite_waits_until_machines_that_had_joined_write_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "_taken", {})
    folder = tmp_path / "untitled_project"
    leave_search(folder)
    started = {"event": "started", "trial": "0002", "on": "vm-2", "session": "a"}
    with open(folder / "journal.jsonl", "a") as file:
        file.write(json.dumps(started) + "\n")

    def write():
        for _ in range(10):
            path = folder / "trials" / "0002"
            path.mkdir(parents=True, exist_ok=True)
            (path / "metrics.jsonl").touch()
            time.sleep(0.02)

    machine = threading.Thread(target=write)
    machine.start()
    places.take(tmp_path, folder.name, 1, True, lease_seconds=2)
    machine.join()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "overwrite", "says"),
    [
        ("config.json", False, "holds a run of tfscale.fit"),
        ("config.json", True, "holds a run of tfscale.fit"),
        ("oracle.json", False, "holds a search of keras-tuner itself"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, name, overwrite, says):
    folder = tmp_path / "untitled_project"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(ValueError, match=says):
        make(tmp_path, overwrite=overwrite)
    assert (folder / name).exists()


def test_a_later_tuner_takes_the_place_of_an_earlier_one_in_a_folder_of_folders(tmp_path):
    make(tmp_path, project_name="digits/mlp", overwrite=True)
    leave_search(tmp_path / "digits" / "mlp")
    make(tmp_path, project_name="digits/mlp", overwrite=True)
    [aside] = (tmp_path / "digits").iterdir()
    assert aside.name.startswith(".mlp.tuner") and (aside / "search.json").exists()


def leave_search(folder):
    """Write what a search of two trials leaves, the second of which has failed."""
    events = [{"event": "created", "trial": id, "values": {"units": 16}} for id in ("0000", "0001")]
    history = [{"epoch": i + 1, "val_loss": value} for i, value in enumerate([3.0, 1.0, 2.0])]
    ended = {"event": "ended", "trial": "0000", "state": "completed", "reason": "", "score": 1.0}
    events.append({**ended, "best_epoch": 2, "epochs": 3, "history": history})
    failed = {"trial": "0001", "state": "failed", "reason": "no layer", "score": None}
    events.append({**events[-1], **failed, "best_epoch": None, "history": []})
    for event in events[:2]:
        path = folder / "trials" / event["trial"]
        path.mkdir(parents=True)
        task = scripts.Assignment(1, event["trial"], str(path), {}, event["values"], epochs=3)
        (path / "trial.json").write_text(json.dumps(dataclasses.asdict(task)))
    (folder / "search.json").write_text("{}")
    (folder / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))


def test_what_a_search_has_found_is_there_as_trials_of_keras_tuner(tmp_path, capsys):
    leave_search(tmp_path / "untitled_project")
    found = make(tmp_path)
    [best] = [trial for trial in found.oracle.get_best_trials(1) if trial.score is not None]
    assert (best.trial_id, best.score, best.best_step, best.status) == ("0000", 1.0, 1, "COMPLETED")
    assert best.metrics.get_best_value("val_loss") == 1.0
    assert best.hyperparameters.get("tuner/epochs") == 3
    assert found.oracle.trials["0001"].message == "failed: no layer"
    assert found.remaining_trials == 0
    found.results_summary()
    assert "units: 16" in (shown := capsys.readouterr().out) and "failed: no layer" in shown
    with pytest.raises(ValueError, match="trial 0000, which has saved none"):
        found.get_best_models()


def record(tmp_path, state, id="0000"):
    return types.SimpleNamespace(id=id, state=state, reason="it broke", path=tmp_path)


@pytest.fixture
def log(tmp_path):
    with contextlib.closing(journal.Journal(tmp_path / "journal.jsonl")) as found:
        yield found


def test_failures_in_a_row_end_a_search_where_the_user_says_so(tmp_path, log):
    ending = endings.Endings(2, log)
    for state in ("failed", "completed", "hung"):
        ending.take(record(tmp_path, state))
    with pytest.raises(RuntimeError, match="2 trials in a row"):
        ending.take(record(tmp_path, "diverged"))
    unlimited = endings.Endings(None, log)
    for _ in range(20):
        unlimited.take(record(tmp_path, "failed"))
    oracle = keras_tuner.oracles.RandomSearchOracle()
    assert endings.failures_allowed(oracle) is None and endings.failures_allowed(oracle, 3) == 3
    oracle.max_consecutive_failed_trials = 8
    assert endings.failures_allowed(oracle) == 8


def test_a_search_that_failures_have_ended_goes_on_behind_them_with_a_new_count(tmp_path, log):
    failed = [record(tmp_path, "failed", f"{number:04d}") for number in range(6)]
    ended_by = []
    for _ in range(3):  # processes, each of which begins with what has ended before
        ending = endings.Endings(2, log)
        with pytest.raises(RuntimeError) as raised:
            for one in failed:
                ending.take(one)
        ended_by.append(re.search(r"trial (\d+)", str(raised.value))[1])
    assert ended_by == ["0001", "0003", "0005"]


def test_a_fatal_error_of_a_trial_is_raised_once_as_the_class_of_keras_tuner(tmp_path, log):
    class Mine(keras_tuner.errors.FatalTypeError):
        pass

    kinds = [kind.__name__ for kind in Mine.__mro__]
    (tmp_path / scripts.FATAL).write_text(json.dumps({"kinds": kinds, "message": "no data"}))
    with pytest.raises(keras_tuner.errors.FatalTypeError, match="no data .trial 0000"):
        endings.Endings(None, log).take(record(tmp_path, "failed"))
    endings.Endings(None, log).take(record(tmp_path, "failed"))


def test_models_are_built_under_the_strategy_and_no_larger_than_allowed(tmp_path):
    one = tf.distribute.OneDeviceStrategy("CPU:0")
    model = make(tmp_path, distribution_strategy=one).build_distributed(
        keras_tuner.HyperParameters()
    )
    assert model.distribute_strategy is one
    with pytest.raises(keras_tuner.errors.FailedTrialError, match="max_model_size=4"):
        make(tmp_path, max_model_size=4).build_distributed(keras_tuner.HyperParameters())


def test_classes_take_keras_tuners_arguments_by_place_and_may_be_derived_from(tmp_path):
    class Mine(tuners.RandomSearch):
        def __init__(self, **arguments):
            super().__init__(build, "val_loss", 7, directory=tmp_path, **arguments)

        def on_epoch_end(self, trial, model, epoch, logs=None):
            super().on_epoch_end(trial, model, epoch, logs)

    mine = Mine(max_consecutive_failed_trials=4)
    assert isinstance(mine, tuner.Tuner) and mine.oracle.max_trials == 7
    assert mine.overridden(["on_epoch_end", "on_epoch_begin"]) == ["on_epoch_end"]
    with pytest.raises(ValueError, match="runs in the process of a trial"):
        mine.run_trial(None)


def history_of(**metrics):
    history = keras.callbacks.History()
    history.history = metrics
    return history


@pytest.mark.parametrize(
    ("result", "best"),
    [
        (
            history_of(loss=[3.0, 2.0, 1.0], val_loss=[2.0, 1.0, 3.0]),
            {"loss": 2.0, "val_loss": 1.0},
        ),
        (history_of(loss=[3.0]), None),
        (0.5, {"val_loss": 0.5}),
        ({"val_loss": 0.5, "other": 1.0}, {"val_loss": 0.5, "other": 1.0}),
        ({"other": 1.0}, None),
        ([0.5, 1.5], {"val_loss": 1.0}),
        (None, None),
        ("good", None),
    ],
)
def test_what_fit_may_return(result, best):
    assert returned.best_of(result, keras_tuner.Objective("val_loss", "min")) == best


def test_what_an_oracle_was_told_counts_as_returned():
    trial = keras_tuner.engine.trial.Trial(keras_tuner.HyperParameters())
    objective = keras_tuner.Objective("cost", "min")
    assert returned.told_of(trial, objective) is None
    trial.metrics.register("cost", "min")
    for step, cost in enumerate((3, 1, 2)):
        trial.metrics.update("cost", cost, step)
    assert returned.told_of(trial, objective) == {"cost": 1.0}


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (None, "where a NoneType came with nothing"),
        ([0.5, {"other": 1.0}], "where a dict came with other"),
        (
            history_of(loss=[3.0], accuracy=[1.0]),
            "where a History came with accuracy, loss. Give `search` validation_data",
        ),
    ],
)
def test_a_result_without_the_objective_says_what_there_is(result, says):
    error = returned.refusal(result, keras_tuner.Objective("val_loss", "min"))
    assert says in str(error) and "objective='val_loss'" in str(error)
    assert isinstance(error, keras_tuner.errors.FatalError)
    nameless = keras_tuner.oracles.RandomSearchOracle().objective
    assert "no objective, so that a number" in str(returned.refusal(result, nameless))


def test_history_of_a_fit_without_the_callbacks_is_the_curve(tmp_path):
    oracle = keras_tuner.oracles.RandomSearchOracle("val_loss")
    trial = keras_tuner.engine.trial.Trial(keras_tuner.HyperParameters())
    result = [history_of(loss=[3.0, 2.0, 1.0], val_loss=[2.0, 1.0, 3.0])]
    metrics = report.Report(tmp_path, oracle, trial).end(result)
    assert metrics == {"loss": 2.0, "val_loss": 1.0}
    curve = scripts.read_history(tmp_path / scripts.METRICS)
    assert [(e["epoch"], e["loss"], e["val_loss"]) for e in curve] == [
        (1, 3.0, 2.0),
        (2, 2.0, 1.0),
        (3, 1.0, 3.0),
    ]


def life_of(tmp_path):
    """A `Report` of a process that has a trial to run, and a model to train."""
    oracle = keras_tuner.oracles.RandomSearchOracle("val_loss")
    trial = keras_tuner.engine.trial.Trial(keras_tuner.HyperParameters())
    life = report.Report(tmp_path, oracle, trial)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    life.set_model(model)

    def epoch(number, loss, weight):
        model.set_weights([np.full((1, 1), weight, "float32")])
        life.on_epoch_end(number, {"val_loss": loss})

    return life, epoch


def kept_weight(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    report.load_weights(model, tmp_path)
    return float(model.get_weights()[0][0, 0])


def test_a_life_that_begins_in_the_second_execution_keeps_the_weights_of_a_better_first(tmp_path):
    life, epoch = life_of(tmp_path)
    life.begin(0)
    epoch(0, loss=2.0, weight=1)
    epoch(1, loss=1.0, weight=2)  # killed after this
    life, epoch = life_of(tmp_path)
    life.begin(0)  # this `fit` returns at once
    life.begin(1)
    epoch(0, loss=3.0, weight=3)
    assert kept_weight(tmp_path) == 2
    epoch(1, loss=0.5, weight=4)
    assert kept_weight(tmp_path) == 4


def test_a_trial_that_continues_another_keeps_the_best_weights_of_all_its_executions(tmp_path):
    life, epoch = life_of(tmp_path)
    life.begin(0)
    epoch(0, loss=2.0, weight=1)
    life.begin(1)
    epoch(0, loss=1.0, weight=2)
    life, epoch = life_of(tmp_path)  # Hyperband's next rung, which has a copy of the files
    life.begin(0)
    epoch(1, loss=1.5, weight=3)
    assert kept_weight(tmp_path) == 2
    epoch(2, loss=0.5, weight=4)
    assert kept_weight(tmp_path) == 4


def test_who_reads_the_best_weights_while_others_are_saved_reads_the_old_ones(tmp_path):
    life, epoch = life_of(tmp_path)
    life.begin(0)
    epoch(0, loss=2.0, weight=1)
    before = (tmp_path / scripts.WEIGHTS).read_bytes()
    with open(tmp_path / scripts.WEIGHTS, "rb") as reader:
        epoch(1, loss=1.0, weight=2)
        assert reader.read() == before
    assert kept_weight(tmp_path) == 2


def test_of_several_objectives_the_sum_counts():
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=[
            keras_tuner.Objective("val_accuracy", "max"),
            keras_tuner.Objective("val_loss", "min"),
        ]
    )
    result = history_of(val_loss=[1.0, 0.5], val_accuracy=[0.5, 0.75])
    best = returned.best_of(result, oracle.objective)
    assert best[oracle.objective.name] == 0.5 - 0.75
