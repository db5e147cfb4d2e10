"""Whether the folder of a `Tuner` is that of the search that goes on in it."""

import json

import keras_tuner
import pytest

from tfscale.search import identity, oracles, running

oracles.note_seeds()


def settle(run_dir, oracle=keras_tuner.oracles.RandomSearchOracle, epochs=3, how=None, **settings):
    hp = keras_tuner.HyperParameters()
    hp.Int("units", 8, settings.pop("most", 64))
    if oracle is not keras_tuner.oracles.HyperbandOracle:
        settings = {"max_trials": 2, **settings}
    asked = oracle("val_loss", hyperparameters=hp, **settings)
    found = identity.of_search(asked, 1, running.Running(**(how or {})))
    return identity.settle(run_dir / "search.json", found, asked, epochs), asked


BAYESIAN = {"oracle": keras_tuner.oracles.BayesianOptimizationOracle}
HYPERBAND = {"oracle": keras_tuner.oracles.HyperbandOracle, "epochs": 0}


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ({"epochs": 3}, {"epochs": 5}, "epochs: 3 there and 5 here"),
        ({"seed": 4}, {"seed": 5}, "seed: 4 there and 5 here"),
        ({}, {"how": {"deterministic": False}}, "deterministic: true there and false here"),
        ({}, {"how": {"strategy": "multiworker", "workers_per_trial": 2}}, "workers_per_trial"),
        ({}, {"how": {"strategy": "onedevice"}}, 'strategy: "auto" there and "onedevice" here'),
        (BAYESIAN, {**BAYESIAN, "alpha": 0.1}, "alpha"),
        (BAYESIAN, {**BAYESIAN, "beta": 2.0}, "beta"),
        (BAYESIAN, {**BAYESIAN, "num_initial_points": 7}, "num_initial_points"),
        (HYPERBAND, {**HYPERBAND, "max_epochs": 9}, "max_epochs: 100 there and 9 here"),
        (HYPERBAND, {**HYPERBAND, "factor": 2}, "factor: 3 there and 2 here"),
        (HYPERBAND, {**HYPERBAND, "hyperband_iterations": 2}, "hyperband_iterations: 1 there"),
        ({}, {"most": 32}, "space.units.max_value: 64 there and 32 here. Go back"),
    ],
)
def test_folder_of_another_search_is_refused_with_what_differs(tmp_path, before, now, says):
    settle(tmp_path, **before)
    written = (tmp_path / "search.json").read_text()
    with pytest.raises(ValueError, match=says):
        settle(tmp_path, **now)
    assert (tmp_path / "search.json").read_text() == written


def test_more_trials_extend_a_search_that_keeps_its_seed(tmp_path):
    first, _ = settle(tmp_path)
    again, asked = settle(tmp_path, max_trials=20)
    assert (again["max_trials"], again["seed"]) == (20, first["seed"]) == (20, asked.seed)
    same, _ = settle(tmp_path, max_trials=20, seed=first["seed"])
    assert same == json.loads((tmp_path / "search.json").read_text()) == again


def test_an_oracle_without_a_bound_fits_into_json(tmp_path):
    found, _ = settle(tmp_path, **HYPERBAND, hyperband_iterations=0)
    assert found["hyperband_iterations"] == 0
