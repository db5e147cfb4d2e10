"""Runs of `script.py` under `tfscale.launch`: start one, end it, find its processes, compare."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("script.py")
SAVE_EVERY = 5
_TIMEOUT_SECONDS = 240


@dataclasses.dataclass
class Launched:
    """A launcher that runs, or has ended.

    Args:
        folder: what the script leaves; its run folder is `folder / "run"` unless said otherwise.
        process: the launcher.
        run_dir: its --run_dir.
        log: what it says.
    """

    folder: pathlib.Path
    process: subprocess.Popen
    run_dir: pathlib.Path
    log: pathlib.Path

    @property
    def told(self):
        """All that the launcher has said so far, its workers' lines included."""
        return self.log.read_text(errors="replace")

    def finish(self, timeout_seconds=_TIMEOUT_SECONDS):
        """Wait for the end; return the exit code. Nothing of the run may be left."""
        try:
            code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end:\n{self.told}") from None
        finally:
            self.end()
        left = wait_for(lambda: not processes_of(self.folder), 5, must=False)
        assert left, [command_of(pid) for pid in processes_of(self.folder)]
        for port in re.findall(r"listens on (\d+)", self.told):
            assert int(port) not in listening_ports(), f"port {port} is still open"
        return code

    def end(self):
        """Kill the launcher if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def worker(self, rank, life=1):
        """Return the process of a worker; 0 while there is none."""
        for pid in children_of(self.process.pid):
            found = environ_of(pid)
            own = found.get("TFSCALE_LIFE") == str(life) and found.get("TF_CONFIG")
            is_worker = "run_script.py" in command_of(pid) or "tfscale.fit" in command_of(pid)
            if own and is_worker and json.loads(own)["task"]["index"] == rank:
                return pid
        return 0

    def signal(self, number):
        """Send a signal to the launcher."""
        self.process.send_signal(number)

    def steps(self, fit=2):
        """Return the steps of the checkpoints that are there."""
        folder = self.run_dir / "fits" / str(fit) / "checkpoints"
        return sorted(int(path.name[5:]) for path in folder.glob("step-*[0-9]"))

    def wait_for_step(self, step, fit=2):
        """Wait until a checkpoint of this step or a later one has been written."""
        wait_for(lambda: self._is_there(step, fit))

    def _is_there(self, step, fit):
        assert self.process.poll() is None, self.told
        return max(self.steps(fit), default=0) >= step


def launch(folder, *flags, workers=2, fault=None, run_dir=None, script=SCRIPT, **environ):
    """Start `script.py` in a folder of its own, which may be that of a run before.

    Args:
        folder: receives what the script leaves, and all that is told.
        *flags: of `tfscale.launch`, behind those that all runs have.
        workers: how many; None where the cluster says it.
        fault: what FAULT says: a dict with "fault", "moment" and "rank".
        run_dir: another folder than `folder / "run"`.
        script: another script.
        **environ: variables beside this process' own.
    """
    run_dir = folder / "run" if run_dir is None else run_dir
    own = ["--deterministic", "--seed=1", f"--run_dir={run_dir}"]
    own += [f"--save_every_steps={SAVE_EVERY}", *([f"--workers={workers}"] if workers else [])]
    command = [sys.executable, "-m", "tfscale.launch", *own, *flags, str(script), str(folder)]
    return start(command, folder, run_dir, FAULT=json.dumps(fault or {}), **environ)


def start(command, folder, run_dir, log="told", **environ):
    """Start a command as a `Launched`, whose words go into a new file in its folder."""
    folder.mkdir(exist_ok=True)
    log = folder / log
    number = 1
    while log.exists():
        number += 1
        log = folder / f"{log.stem}.{number}"
    around = {
        **os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2",
        "FAULTS_FOLDER": str(folder), **environ,
    }  # fmt: skip
    with open(log, "wb") as told:
        process = subprocess.Popen(command, env=around, stdout=told, stderr=subprocess.STDOUT)
    return Launched(folder, process, run_dir, log)


def check_equal(run, undisturbed, workers=2):
    """Weights, histories of all workers and the file of epochs are those of the other run."""
    expected = undisturbed.folder
    with np.load(run.folder / "weights.npz") as mine, np.load(expected / "weights.npz") as theirs:
        assert mine.files == theirs.files
        for name in theirs.files:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    for rank in range(workers):
        name = f"history-{rank}.json"
        assert (run.folder / name).read_text() == (expected / "history-0.json").read_text()
    name = "epochs.csv"
    assert (run.folder / name).read_text() == (expected / name).read_text()


def losses(run, name="loss"):
    """Return the losses of all epochs, as the chief's history has them."""
    history = json.loads((run.folder / "history-0.json").read_text())
    return np.array(history["first"][name] + history["second"][name])


def wait_for(condition, seconds=_TIMEOUT_SECONDS, must=True):
    """Wait until something is so; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            assert not must, "this never came true"
            return found
        time.sleep(0.005)
    return found


def strike(pid, number):
    """Send a signal to a worker that may just have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def imports_tensorflow(pid):
    """Say whether a process is in the middle of importing TensorFlow, or has it."""
    try:
        return "tensorflow" in pathlib.Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def processes_of(folder):
    """Return the living processes that belong to a run, the launcher included."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        own = environ_of(pid).get("FAULTS_FOLDER") == str(folder)
        if own and pid != os.getpid() and state_of(pid) not in ("Z", ""):
            found.append(pid)
    return found


def children_of(pid):
    """Return the processes that a process has started."""
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def environ_of(pid):
    """Return the environment that a process was started with; {} if it is gone."""
    try:
        content = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(line.partition("=")[::2] for line in content.split("\0"))


def command_of(pid):
    """Return the command line of a process; "" if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def state_of(pid):
    """Return the state of a process: R, S, T for stopped, Z, ...; "" if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def listening_ports():
    """Return the TCP ports that are open on this machine."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in pathlib.Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def signal_of(fault):
    """Return the signal that a fault is."""
    return {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[fault]
