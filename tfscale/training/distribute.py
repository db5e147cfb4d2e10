"""For a loop of one's own: data cut among the replicas, and steps that add up to one device's.

Inside `strategy.run` a step enters `replica_share` and is then written as for one device; the
losses, the optimizers and the random numbers of Keras do the rest, as they do for `Trainer`.
"""

import contextlib

import tensorflow as tf

from tfscale.data import batches, elements
from tfscale.strategy import shard_of
from tfscale.training import reduction as reduction_lib
from tfscale.training import replica
from tfscale.training import share as share_lib
from tfscale.training import step as step_lib


def distribute(dataset, strategy=None):
    """Return a dataset whose elements are this worker's shares of the global batches.

    Iterate over it, in Python or in a `tf.function`, and hand each element to `strategy.run`,
    where `replica_share` takes it apart.

    Args:
        dataset: a `tf.data.Dataset` whose elements are global batches, the same on every worker.
        strategy: a strategy; by default the one in use.

    Returns:
        A `tf.data.Dataset` of `(share, global_count)`, one element a global batch.

    Raises:
        ValueError: if the dataset is not batched, or a batch has fewer examples than there are
            replicas.
    """
    shard = shard_of(strategy or tf.distribute.get_strategy())
    cut = batches.from_dataset(dataset).epoch(shard)
    in_parts = isinstance(cut.element_spec, tuple)  # which `map` takes apart
    return cut.map(lambda *parts: elements.with_count(parts if in_parts else parts[0]))


@contextlib.contextmanager
def replica_share(element, reduction="mean"):
    """Inside, on a replica, what one device would compute is what one replica of many computes.

    Enter it in the function that `strategy.run` calls. Losses of Keras, or any mean over the
    examples, are then this replica's; gradients are weighted by the size of the share and summed
    over all replicas when an optimizer's `apply_gradients` gets them, before they are clipped.

    Args:
        element: an element of a dataset that `distribute` returned.
        reduction: how gradients are summed, by name or as an object of `training.reduction`.

    Yields:
        This replica's part of the global batch, structured like the dataset's elements.

    Raises:
        RuntimeError: if it is entered outside of `strategy.run`.
    """
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError(
            "replica_share() must be entered on a replica. Received: a call outside of "
            "strategy.run. Move it into the function that strategy.run calls."
        )
    if isinstance(reduction, str):
        reduction = reduction_lib.build_reduction(reduction)
    replicas = shard_of(context.strategy).replicas_per_worker
    data, share = step_lib.cut_share(*element, replicas, reduction)
    with replica.sharing(share):
        yield data


def global_mean(value):
    """Return the mean over the global batch of what is a mean over each replica's share.

    Call it within `replica_share`, for example on a loss that shall be shown. It costs one sum
    over the replicas.

    Args:
        value: a float tensor, this replica's mean.

    Returns:
        A tensor of the same shape, equal on all replicas.
    """
    share = share_lib.current_share()
    if share is None:
        return tf.convert_to_tensor(value)
    context = tf.distribute.get_replica_context()
    return context.all_reduce("SUM", value * share.weight(value.dtype))
