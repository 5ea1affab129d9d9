"""The results of `map` as they come, for ``ordered=False``.

The done-callback of each task puts its number into a queue, and the caller takes the numbers out.
"""

from __future__ import annotations

import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

from ._chunks import Chunk, ChunkRunner, chunked
from ._results import Results, cancel_all, stop_all
from ._sync import clock

__all__ = ["Arrivals", "Submitter", "note_fork", "results_as_they_come"]

T = TypeVar("T")


class Submitter(Protocol):
    """What `map` needs of the executor."""

    @property
    def _scoped(self) -> bool:
        """Whether each task runs in a scope, which may undo all that a failed task did."""
        ...

    def _submit_each(self, fn: Callable[..., Any], calls: Iterable[tuple[Any, ...]], /) -> list[Future[Any]]:
        """Submit one task for each of `calls`, which are tuples of arguments. Return their futures."""
        ...

    def _wait_for_one(self, future: Future[Any], arrivals: Arrivals, timeout: float | None, /) -> bool:
        """Block as a thread does that waits for `future`, but until `arrivals` is released.

        Return False at the timeout.
        """
        ...


#: All arrivals. Each reference removes itself in one step of the interpreter, so Ctrl-C leaves none behind.
#: Threads add in one step, and the child of a fork, which has one thread, copies.
_living: set[weakref.ref[Arrivals]] = set()


def note_fork() -> None:
    """Note that this is the child of a fork: the done-callbacks of the parent's tasks are not called here.

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
        # The thread that has the iterator uses these three alone: a generator lets no second thread in.
        #: By number, in the order of their submission: those not handed out.
        self.futures: OrderedDict[int, Future[Any]] = OrderedDict()
        self._chunks: dict[int, Chunk] = {}
        self._next_number = 0
        # Numbers of tasks that are done. 0 is the number of no task; see `release`. Any thread puts one.
        self._numbers: SimpleQueue[int] = SimpleQueue()
        # Numbers that this thread has taken from the queue.
        self._done: deque[int] = deque()
        #: Whether this process was forked, and the futures have not been looked at since.
        self.forked = False
        _living.add(weakref.ref(self, _living.discard))

    def expect(self, future: Future[Any], chunk: Chunk | None) -> None:
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

    def take(self, executor: Submitter, deadline: float | None, *, stop: bool) -> tuple[Future[Any], Chunk | None]:
        """Block until a task is done. Return its future and its chunk, if it has one, and forget both.

        Raises:
            TimeoutError: No task is done at the deadline. With `stop`, all tasks are stopped.
        """
        while True:
            while not self._done and not self.acquire(timeout=0.0):
                if not self._block(executor, deadline):
                    if stop:
                        stop_all(deque(self.futures.values()))
                        self.futures.clear()  # last: after Ctrl-C the caller cancels those that are left
                    raise TimeoutError
            number = self._done.popleft()
            future = self.futures.pop(number, None)
            if future is not None:
                return future, self._chunks.pop(number, None)

    def _block(self, executor: Submitter, deadline: float | None) -> bool:
        """Block until a task may be done. Return False at the deadline."""
        if self.forked:
            self.forked = False
            for number, future in self.futures.items():
                if future.done():
                    self._numbers.put(number)
        # The oldest is the one that a worker takes first.
        oldest = next(iter(self.futures.values()))
        return executor._wait_for_one(oldest, self, None if deadline is None else deadline - clock())

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
            chunk: Chunk | None = job[0] if isinstance(self._fn, ChunkRunner) else None
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

    def results(self, deadline: float | None, *, stop: bool) -> Generator[Any]:
        """Yield the results as they come. In the end, cancel the tasks that have not started."""
        arrivals = self.arrivals
        scoped = isinstance(self._fn, ChunkRunner) and self._fn.scoped
        try:
            while arrivals.futures:
                future, chunk = arrivals.take(self._executor, deadline, stop=stop)
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
                        del error  # as the refusal in `_ready_in_order`, in ``_map.py``
            if self._refusal is not None:
                try:
                    raise self._refusal
                finally:
                    self._refusal = None
        finally:
            cancel_all(arrivals.futures.values())


def results_as_they_come(
    executor: Submitter,
    fn: Callable[..., T],
    calls: Iterator[tuple[Any, ...]],
    deadline: float | None,
    chunksize: int,
    buffersize: int | None,
    *,
    stop: bool,
) -> Iterator[T]:
    """Submit the tasks that there is room for, and return an iterator over the results as they come."""
    limit = sys.maxsize if buffersize is None else buffersize
    chunksize = min(chunksize, limit)
    if chunksize > 1:
        run = ChunkRunner(fn, scoped=executor._scoped)
        feed = _Feed(executor, run, chunked(calls, chunksize, deque(maxlen=0)), chunksize=chunksize, limit=limit)
    else:
        feed = _Feed(executor, fn, calls, chunksize=1, limit=limit)
    futures = feed.arrivals.futures.values()
    try:
        feed.fill()
    except BaseException:
        cancel_all(futures)
        raise
    return Results(feed.results(deadline, stop=stop), futures)
