"""A search whose trials are small scripts without TensorFlow, for tests of the loop.

Run as a script, `searching.py RUN_DIR`, it is the process of a search that a test kills; with
`SETTINGS`, JSON, behind it, one that leads or joins a search on several machines.
"""

import json
import pathlib
import sys
import time

from tfscale.search import (
    joining,
    journal,
    leaving,
    loop,
    oracles,
    processes,
    roles,
    service,
    trials,
)

# What a trial does: it goes on after the epochs that are in its file, as a run does.
TRIAL = """
import json, os, pathlib, signal, sys, time
from tfscale.cluster import pulse
folder = pathlib.Path(sys.argv[1])
values = json.loads((folder / "values.json").read_text())
does, epochs, seconds = values.get("does", ""), values["epochs"], values.get("seconds", 0.02)
pulse.begin()
file = folder / "metrics.jsonl"
done = len(file.read_text().splitlines()) if file.exists() else 0
def runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
if (folder / "pids").exists():
    if any(runs(line.split()[0]) for line in (folder / "pids").read_text().splitlines()):
        (folder / "two").touch()  # processes at once
with open(folder / "pids", "a") as pids:
    print(os.getpid(), done, file=pids)
def write(**record):
    with open(file, "a") as lines:
        lines.write(json.dumps(record) + chr(10))
for epoch in range(done, epochs):
    pulse.beat(epoch + 1, "train", epoch)
    time.sleep(seconds)
    if does == "stumble" and epoch > done:
        os.kill(os.getpid(), signal.SIGKILL)
    if epoch == 1:
        tries = len((folder / "pids").read_text().splitlines())
        if does == "crash" or does == "crash once" and tries == 1:
            raise RuntimeError("a layer fell off")
        if does == "memory":
            raise MemoryError
        if does == "hang":
            time.sleep(1000)  # in a trial's process: the search must end it long before
        if does == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "diverge":
            write(step=2, epoch=1, bad_step={"action": "stop", "bad": "loss", "loss": "nan"})
            print("error: The loss must be finite."); sys.exit(2)
        if does == "full" and not (folder.parents[1] / "room").exists():
            raise OSError(28, "No space left on device")
        if does == "refused":
            print("error: `model.arguments` must fit."); sys.exit(2)
    score = values["level"] + 0.1 * epoch
    write(step=epoch + 1, epoch=epoch, validation={"accuracy": score})
"""


class ListOracle:
    """Gives the trials of a list, one after the other, and remembers what it is told."""

    def __init__(self, chosen):
        self.chosen, self.asked, self.told = chosen, 0, []

    def ask(self):
        if self.asked == len(self.chosen):
            return oracles.Asked("exhausted")
        self.asked += 1
        return oracles.Asked("trial", f"{self.asked - 1:04d}", self.chosen[self.asked - 1])

    def ask_again(self, values):
        return self.ask()

    def tell(self, id, history, state):
        self.told.append((id, state, [round(e["val_accuracy"], 3) for e in history]))


class ScriptedTrials(trials.FitTrials):
    """Trials that run `TRIAL`."""

    def __init__(self):
        super().__init__(make_config=None)

    def prepare(self, record, parent):
        record.path.mkdir(parents=True, exist_ok=True)
        (record.path / "values.json").write_text(json.dumps(record.values))

    def command(self, record):
        return [sys.executable, "-c", TRIAL, str(record.path)]


class NoViews:
    def update(self, records):
        pass

    def finish(self, records):
        pass


def search(run_dir, chosen, slots=1, lead="", lease=30, kind=ScriptedTrials, **settings):
    """Run a search to its end; return its records and its oracle.

    `lead` is the address at which other processes may join, `kind` the class of what trials run.
    """
    run_dir = pathlib.Path(run_dir)
    run_dir.mkdir(exist_ok=True)
    role = roles.Role("chief" if lead else "alone", lead)
    facts = trials.SearchFacts("val_accuracy", "max", "list", 0, [], run_dir, time.time())
    log, oracle = journal.Journal(run_dir / "journal.jsonl"), ListOracle(chosen)
    settings = {"grace_seconds": 5, "slots": processes.slots(slots), **settings}
    try:
        with service.offered(role, run_dir, {"chosen": chosen}, (), lease, None) as joined:
            settings["service"] = joined
            records = loop.Search(facts, log, oracle, kind(), NoViews(), **settings).run()
            if joined:
                joined.end_search()
            return records, oracle
    finally:
        log.close()


def join(run_dir, chosen, address, name, slots=1, seconds=60):
    """Run trials for the chief at an address until the search is over."""
    role, slots = roles.Role("worker", address, name), processes.slots(slots)
    joining.Member(
        role,
        run_dir,
        {"chosen": chosen},
        ScriptedTrials,
        slots,
        grace_seconds=5,
        start_timeout_seconds=seconds,
    ).run()


def events(run_dir, kind=None):
    """Return the events in a search's journal, all or those of a kind."""
    lines = trials._lines(pathlib.Path(run_dir) / "journal.jsonl")
    return [line for line in lines if kind in (None, line["event"])]


def pids(run_dir):
    """Return processes of all trials, and the epochs each found done."""
    found = []
    for file in sorted(pathlib.Path(run_dir).glob("trials/*/pids")):
        found += [tuple(map(int, line.split())) for line in file.read_text().splitlines()]
    return found


def wait_for(condition, seconds=40.0):
    """Return what a function returns as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def table(records):
    """What has to be equal in two searches: all but times."""
    return [
        (r.id, r.values, r.state, r.score, r.best_epoch, r.epochs, r.reason, r.history)
        for r in records
    ]


KILLED = [{"level": level, "epochs": 4, "seconds": 0.15} for level in (0.1, 0.5, 0.3)]

if __name__ == "__main__":
    settings = json.loads(sys.argv[2]) if sys.argv[2:] else {"chosen": KILLED}
    try:
        (join if "address" in settings else search)(sys.argv[1], **settings)
    except leaving.ToldToLeave as left:
        sys.exit(left.code)
