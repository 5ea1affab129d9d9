"""Observers are told of events: what happened to which task, worker or resource, and how long it took.

Gauges are pulled (`ResourceExecutor.stats`), events are pushed. An executor calls only the methods that an
observer's class overrides, so an event that no observer listens to costs nothing. Methods run on the thread
where the event happens, never under a lock of the executor. A method that raises is logged and ignored.
"""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass, field

__all__ = ["Observer", "ResourceEvent", "ScaleEvent", "StateEvent", "TaskEvent", "WorkerEvent"]


@dataclass(frozen=True)
class TaskEvent:
    """Something happened to a task.

    Attributes:
        executor: Name of the executor.
        task: A number that the events of one task share, unique among the tasks alive.
        function: Name of the function.
        lane: ``"normal"`` or ``"priority"``.
        attempt: 1 for the first run, 2 for the first retry; 0 when the task never ran.
        worker: Name of the worker, or None.
        wait: Seconds from submission (or from being queued again) to the start.
        run: Seconds that the attempt ran.
        outcome: For `Observer.task_finished`: ``"completed"``, ``"failed"`` or ``"cancelled"``. For
            `Observer.task_stopped`: ``"stopped"``, ``"timed out"`` or ``"killed"``.
        error: What the task raised, if it did.
        context: The `contextvars` context that the task runs in. If resources can break, each attempt runs in
            a copy of its own. None before the task is started, and without `propagate_context`. The task sees
            what `Observer.task_started` sets in it.
    """

    executor: str
    task: int
    function: str
    lane: str
    attempt: int = 0
    worker: str | None = None
    wait: float = 0.0
    run: float = 0.0
    outcome: str = ""
    error: BaseException | None = None
    context: Context | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class WorkerEvent:
    """A worker started, ended or was written off. `reason` says why, `error` what broke its resource."""

    executor: str
    worker: str
    reason: str = ""
    error: BaseException | None = None


@dataclass(frozen=True)
class ResourceEvent:
    """A resource was made, given up, or could not be made. `worker` is None for the reserve of ``run_now``."""

    executor: str
    worker: str | None
    seconds: float = 0.0
    error: BaseException | None = None


@dataclass(frozen=True)
class ScaleEvent:
    """The number of workers wanted changed."""

    executor: str
    before: int
    after: int
    reason: str


@dataclass(frozen=True)
class StateEvent:
    """The executor entered another state: ``"draining"``, ``"killed"`` or ``"closed"``."""

    executor: str
    state: str


class Observer:
    """Base class of observers: override the methods of the events that you want to hear of.

    Example:
        >>> class Replacements(Observer):
        ...     def worker_ended(self, event: WorkerEvent) -> None:
        ...         print(event.worker, "ended:", event.reason)
    """

    def task_submitted(self, event: TaskEvent) -> None:
        """A task was accepted into a lane."""

    def task_started(self, event: TaskEvent) -> None:
        """A worker is about to run a task, on the thread that calls this."""

    def task_retried(self, event: TaskEvent) -> None:
        """A task's resource broke, and it was queued again."""

    def task_stopped(self, event: TaskEvent) -> None:
        """A task that runs was asked to stop; `outcome` is ``"stopped"``, ``"timed out"`` or ``"killed"``.

        The task may have seen that already, and finished.
        """

    def task_finished(self, event: TaskEvent) -> None:
        """A task's future is done: it returned, raised, was cancelled or expired."""

    def worker_started(self, event: WorkerEvent) -> None:
        """A worker owns its resource and takes tasks from now on."""

    def worker_ended(self, event: WorkerEvent) -> None:
        """A worker has given up its resource and ends."""

    def worker_written_off(self, event: WorkerEvent) -> None:
        """A worker was written off: its task, or an abort of its resource, did not end. A successor may start.

        It may have ended by now; then `worker_ended` may come first.
        """

    def resource_created(self, event: ResourceEvent) -> None:
        """A resource was made."""

    def resource_destroyed(self, event: ResourceEvent) -> None:
        """A resource was given up."""

    def creation_failed(self, event: ResourceEvent) -> None:
        """A resource could not be made."""

    def scaled(self, event: ScaleEvent) -> None:
        """The number of workers wanted changed."""

    def state_changed(self, event: StateEvent) -> None:
        """The executor began to drain, was killed, or has closed."""


#: The names of all events.
EVENTS = [name for name in vars(Observer) if not name.startswith("_")]
