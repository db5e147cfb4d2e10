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
    """Open a page; return it as the browser has it in the end, its text, and complaints."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--virtual-time-budget={seconds * 1000}", "--window-size=1500,2200"]
    run = {"capture_output": True, "text": True, "timeout": 300, "check": True}
    page = subprocess.run([*command, "--dump-dom", url], **run)
    subprocess.run([*command, f"--screenshot={picture}", url], **run)
    assert pathlib.Path(picture).stat().st_size > 10_000
    text = re.sub(r"<(style|script)\b.*?</\1>", " ", page.stdout, flags=re.DOTALL)
    text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    complaints = re.findall(r".*CONSOLE.*(?:[Ee]rror|Uncaught|Failed).*", page.stderr)
    return page.stdout, text, complaints


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
        drawn = asked(f"{address}/data/plugin/scalars/tags")
        drawn = {tag for tags in drawn.values() for tag in tags}
        for chart in (chart for category in layout["category"] for chart in category["chart"]):
            for tag in chart["multiline"]["tag"]:
                assert any(re.match(tag, name) for name in drawn), tag
        _, _, errors = opened(f"{address}/#custom_scalars", tmp_path / "custom.png")
        assert not errors
        # What one sees without choosing anything: how the run is, and the curves to their end.
        _, text, errors = opened(address, tmp_path / "first.png")
        assert not errors
        assert f"1 learning /0 how it is one/tensorboard/train Step {steps[-1]}" in text
        for kind in ("train", "validation"):
            assert re.search(rf"one/tensorboard/{kind} [\d.]+ [\d.]+ {steps[-1]} ", text)
        assert "one/tensorboard/best" in text and "2 speed and health" in text


def test_report_is_drawn_without_a_complaint(tmp_path):
    runs = [made_runs.plain(tmp_path / "plain"), made_runs.restarted(tmp_path / "restarted")]
    runs.append(made_runs.slow(tmp_path / "slow"))
    output = tmp_path / "page.html"
    assert report.main([*(f"--run_dir={run}" for run in runs), f"--output={output}"]) == 0
    page, _, errors = opened(output.as_uri(), tmp_path / "report.png", seconds=3)
    assert not errors
    assert page.count("<polyline") > 10 and "worker 2: 2.36 times the others" in page
