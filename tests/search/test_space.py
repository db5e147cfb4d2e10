"""What a search space may name, and the configuration of a trial."""

import re
import sys

import pytest

from tfscale import config_files
from tfscale.config import DataConfig, OptimizerConfig, RunConfig
from tfscale.search import journal
from tfscale.search import space as space_lib


def check(define, config=None):
    config = config or RunConfig(optimizer=OptimizerConfig(arguments={"momentum": 0.9}))
    space_lib.check(space_lib.define(define), config, config_files.check_types)


@pytest.mark.parametrize(
    ("define", "says"),
    [
        (lambda hp: None, "at least one hyperparameter. Received: none"),
        (lambda hp: hp.Fixed("train.seed", 3), "at least one hyperparameter. Received: none"),
        (lambda hp: hp.Floa("x"), "AttributeError"),
        (lambda hp: sys.exit("No."), "fails: SystemExit: No. Mend it"),
        (
            lambda hp: hp.Float("optimizer.arguments.momentum.x", 0.1, 1.0),
            "where momentum is 0.9 and has no arguments",
        ),
        (
            lambda hp: hp.Float("optimizer.learning_rat", 0.1, 1.0),
            "Did you mean optimizer.learning_rate",
        ),
        (lambda hp: hp.Float("optimiser.learning_rate", 0.1, 1.0), "Did you mean optimizer"),
        (lambda hp: hp.Int("optimizer", 1, 2), "which is a section"),
        (lambda hp: hp.Float("train.epochs", 0.5, 1.5), "`train.epochs` must be a whole number"),
        (lambda hp: hp.Choice("model.name", [1, 2]), "`model.name` must be text"),
        (lambda hp: hp.Int("model.arguments", 1, 2), "Name an argument: model.arguments.NAME"),
        (lambda hp: hp.Int("train.epochs.more", 1, 2), "It has no arguments"),
        (lambda hp: hp.Int("data.seed", 1, 2), "does not change data.seed"),
        (
            lambda hp: hp.Choice("data.label_column", ["a", "b"]),
            "does not change data.label_column",
        ),
        (lambda hp: hp.Choice("metrics.names", ["auc", "accuracy"]), "does not change metrics"),
    ],
)
def test_wrong_space_is_refused(define, says):
    with pytest.raises(ValueError, match=says):
        check(define)


def test_branch_without_a_conditional_scope_is_refused():
    def define(hp):
        if hp.Choice("optimizer.name", ["adam", "sgd"]) == "sgd":
            hp.Float("optimizer.arguments.momentum", 0.0, 0.9)

    with pytest.raises(ValueError, match=r"hp.conditional_scope\('optimizer.name', \['sgd'\]\)"):
        check(define)


def taken_by_default(hp):
    if hp.Choice("optimizer.name", ["sgd", "adam", "rmsprop"]) != "adam":
        hp.Float("optimizer.arguments.momentum", 0.0, 0.9)


def of_two(hp):
    shuffles = hp.Boolean("data.shuffle")
    if hp.Choice("optimizer.name", ["adam", "sgd"]) == "sgd" and shuffles:
        hp.Float("optimizer.arguments.momentum", 0.0, 0.9)


def in_a_scope(hp):
    hp.Choice("optimizer.name", ["adam", "sgd"])
    with hp.conditional_scope("optimizer.name", ["sgd"]):
        if hp.Boolean("optimizer.arguments.nesterov"):
            hp.Float("optimizer.arguments.momentum", 0.1, 0.9)


def at_an_end(hp):
    if hp.Int("train.epochs", 1, 10, step=4) > 8:
        hp.Int("train.seed", 1, 2)


@pytest.mark.parametrize(
    ("define", "says"),
    [
        (taken_by_default, r"not there when .* 'adam'. .*'optimizer.name', \['sgd', 'rmsprop'\]"),
        (of_two, r"'data.shuffle', \[True\]\):` and `with .*'optimizer.name', \['sgd'\]"),
        (in_a_scope, r"there when optimizer.name is 'sgd' and .*nesterov is True and not other"),
        (at_an_end, r"there when train.epochs is 9 and not otherwise. Let a hp.Choice"),
    ],
)
def test_branches_that_few_values_take_are_refused(define, says):
    with pytest.raises(ValueError, match=says):
        check(define)


def test_a_branch_inside_of_its_scope_is_taken():
    def define(hp):
        name = hp.Choice("optimizer.name", ["sgd", "adam"])
        with hp.conditional_scope("optimizer.name", ["sgd"]):
            if name == "sgd":
                hp.Float("optimizer.arguments.momentum", 0.0, 0.9)

    check(define)


def test_one_name_under_two_conditions_is_refused_and_one_range_for_both_is_taken():
    """keras-tuner takes the value of one away because the other one is not active."""

    def define(hp, scopes=(["sgd"], ["adam"])):
        hp.Choice("optimizer.name", ["sgd", "adam", "rmsprop"])
        for names in scopes:
            with hp.conditional_scope("optimizer.name", names):
                hp.Float("optimizer.learning_rate", 1e-5, 1.0, sampling="log")

    with pytest.raises(ValueError, match=r"in \['sgd'\] and where .* in \['adam'\]. Its name is"):
        check(define)
    check(lambda hp: define(hp, scopes=(["sgd", "adam"],)))


def test_a_space_is_described_by_name_and_condition():
    def define(hp):
        hp.Choice("optimizer.name", ["adam", "sgd"])
        with hp.conditional_scope("optimizer.name", ["sgd"]):
            hp.Float("optimizer.arguments.momentum", 0.1, 0.9)

    described = space_lib.described(space_lib.define(define))
    assert list(described) == [
        "optimizer.name",
        "optimizer.arguments.momentum where optimizer.name in ['sgd']",
    ]
    assert described["optimizer.name"]["values"] == ["adam", "sgd"]


def test_search_of_another_range_is_refused_with_the_range(tmp_path):
    def space(most):
        def define(hp):
            hp.Float("optimizer.learning_rate", 1e-4, most, sampling="log")

        return {"space": space_lib.described(space_lib.define(define))}

    journal.settle(tmp_path / "search.json", space(1.0), [])
    with pytest.raises(ValueError) as raised:
        journal.settle(tmp_path / "search.json", space(0.1), [])
    [differs] = re.findall(r"with (.*)\. Go back", str(raised.value))
    assert differs == "space.optimizer.learning_rate.max_value: 1.0 there and 0.1 here"


def test_dimensions_are_described_and_corners_hold_what_is_active():
    def define(hp):
        hp.Choice("optimizer.name", ["adam", "sgd"])
        with hp.conditional_scope("optimizer.name", ["sgd"]):
            hp.Float("optimizer.arguments.momentum", 0.1, 0.9, sampling="log")
        hp.Boolean("data.shuffle")

    space = space_lib.define(define)
    name, momentum, shuffle = space_lib.parameters(space)
    assert (name.kind, name.choices) == ("choice", ("adam", "sgd"))
    assert (momentum.low, momentum.high, momentum.sampling) == (0.1, 0.9, "log")
    assert set(shuffle.choices) == {False, True}
    corners = [space_lib.filled(space, chosen) for chosen in space_lib.extremes(space)]
    assert {
        "optimizer.name": "sgd",
        "optimizer.arguments.momentum": 0.1,
        "data.shuffle": False,
    } in (corners)
    ends = {c["optimizer.arguments.momentum"] for c in corners if c["optimizer.name"] == "sgd"}
    assert ends == {0.1, 0.9}
    assert {"optimizer.name": "adam", "data.shuffle": True} in corners


def test_values_reach_fields_arguments_and_lists():
    base = RunConfig()
    values = {
        "optimizer.learning_rate": 0.5,
        "optimizer.arguments.momentum": 0.9,
        "model.arguments.filters": "(8, 16)",
        "data.transforms": "rescale,flatten",
    }
    config = space_lib.apply(base, values)
    assert config.optimizer.learning_rate == 0.5
    assert config.optimizer.arguments == {"momentum": 0.9}
    assert config.model.arguments == {"filters": (8, 16)}
    assert config.data.transforms == ("rescale", "flatten")
    assert base == RunConfig()


def test_trial_never_sees_the_test_split_and_the_winner_has_the_base_data():
    values = {"data.global_batch_size": 64}
    trial = space_lib.trial_config(RunConfig(), values, "val_loss", "min", 3, 27)
    assert (trial.data.test_split, trial.data.validation_fraction) == ("", 0.2)
    assert (trial.train.epochs, trial.schedule.epochs, trial.train.on_bad_loss) == (3, 27, "stop")
    assert (trial.checkpoint.keep_best, trial.checkpoint.best_mode) == ("val_loss", "min")
    winner = space_lib.winner_config(RunConfig(), values, 27)
    assert winner.data == DataConfig(global_batch_size=64)
    own = RunConfig(data=DataConfig(validation_split="validation"))
    assert space_lib.trial_config(own, {}, "val_loss", "min", 3, 0).data.validation_fraction == 0
