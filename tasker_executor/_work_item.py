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
  ``_status``. Whoever sees the other publishes; `_publish` does its work once.

That holds without the GIL, too: in free-threaded builds a store into a slot locks the object, so of two stores into *one*
object the later thread has seen what the earlier stored. Hence slots and not attributes of the sidecar, and hence the canceller
stores ``_sidecar`` again even if it is there already.
"""

from __future__ import annotations

import threading
from _thread import LockType, allocate_lock
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ._current import current
from ._handoff import Handoff, borrow, give_back
from ._report import Logger, aside
from ._types import clock, lock_timeout, must_escape
from .exceptions import TaskExpired

if TYPE_CHECKING:
    from ._lanes import Lane

    class ReentrantLock:
        """`threading.RLock`, which type checkers may not subclass."""

        def __enter__(self) -> bool: ...
        def __exit__(self, *exc_info: object) -> None: ...
else:
    ReentrantLock = type(threading.RLock())

__all__ = ["CANCELLED", "FINISHED", "PENDING", "RUNNING", "WITHDRAWN", "Sidecar", "TaskFuture"]

T = TypeVar("T")

logger = Logger(__name__)
futures_logger = Logger("concurrent.futures")

#: Verdicts on a task that never starts, besides an exception for it. A withdrawn task was never handed out to anybody.
CANCELLED: Any = CancelledError("cancelled")
WITHDRAWN: Any = CancelledError("withdrawn")

_NOT_RUN = (CANCELLED, WITHDRAWN)

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
    published = False  # final, and everybody told
    waiters: list[Any] | None = None  # of concurrent.futures.wait and as_completed
    turnstile: LockType | None = None  # those who block in result() go through it one by one, once it is unlocked
    handoff: Handoff | None = None  # of the one who waits in another way: see `_join`
    callbacks: list[Callable[[Future[Any]], object]] | None = None  # done-callbacks, until they are called
    deadline: float | None = None  # a task that has not started by then never does
    max_retries: int | None = None  # for this task; None: the executor's
    retries = 0  # so far
    error: BaseException | None = None  # of the last attempt, while the task waits for its retry

    def takes(self, handoff: Handoff) -> bool:
        """Will whoever publishes it give that handoff? Not if it has another waiter's."""
        if self.handoff is not handoff:
            with self:
                if self.handoff is None:
                    self.handoff = handoff
        return self.handoff is handoff

    def await_handoff(self, handoff: Handoff, timeout: float | None) -> None:
        """Block until it is published. Raises TimeoutError."""
        until = None if timeout is None else clock() + lock_timeout(timeout)
        left = None
        while not self.published:
            if until is not None and (left := until - clock()) <= 0:
                raise FutureTimeoutError
            handoff.wait(left)

    def notify_all(self) -> None:
        """For foreign code that takes us for a Condition. Nobody waits on it in that way."""


class _Nobody(list[Any]):
    """The ``_condition`` and ``_waiters`` of a future that is final: nothing is locked, nobody registered."""

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *args: object) -> None:
        pass

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None:
        pass

    def notify_all(self) -> None:
        pass

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

    def __del__(self) -> None:
        if self.error is not None:
            logger.error(
                "executor %r: task %s raised, and its exception was never retrieved",
                self.name,
                self.function,
                exc_info=self.error,
                executor=self.name,
                function=self.function,
            )


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
        return sidecar is not None and sidecar.published

    def running(self) -> bool:
        """Is it being run, or waiting for a retry?"""
        return self._status is RUNNING and not self.done()

    def cancelled(self) -> bool:
        """Was it cancelled before it started?"""
        sidecar = self._sidecar
        return sidecar is not None and sidecar.published and sidecar.verdict in _NOT_RUN

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
            cancelled = sidecar.verdict in _NOT_RUN
        if cancelled and not sidecar.published:
            self._conclude()  # another thread has just cancelled it, and has yet to tell: after us, `cancelled` says so
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
        with sidecar:
            if sidecar.verdict is not None:
                self._lane.drop_tombstone()
                return False
            late = sidecar.deadline is not None and not sidecar.started and clock() > sidecar.deadline
            if not late:
                sidecar.started = True
                return True
            sidecar.started = True
        waited = clock() - self._submitted
        self._fail_unrun(TaskExpired(f"the task had not started {waited:.3g} s after it was submitted, and was not run"))
        return False

    def _fail_unrun(self, error: BaseException) -> None:
        """End it with `error` instead of running it (again). The caller has popped it, and nobody can settle it any more."""
        self._lane.count_failed()
        self._finish(None, error)
        self._lane.on_settled(self)

    def _fail_popped(self, error: BaseException) -> None:
        """The caller has popped it, as a worker would, but only to end it with `error`."""
        self._status = RUNNING
        if self._sidecar is None or self._may_start():
            self._fail_unrun(error)

    def _settle(self, verdict: Any) -> bool:
        """End the task with `verdict` unless it has started; tell whether it did. It stays in its lane as a tombstone."""
        sidecar = self._observe()
        if sidecar is None:
            return False
        with sidecar:
            if sidecar.verdict is not None or sidecar.started or sidecar.published:
                return False
            sidecar.verdict = verdict
            self._sidecar = sidecar  # once more: see "Who goes first"
            if self._status is not PENDING:
                sidecar.verdict = None
                return False
            cancelled = verdict is CANCELLED
            self._lane.count_tombstone(cancelled=cancelled, withdrawn=verdict is WITHDRAWN)
            self._result = self._context = None
            self._exception = None if cancelled or verdict is WITHDRAWN else verdict
        self._conclude()
        self._lane.on_settled(self)
        return True

    def _fail_after_fork(self, error: BaseException) -> None:
        """In the child of a fork: nobody else is there any more, and its lock may be held by one who was."""
        sidecar, self._sidecar = self._sidecar, None
        self._finish(None, error)
        if sidecar is not None:  # this very thread may be waiting for it, if it was a signal handler that forked
            sidecar.published = True
            if sidecar.handoff is not None:
                sidecar.handoff.give()
            if sidecar.turnstile is not None and sidecar.turnstile.locked():
                sidecar.turnstile.release()

    def _finish(self, result: T | None, error: BaseException | None) -> None:
        """Make it final. The worker's loop does the same in line."""
        self._result = result
        self._exception = error
        self._context = None
        self._status = FINISHED
        self._conclude()

    def _conclude(self) -> None:
        """It is final: tell everybody, and call the callbacks."""
        if self._sidecar is not None and (callbacks := self._publish()):
            if aside.post is None:
                self._call_back(callbacks)
            else:
                aside.post(partial(self._call_back, callbacks))

    def _publish(self) -> list[Callable[[Future[Any]], object]] | None:
        """It is final: tell everybody, once. Returns the callbacks that are left to be called."""
        sidecar = self._sidecar
        assert sidecar is not None
        with sidecar:
            if sidecar.published:
                return None
            sidecar.published = True
            if sidecar.error is not None:
                sidecar.error = None
            if sidecar.waiters:
                self._tell_waiters(sidecar)
            callbacks = sidecar.callbacks  # from here on nobody adds to them
        if sidecar.turnstile is not None:
            sidecar.turnstile.release()
        handoff = sidecar.handoff
        if handoff is not None:
            try:
                handoff.give()
            except OSError:  # the program closes file descriptors that are not its own
                name = self._lane.owner.name
                logger.exception("executor %r: cannot wake a thread that waits for a task", name, executor=name)
        if callbacks is not None:
            sidecar.callbacks = None
        return callbacks

    def _tell_waiters(self, sidecar: Sidecar) -> None:
        assert sidecar.waiters is not None
        for waiter in sidecar.waiters:
            if sidecar.verdict is CANCELLED or sidecar.verdict is WITHDRAWN:
                waiter.add_cancelled(self)
            elif self._exception is not None:
                waiter.add_exception(self)
            else:
                waiter.add_result(self)

    def _call_back(self, callbacks: list[Callable[[Future[Any]], object]]) -> None:
        escaped = None
        for callback in callbacks:
            try:
                self._call(callback)
            except BaseException as error:  # SystemExit: no reason to forget the other callbacks, or to end a worker
                if must_escape(error):
                    escaped = error
                else:
                    futures_logger.exception("exception calling callback for %r", self)
        if escaped is not None:
            raise escaped

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
            try:
                first = _first.setdefault(self, made)  # atomic: one sidecar, however many come at once
                sidecar = self._sidecar
                if sidecar is None:
                    sidecar = self._sidecar = first
            finally:
                if self._sidecar is not None:  # not Ctrl-C in between, which leaves it to the next observer
                    _first.pop(self, None)  # who comes from now on finds the slot filled
            if self._status is FINISHED:  # the worker may have finished without seeing it
                self._conclude()
        return sidecar

    def _join(self, timeout: float | None) -> None:
        """Block until it is final. Raises TimeoutError, or CancelledError if it was cancelled.

        If hardly anything waits in its lane, its worker will have little else to do, and can hand the interpreter to the one
        who waits.
        """
        owner = current.owner
        inside = owner is not None and timeout is None and owner is self._lane.owner
        handoff = borrow() if len(self._lane) < 2 and not inside else None
        try:
            sidecar = self._observe(handoff)
            if sidecar is None:
                return
            if handoff is not None and sidecar.takes(handoff):
                sidecar.await_handoff(handoff, timeout)
            else:
                self._pass_turnstile(sidecar, timeout, inside)
            if sidecar.verdict is not None and sidecar.verdict in _NOT_RUN:
                raise CancelledError
        finally:
            if handoff is not None:
                sidecar = self._sidecar
                if sidecar is not None and sidecar.handoff is handoff:
                    sidecar.handoff = None
                give_back(handoff)

    def _pass_turnstile(self, sidecar: Sidecar, timeout: float | None, inside: bool) -> None:
        with sidecar:
            turnstile = sidecar.turnstile
            if turnstile is None:
                turnstile = allocate_lock()
                turnstile.acquire()
                sidecar.turnstile = turnstile
        if not sidecar.published:  # stored, then loaded; who publishes does it the other way round
            if inside:
                self._lane.owner.wait_inside(self, turnstile)
            elif not turnstile.acquire(True, lock_timeout(timeout)):
                if not sidecar.published:
                    raise FutureTimeoutError
                turnstile.acquire()
            turnstile.release()  # for the next

    # -- what concurrent.futures.wait, as_completed and foreign executors use

    @property
    def _state(self) -> str:  # type: ignore[override]  # a property, since the truth is spread over the slots
        sidecar = self._sidecar
        if sidecar is None:
            return self._status
        if not sidecar.published:  # final perhaps, but waiters are yet to be told; they count on being told after this
            return PENDING if self._status is PENDING else RUNNING
        return CANCELLED_AND_NOTIFIED if sidecar.verdict in _NOT_RUN else FINISHED

    @property
    def _condition(self) -> Any:  # type: ignore[override]  # a property, since there is none before it is needed
        return self._observe() or _NOBODY

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # a property, since there are none before they are needed
        sidecar = self._observe()
        if sidecar is None:
            return _NOBODY
        if sidecar.waiters is None:  # the caller holds the sidecar
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
