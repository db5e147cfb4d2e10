"""Who leads a search on several machines, who joins it, and at which address.

Read from `--search_chief`, from keras-tuner's own variables, or from Slurm's; decided before a
search begins, without a word to anybody.
"""

import contextlib
import dataclasses
import functools
import os
import socket

from tfscale.cluster import ports, slurm

ROLES = ("auto", "chief", "worker")
LONGEST_LEASE = 86_400  # seconds
_ID, _IP, _PORT = "KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
_ANY = ("0.0.0.0", "::")
_kept = {}  # address -> the socket that made this process the chief


@dataclasses.dataclass(frozen=True)
class Role:
    """What this process is in a search.

    Args:
        kind: "alone", "chief" or "worker".
        address: "host:port" of the chief; "" for a search on one machine.
        name: what this process is called.
        only_leads: whether a chief runs no trials itself.
        job: the number of a Slurm job, the same for all; "" elsewhere.
    """

    kind: str = "alone"
    address: str = ""
    name: str = ""
    only_leads: bool = False
    job: str = ""


def resolve(search_chief="", search_role="auto", environ=os.environ):
    """Return the `Role` of this process.

    `search_chief` comes first, then keras-tuner's variables, then those of a Slurm step of
    several tasks. The answer for an address stays what it was first, as long as the process lives.

    Args:
        search_chief: "host:port" of the chief; "" if the environment says it.
        search_role: one of `ROLES`. With "auto" the process that can listen there is the chief.
        environ: environment variables.

    Raises:
        ValueError: if what was given is incomplete or contradicts itself.
    """
    if search_role not in ROLES:
        raise ValueError(
            f"The role in a search must be one of {', '.join(ROLES)}. Received: {search_role!r}."
        )
    name = environ.get(_ID, "") or socket.gethostname()
    if search_chief:
        host = ports.split_address(search_chief)[0]
        if search_role == "auto":
            if host in _ANY:
                raise ValueError(
                    "An address on all interfaces is that of every machine. Received: "
                    f"{search_chief}. Say on each which it is, --search_role=chief or worker, "
                    "and give workers the chief's own address."
                )
            search_role = _role_at(search_chief)
        return Role(search_role, search_chief, name)
    if search_role != "auto":
        raise ValueError(
            "A role in a search belongs to the chief's address. Received: "
            f"{search_role!r} without one. Add --search_chief=HOST:PORT."
        )
    return _of_keras_tuner(environ) or _of_slurm(environ, name) or Role(name=name)


def listening(role):
    """Open the chief's address, and nothing else.

    Args:
        role: a `Role` with an address.

    Returns:
        A socket that listens.

    Raises:
        ValueError: if the address is not of this machine, or in use.
    """
    if role.address in _kept:
        return _kept.pop(role.address)
    reason = "no such name here"
    for ip in _own_places(role):
        server = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((ip, ports.split_address(role.address)[1]))
            server.listen()
            return server
        except OSError as error:
            server.close()
            reason = (error.strerror or str(error)).lower()
    raise ValueError(
        "The chief of a search must be able to listen at its address. Received: "
        f"{role.address} ({reason}). Use another port, or an address of this machine."
    )


def _own_places(role):
    """Return the IP addresses to try, in order.

    Where a node's name stands for loopback on the node itself, as /etc/hosts often has it, the
    others look for it elsewhere: at the address from which it reaches them.
    """
    found = list(ports.resolve(role.address))
    inside = [ip for ip in found if ip.startswith("127.") or ip == "::1"]
    if role.job and found and inside == found:
        tasks = slurm.step_tasks(os.environ)
        port = ports.split_address(role.address)[1]
        for address in tasks.addresses if tasks else ():
            host = ports.split_address(address)[0]
            if host != ports.split_address(role.address)[0]:
                source = ports.source_towards(f"{host}:{port}")
                return [source, *found] if source else found
    return found


@functools.cache
def _role_at(address):
    """Return "chief" where this process can listen at an address, "worker" elsewhere.

    What listens is kept for `listening`: of two that are started at once, one is the chief. A host
    without an address here is another one, which may get it later, as a container does.
    """
    with contextlib.suppress(ValueError):
        _kept[address] = listening(Role("chief", address))
        return "chief"
    return "worker"


def _of_keras_tuner(environ):
    """Return the role that keras-tuner's variables give, or None."""
    given = [name for name in (_ID, _IP, _PORT) if environ.get(name)]
    if not given or given == [_ID]:  # as in keras-tuner, an id alone is only a name
        return None
    if len(given) < 3:
        raise ValueError(
            f"keras-tuner's {_ID}, {_IP} and {_PORT} belong together. Received: "
            f"{' and '.join(given)} alone. Set all three, or use the chief's address "
            "(--search_chief) instead."
        )
    host, name = environ[_IP], environ[_ID]
    host = f"[{host}]" if ":" in host else host
    address = f"{host}:{environ[_PORT]}"
    ports.split_address(address)
    is_chief = "chief" in name
    return Role("chief" if is_chief else "worker", address, name, only_leads=is_chief)


def _of_slurm(environ, name):
    """Return the role of a task of a Slurm step of several tasks, or None."""
    if environ.get("TF_CONFIG"):
        return None
    tasks = slurm.step_tasks(environ)
    if tasks is None:
        return None
    job = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID", "")
    return Role("worker" if tasks.rank else "chief", tasks.addresses[0], name, job=job)
