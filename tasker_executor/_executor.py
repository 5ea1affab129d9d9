"""`ResourceExecutor`: the constructor, `submit` in line, and the doors to the engine.

How a task lives is told in ``_engine/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar, override

from ._base import BaseExecutor
from ._checks import check_bool, check_bounds, check_max_workers, check_seconds
from ._engine.calls import bind, new_task
from ._engine.core import Core
from ._engine.current import current, current_holder
from ._engine.handoff import refuse_late_patching
from ._engine.parked import PARKING, Parking
from ._engine.settings import OnFull, Settings
from ._engine.submission import enqueue, run_now
from ._engine.task import PENDING, Task
from ._options import UNSET, TaskOptions, Unset
from ._reporting import Reporting
from ._sync import clock
from ._types import AbortHook, AroundHook, CreateHook, DestroyHook, HealthHook, ResetHook, ResourceHook
from ._view import WithDirectViews
from .exceptions import NoCurrentTask
from .factory import ResourceFactory
from .futures import TaskFuture

if TYPE_CHECKING:
    from .observers import Observer
    from .policies import ScalingPolicy

__all__ = ["ResourceExecutor"]

R = TypeVar("R", default=None)
T = TypeVar("T")


class ResourceExecutor(Reporting, WithDirectViews[R]):
    """A `concurrent.futures.Executor` in which each worker thread owns one resource.

    Without `on_create` callers see a `ThreadPoolExecutor`. With it, tasks are called
    ``fn(resource, *args, **kwargs)``, and:

    - each resource is made, used and destroyed on one thread, its worker's, and is destroyed exactly once;
    - a resource that broke is replaced, and its task is run again on another one;
    - every future reaches a final state, however the executor ends.

    All durations are seconds. The ideas are those of the Go library *tasker* (asaidimu/tasker).

    Args:
        max_workers: At most this number of workers. None: ``min(32, CPUs + 4)``, as in the standard library.
        thread_name_prefix: Workers are named ``<prefix>_0``, ... By default it is the executor's name.
        initializer: Called on each worker's thread before its resource is made. If it raises, the executor is
            broken for good, as in the standard library. `on_create` is the hook that may fail.
        initargs: Arguments for `initializer`.
        resource: What a resource is, in one argument: a `ResourceFactory`, such as those of
            `tasker_executor.resources`, or a function that returns a context manager, which is entered and left
            on the worker's thread. It takes the place of all the hooks below, up to `on_abort`.
        on_create: Makes a resource. Called on the thread that will own the resource. If it raises, it is
            tried again while tasks wait. The pause doubles from 0.1 s to 30 s, or to a quarter of
            `create_timeout`, with full jitter.
        on_destroy: Gives a resource up. If it raises, the error is logged and has no other effect.
        check_health: Asked after a task raised, with the error: is the resource still good? True: the error is
            the task's own. False: the resource is replaced, and the task is run again on another one. It may
            also return a `Verdict`. **Only this makes a task run again.** It is not asked about errors that
            are no `Exception` (SystemExit, KeyboardInterrupt): they are the task's own. If it raises, the
            resource is replaced, and the task keeps its error.
        check_resource: Asked with a resource: is it still good? If not, it is replaced; no task is run again
            for that. Asked after a task raised, and before a task if the resource was idle for longer than
            `check_after_idle`, or if another one was found broken since this one was known to be good.
        on_reset: Cleans a resource between two tasks. Called after each task, when its result is known. If it
            raises, the resource is replaced.
        around: Returns the scope of one task, a context manager: entered before each task, left after it, with
            the task's error if it raised. What entering it returns, if not None, is what the task gets
            instead of the resource. ``psycopg.Connection.transaction`` is such a function.
        on_abort: Unblocks a call that hangs inside a resource. Called when a task is stopped, on a thread of its
            own, and again, with growing pauses, until the task ends or is given up. Examples:
            `sqlite3.Connection.interrupt`, ``psycopg.Connection.cancel``.
        check_after_idle: Seconds that a resource may be idle without a check.
        max_age: Seconds after which a resource is replaced between two tasks, plus or minus 10 %, so that
            workers do not replace theirs in step. None: no limit.
        max_uses: Number of tasks after which a resource is replaced. None: no limit.
        create_timeout: Seconds. A task that has waited for this time while no worker owns a resource fails
            with `ResourceCreationError`. The executor lives on: it works again when `on_create` does.
        max_retries: At most this number of times a task is run again, by a verdict on its error. A retry
            never meets a resource that may have broken in the same event as the one before. 0: no retries.
        max_queued: At most this number of tasks wait, beyond those that a free worker is about to take. None:
            no limit. A task that a worker of this executor submits is always accepted: a worker that waited
            for a place would wait for itself.
        on_full: What `submit` does at that limit. ``"block"``: it waits for a place. ``"raise"``: it raises
            `QueueFull`. ``"caller"``: it runs the task in the calling thread, as `run_now` does.
        propagate_context: Run a task in a copy of its submitter's context, as `asyncio.to_thread` does.
        run_within: Seconds, above 0, that a task may run, all its attempts together. Then it is stopped, as by
            `TaskFuture.stop`, and has `TaskTimeout`. None: no limit.
        abort_grace: Seconds that a stopped task has to end. Then its future has its error all the same, and
            the worker is *written off*: it no longer counts, a successor may start, and the resource is
            destroyed when the call returns. At most `max_workers` are written off at a time.
        warn_after: Seconds after which a task that still runs is logged, with the stack of its thread; then
            after twice that time, and so on. None: never.
        min_workers: The base. This number of workers is started by the constructor and kept.
        policy: Says how many workers are wanted, from `min_workers` to `max_workers`. None: `max_workers`.
        idle_timeout: Seconds after which an idle worker above the base ends. None: never.
        resource_pool_size: Number of resources in the reserve, for `run_now`. The constructor makes them.
        observers: Are told of events; see `tasker_executor.Observer`.
        name: The name of the executor in logs, thread names and events.

    Raises:
        ValueError, TypeError: An argument is no good; the message names it and its value.
        ResourceCreationError: A resource of the reserve could not be made. Those before it were destroyed.

    Example:
        >>> import sqlite3
        >>> connect = lambda: sqlite3.connect(":memory:")
        >>> def add(connection, a, b):
        ...     return connection.execute("select ? + ?", (a, b)).fetchone()[0]
        >>> with ResourceExecutor(2, on_create=connect, on_destroy=sqlite3.Connection.close) as pool:
        ...     pool.submit(add, 1, 2).result()
        3
        >>> with ResourceExecutor(2) as pool:
        ...     list(pool.map(len, ["a", "bb"]))
        [1, 2]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        resource: ResourceFactory[R] | Callable[[], AbstractContextManager[R]] | None = None,
        on_create: CreateHook[R] | None = None,
        on_destroy: DestroyHook[R] | None = None,
        check_health: HealthHook | None = None,
        check_resource: ResourceHook[R] | None = None,
        on_reset: ResetHook[R] | None = None,
        around: AroundHook[R] | None = None,
        on_abort: AbortHook[R] | None = None,
        check_after_idle: float = 0.5,
        max_age: float | None = None,
        max_uses: int | None = None,
        create_timeout: float = 30.0,
        max_retries: int = 3,
        max_queued: int | None = None,
        on_full: OnFull = "block",
        propagate_context: bool = True,
        run_within: float | None = None,
        abort_grace: float = 5.0,
        warn_after: float | None = None,
        min_workers: int = 0,
        policy: ScalingPolicy | None = None,
        idle_timeout: float | None = None,
        resource_pool_size: int = 0,
        observers: Iterable[Observer] = (),
        name: str | None = None,
    ) -> None:
        # Long because each argument is named twice, so that type checkers compare the two lists.
        settings = Settings.checked(
            type(self).__name__,
            max_workers=max_workers,
            thread_name_prefix=thread_name_prefix,
            initializer=initializer,
            initargs=initargs,
            resource=resource,
            on_create=on_create,
            on_destroy=on_destroy,
            check_health=check_health,
            check_resource=check_resource,
            on_reset=on_reset,
            around=around,
            on_abort=on_abort,
            check_after_idle=check_after_idle,
            max_age=max_age,
            max_uses=max_uses,
            create_timeout=create_timeout,
            max_retries=max_retries,
            max_queued=max_queued,
            on_full=on_full,
            propagate_context=propagate_context,
            run_within=run_within,
            abort_grace=abort_grace,
            warn_after=warn_after,
            min_workers=min_workers,
            policy=policy,
            idle_timeout=idle_timeout,
            resource_pool_size=resource_pool_size,
            observers=observers,
            name=name,
        )
        refuse_late_patching()
        self._on_full: OnFull = settings.on_full
        self._core = core = Core(settings)
        self._normal, self._priority = core.lanes.normal, core.lanes.priority
        #: Until the end begins. None, too, if calls of `run_now` have a limit: they take the path of `_run_now`.
        self._open_reserve = core.reserve if settings.run_within is None else None
        #: Tasks take the path of `_enqueue`: the queue has a bound, an observer listens, or the executor
        #: accepts no more tasks.
        self._needs_care = settings.max_queued is not None or core.hub.hears("task_submitted")
        core.start(self)

    # -- tasks

    if not TYPE_CHECKING:
        # The hot path. The types and the promises are in `BaseExecutor`. `new_task` is written out in line,
        # because a call of it costs 7 to 14 % of a submission.

        def submit(self, fn, /, *args, **kwargs):
            if self._needs_care:
                try:
                    return self._enqueue(fn, args, kwargs, self._options)
                finally:  # if the task has run in this call, its error leads to this frame
                    del self, fn, args, kwargs
            core = self._core
            if kwargs:
                try:  # `bind`, in line
                    fn = partial(fn, **kwargs)
                except TypeError:
                    fn = bind(fn, kwargs)
            future = Task()
            future._status = PENDING
            future._sidecar = None
            future._result = fn
            future._exception = args
            future._context = copy_context() if core.propagate_context else None
            future._lane = lane = self._normal
            future._submitted = clock()
            lane.append(future)
            if core.idle.line:
                core.wake(future)
            return future

        submit.__doc__ = BaseExecutor.submit.__doc__
        _submit_as_defined = submit

        def submit_priority(self, fn, /, *args, **kwargs):
            if self._needs_care:
                try:
                    return self._enqueue(fn, args, kwargs, self._options.derive(priority=True))
                finally:
                    del self, fn, args, kwargs  # as in `submit`
            core, lane = self._core, self._priority
            future = new_task(bind(fn, kwargs) if kwargs else fn, args, lane, core.propagate_context)
            lane.append(future)
            if core.idle.line:
                core.wake(future)
            return future

        submit_priority.__doc__ = BaseExecutor.submit_priority.__doc__

    @override
    def _enqueue_each(self, fn: Callable[..., T], calls: Iterable[tuple[Any, ...]], futures: list[Future[T]]) -> None:
        if self._needs_care:
            super()._enqueue_each(fn, calls, futures)
            return
        core, lane = self._core, self._normal
        idle, propagate = core.idle, core.propagate_context
        append, note = lane.append, futures.append
        for args in calls:  # `new_task`, in line: a call of it costs 11 % of this loop
            future: Task[T] = Task()
            future._status = PENDING
            future._sidecar = None
            future._result = fn
            future._exception = args
            future._context = copy_context() if propagate else None
            future._lane = lane
            future._submitted = clock()
            # In this order. After Ctrl-C between the two lines, the caller cancels `futures`. A task that is
            # cancelled but in no lane would be counted as a tombstone there.
            append(future)
            note(future)
            if idle.line:
                core.wake(future)

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> TaskFuture[Any]:
        try:
            return enqueue(self._core, self._on_full, fn, args, kwargs, options)
        finally:
            del self, fn, args, kwargs  # as in `submit`

    @override
    def _enqueue_soon(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        on_queued: Callable[[], object] | None = None,
    ) -> TaskFuture[Any]:
        on_full = self._on_full if self._on_full == "raise" else PARKING if on_queued is None else Parking(on_queued)
        return enqueue(self._core, on_full, fn, args, kwargs, options)

    if not TYPE_CHECKING:

        def run_now(self, fn, /, *args, **kwargs):
            reserve = self._open_reserve
            if reserve is None:
                return self._run_now(fn, args, kwargs, self._options)
            return reserve.run(fn, args, kwargs, None)

        run_now.__doc__ = BaseExecutor.run_now.__doc__

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        return run_now(self._core, fn, args, kwargs, options)

    def current_resource(self) -> R:
        """Return the resource of the task that calls this, or None. For code that is not given the resource.

        Raises:
            NoCurrentTask: Called outside of a task of this executor.
        """
        holder = current_holder()
        if holder.owner is not self._core:
            raise NoCurrentTask(f"the current task is not one of executor {self._core.name!r}")
        return holder.given  # type: ignore[no-any-return]  # the holder's resource is an R

    @override
    def _inside(self) -> bool:
        return current.owner is self._core

    # -- workers

    @property
    @override
    def _scoped(self) -> bool:
        source = self._core.source
        return source is not None and source.hooks.around is not None

    @property
    def _max_workers(self) -> int:
        return self._core.roster.max_workers

    def resize(self, *, min_workers: int | Unset = UNSET, max_workers: int | Unset = UNSET) -> None:
        """Change the bounds of the number of workers. A bound that is not given stays.

        New base workers start at once, other workers with the tasks that need them. Workers above the new
        maximum retire: idle ones at once, busy ones after their task. This call does not wait for them.

        Args:
            min_workers: The new base.
            max_workers: At most this number of workers.

        Raises:
            ValueError, TypeError: A bound is no good, or `min_workers` is more than `max_workers`.
        """
        core = self._core
        least = core.roster.min_workers if isinstance(min_workers, Unset) else min_workers
        most = check_max_workers(core.roster.max_workers if isinstance(max_workers, Unset) else max_workers)
        core.resize(check_bounds(least, most), most)

    def refresh(self) -> None:
        """Replace every resource, between two tasks: credentials were rotated, weights were updated.

        Idle workers end at once, busy ones after their task, and successors start as they are needed. A
        resource that is being made at this moment is replaced before it serves a task. So a task that is
        submitted after this call has returned never meets an older resource. This call does not wait for the
        workers. It replaces the free resources of the reserve itself, in this thread. If one cannot be made,
        that is logged, and a later call of `run_now` tries again.
        """
        self._core.refresh()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block until all base workers have their resources; without a base, until one worker has.

        Args:
            timeout: Seconds to wait at most. None: `create_timeout`.

        Raises:
            ResourceCreationError: Not all had one in time. ``__cause__`` is the last error of `on_create`.
            RuntimeError: The executor has been shut down.
        """
        core = self._core
        limit = core.settings.create_timeout if timeout is None else check_seconds("timeout", timeout)
        if (error := core.wait_ready(limit)) is not None:
            raise error

    # -- the end

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks, run those accepted, destroy every resource, and end the threads.

        Tasks may be retried until then. This may be called any number of times: from any thread, a task, a
        done-callback and a signal handler. On a thread of the executor itself it does not wait. It never sets
        a cancel token: see `kill`.

        Args:
            wait: Block until all that is done.
            cancel_futures: Cancel the tasks that have not started. The threads that wait for them are told.
            timeout: Seconds to wait at most. None: no limit.

        Raises:
            ShutdownTimeout: It was not done in time; the message names what still runs. The drain goes on.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        self._core.ending.close(cancel=cancel_futures)
        if wait:
            self._core.ending.join(timeout)

    def kill(self, *, destroy: bool = False) -> None:
        """End as soon as possible: cancel what waits, stop what runs, and return at once.

        Each task that runs is stopped as by `TaskFuture.stop`. But its resource is aborted once only; another
        `kill` aborts it again. A task that ignores the stop runs on, since threads cannot be killed in Python;
        its future has `TaskStopped` after ``abort_grace`` seconds. It does not keep the interpreter from
        exiting, and leaving a ``with`` block after `kill` does not wait for it. `shutdown` does.

        May be called any number of times, from anywhere, also after `shutdown`, whose drain it ends.

        Args:
            destroy: Destroy the resources that are in use, too, at once and from this thread. For a process
                that is about to be killed: a server keeps the locks of a connection until that is closed, and
                a browser outlives its driver. Each resource is destroyed exactly once, here or by its owner.
                Tasks that still run find theirs destroyed, so leave this out if the process lives on.
        """
        check_bool("destroy", destroy)
        self._core.ending.close(kill=True)
        if destroy:
            self._core.ending.destroy_resources()

    @override
    def __exit__(self, *exc_info: object) -> None:
        self.shutdown(wait=not self._core.life.killed.is_open)
