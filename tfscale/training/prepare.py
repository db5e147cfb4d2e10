"""Checks and builds before the first step: everything exists before a graph is traced."""

import keras
import tensorflow as tf
from absl import logging

from tfscale.training import step as step_lib


def check_model(model, step):
    """Refuse a model that nothing says how to train.

    Raises:
        ValueError: if the model is not compiled and there is no step of its own, or asks for
            what many replicas cannot do.
    """
    own_step = step is not None or step_lib.overrides(model, "train_step")
    if not own_step and not model.compiled:
        raise ValueError(
            "A model must be compiled, or have a step of its own. Received: a model without "
            "either. Call model.compile(optimizer, loss), or give Trainer(model, step=...)."
        )
    for optimizer in optimizers_of(model):
        many = model.distribute_strategy.num_replicas_in_sync > 1
        if many and getattr(optimizer, "gradient_accumulation_steps", None):
            raise ValueError(
                "An optimizer must not accumulate gradients itself under several replicas, "
                "where Keras fails. Received: gradient_accumulation_steps="
                f"{optimizer.gradient_accumulation_steps}. Use a larger global batch."
            )


def optimizers_of(model):
    """Return the model's optimizers: the compiled one, and those that are its attributes."""
    found = [getattr(model, "optimizer", None), *vars(model).values()]
    unique = {id(o): o for o in found if isinstance(o, keras.optimizers.Optimizer)}
    return list(unique.values())


def build(model, data, strategy):
    """Create all variables: of the model, its optimizer, its losses and metrics.

    Keras creates them in the first step, which under several replicas would be in the middle of
    a graph. One example of zeros goes through the model instead; its metrics are reset.

    Args:
        model: the `keras.Model`.
        data: the `data.batches.Batches` it will see.
        strategy: the strategy the model was made under.
    """
    with strategy.scope():
        if not model.built or (model.compiled and not _metrics_are_built(model)):
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(_zeros(data.element_spec))
            y_pred = model(x, training=False)
            if model.compiled and y is not None and not step_lib.overrides(model, "train_step"):
                model.compute_loss(x, y, y_pred, sample_weight, training=False)
                model.compute_metrics(x, y, y_pred, sample_weight)
                model.reset_metrics()
        optimizer = getattr(model, "optimizer", None)
        if optimizer is not None and not optimizer.built:
            _build_optimizer(optimizer, model.trainable_variables)
        for other in optimizers_of(model):
            if not other.built and strategy.num_replicas_in_sync > 1:
                raise ValueError(
                    "A second optimizer must be built before a step under several replicas. "
                    f"Received: {type(other).__name__}, not built. Call its build(variables) in "
                    "the scope of the strategy."
                )


def _build_optimizer(optimizer, variables):
    try:
        optimizer.build(variables)
    except RuntimeError as error:
        if "Mixing different tf.distribute.Strategy" not in str(error):
            raise
        raise ValueError(
            "The optimizer must be made in the scope of the strategy, as the model is. Received: "
            f"{type(optimizer).__name__}, made outside of it. Move its line below "
            "`with strategy.scope():`."
        ) from None


def warn_about_local_statistics(model):
    """Say once if a layer normalises over each replica's own examples."""
    names = [
        layer.name
        for layer in _layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
    ]
    if names:
        logging.warning(
            "BatchNormalization without synchronized=True normalises over each replica's own "
            "examples, so results change with the number of replicas. Received: %s. "
            "Build these layers with synchronized=True.",
            ", ".join(names),
        )


def _layers(layer):
    """All layers inside a layer, nested ones too."""
    for inner in getattr(layer, "layers", []):
        yield inner
        yield from _layers(inner)


def _metrics_are_built(model):
    return all(getattr(metric, "built", True) for metric in model.metrics)


def _zeros(element_spec):
    """One example of zeros."""
    return tf.nest.map_structure(
        lambda spec: tf.zeros([1, *(size or 1 for size in spec.shape[1:])], spec.dtype),
        element_spec,
    )
