"""The typed face of every executor, and its views.

`BaseExecutor` has `submit`, `map`, `run_now` and `with_options`, over two abstract methods: `_enqueue` and
`_run_now`. A view hands both on to the executor behind it, with other options.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from copy import copy
from typing import Any, Concatenate, Generic, Literal, overload

from typing_extensions import ParamSpec, TypeVar, override

from ._checks import check_count, check_seconds
from ._engine.current import current
from ._engine.process import after_fork_in_child
from ._map import Arrivals, cancel_all, map_results, note_fork
from ._options import DEFAULT_OPTIONS, UNSET, TaskOptions, Unset
from ._sync import lock_timeout
from .exceptions import ShutdownTimeout

__all__ = ["BaseExecutor", "ExecutorView"]

R = TypeVar("R", default=None)
T = TypeVar("T")
P = ParamSpec("P")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

after_fork_in_child(note_fork)


class BaseExecutor(Executor, Generic[R]):
    """What `ResourceExecutor` and its views have in common.

    The type parameter is the type of the resource that tasks get as their first argument. Without one it is
    None, so a bare `BaseExecutor` is an executor of plain tasks.
    """

    _options: TaskOptions = DEFAULT_OPTIONS

    # -- what differs

    @abstractmethod
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Future[Any]:
        """Queue one task and return its future."""

    @abstractmethod
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        """Run one task in the calling thread and return its result."""

    @property
    @abstractmethod
    def _max_workers(self) -> int:
        """Return the upper bound of workers.

        `ThreadPoolExecutor` has this attribute, so Dask and other libraries read it.
        """

    @abstractmethod
    def _inside(self) -> bool:
        """Return whether this is a thread of the executor itself, which must not wait for its tasks."""

    @property
    def _scoped(self) -> bool:
        """Whether a scope is entered before each task and left after it, which may undo all of a failed task."""
        return False

    # -- tasks

    @overload  # type: ignore[override]  # with a resource, fn takes one argument more than Executor says: that is the point
    def submit(self: BaseExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    @overload
    def submit(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a task and return its future.

        With a resource the task is called ``fn(resource, *args, **kwargs)``, without one
        ``fn(*args, **kwargs)``. If `fn` is not callable, or does not take these arguments, the future gets
        the TypeError, as in the standard library. A check at this point would cost time for every task.

        Args:
            fn: The function of the task.
            *args: Its arguments, after the resource.
            **kwargs: Its keyword arguments. All names are free, those of our own parameters included.

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
        """Queue a task in the priority lane and return its future.

        No normal task starts while this one waits. The same as ``with_options(priority=True).submit``,
        errors included.
        """
        return self._enqueue(fn, args, kwargs, self._options.derive(priority=True))

    @overload
    def run_now(self: BaseExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run_now(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def run_now(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run a task in the calling thread, ahead of every queue, and return its result.

        The task gets a resource of the reserve, which holds ``resource_pool_size`` resources. If all of them
        are in use, it gets a temporary one. A resource of the reserve is used by whichever thread calls, so
        sqlite3 needs ``check_same_thread=False``. The health rule is that of workers: a resource that broke
        is destroyed and replaced, and the task is run again, at most ``max_retries`` times. What the task
        raises in the end is raised here.

        Raises:
            ResourceCreationError: No resource was free and ``on_create`` failed.
            RuntimeError: The executor has been shut down.
        """
        return self._run_now(fn, args, kwargs, self._options)  # type: ignore[no-any-return]  # fn returns T

    @overload  # type: ignore[override]  # fn takes the iterables' items, and with a resource one argument more: as `submit`
    def map(
        self: BaseExecutor[None],
        fn: Callable[[T1], T],
        iterable1: Iterable[T1],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: BaseExecutor[None],
        fn: Callable[[T1, T2], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: BaseExecutor[None],
        fn: Callable[[T1, T2, T3], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: BaseExecutor[None],
        fn: Callable[[T1, T2, T3, T4], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        iterable4: Iterable[T4],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: BaseExecutor[None],
        fn: Callable[[T1, T2, T3, T4, T5], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        iterable4: Iterable[T4],
        iterable5: Iterable[T5],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1], T],
        iterable1: Iterable[T1],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1, T2], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self,
        fn: Callable[[R, T1, T2, T3], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        iterable3: Iterable[T3],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
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
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
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
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
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
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]: ...
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> Iterator[T]:
        """Return an iterator over ``fn(*items)`` for the items of `iterables`, in their order or as they come.

        Without `buffersize`, this call reads the iterables to their end and submits all tasks. If an iterable
        raises, so does this call, and it cancels the tasks that it has submitted. The error of a task is
        raised in the place of its result. The tasks that have not started are cancelled when an error is
        raised, at a timeout, and when the iterator is closed.

        Args:
            fn: The function of the tasks. It gets the resource first, as by `submit`.
            *iterables: The arguments; the shortest iterable decides.
            timeout: Seconds from this call on. A result that is not there by then raises TimeoutError. None:
                no limit.
            chunksize: Number of calls that make one task. A larger number saves the cost of tasks. A task
                that is retried goes on with the call that failed. But if the executor has an `around`, one
                scope holds all calls of a task, and a failure undoes them all: then a retry makes all calls
                again, and if the task fails, its error comes in the place of all its results.
            buffersize: At most this number of calls are queued, run, or have a result that was not fetched;
                the iterables are read no further. None: read them all at once. `concurrent.futures` has this
                argument since Python 3.14. Here it works on every Python, and the bound is exact.
            ordered: False: each result is handed out as soon as it is there, in the order in which the tasks
                end. The results of a chunk come together, in their order.

        Raises:
            ValueError, TypeError: `chunksize` or `buffersize` is no whole number above 0, or `timeout` is
                no number.
            RuntimeError: The executor has been shut down. With `buffersize`, the iterator may raise it later,
                after the results of the tasks that were accepted.
        """
        return map_results(self, fn, iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize, ordered=ordered)

    def _submit_each(self, fn: Callable[..., T], calls: Iterable[tuple[Any, ...]]) -> list[Future[T]]:
        """Submit a task for each call. If a submission fails, cancel the tasks that have not started.

        Goes through `self.submit` where that has been replaced: tqdm replaces it on the instance, and
        subclasses may.
        """
        futures: list[Future[T]] = []
        try:
            if "submit" in vars(self) or type(self).submit is not type(self)._submit_as_defined:
                for args in calls:
                    futures.append(self.submit(fn, *args))
            else:
                self._enqueue_each(fn, calls, futures)
        except BaseException:
            cancel_all(futures)
            raise
        return futures

    def _enqueue_each(self, fn: Callable[..., T], calls: Iterable[tuple[Any, ...]], futures: list[Future[T]]) -> None:
        """Queue a task for each call, and append its future to `futures`."""
        for args in calls:
            futures.append(self._enqueue(fn, args, {}, self._options))

    def _wait_for_one(self, future: Future[Any], arrivals: Arrivals, timeout: float | None) -> bool:
        """Block until `arrivals` is released, in the way in which a thread waits for `future`, one of them.

        On a thread of the executor that is to run the task, this starts another worker, as
        ``future.result()`` does, or raises PoolDeadlockError. Where no thread runs tasks, in an
        `InlineExecutor`, this runs them until `future` is done. Return False at the timeout.
        """
        # The futures may be those of any executor, if `submit` has been replaced.
        task: Any = future
        if hasattr(task, "_lane"):
            inside = task._lane.owner is current.owner and (timeout is None or timeout > 0)
            if inside:
                return bool(task._lane.owner.wait_inside(task, arrivals, timeout))
        elif hasattr(task, "_executor") and hasattr(task._executor, "_run_until"):
            task._executor._run_until(task, timeout)
        return arrivals.acquire(True, lock_timeout(timeout))

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

        The view shares workers and resources with this executor and is an `Executor` itself. Views compose:
        an option that is not given stays as it is here. Shutting a view down waits for the tasks submitted
        through it and leaves this executor running.

        Args:
            priority: True for the priority lane, False for the normal one.
            max_retries: At most this number of times a task is run again after its resource broke. 0: each
                task runs at most once.
            pass_resource: False to call tasks exactly as given, for libraries that expect a plain Executor.
            start_within: Seconds. A task that has not started by then fails with `TaskExpired` and never
                runs. None: no limit.

        Raises:
            ValueError, TypeError: An option is no good; the message names it and its value.
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
        """Return the executor that a view of this one submits to."""
        return self

    def as_thread_pool(self) -> ThreadPoolExecutor:
        """Return an object that *is a* `ThreadPoolExecutor`, for APIs that insist on the class.

        ``loop.set_default_executor`` is such an API. Tasks submitted to the object are called exactly as
        given, without the resource. Shutting it down waits for the tasks submitted through it and leaves this
        executor running.
        """
        return _ThreadPoolView(self.with_options(pass_resource=False))


class ExecutorView(BaseExecutor[R]):
    """An executor that submits to another executor, with other options. Obtained from `with_options`."""

    def __init__(self, root: BaseExecutor[Any], options: TaskOptions) -> None:
        self._root = root
        self._options = options
        # Guards the two fields below.
        self._lock = threading.RLock()
        # Futures of the tasks submitted here. Each reference removes itself when its future is collected, in
        # one step of the interpreter. A WeakSet would not do: no thread can iterate over it while another
        # thread drops futures.
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

    @property
    @override
    def _scoped(self) -> bool:
        return self._root._scoped

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Future[Any]:
        self._refuse_if_shut_down()
        future = self._root._enqueue(fn, args, kwargs, options)
        with self._lock:
            self._futures.add(weakref.ref(future, self._futures.discard))
            late = self._shut_down
        # 1. This thread passed the check above. 2. Another thread shut the view down, and did not see this
        # task. 3. So the task is refused, unless a worker has started it.
        if late and future.cancel():
            self._refuse_if_shut_down()
        try:
            return future
        finally:
            del future, args  # if the task ran in this call (`on_full="caller"`), its error leads to this frame

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        self._refuse_if_shut_down()
        return self._root._run_now(fn, args, kwargs, options)

    def _refuse_if_shut_down(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks through this view, and wait for those submitted.

        The executor behind it goes on. On a thread of the executor itself it does not wait.

        Args:
            wait: Block until the tasks submitted through this view are done.
            cancel_futures: Cancel those of them that have not started.
            timeout: Seconds to wait at most. None: no limit.

        Raises:
            ShutdownTimeout: The tasks were not done in time. They go on.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        with self._lock:
            self._shut_down = True
            references = self._futures.copy()
        futures = [future for reference in references if (future := reference()) is not None and not future.done()]
        if cancel_futures:
            cancel_all(futures)
        if wait and futures and not self._inside():
            not_done = wait_for(futures, None if timeout is None else lock_timeout(timeout)).not_done
            if not_done:
                raise ShutdownTimeout(f"{len(not_done)} tasks of {self!r} are not done within {timeout} s; they go on")

    @override
    def _inside(self) -> bool:
        return self._root._inside()


class _ThreadPoolView(ThreadPoolExecutor):
    """A view whose class is `ThreadPoolExecutor`. It never has threads of its own."""

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
        if "submit" in vars(self) or type(self) is not _ThreadPoolView:  # `submit` may be replaced: see `_submit_each`
            view = copy(view)
            vars(view)["submit"] = self.submit
        return view.map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._view.shutdown(wait, cancel_futures=cancel_futures)
