"""A stop: the request to a running task to end, its reason and its time; and the token that shows it to the task."""

from __future__ import annotations

import enum
from math import inf

from .._sync import Latch, clock
from ..exceptions import TaskStopped, TaskTimeout

__all__ = ["AGAIN", "KILLED", "Reason", "Stop", "Token"]

#: Why tasks are stopped that end with their executor, in words that follow "this task".
KILLED = "was stopped with its executor, by kill()"

#: Seconds from a stop until the resource is aborted a second time, if the task still runs. The first abort may
#: come between two calls of the task, and unblock neither.
AGAIN = 0.3


class Reason(enum.Enum):
    """Why a task is stopped. The value is the outcome that observers and exporters see."""

    STOPPED = "stopped"  # by `stop` of its future
    TIMED_OUT = "timed out"  # it has run for `run_within` seconds
    KILLED = "killed"  # with its executor


class Token(Latch):
    """The cancel token of one task, as the task sees it."""

    __slots__ = ("why",)

    def __init__(self) -> None:
        super().__init__()
        #: Why it is set, in words that follow "this task". Stored before the latch opens. Of two threads that
        #: set it at once either may have the word.
        self.why: str = ""

    def cancel(self, why: str) -> None:
        """Set the token, for good."""
        self.why = self.why or why
        self.open()

    def look(self) -> bool:
        """Return whether the token is set."""
        return self.is_open


class Stop:
    """The request to one task, or one call of ``run_now``, to end."""

    __slots__ = ("aborted", "again_at", "at", "function", "limit", "reason", "seen", "unasked")

    def __init__(self, reason: Reason, limit: float | None = None) -> None:
        # `aborted` and `seen` are stored under the lock of the task's sidecar, the others by one thread at a
        # time.
        self.reason = reason
        #: Seconds that the task was allowed to run, if that is the reason.
        self.limit = limit
        self.at = clock()
        #: When the watch aborts the resource again, if the task still runs then.
        self.again_at = inf
        #: Whether the resource of the task is being aborted, or was.
        self.aborted = False
        #: Whether no thread has asked for it: the worker found that no time is left to run the task (again), or
        #: that the executor is being killed.
        self.unasked = False
        #: Whether the worker has seen it. From then on the worker decides what the task comes to.
        self.seen = False
        #: The name of the function, once the task was given up: from then on the task itself has lost it.
        self.function: str | None = None

    def why(self) -> str:
        """Return the reason, in words that follow "this task"."""
        if self.reason is Reason.TIMED_OUT:
            return f"has run for longer than run_within ({self.limit:g} s)"
        return KILLED if self.reason is Reason.KILLED else "was stopped"

    def error(self, executor: str, function: str, cause: BaseException | None, note: str = "") -> TaskStopped | TaskTimeout:
        """Return the error of the stopped task, which has ended with `cause`, or has not ended (None)."""
        kind = TaskTimeout if self.reason is Reason.TIMED_OUT else TaskStopped
        error = kind(f"executor {executor!r}: task {function} {self.why()}{note}")
        error.__cause__ = cause
        return error
