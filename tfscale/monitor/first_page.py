"""What TensorBoard shows of a run beside its curves: what it is, what happened, where it was best.

For runs of `tfscale.fit` and for each call of `fit` in a script. What cannot be written does not
end the run.
"""

import socket

from absl import logging

from tfscale.cluster import environment
from tfscale.monitor import charts, pages, story
from tfscale.monitor.event_file import EventFile
from tfscale.monitor.run_files import RunFiles


def guarded(what, write, *arguments):
    """Write something that a run can do without; return what `write` does, None if it fails."""
    try:
        return write(*arguments)
    except Exception as error:  # whatever it is, the run is worth more
        logging.warning("%s could not be shown: %s: %s", what, type(error).__name__, error)
        return None


def facts(trained, steps_per_epoch, epochs, versions, unseen_times):
    """Return what a life begins with, for its story and its page of text.

    Args:
        trained: the `Trainer` or the `Loop`, with a model, a strategy and a shard.
        steps_per_epoch: None where it is found out while running.
        epochs: the epoch to stop after.
        versions: of what it runs with, by name.
        unseen_times: why no times are measured, in words; "" where they are.
    """
    return {
        "num_workers": trained.shard.num_workers,
        "num_replicas": trained.strategy.num_replicas_in_sync,
        "workers": list(environment.resolve().workers),
        "host": socket.gethostname(),
        "parameters": trained.model.count_params(),
        "steps_per_epoch": steps_per_epoch,
        "epochs": epochs,
        "versions": versions,
        "unseen_times": unseen_times,
    }


class FirstPage:
    """Writes these pages for one life of a run.

    Args:
        log: the run's `ScalarLog`.
        own_story: its `Story`, of which the life has begun.
        path: its folder.
    """

    def __init__(self, log, own_story, path):
        self._log, self._story, self._path = log, own_story, path

    def begin(self, step, config=None):
        """Write what is known before the first step of this life.

        Args:
            step: the one that it begins after.
            config: a dict of sections, or None.
        """
        if self._log.events("train") is not None:
            guarded("the beginning of the run", self._begin, step, config or {})

    def end(self, step):
        """Write how the run has ended, after so many steps."""
        if self._log.events("train") is not None:
            guarded("the end of the run", self._end, step)

    def _begin(self, step, config):
        text = pages.about(config, self._story.events[-1])
        self._log.events("train").text(step, "about this run", text)
        if self._story.begun["life"] > 1:
            self._mark_restart(step)
            self._log.glance(step)
        self._tell_what_happened(step)

    def _end(self, step):
        self._mark_best()
        self._log.glance(step)
        self._tell_what_happened(step)

    def _tell_what_happened(self, step):
        failures = story.Lines(story.failures_file(self._path), "text").read()
        events = self._story.events
        told = pages.happened(events, story.causes_of(events, failures))
        lines = [f"- {text}" for _, text in told]
        self._log.events("train").text(step, "what happened", "\n".join(lines))

    def _mark_restart(self, step):
        """Put a point on the curves where a life goes on with one that did not end, as its own run.

        Its folder lies beside that of the curves: of what is in there the page HPARAMS would make
        columns.
        """
        events, folder = self._story.events, self._path / "restarts"
        all_ = story.restarts_of(events) + story.restarts_of(events, stops=True)
        is_restart = any(begun is self._story.begun for _, begun in all_)
        if not is_restart and not folder.exists():
            return
        marks = EventFile(folder, step)  # those of later steps do not count any more
        if is_restart:
            files = RunFiles(self._path)
            curves = {name: files.curve("train", name) for name in files.metrics()}
            points = {charts.tag(name): curve[-1][1] for name, curve in curves.items() if curve}
            marks.scalars(step, points | {charts.tag("restarts"): len(all_)})
        marks.close()

    def _mark_best(self):
        """Put a point on the curve where it was best, as a run of its own."""
        best = RunFiles(self._path).best()
        if best is not None:
            self._log.events("best").forget_after(-1)  # of another best step before it
            self._log.events("best").scalars(best.step, {charts.tag(best.name): best.value})
