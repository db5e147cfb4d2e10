"""Two real workers that are looked at: nothing changes, and the slow one is named."""

import pathlib

import numpy as np
import pytest

from tfscale.monitor import follow
from tfscale.monitor.run_files import find
from tfscale.testing import run_workers


@pytest.mark.workers
def test_looking_changes_no_bit_and_names_the_slow_worker(tmp_path):
    script = pathlib.Path(__file__).with_name("observed_worker.py")
    folders = [tmp_path / "run", tmp_path / "deterministic", tmp_path / "synchronized"]
    results = run_workers(script, 2, args=folders, timeout_seconds=240)
    for result in results:
        for name in ("plain", "synchronized", "deterministic"):
            seen = "observed" if name == "plain" else f"observed {name}"
            np.testing.assert_array_equal(result.arrays[seen], result.arrays[name])
            np.testing.assert_array_equal(result.arrays[name], results[0].arrays[name])
    [run] = find(tmp_path / "run")
    found = run.slowest()
    assert (found.worker, found.part, found.is_slow) == (1, "host", True)
    assert ["workers" in r for r in run.records].count(True) == 20  # of 30; the first one traces
    assert run.records[-1]["bytes_sent"] > 0
    shown = "\n".join(follow.lines(run))
    assert f"Worker 1 is slow: {found.others:.2f} times the others, {found.reason}; " in shown
    shown_too = [path.name for path in (run.path / "tensorboard").iterdir()]
    assert {"train", "worker-0", "worker-1", "best"} <= {*shown_too}
    assert "finished" in shown and "step 60/60" in shown

    # Deterministic operations have another clock, which is read in one of sixteen steps.
    [run] = find(folders[1])
    found = run.slowest()
    assert (found.worker, found.part, found.is_slow) == (1, "compute", True)
    assert 0.06 < found.seconds < 0.6
    assert ["workers" in r for r in run.records].count(True) == 12  # of 200 steps

    # On the way to its gradients a worker waits for others, in what is summed for normalization.
    [run] = find(folders[2])
    found = run.slowest()
    assert (found.worker, found.part, found.is_slow) == (1, "compute", True)
    assert 0.06 < found.seconds < 0.6 and found.others > 2

    failures = [str(result.arrays["failed"]) for result in results]  # and nobody waits
    assert failures == ["1 worker(s) cannot read the data.", "the disk of worker 1"]
    np.testing.assert_allclose(results[1].arrays["sums"], np.ones(320), rtol=1e-5)
