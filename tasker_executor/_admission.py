"""The queue bound: who may come in, and who waits at the door.

`max_queued` counts the tasks that must wait: those in the lanes beyond what free workers are about to take. So a pool of 8 idle
workers with ``max_queued=10`` takes 18 tasks at once, and ``max_queued=0`` takes a task only if a worker is free for it.

Places are handed over: who waits longest gets the next one, and nobody overtakes. A worker that has taken a task looks whether
somebody waits (`blocked`), and if so fills the freed places. The waiter registers first and looks at the count afterwards, the
worker the other way round: one of them sees the other.
"""

from __future__ import annotations

from _thread import LockType
from collections import deque
from collections.abc import Callable
from operator import methodcaller
from threading import RLock

__all__ = ["Admission"]


class Admission:
    """Guards the door of an executor with ``max_queued``."""

    def __init__(self, limit: int | None, waiting: Callable[[], int]) -> None:
        """Let in up to `limit` tasks; `waiting()` tells how many are in already."""
        self.limit = limit
        self._waiting = waiting
        # Guards the fields below. `waiting` takes leaf locks only.
        self._lock = RLock()
        #: Tickets of the submitters at the door, oldest first. Workers look whether it is empty.
        self.blocked: deque[LockType] = deque()
        #: Tickets of submitters that have been promised a place and have not queued their task yet.
        self._reserved: set[LockType] = set()
        self._closed = False
        # Pops and releases in one step of the interpreter: Ctrl-C cannot come between.
        self._handovers = map(methodcaller("release"), iter(self.blocked.popleft, None))

    def enter(self, ticket: LockType, *, block: bool) -> bool:
        """Reserve a place for `ticket`, a locked lock; wait for one if `block`. False: there is none.

        In any case, Ctrl-C included, follow up with `leave`.
        """
        assert self.limit is not None
        with self._lock:
            if self._closed:
                return True  # the submission finds out by itself, and says why
            if not self.blocked and self._waiting() + len(self._reserved) < self.limit:
                self._reserved.add(ticket)
                return True
            if not block:
                return False
            self.blocked.append(ticket)
            self.refill()  # a worker may have taken a task before it could see us
        ticket.acquire()
        return True

    def leave(self, ticket: LockType) -> None:
        """The place reserved is taken by a queued task, or given up; or who waited waits no more."""
        with self._lock:
            self._reserved.discard(ticket)
            if ticket in self.blocked:
                self.blocked.remove(ticket)
            self.refill()

    def refill(self) -> None:
        """Let in whom there is room for: one after the other, each when the one before has queued its task.

        Two let in at once could overtake each other on their way to the lane.
        """
        assert self.limit is not None
        with self._lock:
            while self.blocked and (self._closed or (not self._reserved and self._waiting() < self.limit)):
                self._reserved.add(self.blocked[0])
                next(self._handovers)

    def close(self) -> None:
        """Let everybody through: they will be told that the executor is shut down."""
        with self._lock:
            self._closed = True
            if self.limit is not None:
                self.refill()

    def reinit_after_fork(self) -> None:
        self._lock = RLock()
        self.blocked.clear()
        self._reserved.clear()
