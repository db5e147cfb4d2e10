"""Addresses: choose free ports, check this worker's own, and ask whether a peer listens.

Only the standard library, and nothing stays open when a function returns.
"""

import contextlib
import errno
import socket
from collections.abc import Collection


def split_address(address: str) -> tuple[str, int]:
    """Return the host and the port of "host:port".

    Args:
        address: a name, an IPv4 address or an IPv6 address in brackets, and a port.

    Returns:
        The host, without brackets, and the port, 1 to 65535.

    Raises:
        ValueError: if either is missing or the port is out of range.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise ValueError(
            "An address must be 'host:port' with a port from 1 to 65535. "
            f"Received: {address!r}. Write it like 'host0:2222'."
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def free_ports(num_ports: int, avoid: Collection[int] = ()) -> list[int]:
    """Return ports of the loopback interface that nobody uses now.

    All are held until the last one is chosen, so they differ. Another program may still take
    one before its worker does.

    Args:
        num_ports: how many, at least 0.
        avoid: ports not to choose.

    Returns:
        Distinct port numbers.
    """
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        while len(chosen) < num_ports:
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port not in avoid:
                chosen.append(port)
    return chosen


def check_port_free(address: str) -> None:
    """Refuse to start on a port that another program listens on.

    TensorFlow listens on all interfaces, whatever host its address names, so that is what is
    tried, with SO_REUSEADDR as gRPC sets it: connections in TIME_WAIT are no obstacle.

    Args:
        address: this worker's own "host:port".

    Raises:
        ValueError: if the port cannot be opened.
    """
    _, port = split_address(address)
    try:
        _listen_everywhere(port)
    except OSError as error:
        reason = "a port in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise ValueError(
            "A worker must be able to listen on the port of its own address. "
            f"Received: {address!r}: {reason}. End the program that listens there "
            f"(`ss -ltnp 'sport = :{port}'` names it), or choose another port."
        ) from error


def _listen_everywhere(port: int) -> None:
    """Open `port` on all interfaces as gRPC does, over IPv6 where the machine has it."""
    dual_stack = socket.has_dualstack_ipv6()
    with socket.socket(socket.AF_INET6 if dual_stack else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual_stack:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::" if dual_stack else "0.0.0.0", port))
        server.listen()


def connect(address: str, timeout_seconds: float) -> tuple[str, socket.socket | None]:
    """Connect to whatever listens at `address`.

    Args:
        address: "host:port".
        timeout_seconds: how long to wait for an answer; resolving the name comes on top.

    Returns:
        "up" and the connection; or without one "refused" (the host answers, nothing listens),
        "silent" (no answer: off, frozen, no route, or a firewall) or "unresolvable" (no such
        name, or no answer from the name server).
    """
    host, port = split_address(address)
    try:
        found = socket.create_connection((host, port), timeout=timeout_seconds)
    except (socket.gaierror, UnicodeError):
        return "unresolvable", None
    except ConnectionRefusedError:
        return "refused", None
    except OSError:
        return "silent", None
    if found.getsockname() == found.getpeername():
        # Nobody listens: the kernel gave that very port to this end, and TCP let them meet.
        found.close()
        return "refused", None
    return "up", found


def probe(address: str, timeout_seconds: float) -> str:
    """Ask whether something listens at `address`, without saying a word to it.

    Args:
        address: "host:port".
        timeout_seconds: as for `connect`.

    Returns:
        "up", "refused", "silent" or "unresolvable", as `connect`.
    """
    answer, connection = connect(address, timeout_seconds)
    if connection is not None:
        connection.close()
    return answer


def resolve(address: str) -> tuple[str, ...]:
    """Return the IP addresses of the host of "host:port", each once; none if there is no such."""
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_local(ip: str) -> bool:
    """Return whether an IP address is one of this machine: whether it can be listened on."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family) as one:
            one.bind((ip, 0))
        return True
    except OSError:
        return False


def source_towards(address: str) -> str:
    """Return this machine's IP address on the way to `address`; "" if there is no way.

    Nothing is sent.
    """
    for ip in resolve(address):
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as one:
            one.connect((ip, split_address(address)[1]))
            return str(one.getsockname()[0])
    return ""
