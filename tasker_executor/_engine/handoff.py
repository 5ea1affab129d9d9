"""Handoff: wake a thread, and let it have the interpreter in the same step.

A thread that releases a lock keeps the GIL. The thread that slept on that lock wakes, finds the GIL taken,
and sleeps again until the waker blocks. For a caller that waits for one task, and the worker that runs it,
that makes 6 switches of threads. A write to an eventfd is made without the GIL, so the thread that it wakes
can find the GIL free. That makes 2 switches, and on one CPU takes half of the time. Mach called it handoff
scheduling: the waker gives its turn to the thread that it wakes.

That suits a waker that has nothing else to do. A worker with a full lane would be interrupted after each
task: there, use a lock.

**A file descriptor is a number, and any code of the process may close it.** The next file that is opened may
get the number. Eight bytes of ours must not end up in a file of the user's. Three things prevent that:

- The number is a high one. The kernel gives out the lowest free number. So a file that is closed twice is
  never ours, and the next file that is opened does not get our number.
- Each eventfd bears a mark. Before every write and close we look whether the file with that number bears it.
  The mark is the number of the signal that the kernel would send if the file were in asynchronous mode
  (``F_SETSIG``), which it never is. The kernel keeps it with the open file; it is 0 in a file that did not
  set it. (``fstat`` takes longer, and all eventfds have the same inode.)
- Before every read we look whether the number is inheritable. It is if `os.dup2` has given it to another
  file. The mark would say more. But a look at the mark releases the GIL, and the worker would wake up
  for nothing.

A handoff whose number belongs to another file is *lost*: it is thrown away, and the thread waits on a
lock instead.

A thread that already sleeps when its descriptor is closed cannot be woken by it any more. With a timeout it
looks for itself, once a second; without one it sleeps on. To sleep by `poll` or by an epoll in every case was
tried, and a lone task took 1.4 times as long. For each system call that releases the GIL, while the worker
waits for the GIL, may switch threads once more.

At most `LIMIT` handoffs are made. They are lent out again and again, and closed when the last reference to
them goes. A wake-up may come late, and then wakes the next borrower for nothing. So each thread that waits
looks again whether what it waits for has come.
"""

from __future__ import annotations

import _thread
import errno
import os
import select
import sys
from _thread import allocate_lock
from collections.abc import Callable
from itertools import count
from typing import Any

from .._sync import HAS_GIL, pop_into
from .process import after_fork_in_child

if sys.platform == "linux":
    import fcntl
    import resource

__all__ = ["LIMIT", "Handoff", "HandoffLost", "borrow", "discard", "give_back", "refuse_late_patching"]

_start_new_thread = _thread.start_new_thread
_poll: Callable[[], Any] = getattr(select, "poll", object)  # eventlet takes it away

#: At most 8 threads wait in this way at the same time.
LIMIT = 8


def refuse_late_patching() -> None:
    """Raise RuntimeError if a library has replaced threads and locks since this package was imported.

    Our locks would be those of real threads, and our workers would be green threads. The first wait would
    stop them all.
    """
    if _thread.start_new_thread is not _start_new_thread or _thread.allocate_lock is not allocate_lock:
        raise RuntimeError(
            "threads were patched (gevent, eventlet) after tasker_executor was imported; "
            "patch first, before anything else is imported"
        )


def _high_number() -> int:
    """Return the least number that a descriptor of ours may have. The kernel gives out lower ones first."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 4096 if limit == resource.RLIM_INFINITY else min(limit // 2, 4096)


class HandoffLost(Exception):
    """The program has closed the file descriptor of a handoff."""


class Handoff:
    """Wakes one waiter at a time, from any thread, any number of times, perhaps for nothing."""

    lost = False  # whether it was thrown away
    #: Other systems have no eventfds. Without a GIL there is nothing to hand over. Green threads (gevent,
    #: eventlet) share one real thread, which must not sleep.
    supported = (
        sys.platform == "linux"
        and hasattr(os, "eventfd")
        and hasattr(select, "poll")
        and HAS_GIL
        and allocate_lock.__module__ == "_thread"
    )

    if sys.platform == "linux":
        # Bound when the class is made, as are the defaults below: tests replace `os` in modules (pyfakefs),
        # and libraries of green threads take `poll` away.
        _marks = count()
        _eventfd = -1
        _mark = 0

        def __init__(
            self,
            make: Callable[..., int] = os.eventfd,
            make_poll: Callable[[], Any] = _poll,
            control: Callable[..., int] = fcntl.fcntl,
        ) -> None:
            import signal  # on use: it takes as long to import as three files of ours

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
            """Raise HandoffLost if the number is no longer that of our file."""
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
                close(self._eventfd)  # not too early: a thread that is about to give has a reference

        def give(self, write: Callable[[int, int], None] = os.eventfd_write) -> None:
            """Wake the thread that waits now, or the next one that will. Raises HandoffLost."""
            self._check()
            write(self._eventfd, 1)

        def wait(
            self,
            timeout: float | None,
            read: Callable[[int, int], bytes] = os.read,
            inheritable: Callable[[int], bool] = os.get_inheritable,
        ) -> bool:
            """Sleep until a thread gives, for at most `timeout` seconds. Return whether one did.

            The timeout is rounded up to milliseconds. Raises HandoffLost.
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


#: All handoffs that were made and are not lost; and those of them that are not lent out. Each change is one
#: step.
_made: list[Handoff] = []
_free: list[Handoff] = []

#: End a loan: `give_back(loan)`, with the list that `borrow` has filled. A second call does no harm if the
#: list is empty by then.
give_back: Callable[[list[Handoff]], None] = _free.extend


def borrow(loan: list[Handoff]) -> None:
    """Append a free handoff to `loan`. Append none if all are lent out, or this system has none.

    It is not returned: Ctrl-C may come before the caller has stored what a function returns.
    """
    if not Handoff.supported:
        return
    try:
        pop_into(_free.pop, loan.append)
        while loan[0].lost:  # it was thrown away after its last borrower had given it back
            loan.clear()
            pop_into(_free.pop, loan.append)
    except IndexError:
        if len(_made) < LIMIT:
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
    """Throw `handoff` away, so that another one may be made. Return False if another thread has done so."""
    try:
        _made.remove(handoff)
    except ValueError:
        return False
    handoff.lost = True
    return True


def _after_fork_in_child() -> None:
    """Replace the handoffs, which the parent goes on using: close them, so that others are made.

    One that is lent out is not closed. Its borrower may be this very thread, in a signal handler that forked.
    So it gets another eventfd, and the borrower goes on waiting.
    """
    for handoff in set(_made).difference(_free):
        handoff.renew()
    _free.clear()
    _made.clear()


after_fork_in_child(_after_fork_in_child)
