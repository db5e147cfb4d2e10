"""How the trials of a `Tuner` run: on how many workers, how many at once, stopped and retried when.

Owns these settings, what is refused of them, and the launcher's flags that follow from them.
"""

import dataclasses
import functools
import os

from tfscale.config import STRATEGIES
from tfscale.names import check_known
from tfscale.search import processes, roles, stopping

_LEAST = {
    "workers_per_trial": 1,
    "parallel_trials": 0,
    "max_retries": 0,
    "min_epochs": 1,
    "min_trials": 1,
    "hang_timeout_seconds": 0,
    "lease_seconds": 1,
    "start_timeout_seconds": 1,
}


@dataclasses.dataclass(frozen=True)
class Running:
    """How trials run.

    Args:
        strategy: "multiworker" for several workers a trial; "auto", "onedevice" and "mirrored"
            are one worker with the devices that this machine has.
        workers_per_trial: workers of each trial, on this machine.
        parallel_trials: trials that run at once on this machine, each on its share of the cores;
            0 for a chief that only leads.
        max_retries: how often a trial that has failed is started again, where it may come right.
        early_stopping: "median" stops trials that will not win; "" stops none.
        min_epochs: epochs that early stopping leaves to each trial.
        min_trials: trials that must have come as far before early stopping stops another.
        hang_timeout_seconds: end a trial whose workers make no step for so long; 0 for never.
        deterministic: the same bits in every run, at some cost.
        private_network: workers reach each other and no other machine.
        oversubscribe: allow more workers at once than there are cores.
        search_chief: "HOST:PORT" of the process that leads a search on several machines; "" for
            what keras-tuner's variables or Slurm's say, or this machine alone.
        search_role: "chief", "worker", or "auto": the chief is the process that has the address.
        lease_seconds: how long a joined machine that is not heard keeps its trials.
        start_timeout_seconds: how long a worker looks for the chief.
    """

    strategy: str = "auto"
    workers_per_trial: int = 1
    parallel_trials: int = 1
    max_retries: int = 1
    early_stopping: str = ""
    min_epochs: int = 1
    min_trials: int = 4
    hang_timeout_seconds: int = 600
    deterministic: bool = True
    private_network: bool = True
    oversubscribe: bool = False
    search_chief: str = ""
    search_role: str = "auto"
    lease_seconds: float = 30
    start_timeout_seconds: float = 600

    def check(self, role):
        """Refuse what cannot be.

        Args:
            role: what `role` returned.

        Raises:
            ValueError: naming the setting.
        """
        check_known("strategy", [self.strategy], STRATEGIES)
        check_known("early_stopping", [self.early_stopping], stopping.RULES)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} must be at least {least}. Received: {name}={value}.")
        if self.lease_seconds > roles.LONGEST_LEASE:
            raise ValueError(
                f"lease_seconds must be at most {roles.LONGEST_LEASE}, a day. Received: "
                f"lease_seconds={self.lease_seconds}."
            )
        if self.workers_per_trial > 1 and self.strategy != "multiworker":
            raise ValueError(
                'Several workers a trial need strategy="multiworker". Received: '
                f"workers_per_trial={self.workers_per_trial}, strategy={self.strategy!r}."
            )
        cores = len(os.sched_getaffinity(0))
        num_slots = 0 if role.only_leads else self.parallel_trials
        if self.workers_per_trial * num_slots > cores and not self.oversubscribe:
            raise ValueError(
                "Trials that run at once need a core for each worker. Received: "
                f"workers_per_trial={self.workers_per_trial} and parallel_trials="
                f"{self.parallel_trials} on {cores} cores. Use fewer, or oversubscribe=True."
            )

    def role(self):
        """Return this process's `roles.Role` in the search.

        Raises:
            ValueError: if the chief's address or the environment says nothing that can be.
        """
        role = roles.resolve(self.search_chief, self.search_role)
        if not self.parallel_trials and role.kind != "chief":
            raise ValueError(
                "Only the chief of a search on several machines may run no trials. Received: "
                f"parallel_trials=0 in a search whose role here is {role.kind!r}. Use at least 1."
            )
        return role

    def slots(self, role, num_gpus):
        """Return the `processes.Slot` of the trials that run at once on this machine."""
        return processes.slots(0 if role.only_leads else self.parallel_trials, num_gpus)

    def launch_flags(self, seed):
        """Return the flags of `tfscale.launch` that all trials share.

        Args:
            seed: that of the initial weights and of all that a script draws.
        """
        flags = {
            "workers": self.workers_per_trial,
            "seed": seed,
            "max_restarts": 0,  # the search starts a trial again
            "on_bad_loss": "stop",
            "hang_timeout_seconds": self.hang_timeout_seconds,
            "deterministic": str(self.deterministic).lower(),
            "private_network": str(self.private_network).lower(),
        }
        return [f"--{name}={value}" for name, value in flags.items()]

    def stops_at(self, facts):
        """Return the rule that stops trials early, for `loop.Search`, or None."""
        if not self.early_stopping:
            return None
        return functools.partial(
            stopping.stops_at,
            objective=facts.objective,
            direction=facts.direction,
            min_epochs=self.min_epochs,
            min_trials=self.min_trials,
        )
