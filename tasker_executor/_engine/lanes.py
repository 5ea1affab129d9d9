"""The two lanes that tasks wait in, and what is known of them without a lock.

A lane is a deque. `append`, `appendleft` and `popleft` are atomic, and the thread that pops a task owns it. A
task that is settled while it waits (cancelled, expired) stays in its lane as a tombstone, until a thread pops
it. The lane counts its tombstones, so that `waiting` is exact all the same.

**Parked retries.** Without a check, a retry needs a new resource. So it is parked beside its lane, where the
workers that there are do not find it. A new worker moves it to the head of the lane, and takes it from there.
If none is to come, the retry is moved, too; the worker that then takes it ends, and makes room for a new one.
See `Core.retry_parked`.

A lane is below the tasks in it: a `Task` knows its lane.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from operator import attrgetter
from threading import RLock
from typing import Any, Protocol

from .._sync import Permit, in_one_step, lock_timeout, pop_into
from .sidecar import Sidecar

__all__ = ["Lane", "Lanes", "Owner"]

_submitted = attrgetter("_submitted")


class Owner(Protocol):
    """The executor whose tasks wait in a lane, as the tasks see it."""

    @property
    def name(self) -> str: ...
    def stop(self, task: Any, /) -> bool: ...
    def wait_inside(self, task: Any, permit: Permit, timeout: float | None, /) -> bool: ...


class _Closed:
    """What is left of an executor that is closed."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def stop(self, task: object) -> bool:
        return False

    def wait_inside(self, task: object, permit: Permit, timeout: float | None) -> bool:
        """Wait on the thread of a worker that was written off, and has outlived the executor: see `Owner`."""
        return permit.acquire(True, lock_timeout(timeout))


def _ignore(_: object) -> None:
    """Do nothing: no executor is left that a settled task matters to."""


class Lane(deque[Any]):
    """One lane, first in first out. It holds tasks."""

    # fmt: off
    __slots__ = (
        "_lock", "cancelled", "name", "on_settled", "owner", "parked", "priority", "returned", "settled_failed",
        "tombstones", "withdrawn",
    )
    # fmt: on

    def __init__(self, name: str, owner: Owner, on_settled: Callable[[Any], None]) -> None:
        super().__init__()
        self.name = name
        self.owner: Any = owner  # once the executor is closed, a `_Closed`: stored once, read by any thread
        self.priority = name == "priority"
        #: Retries that need a new resource: see "Parked retries". Without the GIL, a retry is in neither
        #: place while it is moved. So it is moved under the executor's lock, or while a token keeps the executor
        #: open.
        self.parked: deque[Any] = deque()
        #: Called with each task of this lane that was settled before it started, but for those that no thread
        #: observed as the queue was cancelled: see `Ending.cancel_queue`. No lock is held.
        self.on_settled = on_settled
        # Guards the five counters. A leaf: nothing else is acquired while it is held. Reentrant, for signal
        # handlers that cancel. They are read without it: one at a time, in the order that `waiting` and
        # `Gauges.stats` need.
        self._lock = RLock()
        self.tombstones = 0
        self.cancelled = 0
        self.settled_failed = 0
        self.withdrawn = 0
        #: How many tasks workers have put back without running them.
        self.returned = 0

    def count_tombstone(self, sidecar: Sidecar, *, cancelled: bool, withdrawn: bool) -> None:
        """Count a waiting task that was settled: cancelled, withdrawn or failed. It is still in the deque.

        Counts each once. Ctrl-C cannot come between the steps, as none of them is a call.
        """
        with self._lock:
            if not sidecar.counted:
                self.tombstones += 1
                self.cancelled += cancelled
                self.withdrawn += withdrawn
                self.settled_failed += not (cancelled or withdrawn)
                sidecar.counted = True

    def note_return(self) -> None:
        """Note that a worker puts a task back. It is out of the worker's hand, and not yet in the lane."""
        with self._lock:
            self.returned += 1

    def detach(self) -> None:
        """Let go of the executor, which is closed. A future that is kept must not keep it alive."""
        self.owner = _Closed(self.owner.name)
        self.on_settled = _ignore

    def snapshot(self) -> tuple[Any, ...]:
        """Return the tasks that are in the lane, tombstones included."""
        while True:
            try:
                return tuple(self)
            except RuntimeError:  # without the GIL, another thread may change the lane at this moment
                pass

    def withdraw(self, task: Any, taken: list[object]) -> None:
        """Move `task` from the lane, or from beside it, into `taken`, in one step. It may be in neither."""
        for place in (self.parked, self):
            try:
                in_one_step(partial(place.remove, task), partial(taken.append, task))
                break
            except ValueError:
                pass

    def unpark(self) -> None:
        """Move the parked retries to the head of the lane, in their order."""
        try:
            while self.parked:
                pop_into(self.parked.pop, self.appendleft)
        except IndexError:  # another thread was quicker
            pass

    def count_failed(self, sidecar: Sidecar) -> None:
        """Count a task that was popped, and gets an error without being run (again). Counts each once."""
        with self._lock:
            if not sidecar.counted:
                sidecar.counted = True  # first: from here on it does not count as running, see `Gauges.stats`
                self.settled_failed += 1

    def drop_tombstone(self, sidecar: Sidecar) -> None:
        """Count off a tombstone that was popped. Counts each once."""
        with self._lock:
            if not sidecar.dropped:
                self.tombstones -= 1
                sidecar.dropped = True

    def waiting(self) -> int:
        """Return how many tasks wait here. Never too many; a task that is being popped may be missed."""
        tombstones = self.tombstones  # first: a worker pops a tombstone before it takes it off the count
        parked = len(self.parked)  # before the lane: a worker pops a retry there before it parks it
        return max(0, parked + len(self) - tombstones)

    def oldest(self) -> float | None:
        """Return when the task that has waited longest was submitted; None if none waits."""
        try:
            for task in chain(self.parked, self):  # not over a copy: the first one is rarely done
                if not task.done():
                    return task._submitted  # type: ignore[no-any-return]  # a float
        except RuntimeError:  # a worker popped while we looked: take the task at the head now
            try:
                return self[0]._submitted  # type: ignore[no-any-return]  # a float
            except IndexError:
                pass
        return None

    def submitted_since(self, moment: float) -> int:
        """Return how many of the tasks in the lane were submitted at `moment` or later."""
        try:
            return len(self) - bisect_left(self, moment, key=_submitted)
        except IndexError:  # the lane shrank while we searched, so workers take tasks faster than they arrive
            return 0

    def reinit_after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may hold for ever."""
        self._lock = RLock()


class Lanes:
    """Both lanes of an executor."""

    __slots__ = ("normal", "priority")

    def __init__(self, owner: Owner, on_settled: Callable[[Any], None]) -> None:
        self.normal = Lane("normal", owner, on_settled)
        self.priority = Lane("priority", owner, on_settled)

    def __iter__(self) -> Iterator[Lane]:
        yield self.priority
        yield self.normal

    def waiting(self) -> int:
        """Return how many tasks wait, tombstones not counted."""
        return self.priority.waiting() + self.normal.waiting()

    def look(self) -> bool:
        """Return whether anything is in the lanes. For decisions that race with a submitter.

        The submitter appends first and looks for idle workers afterwards. A worker that goes to sleep or ends
        makes that known first and looks at the lanes afterwards. So one of the two sees the other. Without
        the GIL, a plain look is not ordered after our own store. `rotate(0)` does nothing, but it passes
        through the deque's own lock, and that orders the two.
        """
        priority, normal = self.priority, self.normal
        priority.rotate(0)
        normal.rotate(0)
        return bool(priority or normal)

    def parked(self) -> bool:
        """Return whether retries are parked."""
        return bool(self.priority.parked or self.normal.parked)

    def unpark(self) -> None:
        """Move the parked retries to the heads of their lanes."""
        self.priority.unpark()
        self.normal.unpark()

    def detach(self) -> None:
        """Let go of the executor, which is closed. See `Lane.detach`."""
        self.normal.detach()
        self.priority.detach()

    def oldest(self) -> float | None:
        """Return when the task that has waited longest was submitted; None if none waits."""
        moments = [moment for lane in self if (moment := lane.oldest()) is not None]
        return min(moments, default=None)
