"""The supply of resources: what the workers' resources tell about the factory.

This room looks at the workers, and tells an `Outage`, which knows no workers, no clock and no lock.
"""

from __future__ import annotations

import math

from .._sync import clock
from .outage import Outage
from .resources import End, UnfitResource
from .roster import Roster
from .worker import Worker
from .workplace import Workplace

__all__ = ["DESTROY_PATIENCE", "Supply"]

#: Seconds for which a retry waits for a worker that destroys its broken resource, before another worker makes room.
DESTROY_PATIENCE = 1.0


class Supply:
    """The resources of one crew. "Lock held" means `Lifecycle.lock`."""

    def __init__(self, place: Workplace, roster: Roster) -> None:
        self._owns_resources = place.settings.hooks is not None
        self._life = place.life
        self._timer = place.timer
        self._roster = roster
        self.outage = Outage(place.settings.create_timeout, clock())

    def note_failure(self, error: BaseException, begun: float) -> bool:
        """Note that an attempt, begun at `begun`, made no resource; return whether it counts. Lock held."""
        self._timer.kick(start=False)  # in any case: the timer waits for the last attempt of a round to end
        self.note_served()
        import random  # on use, as in `resources`

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

    def note_giving_up(self, worker: Worker) -> None:
        """Note that a worker is about to destroy its resource, which may take long. Lock held."""
        if worker in self._roster.workers:  # the end of one that is written off makes no room
            self._roster.ending.setdefault(worker, clock())
        self.note_served()
        self.note_bare()
        # For the `create_timeout` of the tasks that come from now on. And in a row of failures, for the next
        # attempt: this worker may have been one.
        if self.outage.bare_since is not None or self.outage.failures:
            self._timer.kick(start=False)

    def note_served(self) -> None:
        """Tell the outage which resources have served a task. Lock held."""
        if self.outage.on_probation:
            for worker in self._roster.workers.copy():
                if worker.log.attempts():
                    self.outage.served(worker.started_at)

    def note_bare(self) -> None:
        """Tell the outage if no worker owns a resource any more. Lock held."""
        outage = self.outage
        if outage.bare_since is not None:
            return
        if not any(worker.ready and worker.holding is not None for worker in self._roster.workers.copy()):
            outage.bare(clock())

    def note_late(self, now: float) -> tuple[list[Worker], float | None]:
        """Note the workers that are late; return them, and when the next one will be late. Lock held."""
        late: list[Worker] = []
        due: float | None = None
        roster = self._roster
        for worker in roster.workers.copy() if self._owns_resources else ():
            if not worker.ready and not worker.late and worker not in roster.ending:
                when = worker.started_at + self.outage.create_timeout
                if now >= when:
                    worker.late = True
                    late.append(worker)
                else:
                    due = when if due is None else min(due, when)
        return late, due

    def hope(self, now: float) -> float | None:
        """Return when the attempt that may yet help a waiting task began; None if there is none. Lock held.

        It is `now` if no attempt is under way and one may begin: there is no pause, and room for a worker.
        Without room, it is when a worker began to destroy its resource, since its end makes room.
        """
        since = now - self.outage.create_timeout
        workers, ending = self._roster.workers.copy(), self._roster.ending
        begun = [worker.started_at for worker in workers if not worker.ready and worker not in ending]
        hope = max((moment for moment in begun if moment > since), default=None)
        if hope is None and now >= self.outage.retry_at:
            room = self._roster.has_room()
            hope = now if room else max((moment for moment in ending.values() if moment > since), default=None)
        return hope

    def expects_worker(self) -> bool:
        """Return whether a worker is to come that will have a new resource: see `expected_until`."""
        return clock() < self.expected_until()

    def expected_until(self) -> float:
        """Return until when a worker is expected that will have a new resource.

        A worker that starts has `create_timeout`. One that ends may get a successor; its ``on_destroy`` has
        `DESTROY_PATIENCE`. While the factory fails it is tried again, so a worker is expected without a limit.
        """
        if self.outage.failures > 0:
            return math.inf
        ending, until = self._roster.ending, -math.inf
        for worker in self._roster.workers.copy():
            begun = ending.get(worker)
            if begun is None and (worker.yields or (worker.ready and worker.holding is None)):
                begun = clock()  # it is about to note that
            if begun is not None:
                until = max(until, begun + DESTROY_PATIENCE)
            elif not worker.ready and not worker.late:
                until = max(until, worker.started_at + self.outage.create_timeout)
        return until
