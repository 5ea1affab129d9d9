"""An executor without threads."""

from __future__ import annotations

import itertools
import threading
import weakref
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf
from typing import Any

from typing_extensions import TypeVar, override

from .._base import BaseExecutor
from .._checks import check_bool, check_count, check_seconds
from .._engine.calls import WithoutResource
from .._engine.current import current_holder
from .._engine.hooks import check_hooks
from .._engine.recorder import Recorder
from .._engine.reserve import Reserve
from .._engine.resources import ResourceSource
from .._engine.state import State
from .._hub import ObserverHub
from .._options import TaskOptions
from .._report import must_escape, refusal
from .._sync import clock
from .._types import AbortHook, AroundHook, CreateHook, DestroyHook, HealthHook, ResetHook, ResourceHook
from ..exceptions import NoCurrentTask, PoolDeadlockError, TaskExpired
from ..factory import ResourceFactory
from ..futures import TaskFuture
from ..stats import ExecutorStats
from ._books import Books
from ._runs import InlineRuns
from ._tasks import Call, InHand, InlineFuture, Task, call_in_scope

__all__ = ["InlineExecutor", "open_executors"]

R = TypeVar("R", default=None)
T = TypeVar("T")

#: Inline executors that are not closed, weakly, by id. No WeakSet: another thread may add one while
#: `assert_no_leaks` looks. To add, to pop and to copy are one step each.
open_executors: dict[int, weakref.ref[InlineExecutor[Any]]] = {}
_numbers = itertools.count()


class InlineExecutor(BaseExecutor[R]):
    """Runs tasks in the thread that submits them, one after the other: a `ResourceExecutor` without threads.

    `submit`, `submit_priority`, `map`, `run_now`, `with_options`, `as_thread_pool`, `current_resource`,
    `wait_ready`, `shutdown`, `kill` and `stats` are there, and `current_task` works inside of a task. Futures
    are done when `submit` returns. The health rule is that of the real executor: a resource that broke is
    destroyed, and the task is run again on another, at most `max_retries` times. Where the real executor
    waits for a failing factory, here the task fails at once with `ResourceCreationError`. The thread that
    calls uses the resource, as in `run_now`. A task that is stopped raises at its next look at its token.

    With ``deferred=True`` tasks are queued, and run when the test says so: `step` runs one, `run_all` runs
    all, priority first. Asking a queued future for its result runs tasks until it is there, as a worker
    would; ``result(timeout=0)`` only asks.

    Args:
        resource: What a resource is, in one argument; see `ResourceExecutor`.
        on_create: Makes a resource, when a task needs one and none is free. A second one is needed only if a
            task submits another, or if several threads do.
        on_destroy: Gives a resource up: when it broke, and at the end.
        check_health: A task raised this error: is the resource still good? Or a `Verdict`.
        check_resource: Is this resource still good? Asked after an error, and after another resource broke.
        on_reset: Cleans a resource after a task.
        around: Returns the scope of one task.
        on_abort: Unblocks a task that uses this resource. The thread that stops the task calls it.
        max_retries: How often a task is run again after its resource broke.
        run_within: Seconds, above 0, that a task may run. No thread watches the clock: a task learns that it
            is late when it looks at its token (`current_task`), and when it raises.
        deferred: Queue tasks instead of running them.
        name: What the executor is called in messages.

    Example:
        >>> with InlineExecutor() as pool:
        ...     future = pool.submit(pow, 2, 5)
        ...     future.done(), future.result(), list(pool.map(len, ["a", "bb"]))
        (True, 32, [1, 2])

        >>> pool = InlineExecutor(deferred=True)
        >>> ran = []
        >>> normal, urgent = pool.submit(ran.append, "normal"), pool.submit_priority(ran.append, "urgent")
        >>> pool.step(), ran
        (True, ['urgent'])
        >>> pool.shutdown()
        >>> ran
        ['urgent', 'normal']
    """

    def __init__(
        self,
        *,
        resource: ResourceFactory[R] | Callable[[], AbstractContextManager[R]] | None = None,
        on_create: CreateHook[R] | None = None,
        on_destroy: DestroyHook[R] | None = None,
        check_health: HealthHook | None = None,
        check_resource: ResourceHook[R] | None = None,
        on_reset: ResetHook[R] | None = None,
        around: AroundHook[R] | None = None,
        on_abort: AbortHook[R] | None = None,
        max_retries: int = 3,
        run_within: float | None = None,
        deferred: bool = False,
        name: str | None = None,
    ) -> None:
        hooks = check_hooks(
            {
                "on_create": on_create,
                "on_destroy": on_destroy,
                "check_health": check_health,
                "check_resource": check_resource,
                "on_reset": on_reset,
                "around": around,
                "on_abort": on_abort,
            },
            resource,
        )
        self.name: str = str(name or f"{type(self).__name__}-{next(_numbers)}")
        self.deferred: bool = bool(deferred)
        self._max_retries = check_count("max_retries", max_retries, 0)
        run_within = None if run_within is None else check_seconds("run_within", run_within, above_zero=True)
        # Guards what follows, and is never held while a task or a hook runs.
        self._lock = threading.RLock()
        self._state = State.RUNNING
        self._normal: deque[Task] = deque()
        self._priority: deque[Task] = deque()
        self._in_hand = 0  # tasks, and calls of run_now and wait_ready, under way
        self._books = Books(self._lock)
        self._runs = InlineRuns(self, self.name, run_within, None if hooks is None else hooks.abort)
        self._stop = self._runs.stop
        self._source: ResourceSource[R] | None = None
        self._reserve: Reserve[R] | None = None
        if hooks is not None:
            self._source = source = ResourceSource(self.name, hooks, Recorder(), ObserverHub(()))
            counts = self._books.of_reserve
            # It makes no resource ahead, and keeps all that its calls make.
            more: dict[str, Any] = {"most": inf, "listener": counts, "slot": 0, "in_scope": call_in_scope}
            self._reserve = Reserve(source, 0, self, self._runs.killed, self._max_retries, self._refusal, **more)
        number = id(self)
        open_executors[number] = weakref.ref(self, lambda _: open_executors.pop(number, None))

    def __repr__(self) -> str:
        stats = self.stats()
        queued = stats.queued_tasks + stats.priority_tasks
        return f"<{type(self).__name__} {self.name!r} {stats.state}: {queued} queued ({stats.priority_tasks} high)>"

    # -- what the test says

    def step(self) -> bool:
        """Run the next task, priority first; return False if none waits."""
        task: Task | None = None
        try:
            with self._lock:
                lane = self._priority or self._normal
                if self._state is State.KILLED or not lane:
                    return False
                task = lane[0]
                self._books.running += 1
                self._in_hand += 1
                task.counted = task.in_hand = True
                lane.popleft()  # last: an error that is thrown in after this finds the task in hand
            self._run(task)
        except BaseException as thrown:
            self._end_interrupted(task, thrown)
            raise
        return True

    def run_all(self) -> int:
        """Run tasks, and those that they submit, until none waits; return how many."""
        count = 0
        while self.step():
            count += 1
        return count

    # -- tasks

    @override
    def _enqueue(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions
    ) -> TaskFuture[Any]:
        lane = self._priority if options.priority else self._normal
        run = self._runs.new(options)
        future: InlineFuture[Any] = InlineFuture(self, lane, run)
        deadline = None if options.start_within is None else clock() + options.start_within
        call = Call(self._fit(fn, options), kwargs)
        task = Task(future, call, args, self._limit(options), deadline, run)
        deferred = self.deferred  # read once: another thread may change it
        try:
            with self._lock:
                self._refuse_if_closed()
                self._books.submitted += 1
                if not deferred:
                    task.deadline = None  # the task starts in time
                    self._books.running += 1
                    self._in_hand += 1
                    task.counted = task.in_hand = True
                else:
                    lane.append(task)
            if not deferred:
                self._run(task)
        except BaseException as thrown:
            future.cancel()  # the caller does not get the future, so a task that has not started must not run
            self._end_interrupted(task, thrown)
            raise
        return future

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        run, call, limit = self._runs.new(options), self._fit(fn, options), self._limit(options)
        return self._under_way(lambda: self._runs.call(run, self._reserve, call, args, kwargs, limit))

    def _fit(self, fn: Callable[..., Any], options: TaskOptions) -> Callable[..., Any]:
        return fn if options.pass_resource or self._source is None else WithoutResource(fn)

    def _limit(self, options: TaskOptions) -> int:
        return self._max_retries if options.max_retries is None else options.max_retries

    def _refusal(self) -> RuntimeError:
        return refusal(f"executor {self.name!r} has been shut down")

    def _refuse_if_closed(self) -> None:
        if self._state is not State.RUNNING:
            raise self._refusal()

    # Ctrl-C, or a time limit of the user's, may throw an error in after any call. So what belongs together, a
    # number and the mark of the task that it counts, changes under the lock without a call between the two;
    # and each ending can be repeated.

    def _under_way(self, work: Callable[[], T]) -> T:
        """Call `work`, and keep the executor open until it has returned."""
        call = InHand()
        try:
            with self._lock:
                self._refuse_if_closed()
                self._in_hand += 1
                call.in_hand = True
            return work()
        finally:
            try:
                self._let_go(call)
            finally:  # Ctrl-C may interrupt the first
                self._let_go(call)

    def _let_go(self, task: Task | InHand) -> None:
        """Count a task or call as over. The last one closes an executor that has been shut down."""
        with self._lock:
            if task.in_hand:
                task.in_hand = False
                self._in_hand -= 1
        self._close_if_drained()

    def _run(self, task: Task) -> None:
        """Run a task that is in hand, and settle its future."""
        future = task.future
        result, error = None, None
        try:
            future.runner = get_ident()
            future.set_running_or_notify_cancel()
            if task.deadline is not None and clock() > task.deadline:
                raise TaskExpired("the task had not started in the time it was given, and was not run")
            result = self._runs.call(task.run, self._reserve, task.call, task.args, {}, task.max_retries)
        except BaseException as raised:
            error = raised
        try:
            self._finish(task, result, error)
            if error is not None and must_escape(error):
                raise error
        finally:
            del error, future, task  # or the traceback's frames would keep them alive

    def _finish(self, task: Task, result: Any, error: BaseException | None) -> None:
        """Count the outcome of a task and settle its future, unless that is done."""
        late, stopped = task.run.was_late(), task.run.was_stopped()
        with self._lock:
            if task.counted:
                task.counted = False
                self._books.running -= 1
                if error is None:
                    self._books.completed += 1
                else:
                    self._books.failed += 1
                self._books.timed_out += late
                self._books.stopped += stopped
                task.outcome = result, error
        try:
            if task.outcome is not None and not task.future.done():
                result, error = task.outcome
                if error is None:
                    task.future.set_result(result)
                else:
                    task.future.set_exception(error)
        finally:  # a done-callback may have raised SystemExit
            del error
            if task.future.done():  # if not, an error was thrown in before that, and this is called again
                task.outcome = None
                self._let_go(task)

    def _end_interrupted(self, task: Task | None, thrown: BaseException) -> None:
        """Give an error that was thrown into our own steps to the task in hand, if that is not over."""
        if task is not None and task.in_hand:
            self._finish(task, None, thrown)

    def _run_until(self, future: InlineFuture[Any], timeout: float | None) -> None:
        """Run tasks until `future` is done, or another thread runs its task: the caller waits for it."""
        while not future.done() and not (timeout is not None and timeout <= 0):
            with self._lock:
                queued = any(task.future is future for task in future.lane)
            if queued:
                if not self.step():  # another thread has just killed the executor
                    future.cancel()
            elif future.runner == get_ident() and not future.done():
                raise PoolDeadlockError(f"executor {self.name!r}: a task waits for itself, or for one that waits for it")
            else:  # another thread runs it
                return

    def _withdraw(self, future: InlineFuture[Any]) -> None:
        """Take a task out of its lane, if it is still there."""
        with self._lock:
            for task in future.lane:
                if task.future is future:
                    self._books.cancelled += 1
                    future.withdrawn = True
                    future.lane.remove(task)  # last: an error thrown in after this finds all steps done
                    return

    def current_resource(self) -> R:
        """Return the resource of the task that this is called from.

        Raises:
            NoCurrentTask: Called outside of a task of this executor.
        """
        holder = current_holder()
        if holder.owner is not self:
            raise NoCurrentTask(f"the current task is not one of executor {self.name!r}")
        return holder.given  # type: ignore[no-any-return]  # the holder's resource is an R

    # -- workers: there are none

    @property
    @override
    def _scoped(self) -> bool:
        return self._source is not None and self._source.hooks.around is not None

    @property
    def _max_workers(self) -> int:
        return 1

    @override
    def _inside(self) -> bool:
        # Only a view that is shut down asks this, before it waits for its tasks: run them, if they are queued.
        self.run_all()
        return True

    def refresh(self) -> None:
        """Replace every resource: the free ones now, one that is in use after its task."""
        if self._source is not None and self._reserve is not None:
            self._source.refresh()
            self._reserve.refresh()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Make a resource, unless one is free.

        Args:
            timeout: Taken for the sake of `ResourceExecutor.wait_ready`; nothing is waited for.

        Raises:
            ResourceCreationError: `on_create` failed; ``__cause__`` is its error.
            RuntimeError: The executor has been shut down.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        reserve = self._reserve
        if reserve is None:
            self._under_way(int)
        else:
            self._under_way(lambda: None if reserve.available else reserve.add())

    # -- the end

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks, run those queued, and destroy every resource.

        It does not wait for a task that runs, here or in another thread: that task's end destroys what is left.

        Args:
            wait: False: leave the queued tasks to `step` and `run_all`. The last one's end destroys the resources.
            cancel_futures: Cancel what is queued.
            timeout: Taken for the sake of `ResourceExecutor.shutdown`; nothing is waited for.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        with self._lock:
            self._state = max(self._state, State.DRAINING)
        if cancel_futures or self._state is State.KILLED:  # a kill may have been interrupted
            self._cancel_queued()
        if wait and not self._in_hand:
            self.run_all()
        self._close_if_drained()

    def kill(self, *, destroy: bool = False) -> None:
        """Cancel what is queued, and stop the tasks that run: see `TaskFuture.stop`.

        Args:
            destroy: Destroy the resources that are in use, too, at once; see `ResourceExecutor.kill`.
        """
        check_bool("destroy", destroy)
        with self._lock:
            if self._state is not State.CLOSED:
                self._state = State.KILLED  # from here on `step` takes no task
        try:
            self._runs.kill()
        finally:
            self._cancel_queued()
            if destroy and self._reserve is not None:
                self._reserve.close()
                self._reserve.destroy_in_use([])
            self._close_if_drained()

    def _cancel_queued(self) -> None:
        with self._lock:
            futures = [task.future for task in (*self._priority, *self._normal)]
        for future in futures:
            future.cancel()

    def _close_if_drained(self) -> None:
        with self._lock:
            if self._state < State.DRAINING or self._in_hand or self._normal or self._priority:
                return
            self._state = State.CLOSED
        if self._reserve is not None:
            self._reserve.close()
            # A call that was interrupted may have left a resource that is not free. This destroys it, too,
            # and waits for no thread.
            self._reserve.wait_until_returned(clock())
        open_executors.pop(id(self), None)  # last: after an interruption the leak check tells of it

    # -- what it tells of itself

    def stats(self) -> ExecutorStats:
        """Return gauges and counters. There are no workers; `workers_replaced` counts resources replaced."""
        with self._lock:
            normal, priority = len(self._normal), len(self._priority)
            return self._books.stats(self._state, normal, priority, self._source, self._reserve)
