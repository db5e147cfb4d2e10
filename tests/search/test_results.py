"""`results.csv`: a row a trial, a column a parameter."""

import csv

import records

from tfscale.search import results


def test_a_row_a_trial_with_empty_cells_for_what_was_not_active(tmp_path):
    sgd = {"optimizer.name": "sgd", "optimizer.arguments.momentum": 0.5}
    found = [
        records.record(tmp_path, 0, 0.97),
        records.record(tmp_path, 1, None, "failed", sgd, reason='exit code 1: "no", he said\n'),
        records.record(tmp_path, 2, 0.9, parent="0000", values={"model.arguments.units": [8, 4]}),
    ]
    path = tmp_path / "results.csv"
    results.write(records.facts(tmp_path), found, path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("id", "state", "score", "best_epoch", "epochs", "seconds", "parent", "reason"),
        *("optimizer.learning_rate", "model.arguments.filters", "optimizer.name"),
        *("optimizer.arguments.momentum", "model.arguments.units"),
    ]
    assert float(rows[0]["score"]) == 0.97 and rows[0]["optimizer.arguments.momentum"] == ""
    assert rows[1]["score"] == "" and rows[1]["optimizer.arguments.momentum"] == "0.5"
    assert rows[1]["reason"] == 'exit code 1: "no", he said\n'
    assert rows[2]["parent"] == "0000" and rows[2]["model.arguments.units"] == "[8, 4]"


def test_a_score_comes_back_with_all_its_digits(tmp_path):
    score = 0.1 + 0.2
    results.write(records.facts(tmp_path), [records.record(tmp_path, 0, score)], tmp_path / "r.csv")
    with open(tmp_path / "r.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["score"]) == score
