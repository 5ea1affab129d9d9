"""Deadlines: a task that has not started in time ends with TaskExpired.

**A submission costs little.** It appends a weak reference to the task to a list, the *news*, and takes no lock.
Only the timer puts news into the heap, and most tasks have started by then. The news that have become many are
looked through by a submitter, who forgets those that are done. If most are not, it is long until the next time.
So the cost for each submission is constant.

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
from .task import FINISHED, Task
from .timer import Timer

__all__ = ["Deadlines"]

#: At most this many news, and two times those that are not done, are left to the timer.
MANY_NEWS = 64


class Deadlines:
    """Keeps the deadlines of tasks; its duty ends the tasks that have not started in time."""

    def __init__(self, timer: Timer, lanes: Lanes) -> None:
        self._timer = timer
        timer.refused = self.kick_again
        self._lanes = lanes
        self._numbers = itertools.count()  # no two entries are equal, so no references are compared
        #: The tasks that the timer does not know yet. Each change is one call: submitters append, without the
        #: lock; the thread that holds the lock replaces the front, which it has copied.
        self.news: list[ref[Task[Any]]] = []
        #: When the timer looks next. Submitters lower it, without the lock. Two that store at once both kick
        #: the timer, which looks at all news.
        self.due = inf
        #: The length of the news above which a submitter looks through them. Read without the lock.
        self.many = MANY_NEWS
        # Guards all that follows, and `many`: each change of the heap is many steps. A leaf.
        self._lock = threading.RLock()
        self._heap: list[tuple[float, int, ref[Task[Any]]]] = []
        self._sorts = False

    def watch(self, task: Task[Any], deadline: float) -> None:
        """End `task` with TaskExpired if it has not started by `deadline`, which is that of its sidecar.

        The view has these lines in its `submit`: a call of this function would cost 10 %.
        """
        self.news.append(ref(task))
        if deadline < (due := self.due) or due < task._submitted or len(self.news) > self.many:
            self.look(task._submitted, deadline)

    def look(self, submitted: float, deadline: float) -> None:
        """Kick the timer if it must know of this deadline, which is among the news. Forget news if they are many."""
        due = self.due
        if len(self.news) > self.many:
            self._look_through(sort=False)
        # If the timer should have looked by now, it is kicked again, since its start may have failed.
        if deadline < due or due < submitted:
            try:
                self.due = deadline
                self._timer.kick()
            except BaseException:  # Ctrl-C, perhaps before the kick
                self.kick_again()
                raise

    def kick_again(self) -> None:
        """Have the next submission kick the timer: nobody knows whether it looks."""
        self.due = inf

    def _look_through(self, *, sort: bool) -> None:
        """Forget the news that are done; with `sort`, put the others into the heap. Called without the lock."""
        held: list[Any] = []  # tasks, until the lock is free: the last reference to one may run a destructor
        with self._lock:
            if not self._sorts:  # otherwise a signal handler or a destructor submits in the middle of this
                try:
                    self._sorts = True
                    self._take(held, sort)
                finally:
                    self._sorts = False
        for task in held:
            task.done()  # tells the threads that wait, if the thread that has settled it was interrupted

    def _take(self, held: list[Any], sort: bool) -> None:
        """Look through the news; then through the heap, if the greater part of that is done. Lock held, no other sorts.

        After an error between two steps an entry may be in both places. The task is then settled once.
        """
        news = self.news[:]
        kept = [(noted, task) for noted, task in zip(news, self._open(news, held), strict=True) if task is not None]
        if sort:
            for noted, task in kept:
                heapq.heappush(self._heap, (task._sidecar.deadline, next(self._numbers), noted))
            kept = []
        self.news[: len(news)] = [noted for noted, _ in kept]
        self.many = MANY_NEWS + 2 * len(kept)
        if len(self._heap) > MANY_NEWS and len(self._heap) > 2 * self._lanes.waiting():
            tasks = self._open([noted for _, _, noted in self._heap], held)
            heap = [entry for entry, task in zip(self._heap, tasks, strict=True) if task is not None]
            heapq.heapify(heap)
            self._heap = heap

    @staticmethod
    def _open(references: list[ref[Task[Any]]], held: list[Any]) -> list[Any]:
        """Return the task of each reference; None if it has ended, or was settled. Hold the tasks in `held`.

        It does not call `Task.done`: for a task that was settled and not yet published, that would take the task's
        lock, and tell the threads that wait, while we hold our own.
        """
        tasks: list[Any] = [reference() for reference in references]
        held += filter(None, tasks)
        return [
            None if task is None or task._status is FINISHED or task._sidecar.verdict is not None else task for task in tasks
        ]

    def expire(self, now: float) -> float | None:
        """End the tasks that have not started in time. A duty, and one that settles tasks."""
        while True:
            self.due = inf
            self._look_through(sort=True)
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
