"""`map` of an `AsyncView`: its calls, its results, and what it shares with `AsyncView.run`."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, get_running_loop
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from typing_extensions import override

from ._options import TaskOptions
from .exceptions import TaskCancelled
from .futures import TaskFuture

__all__ = ["AsyncResults", "Calls", "Submitter", "result_of", "stop", "tell"]

T = TypeVar("T")

#: `map` hands in, or out, at most this number of calls before it lets the loop do something else.
_SLICE = 64


class Submitter(Protocol):
    """The view of an executor behind an `AsyncView`."""

    _options: TaskOptions

    def _enqueue_soon(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        on_queued: Callable[[], object] | None = None,
    ) -> TaskFuture[Any]:
        """Queue one task without blocking."""
        ...

    def _inside(self) -> bool:
        """Return whether this is a thread of the executor itself."""
        ...

    def _close(self) -> list[TaskFuture[Any]]:
        """Accept no more tasks; return the futures of those that are not done."""
        ...


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def tell(loop: AbstractEventLoop, waiter: asyncio.Future[None], _: object = None) -> None:
    """Wake the coroutine that awaits `waiter`, from any thread: a done-callback, so it raises nothing."""
    if waiter.done():  # the coroutine was cancelled
        return
    try:
        loop.call_soon_threadsafe(_wake, waiter)
    except RuntimeError:
        if not loop.is_closed():
            raise


def result_of(future: Future[T]) -> T:
    """Return the result of a future that is done, or raise its error; never `asyncio.CancelledError`."""
    try:
        return future.result()
    except CancelledError:
        if not future.cancelled():  # an error of ours, such as TaskStopped, or the task's own
            raise
        message = "the task was cancelled before it started, and not by the coroutine that awaits it"
        raise TaskCancelled(message) from None
    except asyncio.CancelledError as error:
        raise TaskCancelled("the task itself raised asyncio.CancelledError") from error
    finally:
        del future  # the error leads to this frame


def stop(future: TaskFuture[Any]) -> None:
    """Stop a task whose result is not awaited any more."""
    try:
        future.stop()
    except RuntimeError:  # the client of a cluster is closed, and has given the task up
        pass


class Calls:
    """The calls of one `map`: what is submitted, and what has arrived.

    The done-callbacks of the tasks refer to this object, and not to the iterator that the user has. So a
    dropped iterator is collected, and stops the tasks that are left.
    """

    def __init__(
        self, view: Submitter, fn: Callable[..., Any], calls: Iterator[tuple[Any, ...]], limit: int | None, *, ordered: bool
    ) -> None:
        self._view = view
        self._fn = fn
        self._calls: Iterator[tuple[Any, ...]] | None = calls
        self._limit = limit
        self._ordered = ordered
        # The calls that were submitted, and whose results were not handed out, in their order. A dict, if
        # they do not leave it in their order. Only the thread of the loop uses it; and the thread that drops
        # the iterator, when no coroutine can have it any more.
        queue: deque[TaskFuture[Any]] = deque()
        left: dict[TaskFuture[Any], None] = {}
        self._futures: deque[TaskFuture[Any]] | dict[TaskFuture[Any], None] = queue if ordered else left
        self._add: Callable[[TaskFuture[Any]], object] = queue.append if ordered else left.setdefault
        self._last: TaskFuture[Any] | None = None  # while it may stand in line for a place
        self._error: Exception | None = None  # raised by an iterable or a submission, when it is its turn
        self._error_waits = False  # until the results that are still to come have been handed out
        #: Done, and not handed out, if the order is that of arrival. Any thread appends, one takes.
        self._arrived: deque[TaskFuture[Any]] = deque()
        # Set by the coroutine before it looks for the last time; a thread looks here after its task is done.
        # So one of the two sees the other. Each is read once.
        self._head: TaskFuture[Any] | None = None  # the only one that it waits for, if the order is that of the calls
        self._bell: Callable[[], None] | None = None

    # -- called by any thread

    def _arrive(self, future: Future[Any]) -> None:
        """Note that a task is done. A done-callback."""
        assert isinstance(future, TaskFuture)
        if not self._ordered:
            self._arrived.append(future)
        elif self._head is not future:
            return
        self._ring()

    def _ring(self) -> None:
        """Wake the coroutine that waits for a result."""
        bell = self._bell
        if bell is not None:
            bell()

    # -- called on the thread of the loop

    def submit(self) -> bool:
        """Submit as many calls as may be, but at most a slice; return whether there may be more at once."""
        view = self._view
        for _ in range(_SLICE):
            if self._calls is None or (self._limit is not None and len(self._futures) >= self._limit) or self._in_line():
                return False
            try:
                args = next(self._calls, None)
                if args is None:
                    self._calls = None
                    return False
                self._last = future = view._enqueue_soon(self._fn, args, {}, view._options, self._ring)
            except Exception as error:
                self._calls = None
                self._error = error
                self._error_waits = isinstance(error, RuntimeError) and not isinstance(error, RecursionError)
                return False
            self._add(future)
            future.add_done_callback(self._arrive)
        return True

    def _in_line(self) -> bool:
        """Return whether the last call stands in line for a place in the queue."""
        if self._last is not None and not self._last._waits_for_place():
            self._last = None
        return self._last is not None

    def take(self) -> TaskFuture[Any] | None:
        """Return the next future to be handed out, if it is done."""
        if isinstance(self._futures, dict):
            while self._arrived:
                future = self._arrived.popleft()
                if future in self._futures:  # not stopped
                    del self._futures[future]
                    return future
        elif self._futures and self._futures[0].done():
            return self._futures.popleft()
        return None

    def raise_if_over(self) -> None:
        """Raise StopAsyncIteration if nothing is left, or the error that ended the submissions."""
        if self._error is not None and not (self._error_waits and self._futures):
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error
        if not self._futures and self._calls is None:
            raise StopAsyncIteration

    async def news(self) -> None:
        """Wait until there is a result to be taken, or a place in the queue for the next call."""
        loop = get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._head = head = None if isinstance(self._futures, dict) else self._futures[0]
        in_line = self._last is not None  # as `submit` has seen it
        self._bell = partial(tell, loop, waiter)
        try:  # look once more, now that the other threads see the bell
            if not (self._arrived or (head is not None and head.done()) or in_line != self._in_line()):
                await waiter
        finally:
            self._bell = self._head = None

    def stop(self) -> None:
        """Submit no more, and stop the tasks that are left: the last one first, so no worker starts another."""
        self._calls = self._error = self._last = None
        left = list(self._futures)
        self._futures.clear()
        self._arrived.clear()
        while left:
            stop(left.pop())
        self._ring()  # a coroutine may wait for a result, if this is called by another one


class AsyncResults(AsyncIterator[T]):
    """The results of `AsyncView.map`, for ``async for``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        # Coroutines of one loop look and set: they do not come between the two.
        self._asked = False  # a coroutine waits for the next result
        self._in_a_row = 0  # results that were handed out without a pause for the loop

    @override
    async def __anext__(self) -> T:
        if self._asked:
            raise RuntimeError("another coroutine waits for the next result of this map()")
        self._asked = True
        try:
            future = await self._next()
            self._calls.submit()  # in the place of the one that is handed out
            return result_of(future)
        except BaseException:  # cancelled, too
            self._calls.stop()
            raise
        finally:
            self._asked = False
            future = None  # type: ignore[assignment]  # an error leads to this frame

    async def _next(self) -> TaskFuture[T]:
        """Return the next future that is done, or raise StopAsyncIteration."""
        calls = self._calls
        while True:
            more = calls.submit()
            if self._in_a_row < _SLICE and (future := calls.take()) is not None:
                self._in_a_row += 1
                return future
            calls.raise_if_over()
            if more or self._in_a_row:
                self._in_a_row = 0
                await asyncio.sleep(0)
            else:
                await calls.news()

    async def aclose(self) -> None:
        """Hand out no more results, and stop the tasks that are left. Does not wait for them."""
        self._calls.stop()

    def __del__(self) -> None:
        with suppress(AttributeError):  # __init__ was interrupted
            self._calls.stop()
