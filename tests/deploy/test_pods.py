"""The indexed Job of Kubernetes, with containers as pods: its command, variables, rights, names.

Needs a running Docker engine. Scheduling, policies and claims are not here.
"""

import os
import subprocess
import time

import composed
import pytest
import yaml

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1800)]

JOB = composed.ROOT / "docker/deploy/kubernetes/job.yaml"
NAME = "tfscale-pods"


class Pods:
    """The pods of one Job, on a network and with a folder of runs of their own."""

    def __init__(self, name, image):
        self.name, self.image = f"{NAME}-{name}", image
        service, job = yaml.safe_load_all(JOB.read_text())
        self.service = service["metadata"]["name"]
        self.job = job["metadata"]["name"]
        self.count = job["spec"]["completions"]
        self.pod = job["spec"]["template"]["spec"]

    def __enter__(self):
        composed.run("docker", "network", "create", "--internal", self.name)
        composed.run("docker", "volume", "create", self.name)
        return self

    def __exit__(self, *_):
        for index in range(self.count):
            subprocess.run(
                ("docker", "rm", "--force", self.container(index)), capture_output=True, check=False
            )
        for kind in ("network", "volume"):
            composed.run("docker", kind, "rm", self.name)

    def container(self, index):
        return f"{self.name}-{index}"

    def start(self, index):
        """Start pod INDEX as the Job controller and the kubelet would."""
        [container] = self.pod["containers"]
        given = {entry["name"]: entry["value"] for entry in container["env"]}
        given["JOB_COMPLETION_INDEX"] = str(index)
        user = self.pod["securityContext"]["runAsUser"]
        rights = container["securityContext"]
        assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
        host = f"{self.job}-{index}"
        composed.run(
            *("docker", "run", "--detach", "--name", self.container(index), "--hostname", host),
            *("--network", self.name, "--network-alias", f"{host}.{self.service}"),
            *("--user", f"{user}:{user}", "--read-only", "--security-opt=no-new-privileges"),
            *(f"--cap-drop={capability}" for capability in rights["capabilities"]["drop"]),
            *("--tmpfs", "/tmp:mode=1777", "--volume", f"{self.name}:/work/runs"),
            *(word for name, value in given.items() for word in ("--env", f"{name}={value}")),
            *(self.image, *container["args"], *composed.FLAGS.split()),
        )

    def lose(self, index):
        composed.run("docker", "rm", "--force", self.container(index))

    def inside(self, *command):
        """Run a command in a container of its own, which sees the runs."""
        return composed.run(
            *("docker", "run", "--rm", "--network=none", "--volume", f"{self.name}:/work/runs:ro"),
            *("--entrypoint", command[0], self.image, *command[1:]),
        )

    def wait_for_step(self, step):
        deadline = time.monotonic() + 600
        while True:
            names = self.inside("sh", "-c", "ls runs/digits/checkpoints || true").split()
            found = [int(name[5:]) for name in names if name[5:].isdecimal()]
            if max(found, default=0) >= step:
                return
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.5)

    def end(self):
        """Wait for all; fail with what they said unless all end well."""
        names = [self.container(index) for index in range(self.count)]
        codes = composed.run("docker", "wait", *names).split()
        assert codes == ["0"] * self.count, self.logs()
        return self.inside("python", "-c", composed.DIGEST, "runs/digits/model.keras")

    def logs(self):
        return "".join(
            subprocess.run(
                ("docker", "logs", self.container(index)),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            ).stdout
            for index in range(self.count)
        )


@pytest.fixture(scope="module")
def image():
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.exit("make test-docker needs a running Docker engine.", 1)
    composed.run("docker", "compose", "build", "trainer", cwd=composed.ROOT)
    return os.environ.get("TFSCALE_IMAGE", "tfscale:cpu")


def test_a_pod_that_is_lost_and_replaced_costs_a_restart(image):
    with Pods("undisturbed", image) as pods:
        for index in range(pods.count):
            pods.start(index)
        undisturbed = pods.end()
    with Pods("disturbed", image) as pods:
        for index in range(pods.count):
            pods.start(index)
        pods.wait_for_step(80)
        pods.lose(2)
        time.sleep(10)  # the next one has to be scheduled
        pods.start(2)
        assert pods.end() == undisturbed
        assert "Going on from step" in pods.logs()
