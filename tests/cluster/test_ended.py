"""Tasks that give up, and what the others make of it: real launchers around small scripts."""

import os
import subprocess
import sys
import time

import pytest

from tfscale.cluster import ended, ports, supervise
from tfscale.cluster.environment import Cluster

FOR_EVER = [sys.executable, "-c", "import time; time.sleep(600)"]
FAILS = [sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"]


@pytest.fixture
def cluster():
    addresses = tuple(f"127.0.0.1:{port}" for port in ports.free_ports(2))
    return lambda rank: Cluster(addresses, rank, "worker", "hosts")


def launcher(cluster, rank, command, log_dir):
    """Start the launcher of one task as a process of its own."""
    code = (
        "import sys\nfrom tfscale.cluster import supervise\n"
        "from tfscale.cluster.environment import Cluster\n"
        f"cluster = Cluster({cluster.workers!r}, {rank}, 'worker', 'hosts')\n"
        f"sys.exit(supervise.run_task({command!r}, cluster, log_dir={str(log_dir)!r}, "
        "max_restarts=5))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def test_the_others_end_as_the_one_that_has_given_up(tmp_path, cluster, capfd):
    other = launcher(cluster(0), 0, FOR_EVER, tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "worker-0.log").exists():
            assert time.monotonic() < deadline and other.poll() is None
            time.sleep(0.05)
        assert supervise.run_task(FAILS, cluster(1), log_dir=str(tmp_path), max_restarts=1) == 3
        assert "gave up after 1 restart" in capfd.readouterr().err
        told = other.communicate(timeout=60)[1]
    finally:
        other.kill()
        other.communicate()
    assert other.returncode == 3
    assert "this task ends, as another one has given up.\ntfscale: worker 1 failed" in told
    assert "no luck" in told and "nothing starts again: that task does not come back" in told


def test_what_was_left_by_an_earlier_job_does_not_count(tmp_path):
    ended.Board(tmp_path, 1).leave(ended.Word(1, "long ago"))
    time.sleep(0.05)
    board = ended.Board(tmp_path, 0)
    assert board.begin(0) is None and board.look() is None
    ended.Board(tmp_path, 1).leave(ended.Word(1, "now"))
    assert board.look() == ended.Word(1, "now")


def test_the_first_to_give_up_is_believed(tmp_path):
    board = ended.Board(tmp_path, 0)
    board.begin(0)
    for rank in (2, 1, 0):
        time.sleep(0.02)
        ended.Board(tmp_path, rank).leave(ended.Word(rank, f"worker {rank}"))
    assert board.look() == ended.Word(2, "worker 2")


def test_a_task_that_a_container_engine_starts_again_stays_ended_for_a_while(
    tmp_path, cluster, capfd, monkeypatch
):
    monkeypatch.setenv(ended.FINAL_VARIABLE, "30")
    options = {"log_dir": str(tmp_path), "max_restarts": 1}
    assert supervise.run_task(FAILS, cluster(1), **options) == 3
    capfd.readouterr()
    assert supervise.run_task(FAILS, cluster(1), **options) == 3
    told = capfd.readouterr().err
    assert "has given up a moment ago and stays ended" in told and "starts again" not in told
    assert time.time() - (tmp_path / "worker-1.ended").stat().st_mtime < 20
    long_ago = time.time() - 86_400  # before this process was started
    os.utime(tmp_path / "worker-1.ended", (long_ago, long_ago))
    assert supervise.run_task([sys.executable, "-c", ""], cluster(1), **options) == 0
    assert not (tmp_path / "worker-1.ended").exists()


def test_what_counts_is_when_the_engine_started_it_again(tmp_path):
    """A container with little memory may take longer to its launcher than the word holds."""
    ended.Board(tmp_path, 1).leave(ended.Word(9, "x"))
    code = (
        "import pathlib, sys, time\nfrom tfscale.cluster import ended\ntime.sleep(3)\n"
        "print(ended.Board(pathlib.Path(sys.argv[1]), 1).begin(2.5))"
    )
    again = [sys.executable, "-c", code, str(tmp_path)]
    assert "code=9" in subprocess.run(again, capture_output=True, text=True, check=True).stdout
    time.sleep(3)
    assert subprocess.run(again, capture_output=True, text=True, check=True).stdout == "None\n"


def test_another_container_begins_at_once(tmp_path):
    (tmp_path / "worker-1.ended").write_text('{"code": 1, "text": "x", "host": "another"}')
    assert ended.Board(tmp_path, 1).begin(30) is None


def test_a_task_that_ended_as_another_one_stays_ended_too(tmp_path):
    ended.Board(tmp_path, 1).leave(ended.Word(9, "x", host="another"))
    assert ended.Board(tmp_path, 1).begin(30).code == 9


def test_a_damaged_word_is_none(tmp_path):
    board = ended.Board(tmp_path, 0)
    board.begin(0)
    (tmp_path / "worker-1.ended").write_text("{")
    assert board.look() is None


def test_a_full_disk_does_not_hide_the_reason(tmp_path):
    ended.Board(tmp_path / "gone", 0).leave(ended.Word(1, "x"))
