"""What runs in the scheduler: claims of at-most-once tasks, stops, and the clearing up after a lost client."""

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
    """The scheduler's part in one executor: grants starts to at-most-once tasks, and outlives the client.

    It also knows where the tasks are that the client stops, and sees to it that these run nowhere else.
    """

    def __init__(self, name: str, client: str) -> None:
        self.name = name
        self._client = client
        self._claims: set[str] = set()
        self._pinned: set[str] = set()  # tasks that were stopped on their worker

    async def start(self, scheduler: Scheduler) -> None:
        """Offer claims to workers, and stops to the client. Dask calls this."""
        self._scheduler = scheduler
        scheduler.handlers[f"claim-{self.name}"] = self._claim
        scheduler.handlers[f"stop-{self.name}"] = self._stop

    def _claim(self, key: str) -> bool:
        """Return whether this task may start: True the first time.

        The answer takes one step of the event loop, so that two workers cannot both get True.
        """
        if key in self._claims:
            return False
        self._claims.add(key)
        return True

    def _stop(self, keys: list[str]) -> dict[str, str | None]:
        """Return where each of these tasks is; those that are not known here are left out.

        The place is the address of the worker that has the task. It is "waits" if no worker had it: such a
        task is forgotten at once, so none will. It is None if the task is over, and its answer on its way.

        A task that a worker has is bound to this worker. If the worker goes, Dask finds no other for it.
        """
        places: dict[str, str | None] = {}
        for key in keys:
            task = self._scheduler.tasks.get(key)
            if task is None:
                continue
            if task.processing_on is not None:
                places[key] = address = task.processing_on.address
                task.worker_restrictions = {address}
                task.loose_restrictions = False
                self._pinned.add(key)
            else:
                places[key] = None if task.state in ("memory", "erred") else "waits"
        self._release([key for key, place in places.items() if place == "waits"])
        return places

    def _release(self, keys: list[str]) -> None:
        """Have the scheduler forget these tasks, as if the client no longer wanted them."""
        if keys and self._client in self._scheduler.clients:
            self._scheduler.client_releases_keys(keys=keys, client=self._client, stimulus_id=f"stop-{self.name}")

    def _drop(self, key: str) -> None:
        """Give up a task that was stopped, and whose worker is gone. Tell the client."""
        if key in self._pinned:
            self._scheduler.report({"op": "cancelled-keys", "keys": [key]}, client=self._client)
            self._release([key])

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Drop the claim of a task that the scheduler forgets, and a stopped task without a worker. Dask calls this."""
        if finish == "forgotten":
            self._claims.discard(key)
            self._pinned.discard(key)
        elif finish == "no-worker" and key in self._pinned:
            # Later: this is called in the middle of Dask's own steps. If a worker with the address of the one
            # that is gone joins before `_drop` is called, Dask gives it the task.
            self._scheduler.loop.add_callback(self._drop, key)

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
    scheduler.handlers.pop(f"stop-{name}", None)
    if name in scheduler.plugins:
        scheduler.remove_plugin(name)
