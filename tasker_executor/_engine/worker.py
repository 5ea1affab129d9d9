"""A worker: one thread, one resource, one loop. This is the hot path.

**One resource for life.** A worker ends when its resource may not serve on (``care.py``), when there are too
many workers, or when the executor shuts down. It then destroys its resource and reports the reason. The exit
path (`Employer.worker_ended`) alone decides whether a successor starts.

**Work and rest.** A worker works (`_work`) while the lanes have tasks, and rests (`_rest`) while they have
none. After `_work` its seat is on the idle stack, unless it ends; after `_rest` the seat is off the stack. It
registers as idle *before* it publishes its last result, so a caller in a ``submit().result()`` loop starts no
second thread. If it must clean or check its resource first, it registers afterwards. See ``idle.py``.

**Thrown errors.** ``attempt.py`` says what is promised when another thread throws an error into a worker. So a
task enters the variable `task` in the step in which it leaves its lane (see `takes`), and leaves it before it
is put back.

**No test that a task does not need.** What few tasks need (a listener, a deadline) is in a sidecar: one load
tells whether there is one. The end of a task starts the next.
"""

# In the loop of `_work` pyright takes what is declared as `Any` for unknown:
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from _thread import allocate_lock
from operator import call
from types import CoroutineType
from typing import Any

from .._options import UNSET
from .._report import Logger, drop_frame
from .._sync import clock, lock_timeout, takes
from .attempt import NOTHING, Attempts, describe
from .current import current
from .hand import Hand
from .holding import Holding
from .idle import Seat
from .invoke import drop_scope, refuse_async, run_in_scope
from .life import Life, log_thrown
from .recorder import LULL, Outcome, TaskLog
from .resources import End, UnfitResource
from .state import State
from .task import FINISHED, RUNNING
from .threads import make_thread
from .workplace import Employer, Workplace

__all__ = ["Worker"]

futures_logger = Logger("concurrent.futures")

_SHIFT = (None,) * 512  # the tasks between two foldings of the log; a tuple is iterated over without making objects
_NEVER = float("inf")
_TRIES = (None,) * 10  # attempts to destroy a resource, while other threads throw errors into this one
_Coroutine: Any = CoroutineType
_RUNNING, _SUSPECT, _STOPPED = State.RUNNING, End.SUSPECT, End.STOPPED  # a look-up in an enum is slow


class Worker(Hand):
    """One thread and the resource that it owns."""

    # fmt: off
    __slots__ = (
        "__weakref__", "attempts", "birth", "late", "log", "name", "over", "ready", "seat", "started_at", "thread",
        "told_of_end", "yields",
    )
    # fmt: on

    def __init__(self, place: Workplace, employer: Employer, index: int) -> None:
        super().__init__(place, employer, index)
        self.name = f"{place.settings.thread_name_prefix}_{index}"
        self.log = TaskLog()
        self.attempts = Attempts(place, self.log, self.name)
        self.ready = False  # whether it has looked at the lanes, or is about to
        self.late = False  # whether it has been starting for `create_timeout`
        self.yields = False  # whether it ends, and a retry that is parked waits for its successor
        self.told_of_end, self.over = False, False  # whether observers know; whether it has ended, or never lives
        self.birth = allocate_lock()  # taken by the thread as it begins to live, or by its starter to disown it
        self.seat = Seat(place.idle)
        self.started_at = self.since
        self.thread = make_thread(Life(self.live), self.name)

    def __repr__(self) -> str:
        return f"<Worker {self.name} {'idle' if (task := self.task) is None else describe(task)}>"

    # -- a worker's life

    def live(self) -> None:
        """Run the worker from the first step of its thread to the last."""
        if not self.birth.acquire(False):  # the starter was interrupted, and has disowned this worker
            return
        current.owner = self.employer
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
        """Give up the resource and walk the exit path. Called again if an error is thrown into this."""
        self.task = None
        self.seat.rise()
        self._give_up()
        self.employer.worker_ended(self, end, error)

    def _live(self) -> tuple[End, BaseException | None]:
        """Set up and serve; return why the worker ends, and the error that is the cause."""
        place, employer, care = self.place, self.employer, self.care
        settings, life, source = place.settings, place.life, place.source
        if life.state >= State.KILLED:
            return End.DRAINED, None
        if source is not None:
            place.timer.start_if_wanted()  # before the initializer: if that hangs, tasks fail after `create_timeout`
        try:
            if settings.initializer is not None:
                settings.initializer(*settings.initargs)
        except BaseException as error:
            futures_logger.critical("Exception in initializer:", exc_info=True)
            return End.INITIALIZER_FAILED, error
        if life.state >= State.KILLED:
            return End.DRAINED, None
        try:
            if source is not None:
                try:
                    source.create(self.name, self._own)
                except BaseException as error:
                    return End.CREATION_FAILED, error
            ready = employer.worker_ready(self, checked=False)
            if not ready and care.unfit(self.holding, True, doubt=True) is None:
                ready = employer.worker_ready(self, checked=True)
            end = self._serve() if ready else End.CREATION_FAILED
            cause = self.take_cause()
            if isinstance(cause, UnfitResource):
                employer.resource_unfit(self, cause)
            else:
                place.idle.pass_on()  # another worker takes the tasks that wait, while this one destroys its resource
            ended = [(end, cause)]
            del cause  # its traceback leads to this frame
            return ended.pop()
        except BaseException as thrown:
            log_thrown(thrown, self.place.settings.name, self.name)
            return End.CRASHED, thrown
        finally:
            self._give_up()

    def _own(self, holding: Holding[Any]) -> None:
        self.holding = holding

    def _give_up(self) -> None:
        """Destroy the resource, if there is one, even while errors are thrown into this thread."""
        source = self.place.source
        holding, self.holding = self.holding, None
        if holding is None or source is None:
            return
        for _ in _TRIES:  # no call and no jump before the `try`: nothing can be thrown in there
            try:
                self.employer.resource_given_up(self)
                source.destroy(holding, self.name)
                return
            except BaseException as thrown:
                log_thrown(thrown, self.place.settings.name, self.name)

    # -- working

    def _serve(self) -> End:
        """Run tasks until there is a reason to end; return it."""
        end: End | None = None
        tools = self._tools()
        self.log.until = clock()
        self.employer.unpark()  # after it counts as ready: see `Core.retry_parked`
        try:
            while end is None:
                end = self._work(tools) or self._rest()
                if end is _STOPPED:
                    end = self.recover()
        except BaseException:
            # Whether the permit comes, has come or was taken is unknown. Submitters may wait for this worker to
            # take it, and must not wait until its resource is destroyed.
            self.seat.rise()
            self.seat.rests = False
            self.place.idle.note_arrival()
            self.place.idle.pass_on()
            raise
        return end

    def _tools(self) -> tuple[Any, ...]:
        """Look up once what `_work` needs for each task."""
        place, log, holding = self.place, self.log, self.holding
        high, low, source = place.lanes.priority, place.lanes.normal, place.source
        around = None if source is None else source.hooks.around
        return (
            high,
            takes(high.popleft),
            *log.entries[True, Outcome.COMPLETED],
            low,
            takes(low.popleft),
            *log.entries[False, Outcome.COMPLETED],
            () if holding is None else holding.arguments,
            place.settings.propagate_context and around is None,
            source is not None and source.can_retry,  # a retry must not see what the attempt before it set
            around,
            place.hub.hears_tasks or place.limits.for_all or (source is not None and source.needs_care),
            place.leave,
            place.admission.blocked,
            place.idle.stack.append,
        )

    def _work(self, tools: tuple[Any, ...]) -> End | None:
        """Run tasks while there are any; return None, registered as idle, or why the worker ends.

        Longer than a function should be: one more call a task would cost 5 % of a burst.

        At its end no variable holds the last task. The frame of a task that raised leads here (`f_back`), so
        an error that the user keeps would keep the task, which keeps the error.
        """
        # fmt: off
        (high, take_high, high_waits, high_runs, low, take_low, low_waits, low_runs,
         prefix, in_context, fresh_context, around, careful, leave, blocked, register) = tools
        # fmt: on
        log, seat, attempts, care = self.log, self.seat, self.attempts, self.care
        # `Any`, not `Task | None` and `Context | None`: a type checker would ask for tests.
        task: Any = None
        context: Any = None
        scoped: Any = None  # runs a call in the context
        value: Any = NOTHING  # what the task in hand has returned
        error: BaseException | None = None  # what it has raised
        lane = low
        start = end_time = clock()
        try:
            if log.until is not None and start - log.until > LULL:
                self.place.recorder.fold(log)
            elif len(high_runs) + len(low_runs) + log.others > len(_SHIFT):  # of many short bursts
                self.place.recorder.fold_soon(log)
            log.until = None
            for _ in _SHIFT:
                if careful:
                    if (unfit := care.unfit(self.holding, high or low)) is not None:
                        task = None
                        return unfit
                    start = clock()

                # -- take a task: priority first
                try:
                    if high:
                        lane, waits, runs = high, high_waits, high_runs
                        for task in take_high:  # noqa: B007  # pops and stores it in one step; a call would be two
                            break
                    else:
                        lane, waits, runs = low, low_waits, low_runs
                        for task in take_low:  # noqa: B007  # see above
                            break
                except IndexError:  # no task waits, or another worker was quicker
                    break
                last = None
                self.since = start
                self.task = task  # in its hand from here on: see `stops`
                if leave and (last := self.employer.dismisses(self)) is not None:  # after `kill` no task starts
                    if self.let_go(task) is not None and task.done():  # a retry, and it was given up just now
                        task = None
                        return last
                    lane.note_return()
                    put_back, task = task, None
                    lane.appendleft(put_back)
                    put_back = None
                    self.employer.task_came_back(self)
                    return last

                # -- run it
                task._status = RUNNING
                if task._sidecar is not None:
                    if task._sidecar.breaks:
                        self.place.limits.begins(task, start)  # the check may hang
                        self.asks = True
                        last = care.suspect(self.holding, task._sidecar.breaks)
                        self.asks = False
                        self.since = start = clock()
                        if last is not None and self.let_go(task) is None:
                            lane.note_return()
                            put_back, task = task, None
                            (lane.parked.append if last is _SUSPECT else lane.appendleft)(put_back)
                            put_back = None
                            if last is _SUSPECT and self.employer.retry_parked(self):
                                continue
                            return last
                    if not task._may_start():
                        if self.let_go(task) is not None:
                            task = None
                            return _STOPPED
                        continue
                    if task._sidecar.run_within is not UNSET:
                        self.place.limits.begins(task, start)
                if blocked:
                    self.place.admission.refill()
                while True:  # once more only after `Verdict.AGAIN`
                    if careful:
                        attempts.begin(task, start)
                    try:
                        if in_context:
                            context = task._context
                            if fresh_context:
                                context = context.copy()
                            value = context.run(task._result, *(prefix + task._exception))
                        elif around is None:
                            value = task._result(*(prefix + task._exception))
                        else:
                            scoped = call if task._context is None else task._context.copy().run
                            value = scoped(run_in_scope, around, self.holding, task._result, task._exception)
                        if type(value) is _Coroutine and prefix:
                            value = refuse_async(task._result, value)
                    except BaseException as raised:
                        error = drop_frame(raised) if around is None else drop_scope(raised)
                        value = None
                    context = scoped = None
                    end_time = clock()
                    self.task = None  # out of its hand: no stop has power over it any more
                    if error is None:
                        task._context = None  # a store into the task, and then the look: see "Which thread goes first"
                        if task._sidecar is None or task._sidecar.stop is None:
                            waits.append(start - task._submitted)
                            runs.append(end_time - start)
                            break
                    self.judging = True
                    error, last, retry, given_up, self.stopped = attempts.judge(
                        task, lane, self.holding, error, start, end_time
                    )
                    self.judging = False
                    if last is End.BROKEN:
                        care.broken_by = error
                    if given_up:
                        value, error, task = NOTHING, None, None
                        log.until = clock()
                        return last
                    if not retry:
                        task._context = None
                        break
                    # No result yet: see `Attempts.salvage`. And the error's traceback leads to this frame: a cycle.
                    value, error = NOTHING, None
                    if last is not None or (last := self.begin_again(task)) is not None:
                        if last is _STOPPED:
                            task = None
                            return last
                        self.yields = last is End.BROKEN and self.place.source.retries_on_new  # type: ignore[union-attr]  # it has judged
                        put_back, task = task, None
                        (lane.parked.append if self.yields else lane.appendleft)(put_back)  # past the queue bound
                        put_back = None
                        self.employer.task_came_back(self)
                        return last
                    start = self.since
                busy = careful and attempts.end(task, self.holding, error, start, end_time)
                start = end_time

                # -- hand over the result, being idle already if nothing else waits
                task._result = value
                task._exception = error
                # Asked after the above: destructors of the task's arguments may run there.
                if idle := not (low or high or last or busy):
                    register(seat)
                task._status = FINISHED
                value, error = NOTHING, None
                if task._sidecar is not None:
                    callbacks = task._publish()
                    if callbacks is not None:
                        # A thread that pops the seat relies on the worker, and the callbacks may take long.
                        if idle:
                            idle = False
                            if seat.leave():
                                last = End.RETIRED
                        task._call_back(callbacks)
                        callbacks = None
                    start = clock()  # other threads may have run since then
                if idle or last:
                    log.until, task = start, None
                    return last
            else:
                self.place.recorder.fold_soon(log)
                if careful and (unfit := care.unfit(self.holding, ())) is not None:
                    task = None
                    return unfit
            log.until, task = start, None
            register(seat)
            return None
        except BaseException as thrown:
            # Nothing in this loop raises, so another thread has thrown this in.
            if task is not None:
                running, self.task = self.task is not None or self.judging, None
                attempts.salvage(task, lane, running, (value, error), thrown, self.since, start, end_time)
            raise

    # -- resting

    def _rest(self) -> End | None:
        """Sleep, registered as idle; return None, or why the worker ends. The seat is then off the stack."""
        place, seat, log, holding = self.place, self.seat, self.log, self.holding
        idle, lanes, admission, leave = place.idle, place.lanes, place.admission, place.leave
        idle_limit = place.settings.idle_timeout
        expires = _NEVER if holding is None else holding.rests_until
        seat.rests = True
        while True:
            draining = place.life.state is not _RUNNING
            if lanes.look():  # registered first, and looked afterwards: see "Taking turns" in idle.py
                if not seat.rise():
                    # Do not wake another worker: this one takes a task at once, and it may be the only task.
                    seat.take_permit()
                break
            if draining:
                seat.leave()
                return End.DRAINED
            if admission.blocked:  # no task is queued, so another submission may be let in
                admission.refill()
            if leave and (end := self.employer.dismisses(self)) is not None:
                seat.leave()
                return end
            until = expires if idle_limit is None or log.until is None else min(expires, log.until + idle_limit)
            if seat.sleep(-1 if until == _NEVER else lock_timeout(until - clock())):
                break
            if not seat.rise():  # another thread has popped it at this moment, and gives the permit
                seat.take_permit()
                break
            if clock() >= expires:
                return End.AGED
            if self.employer.may_retire(self):
                return End.RETIRED
            idle_limit = None  # the worker is one of the base, and stays
            idle.stack.append(seat)
        seat.rests = False
        if seat.told_to_leave:
            return End.RETIRED
        if len(lanes.normal) + len(lanes.priority) > 1 and idle.stack:
            idle.pass_on()  # more tasks wait: see "Few at a time" in idle.py
        return None
