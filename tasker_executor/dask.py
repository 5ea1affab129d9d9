"""The same executor on a cluster: `DaskResourceExecutor`, past one machine. ``pip install tasker-executor[dask]``.

    with Client("tls://scheduler:8786", security=...) as client:
        with DaskResourceExecutor(client, on_create=connect, on_destroy=Connection.close) as pool:
            rows = pool.submit(fetch, "select 1").result()

Dask does what concerns machines: it places tasks, orders them by priority, and runs those of a dead worker elsewhere. Inside of
every Dask worker one `ResourceExecutor` does what concerns resources: it makes them (on the worker; they are never pickled),
checks, replaces and destroys them, and retries tasks. A `WorkerPlugin` owns it. **Life of a task**:

1. `DaskResourceExecutor._enqueue` pickles the call to one opaque blob and submits `_hand_over`, a coroutine, under a key of its
   own: Dask can neither take equal calls for one, nor eat a keyword of the task, nor replace an argument that looks like a key.
2. `_hand_over` runs on a worker's event loop. It gives the blob to the worker's own executor and waits.
3. One of that executor's threads unpickles the call, runs it with its resource, and pickles the result (`_Call`). So a result
   that does not pickle is an error, and the event loop never sees a large object.
4. The client settles the `concurrent.futures.Future` and releases Dask's, and with it the worker's copy of the result.

**How often does a task run?** *At least once*: when a worker dies, or is closed while it works, Dask runs again what it had,
and nobody knows how far it had got. ``with_options(max_retries=0)`` makes that *at most once*, at the price of one more round
trip: the scheduler must let such a task through when it starts, and does so once; it fails with `TaskLost` instead of running
twice. **Resources** are destroyed exactly once, except that nobody can do so in a process that was killed: give them a time
limit on their server.

Tasks are code: whoever can reach the scheduler can run what he likes on the cluster. Use TLS (`distributed.Security`) on
everything but one's own machine. Scheduler and workers need this package installed, too.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
import pickle
import sys
import threading
import time
import traceback
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import wait as wait_for
from concurrent.futures._base import CANCELLED
from contextvars import Context, copy_context
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, overload

from typing_extensions import override

from ._base import BaseExecutor
from ._checks import check_bounds, check_callable, check_count, check_max_workers, check_seconds, wait_seconds, whole
from ._engine.recorder import Histogram, Outcome
from ._engine.state import State
from ._engine.threads import make_thread
from ._executor import ResourceExecutor
from ._map import ChunkRunner as _ChunkRunner
from ._options import TaskOptions
from ._report import Logger, function_name, must_escape, safe_repr, safe_str
from ._sync import clock, lock_timeout
from ._types import AbortHook, CreateHook, DestroyHook, HealthHook, ResourceHook
from .exceptions import ResourceCreationError, ShutdownTimeout, TaskLost
from .observers import Observer
from .policies import ScalingPolicy
from .stats import ExecutorMetrics, ExecutorStats, LoadSample

try:
    import cloudpickle  # type: ignore[import-untyped]  # it ships no types
    from distributed import Adaptive, Client, KilledWorker, Reschedule, SchedulerPlugin, WorkerPlugin, get_worker
    from distributed import TimeoutError as DaskTimeoutError
    from distributed.core import Status
    from tblib import pickling_support  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  # no types
except ImportError as error:
    raise ImportError("tasker_executor.dask needs dask.distributed: pip install tasker-executor[dask]") from error

if TYPE_CHECKING:
    from distributed import Scheduler, Worker
    from distributed.scheduler import WorkerState

__all__ = ["Carrier", "DaskResourceExecutor", "PolicyAdaptive"]

R = TypeVar("R")
T = TypeVar("T")

logger = Logger(__name__)

#: Takes a piece of context to another machine: ``capture()``, called by `submit`, returns a plain value; ``restore(value)`` is
#: called on the worker, in the context that the task will run in.
Carrier = tuple[Callable[[], Any], Callable[[Any], object]]

_numbers = itertools.count()

# How often the plugin of a worker looks whether the worker is being closed: nobody tells it. Worker.close() may hang in a call
# to its nanny before it comes to plugins, and the nanny kills the process 4 s after it began to close it.
WATCH_INTERVAL = 0.05
# How long `kill` and ``shutdown(cancel_futures=True)`` wait for workers to say what they run.
ASK_TIMEOUT = 5.0
_CLOSING = frozenset({Status.closing, Status.closed, Status.failed, Status.stopping})


# -- what travels
# ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """What a Dask task is told."""

    pool: str  # the name of the plugin
    key: str
    function: str
    options: TaskOptions
    once: bool
    carried: list[Any]
    call: bytes  # pickled (function, args, kwargs); unpickled on the thread that runs it


@dataclass(frozen=True)
class _Outcome:
    """What comes back of a task that was run, or not."""

    value: Any = None
    error: BaseException | None = None
    cancelled: bool = False
    results: list[Any] | None = None  # of a chunk, up to the error if there is one


def _dumps_by_value(value: Any) -> bytes:
    """Pickle with cloudpickle, which takes functions along that cannot be imported where they go."""
    pickled: bytes = cloudpickle.dumps(value)
    return pickled


def _dumps(value: Any) -> bytes:
    """Pickle what can most often be imported where it goes."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return _dumps_by_value(value)


def _dumps_error(error: BaseException, results: list[Any] | None = None) -> bytes:
    """Pickle an error so that it can be unpickled: or, failing that, one that says the same."""
    why: BaseException | None = None
    preparations: list[Callable[[BaseException], Any]] = [_with_traceback, _Bare]
    for prepare in preparations:
        try:
            pickled = _dumps(_Outcome(error=prepare(error), results=results))
            pickle.loads(pickled)
            return pickled
        except BaseException as raised:  # by the error's own `__reduce__`, which may raise whatever it likes
            if must_escape(raised):
                raise
            why = why or raised
    stand_in = RuntimeError(
        f"{type(error).__name__}: {safe_str(error)} (stands in for the error itself, which does not pickle: {safe_repr(why)})"
    )
    stand_in.__cause__ = RuntimeError(f"\n{_trace_of(error)}")
    return _dumps(_Outcome(error=stand_in))


def _with_traceback(error: BaseException) -> BaseException:
    """The error, set up so that it takes its traceback along, and its causes."""
    pickling_support.install(error)
    return error


def _trace_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as raised:
        if must_escape(raised):
            raise
        return f"(its traceback cannot be shown: {safe_repr(raised)})"


class _Bare:
    """Unpickles as an error that refuses to have attributes set when it is made anew, as a frozen dataclass does.

    So it is made by its built-in base and `object`, whatever its class says of ``__init__`` and ``__setattr__``.
    """

    def __init__(self, error: BaseException) -> None:
        slots = {name for kind in type(error).__mro__ for name in _slots_of(kind) if hasattr(error, name)}
        self._state: tuple[Any, ...] = (
            type(error),
            error.args,
            dict(vars(error)),
            {name: getattr(error, name) for name in slots},
            [f"{line}\n" for line in _trace_of(error).splitlines()],
        )

    def __reduce__(self) -> Any:
        return _make_bare, self._state


def _slots_of(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots


def _make_bare(
    kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any], slots: dict[str, Any], trace: list[str]
) -> BaseException:
    base: Any = next(ancestor for ancestor in kind.__mro__ if ancestor.__module__ == "builtins")
    error: BaseException = base.__new__(kind, *args)
    vars(error).update(attributes)
    for name, value in slots.items():
        object.__setattr__(error, name, value)
    # Its traceback as a text, for it takes no other.
    _cause.__set__(error, RuntimeError("\n" + "".join(trace)))
    return error


_cause: Any = vars(BaseException)["__cause__"]


class _Call:
    """The task as the worker's own executor sees it: unpickles the call, runs it, pickles what comes of it."""

    def __init__(self, function: str, call: bytes) -> None:
        self.__qualname__ = function  # for those who look at the worker: observers, `workers()`, logs
        self._pickled: bytes | None = call
        self._call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *resource: Any) -> bytes:
        # What goes wrong with pickles is no fault of the resource, so it is a result here: nobody shall check its health.
        if self._call is None:
            assert self._pickled is not None
            try:
                self._call = pickle.loads(self._pickled)
            except BaseException as error:
                return _dumps_error(error)
            self._pickled = None
        assert self._call is not None
        function, args, kwargs = self._call
        value = function(*resource, *args, **kwargs)
        try:
            return _dumps(_Outcome(value, results=self.results))
        except BaseException as error:
            return _dumps_error(error)

    @property
    def results(self) -> list[Any] | None:
        """If this is a chunk of `map`: what its calls have returned so far."""
        if self._call is None or not isinstance(self._call[0], _ChunkRunner):
            return None
        results: list[Any] = self._call[1][0].results
        return results


async def _hand_over(pickled: bytes) -> bytes:
    """The Dask task: have the worker's own executor run the call."""
    job: _Job = pickle.loads(pickled)
    worker = get_worker()
    plugin = worker.plugins.get(job.pool)
    if not isinstance(plugin, _Plugin):
        return _dumps_error(TaskLost(f"there is no executor {job.pool!r} on worker {worker.address}, or not any more"))
    if plugin.failed:
        # Its set-up failed when the worker joined the cluster, which Dask logs and forgets. Such a worker is of no use: if it
        # has a nanny, that makes a new one.
        worker.loop.add_callback(worker.close, nanny=False, reason=f"set-up of {job.pool} failed")
        await asyncio.sleep(WATCH_INTERVAL)
        raise Reschedule
    if job.once and not await getattr(worker.scheduler, f"claim-{job.pool}")(key=job.key):
        return _dumps_error(
            TaskLost(f"{job.function}: the worker that had started this task is gone; max_retries=0 forbids another run")
        )
    return await plugin.run(job)


async def _in_thread(function: Callable[[], T], name: str) -> T:
    """Call a function that blocks. On a daemon thread of its own: those of asyncio keep the process from exiting."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    outcome: list[tuple[T | None, BaseException | None]] = []

    def main() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as raised:
            outcome.append((None, raised))
        _call_on(loop, _resolve, done)

    make_thread(main, name).start()
    await done
    result, error = outcome.pop()
    if error is None:
        return result  # type: ignore[return-value]  # without an error it is a T
    if isinstance(error, Exception):
        raise error  # not set on the asyncio future, which refuses a StopIteration; a coroutine makes a RuntimeError of that
    raise RuntimeError(f"{name}: {safe_repr(error)}") from error  # SystemExit would end the event loop


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _call_on(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:  # closed: nobody is waiting any more
        pass


# -- in every worker
# ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Report:
    """What one worker has to say. Reports add up."""

    stats: ExecutorStats
    running_priority: int
    wait: Histogram
    run: Histogram
    create: Histogram
    counts: dict[Outcome, int]
    arrival_rate: float
    completion_rate: float


class _Plugin(WorkerPlugin):
    """Owns the executor of one worker: makes it, ends it whatever way the worker ends, and lets it run what is handed over."""

    def __init__(self, name: str, settings: bytes, grace: float) -> None:
        self.name = name
        self._settings = settings  # pickled apart: what cannot be unpickled here makes a failed set-up, and no dead worker
        self._grace = grace
        self._pool: ResourceExecutor[Any] | None = None
        self._restore: list[Callable[[Any], object]] = []
        self._drain: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._handed: dict[str, Future[Any]] = {}  # by key of the Dask task: those that the pool has and that are not done
        self.failed = False

    @property
    def pool(self) -> ResourceExecutor[Any]:
        """The worker's own executor."""
        assert self._pool is not None, "set-up failed"
        return self._pool

    # Never blocks the event loop: a worker that sends no heartbeats is taken for dead.
    async def setup(self, worker: Worker) -> None:
        threads = worker.state.nthreads
        try:
            self._pool = await _in_thread(lambda: self._make(threads), f"{self.name}_setup")
        except BaseException:
            self.failed = True
            raise
        self._watch = asyncio.create_task(self._watch_over(worker))

    def _make(self, threads: int) -> ResourceExecutor[Any]:
        settings, self._restore = pickle.loads(self._settings)
        if settings["max_workers"] is None:
            settings["max_workers"] = threads
        elif settings["max_workers"] > threads:
            logger.warning(
                "%s: this Dask worker has %d threads and takes no more tasks at a time, so max_workers=%d is out of reach; "
                "start workers with as many threads (--nthreads, threads_per_worker)",
                self.name,
                threads,
                settings["max_workers"],
            )
        return ResourceExecutor(**settings)

    async def run(self, job: _Job) -> bytes:
        """Run one task to its end, retries included."""
        call = _Call(job.function, job.call)
        try:
            context = self._context(job)
        except BaseException as error:  # there is no `await` inside, so it is what a carrier raised
            return _dumps_error(error)
        try:
            future = context.run(self.pool._enqueue, call, (), {}, job.options)  # which copies it, for the task
        except RuntimeError:  # shut down in this moment
            return self._refuse()
        # Not asyncio.wrap_future: a CancelledError shall have one meaning here, that the worker cancels this Dask task.
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(lambda _: _call_on(loop, _resolve, done))
        self._handed[job.key] = future
        try:
            await done
        finally:
            del self._handed[job.key]
        if future.cancelled():
            return self._refuse()
        failure = future.exception()
        pickled: bytes = future.result() if failure is None else _dumps_error(failure, call.results)
        return pickled

    def _refuse(self) -> bytes:
        """The task was not run: because somebody cancelled it, or because the worker is being closed."""
        if self._end is not None:
            raise Reschedule
        return _dumps(_Outcome(cancelled=True))

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        # The scheduler has no use for a task that Dask takes for one that runs. Perhaps it waits here, and need not run.
        if finish == "released" and key in self._handed:
            self._handed[key].cancel()

    def cancel_waiting(self) -> list[str]:
        """Cancel what has not started; return the keys of what has."""
        return [key for key, future in self._handed.items() if not future.cancel() and not future.done()]

    async def run_now(self, job: _Job) -> bytes:
        """Run one task past all queues."""
        call, pool = _Call(job.function, job.call), self.pool
        try:
            context = self._context(job)
        except BaseException as error:  # as in `run`
            return _dumps_error(error)
        try:
            return await _in_thread(lambda: context.run(_run_and_dump, pool, call, job.options), f"{self.name}_run_now")
        except Exception as error:
            return _dumps_error(error)

    def _context(self, job: _Job) -> Context:
        """A context of its own for the task, with what the carriers have brought: those of the event loop may be shared."""
        context = copy_context()
        for restore, value in zip(self._restore, job.carried, strict=True):
            context.run(restore, value)
        return context

    def report(self, *, reset: bool = False) -> _Report:
        """Tell how things stand."""
        gauges = self.pool._core.gauges
        period = gauges.period(reset=reset)
        return _Report(gauges.stats(), gauges.urgent(), *period)

    # -- the end
    # ----------------------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Shut the executor down and wait until every resource has been destroyed, however long that takes."""
        if self._drain is None:
            pool = self.pool
            pool.shutdown(wait=False)
            self._drain = asyncio.create_task(_in_thread(pool.shutdown, f"{self.name}_drain"))
        await asyncio.shield(self._drain)

    async def teardown(self, worker: Worker) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._pool is not None:
            await self._end_with(worker)

    async def _watch_over(self, worker: Worker) -> None:
        while worker.status not in _CLOSING:
            await asyncio.sleep(WATCH_INTERVAL)
        await self._end_with(worker)

    async def _end_with(self, worker: Worker) -> None:
        """The worker ends, or this executor on it does: once, whoever comes first."""
        if self._end is None:
            self._end = asyncio.create_task(self._do_end(worker))
        await asyncio.shield(self._end)

    async def _do_end(self, worker: Worker) -> None:
        """Idle resources go at once, those in use after their tasks; or before, if the process will be killed soon."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        drain = asyncio.create_task(self.drain())
        if worker.status in _CLOSING and worker.nanny is not None:
            done, _ = await asyncio.wait([drain], timeout=self._grace)
            if not done:
                logger.warning("%s: the worker closes, and its tasks do not end: their resources are abandoned", self.name)
                await _in_thread(self.pool.abandon, f"{self.name}_abandon")
                drain.cancel()
                return
        await drain


def _run_and_dump(pool: ResourceExecutor[Any], call: _Call, options: TaskOptions) -> bytes:
    """On a thread: whatever the task raises, SystemExit and StopIteration too, it never comes near the event loop."""
    try:
        pickled: bytes = pool._run_now(call, (), {}, options)
    except BaseException as error:
        return _dumps_error(error, call.results)
    return pickled


def _plugin_of(worker: Worker, name: str) -> _Plugin | None:
    plugin = worker.plugins.get(name)
    return plugin if isinstance(plugin, _Plugin) and not plugin.failed else None


# These four are called on workers, by `Client.run`, past the scheduler's queues.


async def _run_now_here(name: str, job: _Job, dask_worker: Worker) -> bytes:
    plugin = _plugin_of(dask_worker, name)
    if plugin is None:
        return _dumps_error(TaskLost(f"there is no executor {name!r} on worker {dask_worker.address}"))
    return await plugin.run_now(job)


async def _drain_here(name: str, dask_worker: Worker) -> _Report | None:
    plugin = _plugin_of(dask_worker, name)
    if plugin is None:
        return None
    await plugin.drain()
    return plugin.report()


def _report_here(name: str, reset: bool, dask_worker: Worker) -> _Report | None:
    plugin = _plugin_of(dask_worker, name)
    return None if plugin is None else plugin.report(reset=reset)


def _cancel_here(name: str, kill: bool, dask_worker: Worker) -> list[str]:
    """Kill the executor of this worker, or only cancel what has not started; return the keys of the tasks that run on."""
    plugin = _plugin_of(dask_worker, name)
    if plugin is None:
        return []
    running = plugin.cancel_waiting()
    if kill:
        plugin.pool.kill()
    return running


# -- in the scheduler
# ------------------------------------------------------------------------------------------------------------------------


class _IdleOnly(SchedulerPlugin):
    """Lets Dask scale down idle workers only: it does not wait for the tasks of one that it retires, but runs them again."""

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[WorkerState]) -> list[WorkerState]:
        return [worker for worker in workers if not worker.processing]


class _Desk(_IdleOnly):
    """The scheduler's part in one executor: who may start an at-most-once task; clearing up after a client that vanished."""

    def __init__(self, name: str, client: str) -> None:
        self.name = name
        self._client = client
        self._claims: set[str] = set()

    async def start(self, scheduler: Scheduler) -> None:
        scheduler.handlers[f"claim-{self.name}"] = self._claim

    def _claim(self, key: str) -> bool:
        """May this task start? Yes, the first time. All in one step of the event loop, so that two cannot be told yes."""
        if key in self._claims:
            return False
        self._claims.add(key)
        return True

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish == "forgotten" and self._claims:
            self._claims.discard(key)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        if client == self._client:
            scheduler.loop.add_callback(self._clear_up, scheduler)

    async def _clear_up(self, scheduler: Scheduler) -> None:
        """Nobody is left who could shut the executor down."""
        scheduler.handlers.pop(f"claim-{self.name}", None)
        if self.name in scheduler.plugins:
            scheduler.remove_plugin(self.name)
        if scheduler.worker_plugins.pop(self.name, None) is not None:
            logger.warning("%s: its client is gone without having shut it down", self.name)
            await scheduler.broadcast(msg={"op": "plugin-remove", "name": self.name}, on_error="ignore")


def _clear_up_here(name: str, dask_scheduler: Scheduler) -> None:
    """Forget the executor in the scheduler."""
    dask_scheduler.handlers.pop(f"claim-{name}", None)
    if name in dask_scheduler.plugins:
        dask_scheduler.remove_plugin(name)


# -- in the client
# ------------------------------------------------------------------------------------------------------------------------


class _RemoteFuture(Future[T]):
    """A `concurrent.futures.Future` whose task may be on another machine."""

    _owner: DaskResourceExecutor[Any] | None = None
    _remote: Any = None  # Dask's future, as long as its result is wanted
    _chunk: Any = None  # of `map`: where the results go
    _urgent = False

    @override
    def result(self, timeout: float | None = None) -> T:
        return super().result(wait_seconds(timeout))

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(wait_seconds(timeout))

    @override
    def cancel(self) -> bool:
        """Cancel the future. Its task does not run, unless a worker has started it: that runs on, and nobody gets its result.

        The standard library does not cancel a task that has started; here nobody but the worker knows.
        """
        if not super().cancel():
            return False
        with self._condition:
            first = self._state == CANCELLED
            if first:
                self.set_running_or_notify_cancel()  # or `wait` and `as_completed` would not see it
        if first and self._owner is not None:
            self._owner._settled(self, "cancelled")
        return True


#: All there are, weakly, by id. No WeakSet: another thread may make one while the exit hook looks.
_executors: dict[int, weakref.ref[DaskResourceExecutor[Any]]] = {}


class DaskResourceExecutor(BaseExecutor[R]):
    """A `ResourceExecutor` on a Dask cluster. The module's description tells how it works and what it promises.

    Tasks are called as there: ``fn(resource, *args, **kwargs)``, or without `on_create` ``fn(*args, **kwargs)``. Futures are
    those of `concurrent.futures`; their done-callbacks run on the client's event loop and must not block. Functions, their
    arguments and results are pickled, functions with cloudpickle. Resources are not: each worker makes its own.

    Most arguments are those of `ResourceExecutor` and apply **to each Dask worker**. Hooks, policies and observers are pickled
    and used there. What that one has and this has not: `max_queued` and `on_full`, since Dask tells clients nothing when a task
    starts; for the same reason ``running()`` of a future is never true, and ``cancel()`` of one that runs says True.

    Args:
        client: The client of the cluster. Close it after the executor.
        max_workers: The most threads, and resources, of each Dask worker. It takes no more tasks at a time than it has threads
            of Dask's own, so start it with as many (``--nthreads``). None: as many as it has.
        on_create, on_destroy, check_health, check_resource, check_after_idle, max_age, max_uses, create_timeout, on_abort: The
            resources; see `ResourceExecutor`.
        initializer, initargs, min_workers, policy, idle_timeout, resource_pool_size, observers: The workers; likewise.
        max_retries: How often a task is run again after its resource broke. 0: at most once, though its worker should die; such
            a task may end with `TaskLost`.
        carriers: What to take along of the submitter's context: pairs of ``capture()``, called by `submit`, and
            ``restore(value)``, called in the task's own context on the worker. (A `contextvars` context does not pickle.)
        grace: Seconds that tasks have to end when their worker is closed by its nanny, which kills it after 4. Then resources
            are destroyed though they are in use; see `ResourceExecutor.abandon`.
        name: What the executor is called in logs.

    Raises:
        ValueError, TypeError: An argument is no good; the message names it and its value.
        Exception: A worker could not set its executor up, for this reason. Nothing stays behind.
    """

    @overload
    def __init__(
        self: DaskResourceExecutor[None],
        client: Client,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_retries: int = 3,
        min_workers: int = 0,
        policy: ScalingPolicy | None = None,
        idle_timeout: float | None = None,
        observers: Iterable[Observer] = (),
        carriers: Iterable[Carrier] = (),
        grace: float = 3.0,
        name: str | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        client: Client,
        max_workers: int | None = None,
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
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_retries: int = 3,
        min_workers: int = 0,
        policy: ScalingPolicy | None = None,
        idle_timeout: float | None = None,
        resource_pool_size: int = 0,
        observers: Iterable[Observer] = (),
        carriers: Iterable[Carrier] = (),
        grace: float = 3.0,
        name: str | None = None,
    ) -> None: ...
    def __init__(
        self,
        client: Client,
        max_workers: int | None = None,
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
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_retries: int = 3,
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
            raise TypeError(f"client must be a distributed.Client, not {client!r}")
        if client.asynchronous:
            raise TypeError(f"client must not be asynchronous, nor used on its own event loop: {client!r}")
        self.name = str(name or f"{type(self).__name__}-{next(_numbers)}")
        if max_workers is not None:
            max_workers = check_max_workers(max_workers)
        settings: dict[str, Any] = {
            "max_workers": max_workers,
            "on_create": on_create,
            "on_destroy": on_destroy,
            "check_health": check_health,
            "check_resource": check_resource,
            "check_after_idle": check_after_idle,
            "max_age": max_age,
            "max_uses": max_uses,
            "create_timeout": create_timeout,
            "on_abort": on_abort,
            "initializer": initializer,
            "initargs": initargs,
            "max_retries": max_retries,
            "min_workers": min_workers,
            "policy": policy,
            "idle_timeout": idle_timeout,
            "resource_pool_size": resource_pool_size,
            "observers": tuple(observers),
            "name": self.name,
        }
        _check_settings(settings)
        carriers = list(carriers)
        for number, (capture, restore) in enumerate(carriers):
            check_callable(f"carriers[{number}][0]", capture)
            check_callable(f"carriers[{number}][1]", restore)
        self._client: Any = client  # whose methods are typed in part
        self._loop: Any = client.loop
        self._create_timeout = check_seconds("create_timeout", create_timeout)
        self._max_retries = check_count("max_retries", max_retries, 0)
        self._worker_limit = max_workers
        self._capture = [capture for capture, _ in carriers]
        unique = uuid.uuid4().hex
        self._pool = f"tasker-{self.name}-{unique}"
        self._key_prefix = unique[:20]
        self._keys = itertools.count()
        self._turns = itertools.count()
        self._to_follow: deque[tuple[Any, _RemoteFuture[Any]]] = deque()
        self._loop_woken = False
        self._followers: set[asyncio.Task[None]] = set()  # asyncio itself holds its tasks by weak references
        # Guards what follows.
        self._lock = threading.RLock()
        self._state = State.RUNNING
        self._futures: set[_RemoteFuture[Any]] = set()  # those not done
        self._counts = {"completed": 0, "failed": 0, "cancelled": 0}
        self._submitted = 0
        self._winding_down = False  # a thread has begun to
        self._wound_down = threading.Event()
        self._last_reports: list[_Report] = []  # the final ones

        pickled = _dumps_by_value((settings, [restore for _, restore in carriers]))
        try:
            client.register_plugin(_Desk(self._pool, client.id), name=self._pool)
            self._register(_Plugin(self._pool, pickled, check_seconds("grace", grace)))
        except BaseException:
            self._unregister()
            raise
        number = id(self)
        _executors[number] = weakref.ref(self, lambda _: _executors.pop(number, None))

    def _register(self, plugin: _Plugin) -> None:
        """Set up all workers, and those to come. One that dies on the way makes Dask give up half-way, so: again."""
        for attempt in itertools.count(1):
            try:
                self._client.register_plugin(plugin, name=self._pool)
                return
            except OSError:
                if attempt == 5 or self._client.status != "running":
                    raise
                logger.info("executor %r: a worker died while it was set up", self.name, exc_info=True)

    # -- tasks
    # ------------------------------------------------------------------------------------------------------------------

    def _job(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> _Job:
        retries = self._max_retries if options.max_retries is None else options.max_retries
        function = fn.__wrapped__ if isinstance(fn, _ChunkRunner) else fn
        name = function_name(function)
        # Dask groups what it learns and shows by the part of the key before the 32 hexadecimal digits.
        key = f"{name.rpartition('.')[2].strip('<>')}-{self._key_prefix}{next(self._keys):012x}"
        carried = [capture() for capture in self._capture]
        call = _dumps_by_value((fn, args, kwargs))
        return _Job(self._pool, key, name, options, retries == 0, carried, call)

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> Future[Any]:
        self._refuse_if_shut_down()
        job = self._job(fn, args, kwargs, options)
        blob = _dumps(job)
        future: _RemoteFuture[Any] = _RemoteFuture()
        future._owner = self
        future._urgent = options.priority
        if isinstance(fn, _ChunkRunner):
            future._chunk = args[-1]
        try:
            with self._lock:
                self._refuse_if_shut_down()
                self._submitted += 1
                self._futures.add(future)
            future._remote = remote = self._client.submit(
                _hand_over, blob, key=job.key, pure=False, priority=int(options.priority)
            )
            if future.cancelled():  # by a shutdown, meanwhile
                self._settled(future, None)
            else:
                self._to_follow.append((remote, future))
                if not self._loop_woken:
                    self._loop_woken = True
                    self._loop.add_callback(self._follow_all)
        except BaseException:
            # Dask refused, or an error was thrown in (Ctrl-C, a time limit): the caller will not get the future, and a shutdown
            # would wait for it. Dask forgets the task when its future is gone.
            self._give_up(future)
            raise
        return future

    def _give_up(self, future: _RemoteFuture[Any]) -> None:
        with self._lock:
            if future in self._futures:
                self._submitted -= 1
                self._futures.discard(future)
        future.cancel()
        self._settled(future, None)
        try:
            self._loop.add_callback(self._follow_all)  # others may have relied on the wake-up that did not come to anything
        except RuntimeError:  # the loop is closed
            pass

    def _refuse_if_shut_down(self) -> None:
        if self._state is not State.RUNNING:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _follow_all(self) -> None:
        """On the client's event loop, which is woken once for many tasks: that costs as much as the rest of what we do."""
        self._loop_woken = False  # first, and then look: so one of us and a submitter sees the other
        while self._to_follow:
            task = asyncio.create_task(self._follow(*self._to_follow.popleft()))
            self._followers.add(task)
            task.add_done_callback(self._followers.discard)

    async def _follow(self, remote: Any, future: _RemoteFuture[Any]) -> None:
        """On the client's event loop: see a task to its end."""
        try:
            # What ClientExecutor calls, too: it returns an error instead of raising it.
            result: bytes | tuple[Any, ...] | BaseException = await remote._result(raiseit=False)
            # Not `remote.status`: a worker that dies right after it has sent a result makes that "lost".
            if isinstance(result, bytes):
                outcome: _Outcome = pickle.loads(result)
            elif isinstance(result, tuple):  # as of sys.exc_info()
                outcome = _Outcome(error=_translate(result[1].with_traceback(result[2]), future))
            else:
                outcome = _Outcome(error=_lost("the connection to the scheduler is lost or closed", result))
        except asyncio.CancelledError as error:  # the loop ends
            self._settle(future, _Outcome(error=_lost("the client's event loop ends", error)))
            raise
        except BaseException as error:  # of the user's, in unpickling: SystemExit would end the loop, and all that wait
            outcome = _Outcome(error=error)
        self._settle(future, outcome)

    def _settle(self, future: _RemoteFuture[Any], outcome: _Outcome) -> None:
        if outcome.cancelled:
            future.cancel()
            return
        chunk, future._chunk = future._chunk, None
        if chunk is not None and outcome.results is not None:
            chunk.results = outcome.results
        # Counted before, so that whoever has a result finds it in `stats`.
        self._settled(future, "completed" if outcome.error is None else "failed")
        try:
            if outcome.error is None:
                future.set_result(outcome.value)
            else:
                future.set_exception(outcome.error)
        except InvalidStateError:  # cancelled, and counted as that
            pass
        except BaseException:  # a done-callback's SystemExit: likewise
            logger.exception("executor %r: a done-callback raised and was ignored", self.name, executor=self.name)

    def _settled(self, future: _RemoteFuture[Any], outcome: str | None) -> None:
        """The future is done, or about to be: forget it, here and on the cluster."""
        with self._lock:
            if future in self._futures and outcome is not None:
                self._futures.discard(future)
                self._counts[outcome] += 1
            remote, future._remote = future._remote, None
        if remote is None:
            return
        try:
            if outcome == "cancelled" or outcome is None:
                # On the loop: `Client.cancel` would block here, or, called there, return a coroutine for nobody.
                self._loop.add_callback(self._client._cancel, [remote])
            else:
                remote.release()
        except RuntimeError:  # the loop is closed
            pass

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        """On the workers in turn. One that dies meanwhile makes us ask the next, unless the task may run once only."""
        self._refuse_if_shut_down()
        self._refuse_on_loop("run_now")
        job = self._job(fn, args, kwargs, options)
        deadline = clock() + self._create_timeout
        while True:
            workers = sorted(self._client.scheduler_info(n_workers=-1)["workers"])
            if not workers:
                try:
                    self._client.wait_for_workers(1, timeout=max(0.001, lock_timeout(deadline - clock())))
                except DaskTimeoutError as error:
                    raise ResourceCreationError(f"executor {self.name!r}: the cluster has no worker for run_now") from error
                continue
            worker = workers[next(self._turns) % len(workers)]
            answer = self._client.run(_run_now_here, self._pool, job, workers=[worker], on_error="return")[worker]
            if isinstance(answer, bytes):
                outcome: _Outcome = pickle.loads(answer)
                if outcome.error is not None:
                    raise outcome.error
                return outcome.value
            # The scheduler may not know yet that the worker is gone, and name it again.
            if job.once or not isinstance(answer, OSError) or clock() > deadline:
                raise TaskLost(f"{job.function}: worker {worker} is gone, or cannot be reached") from answer
            time.sleep(WATCH_INTERVAL)

    def _refuse_on_loop(self, what: str) -> None:
        if self._inside():
            raise RuntimeError(f"{what} would block the event loop of the client, which this was called from")

    @override
    def _inside(self) -> bool:
        return bool(self._client.asynchronous)

    @property
    def _max_workers(self) -> int:
        limit = self._worker_limit or sys.maxsize
        workers: dict[str, int] = {} if self._inside() else self._client.nthreads()
        return max(1, sum(min(limit, threads) for threads in workers.values()))

    # -- the end
    # ----------------------------------------------------------------------------------------------------------------

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks, run those accepted, and destroy every resource on every worker.

        May be called any number of times, from any thread. On the client's event loop (in a done-callback) it does not wait.

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
                self._cancel_waiting(kill=False)
        finally:  # after Ctrl-C, too
            self._close()
        if wait and not self._inside():
            ended = self._wound_down.wait(None if deadline is None else lock_timeout(deadline - clock()))
            if not ended:
                raise ShutdownTimeout(
                    f"executor {self.name!r} has not shut down within {timeout} s: {len(self._futures)} tasks are not done; "
                    "the drain goes on, kill() would cut it short"
                )

    def kill(self) -> None:
        """End as soon as possible: cancel what waits, and ask what runs, on all workers, to stop.

        There, tasks see their cancel token, and `on_abort` is called. This returns when the workers have been told.
        """
        with self._lock:
            if self._state < State.KILLED:
                self._state = State.KILLED
        try:
            self._cancel_waiting(kill=True)
        finally:
            self._close()

    @override
    def __exit__(self, *exc_info: object) -> None:
        self.shutdown(wait=self._state is not State.KILLED)

    def _cancel_waiting(self, *, kill: bool) -> None:
        """Cancel the tasks that no worker has started, as far as is known at this moment."""

        async def ask() -> None:
            running: dict[str, list[str]] = {}
            try:
                request = self._client._run(_cancel_here, self._pool, kill, on_error="ignore")
                running = await asyncio.wait_for(request, ASK_TIMEOUT)
            except Exception:
                logger.debug("executor %r: the cluster cannot be asked what runs", self.name, exc_info=True)
            keys = set(itertools.chain.from_iterable(running.values()))
            with self._lock:
                futures = list(self._futures)
            for future in futures:
                if future._remote is None or future._remote.key not in keys:
                    future.cancel()

        if self._inside():
            self._loop.add_callback(ask)
        elif self._client.status == "running":
            self._client.sync(ask)

    def _close(self) -> None:
        """Have a thread wind down, unless one does already; if two are started at once, the second ends at once."""
        if not self._winding_down:
            make_thread(self._wind_down, f"{self.name}_closer").start()

    def _wind_down(self) -> None:
        """When the last task is done: end the executors of the workers, one by one gently, then take the plugins away."""
        with self._lock:
            if self._winding_down:
                return
            self._winding_down = True
            futures = list(self._futures)
        try:
            wait_for(futures)
            try:
                # First this, which waits for every on_destroy and does not mind a worker that dies meanwhile, as the removal of
                # a plugin does.
                reports = self._client.run(_drain_here, self._pool, on_error="ignore")
                self._last_reports = [report for report in reports.values() if report is not None]
            except Exception:
                # The client or the cluster was closed first. The workers know what to do then.
                logger.debug("executor %r: the cluster is gone already", self.name, exc_info=True)
            self._unregister()
        finally:
            with self._lock:
                self._state = State.CLOSED
            self._wound_down.set()

    def _unregister(self) -> None:
        steps: list[Callable[[], Any]] = [
            lambda: self._client.unregister_worker_plugin(self._pool),
            lambda: self._client.run_on_scheduler(_clear_up_here, self._pool),
        ]
        for step in steps:
            if self._client.status != "running":
                return
            try:
                step()
            except Exception:  # never registered, or a worker just died: the scheduler forgot the plugin all the same
                logger.debug("executor %r: could not take leave of the cluster", self.name, exc_info=True)

    # -- what it tells of itself
    # ------------------------------------------------------------------------------------------------

    def _reports(self, *, reset: bool = False) -> list[_Report]:
        """Ask all workers. What they tell adds up."""
        self._refuse_on_loop("asking the workers")
        if self._last_reports or self._client.status != "running":
            return self._last_reports
        reports = self._client.run(_report_here, self._pool, reset, on_error="ignore")
        return [report for report in reports.values() if report is not None]

    def stats(self) -> ExecutorStats:
        """Return gauges and counters of the whole cluster.

        What became of tasks is known exactly, here. The rest is the sum over the workers that are there now: the resources of
        one that has left are no longer counted, neither as created nor as destroyed.
        """
        reports = self._reports()
        sums = Counter[str]()
        for report in reports:
            for field in fields(report.stats):
                value = getattr(report.stats, field.name)
                if isinstance(value, int):
                    sums[field.name] += value
        with self._lock:
            urgent = sum(future._urgent for future in self._futures)
            normal = len(self._futures) - urgent
            running_urgent = min(urgent, sum(report.running_priority for report in reports))
            running = running_urgent + min(normal, sums["running_tasks"] - running_urgent)
            mine: dict[str, Any] = {
                **self._counts,
                "submitted": self._submitted,
                "running_tasks": running,
                "priority_tasks": urgent - running_urgent,
                "queued_tasks": len(self._futures) - running - (urgent - running_urgent),
                "state": self._state.name.lower(),
            }
        theirs: dict[str, Any] = {field.name: sums[field.name] for field in fields(ExecutorStats)}
        return ExecutorStats(**{**theirs, **mine})

    def metrics(self, *, reset: bool = False) -> ExecutorMetrics:
        """Return durations and rates of the whole cluster: those of all workers that are there now, added up.

        The time that tasks wait for a worker, at the scheduler, is not in them: `wait` is the time they wait on it.

        Args:
            reset: Start a new period on all workers.
        """
        wait, run, create = Histogram(), Histogram(), Histogram()
        counts = Counter[Outcome]()
        reports = self._reports(reset=reset)
        for report in reports:
            wait.merge(report.wait)
            run.merge(report.run)
            create.merge(report.create)
            counts.update(report.counts)
        finished = counts[Outcome.COMPLETED] + counts[Outcome.FAILED]
        return ExecutorMetrics(
            wait=wait.summary(),
            run=run.summary(),
            create=create.summary(),
            arrival_rate=sum(report.arrival_rate for report in reports),
            completion_rate=sum(report.completion_rate for report in reports),
            success_rate=counts[Outcome.COMPLETED] / finished if finished else 0.0,
            failure_rate=counts[Outcome.FAILED] / finished if finished else 0.0,
        )

    def __repr__(self) -> str:
        with self._lock:
            state, tasks = self._state.name.lower(), len(self._futures)
        return f"<{type(self).__name__} {self.name!r} {state}: {tasks} tasks | {self._client!r}>"


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise if a worker would refuse them: here, in the caller's thread, and not later, on a machine far away."""
    most = settings["max_workers"]
    check_bounds(settings["min_workers"], sys.maxsize if most is None else most)
    kept = check_count("resource_pool_size", settings["resource_pool_size"], 0)
    # With no base, no pool and no task it makes no thread and no resource. Observers are not for here.
    harmless: dict[str, Any] = {"min_workers": 0, "resource_pool_size": 0, "observers": ()}
    if settings["on_create"] is None and kept:
        del harmless["resource_pool_size"]  # to be refused
    for observer in settings["observers"]:
        if not isinstance(observer, Observer):
            raise TypeError(f"observers must be Observer instances, not {observer!r}")
    ResourceExecutor(**{**settings, **harmless}).shutdown()


def _translate(error: BaseException, future: _RemoteFuture[Any]) -> BaseException:
    """What Dask itself has to say of a task."""
    if isinstance(error, KilledWorker):
        return _lost("the workers that had it died one after the other; perhaps it kills them", error)
    return error


def _lost(why: str, cause: Any) -> TaskLost:
    error = TaskLost(f"the task is lost: {why}")
    error.__cause__ = cause if isinstance(cause, BaseException) else None
    return error


def _at_exit() -> None:
    """Before the interpreter joins its threads: finish what was accepted. As the standard library does."""
    for reference in _executors.copy().values():
        executor = reference()
        if executor is not None and executor._state < State.KILLED and executor._client.status == "running":
            executor.shutdown()


# Before threads are joined, and before `atexit`, where Dask closes its clients. Private, and what concurrent.futures uses.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # not in typeshed


# -- how many machines?
# ------------------------------------------------------------------------------------------------------------------------

#: Rates look back about this many seconds.
_RATE_WINDOW = 10


class _LoadMeter(_IdleOnly):
    """Measures, in the scheduler, what a `ScalingPolicy` is shown. All clients' tasks count."""

    name = "tasker-load-meter"
    idempotent = True

    def __init__(self) -> None:
        self._waiting: dict[Any, float] = {}  # tasks not done, and when they came, the oldest first
        self._arrived: Counter[int] = Counter()  # by second
        self._finished: Counter[int] = Counter()
        self._run_time: dict[int, float] = {}
        self._service_time = 0.0

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._born = clock()
        self._waiting.update((key, self._born) for key, task in scheduler.tasks.items() if task.state in _UNFINISHED)
        scheduler.handlers["tasker-load"] = self.load
        scheduler.handlers["tasker-retire"] = self.retire

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if finish in _UNFINISHED:
            if key not in self._waiting:
                now = self._waiting[key] = clock()
                self._arrived[int(now)] += 1
        elif finish in ("memory", "erred"):
            if self._waiting.pop(key, None) is not None:
                second = int(clock())
                self._finished[second] += 1
                spans = kwargs.get("startstops") or ()
                ran = sum(span["stop"] - span["start"] for span in spans if span["action"] == "compute")
                self._run_time[second] = self._run_time.get(second, 0.0) + ran
        elif finish == "forgotten":
            self._waiting.pop(key, None)

    def load(self) -> dict[str, float]:
        """A handler of the scheduler: the numbers of a `LoadSample`."""
        workers = list(self._scheduler.workers.values())
        now = clock()
        recent = int(now) - _RATE_WINDOW
        for history in (self._arrived, self._finished, self._run_time):
            for second in [second for second in history if second < recent]:
                del history[second]
        finished = sum(self._finished.values())
        if finished:
            self._service_time = sum(self._run_time.values()) / finished
        span = max(1.0, min(_RATE_WINDOW, now - self._born))

        # Which tasks run, Dask's workers tell with their heartbeats; how many can, is known now.
        running = {task.key for worker in workers for task in worker.executing}
        started = sum(min(len(worker.processing), worker.nthreads) for worker in workers)
        queued = max(0, len(self._waiting) - started)
        waiting = [key for key in self._waiting if key not in running] if queued else []
        tasks = self._scheduler.tasks
        urgent = sum((task := tasks.get(key)) is not None and (task.priority or (0,))[0] < 0 for key in waiting)
        threads = max(1.0, sum(worker.nthreads for worker in workers) / max(1, len(workers)))
        return {
            "time": now,
            "workers": len(workers),
            "busy": sum(1 for worker in workers if worker.processing),
            "queued_priority": min(urgent, queued),
            "queued_normal": queued - min(urgent, queued),
            "oldest_wait": now - self._waiting[waiting[0]] if waiting else 0.0,
            "arrival_rate": sum(self._arrived.values()) / span,
            "completion_rate": finished / span,
            # A machine does as many tasks at a time as it has threads: to a policy it is a worker that is so much quicker.
            "mean_service_time": self._service_time / threads,
        }

    async def retire(self, names: list[Any]) -> list[Any]:
        """A handler of the scheduler: retire those workers that are idle; return the names of these, and of unknown ones.

        Asking who is idle and retiring it later would be two steps, and a task may come between them.
        """
        workers = {worker.name: worker for worker in self._scheduler.workers.values()}
        idle = [worker.address for name in names if (worker := workers.get(name)) is not None and not worker.processing]
        if idle:
            await self._scheduler.retire_workers(workers=idle, close_workers=True, remove=True)
        left = {worker.name for worker in self._scheduler.workers.values()}
        return [name for name in names if name not in left]


_UNFINISHED = frozenset({"waiting", "no-worker", "queued", "processing"})


class PolicyAdaptive(Adaptive):
    """Has a `ScalingPolicy` decide how many machines a cluster has, as it decides elsewhere how many threads.

        cluster.adapt(Adaptive=PolicyAdaptive, policy=RatePolicy(), minimum=1, maximum=10)

    The policy is shown a `LoadSample` in which a worker is a worker of Dask: a process, most often a machine. The service time
    is divided by the threads of one, since it does so many tasks at a time. Which tasks run is known from heartbeats, and so
    about a second late. Only idle workers are given up, since Dask would run again what a busy one has in hand; and only when
    the policy has wanted fewer ``wait_count`` times in a row (3).

    Args:
        cluster: The cluster; `Cluster.adapt` passes it.
        policy: Says how many machines.
        interval: Seconds between two questions. None: the policy's own.
        **kwargs: For `distributed.Adaptive`: ``minimum``, ``maximum``, ``wait_count`` and more.
    """

    def __init__(self, cluster: Any, policy: ScalingPolicy, interval: Any = None, **kwargs: Any) -> None:
        self.state = "inactive"  # for its destructor, should this raise
        if isinstance(policy, type) or not isinstance(policy, ScalingPolicy):
            raise TypeError(f"policy must have an interval and a target(load), and {policy!r} has not")
        self._policy = policy
        self._policy_failed = False
        self._wanted: int | None = None
        self._metered = False
        if interval is None:
            interval = check_seconds("policy.interval", policy.interval, above_zero=True)
        super().__init__(cluster, interval=interval, **kwargs)

    @override
    async def target(self) -> int:
        """Ask the policy. If it raises, that is logged once, and what it wanted last stands."""
        scheduler: Any = self.scheduler
        if not self._metered:
            meter = _LoadMeter()
            await scheduler.register_scheduler_plugin(plugin=_dumps_by_value(meter), name=meter.name, idempotent=True)
            self._metered = True
        measured: dict[str, Any] = await getattr(scheduler, "tasker-load")()
        cluster: Any = self.cluster
        planned, observed = len(cluster.plan), len(cluster.observed)
        most = sys.maxsize if math.isinf(self.maximum) else int(self.maximum)
        if self._wanted is None:
            self._wanted = planned
        measured["workers"] = max(measured["workers"], planned)
        load = LoadSample(
            idle=max(0, observed - measured["busy"]),
            mean_create_time=0.0,
            create_failures=0,
            min_workers=self.minimum,
            max_workers=most,
            target=self._wanted,
            **measured,
        )
        try:
            wanted = whole(answer := self._policy.target(load))
            if wanted is None:
                raise TypeError(f"{safe_repr(self._policy)} answered {safe_repr(answer)}, which is no number of workers")
        except Exception:
            if not self._policy_failed:
                logger.exception("%s raised; the last target stands", safe_repr(self._policy))
            self._policy_failed = True
        else:
            self._policy_failed = False
            self._wanted = min(max(wanted, self.minimum), most)
        return self._wanted

    async def scale_down(self, workers: Iterable[Any]) -> None:  # type: ignore[override]  # Adaptive's own: its base says int
        """Retire those of the workers that are idle at this moment."""
        names: list[Any] = await getattr(self.scheduler, "tasker-retire")(names=list(workers))
        cluster: Any = self.cluster
        if names and inspect.isawaitable(closed := cluster.scale_down(names)):
            await closed
