"""N workers on this machine: start them, show what they say, end them together.

Each worker has a session of its own, so a terminal's Ctrl-C reaches the launcher alone, and dies
with the launcher even after `kill -9` (Linux). The first failure ends the others and is the one
that is reported. TensorFlow catches SIGTERM and may go on: hence the kill after a grace period.
Restarts are not decided here.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tfscale.cluster import ports
from tfscale.cluster.output import LinePrinter, WorkerOutput

_SPAWN = str(Path(__file__).with_name("spawn.py"))
_POLL_SECONDS = 0.05


def run_local_workers(
    command: list[str],
    num_workers: int,
    *,
    log_dir: str | None = None,
    environ: Mapping[str, str] | None = None,
    stream=None,
    grace_seconds: float = 5.0,
    private_network: bool | None = False,
) -> int:
    """Run `command` as every worker of a cluster on this machine and wait for all of them.

    SIGINT and SIGTERM are handed on to the workers; a second Ctrl-C kills them at once. No worker
    and nothing that a worker started in its process group is left when this returns.

    Args:
        command: program and arguments, the same for each worker.
        num_workers: at least 1.
        log_dir: folder that receives all output of a worker as `worker-N.log`; made if missing.
        environ: environment of the workers beside what `worker_environments` sets; this process'
            own by default.
        stream: text stream that shows every line with the worker's rank, `[0] `; `sys.stdout` by
            default. The run goes on when it breaks.
        grace_seconds: time between the signal that asks a worker to end and SIGKILL.
        private_network: give the workers a network that has loopback and nothing else.
            TensorFlow's server listens on all interfaces; this is what keeps it from the outside,
            and the workers from the internet. Needs Linux with user namespaces, or root; None
            does with it where that is possible, and says so where it is not.

    Returns:
        0 if every worker returned 0, the exit code of the first one that failed (128+n for signal
        n), 130 after SIGINT or 143 after SIGTERM.

    Raises:
        ValueError: if the command cannot be found, there is no worker to start, or the kernel
            refuses a private network.
    """
    environ = dict(os.environ if environ is None else environ)
    _check(command, num_workers, environ)
    if log_dir is not None:
        Path(log_dir).mkdir(parents=True, exist_ok=True)
    printer = LinePrinter(sys.stdout if stream is None else stream)
    signals: list[int] = []
    with _recorded_signals(signals), contextlib.ExitStack() as cleanup:
        namespace = 0
        if private_network is not False:
            try:
                namespace = cleanup.enter_context(_private_network())
            except ValueError as error:
                if private_network:
                    raise
                print(f"warning: {error}", file=sys.stderr, flush=True)
        workers: list[_Worker] = []
        cleanup.callback(_kill_all, workers)
        for rank, own in enumerate(worker_environments(num_workers, environ)):
            process = start_worker(command, own, subprocess.PIPE, namespace=namespace)
            log = Path(log_dir, f"worker-{rank}.log") if log_dir else None
            assert process.stdout is not None
            output = cleanup.enter_context(
                contextlib.closing(WorkerOutput(process.stdout, rank, printer, log))
            )
            workers.append(_Worker(rank, process, output))
        return _watch(workers, signals, grace_seconds)


def worker_environments(num_workers: int, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the environment of each worker of a cluster on loopback, on ports that are free now.

    Args:
        num_workers: at least 1.
        environ: variables that all share.

    Returns:
        One environment a rank: `environ` with TF_CONFIG, PYTHONUNBUFFERED=1 and
        TFSCALE_LOCAL_WORKERS, the number of workers that share this machine's cores.
    """
    addresses = [f"127.0.0.1:{port}" for port in ports.free_ports(num_workers)]
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
    command: list[str], environ: Mapping[str, str], stdout, *, namespace: int = 0
) -> subprocess.Popen:
    """Start one worker in a session of its own that ends with the thread that calls this.

    Args:
        command: program and arguments.
        environ: the worker's whole environment.
        stdout: where standard output and error go, in order, as for `subprocess.Popen`.
        namespace: a process whose network the worker shares; 0 for this machine's.

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


class _Worker:
    """One process, its output, and its exit code once it has ended."""

    def __init__(self, rank: int, process: subprocess.Popen, output: WorkerOutput):
        self.rank = rank
        self.process = process
        self.output = output
        self.code: int | None = None

    def describe_end(self) -> str:
        """Return one sentence about a failure, and the last lines before it."""
        code = self.process.returncode
        reason = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        where = f"; all of it: {self.output.log}" if self.output.log else ""
        lines = "".join(f"\n    {line}" for line in self.output.last_lines()) or " none"
        return f"tfscale: worker {self.rank} failed first: {reason}{where}. Its last lines:{lines}"


def _watch(workers: list[_Worker], signals: list[int], grace_seconds: float) -> int:
    """Show the workers' output until all have ended, and return the code of the run."""
    result, kill_at, num_signals = 0, float("inf"), 0
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.output.pipe, selectors.EVENT_READ, worker)
        while alive := [worker for worker in workers if worker.code is None]:
            for key, _ in selector.select(_POLL_SECONDS):
                if not key.data.output.read_some():
                    selector.unregister(key.fileobj)
            if len(signals) > num_signals:
                repeated = num_signals > 0 and signals[-1] == signal.SIGINT
                result = result or 128 + signals[0]
                _ask_to_end(alive, signal.SIGKILL if repeated else signals[-1])
                if num_signals == 0:
                    kill_at = min(kill_at, time.monotonic() + grace_seconds)
                num_signals = len(signals)
            for worker in alive:
                if not has_ended(worker.process):
                    continue
                worker.code = reap_group(worker.process)
                worker.output.drain()
                if worker.code and not result:
                    result = worker.code
                    print(worker.describe_end(), file=sys.stderr, flush=True)
                    _ask_to_end([w for w in alive if w.code is None], signal.SIGTERM)
                    kill_at = time.monotonic() + grace_seconds
            if time.monotonic() >= kill_at:
                _ask_to_end([w for w in alive if w.code is None], signal.SIGKILL)
    return result


def _ask_to_end(workers: list[_Worker], number: int) -> None:
    for worker in workers:
        signal_group(worker.process, number)


def _kill_all(workers: list[_Worker]) -> None:
    """End what is left after an exception."""
    for worker in workers:
        reap_group(worker.process)


@contextlib.contextmanager
def _recorded_signals(received: list[int]) -> Iterator[None]:
    """Append SIGINT and SIGTERM to `received` instead of acting on them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; its own stay in force
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {
        number: signal.signal(number, lambda got, _: received.append(got)) for number in numbers
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _private_network() -> Iterator[int]:
    """Hold a network with loopback only; yields the id of the process that holds it."""
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


def _check(command: list[str], num_workers: int, environ: Mapping[str, str]) -> None:
    """Refuse what cannot be started."""
    if num_workers < 1:
        raise ValueError(
            "At least one worker must be started. "
            f"Received: num_workers={num_workers}. Use 1 or more."
        )
    if not command or shutil.which(command[0], path=environ.get("PATH")) is None:
        raise ValueError(
            "The command of the workers must be a program that can be found and run. "
            f"Received: {command!r}. Correct its first word, or give the full path."
        )
