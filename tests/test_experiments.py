"""The files in experiments/: configurations are read and take a step, scripts run for a little."""

import ast
import functools
import importlib.util
import json
import math
import os
import pathlib
import shlex

import numpy as np
import pytest
import tensorflow as tf

import tfscale
from tfscale import command_line, config_files, experiment, fit, testing, tune_flags
from tfscale.config import RunConfig
from tfscale.data import digits
from tfscale.search import roles, space

ROOT = pathlib.Path(__file__).parents[1]
OWN = ("gan_digits", "own_loop", "own_step", "quadratic")  # scripts; the others are configurations
FILES = sorted(p for p in (ROOT / "experiments").glob("*.py") if p.stem not in OWN)
SEARCHES = [path for path in FILES if path.stem.endswith("_search")]
PAGES = [*FILES, ROOT / "docs" / "data.md"]
RANDOM = np.random.RandomState(0)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory):
    """MNIST's files with noise for images: as many as a warmup of 200 steps asks for."""
    folder = tmp_path_factory.mktemp("idx")
    for prefix, count in (("train", 6000), ("t10k", 20)):
        images = RANDOM.randint(0, 256, (count, 28, 28), np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV file with three features."""
    path = tmp_path_factory.mktemp("table") / "linear.csv"
    rows = RANDOM.normal(size=(80, 4))
    np.savetxt(path, rows, delimiter=",", comments="", header="x0,x1,x2,label")
    return path


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Two classes of images, to train on and to test."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("test", 1)):
        for name in ("cat", "dog"):
            for i in range(count):
                image = RANDOM.randint(0, 256, (9, 12, 3), np.uint8)
                path = str(root / split / name / f"{i}.png")
                tf.io.write_file(path, tf.io.encode_png(image))
    return root


@pytest.fixture(scope="module")
def data_dirs(idx_folder, table, image_folder, tmp_path_factory):
    """Where the data of each name are."""
    prepared = tmp_path_factory.mktemp("tfds")
    digits.prepare(str(prepared))
    return {
        "digits": prepared,
        "mnist": idx_folder,
        "fashion_mnist": idx_folder,
        "csv": table,
        "image_folder": image_folder,
    }


def commands(path, name="fit"):
    """The command lines of tfscale.fit, or of another command, in a file: lists of arguments."""
    text = path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text))
    lines = text.replace("\\\n", " ").splitlines()
    shown = [line for line in lines if line.lstrip().startswith(f"python -m tfscale.{name} ")]
    return [shlex.split(line)[3:] for line in shown]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_takes_a_step_and_scores_the_test_split(path, data_dirs):
    fields = json.loads(config_files.config_to_json(config_files.load_config(path)))
    config = config_files.config_from_dict(fields)  # as a run reads its config.json
    config.data.data_dir = str(data_dirs[config.data.name])
    run = experiment.build(config, "onedevice")
    before = run.trainer.model.get_weights()
    logs = run.trainer.take_one_step(run.splits.train)
    assert math.isfinite(logs["loss"])
    after = run.trainer.model.get_weights()
    assert any(np.any(b != a) for b, a in zip(before, after, strict=True))
    assert run.splits.test().num_examples > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_survives_json(path):
    config = config_files.load_config(path)
    text = config_files.config_to_json(config)
    again = config_files.config_from_dict(json.loads(text))
    assert config_files.config_to_json(again) == text
    assert again.data == config.data and again.train == config.train


def test_digits_cnn_spells_out_the_default():
    assert config_files.load_config(ROOT / "experiments" / "digits_cnn.py") == RunConfig()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_needs_nothing_but_the_configuration(path):
    imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import)]
    froms = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    assert not imports and [n.module for n in froms] == ["tfscale.config"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstring_names_its_own_file(path):
    shown = commands(path, "tune" if path in SEARCHES else "fit")
    assert shown and all(f"--config=experiments/{path.name}" in line for line in shown)


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_searches_that_are_shown_parse_and_have_a_space(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for arguments in commands(path, "tune"):
        values = command_line.parse(arguments, tune_flags.USAGE, tune_flags.define)
        tune_flags.check(values, values.parallel_trials, roles.Role())
        config = config_files.load_config(path)
        found = space.define(config_files.load_function(path, "search_space", ""))
        space.check(found, config, config_files.check_types)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_that_are_shown_parse_and_take_effect(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for arguments in commands(path):
        assert fit.main([*arguments, "--show_config"]) == 0, arguments
        shown = json.loads(capsys.readouterr().out)
        for argument in arguments:
            name, _, value = argument.partition("=")
            if name == "--config.data.data_dir":
                assert shown["data"]["data_dir"] == value


def test_python_on_the_page_about_data_runs(capsys):
    page = (ROOT / "docs" / "data.md").read_text()
    blocks = page.split("```python\n")[1:]
    assert blocks
    for block in blocks:
        exec(compile(block.split("```")[0], "docs/data.md", "exec"), {})
    assert "(500, 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("mnist_cnn.py", r"Received: 'mnist', which is not below .*--config.data.data_dir="),
        ("fashion_mnist_cnn.py", r"Add --config.data.download=true"),
        ("csv_regression.py", r"must be a CSV file.*Received: '.*missing'.*does not exist"),
        ("image_folder.py", r"must be a folder of images.*Received: '.*missing'"),
    ],
)
def test_absent_data_are_refused_with_the_way_out(file, expected, tmp_path):
    config = config_files.load_config(ROOT / "experiments" / file)
    config.data.data_dir = os.path.join(tmp_path, "missing")
    with pytest.raises(ValueError, match=expected):
        experiment.build(config, "onedevice")


def main_of(name):
    """The `main` of a script in experiments/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@functools.cache
def on_one_device(name):
    return main_of(name)(epochs=2)


@pytest.fixture
def two_replicas(monkeypatch):
    """Let scripts that take what there is have two replicas."""
    strategy = tfscale.make_strategy("mirrored", 2)
    monkeypatch.setattr(tfscale, "make_strategy", lambda: strategy, raising=False)


@pytest.fixture
def keras_as_it_was():
    yield
    tfscale.disable_keras_fit()


def test_quadratic_follows_its_closed_form():
    found, expected = main_of("quadratic")()
    assert len(found) == 50 and abs(found[-1] - 3) < 2e-4
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_own_loop_on_two_replicas_gives_the_losses_of_one_device(two_replicas):
    losses, score = main_of("own_loop")(epochs=2)
    np.testing.assert_allclose(losses, on_one_device("own_loop")[0], rtol=1e-5)
    assert score == pytest.approx(on_one_device("own_loop")[1], abs=1e-6)
    assert losses[1] < losses[0] / 2


def test_own_step_on_two_replicas_gives_the_scores_of_one_device(two_replicas):
    scores = main_of("own_step")(epochs=2)
    assert scores["loss"] == pytest.approx(on_one_device("own_step")["loss"], rel=1e-5)
    assert scores["accuracy"] == pytest.approx(on_one_device("own_step")["accuracy"], abs=1e-6)
    assert scores["accuracy"] > 0.85


def test_gan_trains_on_two_replicas_and_leaves_a_picture(two_replicas, keras_as_it_was, tmp_path):
    path = tmp_path / "digits.png"
    history = main_of("gan_digits")(epochs=2, path=str(path)).history
    assert list(history) == ["d_loss", "g_loss"] and np.all(np.isfinite(list(history.values())))
    assert tf.io.decode_png(path.read_bytes()).shape == (4 * 64, 10 * 64, 1)


def run_own_loops(folder):
    """Run by `run_workers`: both scripts, under the one strategy there can be in a process."""
    import runpy

    import tfscale
    from tfscale import testing

    strategy = tfscale.make_strategy()
    tfscale.make_strategy = lambda: strategy
    losses, score = runpy.run_path(f"{folder}/own_loop.py")["main"](epochs=2)
    scores = runpy.run_path(f"{folder}/own_step.py")["main"](epochs=2)
    testing.collect(losses=losses, score=score, loss=scores["loss"], accuracy=scores["accuracy"])


@pytest.mark.workers
def test_own_loop_and_own_step_on_two_workers_give_the_numbers_of_one_device():
    losses, score = on_one_device("own_loop")
    scores = on_one_device("own_step")
    for result in testing.run_workers(run_own_loops, 2, args=[ROOT / "experiments"]):
        found = result.arrays
        np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
        np.testing.assert_allclose(found["loss"], scores["loss"], rtol=1e-5)
        np.testing.assert_allclose(found["score"], score, atol=1e-6)
        np.testing.assert_allclose(found["accuracy"], scores["accuracy"], atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_docstring_of_a_script_names_its_command(name):
    path = ROOT / "experiments" / f"{name}.py"
    lines = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    assert f"    python experiments/{name}.py" in lines
    launched = f"    python -m tfscale.launch --workers=2 experiments/{name}.py"
    assert (launched in lines) == (name != "quadratic")
