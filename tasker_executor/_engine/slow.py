"""Slow tasks: a task that has run for `warn_after` seconds is logged with its stack; then at each doubling.

The timer looks at the workers, and must run no code of the user's. So it only finds out which task is slow. The
herald asks that task for its name, reads source files, and logs.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

from .._report import Logger, aside
from .._sync import clock
from .attempt import describe
from .settings import Settings
from .stacks import stack_of
from .task import Task
from .worker import Worker

__all__ = ["Slow"]

logger = Logger("tasker_executor")


class Slow:
    """Warns of tasks that run for long. Only the timer's thread calls it, so it needs no lock."""

    def __init__(self, settings: Settings) -> None:
        self._name = settings.name
        self._after = settings.warn_after
        #: For each worker that was seen busy: its task, by number, and when that began; and after how many
        #: seconds to warn of it. A later task may have the same number, and then it began later. Never
        #: iterated over: other threads take dead workers out, each in one step.
        self._limits: weakref.WeakKeyDictionary[Worker, tuple[tuple[int, float], float]] = weakref.WeakKeyDictionary()

    def look(self, worker: Worker, task: Task[Any], since: float, now: float) -> float | None:
        """Warn of `task`, which `worker` has run since then, if it is time to; return when to look again.

        Returns None without `warn_after`. Called for a worker that is busy.
        """
        if self._after is None:
            return None
        attempt = id(task), since
        known, limit = self._limits.get(worker, (None, 0.0))
        if known != attempt:
            limit = self._after
        if since + limit <= now:
            self._tell(worker, task, now - since)
            while since + limit <= now:  # the timer may be late; then one record stands for several doublings
                limit *= 2
        self._limits[worker] = attempt, limit
        return since + limit

    def _tell(self, worker: Worker, task: Task[Any], ran: float) -> None:
        """Have the record made, which may find that the task has ended. Until then nothing holds the task."""
        say = partial(self._say, weakref.ref(worker), weakref.ref(task), ran)
        if aside.post is None:
            say()
        else:
            aside.post(say)

    def _say(self, worker_or_none: weakref.ref[Worker], task_or_none: weakref.ref[Task[Any]], ran: float) -> None:
        worker, task = worker_or_none(), task_or_none()
        if worker is None or task is None:
            return
        function, holding = describe(task), worker.holding
        age = None if holding is None else clock() - holding.born
        resource = "it has no resource" if age is None else f"its resource is {age:.1f} s old"
        stack = stack_of(worker.thread)
        if worker.task is not task or task.done():  # then name and stack may be those of another task, or of none
            return
        logger.warning(
            "executor %r: task %s has been running for %.1f s on worker %s; %s%s",
            self._name,
            function,
            ran,
            worker.name,
            resource,
            f":\n{stack.rstrip()}" if stack else "",
            executor=self._name,
            worker=worker.name,
            function=function,
            seconds=ran,
            age=age,
            stack=stack,
        )
