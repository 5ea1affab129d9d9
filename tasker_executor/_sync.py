"""The clock, the latch and the bell; and the steps that Ctrl-C must not split.

**Where an error comes in.** A signal handler may raise: KeyboardInterrupt, a time limit. Another thread may
throw an error into this one (`PyThreadState_SetAsyncExc`). CPython looks for both at three places only: where
a function in Python begins, after a call has returned, and on a jump backwards. So an error can come between
any two calls, but never into the middle of one call into C. This library stores facts in such an order that
an error between two calls does no harm. Where no order will do, the calls are made *in one step*: one call
into C that makes them all.

1. A submitter pops a worker from the idle stack. 2. Ctrl-C comes. 3. The submitter never releases the
worker's lock: the worker sleeps for ever. With `releases`, the pop and the release are one step.

The names below are all such steps that this library uses. They come in two kinds:

- Iterators that are made once: `takes`, `releases`, `rehearsals`. One step of the iterator, by ``next`` or at
  the head of a ``for`` loop, is one step of the interpreter, and costs no frame. ``for task in take: break``
  also stores what it has taken: the interpreter does not look for signals between the head of the loop and
  the ``break``.
- Functions: `pop_into`, `call_into`, `pop_call_into`, `in_one_step`. Each adds one frame in Python around its
  call into C. So an error may come before the step, or after it, but never inside. Where an error *before*
  the step would do harm, because a store in the line above belongs to the step, use an iterator and
  `exhaust`.

**What ends a step in the middle all the same.** The calls must be calls into C. A call that runs Python code
(a hook, a destructor, an ``__eq__``) looks for signals itself: a hook's error is the hook's, and an error in
a destructor is lost.

**The end of the stack.** RecursionError is an error like the others, and it comes wherever a call is one too
deep. Python 3.11 counts calls into C, too. If the second call of a step lies deeper than the first, the stack
may end between the two. So the step is rehearsed: the same calls, at the same depth and without any effect,
are made before (`rehearsals`), or some frames are spent for nothing (`spend_stack`). If the stack ends, it
ends there.

**Without the GIL.** That no error comes in between holds in every build: it depends on where this thread
looks, not on other threads. With the GIL, no other thread runs inside a step, either. Without it, each single
call (a ``pop``, an ``append``, a ``release``) is atomic, but another thread may run between two of them. So
no code relies on that. `takes`, `releases` and `rehearsals` may be shared by threads in every build: a step
changes nothing in the iterator, and an IndexError does not end it. (`takes` with a number of `times` counts,
and belongs to one thread.)
"""

from __future__ import annotations

import _thread
import sys
import time
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import module_from_spec
from itertools import islice, repeat, starmap
from operator import attrgetter, call
from queue import Empty, SimpleQueue
from threading import TIMEOUT_MAX
from typing import Any, Protocol, TypeVar, cast

__all__ = [
    "DAEMON",
    "HAS_GIL",
    "Bell",
    "Latch",
    "Permit",
    "call_into",
    "clock",
    "exhaust",
    "in_one_step",
    "lock_timeout",
    "make_permit",
    "make_sleeping_permit",
    "pop_call_into",
    "pop_into",
    "rehearsals",
    "releases",
    "spend_stack",
    "takes",
]

T = TypeVar("T")


def _own_clock() -> Callable[[], float]:
    """Return a `time.perf_counter` that no other module has.

    Tests of applications freeze time: they replace the clocks that they find in the loaded modules. What
    waits and keeps deadlines needs the real one.
    """
    loader = time.__spec__.loader
    assert loader is not None
    private = module_from_spec(time.__spec__)
    loader.exec_module(private)
    return private.perf_counter  # type: ignore[no-any-return]  # a module


#: The one clock of the library: monotonic, in seconds, as fine as the system has it.
clock = _own_clock()

#: Whether only one thread at a time runs Python. (An extension module may bring the GIL back later: all is
#: right then, too.)
HAS_GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()

#: Whether our threads are daemons. They are wherever that is allowed: a task that ignores kill() must not
#: keep the interpreter from exiting. The exit hook joins all other threads. A subinterpreter with a GIL of
#: its own allows no daemons (Python 3.12).
DAEMON: bool = getattr(_thread, "daemon_threads_allowed", lambda: True)()


# -- steps that Ctrl-C does not split: see the module's docstring


class _Releasable(Protocol):
    """A lock, a worker, or the room for one."""

    @property
    def release(self) -> Callable[[], object]: ...


# Not `methodcaller`: in CPython 3.13.0 it keeps the arguments of a call in itself. So without the GIL a thread
# may release the lock of another thread's worker, or make another thread's call.
_release_of: Callable[[Any], Callable[[], Any]] = attrgetter("release")


def takes(pop: Callable[..., T], *args: object, times: int | None = None) -> Iterator[T]:
    """Return an iterator whose every step calls `pop` with `args` and yields the result.

    It has no end, or ends after `times` steps. ``for task in take: break`` pops a task and stores it in the
    variable in one step. An error of `pop`, such as IndexError, comes out of the loop and does not end the
    iterator.
    """
    return starmap(pop, repeat(args) if times is None else repeat(args, times))


def releases(pop: Callable[[], _Releasable]) -> Iterator[Any]:
    """Return an iterator whose every step pops an object, calls its `release` and yields what that returns.

    ``next`` makes one step, `exhaust` makes them all, until `pop` raises IndexError.
    """
    return map(call, map(_release_of, iter(pop, None)))  # iter(f, None) calls f for ever; no object that we pop is None


def rehearsals(like: _Releasable) -> Iterator[Any]:
    """Return an iterator whose every step calls `like.release`, at the same depth of the stack as `releases`.

    For a `like` whose `release` has no effect: ``next`` of this before ``next`` of that keeps the end of the
    stack out of the step.
    """
    return map(call, map(_release_of, repeat(like)))


#: Make all steps of an iterator in one step of the interpreter. This is no function in Python, so no error
#: comes between a store in the line before and the steps.
exhaust: Callable[[Iterable[object]], object] = partial(cast("type[deque[object]]", deque), maxlen=0)


def pop_into(pop: Callable[[], object], store: Callable[[Any], object]) -> None:
    """Call `pop`, and `store` with the result, in one step. Raises what `pop` raises, such as IndexError.

    Both are methods in C, and the object popped is not None: ``pop_into(free.pop, loan.append)``.
    """
    next(map(store, iter(pop, None)))


def call_into(results: list[T], function: Callable[..., T], *args: Any) -> None:
    """Call ``function(*args)`` and append what it returns to `results`, with no error between the two.

    `function` may be a function in Python. Its StopIteration is not raised here; nothing is appended then.
    """
    results.extend(starmap(function, (args,)))


def pop_call_into(results: list[T], function: Callable[..., T], pop: Callable[[], tuple[Any, ...]]) -> None:
    """Call `pop`, call `function` with the arguments popped, and append what it returns to `results`.

    No error comes between the pop and the call, nor between the return and the append. A StopIteration is
    treated as by `call_into`.
    """
    results.extend(islice(starmap(function, iter(pop, None)), 1))


def in_one_step(*calls: Callable[[], object]) -> None:
    """Make the calls, which must be calls into C, in their order and in one step.

    A call that raises is the last, and its error is raised here.
    """
    deque(map(call, calls), 0)


def spend_stack(frames: int = 40) -> None:
    """Raise RecursionError if no more than `frames` frames are left.

    Called before the first of some steps that belong together: so the end of the stack does not come between
    two of them.
    """
    if frames:
        spend_stack(frames - 1)


# -- what threads wait for


class Permit(Protocol):
    """What one thread sleeps on until another thread lets it go on: a lock that begins taken."""

    @property
    def release(self) -> Callable[[], object]:
        """What gives the permit: a call into C."""
        ...

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the permit; sleep until it is given, at most `timeout` seconds (-1: no limit)."""
        ...

    def locked(self) -> bool:
        """Return whether the permit is not there: it was not given, or was taken.

        A queue (`_QueuedPermit`) hands the permit to the thread that sleeps, and so may a lock without the GIL. The
        permit then counts as taken, before that thread has awoken.
        """
        ...


class _QueuedPermit:
    """A permit for a thread that waits for a result, without the GIL: a queue, empty while the permit is not there.

    Without the GIL, a thread that takes a lock spins before it sleeps: it calls ``sched_yield`` 40 times, in
    the hope that the lock is held for a moment only. A `SimpleQueue` sleeps at once. Of two threads that wake each
    other in turn, one should spin, and one should sleep. If both spin on one CPU, each keeps the other one from
    it: that takes three times as long. If both sleep, each of them has to be woken: on two CPUs one and a half
    times as long. So the thread that waits for a result sleeps at once; the worker, whose next task may come at
    any moment, spins first.
    """

    __slots__ = ("_queue", "release")

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()
        # No method in Python: `releases` looks it up between the pop and the call.
        self.release = partial(self._queue.put, None)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        try:
            self._queue.get(blocking, None if timeout < 0 else timeout)
        except Empty:
            return False
        return True

    def locked(self) -> bool:
        return self._queue.empty()


def make_permit() -> Permit:
    """Make a permit that was not given, for a thread that spins, if threads do, before it sleeps."""
    lock = allocate_lock()
    lock.acquire()
    return lock


#: Make a permit that was not given, for a thread that sleeps at once.
make_sleeping_permit: Callable[[], Permit] = make_permit if HAS_GIL else _QueuedPermit


class Latch:
    """A gate that opens once and for all, like an Event without a lock inside.

    `threading.Event` holds a lock while it is set. A signal handler, or a destructor that the garbage
    collector runs, may come in that moment and touch the same event: it would wait for its own thread. Here
    every step is a single store or a single call into C.
    """

    __slots__ = ("_waiting", "is_open")

    def __init__(self) -> None:
        self.is_open: bool = False
        self._waiting: deque[LockType] = deque()

    def open(self) -> None:
        """Let every thread through, now and later."""
        spend_stack(8)
        permits = releases(self._waiting.popleft)
        self.is_open = True
        try:
            exhaust(permits)  # no error comes after the store, before all are through
        except IndexError:  # that was the last
            pass

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the latch is open, at most `timeout` seconds; return whether it is."""
        if not self.is_open:
            permit = allocate_lock()
            permit.acquire()
            self._waiting.append(permit)
            if not self.is_open:  # looked at again, now that an opener would see the permit
                permit.acquire(True, lock_timeout(timeout))
                if not self.is_open:
                    try:
                        self._waiting.remove(permit)
                    except ValueError:  # opened in this moment
                        pass
        return self.is_open


class Bell:
    """Tells its listeners that something may have changed. It has no lock, for the reason of the latch."""

    __slots__ = ("_listening",)

    def __init__(self) -> None:
        self._listening: deque[Latch] = deque()

    def listen(self) -> Latch:
        """Return a latch that the next ring opens. Look at what you wait for *after* this, and then wait."""
        latch = Latch()
        self._listening.append(latch)
        return latch

    def ring(self) -> None:
        """Open the latches of all listeners."""
        while self._listening:
            try:
                latch = self._listening[0]
                latch.open()
                # Last: if Ctrl-C comes before this, the next ring opens the latch once more.
                self._listening.remove(latch)
            except (IndexError, ValueError):  # another ringer was quicker
                continue


def lock_timeout(timeout: float | None) -> float:
    """Translate a timeout into what `lock.acquire` takes: -1 for no limit."""
    return -1 if timeout is None else min(max(timeout, 0.0), TIMEOUT_MAX)
