"""`Task`: a task from submission to result, future and work item in one.

All that this library knows of the insides of `concurrent.futures._base.Future` is in ``foreign.py`` and in
``sidecar.py``. What stops use is in ``stoppable.py``.

**Why not the standard future.** `ThreadPoolExecutor` makes a `Condition` that no thread waits on, a work item
beside the future, and locks around both. These take most of its time for a task. Here a task is one object
with seven slots. What only few tasks need is in its `Sidecar`, made when it is first needed.

**Which thread goes first.** The worker takes no lock for a task that no thread observes. Where it meets a
listener or a canceller, each side *stores its own slot first and loads the other's afterwards*. So at least
one of the two sees the other:

- Start: the worker stores ``_status = RUNNING``, then loads ``_sidecar``. A canceller stores its verdict into
  the sidecar and the sidecar into ``_sidecar``, then loads ``_status``. If it finds PENDING, the worker has
  yet to load the sidecar and will find the verdict there: the task is cancelled. If it finds RUNNING, it
  cannot know whether the worker looked before or will look after. So it takes its verdict back, under the
  sidecar's lock: the task is not cancelled. A worker that finds a verdict looks once more, under that lock.
- End: the worker stores ``_status = FINISHED``, then loads ``_sidecar``. A listener stores ``_sidecar``, then
  loads ``_status``. The side that sees the other publishes; `_publish` does each of its steps once.
- Popped: the thread that cancels a whole queue pops a task first, so no worker has it. Then it gives the task
  the sidecar `CALLED_OFF`, which says cancelled, unless another thread has just given it one: see "One sidecar for
  life" in ``sidecar.py``. So that one step decides, and no lock is needed.

That holds without the GIL, too. In free-threaded builds a store into a slot locks the object: in Python 3.13,
and in the specialized instruction of Python 3.14 and later, too. So of two stores into *one* object, the
thread that stores later has seen what the other stored before. Hence slots, not attributes of the sidecar,
which may be in its dict; and hence the canceller stores ``_sidecar`` again even if it is there already. Where
the two sides store into two objects, the rarer side also stores into the object of the other one, as in
`Stops.stop_all`; or both call a method of one container, which locks that. A plain ``if container:`` locks
nothing.

**Interrupted.** Ctrl-C, or any error that a signal handler throws, may end a call between any two steps. So a
task is settled by one store, under the sidecar's lock. All that follows is a list of steps that any thread
may go on with: `_conclude`. The next thread that meets the task does so: in `cancel`, `result`, `exception`,
`add_done_callback`, `done`, `wait` or `as_completed`, or as the worker that pops the tombstone. `_publish`
runs no code of the user's. Callbacks and observers wait for a caller that holds no lock.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures._base import FINISHED, PENDING, RUNNING
from contextvars import Context
from functools import partial
from typing import Any, TypeVar

from typing_extensions import override

from .._options import UNSET
from .._report import aside, function_name
from .._sync import clock
from ..futures import TaskFuture
from .callbacks import call_each, call_one
from .handoff import Handoff, HandoffLost
from .lanes import Lane
from .sidecar import (
    CALLED_OFF,
    CANCELLED,
    FINAL,
    WITHDRAWN,
    Callbacks,
    ObservedSidecar,
    Sidecar,
    admit,
    adopt,
    expired,
    firsts,
    locks_task,
)
from .stoppable import Stoppable
from .unretrieved import Unretrieved
from .waiting import join, note_lost

__all__ = ["CANCELLED", "FINISHED", "PENDING", "RUNNING", "WITHDRAWN", "Sidecar", "Task"]

T = TypeVar("T")
_firsts = firsts  # CPython 3.11 is slower to call a method of an imported name


class Settling(Stoppable[T]):
    """The half of a task that ends it, for workers, cancellers and listeners."""

    __slots__ = ()

    _context: Context | None  # the submitter's contextvars
    _exception: Any  # the positional arguments of the call; once final, the exception or None
    _lane: Lane  # the lane that the task waits in
    _result: Any  # the function to call; once final, the result
    _sidecar: Sidecar | None  # see the module's docstring
    _status: str  # PENDING, RUNNING or FINISHED; the state of a settled task is in its sidecar
    _submitted: float  # when it was queued
    _unretrieved: Unretrieved | None = None

    # -- what workers use

    @locks_task
    def _may_start(self) -> bool:
        """Return whether the worker, which has stored RUNNING and found a sidecar, may run the task."""
        sidecar = self._sidecar
        assert sidecar is not None
        if sidecar.concluded:  # the usual tombstone
            self._lane.drop_tombstone(sidecar)
            return False
        plain = type(sidecar) is ObservedSidecar and not sidecar.started  # no options, and no retry
        if plain and sidecar.verdict is None and sidecar.stop is None:
            sidecar.started = True  # no lock: foreign code may hold it for long. A later verdict is taken back
            return True
        with sidecar:
            settled, stop = sidecar.verdict is not None, sidecar.stop
            if not settled:
                late = sidecar.deadline is not None and not sidecar.started and clock() > sidecar.deadline
                if sidecar.run_within is not UNSET and stop is None:
                    stop = sidecar.stop_without_time()
                sidecar.started = True
                if stop is not None:
                    stop.seen = True
                elif not late:
                    return True
        if settled:
            try:
                self._conclude()  # the thread that settled it was interrupted, or has yet to tell
            finally:
                self._lane.drop_tombstone(sidecar)
            return False
        if stop is None:
            self._fail_unrun(expired(clock() - self._submitted))
        else:
            self._fail_unrun(stop.error(self._lane.owner.name, function_name(self._result), sidecar.error))
        return False

    @locks_task
    def _fail_unrun(self, error: BaseException) -> None:
        """End the task with `error` instead of running it (again). The caller has popped it."""
        tell = self._lane.on_settled  # now: while a callback runs, the executor may close and detach it
        sidecar = self._observe()
        assert sidecar is not None  # it is not final
        self._lane.count_failed(sidecar)
        self._finish(None, error)
        tell(self)

    @locks_task
    def _fail_popped(self, error: BaseException) -> None:
        """End the task with `error`. The caller has popped it, as a worker would, but only for this.

        If an error is thrown into this, or into the start of the task, it is called again.
        """
        if self._status is FINISHED:
            self._conclude()
            sidecar = self._sidecar
            if sidecar is not None and sidecar.counted:
                self._lane.on_settled(self)
            return
        self._status = RUNNING
        if self._sidecar is None or self._may_start():
            self._fail_unrun(error)

    @locks_task
    def _cancel_popped(self) -> bool:
        """Cancel the task if no thread has observed it. Return whether it is cancelled.

        The caller has popped it, so no worker has it. If this returns False, the caller puts it back. The
        executor's observers are not told. If an error is thrown into this, it is called again.
        """
        if (self._sidecar or adopt(self, CALLED_OFF)) is not CALLED_OFF:
            return False
        held = self._result, self._exception, self._context  # until the lock is free: it may run destructors
        lane = self._lane
        with lane._lock:
            if self._exception is not None:  # or it is counted: no error comes between the next two lines
                lane.cancelled += 1
                self._exception = self._result = self._context = None
        del held
        return True

    @locks_task
    def _settle(self, verdict: Any) -> bool:
        """End the task with `verdict` unless it has started. Return whether it did. It stays in its lane."""
        sidecar = self._observe()
        if sidecar is None:
            return False
        tell = self._lane.on_settled  # before the verdict: a worker may count the task then, and the executor close
        mine = False
        try:
            with sidecar:
                if sidecar.verdict is not None or sidecar.started or sidecar.published:
                    return False
                sidecar.verdict = verdict
                sidecar.concluding = mine = True  # callbacks run on this thread: a worker leaves them to it
                self._sidecar = sidecar  # once more: see "Which thread goes first"
                if self._status is not PENDING:
                    sidecar.verdict = None
                    return False
            self._conclude(mine=True, tell=tell)
        finally:
            if mine:
                sidecar.concluding = False  # after an interruption, the next thread goes on from here
        return True

    def _fail_after_fork(self, error: BaseException) -> None:
        """End the task in the child of a fork. A thread that is gone may hold the task's lock."""
        sidecar, self._sidecar = self._sidecar, None
        self._finish(None, error)
        if sidecar is not None:  # this very thread may wait for the task, if a signal handler has forked
            sidecar.published = True
            if sidecar.handoff is not None:
                sidecar.handoff.give()
            for permit in sidecar.permits or ():
                admit(permit)

    @locks_task
    def _finish(self, result: T | None, error: BaseException | None) -> None:
        """Make the task final. The worker's loop does the same in line."""
        self._result = result
        self._exception = error
        self._context = None
        self._status = FINISHED
        self._conclude()

    @locks_task
    def _conclude(self, *, mine: bool = False, tell: Callable[[Any], object] | None = None) -> None:
        """Tell all threads that the task is final, call its callbacks, and tell the lane if it was settled.

        Goes on where a thread was interrupted. `mine`: this thread has settled the task, and `tell` is what it
        found in the lane before.
        """
        sidecar = self._sidecar
        if sidecar is not None:
            tell = tell or self._lane.on_settled  # before the task is counted: then the executor may close
            callbacks = self._publish()
            if callbacks and aside.post is not None:  # this thread keeps time, and runs no code of the user's
                aside.post(partial(call_each, callbacks, self))
                callbacks = sidecar.callbacks = None
            if callbacks:
                self._call_back(callbacks, tell, mine=mine)
            elif sidecar.verdict is None or sidecar.concluded or not sidecar.published:
                pass
            elif mine or not sidecar.concluding:
                if not sidecar.reported:
                    tell(self)  # after an interruption, another thread may do this, too
                    sidecar.reported = True
                sidecar.concluded = True

    @locks_task
    def _call_back(
        self, callbacks: Callbacks | None, tell: Callable[[Any], object] | None = None, *, mine: bool = False
    ) -> None:
        """Call the callbacks that `_publish` has left, and `tell` if the task was settled. No lock is held.

        If the task ran, only the thread that ended it comes here. If it was settled, the first thread that
        comes does all, and the other threads leave it to that thread.
        """
        sidecar = self._sidecar
        assert sidecar is not None
        if sidecar.verdict is None:
            if callbacks:
                call_each(callbacks, self)
            return
        try:
            with sidecar:
                if sidecar.concluding and not mine:
                    return
                sidecar.concluding = mine = True
            try:
                if callbacks:
                    call_each(callbacks, self)
            finally:
                if not sidecar.reported:
                    (tell or self._lane.on_settled)(self)
                    sidecar.reported = True
                sidecar.concluded = not sidecar.callbacks
        finally:
            if mine:
                sidecar.concluding = False

    @locks_task
    def _publish(self) -> Callbacks | None:
        """Tell all threads that the task is final, once. Return the callbacks that are left to be called.

        Runs no code of the user's. If a thread is interrupted, the next one goes on, and may repeat a step.
        """
        sidecar: Any = self._sidecar  # there is one
        dropped: Any = None  # what the task held, kept until the lock is free: it may run destructors
        with sidecar:
            if not sidecar.published:
                if (verdict := sidecar.verdict) is not None:
                    dropped = self._result, self._exception, self._context
                    cancelled, withdrawn = verdict is CANCELLED, verdict is WITHDRAWN
                    if sidecar.started:  # it runs, and is given up
                        self._lane.count_failed(sidecar)
                    else:
                        self._lane.count_tombstone(sidecar, cancelled=cancelled, withdrawn=withdrawn)
                    self._exception = None if cancelled or withdrawn else verdict
                    self._result = self._context = None
                elif self._status is not FINISHED:  # a canceller was too late, and has taken its verdict back
                    return None
                if sidecar.error is not None:
                    dropped, sidecar.error = (dropped, sidecar.error), None
                if sidecar.waiters:
                    sidecar.telling = iter(tuple(sidecar.waiters))  # a copy: waiters take themselves off
                sidecar.published = True
            elif sidecar.told:
                return sidecar.callbacks or None
            if sidecar.telling is not None:  # perhaps from a thread that was interrupted while it told them
                sidecar.tell_waiters(self, self._exception)
        if sidecar.permits is not None:
            for permit in sidecar.permits:
                admit(permit)
        handoff = sidecar.handoff
        if handoff is not None:
            try:
                handoff.give()
            except HandoffLost:
                note_lost(handoff, self._lane.owner.name)  # the thread that waits finds out by itself
        sidecar.told = True
        return sidecar.callbacks or None

    def _arm(self, name: str, function: str, error: BaseException) -> None:
        """Note that the task raised `error`. Unless a caller asks for it, it will be logged."""
        self._unretrieved = Unretrieved(name, function, error)

    def _note_retrieved(self) -> None:
        if self._unretrieved is not None:
            self._unretrieved.error = None

    # -- observing

    def _observe(self, handoff: Handoff | None = None) -> Sidecar | None:
        """Return the sidecar, or make it with `handoff`. None: the task is final and was never observed."""
        sidecar = self._sidecar
        if sidecar is None:
            if self._status is FINISHED:
                return None
            made = ObservedSidecar()
            made.counted = made.published = made.started = made.told = False
            made.callbacks = made.permits = made.telling = made.waiters = None
            made.handoff = handoff
            try:  # `adopt`, in line
                winner = _firsts.setdefault(self, made)
                sidecar = self._sidecar
                if sidecar is None:
                    sidecar = self._sidecar = winner
            finally:
                if self._sidecar is None and (left := _firsts.get(self)) is not None and self._sidecar is None:
                    self._sidecar = left
                _firsts.pop(self, None)
        if (self._status is FINISHED or sidecar.verdict is not None) and not sidecar.told:
            self._publish()  # the worker has missed the sidecar, or the thread that tells was interrupted
        return None if sidecar is FINAL else sidecar

    def _seal(self) -> Sidecar:
        """Give the task, which is final, FINAL for its sidecar, unless another thread is giving it one."""
        sidecar = adopt(self, FINAL)
        if not sidecar.told:
            self._publish()
        return sidecar


class Task(Settling[T]):
    """The future of one task. It carries the call until that has run. Made by an executor only.

    No method of this class itself assigns to an attribute of ``self``. From Python 3.14 on, each object has room
    in line for the names that its own class assigns so, slots or not: 8 bytes each.
    """

    __slots__ = ("_context", "_exception", "_lane", "_result", "_sidecar", "_status", "_submitted")

    # The executors store the slots in line: an __init__ in Python would cost a third of the submission.
    __init__ = object.__init__

    def result(self, timeout: float | None = None) -> T:
        """Return what the task returned, or raise what it raised. Block at most `timeout` seconds.

        Raises:
            TimeoutError: The task is not final yet (`concurrent.futures.TimeoutError`).
            CancelledError: The task was cancelled (`concurrent.futures.CancelledError`).
        """
        if self._status is not FINISHED:
            join(self, timeout)
        if self._exception is not None:
            self._note_retrieved()
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # or the traceback would keep the future alive
        return self._result  # type: ignore[no-any-return]  # the slot has two uses

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None. Block, and raise, as `result` does."""
        if self._status is not FINISHED:
            join(self, timeout)
        if self._exception is not None:
            self._note_retrieved()
        return self._exception  # type: ignore[no-any-return]  # the slot has two uses

    def done(self) -> bool:
        """Return whether the task is final: it has returned, has raised or was cancelled."""
        if self._status is FINISHED:
            return True
        sidecar = self._sidecar
        if sidecar is None:
            return False
        if not sidecar.published and sidecar.verdict is not None:
            self._publish()  # another thread has settled it, and has yet to tell
        return sidecar.published

    def running(self) -> bool:
        """Return whether the task is being run, or waits for a retry."""
        return self._status is RUNNING and not self.done()

    def cancelled(self) -> bool:
        """Return whether the task was cancelled before it started."""
        sidecar = self._sidecar
        return sidecar is not None and self.done() and sidecar.published and sidecar.called_off()

    @locks_task
    def cancel(self) -> bool:
        """Cancel the task if it has not started. Return whether it is cancelled.

        The threads that wait for it are told at once, and not only when a worker pops it.
        """
        if self._settle(CANCELLED):
            return True
        sidecar = self._sidecar
        if sidecar is None:
            return False
        with sidecar:
            cancelled = sidecar.called_off()
        if cancelled and not sidecar.concluded:
            self._conclude()  # another thread has just cancelled it, and has yet to tell, or was interrupted
        return cancelled

    @override
    def stop(self) -> bool:
        return self.cancel() or (not self.done() and bool(self._lane.owner.stop(self)))

    stop.__doc__ = TaskFuture.stop.__doc__

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn` with this future once it is final: on the thread that ends it, or at once on this one."""
        sidecar = self._observe()
        if sidecar is not None:
            if sidecar.add_callback(fn):
                return
            if sidecar.verdict is not None and not sidecar.concluded:
                self._conclude()  # callbacks that came before, if an interruption has left some
        call_one(fn, self)
