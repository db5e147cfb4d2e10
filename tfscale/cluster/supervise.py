"""Runs the workers of one machine, and starts them again when one has failed.

One start of all workers is a life, see `life`; who takes part in it is in `crew`. Here is what
lies between two lives: whether there is another one, and after which pause. A restart is only
as good as the worker's checkpoints: it runs the same command again.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tfscale.cluster import causes, local, pulse
from tfscale.cluster.crew import Crew, LocalCrew, Member, TaskCrew
from tfscale.cluster.ended import Word
from tfscale.cluster.environment import Cluster
from tfscale.cluster.life import Life
from tfscale.cluster.output import LinePrinter, WorkerOutput
from tfscale.cluster.restarts import Places, Restarts
from tfscale.cluster.worker import Worker

_POLL_SECONDS = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SAME_SECONDS = 1.0  # what comes so soon after the first signal is that one again, as from Slurm


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
    start_timeout_seconds: float = 0.0,
    grace_seconds: float = 60.0,
    min_workers: int | None = None,
    max_workers: int | None = None,
) -> int:
    """Run a command as every worker of a cluster on this machine until all of them are done.

    On the first failure all workers are ended, and started again on new ports. SIGINT, SIGTERM
    and SIGUSR1 are handed on to the workers; a second signal, a second later or more, ends them
    at once. No worker and nothing that a worker started in its process group is left when this
    returns or dies.

    Args:
        command: program and arguments, the same for each worker; or a function from the number
            of the life, from 1, to them.
        num_workers: workers to begin with.
        log_dir: folder that receives all output of a worker as `worker-N.log`, and what failed
            as `failures.jsonl`; made if missing.
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
            long while one is in the middle of its work; 0 for never.
        start_timeout_seconds: how long the workers wait for each other (`rendezvous.StartWatch`).
            One that has not come as far a minute after that is ended as one that hangs. 0 for
            workers that do not tell.
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
    crew = LocalCrew(Places(num_workers, min_workers, max_workers), environ)
    return _run_lives(
        command,
        crew,
        environ,
        log_dir=log_dir,
        stream=stream,
        private_network=private_network,
        max_restarts=max_restarts,
        hang_timeout_seconds=hang_timeout_seconds,
        start_timeout_seconds=start_timeout_seconds,
        grace_seconds=grace_seconds,
    )


def run_task(
    command: Sequence[str] | Callable[[int], Sequence[str]],
    cluster: Cluster,
    *,
    log_dir: str | None = None,
    environ: Mapping[str, str] | None = None,
    stream=None,
    max_restarts: int = 0,
    hang_timeout_seconds: float = 0.0,
    start_timeout_seconds: float = 0.0,
    grace_seconds: float = 60.0,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Run a command as the worker of this task of a cluster until it is done.

    When it fails it is started again, at the same address. The workers of the other tasks fail
    by losing it, and the launchers of those tasks start them again; all then meet anew. One that
    gives up leaves word in `log_dir`, and the others end as it did. Signals and leftovers are as
    with `run_local_workers`.

    Args:
        command: program and arguments; or a function from the number of the life, from 1, to
            them.
        cluster: the cluster, in which this task is a worker.
        log_dir: folder that receives all output as `worker-RANK.log`, the same for all tasks;
            made if missing.
        environ: environment of the worker beside TF_CONFIG; this process' own by default.
        stream: as for `run_local_workers`.
        max_restarts: failures within an hour, of this worker, that are followed by another
            start. Losing a peer is one of them.
        hang_timeout_seconds: end and restart the worker when it has not beaten (`pulse.beat`)
            for so long in the middle of its work; 0 for never. Where restarts are allowed, one
            that is stopped is ended after 15 seconds in any case.
        start_timeout_seconds: as for `run_local_workers`.
        grace_seconds: as for `run_local_workers`.
        is_over: says whether the work is done, asked when the worker has failed before it met
            the others: they may have come to the end without it, and then this is the end too.

    Returns:
        As `run_local_workers`, for this worker alone.

    Raises:
        ValueError: if the command cannot be found.
    """
    environ = dict(os.environ if environ is None else environ)
    return _run_lives(
        command,
        TaskCrew(cluster, environ, log_dir),
        environ,
        log_dir=log_dir,
        stream=stream,
        private_network=False,
        max_restarts=max_restarts,
        hang_timeout_seconds=hang_timeout_seconds,
        start_timeout_seconds=start_timeout_seconds,
        grace_seconds=grace_seconds,
        is_over=is_over,
    )


def _run_lives(
    command: Sequence[str] | Callable[[int], Sequence[str]],
    crew: Crew,
    environ: Mapping[str, str],
    *,
    log_dir: str | None,
    stream,
    private_network: bool | None,
    max_restarts: int,
    hang_timeout_seconds: float,
    start_timeout_seconds: float,
    grace_seconds: float,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """Run one life after the other; return the exit code of the last one."""
    make_command = command if callable(command) else lambda life: command
    _check_command(make_command(1), environ)
    restarts = Restarts(max_restarts)
    signals: list[int] = []
    final = crew.begin()
    if final:
        _say(f"this task has given up a moment ago and stays ended.\n{final.text}")
        return final.code
    with _recorded_signals(signals), contextlib.ExitStack() as cleanup:
        killed = crew.begin_to_run()
        cleanup.callback(crew.end)
        if killed and log_dir:
            causes.note(Path(log_dir), 0, killed)
        house = _House(
            Path(log_dir) if log_dir else None,
            LinePrinter(sys.stdout if stream is None else stream),
            cleanup.enter_context(contextlib.closing(local.Guard())),
            cleanup.enter_context(_network(private_network)),
        )
        number = 0
        while True:
            number += 1
            with _workers(house, make_command(number), number, crew.members()) as workers:
                outcome = Life(
                    workers,
                    signals,
                    hang_timeout_seconds=hang_timeout_seconds,
                    start_timeout_seconds=start_timeout_seconds,
                    grace_seconds=grace_seconds,
                    hurries=max_restarts > 0,
                    sees_all=crew.is_whole,
                    look_for_word=crew.look_for_word,
                ).watch()
            if outcome.report:
                _say(outcome.report)
            if outcome.cause and house.log_dir:
                causes.note(house.log_dir, number, outcome.cause)
            if outcome.kind in ("done", "stopped"):
                return outcome.code
            came_alone = outcome.kind == "failed" and not (outcome.began or outcome.comes_again)
            if came_alone and is_over():
                _say("the others have come to the end of the run, and this task ends with them.")
                return 0
            pause = restarts.pause_after(outcome)
            if pause is None:
                if max_restarts:
                    words = restarts.words(outcome, pause, crew.starting)
                    _say(words)
                    crew.give_up(outcome.word or Word(outcome.code, outcome.report))
                return outcome.code
            _say(restarts.words(outcome, pause, crew.starting) + crew.note(outcome))
            if not _pause(pause, signals):
                return 130 if signals[0] == signal.SIGINT else 143


@dataclasses.dataclass
class _House:
    """What all lives share."""

    log_dir: Path | None
    printer: LinePrinter
    guard: local.Guard
    namespace: int


@contextlib.contextmanager
def _workers(
    house: _House, command: Sequence[str], life: int, members: Sequence[Member]
) -> Iterator[list[Worker]]:
    """Start the workers of one life; nothing of them is left afterwards."""
    if house.log_dir:
        house.log_dir.mkdir(parents=True, exist_ok=True)
    workers: list[Worker] = []
    with contextlib.ExitStack() as cleanup:
        for member in members:
            rank = member.rank
            heart = cleanup.enter_context(contextlib.closing(pulse.Pulse()))
            own = {
                **member.environ,
                pulse.VARIABLE: heart.variable,
                "TFSCALE_LIFE": str(life),
                "TFSCALE_LOCAL_PLACE": str(member.place),
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
    heard: list[float] = []

    def hear(number: int, _) -> None:
        heard.append(time.monotonic())
        if not received or heard[-1] - heard[0] >= _SAME_SECONDS:
            received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; its own stay in force
        return
    before = {number: signal.signal(number, hear) for number in _SIGNALS}
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
