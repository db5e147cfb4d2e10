"""The tasks of a Slurm job step, read from the variables that `srun` sets.

Ranks follow the node list as Slurm wrote it, never its names sorted as text, so that they agree
with SLURM_PROCID for ten nodes and more. The batch script itself is no step: a program started
there without `srun` runs alone.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping

_FIRST_PORT, _NUM_PORTS = 20_000, 12_000  # below the ports that Linux hands out by itself
# Numbers of the "steps" that are the shell of `salloc` and the batch script (slurm.h).
_NO_STEPS = ("4294967290", "4294967291")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclasses.dataclass(frozen=True)
class StepTasks:
    """Addresses of the tasks of one step in rank order, and the rank of this one."""

    addresses: tuple[str, ...]
    rank: int


def step_tasks(environ: Mapping[str, str]) -> StepTasks | None:
    """Return the tasks of the job step that this process belongs to.

    Args:
        environ: environment variables as `srun` sets them; `TFSCALE_PORT` is the port of the
            first task of each node instead of one derived from the job's number.

    Returns:
        The tasks, or `None` outside of a step and for a step of one task.

    Raises:
        ValueError: if the variables cannot be read or contradict each other.
    """
    if not _in_step(environ) or "SLURM_PROCID" not in environ:
        return None
    num_tasks = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    if num_tasks == 1:
        return None
    nodes = expand_nodes(_text(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    counts = expand_counts(_text(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    if len(counts) != len(nodes) or sum(counts) != num_tasks:
        raise ValueError(
            "Slurm's variables must describe one step: as many task counts as nodes, and their sum "
            f"the number of tasks. Received: nodes {nodes}, tasks a node {counts}, {num_tasks} "
            "tasks. Start the workers with `srun`, or describe them in TF_CONFIG."
        )
    first_port = _first_port(environ, max(counts))
    places = [(node, local) for node, count in enumerate(counts) for local in range(count)]
    rank = _number(environ, "SLURM_PROCID")
    _check_place(environ, places, rank)
    addresses = tuple(f"{nodes[node]}:{first_port + local}" for node, local in places)
    return StepTasks(addresses, rank)


def without_srun(environ: Mapping[str, str]) -> str:
    """Say that a process runs beside the tasks of a Slurm job, and not as one of them.

    So it is in the shell of `salloc`, and in a batch script that has no `srun` in front of it.

    Args:
        environ: environment variables.

    Returns:
        Words such as "in a Slurm job of 4 tasks, without srun"; "" for a task of a step, in a job
        of one task, and outside of Slurm.
    """
    if _in_step(environ) or not ("SLURM_JOB_ID" in environ or "SLURM_JOBID" in environ):
        return ""
    for name, things in (("SLURM_NTASKS", "tasks"), ("SLURM_JOB_NUM_NODES", "nodes")):
        number = environ.get(name, "")
        if number.isdecimal() and int(number) > 1:
            return f"in a Slurm job of {number} {things}, without srun"
    return ""


def warn_without_srun(environ: Mapping[str, str]) -> None:
    """Warn where `without_srun` has something to say, since the job's tasks stay unused."""
    place = without_srun(environ)
    if place:
        print(
            f"warning: {place}, this process trains alone. Put `srun` in front of the command to "
            "train with all of them.",
            file=sys.stderr,
            flush=True,
        )


def expand_nodes(text: str) -> list[str]:
    """Return the node names of a node list such as `n[01-03,7],gpu2`, in its order.

    Args:
        text: names separated by commas, each with any number of bracket expressions.

    Returns:
        The names; leading zeros are kept.

    Raises:
        ValueError: if a bracket or a range cannot be read.
    """
    names = []
    for item in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+|[\[\]]", text):
        names.extend(_expand_brackets(item, text))
    if not names:
        raise _unreadable(text)
    return names


def expand_counts(text: str) -> list[int]:
    """Return the tasks of each node from a text such as `2(x3),1`, that is 2, 2, 2, 1.

    Args:
        text: counts separated by commas, a repeated one followed by `(xN)`.

    Returns:
        One count a node.

    Raises:
        ValueError: if the text cannot be read.
    """
    counts = []
    for item in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item.strip())
        if match is None:
            raise ValueError(
                "Slurm's tasks per node must read like '2(x3),1'. "
                f"Received: {text!r}. Start the workers with `srun`, or set TF_CONFIG."
            )
        counts.extend([int(match[1])] * int(match[2] or 1))
    return counts


def _in_step(environ: Mapping[str, str]) -> bool:
    """Say whether `srun` has started this process as a task."""
    if environ.get("SLURM_STEP_ID") in _NO_STEPS:
        return False
    return "SLURM_STEP_NODELIST" in environ or "SLURM_STEP_NUM_TASKS" in environ


def _expand_brackets(item: str, text: str) -> list[str]:
    """Expand the first bracket expression of one name, then the others."""
    head, bracket, rest = item.partition("[")
    if not bracket:
        if "]" in item:
            raise _unreadable(text)
        return [item.strip()]
    inside, closing, tail = rest.partition("]")
    numbers = []
    for part in inside.split(","):
        match = _RANGE.fullmatch(part.strip())
        if not closing or match is None:
            raise _unreadable(text)
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise _unreadable(text)
        numbers += [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    return [head + number + end for number in numbers for end in _expand_brackets(tail, text)]


def _unreadable(text: str) -> ValueError:
    return ValueError(
        "Slurm's node list must read like 'n[01-03,7],gpu2'. "
        f"Received: {text!r}. Start the workers with `srun`, or set TF_CONFIG."
    )


def _first_port(environ: Mapping[str, str], tasks_a_node: int) -> int:
    """Return the port of the first task of each node, the same on all of them."""
    if "TFSCALE_PORT" in environ:
        port = _number(environ, "TFSCALE_PORT")
        if not 1 <= port <= 65_536 - tasks_a_node:
            raise ValueError(
                "TFSCALE_PORT must leave a port for each task of a node, all between 1 and 65535. "
                f"Received: TFSCALE_PORT={port} with {tasks_a_node} tasks a node. Lower it."
            )
        return port
    job = _number(environ, "SLURM_JOB_ID", "SLURM_JOBID")
    step = int(environ["SLURM_STEP_ID"]) if environ.get("SLURM_STEP_ID", "").isdecimal() else 0
    # Jobs and steps that share a node are neighbours in number: keep them apart.
    return _FIRST_PORT + (job * 67 + step * 16) % (_NUM_PORTS - tasks_a_node)


def _check_place(environ: Mapping[str, str], places: list[tuple[int, int]], rank: int) -> None:
    """Refuse a rank out of range, and tasks that Slurm did not lay out node after node."""
    if rank >= len(places):
        raise ValueError(
            "SLURM_PROCID must be below the number of tasks. "
            f"Received: SLURM_PROCID={rank} with {len(places)} tasks. "
            "Start the workers with `srun`."
        )
    node, local = places[rank]
    for name, expected in (("SLURM_NODEID", node), ("SLURM_LOCALID", local)):
        if name in environ and _number(environ, name) != expected:
            raise ValueError(
                "tfscale counts the tasks of a step node after node (srun --distribution=block). "
                f"Received: {name}={environ[name]} for task {rank}, where {expected} was expected. "
                "Add --distribution=block to srun, or set TF_CONFIG."
            )


def _text(environ: Mapping[str, str], *names: str) -> str:
    """Return the first of these variables that is set."""
    for name in names:
        if environ.get(name, "").strip():
            return environ[name].strip()
    raise ValueError(
        f"A Slurm step must set {' or '.join(names)}. Received: neither is set. "
        "Start the workers with `srun`, or set TF_CONFIG."
    )


def _number(environ: Mapping[str, str], *names: str) -> int:
    """Return the first of these variables that is set, as a number."""
    text = _text(environ, *names)
    if not text.isdecimal():
        raise ValueError(
            f"{' or '.join(names)} must be a whole number. Received: {text!r}. "
            "Correct it, or describe the workers in TF_CONFIG."
        )
    return int(text)
