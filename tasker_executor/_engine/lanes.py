"""The two lanes that tasks wait in, and what is known of them without a lock.

A lane is a deque: `append`, `appendleft` and `popleft` are atomic, and whoever pops a task owns it. A task that is settled
while it waits (cancelled, expired) stays in its lane as a tombstone until somebody pops it; the lane counts its tombstones, so
that `waiting` is exact all the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from functools import partial
from operator import attrgetter
from threading import RLock
from typing import TYPE_CHECKING, Any

from .._sync import in_one_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from .core import Core
    from .task import Sidecar, TaskFuture

__all__ = ["Lane", "Lanes"]

_submitted = attrgetter("_submitted")


class _Closed:
    """What is left of an executor that is closed."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _ignore(_: TaskFuture[Any]) -> None:
    """Nobody is there any more to whom it would matter."""


class Lane(deque["TaskFuture[Any]"]):
    """One lane, first in first out."""

    __slots__ = ("_lock", "cancelled", "name", "on_settled", "owner", "priority", "settled_failed", "tombstones", "withdrawn")

    def __init__(self, name: str, owner: Core, on_settled: Callable[[TaskFuture[Any]], None]) -> None:
        super().__init__()
        self.name = name
        self.owner: Any = owner  # the core; once that is closed, its name
        self.priority = name == "priority"
        #: Called, under no lock, when a task of this lane was settled before it started.
        self.on_settled = on_settled
        # Guards the three counters. A leaf: nothing else is acquired while it is held. Reentrant, for signal handlers that
        # cancel.
        self._lock = RLock()
        self.tombstones = 0
        self.cancelled = 0
        self.settled_failed = 0
        self.withdrawn = 0

    def count_tombstone(self, sidecar: Sidecar, *, cancelled: bool, withdrawn: bool) -> None:
        """A waiting task was settled: cancelled, withdrawn or failed. It is still in the deque.

        Counts each once. Ctrl-C cannot come between the steps, as none of them is a call.
        """
        with self._lock:
            if not sidecar.counted:
                self.tombstones += 1
                self.cancelled += cancelled
                self.withdrawn += withdrawn
                self.settled_failed += not (cancelled or withdrawn)
                sidecar.counted = True

    def detach(self) -> None:
        """The executor is closed: the futures that its user keeps shall not keep it alive through their lane."""
        self.owner = _Closed(self.owner.name)
        self.on_settled = _ignore

    def snapshot(self) -> tuple[TaskFuture[Any], ...]:
        """Those that are in the lane, tombstones included."""
        while True:
            try:
                return tuple(self)
            except RuntimeError:  # without the GIL, somebody may come in between
                pass

    def withdraw(self, future: TaskFuture[Any], taken: list[object]) -> None:
        """Take this task out and put it into `taken`, in one step of the interpreter. Nothing, if another has popped it."""
        try:
            in_one_step(partial(self.remove, future), partial(taken.append, future))
        except ValueError:
            pass

    def count_failed(self, sidecar: Sidecar) -> None:
        """A task of this lane that was popped already gets an error without being run (again). Count it once."""
        with self._lock:
            if not sidecar.counted:
                self.settled_failed += 1
                sidecar.counted = True

    def drop_tombstone(self, sidecar: Sidecar) -> None:
        """A tombstone was popped. Count that once."""
        with self._lock:
            if not sidecar.dropped:
                self.tombstones -= 1
                sidecar.dropped = True

    def waiting(self) -> int:
        """How many tasks wait here. In passing, one may be missed; none is counted that does not wait."""
        tombstones = self.tombstones  # first: a worker pops a tombstone before it takes it off the count
        return max(0, len(self) - tombstones)

    def oldest(self) -> float | None:
        """When the task that has waited longest was submitted; None if none waits."""
        try:
            for future in self:
                if not future.done():
                    return future._submitted
        except RuntimeError:  # a worker popped while we looked: what is at the head now will do
            try:
                return self[0]._submitted
            except IndexError:
                pass
        return None

    def submitted_since(self, moment: float) -> int:
        """How many of those in the lane were submitted at `moment` or later."""
        try:
            return len(self) - bisect_left(self, moment, key=_submitted)
        except IndexError:  # it shrank while we searched: workers are faster than arrivals
            return 0

    def reinit_after_fork(self) -> None:
        self._lock = RLock()


class Lanes:
    """Both lanes of an executor."""

    __slots__ = ("normal", "priority")

    def __init__(self, owner: Core, on_settled: Callable[[TaskFuture[Any]], None]) -> None:
        self.normal = Lane("normal", owner, on_settled)
        self.priority = Lane("priority", owner, on_settled)

    def __iter__(self) -> Any:
        yield self.priority
        yield self.normal

    def waiting(self) -> int:
        """How many tasks wait, tombstones not counted."""
        return self.priority.waiting() + self.normal.waiting()

    def look(self) -> bool:
        """Is anything in the lanes? For decisions that race with a submitter.

        The submitter appends first and looks for idle workers afterwards; who goes to sleep or to the end makes that known
        first and looks at the lanes afterwards: one of the two sees the other. Without the GIL a plain look is not ordered
        after our own store; `rotate(0)` does nothing but passes through the deque's own lock, and that orders it.
        """
        priority, normal = self.priority, self.normal
        priority.rotate(0)
        normal.rotate(0)
        return bool(priority or normal)

    def detach(self) -> None:
        """The executor is closed. See `Lane.detach`."""
        self.normal.detach()
        self.priority.detach()

    def oldest(self) -> float | None:
        """When the task that has waited longest was submitted; None if none waits."""
        moments = [moment for lane in self if (moment := lane.oldest()) is not None]
        return min(moments, default=None)
