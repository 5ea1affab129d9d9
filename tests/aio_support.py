"""The loops that tests of `tasker_executor.aio` run on, and what their coroutines and tasks use."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import pytest

from support import DEADLINE
from tasker_executor import ResourceExecutor, TaskFuture, current_task

__all__ = ["Run", "Stoppable", "forget", "log_of_submissions", "run", "until"]

T = TypeVar("T")


class Run(Protocol):
    """Runs a coroutine function on a new loop, as `asyncio.run` does."""

    def __call__(self, main: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T: ...


@pytest.fixture(params=["asyncio", "debug", "eager", "uvloop", "anyio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Each kind of loop in turn. A module imports this fixture to have it."""
    kind = request.param
    if kind == "anyio":
        anyio = pytest.importorskip("anyio")
        return lambda main, *args: anyio.run(main, *args)
    factory = pytest.importorskip("uvloop").new_event_loop if kind == "uvloop" else None
    if kind == "eager" and not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("eager tasks came with Python 3.12")

    def run_main(main: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        with asyncio.Runner(debug=kind == "debug", loop_factory=factory) as runner:
            if kind == "eager":
                runner.get_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
            return runner.run(main(*args))

    return run_main


async def until(predicate: Callable[[], bool], claim: str) -> None:
    """Let the loop go on until `predicate()` is true."""
    deadline = time.monotonic() + DEADLINE
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {DEADLINE:g} s in vain for {claim}")
        await asyncio.sleep(0)


def log_of_submissions(pool: ResourceExecutor[Any]) -> list[TaskFuture[Any]]:
    """Return a list, to which the future of each task is appended that a coroutine submits from now on."""
    futures: list[TaskFuture[Any]] = []
    enqueue = pool._enqueue_soon

    def enqueue_and_note(*args: Any) -> TaskFuture[Any]:
        futures.append(enqueue(*args))
        return futures[-1]

    vars(pool)["_enqueue_soon"] = enqueue_and_note
    return futures


def forget(task: Any) -> None:
    """Keep asyncio from complaining of a task that will never be done, because its loop is closed."""
    task._log_destroy_pending = False


class Stoppable:
    """A task that runs until it is stopped, or let go. It takes any arguments."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.stopped = threading.Event()

    def __call__(self, *_: object) -> None:
        self.started.set()
        assert current_task().wait(DEADLINE)
        self.stopped.set()
        current_task().raise_if_cancelled()

    async def has_started(self) -> None:
        await until(self.started.is_set, "the task to start")
