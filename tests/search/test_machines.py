"""A search on several machines: processes that join, leave, die and freeze."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import searching
from searching import events, pids, wait_for

from tfscale.cluster import local, ports, wire
from tfscale.search import ends, joining, leaving, processes, protocol, roles, service, trials

pytestmark = pytest.mark.workers
LEASE = 6  # seconds: what a busy machine keeps
SHORT = 3


def chosen(number=6, epochs=5, seconds=0.2):
    return [{"level": i / 10, "epochs": epochs, "seconds": seconds} for i in range(1, number + 1)]


class Machines:
    """Processes that lead or join one search."""

    def __init__(self, run_dir):
        self.run_dir, self.address = run_dir, f"127.0.0.1:{ports.free_ports(1)[0]}"
        self.processes, self.outputs = [], {}

    def start(self, name, /, **settings):
        output = self.run_dir.with_name(f"{self.run_dir.name}-{name}.log")
        with open(output, "a") as file:
            process = subprocess.Popen(
                [sys.executable, searching.__file__, str(self.run_dir), json.dumps(settings)],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        self.outputs[name] = output
        return process

    def lead(self, chosen, slots=1, lease=LEASE, **settings):
        return self.start(
            "chief", chosen=chosen, slots=slots, lead=self.address, lease=lease, **settings
        )

    def join(self, chosen, name="m2", **settings):
        return self.start(name, chosen=chosen, address=self.address, name=name, **settings)

    def said(self, name):
        return self.outputs[name].read_text()

    def finish(self, *processes):
        for process in processes:
            shown = "\n".join(f"{name}: {self.said(name)}" for name in self.outputs)
            assert process.wait(60) == 0, shown

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGCONT)
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def machines(tmp_path):
    found = Machines(tmp_path / "search")
    yield found
    found.close()


def outcome(run_dir):
    """What has to be equal in two searches, by trial."""
    ended = events(run_dir, "ended")
    kept = ("trial", "state", "score", "best_epoch", "epochs", "history")
    assert len(ended) == len({event["trial"] for event in ended})
    return sorted([event[name] for name in kept] for event in ended)


def expected(chosen):
    """The outcome of an undisturbed search, in closed form."""
    found = []
    for number, values in enumerate(chosen):
        scores = [values["level"] + 0.1 * epoch for epoch in range(values["epochs"])]
        history = [{"epoch": e + 1, "val_accuracy": s} for e, s in enumerate(scores)]
        end = [scores[-1], len(scores), len(scores), history]
        found.append([f"{number:04d}", "completed", *end])
    return found


def check_undisturbed(run_dir, chosen):
    assert outcome(run_dir) == expected(chosen)
    assert not list(run_dir.glob("trials/*/two"))
    assert all(local.state_of(pid) in ("", "Z") for pid, _ in pids(run_dir))


def first_of(run_dir, machine, epochs=2):
    """Return a trial that has done some epochs on a machine, as soon as there is one."""

    def look():
        over = {event["trial"] for event in events(run_dir, "ended")}
        for event in events(run_dir, "started"):
            metrics = run_dir / "trials" / event["trial"] / "metrics.jsonl"
            is_there = event.get("on", "") == machine and event["trial"] not in over
            if is_there and len(trials._lines(metrics)) >= epochs:
                return event["trial"]
        return None

    return wait_for(look)


def test_two_machines_share_the_trials_and_a_late_one_gets_work_at_once(machines):
    todo, run_dir = chosen(8), machines.run_dir
    chief, second = machines.lead(todo), machines.join(todo, slots=2)
    first_of(run_dir, "m2")
    late = machines.join(todo, name="m3")
    machines.finish(chief, second, late)
    check_undisturbed(run_dir, todo)
    places = {event.get("on", "here") for event in events(run_dir, "started")}
    assert places == {"here", "m2", "m3"}
    assert not events(run_dir, "lost")
    assert "the search is over; its results are in" in machines.said("m3")
    assert list(protocol.read_file(run_dir)) == ["over"]


def test_trials_of_a_machine_that_is_killed_go_on_elsewhere(machines):
    todo, run_dir = chosen(4), machines.run_dir
    chief = machines.lead(todo, lease=SHORT, max_retries=0)
    second = machines.join(todo, slots=2)
    lost = first_of(run_dir, "m2")
    os.killpg(second.pid, signal.SIGKILL)
    machines.finish(chief)
    check_undisturbed(run_dir, todo)
    assert lost in [event["trial"] for event in events(run_dir, "lost")]
    folder = run_dir / "trials" / lost / "pids"
    assert int(folder.read_text().split()[-1]) >= 2  # from where it was


def test_a_machine_that_is_told_to_leave_hands_its_trials_over(machines):
    todo, run_dir = chosen(2, seconds=0.5), machines.run_dir
    chief, second = machines.lead(todo, lease=60), machines.join(todo)
    left = first_of(run_dir, "m2", epochs=1)
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 143
    # At once: the lease would hold for a minute.
    wait_for(lambda: [e for e in events(run_dir, "lost") if e["trial"] == left], 20)
    assert events(run_dir, "lost")[0]["reason"] == "m2 left"
    machines.finish(chief)
    check_undisturbed(run_dir, todo)


def test_a_trial_that_has_no_room_on_a_joined_machine_waits_for_it(machines):
    todo, run_dir = [{**values, "does": "full"} for values in chosen(2)], machines.run_dir
    chief, second = machines.lead(todo, slots=0), machines.join(todo)
    assert chief.wait(40) == 1
    assert f"[Errno {errno.ENOSPC}] trial 0000: No space left" in machines.said("chief")
    assert not events(run_dir, "ended") and not events(run_dir, "retried")
    (run_dir / "room").touch()
    again = machines.lead(todo, slots=0)
    machines.finish(again, second)
    check_undisturbed(run_dir, todo)


def test_chief_that_is_killed_and_started_again_goes_on_with_those_that_wait(machines):
    todo, run_dir = chosen(3, seconds=0.3), machines.run_dir
    chief, second = machines.lead(todo, lease=SHORT), machines.join(todo)
    first_of(run_dir, "m2")
    chief.kill()
    chief.wait()
    wait_for(lambda: "its trials here were ended" in machines.said("m2"))
    again = machines.lead(todo, lease=SHORT)
    machines.finish(again, second)
    check_undisturbed(run_dir, todo)
    assert len(events(run_dir, "created")) == len(todo)
    assert machines.said("m2").count("joined the search") == 2


def test_chief_that_only_leads_waits_for_machines(machines):
    todo = chosen(2, epochs=2)
    chief = machines.lead(todo, slots=0)
    wait_for(lambda: protocol.read_file(machines.run_dir).get("secret"))
    assert chief.poll() is None and not events(machines.run_dir)
    machines.finish(machines.join(todo), chief)
    check_undisturbed(machines.run_dir, todo)
    assert {event["on"] for event in events(machines.run_dir, "started")} == {"m2"}


def test_what_ends_a_trial_elsewhere_is_recorded_as_if_it_were_here(machines):
    todo = chosen(6, epochs=3, seconds=0.05)
    for values, does in zip(
        todo, ("crash", "crash once", "memory", "diverge", "refused", ""), strict=True
    ):
        values["does"] = does
    machines.finish(machines.lead(todo, slots=0), machines.join(todo, slots=2))
    found = {event["trial"]: event for event in events(machines.run_dir, "ended")}
    ends = [(found[f"{i:04d}"]["state"], found[f"{i:04d}"]["reason"]) for i in range(6)]
    assert ends == [
        ("failed", "exit code 1: RuntimeError: a layer fell off"),
        ("completed", ""),
        ("out_of_memory", "MemoryError"),
        ("diverged", "loss not finite at step 2, loss nan"),
        ("failed", "it was refused: `model.arguments` must fit."),
        ("completed", ""),
    ]
    retried = sorted(event["trial"] for event in events(machines.run_dir, "retried"))
    assert retried == ["0000", "0001"] and not events(machines.run_dir, "lost")


class Forgetful(searching.ScriptedTrials):
    """Sees a trial's files as soon as its folder was listed, as on a network's file system."""

    listed = []  # by `os.listdir`

    def history(self, record):
        return super().history(record) if record.path in self.listed else []


def test_a_trial_that_ran_elsewhere_has_ended_as_its_files_say_in_the_end(machines, monkeypatch):
    listdir = os.listdir

    def noted(path="."):
        Forgetful.listed.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", noted)
    todo = chosen(1, epochs=2)
    second = machines.join(todo)
    searching.search(machines.run_dir, todo, 0, machines.address, LEASE, kind=Forgetful)
    machines.finish(second)
    check_undisturbed(machines.run_dir, todo)


def test_a_frozen_machine_has_its_trial_ended_before_another_gets_it(machines):
    todo, run_dir = chosen(1, epochs=30), machines.run_dir
    chief, second = machines.lead(todo, slots=0, lease=SHORT), machines.join(todo)
    first_of(run_dir, "m2")
    second.send_signal(signal.SIGSTOP)  # it alone: its trial runs in a session of its own
    third = machines.join(todo, name="m3")
    wait_for(lambda: pids(run_dir)[1:])
    assert local.state_of(second.pid) == "T"
    second.send_signal(signal.SIGCONT)
    machines.finish(chief, second, third)
    check_undisturbed(run_dir, todo)
    assert 2 <= pids(run_dir)[1][1] < 30  # it was ended, and went on


def test_a_trial_that_nobody_could_end_keeps_its_folder(machines):
    """The machine is frozen with all that would end its trial; that one runs on."""
    todo, run_dir = chosen(1, epochs=35), machines.run_dir
    chief, second = machines.lead(todo, slots=0, lease=SHORT), machines.join(todo)
    lost = first_of(run_dir, "m2")
    children = pathlib.Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()
    guard = next(c for c in children if "guard" in pathlib.Path(f"/proc/{c}/cmdline").read_text())
    for pid in (second.pid, int(guard)):
        os.kill(pid, signal.SIGSTOP)
    third = machines.join(todo, name="m3")
    try:
        wait_for(lambda: [e for e in events(run_dir, "started") if e["trial"] == lost][1:])
        machines.finish(chief, third)
    finally:
        os.kill(int(guard), signal.SIGKILL)
    assert outcome(run_dir) == expected(todo)
    assert not list(run_dir.glob("trials/*/two"))
    first, again = (run_dir / "trials" / lost / "pids").read_text().splitlines()
    assert again.endswith(" 35")  # it found all epochs done


def test_another_search_is_refused_with_what_differs(machines):
    todo = chosen(1, epochs=500)
    chief = machines.lead(todo)
    other = machines.join(chosen(2))
    assert other.wait(30) == 1
    assert "run the same command. Received: chosen: [" in machines.said("m2")
    assert chief.poll() is None


def test_a_folder_that_is_not_the_chiefs_is_refused(machines, tmp_path):
    todo = chosen(1, epochs=500)
    chief = machines.lead(todo)
    elsewhere = Machines(tmp_path / "elsewhere")
    elsewhere.address = machines.address
    wait_for(lambda: protocol.read_file(machines.run_dir).get("secret"))
    try:
        process = elsewhere.join(todo, seconds=2)
        assert process.wait(30) == 1
        assert "must see its folder" in elsewhere.said("m2")
    finally:
        elsewhere.close()
    assert chief.poll() is None


def test_a_chief_that_does_not_come_is_waited_for_so_long(machines):
    process = machines.join(chosen(1), seconds=1)
    assert process.wait(30) == 1
    assert f"looking for the chief: {machines.address} refused" in machines.said("m2")
    assert "nothing listens there" in machines.said("m2")


def test_a_trial_that_could_not_start_here_may_be_stopped_all_the_same(tmp_path):
    role = roles.Role("worker", "127.0.0.1:1", "m2")
    member = joining.Member(
        role, tmp_path, {}, searching.ScriptedTrials, processes.slots(1), stream=None
    )
    member._kind = searching.ScriptedTrials()
    with contextlib.closing(local.Guard()) as member._guard:
        member._follow(0, protocol.Order("0000", 1))  # its folder is not there
        member._look_after_trials([])
        member._follow(0, protocol.Order("0000", 1, protocol.STOP))
        end = member._running[0].report().end
    assert end.state == "failed" and "No such file" in end.reason and end.may_come_right


RUBBISH = [
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"[" * 100_000 + b"\n",
    b'{"proof": "\\ud800", "nonce": 1}\n',
    b'{"proof": null}\n',
    bytes(range(256)) * 8000,
    b"x" * 2_000_000,
]


class TestStrangers:
    @pytest.fixture
    def led(self, tmp_path):
        role = roles.Role("chief", f"127.0.0.1:{ports.free_ports(1)[0]}")
        with contextlib.closing(service.Service(role, tmp_path, {"a": 1}, (), LEASE)) as found:
            yield found

    def hello(self, led, tmp_path, **changes):
        """Say hello as a machine that sees the folder would; return the channel and the reply."""
        channel = wire.Channel(socket.create_connection(led.address))
        theirs, secret = channel.receive(10)["nonce"], protocol.read_file(tmp_path)["secret"]
        words = {
            "proof": protocol.proof(secret, "worker", theirs, "mine"),
            "nonce": "mine",
            "name": "m2",
            "slots": 1,
            "session": "",
            "resumes": False,
            "identity": {"a": 1},
        }
        channel.send(words | changes)
        return channel, channel.receive(10)

    @pytest.mark.parametrize("said", RUBBISH, ids=range(len(RUBBISH)))
    def test_rubbish_changes_nothing(self, led, tmp_path, said, capfd):
        connection = socket.create_connection(led.address)
        with connection, contextlib.suppress(OSError):
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1000):
                pass
        assert led.free_slots() == []
        channel, reply = self.hello(led, tmp_path)
        assert reply["session"] and len(led.free_slots()) == 1
        channel.close()
        assert "Traceback" not in capfd.readouterr().err

    def test_a_line_without_an_end_is_not_read_for_ever(self, led):
        num_sent = 0
        with socket.create_connection(led.address) as connection, contextlib.suppress(OSError):
            while num_sent < 2**26:
                num_sent += connection.send(b"x" * 2**16)
        assert num_sent < 2**26  # of which the system holds some

    def test_who_does_not_see_the_folder_is_not_taken_in(self, led, tmp_path):
        assert (tmp_path / protocol.FILE).stat().st_mode & 0o077 == 0  # nor reads the secret
        channel, reply = self.hello(led, tmp_path, proof="0" * 64)
        assert reply == {"wrong": "secret"} and led.free_slots() == []
        channel.close()

    @pytest.mark.parametrize(
        "changes", [{"slots": 10**9}, {"slots": True}, {"name": ["m2"]}, {"name": "m" * 1000}]
    )
    def test_words_out_of_bounds_end_the_connection(self, led, tmp_path, changes):
        with pytest.raises(wire.Lost):
            self.hello(led, tmp_path, **changes)
        assert led.free_slots() == []

    @pytest.mark.parametrize(
        "slots",
        [
            "all",
            [],
            [{"trial": "../../x", "start": 1, "seconds": 1, "end": None}],
            [{"trial": "0000", "start": 1, "seconds": float("nan"), "end": None}],
            [{"trial": "0000", "start": 1, "seconds": 1, "end": {"state": "won"}}],
        ],
    )
    def test_a_report_out_of_bounds_ends_the_connection(self, led, tmp_path, slots):
        channel, _ = self.hello(led, tmp_path)
        channel.send({"slots": slots})
        with pytest.raises(wire.Lost):
            channel.receive(10)
        channel.close()

    def test_what_is_said_of_another_start_is_not_believed(self, led, tmp_path):
        channel, _ = self.hello(led, tmp_path)
        trial = led.free_slots()[0].start("0003")
        ended = dataclasses.asdict(ends.End("completed"))
        word = {"trial": "0003", "start": 99, "seconds": 1.0, "end": ended}
        channel.send({"slots": [word]})
        order = channel.receive(10)["slots"][0]
        assert order["trial"] == "0003" and not trial.has_ended()
        channel.send({"slots": [word | {"start": order["start"]}]})
        channel.receive(10)
        assert trial.has_ended() and trial.end("").state == "completed"
        channel.close()

    def test_a_connection_that_breaks_is_not_the_end_of_a_stay(self, led, tmp_path):
        channel, reply = self.hello(led, tmp_path)
        trial = led.free_slots()[0].start("0003")
        channel.close()
        channel, again = self.hello(led, tmp_path, session=reply["session"], resumes=True)
        assert again["known"] and not trial.has_ended()
        channel.close()
        channel, third = self.hello(led, tmp_path, session=reply["session"])
        assert not third["known"]
        channel.send({"slots": [None]})  # it has ended what ran before
        channel.receive(10)
        assert trial.has_ended() and trial.lost == "m2 began anew"
        channel.close()

    def test_what_an_earlier_chief_gave_away_is_free_when_its_machine_says_so(self, led, tmp_path):
        assert not led.is_gone("0123")
        channel, _ = self.hello(led, tmp_path, session="0123", resumes=True)
        assert not led.is_gone("0123")  # it is told first that this is another chief
        channel.send({"slots": [None]})
        channel.receive(10)
        assert led.is_gone("0123") and not led.is_gone("4567")
        channel.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whatever_is_killed_at_random_moments_the_outcome_is_that_of_an_undisturbed_search(
    machines, seed
):
    draw, todo, run_dir = random.Random(seed), chosen(10), machines.run_dir
    chief = machines.lead(todo, lease=SHORT)
    second = machines.join(todo, slots=2)
    for _ in range(6):
        time.sleep(draw.uniform(0.5, 3))
        what = draw.choice(["chief", "m2", "trial"])
        if what == "trial":
            running = [pid for pid, _ in pids(run_dir) if local.state_of(pid) not in ("", "Z")]
            for pid in running[:1]:
                os.kill(pid, signal.SIGKILL)
        elif what == "m2" and second.poll() is None:
            os.killpg(second.pid, signal.SIGKILL)
            second = machines.join(todo, slots=2)
        elif what == "chief" and chief.poll() is None:
            os.killpg(chief.pid, signal.SIGKILL)
            chief.wait()
            chief = machines.lead(todo, lease=SHORT)
    machines.finish(chief, second)
    check_undisturbed(run_dir, todo)


def test_signal_to_the_chief_lets_the_trials_of_all_machines_leave(machines, tmp_path):
    todo, run_dir = chosen(epochs=40, seconds=0.1), machines.run_dir
    second = machines.join(todo)

    def tell():
        first_of(run_dir, "m2")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=tell)
    thread.start()
    with pytest.raises(leaving.ToldToLeave):
        searching.search(run_dir, todo, lead=machines.address, lease=LEASE)
    thread.join()
    wait_for(lambda: all(local.state_of(pid) in ("", "Z") for pid, _ in pids(run_dir)))
    assert not events(run_dir, "ended") and second.poll() is None
