"""The launcher of scripts: what is refused, and what scripts find in real workers."""

import functools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from tfscale import launch, testing

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "scripts"
OWN_STRATEGY, FAILS = str(SCRIPTS / "launch_own_strategy.py"), str(SCRIPTS / "launch_fails.py")


def run(*arguments, cwd=ROOT, timeout=120):
    """Run the command; its output and error in one."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tfscale.launch", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@functools.cache
def found(*arguments, cwd=ROOT):
    """Run a script on two workers; what each of them found, and all output."""
    with tempfile.TemporaryDirectory(prefix="tfscale-") as name:
        folder = pathlib.Path(name)
        words = [word.replace("FOLDER", name) for word in arguments]
        done = run("--workers=2", f"--log_dir={folder / 'logs'}", *words, cwd=cwd)
        assert done.returncode == 0, done.stdout
        logs = [(folder / f"logs/worker-{rank}.log").read_text() for rank in (0, 1)]
        workers = [json.loads((folder / f"worker-{rank}.json").read_text()) for rank in (0, 1)]
    return workers, done.stdout, logs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"A script or `-m MODULE` must follow the flags\. Received: neither"),
        (["--workers", "2"], r"must follow the flags\. Received: neither"),
        (["-m"], r"must follow the flags"),
        (["nowhere.py"], r"must be a file that exists\. Received: 'nowhere.py'"),
        (["--", "tests"], r"must be a file that exists\. Received: 'tests'"),
        (["-m", "nowhere.at_all"], r"module that Python can find\. Received: 'nowhere.at_all'"),
        (["--worker=2", FAILS], r"'worker'\. Did you mean: workers"),
        (["--workers=0", FAILS], r"--workers=0"),
        (["--workers=two", FAILS], r"--workers=two"),
        (["--seed=-1", FAILS], r"--seed=-1"),
        (["--start_timeout_seconds=0", FAILS], r"--start_timeout_seconds=0"),
        (["--max_restarts=-1", FAILS], r"--max_restarts=-1"),
        (["--save_every_steps=5", FAILS], r"belongs to --run_dir\. Received: --save_every_steps=5"),
        (["--run_dir=x", "--nokeras_fit", FAILS], r"Received: --run_dir with --keras_fit=false"),
        (["--run_dir=x", "--keep_last=0", FAILS], r"--keep_last=0"),
    ],
)
def test_what_cannot_be_started_is_refused_in_one_line(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(launch.supervise, "run_local_workers", None)
    monkeypatch.chdir(ROOT)
    assert launch.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert re.search(message, err), err


@pytest.mark.parametrize(
    ("task", "workers", "message"),
    [
        (
            ("worker", 0),
            ["--workers=3"],
            r"must be its size.*Received: --workers=3 in a cluster of 2",
        ),
        (("evaluator", 0), [], r"train together, and an evaluator does not"),
    ],
)
def test_what_does_not_fit_the_cluster_is_refused(capsys, monkeypatch, task, workers, message):
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    config = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert launch.main([*workers, FAILS]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_follows_the_script_belongs_to_it(monkeypatch):
    started = []
    monkeypatch.setattr(
        launch.supervise,
        "run_local_workers",
        lambda *args, **more: started.append((args, more)) or 7,
    )
    monkeypatch.chdir(ROOT)
    for before in (["--workers=3"], ["--workers", "3"], ["--workers=3", "--"]):
        argv = [*before, FAILS, "--help", "--workers=9", "--", "-m"]
        assert launch.main([*argv]) == 7
        (command, num_workers), more = started.pop()
        assert num_workers == 3
        assert command[-5:] == [FAILS, "--help", "--workers=9", "--", "-m"]
        assert re.fullmatch(r"runs/launch_fails-\d{8}-\d{6}/logs", more["log_dir"])
        assert more["private_network"] is None  # where the kernel allows it, or with a warning
        assert more["max_restarts"] == 0  # a script may have no checkpoints to go on from
    argv = ["--private_network=false", "--nokeras_fit", "--seed=5", "--max_restarts", "2"]
    argv += ["-m", "json.tool", "--seed=6"]
    assert launch.main(argv) == 7
    (command, num_workers), more = started.pop()
    assert num_workers == 1 and command[-3:] == ["-m", "json.tool", "--seed=6"]
    assert more["max_restarts"] == 2
    assert more["private_network"] is False
    settings = json.loads(command[-4])
    assert (settings["seed"], settings["keras_fit"]) == (5, False)


def test_run_dir_has_logs_and_a_seed_that_stays_and_restarts(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(
        launch.supervise,
        "run_local_workers",
        lambda command, workers, **more: started.append((json.loads(command[2]), more)) or 0,
    )
    argv = [f"--run_dir={tmp_path}", "--save_every_steps=5", str(ROOT / FAILS)]
    for extra in ([], [], ["--max_restarts=0"]):
        assert launch.main([*extra, *argv]) == 0
    seeds = {settings["seed"] for settings, _ in started}
    assert len(seeds) == 1
    assert [more["max_restarts"] for _, more in started] == [3, 3, 0]
    assert all(more["log_dir"] == str(tmp_path / "logs") for _, more in started)
    assert started[0][0]["save"] == {"save_every_steps": 5}
    assert started[0][0]["run_dir"] == str(tmp_path)


@pytest.mark.workers
class TestScriptWithItsOwnStrategy:
    @staticmethod
    def found():
        return found("--seed=7", OWN_STRATEGY, "--folder=FOLDER", "--workers=9")

    def test_every_way_to_ask_for_it_gives_the_one_of_the_process(self):
        for rank, worker in enumerate(self.found()[0]):
            assert worker["same"] and worker["scoped"] and worker["isinstance"] == [True, True]
            assert worker["is_chief"] == (rank == 0)

    def test_it_knows_its_place_when_the_script_takes_tf_config_away(self):
        for rank, worker in enumerate(self.found()[0]):
            assert worker["task"] == ["worker", rank, 2]
            assert worker["shard"] == [rank, 2] and worker["num_workers"] == 2

    def test_replicas_train_together(self):
        """Their targets are 0 and 1: both end at the mean."""
        for worker in self.found()[0]:
            assert worker["weight"] == pytest.approx(0.5, abs=1e-6)

    def test_it_is_no_default_once_the_script_has_it(self):
        for worker in self.found()[0]:
            assert worker["default_before"] and not worker["default_after"]
        assert self.found()[0][0]["local"] == "ResourceVariable"

    def test_seeds_are_those_asked_for_on_all_workers_and_the_scripts_own_win(self):
        workers = self.found()[0]
        for worker in workers:
            assert worker["draws"] == worker["draws_of_seven"] == workers[0]["draws"]
            assert worker["draws_of_three"] == workers[0]["draws_of_three"] != worker["draws"]
        assert workers[0]["data"] == workers[1]["data"]
        assert sorted(workers[0]["data"]) == list(range(6))

    def test_the_script_is_main_as_python_runs_it(self):
        for worker in self.found()[0]:
            assert worker["argv"] == ["launch_own_strategy.py"] and worker["workers_flag"] == 9
            assert worker["main"] == worker["file"] == OWN_STRATEGY
            assert worker["path"] == str(SCRIPTS) and worker["name"] == "neighbour"
            assert not [m for m in worker["flags_before"] if "tfscale" in m or "config" in m]

    def test_settings_that_come_too_late_are_passed_over_with_one_warning_each(self):
        output = self.found()[1]
        for name in ("set_intra_op_parallelism_threads", "set_logical_device_configuration"):
            assert output.count(f"[0] warning: {name} comes after") == 1
        assert "[1] warning" not in output
        assert "set_visible_devices comes" not in output  # there is nothing to hide

    def test_who_ends_first_waits_for_the_others(self):
        assert self.found()[0][1]["waited"]

    def test_output_is_marked_with_the_rank_and_kept_a_worker(self):
        _, output, logs = self.found()
        first, *rest = [line for line in output.splitlines() if line]
        assert re.match(r"tfscale: 2 workers, seed 7 .*loopback only.*logs in ", first)
        assert all(re.match(r"\[[01]\] ", line) for line in rest), output
        shown = [line[4:] for line in rest if line.startswith("[0] ")]
        assert [line for line in logs[0].splitlines() if line] == [line for line in shown if line]


@pytest.mark.workers
class TestScriptForOneMachine:
    """It runs as a module, begins without a strategy and goes on with those that train alone."""

    @staticmethod
    def found():
        return found("-m", "launch_alone", "FOLDER", "--seed=4", cwd=SCRIPTS)

    def test_without_a_strategy_the_one_of_all_workers_is_the_default(self):
        for worker in self.found()[0]:
            assert worker["default"] and worker["variable"] == "MirroredVariable"

    def test_a_folder_that_another_worker_has_just_made_is_its_own_once(self):
        assert all(worker["exists"] for worker in self.found()[0])

    def test_a_module_is_main_as_python_runs_it(self):
        for worker in self.found()[0]:
            assert worker["name"] == "__main__" and worker["seed"] == 4
            assert worker["argv0"] == str(SCRIPTS / "launch_alone.py")
            assert worker["path"] == str(SCRIPTS)

    def test_strategies_of_one_machine_train_alone(self):
        one, other = (worker["losses"] for worker in self.found()[0])
        assert len(one) == 2 and len(other) == 3  # nobody waited for the other
        assert one + other == pytest.approx([one[0]] * 5, rel=1e-6)
        assert all(worker["replicas"] == 1 and worker["set"] for worker in self.found()[0])

    def test_the_warning_comes_once(self):
        output = self.found()[1]
        assert output.count("each of the 2 workers trains alone") == 1
        assert "[0] warning: The script makes a MirroredStrategy, so" in output

    def test_what_cannot_work_is_refused(self):
        for worker in self.found()[0]:
            for error, part in zip(
                worker["errors"],
                (
                    "Received: 'CPU:7', where there are CPU:0",
                    "Received: ParameterServerStrategy. Use tf.distribute.MultiWorkerMirrored",
                    "Received: TPUStrategy. Use tf.distribute.MultiWorkerMirrored",
                    "Virtual devices cannot be modified",
                ),
                strict=True,
            ):
                assert part in error


def losses(output):
    """What each worker printed, or one process."""
    return [json.loads(text) for text in re.findall(r"losses (\[.*\])", output)]


def as_tasks_of_a_cluster(script, *arguments):
    """Run by `run_workers`: each task starts the launcher without --workers."""
    from tfscale import launch

    launch.main([*arguments, script])


@pytest.mark.workers
class TestUnmodifiedScript:
    @pytest.fixture
    def script(self):
        return str(SCRIPTS / "launch_unmodified.py")

    def test_workers_give_the_losses_of_one_and_a_seed_repeats_a_run(self, script, tmp_path):
        two = run("--workers=2", f"--log_dir={tmp_path}", script)
        assert two.returncode == 0, two.stdout
        seed = re.search(r"tfscale: 2 workers, seed (\d+)", two.stdout)[1]
        one = run(f"--seed={seed}", f"--log_dir={tmp_path}", script)
        assert "tfscale: 1 worker (--workers=N starts N)" in one.stdout
        [alone] = losses(one.stdout)
        assert losses(two.stdout) == [pytest.approx(alone, rel=1e-5)] * 2
        assert alone[1] < alone[0]

    def test_in_a_cluster_each_task_is_a_worker_and_the_chief_chooses_the_seed(self, script):
        results = testing.run_workers(as_tasks_of_a_cluster, 2, args=[script])
        [one], [other] = (losses(result.output) for result in results)
        assert one == other
        assert re.search(r"tfscale: seed (\d+) \(--seed=\1 repeats", results[0].output)
        assert "tfscale: seed" not in results[1].output


@pytest.mark.workers
class TestFailures:
    def test_exit_code_is_that_of_the_script_and_ends_the_others(self, tmp_path):
        started = time.monotonic()
        done = run("--workers=2", f"--log_dir={tmp_path}", FAILS, "exit")
        assert done.returncode == 3, done.stdout
        assert time.monotonic() - started < 100  # the other one would sleep for 300 s
        assert "tfscale: worker 1 failed first: exit code 3" in done.stdout
        assert "Traceback" not in done.stdout

    def test_exception_is_shown_as_python_shows_it_with_the_way_to_the_network(self, tmp_path):
        with pytest.raises(OSError):
            socket.getaddrinfo("data.example.org", 443)
        done = run(f"--log_dir={tmp_path}", FAILS, "download")
        assert done.returncode == 1
        log = (tmp_path / "worker-0.log").read_text()
        assert log.count("Traceback") == 2  # the cause, and what the script made of it
        assert f'Traceback (most recent call last):\n  File "{FAILS}", line ' in log
        assert "run_script.py" not in log and "runpy" not in log
        *_, error, advice = log.splitlines()
        assert error == "RuntimeError: no data"
        assert "loopback and nothing else" in advice and "--private_network=false" in advice
