"""Processes of local workers: their environment, their start, their end, their network.

Each worker has a session of its own, so a terminal's Ctrl-C reaches the launcher alone, and dies
with the launcher even after `kill -9` (Linux). When which of them is started, watched and ended
is not decided here: see `supervise` and `life`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from tfscale.cluster import ports

_SPAWN = str(Path(__file__).with_name("spawn.py"))


def worker_environments(
    num_workers: int, environ: Mapping[str, str], avoid: Collection[int] = ()
) -> list[dict[str, str]]:
    """Return the environment of each worker of a cluster on loopback, on ports that are free now.

    Args:
        num_workers: at least 1.
        environ: variables that all share.
        avoid: ports not to use, such as those of workers that have just ended.

    Returns:
        One environment a rank: `environ` with TF_CONFIG, PYTHONUNBUFFERED=1 and
        TFSCALE_LOCAL_WORKERS, the number of workers that share this machine's cores.
    """
    addresses = [f"127.0.0.1:{port}" for port in ports.free_ports(num_workers, avoid)]
    shared = {"PYTHONUNBUFFERED": "1", "TFSCALE_LOCAL_WORKERS": str(num_workers)}
    return [
        {
            **environ,
            **shared,
            "TF_CONFIG": json.dumps(
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            ),
        }
        for rank in range(num_workers)
    ]


def start_worker(
    command: list[str],
    environ: Mapping[str, str],
    stdout,
    *,
    namespace: int = 0,
    pass_handles: Collection[int] = (),
) -> subprocess.Popen:
    """Start one worker in a session of its own that ends with the thread that calls this.

    Args:
        command: program and arguments.
        environ: the worker's whole environment.
        stdout: where standard output and error go, in order, as for `subprocess.Popen`.
        namespace: a process whose network the worker shares; 0 for this machine's.
        pass_handles: open files that the worker inherits under their numbers.

    Returns:
        The process; its id is also that of its process group.
    """
    spawn = [sys.executable, "-I", "-S", _SPAWN, str(os.getpid()), str(namespace)]
    return subprocess.Popen(
        [*spawn, *command],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=tuple(pass_handles),
    )


def has_ended(process: subprocess.Popen) -> bool:
    """Return whether `process` is over, without reaping it: its group keeps its number."""
    if process.returncode is not None:
        return True
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


def reap_group(process: subprocess.Popen) -> int:
    """Kill what is left of a worker's process group and return its exit code, 128+n for signals."""
    if process.returncode is None:
        signal_group(process, signal.SIGKILL)
        process.wait()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def signal_group(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a worker, which is not reaped yet, and to all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def state_of(pid: int) -> str:
    """Return the state of a process as Linux names it: R, S, T for stopped, Z, ...; "" if gone."""
    try:
        # pid (name) state ...; the name may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Guard:
    """A process that outlives this one for a moment, to end what the workers have started.

    A worker itself ends with its launcher; its own children would not, after `kill -9`.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _SPAWN, str(os.getpid()), "0", "guard"],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def watch(self, process: subprocess.Popen) -> None:
        """Kill the group of a worker if this process ends before `release`."""
        self._tell(f"+{process.pid}\n")

    def release(self, process: subprocess.Popen) -> None:
        """Forget a worker that has been reaped."""
        self._tell(f"-{process.pid}\n")

    def hold_until(self, moment: float) -> None:
        """Kill all groups at a moment, unless a later one is named before.

        That is done even when this process is stopped, as by SIGSTOP.

        Args:
            moment: on the clock of `time.monotonic`, which all processes of a machine share.
        """
        self._tell(f"={moment}\n")

    def close(self) -> None:
        """End the guard."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()


@contextlib.contextmanager
def private_network() -> Iterator[int]:
    """Hold a network with loopback only; yields the id of the process that holds it.

    Raises:
        ValueError: if the kernel refuses it.
    """
    holder = subprocess.Popen(
        [sys.executable, "-I", "-S", _SPAWN, str(os.getpid()), "0", "hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with holder:  # leaving it closes stdin, which ends the holder
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            reason = (holder.stderr.read().strip().splitlines() or ["not available here"])[-1]
            raise ValueError(
                "A private network for local workers needs Linux with user namespaces, or root. "
                f"Received: {reason}. Ask for them, or do without: TensorFlow's ports are then "
                "open on all interfaces, so use a firewall or a trusted network."
            )
        yield holder.pid
