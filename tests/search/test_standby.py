"""Processes that import while the trial before works; here with a module without TensorFlow.

The searches of tests/test_tune.py start their trials this way, with `tfscale.fit`.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import searching

from tfscale.cluster import local
from tfscale.search import processes, standby

pytestmark = pytest.mark.workers

# Says what it is when it gets a trial; `ahead` counts its imports.
MODULE = """
import json, os, pathlib, sys, time
from tfscale.cluster import pulse

FOLDER = pathlib.Path(__file__).parent

def import_ahead():
    (FOLDER / f"ahead-{os.getpid()}").touch()
    if (FOLDER / "broken").exists():
        raise ImportError("a library is broken")

def main(argv):
    pulse.begin()
    pulse.beat(7)
    facts = {"pid": os.getpid(), "argv": argv, "program": sys.argv, "word": os.environ.get("WORD")}
    facts["cores"] = sorted(os.sched_getaffinity(0))
    print(json.dumps(facts))
    while (FOLDER / "hold").exists():
        time.sleep(0.01)
    print("a last word", file=sys.stderr)
    return 3

if __name__ == "__main__":
    import_ahead()
    sys.exit(main(sys.argv[1:]))
"""
SLOT = processes.Slot(0)


class Machine:
    """The place of a search: its folder, what starts its trials, and their module."""

    def __init__(self, folder, guard):
        self.folder, self.guard = folder, guard
        self.starter = standby.Standbys("trial_module")

    def prepare(self, slot=SLOT):
        """Have a process import; return its id."""
        before = self.ahead()
        self.starter.prepare(slot)
        searching.wait_for(lambda: self.ahead() - before)
        [pid] = self.ahead() - before
        return pid

    def ahead(self):
        """The processes that have imported."""
        return {int(path.name[6:]) for path in self.folder.glob("ahead-*")}

    def trial(self, *argv, name="trial", environ=None, slot=SLOT):
        command = [sys.executable, "-m", "trial_module", *argv]
        log = self.folder / name / "log"
        log.parent.mkdir(exist_ok=True)
        return processes.TrialProcess(command, log, self.guard, environ, slot, starter=self.starter)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    (tmp_path / "trial_module.py").write_text(MODULE)
    paths = [str(tmp_path), str(pathlib.Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with contextlib.closing(local.Guard()) as guard:
        made = Machine(tmp_path, guard)
        with contextlib.closing(made.starter):
            yield made


def said(process):
    """Wait for a trial's end; return what it said of itself."""
    searching.wait_for(process.has_ended)
    lines = process.log.read_text().splitlines()
    assert lines, process.end("")
    return json.loads(lines[0])


def test_a_trial_runs_in_the_process_that_has_imported(machine):
    pid = machine.prepare()
    process = machine.trial("--a=1", "two words")
    found = said(process)
    assert (found["pid"], found["argv"]) == (pid, ["--a=1", "two words"])
    assert found["program"] == [str(machine.folder / "trial_module.py"), "--a=1", "two words"]
    assert process.process.returncode == 3
    assert process.log.read_text().splitlines()[1:] == ["a last word"]
    assert process.end("").reason == "exit code 3: a last word"


def test_its_pulse_is_seen_and_its_folder_locked(machine):
    machine.prepare()
    (machine.folder / "hold").touch()
    process = machine.trial()
    searching.wait_for(lambda: process.pulse.read().step == 7)
    assert process.beating_pid() == process.process.pid
    second = machine.trial()
    assert second.process is None and not second.has_ended()
    (machine.folder / "hold").unlink()
    said(process)
    searching.wait_for(lambda: second.has_ended() or second.process)
    searching.wait_for(second.has_ended)
    assert second.process.returncode == 3


@pytest.mark.parametrize("difference", ["environ", "slot", "program", "killed"])
def test_one_that_is_not_what_the_trial_needs_is_ended_and_another_started(machine, difference):
    pid = machine.prepare()
    more = {}
    if difference == "environ":
        more = {"environ": {"WORD": "new"}}
    elif difference == "slot":
        more = {"slot": processes.Slot(0, frozenset([min(os.sched_getaffinity(0))]))}
    elif difference == "killed":
        os.kill(pid, signal.SIGKILL)
        searching.wait_for(lambda: local.has_ended(machine.starter._waiting[0].process))
    elif difference == "program":
        other = machine.folder / "other.py"
        other.write_text("import json, os; print(json.dumps({'pid': os.getpid()}))")
        log = machine.folder / "log"
        process = processes.TrialProcess(
            [sys.executable, str(other)], log, machine.guard, starter=machine.starter
        )
    process = process if difference == "program" else machine.trial(**more)
    found = said(process)
    assert found["pid"] != pid and not pathlib.Path(f"/proc/{pid}").exists()
    if difference == "environ":
        assert found["word"] == "new"
    if difference == "slot":
        assert found["cores"] == [min(os.sched_getaffinity(0))]


def test_one_that_cannot_import_says_so_in_its_trials_log(machine):
    (machine.folder / "broken").touch()
    pid = machine.prepare()
    process = machine.trial()
    searching.wait_for(process.has_ended)
    assert process.process.pid == pid
    assert process.end("").reason == "exit code 1: ImportError: a library is broken"


def test_no_process_is_left_where_no_trial_comes(machine):
    pid = machine.prepare()
    machine.starter.prepare(SLOT)  # it waits already
    assert machine.ahead() == {pid}
    machine.starter.close()
    assert not pathlib.Path(f"/proc/{pid}").exists()


def test_one_that_waits_ends_with_a_search_that_is_killed(machine):
    code = (
        "import time\nfrom tfscale.search import processes, standby\n"
        "standby.Standbys('trial_module').prepare(processes.Slot(0))\n"
        "time.sleep(600)\n"  # in the search's process, which is killed below
    )
    search = subprocess.Popen([sys.executable, "-c", code])
    try:
        searching.wait_for(machine.ahead)
    finally:
        search.kill()
        search.wait()
    [pid] = machine.ahead()
    searching.wait_for(lambda: local.state_of(pid) in ("", "Z"))


def test_a_search_prepares_the_next_process_of_a_slot_when_a_trial_has_begun_in_it(tmp_path):
    prepared = []

    class Noted(processes.Starter):
        def prepare(self, slot):
            prepared.append((slot.number, len(searching.events(tmp_path, "started"))))

    chosen = [{"level": 0.1, "epochs": 2}] * 3
    records, _ = searching.search(tmp_path, chosen, starter=Noted())
    assert [record.state for record in records] == ["completed"] * 3
    assert prepared == [(0, 1), (0, 2), (0, 3)]  # that none will come is known when it is asked for
