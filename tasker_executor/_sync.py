"""The clock, the latch and the bell; and the steps that Ctrl-C must not split."""

from __future__ import annotations

import _thread
import time
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable
from importlib.util import module_from_spec
from operator import methodcaller
from threading import TIMEOUT_MAX

__all__ = [
    "DAEMON",
    "Bell",
    "Latch",
    "clock",
    "in_one_step",
    "lock_timeout",
    "spend_stack",
]


def _own_clock() -> Callable[[], float]:
    """Return a `time.perf_counter` that no other module has.

    Tests of applications freeze time: they replace the clocks that they find in the modules loaded. What waits and keeps
    deadlines needs the real one.
    """
    loader = time.__spec__.loader
    assert loader is not None
    private = module_from_spec(time.__spec__)
    loader.exec_module(private)
    return private.perf_counter  # type: ignore[no-any-return]  # a module


#: The one clock of the library: monotonic, in seconds, as fine as the system has it.
clock = _own_clock()

#: Are our threads daemons? Wherever that is allowed, so that a task which ignores kill() cannot keep the interpreter from
#: exiting; the exit hook joins all others. It is not in a subinterpreter with a GIL of its own (Python 3.12).
DAEMON: bool = getattr(_thread, "daemon_threads_allowed", lambda: True)()

_release = methodcaller("release")


_call = methodcaller("__call__")


def in_one_step(*calls: Callable[[], object]) -> None:
    """Make the calls, which must be calls into C, in their order and in one step of the interpreter.

    So no error is thrown in between two of them. A call that raises is the last, and its error is raised here.
    """
    deque(map(_call, calls), 0)


def spend_stack(frames: int = 40) -> None:
    """Raise RecursionError if there are no more than so many frames left.

    Called before the first of some steps that belong together: so the end of the stack does not come between two of them.
    """
    if frames:
        spend_stack(frames - 1)


class Latch:
    """A gate that opens once and for all, like an Event without a lock inside.

    `threading.Event` holds a lock while it is set: a signal handler, or a destructor run by the garbage collector, that comes
    by in that moment and touches the same event waits for itself. Here every step is a single store or a single call into C.
    """

    __slots__ = ("_waiting", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._waiting: deque[LockType] = deque()

    def open(self) -> None:
        """Let everybody through, now and later."""
        spend_stack(8)
        permits = map(_release, iter(self._waiting.popleft, None))
        self.is_open = True
        try:
            deque(permits, 0)  # pops and releases all in one step of the interpreter: Ctrl-C cannot come between
        except IndexError:  # that was the last
            pass

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the latch is open, at most `timeout` seconds; tell whether it is."""
        if not self.is_open:
            permit = allocate_lock()
            permit.acquire()
            self._waiting.append(permit)
            if not self.is_open:  # asked again, now that an opener would see us
                permit.acquire(True, lock_timeout(timeout))
                if not self.is_open:
                    try:
                        self._waiting.remove(permit)
                    except ValueError:  # opened in this moment
                        pass
        return self.is_open


class Bell:
    """Tells those who listen that something may have changed. As free of locks as the latch, and for the same reason."""

    __slots__ = ("_listening",)

    def __init__(self) -> None:
        self._listening: deque[Latch] = deque()

    def listen(self) -> Latch:
        """Return a latch that the next ring opens. Look at what you wait for *after* this, and then wait."""
        latch = Latch()
        self._listening.append(latch)
        return latch

    def ring(self) -> None:
        """Open the latches of all who listen."""
        while self._listening:
            try:
                latch = self._listening[0]
                latch.open()
                self._listening.remove(latch)  # afterwards: if Ctrl-C comes between, the next ring opens it once more
            except (IndexError, ValueError):  # another ringer was quicker
                continue


def lock_timeout(timeout: float | None) -> float:
    """Translate a timeout into what `lock.acquire` takes: -1 for no limit."""
    return -1 if timeout is None else min(max(timeout, 0.0), TIMEOUT_MAX)
