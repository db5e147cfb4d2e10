"""Checks of a cluster before a job: the tasks meet, the chief asks all and prints one table.

Owns what is asked in which order. What a task finds out is in `examination`, what it means in
`findings`; what needs TensorFlow is handed in by the caller, as further questions.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tfscale.cluster import examination, findings, meeting, ports, questions
from tfscale.cluster.findings import Finding
from tfscale.cluster.meeting import Answer, Party
from tfscale.cluster.wire import Lost

_SOON_SECONDS = 60.0  # for answers that ask nothing of a disk or of TensorFlow
_PROBE_SECONDS = 2.0
_SAME_VERSIONS = "Install the same versions on all machines."


@dataclasses.dataclass
class Checkup:
    """What one task brings along.

    Args:
        party: who meets; without addresses this task checks itself.
        run_dir: the run's folder; None for no checks of it.
        timeout_seconds: how long others are waited for.
        handlers: answers to further questions.
        further: called on the chief with the `Circle` and the `examination.Folder`, or None,
            for checks that ask these questions.
    """

    party: Party
    run_dir: Path | None
    timeout_seconds: float
    handlers: questions.Handlers
    further: Callable[[questions.Circle, examination.Folder | None], list[Finding]]
    _nonce: str = ""
    _port_problem: str = ""
    _post_problem: str = ""

    def run(self) -> int:
        """Check together with the other tasks.

        Returns:
            0 if nothing failed, else 1, the same on all that met.
        """
        if not self.party.addresses:
            return self._lead({}, [])
        self._port_problem = examination.port_problem(self.party)
        with meeting.Post(self.party) as post:
            self._nonce, self._post_problem = post.nonce, post.problem
            return self._gather(post) if self.party.own == 0 else self._follow()

    def _gather(self, post: meeting.Post) -> int:
        """Wait for all at the chief, then check."""
        party, began = self.party, time.monotonic()
        channels = post.gather(self.timeout_seconds)
        seconds = time.monotonic() - began
        reasons = {}
        if not post.problem:
            accounted = {*channels, *post.strangers.values()}
            missing = [number for number in party.others if number not in accounted]
            reasons = {n: ports.probe(party.addresses[n], _PROBE_SECONDS) for n in missing}
        met = findings.came(
            party, 1 + len(channels), reasons, list(post.strangers), post.problem, seconds
        )
        return self._lead(channels, met)

    def _follow(self) -> int:
        """Join the chief and answer what it asks."""
        party, chief = self.party, f"worker 0 at {self.party.addresses[0]}"
        name = party.name(party.own)
        try:
            with contextlib.closing(meeting.join(party, self.timeout_seconds)) as channel:
                last = questions.serve(channel, self._handlers(), 2 * self.timeout_seconds + 60)
        except meeting.NotMet as reason:
            rows = self._own_findings({party.own: self._describe({})})
            rows = [Finding("met", findings.FAILED, f"{name}: {reason}"), *rows]
            print("\n".join([f"tfscale: {name} alone", *findings.table(rows)]), flush=True)
            return 1
        except Lost as reason:
            print(
                f"tfscale: {name} lost the chief, {chief}: it {reason}. Its output says why.",
                file=sys.stderr,
                flush=True,
            )
            return 1
        if last.get("failed"):
            print(f"tfscale: {name}: checks failed; {chief} shows which.", flush=True)
        return 1 if last.get("failed") else 0

    def _lead(self, channels, met: list[Finding]) -> int:
        """Ask all, print the table, tell the others how it ended."""
        party = self.party
        circle = questions.Circle(party, channels, self._handlers())
        rows = met + self._own_findings(circle.ask("describe", _SOON_SECONDS))
        if channels:
            answers = circle.ask("reach", _SOON_SECONDS)
            rows += findings.reachable(party, answers, [0, *channels])
            rows += findings.clocks(party, circle.clocks())
        with contextlib.ExitStack() as stack:
            folder = None
            if self.run_dir is not None:
                folder = stack.enter_context(examination.Folder(self.run_dir))
                rows += self._folder_findings(circle, folder)
            rows += self.further(circle, folder)
        rows += findings.lost(party, circle.lost)
        num_failed = sum(row.state == findings.FAILED for row in rows)
        where = f"worker 0 on {examination.host()}" if party.addresses else examination.host()
        print("\n".join([f"tfscale: checks by {where}", *findings.table(rows)]), flush=True)
        circle.end(failed=num_failed)
        return 1 if num_failed else 0

    def _own_findings(self, answers: findings.Answers) -> list[Finding]:
        """Judge what tasks say of themselves."""
        party = self.party
        rows = findings.same(
            "versions",
            party,
            {number: answer["versions"] for number, answer in answers.items()},
            _SAME_VERSIONS,
            well=lambda found: ", ".join(f"{name} {version}" for name, version in found.items()),
        )
        rows += findings.installed(party, answers)
        if party.addresses:
            rows += findings.addresses(party, answers)
            rows += findings.free_ports(party, answers)
        return rows

    def _folder_findings(
        self, circle: questions.Circle, folder: examination.Folder
    ) -> list[Finding]:
        """Judge whether all see the run's folder, and can write there."""
        party, path = self.party, str(folder.path)
        if folder.problem:
            return findings.folder_seen(party, {}, "", folder.problem, path)
        problem = examination.write_problem(folder.path)
        with folder.token() as (name, content):
            seen = circle.ask("see", _SOON_SECONDS, name=name)
            rows = findings.folder_seen(party, seen, content, problem, path)
        if not content:
            return rows
        blind = [number for number, answer in seen.items() if answer["content"] != content]
        written = circle.ask("write", _SOON_SECONDS)
        sighted = {n: answer for n, answer in written.items() if n not in blind}
        return rows + findings.folder_written(party, sighted, path)

    def _handlers(self) -> questions.Handlers:
        path = self.run_dir.absolute() if self.run_dir is not None else Path()
        own = {
            "describe": self._describe,
            "reach": lambda question: {"reach": examination.reach(self.party)},
            "clock": lambda question: {"time": time.time()},
            "see": lambda question: {
                "content": examination.seen_content(path, str(question.get("name"))),
                "path": str(path),
            },
            "write": lambda question: {"problem": examination.write_problem(path)},
        }
        return {**own, **self.handlers}

    def _describe(self, question: Answer) -> Answer:
        """Say what this task is, where it runs, and whether its address leads here."""
        answer: Answer = {"versions": examination.versions(), "host": examination.host()}
        if self.party.addresses:
            answer["port"] = self._port_problem
            answer["post"] = self._post_problem
            answer["address"] = examination.own_address(self.party, self._nonce)
        return answer
