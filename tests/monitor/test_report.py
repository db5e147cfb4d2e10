"""`python -m tfscale.report` and `python -m tfscale.watch`: what they show of runs, and how."""

import json
import re
import subprocess
import sys

import made_runs
import pytest

from tfscale import report, watch
from tfscale.monitor import follow
from tfscale.monitor.run_files import RunFiles


@pytest.fixture
def three(tmp_path):
    """Three runs: one well, one restarted, one with a slow worker."""
    return [
        made_runs.plain(tmp_path / "plain"),
        made_runs.restarted(tmp_path / "restarted", optimizer__learning_rate=0.125),
        made_runs.slow(tmp_path / "slow"),
    ]


def page_of(runs, tmp_path):
    output = tmp_path / "page.html"
    argv = [f"--run_dir={run}" for run in runs]
    assert report.main([*argv, f"--output={output}"]) == 0
    return output.read_text()


def test_page_needs_nothing_from_outside(three, tmp_path):
    page = page_of(three, tmp_path)
    assert not re.findall(r"(?:https?:)?//\w", page)
    assert "<script" not in page and "@import" not in page
    assert all(link.startswith("data:") for link in re.findall(r'(?:src|href)="([^"]*)', page))


def test_first_table_has_the_slow_worker_the_restart_and_the_best_step(three, tmp_path):
    first = page_of(three, tmp_path).split("</table>")[0]
    rows = [re.sub(r"<[^>]*>", " ", row) for row in first.split("<tr>")[2:]]
    assert "accuracy  0.9000  at step  20" in rows[0] and "finished" in rows[0]
    assert re.search(r" 50 %  1  1 ", rows[1])  # a restart and a bad step
    assert "worker 2: 2.36 times the others" in rows[2]


def test_charts_have_all_points_the_restart_and_a_star(three, tmp_path):
    page = page_of(three, tmp_path)
    loss = page.split("<h3>loss</h3>")[1].split("</svg>")[0]
    assert loss.count("<polyline") == 4  # training of three, validation of one
    assert loss.count("<circle") == 30 + 3 + 15 + 20
    assert ">step</text>" in loss
    assert "goes on at step 10" in loss and "stroke-dasharray" in loss
    accuracy = page.split("<h3>accuracy</h3>")[1].split("</svg>")[0]
    assert "★" in accuracy and "0.9000 at step 20" in accuracy


def test_only_what_followed_a_failure_is_drawn_as_a_restart(tmp_path):
    page = page_of([made_runs.continued(tmp_path / "run")], tmp_path)
    loss = page.split("<h3>loss</h3>")[1].split("</svg>")[0]
    assert loss.count('stroke-dasharray="6 3"') == 1
    assert "goes on at step 10" in loss and "is continued" not in loss
    assert "Is continued at step 30" in page


def test_configurations_are_shown_where_they_differ(three, tmp_path):
    page = page_of(three, tmp_path)
    differing = page.split("<h2>Configuration</h2>")[1].split("<details>")[0]
    assert "optimizer.learning_rate" in differing and "0.125" in differing
    assert "optimizer.name" not in differing
    assert "optimizer.name" in page


def test_names_are_text_and_no_markup(tmp_path):
    page = page_of([made_runs.plain(tmp_path / "<b>&run")], tmp_path)
    assert "&lt;b&gt;&amp;run" in page and "<b>&run" not in page


def test_metric_of_several_numbers_is_shown_by_its_mean(tmp_path, capsys):
    several = {"loss": 0.5, "f1": [0.25, 0.75]}
    records = [made_runs.record(s, 1.0) for s in (10, 20)]
    records[1:1] = [{"step": 10, "time": made_runs.BEGAN + 10, "validation": several}]
    records += [{"step": 20, "time": made_runs.BEGAN + 21, "test": several}]
    events = [made_runs.begin(0, 0), made_runs.event("end", 20, 22)]
    run = made_runs.write(tmp_path / "run", records, events)
    page = page_of([run], tmp_path)
    assert "f1 0.5000" in page.split("</table>")[0]
    assert "validation: 0.5 at step 10" in page.split("<h3>f1</h3>")[1]
    assert watch.main([f"--run_dir={run}", "--once"]) == 0
    assert "validation 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["train", "validation", "test", "seconds", "workers", "time"])
def test_field_that_is_null_breaks_neither_page_nor_text(kind, tmp_path):
    run = made_runs.plain(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 31, "epoch": 3, kind: None}) + "\n")
    (run / "summary.json").write_text('{"test": null}')
    assert "accuracy  0.9000" in re.sub(r"<[^>]*>", " ", page_of([run], tmp_path))
    text = "\n".join(follow.lines(RunFiles(run)))
    assert "accuracy 0.9000 at step 20" in text and "step 31" in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "summary.json"])
def test_folder_in_place_of_a_file_is_as_if_nothing_was_there(name, tmp_path, capsys):
    run = made_runs.plain(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    assert "<h1>run" in page_of([run], tmp_path)
    assert watch.main([f"--run_dir={run}", "--once"]) == 0
    assert str(run) in capsys.readouterr().out


@pytest.mark.parametrize(
    "losses",
    [[1e30, 1e30, 2e38], [-1e308, 1e308], [0.0, 5e-324], [float("nan"), float("inf")], [1e16] * 3],
)
def test_numbers_of_any_size_break_neither_page_nor_text(losses, tmp_path):
    records = [made_runs.record(s, loss) for s, loss in enumerate(losses, 1)]
    run = made_runs.write(tmp_path / "run", records, [made_runs.begin(0, 0)])
    page = page_of([run], tmp_path)
    drawn = re.findall(r'(?:points|cx|cy|x1|y1|width)="([^"]*)', page)
    assert not [text for text in drawn if "nan" in text or "inf" in text]
    assert follow.lines(RunFiles(run))


def test_page_of_one_run_lies_in_its_folder(three, capsys):
    assert report.main([f"--run_dir={three[0]}"]) == 0
    assert capsys.readouterr().out.strip() == str(three[0] / "report.html")
    assert (three[0] / "report.html").exists()


def test_pictures_are_in_the_page(tmp_path):
    run = made_runs.plain(tmp_path / "run")
    (run / "pictures").mkdir()
    (run / "pictures/confusion_matrix.png").write_bytes(b"picture")
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in page_of([run], tmp_path)


@pytest.mark.parametrize("command", [report, watch])
@pytest.mark.parametrize(("flag", "part"), [([], "Received: none"), (["--run_dir=no"], "curves")])
def test_what_is_no_run_is_refused_in_a_line(command, flag, part, capsys):
    once = ["--once"] if command is watch else []
    assert command.main([*flag, *once]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --run_dir must") and part in line


def test_one_look_shows_the_facts_without_tensorflow(three):
    code = (
        "import sys\nfrom tfscale import watch, report\n"
        f"assert watch.main(['--run_dir={three[1]}', '--once']) == 0\n"
        f"assert report.main(['--run_dir={three[2]}']) == 0\n"
        "assert not {'tensorflow', 'keras', 'numpy', 'tensorboard'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "restarted after a failure" in done.stdout


def test_text_is_whole_without_a_terminal_and_fits_one(tmp_path, monkeypatch, capsys):
    run = made_runs.killed(tmp_path / "run")
    monkeypatch.setenv("COLUMNS", "80")
    assert watch.main([f"--run_dir={run}", "--once"]) == 0
    whole = capsys.readouterr().out
    assert "7 steps taken again, 2 worker(s)\n" in whole
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert watch.main([f"--run_dir={run}", "--once"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 < max(map(len, whole.splitlines()))
    assert "2 worker(s)\n" in shown


def test_following_ends_with_the_run(three, capsys):
    assert watch.main([f"--run_dir={three[0]}"]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--run_dir={}/file"], "must be a folder"),
        (["--run_dir={}/nowhere"], "is not there"),
        (["--run_dir={}/run", "--output={}/run"], "--output must be a file"),
        (["--run_dir={}/run", "--output={}/nowhere/page.html"], "--output must be a file"),
        (["{}/run"], "Write --run_dir="),
    ],
)
def test_what_cannot_be_read_or_written_is_refused_and_leaves_nothing(
    tmp_path, capsys, arguments, says
):
    made_runs.plain(tmp_path / "run")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert report.main([text.format(tmp_path) for text in arguments]) == 2
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_watch_refuses_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert watch.main([f"--run_dir={tmp_path / 'file'}"]) == 2
    assert "must be a folder" in capsys.readouterr().err
