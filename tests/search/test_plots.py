"""What each parameter says about the objective, and the pictures of it."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import records

from tfscale.search import importance, plots
from tfscale.search.trials import Parameter


def found_from(tmp_path, values, scores, parameter, direction="max"):
    facts = records.facts(tmp_path, direction, parameters=[parameter])
    trials = [
        records.record(tmp_path, i, float(score), values={parameter.name: value})
        for i, (value, score) in enumerate(zip(values, scores, strict=True))
    ]
    [found] = importance.importances(facts, trials)
    return found


def test_ranks_share_ties():
    np.testing.assert_array_equal(importance.ranks([3.0, 1.0, 3.0, 9.0]), [2.5, 1.0, 2.5, 4.0])


def test_correlation_is_spearmans():
    # The example of the coefficient's article: IQ and hours of television, rho = -29/165.
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    found = found_from("x", iq, hours, Parameter("iq", "int", 80, 120))
    assert found.correlation == pytest.approx(-29 / 165)


def test_a_best_value_in_the_middle_is_seen():
    rate = np.geomspace(1e-4, 1e-1, 25)
    score = -np.abs(np.log10(rate) + 2.5)
    found = found_from("x", rate, score, records.RATE)
    assert abs(found.correlation) < 0.1 and found.explained > 0.8


def test_a_choice_explains_what_lies_between_its_groups():
    # Ranks 1, 2 | 3, 4 | 5, 6: between groups 16 of 17.5, epsilon squared 1 - 1.5/17.5 * 5/3.
    found = found_from(
        "x", list("aabbcc"), range(6), Parameter("c", "choice", choices=tuple("abc"))
    )
    assert found.explained == pytest.approx(1 - 1.5 / 17.5 * 5 / 3)
    assert found.correlation is None


def test_a_parameter_without_influence_explains_nothing_on_average():
    draw = np.random.default_rng(1)
    noise = [
        found_from("x", draw.uniform(size=20), draw.uniform(size=20), records.MOMENTUM).explained
        for _ in range(200)
    ]
    assert np.mean(noise) < 0.06


def test_shares_sum_to_one_the_rate_leads_and_divergence_counts_as_worst(tmp_path):
    facts, trials = records.facts(tmp_path), records.thirty(tmp_path)
    found = importance.importances(facts, trials)
    assert found[0].name == "optimizer.learning_rate"
    assert sum(i.share for i in found) == pytest.approx(1)
    assert found[0].num_trials == 28  # not the one that runs, nor the one that crashed
    _, goodness = importance.of_parameter(facts, trials, "optimizer.learning_rate")
    assert min(goodness) == -np.inf


@pytest.mark.parametrize("count", [0, 1, 4])
def test_of_few_trials_nothing_is_said_and_pictures_are_drawn(tmp_path, count):
    facts, trials = records.facts(tmp_path), records.thirty(tmp_path)[:count]
    assert all(i.explained == 0 for i in importance.importances(facts, trials))
    plots.draw(facts, trials, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["objective.png", "parameters.png"]


def test_axes_are_log_where_sampling_is(tmp_path):
    reverse = Parameter("optimizer.arguments.beta_2", "float", 0.9, 0.999, sampling="reverse_log")
    parameters = (records.RATE, records.MOMENTUM, reverse)
    trials = records.thirty(tmp_path)
    for trial in trials:
        trial.values[reverse.name] = 0.95
    figure = plots._parameters(records.facts(tmp_path, parameters=parameters), trials)
    scales = {axes.get_xlabel(): axes.get_xscale() for axes in figure.axes}
    assert scales == {records.RATE.name: "log", records.MOMENTUM.name: "linear"} | {
        reverse.name: "function"
    }


def test_a_parameter_of_a_few_bad_trials_explains_little_of_all(tmp_path):
    facts = records.facts(tmp_path, parameters=(records.RATE, records.MOMENTUM))
    trials = []
    for i, one in enumerate(records.thirty(tmp_path)[:20]):
        values, score = {records.RATE.name: 10.0 ** -(i % 4)}, 0.9 + 0.001 * i
        if i < 6:  # the worst ones, in the order of their momentum
            values[records.MOMENTUM.name], score = 0.1 * i, 0.1 * i
        trials.append(dataclasses.replace(one, values=values, score=score, state="completed"))
    found = {i.name: i for i in importance.importances(facts, trials)}
    momentum = found[records.MOMENTUM.name]
    assert momentum.correlation == pytest.approx(1)
    # Ranks 1 to 6 of 1 to 20: n (n^2 - 1) / 12 each.
    assert momentum.explained == pytest.approx((6 * 35) / (20 * 399))


def test_a_trial_far_off_is_drawn_at_the_edge_and_hollow(tmp_path):
    trials = records.thirty(tmp_path)
    trials[3] = dataclasses.replace(trials[3], score=1e6, state="completed")
    for draw in (plots._objective, plots._parameters):
        figure = draw(records.facts(tmp_path, "min"), trials)
        legend = figure.axes[0].get_legend() or figure.legends[0]
        assert [t.get_text() for t in legend.get_texts()].count("worse than the axis shows") == 1
    low, high = plots._range(records.facts(tmp_path, "min"), trials)
    assert 0 < low < high < 3
    assert plots._height(records.facts(tmp_path, "min"), 1e6, low, high) == high


def test_drawing_loads_neither_pyplot_nor_tensorflow(tmp_path):
    code = (
        "import sys, pathlib\nfrom tfscale.search import plots, trials\n"
        "assert 'matplotlib' not in sys.modules\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "facts = trials.SearchFacts('val_loss', 'min', 'grid', 0, [], path, 0.0)\n"
        "plots.draw(facts, [], path)\n"
        "assert not {'matplotlib.pyplot', 'tensorflow', 'keras_tuner'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
