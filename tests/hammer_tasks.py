"""The tasks of the hammer, and the resources that they use. See ``test_hammer.py``."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

from tasker_executor import (
    PoolDeadlockError,
    ResourceCreationError,
    TaskExpired,
    TaskStopped,
    TaskTimeout,
    current_task,
)

if TYPE_CHECKING:
    from hammer import Life

__all__ = ["CALLER", "KINDS", "REFUSED", "Again", "Broken", "Deliberate", "Job", "Resource", "second"]

REFUSED = "cannot schedule new futures after shutdown"
KINDS = (
    ["returns"] * 8
    + ["fails", "exits", "breaks once", "breaks once", "breaks always", "again once", "again always"]
    + ["obeys", "obeys", "spins", "waits", "nests", "nests", "nests and waits", "runs now", "cancels"]
)

#: What the thread that submits has set: each task must see it, if contexts are propagated.
CALLER: ContextVar[str] = ContextVar("CALLER", default="nobody")


class Deliberate(Exception):
    """What tasks, hooks and callbacks raise that are meant to fail."""


class Broken(Exception):
    """What a task raises whose resource is broken."""


class Again(Exception):
    """What a task raises that may succeed at once."""


class Aborted(Exception):
    """What a task raises that finds itself stopped."""


class Resource:
    """It is used by one thread at a time, by the one that made it if that is a worker, and knows for which task."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.maker = threading.current_thread()
        self.broken = False
        self.destroyed: list[str] = []
        self.job: Job | None = None
        self.aborts = 0
        self._in_use = threading.Lock()

    @contextmanager
    def used(self, purpose: str) -> Generator[None]:
        life, thread = self.life, threading.current_thread()
        if not self._in_use.acquire(False):
            life.complain(f"{purpose}: another thread uses the resource")
        if self.destroyed and not life.destroying:
            life.complain(f"{purpose}: the resource was destroyed")
        if (
            thread is not self.maker
            and life.owns(thread)
            and life.owns(self.maker)
            and purpose != "run now"
            and not life.reserve
        ):
            life.complain(f"{purpose} on {thread.name}, made on {self.maker.name}")
        try:
            if self.broken and purpose in ("task", "run now"):
                raise Broken
            yield
        finally:
            self._in_use.release()

    def abort(self) -> None:
        if self.destroyed:
            self.life.complain("aborted after its end")
        self.aborts += 1
        if (job := self.job) is not None:
            if not job.asked and not self.life.killed:
                self.life.complain(f"an abort has hit {job}")
            job.aborts += 1

    def destroy(self) -> None:
        if self.destroyed:
            self.life.complain("destroyed twice")
        if self.job is not None and not self.life.destroying:
            self.life.complain(f"destroyed in use by {self.job}")
        self.destroyed.append(threading.current_thread().name)
        if self.life.unwilling and len(self.life.resources) % 5 == 0:
            raise Deliberate


class Job:
    """One task, and what it has been through."""

    def __init__(self, life: Life, kind: str, depth: int) -> None:
        self.life = life
        self.kind = kind
        self.depth = depth  # how many tasks and callbacks submitted the next one before this one
        self.caller = CALLER.get()
        self.future: Future[int] | None = None
        self.limited = False  # whether it has `run_within`
        self.hurried = False  # whether it has `start_within`
        self.retries = life.max_retries
        self.asked = life.run_within is not None  # whether anything may stop it: set before that is done
        self.cancelled = False  # whether a call of `cancel` has returned True
        self.runs: list[str] = []  # the threads
        self.verdicts: list[str] = []  # what it has raised that is a reason for a retry
        self.callbacks: list[list[str]] = []  # for each, the threads that called it
        self.aborts = 0
        self._inside = threading.Lock()

    def __repr__(self) -> str:
        return f"<Job {self.kind}: ran on {self.runs}, {self.verdicts}, {self.future!r}>"

    def run(self, *given: Resource) -> int:
        life, thread = self.life, threading.current_thread().name
        if self.cancelled:
            life.complain(f"{self} runs, although its cancel() had returned True")
        if not self._inside.acquire(False):
            life.complain(f"{self} runs twice at a time")
        self.runs.append(thread)
        try:
            if life.propagates and CALLER.get() != self.caller:
                life.complain(f"{self} sees the context of {CALLER.get()}, not of {self.caller}")
            if not given:
                return self._act()
            (resource,) = given
            with resource.used("task"):
                resource.job = self
                try:
                    return self._act(resource)
                finally:
                    resource.job = None
        except Broken:
            self.verdicts.append("broken")
            raise
        finally:
            self._inside.release()

    def _act(self, resource: Resource | None = None) -> int:
        kind, life, task = self.kind, self.life, current_task()
        if task.cancelled and not self.asked and not life.killed:
            life.complain(f"the token of {self} is set")
        if kind == "fails":
            raise Deliberate
        if kind == "exits":
            raise SystemExit(7)
        if resource is not None and (kind == "breaks always" or (kind == "breaks once" and len(self.runs) == 1)):
            resource.broken = True
            raise Broken
        if resource is not None and (kind == "again always" or (kind == "again once" and len(self.runs) == 1)):
            self.verdicts.append("again")
            raise Again
        if kind in ("obeys", "spins"):
            for _ in range(300):
                if kind == "obeys" and (task.cancelled or self.aborts):
                    raise Aborted
        elif kind == "waits" and task.wait(0.001) and not self.asked and not life.killed:
            life.complain(f"the token of {self} was set while it waited")
        elif kind.startswith("nests") or kind == "cancels":
            self._nest()
        elif kind == "runs now":
            with life.excused():
                assert life.pool is None or life.pool.run_now(second, 7) == 7
        return len(self.runs)

    def _nest(self) -> None:
        """Submit another task, and wait for it or cancel it, or do neither."""
        child = self.life.submit(self.depth + 1)
        if child is None or child.future is None:
            return
        if self.kind == "cancels" and child.future.cancel():
            child.cancelled = True
        elif self.kind == "nests and waits":
            try:
                child.future.exception()
            except (CancelledError, PoolDeadlockError):  # cancelled by another thread; or no worker is left to run it
                pass

    def when_done(self, depth: int | None = None) -> None:
        """Add a callback; with `depth` it submits another task."""
        calls: list[str] = []
        self.callbacks.append(calls)
        assert self.future is not None
        self.future.add_done_callback(partial(self._note, calls, depth))

    def _note(self, calls: list[str], depth: int | None, future: Future[int]) -> None:
        calls.append(threading.current_thread().name)
        if not future.done():
            self.life.complain(f"a callback of {self} was called early")
        if depth is not None:
            self.life.submit(depth)
            if len(self.callbacks) % 3 == 0:
                raise Deliberate

    def check(self) -> None:
        """Assert that its end fits what it has been through."""
        life, runs = self.life, len(self.runs)
        if self.future is None:
            assert not runs, "refused, and yet it ran"
            return
        assert self.future.done(), "not final"
        assert [calls for calls in self.callbacks if len(calls) != 1] == [], "a callback was not called exactly once"
        assert runs <= 1 + len(self.verdicts), "run again without a verdict"
        assert runs <= 1 + self.retries, "run too often"
        if self.future.cancelled():
            assert not runs, "cancelled, and yet it ran"
            return
        assert not self.cancelled, "its cancel() had returned True"
        error = self.future.exception(0)
        if error is None:
            assert runs
            assert self.future.result(0) == runs
            assert self.kind not in ("fails", "exits")
        elif isinstance(error, TaskExpired):
            assert self.hurried
            assert not runs
        elif isinstance(error, TaskTimeout):
            assert self.limited or life.run_within is not None
        elif isinstance(error, TaskStopped):
            assert self.asked or life.killed
        elif isinstance(error, RuntimeError) and str(error) == REFUSED:
            assert life.on_full == "caller"  # its submitter was about to run it
            assert not runs
        elif isinstance(error, ResourceCreationError):
            assert life.flaky or life.hasty
        elif isinstance(error, Again | Broken):
            assert life.resources
            assert len(self.verdicts) == runs
        else:
            assert (self.kind, type(error)) in [("fails", Deliberate), ("exits", SystemExit), ("obeys", Aborted)]
            assert self.asked or life.killed or self.kind != "obeys"


def second(*given: Any) -> Any:
    """Return the last argument; use the resource, if there is one before it."""
    if isinstance(given[0], Resource):
        with given[0].used("run now"):
            return given[-1]
    return given[-1]
