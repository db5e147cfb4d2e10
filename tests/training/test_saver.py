"""When a run saves, what stays, and that the writing behind it loses nothing."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale import testing
from tfscale.strategy import make_strategy
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import loop
from tfscale.training import saver as saver_lib
from tfscale.training.checkpoint import Checkpoints
from tfscale.training.saver import Saver
from tfscale.training.trainer import Trainer

X = np.random.default_rng(0).normal(size=(80, 4)).astype("float32")
Y = X @ np.ones((4, 1), "float32")
SMALL = {"global_batch_size": 10, "verbose": 0, "steps_per_execution": 1}  # 8 steps an epoch


def trainer(jit_compile=False):
    strategy = make_strategy("onedevice")
    keras.utils.set_random_seed(3)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    return Trainer(model, jit_compile=jit_compile)


class Everything(Checkpoints):
    """Keeps all."""

    def __init__(self, directory, **options):
        super().__init__(directory, keep_last=99, **options)


class Slow(Checkpoints):
    """Writes when it is let go on; notes how many writes were under way at once."""

    def __init__(self, directory):
        super().__init__(directory, keep_last=99)
        self.may_go_on = threading.Event()
        self.began, self.under_way, self.most = [], 0, 0

    def save(self, checkpoint, also_keep=()):
        self.began.append(checkpoint.step)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        assert self.may_go_on.wait(60)
        super().save(checkpoint, also_keep)
        self.under_way -= 1


class At(keras.callbacks.Callback):
    """Calls a function at the end of a step of this call of `fit`."""

    def __init__(self, step, function):
        super().__init__()
        self.step, self.function, self.taken = step, function, 0

    def on_train_batch_end(self, batch, logs=None):
        self.taken += 1
        if self.taken == self.step:
            self.function()


@pytest.fixture(scope="module")
def shared():
    """One trainer for the tests that do not look at weights: its graphs are traced once."""
    return trainer()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [8, 16, 24]),
        ({"save_every_steps": 5}, [5, 10, 15, 20, 24]),
        ({"save_every_epochs": 2}, [16, 24]),
        ({"save_every_steps": 6, "save_every_epochs": 1}, [6, 8, 12, 16, 18, 24]),
        ({"save_every_seconds": 1000}, [24]),
        ({"save_every_seconds": 1000, "save_every_epochs": 2}, [16, 24]),
    ],
)
def test_a_run_saves_when_it_is_due_and_at_its_end(tmp_path, shared, options, expected):
    checkpoints = Everything(tmp_path)
    shared.fit(X, Y, epochs=3, checkpoints=checkpoints, **SMALL, **options)
    assert checkpoints.steps() == expected


def test_a_run_saves_by_the_clock(tmp_path, shared, monkeypatch):
    """The clock stands still but for 10 seconds in a step; the decision is a turn later."""
    now = [0.0]
    monkeypatch.setattr(saver_lib.time, "monotonic", lambda: now[0])

    def later():
        now[0] += 10

    checkpoints = Everything(tmp_path)
    callbacks = [At(step, later) for step in (3, 4, 11, 16)]
    shared.fit(
        X, Y, epochs=3, checkpoints=checkpoints, save_every_seconds=15, callbacks=callbacks, **SMALL
    )
    assert checkpoints.steps() == [5, 17, 24]


def test_by_the_clock_at_the_end_of_an_epoch_its_validation_is_in_the_history(
    tmp_path, shared, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr(saver_lib.time, "monotonic", lambda: now[0])
    checkpoints = Everything(tmp_path)
    shared.fit(
        X, Y, epochs=2, validation_data=(X, Y), checkpoints=checkpoints, save_every_seconds=5,
        callbacks=[At(7, lambda: now.__setitem__(0, 9.0))], **SMALL,
    )  # fmt: skip
    assert checkpoints.steps() == [8, 16]
    assert (
        len(checkpoint_lib.read(checkpoints.path(8)).facts["history"]["history"]["val_loss"]) == 1
    )


@pytest.mark.parametrize("name", ["save_every_steps", "save_every_seconds", "save_every_epochs"])
def test_a_negative_number_is_refused(name):
    with pytest.raises(ValueError, match=rf"`checkpoint\.{name}` must be at least 0.*-1"):
        Saver(**{name: -1})


class TestWritingBehindTheRun:
    def test_the_run_goes_on_while_it_is_written(self, tmp_path, shared):
        checkpoints = Slow(tmp_path)
        shared.fit(
            X, Y, checkpoints=checkpoints, save_every_steps=4,
            callbacks=[At(7, checkpoints.may_go_on.set)], **SMALL,
        )  # fmt: skip
        assert checkpoints.began == [4, 8]
        assert checkpoints.steps() == [4, 8]

    def test_the_second_waits_for_the_first(self, tmp_path, shared):
        checkpoints = Slow(tmp_path)
        timer = threading.Timer(1.0, checkpoints.may_go_on.set)
        timer.start()
        shared.fit(X, Y, epochs=2, checkpoints=checkpoints, save_every_steps=2, **SMALL)
        timer.join()
        assert checkpoints.began == checkpoints.steps() == [2, 4, 6, 8, 10, 12, 14, 16]
        assert checkpoints.most == 1

    def test_a_run_does_not_end_before_its_last_write_has(self, tmp_path, shared):
        checkpoints, ended = Slow(tmp_path), []
        timer = threading.Timer(1.0, lambda: (ended.append("write"), checkpoints.may_go_on.set()))
        timer.start()
        shared.fit(X, Y, checkpoints=checkpoints, **SMALL)
        assert ended == ["write"] and checkpoints.steps() == [8]
        timer.join()

    def test_a_run_that_fails_waits_for_the_write_under_way(self, tmp_path, shared):
        checkpoints = Slow(tmp_path)

        def fail():
            threading.Timer(0.5, checkpoints.may_go_on.set).start()
            raise InterruptedError

        with pytest.raises(InterruptedError):
            shared.fit(
                X, Y, checkpoints=checkpoints, save_every_steps=4, callbacks=[At(6, fail)], **SMALL
            )
        assert checkpoints.steps() == [4]

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_what_is_written_is_the_state_when_it_was_saved(self, tmp_path, jit_compile):
        """Steps that are taken before the write begins leave no trace in it."""
        at_once, behind = Everything(tmp_path / "at_once"), Slow(tmp_path / "behind")
        for checkpoints, callbacks in (
            (at_once, []),
            (behind, [At(8, lambda: behind.may_go_on.set())]),
        ):
            trainer(jit_compile).fit(
                X, Y, epochs=2, checkpoints=checkpoints, save_every_steps=5,
                callbacks=callbacks, **SMALL,
            )  # fmt: skip
        for step in (5, 10, 15, 16):
            expected, own = (checkpoint_lib.read(folder.path(step)) for folder in (at_once, behind))
            for name, value in expected.arrays.items():
                np.testing.assert_array_equal(own.arrays[name], value, err_msg=name)
            (
                own.facts["progress"].pop("wall_seconds"),
                expected.facts["progress"].pop("wall_seconds"),
            )
            for facts in (own.facts, expected.facts):
                facts["progress"].pop("timed_seconds")
                facts["progress"].pop("between_seconds")
            assert own.facts == expected.facts

    @pytest.mark.parametrize("optimizer", ["sgd", "adam", "lion", "ftrl", "adafactor"])
    def test_a_tensor_keeps_its_value_when_its_variable_changes(self, optimizer):
        """What the copy out of the device rests on, with dense and sparse gradients."""
        with make_strategy("onedevice").scope():
            model = keras.Sequential(
                [keras.Input((3,)), keras.layers.Embedding(9, 4), keras.layers.Flatten()]
            )
            model.add(keras.layers.Dense(1))
            model.compile(keras.optimizers.get(optimizer), "mse")
        x, y = np.arange(12).reshape(4, 3) % 9, np.ones((4, 1))
        model.train_on_batch(x, y)
        variables = [*model.variables, *model.optimizer.variables]
        read = tf.function(lambda: [tf.identity(v.value) for v in variables], autograph=False)
        held = [np.asarray(tensor) for tensor in read()]
        copies = [array.copy() for array in held]
        for _ in range(3):
            model.train_on_batch(x, y)
        for array, copy in zip(held, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
        changed = [not np.array_equal(v.numpy(), c) for v, c in zip(variables, copies, strict=True)]
        assert sum(changed) >= 4


class TestTheBest:
    LOSSES = (5.0, 2.0, 3.0, float("nan"), 2.0, 2.5, 1.0, 4.0)

    @pytest.fixture
    def run(self, tmp_path, shared, monkeypatch):
        """A function that makes a run whose validation loss is what the test says."""

        def evaluate(self, data, callbacks, steps_per_execution=None):
            return {"loss": TestTheBest.LOSSES[self.progress.epoch]}

        def fit(epochs=8, resume_from=None, **options):
            checkpoints = Checkpoints(
                tmp_path, **{"keep_last": 1, "keep_best": "val_loss", **options}
            )
            monkeypatch.setattr(loop.Loop, "evaluate", evaluate)
            shared.fit(
                X, Y, epochs=epochs, validation_data=(X, Y), checkpoints=checkpoints,
                resume_from=resume_from, **SMALL,
            )  # fmt: skip
            return checkpoints

        return fit

    @pytest.mark.parametrize(
        ("epochs", "expected"), [(1, [8]), (3, [16, 24]), (6, [16, 48]), (7, [56]), (8, [56, 64])]
    )
    def test_it_is_kept_beside_the_last(self, run, epochs, expected):
        assert run(epochs).steps() == expected

    def test_a_later_life_knows_it(self, run):
        checkpoints = run(3)
        saved = checkpoint_lib.read(checkpoints.path(24))
        assert saved.facts["best"] == {"metric": "val_loss", "value": 2.0, "step": 16}
        assert run(6, saved).steps() == [16, 48]
        saved = checkpoint_lib.read(checkpoints.path(48))
        by_another = run(8, saved, keep_best="mae")
        newest = checkpoint_lib.read(by_another.path(64))
        assert newest.facts["best"]["metric"] == "mae"

    def test_max_is_given(self, run):
        assert run(best_mode="max").steps() == [8, 64]

    def test_it_is_saved_whenever_it_comes(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, keep_last=9, keep_best="loss")
        trainer().fit(
            X, Y, epochs=3, checkpoints=checkpoints, save_every_steps=100, **SMALL
        )  # Adam on a linear model: every epoch is better.
        assert checkpoints.steps() == [8, 16, 24]

    @pytest.mark.parametrize(
        ("name", "validation", "reason"),
        [
            ("val_mae", None, r"'val_mae' in a run without validation data"),
            ("acuracy", None, r"Received: 'acuracy'.*best_mode"),
        ],
    )
    def test_a_name_that_is_not_there_is_refused(self, tmp_path, shared, name, validation, reason):
        with pytest.raises(ValueError, match=rf"`checkpoint\.keep_best`.*{reason}"):
            shared.fit(X, Y, checkpoints=Checkpoints(tmp_path, keep_best=name), **SMALL)
        assert not list(tmp_path.iterdir())

    def test_a_name_that_nothing_reports_is_said_once(self, tmp_path, shared, caplog):
        checkpoints = Checkpoints(tmp_path, keep_best="quality", best_mode="max")
        with caplog.at_level("WARNING", logger="absl"):
            shared.fit(X, Y, epochs=3, checkpoints=checkpoints, **SMALL)
        [message] = [r.getMessage() for r in caplog.records if "keep_best" in r.getMessage()]
        assert "'quality', where an epoch has loss, mae" in message

    def test_the_way_is_that_of_keras_callbacks(self):
        with make_strategy("onedevice").scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, "sigmoid")])
            metrics = ["accuracy", "mae", keras.metrics.AUC(name="auc")]
            model.compile("sgd", "mse", metrics=metrics)
        model.evaluate(X[:4], np.eye(4, 2), verbose=0)
        found = {
            name: saver_lib.higher_is_better(model, name)
            for name in ("loss", "val_loss", "mae", "val_mae", "accuracy", "val_auc")
        }
        assert found == {
            "loss": False, "val_loss": False, "mae": False, "val_mae": False, "accuracy": True,
            "val_auc": True,
        }  # fmt: skip
        assert not model.stop_training


@contextlib.contextmanager
def no_file_above(num_bytes):
    """The kernel refuses to make a file of this process larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestAFailedWrite:
    def test_it_ends_the_run_at_the_next_turn_and_the_last_good_one_stays(self, tmp_path, shared):
        failed = threading.Event()

        class Tells(Everything):
            def save(self, checkpoint, also_keep=()):
                try:
                    super().save(checkpoint, also_keep)
                except OSError:
                    failed.set()
                    raise

        checkpoints, lower = Tells(tmp_path), contextlib.ExitStack()

        def make_it_fail():
            while checkpoints.steps() != [3]:
                time.sleep(0.01)
            lower.enter_context(no_file_above(100))

        with lower, pytest.raises(OSError, match=r"File too large.*of step 6 in") as caught:
            shared.fit(
                X, Y, epochs=9, checkpoints=checkpoints, save_every_steps=3,
                callbacks=[At(5, make_it_fail), At(7, lambda: failed.wait(60))], **SMALL,
            )  # fmt: skip
        assert caught.value.errno == errno.EFBIG
        assert shared.progress.step in (7, 8)
        assert checkpoints.steps() == [3] and checkpoints.newest() == 3
        assert not checkpoints.unfinished()

    def test_the_last_write_of_a_run_is_no_exception(self, tmp_path, shared):
        checkpoints, lower = Everything(tmp_path), contextlib.ExitStack()

        def make_it_fail():
            while checkpoints.steps() != [4]:
                time.sleep(0.01)
            lower.enter_context(no_file_above(100))

        with lower, pytest.raises(OSError, match=r"File too large.*of step 8 in"):
            shared.fit(
                X, Y, checkpoints=checkpoints, save_every_steps=4,
                callbacks=[At(7, make_it_fail)], **SMALL,
            )  # fmt: skip
        assert checkpoints.steps() == [4]

    def test_what_is_no_error_of_the_disk_is_raised_as_it_is(self, tmp_path, shared):
        class Broken(Checkpoints):
            def save(self, checkpoint, also_keep=()):
                raise RuntimeError("broken by the test")

        with pytest.raises(RuntimeError, match="broken by the test"):
            shared.fit(X, Y, checkpoints=Broken(tmp_path), **SMALL)

    def test_another_error_is_the_one_that_ends_the_run(self, tmp_path, shared, caplog):
        stopped = threading.Event()

        class FailsLater(Checkpoints):
            def save(self, checkpoint, also_keep=()):
                assert stopped.wait(60)
                raise OSError(errno.ENOSPC, "full by the test")

        def fail():
            stopped.set()
            raise InterruptedError

        with pytest.raises(InterruptedError), caplog.at_level("ERROR", logger="absl"):
            shared.fit(
                X, Y, checkpoints=FailsLater(tmp_path), save_every_steps=4,
                callbacks=[At(5, fail)], **SMALL,
            )  # fmt: skip
        assert "The checkpoint of step 4: [Errno 28] full by the test" in caplog.text


FULL_DISK = """
import errno, pathlib, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_saver import SMALL, X, Y, trainer
from tfscale.training.checkpoint import Checkpoints

checkpoints = Checkpoints(pathlib.Path(sys.argv[1]) / "checkpoints", keep_last=99)
try:
    trainer().fit(X, Y, epochs=9, checkpoints=checkpoints, save_every_steps=3, **SMALL)
except OSError as error:
    assert error.errno == errno.ENOSPC, error
    failed = int(str(error).partition("of step ")[2].split()[0])
    assert checkpoints.steps() == list(range(3, failed, 3)), (checkpoints.steps(), error)
    assert checkpoints.newest() == failed - 3 and not checkpoints.unfinished()
    print("ended well at step", failed)
"""


def test_a_full_disk_ends_the_run_and_leaves_all_it_had(tmp_path):
    """On a file system of 64 kB, in a mount namespace of its own."""
    script = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "$@"'
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", script, "sh"]
    try:
        tried = subprocess.run([*enter, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare command")
    if tried.returncode:
        pytest.skip(f"a file system cannot be mounted: {tried.stderr.strip()}")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), os.path.dirname(__file__)]
    done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
    assert "ended well at step" in done.stdout, done.stderr


def _save_on_two_workers(directory):
    """First the clock of the chief decides, then the chief's disk is full."""
    import resource

    import keras
    import numpy as np

    from tfscale import testing
    from tfscale.strategy import make_strategy
    from tfscale.training import saver
    from tfscale.training.checkpoint import Checkpoints
    from tfscale.training.trainer import Trainer

    strategy = make_strategy("multiworker")
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("adam", "mse")
    trainer = Trainer(model)
    now, read = [0.0], []
    saver.time.monotonic = lambda: now[0]
    original = saver.Saver.save

    def save(self, step, *args):
        read.append(step)
        original(self, step, *args)

    saver.Saver.save = save

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            # The other's clock says that it is time in every step.
            step = trainer.progress.step
            now[0] += 100 if trainer.shard.worker else (10 if step in (3, 9) else 0)

    x = np.ones((80, 4), "float32")
    arguments = {"global_batch_size": 8, "steps_per_execution": 1, "callbacks": [Clock()]}
    checkpoints = Checkpoints(directory, keep_last=9)
    trainer.fit(x, x[:, :1], checkpoints=checkpoints, save_every_seconds=5, **arguments)
    seen = checkpoints.steps()  # the chief's last write has ended for both
    if trainer.is_chief:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    raised = ""
    try:
        trainer.fit(x, x[:, :1], epochs=9, checkpoints=checkpoints, save_every_steps=4, **arguments)
    except OSError as error:
        raised = str(error)
    if trainer.is_chief:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    testing.collect(read=read, seen=seen, raised=raised, step=trainer.progress.step)


@pytest.mark.workers
def test_the_chiefs_clock_and_the_chiefs_disk_decide_for_all(tmp_path):
    chief, other = testing.run_workers(_save_on_two_workers, 2, args=[tmp_path / "run"])
    assert chief.arrays["seen"].tolist() == other.arrays["seen"].tolist() == [4, 10]
    assert chief.arrays["read"].tolist() == other.arrays["read"].tolist()
    assert chief.arrays["read"].tolist()[:3] == [4, 10, 4]
    assert chief.arrays["step"] == other.arrays["step"]
    assert "File too large: the chief could not write" in str(chief.arrays["raised"])
    assert "of step 4 in" in str(chief.arrays["raised"])
    assert "that its log names" in str(other.arrays["raised"])
    assert Checkpoints(tmp_path / "run").steps() == [4, 10]


def test_a_killed_run_goes_on_from_what_is_whole(tmp_path):
    """A run that writes all the time is killed; a second one cleans up and ends as undisturbed."""
    script = """
import sys
sys.path.insert(0, sys.argv[2])
from test_saver import SMALL, X, Y, trainer
from tfscale.training.checkpoint import Checkpoints
import keras
class Say(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)
trainer().fit(
    X, Y, epochs=10**6, checkpoints=Checkpoints(sys.argv[1]), save_every_steps=1,
    callbacks=[Say()], **SMALL
)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run"), os.path.dirname(__file__)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(21):
            assert child.stdout.readline()
    finally:
        child.kill()
        child.communicate()
    checkpoints = Checkpoints(tmp_path / "run")
    saved = checkpoint_lib.read(checkpoints.path(checkpoints.newest()))
    assert saved.step >= 19
    (checkpoints.directory / "step-00000099.writing").mkdir(exist_ok=True)
    undisturbed, resumed = trainer(), trainer()
    epochs = saved.step // 8 + 2
    expected = undisturbed.fit(X, Y, epochs=epochs, **SMALL)
    history = resumed.fit(X, Y, epochs=epochs, checkpoints=checkpoints, resume_from=saved, **SMALL)
    assert not checkpoints.unfinished()
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=1e-5)
    for mine, theirs in zip(resumed.model.weights, undisturbed.model.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-6)
