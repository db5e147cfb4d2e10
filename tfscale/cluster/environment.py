"""Who this process is and who the other workers are, read from the environment.

`TF_CONFIG` comes first, then TFSCALE_HOSTS, then the variables that Slurm gives to the tasks of a
job step, then nothing: a process alone. All that is wrong with them is refused here, before work
starts. Lists of hosts are read in `hosts`, Slurm's in `slurm`; nothing is contacted.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from tfscale.cluster import hosts, ports, slurm

_TASK_TYPES = ("chief", "worker", "evaluator")
_EXAMPLE = (
    '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run and this task's place among them.

    Args:
        workers: "host:port" of every worker in rank order; the chief is rank 0. Empty where
            there is no cluster.
        rank: this task's rank among the workers; -1 for an evaluator.
        task_type: "worker", "chief" or "evaluator".
        source: where this was read: "tf_config", "hosts", "slurm" or "none".
        evaluators: addresses of the evaluator, if the cluster names one.
        given: the `TF_CONFIG` that was read, or "" where there was none.
    """

    workers: tuple[str, ...]
    rank: int
    task_type: str
    source: str
    evaluators: tuple[str, ...] = ()
    given: str = dataclasses.field(default="", repr=False)

    @property
    def num_workers(self) -> int:
        """Workers that train; a process without a cluster is one."""
        return max(1, len(self.workers))

    @property
    def is_chief(self) -> bool:
        """Whether this task writes what must exist once."""
        return self.rank == 0

    @property
    def is_evaluator(self) -> bool:
        """Whether this task evaluates beside the workers and does not train."""
        return self.task_type == "evaluator"

    @property
    def has_evaluator(self) -> bool:
        """Whether a task of this cluster evaluates beside the workers."""
        return bool(self.evaluators) or self.is_evaluator

    def tf_config(self) -> str:
        """Return the JSON that TensorFlow reads from `TF_CONFIG`: as given, or made here.

        Returns:
            The text of `TF_CONFIG`; "{}", which TensorFlow takes for no cluster, for a process
            alone.
        """
        if self.given:
            return self.given
        if not self.workers:
            return "{}"
        task = {"type": "worker", "index": self.rank}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})


def resolve(environ: Mapping[str, str] = os.environ) -> Cluster:
    """Return the cluster that the environment describes.

    Args:
        environ: environment variables; `TF_CONFIG` has precedence over TFSCALE_HOSTS, and that
            over Slurm's.

    Returns:
        A `Cluster`; without workers where nothing describes one.

    Raises:
        ValueError: if the description is damaged or contradicts itself.
    """
    text = environ.get("TF_CONFIG", "").strip()
    if text:
        return _from_tf_config(text)
    listed = hosts.tasks(environ)
    if listed is not None:
        _check_addresses(listed.addresses, hosts.VARIABLE)
        return Cluster(listed.addresses, listed.rank, "worker", "hosts")
    tasks = slurm.step_tasks(environ)
    if tasks is not None:
        _check_addresses(tasks.addresses, "Slurm's variables")
        return Cluster(tasks.addresses, tasks.rank, "worker", "slurm")
    return Cluster((), 0, "worker", "none")


def _from_tf_config(text: str) -> Cluster:
    """Parse and check one `TF_CONFIG`."""
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"TF_CONFIG must be JSON. Received: {text!r} ({error}). Write it as {_EXAMPLE}."
        ) from error
    jobs = _jobs(config, text)
    task_type, index = _task(config, text)
    workers = jobs.get("chief", ()) + jobs.get("worker", ())
    evaluators = jobs.get("evaluator", ())
    if not workers:
        raise ValueError(
            "TF_CONFIG must name at least one worker or a chief. "
            f"Received: cluster={config['cluster']!r}. Write it as {_EXAMPLE}."
        )
    _check_addresses(workers + evaluators, "TF_CONFIG")
    # TensorFlow allows an evaluator that the cluster does not list.
    unlisted = task_type == "evaluator" and not evaluators and index == 0
    if not unlisted and index >= len(jobs.get(task_type, ())):
        listed = {job: len(addresses) for job, addresses in jobs.items()}
        raise ValueError(
            "TF_CONFIG's task must be one of its cluster. Received: task "
            f"{task_type!r} with index {index} in a cluster of {listed}. "
            "Indices begin at 0 in each job; correct `task` or add its address to `cluster`."
        )
    if task_type == "evaluator":
        rank = -1
    else:
        rank = index if task_type == "chief" else index + len(jobs.get("chief", ()))
    return Cluster(workers, rank, task_type, "tf_config", evaluators, given=text)


def _jobs(config: Any, text: str) -> dict[str, tuple[str, ...]]:
    """Return the addresses of every job of `cluster`."""
    cluster = config.get("cluster") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not cluster:
        raise ValueError(
            f"TF_CONFIG must have a `cluster`. Received: {text!r}. Write it as {_EXAMPLE}, "
            "or unset TF_CONFIG to train in one process."
        )
    for job, addresses in cluster.items():
        _check_task_type(job)
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise ValueError(
                f"TF_CONFIG must give the addresses of {job!r} as a list of strings. "
                f"Received: {addresses!r}. Write it as {_EXAMPLE}."
            )
        if job != "worker" and len(addresses) > 1:
            raise ValueError(
                f"TF_CONFIG may name one {job} only. Received: {addresses!r}. "
                "List the others under `worker`."
            )
    return {job: tuple(addresses) for job, addresses in cluster.items()}


def _task(config: dict[str, Any], text: str) -> tuple[str, int]:
    """Return the type and the index of `task`."""
    task = config.get("task")
    if not isinstance(task, dict) or "type" not in task or "index" not in task:
        raise ValueError(
            "TF_CONFIG must have a `task` with `type` and `index`. "
            f"Received: {text!r}. Write it as {_EXAMPLE}."
        )
    _check_task_type(task["type"])
    # Some schedulers quote the index.
    if isinstance(task["index"], bool) or not str(task["index"]).isdecimal():
        raise ValueError(
            "TF_CONFIG's task index must be a number from 0 on. "
            f"Received: index={task['index']!r}. Write it as {_EXAMPLE}."
        )
    return task["type"], int(task["index"])


def _check_task_type(task_type: Any) -> None:
    """Refuse every task type that does not take part in synchronous training."""
    if task_type == "ps":
        raise ValueError(
            "tfscale trains synchronously and has no parameter servers. Received: task type 'ps' "
            "in TF_CONFIG. Remove the `ps` job and list its machines under `worker`."
        )
    if task_type not in _TASK_TYPES:
        raise ValueError(
            f"TF_CONFIG's task types are {', '.join(_TASK_TYPES)}. Received: {task_type!r}. "
            "Rename it: the task of rank 0 is `chief` or the first `worker`."
        )


def _check_addresses(addresses: tuple[str, ...], origin: str) -> None:
    """Refuse addresses that are malformed or appear twice."""
    for address in addresses:
        ports.split_address(address)
    repeated = sorted({address for address in addresses if addresses.count(address) > 1})
    if repeated:
        raise ValueError(
            f"{origin} must give every task its own address. Received: {', '.join(repeated)} more "
            "than once. Use another port for each task of a host."
        )
