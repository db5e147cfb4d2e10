"""What a run is: plain dataclasses, one section a room, every field documented where it stands.

`RunConfig()` is the digits convnet. Values are checked in `experiment.build`, and not changed
after it. Nothing here imports TensorFlow: `--help` and `--show_config` stay fast.
"""

import dataclasses
from typing import Any


def _field(default, help_text):
    """A dataclass field with its documentation; mutable defaults are copied."""
    metadata = {"help": help_text}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


STRATEGIES = ("auto", "onedevice", "mirrored", "multiworker")


@dataclasses.dataclass
class DataConfig:
    """Where examples come from, in which order, transformed how."""

    name: str = _field("digits", "digits, any TFDS name (mnist), image_folder, or csv")
    data_dir: str = _field(
        "", "prepared TFDS data, the folder of images, or the CSV file; empty: TFDS's default"
    )
    download: bool = _field(False, "let TFDS download and prepare what is not on this machine")
    train_split: str = _field("train", "TFDS split, folder or CSV file to train on")
    validation_split: str = _field(
        "", "split scored during training; empty: see validation_fraction"
    )
    test_split: str = _field("test", "split read once, at the end; empty: no test")
    validation_fraction: float = _field(0.0, "share of the training split held out, 0 to 1, seeded")
    global_batch_size: int = _field(32, "examples an update, over all replicas")
    seed: int = _field(0, "order of examples, held-out share and random transforms")
    shuffle: bool = _field(True, "a new order every epoch")
    shard_policy: str = _field(
        "interleaved", "how replicas cut a batch or a stream: interleaved, block or random"
    )
    drop_remainder: bool = _field(False, "drop the uneven last batch of an epoch")
    memory_limit_bytes: int = _field(2**30, "larger TFDS splits are streamed from their files")
    shuffle_buffer: int = _field(10_000, "examples shuffled at a time in a stream, a worker")
    stream_sharding: str = _field("auto", "streams are cut by: file, example, or auto")
    transforms: tuple[str, ...] = _field(
        ("rescale",), "applied in order: rescale, standardize, flatten, one_hot"
    )
    transform_arguments: dict[str, Any] = _field(
        {}, "arguments of a transform, by its name: {'standardize': {'mean': 0.13, 'stddev': 0.31}}"
    )
    image_size: int = _field(32, "image_folder: height and width the images are resized to")
    feature_columns: tuple[str, ...] = _field(
        (), "csv: columns to learn from; empty: all but the label"
    )
    label_column: str = _field("label", "csv: column to predict")
    num_classes: int = _field(0, "classes of the label; 0: as the source says, or a regression")


@dataclasses.dataclass
class ModelConfig:
    """Which builder of tfscale.models makes the model."""

    name: str = _field("convnet", "convnet, mlp, regression_mlp or resnet; see --list")
    arguments: dict[str, Any] = _field(
        {}, "the builder's arguments: --config.model.arguments.dropout=0.3"
    )


@dataclasses.dataclass
class OptimizerConfig:
    """The Keras optimizer."""

    name: str = _field("adam", "a Keras identifier: sgd, adam, adamw, rmsprop, lion, ...")
    learning_rate: float = _field(3e-3, "peak of the schedule")
    clipnorm: float | None = _field(None, "bound of each gradient's norm, after the reduction")
    global_clipnorm: float | None = _field(None, "bound of the norm of all gradients together")
    clipvalue: float | None = _field(None, "bound of each gradient element")
    arguments: dict[str, Any] = _field(
        {}, "the optimizer's Keras arguments: --config.optimizer.arguments.momentum=0.9"
    )


@dataclasses.dataclass
class ScheduleConfig:
    """The learning rate over the steps of the run."""

    name: str = _field("cosine", "constant, exponential, step or cosine")
    warmup_steps: int = _field(0, "steps of linear warmup in front of the schedule")
    epochs: int = _field(0, "epochs that the schedule spans; 0: those of the run, train.epochs")
    arguments: dict[str, Any] = _field(
        {}, "the schedule's arguments: --config.schedule.arguments.decay_steps=1000"
    )


@dataclasses.dataclass
class LossConfig:
    """What is minimised."""

    name: str = _field("sparse_categorical_crossentropy", "a Keras identifier; models give logits")
    arguments: dict[str, Any] = _field(
        {}, "arguments of the Keras loss class; from_logits, where it has one, is true"
    )


@dataclasses.dataclass
class MetricsConfig:
    """What is watched."""

    names: tuple[str, ...] = _field(("accuracy",), "Keras identifiers")


@dataclasses.dataclass
class ReductionConfig:
    """How the gradients of all replicas become one."""

    name: str = _field("mean", "mean: the exact average")
    arguments: dict[str, Any] = _field({}, "the reduction's arguments: bucket_bytes")


@dataclasses.dataclass
class TrainConfig:
    """The loop around the step."""

    epochs: int = _field(15, "passes over the training split")
    steps_per_execution: int = _field(
        0, "steps between two looks of the host at the device; 0: chosen from the step's length"
    )
    seed: int = _field(0, "initial weights and dropout; TensorFlow, NumPy and Python")
    mixed_precision: str = _field("", "mixed_bfloat16 or mixed_float16; empty: float32")
    jit_compile: bool = _field(False, "compile the step with XLA, all of it on one replica")
    validate_every: int = _field(1, "epochs between two validations; 0: never")
    on_bad_loss: str = _field(
        "", "at a loss or a weight that is not finite: stop, skip, rollback; empty: nobody looks"
    )
    max_loss: float = _field(0.0, "a step with a loss above it is bad, too; 0: no bound")
    max_bad_steps: int = _field(3, "bad steps that a run may skip or roll back; the next ends it")
    check_weights_every_steps: int = _field(
        0, "steps between two comparisons of all replicas' weights; 0: never"
    )


@dataclasses.dataclass
class CheckpointConfig:
    """What survives."""

    save_every_steps: int = _field(0, "steps between two checkpoints; 0: none by steps")
    save_every_seconds: float = _field(0.0, "seconds between two checkpoints; 0: none by the clock")
    save_every_epochs: int = _field(
        0, "epochs between two checkpoints; 0: each epoch, unless steps or seconds are given"
    )
    keep_last: int = _field(2, "newest checkpoints to keep")
    keep_best: str = _field(
        "", "keep the best one too, by this metric at an epoch's end: val_loss, accuracy, ..."
    )
    best_mode: str = _field("auto", "which value is best: max, min, or auto: by the metric")


@dataclasses.dataclass
class LogConfig:
    """What is shown."""

    every_steps: int = _field(0, "steps between two points in TensorBoard; 0: about 20 an epoch")
    tensorboard: bool = _field(True, "write TensorBoard's event files")
    measures: bool = _field(
        True, "measure in the steps where each worker's time goes, and norms of gradients"
    )
    histograms_every_steps: int = _field(
        0, "steps between two histograms of weights and gradients; 0: none"
    )
    graph: bool = _field(True, "show the model's layers as a graph")
    inputs: int = _field(32, "images of the first batch to show, as the model gets them; 0: none")
    test_examples: int = _field(
        10_000,
        "largest test split of which mistakes, confusion matrix and precision are shown; 0: none",
    )
    profile_steps: str = _field(
        "", "FIRST:LAST: record these steps for TensorBoard's profiler, on each worker; empty: none"
    )


@dataclasses.dataclass
class RunConfig:
    """A run: data, model, recipe, loop, and what it leaves behind."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    metrics: MetricsConfig = dataclasses.field(default_factory=MetricsConfig)
    reduction: ReductionConfig = dataclasses.field(default_factory=ReductionConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
