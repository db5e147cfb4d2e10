"""Workers in a test: start real processes, bound their time, get their arrays back.

`run_workers` starts them, `collect` is what they call to hand arrays over, and `no_leaks` is a
pytest fixture that fails a test which leaves something behind. The processes are those of
`cluster.local`; a failure shows the output of every worker.
"""

import contextlib
import dataclasses
import inspect
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tfscale.cluster import local

_FOLDER, _RANK = "TFSCALE_TEST_FOLDER", "TFSCALE_TEST_RANK"
_POLL_SECONDS = 0.02
_SETTLE_SECONDS = 2.0  # sockets and children may take a moment to go
# pytest's own, and what importing TensorFlow sets.
_ENVIRON_ALLOWED = ("PYTEST_", "TF2_", "TPU_", "ENABLE_RUNTIME_", "HDF5_PLUGIN_", "KMP_")


@dataclasses.dataclass(frozen=True)
class WorkerResult:
    """How one worker ended: its exit code (128+n for signal n), what it printed and collected."""

    rank: int
    returncode: int
    output: str
    arrays: dict[str, np.ndarray]


def run_workers(
    script: str | Path | Callable[..., None],
    num_workers: int,
    *,
    args: Sequence[object] = (),
    timeout_seconds: float = 120.0,
    environ: Mapping[str, str] | None = None,
    check: bool = True,
) -> list[WorkerResult]:
    """Run a Python script as every worker of a cluster on free ports, within a time limit.

    Args:
        script: path of a script, its source (a text of several lines), or a function that uses
            nothing from around it, which is called with `args` as strings.
        num_workers: at least 1.
        args: arguments of the script, turned into text.
        timeout_seconds: after this all workers are killed and the test fails.
        environ: variables to add to this process' environment.
        check: whether a worker's failure fails the test and ends the others at once; without it
            all may run to their own end, as a test of failures needs.

    Returns:
        One result a rank.

    Raises:
        AssertionError: if the time is over or, with `check`, a worker failed; with all outputs.
    """
    with tempfile.TemporaryDirectory(prefix="tfscale-") as name:
        folder = Path(name)
        command = [sys.executable, str(_script_path(script, folder)), *map(str, args)]
        processes: list[subprocess.Popen] = []
        try:
            for rank, own in enumerate(_environments(num_workers, environ or {}, folder)):
                with open(_log_path(folder, rank), "wb") as log:
                    processes.append(local.start_worker(command, own, log))
            problem = _wait(processes, timeout_seconds, check)
        finally:
            codes = [local.reap_group(process) for process in processes]
        results = [
            WorkerResult(rank, code, _read_log(folder, rank), _read_arrays(folder, rank))
            for rank, code in enumerate(codes)
        ]
    if problem:
        raise AssertionError(problem + "".join(_show(result) for result in results))
    return results


def collect(**arrays) -> None:
    """Hand arrays back to the test, from inside a worker that `run_workers` started.

    Args:
        **arrays: anything NumPy can store without pickle; later calls add to earlier ones and
            replace equal names. They are `WorkerResult.arrays` in the test.

    Raises:
        ValueError: outside of `run_workers`.
    """
    if _FOLDER not in os.environ:
        raise ValueError(
            "`collect` hands arrays to the test that started this worker. Received: no "
            f"{_FOLDER} in the environment. Start the script with tfscale.testing.run_workers."
        )
    folder, rank = Path(os.environ[_FOLDER]), int(os.environ[_RANK])
    known = _read_arrays(folder, rank)
    beside = folder / f"unfinished-{rank}.npz"
    np.savez(beside, allow_pickle=False, **(known | {k: np.asarray(v) for k, v in arrays.items()}))
    beside.rename(_arrays_path(folder, rank))


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves an environment variable, child process, thread or open port.

    Daemon threads are not counted: TensorFlow and its data pipelines have their own.
    """
    before = _leftovers()
    yield
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        left = [
            f"{what}: {', '.join(sorted(new))}"
            for what, now in _leftovers().items()
            if (new := now - before[what])
        ]
        left += [
            f"environment, gone or changed: {name}"
            for name in sorted(before["environment"] - set(_variables()))
        ]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    assert not left, "The test must leave nothing behind. Left: " + "; ".join(left)


def _script_path(script: str | Path | Callable[..., None], folder: Path) -> Path:
    """Return the path of the script, written to `folder` where it is source or a function."""
    if callable(script):
        source = textwrap.dedent(inspect.getsource(script))
        source += f"\n\nimport sys\n\n{script.__name__}(*sys.argv[1:])\n"
    elif isinstance(script, str) and "\n" in script:
        source = textwrap.dedent(script)
    else:
        return Path(script).resolve(strict=True)
    path = folder / "worker.py"
    path.write_text(source)
    return path


def _environments(num_workers: int, extra: Mapping[str, str], folder: Path) -> list[dict[str, str]]:
    """Return each worker's environment, in which tfscale can be imported from where it is here."""
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        _FOLDER: str(folder),
        **extra,
    }
    environments = local.worker_environments(num_workers, shared)
    return [{**own, _RANK: str(rank)} for rank, own in enumerate(environments)]


def _wait(processes: list[subprocess.Popen], timeout_seconds: float, check: bool) -> str:
    """Wait for all workers; return what went wrong, or ""."""
    deadline = time.monotonic() + timeout_seconds
    running = dict(enumerate(processes))
    while running:
        for rank, process in list(running.items()):
            if not local.has_ended(process):
                continue
            del running[rank]
            code = local.reap_group(process)
            if code and check:
                return f"Worker {rank} failed first, with exit code {code}."
        if time.monotonic() > deadline:
            return (
                f"The workers must end within {timeout_seconds:g} seconds. "
                f"Still running: {', '.join(map(str, running))}."
            )
        time.sleep(_POLL_SECONDS)
    return ""


def _log_path(folder: Path, rank: int) -> Path:
    return folder / f"worker-{rank}.log"


def _arrays_path(folder: Path, rank: int) -> Path:
    return folder / f"worker-{rank}.npz"


def _read_log(folder: Path, rank: int) -> str:
    path = _log_path(folder, rank)
    return path.read_text(errors="replace") if path.exists() else ""


def _read_arrays(folder: Path, rank: int) -> dict[str, np.ndarray]:
    path = _arrays_path(folder, rank)
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _show(result: WorkerResult) -> str:
    return f"\n--- worker {result.rank}, exit code {result.returncode} ---\n{result.output}"


def _leftovers() -> dict[str, set[str]]:
    """Return all that a test could leave behind, as it is now."""
    return {
        "environment": set(_variables()),
        "child processes": set(_children()),
        "threads": {thread.name for thread in threading.enumerate() if not thread.daemon},
        "listening ports": set(_listening_ports()),
    }


def _variables() -> Iterator[str]:
    """Yield the environment variables that a test has no reason to change."""
    for name, value in os.environ.items():
        if not name.startswith(_ENVIRON_ALLOWED):
            yield f"{name}={value}"


def _children() -> Iterator[str]:
    """Yield the living and the unreaped children of this process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # pid (name) state parent ...; the name may hold anything.
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) != os.getpid():
                continue
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            # Python keeps this one for as long as it lives.
            if "multiprocessing.resource_tracker" not in command:
                yield f"{folder.name} {command or '(unreaped)'}"


def _listening_ports() -> Iterator[str]:
    """Yield the TCP addresses that this process listens on."""
    own = set()
    for handle in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(os.readlink(handle).removeprefix("socket:[").removesuffix("]"))
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in own:
                    yield f"port {int(fields[1].rpartition(':')[2], 16)}"
