"""Trouble for the drivers under test: calls that hang in another thread, and connections that break all the time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest

from support import DEADLINE
from tasker_executor import TaskStopped

__all__ = ["HANGS", "MAX_RETRIES", "OUTAGE", "WORKERS", "again_and_again", "cause_of_stop", "failure", "in_thread"]

HANGS = 600  # seconds
OUTAGE = 1.0  # seconds
WORKERS = 8
MAX_RETRIES = 30


def failure(call: Callable[[], object]) -> Exception:
    """The error that the call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the test looks at it
        call()
    assert isinstance(caught.value, Exception)
    return caught.value


def cause_of_stop(future: Future[Any]) -> BaseException | None:
    """What the task raised when it was stopped."""
    error = future.exception(DEADLINE)
    assert isinstance(error, TaskStopped)
    return error.__cause__


@contextmanager
def in_thread(action: Callable[[], object]) -> Generator[list[BaseException]]:
    """Run `action` in another thread during the block; yield the list that gets its error."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="hangs")
    thread.start()
    try:
        yield errors
    finally:
        thread.join(DEADLINE)
    assert not thread.is_alive()


@contextmanager
def again_and_again(trouble: Callable[[], object], tasks: int) -> Generator[Callable[[], object]]:
    """Make `trouble` during the block, whenever that many tasks have begun; yield what a task calls when it begins.

    So there is no more trouble for each task on a busy machine, where a task takes its time.
    """
    begun, over = threading.Semaphore(0), threading.Event()

    def go_on() -> None:
        while not over.is_set():
            if all(begun.acquire(timeout=0.1) for _ in range(tasks)):
                trouble()

    with in_thread(go_on):
        try:
            yield begun.release
        finally:
            over.set()
