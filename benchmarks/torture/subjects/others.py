"""Coroutines, batches, and a queue with a broker."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from .. import tasks
from ..tasks import BOOK, Sql, Task
from ._subject import SIZE, Line, Subject
from .threads import CHECK, DRAIN, THREADS, PsycopgPool, ThreadLocal

__all__ = ["AsyncPool", "Dramatiq", "Joblib"]


class AsyncPool(Subject):
    """Coroutines on a loop in a thread of its own borrow connections of psycopg_pool."""

    title = "asyncio + psycopg_pool"
    absent: ClassVar[dict[str, str]] = {"dropped": "a loop that runs is no object that one drops"}
    packages = ("psycopg_pool",)
    lines: ClassVar[dict[str, Line]] = {
        "setup": CHECK,
        "credentials": DRAIN,
        "deadline": Line(
            "https://docs.python.org/3/library/asyncio-task.html#asyncio.timeout",
            "long_running_task() is interrupted by raising asyncio.CancelledError",
        ),
        "nested": Line(
            "https://www.psycopg.org/psycopg3/docs/api/pool.html#psycopg_pool.ConnectionPool",
            "timeout: The default maximum time in seconds that a client can wait to receive a connection from the pool.",
        ),
        "exit": Line(
            "https://docs.python.org/3/library/asyncio-runner.html#asyncio.run",
            "It should be used as a main entry point for asyncio programs. [Its end cancels what still runs.]",
        ),
        "fork": THREADS["fork"],
    }

    def __init__(self, conninfo: str, transaction: bool = True) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.running: dict[asyncio.Task[Any] | None, None] = {}  # In their order.
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
        self.running[current] = None
        try:
            async with asyncio.timeout(seconds):
                await self.run(task, *arguments)
        finally:
            del self.running[current]

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

    title = "joblib + psycopg_pool"
    packages = ("joblib",)
    absent: ClassVar[dict[str, str]] = dict.fromkeys(
        ("cancel_queued", "cancel_running", "client_gone"), "a batch has one end, and its tasks have no futures"
    )
    lines: ClassVar[dict[str, Line]] = PsycopgPool.lines | {
        "setup": Line(
            "https://joblib.readthedocs.io/en/stable/generated/joblib.Parallel.html",
            "If 'generator', it will return a generator that yields the results as soon as they are available, in the order "
            "the tasks have been submitted with.",
        ),
    }

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
        # Not get_result(block=True): it raises an error of its own when the socket of Redis times out.
        deadline = time.monotonic() + timeout
        while not self.done():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.02)
        self.message.get_result(backend=self.backend)


class Dramatiq(ThreadLocal):
    """A worker of dramatiq in this process, on Redis; each of its threads keeps a connection."""

    title = "dramatiq + thread-local"
    packages = ("dramatiq",)
    absent: ClassVar[dict[str, str]] = {
        "cancel_queued": "a message that was sent is not taken back",
        "cancel_running": "a message that was sent is not taken back",
        "dropped": "a worker is a program of its own, not an object that one drops",
        "many_killed": "to send 100,000 messages one by one takes longer than a cell has",
    }
    lines: ClassVar[dict[str, Line]] = {
        "setup": Line(
            "https://dramatiq.io/reference.html#dramatiq.middleware.Retries",
            "An optional predicate that can be used to programmatically determine whether a task should be retried or not.",
        ),
        "stop": Line(
            "https://dramatiq.io/reference.html#dramatiq.middleware.ShutdownNotifications",
            "this middleware can't cancel system calls",
        ),
        "cancel": Line(
            "https://dramatiq.io/reference.html#dramatiq.middleware.TimeLimit",
            "this middleware can't cancel system calls",
        ),
        "deadline": THREADS["deadline"],
        "nested": Line(
            "https://dramatiq.io/reference.html#dramatiq.results.Results",
            "Middleware that automatically stores actor results.",
        ),
        "fork": THREADS["fork"],
    }

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
            timed_out = isinstance(error, psycopg.errors.QueryCanceled)  # It is an OperationalError, too.
            return retries < 6 and isinstance(error, psycopg.OperationalError) and not timed_out

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
