"""The ways to run work on connections. Each is set up as its own documentation says, with the best options it has."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

from . import tasks
from .tasks import BOOK, Sql, Task, limited, perform

__all__ = ["SIZE", "SUBJECTS", "Line", "Subject"]

#: Threads and connections of every subject.
SIZE = 4


class Line(NamedTuple):
    """A line of documentation that we followed."""

    url: str
    text: str


class Subject:
    """A pool that runs tasks on connections to PostgreSQL.

    Args:
        conninfo: The connection string. All subjects get the same.
        transaction: True if each task is one transaction. False if tasks are trusted to commit by themselves.
    """

    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()  # Distributions, for the versions.
    #: What was followed, by topic: "setup", and what a fault asks for (see `Fault.topic`).
    lines: ClassVar[dict[str, Line]] = {}
    #: Faults that make no sense here, by name.
    absent: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, conninfo: str, transaction: bool = True) -> None:
        raise NotImplementedError

    def submit(self, task: Task, *arguments: Any) -> Any:
        """Return the future of a task that was submitted."""
        raise NotImplementedError

    def submit_many(self, task: Task, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the futures of tasks that were submitted, or the error of each that was refused."""

        def submit(one: tuple[Any, ...]) -> Any:
            try:
                return self.submit(task, *one)
            except Exception as error:
                return error

        return [submit(one) for one in arguments]

    def submit_within(self, seconds: float, task: Task, *arguments: Any) -> Any:
        """Submit a task that must not run longer. A pool without such a limit leaves it to the server."""
        return self.submit(limited, task.__name__, seconds, *arguments)

    async def request(self, task: Task, *arguments: Any) -> None:
        """Run a task for a coroutine, as a web service does. If the client goes away, the coroutine is cancelled."""
        await asyncio.wrap_future(self.submit(task, *arguments))

    def cancel(self, future: Any) -> None:
        """Cancel a task, whether it waits or runs, as far as the pool can."""
        future.cancel()

    def shutdown(self) -> None:
        """Do what was submitted, then end."""
        raise NotImplementedError

    def stop(self) -> None:
        """End soon: drop what waits, and stop what runs, as far as the pool can."""
        self.shutdown()

    def rotated(self) -> None:
        """Hear that the credentials are new. A pool that cannot be told makes new connections when the old ones break."""

    @classmethod
    def kept(cls, cell: str) -> int:
        """Return how many tasks of a cell wait in a broker, after its process has ended; and forget them."""
        return 0


CANCEL = Line(
    "https://docs.python.org/3/library/concurrent.futures.html#concurrent.futures.Future.cancel",
    "If the call is currently being executed or finished running and cannot be cancelled then the method will return False",
)
SHUTDOWN = Line(
    "https://docs.python.org/3/library/concurrent.futures.html#concurrent.futures.Executor.shutdown",
    "if you use cancel_futures: 'Any futures that are completed or running won't be cancelled'",
)


class _Threads(Subject):
    """A `ThreadPoolExecutor`, with connections from somewhere."""

    lines: ClassVar[dict[str, Line]] = {"cancel": CANCEL, "stop": SHUTDOWN}

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

    title = "ThreadPoolExecutor, thread-local"

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

    title = "ThreadPoolExecutor, psycopg_pool"
    packages = ("psycopg_pool",)

    def open(self) -> None:
        from psycopg_pool import ConnectionPool

        self.pool = ConnectionPool(
            self.conninfo, min_size=SIZE, max_size=SIZE, check=ConnectionPool.check_connection, open=True
        )

    def close(self) -> None:
        self.pool.close()

    def rotated(self) -> None:
        self.pool.drain()

    def run(self, task: Task, *arguments: Any) -> None:
        with self.pool.connection() as connection:
            perform(connection.execute, task, *arguments)


class QueuePool(_Threads):
    """A thread borrows a connection of the engine for each task, tested before it is lent."""

    title = "ThreadPoolExecutor, SQLAlchemy"
    packages = ("sqlalchemy",)

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

    title = "ThreadPoolExecutor, DBUtils"
    packages = ("DBUtils",)

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

    title = "more-executors, retry, psycopg_pool"
    packages = ("more-executors",)

    def make_executor(self) -> Any:
        import psycopg
        from more_executors import Executors

        return Executors.thread_pool(max_workers=SIZE).with_retry(
            max_attempts=4, sleep=0.2, max_sleep=2.0, exception_base=psycopg.OperationalError
        )

    def stop(self) -> None:
        self.shutdown()  # It knows no cancel_futures.


class AsyncPool(Subject):
    """Coroutines on a loop of their own borrow connections of psycopg_pool."""

    title = "asyncio, psycopg_pool"
    packages = ("psycopg_pool",)

    def __init__(self, conninfo: str, transaction: bool = True) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.running: set[asyncio.Task[Any] | None] = set()
        self.pool = self.call(self.open(conninfo))

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    async def open(self, conninfo: str) -> Any:
        from psycopg_pool import AsyncConnectionPool

        pool = AsyncConnectionPool(
            conninfo, min_size=SIZE, max_size=SIZE, check=AsyncConnectionPool.check_connection, open=False
        )
        await pool.open()
        return pool

    async def run(self, task: Task, *arguments: Any) -> None:
        async with self.pool.connection() as connection:
            for step in task(*arguments):
                if isinstance(step, Sql):
                    await connection.execute(*step)
                else:
                    await asyncio.wrap_future(step)

    async def run_within(self, seconds: float | None, task: Task, *arguments: Any) -> None:
        current = asyncio.current_task()
        self.running.add(current)
        try:
            async with asyncio.timeout(seconds):
                await self.run(task, *arguments)
        finally:
            self.running.discard(current)

    def submit(self, task: Task, *arguments: Any) -> Any:
        return self.submit_within(None, task, *arguments)

    def submit_within(self, seconds: float | None, task: Task, *arguments: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(self.run_within(seconds, task, *arguments), self.loop)

    def rotated(self) -> None:
        self.call(self.pool.drain())

    def shutdown(self) -> None:
        self.call(self.end(cancel=False))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def stop(self) -> None:
        self.call(self.end(cancel=True))
        self.shutdown()

    async def end(self, cancel: bool) -> None:
        running = [task for task in self.running if task is not None]
        for task in running:
            if cancel:
                task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.pool.close()


class Joblib(PsycopgPool):
    """Each batch is a Parallel of threads, whose tasks borrow connections of psycopg_pool."""

    title = "joblib (threading), psycopg_pool"
    packages = ("joblib",)
    absent = frozenset({"cancel_queued", "cancel_running", "client_gone"})

    def make_executor(self) -> Any:
        self.batches: list[threading.Thread] = []

    def submit(self, task: Task, *arguments: Any) -> Any:
        return self.submit_many(task, [arguments])[0]

    def submit_many(self, task: Task, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        futures: list[Future[None]] = [Future() for _ in arguments]
        batch = threading.Thread(target=self.run_batch, args=(futures, task, arguments))
        batch.start()
        self.batches.append(batch)
        return list(futures)

    def run_batch(self, futures: list[Future[None]], task: Task, arguments: Sequence[tuple[Any, ...]]) -> None:
        from joblib import Parallel, delayed

        try:
            parallel = Parallel(n_jobs=SIZE, backend="threading", return_as="generator")
            for future, _ in zip(futures, parallel(delayed(self.run)(task, *one) for one in arguments), strict=True):
                future.set_result(None)
        except BaseException as error:  # The first error ends the batch.
            for future in futures:
                if not future.done():
                    future.set_exception(error)

    def shutdown(self) -> None:
        for batch in self.batches:
            batch.join()
        self.close()

    def stop(self) -> None:
        self.shutdown()


class _Message:
    """The result of a message, as a future."""

    def __init__(self, message: Any, backend: Any) -> None:
        self.message = message
        self.backend = backend

    def done(self) -> bool:
        from dramatiq.results import ResultFailure, ResultMissing

        try:
            self.message.get_result(backend=self.backend)
        except ResultMissing:
            return False
        except ResultFailure:
            pass
        return True

    def result(self, timeout: float = 600.0) -> None:
        from dramatiq.results import ResultTimeout

        try:
            self.message.get_result(backend=self.backend, block=True, timeout=int(timeout * 1000) + 1)
        except ResultTimeout as error:
            raise TimeoutError from error


class Dramatiq(ThreadLocal):
    """A worker of dramatiq in this process, on Redis; each of its threads keeps a connection."""

    title = "dramatiq, thread-local"
    packages = ("dramatiq",)
    absent = frozenset({"cancel_queued", "cancel_running"})

    def make_executor(self) -> Any:
        import dramatiq
        import psycopg
        from dramatiq.brokers.redis import RedisBroker
        from dramatiq.results import Results
        from dramatiq.results.backends import RedisBackend

        url = os.environ["TASKER_TEST_REDIS"]

        class CloseConnections(dramatiq.Middleware):  # type: ignore[misc]  # it is not installed everywhere
            def before_worker_thread_shutdown(_, broker: Any, thread: Any) -> None:
                if getattr(self.local, "connection", None) is not None:
                    self.local.connection.close()

        def may_retry(retries: int, error: BaseException) -> bool:
            return retries < 3 and isinstance(error, psycopg.OperationalError)

        self.backend = RedisBackend(url=url, namespace=f"{BOOK.cell}-results")
        broker = RedisBroker(url=url, namespace=BOOK.cell)
        broker.add_middleware(Results(backend=self.backend))
        broker.add_middleware(CloseConnections())
        options = {"store_results": True, "retry_when": may_retry, "min_backoff": 200, "max_backoff": 2000}
        self.actor = dramatiq.actor(self.run_named, actor_name="run", broker=broker, **options)
        self.worker = dramatiq.Worker(broker, worker_threads=SIZE, worker_timeout=100)
        self.worker.start()
        return broker

    def run_named(self, name: str, arguments: list[Any]) -> None:
        self.run(getattr(tasks, name), *arguments)

    def submit(self, task: Task, *arguments: Any) -> Any:
        return _Message(self.actor.send(task.__name__, list(arguments)), self.backend)

    async def request(self, task: Task, *arguments: Any) -> None:
        future = self.submit(task, *arguments)
        while not future.done():
            await asyncio.sleep(0.05)

    def shutdown(self) -> None:
        self.executor.join(self.actor.queue_name)
        self.stop()

    def stop(self) -> None:
        self.worker.stop()

    @classmethod
    def kept(cls, cell: str) -> int:
        import redis

        with redis.Redis.from_url(os.environ["TASKER_TEST_REDIS"]) as client:
            kept: int = sum(client.hlen(f"{cell}:{queue}.msgs") for queue in ("default", "default.DQ"))
            for key in client.scan_iter(f"{cell}*"):
                client.delete(key)
            return kept


class Ours(Subject):
    """Each worker owns a connection."""

    title = "ResourceExecutor"
    packages = ("tasker_executor",)

    def __init__(self, conninfo: str, transaction: bool = True) -> None:
        from tasker_executor import ResourceExecutor

        self.pool: Any = ResourceExecutor(SIZE, resource=self.resource(conninfo, transaction))

    def resource(self, conninfo: str, transaction: bool) -> Any:
        from tasker_executor.resources.psycopg import Connections

        return Connections(conninfo, transaction=transaction)

    @staticmethod
    def run(connection: Any, task: Task, *arguments: Any) -> None:
        perform(connection.execute, task, *arguments)

    def submit(self, task: Task, *arguments: Any) -> Any:
        return self.pool.submit(self.run, task, *arguments)

    def submit_within(self, seconds: float, task: Task, *arguments: Any) -> Any:
        return self.pool.with_options(run_within=seconds).submit(self.run, task, *arguments)

    async def request(self, task: Task, *arguments: Any) -> None:
        await self.pool.as_async().run(self.run, task, *arguments)

    def cancel(self, future: Any) -> None:
        future.stop()

    def shutdown(self) -> None:
        self.pool.shutdown()

    def rotated(self) -> None:
        self.pool.refresh()

    def stop(self) -> None:
        self.pool.kill()
        self.pool.shutdown()


SUBJECTS: dict[str, type[Subject]] = {
    "thread_local": ThreadLocal,
    "psycopg_pool": PsycopgPool,
    "sqlalchemy": QueuePool,
    "dbutils": PersistentDB,
    "flexexecutor": FlexExecutor,
    "more_executors": MoreExecutors,
    "asyncio": AsyncPool,
    "joblib": Joblib,
    "dramatiq": Dramatiq,
    "ours": Ours,
}
