"""`keras.Model.fit` through the repair: raw Keras on one device is the oracle, call by call."""

import contextlib
import functools
import pathlib
import re

import keras
import keras_fit_cases
import numpy as np
import pytest
import tensorflow as tf

import tfscale
from tfscale import testing
from tfscale.strategy import make_strategy
from tfscale.training import keras_fit, keras_methods

WORKER = pathlib.Path(__file__).with_name("keras_fit_worker.py")
# Of the longer cases the first calls: a start of workers traces each graph anew on both. The
# equality table has the models, losses and optimizers of both doors on two workers.
ON_TWO_WORKERS = ("arrays=3", "datasets=2", "python_data=2", "on_batch=4", "own_steps=4")
MORE_ON_TWO_WORKERS = (
    "arrays=10",
    "datasets=6",
    "python_data=5",
    "nested=9",
    "on_batch=8",
    "models=3",
    "masks=2",
    "added_losses=4",
    "own_steps=8",
    "callbacks=5",
)
ON_ONE_WORKER = ("accumulation", "normalized", "own_steps=8")
X, Y = keras_fit_cases.X, keras_fit_cases.Y


@pytest.fixture(autouse=True)
def _repaired():
    tfscale.enable_keras_fit()
    yield
    tfscale.disable_keras_fit()


@functools.cache
def raw_keras(case):
    return keras_fit_cases.run(case, contextlib.nullcontext)


@functools.cache
def workers(num_workers, cases):
    """All cases in one start of the workers, because a start costs more than a case."""
    results = testing.run_workers(WORKER, num_workers, args=cases, timeout_seconds=240)
    found = [{} for _ in results]
    for own, result in zip(found, results, strict=True):
        for name, array in result.arrays.items():
            case, _, rest = name.partition("|")
            own.setdefault(case, {})[rest] = array
    return found


def check_equal(outcome, reference, tolerance=1e-5):
    """The same calls gave the same names, texts and numbers, in the same order."""
    assert list(outcome) == list(reference)
    wrong = []
    for name in outcome:
        expected = reference[name]
        try:
            if expected.dtype.kind in "US":
                np.testing.assert_array_equal(outcome[name], expected)
            else:
                relative = {"rtol": tolerance, "atol": tolerance}
                np.testing.assert_allclose(outcome[name], expected, **relative)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert not wrong, "\n".join(wrong)


def expected_of(case):
    """Raw Keras' outcome of a case, or of its first calls: "case=calls"."""
    name, _, num_calls = case.partition("=")
    reference = raw_keras(name)
    calls = list(dict.fromkeys(key.partition(": ")[0] for key in reference))
    assert int(num_calls or 0) <= len(calls)
    calls = calls[: int(num_calls or len(calls))]
    return {key: value for key, value in reference.items() if key.partition(": ")[0] in calls}


def tolerance_of(case):
    return 3e-2 if case == "mixed_precision" else 1e-5


@pytest.mark.parametrize("case", keras_fit_cases.CASES)
def test_two_replicas_give_what_keras_gives_on_one_device(case):
    outcome = keras_fit_cases.run(case, make_strategy("mirrored", 2).scope)
    check_equal(outcome, raw_keras(case), tolerance_of(case))


@pytest.mark.workers
@pytest.mark.parametrize("case", ON_TWO_WORKERS)
def test_two_workers_give_what_keras_gives_on_one_device(case):
    name = case.partition("=")[0]
    for outcome in workers(2, ON_TWO_WORKERS):
        check_equal(outcome[name], expected_of(case))


@pytest.mark.workers
@pytest.mark.slow
@pytest.mark.parametrize("case", MORE_ON_TWO_WORKERS)
def test_two_workers_give_the_same_in_all_their_calls(case):
    name = case.partition("=")[0]
    for outcome in workers(2, MORE_ON_TWO_WORKERS):
        check_equal(outcome[name], expected_of(case))


@pytest.mark.workers
@pytest.mark.parametrize("case", ON_ONE_WORKER)
def test_a_single_worker_gives_what_keras_gives_on_one_device(case):
    name = case.partition("=")[0]
    check_equal(workers(1, ON_ONE_WORKER)[0][name], expected_of(case))


def distributed(**options):
    return keras_fit_cases.dense(make_strategy("mirrored", 2).scope, **options)


def test_steps_per_execution_can_be_chosen():
    recorder = keras_fit_cases.Recorder()
    model = distributed(steps_per_execution="auto")
    reference = keras_fit_cases.dense(contextlib.nullcontext)
    reference.set_weights(model.get_weights())
    model.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0, callbacks=[recorder])
    reference.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    for weight, expected in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, atol=1e-5)
    assert "on_train_batch_end 3 accuracy loss" in recorder.calls
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(reference.evaluate(X, Y, verbose=0))
    assert model.predict(X, batch_size=5, verbose=0).shape == (22, 3)


@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_the_bar_says_what_keras_says(verbose, capsys):
    said = []
    for scope in (contextlib.nullcontext, make_strategy("mirrored", 2).scope):
        keras.utils.set_random_seed(7)
        model = keras_fit_cases.dense(scope)
        capsys.readouterr()
        model.fit(X, Y, batch_size=6, epochs=2, verbose=verbose, validation_data=(X, Y))
        model.evaluate(X, Y, batch_size=6, verbose=verbose)
        model.predict(X, batch_size=6, verbose=verbose)
        said.append(capsys.readouterr().out)
    assert last_lines(said[1]) == last_lines(said[0])


def last_lines(text):
    """What stays on the screen, without colours and times."""
    lines = [line for line in text.splitlines() if "\b" not in line]
    return [re.sub(r"\x1b\[\d+m|\d+m?s(/step|\b)", "", line).split() for line in lines]


def test_ragged_outputs_come_back_as_from_keras():
    def made(scope):
        with scope():
            return keras.Sequential(
                [keras.Input((None,), dtype="int32"), keras.layers.Embedding(9, 2)]
            )

    lengths = tf.data.Dataset.from_tensor_slices(tf.constant([2, 3, 3, 4, 1, 5, 2]))
    padded = lengths.map(lambda n: tf.ones([n], tf.int32)).padded_batch(3)
    keras.utils.set_random_seed(7)
    expected = made(contextlib.nullcontext).predict(padded, verbose=0)
    keras.utils.set_random_seed(7)
    outputs = made(make_strategy("mirrored", 2).scope).predict(padded, verbose=0)
    assert isinstance(outputs, tf.RaggedTensor)
    np.testing.assert_allclose(outputs.to_tensor(), expected.to_tensor(), atol=1e-6)


def _uncompiled():
    with make_strategy("mirrored", 2).scope():
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])


def _optimizer_from_outside():
    model = _uncompiled()
    model.compile(keras.optimizers.Adam(), "mse")
    return model


def _distributed_dataset():
    return make_strategy("mirrored", 2).experimental_distribute_dataset(keras_fit_cases.dataset())


REFUSED = {
    "not compiled": (lambda: _uncompiled().fit(X, Y), "must call `compile"),
    "evaluated, not compiled": (lambda: _uncompiled().evaluate(X, Y), "must call `compile"),
    "batch too small": (lambda: distributed().fit(X, Y, batch_size=1), "number of replicas"),
    "distributed dataset": (
        lambda: distributed().fit(_distributed_dataset()),
        "the dataset itself",
    ),
    "validation freq": (
        lambda: distributed().fit(X, Y, validation_freq="2", validation_data=(X, Y)),
        "validation_freq",
    ),
    "optimizer from outside": (
        lambda: _optimizer_from_outside().fit(X, X),
        "in the scope of the strategy",
    ),
    "unequal lengths": (lambda: distributed().fit(X, Y[:5]), "cardinality|same"),
    "both weights": (
        lambda: distributed().train_on_batch(X, Y, np.ones(22), {0: 1.0}),
        "exclude each other",
    ),
    "unknown argument": (lambda: distributed().evaluate(X, Y, workers=2), "not recognized"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_the_first_step(what):
    call, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        call()


def test_other_versions_of_keras_are_refused():
    for version in ("3.13.2", "3.15.1"):
        keras_fit._check_version(version)
    for version in ("2.15.0", "3.12.0", "3.1.5", "4.0.0"):
        with pytest.raises(RuntimeError, match=f"Received: Keras {version}"):
            keras_fit._check_version(version)


def _methods():
    savers = (keras.Model.save, keras.Model.save_weights, keras.saving.save_model)
    return [getattr(keras.Model, name) for name in keras_methods.METHODS] + list(savers)


def test_enable_is_idempotent_and_disable_puts_the_methods_back():
    ours = _methods()
    tfscale.enable_keras_fit()
    assert _methods() == ours
    tfscale.disable_keras_fit()
    own = _methods()
    assert all(method.__module__.startswith("keras.") for method in own)
    assert not set(own) & set(ours)
    tfscale.disable_keras_fit()
    assert _methods() == own


@pytest.mark.parametrize("strategy", [None, "onedevice"])
def test_keras_own_code_runs_where_there_is_one_device(strategy):
    scope = make_strategy(strategy).scope if strategy else contextlib.nullcontext
    model = keras_fit_cases.dense(scope)
    model.fit(X, Y, batch_size=6, verbose=0)
    assert model.train_function is not None  # Keras' own, which the repair never makes
    assert keras_methods._LOOP not in vars(model)
    replicated = distributed()
    replicated.fit(X, Y, batch_size=6, verbose=0)
    assert replicated.train_function is None
