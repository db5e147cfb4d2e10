"""A bounded start: TensorFlow waits for missing peers without end, here nobody does.

While it waits it holds Python's global lock and catches SIGTERM, so no thread of this process can
do anything about it. A small second process keeps the time, asks the peers' addresses and writes
the error; `faulthandler`'s timer, which needs no lock, then ends this one with exit code 1.
"""

import contextlib
import faulthandler
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

from tfscale.cluster import ports, pulse
from tfscale.cluster.environment import Cluster

_PROBE_SECONDS = 2.0
_REPORT_SECONDS = _PROBE_SECONDS + 1.5  # from the end of the time to the end of the process
_REPORTED = 3  # the reporter's exit code; Python's own failures are 1 and 2
REASONS = {
    "refused": "refused (the host answers, nothing listens there: not started, or ended)",
    "silent": "silent (no answer: host down, frozen, or a firewall between)",
    "unresolvable": "unresolvable (no such host name here, or its name server does not answer)",
    "up": "is up but has not joined (it may wait for others, or know another cluster)",
    "stranger": "something else listens there (another program, or a job)",
    "other": "another task than that answers there",
}


class StartWatch:
    """Bounds the time in which all workers must have met.

        with StartWatch(cluster, 300.0):
            strategy = tf.distribute.MultiWorkerMirroredStrategy()

    If the block is not left in time, the process ends with exit code 1 a few seconds later, after
    one error on stderr that names every peer that did not come, and why. Uses the timer of
    `faulthandler`, of which a process has one. Without peers it bounds nothing. Tells the launcher
    that this worker has come so far.

    Args:
        cluster: this task and its peers.
        start_timeout_seconds: how long the block may take, above 0.

    Raises:
        ValueError: if the time is not above 0.
    """

    def __init__(self, cluster: Cluster, start_timeout_seconds: float):
        if start_timeout_seconds <= 0:
            raise ValueError(
                "`start_timeout_seconds` must be above 0. "
                f"Received: {start_timeout_seconds}. Use for example 300."
            )
        self._timeout_seconds = start_timeout_seconds
        self._rank = cluster.rank
        self._peers = {
            str(rank): address
            for rank, address in enumerate(cluster.workers)
            if rank != cluster.rank
        }
        self._idle = cluster.is_evaluator or not self._peers
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "StartWatch":
        pulse.beat(-1, "meet")
        if self._idle:
            return self
        root = str(Path(__file__).parents[2])
        self._reporter = subprocess.Popen(
            [sys.executable, "-S", "-m", "tfscale.cluster.rendezvous"]
            + [str(self._rank), str(self._timeout_seconds), json.dumps(self._peers)],
            # Not the caller's folder or paths: a script's neighbours must not be imported.
            env={**os.environ, "PYTHONPATH": root, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        null = self._stack.enter_context(open(os.devnull, "w"))
        faulthandler.dump_traceback_later(
            self._timeout_seconds + _REPORT_SECONDS, exit=True, file=null
        )
        self._stack.callback(faulthandler.cancel_dump_traceback_later)
        sys.stdout.flush()
        return self

    def __exit__(self, *error) -> None:
        if self._idle:
            pulse.beat(-1, "start")
            return
        assert self._reporter.stdin is not None
        self._reporter.stdin.close()
        if self._reporter.wait() == _REPORTED:
            # It has told the user that the start failed just before the last peer came.
            sys.stdout.flush()
            os._exit(1)
        self._stack.close()
        pulse.beat(-1, "start")


def _report(rank: int, timeout_seconds: float, peers: dict[str, str]) -> int:
    """Wait for stdin to end; write the error if it does not, and return `_REPORTED`."""
    if _left(timeout_seconds):
        return 0
    found = _probe_all(peers)
    if _left(0.0):
        return 0
    lines = [
        f"    worker {peer} at {address}: {REASONS[found[peer]]}" for peer, address in peers.items()
    ]
    print(
        f"tfscale: all {len(peers) + 1} workers must meet within {timeout_seconds:g} seconds of "
        f"the start. Received, as seen by worker {rank}:\n" + "\n".join(lines) + "\n"
        "Start the missing workers with the same addresses, look at their logs, or allow more "
        "time with --start_timeout_seconds.",
        file=sys.stderr,
        flush=True,
    )
    return _REPORTED


def _left(timeout_seconds: float) -> bool:
    """Return whether the watched process has left its block, or is gone, within this time."""
    return bool(select.select([sys.stdin], [], [], timeout_seconds)[0])


def _probe_all(peers: dict[str, str]) -> dict[str, str]:
    """Probe all peers at once; the time that a name server takes is bounded as well."""
    found = dict.fromkeys(peers, "unresolvable")

    def ask(peer: str) -> None:
        if ports.resolve(peers[peer]):
            found[peer] = "silent"
            found[peer] = ports.probe(peers[peer], _PROBE_SECONDS)

    threads = [threading.Thread(target=ask, args=(peer,), daemon=True) for peer in peers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + _PROBE_SECONDS + 0.2
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(found)


if __name__ == "__main__":
    code = _report(int(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3]))
    sys.stderr.flush()
    os._exit(code)  # threads may still wait for a name server
