"""The typed face of every executor: `submit`, `submit_priority`, `run_now` and `map`.

All of them go through two abstract methods: `_enqueue` and `_run_now`. Each has an overload for executors
without resources. Most lines are the overloads of `map`: type checkers know no other way to say that `fn`
takes one item of each iterable.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Concatenate, Generic, overload

from typing_extensions import ParamSpec, TypeVar

from ._arrivals import Arrivals, note_fork
from ._engine.current import current
from ._engine.process import after_fork_in_child
from ._map import map_results
from ._options import DEFAULT_OPTIONS, TaskOptions
from ._results import cancel_all
from ._sync import lock_timeout
from .futures import TaskFuture

__all__ = ["TypedExecutor"]

R = TypeVar("R", default=None)
T = TypeVar("T")
P = ParamSpec("P")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")

after_fork_in_child(note_fork)


class TypedExecutor(Executor, Generic[R]):
    """An executor that knows the types of its tasks: `submit`, `submit_priority`, `run_now` and `map`.

    The type parameter is the type of the resource that tasks get as their first argument. Without one it is
    None, so a bare `TypedExecutor` is an executor of plain tasks.
    """

    _options: TaskOptions = DEFAULT_OPTIONS

    # -- what differs

    @abstractmethod
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> TaskFuture[Any]:
        """Queue one task and return its future."""

    def _enqueue_soon(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        on_queued: Callable[[], object] | None = None,
    ) -> TaskFuture[Any]:
        """Queue one task without blocking, for an event loop, and return its future.

        If the queue is full, the task stands in line for a place, and `on_queued()` is called when it has it.
        """
        return self._enqueue(fn, args, kwargs, options)

    @abstractmethod
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        """Run one task in the calling thread and return its result."""

    @property
    def _scoped(self) -> bool:
        """Whether each task runs in a scope, which may undo all that a failed task did."""
        return False

    # -- tasks

    @overload  # type: ignore[override]  # with a resource, fn takes one argument more than Executor says: that is the point
    def submit(self: TypedExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    @overload
    def submit(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
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
        try:
            return self._enqueue(fn, args, kwargs, self._options)
        finally:  # if the task has run in this call, its error leads to this frame
            del self, fn, args, kwargs

    _submit_as_defined = submit

    @overload
    def submit_priority(
        self: TypedExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskFuture[T]: ...
    @overload
    def submit_priority(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[T]: ...
    def submit_priority(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        """Queue a task in the priority lane and return its future.

        No normal task starts while this one waits. The same as ``with_options(priority=True).submit``,
        errors included.
        """
        try:
            return self._enqueue(fn, args, kwargs, self._options.derive(priority=True))
        finally:
            del self, fn, args, kwargs  # as in `submit`

    @overload
    def run_now(self: TypedExecutor[None], fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run_now(self, fn: Callable[Concatenate[R, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def run_now(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run a task in the calling thread, ahead of every queue, and return its result.

        The task gets a resource of the reserve, which holds ``resource_pool_size`` resources. If all of them
        are in use, it gets a temporary one. A resource of the reserve is used by whichever thread calls, so
        sqlite3 needs ``check_same_thread=False``. The health rule is that of workers: a resource that broke
        is destroyed and replaced, and the task is run again, at most ``max_retries`` times. What the task
        raises in the end is raised here.

        ``run_within`` and ``kill()`` stop the call as they stop a task. A call that ignores both is not given
        up: its thread is the caller's. An error that is no `Exception`, such as KeyboardInterrupt, is raised
        as it is.

        Raises:
            ResourceCreationError: No resource was free and ``on_create`` failed.
            TaskTimeout: The call raised after it had run for ``run_within`` seconds; ``__cause__`` is its error.
            TaskStopped: The call raised after ``kill()``; ``__cause__`` is its error.
            RuntimeError: The executor has been shut down.
        """
        return self._run_now(fn, args, kwargs, self._options)  # type: ignore[no-any-return]  # fn returns T

    @overload  # type: ignore[override]  # fn takes the iterables' items, and with a resource one argument more: as `submit`
    def map(
        self: TypedExecutor[None],
        fn: Callable[[T1], T],
        iterable1: Iterable[T1],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
        stop_on_timeout: bool = False,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: TypedExecutor[None],
        fn: Callable[[T1, T2], T],
        iterable1: Iterable[T1],
        iterable2: Iterable[T2],
        /,
        *,
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
        stop_on_timeout: bool = False,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: TypedExecutor[None],
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
        stop_on_timeout: bool = False,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: TypedExecutor[None],
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
        stop_on_timeout: bool = False,
    ) -> Iterator[T]: ...
    @overload
    def map(
        self: TypedExecutor[None],
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
        stop_on_timeout: bool = False,
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
        stop_on_timeout: bool = False,
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
        stop_on_timeout: bool = False,
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
        stop_on_timeout: bool = False,
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
        stop_on_timeout: bool = False,
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
        stop_on_timeout: bool = False,
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
        stop_on_timeout: bool = False,
    ) -> Iterator[T]: ...
    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        ordered: bool = True,
        stop_on_timeout: bool = False,
    ) -> Iterator[T]:
        """Return an iterator over ``fn(*items)`` for the items of `iterables`, in order or as they come.

        Without `buffersize`, this call reads the iterables to their end and submits all tasks. If an iterable
        raises, so does this call, and it cancels the tasks that it has submitted. The error of a task is
        raised in the place of its result. The tasks that have not started are cancelled when an error is
        raised, at a timeout, and when the iterator is closed. The iterator is for one thread at a time, as that
        of the standard library is: another thread that asks it while the first one waits gets a ValueError.

        Args:
            fn: The function of the tasks. It gets the resource first, as by `submit`.
            *iterables: The arguments; the shortest iterable decides.
            timeout: Seconds from this call on. A result that is not there by then raises TimeoutError. None:
                no limit.
            chunksize: Number of calls that make one task. A larger number saves the cost of tasks. A task
                that is stopped makes none of the calls that are left. A task that is retried goes on with the
                call that failed. But if the executor has an `around`, one scope holds all calls of a task,
                and a failure undoes them all: then a retry makes all calls again, and if the task fails, its
                error comes in the place of all its results.
            buffersize: At most this number of calls are queued, run, or have a result that was not fetched;
                the iterables are read no further. None: read them all at once. `concurrent.futures` has this
                argument since Python 3.14. Here it works on every Python, and the bound is exact.
            ordered: False: each result is handed out as soon as it is there, in the order in which the tasks
                end. The results of a chunk come together, in their order.
            stop_on_timeout: True: when the iterator raises TimeoutError, it also stops the tasks that run, as
                by `TaskFuture.stop`. So none of them goes on for a result that is not fetched any more.
                Nothing else stops a task that runs: neither the error of another task, nor a closed iterator.
                Without a `timeout` this has no effect.

        Raises:
            ValueError, TypeError: `chunksize` or `buffersize` is no whole number above 0, or `timeout` is
                no number.
            RuntimeError: The executor has been shut down. With `buffersize`, the iterator may raise it later,
                after the results of the tasks that were accepted.
        """
        return map_results(
            self,
            fn,
            iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            stop_on_timeout=stop_on_timeout,
        )

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
