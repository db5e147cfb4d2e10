"""Checks and builds before the first step: everything exists before a graph is traced."""

import contextlib
import weakref

import keras
import tensorflow as tf
from absl import logging

from tfscale.strategy import shard_of
from tfscale.training import accumulation, own_step
from tfscale.training import step as step_lib


def check_model(model, step):
    """Refuse a model that nothing says how to train.

    Raises:
        ValueError: if the model is not compiled and there is no step of its own.
    """
    has_own_step = step is not None or own_step.overrides(model, "train_step")
    if not has_own_step and not model.compiled:
        raise ValueError(
            "A model must be compiled, or have a step of its own. Received: a model without "
            "either. Call model.compile(optimizer, loss), or give Trainer(model, step=...)."
        )


def check_functions(model, purpose):
    """Refuse a model that makes the graph around its steps itself.

    Args:
        model: the `keras.Model`.
        purpose: "train", "test" or "predict".

    Raises:
        ValueError: if it overrides `make_train_function` or the like.
    """
    name = f"make_{purpose}_function"
    if name in vars(model) or own_step.overrides(model, name):
        raise ValueError(
            f"`{name}` makes a graph of one device, which is not used here. Received: "
            f"{type(model).__name__}, which overrides it. Override `{purpose}_step`, which is "
            "run on each replica, and leave the loop around it to fit."
        )


def optimizers_of(model):
    """Return the model's optimizers: the compiled one, and those that are its attributes."""
    found = [getattr(model, "optimizer", None), *vars(model).values()]
    unique = {id(o): o for o in found if isinstance(o, keras.optimizers.Optimizer)}
    return list(unique.values())


def build(model, spec, strategy, step=None, purpose="train"):
    """Create all variables: of the model, its optimizers, its losses and metrics.

    Keras creates them in the first step, which under several replicas would be in the middle of
    a graph. Here one step is traced, and not run, where variables can be made.

    Args:
        model: the `keras.Model`.
        spec: of the batches it will see, `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
        strategy: the strategy the model was made under.
        step: a step of the user's own, `step(model, data)`, or None.
        purpose: "train", "test" or "predict".
    """
    _check_in_scope(model, strategy)
    if step is None or purpose != "train":
        check_functions(model, purpose)
    if purpose == "predict" and model.built:
        return
    own_train_step = step or (
        own_step.method_of(model, "train_step") if own_step.overrides(model, "train_step") else None
    )
    optimizer = getattr(model, "optimizer", None)
    with strategy.scope():
        if _is_built(model, own_train_step if purpose == "train" else None):
            return
        with tf.__internal__.FuncGraph("build").as_default(), _optimizers_only_build():
            example = tf.nest.map_structure(_placeholder, spec)
            replica = tf.distribute.ReplicaContext(strategy, _first_local_replica(strategy))
            with replica, tf.device(_first_device(strategy)):
                if purpose != "train" or own_train_step is None:
                    _trace_compiled(model, example, purpose)
                else:
                    own_train_step(model, example)
        if purpose == "train" and optimizer is not None and not optimizer.built:
            _build_optimizer(optimizer, model.trainable_variables)
        for one in optimizers_of(model):
            if one.built:
                accumulation.spread(one)
        if purpose == "train" and own_train_step is not None:
            _traced.add(model)


_traced = weakref.WeakSet()  # models whose own step has made its variables
_warned = weakref.WeakSet()  # models whose layers were named


def _is_built(model, own_train_step):
    """Whether all variables exist."""
    if own_train_step is not None:
        return model in _traced and all(o.built for o in optimizers_of(model))
    optimizer = getattr(model, "optimizer", None)
    metrics_are_built = all(getattr(metric, "built", True) for metric in model.metrics)
    return model.built and metrics_are_built and (optimizer is None or optimizer.built)


def _trace_compiled(model, example, purpose):
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(example)
    y_pred = step_lib.call(model, x, training=True)
    if purpose == "predict" or not model.compiled:
        return
    if y is not None or model.losses or own_step.overrides(model, "compute_loss"):
        model.compute_loss(x, y, y_pred, sample_weight, training=True)
    model.compute_metrics(x, y, y_pred, sample_weight)


@contextlib.contextmanager
def _optimizers_only_build():
    """Inside, applying gradients makes an optimizer's variables and changes nothing."""

    def build_only(self, gradients, trainable_variables=None):
        if not self.built:
            _build_optimizer(self, list(trainable_variables))

    classes = (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer)
    before = [kind.apply for kind in classes]
    for kind in classes:
        kind.apply = build_only
    try:
        yield
    finally:
        for kind, apply in zip(classes, before, strict=True):
            kind.apply = apply


def _first_local_replica(strategy):
    shard = shard_of(strategy)
    return shard.worker * shard.replicas_per_worker


def _first_device(strategy):
    """The device of the first replica of this worker; None without a strategy."""
    return strategy.extended.worker_devices[0] if tf.distribute.has_strategy() else None


def _placeholder(spec):
    """A tensor of a spec that has no value yet; None for a part that is absent."""
    if spec is None:
        return None
    if isinstance(spec, tf.RaggedTensorSpec):
        inner = spec.shape[spec.ragged_rank + 1 :]
        return tf.compat.v1.ragged.placeholder(spec.dtype, spec.ragged_rank, inner)
    if isinstance(spec, tf.SparseTensorSpec):
        return tf.compat.v1.sparse_placeholder(spec.dtype, spec.shape)
    return tf.compat.v1.placeholder(spec.dtype, spec.shape)


def _check_in_scope(model, strategy):
    """Refuse a model whose weights were made outside of the strategy it has."""
    merging = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not isinstance(strategy, merging):
        return
    for weight in model.weights[:1]:
        if not strategy.extended.variable_created_in_scope(weight.value):
            raise ValueError(
                "The model must be made in the scope of the strategy it is trained under. "
                f"Received: {model.name}, whose {weight.path} was made outside of it. Move the "
                "lines that make the model below `with strategy.scope():`."
            )
    if shard_of(strategy).num_workers == 1:
        return
    for metric in model.metrics:
        for variable in metric.variables:
            if not strategy.extended.variable_created_in_scope(variable.value):
                raise ValueError(
                    "Metrics must be made in the scope of the strategy, and the model compiled in "
                    "it: each worker would else report its own share. Received: "
                    f"{metric.name!r}, made outside of it. Move compile, and the lines that make "
                    "metrics, below `with strategy.scope():`."
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
    """Say once, on the chief, if a layer normalises over each replica's own examples."""
    names = [
        layer.name
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable  # a frozen one uses its statistics
        and not layer.synchronized
    ]
    is_chief = shard_of(model.distribute_strategy).worker == 0
    if names and is_chief and model not in _warned:
        _warned.add(model)
        logging.warning(
            "BatchNormalization without synchronized=True normalises over each replica's own "
            "examples, so results change with the number of replicas. Received: %s. "
            "Build these layers with synchronized=True.",
            ", ".join(names),
        )


def layers_of(layer):
    """Return all layers inside a layer, nested ones too, one by one."""
    for inner in getattr(layer, "layers", []):
        yield inner
        yield from layers_of(inner)
