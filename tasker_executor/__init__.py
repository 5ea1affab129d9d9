"""Thread pools whose workers hold something.

`ResourceExecutor` is a `concurrent.futures.Executor` in which each worker thread owns one resource (a
database connection, an HTTP session, a browser, a model): made on its thread, checked, replaced when it
breaks, destroyed exactly once.

    >>> import sqlite3
    >>> from tasker_executor import ResourceExecutor
    >>> def fetch(connection, sql):
    ...     return connection.execute(sql).fetchall()
    >>> with ResourceExecutor(4, on_create=lambda: sqlite3.connect(":memory:"), on_destroy=sqlite3.Connection.close) as pool:
    ...     rows = pool.submit(fetch, "select 1")
    ...     urgent = pool.submit_priority(fetch, "select 2")
    ...     rows.result(), urgent.result(), pool.run_now(fetch, "select 3")
    ([(1,)], [(2,)], [(3,)])
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: The modules that `__getattr__` imports on use, and their names above. A program that only hands executors on
#: imports no engine, and one that makes an executor imports no data class that it does not use.
_MODULES = {
    "_base": "ExecutorView",
    "_engine.current": "TaskContext current_slot current_task",
    "_executor": "ResourceExecutor",
    "exceptions": "NoCurrentTask PoolDeadlockError QueueFull ResourceCreationError ShutdownTimeout TaskCancelled "
    "TaskerError TaskExpired TaskStopped TaskTimeout",
    "factory": "ResourceFactory Verdict",
    "futures": "TaskFuture",
    "observers": "Observer ResourceEvent ScaleEvent StateEvent TaskEvent WorkerEvent",
    "policies": "BacklogPolicy Hysteresis QueueWaitPolicy RatePolicy ScalingPolicy",
    "stats": "DurationSummary ExecutorMetrics ExecutorStats LoadSample WorkerInfo",
}

if not TYPE_CHECKING:  # type checkers would believe that every name exists

    def __getattr__(name):
        for module, names in _MODULES.items():
            if name in names.split():
                value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
                return value
            if name == module:  # as if this file had imported it
                return import_module(f".{module}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
