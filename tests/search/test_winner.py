"""The winner is tested once, and its score is in summary.json whatever happened in between."""

import json

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
