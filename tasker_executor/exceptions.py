"""Every exception that this library raises on its own account.

Each is a `TaskerError` and also the class that callers of the standard library catch already. So
``except queue.Full`` or ``except TimeoutError``, written for another pool, keeps its meaning here.
"""

import queue
from concurrent.futures import BrokenExecutor, CancelledError

__all__ = [
    "NoCurrentTask",
    "PoolDeadlockError",
    "QueueFull",
    "ResourceCreationError",
    "ShutdownTimeout",
    "TaskCancelled",
    "TaskExpired",
    "TaskLost",
    "TaskStopped",
    "TaskTimeout",
    "TaskerError",
]


class TaskerError(Exception):
    """The base of all errors of this library."""


class ResourceCreationError(TaskerError, RuntimeError):
    """No resource could be made in time; ``__cause__`` is the last error of ``on_create``."""


class QueueFull(TaskerError, queue.Full):
    """``max_queued`` tasks wait already, and the executor was made with ``on_full="raise"``."""


class TaskExpired(TaskerError, TimeoutError):
    """The task had not started within its ``start_within`` seconds. It never ran."""


class ShutdownTimeout(TaskerError, TimeoutError):
    """``shutdown(timeout=...)`` ran out of time. The message names what still runs; the drain goes on."""


class TaskCancelled(TaskerError, CancelledError):
    """The task was cancelled or stopped.

    In a task, ``current_task().raise_if_cancelled()`` raises it: the task was stopped, or has run for too long.
    Coroutines of `tasker_executor.aio` raise it: the task was cancelled before it started, and not by the
    coroutine that awaits it. It is no `asyncio.CancelledError`, which would look like a cancellation of that
    coroutine.
    """


class TaskStopped(TaskCancelled):
    """The task was stopped while it ran, by `TaskFuture.stop` or by ``kill()``. It is never run again.

    ``__cause__`` is the error that the task ended with. None: it had not ended ``abort_grace`` seconds after the
    stop, and was given up; or it was stopped as it began, and never called.
    """


class TaskTimeout(TaskerError, TimeoutError):
    """The task has run for longer than its ``run_within`` seconds. It is never run again.

    ``__cause__`` is the error that the task ended with. None: it had not ended ``abort_grace`` seconds after the
    stop, and was given up; or ``run_within`` is 0, and it was never called.
    """


class PoolDeadlockError(TaskerError, RuntimeError):
    """A task waits for a task of its own executor, and so does every other worker: no result would ever come.

    The executor sees waits in ``result()``, ``exception()`` and ``map`` that have no timeout. It does not see
    waits in `concurrent.futures.wait`, `concurrent.futures.as_completed` and event loops.
    """


class TaskLost(TaskerError, BrokenExecutor):
    """The process that had the task is gone or out of reach. The task is not run again; it may have run."""


class NoCurrentTask(TaskerError, LookupError):
    """``current_task()`` or ``current_resource()`` was called outside of a task."""
