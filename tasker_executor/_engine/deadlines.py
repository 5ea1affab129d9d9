"""Deadlines: a task that has not started in time ends with TaskExpired.

**A submission costs little.** It appends the deadline to a list, the *news*, and takes no lock. The submitter that
finds 64 news puts those into the heap whose tasks are not done. So the cost grows with the logarithm of the number
of tasks that wait.

**No kick for each task.** A submitter kicks the timer only if its deadline is before `due`, the time at which
the timer looks next. It appends its news first and looks at `due` afterwards. The timer forgets `due` first and
looks at the news afterwards. So one of the two sees the other. That holds without the GIL, too: the append and
the timer's copy both pass through the lock of the list.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from math import inf
from typing import Any
from weakref import ref

from .lanes import Lanes
from .sidecar import expired
from .task import Task
from .timer import Timer

__all__ = ["Deadlines"]

#: At most this many news are left to the next submitter, and to the timer.
MANY_NEWS = 64


class Deadlines:
    """Keeps the deadlines of tasks; its duty ends the tasks that have not started in time."""

    def __init__(self, timer: Timer, lanes: Lanes) -> None:
        self._timer = timer
        self._lanes = lanes
        self._numbers = itertools.count()  # no two entries are equal, so no references are compared
        #: The deadlines that are in no order yet. Each change is one call: submitters append, without the
        #: lock; the thread that holds the lock removes those that it has put into the heap.
        self._news: list[tuple[float, int, ref[Task[Any]]]] = []
        #: When the timer looks next. Submitters lower it, without the lock. Two that store at once both kick
        #: the timer, which looks at all news.
        self.due = inf
        # Guards all that follows: each change of the heap is many steps. A leaf.
        self._lock = threading.RLock()
        self._heap: list[tuple[float, int, ref[Task[Any]]]] = []
        self._sorts = False

    def watch(self, task: Task[Any], deadline: float) -> None:
        """End `task` with TaskExpired if it has not started by `deadline`."""
        news = self._news
        news.append((deadline, next(self._numbers), ref(task)))
        due = self.due
        if len(news) >= MANY_NEWS:
            self._sort_news()
        # If the timer should have looked by now, it is kicked again, since its start may have failed.
        if deadline < due or due < task._submitted or self._timer.birth is None:
            self.due = deadline
            self._timer.kick()

    def _sort_news(self) -> None:
        """Put the news into the heap. Called without the lock, or by the timer, whose thread holds it."""
        held: list[Any] = []  # tasks, until the lock is free: the last reference to one may run a destructor
        with self._lock:
            if not self._sorts:  # otherwise a signal handler or a destructor submits in the middle of this
                try:
                    self._sorts = True
                    self._take(held)
                finally:
                    self._sorts = False

    def _take(self, held: list[Any]) -> None:
        """Put the news into the heap; forget what is done if that is the greater part. Lock held, no other sorts.

        After an error between two steps an entry may be in both places. The task is then settled once.
        """
        news = self._news[:]
        for entry in self._alive(news, held):
            heapq.heappush(self._heap, entry)
        del self._news[: len(news)]
        if len(self._heap) > MANY_NEWS and len(self._heap) > 2 * self._lanes.waiting():
            kept = self._alive(self._heap, held)
            heapq.heapify(kept)
            self._heap = kept

    @staticmethod
    def _alive(entries: list[Any], held: list[Any]) -> list[Any]:
        """Return the entries whose tasks are not done. Hold the tasks in `held`."""
        tasks = [entry[2]() for entry in entries]
        held.append(tasks)
        return [entry for entry, task in zip(entries, tasks, strict=True) if task is not None and not task.done()]

    def expire(self, now: float) -> float | None:
        """End the tasks that have not started in time. A duty, and one that settles tasks."""
        while True:
            self.due = inf
            self._sort_news()
            with self._lock:
                if not self._heap:
                    return None
                deadline, _, reference = self._heap[0]
                if deadline > now:
                    self.due = deadline
                    return deadline
                heapq.heappop(self._heap)
            task = reference()
            if task is not None:
                task._settle(expired(now - task._submitted))

    def reinit_after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may hold, in the child of a fork."""
        self._lock = threading.RLock()
        self._sorts = False
