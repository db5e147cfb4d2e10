"""What a task finds out about itself, its peers and the run's folder, for checks before a job.

Answers are plain values that fit into JSON; whether they are good is judged in `findings`.
Nothing here imports TensorFlow, and what is written for a trial is removed again.
"""

import concurrent.futures
import contextlib
import importlib.metadata
import os
import platform
import re
import secrets
import shutil
import socket
import time
from pathlib import Path

from tfscale.cluster import meeting, ports
from tfscale.cluster.meeting import Answer, Party

PACKAGES = ("tensorflow", "keras", "numpy")
_TOKEN = re.compile(r"\.tfscale-doctor-[0-9a-f]{16}")
_SEEN_SECONDS = 3.0  # a network file system may show a new file that much later
_POLL_SECONDS = 0.1
_MOST_PROBES = 32


def versions() -> dict[str, str]:
    """Return the versions of Python, of what tfscale builds on, and of tfscale itself."""
    from tfscale import __version__

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "tfscale": __version__}


def num_gpu_devices() -> int:
    """Return how many NVIDIA GPUs this machine shows; they may be hidden from TensorFlow."""
    return sum(1 for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())


def port_problem(party: Party) -> str:
    """Return why this task cannot listen at its port, or ""; call it before it does."""
    if not party.addresses:
        return ""
    try:
        ports.check_port_free(party.addresses[party.own])
    except ValueError as error:
        return str(error)
    return ""


def own_address(party: Party, nonce: str) -> Answer:
    """Find out whether a task's address in the cluster leads to it.

    Args:
        party: who meets.
        nonce: of the post of this task, which must be open.

    Returns:
        "resolved", a list of IP addresses; "local", whether one of them is of this machine;
        "leads_here", whether a connection to the address ends here.
    """
    address = party.addresses[party.own]
    resolved = ports.resolve(address)
    _, greeting = meeting.greet(address) if resolved else ("", {})
    return {
        "resolved": list(resolved),
        "local": any(ports.is_local(ip) for ip in resolved),
        "leads_here": greeting.get("nonce") == nonce,
    }


def reach(party: Party) -> dict[str, str]:
    """Connect to all other tasks at once.

    Returns:
        By their numbers: "up", "refused", "silent", "unresolvable", "stranger" for something
        that is no task of this check, or "other" for a task with another number or cluster.
    """

    def knock(number: int) -> tuple[str, str]:
        answer, greeting = meeting.greet(party.addresses[number])
        expected = {"number": number, "cluster": party.digest()}
        is_it = all(greeting.get(name) == value for name, value in expected.items())
        return str(number), answer if answer != "up" or is_it else "other"

    with concurrent.futures.ThreadPoolExecutor(_MOST_PROBES) as pool:
        return dict(pool.map(knock, party.others))


class Folder:
    """The run's folder, made for the time of the checks where it is not there. For the chief.

    Args:
        path: the folder.

    Attributes:
        problem: why it cannot be made, or "".
    """

    def __init__(self, path: Path):
        self.path = path.absolute()
        self.problem = ""
        self._made: list[Path] = []

    def __enter__(self) -> "Folder":
        missing = [path for path in (self.path, *self.path.parents) if not os.path.lexists(path)]
        try:
            for path in reversed(missing):
                path.mkdir()
                self._made.append(path)
            if not self.path.is_dir():
                self.problem = "it is not a folder"
        except OSError as error:
            self.problem = (error.strerror or str(error)).lower()
        return self

    def __exit__(self, *error) -> None:
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # a run may have begun in it meanwhile
                path.rmdir()

    @contextlib.contextmanager
    def token(self):
        """Leave a file with a random name and content for a moment; yields both.

        Yields:
            Name and content; two times "" where it cannot be written.
        """
        name, content = f".tfscale-doctor-{secrets.token_hex(8)}", secrets.token_hex(16)
        try:
            _write(self.path / name, content)
        except OSError:
            yield "", ""
            return
        try:
            yield name, content
        finally:
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def free_bytes(self) -> int:
        """Return how much this process may still write there."""
        return shutil.disk_usage(self.path).free


def seen_content(path: Path, name: str) -> str:
    """Return what is in the chief's file, as this task sees it; "" where it does not.

    Args:
        path: the run's folder as this task knows it.
        name: of the file; anything but the name of such a file is not looked at.
    """
    if not _TOKEN.fullmatch(name):
        return ""
    deadline = time.monotonic() + _SEEN_SECONDS
    while True:
        with contextlib.suppress(OSError), open(path / name) as file:
            return file.read(100)
        if time.monotonic() > deadline:
            return ""
        time.sleep(_POLL_SECONDS)


def write_problem(path: Path) -> str:
    """Write, sync, rename and remove a small file in a folder; return what went wrong, or ""."""
    name = f".tfscale-doctor-{secrets.token_hex(8)}"
    before, after = path / f"{name}.writing", path / name
    try:
        _write(before, "a trial of tfscale.doctor")
        os.rename(before, after)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        after.unlink()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    finally:
        for one in (before, after):
            with contextlib.suppress(OSError):
                one.unlink()
    return ""


def host() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


def _write(path: Path, text: str) -> None:
    with open(path, "x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
