"""Handoff: wake a thread, and let it have the interpreter in the same step.

Who releases a lock keeps the GIL. A thread that slept on that lock begins to run, finds the GIL taken, and goes back to sleep
until the waker blocks: for a caller that waits for one task, and the worker that runs it, that makes six switches of threads.
A write to an eventfd is made without the GIL, so the thread that it wakes finds that free: two switches, in less than half of
the time. Mach called it handoff scheduling: the waker gives its turn to whom it wakes.

That suits a waker that has nothing else to do. One with a full lane would be interrupted after each task: there, use a lock.

*A file descriptor that is closed while somebody is about to write to it may be another file by then.* So `LIMIT` are made at
most, and they are lent out, again and again, and never closed. A write that comes too late wakes the next borrower for nothing,
so everybody looks again whether what they wait for has come.
"""

from __future__ import annotations

import os
import select
import sys

__all__ = ["LIMIT", "Handoff", "borrow", "give_back"]

#: So many threads, at most, wait in this way at the same time.
LIMIT = 8
_LONGEST = 1e6  # seconds; poll() takes no more than 2**31 milliseconds

_all: list[Handoff] = []
_free: list[Handoff] = []


class Handoff:
    """One waiter at a time, woken by anybody, any number of times, perhaps for nothing."""

    if sys.platform == "linux":
        #: Elsewhere there are no eventfds. Without a GIL there is nothing to hand over.
        supported = hasattr(os, "eventfd") and getattr(sys, "_is_gil_enabled", lambda: True)()

        def __init__(self) -> None:
            self._eventfd = os.eventfd(0)
            self._poll = select.poll()
            self._poll.register(self._eventfd, select.POLLIN)

        def give(self) -> None:
            """Wake who waits, now or next."""
            os.eventfd_write(self._eventfd, 1)

        def wait(self, timeout: float | None) -> None:
            """Sleep until somebody gives, for `timeout` seconds at most. A signal may end it earlier."""
            try:
                if timeout is None or self._poll.poll(1000.0 * min(timeout, _LONGEST)):
                    os.eventfd_read(self._eventfd)
            except InterruptedError:
                pass

        def close(self) -> None:
            """Only where nobody can be about to give."""
            os.close(self._eventfd)

    else:
        supported = False

        def give(self) -> None: ...

        def wait(self, timeout: float | None) -> None: ...

        def close(self) -> None: ...


def borrow() -> Handoff | None:
    """Return one that nobody has; None if all are lent out, or there are none on this system."""
    try:
        return _free.pop()
    except IndexError:
        if not Handoff.supported or len(_all) >= LIMIT:
            return None
    try:
        handoff = Handoff()
    except OSError:  # no file descriptor left
        return None
    _all.append(handoff)
    return handoff


def give_back(handoff: Handoff) -> None:
    """Whoever borrowed it waits no more."""
    _free.append(handoff)


def _after_fork_in_child() -> None:
    """The parent goes on using the same ones: make others."""
    _free.clear()
    for handoff in _all:
        handoff.close()
    _all.clear()


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_after_fork_in_child)
