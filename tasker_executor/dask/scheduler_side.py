"""What runs in the scheduler: claims of at-most-once tasks, and the clearing up after a lost client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed import SchedulerPlugin

from .._report import Logger

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

__all__ = ["IdleOnly", "SchedulerSide", "clear_up_here"]

logger: Logger = Logger("tasker_executor.dask")


class IdleOnly(SchedulerPlugin):
    """Lets Dask scale down idle workers only.

    Dask does not wait for the tasks of a worker that it retires; it runs them again elsewhere.
    """

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[WorkerState]) -> list[WorkerState]:
        """Return those of the workers that may be retired. Dask calls this."""
        return [worker for worker in workers if not worker.processing]


class SchedulerSide(IdleOnly):
    """The scheduler's part in one executor: grants starts to at-most-once tasks, and outlives the client."""

    def __init__(self, name: str, client: str) -> None:
        self.name = name
        self._client = client
        self._claims: set[str] = set()

    async def start(self, scheduler: Scheduler) -> None:
        """Offer claims to workers. Dask calls this."""
        scheduler.handlers[f"claim-{self.name}"] = self._claim

    def _claim(self, key: str) -> bool:
        """Return whether this task may start: True the first time.

        The answer takes one step of the event loop, so that two workers cannot both get True.
        """
        if key in self._claims:
            return False
        self._claims.add(key)
        return True

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Drop the claim of a task that the scheduler forgets. Dask calls this."""
        if finish == "forgotten" and self._claims:
            self._claims.discard(key)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Clear up after the executor's client, if this one is it. Dask calls this."""
        if client == self._client:
            scheduler.loop.add_callback(self._clear_up, scheduler)

    async def _clear_up(self, scheduler: Scheduler) -> None:
        """Remove the executor from the cluster: its client is gone and cannot shut it down."""
        _forget(self.name, scheduler)
        if scheduler.worker_plugins.pop(self.name, None) is not None:
            logger.warning("%s: its client is gone without having shut it down", self.name)
            await scheduler.broadcast(msg={"op": "plugin-remove", "name": self.name}, on_error="ignore")


def clear_up_here(name: str, dask_scheduler: Scheduler) -> None:
    """Remove the executor from the scheduler. `Client.run_on_scheduler` calls this there."""
    _forget(name, dask_scheduler)


def _forget(name: str, scheduler: Scheduler) -> None:
    scheduler.handlers.pop(f"claim-{name}", None)
    if name in scheduler.plugins:
        scheduler.remove_plugin(name)
