"""Thread pools whose workers hold something.

`ResourceExecutor` is a `concurrent.futures.Executor` in which each worker thread owns one resource (a
database connection, an HTTP session, a browser, a model): made on its thread, checked, replaced when it
breaks, destroyed exactly once.

    >>> import sqlite3
    >>> def fetch(connection, sql):
    ...     return connection.execute(sql).fetchall()
    >>> with ResourceExecutor(4, on_create=lambda: sqlite3.connect(":memory:"), on_destroy=sqlite3.Connection.close) as pool:
    ...     rows = pool.submit(fetch, "select 1")
    ...     urgent = pool.submit_priority(fetch, "select 2")
    ...     rows.result(), urgent.result(), pool.run_now(fetch, "select 3")
    ([(1,)], [(2,)], [(3,)])
"""

from ._base import ExecutorView
from ._engine.current import TaskContext, current_slot, current_task
from ._executor import ResourceExecutor
from .exceptions import (
    NoCurrentTask,
    PoolDeadlockError,
    QueueFull,
    ResourceCreationError,
    ShutdownTimeout,
    TaskCancelled,
    TaskerError,
    TaskExpired,
    TaskStopped,
    TaskTimeout,
)
from .factory import ResourceFactory, Verdict
from .futures import TaskFuture
from .observers import Observer, ResourceEvent, ScaleEvent, StateEvent, TaskEvent, WorkerEvent
from .policies import BacklogPolicy, Hysteresis, QueueWaitPolicy, RatePolicy, ScalingPolicy
from .stats import DurationSummary, ExecutorMetrics, ExecutorStats, LoadSample, WorkerInfo

__version__ = "0.1.0"

__all__ = [
    "BacklogPolicy",
    "DurationSummary",
    "ExecutorMetrics",
    "ExecutorStats",
    "ExecutorView",
    "Hysteresis",
    "LoadSample",
    "NoCurrentTask",
    "Observer",
    "PoolDeadlockError",
    "QueueFull",
    "QueueWaitPolicy",
    "RatePolicy",
    "ResourceCreationError",
    "ResourceEvent",
    "ResourceExecutor",
    "ResourceFactory",
    "ScaleEvent",
    "ScalingPolicy",
    "ShutdownTimeout",
    "StateEvent",
    "TaskCancelled",
    "TaskContext",
    "TaskEvent",
    "TaskExpired",
    "TaskFuture",
    "TaskStopped",
    "TaskTimeout",
    "TaskerError",
    "Verdict",
    "WorkerEvent",
    "WorkerInfo",
    "current_slot",
    "current_task",
]
