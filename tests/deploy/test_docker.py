"""`docker compose up trainer` on a running engine: what it makes, and faults from outside.

What docs/docker.md says is typed here. Needs an engine with Compose, and root for the faults.
"""

import contextlib
import os
import re
import signal
import subprocess
import time
import urllib.request

import composed
import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400)]


@pytest.fixture(scope="session")
def image():
    """Build the image once, as `docker compose up` does; how long it took is shown."""
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.exit(f"make test-docker needs a running Docker engine: {done.stderr.strip()}", 1)
    name = os.environ.get("TFSCALE_IMAGE", "tfscale:cpu")
    began = time.monotonic()
    composed.run("docker", "compose", "build", "trainer", cwd=composed.ROOT)
    size = int(composed.run("docker", "image", "inspect", "-f", "{{.Size}}", name))
    print(f"\n{name}: {size / 1e9:.2f} GB, built in {time.monotonic() - began:.0f} s")
    return name


@pytest.fixture
def project(image, request, tmp_path):
    """A project of this test, with a run of its own; gone afterwards."""
    number = re.sub(r"[\W_]+", "-", request.node.name.removeprefix("test_"))[:24].strip("-").lower()
    made = composed.Project(
        f"tfscale-{number}", tmp_path, TFSCALE_RUN="mine", TFSCALE_FLAGS=composed.FLAGS
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def undisturbed(image, tmp_path_factory):
    """The digest of the weights of a run that nobody disturbs."""
    made = composed.Project(
        *("tfscale-undisturbed", tmp_path_factory.mktemp("undisturbed")),
        **{"TFSCALE_RUN": "mine", "TFSCALE_FLAGS": composed.FLAGS},
    )
    try:
        with made.training() as up:
            assert up.end() == 0
        return made.weights()
    finally:
        made.close()


def page(path, words, seconds=300):
    """TensorBoard's answer, once these words are in it."""
    deadline = time.monotonic() + seconds
    while True:
        found = b""
        with contextlib.suppress(OSError):  # it may have just been started
            found = urllib.request.urlopen(f"http://127.0.0.1:16006/{path}", timeout=60).read()
        if words in found:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(1)


def check(project, up, undisturbed):
    """The run has come to its end with the weights of the undisturbed one."""
    assert up.end() == 0
    summary = project.read_json("summary.json")
    assert summary["steps"] == composed.NUM_STEPS and summary["num_workers"] == 3
    assert project.weights() == undisturbed


def test_a_fresh_clone_trains_the_digits_on_three_tasks(project):
    project.knobs["TFSCALE_FLAGS"] = ""
    code, told = project.until_it_exits("--build")
    assert code == 0, told
    assert re.search(r"\] accuracy  [01]\.\d+  0\.9[6-9]", told)
    summary = project.read_json("summary.json")
    assert summary["num_workers"] == 3 and summary["test"]["accuracy"] > 0.96
    files = set(project.files_of_run())
    assert {"./config.json", "./metrics.jsonl", "./model.keras", "./summary.json"} <= files
    assert {f"./logs/worker-{rank}.log" for rank in range(3)} <= files
    assert any(name.startswith("./checkpoints/step-") for name in files)

    assert b"TensorBoard" in page("", b"<html")
    page("data/runs", b"mine")

    # Other commands, which ask nobody for a cluster.
    alone = ("run", "--rm", "--no-deps", "trainer")
    scores = project.compose(*alone, "evaluate", "--run_dir=runs/mine")
    assert f"accuracy {summary['test']['accuracy']:.4f}" in scores
    project.compose(*alone, "report", "--run_dir=runs/mine", "--output=runs/report.html")
    project.compose("cp", "tensorboard:/work/runs/report.html", str(project.folder))
    assert "accuracy" in (project.folder / "report.html").read_text()

    assert "finished" in project.compose(*alone, "watch", "--run_dir=runs/mine", "--once")
    alone = ("run", "--rm", "--no-deps", "--env", "TFSCALE_HOSTS=", "trainer")
    assert "step" in project.compose(*alone, "doctor", "--run_dir=runs/mine")

    # The whole of it again: the run is there, and nothing is trained anew.
    code, told = project.until_it_exits()
    assert code == 0, told
    assert project.read_json("summary.json")["steps"] == summary["steps"]


def test_sources_of_this_folder_take_the_place_of_those_of_the_image(project):
    project.files.append("docker/dev.yaml")
    source = "tfscale/__init__.py"
    read = ("run", "--rm", "--no-deps", "--entrypoint", "stat", "trainer", "-c", "%i")
    found = project.compose(*read, f"/work/{source}").splitlines()[-1]
    assert int(found) == (composed.ROOT / source).stat().st_ino


def test_containers_have_no_more_rights_than_they_need(project):
    with project.training() as up:
        up.wait_for_step(20)
        for service in ("trainer", "worker", "tensorboard"):
            found = project.inspect(project.container(service))
            host = found["HostConfig"]
            assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and host["Memory"] > 0
            assert "no-new-privileges:true" in host["SecurityOpt"] and not host["Privileged"]
            ports = found["NetworkSettings"]["Ports"]
            published = [place for places in ports.values() for place in places or []]
            assert all(place["HostIp"] == "127.0.0.1" for place in published)
            assert bool(published) == (service == "tensorboard")
        worker = project.container("worker")
        assert composed.run("docker", "exec", worker, "id", "-u") == "1000"
        [network] = project.inspect(worker)["NetworkSettings"]["Networks"]
        internal = composed.run("docker", "network", "inspect", "-f", "{{.Internal}}", network)
        assert internal == "true"  # the engine lets nothing of it out
        tried = subprocess.run(["docker", "exec", worker, "touch", "/work/x"], check=False)
        assert tried.returncode != 0
        well = composed.run("docker", "exec", worker, "python", "-m", "tfscale.cluster.health")
        assert re.search(r"process \d+ at step \d+ \(\w+, epoch \d+\), \d+ s ago", well)


def test_killed_by_their_process_ids_on_the_host(project, undisturbed):
    with project.training() as up:
        step = up.wait_for_step(60)
        os.kill(project.host_pid(project.container("worker", 2)), signal.SIGKILL)
        step = up.wait_for_step(step + 120)
        os.kill(project.host_pid(project.container("trainer")), signal.SIGKILL)
        up.wait_for_step(step + 120)
        assert project.inspect(project.container("worker", 2))["RestartCount"] == 1
        assert project.inspect(project.container("trainer"))["RestartCount"] == 1
        check(project, up, undisturbed)


@pytest.mark.parametrize(
    ("service", "others"),
    [pytest.param("trainer", (1, 2), marks=pytest.mark.slow), ("worker", (0,))],
)
def test_paused_and_unpaused(project, undisturbed, service, others):
    with project.training() as up:
        up.wait_for_step(60)
        composed.run("docker", "pause", project.container(service))
        up.wait_for_words([f"tfscale: worker {rank} lost a peer" for rank in others], seconds=300)
        composed.run("docker", "unpause", project.container(service))
        check(project, up, undisturbed)


@pytest.mark.parametrize("service", ["trainer", pytest.param("worker", marks=pytest.mark.slow)])
def test_disconnected_and_reconnected(project, undisturbed, service):
    network, name = f"{project.name}_cluster", project.container(service)
    with project.training() as up:
        up.wait_for_step(60)
        composed.run("docker", "network", "disconnect", network, name)
        up.wait_for_words([f"tfscale: worker {rank} lost a peer" for rank in range(3)], seconds=300)
        composed.run("docker", "network", "connect", "--alias", service, network, name)
        check(project, up, undisturbed)


@pytest.mark.slow
def test_packets_dropped_for_a_while(project, undisturbed):
    def firewall(change):
        for chain in ("INPUT", "OUTPUT"):
            composed.run(
                *("nsenter", "--target", str(pid), "--net"),
                *("iptables", change, chain, "--protocol", "tcp", "--jump", "DROP"),
            )

    with project.training() as up:
        up.wait_for_step(60)
        pid = project.host_pid(project.container("worker", 2))
        firewall("--append")
        up.wait_for_words([f"tfscale: worker {rank} lost a peer" for rank in range(3)], seconds=300)
        firewall("--delete")
        check(project, up, undisturbed)


@pytest.mark.slow
def test_out_of_memory_ends_naming_worker_and_limit_and_goes_on_with_more(project, undisturbed):
    with project.training() as up:
        up.wait_for_step(60)
        project.compose("stop", "trainer", "worker")
        assert up.end() == 143
    step = project.last_step()
    assert 60 <= step < composed.NUM_STEPS
    small = project.folder / "small.yaml"
    small.write_text("services:\n  worker:\n    mem_limit: 120m\n    memswap_limit: 120m\n")
    project.files.append(small)
    project.knobs["TFSCALE_FLAGS"] = composed.FLAGS + " --max_restarts=2"
    with project.training() as up:
        assert up.end() not in (0, 143)
    told = project.compose("logs", "--no-color", "trainer")
    assert re.search(r"worker [12] failed: signal SIGKILL \(memory ran out at .* 120 MiB", told)
    assert "this task ends, as another one has given up" in told
    told = project.compose("logs", "--no-color", "worker")
    assert "gave up after 2 restarts within an hour" in told
    assert project.last_step() == step
    project.files.remove(small)
    project.knobs["TFSCALE_FLAGS"] = composed.FLAGS
    with project.training() as up:
        check(project, up, undisturbed)


@pytest.mark.slow
def test_any_number_of_workers(project):
    project.knobs["TFSCALE_FLAGS"] = "--config.train.epochs=2"
    with project.training("--scale", "worker=3") as up:
        assert up.end() == 0
    assert project.read_json("summary.json")["num_workers"] == 4


def test_a_search_in_the_trainers_container(project):
    told = project.compose(
        *("run", "--rm", "trainer", "tune", "--config=experiments/digits_search.py"),
        *("--max_trials=2", "--parallel_trials=1", "--run_dir=runs/search"),
        "--config.train.epochs=1",
    )
    assert "2 completed" in told and re.search(r"^test    loss \S+  accuracy 0", told, re.M)
    assert {"best.json", "results.csv"} <= set(project.inside("ls", "runs/search").split())


@pytest.mark.slow
def test_a_search_that_the_workers_join(project):
    """One of them is killed in the middle of it."""
    project.files.append("docker/search.yaml")
    project.knobs["TFSCALE_FLAGS"] = "--max_trials=6 --config.train.epochs=2"
    with project.training() as up:
        said = up.wait_for_words(["trial 0000 begins", "trial 0002 begins"])
        hosts = [
            project.inspect(project.container("worker", n))["Config"]["Hostname"] for n in (1, 2)
        ]
        assert all(f"begins on {host}" in said for host in hosts)
        os.kill(project.host_pid(project.container("worker", 2)), signal.SIGKILL)
        assert up.end() == 0
    told = project.logs()
    assert "6 completed" in told and "test    loss" in told
    rows = project.inside("cat", "runs/mine-search/results.csv").splitlines()
    assert len(rows) == 7 and all(",completed," in row for row in rows[1:])
    assert project.inspect(project.container("worker", 1))["State"]["ExitCode"] == 0


@pytest.mark.slow
def test_a_single_container_says_how_to_be_one_of_the_cluster(project):
    refused = subprocess.run(
        ["docker", "compose", "--project-name", project.name, "run", "--rm", "trainer"],
        cwd=composed.ROOT,
        env=project.environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2 and "--use-aliases" in refused.stderr + refused.stdout
    project.compose("run", "--rm", "--use-aliases", "trainer")
    assert project.read_json("summary.json")["num_workers"] == 3
