"""The numbers that an `InlineExecutor` tells of itself."""

from __future__ import annotations

import threading
from typing import Any

from typing_extensions import override

from .._engine.reserve import Reserve, ReserveListener
from .._engine.resources import NoResource, ResourceSource
from .._engine.state import State
from .._report import safe_repr
from ..exceptions import ResourceCreationError
from ..stats import ExecutorStats
from ._tasks import Call

__all__ = ["Books"]


class Counts(ReserveListener):
    """What the reserve has told, counted under the executor's lock."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self.retries = 0
        self.replacements = 0
        self.failures = 0

    @override
    def retried(self, fn: object) -> None:
        if isinstance(fn, Call):  # and not `run_now`, which is no submission
            with self._lock:
                self.retries += 1

    @override
    def replaced(self) -> None:
        with self._lock:
            self.replacements += 1

    @override
    def failed(self, name: str, error: Exception) -> ResourceCreationError:
        with self._lock:
            self.failures += 1
        if isinstance(error, NoResource):
            return ResourceCreationError(str(error))
        return ResourceCreationError(f"executor {name!r}: on_create failed: {safe_repr(error)}")


class Books:
    """What an executor has counted, under its lock. It adds to the numbers itself."""

    def __init__(self, lock: threading.RLock) -> None:
        self.submitted = self.completed = self.failed = self.cancelled = self.running = 0
        self.stopped = self.timed_out = 0
        self.of_reserve = Counts(lock)

    def stats(
        self, state: State, normal: int, priority: int, source: ResourceSource[Any] | None, reserve: Reserve[Any] | None
    ) -> ExecutorStats:
        """Return gauges and counters. The caller holds the lock.

        Args:
            state: The state of the executor.
            normal: The number of tasks in the normal lane.
            priority: The number of tasks in the priority lane.
            source: Makes the resources, if the executor has any.
            reserve: Keeps them.
        """
        created, destroyed = (0, 0) if source is None else source.counts()
        return ExecutorStats(
            base_workers=0,
            active_workers=0,
            burst_workers=0,
            idle_workers=0,
            running_tasks=self.running,
            queued_tasks=normal,
            priority_tasks=priority,
            available_resources=0 if reserve is None else reserve.available,
            submitted=self.submitted,
            completed=self.completed,
            failed=self.failed,
            cancelled=self.cancelled,
            stopped=self.stopped,
            timed_out=self.timed_out,
            retried=self.of_reserve.retries,
            resources_created=created,
            resources_destroyed=destroyed,
            workers_replaced=self.of_reserve.replacements,
            create_failures=self.of_reserve.failures,
            state=state.name.lower(),
        )
