"""The current task, as its own code sees it."""

from __future__ import annotations

import threading
from typing import Any, Protocol

from .._checks import wait_seconds
from ..exceptions import NoCurrentTask, TaskCancelled
from .stopping import Token

__all__ = ["Caller", "Holder", "TaskContext", "current", "current_holder", "current_slot", "current_task"]


class Holder(Protocol):
    """A worker, or a call of ``run_now``, that runs tasks with a resource."""

    @property
    def name(self) -> str:
        """The name of the worker, or of the calling thread."""
        ...

    @property
    def owner(self) -> object:
        """The core, or the executor, whose tasks it runs."""
        ...

    def token(self) -> Token:
        """Return the cancel token of the task in hand. Called by that task, and while it is in hand."""
        ...

    @property
    def given(self) -> Any:
        """What the task is given: its resource, or what `around` returned in its place; None without one."""
        ...

    @property
    def slot(self) -> int | None:
        """The number of the worker's place; None in ``run_now``."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a task is in hand."""
        ...

    @property
    def attempt(self) -> int:
        """1 in the first run of the task in hand, 2 in its first retry, and so on."""
        ...


class Caller:
    """A thread that runs a call by ``run_now``, without a resource."""

    __slots__ = ("_token", "call", "owner", "slot")

    def __init__(self, owner: object, token: Token, call: Any, slot: int | None = None) -> None:
        self.owner = owner
        self._token = token
        self.call = call
        self.slot = slot

    @property
    def name(self) -> str:
        """The name of the thread."""
        return threading.current_thread().name

    @property
    def given(self) -> None:
        """No resource."""

    @property
    def busy(self) -> bool:
        """Whether the call is under way."""
        return self.call is not None

    def token(self) -> Token:
        """Return the cancel token of the call."""
        return self._token

    @property
    def attempt(self) -> int:
        """1: without a resource that breaks there is no retry."""
        return 1


class _Here:
    """The task of one thread. A call looks it up once, since each look-up in a `threading.local` is slow."""

    __slots__ = ("holder",)

    def __init__(self) -> None:
        #: The `Holder` of the task in hand. The annotation is Any: mypy takes slots for variables, and the
        #: properties of a Protocol are none.
        self.holder: Any = None


class _Current(threading.local):
    owner: object = None
    """The core that this thread works for; None on other threads."""

    def __init__(self) -> None:  # called once on each thread, at the first access from it
        self.here = _Here()


current = _Current()


def current_holder() -> Holder:
    """Return the holder of the task in hand. Raises NoCurrentTask outside of a task."""
    holder: Holder | None = current.here.holder
    if holder is None or not holder.busy:
        raise NoCurrentTask("there is no current task: this was not called from inside a task")
    return holder


class TaskContext:
    """The current task's view of itself. `current_task` returns it; it is valid while the task runs.

    Its cancel token is set when this task is stopped: by `TaskFuture.stop`, by ``kill()``, or because it has
    run for ``run_within`` seconds. A drain lets every task finish.
    """

    __slots__ = ("_token", "attempt", "worker_name")

    def __init__(self, holder: Holder) -> None:
        self._token = holder.token()
        #: 1 in the first run of the task, 2 in its first retry, and so on.
        self.attempt: int = holder.attempt
        #: The name of the worker that runs the task; in ``run_now``, of the calling thread.
        self.worker_name: str = holder.name

    @property
    def cancelled(self) -> bool:
        """Whether this task is to stop. A long task asks this now and then, and returns early."""
        return self._token.look()

    def raise_if_cancelled(self) -> None:
        """Raise `TaskCancelled` if this task is to stop."""
        if self._token.look():
            raise TaskCancelled(f"this task {self._token.why}")

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until the task is cancelled, at most `timeout` seconds; return whether it is cancelled."""
        return self._token.wait(wait_seconds(timeout))

    def __repr__(self) -> str:
        return f"<TaskContext on {self.worker_name}, attempt {self.attempt}{', cancelled' if self.cancelled else ''}>"


def current_slot() -> int:
    """Return the number of the place of the worker that this thread is: 0 to ``max_workers - 1``, as a rule.

    It is there in tasks, and in the hooks and factory methods that are called on a worker's thread. A
    successor has the number once its predecessor's resource is destroyed. So a slot can stand for a GPU, a
    port or a folder, of which there is one for each worker.

    Numbers of ``max_workers`` and more occur in two cases. After `resize` to fewer workers, the surplus workers
    keep theirs until they have ended. And a worker that was *written off* (see ``abort_grace``) keeps its number
    and its resource until its call returns. At most ``max_workers`` are written off at a time, so the numbers
    stay below ``2 * max_workers``.

    Raises:
        NoCurrentTask: Called from another thread, or from a call of ``run_now``, which has no worker.
    """
    holder: Holder | None = current.here.holder
    slot = None if holder is None else holder.slot
    if slot is None:
        raise NoCurrentTask("there is no slot: this was not called on the thread of a worker, or from inside run_now")
    return slot


def current_task() -> TaskContext:
    """Return the context of the task that calls this.

    Raises:
        NoCurrentTask: Called outside of a task. Done-callbacks and hooks are outside, too.
    """
    return TaskContext(current_holder())
