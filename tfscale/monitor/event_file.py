"""TensorBoard's event files: scalars, text, pictures, histograms, curves, pages.

Each record is one message of tensorboard's own protocol, written at once; a point costs some
microseconds, where an operation of `tf.summary` costs a hundred.
"""

import os
import pathlib
import socket
import threading
import time

import numpy as np
import tensorflow as tf
from absl import logging

_numbers = {}  # of the files of this process, by folder


class EventFile:
    """One event file, of one life of a run, in one folder, which is one run in TensorBoard.

    Any thread may write.

    Args:
        folder: made if it is not there.
        first_step: the step that this life begins after; what earlier files hold of later steps
            is not shown.
    """

    def __init__(self, folder, first_step=0):
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.plugins.scalar import metadata

        self._event, self._summary, self._tensor_message = event_pb2, summary_pb2, tensor_pb2
        self._float, self._scalar = types_pb2.DT_FLOAT, metadata.create_summary_metadata("", "")
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        number = _numbers[folder] = _numbers.get(folder, -1) + 1
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{number}"
        self._lock = threading.Lock()
        self._path = str(folder / f"events.out.tfevents.{name}")
        self._writer = tf.io.TFRecordWriter(self._path)
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.forget_after(first_step)

    def forget_after(self, step):
        """Have TensorBoard leave out what was written of later steps, in this file and others."""
        # The second start of a session, and each later one, is a restart for TensorBoard.
        log = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(self._event.Event(wall_time=time.time(), step=step + 1, session_log=log))

    def scalars(self, step, values):
        """Write numbers by tag, as one record."""
        make, parts = self._tensor_message.TensorProto, []
        for tag, value in values.items():
            tensor = make(dtype=self._float, tensor_shape={}, float_val=[value])
            part = self._summary.Summary.Value(tag=tag, metadata=self._scalar, tensor=tensor)
            parts.append(part)
        self._add(step, parts)

    def text(self, step, tag, markdown):
        """Write a page of text."""
        from tensorboard.plugins.text import metadata

        about = metadata.create_summary_metadata(tag, "")
        self._tensor(step, tag, about, np.array([markdown.encode()], object))

    def picture(self, step, tag, png, size, description=""):
        """Write a picture.

        Args:
            step: updates of the weights so far.
            tag: its name.
            png: the file, as bytes.
            size: width and height in pixels.
            description: Markdown that is shown with it.
        """
        from tensorboard.plugins.image import metadata

        about = metadata.create_summary_metadata(tag, description)
        width, height = (str(pixels).encode() for pixels in size)
        self._tensor(step, tag, about, np.array([width, height, png], object))

    def histogram(self, step, tag, low, high, counts):
        """Write a histogram.

        Args:
            step: updates of the weights so far.
            tag: its name.
            low: the left end of the first bin.
            high: the right end of the last.
            counts: of equal bins between them.
        """
        from tensorboard.plugins.histogram import metadata

        edges = np.linspace(low, high, len(counts) + 1)
        table = np.stack([edges[:-1], edges[1:], counts], 1).astype(np.float64)
        self._tensor(step, tag, metadata.create_summary_metadata(tag, ""), table)

    def precision_recall(self, step, tag, counts):
        """Write a curve of precision over recall.

        Args:
            step: updates of the weights so far.
            tag: its name.
            counts: true positives, false positives, true negatives and false negatives, each a
                vector over rising thresholds from 0 to 1.
        """
        from tensorboard.plugins.pr_curve import metadata

        positives, wrong, _, missed = counts
        precision = positives / np.maximum(positives + wrong, 1e-7)
        recall = positives / np.maximum(positives + missed, 1e-7)
        about = metadata.create_summary_metadata(tag, "", len(positives))
        table = np.stack([*counts, precision, recall]).astype(np.float32)
        self._tensor(step, tag, about, table)

    def page(self, layout):
        """Write the `charts.layout` of the page CUSTOM SCALARS."""
        from tensorboard.plugins.custom_scalar import metadata

        about = metadata.create_summary_metadata()
        content = np.array(layout.SerializeToString(), object)
        self._tensor(0, metadata.CONFIG_SUMMARY_TAG, about, content)

    def graph(self, graph):
        """Write a graph, a `GraphDef` message."""
        event = self._event.Event(wall_time=time.time(), graph_def=graph.SerializeToString())
        self._write(event)

    def chosen(self, name, values):
        """Write what was chosen for a run, for the page HPARAMS.

        Args:
            name: of the run.
            values: numbers, words and booleans by name.
        """
        from tensorboard.plugins.hparams import summary_v2

        message = summary_v2.hparams_pb(values, name, time.time())
        self._add(0, message.value)

    def ended(self):
        """Write, for the page HPARAMS, that the run has ended well."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        info = plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time()
        )
        content = plugin_data_pb2.HParamsPluginData(session_end_info=info)
        value = self._summary.Summary.Value(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(content),
            tensor=metadata.NULL_TENSOR,
        )
        self._add(0, [value])

    def close(self):
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _tensor(self, step, tag, about, array):
        from tensorboard.util import tensor_util

        tensor = tensor_util.make_tensor_proto(array)
        self._add(step, [self._summary.Summary.Value(tag=tag, metadata=about, tensor=tensor)])

    def _add(self, step, values):
        summary = self._summary.Summary(value=values)
        self._write(self._event.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event):
        """Write an event to the disk; what the disk refuses ends the file, and not the run."""
        with self._lock:
            if self._writer is None:
                return
            try:
                self._writer.write(event.SerializeToString())
                self._writer.flush()
            except tf.errors.OpError as error:
                logging.warning("TensorBoard gets no more of %s: %s", self._path, error)
                self._writer = None
