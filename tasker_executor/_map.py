"""`map`: the tasks are submitted in order, and their results are handed out in the same order, or as they come.

With `chunksize`, a task makes several calls. With `buffersize`, a task is submitted only when the result of
another one has been fetched. With ``ordered=False``, the done-callback of each task puts its number into a
queue, and the caller takes the numbers out.

This module knows futures by their public methods alone: `submit` may be replaced, and return futures of
another library. What it needs of the executor is in `Submitter`.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import chain, islice
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from ._checks import check_number, whole
from ._report import safe_repr
from ._sync import clock

__all__ = ["Arrivals", "ChunkRunner", "Submitter", "cancel_all", "map_results", "note_fork"]

T = TypeVar("T")


class Submitter(Protocol):
    """What `map` needs of the executor."""

    @property
    def _scoped(self) -> bool:
        """Whether a scope is entered before each task and left after it, which may undo all of a failed task."""
        ...

    def _submit_each(self, fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]], /) -> list[Future[Any]]:
        """Submit one task for each of `calls`, which are tuples of arguments. Return their futures."""
        ...

    def _wait_for_one(self, future: Future[Any], arrivals: Arrivals, timeout: float | None, /) -> bool:
        """Block as a thread does that waits for `future`, but until `arrivals` is released.

        Return False at the timeout.
        """
        ...


def map_results(
    executor: Submitter,
    fn: Callable[..., T],
    iterables: tuple[Iterable[Any], ...],
    *,
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
    ordered: bool,
) -> Iterator[T]:
    """Submit a task for each call, or for each chunk of calls, and return an iterator over the results."""
    # A negative timeout is legal, as in the standard library: the caller's own time has run out.
    deadline = None if timeout is None else clock() + check_number("timeout", timeout, "a number of seconds")
    chunksize, buffersize = _check_sizes(chunksize, buffersize)
    calls: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905  # the shortest decides, as in the standard library
    submit_each = executor._submit_each
    if not ordered:
        return _results_as_they_come(executor, fn, calls, deadline, chunksize, buffersize)
    if buffersize is None and chunksize == 1:
        futures: list[Future[T]] = submit_each(fn, calls)
        return _Results(_results_in_order(futures, deadline), futures)
    slack = 0
    if buffersize is not None:
        chunksize = min(chunksize, buffersize)
        buffersize, slack = divmod(buffersize, chunksize)
    chunks: deque[_Chunk] = deque()
    jobs = _chunked(calls, chunksize, chunks)
    run = ChunkRunner(fn, scoped=executor._scoped)
    waiting = deque(submit_each(run, islice(jobs, buffersize)))
    submit = partial(submit_each, run)
    ready = _ready_in_order(waiting, jobs, submit, deadline)
    return _Results(_chunk_results_in_order(ready, chunks, slack, scoped=run.scoped), waiting)


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
    """The calls of one task, and their results so far."""

    __slots__ = ("calls", "results")

    def __init__(self, calls: tuple[tuple[Any, ...], ...]) -> None:
        self.calls = calls
        self.results: list[Any] = []

    def final_results(self, error: BaseException | None, *, scoped: bool) -> list[Any]:
        """Return the results that count, the last one first, when the task has ended with `error` or none."""
        if error is not None and scoped:
            self.results.clear()  # the scope undid what those calls did
        self.results.reverse()
        return self.results


class ChunkRunner:
    """The function of a chunk's task: makes each call of the chunk.

    A retry goes on with the call that failed. But if the executor enters a scope for each task, such as a
    transaction, the scope has undone all calls of the failed attempt. So the retry makes all calls.
    """

    __slots__ = ("__wrapped__", "scoped")

    def __init__(self, fn: Callable[..., Any], *, scoped: bool = False) -> None:
        self.__wrapped__ = fn
        self.scoped = scoped

    def __call__(self, *args: Any) -> None:
        """Make the calls that have no result yet. `args` are the resource, if there is one, and the chunk."""
        *resource, chunk = args
        fn = partial(self.__wrapped__, *resource) if resource else self.__wrapped__
        if self.scoped:
            chunk.results.clear()
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
) -> Iterator[Future[T] | None]:
    """Yield each future when it is final. Submit the next task in its place, and yield None after that.

    If the executor refuses a task, the results of the tasks that it has accepted come first, and then its
    refusal. (The standard library loses those results: gh-146392.)
    """
    refusal: RuntimeError | None = None
    try:
        while futures:
            if not futures[0].done():
                _wait(futures[0], deadline)
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
    ready: Iterator[Future[None] | None], chunks: deque[_Chunk], slack: int, *, scoped: bool
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


# -- results as they come

#: All arrivals. Each reference removes itself in one step of the interpreter, so Ctrl-C leaves none behind.
_living: set[weakref.ref[Arrivals]] = set()


def note_fork() -> None:
    """Note that this is the child of a fork, in which the done-callbacks of the parent's tasks are not called.

    A signal handler may fork while its thread is blocked; so this wakes the thread.
    """
    for reference in _living.copy():
        arrivals = reference()
        if arrivals is not None:
            arrivals.forked = True
            arrivals.release()


class Arrivals:
    """The tasks whose results were not handed out, and a queue with the numbers of those that are done.

    A done-callback refers to the queue alone, and the queue to no future. So a caller that drops the iterator
    lets go of all futures, and the callbacks that are yet to be called keep no result alive.

    For a thread that blocks, this is the permit: `release` lets the thread go on, as each number does.
    """

    __slots__ = ("__weakref__", "_chunks", "_done", "_next_number", "_numbers", "forked", "futures")

    def __init__(self) -> None:
        #: By number, in the order of their submission: those not handed out.
        self.futures: OrderedDict[int, Future[Any]] = OrderedDict()
        self._chunks: dict[int, _Chunk] = {}
        self._next_number = 0
        # Numbers of tasks that are done. 0 is the number of no task; see `release`.
        self._numbers: SimpleQueue[int] = SimpleQueue()
        # Numbers that this thread has taken from the queue.
        self._done: deque[int] = deque()
        #: Whether this process was forked, and the futures have not been looked at since.
        self.forked = False
        _living.add(weakref.ref(self, _living.discard))

    def expect(self, future: Future[Any], chunk: _Chunk | None) -> None:
        """Keep `future` until its result is handed out."""
        self._next_number = number = self._next_number + 1
        self.futures[number] = future
        if chunk is not None:
            self._chunks[number] = chunk
        # A call into C: no Ctrl-C on the thread that ends the task comes between the call and the wake-up.
        # The future, which is the last argument, takes the place of `block`. `SimpleQueue.put` ignores that.
        put: Callable[..., None] = self._numbers.put
        future.add_done_callback(partial(put, number))
        # At the end of the stack, a callback that is called at once may fail, and the future logs that alone.
        # A number that comes twice does no harm.
        if future.done():
            put(number)

    def take(self, executor: Submitter, deadline: float | None) -> tuple[Future[Any], _Chunk | None]:
        """Block until a task is done. Return its future and its chunk, if it has one, and forget both.

        Raises:
            TimeoutError: No task is done at the deadline.
        """
        while True:
            while not self._done and not self.acquire(timeout=0.0):
                self._block(executor, deadline)
            number = self._done.popleft()
            future = self.futures.pop(number, None)
            if future is not None:
                return future, self._chunks.pop(number, None)

    def _block(self, executor: Submitter, deadline: float | None) -> None:
        if self.forked:
            self.forked = False
            for number, future in self.futures.items():
                if future.done():
                    self._numbers.put(number)
        # The oldest is the one that a worker takes first.
        oldest = next(iter(self.futures.values()))
        if not executor._wait_for_one(oldest, self, None if deadline is None else deadline - clock()):
            raise TimeoutError

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Block until a task is done, or `release` is called. Return False at the timeout. As of a lock."""
        try:
            self._done.append(self._numbers.get(blocking, None if timeout < 0 else timeout))
        except Empty:
            return False
        return True

    def release(self) -> None:
        """Let the thread that blocks go on, though no task may be done."""
        self._numbers.put(0)


class _Feed:
    """Submits the calls of a `map`: at most `limit` of them have no result that was handed out."""

    def __init__(
        self,
        executor: Submitter,
        fn: Callable[..., Any],
        jobs: Iterator[tuple[Any, ...]],
        *,
        chunksize: int,
        limit: int,
    ) -> None:
        self._executor = executor
        self._fn = fn
        self._jobs = jobs
        self._chunksize = chunksize
        self._room = limit
        self._refusal: RuntimeError | None = None
        self.arrivals = Arrivals()

    def fill(self) -> None:
        """Submit tasks while there is room for their calls."""
        while self._room >= self._chunksize:
            job = next(self._jobs, None)
            if job is None:
                self._jobs = iter(())  # `zip` at its end would read its first iterable again
                return
            chunk: _Chunk | None = job[0] if isinstance(self._fn, ChunkRunner) else None
            [future] = self._executor._submit_each(self._fn, (job,))
            self._room -= 1 if chunk is None else len(chunk.calls)
            self.arrivals.expect(future, chunk)

    def _hand_out(self) -> None:
        """Count one more result as handed out, and submit what there is room for.

        A refusal of the executor is kept: the results of the tasks that it has accepted come first.
        """
        self._room += 1
        if self._refusal is None:
            try:
                self.fill()
            except RuntimeError as error:
                if isinstance(error, RecursionError):
                    raise
                self._refusal = error

    def results(self, deadline: float | None) -> Generator[Any]:
        """Yield the results as they come. In the end, cancel the tasks that have not started."""
        arrivals = self.arrivals
        scoped = isinstance(self._fn, ChunkRunner) and self._fn.scoped
        try:
            while arrivals.futures:
                future, chunk = arrivals.take(self._executor, deadline)
                if chunk is None:
                    done = [future]
                    del future
                    self._hand_out()
                    yield done.pop().result()  # keeps no reference to the result that it hands out
                    continue
                error = future.exception()
                results = chunk.final_results(error, scoped=scoped)
                del future, chunk
                while results:
                    self._hand_out()
                    yield results.pop()
                if error is not None:
                    try:
                        raise error
                    finally:
                        del error  # as the refusal in `_ready_in_order`
            if self._refusal is not None:
                try:
                    raise self._refusal
                finally:
                    self._refusal = None
        finally:
            cancel_all(arrivals.futures.values())


def _results_as_they_come(
    executor: Submitter,
    fn: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
    deadline: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[T]:
    """Submit the tasks that there is room for, and return an iterator over the results as they come."""
    limit = sys.maxsize if buffersize is None else buffersize
    chunksize = min(chunksize, limit)
    if chunksize > 1:
        run = ChunkRunner(fn, scoped=executor._scoped)
        feed = _Feed(executor, run, _chunked(calls, chunksize, deque(maxlen=0)), chunksize=chunksize, limit=limit)
    else:
        feed = _Feed(executor, fn, calls, chunksize=1, limit=limit)
    futures = feed.arrivals.futures.values()
    try:
        feed.fill()
    except BaseException:
        cancel_all(futures)
        raise
    return _Results(feed.results(deadline), futures)
