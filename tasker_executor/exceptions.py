"""Every exception that this library raises on its own account.

Each is a `TaskerError` and also the class that callers of the standard library catch already, so that
``except queue.Full`` or ``except TimeoutError`` written for another pool keeps its meaning here.
"""

import queue
import sys
from concurrent.futures import BrokenExecutor, CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError

__all__ = [
    "NoCurrentTask",
    "PoolDeadlockError",
    "QueueFull",
    "ResourceCreationError",
    "ShutdownTimeout",
    "TaskCancelled",
    "TaskExpired",
    "TaskLost",
    "TaskerError",
]


class TaskerError(Exception):
    """The base of all errors of this library."""


class ResourceCreationError(TaskerError, RuntimeError):
    """No resource could be made in time; ``__cause__`` is the last error of ``on_create``."""


class QueueFull(TaskerError, queue.Full):
    """``max_queued`` tasks wait already, and the executor was made with ``on_full="raise"``."""


# Until Python 3.11 the TimeoutError of concurrent.futures was a class of its own. Callers catch either.
if sys.version_info >= (3, 11):

    class TaskExpired(TaskerError, TimeoutError):
        """The task had not started within the ``start_within`` seconds it was given. It never ran."""

    class ShutdownTimeout(TaskerError, TimeoutError):
        """``shutdown(timeout=...)`` ran out of time. The message names what still runs; the drain goes on."""

else:  # Python 3.10

    class TaskExpired(TaskerError, TimeoutError, FutureTimeoutError):
        """The task had not started within the ``start_within`` seconds it was given. It never ran."""

    class ShutdownTimeout(TaskerError, TimeoutError, FutureTimeoutError):
        """``shutdown(timeout=...)`` ran out of time. The message names what still runs; the drain goes on."""


class TaskCancelled(TaskerError, CancelledError):
    """Raised in a task by ``current_task().raise_if_cancelled()`` after ``kill()``."""


class PoolDeadlockError(TaskerError, RuntimeError):
    """A task waits for a task of its own executor, and so does every other worker: no result would ever come.

    Seen are waits in ``result()``, ``exception()`` and ``map``, without a timeout. Not seen are those in
    `concurrent.futures.wait`, `concurrent.futures.as_completed` and event loops.
    """


class TaskLost(TaskerError, BrokenExecutor):
    """The process that had the task is gone, or cannot be reached, and the task is not run again. It may have run."""


class NoCurrentTask(TaskerError, LookupError):
    """``current_task()`` or ``current_resource()`` was called outside of a task."""
