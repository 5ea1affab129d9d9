"""The supply of resources: what the workers' resources tell about the factory.

This room looks at the workers, and tells an `Outage`, which knows no workers, no clock and no lock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

from .._sync import clock
from .outage import Outage
from .resources import End, UnfitResource
from .worker import Worker
from .workplace import Workplace

__all__ = ["Supply"]


class Supply:
    """The resources of one crew. "Lock held" means `Lifecycle.lock`."""

    def __init__(self, place: Workplace, workers: Callable[[], Collection[Worker]]) -> None:
        self._owns_resources = place.settings.hooks is not None
        self._life = place.life
        self._timer = place.timer
        self._workers = workers
        self.outage = Outage(place.settings.create_timeout, clock())

    def note_failure(self, error: BaseException, begun: float) -> bool:
        """Note that an attempt, begun at `begun`, made no resource; return whether it counts. Lock held."""
        self._timer.kick(start=False)  # in any case: the timer waits for the last attempt of a round to end
        self.note_served()
        return self.outage.failed(error, begun, clock(), random.uniform)

    def note_end(self, worker: Worker, end: End, error: BaseException | None) -> bool:
        """Note what the end of a worker tells; return whether a failure is to be reported. Lock held.

        A worker that crashes before it has run a task causes a pause, too: the cause may end its successor
        as well.
        """
        if error is None or isinstance(error, UnfitResource):  # an unfit resource was counted before
            return False
        if end is End.CRASHED and not worker.log.attempts():
            self.note_failure(error, worker.started_at)
        return end is End.CREATION_FAILED and self.note_failure(error, worker.started_at)

    def note_unfit(self, worker: Worker, fault: UnfitResource) -> bool:
        """Note that a resource failed its check before it had served a task; return whether that counts."""
        with self._life.lock:
            held = self.outage.error  # until the lock is free: to drop an error may run destructors
            counts = self.note_failure(fault, worker.started_at)
        del held
        return counts

    def note_giving_up(self) -> None:
        """Note that a worker is about to destroy its resource, which may take long."""
        with self._life.lock:
            self.note_served()
            self.note_bare()
            bare = self.outage.bare_since is not None
        if bare:
            self._timer.kick()  # for the `create_timeout` of the tasks that come from now on

    def note_served(self) -> None:
        """Tell the outage which resources have served a task. Lock held."""
        if self.outage.on_probation:
            for worker in self._workers():
                if worker.log.attempts():
                    self.outage.served(worker.started_at)

    def note_bare(self) -> None:
        """Tell the outage if no worker owns a resource any more. Lock held."""
        outage = self.outage
        if outage.bare_since is None and not any(worker.ready and worker.holding is not None for worker in self._workers()):
            outage.bare(clock())

    def note_late(self, now: float) -> tuple[list[Worker], float | None]:
        """Note the workers that are late; return them, and when the next one will be late. Lock held."""
        late: list[Worker] = []
        due: float | None = None
        for worker in self._workers() if self._owns_resources else ():
            if not worker.ready and not worker.late:
                when = worker.started_at + self.outage.create_timeout
                if now >= when:
                    worker.late = True
                    late.append(worker)
                else:
                    due = when if due is None else min(due, when)
        return late, due
