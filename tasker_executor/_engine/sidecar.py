"""`Sidecar`: what a task needs only while a thread observes it, and the lock that guards it.

A task that no thread observes has none: see `task`. What most tasks never need is in here: a verdict,
waiters, callbacks, a deadline, a retry.

**One sidecar for life.** The slot `_sidecar` of a task is filled once. The first thread that enters its
sidecar into `firsts` gives the task that one, and all other threads take it. `concurrent.futures.wait`
acquires the ``_condition`` of a future and releases it later. So a future that was final when its condition
was first asked for keeps `FINAL` as its sidecar from then on.

**A signal handler runs in the middle.** It may submit to a full queue, or shut down and wait for the end. It
must not block where its own thread must go on first. So functions carry one of two marks, which cost nothing
at run time:

- `locks_task`: this function takes the lock of a task, or is about to publish a task. Workers may need
  that lock. Threads that wait for the task may need the function to return.
- `calls_back`: this function calls done-callbacks. The thread holds no lock by then, and has told all threads
  that wait.

`holds_task_lock` and `must_go_on` walk the frames of a thread, and read the marks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .._options import UNSET, Unset
from .._sync import Permit
from ..exceptions import TaskExpired
from .handoff import Handoff
from .stopping import Reason, Stop, Token

if TYPE_CHECKING:

    class ReentrantLock:
        """`threading.RLock`, which type checkers may not subclass."""

        def __enter__(self) -> bool: ...
        def __exit__(self, *exc_info: object) -> None: ...
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
        def release(self) -> None: ...
        def _is_owned(self) -> bool: ...
else:
    ReentrantLock = type(threading.RLock())

__all__ = [
    "CALLED_OFF",
    "CANCELLED",
    "FINAL",
    "NO_WAITERS",
    "WITHDRAWN",
    "Callbacks",
    "ObservedSidecar",
    "OptionsSidecar",
    "Sidecar",
    "admit",
    "adopt",
    "calls_back",
    "expired",
    "firsts",
    "holds_task_lock",
    "locks_task",
    "must_go_on",
]

F = TypeVar("F", bound=Callable[..., Any])

#: Done-callbacks.
Callbacks = list[Callable[[Future[Any]], object]]


# -- the marks: see the module's docstring

# Filled by the import, and only read afterwards. The frames that are walked are those of the calling thread:
# no other thread pops them.
_locking: set[CodeType] = set()
_calling: set[CodeType] = set()


def locks_task(function: F) -> F:
    """Mark `function`: it takes the lock of a task, or is about to publish a task."""
    _locking.add(function.__code__)
    return function


def calls_back(function: F) -> F:
    """Mark `function`: it calls done-callbacks, with no lock of a task held."""
    _calling.add(function.__code__)
    return function


def holds_task_lock(frame: FrameType | None) -> bool:
    """Return whether the thread of `frame` has taken the lock of a task, in a function marked `locks_task`.

    `_is_owned` is private, but `threading.Condition` relies on it.
    """
    while frame is not None:
        if frame.f_code in _locking:
            for value in frame.f_locals.values():
                if isinstance(value, Sidecar) and value._is_owned():
                    return True
        frame = frame.f_back
    return False


def must_go_on(frame: FrameType | None) -> bool:
    """Return whether the innermost marked function that the thread of `frame` is in is a `locks_task`.

    The thread may hold no lock at that point. But it may have settled a task, or ended one, and have yet to
    tell the threads that wait for that.
    """
    while frame is not None:
        if frame.f_code in _calling:
            return False
        if frame.f_code in _locking:
            return True
        frame = frame.f_back
    return False


# -- verdicts on a task that never starts. Another verdict is an exception, which the task gets.

#: A caller has cancelled the task.
CANCELLED: Any = CancelledError("cancelled")
#: The submission has failed: no caller ever got the future.
WITHDRAWN: Any = CancelledError("withdrawn")


def expired(waited: float) -> TaskExpired:
    """Return the verdict on a task that has not started in time, after that many seconds."""
    return TaskExpired(f"the task had not started {waited:.3g} s after it was submitted, and was not run")


class Sidecar(ReentrantLock):
    """What most tasks never need. It *is* the lock that guards its fields, and the future's ``_condition``.

    Reentrant: a signal handler may look at the future that its thread is just looking at.
    """

    # Defaults in the class and no __init__: a sidecar that is waited on for a moment costs little more than
    # its lock.
    #
    # Stored under the lock, but for these: `told`, `concluding` (its end), `reported` and `concluded` only
    # tell the next thread that it need not do a step once more; `started` by a worker that has stored RUNNING
    # and so meets no new verdict; `handoff` goes back to None by the thread that waits; `breaks` is also stored
    # by the worker between two attempts. The lane's lock guards `counted` and `dropped`. The lists do not change
    # once `published` is set, but callbacks are popped, each in one step. Without the lock a look may be too
    # early: it is followed by one under the lock, or by a wait for `published`.
    verdict: Any = None  # CANCELLED, WITHDRAWN or an exception: the task shall not start
    started = False  # a worker has run it, or is about to: too late for a verdict
    counted = False  # the lane counts the tombstone, or that the task failed without being run (again)
    dropped = False  # the lane counts the tombstone no more
    published = False  # final; from here on no thread adds to the lists below
    telling: Iterator[Any] | None = None  # the waiters that are yet to be told
    told = False  # final, and all are told but the callbacks
    concluding = False  # a thread is calling the callbacks, or telling the lane
    heard = False  # settled, and observers were told
    reported = False  # settled, and the lane was told
    concluded = False  # settled, and nothing is left to be done
    waiters: list[Any] | None = None  # of concurrent.futures.wait and as_completed
    permits: list[Permit] | None = None  # one for each thread that blocks; released when final
    handoff: Handoff | None = None  # of the one thread that waits by a handoff: see `waiting`
    callbacks: Callbacks | None = None  # done-callbacks that are left to be called
    deadline: float | None = None  # a task that has not started by then never does
    max_retries: int | None = None  # the limit for this task; None: the executor's limit
    retries = 0  # the number of retries so far
    breaks = 0  # a resource that is not known to be good since this number of breaks may not run the retry
    stop: Stop | None = None  # the task was asked to stop
    token: Token | None = None  # its cancel token, once it, or a stop, has asked for that
    run_within: float | Unset | None = UNSET  # seconds that it may run; UNSET: the executor's limit
    ran = 0.0  # seconds that its attempts have run so far, without that in hand
    error: BaseException | None = None  # of the last attempt, while the task waits for its retry

    @locks_task
    def token_of(self, killed: Token) -> Token:
        """Return the cancel token of the task. `killed` is that of the executor."""
        with self:
            if self.token is None:
                self.token = Token()
                if self.stop is not None:
                    self.token.cancel(self.stop.why())
                elif killed.is_open:
                    self.token.cancel(killed.why)
        return self.token

    def called_off(self) -> bool:
        """Return whether the task was cancelled or withdrawn.

        The answer may change, unless the caller holds the sidecar, or the task is published.
        """
        return self.verdict is CANCELLED or self.verdict is WITHDRAWN

    def may_expire(self) -> bool:
        """Return whether the task fails by itself: it has not started, and has a time by which it must."""
        return self.deadline is not None and not self.started

    def stop_without_time(self) -> Stop | None:
        """Stop the task if no time is left to run it; return its stop, if it has one. The sidecar is held."""
        limit = self.run_within
        if isinstance(limit, float) and self.ran >= limit:
            self.stop = Stop(Reason.TIMED_OUT, limit)
            self.stop.unasked = True
        return self.stop

    def is_counted(self) -> bool:
        """Return whether the task is counted as final, or is about to be, though a worker may have it in hand."""
        return self.counted or self.verdict is not None

    @locks_task
    def is_news(self) -> bool:
        """Return whether observers are yet to be told that the task was settled. True only once."""
        with self:
            news, self.heard = not self.heard, True
        return news

    @locks_task
    def takes(self, handoff: Handoff) -> bool:
        """Return whether the publisher will give `handoff`. It gives that of one waiter only."""
        with self:
            if self.handoff is None:
                self.handoff = handoff
        return self.handoff is handoff

    @locks_task
    def add_permit(self, permit: Permit) -> bool:
        """Register `permit`, to be released when the task is final. Return False if it is final already."""
        with self:
            if self.published:
                return False
            if self.permits is None:
                self.permits = [permit]
            else:
                self.permits.append(permit)
        return True

    @locks_task
    def drop_permit(self, permit: Permit) -> None:
        """Forget `permit`, whose thread waits no more, unless the task is final."""
        with self:
            if not self.published and self.permits and permit in self.permits:
                self.permits.remove(permit)

    @locks_task
    def add_callback(self, callback: Callable[[Future[Any]], object]) -> bool:
        """Register `callback`, to be called when the task is final. Return False if it is final already."""
        with self:
            if self.published:
                return False
            if self.callbacks is None:
                self.callbacks = [callback]
            else:
                self.callbacks.append(callback)
        return True

    @locks_task
    def begin_retry(self, error: BaseException, breaks: int, ran: float) -> bool:
        """Note that the task is run again after `error`, on a resource that is good since that many breaks.

        `ran`: seconds that the attempt has run. Return False if the task was stopped, and must not be run again.
        """
        before = self.error  # until the lock is free: to drop an error may run destructors
        with self:
            if self.stop is not None:
                return False
            self.started = True  # the sidecar may have been made while the task ran
            self.retries += 1
            self.breaks = breaks
            self.ran += ran
            self.error = error
        del before
        return True

    @locks_task
    def tell_waiters(self, task: Future[Any], error: BaseException | None) -> None:
        """Tell each waiter that `task`, which has come to `error` or none, is final. The sidecar is held.

        An error is thrown in after a call, and not before one. So each waiter is told once.
        """
        waiters: Any = self.telling
        if self.verdict is not None and self.called_off():
            for waiter in waiters:
                waiter.add_cancelled(task)
        elif error is not None:
            for waiter in waiters:
                waiter.add_exception(task)
        else:
            for waiter in waiters:
                waiter.add_result(task)
        self.telling = None

    def notify_all(self) -> None:
        """Do nothing. Foreign code may take the sidecar for a Condition, but no thread waits on it so."""


class OptionsSidecar(Sidecar):
    """The sidecar that a task with options is submitted with: it has these options from the beginning.

    They are in slots. Otherwise the first one would make a dict with room for all the fields: 340 bytes, and up to
    200 ns more for each submission.
    """

    __slots__ = ("deadline", "max_retries", "run_within")


class ObservedSidecar(Sidecar):
    """The sidecar that is made when a thread first observes a task. What serves threads that wait is in slots.

    `wait` makes one for each task that is pending, and so does `as_completed`. A dict would be three quarters of its
    memory. `Settling._observe` fills all slots before another thread has the sidecar. A rare field makes the dict,
    and its first store is under the lock: see `firsts`.
    """

    # fmt: off
    __slots__ = (
        "callbacks", "counted", "handoff", "permits", "published", "started", "telling", "told", "waiters",
    )
    # fmt: on


class _NoWaiters(list[Any]):
    """The ``_waiters`` of a future that was final before a thread observed it: it stays empty."""

    def append(self, item: Any) -> None:
        pass

    def remove(self, item: Any) -> None:
        pass


NO_WAITERS = _NoWaiters()


class _Final(Sidecar):
    """The one sidecar of all futures that were final before a thread observed them. It keeps nothing."""

    started = published = told = concluded = True
    waiters = NO_WAITERS

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *exc_info: object) -> None:
        pass

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        return True

    def release(self) -> None:
        pass

    def takes(self, handoff: Handoff) -> bool:
        return False


class _CalledOff(_Final):
    """The one sidecar of all tasks that were cancelled before a thread observed them: see `Settling._cancel_popped`."""

    verdict = CANCELLED
    counted = dropped = heard = reported = True


FINAL = _Final()
CALLED_OFF = _CalledOff()


def admit(permit: Permit) -> None:
    """Let the thread go on that waits for `permit`. Only this releases permits, so it may be called twice."""
    try:
        permit.release()
    except RuntimeError:  # released by a thread that was interrupted
        pass


# -- one sidecar for life


class _Task(Protocol):
    """A task, as far as this file knows one."""

    _sidecar: Sidecar | None


#: The sidecar of each task that is being given one. Not in the task's own `__dict__`: before Python 3.12 a
#: garbage collection can come while that dict is made, and with it another thread, which makes a second dict.
#: Each access is one step.
firsts: dict[Any, Sidecar] = {}


def adopt(task: _Task, made: Sidecar) -> Sidecar:
    """Make `made` the sidecar of `task`, unless another thread was first. Return the one that it has now."""
    try:
        winner = firsts.setdefault(task, made)  # atomic: one sidecar, however many threads come at once
        sidecar: Sidecar | None = task._sidecar
        if sidecar is None:
            sidecar = task._sidecar = winner
    finally:
        missed: Sidecar | None = task._sidecar
        if missed is None and (left := firsts.get(task)) is not None:  # interrupted before the store
            missed = task._sidecar  # again: `left` may be that of a thread that came after another one's store
            if missed is None:
                task._sidecar = left
        firsts.pop(task, None)  # a thread that comes from now on finds the slot filled
    return sidecar
