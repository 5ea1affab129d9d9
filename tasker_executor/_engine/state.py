"""The states of an executor, and the lock that guards it."""

from __future__ import annotations

import enum
import threading

from .._sync import Bell, Latch
from .stopping import Token

__all__ = ["Lifecycle", "State"]


class State(enum.IntEnum):
    """The states of an executor.

    A state never goes backwards, so ``state >= State.DRAINING`` is a safe question.

    RUNNING -> DRAINING: ``shutdown`` was called, the executor was dropped, the interpreter exits, or an
    initializer failed.
    RUNNING, DRAINING -> KILLED: ``kill`` was called.
    DRAINING, KILLED -> CLOSED: no task is queued and the last worker has ended.
    """

    RUNNING = 0
    DRAINING = 1
    KILLED = 2
    CLOSED = 3


class Lifecycle:
    """The state of one executor, shared by all rooms of its engine."""

    __slots__ = ("changed", "killed", "lock", "state", "terminated")

    def __init__(self) -> None:
        # Guards the state and the crew. Reentrant: a signal handler or a destructor may submit, shut down or
        # ask for stats while its own thread holds this lock. So each step under it leaves the state and the
        # crew consistent. Never held while user code runs.
        self.lock = threading.RLock()
        self.state = State.RUNNING  # written under the lock; read without it: it never goes backwards
        self.changed = Bell()  # rung when a worker is ready or has ended, and when the state changes
        self.killed = Token()
        self.terminated = Latch()

    def reinit_after_fork(self) -> None:
        """Close, in the child of a fork, where a thread of the parent may hold the lock."""
        self.lock = threading.RLock()
        self.state = State.CLOSED
