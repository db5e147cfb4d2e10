"""Runs the workers of one machine, and starts all of them again when one has failed.

One start of all workers is a life, see `life`. Here is what lies between two of them: whether
there is another one, after which pause, with how many workers, on new ports. A restart is only
as good as the worker's checkpoints: it runs the same command again.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tfscale.cluster import local, pulse
from tfscale.cluster.life import Life
from tfscale.cluster.output import LinePrinter, WorkerOutput
from tfscale.cluster.restarts import Places, Restarts
from tfscale.cluster.worker import Worker

_POLL_SECONDS = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def run_local_workers(
    command: Sequence[str] | Callable[[int], Sequence[str]],
    num_workers: int,
    *,
    log_dir: str | None = None,
    environ: Mapping[str, str] | None = None,
    stream=None,
    private_network: bool | None = False,
    max_restarts: int = 0,
    hang_timeout_seconds: float = 0.0,
    grace_seconds: float = 60.0,
    min_workers: int | None = None,
    max_workers: int | None = None,
) -> int:
    """Run a command as every worker of a cluster on this machine until all of them are done.

    On the first failure all workers are ended, and started again on new ports. SIGINT, SIGTERM
    and SIGUSR1 are handed on to the workers; a second signal ends them at once. No worker and
    nothing that a worker started in its process group is left when this returns or dies.

    Args:
        command: program and arguments, the same for each worker; or a function from the number
            of the life, from 1, to them.
        num_workers: workers to begin with.
        log_dir: folder that receives all output of a worker as `worker-N.log`; made if missing.
        environ: environment of the workers beside what `local.worker_environments` sets, and
            TFSCALE_LIFE and TFSCALE_LOCAL_PLACE; this process' own by default.
        stream: text stream that shows every line with the worker's rank, `[0] `; `sys.stdout` by
            default. The run goes on when it breaks.
        private_network: give the workers a network that has loopback and nothing else.
            TensorFlow's server listens on all interfaces; this is what keeps it from the outside,
            and the workers from the internet. Needs Linux with user namespaces, or root; None
            does with it where that is possible, and says so where it is not.
        max_restarts: failures within an hour that are followed by another start. With 0 there is
            no other start at all, not even for a worker that asks for it with exit code 143.
        hang_timeout_seconds: end and restart all when no worker has beaten (`pulse.beat`) for so
            long after training began; 0 for never.
        grace_seconds: time between a signal and SIGKILL for workers that promised to save;
            others have 5 seconds at most.
        min_workers: go on with as few when places fail to start twice in a row; by default
            `num_workers`.
        max_workers: go on with as many from the first restart on; by default `num_workers`.

    Returns:
        0 if every worker returned 0; the exit code of the one that failed first (128+n for signal
        n) in the last life; 124 if the workers hung; 143 if a worker asked for a restart that is
        not allowed; 130 after SIGINT, or 143 after SIGTERM or SIGUSR1.

    Raises:
        ValueError: if the command cannot be found, the numbers of workers do not fit, or the
            kernel refuses a private network.
    """
    environ = dict(os.environ if environ is None else environ)
    make_command = command if callable(command) else lambda life: command
    _check_command(make_command(1), environ)
    places = Places(num_workers, min_workers, max_workers)
    restarts = Restarts(max_restarts)
    signals: list[int] = []
    with _recorded_signals(signals), contextlib.ExitStack() as cleanup:
        house = _House(
            environ,
            Path(log_dir) if log_dir else None,
            LinePrinter(sys.stdout if stream is None else stream),
            cleanup.enter_context(contextlib.closing(local.Guard())),
            cleanup.enter_context(_network(private_network)),
        )
        number = 0
        while True:
            number += 1
            taking_part = places.next_life()
            with _workers(house, make_command(number), number, taking_part) as workers:
                outcome = Life(
                    workers,
                    signals,
                    hang_timeout_seconds=hang_timeout_seconds,
                    grace_seconds=grace_seconds,
                    hurries=max_restarts > 0,
                ).watch()
            if outcome.report:
                _say(outcome.report)
            if outcome.kind in ("done", "stopped"):
                return outcome.code
            pause = restarts.pause_after(outcome)
            if pause is None:
                if max_restarts:
                    _say(restarts.words(outcome, pause))
                return outcome.code
            _say(restarts.words(outcome, pause) + places.note(outcome, taking_part))
            if not _pause(pause, signals):
                return 130 if signals[0] == signal.SIGINT else 143


@dataclasses.dataclass
class _House:
    """What all lives share."""

    environ: Mapping[str, str]
    log_dir: Path | None
    printer: LinePrinter
    guard: local.Guard
    namespace: int
    ports: tuple[int, ...] = ()


@contextlib.contextmanager
def _workers(
    house: _House, command: Sequence[str], life: int, places: Sequence[int]
) -> Iterator[list[Worker]]:
    """Start the workers of one life; nothing of them is left afterwards."""
    if house.log_dir:
        house.log_dir.mkdir(parents=True, exist_ok=True)
    environments = local.worker_environments(len(places), house.environ, house.ports)
    house.ports = _ports_of(environments)
    workers: list[Worker] = []
    with contextlib.ExitStack() as cleanup:
        for rank, (place, own) in enumerate(zip(places, environments, strict=True)):
            heart = cleanup.enter_context(contextlib.closing(pulse.Pulse()))
            own |= {
                pulse.VARIABLE: heart.variable,
                "TFSCALE_LIFE": str(life),
                "TFSCALE_LOCAL_PLACE": str(place),
            }
            process = local.start_worker(
                list(command),
                own,
                subprocess.PIPE,
                namespace=house.namespace,
                pass_handles=(heart.handle,),
            )
            cleanup.callback(local.reap_group, process)
            house.guard.watch(process)
            assert process.stdout is not None
            log = house.log_dir / f"worker-{rank}.log" if house.log_dir else None
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            headline = f"tfscale: life {life} of worker {rank}, {started}" if life > 1 else ""
            output = cleanup.enter_context(
                contextlib.closing(WorkerOutput(process.stdout, rank, house.printer, log, headline))
            )
            released = functools.partial(house.guard.release, process)
            workers.append(Worker(rank, process, output, heart, released))
        yield workers


def _ports_of(environments: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
    addresses = json.loads(environments[0]["TF_CONFIG"])["cluster"]["worker"]
    return tuple(int(address.rpartition(":")[2]) for address in addresses)


@contextlib.contextmanager
def _network(private: bool | None) -> Iterator[int]:
    """Hold the network of the workers; yields the process whose it is, or 0."""
    with contextlib.ExitStack() as cleanup:
        namespace = 0
        if private is not False:
            try:
                namespace = cleanup.enter_context(local.private_network())
            except ValueError as error:
                if private:
                    raise
                print(f"warning: {error}", file=sys.stderr, flush=True)
        yield namespace


@contextlib.contextmanager
def _recorded_signals(received: list[int]) -> Iterator[None]:
    """Append the signals that are handed on to `received` instead of acting on them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; its own stay in force
        return
    before = {
        number: signal.signal(number, lambda got, _: received.append(got)) for number in _SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pause(seconds: float, signals: Sequence[int]) -> bool:
    """Wait; return False as soon as a signal came."""
    until = time.monotonic() + seconds
    while not signals and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, _POLL_SECONDS))
    return not signals


def _say(text: str) -> None:
    text = text if text.startswith("tfscale: ") else f"tfscale: {text}"
    print(text, file=sys.stderr, flush=True)


def _check_command(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Refuse what cannot be started."""
    if not command or shutil.which(command[0], path=environ.get("PATH")) is None:
        raise ValueError(
            "The command of the workers must be a program that can be found and run. "
            f"Received: {command!r}. Correct its first word, or give the full path."
        )
