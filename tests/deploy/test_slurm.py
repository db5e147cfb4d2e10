"""Slurm with two nodes, which are containers: what docs/slurm.md says is typed here.

Needs a running Docker engine. On one node and across two, requeued in the middle.
"""

import contextlib
import json
import os
import re
import subprocess
import time

import composed
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]

HERE = composed.ROOT / "tests/deploy/slurm"
FIT = ("python3", "-m", "tfscale.fit", "--strategy=multiworker", *composed.FLAGS.split())
# Kills the workers that run here with all these words in their command, and no launcher of theirs.
KILL = """
import os, pathlib, signal, sys
killed = 0
for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (folder / "cmdline").read_bytes().decode()
    except OSError:
        continue
    python = words.startswith("python3") or "/python3" in words.split("\\0")[0]
    others = "spawn.py" in words or "rendezvous" in words or int(folder.name) == os.getpid()
    if python and not others and all(word in words for word in sys.argv[1:]):
        os.kill(int(folder.name), signal.SIGKILL)
        killed += 1
sys.exit(killed != 1)
"""
SOURCES = "grep -rqsE '^(deb|URIs)' /etc/apt/sources.list /etc/apt/sources.list.d"


def apt_source(image):
    """Return a line for an image that names no package source, from those of this machine."""
    named = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", SOURCES], check=False
    )
    if named.returncode == 0:
        return ""
    text = composed.run("sh", "-c", "cat /etc/apt/sources.list /etc/apt/sources.list.d/* || true")
    address = re.search(r"^(?:URIs:|deb) +(\S+)", text, re.MULTILINE)[1]
    release = composed.run(
        *("docker", "run", "--rm", "--entrypoint", "sh", image),
        *("-c", ". /etc/os-release; echo $VERSION_CODENAME"),
    )
    return f"deb {address} {release} main"


class Slurm:
    """The cluster, seen from its controller."""

    def __init__(self, name, image):
        self.name = name
        self.environ = {**os.environ, "SLURM_IMAGE": image, "COMPOSE_FILE": "compose.yaml"}

    def compose(self, *arguments):
        command = ("docker", "compose", "--project-name", self.name, *arguments)
        return composed.run(*command, cwd=HERE, env=self.environ)

    def run(self, *command, node="ctl"):
        return composed.run("docker", "exec", "-w", "/work/runs", f"{self.name}-{node}-1", *command)

    def try_run(self, *command):
        with contextlib.suppress(AssertionError):
            return self.run(*command)
        return ""

    def weights(self, run):
        return self.run("python3", "-c", composed.DIGEST, f"{run}/model.keras")

    def summary(self, run):
        return json.loads(self.run("cat", f"{run}/summary.json"))

    def submit(self, script, run, *flags):
        told = self.run(
            *("env", f"TFSCALE_RUN_DIR=/work/runs/{run}"),
            *("sbatch", *flags, f"--output={run}.out", f"/scripts/{script}.sbatch"),
            *composed.FLAGS.split(),
        )
        return told.split()[-1]

    def wait_for_step(self, run, step):
        deadline = time.monotonic() + 600
        while True:
            names = self.try_run("ls", f"{run}/checkpoints").split()
            steps = [int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)]
            if max(steps, default=0) >= step:
                return max(steps)
            assert time.monotonic() < deadline, self.told(run)
            time.sleep(0.2)

    def wait_for_end(self, job, run):
        deadline = time.monotonic() + 900
        while True:
            shown = self.run("scontrol", "show", "job", job)
            state = re.search(r"JobState=(\w+)", shown)[1]
            if state in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"):
                return state
            assert time.monotonic() < deadline, shown + self.told(run)
            time.sleep(1)

    def told(self, run):
        return self.try_run("cat", f"{run}.out") + self.run("sinfo") + self.run("squeue")


@pytest.fixture(scope="module")
def slurm():
    """A controller and two nodes; the image is built where it is not there."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.exit("make test-slurm needs a running Docker engine, whose containers are nodes.", 1)
    composed.run("docker", "compose", "build", "trainer", cwd=composed.ROOT)
    base = os.environ.get("TFSCALE_IMAGE", "tfscale:cpu")
    image = "tfscale-slurm:test"
    arguments = (f"IMAGE={base}", f"APT_SOURCE={apt_source(base)}")
    built = [word for argument in arguments for word in ("--build-arg", argument)]
    composed.run("docker", "build", "--quiet", "--tag", image, *built, str(HERE))
    cluster = Slurm("tfscale-slurm", image)
    try:
        cluster.compose("up", "--detach")
        deadline = time.monotonic() + 60
        while cluster.try_run("sinfo", "--noheader", "--format=%D %T") != "2 idle":
            assert time.monotonic() < deadline, cluster.try_run("sinfo") + cluster.compose("logs")
            time.sleep(0.5)
        yield cluster
    finally:
        cluster.compose("down", "--volumes", "--timeout", "2")


@pytest.fixture(scope="module")
def undisturbed(slurm):
    """The weights of two workers on two nodes that nobody disturbs."""
    told = slurm.run("srun", "-N2", "-n2", *FIT, "--run_dir=/work/runs/undisturbed")
    assert re.search(r"test    loss \S+  accuracy 0\.9[6-9]", told)
    assert slurm.summary("undisturbed")["num_workers"] == 2
    logs = slurm.run("srun", "-N2", "-n2", "hostname").split()
    assert sorted(logs) == ["n1", "n2"]
    return slurm.weights("undisturbed")


def test_two_tasks_on_one_node_end_as_two_nodes_do(slurm, undisturbed):
    slurm.run("srun", "-N1", "-n2", *FIT, "--run_dir=/work/runs/one-node")
    assert slurm.summary("one-node")["num_workers"] == 2
    assert slurm.weights("one-node") == undisturbed


def test_a_job_that_is_requeued_in_the_middle_goes_on_exactly(slurm, undisturbed):
    job = slurm.submit("one-task-a-node", "requeued")
    step = slurm.wait_for_step("requeued", 80)
    slurm.run("scontrol", "requeue", job)
    assert slurm.wait_for_end(job, "requeued") == "COMPLETED", slurm.told("requeued")
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", job)
    going_on = re.search(r"Going on from step (\d+)", slurm.told("requeued"))
    assert going_on and int(going_on[1]) >= step
    assert slurm.weights("requeued") == undisturbed


def test_a_job_that_is_told_to_leave_saves_and_asks_for_another_turn(slurm, undisturbed):
    job = slurm.submit("several-tasks-a-node", "preempted")
    slurm.wait_for_step("preempted", 80)
    slurm.run("scancel", "--signal=USR1", job)
    assert slurm.wait_for_end(job, "preempted") == "COMPLETED", slurm.told("preempted")
    told = slurm.told("preempted")
    assert "srun ended with 143: the job goes on from its last checkpoint (restart 1)" in told
    assert "Going on from step" in told
    assert slurm.weights("preempted") == undisturbed


def test_a_worker_that_is_killed_on_its_node_costs_a_restart(slurm, undisturbed):
    job = slurm.submit("one-task-a-node", "killed")
    slurm.wait_for_step("killed", 80)
    slurm.run("python3", "-c", KILL, "tfscale.fit", "--run_dir=/work/runs/killed", node="n2")
    assert slurm.wait_for_end(job, "killed") == "COMPLETED", slurm.told("killed")
    assert "Restarts=1" in slurm.run("scontrol", "show", "job", job)
    assert slurm.weights("killed") == undisturbed


def test_launchers_start_their_own_workers_again(slurm, undisturbed):
    run = "supervised"
    with open(os.devnull, "w") as null:
        command = ["docker", "exec", "-w", "/work/runs", f"{slurm.name}-ctl-1"]
        command += ["srun", "-N2", "-n2", "--kill-on-bad-exit=0", *FIT, "--max_restarts=3"]
        srun = subprocess.Popen([*command, f"--run_dir=/work/runs/{run}"], stdout=null, stderr=null)
        try:
            slurm.wait_for_step(run, 80)
            slurm.run("python3", "-c", KILL, "tfscale.fit", "--max_restarts=0", node="n1")
            assert srun.wait(timeout=300) == 0
        finally:
            srun.kill()
            srun.wait()
    assert slurm.weights(run) == undisturbed


def test_what_cannot_be_run_is_not_requeued(slurm):
    told = slurm.run(
        *("env", "TFSCALE_RUN_DIR=/work/runs/refused"),
        *("sbatch", "--output=refused.out", "/scripts/one-task-a-node.sbatch"),
        "--config.train.epoch=3",
    )
    job = told.split()[-1]
    assert slurm.wait_for_end(job, "refused") == "FAILED"
    assert "Restarts=0" in slurm.run("scontrol", "show", "job", job)
    assert "epochs" in slurm.told("refused")
