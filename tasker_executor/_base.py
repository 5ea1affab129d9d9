"""The typed face of every executor: `submit`, `map`, `run_now`, `with_options`, over one abstract `_enqueue`; and its views."""

from __future__ import annotations

import sys
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from copy import copy
from functools import partial
from itertools import chain, islice
from typing import Any, Concatenate, Generic, Literal, overload

from typing_extensions import ParamSpec, TypeVar, override

from ._checks import check_count, check_number, check_seconds, whole
from ._options import DEFAULT_OPTIONS, UNSET, TaskOptions, Unset
from ._report import safe_repr
from ._sync import clock, lock_timeout
from .exceptions import ShutdownTimeout

__all__ = ["BaseExecutor", "ExecutorView"]

R = TypeVar("R", default=None)
T = TypeVar("T")
P = ParamSpec("P")


class BaseExecutor(Executor, Generic[R]):
    """What `ResourceExecutor` and its views have in common.

    The type parameter is the resource that tasks get as their first argument, or None if they get none.
    """

    _options: TaskOptions = DEFAULT_OPTIONS

    # -- what differs

    @abstractmethod
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Future[Any]:
        """Queue one task."""

    @abstractmethod
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        """Run one task in the calling thread."""

    @property
    @abstractmethod
    def _max_workers(self) -> int:
        """Read by dask and others, who know it from ThreadPoolExecutor."""

    @abstractmethod
    def _inside(self) -> bool:
        """Is this called on a thread of the executor itself, which must not wait for its own tasks?"""

    # -- tasks

    @overload  # type: ignore[override]  # with a resource, fn takes one argument more than Executor says: that is the point
    def submit(self: BaseExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a task and return its future.

        With a resource the task is called ``fn(resource, *args, **kwargs)``, without one ``fn(*args, **kwargs)``. If `fn`
        cannot be called, or not with these arguments, the future has the TypeError, as in the standard library: to ask
        beforehand would cost every task something.

        Raises:
            RuntimeError: The executor has been shut down, as in the standard library.
            QueueFull: ``max_queued`` tasks wait, and the executor was made with ``on_full="raise"``.
        """
        return self._enqueue(fn, args, kwargs, self._options)

    _submit_as_defined = submit

    @overload
    def submit_priority(self: BaseExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit_priority(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit_priority(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a task in the priority lane: no normal task starts while it waits.

        The same as ``with_options(priority=True).submit``.
        """
        return self._enqueue(fn, args, kwargs, self._options.derive(priority=True))

    @overload
    def run_now(self: BaseExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run_now(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def run_now(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run a task in the calling thread, ahead of every queue, and return its result.

        It gets a resource from the pool of ``resource_pool_size`` resources; if none is free, a temporary one. The resources of
        that pool are used from whichever thread calls (sqlite3 needs ``check_same_thread=False``). The health rule is that of
        workers: a resource that broke is destroyed and replaced, and the call is tried again.

        Raises:
            ResourceCreationError: No resource was free and ``on_create`` failed.
            RuntimeError: The executor has been shut down.
        """
        return self._run_now(fn, args, kwargs, self._options)  # type: ignore[no-any-return]  # fn returns T

    @override
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over ``fn(*items)`` for the items of `iterables`, in their order.

        The tasks are submitted at once, while the source is read. An error is raised in the place of its result; then, at a
        timeout and when the iterator is closed, what has not started is cancelled. If the source raises, so does this call, and
        what it has submitted is cancelled.

        Args:
            fn: Called as by `submit`: with the resource first, if there is one.
            *iterables: The arguments; the shortest decides.
            timeout: Seconds from this call within which each result must be there, or TimeoutError is raised.
            chunksize: So many calls make one task. Saves the cost of a task for all but one; a task that is retried goes on
            with
                the call that failed.
            buffersize: At most so many calls are under way or have a result not yet fetched; the source is read no further.
                None: read it all at once. (`concurrent.futures` has this from Python 3.14 on; here it is on every Python, and
                exact.)

        Raises:
            ValueError, TypeError: `chunksize` or `buffersize` is no whole number above 0, or `timeout` is no number.
        """
        # Negative is possible, as in the standard library: what is left of a time that has run out.
        deadline = None if timeout is None else clock() + check_number("timeout", timeout, "a number of seconds")
        chunksize, buffersize = _check_sizes(chunksize, buffersize)
        calls: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905  # the shortest decides, as in the standard library
        if buffersize is None and chunksize == 1:
            futures = self._submit_each(fn, calls)
            return _Results(_results_in_order(futures, deadline), futures)
        if buffersize is not None:
            chunksize = min(chunksize, buffersize)
            buffersize //= chunksize
        chunks: deque[_Chunk] = deque()
        jobs = _chunked(calls, chunksize, chunks)
        run = _ChunkRunner(fn)
        waiting = deque(self._submit_each(run, islice(jobs, buffersize)))
        submit = partial(self._submit_each, run)
        return _Results(_chunk_results_in_order(_ready_in_order(waiting, jobs, submit, deadline), chunks), waiting)

    def _submit_each(self, fn: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> list[Future[T]]:
        """Submit a task for each call. If that fails half-way, what has not started is cancelled.

        Through `self.submit`, where somebody has replaced that (tqdm does, on the instance; subclasses may).
        """
        futures: list[Future[T]] = []
        try:
            if "submit" in vars(self) or type(self).submit is not type(self)._submit_as_defined:
                for args in calls:
                    futures.append(self.submit(fn, *args))
            else:
                self._enqueue_each(fn, calls, futures)
        except BaseException:
            _cancel(futures)
            raise
        return futures

    def _enqueue_each(self, fn: Callable[..., T], calls: Iterable[tuple[Any, ...]], futures: list[Future[T]]) -> None:
        """Queue a task for each call, and add its future to `futures`."""
        for args in calls:
            futures.append(self._enqueue(fn, args, {}, self._options))

    # -- views

    @overload
    def with_options(
        self,
        *,
        pass_resource: Literal[False],
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
    ) -> ExecutorView[None]: ...
    @overload
    def with_options(
        self,
        *,
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
    ) -> ExecutorView[R]: ...
    def with_options(
        self,
        *,
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        pass_resource: bool | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
    ) -> ExecutorView[Any]:
        """Return a view of this executor that submits with other options.

        The view shares workers and resources with this executor and is an `Executor` itself. Views compose: what is not given
        stays as it is here. Shutting a view down waits for the tasks submitted through it and leaves this executor running.

        Args:
            priority: True for the priority lane, False for the normal one.
            max_retries: How often a task may be run again after its resource broke; 0 for at most once.
            pass_resource: False to call tasks exactly as given, for libraries that expect a plain Executor.
            start_within: Seconds; a task that has not started by then fails with `TaskExpired` and never runs. None: no limit.
        """
        if not isinstance(max_retries, Unset):
            max_retries = check_count("max_retries", max_retries, 0)
        if not isinstance(start_within, Unset) and start_within is not None:
            start_within = check_seconds("start_within", start_within)
        options = self._options.derive(
            priority=priority, max_retries=max_retries, pass_resource=pass_resource, start_within=start_within
        )
        return ExecutorView(self._view_root(), options)

    def _view_root(self) -> BaseExecutor[Any]:
        """The executor that a view of this one submits to."""
        return self

    def as_thread_pool(self) -> ThreadPoolExecutor:
        """Return an object that *is a* `ThreadPoolExecutor`, for APIs that insist on the class.

        ``loop.set_default_executor`` is one. Tasks submitted to the object are called exactly as given, without the resource.
        Shutting it down waits for the tasks submitted through it and leaves this executor running.
        """
        return _ThreadPoolView(self.with_options(pass_resource=False))


class ExecutorView(BaseExecutor[R]):
    """An executor with other options that shares the workers of another. Obtained from `with_options`."""

    def __init__(self, root: BaseExecutor[Any], options: TaskOptions) -> None:
        self._root = root
        self._options = options
        # Guards the two fields below.
        self._lock = threading.RLock()
        # References that take themselves out, each in one step of the interpreter. A WeakSet cannot be looked through while
        # other threads drop futures.
        self._futures: set[weakref.ref[Future[Any]]] = set()
        self._shut_down = False

    def __repr__(self) -> str:
        changed = {name: value for name, value in vars(self._options).items() if value != getattr(DEFAULT_OPTIONS, name)}
        return f"<ExecutorView {', '.join(f'{name}={value!r}' for name, value in changed.items())} of {self._root!r}>"

    @property
    def _max_workers(self) -> int:
        return self._root._max_workers

    @override
    def _view_root(self) -> BaseExecutor[Any]:
        return self._root

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Future[Any]:
        self._refuse_if_shut_down()
        future = self._root._enqueue(fn, args, kwargs, options)
        with self._lock:
            self._futures.add(weakref.ref(future, self._futures.discard))
            late = self._shut_down
        if late and future.cancel():  # shut down meanwhile, and perhaps nobody waits for this one
            self._refuse_if_shut_down()
        try:
            return future
        finally:
            del future, args  # the error of a task that ran right here leads to this frame

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        self._refuse_if_shut_down()
        return self._root._run_now(fn, args, kwargs, options)

    def _refuse_if_shut_down(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks through this view; the executor behind it goes on.

        Args:
            wait: Block until the tasks submitted through this view are done.
            cancel_futures: Cancel those of them that have not started.
            timeout: Seconds to wait at most. None: no limit.

        Raises:
            ShutdownTimeout: They were not done in time. They go on.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        with self._lock:
            self._shut_down = True
            references = self._futures.copy()
        futures = [future for reference in references if (future := reference()) is not None and not future.done()]
        if cancel_futures:
            _cancel(futures)
        if wait and futures and not self._inside():
            not_done = wait_for(futures, None if timeout is None else lock_timeout(timeout)).not_done
            if not_done:
                raise ShutdownTimeout(f"{len(not_done)} tasks of {self!r} are not done within {timeout} s; they go on")

    @override
    def _inside(self) -> bool:
        return self._root._inside()


class _ThreadPoolView(ThreadPoolExecutor):
    """A `ThreadPoolExecutor` by class, a view by nature. It never has threads of its own."""

    def __init__(self, view: ExecutorView[None]) -> None:
        super().__init__(view._max_workers)
        self._view = view

    @override
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._view.submit(fn, *args, **kwargs)

    @override
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        view = self._view
        if "submit" in vars(self) or type(self) is not _ThreadPoolView:  # replaced, perhaps: see `_submit_each`
            view = copy(view)
            vars(view)["submit"] = self.submit
        return view.map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._view.shutdown(wait, cancel_futures=cancel_futures)


# -- map


def _check_sizes(chunksize: Any, buffersize: Any) -> tuple[int, int | None]:
    """Return them as plain ints. Where the standard library refuses one, in its words."""
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


class _Chunk:
    """Some calls that make one task, and the results so far: a retry goes on where the attempt before it failed."""

    __slots__ = ("calls", "results")

    def __init__(self, calls: tuple[tuple[Any, ...], ...]) -> None:
        self.calls = calls
        self.results: list[Any] = []


class _ChunkRunner:
    """Calls a function for each call of a chunk."""

    __slots__ = ("__wrapped__",)

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.__wrapped__ = fn

    def __call__(self, *args: Any) -> None:
        *resource, chunk = args
        fn = partial(self.__wrapped__, *resource) if resource else self.__wrapped__
        # One item at a time: if a call raises, the results before it are there. In a loop of our own, since to those of the
        # standard library a StopIteration of the function is the end of the calls.
        note = chunk.results.append
        for call in chunk.calls[len(chunk.results) :]:
            note(fn(*call))


def _chunked(calls: Iterator[tuple[Any, ...]], size: int, chunks: deque[_Chunk]) -> Iterator[tuple[_Chunk]]:
    """Yield the argument of one task after the other, and note its chunk."""
    while part := tuple(islice(calls, size)):
        chunk = _Chunk(part)
        chunks.append(chunk)
        yield (chunk,)


def _cancel(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def _wait(future: Future[Any], deadline: float | None) -> None:
    """Block until the future is final; TimeoutError if that takes too long, CancelledError if it was cancelled."""
    future.exception(None if deadline is None else deadline - clock())


class _Results(chain[T]):
    """What `map` returns: a generator's results, at no cost for each, and a `close` that works before the first of them.

    A generator that has not begun does nothing when it is closed. Nor when it is dropped, which must remain so: a caller who
    does not look at the results of `map` wants its tasks run all the same.
    """

    _generator: Generator[T]
    _futures: Collection[Future[Any]]

    def __new__(cls, generator: Generator[T], futures: Collection[Future[Any]]) -> _Results[T]:
        results = super().__new__(cls, generator)
        results._generator = generator
        results._futures = futures
        return results

    def close(self) -> None:
        """Hand out nothing any more, and cancel what has not started."""
        self._generator.close()
        _cancel(self._futures)


def _results_in_order(futures: list[Future[T]], deadline: float | None) -> Generator[T]:
    try:
        futures.reverse()
        while futures:
            if not futures[-1].done():
                _wait(futures[-1], deadline)
            yield futures.pop().result()  # keeps no reference to what it hands out
    finally:
        _cancel(futures)


def _ready_in_order(
    futures: deque[Future[T]],
    jobs: Iterator[tuple[Any, ...]],
    submit: Callable[[Iterable[tuple[Any, ...]]], list[Future[T]]],
    deadline: float | None,
) -> Iterator[Future[T]]:
    """Yield each future when it is done, having submitted the next task in its place.

    If the executor accepts none any more, the results of the tasks that it has accepted come first, and then its refusal. (The
    standard library loses them: gh-146392.)
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
                refusal = None
    finally:
        _cancel(futures)


def _chunk_results_in_order(ready: Iterator[Future[None]], chunks: deque[_Chunk]) -> Generator[Any]:
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
                    del error
    finally:
        ready.close()  # type: ignore[attr-defined]  # a generator
