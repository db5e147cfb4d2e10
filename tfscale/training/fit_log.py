"""The curves and the story of each numbered call of `fit`: those of a script, or of a `Trainer`.

They lie beside the checkpoints of the call, where `tfscale.watch` and `tfscale.report` find them.
"""

import contextlib

from tfscale import strategy as strategy_lib
from tfscale.monitor import cadence, first_page, run_log
from tfscale.monitor.story import Story, has_ended, read
from tfscale.training import run_state, saver
from tfscale.training.measures import Measures, unseen_times


@contextlib.contextmanager
def kept(run, loop, folder, saved):
    """Inside, a call of `fit` is logged; every worker measures and the chief writes.

    Args:
        run: the `FitRun`, with its callbacks.
        loop: the `Loop` that is going to take it.
        folder: of this call, or None to keep nothing.
        saved: the checkpoint that it goes on from, or None.
    """
    if folder is None:
        yield
        return
    every = cadence.every_steps(run.steps_per_epoch)
    run.measures = run.measures or Measures(every)
    log = None
    if loop.is_chief:
        log = FitLog(folder, loop, run, every, saved.step if saved else 0)
        run.callbacks.callbacks.append(log)
    try:
        yield
    except BaseException as error:
        if log is not None:
            log.ended_by(error)
        raise
    if log is not None:
        log.ended()


class FitLog(run_log.RunLog):
    """Writes `metrics.jsonl` and `events.jsonl` of one call of `fit`; for the chief.

    Args:
        folder: where they go.
        loop: the `Loop`.
        run: the `FitRun`.
        every_steps: as for `RunLog`.
        first_step: the step that this life begins after.
    """

    def __init__(self, folder, loop, run, every_steps, first_step):
        replicas = loop.strategy.num_replicas_in_sync
        sent = loop.reduction.bytes_per_update(loop.model.trainable_variables, replicas)
        super().__init__(None, loop.progress, every_steps, run.measures, None, sent)
        self._folder, self._loop, self._run, self._first_step = folder, loop, run, first_step
        self._has_page = False

    def on_train_begin(self, logs=None):
        """Open the files; a call that had ended before does not come here."""
        tensorboard = self._folder / "tensorboard"
        lines = self._folder / "metrics.jsonl"
        self._log = run_log.ScalarLog(lines, tensorboard, self._first_step)
        self._log.forget_later_points()
        self._story = Story(self._folder / "events.jsonl")
        facts = first_page.facts(
            self._loop,
            self._run.steps_per_epoch,
            self._run.epochs,
            run_state.versions(),
            unseen_times(strategy_lib.own_devices(self._loop.strategy)),
        )
        validates = self._run.validation is not None
        best = saver.what_is_best(self._loop.model, self._run.saver.checkpoints, validates)
        self._story.begin(self._first_step, **facts, **best, **self._log.seen)
        self._page = first_page.FirstPage(self._log, self._story, self._folder)
        self._page.begin(self._first_step)

    def ended(self):
        """Note that the call has ended and its last checkpoint is kept."""
        step, path = self._progress.step, self._folder / "events.jsonl"
        if self._story is not None:
            self._story.tell("end", step)
            self._page.end(step)
            self._close()
        elif not has_ended(read(path)):  # in an earlier life, killed before it told of it
            story = Story(path)
            story.tell("end", step)
            story.close()

    def ended_by(self, error):
        """Note what ended the call before its end; for an `except`."""
        if self._story is not None:
            with contextlib.suppress(OSError):  # a full disk, of which the error itself tells
                self._story.tell_error(self._progress.step, error)
                self._close()

    def _close(self):
        self._log.close()
        self._story.close()
        self._story = None
