"""A worker: one thread, one resource, one loop. This is the hot path.

**A worker is an immutable binding of a thread to a resource.** Whatever happens to it (its resource broke, is too old or used
up, it is one too many, the executor shuts down) it does the same: it destroys the resource, reports why, and ends. The exit
path (`Core.worker_ended`) alone decides whether a successor starts.

**Taking turns.** A submitter appends its task to a lane first and then looks at the *idle stack*; if somebody is there, it pops
the top and releases that worker's `park` lock: exactly one wake-up, the warmest worker first. A worker that runs out of work
registers on the idle stack first and then looks at the lanes again. One of the two sees the other, so no task is left behind.
From this follows the rule of the park lock: *who is on the stack has no permit; who was popped gets exactly one.* A worker that
finds a task although it is registered takes itself off the stack, or, if it has been popped already, takes the permit and
passes the wake-up on.

**Few at a time.** While as many as `WAKES_AT_ONCE` workers have a permit and have not come to take it, submitters wake nobody.
They look at the permit after they have queued their task; a worker takes its permit first and looks at the lanes afterwards. If
it finds more than one task there, it wakes another worker: so all that are needed come, one after the other.

**An error thrown into a worker.** rq, Celery and debuggers stop a task by an error that they throw into its thread
(`PyThreadState_SetAsyncExc`). Inside of a task it is the task's. It may come a moment too late, though, between any two steps
of the interpreter. What is promised then: the worker ends, its resource is destroyed once, a successor takes its place, and the
task in hand reaches its end once: with the result if it had returned, in its lane if it was to be retried, otherwise with the
error. For that:

- *A task leaves its lane and enters the variable `future` in one step* (the head of a ``for`` loop; see `_serve`), and leaves
  the variable before it is put back.
- What a task has come to is known from what is stored (see `_salvage`), and counted in one step.
- The last reference to a worker's life (`_Life`) goes with its thread. If the exit path was hit, it is walked again then.

What is not promised: two such errors at the same worker, or one in the first steps of a thread, before `Worker.live`. Such a
worker is missed only by `shutdown` while it waits, which looks once a second for threads that have died. Without
the GIL a life goes late: when the thread that made it next looks for signals. What follows from a hit in the first step or in
the exit path, such as a successor, waits for that.

**No lock, no test per task that it does not need.** What a task may need besides its call (a listener, a deadline, a
cancellation) is in its sidecar, and one load tells whether there is one. The end of a task serves as the start of the next. The
result is stored after the worker has registered as idle, so that a caller in a ``submit().result()`` loop never starts a second
thread.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections.abc import Iterator
from functools import partial
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, cast

from .._report import Logger, drop_frame, function_name
from .._sync import clock, lock_timeout
from ..exceptions import TaskCancelled
from ..observers import TaskEvent, WorkerEvent
from ..stats import WorkerInfo
from .current import current
from .holding import Holding
from .recorder import LULL, Outcome, TaskLog
from .resources import End, UnfitResource, note_giving_up
from .state import State
from .task import FINISHED, RUNNING, TaskFuture
from .threads import make_thread

if TYPE_CHECKING:
    from .._sync import Latch
    from .core import Core
    from .lanes import Lane

__all__ = ["Worker", "describe"]

#: What a task has returned that has not returned yet.
_NOTHING: Any = object()

logger = Logger("tasker_executor")
futures_logger = Logger("concurrent.futures")

#: Tasks between two foldings of the log. A tuple, since iterating over one makes no objects.
_SHIFT = (None,) * 512
_NEVER = float("inf")
_TRIES = (None,) * 10  # at destroying a resource, while others throw exceptions into the thread
_RUNNING = State.RUNNING  # looking up a member of an enum takes its time


class Worker:
    """One thread and the resource that it owns."""

    __slots__ = (
        "__weakref__",
        "broken_by",  # the error that showed the resource to be broken
        "birth",  # taken by the thread when it begins to live, or by who started it, to disown it
        "core",
        "holding",  # None before it is made, after it is destroyed, and without on_create
        "index",
        "item",  # the task in hand
        "killed",
        "late",  # has it been starting for create_timeout?
        "log",
        "name",
        "over",  # it has walked its exit path to the end, or will never live
        "ready",  # is it about to look at the lanes, or has it?
        "release",  # releases `park`; what the idle stack calls
        "park",
        "since",  # when it took the task in hand
        "started_at",
        "thread",
        "told_of_end",  # observers have heard of it
        "told_to_leave",  # set, before its permit, by who took it off the idle stack to retire it
    )

    def __init__(self, core: Core, index: int) -> None:
        self.core = core
        self.index = index
        self.name = f"{core.thread_name_prefix}_{index}"
        self.killed: Latch = core.killed
        self.holding: Holding[Any] | None = None
        self.item: TaskFuture[Any] | None = None
        self.log = TaskLog()
        self.ready = self.late = False
        self.told_to_leave = self.told_of_end = self.over = False
        self.broken_by: BaseException | None = None
        self.birth = allocate_lock()
        self.park = allocate_lock()
        self.park.acquire()
        self.release = self.park.release
        self.started_at = self.since = clock()
        # A daemon, so that a task that ignores kill() cannot keep the interpreter from exiting; the exit hook joins all others.
        self.thread = make_thread(_Life(self.live), self.name)

    @property
    def owner(self) -> Core:
        """The core whose tasks it runs."""
        return self.core

    @property
    def resource(self) -> Any:
        """The resource it owns."""
        return None if self.holding is None else self.holding.resource

    @property
    def busy(self) -> bool:
        """Is a task in hand?"""
        return self.item is not None

    @property
    def attempt(self) -> int:
        """1 in the first run of the task in hand, 2 in its first retry, and so on."""
        item = self.item
        sidecar = None if item is None else item._sidecar
        return 1 if sidecar is None else 1 + sidecar.retries

    def runs(self, task: TaskFuture[Any]) -> bool:
        """Return whether it still has that task in hand."""
        return self.item is task

    def __repr__(self) -> str:
        item = self.item
        return f"<Worker {self.name} {'idle' if item is None else describe(item)}>"

    def info(self) -> WorkerInfo:
        """What it is doing now."""
        item, holding, now = self.item, self.holding, clock()
        function = "" if item is None else describe(item)
        uses = self.log.attempts()
        age = 0.0 if holding is None else now - holding.born
        if item is None or self.item is not item:  # done meanwhile, and perhaps its result described instead of its function
            return WorkerInfo(self.name, "idle" if self.ready else "starting", None, None, 0, 0.0, uses, age)
        sidecar = item._sidecar
        attempt = 1 if sidecar is None else 1 + sidecar.retries
        return WorkerInfo(self.name, "busy", function, item._lane.name, attempt, max(0.0, now - self.since), uses, age)

    # -- a worker's life

    def live(self) -> None:
        """Live, from the first step of the thread to the last."""
        if not self.birth.acquire(False):  # the starter was interrupted, and has disowned this worker
            return
        current.owner = self.core
        current.here.holder = self
        end, error = End.CRASHED, None
        try:
            end, error = self._live()
        except BaseException as thrown:
            error = thrown
        finally:
            try:
                self.end(end, error)
            finally:
                del error  # its traceback leads to this frame

    def end(self, end: End, error: BaseException | None) -> None:
        """Give up what is left, and walk the exit path. If an error is thrown into this, it is called again."""
        self.item = None
        self._off_idle_stack()
        self._give_up()
        self.core.worker_ended(self, end, error)

    def _live(self) -> tuple[End, BaseException | None]:
        """Set up and serve; say why it is over."""
        core = self.core
        if core.state >= State.KILLED:
            return End.DRAINED, None
        if core.source is not None:
            core.supervisor.start_if_wanted()  # before the initializer: if that hangs, tasks fail after create_timeout
        try:
            if core.initializer is not None:
                core.initializer(*core.initargs)
        except BaseException as error:
            futures_logger.critical("Exception in initializer:", exc_info=True)
            return End.INITIALIZER_FAILED, error
        if core.state >= State.KILLED:
            return End.DRAINED, None
        try:
            if core.source is not None:
                try:
                    core.source.create(self.name, self._own)
                except BaseException as error:
                    return End.CREATION_FAILED, error
            ready = core.worker_ready(self, checked=False)
            if not ready and self._unfit(doubt=True) is None:
                ready = core.worker_ready(self, checked=True)
            end = self._serve() if ready else End.CREATION_FAILED
            cause, self.broken_by = self.broken_by, None
            if isinstance(cause, UnfitResource):
                core.check_failed(self, cause)
            else:
                core.wake_if_waiting()  # tasks that we leave behind need not wait until our resource is gone
            ended = [(end, cause)]
            del cause  # its traceback leads to this frame
            return ended.pop()
        except BaseException as thrown:
            self._log_thrown(thrown)
            return End.CRASHED, thrown
        finally:
            self._give_up()

    def _give_up(self) -> None:
        """Destroy the resource, if there is one. Whatever is thrown into this thread meanwhile, that is done."""
        core = self.core
        holding, self.holding = self.holding, None
        if holding is None or core.source is None:
            return
        for _ in _TRIES:  # no call before the `try`, nor a jump: nothing can be thrown in there
            try:
                core.gives_up(self)
                core.source.destroy(holding, self.name)
                return
            except BaseException as thrown:
                self._log_thrown(thrown)

    def _log_thrown(self, thrown: BaseException) -> None:
        """Log an error that was thrown into this thread."""
        name = self.core.name
        logger.warning(
            "executor %r: an exception was thrown into worker %s",
            name,
            self.name,
            exc_info=thrown,
            executor=name,
            worker=self.name,
        )

    def _own(self, holding: Holding[Any]) -> None:
        self.holding = holding

    def _serve(self) -> End:
        """Run tasks until there is a reason not to."""
        core = self.core
        high, low = core.lanes.priority, core.lanes.normal
        log = self.log
        high_waits, high_runs = log.entries[True, Outcome.COMPLETED]
        low_waits, low_runs = log.entries[False, Outcome.COMPLETED]
        idle_append, leave, blocked = core.idle_stack.append, core.leave, core.admission.blocked
        holding = self.holding
        prefix: tuple[Any, ...] = () if holding is None else holding.arguments
        in_context, careful = core.propagate_context, core.careful
        # A retry must not see what the attempt before it set.
        fresh_context = core.source is not None and core.source.can_break
        # `for future in take_low: break` pops a task and stores it in one step of the interpreter; a call would be two.
        take_high = cast("Iterator[Any]", starmap(high.popleft, repeat(())))
        take_low = cast("Iterator[Any]", starmap(low.popleft, repeat(())))
        # TaskFuture | None, and Context | None, without the tests that a checker would ask for: `_exception` holds arguments.
        future: Any = None
        context: Any = None
        value: Any = _NOTHING  # what the task in hand has returned
        error: BaseException | None = None  # or raised
        lane = low
        registered = False
        start = end_time = clock()
        try:
            while True:
                for _ in _SHIFT:
                    if careful and (high or low):
                        if registered:  # or a submitter would count on us while we ask check_resource
                            registered = False
                            if self._leave_idle_stack():
                                return End.RETIRED
                        unfit = self._unfit()
                        if unfit is not None:
                            return unfit

                    # -- take a task: priority first
                    last = None
                    try:
                        if high:
                            lane, waits, runs = high, high_waits, high_runs
                            for future in take_high:  # noqa: B007  # see above
                                break
                        elif not registered:  # then there was a task a moment ago
                            lane, waits, runs = low, low_waits, low_runs
                            for future in take_low:  # noqa: B007  # see above
                                break
                        else:
                            future = None
                            log.until = start
                            last = self._rest(start)
                            registered = False
                            if last is not None:
                                return last
                            if len(low) + len(high) > 1 and core.idle_stack:
                                core.wake_if_waiting()
                            since, start = start, clock()
                            if start - since > LULL:
                                core.recorder.fold(log)
                            log.until = None
                            continue
                    except IndexError:  # another worker was quicker
                        if not registered:
                            idle_append(self)
                            registered = True
                        continue
                    if leave or registered:  # asked with the task in hand: once `kill` has set `leave`, no task starts
                        if leave:
                            last = core.dismisses(self)
                        if registered:
                            registered = False
                            if self._leave_idle_stack() and last is None:
                                last = End.RETIRED
                            start = clock()
                        if last is not None:
                            put_back, future = future, None
                            lane.appendleft(put_back)
                            core.task_came_back()
                            return last

                    # -- run it
                    future._status = RUNNING
                    if future._sidecar is not None and not future._may_start():
                        continue
                    self.since = start
                    self.item = future
                    if blocked:
                        core.admission.refill()
                    if careful:
                        self._before(future, start)
                    try:
                        if in_context:
                            context = future._context
                            if fresh_context:
                                context = context.copy()
                            value = context.run(future._result, *(prefix + future._exception))  # pyright: ignore[reportOperatorIssue]
                        else:
                            value = future._result(*(prefix + future._exception))  # pyright: ignore[reportOperatorIssue]
                    except BaseException as raised:
                        error = drop_frame(raised)
                        value = None
                    context = None
                    end_time = clock()
                    self.item = None
                    if error is None:
                        waits.append(start - future._submitted)
                        runs.append(end_time - start)
                    else:
                        last, retry = self._judge(future, lane, error, start, end_time)
                        if retry:
                            put_back, future, error = future, None, None  # its traceback leads to this frame: no cycle
                            lane.appendleft(put_back)  # whatever the bound
                            core.task_came_back()
                            return End.BROKEN
                    if careful and self._after(future, error, start, end_time) and last is None:
                        last = End.USED_UP
                    start = end_time

                    # -- hand over the result, being idle already if nothing else waits
                    future._result = value
                    future._exception = error
                    future._context = None
                    if not (low or high or last):  # after the above, which may run destructors of what the task was given
                        idle_append(self)
                        registered = True
                    future._status = FINISHED
                    value, error = _NOTHING, None
                    if future._sidecar is not None:
                        callbacks = future._publish()
                        if callbacks is not None:
                            if registered:  # whoever popped us would count on us, and the callbacks may take their time
                                registered = False
                                if self._leave_idle_stack():
                                    last = End.RETIRED
                            future._call_back(callbacks)
                            callbacks = None
                        start = clock()  # others may have had the interpreter meanwhile
                    if last:
                        return last
                core.recorder.fold(log)
                start = clock()
        except BaseException as thrown:
            # Nothing in this loop raises, so this came from outside.
            if future is not None:
                self._salvage(future, lane, value, error, thrown, start, end_time)
            # Only off the stack: whether a permit is to come, has come, or is used up already, nobody can tell. Nor need we:
            # the exit path looks at the lanes.
            self._off_idle_stack()
            raise

    def _salvage(
        self,
        future: TaskFuture[Any],
        lane: Lane,
        value: Any,
        error: BaseException | None,
        thrown: BaseException,
        start: float,
        end: float,
    ) -> None:
        """An error was thrown into `_serve`: see that the task in hand reaches its end once, and is counted once.

        1. It is final, or was not to be run: what may be missing is the rest of that, such as to tell its waiters.
        2. It has returned a value: that stands. It is counted if it was not: `item` is reset when it has ended, and the two
           numbers of a task are listed one after the other, so one too few is the last that is missing.
        3. It has raised: that stands. If it was counted as retried, it goes back to its lane.
        4. Neither: it gets the thrown error.
        """
        running, self.item = self.item is not None, None
        log, sidecar = self.log, future._sidecar
        noted = log.noted((id(future), self.since))  # `start` may be that of the next task already
        if future._status is not RUNNING or (sidecar is not None and (sidecar.verdict is not None or sidecar.counted)):
            future._fail_popped(thrown)
        elif value is not _NOTHING and error is None:
            with self.core.recorder.lock:
                waits, runs = log.entries[lane.priority, Outcome.COMPLETED]
                if running:
                    waits.append(start - future._submitted)
                if len(runs) < len(waits):
                    runs.append(max(end, start) - start)
            future._finish(value, None)
        elif noted is Outcome.RETRIED:
            lane.appendleft(future)
        else:
            if noted is None:
                log.note(lane.priority, Outcome.FAILED, start - future._submitted, clock() - start)
            future._finish(None, error or thrown)

    # -- going idle

    def _rest(self, since: float) -> End | None:
        """Registered as idle, with nothing to do since then: block until woken up (None) or until there is a reason to end.

        Off the idle stack at return, in either case.
        """
        core, holding = self.core, self.holding
        idle_limit = core.idle_limit
        expires = _NEVER if holding is None else holding.rests_until
        while True:
            draining = core.state is not _RUNNING
            if core.lanes.look():  # registered, and looked again: see "Taking turns"
                if not self._off_idle_stack():
                    self._take_permit()  # not to be passed on: we take a task at once, and it may be the only one
                return End.RETIRED if self.told_to_leave else None
            if draining:
                self._leave_idle_stack()
                return End.DRAINED
            if core.admission.blocked:  # nothing is queued, so somebody may come in
                core.admission.refill()
            if core.leave and (end := core.dismisses(self)) is not None:
                self._leave_idle_stack()
                return end
            if self.park.acquire(True, -1 if idle_limit is None and expires == _NEVER else self._patience(since, idle_limit)):
                if core.idle is not core.idle_stack:  # as in `_take_permit`; written out, since this is the usual way
                    core.worker_came()
                return End.RETIRED if self.told_to_leave else None
            if not self._off_idle_stack():  # popped in this very moment: there is work
                self._take_permit()
                return End.RETIRED if self.told_to_leave else None
            if clock() >= expires:
                return End.AGED
            if core.may_retire(self):
                return End.RETIRED
            idle_limit = None  # one of the base: stays
            core.idle_stack.append(self)

    def _patience(self, since: float, idle_limit: float | None) -> float:
        """How many seconds to sleep, at most, when idle since that moment."""
        until = _NEVER if idle_limit is None else since + idle_limit
        if self.holding is not None:
            until = min(until, self.holding.rests_until)
        return lock_timeout(until - clock())

    def _off_idle_stack(self) -> bool:
        """Take ourselves off the idle stack; False if somebody popped us already."""
        try:
            self.core.idle_stack.remove(self)
        except ValueError:
            return False
        return True

    def _leave_idle_stack(self) -> bool:
        """Registered as idle, but not about to sleep. Tell whether somebody has chosen us to retire.

        1. A submitter popped us for its task. 2. We found a task ourselves, perhaps another one. 3. So the permit, come or
        coming, is ours to take, and the wake-up to pass on if tasks wait.
        """
        if not self._off_idle_stack():
            self._take_permit()
            self.core.wake_if_waiting()
        return self.told_to_leave

    def _take_permit(self) -> None:
        """Somebody has popped us: the permit has come, or is about to."""
        self.park.acquire()
        if self.core.idle is not self.core.idle_stack:
            self.core.worker_came()

    # -- around a task

    def _unfit(self, *, doubt: bool = False) -> End | None:
        """Is there a reason not to run another task on this resource?"""
        if self.holding is None or self.core.source is None or not self.core.source.needs_care:
            return None
        unfit = self.core.source.unfit(self.holding, doubt=doubt)
        if unfit is End.CREATION_FAILED:
            self.broken_by = self.holding.fault
        return unfit

    def _before(self, future: TaskFuture[Any], start: float) -> None:
        hub = self.core.hub
        if hub.hears("task_started"):
            hub.tell("task_started", self._event(future, start, start))

    def _after(self, future: TaskFuture[Any], error: BaseException | None, start: float, end: float) -> bool:
        """Keep the resource's record, tell observers; say whether the resource is used up."""
        holding, hub = self.holding, self.core.hub
        if holding is not None:
            holding.uses += 1
            holding.last_used = end
            holding.rests_until = holding.expires
            if error is not None and not isinstance(error, Exception):
                holding.good_at = -1  # interrupted half-way: look at the resource before it is used again
        if hub.hears("task_finished"):
            outcome = "completed" if error is None else "failed"
            hub.tell("task_finished", self._event(future, start, end, outcome, error))
        return holding is not None and self.core.source is not None and self.core.source.used_up(holding)

    def _event(
        self, future: TaskFuture[Any], start: float, end: float, outcome: str = "", error: BaseException | None = None
    ) -> TaskEvent:
        sidecar = future._sidecar
        attempt = 1 if sidecar is None else 1 + sidecar.retries
        return TaskEvent(
            self.core.name,
            id(future),
            describe(future),
            future._lane.name,
            attempt,
            self.name,
            max(0.0, start - future._submitted),
            end - start,
            outcome,
            error,
            future._context,
        )

    def _judge(
        self, future: TaskFuture[Any], lane: Lane, error: BaseException, start: float, end: float
    ) -> tuple[End | None, bool]:
        """The task raised. Say whether the worker must end, its resource being broken, and whether the task is run again.

        An error that is not the resource's fault is the task's own.
        """
        core, holding = self.core, self.holding
        broken = (
            holding is not None
            and core.source is not None
            and core.source.can_break
            and isinstance(error, Exception)
            and core.source.is_broken_after(error, holding)
        )
        duration, attempt = (start - future._submitted, end - start), (id(future), start)
        if broken:
            self.broken_by = error
            sidecar = future._observe()
            assert sidecar is not None
            limit = core.max_retries if sidecar.max_retries is None else sidecar.max_retries
            if sidecar.retries < limit and core.state < State.KILLED:
                if core.hub.hears("task_retried"):
                    core.hub.tell("task_retried", self._event(future, start, end, error=error))
                before = sidecar.error  # until the lock is free: to drop an error may run destructors
                with sidecar:
                    sidecar.started = True  # it may have come into being while the task ran
                    sidecar.retries += 1
                    sidecar.error = error
                del before
                self.log.note(lane.priority, Outcome.RETRIED, *duration, attempt)
                future._submitted = clock()
                return End.BROKEN, True
            note_giving_up(error, sidecar.retries)
        self._arm(future, error)
        self.log.note(lane.priority, Outcome.FAILED, *duration, attempt)
        return End.BROKEN if broken else None, False

    def _arm(self, future: TaskFuture[Any], error: BaseException) -> None:
        """See that the error does not get lost, unless it is the task's way of obeying `kill`."""
        if self.core.log_lost_errors and not isinstance(error, TaskCancelled):
            future._arm(self.core.name, describe(future), error)

    def announce(self) -> None:
        """Tell observers that we take tasks from now on."""
        if self.core.hub.hears("worker_started"):
            self.core.hub.tell("worker_started", WorkerEvent(self.core.name, self.name))


class _Life(partial[None]):
    """The life of a worker, referred to by its thread alone: it goes when the thread ends, in whichever way.

    An error thrown into the exit path, or between it and the end of the thread, would leave a worker in the books that lives no
    more. So the path is walked again when the life goes, on the same thread. A partial, because a call of it makes no frame:
    the traceback of the error, which a `threading.excepthook` may keep, would keep the life.
    """

    __slots__ = ()

    def __del__(self) -> None:
        worker: Worker = cast("Any", self.func).__self__  # a bound method
        if worker.over:
            return
        # Not born, and in the books: the error came before the first step of `Worker.live`.
        if worker.birth.locked() or (worker in worker.core.workers and worker.birth.acquire(False)):
            worker.end(End.CRASHED, None)


def describe(future: TaskFuture[Any]) -> str:
    """Return the name of a task's function."""
    return function_name(future._result)
