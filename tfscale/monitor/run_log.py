"""The curves of a run: TensorBoard's event files and `metrics.jsonl`, written by one process.

Training and validation use the same names in two folders, so TensorBoard draws them into one
chart; each worker's own times have a folder a worker. The numbers come with the callbacks and
with what the loop has measured; the norm of the weights alone is asked for here.
"""

import collections
import json
import os
import pathlib
import queue
import threading
import time

import keras
from absl import logging

from tfscale.monitor import cadence, charts, glance, run_files, story, workers
from tfscale.monitor.event_file import EventFile


class ScalarLog:
    """Scalars by step, as lines of JSON and as TensorBoard's event files.

    Args:
        lines_path: the file that gets a line of JSON for each record.
        tensorboard_dir: the folder for event files, one sub-folder a kind of record; None for
            no event files.
        first_step: the step this life of the run begins after. Records of later steps, which
            an earlier life wrote after its last checkpoint, are taken out of the file, and so is
            its test at this step, which will be scored again.

    Attributes:
        seen: `seen_step` and `seen_time` of the last line that an earlier life has written, those
            that are taken out included; {} where there is none.
    """

    def __init__(self, lines_path, tensorboard_dir=None, first_step=0):
        self._path = pathlib.Path(lines_path)
        self._tensorboard_dir, self._first_step = tensorboard_dir, first_step
        self._files, self._lock, self._waiting = {}, threading.Lock(), None
        self._next_glance = 0.0  # on the monotonic clock
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.seen = _last_sign(self._path)
        self._open(_kept_lines(self._path, first_step))

    def _open(self, kept):
        """Go on writing after these lines."""
        beside = self._path.with_name(self._path.name + ".writing")
        beside.write_bytes(b"".join(kept))
        os.replace(beside, self._path)  # so that a run killed here loses no line
        self._file = open(self._path, "a")  # noqa: SIM115  (until close)

    def write(self, kind, step, values, **facts):
        """Write one record.

        Args:
            kind: "train", "validation" or "test": the sub-folder, and the name in the line.
            step: updates of the weights so far.
            values: numbers by name.
            **facts: further fields of the line of JSON, such as the epoch.
        """
        record = self.note(kind, step, values, **facts)
        self._later(self._draw, kind, record)

    def glance(self, step, is_news=True):
        """Show how the run is, in a few lines, on TensorBoard's first page.

        Args:
            step: updates of the weights so far.
            is_news: something has happened; without, it is shown now and then only.
        """
        if is_news or time.monotonic() >= self._next_glance:
            self._next_glance = time.monotonic() + _GLANCE_SECONDS
            self._later(self._draw_glance, step)

    def lay_out(self, names, begun):
        """Say which charts TensorBoard shows side by side.

        Args:
            names: of the model's numbers, as they are in the records.
            begun: the `Story`'s event of the beginning of this life.
        """
        has_times = not begun.get("unseen_times")
        self._later(self._lay_out, names, begun.get("num_workers", 1), has_times)

    def _lay_out(self, *about):
        self.events("train").page(charts.layout(*about))

    def _later(self, draw, *arguments):
        """Write to event files while the next steps are taken."""
        if self._tensorboard_dir is None:
            return
        if self._waiting is None:
            self._waiting = queue.Queue(_MOST_WAITING)
            self._thread = threading.Thread(target=self._draw_all, name="tfscale-curves")
            self._thread.daemon = True
            self._thread.start()
        self._waiting.put((draw, arguments))

    def _draw_all(self):
        while (item := self._waiting.get()) is not None:
            draw, arguments = item
            try:
                draw(*arguments)
            except Exception as error:  # whatever it is, the run is worth more
                logging.warning("Not shown in TensorBoard: %s: %s", type(error).__name__, error)

    def _draw(self, kind, record):
        for run, points in charts.curves(kind, record).items():
            self.events(run).scalars(record["step"], points)

    def _draw_glance(self, step):
        began = time.monotonic()
        png, size = glance.picture(glance.facts(run_files.RunFiles(self._path.parent)))
        self.events("train").picture(step, charts.GLANCE, png, size)
        now = time.monotonic()  # reading a long run again takes its time
        self._next_glance = max(self._next_glance, now + (now - began) / _GLANCE_SHARE)

    def events(self, run):
        """Return the `EventFile` of a run in TensorBoard, such as "train"; None without any."""
        if self._tensorboard_dir is None:
            return None
        with self._lock:
            if run not in self._files:
                folder = pathlib.Path(self._tensorboard_dir) / run
                # A test at the first step is scored again.
                self._files[run] = EventFile(folder, self._first_step - (run == "test"))
            return self._files[run]

    def forget_later_points(self):
        """Have TensorBoard leave out what earlier lives wrote of later steps, in all folders.

        For whoever owns them all, an evaluator does not.
        """
        if self._tensorboard_dir is not None and pathlib.Path(self._tensorboard_dir).is_dir():
            for folder in pathlib.Path(self._tensorboard_dir).iterdir():
                if any(folder.glob("events.out.tfevents.*")) and folder.name != "evaluator":
                    self.events(folder.name)

    def take_back(self, step):
        """Take out what was written of later steps, which are taken again by this life.

        Notes of bad steps stay, because it is these that are not taken again.

        Args:
            step: the one that the run goes on from.
        """
        self._file.close()
        found = _whole_lines(self._path)
        self._open([line for line, r in found if r["step"] <= step or "bad_step" in r])
        self._later(self._forget_after, step)

    def _forget_after(self, step):
        with self._lock:
            files = list(self._files.values())
        for file in files:
            file.forget_after(step)

    def last(self, name):
        """Return a fact of the last record that has it, of this and earlier lives; or None."""
        found = [r[name] for r in story.read(self._path, ("step",)) if name in r]
        return found[-1] if found else None

    def note(self, kind, step, values, **facts):
        """Write one record as a line of JSON alone, and return it; arguments as for `write`."""
        record = {"step": step, **facts, "time": round(time.time(), 3), kind: values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        return record

    def close(self):
        """Write what waits, and close the files."""
        self._file.close()
        if self._waiting is not None:
            self._waiting.put(None)
            self._thread.join()
            self._waiting = None
        for file in self._files.values():
            file.close()


def _last_sign(path):
    """Where an earlier life was last, and when."""
    records = story.read(path, ("step",))
    if not records:
        return {}
    return {
        "seen_step": max(record["step"] for record in records),
        "seen_time": max(record.get("time", 0) for record in records),
    }


def _whole_lines(path):
    """Pairs of a line, as bytes, and its record; where one is damaged the curve has a gap."""
    lines = path.read_bytes().splitlines(keepends=True)
    found = [(line, story.parsed(line, ("step",))) for line in lines if line.endswith(b"\n")]
    return [(line, record) for line, record in found if record is not None]


def _kept_lines(path, first_step):
    """The lines of an earlier life that count in this one."""
    kept = []
    if first_step and path.exists():
        for line, record in _whole_lines(path):
            tested_again = record["step"] == first_step and "test" in record
            if record["step"] <= first_step and not tested_again:
                kept.append(line)
    return kept


class RunLog(keras.callbacks.Callback):
    """Writes the curves of training and validation to a `ScalarLog`.

    Args:
        log: the `ScalarLog`.
        progress: the trainer's `Progress`, for step, speed and learning rate.
        every_steps: a record of training is written at each multiple of so many steps, or at
            the first look of the host at the device after it, and at the end of an epoch; 0 for
            ever more steps, as `cadence` has it.
        measures: the loop's `Measures` of the steps, for norms, histograms and where the time
            goes; None for none.
        story: the run's `Story`, for goodput, restarts and bad steps; None for none.
        update_bytes: what a replica sends for one update.
    """

    def __init__(self, log, progress, every_steps, measures=None, story=None, update_bytes=0):
        super().__init__()
        self._log, self._progress, self._every_steps = log, progress, every_steps
        self._measures, self._story, self._update_bytes = measures, story, update_bytes
        self._last_step = progress.step
        self._measured = collections.deque(maxlen=_REMEMBERED)  # of each worker
        self._looks_at = time.time() + workers.RECENT_SECONDS  # for a slow one
        self._told = set()  # the slow ones told of
        self._timed = (0, 0.0)  # steps and seconds, up to the last record
        self._bytes_before = None  # sent in earlier lives
        self._is_laid_out = False

    def on_epoch_begin(self, epoch, logs=None):
        self._look_back()
        self._last_step = self._progress.step

    def on_train_batch_begin(self, batch, logs=None):
        self._look_back()

    def _look_back(self):
        """Take back what was told of steps that are taken again, after the run went back."""
        step = self._progress.step
        if step < self._last_step:
            self._log.take_back(step)
            self._last_step = step
            self._log.glance(step)

    def on_train_batch_end(self, batch, logs=None):
        if cadence.is_passed(self._last_step, self._progress.step, self._every_steps):
            self._write_training(logs)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        validation = {k[len("val_") :]: v for k, v in logs.items() if k.startswith("val_")}
        if self._last_step != self._progress.step:
            self._write_training({k: v for k, v in logs.items() if not k.startswith("val_")})
        if validation:
            self._log.write("validation", self._progress.step, validation, epoch=epoch)
        self._log.glance(self._progress.step, is_news=False)

    def on_bad_step(self, event):
        """Note a bad step; steps that a run takes again are written again."""
        known = ("step", "epoch")
        values = {name: value for name, value in event.items() if name not in known}
        self._log.note("bad_step", event["step"], values, epoch=event["epoch"])
        if self._story is not None:
            told = {name: event[name] for name in ("loss", "bad", "action", "examples")}
            self._story.tell("bad step", event["step"], epoch=event["epoch"], **told)

    def _write_training(self, logs):
        at = self._progress
        self._last_step = at.step
        if self._story is not None and not self._is_laid_out:
            self._is_laid_out = True
            names = sorted(logs or {}, key=lambda name: name != "loss")
            self._log.lay_out(names, self._story.begun)
        values = dict(logs or {}, learning_rate=at.learning_rate)
        if at.recent.step_seconds:
            values["step_seconds"] = at.recent.step_seconds
            values["examples_per_second"] = at.recent.examples_per_second
        self._log.write("train", at.step, values, epoch=at.epoch, **self._facts())

    def _facts(self):
        """What is known beside the numbers of the model."""
        at, found = self._progress, {}
        if self._measures is not None:
            found = self._measures.take()
            step_seconds, meet = self._step_seconds(), self._measures.meet_between
            if "workers" in found and step_seconds:
                found["seconds"] = workers.split(found["workers"], step_seconds, meet)
                self._look_for_slow(found["workers"])
            self._draw_histograms()
        if self._update_bytes:
            if self._bytes_before is None:
                self._bytes_before = self._log.last("bytes_sent") or 0
            found["bytes_sent"] = self._bytes_before + self._update_bytes * at.taken_steps
        if self._story is not None:
            found["goodput"] = round(self._story.goodput(at.timed_seconds), 4)
            found["restarts"] = self._story.restarts
            found["bad_steps"] = self._story.count("bad step")
        return found

    def _step_seconds(self):
        """The length of a step since the last record, as timed; None where none was."""
        at, before = self._progress, self._timed
        self._timed = (at.timed_steps, at.timed_seconds + at.between_seconds)
        steps, seconds = (now - then for now, then in zip(self._timed, before, strict=True))
        return seconds / steps if steps > 0 and seconds > 0 else None  # less after going back

    def _look_for_slow(self, times):
        """Tell, once for each worker, of one that the others have waited for in this life."""
        now = time.time()
        self._measured.append({"time": now, "workers": times})
        if self._story is None or now < self._looks_at:
            return
        found = workers.slowest(list(self._measured))
        took = time.time() - now  # with many workers and records this is not nothing
        self._looks_at = now + max(workers.RECENT_SECONDS, took / _GLANCE_SHARE)
        if found and found.is_slow and found.worker not in self._told:
            self._told.add(found.worker)
            self._story.tell(
                "slow worker", self._progress.step, worker=found.worker, text=found.words()
            )
            self._log.glance(self._progress.step)

    def _draw_histograms(self):
        events = self._log.events("train")
        for name, (low, high, *counts) in self._measures.take_histograms().items():
            if events is not None:
                events.histogram(self._progress.step, f"5 {name}", low, high, counts)


_MOST_WAITING = 1000  # records that a slow disk may keep waiting, before the run waits for it
_GLANCE_SECONDS, _GLANCE_SHARE = 30, 0.002  # at least so rarely, and at most so much of the time
_REMEMBERED = 2000  # records of this life, in which a slow worker is looked for
