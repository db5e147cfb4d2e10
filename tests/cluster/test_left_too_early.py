"""A script that ends on one worker, between two calls of `fit`, while the other makes the next."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = """
import json, os, sys
import keras, numpy as np

rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x, y = np.ones((32, 4)), np.ones((32, 1))
model.fit(x, y, epochs=2, verbose=0)
if rank == 1 and os.environ["TFSCALE_LIFE"] == "1":
    sys.exit(0)
model.fit(x, y, epochs=2, verbose=0)
print("both done", flush=True)
"""


@pytest.mark.workers
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_is_named_and_the_run_goes_on(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    flags = ["--workers=2", "--run_dir=run", "--hang_timeout_seconds=20", "script.py"]
    done = subprocess.run(
        [sys.executable, "-m", "tfscale.launch", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    assert "worker 1 left too early: its script has ended at step 2 (done)" in done.stdout
    assert "worker 0 at step 2 (begin), " in done.stdout
    assert done.stdout.count("both done") == 2
