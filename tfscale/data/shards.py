"""Which part of a global batch belongs to which replica: arithmetic alone, no TensorFlow.

Owns shares and their positions. All workers cut the same global batch, so what they train on
together depends neither on the policy nor on how many they are. `order.py` has the same
arithmetic for use inside a graph.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

POLICIES = ("interleaved", "block", "random")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of every global batch one worker trains on.

    Args:
        worker: this worker, 0 <= worker < num_workers.
        num_workers: workers that share every global batch.
        replicas_per_worker: replicas on each worker, the same number everywhere.

    Raises:
        ValueError: if `worker` is not below `num_workers`, or a count is below 1.
    """

    worker: int = 0
    num_workers: int = 1
    replicas_per_worker: int = 1

    def __post_init__(self):
        if self.num_workers < 1 or self.replicas_per_worker < 1:
            raise ValueError(
                "`num_workers` and `replicas_per_worker` must be at least 1. Received: "
                f"num_workers={self.num_workers}, replicas_per_worker={self.replicas_per_worker}. "
                "Use 1 for a run on one device."
            )
        if not 0 <= self.worker < self.num_workers:
            raise ValueError(
                "`worker` must be at least 0 and below `num_workers`. Received: "
                f"worker={self.worker} of num_workers={self.num_workers}. "
                f"Use 0 to {self.num_workers - 1}."
            )

    @property
    def num_replicas(self) -> int:
        """Replicas over all workers."""
        return self.num_workers * self.replicas_per_worker

    @property
    def replicas(self) -> range:
        """This worker's replicas, by their index among all replicas."""
        first = self.worker * self.replicas_per_worker
        return range(first, first + self.replicas_per_worker)


def share_size(num_examples: int, index: int, count: int) -> int:
    """Return how many of `num_examples` belong to share `index` of `count`.

    Shares differ by at most one example; the first ones are the larger ones. A worker's share
    splits among its own replicas by the same rule, with the same result as a cut among all.

    Args:
        num_examples: examples to divide, 0 or more.
        index: which share, 0 <= index < count.
        count: number of shares.

    Returns:
        The size of the share, 0 where a short batch leaves nothing for it.

    Raises:
        ValueError: if `index` is not below `count`.
    """
    if not 0 <= index < count:
        raise ValueError(
            f"`index` must be at least 0 and below `count`. Received: index={index}, "
            f"count={count}. Number the shares from 0."
        )
    return num_examples // count + (index < num_examples % count)


def share_positions(
    num_examples: int,
    index: int,
    count: int,
    policy: str = "interleaved",
    key: Sequence[int] | None = None,
) -> Sequence[int] | np.ndarray:
    """Return the positions in one global batch that belong to one share.

    Args:
        num_examples: examples in this global batch; the last one of an epoch may be short.
        index: which share, 0 <= index < count.
        count: number of shares.
        policy: "interleaved" deals the examples out in turn, "block" cuts the batch into
            consecutive pieces, "random" shuffles the positions by `key` and cuts them then.
        key: whole numbers that name the batch, such as (seed, epoch, step); "random" needs it.

    Returns:
        A sequence of `share_size(num_examples, index, count)` positions: a `range`, or a NumPy
        array for "random". The shares are disjoint and cover the batch.

    Raises:
        ValueError: if `index` is not below `count`, or `policy` is unknown or lacks its key.
    """
    size = share_size(num_examples, index, count)
    if policy == "interleaved":
        return range(index, num_examples, count)
    first = index * (num_examples // count) + min(index, num_examples % count)
    if policy == "block":
        return range(first, first + size)
    if policy == "random" and key is not None:
        return np.argsort(_hashes(num_examples, key), kind="stable")[first : first + size]
    raise ValueError(
        f"`policy` must be one of {', '.join(POLICIES)}, and 'random' needs a `key`. "
        f"Received: policy={policy!r}, key={key!r}. Use 'interleaved', or give (seed, epoch, step)."
    )


def worker_positions(
    num_examples: int, shard: Shard, policy: str, key: Sequence[int] | None = None
) -> np.ndarray:
    """Return a worker's positions in one global batch, those of its first replica first.

    A batch smaller than the number of replicas, which only the end of an epoch brings, is given
    to every replica in whole: what replicas compute together is then the same as if each had a
    share, and no replica has to work on a batch of no examples, where kernels fail.
    """
    if num_examples < shard.num_replicas:
        return np.tile(np.arange(num_examples, dtype=np.int64), shard.replicas_per_worker)
    shares = [
        np.asarray(share_positions(num_examples, r, shard.num_replicas, policy, key), np.int64)
        for r in shard.replicas
    ]
    return np.concatenate(shares)


def mix(value):
    """Scramble 32-bit numbers, one to one (C. Wellons' "lowbias32" constants, 2018).

    Args:
        value: array of uint32.

    Returns:
        An array of uint32 of the same shape; different inputs give different outputs.
    """
    value = value ^ (value >> np.uint32(16))
    value = value * np.uint32(0x7FEB352D)
    value = value ^ (value >> np.uint32(15))
    value = value * np.uint32(0x846CA68B)
    return value ^ (value >> np.uint32(16))


def _hashes(num_examples, key):
    """One number a position, all different: sorting by them is a random order."""
    state = np.zeros(1, np.uint32)
    for part in key:
        state = mix(state ^ np.uint32(int(part) & 0xFFFFFFFF))
    return mix(state ^ np.arange(num_examples, dtype=np.uint32))
