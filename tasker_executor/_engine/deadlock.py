"""Waits inside: a task waits for another task of its own executor. A hopeless wait is ended.

If every worker waits inside, another worker is started, whatever the policy says (`Roster.limit`). If none may
be started, no worker is left to run a task. Then the wait that began last ends with `PoolDeadlockError`. But
none does while one of them has a timeout: that wait ends by itself.
"""

from __future__ import annotations

from _thread import get_ident
from typing import Any

from .._sync import Permit, lock_timeout
from ..exceptions import PoolDeadlockError
from .crew import Crew
from .sidecar import admit
from .state import Lifecycle
from .task import Task

__all__ = ["WaitInside", "WaitsInside"]


class WaitInside:
    """The wait of a thread of the executor for one of the executor's own tasks.

    The wait ends by its permit, which is released before the done-callbacks of the task are called: a callback
    may shut the executor down, and wait for the thread that waits here.
    """

    __slots__ = ("hopeless", "permit", "task", "timed")

    def __init__(self, task: Task[Any], permit: Permit, *, timed: bool) -> None:
        self.task = task
        self.permit = permit
        self.timed = timed  # the wait ends by itself, and is never hopeless
        # Whether the wait was ended because no worker is left to run the task. Stored before the permit is
        # released.
        self.hopeless = False

    def give_up(self) -> None:
        """End the wait with PoolDeadlockError."""
        self.hopeless = True
        admit(self.permit)


class WaitsInside:
    """All waits inside of one executor."""

    def __init__(self, name: str, life: Lifecycle, crew: Crew, waits: dict[int, WaitInside]) -> None:
        """Keep the waits in `waits`, by thread. The executor's lock guards it; the roster looks at its keys."""
        self._name = name
        self._life = life
        self._crew = crew
        self._roster = crew.roster
        self._waits = waits

    def wait(self, task: Task[Any], permit: Permit, timeout: float | None) -> bool:
        """Acquire `permit`, which is released when `task` is done; return False at the timeout.

        Called on a thread of the executor. Raises PoolDeadlockError: see the module's docstring.
        """
        me = get_ident()
        wait = WaitInside(task, permit, timed=timeout is not None)
        try:
            with self._life.lock:
                self._waits[me] = wait
            self._crew.populate_or_retry()
            if timeout is not None:
                return permit.acquire(True, lock_timeout(timeout))
            self.end_a_hopeless_wait()
            permit.acquire()
        finally:
            with self._life.lock:
                self._waits.pop(me, None)
        if wait.hopeless:
            raise PoolDeadlockError(
                f"executor {self._name!r}: this task waits for another task of its own executor, and so do all "
                f"{len(self._roster.workers)} workers, so none is left to run it; use more workers or another executor, "
                "or wait outside of the pool"
            )
        return True

    def end_a_hopeless_wait(self) -> None:
        """End the wait that began last if all workers wait inside, and no other worker may be started."""
        if not self._waits:  # a thread that enters its wait afterwards looks itself
            return
        roster = self._roster
        with self._life.lock:
            workers = roster.workers.copy()  # a destructor may submit in the middle, and start one
            waits = [wait for worker in workers if (wait := self._waits.get(worker.thread.ident or 0))]
            if len(waits) < len(workers) or len(workers) < roster.limit() or not waits:
                return
            hands = {id(worker.task) for worker in workers}
            for wait in waits:
                task = wait.task
                sidecar: Any = task._sidecar  # there is one, as the task is waited for
                if wait.timed or task.done() or sidecar.may_expire() or wait.hopeless:
                    return
                # The task runs on its caller's thread, or its waiters are about to be told of its end. A task that
                # waits for its next attempt counts as running, too.
                if task.running() and id(task) not in hands and not task._lane.holds(task):
                    return
            last = next(reversed([wait for wait in self._waits.values() if wait in waits]))
        last.give_up()

    def reinit_after_fork(self) -> None:
        """Forget the waits, in the child of a fork."""
        self._waits.clear()
