"""Who failed first, from how all ended: causes are told from consequences."""

import pathlib

import pytest

from tfscale.cluster import verdict
from tfscale.cluster.pulse import Beat

SILENT = Beat(0, 0, False, False, False, -1, -1, 0.0, "")
TOLD = Beat(9, 1, True, True, False, 57, 2, 0.0, "save", told=True)
AT_57 = Beat(9, 1, True, False, False, 57, 2, 0.0, "train")


def traceback(*error):
    frames = ["Traceback (most recent call last):", '  File "script.py", line 3, in <module>']
    return ("some output", *frames, *error)


# As TensorFlow 2.21 writes it when a peer is killed, frozen, or gone before.
KILLED_PEER = traceback(
    "tensorflow.python.framework.errors_impl.UnavailableError: Graph execution error:",
    "Detected at node while/CollectiveReduceV2 defined at (most recent call last):",
    '  File "loop.py", line 131, in _fit_epoch',
    "Collective ops is aborted by: recvmsg:Connection reset by peer",
)
FROZEN_PEER = traceback(
    "tensorflow.python.framework.errors_impl.InternalError: Graph execution error:",
    "Collective ops is aborted by: Error reported from /job:worker/task:1: The following tasks",
    "are unhealthy (stopped sending heartbeats):",
)
OWN = traceback("ValueError: a bad batch")
LABELS = traceback(
    "tensorflow.python.framework.errors_impl.InvalidArgumentError: Graph execution error:",
    "",
    "Detected at node compute_loss defined at (most recent call last):",
    '  File "script.py", line 9, in <module>',
    "",
    "Received a label value of 12 which is outside the valid range of [0, 10).",
    "Label values: 3 12 4",
    "\t [[{{node compute_loss}}]] [Op:__inference_train_steps_1]",
)


def end(rank, code, seconds, lines=(), asked=False, beat=SILENT):
    return verdict.End(rank, code, seconds, asked, tuple(lines), None, beat)


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ([end(0, 1, 1.0, KILLED_PEER), end(1, -9, 1.005)], 1),
        ([end(0, 1, 1.0, FROZEN_PEER), end(1, 1, 1.1, OWN)], 1),
        ([end(0, 1, 1.0, OWN), end(1, -9, 1.005)], 1),
        ([end(0, 1, 1.0, OWN), end(1, 1, 1.2, traceback("TypeError: later"))], 0),
        ([end(0, -6, 1.0, ["F0000 UNAVAILABLE: Socket closed"]), end(1, -11, 1.1)], 1),
        ([end(0, -6, 1.0, ["terminate called"]), end(1, 1, 1.1, KILLED_PEER)], 0),
        ([end(0, 7, 1.0, ["UNAVAILABLE, a word in its output"]), end(1, 1, 1.2, OWN)], 0),
        ([end(1, 0, 1.0), end(0, 1, 2.0, KILLED_PEER)], 1),
        ([end(0, 1, 1.0, KILLED_PEER), end(1, 0, 1.05)], 1),
        ([end(1, 0, 1.0), end(0, 1, 2.0, OWN)], 0),
        ([end(0, 1, 1.0, KILLED_PEER), end(1, 0, 2.0)], 0),
        ([end(1, 143, 1.0), end(0, 1, 2.0, KILLED_PEER)], 1),
        ([end(1, -15, 1.0), end(0, 1, 2.0, KILLED_PEER)], 1),
        ([end(0, 143, 1.0), end(1, 143, 1.1, beat=TOLD)], 1),
        ([end(1, 143, 1.0), end(0, 1, 2.0, OWN)], 0),
        ([end(1, 143, 1.0), end(0, 1, 2.0, OWN, asked=True)], 1),
        ([end(0, 1, 1.0, KILLED_PEER), end(1, 1, 1.2, FROZEN_PEER)], 0),
        ([end(0, 3, 1.0), end(1, -9, 2.0, asked=True)], 0),
    ],
)
def test_the_cause_is_not_what_was_seen_first(ends, rank):
    assert verdict.cause(ends).rank == rank


def test_nobody_failed():
    assert verdict.cause([end(0, 0, 1.0), end(1, 0, 2.0)]) is None
    assert verdict.cause([end(0, -15, 1.0, asked=True), end(1, 9, 1.0, asked=True)]) is None


def test_an_error_before_the_last_one_does_not_count():
    """A script that went on after it had lost something, and then failed by itself."""
    assert not end(0, 1, 1.0, KILLED_PEER + OWN).lost_a_peer
    assert end(0, 1, 1.0, OWN + KILLED_PEER).lost_a_peer


def test_one_that_missed_many_others_is_told_from_one_that_failed():
    """The list of them is longer than what is looked at."""
    missed = [
        "tfscale: all 21 workers must meet within 20 seconds of the start. Received, as seen by",
        *(f"    worker {rank} at a:{rank}: silent (no answer: ...)" for rank in range(1, 21)),
        "Start the missing workers with the same addresses, look at their logs, or allow more",
    ]
    assert end(0, 1, 1.0, missed).missed_a_peer
    assert not end(0, 1, 1.0, KILLED_PEER).missed_a_peer


def test_report_says_who_where_and_why():
    told = verdict.report(end(1, -9, 1.0, map(str, range(30)), beat=AT_57), [])
    assert told.startswith(
        "tfscale: worker 1 failed first: signal SIGKILL (from outside, or memory ran out) at step "
        "57 (train, epoch 3). Its last lines:\n    20\n"
    )
    assert told.endswith("\n    29")


def test_report_of_an_exception_has_its_last_line():
    failed = verdict.End(0, 1, 1.0, False, OWN, pathlib.Path("logs/worker-0.log"), AT_57)
    told = verdict.report(failed, [failed]).splitlines()[0]
    assert "exit code 1, ValueError: a bad batch at step 57 (train, epoch 3)" in told
    assert told.endswith("; all of it: logs/worker-0.log. Its last lines:")


def test_report_of_an_error_in_a_graph_says_what_went_wrong_there():
    assert end(0, 1, 1.0, LABELS).reason() == (
        "exit code 1, tensorflow.python.framework.errors_impl.InvalidArgumentError: Received a "
        "label value of 12 which is outside the valid range of [0, 10)"
    )


def test_report_of_a_worker_that_left_too_early_names_who_lost_it():
    ends = [end(1, 0, 1.0, ["done"]), end(0, 1, 2.0, KILLED_PEER)]
    told = verdict.report(verdict.cause(ends), ends)
    assert told.startswith("tfscale: worker 1 left too early: exit code 0, while the others")
    assert "Worker 0 then failed: exit code 1, tensorflow.python" in told


SAVES = Beat(9, 1, True, True, False, 57, 2, 0.0, "save")


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ([end(0, 143, 1.0, asked=True), end(1, 130, 1.0, asked=True)], None),
        ([end(0, 1, 1.0, KILLED_PEER, True, SAVES), end(1, 1, 1.1, OWN, True, SAVES)], 1),
        ([end(0, 1, 1.0, KILLED_PEER, True, SAVES), end(1, 143, 1.1, asked=True)], 0),
        ([end(0, 1, 1.0, KILLED_PEER, True), end(1, -2, 1.1, asked=True)], None),
        ([end(0, 143, 1.0, asked=True), end(1, -9, 1.1, asked=True)], 1),
    ],
)
def test_who_did_not_leave_as_all_were_asked_to(ends, rank):
    failed = verdict.failed_to_leave(ends, at_once=False)
    assert failed is None if rank is None else failed.rank == rank


def test_after_a_second_signal_all_may_be_killed():
    assert verdict.failed_to_leave([end(1, -9, 1.1, (), True, SAVES)], at_once=True) is None


BAD_LOSS = "The loss of a step must be finite, and its weights finite. Received: loss nan"
OTHER_MODEL = "A checkpoint must be of the same model, optimizer and metrics. Received: ..."
OTHER_CALLBACKS = "A run must go on with the callbacks that it was saved with. Received: ..."
OTHER_BITS = "Weights, optimizer and seeds must be the same bits on all replicas. Received: ..."


@pytest.mark.parametrize(
    ("code", "lines", "why"),
    [
        (1, traceback("OSError: could not write the checkpoint of step 8"), "next checkpoint"),
        (1, ["error: The disk must have room for the run. Received: ..."], "next checkpoint"),
        (1, traceback(f"tfscale.training.health.BadNumbers: {BAD_LOSS}"), "same loss again"),
        (2, [f"error: {BAD_LOSS}"], "same loss again"),
        (1, traceback(f"ValueError: {OTHER_MODEL}"), "same checkpoint would be refused"),
        (1, traceback(f"ValueError: {OTHER_CALLBACKS}"), "same checkpoint would be refused"),
        (2, ["error: `epochs` must be at least 0."], "exit code 2"),
        (1, traceback(f"tfscale.training.health.BadNumbers: {OTHER_BITS}"), ""),
        (2, [f"error: {OTHER_BITS}"], ""),
        (1, OWN, ""),
        (-9, [f"error: {BAD_LOSS}"], ""),
    ],
)
def test_what_would_come_again(code, lines, why):
    found = end(0, code, 1.0, lines).comes_again
    assert why in found and bool(found) == bool(why)
