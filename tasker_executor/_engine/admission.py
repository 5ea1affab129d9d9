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

**Exact but for a moment.** A worker pops a task, and then has it in hand. Without the GIL, another thread may
count between the two, and miss the task. So for that moment the bound may be exceeded by one task a worker.

**A thread never waits for itself.** A signal handler, or a destructor, may submit while it interrupts its own
thread in here:

- The interrupted submission was promised a place, and cannot take it before the handler returns. So a
  promise binds other threads only. The handler's submission may go first, and exceed the bound by one task
  for a moment.
- The interrupted submission waits for a place. It is promised the next one in its turn, and the first
  case follows.
- The thread holds a lock that workers need, or is starting a worker. No place would ever come free, so the
  handler's submission is let in at once.

**A thread that must not block** (that of an event loop) parks its task here: see `Parked`. The task stands in
the same line as the threads. The thread that frees the place puts the task into its lane, and wakes a worker
for it. So no place is ever promised to an event loop. It may be busy, or closed, and the place would stay empty.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import Any

from .._sync import pop_into

__all__ = ["Admission", "Parked", "Ticket"]


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


class Parked(Ticket):
    """A submission whose thread does not wait: its task is put into the lane by the thread that lets it in."""

    __slots__ = ("_task", "admission", "append", "on_queued", "refuse", "withdrawn")

    def __init__(
        self,
        admission: Admission,
        task: object,
        append: Callable[[Any], object],
        refuse: Callable[[], object],
        on_queued: Callable[[], object] | None,
    ) -> None:
        """Put `task` into its lane by ``append(task)``.

        `on_queued()` is called after that; `refuse()` instead, if the executor accepts no more tasks. Both
        are called without the lock, by any thread.
        """
        super().__init__()
        # Emptied in one call, by the thread that queues the task or by the one that withdraws it. Both then
        # drop the fields below, and drop them only.
        self._task = deque((task,))
        self.withdrawn = False
        # The future of a task must not keep the executor alive. So what leads to that is dropped afterwards.
        self.admission: Admission | None = admission
        self.append = append
        self.refuse: Callable[[], object] | None = refuse
        self.on_queued = on_queued

    @property
    def waits(self) -> bool:
        """Whether the task is neither queued nor withdrawn."""
        return bool(self._task)

    def queue(self) -> None:
        """Put the task into its lane. Does nothing if that is done, or if the task was withdrawn."""
        try:
            pop_into(self._task.pop, self.append)
        except IndexError:
            pass
        self.admission = self.refuse = None

    def take(self) -> list[object]:
        """Return the task, if it is neither queued nor withdrawn, in the child of a fork."""
        tasks = list(self._task)
        self._task.clear()
        self.admission = self.refuse = self.on_queued = None
        return tasks

    def withdraw(self) -> bool:
        """Take the task back, and leave the line. Return False if the task is queued, or was withdrawn before."""
        try:
            self._task.pop()
            self.withdrawn = True
        except IndexError:
            return False
        admission, self.admission = self.admission, None
        self.refuse = self.on_queued = None
        if admission is not None:
            admission.leave(self)
        return True


class Admission:
    """Promises places in the queue of an executor with ``max_queued``."""

    def __init__(
        self,
        limit: int | None,
        waiting: Callable[[], int],
        may_wait: Callable[[], bool] = lambda: True,
        wake: Callable[[], object] = lambda: None,
    ) -> None:
        """Let in up to `limit` tasks; `waiting()` returns how many are in.

        `may_wait()`, called without the lock, returns whether the submitter's thread may block. `wake()`,
        called without the lock, too, wakes a worker for a task that was queued here.
        """
        self.limit = limit
        self._waiting = waiting
        self._may_wait = may_wait
        self._wake = wake
        # Guards the fields below, and every iteration over them. `waiting` takes leaf locks only.
        self._lock = RLock()
        #: The tickets of the submitters that wait, oldest first. Workers look without a lock whether it is
        #: empty.
        self.blocked: deque[Ticket] = deque()
        #: The tickets with a promise, whose tasks are not queued yet.
        self._reserved: set[Ticket] = set()
        self._closed = False
        # What was decided under the lock, and is to be done without it: see `_act`. Added to under the lock,
        # and taken without it, by single calls.
        self._queued: deque[Parked] = deque()
        self._refused: deque[Parked] = deque()

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

    def park(self, ticket: Parked) -> None:
        """Line `ticket` up, which found no place. Never blocks."""
        may_wait = self._may_wait()
        with self._lock:
            if may_wait:
                self.blocked.append(ticket)
            else:  # see "A thread never waits for itself"
                self._let_in(ticket)
        self.refill()  # for the reason that `enter` has

    def leave(self, ticket: Ticket) -> None:
        """Give back the place of `ticket`, whose task is queued or given up; or end its wait.

        A second call does nothing.
        """
        with self._lock:
            self._reserved.discard(ticket)
            if not self.blocked:
                return
            self._unblock(ticket)
        self.refill()

    def refill(self) -> None:
        """Let in the submitters that there is room for."""
        try:
            self._refill()
            self._act()
        except BaseException:  # a signal handler threw this; perhaps no other thread calls `refill` again
            self._refill()
            self._act()
            raise

    def _refill(self) -> None:
        with self._lock:
            while (ticket := self._next()) is not None:
                self._let_in(ticket)

    def _let_in(self, ticket: Ticket) -> None:
        """Promise `ticket` its place, or queue its task. Lock held."""
        # In this order: if Ctrl-C comes between two lines, the next refill repeats them.
        if not isinstance(ticket, Parked):
            try:
                ticket.release()
            except RuntimeError:  # it was released before
                pass
            self._reserved.add(ticket)
        elif self._closed:
            self._refused.append(ticket)
        else:
            ticket.queue()
            self._queued.append(ticket)
        self._unblock(ticket)

    def _act(self) -> None:
        """Wake a worker for the parked tasks that were queued, and refuse the others if closed.

        Called without the lock. A signal handler that comes here under it leaves this to the call that it
        has interrupted. After an error the next call goes on.
        """
        if not (self._queued or self._refused) or self._lock._is_owned():  # type: ignore[attr-defined]  # as Condition does
            return
        for tickets, settle in ((self._refused, self._refuse), (self._queued, self._tell)):
            while tickets:
                try:
                    ticket = tickets.popleft()
                except IndexError:  # another thread was quicker
                    break
                try:
                    settle(ticket)
                except BaseException:  # it may be told twice, which does no harm
                    tickets.appendleft(ticket)
                    raise

    def _refuse(self, ticket: Parked) -> None:
        refuse = ticket.refuse
        if refuse is not None:  # None: the task was withdrawn
            refuse()

    def _tell(self, ticket: Parked) -> None:
        self._wake()
        on_queued = ticket.on_queued
        if on_queued is not None:
            on_queued()
            ticket.on_queued = None

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

    def forget_parked(self) -> list[Any]:
        """Return the tasks that are parked, and forget them, in the child of a fork."""
        tickets = [ticket for ticket in (*self.blocked, *self._refused) if isinstance(ticket, Parked)]
        self.blocked.clear()
        self._queued.clear()
        self._refused.clear()
        return [task for ticket in tickets for task in ticket.take()]

    def reinit_after_fork(self) -> None:
        """Close, in the child of a fork.

        The other submitters' threads are gone. A submission that this very thread has interrupted is let in.
        Parked tasks stay until `forget_parked`: the lock of a task may be held by a thread of the parent.
        """
        self._lock = RLock()
        self._reserved.clear()
        self._closed = True
        for ticket in tuple(self.blocked):
            if not isinstance(ticket, Parked):
                self._let_in(ticket)
