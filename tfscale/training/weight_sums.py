"""Checksums of the variables that all replicas must have alike, and who has others.

Owns which variables those are and how their bits are summed. Values differ where a memory cell
or a processor is bad, or where a step changes weights by itself on one replica.
"""

import collections

import numpy as np
import tensorflow as tf

from tfscale.training import prepare, saving


def compared_variables(model):
    """Return the mirrored variables: weights, optimizers' and seeds.

    Not those of metrics, nor statistics and gradients that each replica keeps for itself.

    Args:
        model: a built `keras.Model`; its optimizers are built too.

    Returns:
        A list of `keras.Variable`.
    """
    own = {id(v) for v in saving.statistics_of(model)}
    own |= {id(v) for metric in model.metrics for v in metric.variables}
    of_optimizers = [v for o in prepare.optimizers_of(model) if o.built for v in o.variables]
    found = {id(v): v for v in (*model.variables, *of_optimizers)}
    on_read = tf.VariableSynchronization.ON_READ
    return [
        v
        for v in found.values()
        if id(v) not in own and v.value.synchronization != on_read and v.value.dtype != tf.string
    ]


def sums(model, strategy):
    """Return a checksum of each variable's bits on each replica, to be called in a graph by all.

    Args:
        model: a built `keras.Model`.
        strategy: its strategy.

    Returns:
        An int64 tensor of shape (replicas, variables), the same on every worker.
    """
    variables = compared_variables(model)
    num_replicas = strategy.num_replicas_in_sync

    def replica():
        own = tf.stack([_sum(tf.convert_to_tensor(v.value)) for v in variables])
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = tf.one_hot(number, num_replicas, dtype=tf.int64)
        return mine[:, tf.newaxis] * own

    return strategy.reduce("SUM", strategy.run(replica), axis=None)


def _sum(value):
    """FarmHash of all bytes, a 64-bit number."""
    if not value.shape.num_elements():
        return tf.constant(0, tf.int64)
    with tf.device("/device:CPU:0"):  # the operation has no other kernel
        return tf.bitcast(tf.fingerprint(tf.reshape(value, [1, -1])), tf.int64)[0]


def differences(table, paths, shard):
    """Say which variables differ, and where.

    Args:
        table: an array of checksums of shape (replicas, variables).
        paths: the variables' names.
        shard: the `data.shards.Shard` of this process.

    Returns:
        A list of texts, one for each set of replicas that differ; empty where all are equal.
    """
    found = collections.defaultdict(list)
    for path, column in zip(paths, np.transpose(table), strict=True):
        values, counts = np.unique(column, return_counts=True)
        if len(values) == 1:
            continue
        usual = values[counts == counts.max()]
        differing = np.flatnonzero(column != usual[0]) if len(usual) == 1 else range(len(column))
        found[tuple(differing)].append(path)
    return [
        f"{_listed(paths)} on {_places(replicas, shard, len(table))}"
        for replicas, paths in found.items()
    ]


def _places(replicas, shard, num_replicas):
    """Replicas by name; the others have the same among themselves."""
    names = [f"replica {r}" for r in replicas]
    if shard.num_workers > 1:
        of = shard.replicas_per_worker
        names = [f"worker {r // of}" + (f", replica {r}" if of > 1 else "") for r in replicas]
    if len(replicas) == num_replicas:
        return f"{' and '.join(names)}, of which none is with a majority"
    return f"{' and '.join(names)}, while the others agree"


def _listed(paths, most=5):
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(paths[:most]) + more
