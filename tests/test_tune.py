"""python -m tfscale.tune: what it refuses, and whole searches on the digits."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tfscale import tune, tune_folder
from tfscale.cluster import ports
from tfscale.search import trials

SEARCH = """
from tfscale.config import *
def get_config():
    return RunConfig(
        model=ModelConfig(name="mlp", arguments={"units": (16,)}),
        train=TrainConfig(epochs=2),
    )
def search_space(hp):
    %s
"""
RATE = 'hp.Float("optimizer.learning_rate", 1e-4, 1e-1, sampling="log")'
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _log_level(monkeypatch):
    """What the command sets for itself and for its trials."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture
def search(tmp_path):
    """Return a function from the lines of a space to the arguments of a search of it."""

    def write(space=RATE):
        file = tmp_path / "search.py"
        file.write_text(SEARCH % space)
        return [f"--config={file}", f"--run_dir={tmp_path / 'run'}"]

    return write


def refusal(capfd, *arguments):
    assert tune.main(list(arguments)) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("space", "arguments", "says"),
    [
        ("pass", [], "at least one hyperparameter"),
        ('hp.Int("train.epoch", 1, 2)', [], "Did you mean train.epochs"),
        ('hp.Choice("optimizer.name", ["adm"])', [], "Did you mean 'adam'"),
        ('hp.Choice("optimizer.name", ["adm", "sgd"])', [], "Did you mean 'adam'"),
        ('hp.Float("optimizer.arguments.momentun", 0, 1)', [], "momentun"),
        ('hp.Float("model.arguments.dropuot", 0, 1)', [], "Did you mean 'dropout'"),
        (RATE, ["--tuner=bayes"], "Did you mean 'bayesian'"),
        (RATE, ["--objective=val_acuracy"], "It reports: val_accuracy, val_loss, accuracy, loss"),
        (RATE, ["--config.data.name=digitz"], "digitz"),
        (RATE, ["--config.model.arguments.units=(0,)"], "units"),
        (RATE, ["--parallel_trials=500"], "--oversubscribe"),
        (RATE, ["--strategy=mirrored", "--workers_per_trial=2"], "--strategy=multiworker"),
        (RATE, ["--tuner=hyperband", "--early_stopping=median"], "Leave out one of them"),
        (RATE, ["--num_replicas=4", "--strategy=onedevice"], "belongs to --strategy=mirrored"),
        (RATE, ["--factor=2"], "belongs to --tuner=hyperband"),
        (RATE, ["--min_epochs=2"], "belongs to --early_stopping=median"),
        (RATE, ["--max_restarts=2"], "belongs to --strategy=multiworker"),
        (RATE, ["--lease_seconds=9"], "belongs to a search on several machines"),
        (RATE, ["--search_chief=127.0.0.1:1", "--lease_seconds=100000"], "86400"),
        (RATE, ["--config.data.validation_split=test"], "No trial sees the test split"),
        ('hp.Choice("loss.name", ["poisson", "mse"])', ["--objective=val_loss"], "by a metric"),
        (
            'hp.Float("model.arguments.l2", 1e-6, 1e-3)',
            ["--objective=val_loss"],
            "different penalties, which are part of the loss, are compared by a metric",
        ),
        (RATE, ["--max_trials=0"], "'optimizer.learning_rate', a range without a step. Give a num"),
        (
            'hp.Choice("optimizer.name", ["sgd", "adam"])',
            ["--max_trials=0", "--tuner=bayesian"],
            "Give a number of trials, or use --tuner=grid",
        ),
        (
            'hp.Choice("data.global_batch_size", [1, 32])',
            ["--workers_per_trial=2", "--oversubscribe"],
            "search_space(hp), with data.global_batch_size=1: A global batch (`data.glob",
        ),
        (
            'hp.Choice("data.global_batch_size", [1, 32])',
            ["--strategy=mirrored"],
            "with data.global_batch_size=1: ",
        ),
        (
            'hp.Choice("data.transforms", ["flatten", "fleece"])',
            [],
            "with data.transforms='fleece'",
        ),
        ('hp.Choice("loss.name", ["mse", "msee"])', ["--objective=accuracy"], "loss.name='msee': "),
        (
            'hp.Choice("train.mixed_precision", ["", "float8"])',
            [],
            "with train.mixed_precision='float8': `train.mixed_precision` must be",
        ),
        ('hp.Float("model.arguments.dropout", 0, 2)', [], "with model.arguments.dropout=2.0: "),
        ('hp.Int("train.epochs", 0, 3)', [], "with train.epochs=0: `train.epochs` must be"),
        ('raise SystemExit("No.")', [], "fails: SystemExit: No. Mend it."),
        (RATE, ["--max_epochs=3"], "belongs to --tuner=hyperband"),
        (RATE, ["--parallel_trials=0"], "Use at least 1"),
        (RATE, ["--search_chief=host0"], "must be 'host:port'"),
        (RATE, ["--search_chief=127.0.0.1:1", "--search_role=boss"], "auto, chief, worker"),
        ('hp.Int("train.epochs", 1, 2)', ["--tuner=hyperband"], "set --max_epochs"),
        (RATE, ["--config.train.epochs=two"], "must be a whole number"),
    ],
)
def test_wrong_input_is_refused_before_a_trial_starts(search, capfd, space, arguments, says):
    assert says in refusal(capfd, *search(space), *arguments)


def test_file_without_a_space_is_refused(tmp_path, capfd):
    assert "search_space(hp)" in refusal(capfd)
    file = tmp_path / "run.py"
    file.write_text("from tfscale.config import RunConfig as get_config")
    assert "which has no search_space" in refusal(capfd, f"--config={file}")


def test_folder_of_a_run_or_of_another_search_is_refused(search, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    assert "holds a run of tfscale.fit" in refusal(capfd, *search())
    (tmp_path / "run/config.json").unlink()
    (tmp_path / "run/oracle.json").write_text("{}")
    assert "holds keras-tuner's" in refusal(capfd, *search())
    (tmp_path / "run/oracle.json").unlink()
    (tmp_path / "run/search.json").write_text(json.dumps({"began": 1, "tuner": "grid"}))
    assert 'tuner: "grid" there and "random" here' in refusal(capfd, *search())


def test_folder_of_something_else_is_refused_and_left_as_it_was(search, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.csv").write_text("mine")
    assert "which has results.csv and no search.json" in refusal(capfd, *search())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.csv"]


def test_folder_with_logs_alone_is_taken(tmp_path):
    for name in ("slurm-7.out", ".nfs01", "job.err", "job.log", "lost+found", "logs", "chief.json"):
        (tmp_path / name).mkdir()
    tune_folder.open_journal(tmp_path).close()
    tune_folder.open_journal(tmp_path).close()  # it has a journal now
    (tmp_path / "thesis.txt").touch()
    tune_folder.open_journal(tmp_path).close()


def test_choices_that_fit_with_others_than_the_defaults_are_taken():
    import keras_tuner

    from tfscale import tune_checks
    from tfscale.config import ModelConfig, RunConfig
    from tfscale.search import space

    hp = keras_tuner.HyperParameters()
    hp.Choice("train.max_loss", [0.0, 5.0])
    hp.Choice("train.on_bad_loss", ["", "stop"])  # 5.0 is refused with the first one
    base = RunConfig(model=ModelConfig(name="mlp", arguments={"units": (4,)}))
    tune_checks.check_trials(hp, lambda values: space.apply(base, values), 1)


def test_schedule_may_span_more_epochs_than_the_run():
    from tfscale import experiment
    from tfscale.config import RunConfig, ScheduleConfig, TrainConfig

    config = RunConfig(train=TrainConfig(epochs=2), schedule=ScheduleConfig(epochs=6))
    run = experiment.build(config, "onedevice")
    schedule = run.trainer.model.optimizer.get_config()["learning_rate"]["config"]
    assert schedule["decay_steps"] == 6 * run.splits.train.steps_per_epoch


def command(arguments, *more):
    return [sys.executable, "-m", "tfscale.tune", *arguments, *more]


def start(run_dir, arguments, *more, **options):
    """Start a search in a folder of its own; return its process."""
    arguments = [a for a in arguments if not a.startswith("--run_dir")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(f"{run_dir}.log", "a") as log:
        return subprocess.Popen(
            command(arguments, f"--run_dir={run_dir}", *more),
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            **options,
        )


def finish(process, run_dir, code=0):
    assert process.wait(250) == code, pathlib.Path(f"{run_dir}.log").read_text()
    return pathlib.Path(f"{run_dir}.log").read_text()


def table(run_dir):
    """The rows of results.csv, times aside."""
    with open(run_dir / "results.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def kill_in_trial(process, run_dir, number, epoch):
    """Kill a search with all signals it cannot hear when a trial has ended an epoch."""
    metrics = run_dir / f"trials/{number:04d}/metrics.jsonl"
    deadline = time.monotonic() + 200
    while not trials.read_history(metrics)[epoch - 1 :]:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def processes_in(run_dir):
    """Processes whose command line names a folder, or that write into a file in it."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            text = (entry / "cmdline").read_bytes().decode(errors="replace")
            text += os.readlink(entry / "fd/1")
        except OSError:
            continue
        if str(run_dir) in text and int(entry.name) != os.getpid():
            found.append(entry.name)
    return found


def wait_until_gone(run_dir):
    deadline = time.monotonic() + 30
    while found := processes_in(run_dir):
        assert time.monotonic() < deadline, f"trials outlive their search: {found}"
        time.sleep(0.05)


@pytest.mark.workers
def test_killed_search_goes_on_with_its_trial_and_scores_its_winner(search, tmp_path):
    arguments, run_dir = [*search(), "--max_trials=2", "--config.train.epochs=20"], tmp_path / "run"
    kill_in_trial(start(run_dir, arguments), run_dir, number=1, epoch=2)
    wait_until_gone(run_dir)
    shown = finish(start(run_dir, arguments), run_dir)
    assert [(row["state"], row["epochs"]) for row in table(run_dir)] == [("completed", "20")] * 2
    assert "Going on from step" in (run_dir / "trials/0001/logs/trial.log").read_text()
    best = json.loads((run_dir / "best.json").read_text())
    assert best["data"]["test_split"] == "test" and not best["data"]["validation_fraction"]
    assert f"python -m tfscale.fit --config={run_dir / 'best.json'}" in shown
    accuracy = json.loads((run_dir / "summary.json").read_text())["test"]["accuracy"]
    assert f"accuracy {accuracy:.4f}" in shown


@pytest.mark.workers
def test_stopped_search_says_where_it_is_and_how_it_goes_on(search, tmp_path):
    config, _ = search()
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command([config, "--max_trials=1", "--config.train.epochs=500"]),
        cwd=tmp_path,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "trial 0000 begins" in line:
            process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 143
    [run_dir] = (tmp_path / "runs").iterdir()
    where = f"runs/{run_dir.name}"
    assert f"the search is in {where}\n" in lines
    assert lines[-1] == f"stopped; the same command with --run_dir={where} goes on.\n"


@pytest.mark.slow
@pytest.mark.workers
def test_full_disk_stops_a_search_that_goes_on_when_there_is_room(search, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        run_dir = disk / "my run"
        arguments = [*search(), "--max_trials=3", f"--run_dir={run_dir}"]
        arguments += ["--config.checkpoint.keep_last=100", "--config.checkpoint.save_every_steps=5"]

        def run():
            done = subprocess.run(
                command(arguments),
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
                timeout=250,
            )
            return done.returncode, done.stdout + done.stderr

        code, shown = run()
        assert code == 1 and "error: The disk must have room" in shown, shown
        events = trials._lines(run_dir / "journal.jsonl")
        assert not [e for e in events if e.get("state") == "failed"], shown
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        code, shown = run()
        assert code == 0, shown
        assert f"python -m tfscale.fit '--config={run_dir / 'best.json'}'\n" in shown
        assert [row["state"] for row in table(run_dir)] == ["completed"] * 3
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.workers
@pytest.mark.parametrize("tuner", ["random", "bayesian", "hyperband"])
def test_killed_search_ends_as_an_undisturbed_one(search, tmp_path, tuner):
    arguments = [*search(), f"--tuner={tuner}", "--config.train.epochs=3"]
    arguments += ["--max_trials=6"] if tuner != "hyperband" else []
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(undisturbed, arguments), undisturbed)
    kill_in_trial(start(killed, arguments), killed, number=1, epoch=1)
    kill_in_trial(start(killed, arguments), killed, number=4, epoch=1)
    finish(start(killed, arguments), killed)
    assert table(killed) == table(undisturbed)
    saved = [json.loads((folder / "best.json").read_text()) for folder in (killed, undisturbed)]
    assert saved[0] == saved[1]


@pytest.mark.slow
@pytest.mark.workers
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tuner", ["random", "grid"])
def test_joined_machine_that_is_killed_leaves_the_table_of_an_undisturbed_search(
    search, tmp_path, tuner
):
    space = RATE if tuner == "random" else 'hp.Float("optimizer.learning_rate", 0.01, 0.05, 0.01)'
    arguments = [*search(space), f"--tuner={tuner}", "--max_trials=3", "--config.train.epochs=20"]
    undisturbed, run_dir = tmp_path / "undisturbed", tmp_path / "joined"
    finish(start(undisturbed, arguments), undisturbed)
    arguments += [f"--search_chief=127.0.0.1:{ports.free_ports(1)[0]}", "--lease_seconds=9"]
    leads = start(run_dir, arguments, "--search_role=chief")
    # In a group of its own, as another machine would be.
    joins = start(run_dir, arguments, "--search_role=worker", start_new_session=True)
    journal, deadline = run_dir / "journal.jsonl", time.monotonic() + 200
    while not [e for e in trials._lines(journal) if e.get("on") and trial_has_begun(run_dir, e)]:
        assert leads.poll() is None and joins.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(joins.pid, signal.SIGKILL)
    joins.wait()
    try:
        finish(leads, run_dir)
    finally:
        leads.kill()
    assert table(run_dir) == table(undisturbed)
    events = trials._lines(journal)
    assert [e["losses"] for e in events if e["event"] == "lost"] == [1]


def trial_has_begun(run_dir, event):
    return trials.read_history(run_dir / "trials" / event["trial"] / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.workers
def test_hyperbands_second_rung_equals_one_longer_run(search, tmp_path):
    """It repeats no epoch, and its schedule spans the longest trial from the first rung on."""
    run_dir = tmp_path / "run"
    arguments = [*search(), "--tuner=hyperband", "--config.train.epochs=3"]
    finish(start(run_dir, arguments), run_dir)
    row = next(row for row in table(run_dir) if row["parent"])
    child, parent = (run_dir / "trials" / row[name] for name in ("id", "parent"))
    one_run = tmp_path / "one"
    fit = ["-m", "tfscale.fit", f"--config={child / 'config.json'}", f"--run_dir={one_run}"]
    subprocess.run([sys.executable, *fit, "--deterministic"], check=True, cwd=ROOT)
    own, whole = (trials.read_history(path / "metrics.jsonl") for path in (child, one_run))
    assert own == whole and len(own) == 3
    assert trials.read_history(parent / "metrics.jsonl") == own[:1]
    assert "Going on from step" in (child / "logs/trial.log").read_text()


@pytest.mark.slow
@pytest.mark.workers
def test_trials_of_two_workers_give_the_scores_of_one_and_end_with_their_search(search, tmp_path):
    arguments = [*search(), "--max_trials=2", "--oversubscribe", "--config.train.epochs=20"]
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(one, arguments), one)
    kill_in_trial(start(two, arguments, "--workers_per_trial=2"), two, number=0, epoch=2)
    wait_until_gone(two)
    shown = finish(start(two, arguments, "--workers_per_trial=2"), two)
    train = f"--config={two / 'best.json'} --strategy=multiworker --workers=2"
    assert shown.splitlines()[-1] == f"train   python -m tfscale.fit {train}"
    for row, other in zip(table(one), table(two), strict=True):
        assert row["epochs"] == other["epochs"] == "20"
        assert float(row["score"]) == pytest.approx(float(other["score"]), abs=8e-3)
    assert "Going on from step" in (two / "trials/0000/logs/trial.log").read_text()
    assert (two / "trials/0000/logs/worker-1.log").exists()
