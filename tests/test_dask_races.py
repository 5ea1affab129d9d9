"""`tasker_executor.dask`: races of threads in the client, forced without a cluster."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from support import DEADLINE
from tasker_executor._chunks import Chunk, ChunkRunner
from tasker_executor._engine.state import State
from tasker_executor._options import DEFAULT_OPTIONS
from tasker_executor.dask import DaskResourceExecutor, client_side
from tasker_executor.dask.books import Books
from tasker_executor.dask.futures import RemoteFuture
from tasker_executor.dask.wire import dumps_by_value
from tasker_executor.dask.worker_side import Call


class Client:
    """What the executor uses of Dask's client."""

    asynchronous = False
    status = "running"

    def __init__(self) -> None:
        self.loop = SimpleNamespace(add_callback=self._call)
        self.cancelled: list[Any] = []
        self.submit: Callable[..., Any] = SimpleNamespace

    def _call(self, function: Callable[..., Any], *args: Any) -> None:
        function(*args)

    def _cancel(self, remotes: list[Any]) -> None:
        self.cancelled += remotes

    def sync(self, ask: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run(ask())


async def nothing(*_: object) -> None:
    """What workers answer that do not answer in time."""


def bare_pool(client: Any, lock: Any = None) -> Any:
    """Return an executor that has no cluster."""
    pool: Any = DaskResourceExecutor.__new__(DaskResourceExecutor)
    pool.name = pool._plugin = pool._key_prefix = "bare"
    pool._client, pool._loop = client, client.loop
    pool._books = Books(client, "bare", SimpleNamespace())  # type: ignore[arg-type]  # no stop is asked for
    if lock is not None:
        pool._books.lock = lock
    pool._lock = pool._books.lock
    pool._state = State.RUNNING
    pool._max_retries = 3
    pool._keys = itertools.count()
    pool._capture = []
    pool._deployment = SimpleNamespace(tell=nothing)
    pool._following = SimpleNamespace(follow=nothing, wake=nothing)
    return pool


def entered(pool: Any, kind: type[RemoteFuture[Any]] = RemoteFuture) -> RemoteFuture[Any]:
    future = kind(pool._books)
    pool._books.enter(future, pool)
    return future


def test_future_that_another_thread_cancels_while_a_kill_looks_at_it_is_no_error() -> None:
    class Cancelled(RemoteFuture[Any]):
        """Dask's future is there at the first look, and then another thread takes it away."""

        looks: list[Any]

        def __getattribute__(self, name: str) -> Any:
            if name == "_remote" and "looks" in vars(self):
                return self.looks.pop(0) if self.looks else None
            return super().__getattribute__(name)

    pool = bare_pool(Client())
    future: Any = entered(pool, Cancelled)
    future.looks = [SimpleNamespace(key="one")]

    pool._cancel_waiting()

    assert future.cancelled()


def test_future_that_a_destructor_cancels_while_the_tasks_are_counted_is_no_error() -> None:
    pool = bare_pool(Client())

    class Counted(RemoteFuture[Any]):
        """When it is looked at, the last reference to an object goes, whose destructor cancels another task."""

        def __getattribute__(self, name: str) -> Any:
            if name == "_urgent" and not other.done():
                other.cancel()
            return super().__getattribute__(name)

    entered(pool, Counted)
    other = entered(pool)
    with pool._lock:
        numbers = pool._books.numbers(0, 0)

    assert (numbers["queued_tasks"], numbers["submitted"]) == (2, 2)
    assert len(pool._books) == 1


class TellingLock:
    """A lock that tells when a thread has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waited_for = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.waited_for.set()
            self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


def test_task_that_a_shutdown_cancels_in_mid_submit_is_cancelled_on_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A thread cancels the future, and sees that there is no future of Dask's yet. 2. The submitter stores that.
    # 3. The thread forgets what it has seen, and with it the one that was stored.
    lock = TellingLock()
    stored = lock.waited_for  # or stored without waiting, which is the error
    looked = threading.Event()

    class Raced(RemoteFuture[Any]):
        """The thread that cancels waits between its look and its store."""

        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "_remote" and threading.current_thread() is not threading.main_thread():
                looked.set()
                assert stored.wait(DEADLINE)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "_remote" and value is not None:
                stored.set()

    remote = SimpleNamespace(key="one")
    client = Client()
    pool = bare_pool(client, lock)
    monkeypatch.setattr(client_side, "RemoteFuture", Raced)
    with ThreadPoolExecutor(1) as threads:

        def submit(*_: object, **__: object) -> Any:
            [future] = pool._books.open_futures()
            threads.submit(future.cancel)
            assert looked.wait(DEADLINE)
            return remote

        client.submit = submit
        future = pool._enqueue(abs, (-1,), {}, DEFAULT_OPTIONS)

    assert future.cancelled()
    assert client.cancelled == [remote]


def test_answer_of_a_chunk_that_was_given_up_is_not_changed_by_its_thread() -> None:
    call = Call("abs", dumps_by_value((ChunkRunner(abs), (Chunk(((-1,),)),), {})))
    call()
    results = call.results
    assert call._call is not None
    call._call[1][0].results.append("late")

    assert results == [1]
