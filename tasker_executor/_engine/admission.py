"""The queue bound: which submission may queue its task, and which must wait for a place.

`max_queued` counts the tasks in the lanes that no free worker is about to take. So a pool of 8 idle workers
with ``max_queued=10`` accepts 18 tasks at once. With ``max_queued=0``, it accepts a task only if a worker is
free for it.

**First come, first served.** A free place is promised to the submitter that has waited longest. No other
thread overtakes it.

**No free place is missed.** A submitter registers in `blocked` and then looks at the count. A thread that
changes the count then looks at `blocked`, and calls `refill`. So one of the two sees the other. The count
changes when a worker has taken a task, is about to sleep, is ready, or has ended, with a successor or
without; when a task was settled; when another number of workers is wanted.

**A thread never waits for itself.** A signal handler, or a destructor, may submit while it interrupts its own
thread in here:

- The interrupted submission was promised a place, and cannot take it before the handler returns. So a
  promise binds other threads only. The handler's submission may go first, and exceed the bound by one task
  for a moment.
- The interrupted submission waits for a place. It is promised the next one in its turn, and the first
  case follows.
- The thread holds a lock that workers need, or is starting a worker. No place would ever come free, so the
  handler's submission is let in at once.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from threading import RLock

__all__ = ["Admission", "Ticket"]


class Ticket:
    """One submission that asks for a place."""

    __slots__ = ("release", "thread", "wait")

    def __init__(self) -> None:
        self.thread = get_ident()

    def line_up(self) -> None:
        """Make the lock to wait for: few submissions do."""
        lock = allocate_lock()
        lock.acquire()
        self.wait, self.release = lock.acquire, lock.release


class Admission:
    """Promises places in the queue of an executor with ``max_queued``."""

    def __init__(self, limit: int | None, waiting: Callable[[], int], may_wait: Callable[[], bool] = lambda: True) -> None:
        """Let in up to `limit` tasks; `waiting()` returns how many are in.

        `may_wait()`, called without the lock, returns whether the submitter's thread may block.
        """
        self.limit = limit
        self._waiting = waiting
        self._may_wait = may_wait
        # Guards the fields below, and every iteration over them. `waiting` takes leaf locks only.
        self._lock = RLock()
        #: The tickets of the submitters that wait, oldest first. Workers look whether it is empty.
        self.blocked: deque[Ticket] = deque()
        #: The tickets with a promise, whose tasks are not queued yet.
        self._reserved: set[Ticket] = set()
        self._closed = False

    def enter(self, ticket: Ticket, *, block: bool) -> bool:
        """Reserve a place for `ticket`; wait for one if `block`. Return False if there is none.

        `leave` must follow in every case, after Ctrl-C too.
        """
        assert self.limit is not None
        with self._lock:
            if self._closed:
                return True  # the submission finds out, and raises the error
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
            self.refill()  # a worker may have taken a task before this ticket was in `blocked`
        ticket.wait()
        return True

    def leave(self, ticket: Ticket) -> None:
        """Give back the place of `ticket`, whose task is queued or given up; or end its wait.

        A second call does nothing.
        """
        with self._lock:
            self._reserved.discard(ticket)
            if self.blocked:
                self._unblock(ticket)
                self.refill()

    def refill(self) -> None:
        """Let in the submitters that there is room for."""
        try:
            self._refill()
        except BaseException:  # a signal handler threw this; perhaps no other thread calls `refill` again
            self._refill()
            raise

    def _refill(self) -> None:
        with self._lock:
            while (ticket := self._next()) is not None:
                # In this order: if Ctrl-C comes between two lines, the next refill repeats them.
                try:
                    ticket.release()
                except RuntimeError:  # it was released before
                    pass
                self._reserved.add(ticket)
                self._unblock(ticket)

    def _next(self) -> Ticket | None:
        """Return the ticket to be let in now. Lock held.

        Each is let in after the one before has queued its task: two threads let in at once could queue their
        tasks in the wrong order. Two tickets of one thread cannot.
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
        """Let all submitters in: each then learns that the executor is shut down."""
        with self._lock:
            self._closed = True
            if self.limit is not None:
                self.refill()

    def reinit_after_fork(self) -> None:
        """Close, in the child of a fork.

        The other submitters' threads are gone. A submission that this very thread has interrupted is let in.
        """
        self._lock = RLock()
        self._reserved.clear()
        self.close()
        self.blocked.clear()
