"""Questions of the chief to tasks that have met, and their answers.

A question has a name; a task answers it with the handler of that name. Each answer is waited for
a bounded time, and a task that gives none is asked no more.
"""

import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfscale.cluster.meeting import Answer, Party
from tfscale.cluster.wire import Channel, Lost

_SOON_SECONDS = 5.0

Handlers = Mapping[str, Callable[[Answer], Answer]]


def serve(channel: Channel, handlers: Handlers, seconds: float) -> Answer:
    """Answer the chief's questions until it says that it was the last one.

    Args:
        channel: of `join`.
        handlers: functions from a question to its answer, by the question's name.
        seconds: the longest time between two questions.

    Returns:
        The chief's last word.

    Raises:
        Lost: if the chief is gone.
    """
    while True:
        question = channel.receive(seconds)
        if question.get("ask") == "end":
            return question
        handler = handlers.get(str(question.get("ask")))
        channel.send(handler(question) if handler else {})


class Circle:
    """The chief's way to ask all tasks, itself included.

    Args:
        party: who meets.
        channels: those that have joined.
        handlers: the chief's own, as for `serve`.

    Attributes:
        lost: why a task that had joined is no longer asked.
    """

    def __init__(self, party: Party, channels: dict[int, Channel], handlers: Handlers):
        self._party = party
        self._channels = dict(channels)
        self._handlers = handlers
        self.lost: dict[int, str] = {}

    def ask(self, name: str, seconds: float, /, **question: Any) -> dict[int, Answer]:
        """Ask all at once.

        Args:
            name: of the handler.
            seconds: how long to wait for the last answer, after the chief has its own.
            **question: what fits into JSON.

        Returns:
            The answers by the task's number, of those that gave one.
        """
        question["ask"] = name
        for number in list(self._channels):
            self._send(number, question)
        # As JSON gives it back, like those of the others: a tuple has become a list.
        own = json.loads(json.dumps(self._handlers[name](question)))
        answers: dict[int, Answer] = {self._party.own: own}
        deadline = time.monotonic() + seconds
        for number in list(self._channels):
            left = max(0.0, deadline - time.monotonic())
            answer = self._try(number, functools.partial(Channel.receive, seconds=left))
            if answer is not None:
                answers[number] = answer
        return dict(sorted(answers.items()))

    def clocks(self, num_rounds: int = 5) -> dict[int, tuple[float, float]]:
        """Return how far each other task's clock is ahead of this one's, and the bound, in seconds.

        The bound is half the time that the quickest of some questions took, there and back.
        """
        found: dict[int, tuple[float, float]] = {}

        def ask(channel: Channel) -> Answer:
            before, began = time.time(), time.perf_counter()
            channel.send({"ask": "clock"})
            answer = channel.receive(_SOON_SECONDS)
            half = (time.perf_counter() - began) / 2
            return {"ahead": float(answer["time"]) - (before + half), "bound": half}

        for number in list(self._channels):
            for _ in range(num_rounds):
                answer = self._try(number, ask)
                if answer and (number not in found or answer["bound"] < found[number][1]):
                    found[number] = answer["ahead"], answer["bound"]
        return found

    def end(self, **word: Any) -> None:
        """Tell all that there is nothing more to ask, and how it ended."""
        for number in list(self._channels):
            self._send(number, {"ask": "end", **word})

    def _send(self, number: int, message: Answer) -> None:
        def send(channel: Channel) -> Answer:
            channel.send(message)
            return {}

        self._try(number, send)

    def _try(self, number: int, what: Callable[[Channel], Answer]) -> Answer | None:
        """Do something with a task's channel; drop the task if that does not work."""
        if number not in self._channels:
            return None
        try:
            return what(self._channels[number])
        except (Lost, KeyError, TypeError, ValueError) as error:
            self.lost[number] = str(error) if isinstance(error, Lost) else "gave a strange answer"
            self._channels.pop(number).close()
            return None
