"""Recovery from a failing factory.

The factory is tried again, tasks that have waited too long fail, and callers and the log are told why.
`Outage`, which the crew keeps, decides when. The duty of the timer that acts on it is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .._report import Logger, safe_repr
from .._sync import clock
from ..exceptions import ResourceCreationError
from .crew import Crew
from .outage import BACKOFF_FIRST
from .resources import UnfitResource
from .state import State
from .worker import Worker
from .workplace import Workplace

__all__ = ["Recovery"]

logger = Logger("tasker_executor")


class Recovery:
    """Acts on the outage of one executor: see the module's docstring."""

    def __init__(
        self,
        place: Workplace,
        crew: Crew,
        fail_queue: Callable[[Callable[[float], BaseException], float | None], object],
    ) -> None:
        """Call ``fail_queue(make_error, before)`` to fail the tasks queued before that moment; None: all."""
        self._name = place.settings.name
        self._create_timeout = place.settings.create_timeout
        self._owns_resources = place.settings.hooks is not None
        self._life = place.life
        self._lanes = place.lanes
        self._idle = place.idle
        self._admission = place.admission
        self._hub = place.hub
        self._crew = crew
        self._roster = crew.roster
        self._fail_queue = fail_queue

    # -- the duty of the timer

    def tend(self, now: float) -> float | None:
        """Do what is due at `now`; return when something is due next.

        1. An attempt that takes too long is late, so another may begin. 2. There is hope, then, for the tasks
        that have not waited too long. The others fail. 3. An attempt begins for the tasks that are left.
        """
        with self._life.lock:
            late, due = self._crew.supply.note_late(now)
        dues = due, self._fail_starved(now), self._try_again(now, instead=bool(late)), self._unpark(now)
        self._tell_late(late, now)
        if self._admission.blocked:  # perhaps one task may come in, to try the factory with
            self._admission.refill()
        return min((due for due in dues if due is not None), default=None)

    def _try_again(self, now: float, *, instead: bool) -> float | None:
        """Try the factory when it is time, or `instead` of a late worker; return when the present pause ends."""
        crew, roster, lock = self._crew, self._roster, self._life.lock
        paused_until = None
        with lock:
            tended = instead or (crew.outage.failures > 0 and not roster.starting())
            if tended:
                paused_until = crew.outage.next_attempt(now, roster.starting())
        if tended and paused_until is None:
            crew.populate_or_retry()
            with lock:
                paused_until = crew.outage.next_attempt(now, roster.starting())
        return paused_until

    def _unpark(self, now: float) -> float | None:
        """Have a parked retry run if no worker is expected any more; return until when one is."""
        if not self._lanes.parked():
            return None
        until = self._crew.supply.expected_until()
        if now >= until:  # an idle worker takes the retry, and ends; its successor may try
            self._idle.pass_on()
        return until if now < until < math.inf else None

    def _tell_late(self, late: Sequence[Worker], now: float) -> None:
        """Log the workers that take too long to start."""
        for worker in late:
            logger.warning(
                "executor %r: worker %s has been starting for %.3g s, longer than create_timeout (%g s); another may try",
                self._name,
                worker.name,
                now - worker.started_at,
                self._create_timeout,
                executor=self._name,
                worker=worker.name,
            )

    def _fail_starved(self, now: float) -> float | None:
        """Fail the tasks that have waited too long for a resource; return when the next one is due."""
        outage = self._crew.outage
        if not self._owns_resources or outage.bare_since is None or self._life.state >= State.KILLED:
            return None
        with self._life.lock:
            hope = self._crew.supply.hope(now)
            until, error = outage.gives_up_on(now, hope), outage.error
        oldest = self._lanes.oldest()
        if until is not None and oldest is not None and oldest <= until:
            self.fail_queue(error, before=until)
            oldest = self._lanes.oldest()
        with self._life.lock:  # a worker may get its resource at this moment
            due = None if oldest is None else outage.gives_up_at(oldest, now, hope)
        if due is not None:
            return due
        # A task queued from now on is due later than this. It wakes the timer only if it starts a worker. It
        # starts none while a worker is starting, late or ending, or during a pause: then the timer must look
        # by itself.
        return now + max(self._create_timeout, BACKOFF_FIRST) if self._roster.workers or now < outage.retry_at else None

    # -- what is said

    def report(self, worker: str, error: BaseException | None) -> None:
        """Log that a resource could not be made, or failed its first check, and tell observers."""
        outage = self._crew.outage
        delay = max(0.0, outage.retry_at - clock())
        failures = outage.failures
        fields = {"executor": self._name, "worker": worker, "failures": failures, "delay": delay}
        if isinstance(error, UnfitResource):
            logger.warning(
                "executor %r: a new resource failed its check (%d in a row), next attempt in %.2g s",
                self._name,
                failures,
                delay,
                exc_info=error,
                **fields,
            )
        else:
            logger.warning(
                "executor %r: on_create failed (%d in a row), next attempt in %.2g s",
                self._name,
                failures,
                delay,
                exc_info=error,
                **fields,
            )
        if self._hub.hears("creation_failed"):
            from ..observers import ResourceEvent

            self._hub.tell("creation_failed", ResourceEvent(self._name, worker, 0.0, error))

    def fail_queue(self, cause: BaseException | None, before: float | None = None) -> None:
        """Fail the tasks queued, or those queued before that moment: no resource could be made for them."""
        self._fail_queue(lambda waited: self.error(cause, waited), before)

    def error(self, cause: BaseException | None, waited: float | None = None) -> ResourceCreationError:
        """Return the error for a task or a caller that has waited for a resource in vain."""
        spent = "" if waited is None else f" within {waited:.3g} s"
        why = "; ".join(self._reasons(cause))
        error = ResourceCreationError(f"executor {self._name!r}: no worker has got a resource{spent}; {why}")
        error.__cause__ = cause
        return error

    def _reasons(self, cause: BaseException | None) -> list[str]:
        """Return the reasons why no worker has a resource."""
        now, limit = clock(), f"create_timeout is {self._create_timeout:g} s"
        outage, roster, why = self._crew.outage, self._roster, list[str]()
        ending = roster.ending.copy()
        if isinstance(cause, UnfitResource):
            why.append(str(cause))
        elif cause is not None:
            why.append(f"on_create failed: {safe_repr(cause)}")
        if cause is not None and outage.since is not None and outage.is_old(now):
            why.append(f"no attempt has succeeded for {now - outage.since:.3g} s ({limit})")
        making = [worker for worker in roster.workers.copy() if not (worker.ready or worker in ending)]
        late = [worker for worker in making if worker.late]
        if late or not (why or ending):
            names = ", ".join(sorted(worker.name for worker in late or making))
            why.append(f"on_create has not returned{' on ' * bool(names)}{names} ({limit})")
        if ending and not (making or roster.has_room()):
            names = ", ".join(sorted(f"{worker.name} for {now - since:.3g} s" for worker, since in ending.items()))
            why.append(f"on_destroy has not returned on {names} ({limit})")
        return why
