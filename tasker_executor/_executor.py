"""`ResourceExecutor`.

**Life of a task.** What happens to ``pool.submit(fetch, "select 1")``, and where to read it (all in ``_engine/``):

1. `ResourceExecutor.submit` (here) makes a `TaskFuture`, future and work item in one (``task.py``), appends it to a lane
   (``lanes.py``) and, if anybody is on the idle stack, wakes the top: an idle worker, or `Room`, which starts one
   (``core.py``).
2. A worker (``worker.py``), which made its resource when it started (``resources.py``), takes the task, priority lane first,
   and calls ``fetch(resource, "select 1")`` in the submitter's context.
3. It notes three moments in its log (``recorder.py``) and stores the result into the future, which wakes whoever waits for it.
4. Or ``fetch`` raised: is the resource broken? No: the error is the result. Yes: the task goes back to the front of its lane,
   the worker destroys the resource and ends, and the exit path (`Core.worker_ended`) starts a successor.
5. When there is time to deal with (a factory that fails, a deadline, a policy's tick), the supervisor does (``timer.py``).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from typing_extensions import override

from ._base import BaseExecutor
from ._checks import check_bool, check_bounds, check_callable, check_count, check_max_workers, check_seconds
from ._engine.admission import Ticket
from ._engine.core import Core
from ._engine.current import Caller, current, current_holder
from ._engine.handoff import refuse_late_patching
from ._engine.lanes import Lane
from ._engine.reserve import Reserve
from ._engine.settings import ResourceHooks
from ._engine.state import State
from ._engine.task import PENDING, RUNNING, TaskFuture
from ._options import UNSET, TaskOptions, Unset
from ._report import drop_frame, function_name, must_escape, traceback_of
from ._sync import clock
from ._types import AbortHook, CreateHook, DestroyHook, HealthHook, ResourceHook
from .exceptions import NoCurrentTask, QueueFull, TaskCancelled
from .observers import Observer, TaskEvent
from .policies import ScalingPolicy
from .stats import ExecutorMetrics, ExecutorStats, WorkerInfo

__all__ = ["ResourceExecutor"]

R = TypeVar("R")
T = TypeVar("T")

_numbers = itertools.count()
#: Where the frames between `submit` and a task that runs in the caller come from.
_OUR_FILES = {__file__, Reserve.run.__code__.co_filename}


class ResourceExecutor(BaseExecutor[R]):
    """A `concurrent.futures.Executor` in which each worker thread owns one resource.

    Without `on_create` it is a `ThreadPoolExecutor` in all that callers can see. With it, tasks are called
    ``fn(resource, *args, **kwargs)``, and:

    - a resource is made, used and destroyed on one thread, its worker's, and destroyed exactly once;
    - a broken one is replaced, and the task that met it is run again on another;
    - every future reaches a final state, however the executor ends.

    The ideas are those of the Go library *tasker* (asaidimu/tasker), brought to Python's conventions.

    Args:
        max_workers: The most workers there may be. None: ``min(32, CPUs + 4)``, as in the standard library.
        thread_name_prefix: Workers are named ``<prefix>_0``, ``<prefix>_1``, ... By default the executor's name.
        initializer: Called on each worker's thread before its resource is made. If it raises, the pool is broken for good, as
        in
            the standard library; `on_create` is the hook that may fail.
        initargs: Arguments for `initializer`.
        on_create: Makes a resource. Called on the thread that will own it. If it raises it is tried again, after a pause that
            doubles from 0.1 s to 30 s, or a quarter of `create_timeout` (with full jitter), while tasks wait.
        on_destroy: Gives a resource up. If it raises, that is logged and costs nothing else.
        check_health: A task raised this error: is the resource still good? False, or an exception: it is replaced, and the task
            is run again. Errors that are no `Exception` (SystemExit, KeyboardInterrupt) are the task's own, and not asked
            about.
        check_resource: Is this resource still good? Asked when a task raised; and before a task, if the resource was idle for
            longer than `check_after_idle` or another one was found broken since this one was last known good.
        check_after_idle: Seconds.
        max_age: Seconds after which a resource is replaced between tasks, give or take 10 %, so that workers do not recycle in
        step.
        max_uses: Tasks after which a resource is replaced.
        create_timeout: Seconds. A task that has waited so long with no worker owning a resource fails with
            `ResourceCreationError`. The pool itself lives on: when the factory works again, so does the pool.
        on_abort: Unblocks a call that hangs inside a resource. Called by `kill`, from its thread, for each resource in use:
            `sqlite3.Connection.interrupt`, ``psycopg.Connection.cancel``, ``socket.shutdown``.
        max_retries: How often a task is run again after its resource broke. 0: at most once.
        max_queued: How many tasks may wait, those not counted that a free worker is about to take. None: no limit. A task
            submitted by a worker of this executor is always let in: waiting for itself, it would wait for ever.
        on_full: What `submit` does at that limit: ``"block"`` until there is room, ``"raise"`` `QueueFull`, or run the task in
        the
            ``"caller"``, as `run_now` does.
        propagate_context: Run each task in a copy of its submitter's `contextvars` context, as `asyncio.to_thread` does.
        detect_deadlocks: When every worker waits, without a timeout, for a task of this executor, raise `PoolDeadlockError` in
            the last one instead of waiting for ever.
        log_lost_errors: Log the error of a task when its future is collected and nobody has asked for its outcome, as asyncio
            does.
        min_workers: The base: so many workers are started by the constructor and kept.
        policy: Says how many workers are wanted, between `min_workers` and `max_workers`. None: `max_workers` are.
        idle_timeout: Seconds after which an idle worker above the base ends. None: never.
        resource_pool_size: How many resources to keep for `run_now`. They are made here, and if one fails, so does this call.
        observers: Told of events; see `tasker_executor.Observer`.
        name: What the executor is called in logs, thread names and events.

    Raises:
        ValueError, TypeError: An argument is no good; the message names it and its value.
        ResourceCreationError: The resources for `run_now` could not be made. Those already made have been destroyed.

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

    @overload
    def __init__(
        self: ResourceExecutor[None],
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        on_create: None = None,
        max_retries: int = 3,
        max_queued: int | None = None,
        on_full: Literal["block", "raise", "caller"] = "block",
        propagate_context: bool = True,
        detect_deadlocks: bool = True,
        log_lost_errors: bool = True,
        min_workers: int = 0,
        policy: ScalingPolicy | None = None,
        idle_timeout: float | None = None,
        observers: Iterable[Observer] = (),
        name: str | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        on_create: CreateHook[R],
        on_destroy: DestroyHook[R] | None = None,
        check_health: HealthHook | None = None,
        check_resource: ResourceHook[R] | None = None,
        check_after_idle: float = 0.5,
        max_age: float | None = None,
        max_uses: int | None = None,
        create_timeout: float = 30.0,
        on_abort: AbortHook[R] | None = None,
        max_retries: int = 3,
        max_queued: int | None = None,
        on_full: Literal["block", "raise", "caller"] = "block",
        propagate_context: bool = True,
        detect_deadlocks: bool = True,
        log_lost_errors: bool = True,
        min_workers: int = 0,
        policy: ScalingPolicy | None = None,
        idle_timeout: float | None = None,
        resource_pool_size: int = 0,
        observers: Iterable[Observer] = (),
        name: str | None = None,
    ) -> None: ...
    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        on_create: CreateHook[R] | None = None,
        on_destroy: DestroyHook[R] | None = None,
        check_health: HealthHook | None = None,
        check_resource: ResourceHook[R] | None = None,
        check_after_idle: float = 0.5,
        max_age: float | None = None,
        max_uses: int | None = None,
        create_timeout: float = 30.0,
        on_abort: AbortHook[R] | None = None,
        max_retries: int = 3,
        max_queued: int | None = None,
        on_full: Literal["block", "raise", "caller"] = "block",
        propagate_context: bool = True,
        detect_deadlocks: bool = True,
        log_lost_errors: bool = True,
        min_workers: int = 0,
        policy: ScalingPolicy | None = None,
        idle_timeout: float | None = None,
        resource_pool_size: int = 0,
        observers: Iterable[Observer] = (),
        name: str | None = None,
    ) -> None:
        if max_workers is None:
            max_workers = min(32, (getattr(os, "process_cpu_count", os.cpu_count)() or 1) + 4)
        max_workers = check_max_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")  # the standard library's words
        min_workers = check_bounds(min_workers, max_workers)
        hooks = {
            "on_create": on_create,
            "on_destroy": on_destroy,
            "check_health": check_health,
            "check_resource": check_resource,
            "on_abort": on_abort,
        }
        for argument, hook in hooks.items():
            check_callable(argument, hook)
        resource_pool_size = check_count("resource_pool_size", resource_pool_size, 0)
        needing = {**hooks, "max_age": max_age, "max_uses": max_uses, "resource_pool_size": resource_pool_size or None}
        if on_create is None:
            for argument, value in needing.items():
                if value is not None:
                    raise ValueError(f"{argument}={value!r} is of no use without on_create")
        check_after_idle = check_seconds("check_after_idle", check_after_idle)
        if max_uses is not None:
            max_uses = check_count("max_uses", max_uses, 1)
        if max_queued is not None:
            max_queued = check_count("max_queued", max_queued, 0)
        if on_full not in ("block", "raise", "caller"):
            raise ValueError(f"on_full must be 'block', 'raise' or 'caller', not {on_full!r}")
        if policy is not None and (isinstance(policy, type) or not isinstance(policy, ScalingPolicy)):
            raise TypeError(f"policy must have an interval and a target(load), and {policy!r} has not")
        if policy is not None:
            check_seconds("policy.interval", policy.interval, above_zero=True)
        refuse_late_patching()
        name = str(name or thread_name_prefix or f"{type(self).__name__}-{next(_numbers)}")
        self._on_full = on_full
        self._core = core = Core(
            name=name,
            thread_name_prefix=str(thread_name_prefix or name),
            min_workers=min_workers,
            max_workers=max_workers,
            initializer=initializer,
            initargs=initargs,
            hooks=None
            if on_create is None
            else ResourceHooks(
                on_create=on_create,
                on_destroy=on_destroy,
                check_health=check_health,
                check_resource=check_resource,
                check_after_idle=check_after_idle,
                max_age=None if max_age is None else check_seconds("max_age", max_age, above_zero=True),
                max_uses=max_uses,
                on_abort=on_abort,
            ),
            create_timeout=check_seconds("create_timeout", create_timeout),
            max_retries=check_count("max_retries", max_retries, 0),
            max_queued=max_queued,
            detect_deadlocks=detect_deadlocks,
            log_lost_errors=log_lost_errors,
            propagate_context=bool(propagate_context),
            policy=policy,
            idle_timeout=None if idle_timeout is None else check_seconds("idle_timeout", idle_timeout),
            resource_pool_size=resource_pool_size,
            observers=observers,
        )
        self._normal, self._priority = core.lanes.normal, core.lanes.priority
        self._open_reserve = core.reserve  # until the end begins
        # What the path in line of `submit` does not do.
        self._needs_care = max_queued is not None or core.hub.hears("task_submitted")
        core.start(self)

    # -- tasks

    if not TYPE_CHECKING:
        # The hot path: `BaseExecutor.submit`, where the types and the promises are, with `_enqueue` written out in line.

        def submit(self, fn, /, *args, **kwargs):
            if self._needs_care:
                if self._on_full != "caller":
                    return self._enqueue(fn, args, kwargs, self._options)
                enqueue = [partial(self._enqueue, fn, args, kwargs, self._options)]
                del self, fn, args, kwargs  # an error of the task leads to this frame: see `_drop_our_frames`
                return enqueue.pop()()
            core = self._core
            if kwargs:
                try:  # `bind`, in line
                    fn = partial(fn, **kwargs)
                except TypeError:
                    fn = bind(fn, kwargs)
            future = TaskFuture()
            future._status = PENDING
            future._sidecar = None
            future._result = fn
            future._exception = args
            future._context = copy_context() if core.propagate_context else None
            future._lane = lane = self._normal
            future._submitted = clock()
            lane.append(future)
            if core.idle:
                core.wake(future)
            return future

        submit.__doc__ = BaseExecutor.submit.__doc__
        _submit_as_defined = submit

        def submit_priority(self, fn, /, *args, **kwargs):
            if self._needs_care:
                if self._on_full != "caller":
                    return self._enqueue(fn, args, kwargs, self._options.derive(priority=True))
                enqueue = [partial(self._enqueue, fn, args, kwargs, self._options.derive(priority=True))]
                del self, fn, args, kwargs
                return enqueue.pop()()
            core = self._core
            if kwargs:
                try:  # `bind`, in line
                    fn = partial(fn, **kwargs)
                except TypeError:
                    fn = bind(fn, kwargs)
            future = TaskFuture()
            future._status = PENDING
            future._sidecar = None
            future._result = fn
            future._exception = args
            future._context = copy_context() if core.propagate_context else None
            future._lane = lane = self._priority
            future._submitted = clock()
            lane.append(future)
            if core.idle:
                core.wake(future)
            return future

        submit_priority.__doc__ = BaseExecutor.submit_priority.__doc__

    @override
    def _enqueue_each(self, fn: Callable[..., T], calls: Iterable[tuple[Any, ...]], futures: list[Future[T]]) -> None:
        if self._needs_care:
            super()._enqueue_each(fn, calls, futures)
            return
        core, lane = self._core, self._normal
        propagate = core.propagate_context
        enqueue, note = lane.append, futures.append
        for args in calls:
            future: TaskFuture[T] = TaskFuture()
            future._status = PENDING
            future._sidecar = None
            future._result = fn
            future._exception = args
            future._context = copy_context() if propagate else None
            future._lane = lane
            future._submitted = clock()
            # In this order: after Ctrl-C between the two, `futures` are cancelled, and one that is in no lane has no tombstone.
            enqueue(future)
            note(future)
            if core.idle:
                core.wake(future)

    @staticmethod
    def _make(fn: Callable[..., T], args: tuple[Any, ...], lane: Lane, context: Any) -> TaskFuture[T]:
        future: TaskFuture[T] = TaskFuture()
        future._status = PENDING
        future._sidecar = None
        future._result = fn
        future._exception = args
        future._context = context
        future._lane = lane
        future._submitted = clock()
        return future

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Future[Any]:
        core = self._core
        if core.state:
            raise core.refusal()
        call = bind(fn, kwargs) if kwargs else fn
        if not options.pass_resource and core.source is not None:
            call = WithoutResource(call)
        lane = self._priority if options.priority else self._normal
        future = self._make(call, args, lane, copy_context() if core.propagate_context else None)
        deadline = None
        if options.max_retries is not None or options.start_within is not None:
            sidecar = future._observe()
            assert sidecar is not None
            sidecar.max_retries = options.max_retries
            if options.start_within is not None:
                sidecar.deadline = deadline = future._submitted + options.start_within

        admission = core.admission
        if admission.limit is None or current.owner is core:  # one of our own must not wait for itself
            lane.append(future)
        else:
            ticket = Ticket()
            try:
                let_in = admission.enter(ticket, block=self._on_full == "block")
                if let_in:
                    lane.append(future)
            finally:
                try:
                    admission.leave(ticket)
                except BaseException:  # thrown in by a signal handler: a place that stays reserved would close the door
                    admission.leave(ticket)
                    raise
            if not let_in:
                if self._on_full == "raise":
                    raise QueueFull(
                        f"executor {core.name!r}: {admission.limit} tasks wait already, and that is the limit (max_queued)"
                    )
                run = [partial(self._run_in_caller, future, fn, args, kwargs, options)]
                del self, future, fn, call, args, kwargs  # what it raises leads to this frame
                return run.pop()()
        if core.idle:
            core.wake(future)
        if deadline is not None:
            core.supervisor.watch(future, deadline)
        if core.hub.hears("task_submitted"):
            core.hub.tell("task_submitted", TaskEvent(core.name, id(future), function_name(fn), lane.name))
        return future

    def _run_in_caller(
        self,
        future: TaskFuture[T],
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
    ) -> Future[T]:
        """The queue is full: run the task here.

        What it raises is its result, as on a worker. But Ctrl-C and SystemExit on the main thread are the program's, and may
        come from a signal handler: they end the task, and leave `submit`.
        """
        core = self._core
        future._status = RUNNING
        value: T | None = None
        error: BaseException | None = None
        try:
            value = self._run_now(fn, args, kwargs, options)
        except BaseException as raised:
            error = _drop_our_frames(raised)
        finally:  # frames that the error's traceback leads to: see `_drop_our_frames`
            name = function_name(fn)
            del self, fn, args, kwargs
        try:
            if error is not None and core.log_lost_errors and not isinstance(error, TaskCancelled):
                future._arm(core.name, name, error)
            future._finish(value, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)) and must_escape(error):
                future._note_retrieved()
                raise error
            return future
        finally:
            del future, value, error

    if not TYPE_CHECKING:

        def run_now(self, fn, /, *args, **kwargs):
            reserve = self._open_reserve
            if reserve is None:
                return self._run_now(fn, args, kwargs, self._options)
            return reserve.run(fn, args, kwargs, None)

        run_now.__doc__ = BaseExecutor.run_now.__doc__

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        core, reserve = self._core, self._core.reserve
        if core.state is not State.RUNNING:
            raise core.refusal()
        if reserve is None:
            before, current.here.holder = current.here.holder, Caller(core, core.killed, fn)
            try:
                return fn(*args, **kwargs)
            finally:
                current.here.holder = before
        if not options.pass_resource:
            fn = WithoutResource(fn)
        return reserve.run(fn, args, kwargs, options.max_retries)

    def current_resource(self) -> R:
        """Return the resource of the task that this is called from, for code too deep inside to be handed it.

        Raises:
            NoCurrentTask: Called outside of a task of this executor.
        """
        holder = current_holder()
        if holder.owner is not self._core:
            raise NoCurrentTask(f"the current task is not one of executor {self._core.name!r}")
        return holder.resource  # type: ignore[no-any-return]  # the holder's resource is an R

    @override
    def _inside(self) -> bool:
        return current.owner is self._core

    # -- workers

    @property
    def _max_workers(self) -> int:
        return self._core.max_workers

    def resize(self, *, min_workers: int | Unset = UNSET, max_workers: int | Unset = UNSET) -> None:
        """Change the bounds on the number of workers. What is not given stays.

        New base workers start at once, others with the tasks that need them. Workers above the new maximum leave: idle ones at
        once, busy ones after their task. This does not wait for them.

        Raises:
            ValueError, TypeError: A bound is no good, or they contradict each other.
        """
        core = self._core
        least = core.min_workers if isinstance(min_workers, Unset) else min_workers
        most = core.max_workers if isinstance(max_workers, Unset) else max_workers
        most = check_max_workers(most)
        core.resize(check_bounds(least, most), most)

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block until the base workers have their resources.

        Args:
            timeout: Seconds. None: as long as `create_timeout`.

        Raises:
            ResourceCreationError: They have not, in that time; ``__cause__`` is the last error of `on_create`.
            RuntimeError: The executor has been shut down.
        """
        core = self._core
        limit = core.create_timeout if timeout is None else check_seconds("timeout", timeout)
        error = core.wait_ready(limit)
        if error is not None:
            raise error

    # -- the end

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks, run those accepted, retries included, destroy every resource, and end the threads.

        May be called any number of times, from any thread, from a task, a done-callback and a signal handler. On a thread of
        the executor itself it does not wait. A drain never sets a cancel token: see `kill`.

        Args:
            wait: Block until all that is done.
            cancel_futures: Cancel the tasks that have not started. Those who wait for them are told.
            timeout: Seconds to wait at most. None: no limit.

        Raises:
            ShutdownTimeout: It was not done in time; the message names what still runs. The drain goes on.
        """
        if timeout is not None:
            timeout = check_seconds("timeout", timeout)
        self._core.close(cancel=cancel_futures)
        if wait:
            self._core.join(timeout)

    def kill(self, *, destroy: bool = False) -> None:
        """End as soon as possible: cancel what waits, ask what runs to stop, and return at once.

        The cancel token of every running task is set (`current_task`), and `on_abort` is called for every
        resource in use. A task that takes no notice of either runs on, since threads cannot be killed in
        Python. But it does not keep the interpreter from exiting, and leaving a ``with`` block after `kill`
        does not wait for it. `shutdown` does.

        May be called any number of times, from anywhere, also after `shutdown`, which it cuts short.

        Args:
            destroy: Destroy the resources that are in use, too, at once and from this thread. This is for a
                process that is about to be killed: a server takes the lock of a connection back only when
                the connection is closed, and a browser outlives its driver. Each resource is destroyed
                exactly once, here or by its owner. Tasks that still run find their resources destroyed, so
                leave this out in a process that lives on.
        """
        check_bool("destroy", destroy)
        self._core.close(kill=True)
        if destroy:
            self._core.destroy_in_use()

    @override
    def __exit__(self, *exc_info: object) -> None:
        self.shutdown(wait=not self._core.killed.is_open)

    # -- what it tells of itself

    def stats(self) -> ExecutorStats:
        """Return gauges and counters, all of one moment."""
        return self._core.stats()

    def workers(self) -> tuple[WorkerInfo, ...]:
        """Return what each worker is doing now, in the order of their names."""
        return self._core.worker_infos()

    def metrics(self, *, reset: bool = False) -> ExecutorMetrics:
        """Return durations and rates. They take constant memory, however many tasks have run.

        Args:
            reset: Start a new period: the next call tells of what comes after this one. (`stats` counts on.)
        """
        return self._core.metrics(reset=reset)

    def __repr__(self) -> str:
        stats = self.stats()
        queued = stats.queued_tasks + stats.priority_tasks
        return (
            f"<{type(self).__name__} {self._core.name!r} {stats.state}: {stats.active_workers - stats.idle_workers} busy, "
            f"{stats.idle_workers} idle | {queued} queued ({stats.priority_tasks} high)>"
        )

    def _check(self) -> None:
        """Assert the invariants that can be asked at any moment."""
        self._core.check()


def bind(fn: Callable[..., T], kwargs: dict[str, Any]) -> Callable[..., T]:
    """Return a call of `fn` with keywords, even if `fn` cannot be called: that error belongs into the future, see `submit`."""
    try:
        return partial(fn, **kwargs)
    except TypeError:
        return lambda *args: fn(*args, **kwargs)


def _drop_our_frames(error: BaseException) -> BaseException:
    """Drop our own frames from the outside of an error's traceback, and what they hold; return the error.

    A frame of the task's leads to its callers also without a traceback (`f_back`). So each frame of ours in between lets go of
    the executor, the arguments and the future, or an error that somebody keeps would keep them all.
    """
    while (trace := traceback_of(error)) is not None and trace.tb_frame.f_code.co_filename in _OUR_FILES:
        frame = trace.tb_frame
        drop_frame(error)
        del trace
        try:
            frame.clear()
        except RuntimeError:  # our caller, which is running
            pass
    return error


class WithoutResource:
    """Calls a function without the resource that the worker hands out."""

    __slots__ = ("__wrapped__",)

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.__wrapped__ = fn

    def __call__(self, _resource: object, /, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)
