"""What runs on every worker: a plugin that owns a `ResourceExecutor`, and the Dask task that gives it jobs.

Nothing here blocks the worker's event loop: Dask takes a worker that sends no heartbeats for dead.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from contextvars import Context, copy_context
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import Reschedule, WorkerPlugin, get_worker
from distributed.core import Status

from .._chunks import ChunkRunner
from .._engine.threads import make_thread
from .._executor import ResourceExecutor
from .._options import TaskOptions
from .._report import Logger, safe_repr
from ..exceptions import TaskLost
from ..futures import TaskFuture
from .reports import Report, report_of
from .wire import Answer, Job, dumps, dumps_error

if TYPE_CHECKING:
    from distributed import Worker

__all__ = [
    "WATCH_INTERVAL",
    "WorkerSide",
    "cancel_here",
    "destroy_here",
    "drain_here",
    "hand_over",
    "refresh_here",
    "report_here",
    "run_now_here",
    "stop_here",
]

T = TypeVar("T")

logger: Logger = Logger("tasker_executor.dask")

# How often the plugin looks whether its worker is being closed: Dask does not tell it. Worker.close() may
# hang in a call to its nanny before it comes to plugins, and the nanny kills the process 4 s after it began
# to close it.
WATCH_INTERVAL = 0.05
# How many keys a worker keeps of tasks that were stopped and did not come.
_MOST_STOPPED = 10_000
_CLOSING = frozenset({Status.closing, Status.closed, Status.failed, Status.stopping})


# -- a call, on a thread of the worker's executor


class Call:
    """What the worker's executor runs: it unpickles the user's call, runs it, and pickles the answer."""

    def __init__(self, function: str, call: bytes) -> None:
        self.__qualname__ = function  # read by observers, `workers()` and logs on the worker
        self._pickled: bytes | None = call
        self._call: tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]] | None = None

    def __call__(self, *resource: Any) -> bytes:
        # An error of a pickle is no fault of the resource. So it is returned here and not raised, and no
        # health check follows.
        if self._call is None:
            assert self._pickled is not None
            try:
                self._call = pickle.loads(self._pickled)
            except BaseException as error:
                return dumps_error(error)
            self._pickled = None
        assert self._call is not None
        function, args, kwargs = self._call
        value = function(*resource, *args, **kwargs)
        try:
            return dumps(Answer(value, results=self.results))
        except BaseException as error:
            return dumps_error(error)

    @property
    def results(self) -> list[Any] | None:
        """The results so far, if this is a chunk of `map`. A copy: a task that was given up may note one more."""
        if self._call is None or not isinstance(self._call[0], ChunkRunner):
            return None
        results: list[Any] = self._call[1][0].results
        return results.copy()


def _run_and_dump(executor: ResourceExecutor[Any], call: Call, options: TaskOptions) -> bytes:
    """Run a call past all queues, on this thread. Return every error of the task, SystemExit included."""
    try:
        pickled: bytes = executor._run_now(call, (), {}, options)
    except BaseException as error:
        return dumps_error(error, call.results)
    return pickled


def kill_and_destroy(executor: ResourceExecutor[Any]) -> None:
    """Kill an executor and destroy its resources, those in use included. Block until that is done."""
    executor.kill(destroy=True)


# -- the event loop


async def in_thread(function: Callable[[], T], name: str) -> T:
    """Call a function that blocks, on a daemon thread of its own.

    The threads of asyncio keep the process from exiting.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    outcome: list[tuple[T | None, BaseException | None]] = []

    def main() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as raised:
            outcome.append((None, raised))
        call_on(loop, _resolve, done)

    make_thread(main, name).start()
    await done
    result, error = outcome.pop()
    if error is None:
        return result  # type: ignore[return-value]  # without an error it is a T
    if isinstance(error, Exception):
        raise error  # the asyncio future would refuse a StopIteration; a coroutine makes a RuntimeError of it
    raise RuntimeError(f"{name}: {safe_repr(error)}") from error  # SystemExit would end the event loop


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def call_on(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Call a function on an event loop, from another thread; not at all if the loop is closed."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:  # closed: nothing waits there any more
        pass


# -- the plugin


class WorkerSide(WorkerPlugin):
    """Owns the executor of one worker: makes it, gives it jobs, and ends it in whatever way the worker ends."""

    def __init__(self, name: str, settings: bytes, grace: float) -> None:
        self.name = name
        self._settings = settings  # a pickle of its own: an error in unpickling fails the set-up, and the worker lives
        self._grace = grace
        self._executor: ResourceExecutor[Any] | None = None
        self._restore: list[Callable[[Any], object]] = []
        self._drain: asyncio.Task[None] | None = None
        self._end: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        # Only the loop's thread uses all of this. A done-callback, on another thread, calls the loop.
        self._handed: dict[str, TaskFuture[Any]] = {}  # by key of the Dask task: those in the executor that are not done
        # Keys of tasks that were stopped, and do not run any more. A task that is stopped before it comes here
        # is found in it when it comes. One that never comes leaves its key; so the oldest keys are dropped.
        self._stopped: dict[str, None] = {}
        self.failed: bool = False

    @property
    def executor(self) -> ResourceExecutor[Any]:
        """The worker's own executor."""
        assert self._executor is not None, "set-up failed"
        return self._executor

    async def setup(self, worker: Worker) -> None:
        """Make the executor. Dask calls this."""
        threads = worker.state.nthreads
        try:
            self._executor = await in_thread(lambda: self._make(threads), f"{self.name}_setup")
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

    async def run(self, job: Job) -> bytes:
        """Run one job to its end, retries included, and return the pickled answer."""
        if job.key in self._stopped:
            return self._refuse(job.key)
        call = Call(job.function, job.call)
        try:
            context = self._context(job)
        except BaseException as error:  # there is no `await` inside, so a carrier raised it
            return dumps_error(error)
        try:
            future = context.run(self.executor._enqueue, call, (), {}, job.options)  # which copies it, for the task
        except RuntimeError:  # another thread has just shut the executor down
            return self._refuse(job.key)
        # Not asyncio.wrap_future: a CancelledError has one meaning here, that the worker cancels this Dask
        # task.
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(lambda _: call_on(loop, _resolve, done))
        self._handed[job.key] = future
        try:
            await done
        finally:
            del self._handed[job.key]
        if future.cancelled():
            return self._refuse(job.key)
        self._stopped.pop(job.key, None)
        failure = future.exception()
        pickled: bytes = future.result() if failure is None else dumps_error(failure, call.results)
        return pickled

    def _refuse(self, key: str) -> bytes:
        """Answer for a task that did not run: it is cancelled.

        But if the worker ends, and the task was not stopped, Dask is to run it elsewhere.
        """
        stopped = key in self._stopped
        self._stopped.pop(key, None)
        if self._end is not None and not stopped:
            raise Reschedule
        return dumps(Answer(cancelled=True))

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Cancel a task that the scheduler released, and forget one that will not come. Dask calls this.

        Dask counts the task as running, but it may still wait in the executor, and then it need not run.
        """
        if finish == "released" and key in self._handed:
            self._handed[key].cancel()
        elif finish == "forgotten":
            self._stopped.pop(key, None)

    def cancel_waiting(self) -> list[str]:
        """Cancel the tasks that have not started; return the keys of those that have."""
        return [key for key, future in self._handed.items() if not future.cancel() and not future.done()]

    def stop(self, keys: list[str]) -> list[str]:
        """Stop these tasks. Return the keys of those that have not come here; they will not run here any more."""
        absent: list[str] = []
        for key in keys:
            self._stopped[key] = None
            future = self._handed.get(key)
            if future is not None:
                future.stop()
            else:
                absent.append(key)
        for key in list(islice(self._stopped, max(0, len(self._stopped) - _MOST_STOPPED))):
            if key not in self._handed:
                del self._stopped[key]
        return absent

    async def run_now(self, job: Job) -> bytes:
        """Run one job past all queues, and return the pickled answer."""
        call, executor = Call(job.function, job.call), self.executor
        try:
            context = self._context(job)
        except BaseException as error:  # as in `run`
            return dumps_error(error)
        try:
            return await in_thread(lambda: context.run(_run_and_dump, executor, call, job.options), f"{self.name}_run_now")
        except Exception as error:
            return dumps_error(error)

    async def refresh(self) -> None:
        """Replace every resource of the worker's executor. Hooks run in that call, so it has a thread of its own."""
        await in_thread(self.executor.refresh, f"{self.name}_refresh")

    def _context(self, job: Job) -> Context:
        """Return a new context for the task, in which the carriers have restored what they captured.

        The context of the event loop may be shared by tasks; so each task gets a copy.
        """
        context = copy_context()
        for restore, value in zip(self._restore, job.carried, strict=True):
            context.run(restore, value)
        return context

    # -- the end
    # ----------------------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Shut the executor down and wait until every resource has been destroyed, however long that takes."""
        if self._drain is None:
            executor = self.executor
            executor.shutdown(wait=False)
            self._drain = asyncio.create_task(in_thread(executor.shutdown, f"{self.name}_drain"))
        await asyncio.shield(self._drain)

    async def destroy(self) -> None:
        """Kill the executor and destroy its resources, those in use included."""
        executor = self.executor
        await in_thread(lambda: kill_and_destroy(executor), f"{self.name}_destroyer")

    async def teardown(self, worker: Worker) -> None:
        """End the executor. Dask calls this."""
        if self._watch is not None:
            self._watch.cancel()
        if self._executor is not None:
            await self._end_with(worker)

    async def _watch_over(self, worker: Worker) -> None:
        while worker.status not in _CLOSING:
            await asyncio.sleep(WATCH_INTERVAL)
        await self._end_with(worker)

    async def _end_with(self, worker: Worker) -> None:
        """End the executor, because the worker ends or the executor leaves it. Only the first call does so."""
        if self._end is None:
            self._end = asyncio.create_task(self._do_end(worker))
        await asyncio.shield(self._end)

    async def _do_end(self, worker: Worker) -> None:
        """Destroy idle resources at once, and those in use after their tasks.

        If a nanny is about to kill the process, those in use are destroyed when the grace is over.
        """
        self.executor.shutdown(wait=False, cancel_futures=True)
        drain = asyncio.create_task(self.drain())
        if worker.status in _CLOSING and worker.nanny is not None:
            done, _ = await asyncio.wait([drain], timeout=self._grace)
            if not done:
                logger.warning("%s: the worker closes, and its tasks do not end: their resources are destroyed", self.name)
                await self.destroy()
                drain.cancel()
                return
        await drain


# -- doors
# ------------------------------------------------------------------------------------------------------------------------


async def hand_over(pickled: bytes) -> bytes:
    """Give a job to the worker's own executor, and return its answer. This is the Dask task."""
    job: Job = pickle.loads(pickled)
    worker = get_worker()
    plugin = worker.plugins.get(job.plugin)
    if not isinstance(plugin, WorkerSide):
        return dumps_error(TaskLost(f"there is no executor {job.plugin!r} on worker {worker.address}, or not any more"))
    if plugin.failed:
        # The set-up failed when the worker joined the cluster, which Dask logs and forgets. Such a worker is
        # of no use: if it has a nanny, that makes a new one.
        worker.loop.add_callback(worker.close, nanny=False, reason=f"set-up of {job.plugin} failed")
        await asyncio.sleep(WATCH_INTERVAL)
        raise Reschedule
    if job.once and not await getattr(worker.scheduler, f"claim-{job.plugin}")(key=job.key):
        return dumps_error(
            TaskLost(f"{job.function}: the worker that had started this task is gone; max_retries=0 forbids another run")
        )
    return await plugin.run(job)


# The client calls the functions that follow by `Client.run`, past the scheduler's queues.


def stop_here(name: str, keys: list[str], dask_worker: Worker) -> list[str]:
    """Stop these tasks, which the scheduler has given to this worker. Return the keys of those that had not started."""
    plugin = _plugin_of(dask_worker, name)
    if plugin is None:
        return keys
    tasks = dask_worker.state.tasks
    return plugin.stop([key for key in keys if key not in tasks or tasks[key].state not in ("memory", "error")])


def _plugin_of(worker: Worker, name: str) -> WorkerSide | None:
    plugin = worker.plugins.get(name)
    return plugin if isinstance(plugin, WorkerSide) and not plugin.failed else None


async def run_now_here(name: str, job: Job, dask_worker: Worker) -> bytes:
    """Run a job past all queues, and return the pickled answer."""
    plugin = _plugin_of(dask_worker, name)
    if plugin is None:
        return dumps_error(TaskLost(f"there is no executor {name!r} on worker {dask_worker.address}"))
    return await plugin.run_now(job)


async def drain_here(name: str, dask_worker: Worker) -> Report | None:
    """Shut the executor of this worker down, wait for its end, and return its last report."""
    plugin = _plugin_of(dask_worker, name)
    if plugin is None:
        return None
    await plugin.drain()
    return report_of(plugin.executor)


def report_here(name: str, reset: bool, dask_worker: Worker) -> Report | None:
    """Return the numbers of this worker's executor."""
    plugin = _plugin_of(dask_worker, name)
    return None if plugin is None else report_of(plugin.executor, reset=reset)


async def refresh_here(name: str, dask_worker: Worker) -> None:
    """Replace every resource of this worker's executor."""
    plugin = _plugin_of(dask_worker, name)
    if plugin is not None:
        await plugin.refresh()


def cancel_here(name: str, kill: bool, dask_worker: Worker) -> list[str]:
    """Cancel what has not started, and return the keys of the tasks that run on. With `kill`, kill the executor."""
    plugin = _plugin_of(dask_worker, name)
    if plugin is None:
        return []
    running = plugin.cancel_waiting()
    if kill:
        plugin.executor.kill()
    return running


async def destroy_here(name: str, dask_worker: Worker) -> None:
    """Destroy the resources of this worker, those in use included, and wait for that."""
    plugin = _plugin_of(dask_worker, name)
    if plugin is not None:
        await plugin.destroy()
