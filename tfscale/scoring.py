"""Scores what a run has saved: its model at the end, or each checkpoint while it goes on."""

import dataclasses

import keras

from tfscale import experiment
from tfscale import strategy as strategy_lib
from tfscale.data import load as load_lib
from tfscale.monitor import run_log
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import evaluator, state
from tfscale.training.trainer import Trainer


def evaluate_saved(config, folder, split=""):
    """Score the model that a run has saved.

    Args:
        config: the `RunConfig` of the run.
        folder: its `run_folder.RunFolder`.
        split: the split to score; "" for the test split.

    Returns:
        A dict of loss and metrics.

    Raises:
        ValueError: if the run has no such split.
    """
    data = dataclasses.replace(config.data, test_split=split or config.data.test_split)
    test = load_lib.load(data).test()
    if test is None:
        raise ValueError(
            "A run without a test split needs another one to score. Received: "
            "data.test_split='' and no --split. Add --split=train."
        )
    strategy = strategy_lib.make_strategy("onedevice")
    with strategy.scope():
        model = keras.models.load_model(folder.model, safe_mode=True)
    return Trainer(model).evaluate(test)


def evaluate_checkpoint(config, path):
    """Score one checkpoint of a run on the test split.

    Args:
        config: the `RunConfig` of the run.
        path: the folder of the checkpoint.

    Returns:
        A dict of loss and metrics; None where the configuration has no test split.

    Raises:
        ValueError: if there is no such checkpoint, or it is of another model.
    """
    run = experiment.build(config, "onedevice")
    test = run.splits.test()
    if test is None:
        return None
    saved = checkpoint_lib.read(path)
    state.restore_weights(run.trainer.model, saved.arrays, saved.path)
    return run.trainer.evaluate(test)


def evaluate_checkpoints(config, folder, report):
    """Score each new checkpoint of a run that goes on, on its validation data.

    Args:
        config: the `RunConfig` of the run.
        folder: its `run_folder.RunFolder`.
        report: a function `(step, scores)`, called after each.

    Raises:
        ValueError: if the configuration has no validation data, or is not the run's.
    """
    if folder.config.exists():
        folder.check_same(config)
    run = experiment.build(config, "onedevice")
    if run.splits.validation is None:
        raise ValueError(
            "An evaluator task needs validation data. Received: data.validation_split='' and "
            "data.validation_fraction=0. Add --config.data.validation_fraction=0.1 to all tasks."
        )
    newest = max(folder.checkpoints.steps(), default=0)  # what was scored before stays
    log = run_log.ScalarLog(folder.path / "evaluator.jsonl", folder.tensorboard, newest)

    def write(step, scores):
        log.write("evaluator", step, scores)
        report(step, scores)

    evaluator.score_checkpoints(
        run.trainer,
        run.splits.validation,
        folder.checkpoints,
        lambda: folder.is_finished(config.train.epochs),
        write,
    )
    log.close()
