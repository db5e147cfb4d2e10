"""What a search remembers on disk."""

import json

import pytest

from tfscale.search import journal


def reopened(path):
    log = journal.Journal(path)
    log.close()
    return log.events


def test_events_come_back_in_order(tmp_path):
    log = journal.Journal(tmp_path / "journal.jsonl")
    for number in range(3):
        log.append({"event": "created", "trial": number, "values": {"rate": 0.1 + 0.2}})
    log.close()
    events = reopened(tmp_path / "journal.jsonl")
    assert [event["trial"] for event in events] == [0, 1, 2]
    assert events[0]["values"]["rate"] == 0.1 + 0.2  # to the last bit


def test_half_written_last_line_is_dropped_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b", "hist')
    log = journal.Journal(path)
    log.append({"event": "c"})
    log.close()
    assert [event["event"] for event in reopened(path)] == ["a", "c"]


def test_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "a"}\n{"eve\n{"event": "c"}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        journal.Journal(path)


@pytest.mark.parametrize("left", [None, ""])
def test_trials_without_their_journal_are_not_begun_anew(tmp_path, left):
    path = tmp_path / "journal.jsonl"
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    if left is not None:
        path.write_text(left)
    for _ in range(2):  # it stays refused
        with pytest.raises(ValueError, match="which has trials and no journal.jsonl"):
            journal.Journal(path)
    assert (tmp_path / "trials" / "0000").exists()


@pytest.mark.parametrize("damaged", ["{}", "[1]", '{"began": "soon"}', '{"beg', "\x00"])
def test_damaged_search_is_named(tmp_path, damaged):
    path = tmp_path / "search.json"
    path.write_text(damaged)
    with pytest.raises(ValueError, match=r"search.json \(.*Put it back as it was"):
        journal.settle(path, {"tuner": "random"}, [])
    assert path.read_text() == damaged


def test_second_process_is_kept_out(tmp_path):
    log = journal.Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError, match="in which a search is going on"):
        journal.Journal(tmp_path / "journal.jsonl")
    log.close()


def test_another_search_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "search.json"
    identity = {"tuner": "random", "seed": 0, "max_trials": 3, "config": {"train": {"epochs": 2}}}
    began = journal.settle(path, identity, ["max_trials"])["began"]
    again = journal.settle(path, {**identity, "max_trials": 5}, ["max_trials"])
    assert (again["began"], again["max_trials"]) == (began, 5)
    other = {**identity, "seed": 1, "config": {"train": {"epochs": 4}}}
    with pytest.raises(ValueError, match="seed: 0 there and 1 here; config.train.epochs: 2 there"):
        journal.settle(path, other, ["max_trials"])
    assert json.loads(path.read_text())["seed"] == 0
