"""The notices: what the log and the observers hear of the workers of one executor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._hub import ObserverHub
from .._report import Logger, safe_repr
from .._sync import clock
from .attempt import describe
from .resources import End
from .stopping import Reason
from .task import Task
from .worker import Worker

if TYPE_CHECKING:
    from ..observers import TaskEvent

__all__ = ["Notices"]

logger = Logger("tasker_executor")


class Notices:
    """Tells of workers, and of how many are wanted. Called without the lock: handlers and observers are user code."""

    def __init__(self, name: str, hub: ObserverHub) -> None:
        self._name = name
        self._hub = hub

    def worker_started(self, worker: Worker) -> None:
        """Tell that a worker owns its resource, and is about to look at the lanes for the first time."""
        name = self._name
        logger.debug("executor %r: worker %s is ready", name, worker.name, executor=name, worker=worker.name)
        if self._hub.hears("worker_started"):
            from ..observers import WorkerEvent

            self._hub.tell("worker_started", WorkerEvent(name, worker.name))

    def worker_ended(self, worker: Worker, end: End, error: BaseException | None) -> None:
        """Tell observers once that a worker ends."""
        if self._hub.hears("worker_ended") and not worker.told_of_end:
            worker.told_of_end = True
            from ..observers import WorkerEvent

            self._hub.tell("worker_ended", WorkerEvent(self._name, worker.name, end.value, error))

    def log_end(self, worker: Worker, end: End, error: BaseException | None) -> None:
        """Log the end of a worker: the error that is the cause at WARNING, its traceback at DEBUG."""
        told = end is End.BROKEN or end is End.CRASHED  # the record of a failed creation has its error
        if not told and not logger.hears(logging.DEBUG):
            return
        ids = {"executor": self._name, "worker": worker.name, "reason": end.value}
        cause = safe_repr(error) if told and error is not None else None
        why = end.value if cause is None else f"{end.value}: {cause}"
        level = logging.WARNING if told else logging.DEBUG
        logger.log(level, "executor %r: worker %s ends: %s", self._name, worker.name, why, error=cause, **ids)
        if cause is not None:
            logger.debug("executor %r: worker %s ended by an error", self._name, worker.name, exc_info=error, **ids)

    def task_stopped(self, task: Task[Any], worker: Worker | None, reason: Reason) -> Callable[[], object]:
        """Return what tells observers that a task was asked to stop. Called before the stop: the task may end at once."""
        if not self._hub.hears("task_stopped"):
            return _do_nothing
        return partial(self._hub.tell, "task_stopped", self._event(task, worker, reason.value), task)

    def task_given_up(self, task: Task[Any], worker: Worker, error: Exception) -> Callable[[], object]:
        """Return what tells observers that a task was given up. Called before that: then the task loses its name."""
        if not self._hub.hears("task_finished"):
            return _do_nothing
        return partial(self._hub.tell, "task_finished", self._event(task, worker, "failed", error), task)

    def worker_written_off(self, worker: Worker, what: str, seconds: float) -> None:
        """Log, and tell observers, that a worker was written off: `what` had not ended `seconds` after the stop."""
        name = self._name
        logger.warning(
            "executor %r: worker %s is written off: %s has not ended %.3g s after it was stopped; a successor may start",
            name,
            worker.name,
            what,
            seconds,
            executor=name,
            worker=worker.name,
        )
        if self._hub.hears("worker_written_off"):
            from ..observers import WorkerEvent

            self._hub.tell("worker_written_off", WorkerEvent(name, worker.name, f"{what} has not ended"))

    def _event(self, task: Task[Any], worker: Worker | None, outcome: str, error: BaseException | None = None) -> TaskEvent:
        from ..observers import TaskEvent

        sidecar, since = task._sidecar, clock() if worker is None else worker.since
        return TaskEvent(
            self._name,
            id(task),
            describe(task),
            task._lane.name,
            1 if sidecar is None else 1 + sidecar.retries,
            None if worker is None else worker.name,
            max(0.0, since - task._submitted),
            max(0.0, clock() - since),
            outcome,
            error,
            task._context,
        )

    def scaled(self, before: int, after: int, reason: str) -> None:
        """Tell that another number of workers is wanted."""
        logger.debug(
            "executor %r: %d workers wanted instead of %d: %s",
            self._name,
            after,
            before,
            reason,
            executor=self._name,
            before=before,
            after=after,
            reason=reason,
        )
        if self._hub.hears("scaled"):
            from ..observers import ScaleEvent

            self._hub.tell("scaled", ScaleEvent(self._name, before, after, reason))


def _do_nothing() -> None:
    """Tell nothing."""
