"""Optimizers by Keras' identifiers: arguments, clipping, saved models, errors."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfscale import optimizers
from tfscale.config import OptimizerConfig
from tfscale.optimizers import build_optimizer, build_schedule


@pytest.mark.parametrize(
    ("name", "optimizer_class"),
    [
        ("sgd", keras.optimizers.SGD),
        ("Adam", keras.optimizers.Adam),
        ("adamw", keras.optimizers.AdamW),
        ("RMSprop", keras.optimizers.RMSprop),
        ("lion", keras.optimizers.Lion),
    ],
)
def test_every_spelling_of_an_optimizer_is_the_class(name, optimizer_class):
    assert type(build_optimizer(OptimizerConfig(name=name), 0.1)) is optimizer_class


def test_arguments_reach_the_optimizer():
    config = OptimizerConfig(name="sgd", arguments={"momentum": 0, "nesterov": False})
    assert build_optimizer(config, 0.1).momentum == 0.0
    config = OptimizerConfig(name="adamw", arguments={"beta_2": 0.95, "weight_decay": 0.1})
    optimizer = build_optimizer(config, 0.1)
    assert (optimizer.beta_2, optimizer.weight_decay) == (0.95, 0.1)


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_one_kind_of_clipping_is_set(clip):
    config = dataclasses.replace(OptimizerConfig(name="sgd"), **{clip: 0.5})
    optimizer = build_optimizer(config, 1.0)
    asked = {
        name: getattr(optimizer, name) for name in ("clipnorm", "global_clipnorm", "clipvalue")
    }
    assert {name: value for name, value in asked.items() if value} == {clip: 0.5}


def test_sgd_follows_the_schedule():
    schedule = build_schedule("exponential", 0.5, 2, {"decay_steps": 1, "decay_rate": 0.5})
    optimizer = build_optimizer(OptimizerConfig(name="sgd"), schedule)
    weight = keras.Variable(0.0)
    optimizer.build([weight])
    seen = []
    for _ in range(5):
        before = float(weight.value)
        optimizer.apply([keras.ops.ones(())])
        seen.append(before - float(weight.value))
    np.testing.assert_allclose(seen, [0.25, 0.5, 0.5, 0.25, 0.125], rtol=1e-6)


def compiled_model(schedule):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    config = OptimizerConfig(name="adam", global_clipnorm=1.0)
    model.compile(build_optimizer(config, schedule), "mse")
    return model


def test_saved_model_trains_on_as_if_it_had_not_been_saved(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(8, 3)), random.normal(size=(8, 2))
    schedule = build_schedule("cosine", 0.1, 3, {}, total_steps=10)
    model = compiled_model(schedule)
    for _ in range(4):
        model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")

    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert int(again.optimizer.iterations) == 4
    for _ in range(3):
        model.train_on_batch(x, y)
        again.train_on_batch(x, y)
    for weight, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-7)


def test_saved_model_loads_in_another_process_that_imports_the_schedules(tmp_path):
    path = tmp_path / "model.keras"
    compiled_model(build_schedule("constant", 0.1, 3)).save(path)
    code = (
        "import sys, keras, tfscale.optimizers.schedules\n"
        "model = keras.saving.load_model(sys.argv[1])\n"
        "assert abs(float(model.optimizer.learning_rate) - 0.1 / 3) < 1e-7"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_names_load_when_used():
    assert optimizers.LinearWarmup.__module__ == "tfscale.optimizers.schedules"
    with pytest.raises(AttributeError, match="build_optimiser"):
        _ = optimizers.build_optimiser


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "adm"}, r"`optimizer\.name`.*'adm'\. Did you mean 'adam'\?.*sgd"),
        ({"name": "optimizer"}, r"`optimizer\.name` is unknown"),
        ({"name": "sgd", "arguments": {"momentun": 0.9}}, r"Did you mean 'momentum'\?.*nesterov"),
        ({"arguments": {"clipnorm": 1.0}}, r"must not hold 'clipnorm'.*Set optimizer\.clipnorm"),
        ({"arguments": {"learning_rate": 1.0}}, r"Set optimizer\.learning_rate"),
        (
            {"arguments": {"gradient_accumulation_steps": 2}},
            r"more than one replica.*global_batch_size",
        ),
        ({"arguments": {"beta_1": "0.9"}}, r"arguments\.beta_1` must be a number.*'0\.9'"),
        ({"arguments": {"amsgrad": 1}}, r"arguments\.amsgrad` must be True or False.*1"),
        ({"name": "sgd", "arguments": {"momentum": 2.0}}, r"accepted by keras\.optimizers\.SGD"),
        (
            {"clipnorm": 1.0, "clipvalue": 0.5},
            r"at most one.*Received: clipnorm=1\.0, clipvalue=0\.5",
        ),
        ({"clipnorm": 0.0}, r"`optimizer\.clipnorm` must be.*Received: 0\.0"),
        ({"clipvalue": "x"}, r"`optimizer\.clipvalue` must be.*Received: 'x'"),
    ],
)
def test_bad_optimizer_is_refused_with_the_way_out(changes, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(dataclasses.replace(OptimizerConfig(), **changes), 0.1)
