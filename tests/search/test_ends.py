"""What a trial's process died of, by its exit code and its last words."""

import errno

import pytest

from tfscale.search import ends

FULL = "[Errno 28] No space left on device: 'w.bin'"


@pytest.mark.parametrize(
    "line",
    [
        f"error: The disk must have room for the run. Received: {FULL}. What was written whole "
        "stays; make room and start the same command again.",
        f"[1] OSError: {FULL}",
        "OSError: [Errno 122] Disk quota exceeded",
        "tensorflow.errors_impl.ResourceExhaustedError: w.bin; No space left on device",
        "OSError: Can't write data (errno = 28, error message = 'No space left on device')",
    ],
)
def test_last_words_of_a_full_disk_are_known(tmp_path, line):
    end = ends.of_process(1, ["Epoch 1/2", line, "    File x.py"], tmp_path)
    assert end.needs_room and end.state == "failed"
    assert "What was written" not in end.reason and "[Errno" not in end.reason


def test_other_ends_need_no_room(tmp_path):
    for code, line in (
        (1, "ResourceExhaustedError: OOM when allocating"),
        (1, "ValueError: x"),
        (2, "error: No."),
        (137, "No space left on device, said a trial that goes on"),
        (0, f"OSError: {FULL}"),
    ):
        assert not ends.of_process(code, [line], tmp_path).needs_room


def test_a_disk_that_took_no_last_words_is_known_by_a_file_that_it_does_not_take(
    tmp_path, monkeypatch
):
    def refuse(**_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(ends.tempfile, "TemporaryFile", refuse)
    end = ends.of_process(1, ["Epoch 1/2"], tmp_path)
    assert end.needs_room and end.reason == "exit code 1: Epoch 1/2"
