"""The queue bound: who may come in, and who waits at the door.

`max_queued` counts the tasks that must wait: those in the lanes beyond what free workers are about to take. So a pool of 8 idle
workers with ``max_queued=10`` takes 18 tasks at once, and ``max_queued=0`` takes a task only if a worker is free for it.

Places are handed over: the submitter that waits longest gets the next one, and nobody overtakes. Each change of what `waiting`
counts is followed by a look whether somebody is `blocked`, and by `refill`: a worker has taken a task, is about to sleep, is
ready, or has ended (whether it gets a successor or not); a task was settled; another number of workers is wanted. The waiter
registers first and looks at the count afterwards, the others the other way round: one of them sees the other.

**A thread never waits for itself.** A signal handler, or a destructor, may submit while its own thread is in here:

- Its thread has been promised a place, and cannot take it before the handler returns. So a promise binds other threads only:
  the handler's submission may go first, and then the bound is exceeded by one task for a moment.
- Its thread waits for a place. That submission is promised the next place in its turn, and the above follows.
- Its thread holds a lock that workers need, or is just starting one. No place would ever come free: the handler's submission is
  let in at once.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from threading import RLock

__all__ = ["Admission", "Ticket"]


class Ticket:
    """One submission at the door."""

    __slots__ = ("release", "thread", "wait")

    def __init__(self) -> None:
        self.thread = get_ident()

    def line_up(self) -> None:
        """It is about to wait: few do."""
        lock = allocate_lock()
        lock.acquire()
        self.wait, self.release = lock.acquire, lock.release


class Admission:
    """Guards the door of an executor with ``max_queued``."""

    def __init__(self, limit: int | None, waiting: Callable[[], int], may_wait: Callable[[], bool] = lambda: True) -> None:
        """Let in up to `limit` tasks; `waiting()` tells how many are in already.

        `may_wait()` is asked by a submitter before it waits, under no lock of the door: may its thread block?
        """
        self.limit = limit
        self._waiting = waiting
        self._may_wait = may_wait
        # Guards the fields below, and every iteration over them. `waiting` takes leaf locks only.
        self._lock = RLock()
        #: Tickets of the submitters at the door, oldest first. Workers look whether it is empty.
        self.blocked: deque[Ticket] = deque()
        #: Tickets of submitters that have been promised a place and have not queued their task yet.
        self._reserved: set[Ticket] = set()
        self._closed = False

    def enter(self, ticket: Ticket, *, block: bool) -> bool:
        """Reserve a place for `ticket`; wait for one if `block`. False: there is none.

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
        may_wait = self._may_wait()
        ticket.line_up()
        with self._lock:
            if not may_wait:
                self._reserved.add(ticket)
                return True
            self.blocked.append(ticket)
            self.refill()  # a worker may have taken a task before it could see us
        ticket.wait()
        return True

    def leave(self, ticket: Ticket) -> None:
        """The place reserved is taken by a queued task, or given up; or a submitter waits no more. Twice is as good as once."""
        with self._lock:
            self._reserved.discard(ticket)
            if self.blocked:
                self._unblock(ticket)
                self.refill()

    def refill(self) -> None:
        """Let in the submitters there is room for."""
        try:
            self._refill()
        except BaseException:  # thrown in by a signal handler: nobody else might come by
            self._refill()
            raise

    def _refill(self) -> None:
        with self._lock:
            while (ticket := self._next()) is not None:
                # In this order: after Ctrl-C between two lines the next refill does them again.
                try:
                    ticket.release()
                except RuntimeError:  # it has been
                    pass
                self._reserved.add(ticket)
                self._unblock(ticket)

    def _next(self) -> Ticket | None:
        """Return the ticket to be let in now. Lock held.

        One after the other, each when the one before has queued its task: two let in at once could overtake each other on their
        way to the lane. Those of one thread cannot.
        """
        assert self.limit is not None
        promised = {ticket.thread for ticket in self._reserved.copy()}
        if not self._closed and (not self.blocked or len(promised) > 1 or self._waiting() >= self.limit):
            return None
        for ticket in tuple(self.blocked):
            if ticket not in self._reserved and (self._closed or not promised or ticket.thread in promised):
                return ticket
        return None

    def _unblock(self, ticket: Ticket) -> None:
        try:
            self.blocked.remove(ticket)
        except ValueError:
            pass

    def close(self) -> None:
        """Let everybody through: they will be told that the executor is shut down."""
        with self._lock:
            self._closed = True
            if self.limit is not None:
                self.refill()

    def reinit_after_fork(self) -> None:
        """In the child: the submitters are gone, but for one that this very thread has interrupted. It is let through."""
        self._lock = RLock()
        self._reserved.clear()
        self.close()
        self.blocked.clear()
