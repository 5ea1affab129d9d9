"""What tests hold in their hands: a gate, a ledger of fake resources, numbered steps.

Everything that waits gives up after `DEADLINE` with an AssertionError that says what it waited for: a hang has a name.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, overload

from typing_extensions import Self

from tasker_executor import ResourceExecutor

__all__ = [
    "DEADLINE",
    "FakeResource",
    "Gate",
    "Ledger",
    "MakePool",
    "ResourceBroken",
    "Sequencer",
    "eventually",
    "join_all",
    "run_python",
    "switch_interval",
]

R = TypeVar("R")

DEADLINE = 30.0  # Seconds. So long that only a bug gets there, on however busy a machine.


class MakePool(Protocol):
    """The type of the fixture `make_pool`: the arguments of `ResourceExecutor`, and the same result."""

    @overload
    def __call__(self, max_workers: int | None = None, *, on_create: None = None, **kwargs: Any) -> ResourceExecutor[None]: ...
    @overload
    def __call__(self, max_workers: int | None = None, *, on_create: Callable[[], R], **kwargs: Any) -> ResourceExecutor[R]: ...


class Watched:
    """Something whose state changes under `_changed`, and can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def _wait_until(self, predicate: Callable[[], bool], claim: str) -> None:
        with self._changed:
            if not self._changed.wait_for(predicate, DEADLINE):
                raise AssertionError(f"waited {DEADLINE:g} s in vain for {claim}: {self!r}")


class Gate(Watched):
    """Holds tasks until it is opened, and lets the test know that they are held.

    As a context manager it is opened at the end of the block, so that a failing test does not leave tasks behind.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held = 0
        self._open = False

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open else 'closed'}: {self._held} held>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def hold(self, *args: object) -> None:
        """Block the calling task until `release`. It takes any arguments, so it is a task for every pool."""
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            try:
                self._wait_until(lambda: self._open, "the gate to open")
            finally:
                self._held -= 1
                self._changed.notify_all()

    def release(self) -> None:
        """Let everybody pass, now and from now on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def wait_until_held(self, n: int = 1) -> None:
        """Block until `n` tasks are held at the same time."""
        self._wait_until(lambda: self._held >= n, f"{n} held tasks")


class ResourceBroken(Exception):
    """What a broken `FakeResource` raises when it is used."""


class FakeResource:
    """What a task gets from a pool made with `Ledger.create`. Set `broken`, and the next use raises `ResourceBroken`."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger = ledger
        self.number = number
        self.broken = False
        self.uses = 0
        self.maker = threading.current_thread()
        self.destroyers: list[threading.Thread] = []

    def __repr__(self) -> str:
        return f"<FakeResource {self.number}>"

    def use(self, *args: object) -> int:
        """Work with it; the result is its number."""
        self._ledger.note_use(self)
        if self.broken:
            raise ResourceBroken(self)
        return self.number

    def break_down(self, *args: object) -> None:
        """Break, and raise: the task that meets the outage."""
        self.broken = True
        self.use()


class Ledger(Watched):
    """Books every `FakeResource` that was made, used and destroyed, and by whom.

    Its methods are the hooks of a pool: ``make_pool(on_create=ledger.create, on_destroy=ledger.destroy,
    check_health=ledger.is_healthy, check_resource=ledger.is_usable)``. The fixture `ledger` balances the books after the test.
    """

    def __init__(self) -> None:
        super().__init__()
        self.any_thread = False  # Set it where run_now uses resources: those may be used and destroyed by any thread.
        self.outage: BaseException | None = None  # While set, `create` raises it.
        self.attempts = 0
        self.created: list[FakeResource] = []
        self.destroyed: list[FakeResource] = []
        self._complaints: list[str] = []

    def __repr__(self) -> str:
        return f"<Ledger: {self.attempts} attempts, {len(self.created)} created, {len(self.destroyed)} destroyed>"

    @property
    def alive(self) -> list[FakeResource]:
        """Those not destroyed, in the order they were made."""
        with self._changed:
            return [resource for resource in self.created if not resource.destroyers]

    # -- hooks --

    def create(self) -> FakeResource:
        with self._changed:
            self.attempts += 1
            self._changed.notify_all()
            if self.outage is not None:
                raise self.outage
            resource = FakeResource(self, len(self.created))
            self.created.append(resource)
            return resource

    def destroy(self, resource: FakeResource) -> None:
        with self._changed:
            resource.destroyers.append(threading.current_thread())
            self.destroyed.append(resource)
            self._changed.notify_all()

    def is_healthy(self, error: BaseException) -> bool:
        return not isinstance(error, ResourceBroken)

    def is_usable(self, resource: FakeResource) -> bool:
        return not resource.broken

    # -- waiting --

    def wait_until_attempted(self, n: int) -> None:
        """Block until `create` was called `n` times, in vain or not."""
        self._wait_until(lambda: self.attempts >= n, f"{n} attempts")

    def wait_until_created(self, n: int) -> None:
        """Block until `n` resources were made in all."""
        self._wait_until(lambda: len(self.created) >= n, f"{n} creations")

    def wait_until_destroyed(self, n: int) -> None:
        """Block until `n` resources were destroyed in all."""
        self._wait_until(lambda: len(self.destroyed) >= n, f"{n} destructions")

    # -- the books --

    def note_use(self, resource: FakeResource) -> None:
        user = threading.current_thread()
        with self._changed:
            resource.uses += 1
            if resource.destroyers:
                self._complaints.append(f"{resource} was used by {user.name} after it was destroyed")
            if user is not resource.maker and not self.any_thread:
                self._complaints.append(f"{resource} was made by {resource.maker.name} and used by {user.name}")

    def check(self) -> None:
        """Fail unless each resource was used and destroyed, exactly once and last, by the thread that made it."""
        with self._changed:
            complaints = list(self._complaints)
            for resource in self.created:
                names = [thread.name for thread in resource.destroyers]
                if len(names) != 1:
                    complaints.append(f"{resource} was destroyed {len(names)} times, by {names}")
                elif resource.destroyers[0] is not resource.maker and not self.any_thread:
                    complaints.append(f"{resource} was made by {resource.maker.name} and destroyed by {names[0]}")
        if complaints:
            raise AssertionError("\n".join(complaints))


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


@contextmanager
def switch_interval(seconds: float = 1e-6) -> Generator[None]:
    """Make threads switch that often in the block: a race that takes an hour to happen takes seconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def eventually(predicate: Callable[[], bool], claim: str) -> None:
    """Block until `predicate`. It polls: only for what nobody announces, such as a number in `stats()`."""
    deadline = time.monotonic() + DEADLINE
    pause = threading.Event()
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {DEADLINE:g} s in vain for {claim}")
        pause.wait(0.001)


def join_all(threads: Iterable[threading.Thread], timeout: float = DEADLINE) -> list[threading.Thread]:
    """Join the threads, for `timeout` seconds in all, and return those that still run."""
    threads = list(threads)
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in threads if thread.is_alive()]


def run_python(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; for what happens when one ends. Warnings are errors there, too."""
    command = [sys.executable, "-W", "error", *options, "-c", source]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * DEADLINE)
