"""What the tests of the timer and its duties share: policies that count, turns that are booked, threads by their names."""

from __future__ import annotations

import threading

import pytest

from engine import (
    Timer,
)
from support import Watched
from tasker_executor import (
    LoadSample,
)


def threads_of(prefix: str) -> list[str]:
    """Names of the threads of a pool that was made with this `thread_name_prefix`; the timer's is not among them."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(prefix) and not name.endswith("_timer")]


class Script(Watched):
    """A policy that is told what to answer, and counts how often it was asked."""

    interval = 0.005

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer
        self.error: Exception | None = None
        self.asked = 0
        self.loads: list[LoadSample] = []

    def target(self, load: LoadSample, /) -> int:
        with self._changed:
            self.asked += 1
            self.loads.append(load)
            self._changed.notify_all()
            if self.error is not None:
                raise self.error
            return self.answer

    def wait_until_asked(self, more: int = 1) -> None:
        """Block until it was asked so many times more, counted from now."""
        with self._changed:
            n = self.asked + more
            self._wait_until(lambda: self.asked >= n, f"{n} questions")


class Turns(Watched):
    """Books when the timer has something to do next, after each of its turns. None: nothing, until it is woken."""

    def __init__(self) -> None:
        super().__init__()
        self.dues: list[float | None] = []

    def book(self, due: float | None) -> float | None:
        with self._changed:
            self.dues.append(due)
            self._changed.notify_all()
        return due

    def wait_until_asleep(self) -> None:
        self._wait_until(lambda: bool(self.dues) and self.dues[-1] is None, "a timer that sleeps until it is woken")


def watch_turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """Book the turns of all timers."""
    turns = Turns()
    original = Timer._turn

    def turn(timer: Timer) -> float | None:
        return turns.book(original(timer))

    monkeypatch.setattr(Timer, "_turn", turn)
    return turns


def refusing_start(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Have the system refuse to start threads of that name; return a list of those refused."""
    refused: list[str] = []
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.endswith(name):
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    return refused
