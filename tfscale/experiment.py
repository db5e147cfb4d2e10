"""From a configuration to a run: the one place where the rooms meet.

`build` makes the strategy, opens the data, builds and compiles the model and its trainer, and
refuses what does not fit; `Experiment.train` trains, saves, tests and writes the summary.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
import time

import keras
import tensorflow as tf

from tfscale import models, observation, optimizers, run_folder
from tfscale import strategy as strategy_lib
from tfscale.cluster import shared_folder
from tfscale.config import RunConfig
from tfscale.config_files import check_types
from tfscale.data import load as load_lib
from tfscale.models import objectives
from tfscale.optimizers import schedules  # noqa: F401  (registers LinearWarmup for loading)
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import fits, health, preemption, prepare, profile, run_state
from tfscale.training import reduction as reduction_lib
from tfscale.training.trainer import Trainer

# What a summary says of the training, which holds when a run that has ended is scored again.
_OF_TRAINING = (
    *("train", "validation", "best", "wall_seconds", "examples_per_second", "goodput"),
    *("restarts", "stops", "bad_steps", "slowest_worker"),
)


@dataclasses.dataclass
class Experiment:
    """A run that is ready to start.

    Args:
        config: the `RunConfig`, checked.
        strategy_name: "onedevice", "mirrored" or "multiworker".
        splits: the data, a `data.load.Splits`.
        trainer: holds the compiled model and its strategy.
        deterministic: the same bits in every run.
    """

    config: RunConfig
    strategy_name: str
    splits: load_lib.Splits
    trainer: Trainer
    deterministic: bool = False

    @staticmethod
    def told_to_leave():
        """As a context: SIGTERM, SIGUSR1 and Ctrl-C let a run save before they end the process."""
        return preemption.listening()

    def train(self, run_dir="", resume="auto", verbose="auto"):
        """Train, save the model, score the test split, write the summary.

        Args:
            run_dir: the run's folder; "" for a new one in runs/.
            resume: "auto" goes on from the newest checkpoint in `run_dir`, "never" begins anew,
                a path goes on from that checkpoint.
            verbose: as for `Trainer.fit`.

        Returns:
            The summary as a dict, the same on every worker.

        Raises:
            ValueError: if the folder belongs to another run, or a checkpoint to another model.
        """
        folder = self._open_folder(run_dir, resume)
        trainer = self.trainer
        saved = self._saved_state(folder, resume)
        before = folder.summary_of(self.config.train.epochs) if saved is not None else {}
        if saved is not None and trainer.is_chief:
            if before.get("steps") == saved.step:
                print(f"Finished already, at step {saved.step}: it is scored again.", flush=True)
            else:
                print(f"Going on from step {saved.step}, with {saved.path}.", flush=True)
        watching = observation.Observation(self, folder, saved)
        watching.begin()
        try:
            history = self._fit(folder, saved, watching, verbose)
            save_model(trainer.model, folder.model, trainer.is_chief)
            test = self.splits.test()
            summary = self._summary(history, test)
            watching.scored(summary.get("test"))
            if trainer.is_chief:
                summary |= watching.summary()
                if before.get("steps") == trainer.progress.step:  # nothing was left to train
                    summary |= {name: before[name] for name in _OF_TRAINING if name in before}
                checkpoint_lib.write_whole(folder.summary, json.dumps(summary, indent=2) + "\n")
        except BaseException as error:
            watching.ended_by(error)
            raise
        watching.end(test)
        self.folder = folder
        return summary

    def _fit(self, folder, saved, watching, verbose):
        """Train, as the configuration says; return the history."""
        config = self.config
        return self.trainer.fit(
            self.splits.train,
            epochs=config.train.epochs,
            steps_per_execution=config.train.steps_per_execution,
            validation_data=self.splits.validation if config.train.validate_every else None,
            validation_freq=config.train.validate_every or 1,
            callbacks=watching.callbacks,
            checkpoints=folder.checkpoints,
            save_every_steps=config.checkpoint.save_every_steps,
            save_every_seconds=config.checkpoint.save_every_seconds,
            save_every_epochs=config.checkpoint.save_every_epochs,
            resume_from=saved,
            on_bad_loss=config.train.on_bad_loss,
            max_loss=config.train.max_loss or None,
            max_bad_steps=config.train.max_bad_steps,
            check_weights_every_steps=config.train.check_weights_every_steps,
            measures=watching.measures,
            profile=watching.profile,
            verbose=verbose,
        )

    def dry_run(self):
        """Build everything, take one step, and say what a run would be.

        Returns:
            Lines of text.
        """
        trainer, train = self.trainer, self.splits.train
        model, replicas = trainer.model, trainer.strategy.num_replicas_in_sync
        began = time.perf_counter()
        trainer.take_one_step(train)
        spec = train.element_spec
        bytes_sent = trainer.reduction.bytes_per_update(model.trainable_variables, replicas)
        return [
            f"model       {model.name}, {model.count_params():,} parameters",
            f"input       {_shapes(spec[0])}",
            *([f"target      {_shapes(spec[1])}"] if len(spec) > 1 else []),
            f"output      {_shapes(model.output)}",
            f"strategy    {self.strategy_name}, {trainer.shard.num_workers} worker(s), "
            f"{replicas} replica(s)",
            f"data        {train.num_examples} examples, "
            f"global batch {train.global_batch_size}, {train.steps_per_epoch} steps an epoch",
            f"sends       {bytes_sent:,} bytes an update, each replica",
            f"one step    taken, with tracing {time.perf_counter() - began:.1f} s",
        ]

    def _open_folder(self, run_dir, resume):
        """Settle the folder on all workers, or refuse it on all of them."""
        strategy, is_chief = self.trainer.strategy, self.trainer.is_chief
        [seconds] = strategy_lib.sum_over_workers(strategy, [int(time.time()) * is_chief])
        path = run_dir or run_folder.default_path(self.config, seconds)
        keep = self.config.checkpoint
        folder = run_folder.RunFolder(path, keep.keep_last, keep.keep_best, keep.best_mode)
        refusal = None
        if is_chief:
            try:
                folder.open(self.config, resume)
            except ValueError as error:
                refusal = error
        [refused] = strategy_lib.sum_over_workers(strategy, [int(refusal is not None)])
        if refused:
            raise refusal or ValueError(f"The chief refused --run_dir={path}; its log says why.")
        seen = shared_folder.is_seen(folder.path, lambda: folder.is_visible(self.config))
        [blind] = strategy_lib.sum_over_workers(strategy, [int(not seen)])
        if blind:
            raise ValueError(
                "--run_dir must be one folder that all workers see. Received: "
                f"{folder.path.absolute()}, which {blind} worker(s) do not see as the chief does. "
                "Use a folder on a shared file system."
            )
        return folder

    def _saved_state(self, folder, resume):
        """The checkpoint to go on from: the chief's choice, read by every worker."""
        path = None if resume in ("auto", "never") else pathlib.Path(resume)
        return fits.newest_of_all(
            self.trainer.strategy, folder.checkpoints, self.trainer.is_chief, path
        )

    def _summary(self, history, test):
        trainer = self.trainer
        at = trainer.progress
        last = {name: values[-1] for name, values in history.history.items()}
        validation = {k[len("val_") :]: v for k, v in last.items() if k.startswith("val_")}
        return {
            **({"test": trainer.evaluate(test)} if test is not None else {}),
            **({"validation": validation} if validation else {}),
            "train": {name: v for name, v in last.items() if not name.startswith("val_")},
            "steps": at.step,
            "epochs": at.epoch,
            "examples_per_second": round(
                at.timed_examples / (at.timed_seconds + at.between_seconds), 1
            )
            if at.timed_seconds
            else None,
            "wall_seconds": round(at.wall_seconds, 2),
            "strategy": self.strategy_name,
            "num_workers": trainer.shard.num_workers,
            "num_replicas": trainer.strategy.num_replicas_in_sync,
            "parameters": trainer.model.count_params(),
            "data_fingerprint": self.splits.fingerprint,
            "versions": run_state.versions(),
        }


def build(
    config, strategy="auto", num_replicas=0, *, deterministic=False, start_timeout_seconds=300
):
    """Make everything a run needs.

    Args:
        config: a `RunConfig`.
        strategy: as for `strategy.make_strategy`.
        num_replicas: likewise.
        deterministic: same bits in every run.
        start_timeout_seconds: bound on waiting for the other workers.

    Returns:
        An `Experiment`.

    Raises:
        ValueError: if anything does not fit, with the way out.
    """
    check(config)
    tf_strategy = strategy_lib.make_strategy(
        strategy,
        num_replicas,
        start_timeout_seconds=start_timeout_seconds,
        deterministic=deterministic,
    )
    strategy_lib.set_seed(config.train.seed)
    keras.config.set_dtype_policy(config.train.mixed_precision or "float32")
    splits = load_lib.load(config.data)
    if deterministic and not config.train.steps_per_execution:
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, steps_per_execution=16)
        )
    with tf_strategy.scope():
        model = compiled_model(config, splits)
    reduction = reduction_lib.build_reduction(config.reduction.name, config.reduction.arguments)
    trainer = Trainer(model, reduction=reduction, jit_compile=config.train.jit_compile)
    splits.train.dataset(trainer.shard)  # refuses a batch smaller than the number of replicas
    prepare.build(model, splits.train.element_spec, tf_strategy)
    return Experiment(config, strategy_name(tf_strategy), splits, trainer, deterministic)


def compiled_model(config, splits):
    """Return the compiled model of a configuration; called in the strategy's scope."""
    model = models.build(
        config.model.name, splits.input_shape, splits.num_classes, **config.model.arguments
    )
    loss_arguments = objectives.with_logits(config.loss.name, config.loss.arguments)
    from_logits = bool(loss_arguments.get("from_logits", False))
    loss = objectives.build_loss(config.loss.name, loss_arguments)
    two_classes = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
    model.compile(
        optimizer=optimizer(config, splits),
        loss=loss,
        metrics=objectives.build_metrics(
            config.metrics.names, from_logits, isinstance(loss, two_classes)
        ),
        jit_compile=False,
    )
    return model


def optimizer(config, splits):
    """Return the optimizer of a configuration, with its schedule."""
    steps = splits.train.steps_per_epoch
    rate = optimizers.build_schedule(
        config.schedule.name,
        config.optimizer.learning_rate,
        config.schedule.warmup_steps,
        config.schedule.arguments,
        steps * (config.schedule.epochs or config.train.epochs) if steps else None,
    )
    return optimizers.build_optimizer(config.optimizer, rate)


def strategy_name(strategy):
    """Return the name of a strategy as the command line has it."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return "multiworker"
    return "mirrored" if isinstance(strategy, tf.distribute.MirroredStrategy) else "onedevice"


def save_model(model, path, is_chief):
    """Write a model so that it is whole or absent.

    Every worker calls this, because a variable may be read only by all together; the chief's
    file is kept.

    Args:
        model: a `keras.Model`.
        path: a file name that ends in `.keras`.
        is_chief: whether this worker's file is the one to keep.
    """
    path = pathlib.Path(path)
    if not is_chief:
        with tempfile.TemporaryDirectory() as scratch:
            model.save(pathlib.Path(scratch) / path.name)
        return
    beside = path.with_name(f"{path.stem}.writing.keras")
    try:
        model.save(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check(config):
    """Refuse what is wrong with a configuration whatever its data, and what no room checks itself.

    Raises:
        ValueError: naming the field.
    """
    check_types(config)
    train = config.train
    health.Health(train.on_bad_loss, train.max_loss or None)  # refuses what does not fit
    if config.log.profile_steps:
        profile.Profile(config.log.profile_steps, "")  # likewise
    at_least = {
        "train.epochs": (config.train.epochs, 1),
        "schedule.epochs": (config.schedule.epochs, 0),
        "train.steps_per_execution": (config.train.steps_per_execution, 0),
        "train.validate_every": (config.train.validate_every, 0),
        "train.max_bad_steps": (config.train.max_bad_steps, 0),
        "train.check_weights_every_steps": (config.train.check_weights_every_steps, 0),
        "train.seed": (config.train.seed, 0),
        "checkpoint.save_every_steps": (config.checkpoint.save_every_steps, 0),
        "checkpoint.save_every_seconds": (config.checkpoint.save_every_seconds, 0),
        "checkpoint.save_every_epochs": (config.checkpoint.save_every_epochs, 0),
        "checkpoint.keep_last": (config.checkpoint.keep_last, 1),
        "log.every_steps": (config.log.every_steps, 0),
        "log.histograms_every_steps": (config.log.histograms_every_steps, 0),
        "log.inputs": (config.log.inputs, 0),
        "log.test_examples": (config.log.test_examples, 0),
    }
    for name, (value, least) in at_least.items():
        if value < least:
            raise ValueError(
                f"`{name}` must be at least {least}. Received: {value}. Use {least} or more."
            )
    if config.checkpoint.best_mode not in checkpoint_lib.MODES:
        raise ValueError(
            f"`checkpoint.best_mode` must be one of {', '.join(checkpoint_lib.MODES)}. "
            f"Received: {config.checkpoint.best_mode!r}."
        )
    policies = ("", "float32", "mixed_bfloat16", "mixed_float16")
    if config.train.mixed_precision not in policies:
        raise ValueError(
            f"`train.mixed_precision` must be one of {', '.join(policies[1:])}, or empty. "
            f"Received: {config.train.mixed_precision!r}."
        )


def _shapes(spec):
    """Shapes for people: the batch's axis is shown as None."""
    return tf.nest.map_structure(lambda s: tuple(s.shape), spec)
