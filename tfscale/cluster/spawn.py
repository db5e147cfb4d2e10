"""The first thing that runs in a local worker: tie it to its launcher, then become the command.

Run by path, `python -I -S spawn.py LAUNCHER_PID NAMESPACE COMMAND...`, so that nothing has to
happen between fork and exec in a launcher that may have threads. With the command `hold` it
opens a network of its own that has loopback and nothing else, and keeps it until stdin closes;
NAMESPACE is the process whose network a worker shares, or 0. With `guard` it ends, when the
launcher is gone, what workers have started. Linux only; elsewhere it execs and guards.
"""

import ctypes
import fcntl
import math
import os
import select
import signal
import socket
import struct
import sys
import time

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def _main(launcher: int, namespace: int, command: list[str]) -> None:
    """Prepare this process and replace it by `command`."""
    if command == ["guard"]:
        _guard()
        return
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        _call(libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != launcher:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)
        if command == ["hold"]:
            _hold_network(libc)
            return
        if namespace:
            _join_network(libc, namespace)
    os.execvp(command[0], command)


def _hold_network(libc) -> None:
    """Enter a new network, say so on stdout, and stay until stdin is closed."""
    uid, gid = os.getuid(), os.getgid()
    try:
        _call(libc.unshare, _CLONE_NEWNET)
    except PermissionError:
        # Without privileges a user namespace is needed around it; ids stay what they are.
        _call(libc.unshare, _CLONE_NEWUSER | _CLONE_NEWNET)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
    print("ready", flush=True)
    sys.stdin.read()


def _guard() -> None:
    """Keep a list of process groups, `+ID` and `-ID` on stdin, and kill them when stdin closes.

    Also at a moment that `=SECONDS` names, on the clock of `time.monotonic`, unless a later one
    is named before it comes; then whatever is added while it is past.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    until, said = math.inf, b""
    while True:
        left = None if until == math.inf or not groups else max(until - time.monotonic(), 0.0)
        if select.select([0], [], [], left)[0]:
            data = os.read(0, 65_536)
            if not data:
                break
            *lines, said = (said + data).split(b"\n")
            for line in lines:
                if line.startswith(b"="):
                    until = float(line[1:])
                else:
                    (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
        elif left is not None:
            _kill_groups(groups)
            groups.clear()
    _kill_groups(groups)


def _kill_groups(groups: set[int]) -> None:
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            continue  # it has ended by itself


def _join_network(libc, namespace: int) -> None:
    """Enter the network of the process `namespace`, through its user namespace if it has one."""
    kinds = [(_CLONE_NEWUSER, "user"), (_CLONE_NEWNET, "net")]
    if os.readlink(f"/proc/{namespace}/ns/user") == os.readlink("/proc/self/ns/user"):
        kinds = kinds[1:]
    handles = [(os.open(f"/proc/{namespace}/ns/{name}", os.O_RDONLY), kind) for kind, name in kinds]
    for handle, kind in handles:
        _call(libc.setns, handle, kind)
        os.close(handle)
    # Changing credentials clears the death signal.
    _call(libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL)


def _call(function, *arguments: int) -> None:
    """Call a C function that returns -1 and sets errno on failure."""
    if function(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
