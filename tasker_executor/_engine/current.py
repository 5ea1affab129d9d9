"""Who runs here: the current task, seen from inside of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

from .._checks import wait_seconds
from ..exceptions import NoCurrentTask, TaskCancelled

if TYPE_CHECKING:
    from .._sync import Latch
    from .task import TaskFuture

__all__ = ["Caller", "Holder", "TaskContext", "current", "current_task"]


class Holder(Protocol):
    """Who runs tasks with a resource: a worker, or a call of ``run_now``."""

    @property
    def name(self) -> str: ...
    @property
    def busy(self) -> bool: ...
    @property
    def resource(self) -> Any: ...
    @property
    def owner(self) -> object: ...
    @property
    def killed(self) -> Latch: ...


class Caller:
    """A thread that runs a task by ``run_now``, without a resource."""

    __slots__ = ("item", "killed", "owner", "resource")

    def __init__(self, owner: object, killed: Latch, item: Any) -> None:
        self.owner = owner
        self.killed = killed
        self.item = item
        self.resource = None

    @property
    def busy(self) -> bool:
        return self.item is not None

    @property
    def name(self) -> str:
        """The thread."""
        return threading.current_thread().name


class _Here:
    """What runs on one thread. Looked up once in a task, since looking up what is local to a thread takes its time."""

    __slots__ = ("holder",)

    def __init__(self) -> None:
        #: Who runs the task at hand: a Holder; not said so, since mypy takes slots for variables, which Protocol properties are
        #: not.
        self.holder: Any = None


class _Current(threading.local):
    owner: object = None
    """The core whose own thread this is, if any."""

    def __init__(self) -> None:  # called on each thread, when that first comes by
        self.here = _Here()


current = _Current()


def current_holder() -> Holder:
    """Return who runs the task at hand. Raises NoCurrentTask outside of a task."""
    holder: Holder | None = current.here.holder
    if holder is None or not holder.busy:
        raise NoCurrentTask("there is no current task: this was not called from inside a task")
    return holder


class TaskContext:
    """The current task's view of itself. Obtained from `current_task`, of use only while the task runs.

    Its cancel token is set by ``kill()``, and by nothing else: a drain lets every task finish.
    """

    __slots__ = ("_attempt", "_item", "_killed", "worker_name")

    def __init__(self, holder: Holder) -> None:
        self._killed = holder.killed
        self._item: TaskFuture[Any] | None = None
        self._attempt: int = getattr(holder, "attempt", 1)  # of ``run_now``, which has no item of its own
        #: Name of the worker that runs the task; of the calling thread in ``run_now``.
        self.worker_name = holder.name

    @property
    def cancelled(self) -> bool:
        """Has the executor been killed? A long task asks this now and then and returns early."""
        return self._killed.is_open

    def raise_if_cancelled(self) -> None:
        """Raise `TaskCancelled` if the executor has been killed."""
        if self._killed.is_open:
            raise TaskCancelled("the executor was killed while this task ran")

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep at most `timeout` seconds, or until the task is cancelled; tell whether it is."""
        return self._killed.wait(wait_seconds(timeout))

    @property
    def attempt(self) -> int:
        """1 in the first run of the task, 2 in its first retry, and so on."""
        sidecar = None if self._item is None else self._item._sidecar
        return self._attempt if sidecar is None else 1 + sidecar.retries

    def __repr__(self) -> str:
        return f"<TaskContext on {self.worker_name}, attempt {self.attempt}{', cancelled' if self.cancelled else ''}>"


def current_task() -> TaskContext:
    """Return the context of the task that this is called from.

    Raises:
        NoCurrentTask: Called outside of a task (done-callbacks and hooks are outside, too).
    """
    return TaskContext(current_holder())
