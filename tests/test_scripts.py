"""Scripts as users have them, through the launcher: the numbers and files of one device.

The scripts in `scripts/` know nothing of tfscale. The reference is Keras' own `fit` in one process
for those that make no strategy, and one worker for those that need a cluster.
"""

import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

import keras
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ROOT / "tests" / "scripts"
DIGITS = str(ROOT / "tfscale" / "data" / "files" / "digits.csv.gz")

pytestmark = pytest.mark.workers

# As a driver for a script on two logical CPUs: the one line that a script needs, and the script.
ON_TWO_REPLICAS = """
import runpy, sys
import tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import tfscale
tfscale.enable_keras_fit()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Run:
    """What a run of a script left: its results by worker, its output and its folder."""

    def __init__(self, command, folder):
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environ,
            timeout=240,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.output, self.code, self.folder = done.stdout, done.returncode, pathlib.Path(folder)
        lines = re.findall(r"^(?:\[(\d)\] )?result (.*)$", self.output, re.MULTILINE)
        self.results = [json.loads(text) for _, text in sorted(lines)]

    @property
    def files(self):
        """Names of all files, those of TensorBoard without what is chosen anew each time."""
        found = (str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
        found = [re.sub(r"(tfevents)\..*", r"\1", name) for name in found]
        return sorted(name for name in found if not name.startswith("logs-of-workers"))


@pytest.fixture(scope="module")
def run():
    """Run a script once for all tests: `run(name, workers, *flags)`; 0 workers for plain Python."""
    with tempfile.TemporaryDirectory(prefix="tfscale-") as root:

        @functools.cache
        def run_once(name, workers, *flags, driver=()):
            folder = tempfile.mkdtemp(dir=root)
            own = [] if workers == 0 else ["-m", "tfscale.launch", f"--workers={workers}"]
            own += ["--log_dir=logs-of-workers", "--seed=7"] if workers else driver
            done = Run([*own, str(SCRIPTS / name), *flags], folder)
            assert done.code == 0, done.output
            assert len(done.results) == max(workers, 1), done.output
            return done

        yield run_once


def assert_close(found, expected, where=""):
    """Compare nested results: floats to 1e-5 of their size, all else exactly."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}/{i}")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-7), (where, found, expected)
    else:
        assert found == expected, where


THREE = pytest.param(3, marks=pytest.mark.slow)


def batch_size(workers):
    """The same global batch on any number of workers."""
    return f"--per_worker_batch_size={48 // workers}"


def tutorial(run, name, workers):
    return run(name, workers, f"--data={DIGITS}", "--folder=.", batch_size(workers))


class TestMultiWorkerTutorial:
    @pytest.mark.parametrize("workers", [2, THREE])
    def test_every_worker_reports_the_losses_of_one(self, run, workers):
        [expected] = tutorial(run, "multi_worker_tutorial.py", 1).results
        for found in tutorial(run, "multi_worker_tutorial.py", workers).results:
            assert_close(found, expected)
        assert expected["losses"][-1] < expected["losses"][0] / 2
        assert expected["restored"]

    @pytest.mark.parametrize("workers", [2, THREE])
    def test_files_are_those_of_the_chief_and_whole(self, run, workers):
        done = tutorial(run, "multi_worker_tutorial.py", workers)
        assert done.files == tutorial(run, "multi_worker_tutorial.py", 1).files
        assert done.files == [
            "ckpt/checkpoint",
            "ckpt/ckpt-1.data-00000-of-00001",
            "ckpt/ckpt-1.index",
            *(f"epoch-{epoch}.weights.h5" for epoch in (1, 2, 3)),
            "keras-model.keras",
        ]
        assert zipfile.ZipFile(done.folder / "keras-model.keras").testzip() is None


class TestCustomLoopTutorial:
    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [2, THREE])
    def test_every_worker_reports_the_losses_of_one(self, run, workers):
        [expected] = tutorial(run, "custom_loop_tutorial.py", 1).results
        for found in tutorial(run, "custom_loop_tutorial.py", workers).results:
            assert_close(found, expected)
        assert expected["losses"][-1] < expected["losses"][0]

    def test_checkpoint_is_the_chiefs(self, run):
        done = tutorial(run, "custom_loop_tutorial.py", 2)
        names = ["checkpoint", "ckpt-3.data-00000-of-00001", "ckpt-3.index"]
        assert done.files == [f"ckpt/{name}" for name in names]


class TestScriptForOneMachine:
    flags = (f"--data={DIGITS}", "--folder=.")

    @pytest.mark.parametrize("workers", [2, THREE])
    def test_every_worker_reports_what_keras_reports_on_one_device(self, run, workers):
        [expected] = run("single_machine.py", 0, *self.flags).results
        for found in run("single_machine.py", workers, *self.flags).results:
            assert_close(found, expected)
        rates = expected["history"]["learning_rate"]
        assert rates[-1] < rates[0]  # the plateau came
        assert expected["loaded"] == pytest.approx(expected["test"])

    @pytest.mark.parametrize("workers", [2, THREE])
    def test_files_are_those_of_one_device_and_whole(self, run, workers):
        alone, done = (run("single_machine.py", n, *self.flags) for n in (0, workers))
        assert done.files == alone.files and len(done.files) == 6
        lines, expected = ((r.folder / "log.csv").read_text().splitlines() for r in (done, alone))
        assert lines[0] == expected[0] and len(lines) == len(expected) == 7
        one, other = (keras.models.load_model(r.folder / "best.keras") for r in (done, alone))
        for found, wanted in zip(one.get_weights(), other.get_weights(), strict=True):
            assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
class TestGuides:
    @staticmethod
    def parts(run, workers, name):
        [expected] = run("guides.py", 0, f"--data={DIGITS}").results
        found = run("guides.py", workers, f"--data={DIGITS}").results
        return [result[name] for result in found], expected[name]

    @pytest.mark.parametrize("workers", [2, 3])
    @pytest.mark.parametrize(
        "name", ["customize_fit", "own_callbacks", "transfer_learning", "loop_over_batches"]
    )
    def test_every_worker_reports_what_keras_reports_on_one_device(self, run, name, workers):
        results, expected = self.parts(run, workers, name)
        for found in results:
            assert_close(found, expected)

    def test_callbacks_are_called_as_on_one_device_and_stop_all_workers(self, run):
        _, expected = self.parts(run, 2, "own_callbacks")
        assert 0 < expected["stopped"] < 8 and "test begins" in expected["calls"]

    def test_layers_are_frozen_and_thawed(self, run):
        _, expected = self.parts(run, 2, "transfer_learning")
        assert expected["frozen"] and expected["thawed"]

    @pytest.mark.parametrize("workers", [2, 3])
    def test_gan_sees_every_image_and_has_noise_of_its_own_on_each_replica(self, run, workers):
        results, (images, losses) = self.parts(run, workers, "gan")
        for found in results:
            assert found == results[0]
            assert found[0] == images == [330.0] * 2
            assert found[1] == pytest.approx(losses, rel=0.05) and found[1] != losses


class TestMirroredTutorial:
    name, data = "mirrored_tutorial.py", f"--data={DIGITS}"

    def test_on_two_replicas_it_gives_the_losses_of_one_device(self, run):
        [expected] = run(self.name, 0, self.data, "--folder=.", "--one_device").results
        driver = ("-c", ON_TWO_REPLICAS)
        done = run(self.name, 0, self.data, "--folder=.", driver=driver)
        [found] = done.results
        assert (found.pop("replicas"), expected.pop("replicas")) == (2, 1)
        assert_close(found, expected)
        assert "model.keras" in done.files

    def test_through_the_launcher_each_worker_trains_alone_and_a_warning_says_so(self, run):
        done = run(self.name, 2, self.data, "--folder=.")
        one, other = (dict(result) for result in done.results)
        # The first worker finds its own checkpoints, the other perhaps those of the first.
        assert one.pop("restored") == one["together"] and other.pop("restored")
        assert one == other and one["replicas"] == 1
        assert done.output.count("each of the 2 workers trains alone") == 1

    def test_workers_that_train_alone_leave_the_files_of_one_run(self, run):
        alone = run(self.name, 0, self.data, "--folder=.", "--one_device")
        done = run(self.name, 2, self.data, "--folder=.")
        assert done.files == alone.files and "ckpt/ckpt-3.keras" in done.files
        assert len((done.folder / "log.csv").read_text().splitlines()) == 4


class TestData:
    @pytest.mark.parametrize("kind", ["dataset", "arrays", "PyDataset"])
    @pytest.mark.parametrize("workers", [2, 3])
    def test_without_seeds_every_example_is_seen_once_an_epoch(self, run, workers, kind):
        epochs = [result[kind] for result in run("seen_examples.py", workers).results]
        for of_workers in zip(*epochs, strict=True):
            assert sorted(n for steps in of_workers for step in steps for n in step) == [*range(50)]
            for shares in zip(*of_workers, strict=True):  # of one step
                sizes = [len(share) for share in shares]
                assert max(sizes) - min(sizes) <= 1 and sum(sizes) in (11, 6)

    @pytest.mark.parametrize("kind", ["dataset", "PyDataset"])
    def test_each_epoch_has_an_order_of_its_own(self, run, kind):
        for result in run("seen_examples.py", 2).results:
            one, other = result[kind]
            assert one != other

    def test_workers_that_read_different_data_are_all_told(self, run):
        for said in run("different_data.py", 2).results:
            for call, message in said.items():
                assert "All workers must read the same batches" in message, call
                assert "Received: other examples" in message and "one seed" in message, call
            assert "in epoch 1." in said["fit"] and "in `evaluate`." in said["validation"]


def test_a_loop_for_one_device_fails_with_the_way_out(tmp_path):
    script = str(SCRIPTS / "loop_from_scratch.py")
    done = Run(["-m", "tfscale.launch", "--log_dir=logs", script], tmp_path)
    assert done.code == 1
    last = (tmp_path / "logs" / "worker-0.log").read_text().splitlines()[-1]
    assert "strategy" in last and "tfscale.Trainer(model, step=...)" in last
    assert "Gradients by the inputs are taken inside a tf.function" in last


def test_a_call_of_the_chief_alone_fails_with_the_way_out(tmp_path):
    script = str(SCRIPTS / "chief_alone.py")
    done = Run(["-m", "tfscale.launch", "--workers=2", "--log_dir=logs", script], tmp_path)
    assert done.code == 1
    log = (tmp_path / "logs" / "worker-0.log").read_text()
    assert "tfscale: Workers met in different calls" in log and "AssertionError" not in log


class TestCompiledBelowTheScope:
    @pytest.mark.slow
    def test_every_worker_reports_what_keras_reports_on_one_device(self, run):
        [expected] = run("compiled_outside.py", 0).results
        for found in run("compiled_outside.py", 2).results:
            assert_close(found, expected)

    def test_a_model_without_a_strategy_is_trained_alone_with_a_warning(self, run):
        done = run("compiled_outside.py", 2, "outside")
        assert done.output.count("was made outside of the scope of a strategy") == 1
        [expected] = run("compiled_outside.py", 0).results
        for found in done.results:
            assert_close(found, expected)
