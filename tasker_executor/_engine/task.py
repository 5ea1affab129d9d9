"""`TaskFuture`: a task from submission to result, future and work item in one.

All that this library knows of the insides of `concurrent.futures._base.Future` is in this file.

**Why not the standard future.** Most of the time that `ThreadPoolExecutor` spends on a task goes into a `Condition` that nobody
waits on, a work item beside the future, and the locks around both. Here a task is one object with seven slots. What only few
tasks need (somebody waits, a callback, a deadline, a retry) is in its `Sidecar`, made when it is first needed.

**Who goes first.** The worker takes no lock for a task that nobody observes. Where it meets a listener or a canceller, each
side *stores its own slot first and loads the other's afterwards*, so at least one of the two sees the other:

- Start: the worker stores ``_status = RUNNING``, then loads ``_sidecar``. A canceller stores its verdict into the sidecar and
  the sidecar into ``_sidecar``, then loads ``_status``. If it finds PENDING, the worker has yet to load the sidecar and will
  find the verdict there, under the sidecar's lock: cancelled. If it finds RUNNING it cannot know whether the worker looked
  before or will look after; so it takes its verdict back, still under the lock: not cancelled.
- End: the worker stores ``_status = FINISHED``, then loads ``_sidecar``. A listener stores ``_sidecar``, then loads
  ``_status``. The side that sees the other publishes; `_publish` does each of its steps once.

That holds without the GIL, too: in free-threaded builds a store into a slot locks the object, so of two stores into *one*
object the later thread has seen what the earlier stored. Hence slots and not attributes of the sidecar, and hence the canceller
stores ``_sidecar`` again even if it is there already.

**One sidecar for life.** The slot is filled once: the first thread that enters its sidecar into `_first` gives the future that
one, and all others take it. `concurrent.futures.wait` acquires the ``_condition`` of a future and releases it later; so a
future that was final when its condition was first asked for keeps `FINAL` as its sidecar from then on.

**Interrupted.** Ctrl-C, or any error that a signal handler throws, may end a call between any two steps. So a task is settled
by one store, under the sidecar's lock, and all that follows is a list of steps which any thread may go on with: `_conclude`.
The next thread that comes by does: in `cancel`, `result`, `exception`, `add_done_callback`, `done`, `wait`, `as_completed`, or
the worker that pops the tombstone. `_publish` runs no code of the user's; callbacks and observers wait for a caller that holds
no lock.
"""

from __future__ import annotations

import sys
import threading
from _thread import LockType, allocate_lock
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextvars import Context
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

from .._report import Logger, aside, must_escape
from .._sync import clock, lock_timeout
from ..exceptions import TaskExpired
from .current import current
from .handoff import Handoff, HandoffLost, borrow, discard, give_back

if TYPE_CHECKING:
    from .lanes import Lane

    class ReentrantLock:
        """`threading.RLock`, which type checkers may not subclass."""

        def __enter__(self) -> bool: ...
        def __exit__(self, *exc_info: object) -> None: ...
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
        def release(self) -> None: ...
else:
    ReentrantLock = type(threading.RLock())

__all__ = ["CANCELLED", "FINISHED", "PENDING", "RUNNING", "WITHDRAWN", "Sidecar", "TaskFuture"]

T = TypeVar("T")

logger = Logger("tasker_executor")
#: Errors of tasks that nobody asked for. Of its own, so that an application can silence it.
lost_logger = Logger("tasker_executor.lost")
futures_logger = Logger("concurrent.futures")

#: Verdicts on a task that never starts, besides an exception for it. A withdrawn task was never handed out to anybody.
CANCELLED: Any = CancelledError("cancelled")
WITHDRAWN: Any = CancelledError("withdrawn")

_NOT_RUN = (CANCELLED, WITHDRAWN)

#: Seconds that a thread waits by a handoff, if it has a timeout, before it looks for itself: see `_handoff`.
_LOOK_EVERY = 1.0

_ZEROS = repeat(0)

#: The sidecar of each future that is being given one. Not in the future's own `__dict__`: before Python 3.12 a garbage
#: collection can come when that is made, and with it another thread, which makes a second dict.
_first: dict[Future[Any], Sidecar] = {}


class Sidecar(ReentrantLock):
    """What most tasks never need. It *is* the lock that guards its fields, and the future's ``_condition``.

    Reentrant: a signal handler may look at the future that its thread is just looking at.
    """

    # Defaults in the class and no __init__: a sidecar that is waited on for a moment costs little more than its lock.
    verdict: Any = None  # CANCELLED, WITHDRAWN or an exception: it shall not start
    started = False  # a worker has run it, or is about to: too late for a verdict
    counted = False  # the lane counts the tombstone, or that the task failed without being run (again)
    dropped = False  # the lane counts the tombstone no more
    published = False  # final, and from here on nobody adds to the lists below
    telling: Iterator[Any] | None = None  # the waiters that are yet to be told
    told = False  # final, and everybody told but the callbacks
    concluding = False  # a thread is calling the callbacks, or telling the lane
    heard = False  # settled, and observers were told
    reported = False  # settled, and the lane was told
    concluded = False  # settled, and nothing is left to be done
    waiters: list[Any] | None = None  # of concurrent.futures.wait and as_completed
    permits: list[LockType] | None = None  # one for each thread that blocks in result(); released when it is final
    handoff: Handoff | None = None  # of the one who waits in another way: see `_join`
    callbacks: list[Callable[[Future[Any]], object]] | None = None  # done-callbacks that are left to be called
    deadline: float | None = None  # a task that has not started by then never does
    max_retries: int | None = None  # for this task; None: the executor's
    retries = 0  # so far
    error: BaseException | None = None  # of the last attempt, while the task waits for its retry

    def is_news(self) -> bool:
        """Are observers yet to be told that it was settled? Only the first thread that asks is told so."""
        with self:
            news, self.heard = not self.heard, True
        return news

    def takes(self, handoff: Handoff) -> bool:
        """Will the thread that publishes it give that handoff? Not if it has another waiter's."""
        with self:
            if self.handoff is None:
                self.handoff = handoff
        return self.handoff is handoff

    def await_handoff(self, handoff: Handoff, timeout: float | None, now: Callable[[], float] = clock) -> None:
        """Block until it is published. Raises TimeoutError, and HandoffLost.

        The clock is bound here, because tests freeze the clocks that they find in modules.
        """
        if timeout is None:
            while not self.published:
                handoff.wait(None)
            return
        left = lock_timeout(timeout)
        until = now() + left
        while not self.published:
            if left <= 0:
                raise FutureTimeoutError
            step = min(left, _LOOK_EVERY)
            woken = handoff.wait(step)
            left = min(left if woken else left - step, until - now())  # whatever a clock that stands still says

    def notify_all(self) -> None:
        """For foreign code that takes us for a Condition. Nobody waits on it in that way."""


class _Final(Sidecar):
    """The one sidecar of all futures that were final before anybody observed them: nothing is locked, and nothing kept."""

    started = published = told = concluded = True

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *exc_info: object) -> None:
        pass

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None:
        pass


FINAL = _Final()


def _admit(permit: LockType) -> None:
    """Let the thread go on that waits for this. Nobody else does, so it may be done twice."""
    try:
        permit.release()
    except RuntimeError:  # done by a thread that was interrupted
        pass


class _Nobody(list[Any]):
    """The ``_waiters`` of a future that was final before anybody observed it: nobody is registered."""

    def append(self, item: Any) -> None:
        pass

    def remove(self, item: Any) -> None:
        pass


_NOBODY = _Nobody()


class Unretrieved:
    """Kept by the future of a task that raised, and by nothing else. Logs the error if it goes before somebody has seen it.

    asyncio does this for its futures; an error that nobody asks for is lost otherwise. An object of its own, because a
    finalizer on the future would cost every task something.
    """

    __slots__ = ("error", "function", "name")

    def __init__(self, name: str, function: str, error: BaseException) -> None:
        self.name = name
        self.function = function
        self.error: BaseException | None = error

    def __del__(self, logger: Logger = lost_logger, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if self.error is None:
            return
        at_exit = exiting()  # then no traceback can be formatted
        try:
            logger.error(
                "executor %r: task %s raised, and its exception was never retrieved",
                self.name,
                self.function,
                exc_info=None if at_exit else self.error,
                executor=self.name,
                function=self.function,
            )
        except Exception:
            if not at_exit:  # the modules may be empty by then: without the GIL they are
                raise


class TaskFuture(Future[T]):
    """The future of one task, which carries its call until it has run. Made by an executor only."""

    __slots__ = (
        "_context",  # the submitter's contextvars, or None
        "_exception",  # the positional arguments; once final, the exception or None
        "_lane",  # the lane it waits in
        "_result",  # the callable; once final, the result
        "_sidecar",  # see the module's docstring
        "_status",  # PENDING, RUNNING or FINISHED; a settled task's truth is in its sidecar
        "_submitted",  # when it was queued
    )

    if TYPE_CHECKING:
        _context: Context | None
        _exception: Any
        _lane: Lane
        _result: Any
        _sidecar: Sidecar | None
        _status: str
        _submitted: float

    _unretrieved: Unretrieved | None = None

    # The executors store the slots themselves, in line: a call of an __init__ in Python would cost a third of the submission.
    __init__ = object.__init__

    # -- what callers use

    def result(self, timeout: float | None = None) -> T:
        """Return what the task returned, or raise what it raised; wait for it at most `timeout` seconds.

        Raises:
            TimeoutError: It is not done yet (`concurrent.futures.TimeoutError`).
            CancelledError: It was cancelled (`concurrent.futures.CancelledError`).
        """
        if self._status is not FINISHED:
            self._join(timeout)
        if self._exception is not None:
            self._note_retrieved()
            try:
                raise self._exception
            finally:
                self = None  # type: ignore[assignment]  # or the traceback's frame would keep the future alive
        return self._result  # type: ignore[no-any-return]  # the slot serves two masters

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None; wait for it at most `timeout` seconds. Raises as `result` does."""
        if self._status is not FINISHED:
            self._join(timeout)
        if self._exception is not None:
            self._note_retrieved()
        return self._exception  # type: ignore[no-any-return]  # the slot serves two masters

    def done(self) -> bool:
        """Is it final: returned, raised or cancelled?"""
        if self._status is FINISHED:
            return True
        sidecar = self._sidecar
        if sidecar is None:
            return False
        if not sidecar.published and sidecar.verdict is not None:  # perhaps, and another thread has yet to tell
            self._publish()
        return sidecar.published

    def running(self) -> bool:
        """Is it being run, or waiting for a retry?"""
        return self._status is RUNNING and not self.done()

    def cancelled(self) -> bool:
        """Was it cancelled before it started?"""
        sidecar = self._sidecar
        return sidecar is not None and self.done() and sidecar.published and self._not_run(sidecar)

    @staticmethod
    def _not_run(sidecar: Sidecar) -> bool:
        """Was it cancelled or withdrawn? For good only if the sidecar is held, or published."""
        return sidecar.verdict is CANCELLED or sidecar.verdict is WITHDRAWN

    def cancel(self) -> bool:
        """Cancel it if it has not started, and tell everybody who waits; tell whether it is cancelled.

        The standard library tells waiters only when a worker comes by the cancelled task; here they are told at once.
        """
        if self._settle(CANCELLED):
            return True
        sidecar = self._sidecar
        if sidecar is None:
            return False
        with sidecar:
            cancelled = self._not_run(sidecar)
        if cancelled and not sidecar.concluded:
            self._conclude()  # another thread has just cancelled it, and has yet to tell, or was interrupted
        return cancelled

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call `fn` with this future once it is final: by the thread that ends it, or right here if it is final already."""
        sidecar = self._observe()
        if sidecar is not None:
            with sidecar:
                if not sidecar.published:
                    if sidecar.callbacks is None:
                        sidecar.callbacks = [fn]
                    else:
                        sidecar.callbacks.append(fn)
                    return
            if sidecar.verdict is not None and not sidecar.concluded:
                self._conclude()  # those that came before, if they were left
        self._call(fn)

    def may_expire(self) -> bool:
        """Does it fail by itself if it is not started in time?"""
        sidecar = self._sidecar
        return sidecar is not None and sidecar.deadline is not None

    # -- what workers use

    def _may_start(self) -> bool:
        """The worker has stored RUNNING and found a sidecar. False: the task is settled, forget it."""
        sidecar = self._sidecar
        assert sidecar is not None
        if sidecar.concluded:  # the usual tombstone
            self._lane.drop_tombstone(sidecar)
            return False
        with sidecar:
            settled = sidecar.verdict is not None
            if not settled:
                late = sidecar.deadline is not None and not sidecar.started and clock() > sidecar.deadline
                sidecar.started = True
                if not late:
                    return True
        if settled:
            try:
                self._conclude()  # the thread that settled it was interrupted, or has yet to tell
            finally:
                self._lane.drop_tombstone(sidecar)
            return False
        waited = clock() - self._submitted
        self._fail_unrun(TaskExpired(f"the task had not started {waited:.3g} s after it was submitted, and was not run"))
        return False

    def _fail_unrun(self, error: BaseException) -> None:
        """End it with `error` instead of running it (again). The caller has popped it, and nobody can settle it any more."""
        tell = self._lane.on_settled  # now: while a callback runs, the executor may close, and the lane is detached
        sidecar = self._observe()
        assert sidecar is not None  # it is not final
        self._lane.count_failed(sidecar)
        self._finish(None, error)
        tell(self)

    def _fail_popped(self, error: BaseException) -> None:
        """The caller has popped it, as a worker would, but only to end it with `error`.

        Every step may be repeated: if an error is thrown into this, or into the start of the task, it is called again.
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

    def _settle(self, verdict: Any) -> bool:
        """End the task with `verdict` unless it has started; tell whether it did. It stays in its lane as a tombstone."""
        sidecar = self._observe()
        if sidecar is None:
            return False
        mine = False
        try:
            with sidecar:
                if sidecar.verdict is not None or sidecar.started or sidecar.published:
                    return False
                sidecar.verdict = verdict
                sidecar.concluding = mine = True  # callbacks run on this thread: a worker that meets the task passes by
                self._sidecar = sidecar  # once more: see "Who goes first"
                if self._status is not PENDING:
                    sidecar.verdict = None
                    return False
            self._conclude(mine=True)
        finally:
            if mine:
                sidecar.concluding = False  # if we were interrupted, the next thread goes on from here
        return True

    def _fail_after_fork(self, error: BaseException) -> None:
        """In the child of a fork: nobody else is there any more, and its lock may be held by one who was."""
        sidecar, self._sidecar = self._sidecar, None
        self._finish(None, error)
        if sidecar is not None:  # this very thread may be waiting for it, if it was a signal handler that forked
            sidecar.published = True
            if sidecar.handoff is not None:
                sidecar.handoff.give()
            for permit in sidecar.permits or ():
                _admit(permit)

    def _finish(self, result: T | None, error: BaseException | None) -> None:
        """Make it final. The worker's loop does the same in line."""
        self._result = result
        self._exception = error
        self._context = None
        self._status = FINISHED
        self._conclude()

    def _conclude(self, *, mine: bool = False) -> None:
        """It is final: tell everybody, call the callbacks; and tell the lane of a task that was settled.

        Goes on where a thread was interrupted. `mine`: this thread has settled the task.
        """
        sidecar = self._sidecar
        if sidecar is not None:
            tell = self._lane.on_settled  # before the task is counted: then the executor may close, and the lane is detached
            callbacks = self._publish()
            if callbacks and aside.post is not None:  # this thread keeps time, and runs no code of the user's
                aside.post(partial(self._call_each, callbacks))
                callbacks = sidecar.callbacks = None
            if callbacks:
                self._call_back(callbacks, tell, mine=mine)
            elif sidecar.verdict is None or sidecar.concluded or not sidecar.published:
                pass
            elif mine or not sidecar.concluding:
                if not sidecar.reported:
                    tell(self)  # after an interruption, another thread may do so, too
                    sidecar.reported = True
                sidecar.concluded = True

    def _call_back(
        self,
        callbacks: list[Callable[[Future[Any]], object]] | None,
        tell: Callable[[TaskFuture[Any]], object] | None = None,
        *,
        mine: bool = False,
    ) -> None:
        """Call the callbacks that `_publish` has left, and `tell` of a task that was settled. Nothing is held meanwhile.

        Of a task that ran, only the thread that ended it comes here. Of one that was settled, any thread may; so if another
        is at it, all is left to that one.
        """
        sidecar = self._sidecar
        assert sidecar is not None
        if sidecar.verdict is None:
            if callbacks:
                self._call_each(callbacks)
            return
        try:
            with sidecar:
                if sidecar.concluding and not mine:
                    return
                sidecar.concluding = mine = True
            try:
                if callbacks:
                    self._call_each(callbacks)
            finally:
                if not sidecar.reported:
                    (tell or self._lane.on_settled)(self)
                    sidecar.reported = True
                sidecar.concluded = not sidecar.callbacks
        finally:
            if mine:
                sidecar.concluding = False

    def _publish(self) -> list[Callable[[Future[Any]], object]] | None:
        """It is final: tell everybody, once. Returns the callbacks that are left to be called.

        Runs no code of the user's. Every step may be repeated: a thread that was interrupted leaves the rest to the next one.
        """
        sidecar: Any = self._sidecar  # there is one
        dropped: Any = None  # what the task held, until the lock is free: it may run destructors
        with sidecar:
            if not sidecar.published:
                if (verdict := sidecar.verdict) is not None:
                    dropped = self._result, self._exception, self._context
                    self._lane.count_tombstone(sidecar, cancelled=verdict is CANCELLED, withdrawn=verdict is WITHDRAWN)
                    self._exception = None if verdict is CANCELLED or verdict is WITHDRAWN else verdict
                    self._result = self._context = None
                elif self._status is not FINISHED:  # a canceller came too late, and has taken its verdict back
                    return None
                if sidecar.error is not None:
                    dropped, sidecar.error = (dropped, sidecar.error), None
                if sidecar.waiters:
                    sidecar.telling = iter(tuple(sidecar.waiters))  # not the list itself: waiters take themselves off that
                    sidecar.published = True
                    self._tell_waiters(sidecar)
                else:
                    sidecar.published = True
            elif sidecar.told:
                return sidecar.callbacks or None
            elif sidecar.telling is not None:  # by a thread that was interrupted
                self._tell_waiters(sidecar)
        if sidecar.permits is not None:
            for permit in sidecar.permits:
                _admit(permit)
        handoff = sidecar.handoff
        if handoff is not None:
            try:
                handoff.give()
            except HandoffLost:
                self._note_lost(handoff)  # the thread that waits finds out by itself
        sidecar.told = True
        return sidecar.callbacks or None

    def _tell_waiters(self, sidecar: Sidecar) -> None:
        """Tell one waiter after the other. Errors are thrown in after a call, and not before one: so each is told once."""
        waiters: Any = sidecar.telling
        if self._not_run(sidecar):
            for waiter in waiters:
                waiter.add_cancelled(self)
        elif self._exception is not None:
            for waiter in waiters:
                waiter.add_exception(self)
        else:
            for waiter in waiters:
                waiter.add_result(self)
        sidecar.telling = None

    def _note_lost(self, handoff: Handoff) -> None:
        """The program has closed the handoff's file descriptor, which is not its own."""
        if discard(handoff):
            name = self._lane.owner.name
            logger.warning("executor %r: the program has closed a file descriptor of ours", name, executor=name)

    def _call_each(self, callbacks: list[Callable[[Future[Any]], object]]) -> None:
        """Call them. No lock is held: `Core.join` knows this function, and the next, by their names."""
        # Takes one off the list and stores it in one step of the interpreter, and then calls it, before any signal handler or
        # other error can come: none is lost, and none called twice.
        firsts = map(callbacks.pop, _ZEROS)
        callback: Any = None
        escaped = None
        while callbacks:
            try:
                for callback in firsts:  # noqa: B007  # see above
                    break
            except IndexError:  # another thread was quicker
                break
            try:
                callback(self)
            except BaseException as error:  # SystemExit: no reason to forget the other callbacks, or to end a worker
                if must_escape(error):
                    escaped = error
                else:
                    futures_logger.exception("exception calling callback for %r", self)
        if escaped is not None:
            try:
                raise escaped
            finally:
                del escaped

    def _call(self, callback: Callable[[Future[T]], object]) -> None:
        try:
            callback(self)
        except Exception:
            futures_logger.exception("exception calling callback for %r", self)

    def _arm(self, name: str, function: str, error: BaseException) -> None:
        """The task raised: if nobody ever asks for that, log it when the future is collected."""
        self._unretrieved = Unretrieved(name, function, error)

    def _note_retrieved(self) -> None:
        if self._unretrieved is not None:
            self._unretrieved.error = None

    # -- observing

    def _observe(self, handoff: Handoff | None = None) -> Sidecar | None:
        """Return the sidecar, made if need be, with that handoff; None if the task is final and nobody ever observed it."""
        sidecar = self._sidecar
        if sidecar is None:
            if self._status is FINISHED:
                return None
            made = Sidecar()
            made.published = False  # brings its __dict__ into being, while nobody else has it: see `_first`
            if handoff is not None:
                made.handoff = handoff
            try:  # `_adopt`, in line
                first = _first.setdefault(self, made)
                sidecar = self._sidecar
                if sidecar is None:
                    sidecar = self._sidecar = first
            finally:
                if self._sidecar is None and (left := _first.get(self)) is not None:
                    self._sidecar = left
                _first.pop(self, None)
        if (self._status is FINISHED or sidecar.verdict is not None) and not sidecar.told:
            self._publish()  # the worker may have finished without seeing it; or the thread that is to tell was interrupted
        return None if sidecar is FINAL else sidecar

    def _adopt(self, made: Sidecar) -> Sidecar:
        """Take `made` for the sidecar, unless another thread was first; return the one that it is from now on."""
        try:
            first = _first.setdefault(self, made)  # atomic: one sidecar, however many come at once
            sidecar: Sidecar | None = self._sidecar
            if sidecar is None:
                sidecar = self._sidecar = first
        finally:
            missed: Sidecar | None = self._sidecar
            if missed is None and (left := _first.get(self)) is not None:  # interrupted before the store
                self._sidecar = left
            _first.pop(self, None)  # a thread that comes from now on finds the slot filled
        return sidecar

    def _seal(self) -> Sidecar:
        """It is final, and `_observe` found no sidecar: it gets FINAL, unless another thread is just giving it one."""
        sidecar = self._adopt(FINAL)
        if not sidecar.told:
            self._publish()
        return sidecar

    def _join(self, timeout: float | None) -> None:
        """Block until it is final. Raises TimeoutError, or CancelledError if it was cancelled.

        If hardly anything waits in its lane, its worker will have little else to do, and can hand the interpreter to the one
        who waits.
        """
        owner = current.owner
        inside = owner is not None and owner is self._lane.owner and (timeout is None or timeout > 0)
        loan: list[Handoff] = []
        try:
            if len(self._lane) < 2 and not inside:
                borrow(loan)
            sidecar = self._observe(loan[0] if loan else None)
            if sidecar is None:
                return
            if sidecar.verdict is not None and not sidecar.concluded:
                self._conclude()
            if loan and (sidecar.handoff is loan[0] or sidecar.takes(loan[0])):
                try:
                    sidecar.await_handoff(loan[0], timeout)
                except HandoffLost:
                    lost = loan.pop()
                    sidecar.handoff = None
                    self._note_lost(lost)
                    self._await_permit(sidecar, timeout, inside)
            else:
                self._await_permit(sidecar, timeout, inside)
            if sidecar.verdict is not None and self._not_run(sidecar):
                raise CancelledError
        finally:
            sidecar = self._sidecar
            if loan and sidecar is not None and sidecar.handoff is loan[0]:
                sidecar.handoff = None
            give_back(loan)  # not a function in Python: nothing can be thrown before it has done its work

    def _await_permit(self, sidecar: Sidecar, timeout: float | None, inside: bool) -> None:
        permit = allocate_lock()
        permit.acquire()
        try:
            with sidecar:
                if sidecar.published:
                    return
                if sidecar.permits is None:
                    sidecar.permits = [permit]
                else:
                    sidecar.permits.append(permit)
            if inside:
                come = self._lane.owner.wait_inside(self, permit, timeout)
            else:
                come = permit.acquire(True, lock_timeout(timeout))
            if not come and not sidecar.published:
                raise FutureTimeoutError
        finally:
            with sidecar:
                if not sidecar.published and sidecar.permits and permit in sidecar.permits:
                    sidecar.permits.remove(permit)

    # -- what concurrent.futures.wait, as_completed and foreign executors use

    @property
    def _state(self) -> str:  # type: ignore[override]  # a property, since the truth is spread over the slots
        sidecar = self._sidecar
        if sidecar is None:
            return self._status
        if not sidecar.published:  # final perhaps, but waiters are yet to be told; they count on being told after this
            return PENDING if self._status is PENDING else RUNNING
        return CANCELLED_AND_NOTIFIED if self._not_run(sidecar) else FINISHED

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """Return whether it is done, whether it was cancelled, the result and the exception.

        From Python 3.15 on asyncio asks for this instead of `exception` and `result`; so what it returns is retrieved.
        """
        if not self.done():
            return False, False, None, None
        if self.cancelled():
            return True, True, None, None
        if self._exception is not None:
            self._note_retrieved()
        return True, False, self._result, self._exception

    @property
    def _condition(self) -> Any:  # type: ignore[override]  # a property, since there is none before it is needed
        return self._observe() or self._seal()

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # a property, since there are none before they are needed
        # The caller holds the sidecar, and has looked at the state. So not `_observe`, if it can be helped: that might publish
        # an end which the caller has not seen, and the waiter that it is about to add would not be told.
        sidecar = self._sidecar or self._observe() or self._seal()
        if sidecar is FINAL:
            return _NOBODY
        if sidecar.waiters is None:
            sidecar.waiters = []
        return sidecar.waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Future[T]], object]]:
        sidecar = self._observe()
        return _NOBODY if sidecar is None else sidecar.callbacks or []

    def set_running_or_notify_cancel(self) -> bool:
        if self.cancelled():
            return False
        if self._status is not PENDING:
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._status = RUNNING
        return self._sidecar is None or self._may_start()

    def set_result(self, result: T) -> None:
        if self.done():
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._finish(result, None)

    def set_exception(self, exception: BaseException | None) -> None:
        if self.done():
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._finish(None, exception)
