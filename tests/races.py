"""What several files of races share: lanes, stacks and actions that let the other thread act between two steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from engine import Lane, Seat, Task, Worker, idle_workers, install_lane, lane_arguments, use_idle_stack
from support import DEADLINE, eventually
from tasker_executor import ResourceExecutor


class Once:
    """An action that happens the first time only."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action

    def __call__(self) -> None:
        action, self._action = self._action, None
        if action is not None:
            action()


class RacedLane(Lane):
    """A lane that acts when a thread looks whether it is empty, and when a thread is about to pop."""

    def __init__(self, pool: ResourceExecutor[Any], name: str) -> None:
        super().__init__(*lane_arguments(pool, name))
        self.on_look: Callable[[], object] | None = None
        self.on_pop: Callable[[], object] | None = None
        self.on_popped: Callable[[], object] | None = None
        install_lane(pool, name, self)

    def __len__(self) -> int:
        if self.on_look is not None:
            self.on_look()
        return super().__len__()

    def popleft(self) -> Task[Any]:
        if self.on_pop is not None:
            self.on_pop()
        future: Task[Any] = super().popleft()
        if self.on_popped is not None:
            self.on_popped()
        return future


def when_idle(pool: ResourceExecutor[Any], action: Callable[[], object]) -> Callable[[], None]:
    """Act once, the first time that this is called by a worker which is registered as idle."""
    once = Once(action)

    def act() -> None:
        if any(worker.thread is threading.current_thread() for worker in idle_workers(pool)):
            once()

    return act


def wait_until_idle(pool: ResourceExecutor[Any]) -> Worker:
    """Block until a worker is at rest, registered as idle; return it."""
    eventually(lambda: [worker.seat.rests for worker in idle_workers(pool)] == [True], "one worker at rest")
    return idle_workers(pool)[0]


def rest_all(pool: ResourceExecutor[Any], count: int) -> None:
    """Start that many workers, and block until all of them are at rest, registered as idle."""
    barrier = threading.Barrier(count)
    submit = pool.with_options(pass_resource=False).submit
    for future in [submit(barrier.wait, DEADLINE) for _ in range(count)]:
        future.result(DEADLINE)
    # A worker registers before it drops its last task and rests.
    eventually(lambda: [worker.seat.rests for worker in idle_workers(pool)] == [True] * count, f"{count} workers at rest")


class Thrown(BaseException):
    """What some libraries throw into a thread to stop a task that hangs."""


class LyingStack(list[Any]):
    """An idle stack that calls `action` at the first registration of a worker: right before it, or right after."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None

    def append(self, someone: Any, /) -> None:
        if not isinstance(someone, Seat):
            super().append(someone)
            return
        before, self.before = self.before, None
        if before is not None:
            before()
        super().append(someone)
        after, self.after = self.after, None
        if after is not None:
            after()

    @property
    def workers(self) -> int:
        return sum(isinstance(someone, Seat) for someone in self[:])


def lie(pool: ResourceExecutor[Any]) -> LyingStack:
    """Let a pool that has no workers yet use a lying stack."""
    stack = LyingStack()
    use_idle_stack(pool, stack)
    return stack
