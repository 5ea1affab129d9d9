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
from collections.abc import Callable
from contextvars import Context

from ._types import DAEMON

__all__ = ["CannotStart", "make_thread", "start_thread"]

_REFUSED = "can't start new thread"  # CPython's words, from 3.10 to 3.15; gevent's and eventlet's threads never refuse
#: What a refusal may be. Exactly these classes: RecursionError is a RuntimeError, and TimeoutError is an OSError.
_REFUSALS = {RuntimeError, MemoryError, OSError, getattr(builtins, "PythonFinalizationError", RuntimeError)}


class CannotStart(RuntimeError):
    """The system refuses to start a thread. `__cause__` is its error."""


def make_thread(target: Callable[[], object], name: str) -> threading.Thread:
    """Return a thread that will call `target` in an empty context.

    Our threads start inside some caller's `submit`, and must not carry its contextvars for life. Since Python 3.14 a thread may
    inherit the context of its starter, so it is given one.
    """
    if sys.version_info >= (3, 14):
        return threading.Thread(target=target, name=name, daemon=DAEMON, context=Context())
    return threading.Thread(target=Context().run, args=(target,), name=name, daemon=DAEMON)


def start_thread(thread: threading.Thread) -> None:
    """Start `thread`. Raises CannotStart if and only if the system refuses. No lock of ours may be held."""
    try:
        thread.start()
    except (RuntimeError, MemoryError, OSError) as error:
        if _is_refusal(error):
            raise CannotStart(str(error) or _REFUSED) from error
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
