"""Faults of every kind at every moment: a launched script ends as if nothing had happened.

`make test` runs the chosen ones, `make test-faults` the whole product.
"""

import itertools
import re

import launched
import pytest

pytestmark = pytest.mark.workers
QUICK = "--hang_timeout_seconds=6"  # finds a stopped worker before TensorFlow's heartbeat does
REPORTS = {
    "kill": r"worker {rank} failed first: signal SIGKILL",
    "stop": r"worker {rank} hangs: stopped, as by SIGSTOP",
    "term": r"worker {rank} was asked to leave and did",
    "error": r"worker {rank} failed first: exit code 1, .*",
    "input": r"worker {rank} failed first: exit code 1, .*",
    "leave": r"worker {rank} left too early: exit code 0",
    "exit": r"worker {rank} left too early: exit code 0",
}
FAULTS = ("kill", "stop", "term", "error", "input", "leave")
MOMENTS = ("start", "step", "write", "evaluation", "epochs")

CHOSEN = [  # fault, moment, rank, workers, flags
    ("kill", "import", 1, 2),
    ("kill", "step", 0, 2),
    ("kill", "write", 1, 2),
    ("kill", "rename", 0, 2),
    ("kill", "epochs", 2, 3),
    ("stop", "import", 0, 2, "--start_timeout_seconds=12"),
    ("stop", "step", 1, 2),  # found by the heartbeat
    ("stop", "write", 0, 2, QUICK),
    ("term", "start", 1, 2),
    ("term", "evaluation", 0, 2),
    ("error", "step", 1, 3),
    ("error", "evaluation", 0, 2),
    ("input", "evaluation", 1, 2),
    ("leave", "step", 0, 2),
    ("exit", "epochs", 1, 2),
]
# The others are what ends a worker in each way, within a `fit`.
SLOW = [
    case
    for case in CHOSEN
    if case[0] in ("input", "leave", "exit")
    or case[1] in ("import", "rename", "start", "epochs")
    or case[3] == 3
    or "--" in str(case[4:])
]
MATRIX = [
    (fault, moment, rank, workers, *((QUICK,) if fault == "stop" else ()))
    for workers in (2, 3)
    for fault, moment, rank in itertools.product(FAULTS, MOMENTS, (0, workers - 1))
    if (fault, moment) != ("input", "start")  # no input yet
] + [("exit", "epochs", 0, 2)]


def name_of(case):
    return "-".join(str(part) for part in case[:4])


def strike_at_import(run, fault, rank):
    """Strike from outside while TensorFlow is imported, before there is a strategy."""
    pid = launched.wait_for(lambda: run.worker(rank))
    launched.wait_for(lambda: launched.imports_tensorflow(pid))
    assert launched.strike(pid, launched.signal_of(fault))


def check_case(tmp_path, undisturbed, fault, moment, rank, workers, *flags):
    expected = undisturbed(workers)
    plan = {"fault": fault, "moment": moment, "rank": rank}
    # With the network of the machine, so that a port that stays open would be seen.
    opened = "--private_network=false"
    run = launched.launch(tmp_path / "run", opened, *flags, workers=workers, fault=plan)
    try:
        if moment == "import":
            strike_at_import(run, fault, rank)
    finally:
        code = run.finish()
    assert code == 0, run.told
    if moment != "import":
        assert f"fault: {fault} at {moment} on {rank}" in run.told
    reports = re.findall(r"^tfscale: worker \d.*", run.told, re.M)
    assert reports and re.match(f"tfscale: {REPORTS[fault].format(rank=rank)}", reports[0]), (
        run.told
    )
    if fault in ("error", "input"):
        log = (run.run_dir / "logs" / f"worker-{rank}.log").read_text()
        assert "RuntimeError: a fault of the test" in log
    assert run.told.count("start again now") == 1 and "start again in" not in run.told
    launched.check_equal(run, expected, workers)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CHOSEN],
    ids=name_of,
)
def test_a_fault_costs_no_bit(tmp_path, undisturbed, case):
    check_case(tmp_path, undisturbed, *case)


@pytest.mark.faults
@pytest.mark.parametrize("case", [c for c in MATRIX if c not in CHOSEN], ids=name_of)
def test_any_fault_at_any_moment_costs_no_bit(tmp_path, undisturbed, case, capsys):
    check_case(tmp_path, undisturbed, *case)
    with capsys.disabled():
        print(" ", name_of(case), end="", flush=True)
