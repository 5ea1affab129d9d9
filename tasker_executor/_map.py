"""`map`: submit the tasks in order, and hand their results out in the same order, or as they come.

With `chunksize`, a task makes several calls (``_chunks.py``). With `buffersize`, a task is submitted only
when the result of another one has been fetched. With ``ordered=False``, the results are handed out as they
come (``_arrivals.py``).

These modules know futures by their public methods alone: `submit` may be replaced, and return futures of
another library. What they need of the executor is in `Submitter`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from ._arrivals import Submitter, results_as_they_come
from ._checks import check_buffersize, check_number, whole
from ._chunks import Chunk, ChunkRunner, chunked
from ._report import safe_repr
from ._results import Results, cancel_all, stop_all
from ._sync import clock

__all__ = ["map_results"]

T = TypeVar("T")


def map_results(
    executor: Submitter,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
    ordered: bool,
    stop_on_timeout: bool,
) -> Iterator[T]:
    """Submit a task for each call, or for each chunk of calls, and return an iterator over the results."""
    # A negative timeout is legal, as in the standard library: the caller's own time has run out.
    deadline = None if timeout is None else clock() + check_number("timeout", timeout, "a number of seconds")
    chunksize, buffersize = _check_sizes(chunksize, buffersize)
    calls: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905  # the shortest decides, as in the standard library
    submit_each = executor._submit_each
    if not ordered:
        return results_as_they_come(executor, fn, calls, deadline, chunksize, buffersize, stop=stop_on_timeout)
    if buffersize is None and chunksize == 1:
        futures: deque[Future[T]] = deque(submit_each(fn, calls))
        return Results(_results_in_order(futures, deadline, stop=stop_on_timeout), futures)
    slack = 0
    if buffersize is not None:
        chunksize = min(chunksize, buffersize)
        buffersize, slack = divmod(buffersize, chunksize)
    chunks: deque[Chunk] = deque()
    jobs = chunked(calls, chunksize, chunks)
    run = ChunkRunner(fn, scoped=executor._scoped)
    waiting = deque(submit_each(run, islice(jobs, buffersize)))
    submit = partial(submit_each, run)
    ready = _ready_in_order(waiting, jobs, submit, deadline, stop=stop_on_timeout)
    return Results(_chunk_results_in_order(ready, chunks, slack, scoped=run.scoped), waiting)


def _check_sizes(chunksize: Any, buffersize: Any) -> tuple[int, int | None]:
    """Return both as plain ints, or raise.

    Where the standard library refuses a value, the error has its words.
    """
    size = whole(chunksize)
    if size is None:
        raise TypeError(f"chunksize must be an integer, not {safe_repr(chunksize)}")
    if size < 1:
        raise ValueError("chunksize must be >= 1.")
    limit = check_buffersize(buffersize)
    return min(size, sys.maxsize), None if limit is None else min(limit, sys.maxsize)


def _wait_for_first(futures: deque[Future[T]], deadline: float | None, *, stop: bool) -> None:
    """Block until the first of these futures is final.

    Raises:
        TimeoutError: It is not final at the deadline. With `stop`, the tasks of all of them are stopped.
        CancelledError: It was cancelled.
    """
    try:
        futures[0].exception(None if deadline is None else deadline - clock())
    except TimeoutError:
        if stop:
            stop_all(futures)
        raise


def _results_in_order(futures: deque[Future[T]], deadline: float | None, *, stop: bool) -> Generator[T]:
    """Yield the result of each future. In the end, cancel the tasks that have not started."""
    try:
        while futures:
            if not futures[0].done():
                _wait_for_first(futures, deadline, stop=stop)
            yield futures.popleft().result()  # keeps no reference to the result that it hands out
    finally:
        cancel_all(futures)


def _ready_in_order(
    futures: deque[Future[T]],
    jobs: Iterator[tuple[Any, ...]],
    submit: Callable[[Iterable[tuple[Any, ...]]], list[Future[T]]],
    deadline: float | None,
    *,
    stop: bool,
) -> Iterator[Future[T] | None]:
    """Yield each future when it is final. Submit the next task in its place, and yield None after that.

    If the executor refuses a task, the results of the tasks that it has accepted come first, and then its
    refusal. (The standard library loses those results: gh-146392.)
    """
    refusal: RuntimeError | None = None
    try:
        while futures:
            if not futures[0].done():
                _wait_for_first(futures, deadline, stop=stop)
            yield futures.popleft()
            if refusal is None:
                for job in islice(jobs, 1):
                    try:
                        futures.extend(submit((job,)))
                    except RuntimeError as error:
                        if isinstance(error, RecursionError):
                            raise
                        refusal = error
            yield None
        if refusal is not None:
            try:
                raise refusal
            finally:
                refusal = None  # a frame and the error that leads to it would keep each other alive
    finally:
        cancel_all(futures)


def _chunk_results_in_order(
    ready: Iterator[Future[None] | None], chunks: deque[Chunk], slack: int, *, scoped: bool
) -> Generator[Any]:
    """Yield the results of each chunk. Raise the error of a call after the results before it.

    The next task is submitted when at most `slack` results of the chunk have not been fetched.
    """
    try:
        for future in ready:
            assert future is not None
            error = future.exception()
            del future
            results = chunks.popleft().final_results(error, scoped=scoped)
            while len(results) > slack + 1:
                yield results.pop()
            next(ready)  # submits the next task
            while results:
                yield results.pop()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # as the refusal in `_ready_in_order`
    finally:
        ready.close()  # type: ignore[attr-defined]  # a generator
