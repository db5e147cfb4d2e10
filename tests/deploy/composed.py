"""A project of Docker Compose in a test: started as a user would, disturbed from outside, read."""

import contextlib
import json
import os
import pathlib
import subprocess
import time

_END_SECONDS = 900
_STAYS_SECONDS = 5  # the engine starts a container again within a second or two
ROOT = pathlib.Path(__file__).parents[2]
# Each epoch has 45 steps; a run is long enough to be disturbed twice.
FLAGS = (
    "--deterministic --config.train.epochs=12 --config.model.arguments.dropout=0.3"
    " --config.checkpoint.save_every_steps=20 --config.train.steps_per_execution=4"
)
NUM_STEPS = 12 * 45
# Prints what is the same for two files of a model when all their weights are, bit for bit.
DIGEST = """
import hashlib, io, sys, zipfile, h5py
found, digest = {}, hashlib.sha256()
def take(name, node):
    if isinstance(node, h5py.Dataset):
        found[name] = node[()].tobytes()
data = zipfile.ZipFile(sys.argv[1]).read("model.weights.h5")
h5py.File(io.BytesIO(data)).visititems(take)
for name in sorted(found):
    digest.update(name.encode() + found[name])
print(len(found), digest.hexdigest())
"""


def run(*command, **more):
    """Run a command; return what it printed, or fail with it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


class Project:
    """One project, with the knobs of .env as variables; removed by `close`.

    Args:
        name: of the project.
        folder: where files that it needs may lie.
        **knobs: variables such as TFSCALE_RUN.
    """

    def __init__(self, name, folder, **knobs):
        self.name = name
        self.folder = folder
        self.knobs = {"TFSCALE_TENSORBOARD": "16006", **knobs}
        self.files = ["compose.yaml"]

    def environ(self):
        own = {name: str(value) for name, value in self.knobs.items()}
        return {**os.environ, **own, "COMPOSE_FILE": ":".join(map(str, self.files))}

    def compose(self, *arguments):
        return run(
            *("docker", "compose", "--project-name", self.name, *arguments),
            cwd=ROOT,
            env=self.environ(),
        )

    def until_it_exits(self, *flags):
        """`docker compose up --exit-code-from trainer trainer`: its exit code, what it printed."""
        command = ("up", *flags, "--exit-code-from", "trainer", "trainer")
        done = subprocess.run(
            ["docker", "compose", "--project-name", self.name, *command],
            cwd=ROOT,
            env=self.environ(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_END_SECONDS,
        )
        return done.returncode, done.stdout + done.stderr

    @contextlib.contextmanager
    def training(self, *flags):
        """`docker compose up --detach trainer`, as an `Up`, in the block.

        Compose itself may take a trainer for ended that the engine has just started again.
        """
        self.compose("up", "--detach", *flags, "trainer")
        try:
            yield Up(self)
        except BaseException:
            print(self.logs())
            raise

    def container(self, service, number=1):
        return f"{self.name}-{service}-{number}"

    def inspect(self, container):
        return json.loads(run("docker", "inspect", container))[0]

    def host_pid(self, container):
        return self.inspect(container)["State"]["Pid"]

    def logs(self):
        return self.compose("logs", "--no-color", "trainer", "worker")

    def inside(self, *command):
        """Run a command in TensorBoard's container, which sees the runs."""
        return run("docker", "exec", self.container("tensorboard"), *command)

    def last_step(self):
        """The step of the run's newest checkpoint, 0 while there is none."""
        code = (
            "import pathlib, sys; print(max((int(p.name[5:]) for p in "
            "pathlib.Path(sys.argv[1]).glob('step-*[0-9]')), default=0))"
        )
        return int(self.inside("python", "-c", code, f"runs/{self.run_name}/checkpoints"))

    @property
    def run_name(self):
        return self.knobs["TFSCALE_RUN"]

    def files_of_run(self):
        return self.inside("sh", "-c", f"cd runs/{self.run_name} && find . -type f").splitlines()

    def read_json(self, name):
        return json.loads(self.inside("cat", f"runs/{self.run_name}/{name}"))

    def weights(self):
        """The digest of all weights of the run's model."""
        return self.inside("python", "-c", DIGEST, f"runs/{self.run_name}/model.keras")

    def close(self):
        self.compose("down", "--volumes", "--timeout", "5", "--remove-orphans")


class Up:
    """A `docker compose up` under way."""

    def __init__(self, project):
        self._project = project

    def code(self):
        """The trainer's exit code; None while it runs or is about to."""
        found = self._project.inspect(self._project.container("trainer"))["State"]
        runs = found["Running"] or found["Restarting"] or found["Status"] == "created"
        return None if runs else found["ExitCode"]

    def wait_for_step(self, step, seconds=600):
        """Wait until there is a checkpoint of that step or a later one; return its step."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):  # TensorBoard may not be there yet
                found = self._project.last_step()
                if found >= step:
                    return found
            assert self.code() is None, "ended early"
            assert time.monotonic() < deadline, f"no step {step}"
            time.sleep(0.2)

    def wait_for_words(self, words, seconds=600):
        """Wait until all these words are in what the tasks have said."""
        deadline = time.monotonic() + seconds
        while True:
            said = self._project.logs()
            if all(word in said for word in words):
                return said
            assert time.monotonic() < deadline, f"nobody said {words}\n{said}"
            time.sleep(0.5)

    def end(self):
        """Wait until the trainer has ended and stays so; return the exit code."""
        deadline, since = time.monotonic() + _END_SECONDS, None
        while since is None or time.monotonic() < since + _STAYS_SECONDS:
            assert time.monotonic() < deadline, "the trainer must end"
            time.sleep(0.5)
            ended = self.code() is not None
            since = (since or time.monotonic()) if ended else None
        return self.code()
