"""What must be the same on all workers when they train together, or the run is refused.

Each check is a collective where there are several workers: all of them come here.
"""

import numpy as np

from tfscale.training import callbacks as callbacks_lib


def check_limits(loop, run):
    """Refuse a `fit` that is to go on for longer on one worker than on another.

    Args:
        loop: the `Loop`.
        run: the `FitRun`.

    Raises:
        ValueError: if it is.
    """
    if loop.shard.num_workers == 1:
        return
    limits = {
        "epochs": run.epochs,
        "initial_epoch": run.first_epoch,
        "steps an epoch": run.steps_per_epoch or 0,
        "examples a global batch": run.data.global_batch_size or 0,
    }
    differ = loop.differing(*limits.values())
    for (name, value), differs in zip(limits.items(), differ, strict=True):
        if differs:
            raise ValueError(
                f"All workers must call fit alike. Received: {name} of {value} on worker "
                f"{loop.shard.worker}, and other numbers on others. Give all the same."
            )


def check_rate(loop):
    """Refuse to go on where the steps of an epoch had another learning rate on one worker.

    Args:
        loop: the `Loop`.

    Raises:
        ValueError: if they had.
    """
    rate = loop.progress.learning_rate
    if loop.differing(int(np.float32(rate).view(np.uint32)))[0]:
        raise ValueError(
            "All workers must train with the same learning rate. Received: "
            f"{rate:g} on worker {loop.shard.worker} in epoch {loop.progress.epoch + 1}, and "
            "another on others. A callback that sets it must do so on every worker."
        )


def backup_of_all(loop, run):
    """Return where Keras' BackupAndRestore has put the model; None where it has not.

    Args:
        loop: the `Loop`.
        run: the `FitRun`, whose callbacks have been told that training begins.

    Returns:
        The epoch, and the steps taken in it.

    Raises:
        ValueError: if that is another place on one worker than on others.
    """
    restored = callbacks_lib.restored_position(run.callbacks.callbacks)
    if loop.shard.num_workers > 1:
        epoch, position = restored or (-1, 0)
        if any(loop.differing(epoch + 1, position)):
            raise ValueError(
                "BackupAndRestore must find the same backup on every worker. Received: "
                f"{restored or 'none'} on worker {loop.shard.worker}, and another on others. "
                "Use one `backup_dir` that all workers see, or remove what is left there."
            )
    return restored
