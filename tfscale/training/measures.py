"""What `fit` measures of its steps, on the host: times of each worker, norms, histograms.

The numbers come out of the graph (`probe.py`) with those the host reads anyway, the same on all
workers. Nothing in the loop depends on them; whoever shows them takes them from here.
"""

import math
import time

import numpy as np

from tfscale.monitor import cadence
from tfscale.strategy import is_deterministic
from tfscale.training import probe

PARTS = ("input", "compute", "exchange", "host")  # of a worker's step, in the graph's order
_NORMS = ("gradient_norm", "weight_norm")
COST_SECONDS = 6e-5  # that measuring takes of a step at most, whatever its size
_SHARE = 0.0075  # of the time of the steps that measuring may take


def unseen_times(devices):
    """Say why no times of workers can be measured; "" where they can.

    The host's clock does not see into the steps of a GPU, which run later than they are asked
    for.

    Args:
        devices: names of those that are trained on.
    """
    if any("GPU" in device for device in devices):
        return "steps on GPUs are seen by the profiler only"
    return ""


class Measures:
    """Collects what is measured between two records.

    Args:
        every_steps: the gradients are measured in the step that reaches a multiple of so many,
            and in the last of an epoch; 0 for ever more, as `cadence` has it. The same on all
            workers.
        histograms_every_steps: the same for histograms of weights and gradients; 0 for none.

    Attributes:
        is_on: whether the next execution is measured, the same on all workers.
        begins_other_graph: whether the graph that does not measure is traced by the next one.
        meet_between: whether workers wait for each other's hosts between executions.
    """

    def __init__(self, every_steps, histograms_every_steps=0):
        self.every_steps, self.histograms_every_steps = every_steps, histograms_every_steps
        self.meet_between = False
        self._functions = None
        self._forget()

    def begin(self, functions, spec, devices):
        """Begin a run.

        Args:
            functions: the model's `functions.Functions`.
            spec: of its batches.
            devices: names of those it trains on, as for `unseen_times`.
        """
        self._functions, self._began = functions, time.perf_counter()
        self._sees_times = not unseen_times(devices)
        if self.draws:
            functions.prepare_histograms(spec)

    @property
    def draws(self):
        """Whether there are histograms."""
        return self.histograms_every_steps > 0

    def host_is_done(self):
        """Count the host's time since the last steps up to here, where it may wait for others."""
        if self._looked is not None:
            self._host_seconds, self._looked = time.perf_counter() - self._looked, None

    def vote(self, step_seconds, steps_left):
        """Return the chief's vote for the execution after the next, the one that `hear` expects.

        Steps that are long against what measuring takes are all measured. Of short ones it is
        every n-th execution; those between have a graph of their own, if the steps that are left
        repay the time to trace it.

        Args:
            step_seconds: the length of a step in the last execution; None before one was timed.
            steps_left: of the run.
        """
        if not step_seconds or not self._sees_times or not self._trace_seconds:
            return 0
        if is_deterministic():  # no clock chooses the graph of a step
            return 0
        every = math.ceil(COST_SECONDS / _SHARE / step_seconds)
        saved = COST_SECONDS * (1 - 1 / every) * steps_left
        if not self._has_other_graph and saved < 2 * self._trace_seconds:
            return 0
        self._num_left_out += 1
        if self._num_left_out >= every:
            self._num_left_out = 0
        return int(self._num_left_out > 0)

    def hear(self, vote):
        """Take over the chief's vote as it came back from the reduction to all workers."""
        self.is_on = vote == 0

    def asked(self, at, k, steps_in_epoch):
        """Return what the graph is asked for with the next k steps, as `Functions` takes it.

        What is due while nothing is measured is asked for when something is again.
        """
        ends = at.position + k == steps_in_epoch
        self._is_due = (
            self._is_due or ends or cadence.is_passed(at.step, at.step + k, self.every_steps)
        )
        every = self.histograms_every_steps
        passes = self.draws and cadence.is_passed(at.step, at.step + k, every)
        self._draws_are_due = self._draws_are_due or passes
        host_seconds, self._host_seconds = self._host_seconds, 0.0
        self.begins_other_graph = not self.is_on and not self._has_other_graph
        if not self.is_on:
            self._has_other_graph = True
            return None
        self._asked = [self._is_due, self._draws_are_due, int(1e9 * host_seconds), at.step]
        self._is_due = self._draws_are_due = False
        return self._asked

    def add(self, results, steps):
        """Take what an execution measured.

        Args:
            results: what `Functions.train_steps` returned, as arrays.
            steps: that were taken.
        """
        self._looked = time.perf_counter()
        self._trace_seconds = self._trace_seconds or self._looked - self._began
        if not self.is_on:
            return
        if self._asked[0]:
            found = {name: float(results[name]) for name in _NORMS}
            self._norms = {name: norm for name, norm in found.items() if math.isfinite(norm)}
            if not found["gradient_norm"]:  # none were seen
                del self._norms["gradient_norm"]
        if self._asked[1]:
            self._histograms = results["histograms"]
        if steps and self._is_warm and self._sees_times:  # the first one waits for others to trace
            self._seconds = self._seconds + 1e-9 * results["workers"]
            self._steps += steps
            self._readings += probe.num_readings(self._asked[3], steps)
        self._is_warm = True

    def take(self):
        """Return what was measured since the last call, and begin anew.

        Returns:
            A dict: `workers`, seconds a step of each worker by part, as in `PARTS`; the
            `gradient_norm` and the `weight_norm` after the last step; each only where there is
            one.
        """
        found = {}
        if self._readings:
            *parts, host = self._seconds.T
            columns = [part / self._readings for part in parts] + [host / self._steps]
            found["workers"] = {n: c.tolist() for n, c in zip(PARTS, columns, strict=True)}
            self._seconds, self._steps, self._readings = 0.0, 0, 0
        found |= self._norms
        self._norms = {}
        return found

    def take_histograms(self):
        """Return histograms since the last call, by the variable's path; {} where none is due.

        Returns:
            Pairs of arrays by name, "gradients/PATH" and "weights/PATH": least and greatest number
            first, then counts in equal bins between them.
        """
        gradients, self._histograms = self._histograms, None
        if gradients is None:
            return {}
        functions = self._functions
        weights = [np.asarray(h) for h in functions.weight_histograms()]
        named = {f"weights/{p}": h for p, h in zip(functions.weight_paths(), weights, strict=True)}
        paths = functions.gradient_paths
        named |= {f"gradients/{p}": h for p, h in zip(paths, gradients, strict=True)}
        return {name: h for name, h in named.items() if np.isfinite(h[:2]).all()}

    def _forget(self):
        self._seconds, self._steps, self._readings = 0.0, 0, 0
        self._norms, self._histograms = {}, None
        self._is_warm, self._looked, self._asked = False, None, [0, 0, 0, 0]
        self._sees_times, self._host_seconds = True, 0.0
        self._is_due = self._draws_are_due = False
        self.is_on, self.begins_other_graph, self._has_other_graph = True, False, False
        self._num_left_out, self._trace_seconds = 0, 0.0
