"""The executor's own threads: how they are made, and how they are started.

**A refusal is not a thrown error.** `Thread.start` runs Python code, so a signal handler can raise in the
middle of it. Its error may be a RuntimeError, too, and belongs to the user. Only a refusal of the system
becomes `CannotStart`; every other error passes unchanged. After such an error the thread may run or not. So
each caller needs a lock that decides whether it does (`Worker.birth`).

**No lock of ours is held while a thread starts.** `Thread.start` waits for the first steps of the new thread.
There, the garbage collector may run a destructor that uses the executor. If the starter held a lock of ours,
the starter and the new thread would wait for each other.
"""

from __future__ import annotations

import builtins
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Any

from .._sync import DAEMON

__all__ = ["DAEMON", "CannotStart", "Endings", "make_thread", "start_thread"]

#: The words of CPython 3.11 to 3.15. The threads of gevent and eventlet never refuse.
_REFUSED = "can't start new thread"
#: The exact classes of a refusal, without subclasses: RecursionError is a RuntimeError, and never a refusal.
_REFUSALS = {RuntimeError, MemoryError, OSError, getattr(builtins, "PythonFinalizationError", RuntimeError)}


class CannotStart(RuntimeError):
    """The system refuses to start a thread. `__cause__` is its error."""


def make_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Return a thread that will call `target` in an empty context.

    A thread of ours may start inside a caller's `submit`, and must not keep that caller's contextvars for its
    whole life. Since Python 3.14 a new thread may inherit the context of its starter, so it is given one.
    """
    own: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
    return threading.Thread(target=target, name=name, daemon=DAEMON, **own)


def start_thread(thread: threading.Thread) -> None:
    """Start `thread`. Raises CannotStart if and only if the system refuses. No lock of ours may be held."""
    try:
        thread.start()
    except (RuntimeError, MemoryError, OSError) as error:
        if _is_refusal(error):
            raise CannotStart(str(error) or _REFUSED) from error
        if type(error) is RuntimeError and error.__context__ is not None:
            # An error was thrown into the Condition inside of `Thread.start`. The Condition cannot cope with
            # that, and raises a RuntimeError of its own: its lock is not locked.
            raise error.__context__ from None
        raise


def _is_refusal(error: BaseException) -> bool:
    """Return whether the system raised `error`, rather than a signal handler that ran in `Thread.start`."""
    if type(error) not in _REFUSALS:
        return False
    if str(error) == _REFUSED:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # A function in C, called by `Thread.start`, raises the system's error. A handler has a frame of its own.
    return trace is not None and trace.tb_frame.f_code is _START


_START = threading.Thread.start.__code__


class Endings:
    """Threads that have done all their work, and may still take a moment to end.

    The references are weak. To drop the last reference to a thread calls back into `threading`. With that
    reference here, the call would come inside of a caller's `submit`. An error thrown into it would be lost.
    """

    def __init__(self) -> None:
        #: Changed without a lock, by single calls; iterated over in copies.
        self._threads: set[weakref.ref[threading.Thread]] = set()
        self._tidy_at = 8  # the number of threads at which those that have ended are dropped

    def add(self, thread: threading.Thread) -> None:
        """Note that `thread` is about to end."""
        if len(self._threads) >= self._tidy_at:
            for reference in self._threads.copy():
                other = reference()
                if other is None or not other.is_alive():
                    self._threads.discard(reference)
            self._tidy_at = 2 * len(self._threads) + 8
        self._threads.add(weakref.ref(thread))

    def alive(self) -> list[threading.Thread]:
        """Return the threads that have not ended yet."""
        threads = [reference() for reference in self._threads.copy()]
        return [thread for thread in threads if thread is not None and thread.is_alive()]

    def clear(self) -> None:
        """Forget all threads."""
        self._threads.clear()
