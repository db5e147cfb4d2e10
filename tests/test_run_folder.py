"""The folder of a run: who may go on in it, and what it is called."""

import dataclasses
import time

import pytest

from tfscale.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from tfscale.run_folder import RunFolder, default_path


def test_name_tells_data_model_and_start():
    config = RunConfig(data=DataConfig(name="mine/small:1.0.0"), model=ModelConfig(name="mlp"))
    started = time.mktime((2026, 3, 4, 5, 6, 7, 0, 0, -1))
    assert default_path(config, started) == "runs/mine-small-1.0.0-mlp-20260304-050607"


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_new_folder_holds_the_configuration(tmp_path, resume):
    folder = RunFolder(tmp_path / "deep" / "run")
    config = RunConfig(train=TrainConfig(epochs=3), data=DataConfig(transforms=("flatten",)))
    assert not folder.is_visible(config)
    folder.open(config, resume)
    assert folder.saved_config() == config
    assert folder.is_visible(config)
    assert not folder.is_visible(RunConfig())


@pytest.mark.parametrize(
    "changed",
    [
        RunConfig(),
        RunConfig(train=TrainConfig(epochs=99, steps_per_execution=7, validate_every=0)),
        RunConfig(data=DataConfig(data_dir="elsewhere", download=True)),
        RunConfig(checkpoint=CheckpointConfig(save_every_steps=5, keep_last=9)),
        RunConfig(log=LogConfig(every_steps=5, tensorboard=False)),
    ],
)
def test_how_long_and_what_is_shown_may_change(tmp_path, changed):
    folder = RunFolder(tmp_path)
    folder.open(RunConfig(), "auto")
    folder.open(changed, "auto")
    assert folder.saved_config() == changed


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (RunConfig(data=DataConfig(global_batch_size=64)), "data.global_batch_size=32 .* 64"),
        (RunConfig(data=DataConfig(transforms=())), "data.transforms"),
        (RunConfig(model=ModelConfig(arguments={"dropout": 0.1})), "model.arguments={} .*dropout"),
        (RunConfig(optimizer=OptimizerConfig(clipnorm=1.0)), "optimizer.clipnorm=None .* 1.0"),
        (RunConfig(train=TrainConfig(seed=1)), "train.seed=0 there and 1 here"),
        (RunConfig(train=TrainConfig(mixed_precision="mixed_bfloat16")), "train.mixed_precision"),
    ],
)
def test_what_changes_the_numbers_may_not_change(tmp_path, changed, named):
    folder = RunFolder(tmp_path)
    folder.open(RunConfig(), "auto")
    before = folder.config.read_bytes()
    with pytest.raises(ValueError, match=f"configuration it began with.*{named}.*--resume=never"):
        folder.open(changed, "auto")
    assert folder.config.read_bytes() == before


def test_lists_are_tuples_of_the_same_values(tmp_path):
    """JSON has no tuples, so a saved one comes back as a list."""
    config = RunConfig(model=ModelConfig(arguments={"filters": (8, 16), "l2": {"conv": (1,)}}))
    folder = RunFolder(tmp_path)
    folder.open(config, "auto")
    folder.open(dataclasses.replace(config), "auto")


def test_never_moves_each_old_run_aside(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    for seed in (1, 2, 3):
        folder.open(RunConfig(train=TrainConfig(seed=seed)), "never")
    assert folder.saved_config().train.seed == 3
    asides = [tmp_path / f"run.{number}" for number in (1, 2)]
    assert [RunFolder(aside).saved_config().train.seed for aside in asides] == [1, 2]
    assert capsys.readouterr().out.splitlines() == [
        f"The run in {folder.path} was moved to {aside}." for aside in asides
    ]


def test_damaged_configuration_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text('{"train": ')
    with pytest.raises(ValueError, match="config.json, which is not JSON"):
        folder.open(RunConfig(), "auto")
    folder.open(RunConfig(), "never")
    assert folder.saved_config() == RunConfig()


def test_folder_without_a_run_is_refused_where_one_is_needed(tmp_path):
    with pytest.raises(ValueError, match="which has no config.json"):
        RunFolder(tmp_path).saved_config()
