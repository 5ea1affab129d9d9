"""Stops: how a task that runs is stopped, and what becomes of its worker.

**The rule of the hand.** A stop has power over a task only while the task is in its worker's hand
(`Worker.task`). It asks for that under the lock of the task, its sidecar. The worker first lets go of the task.
Then it looks, under the same lock, whether a stop has been at work. So the first of the two decides, and the
other one does nothing. The stories:

- *The task is stopped as it begins.* 1. The stopper could not cancel the task, so its status is RUNNING. The
  worker took it in hand before it stored that. 2. The stopper notes the stop in the sidecar, and then looks for
  the task in the hands of the workers. 3. It finds the task there, or the worker has let go of it, and finds
  the stop.
- *The executor is killed as a task begins.* 1. The worker takes the task in hand, and then looks at `leave`, or
  at the state. 2. The killer stores both, then a name into the worker, which it had, and then looks at the
  worker's hand. So both have stored into the worker (see "Which thread goes first" in ``task.py``): the worker
  lets go of the task, or the killer finds it.
- *The abort comes while the task runs.* Its thread claims the resource (`Task._claim`) and calls the hook.
  The worker lets go of the task, publishes the result, finds the claim, and waits until the hook has returned
  (`Hand.recover`). Then it resets and checks the resource; without a check it replaces it.
- *The abort comes between two calls of the task*, and unblocks neither: `interrupt` of a connection to SQLite
  does nothing before the statement runs. So the watch aborts the resource again if the task still runs
  `AGAIN` seconds after the stop, and after twice as long each time. After ``kill()`` the watch does not: a
  second ``kill()`` aborts the resources again.
- *The task ends first.* The worker has let go, so the claim is refused, and the hook is not called: not while
  the worker is idle, and not while it has the next task in hand.
- *Between two attempts* no worker has the task in hand. Either the stop finds it in its lane, takes it out
  and ends it; or the worker that takes it next finds the stop, and ends it (`Task._may_start`). A verdict on
  an error and a stop meet under the lock: `Sidecar.begin_retry`.
- *The task does not end.* ``abort_grace`` seconds later the task is given up (`Task._give_up`): its future
  gets its error, while it is in hand. Then its worker is *written off* (`Crew.write_off`). A worker that hangs
  in the abort of its resource is written off, too.
- *The resource is destroyed, replaced, refreshed* only by its worker, after it has let go of the task, and
  `Holding.give_up` waits for hooks that are inside. In the child of a fork no stop is left.

An abort runs on a thread of its own. A hook that hangs holds up that thread, and the worker of that resource.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

from .._sync import clock
from .aborts import Target, start_abort
from .attempt import describe
from .crew import Crew
from .notices import Notices
from .stopping import AGAIN, Reason, Stop
from .task import Task
from .unretrieved import Unretrieved
from .worker import Worker
from .workplace import Workplace

__all__ = ["Stops"]

#: The share of the grace after which a resource is aborted again, if that is less than `AGAIN`.
_AGAIN_OF_GRACE = 1 / 16

#: Seconds until the watch looks again at a task that was between its lane and a worker.
_NEXT_LOOK = 0.01


class Stops:
    """Carries out the stops of one executor."""

    def __init__(self, place: Workplace, crew: Crew, notices: Notices, made_room: Callable[[], object]) -> None:
        """Call `made_room` when a worker was written off."""
        self._name = place.settings.name
        self._grace = place.settings.abort_grace
        self._again = min(AGAIN, self._grace * _AGAIN_OF_GRACE)
        self._place = place
        self._crew = crew
        self._roster = crew.roster
        self._notices = notices
        self._made_room = made_room
        # Guards the changes of the two counters. A leaf. Reentrant, for signal handlers that stop.
        self._lock = threading.RLock()
        self.stopped = self.timed_out = 0
        #: The stops of tasks that may not be final yet. The references are weak: a task that obeys is done long
        #: before the watch looks, and must not live until then. Each change is one step.
        self._pending: dict[ref[Task[Any]], Stop] = {}

    def stop(self, task: Task[Any], reason: Reason, limit: float | None = None) -> bool:
        """Ask a task that has started to stop; return False if it is over. Never block.

        A second call for the same task changes nothing.
        """
        asked = Stop(reason, limit)
        tell = self._notices.task_stopped(task, self._worker_of(task), reason)
        stop = task._ask_to_stop(asked)
        if stop is asked:
            try:
                self._begin(task, asked)
                self._carry_out(task, asked)
            except BaseException:  # Ctrl-C: the watch does the rest
                self._pending[ref(task)] = asked
                asked.again_at = clock()
                self._place.limits.note(asked.again_at)
                raise
            tell()
        return stop is not None

    def stop_all(self) -> tuple[list[Target], list[Callable[[], object]]]:
        """Stop all tasks that workers have in hand, since the executor is killed.

        Return what is to be aborted, and what tells observers after that. A second kill aborts the resources
        once more, but for those whose hook hangs.
        """
        targets: list[Target] = []
        news: list[Callable[[], object]] = []
        for worker in self._roster.workers.copy():
            worker.name = worker.name  # a store into the worker, and then the look: see "The rule of the hand"
            task, holding = worker.task, worker.holding
            if task is None or task.cancel():
                continue
            asked = Stop(Reason.KILLED)
            tell = self._notices.task_stopped(task, worker, Reason.KILLED)
            if (stop := task._ask_to_stop(asked)) is not None:
                if stop is asked:
                    self._begin(task, stop)
                    news.append(tell)
                if holding is not None:
                    targets.append((holding, partial(task._claim, stop, worker.runs, again=True)))
        return targets, news

    def _begin(self, task: Task[Any], stop: Stop) -> None:
        """Count a stop, and see that the watch looks whether it is obeyed."""
        self._pending[ref(task)] = stop
        self.count(stop)
        if stop.reason is not Reason.KILLED:
            stop.again_at = stop.at + self._again
        self._place.limits.note(min(stop.at + self._grace, stop.again_at))

    def count(self, stop: Stop) -> None:
        """Count a stop."""
        with self._lock:
            if stop.reason is Reason.TIMED_OUT:
                self.timed_out += 1
            else:
                self.stopped += 1

    def _worker_of(self, task: Task[Any]) -> Worker | None:
        """Return the worker that has the task in hand."""
        return next((worker for worker in self._roster.workers.copy() if worker.task is task), None)

    def _carry_out(self, task: Task[Any], stop: Stop, *, again: bool = False) -> None:
        """Abort the resource of the task, or, if it waits for its next attempt, end it."""
        worker = self._worker_of(task)
        if worker is None:
            self._withdraw(task, stop)
            return
        source, holding = self._place.source, worker.holding
        hook = None if source is None else source.hooks.abort
        if hook is not None and holding is not None and not (again and holding.being_aborted):
            # If the system refuses the thread, the next abort comes at `again_at`, as it does anyway.
            start_abort(holding, hook, self._name, partial(task._claim, stop, worker.runs, again=again))

    def _withdraw(self, task: Task[Any], stop: Stop) -> None:
        """End the task if it waits for its next attempt."""
        sidecar = task._sidecar
        if sidecar is None or not sidecar.retries:
            return
        taken: list[object] = []
        try:
            task._lane.withdraw(task, taken)
        finally:
            if taken:
                task._fail_popped(stop.error(self._name, describe(task), sidecar.error))

    # -- what does not end: called by the watch

    def tend(self, now: float) -> float | None:
        """Give up the tasks that have not ended in time, and write their workers off; return when to look next."""
        dues = [self._tend_task(pending, stop, now) for pending, stop in self._pending.copy().items()]
        for worker in self._roster.workers.copy():
            if (stop := worker.stopped) is not None:
                dues.append(self._tend_worker(worker, stop, now))
        return min((due for due in dues if due is not None), default=None)

    def _tend_task(self, pending: ref[Task[Any]], stop: Stop, now: float) -> float | None:
        task = pending()
        worker = None if task is None else self._worker_of(task)
        if task is None or (task.done() and worker is None):
            self._pending.pop(pending, None)
            return None
        due = stop.at + self._grace
        if worker is None:
            self._withdraw(task, stop)
            # No worker has it in hand: it is between two attempts, for as long as a hook there takes.
            return due if now < due else now + max(_NEXT_LOOK, 0.1 * (now - stop.at))
        if now >= stop.again_at:
            stop.again_at = now + max(self._again, now - stop.at)
            self._carry_out(task, stop, again=True)
        if now < due:
            return min(due, stop.again_at)
        name = stop.function or describe(task)
        self._give_up(task, worker, stop)
        self._write_off(worker, lambda: worker.task is task, f"task {name}", now - stop.at)
        if not task.done():  # its worker has let go of it, and has yet to tell
            return now + _NEXT_LOOK
        if self._worker_of(task) is None:
            self._pending.pop(pending, None)
        return None  # if there is no room: the end of a worker that was written off kicks the timer

    def _give_up(self, task: Task[Any], worker: Worker, stop: Stop) -> None:
        """End the task although it still runs."""
        if task.done():
            return
        name = stop.function = describe(task)
        note = f"; it had not ended {clock() - stop.at:.3g} s later, and was given up"
        error = stop.error(self._name, name, None, note)
        lost = Unretrieved(self._name, name, error) if stop.reason is Reason.TIMED_OUT else None
        tell = self._notices.task_given_up(task, worker, error)
        if task._give_up(error, worker.runs, lost):
            tell()
        elif lost is not None:
            lost.error = None

    def _tend_worker(self, worker: Worker, stop: Stop, now: float) -> float | None:
        due = stop.at + self._grace
        if not worker.waits_for_abort(stop):
            return None
        if now < due:
            return due
        self._write_off(worker, lambda: worker.waits_for_abort(stop), "the abort of its resource", now - stop.at)
        return None

    def _write_off(self, worker: Worker, hangs: Callable[[], bool], what: str, seconds: float) -> None:
        """Write the worker off, if it still `hangs` and there is room for one more."""
        if self._crew.write_off(worker, hangs):
            self._notices.worker_written_off(worker, what, seconds)
            self._made_room()

    def reinit_after_fork(self) -> None:
        """Forget all stops, in the child of a fork."""
        self._lock = threading.RLock()
        self._pending.clear()
