"""A command as the first process of a container: here of a namespace of processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tfscale

HOSTS = {"TFSCALE_HOSTS": "no-such-host-1.invalid,no-such-host-[2-3+].invalid", "TFSCALE_RANK": "1"}
UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def _hears(pid):
    """Whether a process has a handler for SIGUSR1."""
    status = Path(f"/proc/{pid}/status").read_text()
    handled = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(handled & 1 << signal.SIGUSR1 - 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_it_ends_when_it_is_told_to_while_it_waits_for_names(number):
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("the kernel gives no namespace of processes here")
    command = [*UNSHARE, sys.executable, "-m", "tfscale", "fit"]
    root = str(Path(tfscale.__file__).parents[1])
    process = subprocess.Popen(command, env={**os.environ, **HOSTS, "PYTHONPATH": root})
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 30
        while not children.read_text().split() or not _hears(children.read_text().split()[0]):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        os.kill(int(children.read_text().split()[0]), number)
        assert process.wait(timeout=15) == 143
    finally:
        process.kill()
        process.wait()
