"""The way of a trial, with real processes that need no TensorFlow."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
import searching
from searching import events, pids, wait_for

from tfscale import config
from tfscale.cluster import local, ports
from tfscale.search import leaving, preparing, processes, started, stopping, trials

pytestmark = pytest.mark.workers


def good(level, **more):
    return {"level": level, "epochs": 3, **more}


def test_trials_run_to_the_end_and_the_oracle_hears_of_them(tmp_path):
    records, oracle = searching.search(tmp_path, [good(0.1), good(0.5)])
    assert [(r.state, r.epochs, r.best_epoch) for r in records] == [("completed", 3, 3)] * 2
    assert records[1].score == pytest.approx(0.7)
    assert oracle.told[1] == ("0001", "completed", [0.5, 0.6, 0.7])


def test_what_ends_a_trial_is_recorded_and_the_search_goes_on(tmp_path):
    chosen = [
        good(0.1, does=does)
        for does in ("crash", "crash once", "memory", "killed", "diverge", "refused")
    ] + [good(0.2)]
    records, oracle = searching.search(tmp_path, chosen, slots=2, max_retries=1)
    found = {r.values.get("does", ""): (r.state, r.reason) for r in records}
    assert found["crash"] == ("failed", "exit code 1: RuntimeError: a layer fell off")
    assert found["crash once"] == ("completed", "")
    assert found["memory"] == ("out_of_memory", "MemoryError")
    assert found["killed"] == ("failed", "signal SIGKILL")
    assert found["diverge"] == ("diverged", "loss not finite at step 2, loss nan")
    assert found["refused"] == ("failed", "it was refused: `model.arguments` must fit.")
    assert found[""] == ("completed", "")
    assert sorted(id for id, *_ in oracle.told) == [r.id for r in records]
    retried = [event["trial"] for event in events(tmp_path, "retried")]
    assert sorted(retried) == ["0000", "0001", "0003"]  # where another start may go better
    starts = pids(tmp_path)
    assert len(starts) == 7 + 3
    assert all(not pathlib.Path(f"/proc/{pid}").exists() for pid, _ in starts)


def test_a_trial_that_gets_on_between_its_failures_is_started_again_as_often_as_it_takes(tmp_path):
    records, _ = searching.search(tmp_path, [good(0.1, does="stumble")], max_retries=1)
    assert (records[0].state, records[0].epochs) == ("completed", 3)
    assert [done for _, done in pids(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize(("does", "starts"), [("crash", 2), ("stumble", 3)])
def test_search_that_goes_on_counts_failed_starts_as_if_it_had_not_ended(tmp_path, does, starts):
    chosen, journal = [good(0.1, does=does)], tmp_path / "journal.jsonl"
    undisturbed = searching.search(tmp_path, chosen, max_retries=1)[0]
    lines = journal.read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"retried"' in line)
    journal.write_text("".join(lines[: last + 1]))
    metrics = tmp_path / "trials/0000/metrics.jsonl"
    epochs = json.loads(lines[last])["epochs"]
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:epochs]))
    records = searching.search(tmp_path, chosen, max_retries=1)[0]
    assert searching.table(records) == searching.table(undisturbed)
    assert len(pids(tmp_path)) == starts + 1


class NoLog(searching.ScriptedTrials):
    """The log of a trial cannot be opened at its first start."""

    def prepare(self, record, parent):
        record.log.parent.mkdir(parents=True, exist_ok=True)
        if record.reason:
            record.log.rmdir()
        elif record.id == "0000":
            record.log.mkdir()
        super().prepare(record, parent)


def test_a_trial_whose_log_cannot_be_opened_is_started_again(tmp_path):
    records, _ = searching.search(tmp_path, [good(0.1), good(0.2)], kind=NoLog)
    assert [r.state for r in records] == ["completed"] * 2
    retried = events(tmp_path, "retried")
    assert [e["trial"] for e in retried] == ["0000"] and "Is a directory" in retried[0]["reason"]


def failing(name, code, times=1):
    """Return trials whose files cannot be written, or read, the first times."""
    left = [times]

    class Failing(searching.ScriptedTrials):
        pass

    def method(self, record, *given):
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return getattr(searching.ScriptedTrials, name)(self, record, *given)

    setattr(Failing, name, method)
    return Failing


def test_a_disk_that_is_away_for_a_moment_uses_up_no_retry(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_FIRST_PAUSE_SECONDS", 0.1)
    kind = failing("prepare", errno.ESTALE, times=3)
    records, _ = searching.search(tmp_path, [good(0.1), good(0.2)], kind=kind, max_retries=0)
    assert [r.state for r in records] == ["completed"] * 2
    times = {e["event"]: e["time"] for e in reversed(events(tmp_path)) if e.get("trial") == "0000"}
    assert times["started"] - times["created"] > 0.1 + 0.2 + 0.4


def test_a_disk_that_stays_away_fails_its_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(preparing, "_MOST_PAUSE_SECONDS", 0.2)
    kind = failing("prepare", errno.EIO, times=3)
    records, _ = searching.search(tmp_path, [good(0.1), good(0.2)], kind=kind, max_retries=0)
    assert [(r.state, r.reason) for r in records] == [
        ("failed", "[Errno 5] Input/output error"),
        ("completed", ""),
    ]


def check_waits_for_room(run_dir, chosen, **settings):
    """Search on a full disk, and again when there is room."""
    began = time.monotonic()
    with pytest.raises(OSError, match="room|No space") as raised:
        searching.search(run_dir, chosen, max_retries=0, **settings)
    assert raised.value.errno == errno.ENOSPC and time.monotonic() - began < 20
    assert not events(run_dir, "retried")
    before = [event["trial"] for event in events(run_dir, "ended")]
    (run_dir / "room").touch()
    records, _ = searching.search(run_dir, chosen, max_retries=0)
    assert [r.state for r in records] == ["completed"] * len(chosen)
    assert before == ["0000"] and len(events(run_dir, "ended")) == len(chosen)
    assert all(local.state_of(pid) in ("", "Z") for pid, _ in pids(run_dir))


def test_a_trial_that_cannot_save_on_a_full_disk_waits_with_all_others_for_room(tmp_path):
    chosen = [good(0.1), good(0.2, does="full"), good(0.3)]
    check_waits_for_room(tmp_path, chosen)
    assert [done for _, done in pids(tmp_path)] == [0, 0, 1, 0]  # it went on where it was


def test_trials_beside_the_one_that_cannot_save_are_asked_to_leave(tmp_path):
    chosen = [good(0.1), good(0.2, does="full"), {"level": 0.3, "epochs": 100, "seconds": 0.03}]
    check_waits_for_room(tmp_path, chosen, slots=2)


def test_a_trial_whose_files_do_not_fit_on_a_full_disk_waits_for_room(tmp_path):
    class Full(searching.ScriptedTrials):
        def prepare(self, record, parent):
            if record.id == "0001":
                raise OSError(errno.ENOSPC, "No space left on device")
            super().prepare(record, parent)

    check_waits_for_room(tmp_path, [good(0.1), good(0.2)], kind=Full)


def test_a_trial_that_cannot_be_started_on_a_full_disk_waits_for_room(tmp_path, monkeypatch):
    start = processes.TrialProcess._start_with

    def start_where_is_room(self, lock):
        if self.log.parts[-3] == "0001" and not (tmp_path / "room").exists():
            raise OSError(errno.EDQUOT, "no room")
        start(self, lock)

    monkeypatch.setattr(processes.TrialProcess, "_start_with", start_where_is_room)
    check_waits_for_room(tmp_path, [good(0.1), good(0.2)])


def test_what_a_disk_does_not_tell_at_the_moment_is_read_later(tmp_path):
    kind = failing("history", errno.EIO, times=4)
    records, _ = searching.search(tmp_path, [good(0.1)], kind=kind)
    assert (records[0].state, records[0].epochs) == ("completed", 3)


def test_a_trial_whose_reports_stay_unreadable_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(started, "_UNREAD_SECONDS", 0.3)
    kind = failing("history", errno.EIO, times=10**6)
    records, _ = searching.search(tmp_path, [good(0.1)], kind=kind, max_retries=0)
    assert records[0].state == "failed" and "cannot be read: [Errno 5]" in records[0].reason


def test_a_folder_whose_start_the_journal_does_not_know_is_not_taken_over(tmp_path):
    searching.search(tmp_path, [good(0.1), good(0.5)])
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if '"created"' in line and '"0001"' in line)
    journal.write_text("".join(lines[:cut]))
    records, _ = searching.search(tmp_path, [good(0.1), good(0.2)])
    assert [(r.state, r.score) for r in records] == [
        ("completed", pytest.approx(0.3)),
        ("completed", pytest.approx(0.4)),
    ]


@pytest.mark.parametrize("event", ["started", "ended"])
def test_a_journal_that_names_an_unknown_trial_is_refused(tmp_path, event):
    searching.search(tmp_path, [good(0.1)])
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write(json.dumps({"event": event, "trial": "0007", "time": 1}) + "\n")
    with pytest.raises(ValueError, match="trial '0007' is '(started|ended)' and has not"):
        searching.search(tmp_path, [good(0.1)])


def test_a_trial_that_stands_still_is_ended_with_its_stacks_in_the_log(tmp_path):
    chosen = [good(0.1, does="hang"), good(0.2)]
    records, _ = searching.search(tmp_path, chosen, max_retries=0, hang_timeout_seconds=1)
    assert [r.state for r in records] == ["hung", "completed"]
    assert "at step 2 (train, epoch 2)" in records[0].reason
    log = (tmp_path / "trials/0000/logs/trial.log").read_text()
    assert "most recent call first" in log


def test_a_bad_trial_is_stopped_at_the_epoch_where_the_median_is_better(tmp_path):
    def stops_at(history, others):
        return stopping.stops_at(history, others, "val_accuracy", "max", 2, 2)

    chosen = [good(0.5), good(0.6), {"level": 0.1, "epochs": 200, "seconds": 0.05}, good(0.7)]
    records, oracle = searching.search(tmp_path, chosen, stops_at=stops_at)
    assert [r.state for r in records] == ["completed", "completed", "stopped", "completed"]
    assert records[2].epochs == 2 and records[2].score == pytest.approx(0.2)
    assert oracle.told[2] == ("0002", "stopped", [0.1, 0.2])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return searching.search(tmp_path_factory.mktemp("undisturbed"), searching.KILLED)[0]


@pytest.mark.parametrize("moment", ["in a trial", "between the trials"])
def test_search_that_is_killed_goes_on_and_ends_as_an_undisturbed_one(
    tmp_path, undisturbed, moment
):
    run_dir = tmp_path / "killed"
    script = str(pathlib.Path(searching.__file__))
    with subprocess.Popen([sys.executable, script, str(run_dir)]) as process:
        if moment == "in a trial":
            metrics = run_dir / "trials/0001/metrics.jsonl"
            wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2)
        else:
            wait_for(lambda: events(run_dir, "ended"))
        process.kill()
    running = [pid for pid, _ in pids(run_dir)]
    wait_for(lambda: all(local.state_of(pid) in ("", "Z") for pid in running), 5)
    with open(run_dir / "journal.jsonl", "a") as file:
        file.write('{"event": "ended", "tri')  # what a kill in the middle of a line leaves
    records, oracle = searching.search(run_dir, searching.KILLED)
    assert searching.table(records) == searching.table(undisturbed)
    assert [id for id, *_ in oracle.told] == ["0000", "0001", "0002"]
    assert len(events(run_dir, "created")) == len(events(run_dir, "ended")) == 3
    if moment == "in a trial":
        assert [done for _, done in pids(run_dir)][2] >= 2  # it went on where it was


@pytest.mark.parametrize("lease", [0, 0.1])
def test_what_ran_elsewhere_waits_for_the_lease_of_then(tmp_path, lease):
    """The search is started again without machines, or with a lease that is shorter."""
    on = {"on": "m2", "session": "0123", "lease_seconds": 1.5}
    begun = [
        {"event": "created", "trial": "0000", "values": good(0.1), "parent": "", "epochs": 0},
        {"event": "started", "trial": "0000", **on, "time": time.time()},
    ]
    journal = "".join(json.dumps(event) + "\n" for event in begun)
    (tmp_path / "journal.jsonl").write_text(journal)
    lead = f"127.0.0.1:{ports.free_ports(1)[0]}" if lease else ""
    began = time.time()
    records, _ = searching.search(tmp_path, [good(0.1)], lead=lead, lease=lease)
    assert records[0].state == "completed"
    assert events(tmp_path, "started")[1]["time"] - began >= 1.4


def test_finished_search_starts_nothing_again(tmp_path):
    first, _ = searching.search(tmp_path, [good(0.1)])
    again, _ = searching.search(tmp_path, [good(0.1)])
    assert searching.table(again) == searching.table(first)
    assert len(pids(tmp_path)) == 1


def test_search_of_other_values_is_refused(tmp_path):
    searching.search(tmp_path, [good(0.1)])
    with pytest.raises(ValueError, match="where the journal has"):
        searching.search(tmp_path, [good(0.2)])


@pytest.mark.parametrize("other", [{"epochs": 5}, {"parent": "0003"}])
def test_search_whose_oracle_gives_another_length_or_parent_is_refused(tmp_path, other):
    searching.search(tmp_path, [good(0.1)])
    journal = tmp_path / "journal.jsonl"
    first, *rest = journal.read_text().splitlines()
    journal.write_text("\n".join([json.dumps(json.loads(first) | other), *rest]) + "\n")
    with pytest.raises(ValueError, match=f"{next(iter(other))} .* where the journal has"):
        searching.search(tmp_path, [good(0.1)])


def test_signal_lets_trials_leave_and_counts_nothing(tmp_path):
    chosen = [good(0.1), {"level": 0.2, "epochs": 60, "seconds": 0.05}]

    def tell():
        wait_for(lambda: len(pids(tmp_path)) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell)
    thread.start()
    with pytest.raises(leaving.ToldToLeave) as left:
        searching.search(tmp_path, chosen)
    thread.join()
    assert left.value.code == 143
    assert [event["trial"] for event in events(tmp_path, "ended")] == ["0000"]
    assert all(local.state_of(pid) in ("", "Z") for pid, _ in pids(tmp_path))


def test_a_trial_begins_anew_where_the_one_it_continues_died_before_it_saved_anything(tmp_path):
    kind = trials.FitTrials(lambda record: config.RunConfig())
    parent, child = trials.unasked("0000", tmp_path), trials.unasked("0001", tmp_path)
    for record, before in ((parent, None), (child, parent), (child, parent)):
        kind.prepare(record, before)
        assert [file.name for file in record.path.iterdir()] == ["config.json"]


def test_machine_is_divided_among_trials():
    cores = [slot.cores for slot in processes.slots(3, cores=range(8))]
    assert [len(share) for share in cores] == [2, 3, 3]
    assert sorted(core for share in cores for core in share) == list(range(8))
    assert [slot.cores for slot in processes.slots(3, cores=range(2))] == [None] * 3
    assert [slot.gpus for slot in processes.slots(2, num_gpus=4, cores=range(2))] == ["0,1", "2,3"]
    assert [slot.gpus for slot in processes.slots(3, num_gpus=2, cores=range(3))] == ["0", "1", "0"]
