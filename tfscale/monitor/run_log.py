"""The curves of a run: TensorBoard's event files and `metrics.jsonl`, written by one process.

Training and validation use the same names in two folders, so TensorBoard draws them into one
chart. The numbers come with the callbacks; nothing is read from the device here.
"""

import json
import os
import pathlib
import time

import keras
import tensorflow as tf


class ScalarLog:
    """Scalars by step, as lines of JSON and as TensorBoard's event files.

    Args:
        lines_path: the file that gets a line of JSON for each record.
        tensorboard_dir: the folder for event files, one sub-folder a kind of record; None for
            no event files.
        first_step: the step this life of the run begins after. Records of later steps, which
            an earlier life wrote after its last checkpoint, are taken out of the file, and so is
            its test at this step, which will be scored again.
    """

    def __init__(self, lines_path, tensorboard_dir=None, first_step=0):
        self._path = pathlib.Path(lines_path)
        self._tensorboard_dir = tensorboard_dir
        self._writers = {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = _kept_lines(self._path, first_step)
        beside = self._path.with_name(self._path.name + ".writing")
        beside.write_text("".join(kept))
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
        self.note(kind, step, values, **facts)
        if self._tensorboard_dir is None:
            return
        if kind not in self._writers:
            folder = str(pathlib.Path(self._tensorboard_dir) / kind)
            self._writers[kind] = tf.summary.create_file_writer(folder)
        with self._writers[kind].as_default(step=step):
            for name, value in values.items():
                if isinstance(value, list):  # a metric of several numbers, such as one a class
                    for i, part in enumerate(value):
                        tf.summary.scalar(f"{name}/{i}", part)
                else:
                    tf.summary.scalar(name, value)
        self._writers[kind].flush()

    def note(self, kind, step, values, **facts):
        """Write one record as a line of JSON alone; arguments as for `write`."""
        record = {"step": step, **facts, "time": round(time.time(), 3), kind: values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self):
        """Close the files."""
        self._file.close()
        for writer in self._writers.values():
            writer.close()


def _kept_lines(path, first_step):
    """The lines of an earlier life that count in this one."""
    kept = []
    if first_step and path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # The life before was killed in the middle of this line.
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a disk's damage; the curve has a gap there
                continue
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
            the first look of the host at the device after it, and at the end of an epoch.
    """

    def __init__(self, log, progress, every_steps):
        super().__init__()
        self._log, self._progress, self._every_steps = log, progress, every_steps
        self._last_step = progress.step

    def on_epoch_begin(self, epoch, logs=None):
        self._last_step = self._progress.step

    def on_train_batch_end(self, batch, logs=None):
        if self._progress.step // self._every_steps > self._last_step // self._every_steps:
            self._write_training(logs)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        validation = {k[len("val_") :]: v for k, v in logs.items() if k.startswith("val_")}
        if self._last_step != self._progress.step:
            self._write_training({k: v for k, v in logs.items() if not k.startswith("val_")})
        if validation:
            self._log.write("validation", self._progress.step, validation, epoch=epoch)

    def on_bad_step(self, event):
        """Note a bad step; steps that a run takes again are written again."""
        known = ("step", "epoch")
        values = {name: value for name, value in event.items() if name not in known}
        self._log.note("bad_step", event["step"], values, epoch=event["epoch"])

    def _write_training(self, logs):
        at = self._progress
        self._last_step = at.step
        values = dict(logs or {}, learning_rate=at.learning_rate)
        if at.step_seconds:
            values["step_seconds"] = at.step_seconds
            values["examples_per_second"] = at.examples_per_second
        self._log.write("train", at.step, values, epoch=at.epoch)
