"""What runs in the client: `DaskResourceExecutor`, which gives its tasks to the workers of a cluster."""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import wait as wait_for
from contextlib import AbstractContextManager
from typing import Any

from distributed import Client
from typing_extensions import TypeVar, override

from .._base import BaseExecutor
from .._checks import check_bool, check_seconds
from .._chunks import ChunkRunner
from .._engine import process
from .._engine.state import State
from .._engine.threads import make_thread
from .._options import TaskOptions
from .._report import Logger, function_name, refusal, safe_repr
from .._sync import clock, lock_timeout
from .._types import AbortHook, AroundHook, CreateHook, DestroyHook, HealthHook, ResetHook, ResourceHook
from ..exceptions import ShutdownTimeout
from ..factory import ResourceFactory
from ..futures import TaskFuture
from ..observers import Observer
from ..policies import ScalingPolicy
from ..stats import ExecutorMetrics, ExecutorStats
from .books import Books
from .deployment import Carrier, Deployment, check_carriers, check_settings
from .futures import Following, RemoteFuture
from .reports import Report, add_up_metrics, add_up_stats
from .stops import Stops
from .wire import Job, dumps, dumps_by_value
from .worker_side import cancel_here, destroy_here, hand_over

__all__ = ["DaskResourceExecutor"]

R = TypeVar("R", default=None)

logger: Logger = Logger("tasker_executor.dask")

_numbers = itertools.count()

#: All executors, weakly, by id. No WeakSet: another thread may make an executor while the exit hook iterates.
_executors: dict[int, weakref.ref[DaskResourceExecutor[Any]]] = {}


class DaskResourceExecutor(BaseExecutor[R]):
    """A `ResourceExecutor` on a Dask cluster.

    The description of the package tells how it works and what it guarantees. Tasks are called as there:
    ``fn(resource, *args, **kwargs)``, or without `on_create` ``fn(*args, **kwargs)``. Futures are those of
    `concurrent.futures`; their done-callbacks run on the client's event loop and must not block. Functions,
    their arguments and results are pickled, functions with cloudpickle. Resources are not: each worker makes
    its own.

    Most arguments are those of `ResourceExecutor` and apply **to each Dask worker**. Hooks, policies and
    observers are pickled and used there. Two arguments of `ResourceExecutor` are absent, `max_queued` and
    `on_full`, because Dask does not tell clients when a task starts. For the same reason ``running()`` of a
    future is never true, and ``cancel()`` of a future whose task runs returns True. ``stop()`` finds the task
    and has its worker stop it.

    Args:
        client: The client of the cluster. Close it after the executor.
        max_workers: The most threads, and resources, of each Dask worker. It takes no more tasks at a time
            than it has threads of Dask's own, so start it with as many (``--nthreads``). None: as many as it
            has.
        resource: What a resource is, in one argument; see `ResourceExecutor`. A factory is pickled, so each
            worker has its own copy. It must hold nothing that a resource needs: that is made by its `create`.
        on_create, on_destroy, check_health, check_resource, on_reset, around, on_abort: The same, hook by hook.
        check_after_idle, max_age, max_uses, create_timeout: The life of the resources; see `ResourceExecutor`.
        initializer, initargs, min_workers, policy, idle_timeout, resource_pool_size, observers: The workers;
            likewise.
        max_retries: At most this number of times a task is run again, by a verdict on its error, on the worker
            where it is. 0: each task runs at most once, even if its worker dies; such a task may end with
            `tasker_executor.exceptions.TaskLost`.
        run_within, abort_grace, warn_after: Limits of the time that a task runs, on its worker; see
            `ResourceExecutor`. The time that it waits at the scheduler does not count. If its worker dies, the
            task is run again elsewhere, and its time begins anew.
        carriers: What to take along of the submitter's context: pairs of ``capture()``, called by `submit`,
            and ``restore(value)``, called in the task's own context on the worker. (A `contextvars` context
            does not pickle.)
        grace: Seconds that tasks have to end when their worker is closed by its nanny, which kills it after
            4. Then resources are destroyed though they are in use, as by ``kill(destroy=True)``.
        name: What the executor is called in logs.

    Raises:
        ValueError, TypeError: An argument is wrong, or does not pickle; the message names it and its value.
        Exception: A worker could not set its executor up, for this reason. Nothing stays on the cluster.
    """

    def __init__(
        self,
        client: Client,
        max_workers: int | None = None,
        *,
        resource: ResourceFactory[R] | Callable[[], AbstractContextManager[R]] | None = None,
        on_create: CreateHook[R] | None = None,
        on_destroy: DestroyHook[R] | None = None,
        check_health: HealthHook | None = None,
        check_resource: ResourceHook[R] | None = None,
        on_reset: ResetHook[R] | None = None,
        around: AroundHook[R] | None = None,
        check_after_idle: float = 0.5,
        max_age: float | None = None,
        max_uses: int | None = None,
        create_timeout: float = 30.0,
        on_abort: AbortHook[R] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_retries: int = 3,
        run_within: float | None = None,
        abort_grace: float = 5.0,
        warn_after: float | None = None,
        min_workers: int = 0,
        policy: ScalingPolicy | None = None,
        idle_timeout: float | None = None,
        resource_pool_size: int = 0,
        observers: Iterable[Observer] = (),
        carriers: Iterable[Carrier] = (),
        grace: float = 3.0,
        name: str | None = None,
    ) -> None:
        if not isinstance(client, Client):
            raise TypeError(f"client must be a distributed.Client, not {safe_repr(client)}")
        if client.asynchronous:
            raise TypeError(f"client must not be asynchronous, nor used on its own event loop: {safe_repr(client)}")
        self.name: str = str(name or f"{type(self).__name__}-{next(_numbers)}")
        settings: dict[str, Any] = {
            "max_workers": max_workers,
            "resource": resource,
            "on_create": on_create,
            "on_destroy": on_destroy,
            "check_health": check_health,
            "check_resource": check_resource,
            "on_reset": on_reset,
            "around": around,
            "check_after_idle": check_after_idle,
            "max_age": max_age,
            "max_uses": max_uses,
            "create_timeout": create_timeout,
            "on_abort": on_abort,
            "initializer": initializer,
            "initargs": initargs,
            "max_retries": max_retries,
            "run_within": run_within,
            "abort_grace": abort_grace,
            "warn_after": warn_after,
            "min_workers": min_workers,
            "policy": policy,
            "idle_timeout": idle_timeout,
            "resource_pool_size": resource_pool_size,
            "observers": observers,
            "name": self.name,
        }
        checked = check_settings(settings)
        self._worker_limit = None if max_workers is None else checked.max_workers
        settings["max_workers"] = self._worker_limit
        settings["observers"] = checked.observers  # `observers` may be an iterator, which is at its end now
        self._is_scoped = checked.hooks is not None and checked.hooks.around is not None
        self._create_timeout = checked.create_timeout
        self._max_retries = checked.max_retries
        self._client: Any = client  # whose methods are typed in part
        self._loop: Any = client.loop
        self._following = Following(client)
        self._deployment = Deployment(client, self.name)
        self._plugin = self._deployment.plugin
        self._key_prefix = self._deployment.unique[:20]
        self._keys = itertools.count()  # `next` of a count is one step, also without the GIL: no key comes twice
        self._books = Books(client, self.name, Stops(client, self._plugin))
        # Guards what follows.
        self._lock = self._books.lock
        self._state = State.RUNNING
        self._winding_down = False  # a thread has begun to
        self._wound_down = threading.Event()
        self._last_reports: list[Report] = []  # the final ones
        pairs = check_carriers(carriers)
        self._capture = [capture for capture, _ in pairs]
        self._deployment.register(settings, [restore for _, restore in pairs], check_seconds("grace", grace))
        number = id(self)
        _executors[number] = weakref.ref(self, lambda _: _executors.pop(number, None))

    # -- tasks
    # ------------------------------------------------------------------------------------------------------------------

    def _job(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Job:
        """Return the job for a call, with the context that the carriers capture."""
        retries = self._max_retries if options.max_retries is None else options.max_retries
        function = fn.__wrapped__ if isinstance(fn, ChunkRunner) else fn
        name = function_name(function)
        # Dask groups what it learns and shows by the part of the key before the 32 hexadecimal digits.
        key = f"{name.rpartition('.')[2].strip('<>')}-{self._key_prefix}{next(self._keys):012x}"
        carried = [capture() for capture in self._capture]
        call = dumps_by_value((fn, args, kwargs))
        return Job(self._plugin, key, name, options, retries == 0, carried, call)

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> TaskFuture[Any]:
        self._refuse_if_shut_down()
        job = self._job(fn, args, kwargs, options)
        blob = dumps(job)
        chunk = args[-1] if isinstance(fn, ChunkRunner) else None
        future: RemoteFuture[Any] = RemoteFuture(self._books, urgent=options.priority, chunk=chunk)
        try:
            with self._lock:
                self._refuse_if_shut_down()
                self._books.enter(future, self)
            remote = self._client.submit(hand_over, blob, key=job.key, pure=False, priority=int(options.priority))
            with self._lock:  # see `Books.forget`, which takes it away
                future._remote = remote
            if future.cancelled():  # by a shutdown in another thread, while `submit` ran
                self._books.forget(future, None)
            else:
                self._following.follow(remote, future)
        except BaseException:
            # Dask refused, or an error was thrown in (Ctrl-C, a time limit). So the caller does not get the
            # future, and a shutdown would wait for it. Dask forgets the task when its future is gone.
            self._books.give_up(future)
            self._following.wake()
            raise
        return future

    def _refuse_if_shut_down(self) -> None:
        if self._state is not State.RUNNING:
            raise refusal(f"executor {self.name!r} has been shut down")

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        self._refuse_if_shut_down()
        self._refuse_on_loop("run_now")
        return self._deployment.run_now(self._job(fn, args, kwargs, options), self._create_timeout)

    def _refuse_on_loop(self, what: str) -> None:
        if self._inside():
            raise RuntimeError(f"{what} would block the event loop of the client, which this was called from")

    @override
    def _inside(self) -> bool:
        return bool(self._client.asynchronous)

    @property
    @override
    def _scoped(self) -> bool:
        return self._is_scoped

    @property
    def _max_workers(self) -> int:
        limit = self._worker_limit or sys.maxsize
        workers: dict[str, int] = {} if self._inside() else self._client.nthreads()
        return max(1, sum(min(limit, threads) for threads in workers.values()))

    def refresh(self) -> None:
        """Replace every resource on every worker, between two tasks; see `ResourceExecutor.refresh`.

        This returns when all workers have been told. So a task that is submitted after that never meets an
        older resource.

        Raises:
            RuntimeError: Called on the client's event loop, which this would block.
        """
        self._refuse_on_loop("refresh")
        if self._client.status == "running":
            self._deployment.refresh()

    # -- the end
    # ----------------------------------------------------------------------------------------------------------------

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks, run those accepted, and destroy every resource on every worker.

        May be called any number of times, from any thread. On the client's event loop (in a done-callback) it
        does not wait.

        Args:
            wait: Block until all that is done.
            cancel_futures: Cancel the tasks that no worker has started.
            timeout: Seconds to wait at most. None: no limit.

        Raises:
            ShutdownTimeout: It was not done in time. It goes on.
        """
        deadline = None if timeout is None else clock() + check_seconds("timeout", timeout)
        with self._lock:
            if self._state is State.RUNNING:
                self._state = State.DRAINING
        try:
            if cancel_futures:
                self._cancel_waiting()
        finally:  # after Ctrl-C, too
            self._close()
        if wait and not self._inside():
            ended = self._wound_down.wait(None if deadline is None else lock_timeout(deadline - clock()))
            if not ended:
                raise ShutdownTimeout(
                    f"executor {self.name!r} has not shut down within {timeout} s: {len(self._books)} tasks are not done; "
                    "the drain goes on, kill() would cut it short"
                )

    def kill(self, *, destroy: bool = False) -> None:
        """End as soon as possible: cancel what waits, and ask what runs, on all workers, to stop.

        There, tasks see their cancel token, and `on_abort` is called. A task that still runs ``abort_grace``
        seconds later is given up. This returns when the workers have been told. May be called any number of
        times, also after `shutdown`, which it cuts short.

        Args:
            destroy: Also destroy the resources that are in use, under their tasks. Each is destroyed once.
                This waits for that at most 5 s; the workers go on.

        Raises:
            TypeError: `destroy` is no bool.
        """
        check_bool("destroy", destroy)
        with self._lock:
            if self._state < State.KILLED:
                self._state = State.KILLED
        try:
            self._cancel_waiting(kill=True, destroy=destroy)
        finally:
            self._close()

    @override
    def __exit__(self, *exc_info: object) -> None:
        self.shutdown(wait=self._state is not State.KILLED)

    def _cancel_waiting(self, *, kill: bool = False, destroy: bool = False) -> None:
        """Cancel the tasks that no worker has started. With `kill`, kill the executors of the workers, too."""

        async def ask() -> None:
            running: dict[str, list[str]] = await self._deployment.tell(cancel_here, kill) or {}
            keys = set(itertools.chain.from_iterable(running.values()))
            for future in self._books.open_futures():
                remote = future._remote  # read once: another thread may cancel the future now
                if remote is None or remote.key not in keys:
                    future.cancel()
            if destroy:
                await self._deployment.tell(destroy_here)

        if self._inside():
            self._loop.add_callback(ask)
        elif self._client.status == "running":
            self._client.sync(ask)

    def _close(self) -> None:
        """Start the thread that winds down, unless it runs. If two are started at once, the second ends at once."""
        if not self._winding_down:
            make_thread(self._wind_down, f"{self.name}_closer").start()

    def _wind_down(self) -> None:
        """Wait until the last task is done; then drain the workers' executors, and remove the plugins."""
        with self._lock:
            if self._winding_down:
                return
            self._winding_down = True
        try:
            wait_for(self._books.open_futures())
            try:
                # The removal of a plugin does not wait for every on_destroy, and a worker that dies in it
                # spoils it. So the drain, which waits and minds no dead worker, comes first.
                self._last_reports = self._deployment.drain()
            except Exception:
                # The client or the cluster was closed first. Then the workers end their executors themselves.
                logger.debug("executor %r: the cluster is gone already", self.name, exc_info=True)
            self._deployment.unregister()
        finally:
            with self._lock:
                self._state = State.CLOSED
            self._wound_down.set()

    # -- numbers
    # ------------------------------------------------------------------------------------------------------------------

    def _reports(self, *, reset: bool = False) -> list[Report]:
        """Ask all workers for their reports."""
        self._refuse_on_loop("asking the workers")
        if self._last_reports or self._client.status != "running":
            return self._last_reports
        return self._deployment.reports(reset=reset)

    def stats(self) -> ExecutorStats:
        """Return gauges and counters of the whole cluster.

        The numbers of tasks that completed, failed or were cancelled are exact: the client counts them. The
        rest is the sum over the workers that are there now. The resources of a worker that has left are no
        longer counted, neither as created nor as destroyed.
        """
        reports = self._reports()
        sums = add_up_stats(reports)
        with self._lock:
            mine = self._books.numbers(sums["running_tasks"], sum(report.running_priority for report in reports))
            mine["state"] = self._state.name.lower()
        return ExecutorStats(**{**sums, **mine})

    def metrics(self, *, reset: bool = False) -> ExecutorMetrics:
        """Return durations and rates of the whole cluster: those of all workers that are there now, added up.

        The time that tasks wait at the scheduler for a worker is not in them: `wait` is the time that they
        wait on the worker.

        Args:
            reset: Start a new period on all workers.
        """
        return add_up_metrics(self._reports(reset=reset))

    def __repr__(self) -> str:
        with self._lock:
            state, tasks = self._state.name.lower(), len(self._books)
        return f"<{type(self).__name__} {self.name!r} {state}: {tasks} tasks | {self._client!r}>"


def _at_exit() -> None:
    """Finish the accepted tasks before the interpreter joins its threads, as the standard library does."""
    for reference in _executors.copy().values():
        executor = reference()
        if executor is not None and executor._state < State.KILLED and executor._client.status == "running":
            executor.shutdown()


process.at_exit(_at_exit)
