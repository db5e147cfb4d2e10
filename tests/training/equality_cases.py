"""The rows of the table "N workers equal one", and the doors through which each is run.

A row trains a tiny model for 20 steps or more, and returns what must not depend on the number of
replicas. Its doors are `Trainer.fit` and `keras.Model.fit`; on one device, the latter is Keras'
own. What is shuffled is so in the order of its door; all else goes in its place, the same by both.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import equality_models as models
import keras
import numpy as np
import tensorflow as tf

from tfscale.training.trainer import Trainer

callbacks, metrics, optimizers = keras.callbacks, keras.metrics, keras.optimizers
schedules = keras.optimizers.schedules

KERAS, TRAINER = "keras", "trainer"  # the doors


@dataclasses.dataclass(frozen=True)
class Row:
    """What is trained, on what, how.

    Args:
        group: its heading in docs/numerics.md.
        optimizer: makes the optimizer; not called where `model` gives a compiled one.
        model, data: make the model, and `(x, y, sample_weight)`.
        loss, metrics: makes the loss, or several with weights; makes the metrics.
        batch, epochs: examples in a global batch, and passes.
        fit: further arguments of both doors.
        callbacks: makes the callbacks.
        scored: validate, and compare predictions too.
        policy: Keras' dtype policy.
        doors: through which it can go.
        both: the doors may differ, so the test goes through both, else through the first.
        alike: both doors have the order and the reports of Keras; else each is compared with
            itself on one device.
        equal: replicas equal one device; else only `docs/numerics.md` shows by how much not.
    """

    group: str
    optimizer: Callable
    model: Callable = models.convnet
    data: Callable = functools.partial(models.images, 105)
    loss: Callable = models.crossentropy
    metrics: Callable | None = None
    batch: int = 32
    epochs: int = 5
    fit: dict = dataclasses.field(default_factory=dict)
    callbacks: Callable | None = None
    scored: bool = False
    policy: str = "float32"
    doors: tuple = (KERAS, TRAINER)
    both: bool = False
    alike: bool = True
    equal: bool = True

    def train(self, door):
        """Make the model in the strategy's scope and train it; return arrays by name."""
        keras.utils.set_random_seed(7)
        keras.config.set_dtype_policy(self.policy)
        try:
            model = self.model()
            if self.optimizer is not None:
                loss = self.loss()
                loss = loss if isinstance(loss, dict) else {"loss": loss}
                numbers = self.metrics and self.metrics()
                model.compile(self.optimizer(), metrics=numbers, **loss)
            x, y, weights = self.data()
            arguments = {
                "sample_weight": weights,
                "epochs": self.epochs,
                "verbose": 0,
                "callbacks": self.callbacks and self.callbacks(),
                **({} if isinstance(x, tf.data.Dataset) else {"shuffle": False}),
                **({"validation_data": self._some(x, y, 37)} if self.scored else {}),
                **self.fit,
            }
            fit, predict = _doors(model, door, isinstance(x, tf.data.Dataset), self.batch)
            history = fit(x, y, **arguments)
            inputs = self._some(x, y, 41)[0] if self.scored else None
            outputs = [] if inputs is None else tf.nest.flatten(predict(inputs))
        finally:
            keras.config.set_dtype_policy("float32")
        return {
            **{f"weight {i}": v.numpy() for i, v in enumerate(model.weights)},
            **{f"curve {name}": np.array(values) for name, values in history.history.items()},
            **{f"output {i}": output for i, output in enumerate(outputs)},
        }

    def _some(self, x, y, count):
        """The first examples, or images in the place of a dataset."""
        x, y, _ = models.images() if isinstance(x, tf.data.Dataset) else (x, y, None)
        return tf.nest.map_structure(lambda array: array[:count], (x, y))


def _doors(model, door, is_dataset, batch):
    """`fit` and `predict` of a door."""
    if door == TRAINER:
        trainer = Trainer(model, step=getattr(model, "own_step", None))
        return (
            functools.partial(trainer.fit, global_batch_size=batch),
            functools.partial(trainer.predict, global_batch_size=16),
        )
    sizes = {} if is_dataset else {"batch_size": batch}
    return (
        functools.partial(model.fit, **sizes),
        functools.partial(model.predict, batch_size=16, verbose=0),
    )


def _with_step(step):
    model = models.convnet()
    model.own_step = step
    return model


def _built(model_class):
    model = model_class()
    model(np.zeros((1, 8, 8, 1), "float32"))
    return model


_part = functools.partial
_sgd = _part(optimizers.SGD, 0.1)
_momentum = _part(optimizers.SGD, 0.1, momentum=0.9)
_adam = _part(optimizers.Adam, 1e-2)
_clipped = _part(_momentum, clipnorm=0.05)
_even, _weighted = _part(models.images, 128), _part(models.images, weighted=True)
_by_class = _part(models.sequences, targets="tokens")
_norm = _part(models.convnet, normalisation="synchronized")
_two_losses = {
    "loss": {"digit": models.crossentropy(), "size": "mse"},
    "loss_weights": {"digit": 1.0, "size": 0.3},
}


def _yes_or_no():
    return ["accuracy", metrics.AUC(name="auc"), metrics.F1Score("micro", 0.5, "f1")]


def _scheduled(schedule, kind=optimizers.SGD):
    return lambda: kind(schedule())


ROWS = {
    # Optimizers
    "sgd": Row("optimizers", _sgd, data=_even),
    "momentum": Row("optimizers", _momentum, metrics=lambda: ["accuracy"]),
    "adam": Row("optimizers", _adam, data=_even),
    "adamw": Row("optimizers", _part(optimizers.AdamW, 1e-2, weight_decay=0.1)),
    "weight_decay": Row("optimizers", _part(_momentum, weight_decay=0.05)),
    "ema": Row("optimizers", _part(_momentum, use_ema=True, ema_momentum=0.9)),
    "exponential_decay": Row(
        "optimizers", _scheduled(_part(schedules.ExponentialDecay, 0.2, 4, 0.8))
    ),
    "cosine_decay": Row(
        "optimizers",
        _scheduled(
            _part(schedules.CosineDecay, 1e-3, 15, warmup_target=1e-2, warmup_steps=5),
            optimizers.Adam,
        ),
    ),
    # Clipping
    "clipnorm": Row("clipping", _clipped, data=_even),
    "global_clipnorm": Row("clipping", _part(_momentum, global_clipnorm=0.1), data=_even),
    "clipvalue": Row("clipping", _part(_momentum, clipvalue=0.005), data=_even),
    # Accumulation
    "accumulation_2": Row("accumulation", _part(_adam, gradient_accumulation_steps=2)),
    "accumulation_4": Row("accumulation", _part(_clipped, gradient_accumulation_steps=4)),
    "accumulated_batches": Row(
        "accumulation", _part(_clipped, gradient_accumulation_steps=4), data=_even, epochs=20
    ),
    "accumulated_batches_at_once": Row("accumulation", _clipped, data=_even, batch=128, epochs=20),
    # Batches
    "uneven_last_batch": Row(
        "batches", _momentum, model=_part(models.convnet, "l2"), metrics=lambda: ["accuracy"]
    ),
    "one_in_last_batch": Row(
        "batches", _momentum, data=_part(models.images, 129), scored=True, both=True
    ),
    "batch_of_50": Row(
        "batches", _momentum, data=_part(models.images, 130), batch=50, epochs=7, both=True
    ),
    "shuffled": Row("batches", _momentum, fit={"shuffle": True}, both=True, alike=False),
    "dataset": Row(
        "batches", _momentum, data=models.image_dataset, scored=True, both=True, alike=False
    ),
    "dataset_unknown_length": Row(
        "batches", _momentum, data=_part(models.image_dataset, unknown_length=True), both=True
    ),
    # Weights of examples and masks
    "sample_weights": Row("weights and masks", _momentum, data=_part(_weighted, 128), both=True),
    "sample_weights_uneven": Row("weights and masks", _momentum, data=_part(_weighted, 105)),
    "mean_with_sample_weight": Row(
        "weights and masks",
        _momentum,
        data=_part(_weighted, 105),
        loss=_part(models.crossentropy, "mean_with_sample_weight"),
    ),
    "class_weights": Row(
        "weights and masks", _momentum, fit={"class_weight": {0: 3.0, 3: 0.2}}, both=True
    ),
    "mask": Row(
        "weights and masks",
        _part(optimizers.SGD, 0.5, momentum=0.9),
        model=models.tagger,
        data=_by_class,
    ),
    "mask_and_weights_uneven": Row(
        "weights and masks",
        _part(optimizers.SGD, 0.5, momentum=0.9),
        model=models.tagger,
        data=_part(_by_class, 105, weighted=True),
    ),
    # Losses and metrics
    "mse": Row("losses and metrics", _sgd, models.regression, models.numbers, lambda: "mse"),
    "huber": Row("losses and metrics", _sgd, models.regression, models.numbers, lambda: "huber"),
    "sum_loss": Row(
        "losses and metrics", _part(optimizers.SGD, 0.003), loss=_part(models.crossentropy, "sum")
    ),
    "mask_and_sum_loss": Row(
        "losses and metrics",
        _part(optimizers.SGD, 0.002, momentum=0.9),
        model=models.tagger,
        data=_by_class,
        loss=_part(models.crossentropy, "sum"),
    ),
    "two_inputs_and_outputs": Row(
        "losses and metrics",
        _part(_adam, global_clipnorm=0.5),
        models.two_inputs,
        models.named_images,
        lambda: _two_losses,
        metrics=lambda: {"digit": ["accuracy"]},
        scored=True,
        both=True,
    ),
    "auc_and_f1": Row(
        "losses and metrics",
        _momentum,
        models.detector,
        models.binary_images,
        lambda: "binary_crossentropy",
        metrics=_yes_or_no,
        scored=True,
    ),
    # Regularization
    "l1": Row("regularization", _sgd, model=_part(models.convnet, "l1")),
    "l2": Row("regularization", _momentum, model=_part(models.convnet, "l2"), data=_even),
    "activity_l2": Row(
        "regularization",
        _sgd,
        model=_part(models.convnet, activity="l2"),
        equal=not keras.__version__.startswith("3.13."),  # which sums over the batch
    ),
    "add_loss": Row("regularization", _sgd, model=lambda: models.convnet(extra=[models.Penalty()])),
    # Layers
    "embedding": Row("layers", _momentum, models.embedding, models.sequences),
    "embedding_adam": Row("layers", _adam, models.embedding, _part(models.sequences, 129)),
    "lstm": Row("layers", _momentum, models.lstm, models.sequences),
    "attention": Row("layers", _momentum, models.attention, models.sequences),
    "batch_norm_synchronized": Row("layers", _momentum, model=_norm, data=_even),
    "batch_norm_synchronized_uneven": Row("layers", _momentum, model=_norm),
    "batch_norm_synchronized_one_in_last": Row(
        "layers", _momentum, model=_norm, data=_part(models.images, 129), scored=True
    ),
    "batch_norm": Row(
        "layers", _momentum, model=_part(models.convnet, normalisation="local"), equal=False
    ),
    "dropout": Row(
        "layers",
        _momentum,
        model=lambda: models.convnet(extra=[keras.layers.Dropout(0.5)]),
        equal=False,
    ),
    # Precision
    "mixed_float16": Row("precision", _clipped, policy="mixed_float16"),
    "mixed_bfloat16": Row("precision", _clipped, policy="mixed_bfloat16"),
    # Steps of one's own
    "own_train_step": Row(
        "steps of one's own",
        _part(_momentum, clipnorm=0.1),
        model=_part(_built, models.OwnTrainStep),
        data=_part(models.images, 130),
        both=True,
    ),
    "returned_loss": Row(
        "steps of one's own",
        _momentum,
        model=_part(_built, models.ReturnedLoss),
        scored=True,
        both=True,
        alike=False,
    ),
    "gan": Row("steps of one's own", None, models.gan, models.images_and_noise, both=True),
    "own_tape_step": Row(
        "steps of one's own",
        _part(_momentum, clipnorm=0.1),
        model=_part(_with_step, models.tape_step),
        doors=(TRAINER,),
    ),
    "two_optimizers": Row(
        "steps of one's own", None, model=models.two_optimizers, doors=(TRAINER,)
    ),
    # Callbacks
    "reduce_lr_on_plateau": Row(
        "callbacks",
        _momentum,
        callbacks=lambda: [callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=9)],
        both=True,
    ),
    "early_stopping": Row(
        "callbacks",
        _momentum,
        epochs=9,
        scored=True,
        callbacks=lambda: [
            callbacks.EarlyStopping(
                min_delta=9, patience=2, start_from_epoch=3, restore_best_weights=True
            )
        ],
        both=True,
    ),
}


def run(name, strategy, door):
    """Run one row under a strategy or none, through a door; return its arrays by name."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        return ROWS[name].train(door)
