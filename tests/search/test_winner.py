"""The winner is tested once, and its score is in summary.json whatever happened in between."""

import json

import pytest
import records

from tfscale.config import RunConfig
from tfscale.search import journal, winner


def test_a_score_that_was_noted_and_not_written_is_written_without_another_test(tmp_path):
    log = journal.Journal(tmp_path / "journal.jsonl")
    log.append({"event": "tested", "trial": "0001", "scores": {"loss": 0.5}})  # and killed
    best = winner.Winner(RunConfig(), records.facts(tmp_path), log, 3, lambda config: "{}")
    best.look_at_all([records.record(tmp_path, 0, score=0.5), records.record(tmp_path, 1)])
    assert best.test(RunConfig(), None) == {"loss": 0.5}
    assert json.loads((tmp_path / "summary.json").read_text()) == {
        "trial": "0001",
        "test": {"loss": 0.5},
    }


def test_a_new_winner_that_cannot_be_scored_is_not_beside_the_score_of_an_older_one(tmp_path):
    log = journal.Journal(tmp_path / "journal.jsonl")
    best = winner.Winner(RunConfig(), records.facts(tmp_path), log, 3, lambda config: "{}")
    older, newer = records.record(tmp_path, 0, score=0.5), records.record(tmp_path, 1)
    log.append({"event": "tested", "trial": "0000", "scores": {"loss": 0.5}})
    best.look_at_all([older])
    best.test(RunConfig(), None)
    best.look_at_all([older])
    assert (tmp_path / "summary.json").exists()  # it is still that of the best one
    best.look_at(newer)
    with pytest.raises(ValueError, match="none that is whole"):
        best.test(RunConfig(), None)
    assert (tmp_path / "best.json").exists() and not (tmp_path / "summary.json").exists()
