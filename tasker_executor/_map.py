"""`map`: the tasks are submitted in order, and their results are handed out in the same order.

The executor hands `map_results` a function that submits, so this module knows no executor. With `chunksize`,
a task makes several calls. With `buffersize`, a task is submitted only when the result of another one has
been fetched.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from ._checks import check_number, whole
from ._report import safe_repr
from ._sync import clock

__all__ = ["ChunkRunner", "cancel_all", "map_results"]

T = TypeVar("T")


def map_results(
    submit_each: Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], list[Future[Any]]],
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[T]:
    """Submit a task for each call, or for each chunk of calls, and return an iterator over the results.

    `submit_each(fn, calls)` submits one task for each of `calls`, which are tuples of arguments. It returns
    their futures.
    """
    # A negative timeout is legal, as in the standard library: the caller's own time has run out.
    deadline = None if timeout is None else clock() + check_number("timeout", timeout, "a number of seconds")
    chunksize, buffersize = _check_sizes(chunksize, buffersize)
    calls: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905  # the shortest decides, as in the standard library
    if buffersize is None and chunksize == 1:
        futures: list[Future[T]] = submit_each(fn, calls)
        return _Results(_results_in_order(futures, deadline), futures)
    if buffersize is not None:
        chunksize = min(chunksize, buffersize)
        buffersize //= chunksize
    chunks: deque[_Chunk] = deque()
    jobs = _chunked(calls, chunksize, chunks)
    run = ChunkRunner(fn)
    waiting = deque(submit_each(run, islice(jobs, buffersize)))
    submit = partial(submit_each, run)
    return _Results(_chunk_results_in_order(_ready_in_order(waiting, jobs, submit, deadline), chunks), waiting)


def cancel_all(futures: Iterable[Future[Any]]) -> None:
    """Cancel the tasks that have not started."""
    for future in futures:
        future.cancel()


def _check_sizes(chunksize: Any, buffersize: Any) -> tuple[int, int | None]:
    """Return both as plain ints, or raise.

    Where the standard library refuses a value, the error has its words.
    """
    size = whole(chunksize)
    if size is None:
        raise TypeError(f"chunksize must be an integer, not {safe_repr(chunksize)}")
    if size < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is None:
        return min(size, sys.maxsize), None
    limit = whole(buffersize)
    if limit is None:
        raise TypeError("buffersize must be an integer or None")
    if limit < 1:
        raise ValueError("buffersize must be None or > 0")
    return min(size, sys.maxsize), min(limit, sys.maxsize)


def _wait(future: Future[Any], deadline: float | None) -> None:
    """Block until the future is final.

    Raises:
        TimeoutError: The future is not final at the deadline.
        CancelledError: The future was cancelled.
    """
    future.exception(None if deadline is None else deadline - clock())


# -- chunks


class _Chunk:
    """The calls of one task, and their results so far. A retry goes on with the call that failed."""

    __slots__ = ("calls", "results")

    def __init__(self, calls: tuple[tuple[Any, ...], ...]) -> None:
        self.calls = calls
        self.results: list[Any] = []


class ChunkRunner:
    """The function of a chunk's task: makes each call of the chunk."""

    __slots__ = ("__wrapped__",)

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.__wrapped__ = fn

    def __call__(self, *args: Any) -> None:
        """Make the calls that have no result yet. `args` are the resource, if there is one, and the chunk."""
        *resource, chunk = args
        fn = partial(self.__wrapped__, *resource) if resource else self.__wrapped__
        # The results are noted one by one, so those before a call that raises are kept. This is a plain loop:
        # loops of the standard library (`map`, `starmap`) take a StopIteration of the function for the end of
        # the calls.
        note = chunk.results.append
        for call in chunk.calls[len(chunk.results) :]:
            note(fn(*call))


def _chunked(calls: Iterator[tuple[Any, ...]], size: int, chunks: deque[_Chunk]) -> Iterator[tuple[_Chunk]]:
    """Yield the arguments of each task, and append its chunk to `chunks`."""
    while part := tuple(islice(calls, size)):
        chunk = _Chunk(part)
        chunks.append(chunk)
        yield (chunk,)


# -- results


class _Results(chain[T]):
    """The results of a generator, at no cost for each, with a `close` that works before the first result.

    A generator that has not begun does nothing when it is closed, so `close` cancels the futures itself. Such
    a generator does nothing when it is dropped either. That is wanted: a caller who ignores the results of
    `map` wants its tasks run.
    """

    _generator: Generator[T]
    _futures: Collection[Future[Any]]

    def __new__(cls, generator: Generator[T], futures: Collection[Future[Any]]) -> _Results[T]:
        results = super().__new__(cls, generator)
        results._generator = generator
        results._futures = futures
        return results

    def close(self) -> None:
        """Hand out no more results, and cancel the tasks that have not started."""
        self._generator.close()
        cancel_all(self._futures)


def _results_in_order(futures: list[Future[T]], deadline: float | None) -> Generator[T]:
    """Yield the result of each future. In the end, cancel the tasks that have not started."""
    try:
        futures.reverse()
        while futures:
            if not futures[-1].done():
                _wait(futures[-1], deadline)
            yield futures.pop().result()  # keeps no reference to the result that it hands out
    finally:
        cancel_all(futures)


def _ready_in_order(
    futures: deque[Future[T]],
    jobs: Iterator[tuple[Any, ...]],
    submit: Callable[[Iterable[tuple[Any, ...]]], list[Future[T]]],
    deadline: float | None,
) -> Iterator[Future[T]]:
    """Yield each future when it is final, after the next task was submitted in its place.

    If the executor refuses a task, the results of the tasks that it has accepted come first, and then its
    refusal. (The standard library loses those results: gh-146392.)
    """
    refusal: RuntimeError | None = None
    try:
        while futures:
            if not futures[0].done():
                _wait(futures[0], deadline)
            done = [futures.popleft()]
            if refusal is None:
                for job in islice(jobs, 1):
                    try:
                        futures.extend(submit((job,)))
                    except RuntimeError as error:
                        if isinstance(error, RecursionError):
                            raise
                        refusal = error
            yield done.pop()
        if refusal is not None:
            try:
                raise refusal
            finally:
                refusal = None  # a frame and the error that leads to it would keep each other alive
    finally:
        cancel_all(futures)


def _chunk_results_in_order(ready: Iterator[Future[None]], chunks: deque[_Chunk]) -> Generator[Any]:
    """Yield the results of each chunk. Raise the error of a call after the results before it."""
    try:
        for future in ready:
            error = future.exception()
            del future
            results = chunks.popleft().results
            results.reverse()
            while results:
                yield results.pop()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # as the refusal in `_ready_in_order`
    finally:
        ready.close()  # type: ignore[attr-defined]  # a generator
