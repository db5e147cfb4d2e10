"""keras-tuner's oracles, asked again after a search was killed."""

import inspect
import math
import random

import keras_tuner
import pytest

from tfscale.search import oracles


def space():
    hp = keras_tuner.HyperParameters()
    hp.Float("optimizer.learning_rate", 1e-4, 1e-1, sampling="log")
    hp.Choice("optimizer.name", ["sgd", "adam"])
    with hp.conditional_scope("optimizer.name", ["sgd"]):
        hp.Float("optimizer.arguments.momentum", 0.0, 0.9, step=0.3)
    return hp


def score(values, epoch):
    off = abs(math.log10(values["optimizer.learning_rate"]) + 2)
    return 0.3 * values.get("optimizer.arguments.momentum", 0.0) + 0.01 * epoch - off


def asker(tuner, hp=None, seed=3):
    oracle = oracles.build(tuner, hp or space(), "val_accuracy", "max", seed, max_epochs=9)
    return oracles.Asker(oracle)


def tell(oracle, id, values, epochs):
    history = [{"epoch": e, "val_accuracy": score(values, e)} for e in range(1, epochs + 1)]
    oracle.tell(id, history, {4: "failed", 6: "diverged"}.get(int(id), "completed"))


def searched(tuner, parallel, num_trials, before=()):
    """Play a search on the events of an earlier one; return all events, as the loop writes them."""
    oracle, events, running = asker(tuner), [], []
    for event in before:
        if event[0] == "ended":
            tell(oracle, *event[1:])
            running = [asked for asked in running if asked.id != event[1]]
        else:
            asked = oracle.ask_again(event[2])
            assert (asked.kind, asked.id, asked.values) == event[:3]
            running += [asked] if asked.kind == "trial" else []
        events.append(event)
    waits = False
    while True:
        num_created = sum(event[0] == "trial" for event in events)
        if len(running) < parallel and num_created < num_trials and not waits:
            asked = oracle.ask()
            events.append((asked.kind, asked.id, asked.values, asked.parent, asked.epochs))
            waits = asked.kind != "trial"
            running += [] if waits else [asked]
        elif running:
            asked = running.pop(random.Random(len(events)).randrange(len(running)))
            event = (asked.id, asked.values, asked.epochs or 2)
            tell(oracle, *event)
            events.append(("ended", *event))
            waits = False
        else:
            return events


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize("tuner", ["random", "grid", "hyperband"])
def test_oracle_that_is_asked_again_goes_on_with_the_same_trials(tuner, parallel):
    whole = searched(tuner, parallel, 14)
    assert sum(event[0] == "trial" for event in whole) == 14
    for cut in (3, len(whole) - 4):
        assert searched(tuner, parallel, 14, whole[:cut]) == whole


@pytest.mark.parametrize("parallel", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gaussian_process_that_was_not_asked_again_goes_on_with_the_same_trials(parallel):
    whole = searched("bayesian", parallel, 12)  # of which ten are random
    assert searched("bayesian", parallel, 12, whole[:-3]) == whole


def test_bayesian_asks_its_process_after_the_first_points():
    oracle = asker("bayesian")
    for _ in range(9):
        asked = oracle.ask()
        oracle.tell(asked.id, [{"epoch": 1, "val_accuracy": score(asked.values, 1)}], "completed")
    assert not hasattr(oracle._oracle.gpr, "X_train_")
    oracle.ask()
    assert len(oracle._oracle.gpr.X_train_) == 9


def test_grid_has_each_combination_once_however_many_run_at_once():
    hp = keras_tuner.HyperParameters()
    hp.Choice("model.arguments.activation", ["relu", "gelu"])
    hp.Choice("data.global_batch_size", [16, 32, 64])
    oracle = asker("grid", hp)
    asked = [oracle.ask() for _ in range(6)]  # none of them has ended
    assert len({tuple(one.values.items()) for one in asked}) == 6
    assert oracle.ask().kind == "idle"
    for one in asked:
        oracle.tell(one.id, [{"epoch": 1, "val_accuracy": 0.5}], "completed")
    assert oracle.ask().kind == "exhausted"


def test_hyperband_continues_the_best_third_for_three_times_as_long():
    oracle = asker("hyperband")
    first = [oracle.ask() for _ in range(9)]
    assert {(one.epochs, one.parent) for one in first} == {(1, "")}
    for level, one in enumerate(first):
        oracle.tell(one.id, [{"epoch": 1, "val_accuracy": 0.1 * level}], "completed")
    second = [oracle.ask() for _ in range(3)]
    assert [(one.epochs, one.parent) for one in second] == [(3, "0008"), (3, "0007"), (3, "0006")]
    assert second[0].values == first[8].values


def test_hyperband_goes_on_with_no_trial_that_has_no_score_and_with_all_others_as_ever():
    states = ["diverged", "out_of_memory", "completed", "hung", "failed"] + ["diverged"] * 3
    states.append("completed")  # the last one, whose score is the lower one
    ids = [f"{number:04d}" for number in range(9)]

    def begun(again):
        oracle = asker("hyperband")
        first = [oracle.ask_again({}) if again else oracle.ask() for _ in ids]
        assert [one.id for one in first] == ids
        for level, (one, state) in enumerate(zip(first, states, strict=True)):
            score = [{"epoch": 1, "val_accuracy": -0.1 * level}]
            oracle.tell(one.id, [] if state == "out_of_memory" else score, state)
        return oracle

    oracle, again = begun(False), begun(True)
    then = [oracle.ask() for _ in range(3)]
    assert then == [again.ask_again({}), again.ask_again({}), again.ask()]
    assert [one.id for one in then] == ["0009", "0010", "0011"]
    assert [one.parent for one in then] == ["0002", "0008", ""]  # the third begins a bracket
    for one in then:
        oracle.tell(one.id, [], "out_of_memory")
    rest = []
    while (asked := oracle.ask()).kind == "trial":
        rest.append(asked)
        oracle.tell(asked.id, [], "diverged")
    assert asked.kind == "exhausted" and not [one for one in rest if one.parent]


def test_trial_that_diverged_counts_as_the_worst_so_far_and_one_that_failed_not_at_all():
    oracle = asker("random")
    asked = [oracle.ask() for _ in range(4)]
    oracle.tell(asked[0].id, [{"epoch": 1, "val_accuracy": 0.4}], "completed")
    oracle.tell(asked[1].id, [{"epoch": 1, "val_accuracy": 0.9}], "diverged")
    oracle.tell(asked[2].id, [{"epoch": 1, "val_accuracy": 0.9}], "failed")
    oracle.tell(asked[3].id, [{"epoch": 1, "val_accuracy": float("nan")}], "completed")
    told = [oracle._oracle.trials[oracle._ids[one.id]] for one in asked]
    assert [trial.score for trial in told] == [0.4, 0.4, None, None]
    assert [trial.status for trial in told] == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]


def test_one_seed_gives_one_order_and_another_seed_another():
    assert asker("random").ask() == asker("random").ask()
    assert asker("random").ask() != asker("random", seed=4).ask()
    own = keras_tuner.oracles.RandomSearchOracle("val_accuracy", hyperparameters=space())
    oracles.reseed(own, 4)  # as `build` has it for seed 3
    assert oracles.Asker(own).ask() == asker("random").ask()


def test_an_oracle_that_is_given_a_seed_remembers_it():
    oracles.note_seeds()
    oracles.note_seeds()  # once is enough
    make = keras_tuner.oracles.RandomSearchOracle
    given = [oracles.given_seed(make("val_loss", **seed)) for seed in ({}, {"seed": 4})]
    assert given == [None, 4]
    assert oracles.given_seed(make("val_loss", 3, 7)) == 7


@pytest.mark.parametrize("step", [0.3, None])
def test_trials_of_a_grid_are_counted(step):
    hp = space()
    hp.Choice(
        "optimizer.clip", ["norm", "value"], parent_name="optimizer.name", parent_values="sgd"
    )
    with (
        hp.conditional_scope("optimizer.name", ["sgd"]),
        hp.conditional_scope("optimizer.clip", ["norm"]),
    ):
        hp.Float("optimizer.clip_norm", 0.0, 1.0, step=step)
    hp.Boolean("data.shuffle")
    oracle = asker("grid", hp)
    number = 0
    while (asked := oracle.ask()).kind == "trial":
        number += 1
    assert asked.kind == "idle" and oracles.num_trials(oracle._oracle) == number


def test_trials_of_hyperband_are_counted():
    oracle, number = asker("hyperband"), 0
    while (asked := oracle.ask()).kind == "trial":
        number += 1
        oracle.tell(asked.id, [{"epoch": 1, "val_accuracy": number / 100}], "completed")
    assert oracles.num_trials(oracle._oracle) == number
    for tuner, repeats in (("hyperband", True), ("random", False)):
        endless = oracles.build(tuner, space(), "val_accuracy", "max", 3, 9, 3, repeats)
        assert oracles.num_trials(endless) == 0


def test_private_names_of_keras_tuner_that_are_used():
    """A new keras-tuner that moves one of them fails here by name."""
    oracle = keras_tuner.oracles.BayesianOptimizationOracle("val_loss", hyperparameters=space())
    for name in ("_save_trial", "_seed_state", "_random_state", "_vectorize_trials"):
        assert hasattr(oracle, name)
    source = inspect.getsource(keras_tuner.oracles.BayesianOptimizationOracle.populate_space)
    for line in (
        "num_initial_points = self.num_initial_points or max(3 * dimensions, 3)",
        "num_restarts = 50",
        "bounds[:, 0], bounds[:, 1], size=(num_restarts, bounds.shape[0])",
    ):
        assert line in source
    assert keras_tuner.oracles.GridSearchOracle("val_loss")._populate_next == []
