"""Handoff: wake a thread, and let it have the interpreter in the same step.

Who releases a lock keeps the GIL. A thread that slept on that lock begins to run, finds the GIL taken, and goes back to sleep
until the waker blocks: for a caller that waits for one task, and the worker that runs it, that makes six switches of threads.
A write to an eventfd is made without the GIL, so the thread that it wakes can find that free: two switches, and on one CPU half
of the time. Mach called it handoff scheduling: the waker gives its turn to whom it wakes.

That suits a waker that has nothing else to do. One with a full lane would be interrupted after each task: there, use a lock.

**A file descriptor is a number, and any code of the process may close it.** The next file that is opened may get the number.
Eight bytes of ours have no business in a file of the user's. Three things stand between:

- The number is a high one. The kernel gives out the lowest that is free, so a file that is closed twice is never ours, and the
  next file that is opened does not get our number.
- Each eventfd bears a mark, and before every write and close we look whether the file with that number bears it. The mark is
  the number of the signal that the kernel would send if the file were in asynchronous mode (``F_SETSIG``), which it never is.
  It is kept with the open file, and is 0 in a file that did not set it. (``fstat`` takes longer, and all eventfds have the same
  inode.)
- Before every read we look whether the number is inheritable, as one is that `os.dup2` has given to another file. The mark
  would say more; but to look at it lets the interpreter go, and the worker would wake up for nothing.

A handoff whose number is another's by now is *lost*: it is thrown away, and the thread waits in the slower way.

A thread that already sleeps when its descriptor is closed cannot be woken by it any more. With a timeout it looks for itself,
once a second; without one it sleeps on. To sleep by `poll` or by an epoll in every case was tried: each system call that lets
the interpreter go, while the worker waits for that, may make the threads switch once more, and a lone task took 1.4 times as
long.

`LIMIT` handoffs are made at most, lent out again and again, and closed when nobody refers to them any more. A wake-up may come
late, and then wakes the next borrower for nothing; so all who wait look again whether what they wait for has come.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import signal
import sys
from _thread import allocate_lock
from collections.abc import Callable
from itertools import count
from typing import Any

from .process import after_fork_in_child

if sys.platform == "linux":
    import fcntl
    import resource

__all__ = ["LIMIT", "Handoff", "HandoffLost", "borrow", "discard", "give_back", "refuse_late_patching"]

_start_new_thread = _thread.start_new_thread
_poll: Callable[[], Any] = getattr(select, "poll", object)  # eventlet takes it away

#: So many threads, at most, wait in this way at the same time.
LIMIT = 8


def refuse_late_patching() -> None:
    """Raise RuntimeError if a library has replaced threads and locks since this package was imported.

    Our locks would be those of real threads, and our workers would be green: the first wait would stop them all.
    """
    if _thread.start_new_thread is not _start_new_thread or _thread.allocate_lock is not allocate_lock:
        raise RuntimeError(
            "threads were patched (gevent, eventlet) after tasker_executor was imported; "
            "patch first, before anything else is imported"
        )


def _high_number() -> int:
    """Return the least number that a descriptor of ours may have: so high that files do not come there by themselves."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if limit == resource.RLIM_INFINITY else min(limit // 2, 4096)


class HandoffLost(Exception):
    """The program has closed the file descriptor of a handoff."""


class Handoff:
    """One waiter at a time, woken by any thread, any number of times, perhaps for nothing."""

    lost = False  # thrown away
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
        # Bound when the class is made, as are the defaults below: tests replace `os` in modules (pyfakefs), and libraries of
        # green threads take `poll` away.
        _marks = count()
        _eventfd = -1
        _mark = 0

        def __init__(
            self,
            make: Callable[..., int] = os.eventfd,
            make_poll: Callable[[], Any] = _poll,
            control: Callable[..., int] = fcntl.fcntl,
        ) -> None:
            mark = signal.SIGRTMIN + next(self._marks) % (signal.SIGRTMAX - signal.SIGRTMIN + 1)
            low = make(0)
            try:
                self._eventfd = control(low, fcntl.F_DUPFD_CLOEXEC, _high_number())
            finally:
                os.close(low)
            control(self._eventfd, fcntl.F_SETSIG, mark)
            self._mark = mark
            self._poll = make_poll()
            self._poll.register(self._eventfd, select.POLLIN)

        def _check(self, control: Callable[..., int] = fcntl.fcntl, get_mark: int = fcntl.F_GETSIG) -> None:
            """Raise HandoffLost if the number is not that of our file any more."""
            try:
                if control(self._eventfd, get_mark) == self._mark:
                    return
            except OSError as error:
                if error.errno != errno.EBADF:  # not one that a signal handler has raised
                    raise
            raise HandoffLost

        def __del__(self, close: Callable[[int], None] = os.close) -> None:
            if self._mark:
                try:
                    self._check()
                except HandoffLost:
                    return
                close(self._eventfd)  # a thread that is about to give has a reference

        def give(self, write: Callable[[int, int], None] = os.eventfd_write) -> None:
            """Wake the thread that waits, now or next. Raises HandoffLost."""
            self._check()
            write(self._eventfd, 1)

        def wait(
            self,
            timeout: float | None,
            read: Callable[[int, int], bytes] = os.read,
            inheritable: Callable[[int], bool] = os.get_inheritable,
        ) -> bool:
            """Sleep until a thread gives, for `timeout` seconds at most, rounded up to milliseconds; tell whether one did.

            Raises HandoffLost.
            """
            if timeout is not None and not self._poll.poll(1000.0 * timeout):
                return False
            try:
                if not inheritable(self._eventfd):
                    read(self._eventfd, 8)
                    return True
            except OSError as error:
                if error.errno != errno.EBADF:  # not one that a signal handler has raised
                    raise
            raise HandoffLost

        def renew(self) -> None:
            """Put another eventfd behind the same number."""
            try:
                self._check()
            except HandoffLost:
                return
            fresh = Handoff()
            os.dup2(fresh._eventfd, self._eventfd, inheritable=False)
            self._mark = fresh._mark

    else:

        def give(self) -> None: ...

        def wait(self, timeout: float | None) -> bool: ...

        def renew(self) -> None: ...


#: All that were made and are not lost; and those of them that are not lent out.
_made: list[Handoff] = []
_free: list[Handoff] = []

#: Ends a loan: `give_back(loan)`, with the list that `borrow` has filled. Twice does no harm if the list is empty by then.
give_back: Callable[[list[Handoff]], None] = _free.extend


def borrow(loan: list[Handoff]) -> None:
    """Append one that nobody has to `loan`, unless all are lent out, or there are none on this system.

    Not returned, since Ctrl-C may come before the caller has stored what a function returns.
    """
    try:
        next(map(loan.append, iter(_free.pop, None)))  # in one step of the interpreter
        while loan[0].lost:  # since its last borrower gave it back
            loan.clear()
            next(map(loan.append, iter(_free.pop, None)))
    except IndexError:
        if Handoff.supported and len(_made) < LIMIT:
            _make(loan)


def _make(loan: list[Handoff]) -> None:
    try:
        loan.append(Handoff())
    except OSError:  # no file descriptor left, or a system that has no marks
        return
    _made.extend(loan)
    if len(_made) > LIMIT:  # another thread was quicker
        discard(loan.pop())


def discard(handoff: Handoff) -> bool:
    """Throw it away; another one may be made in its place. False: another thread has done so."""
    try:
        _made.remove(handoff)
    except ValueError:
        return False
    handoff.lost = True
    return True


def _after_fork_in_child() -> None:
    """The parent goes on using the same ones: close them and make others.

    But not one whose borrower may be this very thread, in a signal handler that forked. It goes on waiting, on another eventfd.
    """
    for handoff in set(_made).difference(_free):
        handoff.renew()
    _free.clear()
    _made.clear()


after_fork_in_child(_after_fork_in_child)
