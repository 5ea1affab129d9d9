"""Threads of our own: how they are made, and how they are started.

**A refusal and a thrown error are two things.** `Thread.start` runs Python code, so a signal handler can raise in the middle
of it. That error may be a RuntimeError, too, and belongs to the user. Only the system's own refusal becomes `CannotStart`; all
other errors pass unchanged. The thread may or may not run then, so each caller needs a lock that decides it (`Worker.birth`).

**No lock of ours is held while a thread starts.** `Thread.start` waits for the first steps of the new thread. A garbage
collection there may run a destructor that uses the pool; if the starter held a lock of ours, each would wait for the other.
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

_REFUSED = "can't start new thread"  # CPython's words, from 3.10 to 3.15; gevent's and eventlet's threads never refuse
#: What a refusal may be. Exactly these classes: RecursionError is a RuntimeError, and TimeoutError is an OSError.
_REFUSALS = {RuntimeError, MemoryError, OSError, getattr(builtins, "PythonFinalizationError", RuntimeError)}


class CannotStart(RuntimeError):
    """The system refuses to start a thread. `__cause__` is its error."""


def make_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Return a thread that will call `target` in an empty context.

    Our threads start inside some caller's `submit`, and must not carry its contextvars for life. A thread begins with an empty
    context, unless it inherits that of its starter; since Python 3.14 it may.
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
            # Thrown into the Condition inside of `Thread.start`, which cannot cope, and says that its lock is not locked.
            raise error.__context__ from None
        raise


def _is_refusal(error: BaseException) -> bool:
    """Return whether the system raised `error`, and not a signal handler that ran while the thread started."""
    if type(error) not in _REFUSALS:
        return False
    if str(error) == _REFUSED:
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # The system's error comes out of a function in C, called by `Thread.start`; a handler has a frame of its own.
    return trace is not None and trace.tb_frame.f_code is _START


_START = threading.Thread.start.__code__


class Endings:
    """Threads that have done all that they had to do, and may still take a moment to end.

    Refers to them weakly. The last reference to a thread calls back into `threading`; if that were ours, it would do so in the
    middle of some caller's `submit`, and an error thrown into the callback is lost.
    """

    def __init__(self) -> None:
        self._threads: set[weakref.ref[threading.Thread]] = set()

    def add(self, thread: threading.Thread) -> None:
        """Note down that `thread` is about to end."""
        for reference in self._threads.copy():
            other = reference()
            if other is None or not other.is_alive():
                self._threads.discard(reference)
        self._threads.add(weakref.ref(thread))

    def alive(self) -> list[threading.Thread]:
        """Return those that have not ended yet."""
        threads = [reference() for reference in self._threads.copy()]
        return [thread for thread in threads if thread is not None and thread.is_alive()]

    def clear(self) -> None:
        """Forget all."""
        self._threads.clear()
