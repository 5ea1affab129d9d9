"""The watch: the duty that keeps the limits of running tasks.

A task that has run for ``run_within`` seconds is stopped, one that has been stopped and has not ended is given
up (``stops.py``), and one that runs for long is logged (``slow.py``). How a worker and the watch find each
other is in ``limits.py``.
"""

from __future__ import annotations

from math import inf
from typing import Any

from .limits import Limits
from .roster import Roster
from .slow import Slow
from .stopping import Reason
from .stops import Stops
from .task import Task
from .worker import Worker

__all__ = ["Watch"]


class Watch:
    """Watches what the workers of one executor have in hand."""

    def __init__(self, limits: Limits, roster: Roster, stops: Stops, slow: Slow) -> None:
        self._limits = limits
        self._roster = roster
        self._stops = stops
        self._slow = slow

    def tend(self, now: float) -> float | None:
        """Do what is due at `now`; return when something is due next. A duty, and one that settles tasks."""
        limits = self._limits
        shortest, limits.shortest = limits.shortest, inf
        limits.due = inf  # from here on a task that begins kicks the timer
        due = now + shortest
        for worker in self._roster.workers.copy():
            if (task := worker.task) is not None:
                due = min(due, self._look(worker, task, now))
        if (next_stop := self._stops.tend(now)) is not None:
            due = min(due, next_stop)
        limits.due = due
        return None if due == inf else due

    def _look(self, worker: Worker, task: Task[Any], now: float) -> float:
        """Stop a task that has run for too long; return when something is due for it next."""
        due = inf
        while True:
            since, sidecar = worker.since, task._sidecar
            ran = 0.0 if sidecar is None else sidecar.ran
            if worker.task is not task:  # perhaps the next one is in its hand: that kicks the timer
                return inf
            # Asked last: a worker stores `ran`, then `since`, and then has the task in hand for another attempt.
            if worker.since == since:
                break
        if (limit := self._limits.run_limit(task)) is not None and (sidecar is None or sidecar.stop is None):
            due = since + limit - ran
            if now >= due:
                self._stops.stop(task, Reason.TIMED_OUT, limit)
                due = inf
        if (next_look := self._slow.look(worker, task, since, now)) is not None:
            due = min(due, next_look)
        return due
