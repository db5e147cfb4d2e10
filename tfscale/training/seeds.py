"""Random numbers inside of a step: each replica draws others, and all advance their states alike.

This module owns the private names of Keras' generator behind `keras.random` without a seed.
"""

import contextlib
import random

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from tfscale.strategy import shard_of
from tfscale.training import share as share_lib

_keras_next_seed = keras.random.SeedGenerator.next
_host = {}  # what the threads of the replicas find of the thread that starts them


def share_global_seed():
    """Give replicas the generator behind `keras.random` without a seed, which is a thread's own.

    Called in the strategy's scope, by all workers, before a step is traced.
    """
    with _own_draws():
        found = global_seed_generator()
        if not _is_shared(found):
            state = _state_of(found)
            global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
            with tf.init_scope():
                found = global_seed_generator()
                if _is_shared(found):
                    found.state.assign(state)
    _host["generator"] = found


def find_shared_seed():
    """Give the calling replica's thread what `share_global_seed` made; nothing without it."""
    if _host.get("generator") is not None:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, _host["generator"])


def read_global_seed():
    """Return the state of the generator behind `keras.random` without a seed; None if unmade."""
    found = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return None if found is None else _state_of(found)


def restore_global_seed(state):
    """Put back what `read_global_seed` returned, in the strategy's scope, on all workers.

    Where there was none, the next draw makes one, with Python's next random number for its seed;
    but one that replicas share stays, because their graphs hold it.
    """
    found = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    if state is None:
        if found is not _host.get("generator"):
            global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
        return
    is_foreign = (
        found is not None
        and isinstance(found.state.value, tf.distribute.DistributedValues)
        and not _is_shared(found)
    )
    if found is None or is_foreign:
        with tf.init_scope():
            found = keras.random.SeedGenerator(seed=0)
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, found)
    found.state.assign(state)


@contextlib.contextmanager
def seed_of_worker():
    """Let `tf.random` draw other numbers on each worker; replicas of one have other operations."""
    graph = tf.compat.v1.get_default_graph()
    worker = shard_of(tf.distribute.get_strategy()).worker
    if not worker or tf.executing_eagerly() or graph.seed is None:
        yield
        return
    before = graph.seed
    graph.seed = (before + worker * 1_000_003) % 2**31
    try:
        yield
    finally:
        graph.seed = before


def _next_seed(self, ordered=True):
    """Every replica draws from a stream of its own; the state advances alike on all."""
    seed = _keras_next_seed(self, ordered)
    context = tf.distribute.get_replica_context()
    if share_lib.current_share() is None or context is None:
        return seed
    replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
    # A large odd stride keeps replica r's stream apart from the stream of another seed.
    return seed + tf.stack([replica * 1_000_003, tf.zeros_like(replica)])


def _is_shared(generator):
    """Whether a seed generator is one that the replicas of the strategy in scope share."""
    value = generator.state.value
    if not isinstance(value, tf.distribute.DistributedValues):
        return False
    return value.distribute_strategy is tf.distribute.get_strategy()


def _state_of(generator):
    """The state of a seed generator, of whatever strategy."""
    value = generator.state.value
    return (
        value.values[0] if isinstance(value, tf.distribute.DistributedValues) else value
    ).numpy()


@contextlib.contextmanager
def _own_draws():
    """Inside, Keras draws seeds of its own, so that those outside come as on one device.

    A layer that is made later, or a shuffle, would else get the number after the one it gets there.
    """
    before = random.getstate()
    random.seed(f"keras.random {random.random()}")
    try:
        yield
    finally:
        random.setstate(before)


# What is replaced while replicas share a batch: its place, its name, what was there, and ours.
REPLACED = ((keras.random.SeedGenerator, "next", _keras_next_seed, _next_seed),)
