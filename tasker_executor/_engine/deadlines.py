"""Deadlines: a task that has not started in time ends with TaskExpired."""

from __future__ import annotations

import heapq
import itertools
import threading
import weakref
from typing import Any

from .lanes import Lanes
from .sidecar import expired
from .task import Task
from .timer import Timer

__all__ = ["Deadlines"]


class Deadlines:
    """Keeps the deadlines of tasks; its duty ends the tasks that have not started in time."""

    def __init__(self, timer: Timer, lanes: Lanes) -> None:
        self._timer = timer
        self._lanes = lanes
        # Guards all that follows: each change of the heap is many steps. A leaf.
        self._lock = threading.RLock()
        self._heap: list[tuple[float, int, weakref.ref[Task[Any]]]] = []
        self._numbers = itertools.count()
        self._forgetting = False

    def watch(self, task: Task[Any], deadline: float) -> None:
        """End `task` with TaskExpired if it has not started by `deadline`."""
        held: list[Any] = []  # tasks, until the lock is free: the last reference to one may run a destructor
        with self._lock:
            number = next(self._numbers)
            many = len(self._heap)
            if many > 64 and many > 2 * self._lanes.waiting() and not self._forgetting:
                self._forget_the_done(number, held)
            heapq.heappush(self._heap, (deadline, number, weakref.ref(task)))
            first = self._heap[0][0]
        # If the first deadline is overdue, the timer should be awake. It is kicked again, since its start may
        # have failed.
        if first >= deadline or first < task._submitted or self._timer.birth is None:
            self._timer.kick()

    def _forget_the_done(self, number: int, held: list[Any]) -> None:
        """Drop the deadlines of tasks that are done. Lock held. `number` is above those of all entries."""
        self._forgetting = True
        try:
            before = self._heap
            pairs = [(entry, entry[2]()) for entry in before[:]]
            held += pairs
            kept = [entry for entry, task in pairs if task is not None and not task.done()]
            heapq.heapify(kept)
            self._heap = kept
            for entry in before[:]:
                if entry[1] > number:  # a signal handler or a destructor has added it since this call began
                    heapq.heappush(self._heap, entry)
        finally:
            self._forgetting = False

    def expire(self, now: float) -> float | None:
        """End the tasks that have not started in time. A duty, and one that settles tasks."""
        while True:
            with self._lock:
                if not self._heap:
                    return None
                deadline, _, reference = self._heap[0]
                if deadline > now:
                    return deadline
                heapq.heappop(self._heap)
            task = reference()
            if task is not None:
                task._settle(expired(now - task._submitted))

    def reinit_after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may hold, in the child of a fork."""
        self._lock = threading.RLock()
