"""What can be said of the deployments without an engine: files parse, and say what they must."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from tfscale import command_line, fit, tune_flags
from tfscale.cluster import hosts

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docker/deploy/slurm").glob("*.sbatch"))
KNOBS = dict(
    line.split("=", 1)
    for line in (ROOT / ".env").read_text().splitlines()
    if line and not line.startswith("#")
)


class Compose(yaml.SafeLoader):
    """Reads Compose's own tags, such as !override, as the values behind them."""


Compose.add_multi_constructor("!", lambda loader, tag, node: loader.construct_sequence(node))


def load(name):
    return yaml.load((ROOT / name).read_text(), Compose)


def filled(text, **knobs):
    """Put variables in as Compose does."""
    values = {"COMPOSE_PROJECT_NAME": "tfscale", **KNOBS, **knobs}

    def value(match):
        name, kind, more = match[1], match[2] or "", match[3] or ""
        found = values.get(name, "")
        if kind == ":+":
            return filled(more, **knobs) if found else ""
        return found or more

    return re.sub(r"\$\{(\w+)(?:(:[-+])((?:[^{}]|\$\{[^{}]*\})*))?\}", value, text)


def flags_of(command):
    """Check the words behind `fit`, and return the flags' values."""
    first, *words = shlex.split(command)
    assert first == "fit"
    return command_line.parse(words, fit.USAGE, fit._define_flags)


def test_the_top_level_file_includes_the_services():
    top = load("compose.yaml")
    assert top["include"] == [{"path": "docker/compose.yaml", "project_directory": "."}]
    services = load("docker/compose.yaml")["services"]
    assert set(services) == {"trainer", "worker", "tensorboard"}
    assert services["trainer"]["depends_on"] == ["worker", "tensorboard"]


@pytest.mark.parametrize("more", [None, "docker/gpu.yaml"])
def test_the_image_is_built_by_one_service_and_never_pulled_by_the_others(more):
    """Builds of one image at a time disturb each other, and no registry has it."""
    services = load("docker/compose.yaml")["services"]
    for name, changed in load(more)["services"].items() if more else ():
        services[name] = services[name] | changed
    assert [name for name, service in services.items() if "build" in service] == ["trainer"]
    used = ("trainer", "tensorboard", *([] if more else ["worker"]))
    assert len({services[name]["image"] for name in used}) == 1
    assert all(services[name]["pull_policy"] == "never" for name in used[1:])


def test_every_knob_is_used_and_none_is_missing():
    texts = [(ROOT / f"docker/{name}.yaml").read_text() for name in ("compose", "gpu")]
    used = set(re.findall(r"\$\{(TFSCALE_\w+)", "".join(texts)))
    assert used == set(KNOBS)
    page = (ROOT / "docs/docker.md").read_text()
    assert all(f"`{name}`" in page for name in KNOBS)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {
            "TFSCALE_EXPERIMENT": "experiments/digits_cnn.py",
            "TFSCALE_FLAGS": "--deterministic --config.train.epochs=3",
            "TFSCALE_RUN": "mine",
        },
    ],
)
def test_tasks_are_told_a_command_of_fit(knobs):
    services = load("docker/compose.yaml")["services"]
    for name in ("trainer", "worker"):
        values = flags_of(filled(services[name]["command"], **knobs))
        assert values.run_dir == f"runs/{knobs.get('TFSCALE_RUN', 'digits')}"
        assert values.strategy == "multiworker" and values.max_restarts == 5
        grace = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace > values.grace_seconds
        assert values.deterministic == bool(knobs)


def test_the_command_for_gpus_is_one_of_fit():
    trainer = load("docker/gpu.yaml")["services"]["trainer"]
    assert flags_of(filled(trainer["command"])).strategy == "mirrored"
    assert trainer["environment"]["TFSCALE_HOSTS"] == ""


@pytest.mark.parametrize(("service", "role"), [("trainer", "chief"), ("worker", "worker")])
def test_the_commands_of_a_search_are_those_of_tune(service, role):
    found = load("docker/search.yaml")["services"][service]
    first, *words = shlex.split(filled(found["command"], TFSCALE_FLAGS="--max_trials=4"))
    assert first == "tune" and found["environment"]["TFSCALE_HOSTS"] == ""
    values = command_line.parse(words, tune_flags.USAGE, tune_flags.define)
    assert (values.search_chief, values.search_role) == ("trainer:7101", role)
    assert values.run_dir == "runs/digits-search" and values.max_trials == 4


@pytest.mark.parametrize("workers", ["0", "2", "12"])
def test_the_tasks_know_the_names_of_the_containers(workers):
    services = load("docker/compose.yaml")["services"]
    listed = filled(services["worker"]["environment"]["TFSCALE_HOSTS"], TFSCALE_WORKERS=workers)
    assert services["worker"]["environment"] == services["trainer"]["environment"]
    names = ["trainer"] + [f"tfscale-worker-{number + 1}" for number in range(int(workers))]

    def lookup(address):
        host = address.partition(":")[0]
        return (f"ip-of-{host}",) if host in names else ()

    for rank, name in enumerate(names):
        found = hosts.tasks(
            {"TFSCALE_HOSTS": listed}, lookup, lambda ip, n=name: ip == f"ip-of-{n}"
        )
        assert found.addresses == tuple(f"{host}:2222" for host in names)
        assert found.rank == rank


def test_services_have_no_more_rights_than_they_need():
    found = load("docker/compose.yaml")
    for name, service in found["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["mem_limit"] == service["memswap_limit"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service["networks"] == (["front"] if name == "tensorboard" else ["cluster"])
    assert found["networks"]["cluster"] == {"internal": True}


def test_the_image_takes_what_it_copies_and_runs_as_nobody_special():
    text = (ROOT / "docker/Dockerfile").read_text()
    assert "# syntax" not in text and re.search(r"^USER 1000:1000$", text, re.MULTILINE)
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+-slim$", text, re.MULTILINE)
    copied = [word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert sorted(f"!{name}" for name in copied) == sorted(
        line for line in allowed if line.startswith("!")
    )
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
class TestBatchScripts:
    @pytest.fixture
    def turn(self, script, tmp_path):
        """A function that runs one turn of the job with stand-ins for Slurm's commands."""
        run = tmp_path / "runs/tfscale-77"

        def one(code, restarts=0, saves=0, **variables):
            step = f"mkdir -p {run}/checkpoints/step-{saves:08d}; " if saves else ""
            for name, text in (
                ("srun", f'{step}echo "srun $*"; exit {code}'),
                ("scontrol", 'echo "asks $*"'),
                ("sleep", 'echo "waits to be ended"'),
            ):
                (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
                (tmp_path / name).chmod(0o755)
            environ = {
                **os.environ,
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "SLURM_JOB_ID": "77",
                "SLURM_JOB_NAME": "tfscale",
                "SLURM_SUBMIT_DIR": str(tmp_path),
                "SLURM_RESTART_COUNT": str(restarts),
                **variables,
            }
            done = subprocess.run(
                ["bash", script, "--deterministic", "--resume=never"],
                env=environ,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == code and done.stderr == ""
            return done.stdout

        one.run = run
        return one

    @pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (143, True), (1, True)])
    def test_asks_for_another_turn_where_that_may_help(self, turn, code, requeued):
        said = turn(code)
        assert ("asks requeue 77\nwaits to be ended" in said) == requeued
        assert "--kill-on-bad-exit=0" in said
        values = flags_of(f"fit {said.splitlines()[0].split('tfscale.fit ')[1]}")
        assert values.deterministic and values.run_dir == str(turn.run)

    @pytest.mark.parametrize("code", [1, 143])
    def test_ends_after_five_turns_in_a_row_that_saved_nothing(self, turn, code):
        assert "asks requeue" in turn(code, restarts=40, saves=20)  # it got on, however often
        for restarts in range(41, 45):
            assert "asks requeue" in turn(code, restarts)
        assert "asks requeue" in turn(code, restarts=45, saves=40)
        for restarts in range(46, 50):
            assert "asks requeue" in turn(code, restarts)
        said = turn(code, restarts=50)
        assert "asks requeue" not in said and "5 turns in a row" in said and str(turn.run) in said

    def test_a_later_turn_does_not_begin_anew(self, turn):
        for restarts, resume in ((0, "never"), (1, "auto")):
            words = turn(143, restarts).splitlines()[0].split("tfscale.fit ")[1]
            assert flags_of(f"fit {words}").resume == resume

    def test_gives_each_task_the_cores_that_were_asked_for(self, script, turn):
        said = turn(0, SLURM_CPUS_PER_TASK="8")
        assert ("--cpus-per-task=8 " in said) == (script.stem == "several-tasks-a-node")

    def test_asks_slurm_for_a_signal_in_time(self, script):
        text = script.read_text()
        for option in ("--requeue", "--signal=USR1@120", "--open-mode=append"):
            assert f"#SBATCH {option}\n" in text
