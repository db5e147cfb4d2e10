"""What workers print: whole lines, marked with the rank, and a copy in a log file.

Bytes are kept as they come; a stream that breaks is dropped and the run goes on. Lines longer
than 64 KiB are shown in pieces.
"""

import collections
import contextlib
import os
import sys
from pathlib import Path
from typing import IO

_MAX_LINE_BYTES = 64 * 1024
_MAX_SHOWN = 1000  # characters of a line that an error repeats
_NUM_KEPT = 500  # lines: the stacks of some forty threads, or an exception from inside a graph
_STACK = b"(most recent call first):"


class LinePrinter:
    """Writes lines to one text stream until it breaks."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, line: bytes) -> None:
        """Write one line without its end, exactly as it is where the stream has a buffer."""
        if self._stream is None:
            return
        try:
            buffer = getattr(self._stream, "buffer", None)
            if buffer is None:
                self._stream.write(line.decode("utf-8", "replace") + "\n")
            else:
                self._stream.flush()
                buffer.write(line + b"\n")
            self._stream.flush()
        except (OSError, ValueError):  # the reader went away, or the stream was closed
            self._abandon()

    def _abandon(self) -> None:
        """Let what is still buffered go nowhere, or Python complains about it at its exit."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        self._stream = None


class WorkerOutput:
    """Reads one worker's pipe without blocking.

    Args:
        pipe: binary file object of the worker's output; closed with this object.
        rank: number to mark the lines with.
        printer: shows the lines.
        log: file that receives every byte, or `None`.
        headline: line that goes into the log first; "" for none.
    """

    def __init__(
        self,
        pipe: IO[bytes],
        rank: int,
        printer: LinePrinter,
        log: Path | None,
        headline: str = "",
    ):
        self.pipe = pipe
        self.log = log
        self.num_stacks = 0  # threads whose stack was written here
        os.set_blocking(pipe.fileno(), False)
        self._prefix = f"[{rank}] ".encode()
        self._printer = printer
        self._file = open(log, "ab", buffering=0) if log else None  # noqa: SIM115
        self._partial = b""
        self._last: collections.deque[bytes] = collections.deque(maxlen=_NUM_KEPT)
        if headline:
            self._keep(f"{headline}\n".encode())

    def read_some(self) -> bool:
        """Take what is there; return whether more may come."""
        try:
            return self._read_once()
        except BlockingIOError:
            return True

    def drain(self) -> None:
        """Take all that an ended worker left, a last line without its end included."""
        with contextlib.suppress(BlockingIOError):
            while self._read_once():
                pass
        if self._partial:
            self._show(self._partial)
            self._partial = b""

    def _read_once(self) -> bool:
        """Read and show one piece; False at the end of the pipe."""
        data = os.read(self.pipe.fileno(), _MAX_LINE_BYTES)
        self._keep(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) >= _MAX_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._show(line)
        return bool(data)

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines shown that are not blank, oldest first, shortened."""
        return tuple(line.decode("utf-8", "replace")[:_MAX_SHOWN] for line in self._last)

    def close(self) -> None:
        """Close the pipe and the log file."""
        self.pipe.close()
        if self._file:
            self._file.close()

    def _keep(self, data: bytes) -> None:
        """Copy to the log file; a full disk costs the log, not the run."""
        if self._file is None:
            return
        try:
            self._file.write(data)
        except OSError as error:
            self._file.close()
            self._file = None
            print(f"tfscale: {self.log} ends here: {error.strerror}", file=sys.stderr, flush=True)

    def _show(self, line: bytes) -> None:
        line = line.removesuffix(b"\r")
        if line.strip():
            self._last.append(line)
        self.num_stacks += line.endswith(_STACK)
        self._printer.write(self._prefix + line)
