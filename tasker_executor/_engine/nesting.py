"""Nesting: whether a call was made inside another call of this package, on the same thread.

A signal handler, or a destructor that the garbage collector runs, may interrupt our code at any point and
call it again. If the interrupted call holds a lock that workers need, the nested call must not wait for a
worker: the thread cannot release the lock before the nested call returns.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from .sidecar import holds_task_lock, must_go_on
from .threads import start_thread

__all__ = ["Nesting"]

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Nesting:
    """Looks at the stack of the calling thread, for one executor."""

    def __init__(self, locks: Callable[[], Iterable[Any]]) -> None:
        """Call `locks` for the RLocks that workers need, those of tasks left out."""
        self._locks = locks

    def holds_a_lock(self) -> bool:
        """Return whether this thread holds a lock. `_is_owned` is private, but Condition uses it."""
        return any(lock._is_owned() for lock in self._locks())

    def must_not_join(self) -> bool:
        """Return whether this is a signal handler whose thread must go on before the workers can end.

        The thread holds one of the locks that they need, or has yet to tell the threads that wait for a task.
        """
        frame = sys._getframe(1)
        return self.holds_a_lock() or holds_task_lock(frame) or must_go_on(frame)

    def of_submission(self) -> bool | None:
        """Return None if a submission is not nested, and otherwise whether its thread may block.

        It must not block while it holds a lock, or is starting another thread.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):  # the submission itself
            frame = frame.f_back
        outside, nested = frame, False
        while frame is not None:
            if frame.f_code is start_thread.__code__:
                return False
            nested = nested or frame.f_code.co_filename.startswith(_PACKAGE)
            frame = frame.f_back
        if holds_task_lock(outside):
            return False
        return not self.holds_a_lock() if nested else None
