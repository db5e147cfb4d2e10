"""The evaluator task of a cluster: scores each new checkpoint while the workers train on.

It holds no gradients and joins no collective. It reads whole checkpoints only, and ends when the
run has its summary and all checkpoints that are still there are scored.
"""

import time

from absl import logging

from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import state

_WAIT_SECONDS = 1.0


def score_checkpoints(trainer, data, checkpoints, is_finished, report, wait=time.sleep):
    """Score every checkpoint once, in order, until the run is finished.

    Args:
        trainer: a `Trainer` on one device with the run's model.
        data: what to score on, as for `Trainer.evaluate`.
        checkpoints: the run's `checkpoint.Checkpoints`.
        is_finished: a function that says whether no more checkpoints will come.
        report: a function `(step, scores)`, called after each.
        wait: a function of seconds, called when there is nothing to do.

    Returns:
        A dict from step to scores.
    """
    scores = {}
    while True:
        last_look = is_finished()
        for step in checkpoints.steps():
            if step in scores:
                continue
            try:
                saved = checkpoint_lib.read(checkpoints.path(step))
            except ValueError as error:
                logging.warning("Not scored, and perhaps removed meanwhile: %s", error)
                continue
            state.restore_weights(trainer.model, saved.arrays, saved.path)
            scores[step] = trainer.evaluate(data)
            report(step, scores[step])
        if last_look:
            return scores
        wait(_WAIT_SECONDS)
