"""The states of an executor."""

from __future__ import annotations

import enum

__all__ = ["State"]


class State(enum.IntEnum):
    """The life of an executor. A state never goes backwards, so ``state >= State.DRAINING`` is a safe question.

    RUNNING -> DRAINING: ``shutdown``, the executor was dropped, the interpreter exits, an initializer failed.
    RUNNING, DRAINING -> KILLED: ``kill``.
    DRAINING, KILLED -> CLOSED: nothing is queued and the last worker has ended.
    """

    RUNNING = 0
    DRAINING = 1
    KILLED = 2
    CLOSED = 3
