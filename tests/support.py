"""What tests hold in their hands: what `tasker_executor.testing` gives to all, numbered steps, and more.

Everything that waits gives up after `DEADLINE` with an AssertionError that says what it waited for: a hang has a name.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, overload

import pytest

from engine import kick
from tasker_executor import ResourceExecutor, TaskStopped, _sync
from tasker_executor.testing.fakes import DEADLINE, FakeResource, Gate, Ledger, ResourceBroken, Watched

__all__ = [
    "DEADLINE",
    "HOUR",
    "Clock",
    "FakeResource",
    "Gate",
    "Hook",
    "Ledger",
    "MakePool",
    "ResourceBroken",
    "Sequencer",
    "Watched",
    "cause_of_stop",
    "collected",
    "eventually",
    "join_all",
    "needs_gil",
    "run_python",
    "switch_interval",
]

R = TypeVar("R")

#: Seconds that no test lasts.
HOUR = 3600.0

#: Without the GIL an object goes when the thread that made it comes by; a worker that sleeps does not.
needs_gil = pytest.mark.skipif(
    not _sync.HAS_GIL,
    reason="without the GIL, what a thread has made goes when that comes by",
)


class MakePool(Protocol):
    """The type of the fixture `make_pool`: the arguments of `ResourceExecutor`, and the same result."""

    @overload
    def __call__(self, max_workers: int | None = None, *, on_create: None = None, **kwargs: Any) -> ResourceExecutor[None]: ...
    @overload
    def __call__(self, max_workers: int | None = None, *, on_create: Callable[[], R], **kwargs: Any) -> ResourceExecutor[R]: ...


class Sequencer(Watched):
    """Numbered steps across threads: ``with seq(0): ...`` in one, ``with seq(1): ...`` in another. After trio's.

    A step begins when the one before has ended. A step that raises ends the sequence: the others fail at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next = 0
        self._taken: set[int] = set()
        self._broken = False

    def __repr__(self) -> str:
        return f"<Sequencer: next is {self._next}, taken are {sorted(self._taken)}{', broken' if self._broken else ''}>"

    @contextmanager
    def __call__(self, step: int) -> Generator[None]:
        with self._changed:
            if step in self._taken:
                raise AssertionError(f"step {step} was taken before: {self!r}")
            self._taken.add(step)
            self._wait_until(lambda: self._next == step or self._broken, f"step {step}")
            if self._broken:
                raise AssertionError(f"step {step} comes after one that failed")
        try:
            yield
        except BaseException:
            self._broken = True
            raise
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()


class Clock:
    """The clock of the whole package, which a test can put forward: hours pass for the code, and no time for the test.

    So a limit can be an hour, which no busy machine reaches, and run out when the test says so. What sleeps does not notice:
    `pass_time` wakes the timer of a pool.
    """

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return _sync.clock() + self.ahead

    def pass_time(self, seconds: float, pool: ResourceExecutor[Any]) -> None:
        """Put the clock forward, and have the timer of the pool look at it."""
        self.ahead += seconds
        kick(pool)

    @contextmanager
    def installed(self) -> Generator[None]:
        """Be what each module of the package calls `clock`, apart from the one that names the real one."""
        with pytest.MonkeyPatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.startswith("tasker_executor.") and module is not _sync and hasattr(module, "clock"):
                    patch.setattr(module, "clock", self)
            yield


@contextmanager
def switch_interval(seconds: float = 1e-6) -> Generator[None]:
    """Make threads switch that often in the block: a race that takes an hour to happen takes seconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def is_waited_for(future: Any) -> bool:
    """Does a thread block in `result()` of this task, or is it about to?"""
    sidecar = future._sidecar
    return sidecar is not None and not (sidecar.permits is None and sidecar.handoff is None)


def eventually(predicate: Callable[[], bool], claim: str) -> None:
    """Block until `predicate()` is true. It polls: use it for what no event announces, such as `stats()`."""
    deadline = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {DEADLINE:g} s in vain for {claim}")
        pause.wait(0.001)


def collected(*references: Callable[[], object]) -> bool:
    """Return whether all that these weak references lead to is gone, once the garbage was collected.

    Without the GIL an object goes when the thread that has made it comes by, so this waits there.
    """
    gc.collect()
    if not _sync.HAS_GIL:
        eventually(lambda: all(reference() is None for reference in references), "the objects to go")
    return all(reference() is None for reference in references)


class Hook:
    """An `on_abort` hook that notes the resources, and ends the calls that hang in them."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.freed = threading.Event()

    def __call__(self, resource: FakeResource) -> None:
        self.calls.append(resource.number)
        self.freed.set()

    def hang(self, resource: FakeResource) -> None:
        """Run until the resource is aborted, and raise."""
        assert self.freed.wait(DEADLINE)
        raise LookupError(resource)


def cause_of_stop(future: Future[Any]) -> BaseException | None:
    """Return what a task has raised that was stopped, by `stop` or by `kill`."""
    error = future.exception(DEADLINE)
    assert type(error) is TaskStopped
    return error.__cause__


def join_all(threads: Iterable[threading.Thread], timeout: float = DEADLINE) -> list[threading.Thread]:
    """Join the threads, for `timeout` seconds in all, and return those that still run.

    Not the dummies: `logging` makes one for a thread that has left `threading` already, and drops its last objects.
    """
    threads = [thread for thread in threads if not isinstance(thread, threading._DummyThread)]
    deadline = time.monotonic() + timeout
    for thread in threads:
        # `threading.enumerate` lists threads that are just being started, too, and those cannot be joined yet.
        thread._started.wait(max(0.0, deadline - time.monotonic()))  # type: ignore[attr-defined]  # not in typeshed
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


def run_python(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; for what happens when one ends. Warnings are errors there, too."""
    command = [sys.executable, "-W", "error", *options, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * DEADLINE)
