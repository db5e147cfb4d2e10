"""The random numbers to come: those of Python, NumPy, TensorFlow and Keras, read and put back.

Seeds that layers keep are in the model's variables, and are not read here. TensorFlow shows to
nobody how far the random operations in a graph are, nor a shuffle under way: they begin to count
anew, and the feeds of the data make their iterators again.
"""

import random

import numpy as np
import tensorflow as tf

from tfscale.strategy import eager_draws, made_generator, set_eager_draws
from tfscale.training import seeds


def read():
    """Return the state of all generators of this process, and draw from none.

    Returns:
        A dict that fits into JSON: "python", "numpy" (its legacy generator, that of
        `np.random.seed`), "tensorflow" (operations without a seed), "tensorflow_generator" (that of
        `tf.random.get_global_generator`) and "keras" (`keras.random` without a seed); the last
        two are None where nobody has drawn from them.
    """
    seed, draws = eager_draws()
    keras_seed = seeds.read_global_seed()
    return {
        "python": random.getstate(),
        "numpy": _as_lists(np.random.get_state(legacy=False)),
        "tensorflow": {"seed": seed, "draws": draws},
        "tensorflow_generator": _read_generator(made_generator()),
        "keras": None if keras_seed is None else keras_seed.tolist(),
    }


def restore(state):
    """Go on where the generators were when `read` was called, in this process or another.

    To be called in the strategy's scope, by all workers, once whatever draws at the beginning of
    a run has done so: a shuffle takes its seed when it is made.

    Args:
        state: what `read` returned, or what JSON made of it.
    """
    seed, draws = state["tensorflow"]["seed"], state["tensorflow"]["draws"]
    set_eager_draws(seed, draws and _as_tuples(draws))
    _restore_generator(state["tensorflow_generator"])
    seeds.restore_global_seed(state["keras"])
    np.random.set_state(state["numpy"])
    random.setstate(_as_tuples(state["python"]))


def _read_generator(generator):
    if generator is None:
        return None
    return {"algorithm": int(generator.algorithm), "state": generator.state.numpy().tolist()}


def _restore_generator(saved):
    """Put back TensorFlow's global generator, which may be in use already, or not yet made."""
    if saved is None:
        return  # what was never drawn from has no order to keep, and begins with any number
    generator = made_generator()
    if generator is not None and int(generator.algorithm) == saved["algorithm"]:
        generator.reset(tf.constant(saved["state"], tf.int64))
        return
    with tf.init_scope():
        generator = tf.random.Generator.from_state(saved["state"], saved["algorithm"])
    tf.random.set_global_generator(generator)


def _as_lists(state):
    """The state of NumPy's generator, whichever it is, with lists in place of arrays."""
    if isinstance(state, dict):
        return {name: _as_lists(part) for name, part in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _as_tuples(state):
    """What `random.setstate` takes, from what JSON made of it."""
    version, numbers, gauss = state
    return version, tuple(numbers), gauss
