"""After which steps numbers of training are recorded: the same on all workers, and never too many.

Pure functions of steps, so that a later life and another worker record at the same ones.
"""

_RECORDS = 20  # an epoch; or, where its length is unknown, each time that the steps have doubled


def every_steps(steps_per_epoch):
    """Return the steps between two records, 0 for ever more; about 20 records an epoch.

    Args:
        steps_per_epoch: None where it is found out while running.
    """
    return max(1, steps_per_epoch // _RECORDS) if steps_per_epoch else 0


def is_passed(before, step, every):
    """Say whether a record is due after some steps.

    Args:
        before: the step of the last record, or of the last look.
        step: the one that was reached.
        every: steps between two records, whose multiples are recorded; 0 for ever more: one at
            first, two from 40 on, four from 80 on.
    """
    every = every or 1 << max((before // _RECORDS).bit_length() - 1, 0)
    return step // every > before // every
