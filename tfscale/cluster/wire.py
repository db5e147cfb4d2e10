"""Messages between tasks that check a cluster: JSON objects over TCP, one a line.

Sizes and times are bounded, and nothing but JSON is read: whoever connects can say things, and
cause nothing. TensorFlow's own traffic has nothing to do with this.
"""

import contextlib
import json
import socket
import time
from typing import Any

MAX_BYTES = 2**20


class Lost(Exception):
    """The other end is gone, did not answer in time, or does not speak this language."""


class Late(Lost):
    """Nothing has come in time; it may still come."""


class Channel:
    """One connection.

    Args:
        connection: a connected socket; closed with this object.
    """

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._received = b""

    def send(self, message: dict[str, Any], seconds: float = 10.0) -> None:
        """Send one message.

        Raises:
            Lost: if that takes longer, or the other end is gone.
        """
        try:
            self._connection.settimeout(seconds)
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise Lost(_words(error)) from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the next message.

        Args:
            seconds: how long to wait for the whole of it.

        Raises:
            Late: if there is none in time.
            Lost: if the other end is gone, or what comes is no message.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            if len(self._received) > MAX_BYTES:
                raise Lost("said too much at once")
            try:
                self._connection.settimeout(max(0.001, deadline - time.monotonic()))
                data = self._connection.recv(65_536)
            except TimeoutError as error:
                raise Late(_words(error)) from None
            except OSError as error:
                raise Lost(_words(error)) from None
            if not data:
                raise Lost("closed the connection")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise Lost("said something else than JSON")
        return message

    def close(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _words(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "gave no answer in time"
    return (error.strerror or str(error)).lower()
