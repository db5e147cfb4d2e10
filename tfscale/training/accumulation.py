"""Gradients added up by each replica over several steps, and summed over replicas once an update.

Keras' optimizers with `gradient_accumulation_steps` update inside a condition in the replica,
where TensorFlow cannot reduce. Here the replicas add first, each to accumulators of its own, and
the condition stands between them, around all replicas. Everything else is Keras' own: which
counter a schedule sees, clipping after averaging, decay, moving averages after every step.
"""

import tensorflow as tf

# Strategies whose replicas meet in a `merge_call`, which may not be inside a condition.
_MERGING = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)


def accumulates(optimizer):
    """Whether an optimizer, or one that it wraps, updates every few steps only."""
    return any(leaf.gradient_accumulation_steps for leaf in leaves(optimizer))


def leaves(optimizer):
    """Return the optimizers that update variables: the one itself, or those that it wraps."""
    inner = getattr(optimizer, "inner_optimizer", None)
    wrapped = [inner] if inner is not None else getattr(optimizer, "optimizers", None)
    return [optimizer] if wrapped is None else [leaf for one in wrapped for leaf in leaves(one)]


def accumulators_of(optimizer):
    """Return the `keras.Variable`s in which a built optimizer, or those in it, add gradients."""
    held = [getattr(leaf, "_accumulated_gradients", []) for leaf in leaves(optimizer)]
    return [accumulator for one in held for accumulator in one]


def spread(optimizer):
    """Give each replica accumulators of its own; what they hold stays.

    Outside of a replica, reading one gives the mean over all replicas, a collective, and
    assigning to one assigns to all. Called in the scope of the strategy, by all workers. The
    first step does so as well, but what has read an accumulator in a graph before reads the old.

    Args:
        optimizer: a built optimizer of Keras. One that does not accumulate stays as it is, and
            so does one of a single device, or one whose accumulators are spread.
    """
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, _MERGING):
        return
    for accumulator in accumulators_of(optimizer):
        if accumulator.synchronization == "on_read":
            continue
        with tf.init_scope(), strategy.scope():
            mirrored = accumulator.value
            accumulator._value = tf.Variable(
                lambda mirrored=mirrored: tf.identity(mirrored),
                trainable=False,
                dtype=mirrored.dtype,
                name=accumulator.name,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.MEAN,
            )
        accumulator._synchronization, accumulator._aggregation = "on_read", "mean"


def fails_alone(optimizer):
    """Whether Keras' own accumulation fails although there is one replica only."""
    strategy = tf.distribute.get_strategy()
    one = isinstance(strategy, _MERGING) and strategy.num_replicas_in_sync == 1
    return one and bool(optimizer.gradient_accumulation_steps)


def agree_on_finite(gradients):
    """Make a gradient that is not finite on one replica so on all, by a sum of one number.

    An optimizer with loss scaling then skips this step everywhere, as one device would, although
    no gradient has been reduced yet.

    Args:
        gradients: a replica's list of tensors or `tf.IndexedSlices`, `None` where a variable has
            none.

    Returns:
        The gradients, one of them dense and NaN where any replica has an infinite one or a NaN.
    """
    present = [i for i, gradient in enumerate(gradients) if gradient is not None]
    finite = [tf.reduce_all(tf.math.is_finite(_values(gradients[i]))) for i in present]
    failed = tf.cast(~tf.reduce_all(finite), tf.float32)
    failed = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, failed)
    gradients = list(gradients)
    for i in present[:1]:
        gradient = tf.convert_to_tensor(gradients[i])
        poison = tf.where(failed > 0, float("nan"), 0.0)
        gradients[i] = gradient + tf.cast(poison, gradient.dtype)
    return gradients


def apply(optimizer, gradients, variables, reduction=None):
    """Add a step's gradients on this replica and, where an update is due, update on all.

    Takes the place of `Optimizer._backend_apply_gradients`, inside of Keras' `apply`: which
    follows with constraints and the count of steps. An accumulator holds the number of replicas
    times this replica's own part, so that the mean over the replicas, which is what reading it
    outside of a replica gives, is the accumulator of one device.

    Args:
        optimizer: a built Keras optimizer with `gradient_accumulation_steps`.
        gradients: of one step, weighted: their sum over replicas is one device's gradient.
        variables: those with a gradient.
        reduction: sums gradients over replicas; none for the only replica.
    """
    context = tf.distribute.get_replica_context()
    context.merge_call(lambda strategy: spread(optimizer))
    num_replicas = context.num_replicas_in_sync
    held = optimizer._accumulated_gradients
    accumulators = [held[optimizer._get_variable_index(v)].value for v in variables]
    for accumulator, gradient in zip(accumulators, gradients, strict=True):
        gradient = tf.convert_to_tensor(gradient)
        if num_replicas > 1:
            gradient *= tf.cast(num_replicas, gradient.dtype)
        accumulator.assign_add(gradient)

    def update():
        """What every replica does where an update is due."""
        count = optimizer.gradient_accumulation_steps * num_replicas
        means = [tf.identity(a) / tf.cast(count, a.dtype) for a in accumulators]
        if reduction is not None:
            means = reduction.reduce(means)
        optimizer._backend_reset_gradient_accumulators()
        means = optimizer._clip_gradients(means)
        optimizer._apply_weight_decay(variables)
        optimizer._backend_update_step(means, variables, optimizer.learning_rate)

    def update_if_due(strategy):
        steps = tf.convert_to_tensor(optimizer._iterations) + 1
        tf.cond(
            tf.equal(steps % optimizer.gradient_accumulation_steps, 0),
            lambda: strategy.extended.call_for_each_replica(update),
            lambda: None,
        )

    context.merge_call(update_if_due)
    if optimizer.use_ema:
        _follow_with_averages(optimizer)


def _follow_with_averages(optimizer):
    """Keras' moving averages: they move after every step, also where nothing was updated."""
    variables = optimizer._trainable_variables
    optimizer._update_model_variables_moving_average(variables)
    if optimizer.ema_overwrite_frequency:
        tf.cond(
            tf.equal((optimizer.iterations + 1) % optimizer.ema_overwrite_frequency, 0),
            lambda: optimizer._overwrite_model_variables_with_average_value(variables),
            lambda: None,
        )


def _values(gradient):
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
