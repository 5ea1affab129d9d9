"""Thread pools that are told to run something, and take their connections from somewhere else."""

from __future__ import annotations

import contextlib
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from ..tasks import Task, perform
from ._subject import SIZE, Line, Subject

__all__ = ["FlexExecutor", "MoreExecutors", "PersistentDB", "PsycopgPool", "QueuePool", "ThreadLocal"]
FUTURES = "https://docs.python.org/3/library/concurrent.futures.html"
CHECK = Line(
    "https://www.psycopg.org/psycopg3/docs/api/pool.html#psycopg_pool.ConnectionPool.check_connection",
    "A simple check to verify that a connection is still working.",
)
DRAIN = Line(
    "https://www.psycopg.org/psycopg3/docs/api/pool.html#psycopg_pool.ConnectionPool.drain",
    "Remove all the connections from the pool and create new ones.",
)
CLOSE = Line(
    "https://www.psycopg.org/psycopg3/docs/api/pool.html#psycopg_pool.ConnectionPool.close",
    "hint: you can try to call 'close()' explicitly or to use the pool as context manager",
)
#: What all thread pools of the standard library's kind say of themselves.
THREADS = {
    "cancel": Line(
        f"{FUTURES}#concurrent.futures.Future.cancel",
        "A future cannot be cancelled if it is running or has already completed.",
    ),
    "deadline": Line(
        "https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-STATEMENT-TIMEOUT",
        "Abort any statement that takes more than the specified amount of time.",
    ),
    "stop": Line(
        f"{FUTURES}#concurrent.futures.Executor.shutdown",
        "Futures that are completed or running will not be cancelled.",
    ),
    "nested": Line(
        f"{FUTURES}#threadpoolexecutor",
        "Deadlocks can occur when the callable associated with a Future waits on the results of another Future.",
    ),
    "shutdown": Line(
        f"{FUTURES}#concurrent.futures.Executor.shutdown",
        "Signal the executor that it should free any resources that it is using when the currently pending futures are "
        "done executing.",
    ),
    "exit": Line(
        f"{FUTURES}#concurrent.futures.ThreadPoolExecutor",
        "All threads enqueued to ThreadPoolExecutor will be joined before the interpreter can exit.",
    ),
    "fork": Line(
        "https://docs.python.org/3/library/os.html#os.fork",
        "If Python is able to detect that your process has multiple threads, os.fork() now raises a DeprecationWarning.",
    ),
}


class _Threads(Subject):
    """A `ThreadPoolExecutor`, with connections from somewhere."""

    def __init__(self, conninfo: str, transaction: bool = True) -> None:
        self.conninfo = conninfo
        self.transaction = transaction
        self.executor = self.make_executor()
        self.open()

    def make_executor(self) -> Any:
        return ThreadPoolExecutor(SIZE)

    def open(self) -> None: ...

    def close(self) -> None: ...

    def run(self, task: Task, *arguments: Any) -> None:
        raise NotImplementedError

    def submit(self, task: Task, *arguments: Any) -> Any:
        return self.executor.submit(self.run, task, *arguments)

    def shutdown(self) -> None:
        self.executor.shutdown()
        self.close()

    def stop(self) -> None:
        self.executor.shutdown(cancel_futures=True)
        self.close()


class ThreadLocal(_Threads):
    """Each thread keeps a connection, and makes another one when it finds its own closed."""

    title = "ThreadPoolExecutor + thread-local"
    lines: ClassVar[dict[str, Line]] = THREADS | {
        "setup": Line(
            "https://docs.python.org/3/library/threading.html#thread-local-data",
            "Thread-local data is data whose values are thread specific.",
        ),
    }

    def open(self) -> None:
        self.local = threading.local()

    def connection(self) -> Any:
        import psycopg

        connection = getattr(self.local, "connection", None)
        if connection is None or connection.closed:
            connection = self.local.connection = psycopg.connect(self.conninfo)
        return connection

    def run(self, task: Task, *arguments: Any) -> None:
        connection = self.connection()
        with connection.transaction() if self.transaction else contextlib.nullcontext():
            perform(connection.execute, task, *arguments)


class PsycopgPool(_Threads):
    """A thread borrows a connection for each task. The pool checks it before it is lent, and commits in the end."""

    title = "ThreadPoolExecutor + psycopg_pool"
    packages = ("psycopg_pool",)
    lines: ClassVar[dict[str, Line]] = THREADS | {"setup": CHECK, "credentials": DRAIN, "exit": CLOSE}

    def open(self) -> None:
        from psycopg_pool import ConnectionPool

        self.pool = ConnectionPool(
            self.conninfo, min_size=SIZE, max_size=SIZE, check=ConnectionPool.check_connection, open=True
        )
        weakref.finalize(self, self.pool.close)  # At interpreter exit, too.

    def close(self) -> None:
        self.pool.close()

    def rotated(self) -> None:
        self.pool.drain()

    def run(self, task: Task, *arguments: Any) -> None:
        with self.pool.connection() as connection:
            perform(connection.execute, task, *arguments)


class QueuePool(_Threads):
    """A thread borrows a connection of the engine for each task, tested before it is lent."""

    title = "ThreadPoolExecutor + SQLAlchemy"
    packages = ("sqlalchemy",)
    lines: ClassVar[dict[str, Line]] = THREADS | {
        "setup": Line(
            "https://docs.sqlalchemy.org/en/20/core/pooling.html#disconnect-handling-pessimistic",
            'the connection pool "pre-ping" feature that tests connections for liveness upon each checkout',
        ),
        "credentials": Line(
            "https://docs.sqlalchemy.org/en/20/core/connections.html#sqlalchemy.engine.Engine.dispose",
            "A new connection pool is created immediately after the old one has been disposed.",
        ),
    }

    def open(self) -> None:
        import psycopg
        import sqlalchemy

        self.engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(self.conninfo),
            pool_size=SIZE,
            max_overflow=0,
            pool_pre_ping=True,
        )

    def close(self) -> None:
        self.engine.dispose()

    def rotated(self) -> None:
        self.engine.dispose()

    def run(self, task: Task, *arguments: Any) -> None:
        with self.engine.begin() if self.transaction else self.engine.connect() as connection:
            perform(connection.exec_driver_sql, task, *arguments)


class PersistentDB(_Threads):
    """Each thread keeps a connection that reconnects by itself."""

    title = "ThreadPoolExecutor + DBUtils"
    packages = ("DBUtils",)
    lines: ClassVar[dict[str, Line]] = THREADS | {
        "setup": Line(
            "https://webwareforpython.github.io/DBUtils/main.html#persistentdb-persistent-db",
            "If the underlying database is restarted and all connections are lost, they will be automatically and "
            "transparently reopened. [...] you must explicitly start transactions with the begin() method",
        ),
    }

    def open(self) -> None:
        import psycopg
        from dbutils.persistent_db import PersistentDB

        self.connections = PersistentDB(psycopg, ping="select 1", threadlocal=threading.local, conninfo=self.conninfo)

    def run(self, task: Task, *arguments: Any) -> None:
        connection = self.connections.connection()
        if not self.transaction:
            return perform(connection.cursor().execute, task, *arguments)
        connection.begin()
        try:
            perform(connection.cursor().execute, task, *arguments)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise


class FlexExecutor(ThreadLocal):
    """The context of a worker has a connection, and makes another one when it finds its own closed."""

    title = "flexexecutor"
    packages = ("flexexecutor",)
    lines: ClassVar[dict[str, Line]] = THREADS | {
        "setup": Line(
            "https://github.com/leavers/flexexecutor/blob/main/flexexecutor.py",
            "class DatabaseContext(WorkerContext), the example of WorkerContext",
        ),
        "exit": Line(
            "https://github.com/leavers/flexexecutor#threadpoolexecutor",
            "Timeout for idle workers. [60 seconds, as in the example]",
        ),
    }

    def make_executor(self) -> Any:
        import psycopg
        from flexexecutor import ThreadPoolExecutor, WorkerContext

        conninfo, transaction = self.conninfo, self.transaction

        class DatabaseContext(WorkerContext):  # type: ignore[misc]  # it has no types
            connection: Any = None

            def run(self, task: Any) -> None:
                function, arguments, _ = task
                if self.connection is None or self.connection.closed:
                    self.connection = psycopg.connect(conninfo)
                with self.connection.transaction() if transaction else contextlib.nullcontext():
                    function(self.connection.execute, *arguments)

            def finalize(self) -> None:
                if self.connection is not None:
                    self.connection.close()

        class DatabaseExecutor(ThreadPoolExecutor):  # type: ignore[misc]  # it has no types
            prepare_context = DatabaseContext.prepare

        return DatabaseExecutor(SIZE)

    def submit(self, task: Task, *arguments: Any) -> Any:
        return self.executor.submit(perform, task, *arguments)


class MoreExecutors(PsycopgPool):
    """Tasks borrow connections of psycopg_pool, and are retried if they fail with an OperationalError."""

    title = "more-executors + psycopg_pool"
    packages = ("more-executors",)
    lines: ClassVar[dict[str, Line]] = THREADS | {
        "setup": Line(
            "https://rohanpm.github.io/more-executors/reference/retry.html",
            "future will be retried if (and only if) it raises an exception inheriting from one of these classes",
        ),
        "stop": Line(
            "https://rohanpm.github.io/more-executors/reference/cancel.html",
            "An executor which delegates to another executor and cancels all futures when the executor is shut down.",
        ),
        "credentials": DRAIN,
        "exit": CLOSE,
    }

    def make_executor(self) -> Any:
        import psycopg
        from more_executors import ExceptionRetryPolicy, Executors

        class Lost(ExceptionRetryPolicy):  # type: ignore[misc]  # it has no types
            def should_retry(self, attempt: int, future: Any) -> bool:
                timed_out = isinstance(future.exception(), psycopg.errors.QueryCanceled)  # It is an OperationalError, too.
                return super().should_retry(attempt, future) and not timed_out

        policy = Lost(max_attempts=7, sleep=0.2, max_sleep=2.0, exception_base=psycopg.OperationalError)
        self.retrying = Executors.thread_pool(max_workers=SIZE).with_retry(policy)
        return self.retrying.with_cancel_on_shutdown()

    def shutdown(self) -> None:
        self.retrying.shutdown()
        self.close()

    def stop(self) -> None:
        self.executor.shutdown()  # Which cancels.
        self.close()
