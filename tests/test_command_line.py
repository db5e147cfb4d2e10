"""The command line and configuration files: what they take, and what they say of mistakes."""

import dataclasses
import json

import pytest

from tfscale import command_line, config_files, fit
from tfscale.config import RunConfig
from tfscale.names import check_known, closest, nearest

CONFIG_FILE = """
from tfscale.config import DataConfig, RunConfig, TrainConfig


def get_config():
    return RunConfig(
        data=DataConfig(global_batch_size=48, transforms=("rescale", "flatten")),
        train=TrainConfig(epochs=7, seed=5),
    )
"""


def parse(*argv):
    return command_line.parse(list(argv), fit.USAGE, fit._define_flags)


def config_of(*argv):
    config = parse(*argv).config
    config_files.check_types(config)
    return config


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG_FILE)
    return path


def test_nothing_typed_is_the_default_run():
    values = parse()
    assert values.config == RunConfig()
    assert (values.strategy, values.workers, values.resume) == ("auto", 0, "auto")


def test_order_of_flags_does_not_matter(config_file):
    flags = [
        f"--config={config_file}",
        "--config.train.epochs=2",
        "--strategy=mirrored",
        "--config.model.arguments.dropout=0.5",
    ]
    expected = parse(*flags)
    for argv in (flags[::-1], flags[2:] + flags[:2], flags[1:] + flags[:1]):
        values = parse(*argv)
        assert values.config == expected.config
        assert values.strategy == "mirrored"
    assert expected.config.train.epochs == 2
    assert expected.config.train.seed == 5
    assert expected.config.data.global_batch_size == 48


def test_file_may_stand_as_a_word_of_its_own(config_file):
    assert config_of("--config", str(config_file)).train.epochs == 7


def test_json_holds_what_differs_from_the_default(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"train": {"epochs": 3}, "data": {"transforms": ["rescale", "flatten"]}}')
    config = config_of(f"--config={path}")
    expected = RunConfig()
    expected.train.epochs, expected.data.transforms = 3, ("rescale", "flatten")
    assert config == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=4", 4),
        ("optimizer.learning_rate=1e-4", 1e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.clipnorm=0.5", 0.5),
        ("optimizer.clipnorm=2", 2.0),
        ("data.name=mnist", "mnist"),
        ("data.test_split=", ""),
        ("data.shuffle=false", False),
        ("data.drop_remainder=True", True),
        ("train.jit_compile", True),
        ("data.transforms=rescale,one_hot", ("rescale", "one_hot")),
        ("data.transforms=flatten", ("flatten",)),
        ("data.transforms=", ()),
        ("data.transforms=('rescale','flatten')", ("rescale", "flatten")),
        ("metrics.names=accuracy,top_k_categorical_accuracy", None),
        ("model.arguments.dropout=0.3", 0.3),
        ("model.arguments.filters=(8,16)", (8, 16)),
        ("model.arguments.l2.dense=0.01", 0.01),
        ("optimizer.arguments.nesterov=true", True),
        ("optimizer.arguments.weight_decay=none", None),
        ("model.arguments.activation=gelu", "gelu"),
        ("data.transform_arguments.standardize.mean=-0.5", -0.5),
    ],
)
def test_override_of_every_kind_of_field(override, expected):
    path, _, value = override.partition("=")
    if expected is None and value != "none":
        expected = tuple(value.split(","))
    found = config_of(f"--config.{override}")
    for name in path.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == expected
    assert type(found) is type(expected)


def test_a_negated_switch_and_the_last_of_two_overrides_count():
    assert config_of("--noconfig.data.shuffle").data.shuffle is False
    assert config_of("--config.train.epochs=2", "--config.train.epochs=3").train.epochs == 3
    clips = ["--config.optimizer.clipnorm=1", "--config.optimizer.clipnorm=none"]
    assert config_of(*clips).optimizer.clipnorm is None
    assert config_of(*clips[::-1]).optimizer.clipnorm == 1.0


def test_a_clip_can_be_taken_back(tmp_path):
    path = tmp_path / "run.json"
    path.write_text('{"optimizer": {"clipnorm": 1.0}}')
    assert config_of(f"--config={path}").optimizer.clipnorm == 1.0
    assert config_of(f"--config={path}", "--config.optimizer.clipnorm=none").optimizer == (
        RunConfig().optimizer
    )


def test_overrides_leave_the_defaults_of_the_next_run_alone():
    config_of("--config.model.arguments.dropout=0.3", "--config.loss.arguments.from_logits=false")
    assert config_of() == RunConfig()
    assert RunConfig().loss.arguments == {}


def test_json_round_trip(tmp_path, config_file):
    config = config_of(
        f"--config={config_file}",
        "--config.model.arguments.filters=(8,16)",
        "--config.optimizer.clipnorm=1.5",
        "--config.data.transform_arguments.standardize.mean=0.1",
    )
    path = tmp_path / "config.json"
    path.write_text(config_files.config_to_json(config))
    again = config_files.load_config(path)
    assert config_files.config_to_json(again) == path.read_text()
    assert again.data.transforms == ("rescale", "flatten")
    assert dataclasses.replace(again, model=config.model) == config


def test_shown_config_loads_back(tmp_path, capsys):
    overrides = ["--config.train.epochs=2", "--config.data.transforms=rescale,flatten"]
    assert fit.main([*overrides, "--show_config"]) == 0
    path = tmp_path / "shown.json"
    path.write_text(capsys.readouterr().out)
    assert config_of(f"--config={path}") == config_of(*overrides)


def refusal(capsys, *argv):
    """The one line that a wrong command line gets, and its exit code."""
    assert fit.main(list(argv)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    [line] = shown.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("argument", "texts"),
    [
        ("--config.trian.epochs=1", ["--config has no `trian`", "--config.train?", "schedule"]),
        ("--config.train.epoch=1", ["no `epoch`", "--config.train.epochs?", "jit_compile"]),
        ("--config.train.zzz=1", ["no `zzz`. It has: epochs"]),
        ("--config.train=1", ["must name a field", "--config.train.epochs=VALUE"]),
        ("--config.train.epochs.x=1", ["`train.epochs` has no fields of its own"]),
        ("--config.train.epochs=many", ["config.train.epochs", "many"]),
        ("--config.train.epochs=1.5", ["config.train.epochs", "1.5"]),
        ("--config.train.epochs=", ["config.train.epochs"]),
        ("--config.data.shuffle=perhaps", ["config.data.shuffle", "perhaps"]),
        ("--config.optimizer.learning_rate=fast", ["config.optimizer.learning_rate", "fast"]),
        ("--config.optimizer.clipnorm=hard", ["config.optimizer.clipnorm", "hard"]),
        ("--config.data.transforms=(1,2)", ["data.transforms", "(1, 2)"]),
        ("--config.data.transforms=(rescale", ["A list must be written as a,b", "(rescale"]),
        ("--config.model.arguments=3", ["must name an argument", "arguments.NAME=VALUE"]),
        ("--config.model.arguments.dropout", ["must name an argument and its value"]),
        (
            "--config.loss.arguments.from_logits=true --config.loss.arguments.from_logits.x=1",
            ["from_logits has no arguments of its own", "Its value is True"],
        ),
        ("--config=missing.py", ["missing.py, which does not exist"]),
        ("--config", ["--config must be"]),
        ("--config=", ["--config must be"]),
        ("run", ["Every argument must be a flag. Received: run"]),
        ("--epochs=3", ["epochs", "--help"]),
        ("--stategy=mirrored", ["stategy", "strategy", "--help"]),
        ("--workers=two", ["workers", "two"]),
        ("--workers=-1", ["workers", "-1"]),
        ("--strategy=mirored", ["--strategy must be one of auto", "'mirored'", "'mirrored'"]),
        ("--workers=2", ["--strategy=multiworker"]),
        ("--strategy=multiworker", ["--workers=N", "TF_CONFIG", "--workers=2"]),
    ],
)
def test_mistake_is_one_line_with_the_way_out(capsys, argument, texts):
    line = refusal(capsys, *argument.split(" "))
    for text in texts:
        assert text in line


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("{", ["is not JSON"]),
        ("[1, 2]", ["must be", "[1, 2]"]),
        ('{"trian": {}}', ["--config has no `trian`", "--config.train?"]),
        ('{"train": {"epoch": 1}}', ["--config.train has no `epoch`", "--config.train.epochs?"]),
        ('{"train": 3}', ["`train` must be an object", "3"]),
        ('{"train": {"epochs": "3"}}', ["`train.epochs` must be a whole number", "'3'"]),
        ('{"train": {"epochs": true}}', ["`train.epochs` must be a whole number", "True"]),
        ('{"train": {"epochs": 2.0}}', ["`train.epochs` must be a whole number", "2.0"]),
        ('{"data": {"transforms": "rescale"}}', ["`data.transforms` must be a list", "'rescale'"]),
        ('{"data": {"shuffle": 1}}', ["`data.shuffle` must be true or false", "1"]),
        ('{"model": {"arguments": [1]}}', ["`model.arguments` must be an object", "(1,)"]),
        ('{"optimizer": {"clipnorm": "1"}}', ["`optimizer.clipnorm` must be a number or nothing"]),
    ],
)
def test_mistake_in_json_is_named(capsys, tmp_path, text, texts):
    path = tmp_path / "run.json"
    path.write_text(text)
    line = refusal(capsys, f"--config={path}")
    for expected in texts:
        assert expected in line


@pytest.mark.parametrize(
    ("source", "texts"),
    [
        ("x = 1", ["get_config()"]),
        ("def get_config():\n    return 3", ["get_config() gives", "int"]),
        (CONFIG_FILE.replace("epochs=7", "epochs='7'"), ["`train.epochs` must be", "'7'"]),
        (CONFIG_FILE.replace("train=TrainConfig(epochs=7, seed=5)", "train=7"), ["`train` must"]),
        (CONFIG_FILE.replace("epochs=7", "epoch=7"), ["mine.py", "epoch"]),
        ("def get_config(:", ["mine.py"]),
    ],
)
def test_mistake_in_a_python_file_is_named(capsys, tmp_path, source, texts):
    path = tmp_path / "mine.py"
    path.write_text(source)
    line = refusal(capsys, f"--config={path}")
    for expected in texts:
        assert expected in line


def test_file_of_another_kind_is_refused(capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("train: {}")
    assert ".py file with get_config() or a .json" in refusal(capsys, f"--config={path}")
    assert "does not exist" in refusal(capsys, f"--config={tmp_path}")


def test_nearest_name():
    known = ["Train", "test"]
    assert closest("tarin", known) == "Train"
    assert closest("TSET", known) == "test"
    assert closest("xyz", known) is None
    assert nearest("tests", known) == " Did you mean 'test'?"
    assert nearest("xyz", known) == ""
    with pytest.raises(ValueError, match=r"`x` is unknown\. Received: 'tset'\. Did.*Known: Train,"):
        check_known("`x`", ["Train", "tset"], known)
    check_known("`x`", known, known)


def test_a_value_may_stand_in_a_word_of_its_own():
    config = config_of(
        *("--config.data.transforms", "rescale,flatten", "--config.optimizer.clipnorm", "none"),
        *("--config.model.arguments.dropout", "0.3", "--config.data.download"),
        *("--config.train.epochs", "3"),
    )
    assert config.data.transforms == ("rescale", "flatten") and config.data.download
    assert config.optimizer.clipnorm is None and config.train.epochs == 3
    assert config.model.arguments == {"dropout": 0.3}


def test_a_task_of_a_cluster_does_not_train_alone(capsys, monkeypatch):
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    task = {"type": "worker", "index": 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    line = refusal(capsys, "--strategy=onedevice")
    assert "--strategy=multiworker or auto" in line and "cluster of 2 tasks" in line


@pytest.fixture
def started(monkeypatch):
    """What `fit` would have run on this machine: the arguments and the options."""
    calls = []
    monkeypatch.setattr(
        fit.supervise, "run_local_workers", lambda *args, **more: calls.append((args, more)) or 0
    )
    return calls


def resume_of(started, life):
    """The last word on --resume in the workers' command of a life."""
    (command, _), _ = started[0]
    return [word for word in command(life) if word.startswith("--resume=")][-1]


@pytest.mark.parametrize(
    ("given", "first", "later"),
    [("auto", "auto", "auto"), ("never", "auto", "auto"), ("some/path", "some/path", "some/path")],
)
def test_a_restart_goes_on_as_the_run_was_asked_to(tmp_path, started, given, first, later):
    flags = ["--strategy=multiworker", "--workers=2", f"--run_dir={tmp_path}"]
    assert fit.main([*flags, f"--resume={given}"]) == 0
    assert resume_of(started, 1) == f"--resume={first}"
    assert resume_of(started, 2) == f"--resume={later}"
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert resume_of(started, 2) == "--resume=auto"
    assert resume_of(started, 1) == f"--resume={first}"


def test_a_restart_does_not_take_checkpoints_for_its_own_that_were_there_before(tmp_path, started):
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    flags = ["--strategy=multiworker", "--workers=2", f"--run_dir={tmp_path}", "--resume=here"]
    assert fit.main(flags) == 0
    assert resume_of(started, 2) == "--resume=here"
    (tmp_path / "checkpoints" / "step-00000007").mkdir()
    assert resume_of(started, 2) == "--resume=auto"


def test_supervision_is_handed_on_and_a_dry_run_is_not_repeated(tmp_path, started):
    flags = ["--strategy=multiworker", "--workers=3", "--min_workers=2", "--grace_seconds=7"]
    assert fit.main([*flags, "--hang_timeout_seconds=9"]) == 0
    assert fit.main([*flags, "--max_restarts=5", "--dry_run"]) == 0
    (_, num_workers), options = started[0]
    expected = {"max_restarts": 3, "hang_timeout_seconds": 9, "grace_seconds": 7}
    expected |= {"min_workers": 2, "max_workers": None, "start_timeout_seconds": 300}
    assert num_workers == 3 and expected.items() <= options.items()
    assert started[1][1]["max_restarts"] == 0
    (command, _), _ = started[0]
    assert "--workers=0" in command(1)  # TF_CONFIG says how many they are


def test_numbers_of_workers_out_of_order_are_refused_before_a_run_is_moved(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    flags = ["--strategy=multiworker", "--workers=2", "--resume=never", f"--run_dir={tmp_path}"]
    line = refusal(capsys, *flags, "--min_workers=3")
    assert "Received: 2 workers, min_workers=3" in line
    assert (tmp_path / "config.json").exists()


def test_never_moves_a_run_aside_before_the_workers_open_their_logs(tmp_path, started):
    run_dir = tmp_path / "run"
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "config.json").write_text("{}")
    (run_dir / "logs" / "worker-0.log").write_text("the first life")
    flags = ["--strategy=multiworker", "--workers=2", "--resume=never", f"--run_dir={run_dir}"]
    assert fit.main(flags) == 0
    assert started[0][1]["log_dir"] == str(run_dir / "logs") and not run_dir.exists()
    moved = tmp_path / "run.1" / "logs" / "worker-0.log"
    assert moved.read_text() == "the first life"
