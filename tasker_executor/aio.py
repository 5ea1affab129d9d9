"""The front door for asyncio: `AsyncView`, which `as_async` of an executor returns.

**The loop never blocks.** A submission puts a task into a lane. If the queue is full, it puts the task into the
line for a place. Coroutines wait for futures of the loop, which the done-callbacks of tasks wake. No thread is
started or needed here, not even by `AsyncView.shutdown`.

**Cancelling is stopping.** A coroutine of this module that is cancelled, or closed, calls `TaskFuture.stop` for
its tasks, and ends at once: it does not wait for them. So `asyncio.timeout` keeps its time.

**A task is not its coroutine.** If the *task* was cancelled, by ``kill()`` or by a shutdown, the coroutine raises
`TaskCancelled`. It never raises `asyncio.CancelledError` then: the caller that awaits it would take that for a
cancellation of its own.

**No result is lost.** A loop that was closed is not told. The future of the task has its result or its error all
the same.
"""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, Generic, Self, overload

from typing_extensions import ParamSpec, TypeVar

from ._async_map import AsyncResults, Calls, Submitter, result_of, stop, tell
from ._checks import check_buffersize, check_seconds
from .exceptions import ShutdownTimeout
from .futures import TaskFuture

__all__ = ["AsyncResults", "AsyncView"]

R = TypeVar("R", default=None)
T = TypeVar("T")
P = ParamSpec("P")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")


class AsyncView(Generic[R]):
    """An executor for coroutines. Obtained from `as_async` of an executor.

    The type parameter is the type of the resource that tasks get as their first argument. Any number of event
    loops, in any threads, may use one view.

    Example:
        >>> import asyncio
        >>> from tasker_executor import ResourceExecutor
        >>> async def main(pool):
        ...     async with pool.as_async() as tasks:
        ...         return await tasks.run(pow, 2, 5), [size async for size in tasks.map(len, ["a", "bb"])]
        >>> with ResourceExecutor(2) as pool:
        ...     asyncio.run(main(pool))
        (32, [1, 2])
    """

    def __init__(self, view: Submitter) -> None:
        self._view = view

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._view!r}>"

    @overload
    async def run(self: AsyncView[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def run(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def run(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run a task on a worker; return its result, or raise its error.

        With a resource the task is called ``fn(resource, *args, **kwargs)``, without one ``fn(*args, **kwargs)``.
        If the queue is full, this waits for a place, first come, first served, together with the threads that
        block in `submit`. Only with ``on_full="raise"`` it raises QueueFull. (``on_full="caller"`` waits, too: the
        caller's thread is that of the loop.)

        If the coroutine is cancelled, by a time-out or because a client has gone away, the task is stopped, as
        by `TaskFuture.stop`, and the coroutine ends at once. If the task has no place yet, it never runs.

        Args:
            fn: The function of the task.
            *args: Its arguments, after the resource.
            **kwargs: Its keyword arguments.

        Raises:
            TaskCancelled: The task was cancelled before it started, by ``kill()`` or by a shutdown that cancels.
                `TaskStopped`, which is one, too: it was stopped while it ran, and not by this coroutine.
            TaskTimeout: It has run for longer than ``run_within``.
            TaskExpired: It has not started within ``start_within``. The time waiting for a place counts.
            QueueFull: ``max_queued`` tasks wait, and the executor was made with ``on_full="raise"``.
            RuntimeError: The executor, or this view, has been shut down.
        """
        view = self._view
        loop = get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        future: TaskFuture[T] = view._enqueue_soon(fn, args, kwargs, view._options)
        try:
            future.add_done_callback(partial(tell, loop, waiter))
            await waiter
        except BaseException:  # cancelled; or closed, because its loop is gone
            stop(future)
            raise
        try:
            return result_of(future)
        finally:
            del self, fn, args, kwargs, view, future  # the error leads to this frame

    @overload
    def map(
        self: AsyncView[None],
        fn: Callable[[T1], T],
        iterable1: Iterable[T1],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self: AsyncView[None],
        fn: Callable[[T1, T2], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self: AsyncView[None],
        fn: Callable[[T1, T2, T3], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self: AsyncView[None],
        fn: Callable[[T1, T2, T3, T4], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        iterable4: Iterable[T4],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self: AsyncView[None],
        fn: Callable[[T1, T2, T3, T4, T5], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        iterable4: Iterable[T4],
        iterable5: Iterable[T5],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1], T],
        iterable1: Iterable[T1],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1, T2], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1, T2, T3], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1, T2, T3, T4], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        iterable4: Iterable[T4],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1, T2, T3, T4, T5], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        iterable4: Iterable[T4],
        iterable5: Iterable[T5],
        /,
        *,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    @overload
    def map(
        self,
        fn: Callable[..., T],
        iterable1: Iterable[Any],
        iterable2: Iterable[Any],
        iterable3: Iterable[Any],
        iterable4: Iterable[Any],
        iterable5: Iterable[Any],
        iterable6: Iterable[Any],
        /,
        *iterables: Iterable[Any],
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncResults[T]: ...
    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], buffersize: int | None = None, ordered: bool = True
    ) -> AsyncResults[T]:
        """Return an asynchronous iterator over ``fn(*items)`` for the items of `iterables`.

        Nothing is read or submitted before the first result is asked for. Then the iterables are read to their
        end, or as far as `buffersize`, or the bound of the queue, lets them. A full queue is awaited: each map has
        at most one task in the line for a place. The error of a task is raised in the place of its result. The
        iterator is for one coroutine at a time, and belongs to the event loop of the first one.

        When the loop is left early, by ``break``, by an error, or because the coroutine was cancelled, the tasks
        that are left are stopped, as by `TaskFuture.stop`. An iterator that a variable still refers to has to be
        closed for that: ``await results.aclose()``, or `contextlib.aclosing`.

        Args:
            fn: The function of the tasks. It gets the resource first, as by `run`.
            *iterables: The arguments; the shortest iterable decides. They are read on the thread of the loop.
            buffersize: At most this number of calls are queued, run, or have a result that was not handed out.
                None: no limit.
            ordered: False: each result is handed out as soon as it is there.

        Raises:
            ValueError, TypeError: `buffersize` is no whole number above 0.
            RuntimeError: By the iterator: the executor, or this view, has been shut down. The results of the
                tasks that were accepted come first.
        """
        limit = check_buffersize(buffersize)
        calls: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905  # the shortest decides, as in the standard library
        return AsyncResults(Calls(self._view, fn, calls, limit, ordered=ordered))

    async def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks through this view, and wait for those submitted. The executor behind it goes on.

        A coroutine that is cancelled here stops nothing; it waits no more. On a thread of the executor itself
        this does not wait.

        Args:
            wait: Wait until the tasks submitted through this view are done.
            cancel_futures: Cancel those of them that have not started. The coroutines that await them raise
                `TaskCancelled`.
            timeout: Seconds to wait at most. None: no limit.

        Raises:
            ShutdownTimeout: The tasks were not done in time. They go on.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        futures = self._view._close()
        if cancel_futures:
            for future in futures:
                future.cancel()
        if wait and not self._view._inside():
            await self._wait_for(futures, timeout)

    async def _wait_for(self, futures: list[TaskFuture[Any]], timeout: float | None) -> None:
        """Wait until the futures are done, one after the other."""
        loop = get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                for future in futures:
                    if not future.done():
                        waiter: asyncio.Future[None] = loop.create_future()
                        future.add_done_callback(partial(tell, loop, waiter))
                        await waiter
        except TimeoutError:
            left = sum(not future.done() for future in futures)
            raise ShutdownTimeout(f"{left} tasks of {self!r} are not done within {timeout} s; they go on") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut the view down: wait for its tasks. After an error in the block they are stopped first.

        `asyncio.TaskGroup` does the same. After an error, or a cancellation, no caller awaits the results. And
        tasks that are stopped keep the wait short: at most ``abort_grace`` seconds.
        """
        if kind is not None:
            futures = self._view._close()
            for future in futures:  # first those that wait: a worker that becomes free must not start one
                future.cancel()
            for future in futures:
                stop(future)
        await self.shutdown()
