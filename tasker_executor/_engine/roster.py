"""The roster: which workers there are, how many of them count for what, and how many there may be.

This room decides nothing: its methods count, and other rooms write its sets. "Lock held" means `Lifecycle.lock`.
Any thread may call a method without these words: it counts over a copy of `workers`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import chain, count, filterfalse
from operator import attrgetter
from typing import Any

from .settings import Settings
from .task import Task
from .threads import Endings
from .worker import Worker

__all__ = ["Roster"]

_index_of: Callable[[Worker], int] = attrgetter("index")


class Roster:
    """The workers of one executor, and their limits.

    `Lifecycle.lock` guards each write, except those of `awaited`: each of these is a single call. A copy of a
    set, a look for one entry and a length are single calls, too, and need no lock. Two of them in a row are of
    two moments. So decisions are made under the lock, and what is counted without it is looked at again.
    """

    def __init__(self, settings: Settings, waiting_inside: Collection[int]) -> None:
        """Look in `waiting_inside` for the threads of workers that wait for a task of this executor."""
        self._waiting_inside = waiting_inside
        self.min_workers, self.max_workers = settings.min_workers, settings.max_workers
        #: The number of workers wanted: the last answer of the policy, within the bounds.
        self.wanted = settings.max_workers if settings.policy is None else settings.min_workers
        #: The workers in the crew. A worker that ends leaves before its successor enters, so the limit holds.
        self.workers: set[Worker] = set()
        #: Those of `workers` that are not `ready`, and perhaps some that are: removed, in one call without the lock,
        #: after that is stored.
        self.unready: set[Worker] = set()
        #: The workers written off: no longer in the crew, and their task has yet to return.
        self.written_off: set[Worker] = set()
        self.leaving: set[Worker] = set()  # those of `workers` that have been retired and are about to end
        #: Those of `workers` that destroy their resource, each with the time at which it began to. Such a worker
        #: serves no task any more. It takes the place of a thread until it has left the crew.
        self.ending: dict[Worker, float] = {}
        #: A token for each caller of `wait_ready`. While there is one, at least one worker is wanted.
        self.awaited: set[object] = set()
        self.ended = Endings()  # the threads of workers that have left `workers`
        self.replaced = 0  # the number of workers that have left for a reason in `REPLACED`

    # -- how many there are

    def starting(self) -> int:
        """Return how many workers have yet to look at the lanes for the first time, and are not late."""
        if not self.unready:
            return 0
        return sum(not (worker.ready or worker.late or self.ends(worker)) for worker in self.unready.copy())

    def ready(self) -> int:
        """Return how many workers have their resource, and do not end."""
        return sum(worker.ready and not self.ends(worker) for worker in self.workers.copy())

    def busy(self) -> int:
        """Return how many workers have a task in hand."""
        return sum(worker.task is not None for worker in self.workers.copy())

    def running(self) -> int:
        """Return how many tasks are in hand, without those that are counted elsewhere."""
        return len(self.tasks())

    def tasks(self) -> list[Task[Any]]:
        """Return the tasks in hand, without those that are counted elsewhere: cancelled, given up, failed unrun."""
        tasks = [task for worker in self.workers.copy() if (task := worker.task) is not None]
        return [task for task in tasks if task._sidecar is None or not task._sidecar.is_counted()]

    def present(self) -> int:
        """Return how many workers a task can count on.

        It cannot count on a worker that ends, or that has been starting for `create_timeout`.
        """
        return sum(not (worker.late or self.ends(worker)) for worker in self.workers.copy())

    def ends(self, worker: Worker) -> bool:
        """Return whether a worker serves no task any more.

        Without the lock the crew is looked at last: a worker is in `leaving`, or in `ending`, until it has left.
        """
        return worker in self.leaving or worker in self.ending or worker not in self.workers

    def note_left(self, worker: Worker) -> None:
        """Forget how a worker ended, after it has left the crew: see `ends`. Lock held."""
        self.leaving.discard(worker)
        self.ending.pop(worker, None)

    # -- how many there may be

    def least(self) -> int:
        """Return how many workers there should be at least: the base, and one for a caller of `wait_ready`."""
        return max(self.min_workers, bool(self.awaited))

    def limit(self) -> int:
        """Return the limit of workers: the number wanted, and at least one that does not wait inside.

        A worker that waits for a task of this executor needs another worker to run it.
        """
        waiting = 0
        if self._waiting_inside:
            waiting = sum(worker.thread.ident in self._waiting_inside for worker in self.workers.copy())
        return max(self.wanted, self.min_workers, min(waiting + 1, self.max_workers))

    def has_room(self) -> bool:
        """Return whether the limits allow one more worker."""
        there = len(self.workers)  # `present` is at most that, and counts: each of many workers that start would
        return there < self.max_workers and (there < (limit := self.limit()) or self.present() < limit)

    def surplus(self) -> int:
        """Return the number of workers above the limit. Lock held.

        Late workers count among the threads, but not among the workers wanted. Workers that end leave anyway.
        """
        staying = [worker for worker in self.workers.copy() if not self.ends(worker)]
        return len(staying) - min(self.limit() + sum(worker.late for worker in staying), self.max_workers)

    def free_index(self) -> int:
        """Return the lowest number that no worker has. Lock held."""
        used = set(map(_index_of, chain(self.workers.copy(), self.written_off.copy())))
        return next(filterfalse(used.__contains__, count()))

    # -- the end

    def reinit_after_fork(self) -> None:
        """Forget the workers, in the child of a fork: their threads belong to the parent."""
        for worker in self.workers.copy():
            worker.over = True
        self.workers.clear()
        self.unready.clear()
        self.written_off.clear()
        self.leaving.clear()
        self.ending.clear()
        self.ended.clear()
