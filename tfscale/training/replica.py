"""A replica of many computes as one device does: what Keras does otherwise is replaced inside.

The rule is: write the step as for one device. Each loss is a mean over this replica's share; the
share weighs by its count, and the weighted gradients are summed over all replicas *before*
clipping and the optimizer's update.
"""

import contextlib

from tfscale.training import losses, reduction, seeds
from tfscale.training import share as share_lib

REPLACED = losses.REPLACED + seeds.REPLACED + reduction.REPLACED


def install():
    """Put our functions in place; without an active share they do nothing.

    An optimizer that accumulates on the only replica of a strategy is mended in any case.
    """
    for place, name, _, ours in REPLACED:
        setattr(place, name, ours)


def uninstall():
    """Put back what was there; the next step on replicas takes our functions again."""
    for place, name, own, _ in REPLACED:
        setattr(place, name, own)


@contextlib.contextmanager
def sharing(share):
    """Inside, Keras losses, loss trackers and random seeds are those of one replica of many.

    Entered by the replica's own thread while its step is traced.

    Args:
        share: the `Share` of this replica. The only replica is one device already, and nothing
            changes for it, but that it may accumulate gradients.
    """
    install()
    seeds.find_shared_seed()
    if share.num_replicas == 1:
        yield share
        return
    with share_lib.working_on(share), seeds.seed_of_worker():
        yield share
