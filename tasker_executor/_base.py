"""What all executors have in common, and their views.

A view hands its tasks on to the executor behind it, with other options. `with_options` makes views of every
executor, and a view is an executor itself. So both classes are in one file.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, overload
from weakref import ref

from typing_extensions import ParamSpec, TypeVar, override

from ._checks import check_seconds
from ._engine.process import after_fork_in_child
from ._options import DEFAULT_OPTIONS, UNSET, TaskOptions, Unset
from ._report import refusal
from ._results import cancel_all
from ._sync import lock_timeout
from ._typed import TypedExecutor
from .exceptions import ShutdownTimeout
from .futures import TaskFuture

if TYPE_CHECKING:  # as_async imports it: asyncio takes longer to import than all of this library
    from .aio import AsyncView

__all__ = ["MANY_FUTURES", "BaseExecutor", "ExecutorView"]

R = TypeVar("R", default=None)
T = TypeVar("T")
P = ParamSpec("P")


class BaseExecutor(TypedExecutor[R]):
    """What `ResourceExecutor` and its views have in common.

    The type parameter is the type of the resource that tasks get as their first argument. Without one it is
    None, so a bare `BaseExecutor` is an executor of plain tasks.
    """

    @property
    @abstractmethod
    def _max_workers(self) -> int:
        """Return the upper bound of workers.

        `ThreadPoolExecutor` has this attribute, so Dask and other libraries read it.
        """

    @abstractmethod
    def _inside(self) -> bool:
        """Return whether this is a thread of the executor itself, which must not wait for its tasks."""

    @overload
    def with_options(
        self,
        *,
        pass_resource: Literal[False],
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
        run_within: float | Unset | None = UNSET,
    ) -> ExecutorView[None]: ...
    @overload
    def with_options(
        self,
        *,
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
        run_within: float | Unset | None = UNSET,
    ) -> ExecutorView[R]: ...
    def with_options(
        self,
        *,
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        pass_resource: bool | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
        run_within: float | Unset | None = UNSET,
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
            run_within: Seconds that a task may run, all its attempts together. Then it is stopped, as by
                `TaskFuture.stop`, and has `TaskTimeout`. 0: no time is left, so the task is never called. None:
                no limit, also if the executor has one.

        Raises:
            ValueError, TypeError: An option is no good; the message names it and its value.
        """
        return self._make_view(self._options.derive(priority, max_retries, pass_resource, start_within, run_within))

    @overload
    def as_async(
        self,
        *,
        pass_resource: Literal[False],
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
        run_within: float | Unset | None = UNSET,
    ) -> AsyncView[None]: ...
    @overload
    def as_async(
        self,
        *,
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
        run_within: float | Unset | None = UNSET,
    ) -> AsyncView[R]: ...
    def as_async(
        self,
        *,
        priority: bool | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        pass_resource: bool | Unset = UNSET,
        start_within: float | Unset | None = UNSET,
        run_within: float | Unset | None = UNSET,
    ) -> AsyncView[Any]:
        """Return a view of this executor for coroutines: ``await view.run(fn, *args)``.

        See `tasker_executor.aio.AsyncView`. The options are those of `with_options`. Shutting the view down waits
        for the tasks submitted through it and leaves this executor running.
        """
        from .aio import AsyncView

        options = self._options.derive(priority, max_retries, pass_resource, start_within, run_within)
        return AsyncView(self._make_view(options))

    def _make_view(self, options: TaskOptions) -> ExecutorView[Any]:
        """Return a view that submits to this executor; one of a view submits to the executor behind that."""
        return ExecutorView(self, options)

    def as_thread_pool(self) -> ThreadPoolExecutor:
        """Return an object that *is a* `ThreadPoolExecutor`, for APIs that insist on the class.

        ``loop.set_default_executor`` is such an API. Tasks submitted to the object are called exactly as
        given, without the resource. Shutting it down waits for the tasks submitted through it and leaves this
        executor running.
        """
        return _ThreadPoolView(self.with_options(pass_resource=False))


#: At most this many futures of a view, and two times those that are not done, are kept before it is pruned.
MANY_FUTURES = 64

#: Lets one thread at a time prune a view. Shared by all views, so that a view needs no lock of its own: at
#: most one submission in `MANY_FUTURES` takes it. A leaf.
_pruning = RLock()


def _replace_lock() -> None:
    """Replace the lock, which a thread of the parent may hold, in the child of a fork."""
    global _pruning
    _pruning = RLock()


after_fork_in_child(_replace_lock)


class ExecutorView(BaseExecutor[R]):
    """An executor that submits to another executor, with other options. Obtained from `with_options`."""

    # Guarded by `_pruning`; `_many` is read without it.
    _many = MANY_FUTURES  # the length of `_futures` above which it is pruned
    _prunes = False
    # Stored once, and never taken back. A submitter looks before, and once more after its future is in
    # `_futures`.
    _shut_down = False

    def __init__(self, root: BaseExecutor[Any], options: TaskOptions) -> None:
        self._root = root
        self._options = options
        # Weak references to the futures of the tasks submitted here, some of which are gone. Each change is
        # one call, without a lock: a submitter appends one; `_prune` replaces the front, which it has copied.
        # So a copy of all has all that are not done.
        self._futures: list[ref[TaskFuture[Any]]] = []

    def __repr__(self) -> str:
        changed = {name: value for name, value in self._options._asdict().items() if value != getattr(DEFAULT_OPTIONS, name)}
        return f"<ExecutorView {', '.join(f'{name}={value!r}' for name, value in changed.items())} of {self._root!r}>"

    @property
    def _max_workers(self) -> int:
        return self._root._max_workers

    @override
    def _make_view(self, options: TaskOptions) -> ExecutorView[Any]:
        return self._root._make_view(options)

    @property
    @override
    def _scoped(self) -> bool:
        return self._root._scoped

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> TaskFuture[Any]:
        self._refuse_if_shut_down()
        future = self._root._enqueue(fn, args, kwargs, options)
        try:
            return self._note(future)
        finally:  # if the task ran in this call (`on_full="caller"`), its error leads to this frame
            del self, future, fn, args, kwargs

    @override
    def _enqueue_soon(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        on_queued: Callable[[], object] | None = None,
    ) -> TaskFuture[Any]:
        self._refuse_if_shut_down()
        return self._note(self._root._enqueue_soon(fn, args, kwargs, options, on_queued))

    def _note(self, future: TaskFuture[T]) -> TaskFuture[T]:
        """Note the future of a task that was submitted here, and return it."""
        futures = self._futures
        futures.append(ref(future))
        try:
            if self._shut_down or len(futures) > self._many:
                self._look_again(future)
            return future
        finally:
            del future  # as in `_enqueue`

    def _look_again(self, future: TaskFuture[Any]) -> None:
        """Refuse the task of `future`, which was noted, if it came too late; or forget futures that are gone."""
        # 1. The submitter passed the check. 2. Another thread shut the view down, and did not see this task.
        # 3. So the task is refused, unless a worker has started it.
        if self._shut_down and future.cancel():
            self._refuse_if_shut_down()
        if len(self._futures) > self._many:
            self._prune()

    def _prune(self) -> None:
        """Drop the references to futures that are gone. The cost for each submission is constant."""
        held: list[object] = []  # futures, until the lock is free: the last reference to one may run a destructor
        with _pruning:
            if self._prunes:  # a signal handler or a destructor submits in the middle of this
                return
            try:
                self._prunes = True
                seen = self._futures[:]
                held += [noted() for noted in seen]
                kept = [noted for noted, future in zip(seen, held, strict=True) if future is not None]
                self._futures[: len(seen)] = kept
                self._many = MANY_FUTURES + 2 * len(kept)
            finally:
                self._prunes = False

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        self._refuse_if_shut_down()
        return self._root._run_now(fn, args, kwargs, options)

    def _refuse_if_shut_down(self) -> None:
        if self._shut_down:
            raise refusal(f"{self!r} has been shut down")

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
        futures = self._close()
        if cancel_futures:
            cancel_all(futures)
        if wait and futures and not self._inside():
            not_done = wait_for(futures, None if timeout is None else lock_timeout(timeout)).not_done
            if not_done:
                raise ShutdownTimeout(f"{len(not_done)} tasks of {self!r} are not done within {timeout} s; they go on")

    def _close(self) -> list[TaskFuture[Any]]:
        """Accept no more tasks; return the futures of those that are not done.

        The copy is made after the store, and a submitter looks after it has appended its future. So one of the
        two sees the other. Both pass through the lock of the list, so that holds without the GIL, too.
        """
        self._shut_down = True
        return [future for noted in self._futures[:] if (future := noted()) is not None and not future.done()]

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
            from copy import copy

            view = copy(view)
            vars(view)["submit"] = self.submit
        return view.map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._view.shutdown(wait, cancel_futures=cancel_futures)
