"""TensorBoard and the report in a headless browser: pages load, charts have points, no error."""

import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.request

import made_runs
import pytest

from tfscale import fit, report
from tfscale.cluster import ports

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome"),
]


def opened(url, picture, seconds=30):
    """Open a page; return its text as the browser has it in the end, and what it complained of."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--virtual-time-budget={seconds * 1000}", "--window-size=1500,2200"]
    run = {"capture_output": True, "text": True, "timeout": 300, "check": True}
    page = subprocess.run([*command, "--dump-dom", url], **run)
    subprocess.run([*command, f"--screenshot={picture}", url], **run)
    assert pathlib.Path(picture).stat().st_size > 10_000
    return page.stdout, re.findall(r".*CONSOLE.*(?:Error|error).*", page.stderr)


@contextlib.contextmanager
def tensorboard(folder):
    """Serve a folder on this machine; give the address."""
    [port] = ports.free_ports(1)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError):
                if "train" in asked(f"{address}/data/runs", whole=True):
                    break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def asked(url, whole=False):
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    return text if whole else json.loads(text)


def test_tensorboard_shows_the_three_questions_and_all_points(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    argv = ["--config.train.epochs=2", "--config.data.validation_fraction=0.1"]
    assert fit.main([f"--run_dir={tmp_path}/runs/one", *argv]) == 0
    lines = (tmp_path / "runs/one/metrics.jsonl").read_text().splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if "train" in record]
    with tensorboard(tmp_path / "runs") as address:
        tag = "1%20learning/loss"
        url = f"{address}/data/plugin/scalars/scalars?run=one/tensorboard/train&tag={tag}"
        assert [point[1] for point in asked(url)] == steps
        layout = asked(f"{address}/data/plugin/custom_scalars/layout")
        questions = [category["title"] for category in layout["category"]]
        assert questions == ["Does it learn?", "Is it fast?", "Is it healthy?"]
        _, errors = opened(f"{address}/#custom_scalars", tmp_path / "custom.png")
        assert not errors
        page, errors = opened(f"{address}/#timeseries", tmp_path / "series.png")
        assert not errors and "2 speed and health" in page


def test_report_is_drawn_without_a_complaint(tmp_path):
    runs = [made_runs.plain(tmp_path / "plain"), made_runs.restarted(tmp_path / "restarted")]
    runs.append(made_runs.slow(tmp_path / "slow"))
    output = tmp_path / "page.html"
    assert report.main([*(f"--run_dir={run}" for run in runs), f"--output={output}"]) == 0
    page, errors = opened(output.as_uri(), tmp_path / "report.png", seconds=3)
    assert not errors
    assert page.count("<polyline") > 10 and "worker 2: 2.36 times the others" in page
