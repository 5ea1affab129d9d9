"""For tests of code that uses an executor: an executor without threads, fake resources and their books, a gate, a leak check.

- `InlineExecutor` runs tasks in the caller: no threads, no races, the same answers each time.
- `Ledger` makes `FakeResource` objects and books who made, used and destroyed them.
- `Gate` holds tasks until the test lets them go: that is how a race is forced instead of hoped for.
- `assert_no_leaks` fails if a block leaves threads or unfinished executors behind.

It needs no test framework: what is wrong is an AssertionError. Whatever waits gives up after `DEADLINE` seconds and says what
it waited for: a hang has a name.
"""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from _thread import get_ident
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, overload

from typing_extensions import override

from ._base import BaseExecutor
from ._checks import check_callable, check_count, check_seconds, wait_seconds
from ._engine import process
from ._engine.calls import WithoutResource
from ._engine.current import Caller, current, current_holder
from ._engine.recorder import Recorder
from ._engine.resources import Holding, NoResource, ResourceSource, note_giving_up
from ._engine.settings import ResourceHooks
from ._engine.state import State
from ._options import TaskOptions
from ._report import must_escape, safe_repr
from ._sync import Latch, clock, lock_timeout
from ._types import CreateHook, DestroyHook, HealthHook, ResourceHook
from .exceptions import NoCurrentTask, PoolDeadlockError, ResourceCreationError, TaskExpired
from .observers import ObserverHub
from .stats import ExecutorStats

__all__ = ["DEADLINE", "FakeResource", "Gate", "InlineExecutor", "Ledger", "ResourceBroken", "assert_no_leaks"]

R = TypeVar("R")
T = TypeVar("T")

#: Seconds after which what waits here gives up. So long that only a bug gets there, on however busy a machine.
DEADLINE = 30.0


# -- a gate


class Watched:
    """Something whose state changes under `_changed`, and can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def _wait_until(self, predicate: Callable[[], bool], claim: str) -> None:
        with self._changed:
            if not self._changed.wait_for(predicate, DEADLINE):
                raise AssertionError(f"waited {DEADLINE:g} s in vain for {claim}: {self!r}")


class Gate(Watched):
    """Holds tasks until it is opened, and lets the test know that they are held.

    As a context manager it is opened at the end of the block, so that a failing test does not leave tasks behind.

    Example:
        >>> from tasker_executor import ResourceExecutor
        >>> ran = []
        >>> with ResourceExecutor(1) as pool, Gate() as gate:
        ...     held = pool.submit(gate.hold)
        ...     gate.wait_until_held()  # the only worker is now busy, and we know it
        ...     late = pool.submit(ran.append, "normal")
        ...     early = pool.submit_priority(ran.append, "priority")
        >>> ran
        ['priority', 'normal']
    """

    def __init__(self) -> None:
        super().__init__()
        self._held = 0
        self._open = False

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open else 'closed'}: {self._held} held>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def hold(self, *args: object) -> None:
        """Block the calling task until `release`. It takes any arguments, so it is a task for every pool."""
        with self._changed:
            self._held += 1
            try:
                self._changed.notify_all()
                self._wait_until(lambda: self._open, "the gate to open")
            finally:
                self._held -= 1
                self._changed.notify_all()

    def release(self) -> None:
        """Let everybody pass, now and from now on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def wait_until_held(self, n: int = 1) -> None:
        """Block until `n` tasks are held at the same time."""
        self._wait_until(lambda: self._held >= n, f"{n} held tasks")


# -- fake resources and their books


class ResourceBroken(Exception):
    """What a broken `FakeResource` raises when it is used."""


class FakeResource:
    """What a task gets from a pool made with `Ledger.create`.

    Attributes:
        number: 0 for the first that its ledger made, and so on.
        broken: Set it, and the next use raises `ResourceBroken`.
        uses: How often it was used.
        maker: The thread that made it.
        destroyers: The threads that destroyed it: one, and the maker, if all is well.
    """

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger = ledger
        self.number = number
        self.broken = False
        self.uses = 0
        self.maker = threading.current_thread()
        self.destroyers: list[threading.Thread] = []

    def __repr__(self) -> str:
        return f"<FakeResource {self.number}>"

    def use(self, *args: object) -> int:
        """Work with it; the result is its number. It takes any arguments, so it is a task for every pool that has a ledger."""
        self._ledger.note_use(self)
        if self.broken:
            raise ResourceBroken(self)
        return self.number

    def break_down(self, *args: object) -> None:
        """Break, and raise: the task that meets the outage."""
        self.broken = True
        self.use()


class Ledger(Watched):
    """Books every `FakeResource` that was made, used and destroyed, and by whom.

    Its methods are the hooks of an executor.

    Attributes:
        outage: Set it to an exception, or its class, and `create` raises that until it is None again.
        any_thread: Set it where `run_now` uses resources: those may be used and destroyed by any thread.
        attempts: How often `create` was called, in vain or not.
        created: All that were made, in that order.
        destroyed: All that were destroyed, in that order.

    Example:
        >>> from tasker_executor import ResourceExecutor
        >>> ledger = Ledger()
        >>> with ResourceExecutor(
        ...     1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=1
        ... ) as pool:
        ...     pool.submit(FakeResource.break_down).exception()  # breaks two: the first, and that of the retry
        ...     pool.submit(FakeResource.use).result()
        ResourceBroken(<FakeResource 1>)
        2
        >>> ledger.check()  # each destroyed once, by the thread that made it
    """

    def __init__(self) -> None:
        super().__init__()
        self.any_thread = False
        self.outage: BaseException | type[BaseException] | None = None
        self.attempts = 0
        self.created: list[FakeResource] = []
        self.destroyed: list[FakeResource] = []
        self._complaints: list[str] = []

    def __repr__(self) -> str:
        return f"<Ledger: {self.attempts} attempts, {len(self.created)} created, {len(self.destroyed)} destroyed>"

    @property
    def alive(self) -> list[FakeResource]:
        """Those not destroyed, in the order they were made."""
        with self._changed:
            return [resource for resource in self.created if not resource.destroyers]

    # -- hooks

    def create(self) -> FakeResource:
        """For ``on_create``: make one, or raise the outage."""
        with self._changed:
            self.attempts += 1
            self._changed.notify_all()
            if self.outage is not None:
                raise self.outage
            resource = FakeResource(self, len(self.created))
            self.created.append(resource)
            return resource

    def destroy(self, resource: FakeResource) -> None:
        """For ``on_destroy``."""
        with self._changed:
            resource.destroyers.append(threading.current_thread())
            self.destroyed.append(resource)
            self._changed.notify_all()

    def is_healthy(self, error: BaseException) -> bool:
        """For ``check_health``: every error but `ResourceBroken` is the task's own."""
        return not isinstance(error, ResourceBroken)

    def is_usable(self, resource: FakeResource) -> bool:
        """For ``check_resource``."""
        return not resource.broken

    # -- waiting

    def wait_until_attempted(self, n: int) -> None:
        """Block until `create` was called `n` times, in vain or not."""
        self._wait_until(lambda: self.attempts >= n, f"{n} attempts")

    def wait_until_created(self, n: int) -> None:
        """Block until `n` resources were made in all."""
        self._wait_until(lambda: len(self.created) >= n, f"{n} creations")

    def wait_until_destroyed(self, n: int) -> None:
        """Block until `n` resources were destroyed in all."""
        self._wait_until(lambda: len(self.destroyed) >= n, f"{n} destructions")

    # -- the books

    def note_use(self, resource: FakeResource) -> None:
        """Book a use by the calling thread."""
        user = threading.current_thread()
        with self._changed:
            resource.uses += 1
            if resource.destroyers:
                self._complaints.append(f"{resource} was used by {user.name} after it was destroyed")
            if user is not resource.maker and not self.any_thread:
                self._complaints.append(f"{resource} was made by {resource.maker.name} and used by {user.name}")

    def check(self) -> None:
        """Fail unless each resource was used and destroyed, exactly once and last, by the thread that made it."""
        with self._changed:
            complaints = list(self._complaints)
            for resource in self.created:
                names = [thread.name for thread in resource.destroyers]
                if len(names) != 1:
                    complaints.append(f"{resource} was destroyed {len(names)} times, by {names}")
                elif resource.destroyers[0] is not resource.maker and not self.any_thread:
                    complaints.append(f"{resource} was made by {resource.maker.name} and destroyed by {names[0]}")
        if complaints:
            raise AssertionError("\n".join(complaints))


# -- an executor without threads


@dataclass(eq=False)
class _Task:
    """A queued call."""

    future: _InlineFuture[Any]
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    max_retries: int
    deadline: float | None
    context: Context = field(default_factory=copy_context)
    # Guarded by the executor's lock.
    counted: bool = False  # as one of those that run
    in_hand: bool = False
    outcome: tuple[Any, BaseException | None] | None = None  # once it has run


class _InHand:
    """A call of `run_now` or `wait_ready`."""

    in_hand = False


class _InlineFuture(Future[T]):
    """A future that nobody works on while its caller waits; so the caller has to."""

    def __init__(self, executor: InlineExecutor[Any], lane: deque[_Task]) -> None:
        super().__init__()
        self._executor = executor
        self._lane = lane
        self._runner = 0  # the thread that runs it, or has
        self._withdrawn = False  # its task was taken out of its lane, and shall not run

    @override
    def result(self, timeout: float | None = None) -> T:
        timeout = wait_seconds(timeout)
        self._executor._run_until(self, timeout)
        return super().result(timeout)

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        timeout = wait_seconds(timeout)
        self._executor._run_until(self, timeout)
        return super().exception(timeout)

    @override
    def cancel(self) -> bool:
        try:
            self._end_if_withdrawn()
        finally:  # the first may be interrupted, by Ctrl-C for instance; where it was not, this does nothing
            self._end_if_withdrawn()
        return self.cancelled()

    def _end_if_withdrawn(self) -> None:
        self._executor._withdraw(self)
        if self._withdrawn and not self.done():
            super().cancel()
            self.set_running_or_notify_cancel()  # tells wait() and as_completed()
            self._executor._close_if_drained()


#: Inline executors that are not closed, weakly, by id. No WeakSet: another thread may add one while `assert_no_leaks` looks.
_open_inline: dict[int, weakref.ref[InlineExecutor[Any]]] = {}
_numbers = itertools.count()


class InlineExecutor(BaseExecutor[R]):
    """Runs tasks in the thread that submits them, one after the other: what a `ResourceExecutor` does, without its threads.

    `submit`, `submit_priority`, `map`, `run_now`, `with_options`, `as_thread_pool`, `current_resource`, `wait_ready`,
    `shutdown`, `kill` and `stats` are there, and `current_task` works inside of a task. Futures are done when `submit`
    returns. The health rule is that of the real executor: a resource that broke is destroyed, and the task is run again on
    another, at most `max_retries` times. Where the real executor would wait for a failing factory, the task fails at once with
    `ResourceCreationError`. Resources are used by whichever thread calls, as in `run_now`.

    With ``deferred=True`` tasks are queued, and run when the test says so: `step` runs one, `run_all` runs all, priority first.
    Asking a queued future for its result runs tasks until it is there, as a worker would; ``result(timeout=0)`` only asks.

    Args:
        on_create: Makes a resource, when a task needs one and none is free. A second one is needed only if a task submits
            another, or if several threads do.
        on_destroy: Gives a resource up: when it broke, and at the end.
        check_health: A task raised this error: is the resource still good?
        check_resource: Is this resource still good? Asked when a task raised, and before a task if another was broken.
        max_retries: How often a task is run again after its resource broke.
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

    @overload
    def __init__(
        self: InlineExecutor[None],
        *,
        on_create: None = None,
        max_retries: int = 3,
        deferred: bool = False,
        name: str | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        on_create: CreateHook[R],
        on_destroy: DestroyHook[R] | None = None,
        check_health: HealthHook | None = None,
        check_resource: ResourceHook[R] | None = None,
        max_retries: int = 3,
        deferred: bool = False,
        name: str | None = None,
    ) -> None: ...
    def __init__(
        self,
        *,
        on_create: CreateHook[R] | None = None,
        on_destroy: DestroyHook[R] | None = None,
        check_health: HealthHook | None = None,
        check_resource: ResourceHook[R] | None = None,
        max_retries: int = 3,
        deferred: bool = False,
        name: str | None = None,
    ) -> None:
        hooks = {
            "on_create": on_create,
            "on_destroy": on_destroy,
            "check_health": check_health,
            "check_resource": check_resource,
        }
        for argument, hook in hooks.items():
            check_callable(argument, hook)
            if on_create is None and hook is not None:
                raise ValueError(f"{argument}={hook!r} is of no use without on_create")
        self.name = str(name or f"{type(self).__name__}-{next(_numbers)}")
        self.deferred = deferred
        self._max_retries = check_count("max_retries", max_retries, 0)
        self._source: ResourceSource[R] | None = None
        if on_create is not None:
            self._source = ResourceSource(
                self.name,
                ResourceHooks(on_create, on_destroy, check_health, check_resource, float("inf"), None, None, None),
                Recorder(),
                ObserverHub(()),
            )
        # Guards what follows, and is never held while a task or a hook runs.
        self._lock = threading.RLock()
        self._state = State.RUNNING
        self._normal: deque[_Task] = deque()
        self._priority: deque[_Task] = deque()
        self._free: deque[Holding[R]] = deque()
        self._in_hand = 0  # tasks, and calls of run_now and wait_ready, under way
        self._submitted = self._completed = self._failed = self._cancelled = 0
        self._running = self._retried = self._replaced = self._create_failures = 0
        self._killed = Latch()
        number = id(self)
        _open_inline[number] = weakref.ref(self, lambda _: _open_inline.pop(number, None))

    def __repr__(self) -> str:
        stats = self.stats()
        queued = stats.queued_tasks + stats.priority_tasks
        return f"<{type(self).__name__} {self.name!r} {stats.state}: {queued} queued ({stats.priority_tasks} high)>"

    # -- what the test says

    def step(self) -> bool:
        """Run the task whose turn it is, priority first; return False if none waits."""
        task: _Task | None = None
        try:
            with self._lock:
                lane = self._priority or self._normal
                if self._state is State.KILLED or not lane:
                    return False
                task = lane[0]
                self._running += 1
                self._in_hand += 1
                task.counted = task.in_hand = True
                lane.popleft()  # last: an error thrown in after this finds the task in hand
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
    ) -> Future[Any]:
        lane = self._priority if options.priority else self._normal
        future: _InlineFuture[Any] = _InlineFuture(self, lane)
        deadline = None if options.start_within is None else clock() + options.start_within
        task = _Task(future, self._fit(fn, options), args, kwargs, self._limit(options), deadline)
        try:
            with self._lock:
                self._refuse_if_closed()
                self._submitted += 1
                if not self.deferred:
                    task.deadline = None  # it starts in time
                    self._running += 1
                    self._in_hand += 1
                    task.counted = task.in_hand = True
                else:
                    lane.append(task)
            if not self.deferred:
                self._run(task)
        except BaseException as thrown:
            future.cancel()  # the caller does not get the future, so what has not started had better not run
            self._end_interrupted(task, thrown)
            raise
        return future

    @override
    def _run_now(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: TaskOptions) -> Any:
        call = _InHand()
        try:
            with self._lock:
                self._refuse_if_closed()
                self._in_hand += 1
                call.in_hand = True
            return self._call(self._fit(fn, options), args, kwargs, self._limit(options))
        finally:
            try:
                self._let_go(call)
            finally:  # the first may be interrupted
                self._let_go(call)

    def _fit(self, fn: Callable[..., Any], options: TaskOptions) -> Callable[..., Any]:
        return fn if options.pass_resource or self._source is None else WithoutResource(fn)

    def _limit(self, options: TaskOptions) -> int:
        return self._max_retries if options.max_retries is None else options.max_retries

    def _refuse_if_closed(self) -> None:
        if self._state is not State.RUNNING:
            raise RuntimeError("cannot schedule new futures after shutdown")

    # An error may be thrown in (Ctrl-C, a time limit of the user's) after any call. So what belongs together, a number and the
    # mark of the task that it counts, is changed under the lock without a call between; and each ending can be repeated.

    def _let_go(self, task: _Task | _InHand) -> None:
        """The task or call is over: the last one closes an executor that has been shut down."""
        with self._lock:
            if task.in_hand:
                task.in_hand = False
                self._in_hand -= 1
        self._close_if_drained()

    def _run(self, task: _Task) -> None:
        """Run a task that is in hand, and make its future final."""
        future = task.future
        result, error = None, None
        try:
            future._runner = get_ident()
            future.set_running_or_notify_cancel()
            if task.deadline is not None and clock() > task.deadline:
                raise TaskExpired("the task had not started in the time it was given, and was not run")
            result = self._call(task.fn, task.args, task.kwargs, task.max_retries, task.context, count=True)
        except BaseException as raised:
            error = raised
        try:
            self._finish(task, result, error)
            if error is not None and must_escape(error):
                raise error
        finally:
            del error, future, task  # or the traceback's frames would keep them alive

    def _finish(self, task: _Task, result: Any, error: BaseException | None) -> None:
        """Count the outcome of a task and make its future final, unless that is done."""
        with self._lock:
            if task.counted:
                task.counted = False
                self._running -= 1
                if error is None:
                    self._completed += 1
                else:
                    self._failed += 1
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
            if task.future.done():  # else an error was thrown in before that, and this is called again
                task.outcome = None
                self._let_go(task)

    def _end_interrupted(self, task: _Task | None, thrown: BaseException) -> None:
        """An error was thrown into our own steps: the task in hand, if it is not over, gets it. Nothing stays under way."""
        if task is not None and task.in_hand:
            self._finish(task, None, thrown)

    def _call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        max_retries: int,
        context: Context | None = None,
        *,
        count: bool = False,
    ) -> Any:
        """Call `fn` as the current task of this thread; again with another resource, if the resource broke."""
        here, retries = current.here, 0
        before = here.holder
        while True:
            # An attempt must not see what the one before it has set.
            run: Callable[..., Any] = _plainly if context is None else context.copy().run
            if self._source is None:
                here.holder = Caller(self, self._killed, fn)
                try:
                    return run(fn, *args, **kwargs)
                finally:
                    here.holder = before
            holding = self._take(self._source)
            holding.item, holding.attempt = fn, 1 + retries
            here.holder, broken = holding, False
            try:
                return run(fn, holding.resource, *args, **kwargs)
            except BaseException as error:
                here.holder = before
                if not isinstance(error, Exception):
                    holding.good_at = -1  # interrupted half-way: look at the resource before it is used again
                    raise
                broken = self._source.can_break and self._source.is_broken_after(error, holding)
                if not broken:
                    raise
                if retries >= max_retries or self._killed.is_open:
                    note_giving_up(error, retries)
                    raise
            finally:
                here.holder = before
                holding.item = None
                self._give_back(self._source, holding, broken)
            retries += 1
            if count:
                with self._lock:
                    self._retried += 1

    def _take(self, source: ResourceSource[R]) -> Holding[R]:
        while True:
            try:
                holding = self._free.pop()
            except IndexError:
                return self._create(source)
            if source.unfit(holding) is None:
                return holding
            self._give_back(source, holding, broken=True)

    def _create(self, source: ResourceSource[R]) -> Holding[R]:
        try:
            holding = source.create(None)
        except Exception as error:
            with self._lock:
                self._create_failures += 1
            failed = f"executor {self.name!r}: on_create failed: {safe_repr(error)}"
            why = str(error) if isinstance(error, NoResource) else failed
            raise ResourceCreationError(why) from error
        holding.owner, holding.killed = self, self._killed
        return holding

    def _give_back(self, source: ResourceSource[R], holding: Holding[R], broken: bool) -> None:
        if broken:
            with self._lock:
                self._replaced += 1
            source.destroy(holding, None)
        else:
            self._free.append(holding)

    def _run_until(self, future: _InlineFuture[Any], timeout: float | None) -> None:
        """Somebody waits for `future`, and nobody but us can run it."""
        while not future.done() and not (timeout is not None and timeout <= 0):
            with self._lock:
                queued = any(task.future is future for task in future._lane)
            if queued:
                if not self.step():  # killed in this moment
                    future.cancel()
            elif future._runner == get_ident() and not future.done():
                raise PoolDeadlockError(f"executor {self.name!r}: a task waits for itself, or for one that waits for it")
            else:  # another thread runs it
                return

    def _withdraw(self, future: _InlineFuture[Any]) -> None:
        """Take a task out of its lane, if it is still there."""
        with self._lock:
            for task in future._lane:
                if task.future is future:
                    self._cancelled += 1
                    future._withdrawn = True
                    future._lane.remove(task)  # last: an error thrown in after this finds all done
                    return

    def current_resource(self) -> R:
        """Return the resource of the task that this is called from.

        Raises:
            NoCurrentTask: Called outside of a task of this executor.
        """
        holder = current_holder()
        if holder.owner is not self:
            raise NoCurrentTask(f"the current task is not one of executor {self.name!r}")
        return holder.resource  # type: ignore[no-any-return]  # the holder's resource is an R

    # -- workers: there are none

    @property
    def _max_workers(self) -> int:
        return 1

    @override
    def _inside(self) -> bool:
        # A view that is shut down asks this before it waits, and only then. What it waits for is queued; so run that.
        self.run_all()
        return True

    def wait_ready(self, timeout: float | None = None) -> None:
        """Make a resource, unless one is free.

        Args:
            timeout: Taken for the sake of `ResourceExecutor.wait_ready`; nothing is waited for.

        Raises:
            ResourceCreationError: `on_create` failed; ``__cause__`` is its error.
            RuntimeError: The executor has been shut down.
        """
        wait_seconds(timeout)
        call = _InHand()
        try:
            with self._lock:
                self._refuse_if_closed()
                self._in_hand += 1
                call.in_hand = True
            if self._source is not None and not self._free:
                self._free.append(self._create(self._source))
        finally:
            try:
                self._let_go(call)
            finally:  # the first may be interrupted
                self._let_go(call)

    # -- the end

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> None:
        """Accept no more tasks, run those queued, and destroy every resource.

        While a task runs, here or in another thread, it does not wait for that: the resources are destroyed after the task.

        Args:
            wait: False: leave what is queued to `step` and `run_all`; the resources are destroyed after the last of them.
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

    def kill(self) -> None:
        """Cancel what is queued, and set the cancel token of the task from which this is called, if any."""
        with self._lock:
            if self._state is not State.CLOSED:
                self._state = State.KILLED  # from here on `step` takes no task
        try:
            self._killed.open()
        finally:
            self._cancel_queued()
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
            self._free.clear()
        if self._source is not None:
            # Not the free ones alone: a call that was interrupted may have left one in no place but here.
            for holding in self._source._living.copy():
                self._source.destroy(holding, None)
        _open_inline.pop(id(self), None)  # last: after an interruption the leak check tells of it

    # -- what it tells of itself

    def stats(self) -> ExecutorStats:
        """Return gauges and counters. There are no workers; `workers_replaced` counts resources replaced."""
        with self._lock:
            created, destroyed = (0, 0) if self._source is None else self._source.counts()
            return ExecutorStats(
                base_workers=0,
                active_workers=0,
                burst_workers=0,
                idle_workers=0,
                running_tasks=self._running,
                queued_tasks=len(self._normal),
                priority_tasks=len(self._priority),
                available_resources=len(self._free),
                submitted=self._submitted,
                completed=self._completed,
                failed=self._failed,
                cancelled=self._cancelled,
                retried=self._retried,
                resources_created=created,
                resources_destroyed=destroyed,
                workers_replaced=self._replaced,
                create_failures=self._create_failures,
                state=self._state.name.lower(),
            )


def _plainly(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return fn(*args, **kwargs)


# -- leaks


@contextmanager
def assert_no_leaks(timeout: float = 5.0, *, ignore_threads: Iterable[str] = ()) -> Generator[None]:
    """Fail at the end of the block if it leaves threads or unfinished executors that were not there before.

    An error raised in the block is passed on, and nothing else is looked at.

    Args:
        timeout: Seconds that threads and executors may take to end.
        ignore_threads: What the names of threads begin with that outlive the block by design (another library's).

    Raises:
        AssertionError: Something is left; the message names it.

    Example:
        >>> from tasker_executor import ResourceExecutor
        >>> with assert_no_leaks():
        ...     with ResourceExecutor(2) as pool:
        ...         pool.submit(pow, 2, 5).result()
        32
        >>> with assert_no_leaks(timeout=0.0):
        ...     pool = ResourceExecutor(1, name="crawler", min_workers=1)
        Traceback (most recent call last):
        AssertionError: left behind: thread crawler_0; executor 'crawler' (running)
        >>> pool.shutdown()
    """
    timeout = check_seconds("timeout", timeout)
    ignored = tuple(ignore_threads)
    threads_before = set(threading.enumerate())
    cores_before, inline_before = weakref.WeakSet(process.executors()), _open_inline.copy()
    yield
    deadline = clock() + timeout
    collected = False
    while True:
        cores: list[Any] = [core for core in process.executors() if core not in cores_before]
        threads = [
            thread
            for thread in threading.enumerate()
            if thread not in threads_before and not thread.name.startswith(ignored) and thread is not threading.current_thread()
        ]
        inline = _open_since(inline_before)
        if not (cores or threads or inline):
            return
        if not collected:  # an executor in a reference cycle ends when that is found
            collected = True
            del cores, inline
            gc.collect()
            continue
        remaining = deadline - clock()
        if remaining <= 0 or not (cores or threads):
            break
        if cores:
            cores[0].terminated.wait(remaining)
        else:
            threads[0].join(lock_timeout(remaining))
    left = [f"thread {thread.name}" for thread in threads]
    left += [f"executor {core.name!r} ({core.state.name.lower()})" for core in cores]
    left += [f"executor {executor.name!r} ({executor._state.name.lower()})" for executor in inline]
    raise AssertionError(f"left behind: {'; '.join(left)}")


def _open_since(before: dict[int, weakref.ref[InlineExecutor[Any]]]) -> list[InlineExecutor[Any]]:
    """The inline executors that are open and were not before."""
    new = [reference() for number, reference in _open_inline.copy().items() if before.get(number) is not reference]
    return [executor for executor in new if executor is not None]
