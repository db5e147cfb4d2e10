"""The health check finds workers by their launcher's memory, from a process of its own."""

import os
import re
import subprocess
import sys
import time

import pytest

from tfscale.cluster import health, pulse

WORKER = (
    "import time\nfrom tfscale.cluster import pulse\n"
    "pulse.begin(); pulse.beat(41, 'train', 2)\nprint('beats', flush=True)\ntime.sleep(600)"
)


@pytest.fixture
def worker():
    """A worker that has beaten once, as its launcher starts it."""
    heart = pulse.Pulse()
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env={**os.environ, pulse.VARIABLE: heart.variable},
        pass_fds=(heart.handle,),
        stdout=subprocess.PIPE,
    )
    try:
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()
        heart.close()


def test_a_worker_that_beats_is_well(worker):
    told = subprocess.run(
        [sys.executable, "-m", "tfscale.cluster.health"], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(rf"process {worker.pid} at step 41 \(train, epoch 3\), \d+ s ago", told)


def test_one_that_has_not_beaten_for_too_long_is_not(worker, monkeypatch, capsys):
    found = [beat for beat in health.beats() if beat.pid == worker.pid]
    assert [beat.step for beat in found] == [41]
    monkeypatch.setattr(health, "beats", lambda: found)
    assert health.main() == 0
    monkeypatch.setattr(time, "monotonic", lambda: found[0].seconds + 601)
    assert health.main() == 1
    assert "too long" in capsys.readouterr().out


def test_a_machine_without_workers_is_well(monkeypatch):
    monkeypatch.setattr(health, "beats", lambda: iter(()))
    assert health.main() == 0
