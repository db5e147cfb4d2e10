"""Who leads and who joins, from an address, keras-tuner's variables, or Slurm's."""

import subprocess
import sys

import pytest

from tfscale.cluster import ports
from tfscale.search import processes, roles

KERAS = {"KERASTUNER_ORACLE_IP": "10.0.0.1", "KERASTUNER_ORACLE_PORT": "8000"}


def slurm(rank, **more):
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "n[1-3]",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
        "SLURM_PROCID": str(rank),
        **more,
    }


def test_without_an_address_a_search_is_of_one_machine():
    role = roles.resolve(environ={})
    assert (role.kind, role.address, role.only_leads) == ("alone", "", False)
    assert roles.resolve(environ={"KERASTUNER_TUNER_ID": "tuner0"}).kind == "alone"


def test_first_task_of_a_slurm_step_leads_and_all_know_its_address():
    found = [roles.resolve(environ=slurm(rank)) for rank in range(3)]
    assert [role.kind for role in found] == ["chief", "worker", "worker"]
    assert {role.address.split(":")[0] for role in found} == {"n1"}
    assert len({role.address for role in found}) == 1 and found[0].job == "77"
    other_step = roles.resolve(environ=slurm(0, SLURM_STEP_ID="1"))
    assert other_step.address != found[0].address
    assert roles.resolve(environ=slurm(0, TFSCALE_PORT="4000")).address == "n1:4000"
    assert roles.resolve(environ={**slurm(0), "SLURM_STEP_NUM_TASKS": "1"}).kind == "alone"


def test_keras_tuners_variables_say_who_is_who_and_its_chief_only_leads():
    chief = roles.resolve(environ=KERAS | {"KERASTUNER_TUNER_ID": "chief"})
    tuner = roles.resolve(environ=KERAS | {"KERASTUNER_TUNER_ID": "tuner1"})
    assert (chief.kind, chief.only_leads) == ("chief", True)
    assert (tuner.kind, tuner.name, tuner.address) == ("worker", "tuner1", "10.0.0.1:8000")


def test_an_address_that_is_given_comes_before_the_environment():
    environ = slurm(0) | KERAS | {"KERASTUNER_TUNER_ID": "chief"}
    role = roles.resolve("192.0.2.1:4000", environ=environ)
    assert (role.kind, role.address, role.name) == ("worker", "192.0.2.1:4000", "chief")


def test_a_host_that_has_no_address_yet_is_another_one():
    assert roles.resolve("nowhere.invalid:4000", environ={}).kind == "worker"


def test_of_processes_on_one_machine_the_first_is_the_chief():
    """It has the address from the moment on at which it was decided."""
    address = f"127.0.0.1:{ports.free_ports(1)[0]}"
    assert roles.resolve(address, environ={}).kind == "chief"
    code = (
        "import sys\nfrom tfscale.search import roles\n"
        "print(roles.resolve(sys.argv[1], environ={}).kind)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "worker"
    server = roles.listening(roles.Role("chief", address))
    assert server.getsockname()[0] == "127.0.0.1"
    assert roles.resolve(address, environ={}).kind == "chief"  # also for a second search
    with server, pytest.raises(ValueError, match="in use"):
        roles.listening(roles.Role("chief", address))


@pytest.mark.parametrize(
    ("arguments", "environ", "says"),
    [
        (("host0",), {}, "must be 'host:port'"),
        (("0.0.0.0:4000",), {}, "Say on each which it is"),
        (("", "chief"), slurm(1), "Add --search_chief=HOST:PORT"),
        (("", "worker"), {}, "Add --search_chief=HOST:PORT"),
        (("127.0.0.1:4000", "boss"), {}, "one of auto, chief, worker"),
        ((), KERAS, "belong together"),
        ((), {"KERASTUNER_TUNER_ID": "chief", "KERASTUNER_ORACLE_IP": "10.0.0.1"}, "belong"),
    ],
)
def test_what_says_nothing_that_can_be_is_refused(arguments, environ, says):
    with pytest.raises(ValueError, match=says):
        roles.resolve(*arguments, environ=environ)


def test_a_trial_knows_nothing_of_the_machines(tmp_path, monkeypatch):
    import contextlib

    from tfscale.cluster import local

    names = {**slurm(0), **KERAS, "KERASTUNER_TUNER_ID": "tuner0"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    code = f"import os; print(sorted(set({list(names)}) & set(os.environ)))"
    with contextlib.closing(local.Guard()) as guard:
        process = processes.TrialProcess([sys.executable, "-c", code], tmp_path / "log", guard)
        while not process.has_ended():
            pass
    assert (tmp_path / "log").read_text() == "[]\n"
