"""Slurm with two nodes, which are containers: what docs/slurm.md says is typed here.

Needs a running Docker engine. On one node and across two, requeued in the middle.
"""

import csv
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
# Prints which task of which cluster this process is, as one line of JSON.
WHO = """
import json, os
from tfscale.cluster import environment
here = environment.resolve()
print(json.dumps({"workers": here.workers, "rank": here.rank,
    "procid": int(os.environ["SLURM_PROCID"]), "node": os.environ["SLURMD_NODENAME"]}))
"""
# Writes lines at the end of /etc/hosts, in the place of those that it wrote before.
HOSTS = """
import pathlib, sys
file, mark = pathlib.Path("/etc/hosts"), "# nodes\\n"
file.write_text(file.read_text().split(mark)[0] + mark + sys.argv[1] + "\\n")
"""
IDLE = {"tests* 2 idle", "urgent 2 idle", "many 12 idle"}
_PENDING_LOOKS = 10  # at a job that waits, before it is begun
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
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

    def container(self, node):
        return f"{self.name}-{node}-1"

    def command(self, *words, node="ctl"):
        return ("docker", "exec", "-w", "/work/runs", self.container(node), *words)

    def run(self, *words, node="ctl"):
        return composed.run(*self.command(*words, node=node))

    def run_both(self, *words):
        """Run a command that may fail: its exit code, and all that it printed."""
        done = subprocess.run(
            self.command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )
        return done.returncode, done.stdout

    def weights(self, run):
        return self.run("python3", "-c", composed.DIGEST, f"{run}/model.keras")

    def summary(self, run):
        return json.loads(self.run("cat", f"{run}/summary.json"))

    def submit(self, script, run, *flags):
        """`sbatch` a script of the repository, with variables and flags as a user would."""
        told = self.run(
            *("env", f"TFSCALE_RUN_DIR=/work/runs/{run}"),
            *("sbatch", *flags, f"--output={run}.out", f"/scripts/{script}.sbatch"),
            *composed.FLAGS.split(),
        )
        return told.split()[-1]

    def wait_for_step(self, run, step):
        deadline = time.monotonic() + 600
        while True:
            names = self.run_both("ls", f"{run}/checkpoints")[1].split()
            steps = [int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)]
            if max(steps, default=0) >= step:
                return max(steps)
            assert time.monotonic() < deadline, self.told(run)
            time.sleep(0.2)

    def state(self, job):
        """What Slurm says of a job: its state, how often it was requeued, why it waits."""
        shown = self.run("scontrol", "show", "job", job)
        found = (re.search(rf"{name}=(\w+)", shown) for name in ("JobState", "Restarts", "Reason"))
        return tuple(match[1] for match in found)

    def wait_for_state(self, job, run, *wanted):
        """Wait for one of these states; a job that was requeued does not wait two minutes."""
        deadline, num_pending = time.monotonic() + 900, 0
        while True:
            state, _, reason = self.state(job)
            if state in wanted:
                return state
            assert state not in ENDED, self.told(run)
            num_pending += (state, reason) == ("PENDING", "BeginTime")
            # Word of the end of the turn before may come late, and would count for the next one.
            if num_pending == _PENDING_LOOKS:
                num_pending = 0
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
            assert time.monotonic() < deadline, self.told(run)
            time.sleep(0.5)

    def completes(self, job, run, restarts):
        """The job ends well, after so many turns more."""
        self.wait_for_state(job, run, "COMPLETED")
        assert self.state(job)[1] == str(restarts), self.told(run)

    def told(self, run):
        commands = (("cat", f"{run}.out"), ("sinfo",), ("squeue",))
        return "".join(self.run_both(*command)[1] for command in commands)

    def write_hosts(self):
        """Write all names into each /etc/hosts: Docker forgets a container that is lost.

        A cluster's name server does not, and Slurm's controller stands still for minutes while
        it looks for a name that is gone.
        """
        nodes = ("ctl", "n1", "n2", "many")
        found = json.loads(composed.run("docker", "inspect", *map(self.container, nodes)))
        places = [one["NetworkSettings"]["Networks"].values() for one in found]
        lines = [
            f"{place['IPAddress']} {node}" for node, (place,) in zip(nodes, places, strict=True)
        ]
        for node in nodes:
            self.run("python3", "-c", HOSTS, "\n".join(lines), node=node)

    def lose(self, node):
        composed.run("docker", "kill", self.container(node))

    def bring_back(self, node):
        composed.run("docker", "start", self.container(node))
        self.write_hosts()
        self.wait_for_nodes()

    def wait_for_nodes(self):
        deadline = time.monotonic() + 120
        sinfo = ("sinfo", "--noheader", "--format=%P %D %T")
        while set(self.run_both(*sinfo)[1].splitlines()) != IDLE:
            assert time.monotonic() < deadline, self.run_both("sinfo")[1] + self.compose("logs")
            time.sleep(0.5)


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
        cluster.write_hosts()
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.compose("down", "--volumes", "--timeout", "2")


@pytest.fixture(scope="module")
def undisturbed(slurm):
    """The weights of two workers on two nodes that nobody disturbs."""
    slurm.run("srun", "-N2", "-n2", *FIT, "--run_dir=/work/runs/undisturbed")
    summary = slurm.summary("undisturbed")
    assert summary["num_workers"] == 2 and summary["test"]["accuracy"] > 0.96
    return slurm.weights("undisturbed")


def test_tasks_of_twelve_nodes_are_ranked_as_slurm_ranks_them(slurm):
    told = slurm.run("srun", "-pmany", "-N12", "-n15", "python3", "-c", WHO).splitlines()
    tasks = sorted((json.loads(line) for line in told), key=lambda task: task["procid"])
    assert len(tasks) == 15 and len({task["node"] for task in tasks}) == 12
    addresses = tasks[0]["workers"]
    assert len(set(addresses)) == 15
    for rank, task in enumerate(tasks):
        assert task["workers"] == addresses and task["rank"] == task["procid"] == rank
        assert addresses[rank].rpartition(":")[0] == task["node"]
    # The order is Slurm's own, which is not that of the names as text.
    assert [task["node"] for task in tasks] != sorted(task["node"] for task in tasks)


def test_a_step_of_one_task_in_a_larger_job_is_alone(slurm):
    inside = f"srun --overlap -N1 -n1 python3 -c '{WHO}'; srun --overlap -n2 python3 -c '{WHO}'"
    told = slurm.run("salloc", "-N2", "-n2", "sh", "-c", inside).splitlines()
    alone, *two = [json.loads(line) for line in told]
    assert alone["workers"] == [] and alone["rank"] == 0
    assert sorted(task["rank"] for task in two) == [0, 1]


def test_without_srun_a_command_says_what_to_type(slurm):
    code, told = slurm.run_both("salloc", "-N2", "-n2", *FIT)
    assert code == 2 and "in a Slurm job of 2 tasks, without srun" in told
    assert "put `srun -n2` in front of the command" in told
    code, told = slurm.run_both("salloc", "-N2", "-n2", "srun", "-N1", "-n1", *FIT)
    assert code == 2 and "nor a Slurm step of several tasks" in told
    fit = ("python3", "-m", "tfscale.fit", "--config.train.epochs=1", "--run_dir=shell")
    code, told = slurm.run_both("salloc", "-N2", "-n2", *fit)
    assert code == 0 and slurm.summary("shell")["num_workers"] == 1
    assert "warning: in a Slurm job of 2 tasks, without srun, this process trains alone" in told


def test_the_checks_before_a_job_meet_across_the_nodes(slurm):
    told = slurm.run("srun", "-N2", "-n2", "python3", "-m", "tfscale.doctor", "--run_dir=checked")
    assert "2 of 2 tasks" in told and re.search(r"^\d+ checks: all is well", told, re.MULTILINE)


def test_two_tasks_on_one_node_end_as_two_nodes_do(slurm, undisturbed):
    slurm.run("srun", "-N1", "-n2", *FIT, "--run_dir=/work/runs/one-node")
    assert slurm.summary("one-node")["num_workers"] == 2
    assert slurm.weights("one-node") == undisturbed


def test_a_job_that_is_requeued_in_the_middle_goes_on_exactly(slurm, undisturbed):
    job = slurm.submit("one-task-a-node", "requeued")
    step = slurm.wait_for_step("requeued", 80)
    slurm.run("scontrol", "requeue", job)
    slurm.completes(job, "requeued", restarts=1)
    going_on = re.search(r"Going on from step (\d+)", slurm.told("requeued"))
    assert going_on and int(going_on[1]) >= step
    assert slurm.summary("requeued")["num_workers"] == 2
    assert slurm.weights("requeued") == undisturbed


def test_a_job_that_is_told_to_leave_saves_and_asks_for_another_turn(slurm, undisturbed):
    job = slurm.submit("several-tasks-a-node", "preempted")
    slurm.wait_for_step("preempted", 80)
    slurm.run("scancel", "--signal=USR1", job)
    slurm.completes(job, "preempted", restarts=1)
    told = slurm.told("preempted")
    assert "srun ended with 143: the job goes on from its last checkpoint" in told
    saved = re.search(r"saved at step (\d+), and leaves", told)
    assert saved and f"Going on from step {saved[1]}" in told
    assert slurm.summary("preempted")["num_workers"] == 2
    assert slurm.weights("preempted") == undisturbed


@pytest.mark.slow
def test_a_job_that_a_more_urgent_one_preempts_saves_and_goes_on_exactly(slurm, undisturbed):
    job = slurm.submit("one-task-a-node", "gave-way")
    slurm.wait_for_step("gave-way", 80)
    assert sorted(slurm.run("srun", "-purgent", "-N2", "hostname").split()) == ["n1", "n2"]
    slurm.completes(job, "gave-way", restarts=1)
    saved = re.search(r"saved at step (\d+), and leaves", slurm.told("gave-way"))
    assert saved and f"Going on from step {saved[1]}" in slurm.told("gave-way")
    assert slurm.weights("gave-way") == undisturbed


def test_a_worker_that_is_killed_on_its_node_costs_a_restart(slurm, undisturbed):
    job = slurm.submit("one-task-a-node", "killed")
    slurm.wait_for_step("killed", 80)
    slurm.run("python3", "-c", KILL, "tfscale.fit", "--run_dir=/work/runs/killed", node="n2")
    slurm.completes(job, "killed", restarts=1)
    assert "Going on from step" in slurm.told("killed")
    assert slurm.weights("killed") == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("node", ["n2", "n1"])
def test_a_node_that_is_lost_costs_a_restart(slurm, undisturbed, node):
    run = f"lost-{node}"  # the batch script and the chief are on n1
    job = slurm.submit("one-task-a-node", run)
    slurm.wait_for_step(run, 80)
    slurm.lose(node)
    slurm.wait_for_state(job, run, "PENDING")
    slurm.bring_back(node)
    slurm.completes(job, run, restarts=1)
    assert "Going on from step" in slurm.told(run)
    assert slurm.weights(run) == undisturbed


def test_launchers_start_their_own_workers_again(slurm, undisturbed):
    run = "supervised"
    with open(os.devnull, "w") as null:
        command = ("srun", "-N2", "-n2", "--kill-on-bad-exit=0", *FIT, "--max_restarts=3")
        command = slurm.command(*command, f"--run_dir=/work/runs/{run}")
        srun = subprocess.Popen(command, stdout=null, stderr=null)
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
    slurm.wait_for_state(job, "refused", "FAILED")
    assert slurm.state(job)[1] == "0" and "epochs" in slurm.told("refused")


def test_a_batch_script_takes_one_node_too(slurm):
    job = slurm.submit("one-task-a-node", "one", "--nodes=1")
    slurm.completes(job, "one", restarts=0)
    summary = slurm.summary("one")
    assert summary["num_workers"] == 1 and summary["test"]["accuracy"] > 0.96


@pytest.mark.slow
def test_four_tasks_on_two_nodes_train_as_one_cluster(slurm):
    job = slurm.submit("several-tasks-a-node", "four", "--nodes=2")
    slurm.completes(job, "four", restarts=0)
    summary = slurm.summary("four")
    assert summary["num_workers"] == 4 and summary["test"]["accuracy"] > 0.96


@pytest.mark.slow
def test_two_nodes_search_together(slurm):
    command = ("python3", "-m", "tfscale.tune", "--config=/work/experiments/digits_search.py")
    flags = ("--max_trials=3", "--config.train.epochs=1", "--run_dir=/work/runs/search")
    told = slurm.run("srun", "-N2", "-n2", *command, *flags)
    assert "trials  3: 3 completed" in told and "begins on n2" in told
    rows = list(csv.DictReader(slurm.run("cat", "search/results.csv").splitlines()))
    assert [row["id"] for row in rows] == ["0000", "0001", "0002"]
    assert all(row["state"] == "completed" and float(row["score"]) > 0 for row in rows)
