"""Random numbers after a restart are those that would have come without one."""

import json
import random
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfscale.strategy import make_strategy
from tfscale.training import random_state, replica, seeds, share


def adapter_order():
    """The order in which `fit` on arrays reads them: a dense array by Keras' adapter."""

    class Order(keras.Model):
        def __init__(self):
            super().__init__()
            self.bias = self.add_weight(shape=())
            self.order = []

        def call(self, x):
            return x * self.bias

        def train_step(self, data):
            self.order.extend(np.ravel(data[0]).tolist())
            return {"nothing": tf.constant(0.0)}

    model = Order()
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.arange(12.0), np.arange(12.0), batch_size=6, epochs=2, verbose=0)
    return model.order


DRAWS = {
    "random.random": random.random,
    "random.gauss": lambda: random.gauss(0, 1),
    "numpy.random.rand": np.random.rand,
    "numpy.random.randn": np.random.randn,
    "tf.random.uniform": lambda: float(tf.random.uniform([])),
    "tf.random.shuffle": lambda: tf.random.shuffle(tf.range(12)).numpy().tolist(),
    "tf.random.get_global_generator": lambda: float(tf.random.get_global_generator().uniform([])),
    "keras.random.uniform": lambda: float(keras.random.uniform([])),
    "keras.random.shuffle": lambda: keras.random.shuffle(tf.range(12)).numpy().tolist(),
    "Dataset.shuffle": lambda: [int(i) for i in tf.data.Dataset.range(12).shuffle(12).repeat(2)],
    "Keras' array adapter": adapter_order,
}


def draw_all():
    return {name: [draw(), draw()] for name, draw in DRAWS.items()}


@pytest.fixture(autouse=True)
def _fresh():
    """Each test begins where a script does that seeds everything, and leaves no generator."""
    tf.random.set_global_generator(None)
    keras.utils.set_random_seed(1)
    yield
    tf.random.set_global_generator(None)
    keras.utils.set_random_seed(1)


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_comes_again(name):
    draw = DRAWS[name]
    draw()
    state = json.loads(json.dumps(random_state.read()))
    expected = [draw() for _ in range(3)]
    draw_all()
    random_state.restore(state)
    assert [draw() for _ in range(3)] == expected


def test_a_generator_that_was_not_made_is_made_again_from_the_same_number():
    state = random_state.read()
    assert state["keras"] is None and state["tensorflow_generator"] is None
    expected = float(keras.random.uniform([]))
    random_state.restore(state)
    assert float(keras.random.uniform([])) == expected


def test_reading_and_restoring_draw_nothing():
    expected = draw_all_but_the_generator()
    keras.utils.set_random_seed(1)
    state = random_state.read()
    assert state == random_state.read()
    random_state.restore(state)
    assert random_state.read() == state
    assert draw_all_but_the_generator() == expected
    state = random_state.read()  # all generators are made by now
    tf.random.get_global_generator()
    keras.utils.set_random_seed(2)  # forgets that of Keras
    random_state.restore(state)
    assert {**random_state.read(), "tensorflow_generator": None} == state


def draw_all_but_the_generator():
    """Without that of TensorFlow, which begins with any number."""
    return [draw() for name, draw in DRAWS.items() if "global_generator" not in name]


def test_another_generator_of_numpy_and_no_seed_of_tensorflow_are_kept():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    tf.random.set_seed(None)
    try:
        state = json.loads(json.dumps(random_state.read()))
        expected = np.random.rand()
        tf.random.set_seed(1)
        random_state.restore(state)
        assert np.random.rand() == expected
        assert tf.random.uniform([]) != tf.random.uniform([])
        assert random_state.read()["tensorflow"] == {"seed": None, "draws": None}
    finally:
        np.random.set_bit_generator(before)


def test_generator_of_another_algorithm_is_replaced():
    generator = tf.random.Generator.from_seed(1, alg="threefry")
    tf.random.set_global_generator(generator)
    state = random_state.read()
    tf.random.set_global_generator(tf.random.Generator.from_seed(1, alg="philox"))
    random_state.restore(state)
    restored = tf.random.get_global_generator()
    assert restored.algorithm == generator.algorithm
    assert restored.state.numpy().tolist() == generator.state.numpy().tolist()


def test_generators_that_replicas_share_are_read_and_restored():
    strategy = make_strategy("mirrored", 2)
    two = tf.constant(2)

    @tf.function
    def draw_on_replicas():
        return strategy.run(draw_on_one)

    def draw_on_one():
        with replica.sharing(share.Share(two, two // 2, two, 2)):
            of_keras = keras.random.uniform([])
            return of_keras, tf.random.get_global_generator().uniform([])

    def draw():
        results = draw_on_replicas()
        drawn = [float(v) for r in results for v in strategy.experimental_local_results(r)]
        assert len(set(drawn)) == 4
        return drawn

    with strategy.scope():
        seeds.share_global_seed()
        tf.random.set_global_generator(tf.random.Generator.from_seed(1))
        draw()
        state = json.loads(json.dumps(random_state.read()))
        expected = draw()
        random_state.restore(state)
        assert draw() == expected
        draw()
        random_state.restore({**state, "keras": None})  # one device's; the graph holds this one
        assert random_state.read()["keras"] is not None
    seeds.share_global_seed()


def test_draws_come_again_in_a_new_process(tmp_path):
    draw_all()
    state = random_state.read()
    (tmp_path / "state.json").write_text(json.dumps(state))
    expected = draw_all()
    code = f"""
import json, sys
sys.path.insert(0, {str(tmp_path)!r})
import keras, numpy, random, tensorflow as tf
keras.utils.set_random_seed(1)
from tfscale.training import random_state
from test_random_state import draw_all
[draw() for draw in (random.random, numpy.random.rand) for _ in range(3)]
tf.data.Dataset.range(3).shuffle(3)
random_state.restore(json.load(open({str(tmp_path / "state.json")!r})))
json.dump(draw_all(), open({str(tmp_path / "draws.json")!r}, "w"))
"""
    shutil.copy(__file__, tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "draws.json").read_text()) == expected
