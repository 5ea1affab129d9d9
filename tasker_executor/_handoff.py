"""Handoff: wake a thread, and let it have the interpreter in the same step.

Who releases a lock keeps the GIL. A thread that slept on that lock begins to run, finds the GIL taken, and goes back to sleep
until the waker blocks: for a caller that waits for one task, and the worker that runs it, that makes six switches of threads.
A write to an eventfd is made without the GIL, so the thread that it wakes can find that free: two switches, and on one CPU half
of the time. Mach called it handoff scheduling: the waker gives its turn to whom it wakes.

That suits a waker that has nothing else to do. One with a full lane would be interrupted after each task: there, use a lock.

*A file descriptor that is closed while somebody is about to write to it may be another file by then.* So `LIMIT` are made at
most, lent out again and again, and closed when nobody refers to them any more. A wake-up may come late, and then wakes the next
borrower for nothing; so everybody looks again whether what they wait for has come. A program that closes file descriptors which
are not its own (`os.closerange`) must not have a thread that waits.
"""

from __future__ import annotations

import os
import select
import sys
from _thread import allocate_lock
from collections.abc import Callable
from functools import partial

__all__ = ["LIMIT", "Handoff", "borrow", "give_back"]

#: So many threads, at most, wait in this way at the same time.
LIMIT = 8
_LONGEST = 1e6  # seconds; poll() takes no more than 2**31 milliseconds


class Handoff:
    """One waiter at a time, woken by anybody, any number of times, perhaps for nothing."""

    #: Elsewhere there are no eventfds. Without a GIL there is nothing to hand over, and green threads (gevent, eventlet) share
    #: one real one, which must not sleep.
    supported = (
        sys.platform == "linux"
        and hasattr(os, "eventfd")
        and hasattr(select, "poll")
        and getattr(sys, "_is_gil_enabled", lambda: True)()
        and allocate_lock.__module__ == "_thread"
    )

    if sys.platform == "linux":
        _eventfd = -1

        def __init__(self) -> None:
            self._eventfd = os.eventfd(0)
            self._poll = select.poll()
            self._poll.register(self._eventfd, select.POLLIN)
            #: Wakes who waits, now or next. Without a frame in Python, or Ctrl-C could come before the write.
            self.give = partial(os.eventfd_write, self._eventfd, 1)

        def __del__(self, close: Callable[[int], None] = os.close) -> None:
            if self._eventfd >= 0:
                close(self._eventfd)  # who is about to give has a reference

        def wait(self, timeout: float | None) -> None:
            """Sleep until somebody gives, for `timeout` seconds at most, rounded up to milliseconds."""
            if timeout is None or self._poll.poll(1000.0 * min(timeout, _LONGEST)):
                os.read(self._eventfd, 8)

        def renew(self) -> None:
            """Put another eventfd behind the same number."""
            fresh = os.eventfd(0)
            os.dup2(fresh, self._eventfd, inheritable=False)
            os.close(fresh)

    else:

        def give(self) -> None: ...

        def wait(self, timeout: float | None) -> None: ...

        def renew(self) -> None: ...


#: As many as may yet be made; all that were; and those of them that are not lent out.
_unmade: list[None] = [None] * LIMIT
_made: list[Handoff] = []
_free: list[Handoff] = []


def borrow() -> Handoff | None:
    """Return one that nobody has; None if all are lent out, or there are none on this system."""
    try:
        return _free.pop()
    except IndexError:
        if not Handoff.supported:
            return None
    try:
        _unmade.pop()
    except IndexError:
        return None
    try:
        handoff = Handoff()
    except OSError:  # no file descriptor left
        _unmade.append(None)
        return None
    _made.append(handoff)
    return handoff


def give_back(handoff: Handoff) -> None:
    """Whoever borrowed it waits no more."""
    _free.append(handoff)


def _after_fork_in_child() -> None:
    """The parent goes on using the same ones: close them and make others.

    But not one whose borrower may be this very thread, in a signal handler that forked. It goes on waiting, on another eventfd.
    """
    for handoff in set(_made).difference(_free):
        handoff.renew()
    _free.clear()
    _made.clear()
    _unmade[:] = [None] * LIMIT


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_after_fork_in_child)
