"""What the workers of an executor share, and who decides how many there are.

The executor object that the user holds is a handle; this is what it holds. Workers and the supervisor hold the core and never
the handle, so a dropped executor is collected, and its core drains and ends.

**Population.** One place decides whether a worker is started: `_hire`, under the lock. It decides from the facts as they are
(how many workers live, how many are starting, how many tasks wait), never from a count of requests. Each thread that changes a
fact asks: a submitter that finds no idle worker, a worker that ends, the supervisor when the factory may be tried again, a call
of `resize`. So the next change puts right what an interruption has left half-way. `_populate` starts the workers that were
hired, and holds no lock while it does: `Thread.start` waits for the new thread, which may run a destructor that wants the lock.

**Room** lies at the bottom of the idle stack as long as more workers may be started. A submitter that finds it there, and no
idle worker above it, calls `_populate`.

**The end.** `shutdown` replaces `idle`, which a submitter looks at after it has queued its task, by a list that is always true.
The slow path behind it takes the task back and refuses it, unless a worker has it already. A worker ends when it finds the
executor draining and, looking afterwards, the lanes empty. So a task is either refused or run, without a lock.

**The kill.** `kill` first puts an entry into `leave`. Each worker looks there with its next task in hand, before it starts it,
and puts the task back. Then the tokens are set, and the queue is cancelled. So no task starts once its token is set.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import weakref
from _thread import LockType, allocate_lock, get_ident
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from itertools import repeat, starmap
from operator import methodcaller
from types import FrameType
from typing import Any

from .._report import Logger, safe_repr
from .._sync import Bell, Latch, clock, in_one_step, lock_timeout, spend_stack
from ..exceptions import PoolDeadlockError, ResourceCreationError, ShutdownTimeout
from ..observers import ObserverHub, ResourceEvent, ScaleEvent, StateEvent, TaskEvent, WorkerEvent
from ..policies import ScalingPolicy
from ..stats import ExecutorMetrics, ExecutorStats, LoadSample, WorkerInfo
from .aborts import Target, join_aborts
from .admission import Admission
from .current import current
from .lanes import Lane, Lanes
from .outage import BACKOFF_FIRST, Outage
from .recorder import Outcome, Recorder
from .reserve import Reserve
from .resources import REPLACED, End, NoResource, ResourceSource, UnfitResource
from .settings import ResourceHooks
from .state import State
from .task import WITHDRAWN, Sidecar, TaskFuture
from .threads import CannotStart, Endings, make_thread, start_thread
from .timer import Supervisor
from .worker import Worker

__all__ = ["Core"]

logger = Logger("tasker_executor")

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep

#: So many workers, at most, are on their way from sleep to their first task. To wake more of them sooner would only make them
#: queue up for the interpreter, to find, most of them, that the others have done all there was.
WAKES_AT_ONCE = 8

#: Seconds between two looks for threads that have died without a word, while `join` waits.
_GLANCE = 1.0

#: What submitters see instead of the idle stack once nothing is accepted any more: always true.
_CLOSED: list[Any] = ["closed"]
#: What they see while enough workers have been woken: nobody.
_ENOUGH: list[Any] = []

#: Every core that may still have threads or resources. Strong references, until it is closed: the exit hook needs them.
_cores: dict[int, Core] = {}
#: Threads that have done all for their core and may still take a moment to end. The exit hook joins them: a daemon thread that
#: the interpreter stops in mid-air may hold a lock.
_ending = Endings()
_exiting = False


class Room:
    """At the bottom of the idle stack, as long as more workers may be started.

    A submitter that pops it has found no idle worker, and starts one. To pop it is to put it back, in the same step of the
    interpreter (see `_wakes`): whatever is thrown into the submitter, the next one finds it.
    """

    def __init__(self, idle_stack: list[Any]) -> None:
        #: Puts this back onto the stack, which is empty then. Returns something true; the `release` of a worker does not.
        self.release = partial(idle_stack.__iadd__, (self,))


_REHEARSAL = Room([])
_REHEARSAL.release = partial([None].__iadd__, ())


class WaitInside:
    """A thread of the executor waits for one of the executor's own tasks."""

    __slots__ = ("future", "gate", "hopeless", "timed")

    def __init__(self, future: TaskFuture[Any], *, timed: bool = False) -> None:
        self.future = future
        self.timed = timed  # it ends by itself, and is never hopeless
        self.gate = allocate_lock()
        self.gate.acquire()
        self.hopeless = False  # it waits no more, since nobody is left to run the task

    def __call__(self, future: Future[Any]) -> None:
        """End the wait: the future's done-callback."""
        try:
            self.gate.release()
        except RuntimeError:  # ended already
            pass

    def give_up(self) -> None:
        """End the wait with PoolDeadlockError."""
        self.hopeless = True
        self(self.future)


class Core:
    """See the module's docstring. All attributes are private to this package."""

    def __init__(
        self,
        *,
        name: str,
        thread_name_prefix: str,
        min_workers: int,
        max_workers: int,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        hooks: ResourceHooks[Any] | None,
        create_timeout: float,
        max_retries: int,
        max_queued: int | None,
        detect_deadlocks: bool,
        log_lost_errors: bool,
        propagate_context: bool,
        policy: ScalingPolicy | None,
        idle_timeout: float | None,
        resource_pool_size: int,
        observers: Iterable[Any],
    ) -> None:
        self.name = name
        self.thread_name_prefix = thread_name_prefix
        self.initializer, self.initargs = initializer, initargs
        self.create_timeout = create_timeout
        self.max_retries = max_retries
        self.detect_deadlocks = detect_deadlocks
        self.log_lost_errors = log_lost_errors
        self.propagate_context = propagate_context
        self.idle_limit = idle_timeout
        self.hub = ObserverHub(observers)
        self.recorder = Recorder()
        self.lanes = Lanes(self, self._task_settled)
        self.killed = Latch()
        self.terminated = Latch()
        self.source = None if hooks is None else ResourceSource(name, hooks, self.recorder, self.hub)
        self.reserve: Reserve[Any] | None = (
            None
            if self.source is None
            else Reserve(self.source, resource_pool_size, self, self.killed, max_retries, lambda: self.refusal())
        )
        self.careful = self.hub.hears_tasks or (self.source is not None and self.source.needs_care)

        # Guards what follows. Reentrant: a signal handler or a destructor may submit, shut down or ask for stats while its own
        # thread is in here; so every step below leaves the facts in order. Never held while user code runs.
        self.lock = threading.RLock()
        self.changed = Bell()  # rung when a worker is ready or has ended, and when the state changes
        self.state = State.RUNNING
        self.refusal: Callable[[], Exception] = self._refuse_after_shutdown
        self.min_workers, self.max_workers = min_workers, max_workers
        #: How many workers are wanted: what the policy said last, within the bounds.
        self.wanted = max_workers if policy is None else min_workers
        #: Workers whose thread exists. One that ends leaves before its successor enters, so there are never more than the
        #: limit.
        self.workers: set[Worker] = set()
        self.leaving: set[Worker] = set()  # of these, those that have been retired and are about to end
        self.ended = Endings()  # threads that have left `workers`
        self._hiring = False
        #: Those of `workers` whose thread is yet to be started, and by which thread.
        self._unborn: dict[Worker, int] = {}
        self.replaced = 0
        self.broken = False  # an initializer failed
        self.outage = Outage(create_timeout, clock())
        #: A token for each thread that pops tasks to fail them. The executor does not close before they are told of.
        self._failing: set[object] = set()
        self._seen = 0  # tasks that stats() has known of, those withdrawn included
        #: By thread: which of our own wait for a task of this executor.
        self.waiting_inside: dict[int, WaitInside] = {}

        #: Not empty: there are more workers than there may be. A worker that is about to start a task then asks `dismisses`.
        self.leave: list[None] = []
        #: Who may be woken up for a task: Room at the bottom, idle workers above, the last one to become idle on top. Pushed to
        #: and popped from without the lock.
        self.idle_stack: list[Any] = []
        #: What submitters look at: the idle stack, or _ENOUGH, and _CLOSED in the end.
        self.idle = self.idle_stack
        # Guards changes of `idle`. A leaf: workers take it when they wake, and must not wait for who holds the lock above.
        self._idle_lock = threading.RLock()
        self._room = Room(self.idle_stack)
        # Pops and wakes in one step of the interpreter, so that no signal handler can raise between the two: the worker would
        # be off the stack and never be woken. (operator.methodcaller calls `release`, iter(f, x) calls f for ever, next does it
        # once.)
        self._wakes = map(methodcaller("release"), iter(self.idle_stack.pop, None))
        # The same without any effect. Before Python 3.12, calls of C functions spend the stack, too: if it ends in there, it
        # had better end before the pop.
        self._rehearsals = map(methodcaller("release"), repeat(_REHEARSAL))
        #: The workers woken last.
        self._woken: deque[Worker] = deque(maxlen=WAKES_AT_ONCE)
        self.admission = Admission(max_queued, self._waiting_beyond_free_workers, self._may_wait_at_the_door)
        self.supervisor = Supervisor(self, policy)
        self._handle: weakref.ref[Any] | None = None

    # -- birth

    def start(self, handle: object) -> None:
        """Fill the reserve and start the base workers. Raises what prevents that, with nothing left behind."""
        _cores[id(self)] = self
        self._handle = weakref.ref(handle, self._handle_gone)
        try:
            if _exiting:
                self._refuse_at_exit()
                self.close()
                return
            if self.reserve is not None:
                self.reserve.fill()
            self._populate()
        except BaseException:
            self.close()
            raise

    # -- submission, the slow half

    def wake(self, future: TaskFuture[Any]) -> None:
        """`future` has been queued, and somebody is on the idle stack, or the executor accepts nothing any more.

        Raises RuntimeError if it was refused; then the task does not run.
        """
        if self.idle is _CLOSED:
            self._take_back(future)
            return
        try:
            if self._enough_on_their_way():
                with self._idle_lock:
                    if self.idle is self.idle_stack:
                        self.idle = _ENOUGH
                if self._enough_on_their_way():
                    return
                self.worker_came()  # one has come, and may have missed the sign
            self._wake_top()
        except CannotStart:
            # If there are other workers, the task is in good hands.
            if not self.workers and future._settle(WITHDRAWN):
                self.wake_if_waiting()  # other submitters may have relied on the worker that was not to be
                raise
            logger.warning("executor %r: cannot start another worker", self.name, exc_info=True, executor=self.name)
        except BaseException:
            # Thrown in: Ctrl-C, a time limit, the end of the stack. The caller does not get the future, so the task had better
            # not run. First what needs no frame in Python, since there may be none left.
            with self._idle_lock:
                if self.idle is _ENOUGH:
                    self.idle = self.idle_stack
            try:
                future._settle(WITHDRAWN)
            finally:
                self.supervisor.resume()  # its alarm may have been popped, and not have rung
                self.wake_if_waiting()  # others may have seen our sign, or our worker, and relied on it
            raise

    def _enough_on_their_way(self) -> bool:
        """Are so many workers woken, and yet to take their permit, that no more need be? See "Few at a time"."""
        if len(self._woken) < WAKES_AT_ONCE:
            return False
        try:
            if self._woken[0].park.locked():
                return False
            woken = set(self._woken.copy())
        except (IndexError, RuntimeError):  # the end has emptied it; without the GIL, another submitter appends to it
            return False
        return len(woken) == WAKES_AT_ONCE and all(not worker.park.locked() and worker in self.workers for worker in woken)

    def worker_came(self) -> None:
        """A worker that was woken has taken its permit, and looks at the lanes next: submitters may wake others again."""
        with self._idle_lock:
            if self.idle is _ENOUGH:
                self.idle = self.idle_stack

    def _wake_top(self) -> None:
        """Wake the worker on top of the idle stack; start one if there is none. Raises CannotStart."""
        try:
            top = self.idle_stack[-1]
            next(self._rehearsals)
            room = next(self._wakes)
        except IndexError:  # others took them: those find the task, too, before they go to sleep
            return
        if room:
            self._populate()
        elif isinstance(top, Worker):
            self._woken.append(top)
            if self.supervisor.paused:  # its alarm lies further down
                self.supervisor.resume()

    def _take_back(self, future: TaskFuture[Any]) -> None:
        """Nothing is accepted any more. Raises, unless a worker was quicker and has the task."""
        if future._settle(WITHDRAWN) or future.cancel():
            self._check_terminated()
            raise self.refusal()

    def wake_if_waiting(self) -> None:
        """A worker that was woken for a task did not take one, or tasks came back: wake another."""
        if self.lanes.look():
            try:
                self._wake_top()
            except CannotStart as error:
                self._retry_later(error)

    def task_came_back(self) -> None:
        """A worker has put a task back to the front of its lane: see that another takes it."""
        if self.state >= State.KILLED:
            self._cancel_queue()  # the killer may have looked at the lane before
        else:
            self.wake_if_waiting()

    def _waiting_beyond_free_workers(self) -> int:
        if self.outage.failures == 0:
            limit = self._limit()
        else:  # and one to try the factory with, when it is time: or, with max_queued=0, nobody ever would
            limit = sum(worker.ready for worker in self.workers.copy()) + self._may_start()
        busy = sum(worker.item is not None for worker in self.workers.copy())
        return self.lanes.waiting() - max(0, limit - busy)

    def _may_wait_at_the_door(self) -> bool:
        """May this thread block until a task is taken? Not if it is a signal handler, and its thread must go on for that."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):  # the submission itself
            frame = frame.f_back
        nested = False
        while frame is not None:
            code = frame.f_code
            if code is start_thread.__code__:
                return False
            if code.co_filename.startswith(_PACKAGE):
                nested = True
                sidecars: list[Any] = [value for value in frame.f_locals.values() if isinstance(value, Sidecar)]
                if any(sidecar._is_owned() for sidecar in sidecars):
                    return False
            frame = frame.f_back
        if nested:
            if self._holds_a_lock():
                return False
            # The call that was interrupted may have queued a task, or taken Room off the stack, and have stopped there.
            self._populate_or_retry()
            self.supervisor.start_if_wanted()
            self.wake_if_waiting()
        return True

    def _task_settled(self, future: TaskFuture[Any]) -> None:
        """A task was ended before it started."""
        if self.admission.blocked:
            self.admission.refill()
        sidecar = future._sidecar
        if self.hub.hears("task_finished") and (sidecar is None or (sidecar.verdict is not WITHDRAWN and sidecar.is_news())):
            error = None if future.cancelled() else future._exception
            waited = max(0.0, clock() - future._submitted)
            outcome = "cancelled" if error is None else "failed"
            event = TaskEvent(self.name, id(future), "", future._lane.name, 0, None, waited, 0.0, outcome, error)
            self.hub.tell("task_finished", event)
        if self.state >= State.DRAINING:  # afterwards: the end of the executor is the last that observers hear
            self._check_terminated()

    # -- population

    def _starting(self) -> int:
        """How many workers have yet to look at the lanes for the first time, and are not late."""
        return sum(not (worker.ready or worker.late) for worker in self.workers.copy())

    def _late(self) -> int:
        """How many workers have been starting for `create_timeout`. Nobody waits for them any more: another may try."""
        return sum(worker.late for worker in self.workers.copy())

    def _limit(self) -> int:
        """How many workers there may be: as many as wanted, but one at least that does not wait inside.

        Otherwise nothing would ever run: a worker that waits for a task of this executor needs another to run it.
        """
        waiting = 0
        if self.waiting_inside:
            waiting = sum(worker.thread.ident in self.waiting_inside for worker in self.workers.copy())
        return max(self.wanted, self.min_workers, min(waiting + 1, self.max_workers))

    def _most(self) -> int:
        """How many threads of workers there may be.

        Those that are late do not count among the workers wanted, but they do among the threads.
        """
        return min(self._limit() + self._late(), self.max_workers)

    def _surplus(self) -> int:
        """How many workers there are too many. Lock held."""
        return len(self.workers) - len(self.leaving) - self._most()

    def _may_start(self) -> bool:
        """May a worker be started, if one is needed? Lock held."""
        if self.broken or self.state >= State.KILLED or len(self.workers) >= self._most():
            return False
        return not self.outage.failures or self.outage.may_try(clock(), self._starting())

    def _needed(self) -> bool:
        """Is another worker needed? Each that is starting will look at the lanes, so only the tasks beyond those count."""
        starting = self._starting()
        while (waiting := self.lanes.waiting()) and starting != (now := self._starting()):
            starting = now  # one has begun to work meanwhile, and may have taken a task: count again
        if waiting > starting:
            return True
        return self.state is State.RUNNING and len(self.workers) - len(self.leaving) - self._late() < self.min_workers

    def _populate(self) -> None:
        """Start the workers that are needed. Called without the lock. Raises CannotStart.

        Decided under the lock, done outside of it. `Thread.start` waits for the new thread; and that may run a destructor which
        wants the lock, before it can be said to have started.
        """
        hired: list[Worker] = []
        try:
            with self.lock:
                self._hire(hired)
            if hired and self.source is not None:
                self.supervisor.kick(start=False)  # for create_timeout; the worker starts it
            elif not hired:
                self.supervisor.start_if_wanted()  # for the pause that may be the reason: nobody else might
            while hired:
                if not hired[-1].over:  # disowned by a signal handler that has interrupted us
                    start_thread(hired[-1].thread)
                self._unborn.pop(hired.pop(), None)
        except BaseException:
            for worker in hired:
                self._disown(worker)
            raise

    def _hire(self, hired: list[Worker]) -> None:
        """Enter the workers that are needed into the books, and into `hired`, whose owner starts them. Lock held.

        Room is offered before the last look at the lanes: a submitter that finds the stack empty has queued its task before
        that.
        """
        if self._unborn:
            self._disown_interrupted(hired)
        while not self._hiring:  # a signal handler, or a destructor, that interrupts this leaves it to us
            self._hiring = True
            try:
                self._offer_room()
                while self._may_start() and self._needed():
                    if not hired:
                        spend_stack()
                    used = {worker.index for worker in self.workers}
                    worker = Worker(self, min(set(range(len(used) + 1)) - used))
                    hired.append(worker)
                    self.recorder.add_log(worker.log)
                    self._unborn[worker] = get_ident()
                    self.workers.add(worker)
                    self._offer_room()
            finally:
                self._hiring = False
            if not (self._may_start() and self._needed()):
                break

    def _bury(self) -> None:
        """See to the workers whose thread has died, and which are in the books all the same.

        An error was thrown into the first steps of the thread, where no code of ours could see it, or again and again into the
        last ones. The task that waits for such a worker is run by another.
        """
        for worker in self.workers.copy():
            if worker not in self._unborn and not worker.thread.is_alive():
                self._disown(worker)  # if it has never lived
                if not worker.over:
                    worker.end(End.CRASHED, None)
        self._populate_or_retry()
        self._check_terminated()

    def _disown_interrupted(self, hired: list[Worker]) -> None:
        """Disown the workers that this very thread has hired elsewhere than into `hired`, and not started. Lock held.

        The call that was to start them has been interrupted by the signal handler that we are called from, which might wait
        for them, or by an error.
        """
        me = get_ident()
        for worker, starter in self._unborn.copy().items():
            if starter == me and worker not in hired:
                self._disown(worker)

    def _disown(self, worker: Worker) -> None:
        """The worker was hired, and is not to live: its thread could not be started, or an error was thrown in before that."""
        if worker.birth.acquire(False):  # it has not begun to live, and now never will
            worker.over = True
            with self.lock:
                self._forget(worker)
                self._offer_room()
            worker.thread = threading.main_thread()  # its own, which never ran, refers to it: see `Endings`
        self._unborn.pop(worker, None)

    def _populate_or_retry(self) -> None:
        """The same, for callers that have no one to raise to: failing to start a thread is like failing to make a resource."""
        try:
            self._populate()
        except CannotStart as error:
            self._retry_later(error)

    def _retry_later(self, error: CannotStart) -> None:
        """The system refuses a thread, and tasks may wait that no submitter will hear of: the supervisor tries again."""
        with self.lock:
            held = self.outage.error  # until the lock is free: to drop an error may run destructors
            self._creation_failed(error, clock())
        del held
        self.supervisor.start_if_wanted()
        logger.error("executor %r: cannot start a worker", self.name, exc_info=error, executor=self.name)

    def _offer_room(self) -> None:
        """Put Room at the bottom of the stack if a worker may be started, and take it away if none may. Lock held.

        It stays while the supervisor, whose thread could not be started, is missing: nobody else sees the end of a pause.
        """
        room, stack = self._room, self.idle_stack
        offered = self.state is State.RUNNING and (self._may_start() or self.supervisor.wanted)
        if stack[:1] == [room] and offered:
            return
        while room in stack:
            try:
                stack.remove(room)
            except ValueError:  # a submitter has popped it, and is putting it back
                pass
        if offered:
            stack.insert(0, room)

    def _forget(self, worker: Worker, *, replaced: bool = False) -> None:
        """The worker is no more. Lock held."""
        self._note_served()
        self.recorder.close_log(worker.log)
        self.leaving.discard(worker)
        self.replaced += replaced
        self.workers.discard(worker)  # after all that could be missed: see `worker_ended`
        self._note_bare()

    # -- called by workers

    def worker_ready(self, worker: Worker, checked: bool) -> bool:
        """The worker owns its resource and is about to look at the lanes for the first time.

        Return False if the factory fails, and the resource has to pass its check before that counts as the end of the outage.
        Else each new resource of a bad server would look like that end, and all the workers would start on its strength.

        Without resources this takes no lock: who started the worker has it, and a task should be in hand when `submit` returns.
        """
        if self.source is None and not self.outage.failures:
            worker.ready = True
        else:
            with self.lock:
                held = self.outage.error  # until the lock is free: to drop an error may run destructors
                if self.outage.failures and not checked and self.source is not None and self.source.hooks.check_resource:
                    return False
                recovered = self.outage.made()
            del held
            if recovered:
                self._populate_or_retry()  # this worker counts as starting still: it has yet to look at the lanes
            with self.lock:
                worker.ready = True
                self.outage.bare_since = None  # whatever happened while the lock was free
                if worker.late:
                    worker.late = False
                    if self._surplus() > 0:
                        self.leave[:] = [None]  # another has taken its place
        self.changed.ring()
        self.supervisor.start_if_wanted()
        if self.admission.blocked:
            self.admission.refill()
        logger.debug("executor %r: worker %s is ready", self.name, worker.name, executor=self.name, worker=worker.name)
        worker.announce()
        return True

    def worker_ended(self, worker: Worker, end: End, error: BaseException | None) -> None:
        """The exit path of every worker, on its thread, its resource being gone: the one place that decides on a successor.

        If an error is thrown into it, it is called again.
        """
        if self.hub.hears("worker_ended") and not worker.told_of_end:  # before a successor of the same name is told of
            worker.told_of_end = True
            self.hub.tell("worker_ended", WorkerEvent(self.name, worker.name, end.value, error))
        failed = False
        with self.lock:
            held = self.outage.error  # until the lock is free: to drop an error may run destructors
            if worker in self.workers:
                self.broken = self.broken or end is End.INITIALIZER_FAILED
                self.ended.add(worker.thread)
                _ending.add(worker.thread)
                failed = self._judge_end(worker, end, error)
                self._forget(worker, replaced=end in REPLACED)
        del held
        self._populate_or_retry()
        self.changed.ring()
        self.supervisor.start_if_wanted()
        level = logging.WARNING if end in {End.BROKEN, End.CRASHED} else logging.DEBUG
        ids = {"executor": self.name, "worker": worker.name, "reason": end.value}
        logger.log(level, "executor %r: worker %s ends: %s", self.name, worker.name, end.value, **ids)
        self.worker_came()  # or will not come any more
        if self.broken:
            self._break()
        elif self.state >= State.KILLED:
            self._cancel_queue()  # a task that came back too late for the killer
        if failed:
            self._report_failure(worker.name, error)
        if end is End.CREATION_FAILED and isinstance(error, NoResource):  # no outage, but a mistake: waiting will not help
            self._fail_queue(error)
        if self.admission.blocked:  # a place may be free with it, though nobody is needed in its place yet
            self.admission.refill()
        self.wake_if_waiting()
        self._end_a_hopeless_wait()
        self._check_terminated()
        worker.over = True

    def wait_inside(self, future: TaskFuture[Any], permit: LockType, timeout: float | None) -> bool:
        """On one of our own threads: acquire `permit`, which is released when `future` is done. False if the time is up.

        If every worker waits for a task of this executor, another one is started, whatever the policy says. If no other may be,
        none is left to run a task, and the last that waits raises PoolDeadlockError; unless one of the waits has a timeout.
        """
        me = get_ident()
        wait = WaitInside(future, timed=timeout is not None)
        if timeout is None:
            future.add_done_callback(wait)
        try:
            with self.lock:
                self.waiting_inside[me] = wait
            self._populate_or_retry()
            if timeout is not None:
                return permit.acquire(True, lock_timeout(timeout))
            self._end_a_hopeless_wait()
            wait.gate.acquire()
        finally:
            with self.lock:
                self.waiting_inside.pop(me, None)
        if wait.hopeless:
            raise PoolDeadlockError(
                f"executor {self.name!r}: this task waits for another of its own executor, and so do all {len(self.workers)} "
                "workers: none is left to run it; use more workers, another executor, or wait outside of the pool"
            )
        return permit.acquire()

    def _end_a_hopeless_wait(self) -> None:
        """If all workers wait inside, and there may be no other, end the wait that began last."""
        if not self.waiting_inside or not self.detect_deadlocks:
            return
        with self.lock:
            waits = [wait for worker in self.workers if (wait := self.waiting_inside.get(worker.thread.ident or 0))]
            if len(waits) < len(self.workers) or len(self.workers) < self._limit() or not waits:
                return
            hands = {id(worker.item) for worker in self.workers}
            for wait in waits:
                future = wait.future
                if wait.timed or future.done() or future.may_expire() or wait.hopeless:
                    return
                if future.running() and id(future) not in hands:  # it runs in its caller's thread, or is about to be told of
                    return
            last = next(reversed([wait for wait in self.waiting_inside.values() if wait in waits]))
        last.give_up()

    def dismisses(self, worker: Worker) -> End | None:
        """Something is in `leave`: must this worker go, instead of taking a task? Why?"""
        with self.lock:
            if self.state >= State.KILLED:
                return End.DRAINED
            if self._surplus() <= 0:
                self.leave.clear()
                return None
            self.leaving.add(worker)
            return End.RETIRED

    def may_retire(self, worker: Worker) -> bool:
        """A worker has been idle for so long that it could go: is it one of the burst?"""
        with self.lock:
            if self.state is State.RUNNING and len(self.workers) - len(self.leaving) - self._late() <= self.min_workers:
                return False
            self.leaving.add(worker)
            return True

    # -- the factory

    def _judge_end(self, worker: Worker, end: End, error: BaseException | None) -> bool:
        """What the end of a worker says of the factory. Lock held. Return whether it is a failure to be reported.

        A worker that crashes before it has run a task makes a pause as well: whatever it died of may meet its successor.
        """
        if error is None or isinstance(error, UnfitResource):  # the latter has been counted
            return False
        if end is End.CRASHED and not worker.log.attempts():
            self._creation_failed(error, worker.started_at)
        return end is End.CREATION_FAILED and self._creation_failed(error, worker.started_at)

    def check_failed(self, worker: Worker, fault: UnfitResource) -> None:
        """The worker's resource failed its check before it had served a task. Nobody else need wait until it is destroyed."""
        with self.lock:
            held = self.outage.error  # until the lock is free: to drop an error may run destructors
            counts = self._creation_failed(fault, worker.started_at)
        del held
        if counts:
            self._report_failure(worker.name, fault)
        self.wake_if_waiting()

    def _creation_failed(self, error: BaseException, begun: float) -> bool:
        """A resource could not be made, in an attempt begun then. Lock held. Tell whether it counts."""
        self.supervisor.kick(start=False)  # in any case: it waits for the last attempt of a round to end
        self._note_served()
        return self.outage.failed(error, begun, clock(), random.uniform)

    def _report_failure(self, worker: str, error: BaseException | None) -> None:
        delay = max(0.0, self.outage.retry_at - clock())
        failures = self.outage.failures
        fields = {"executor": self.name, "worker": worker, "failures": failures, "delay": delay}
        if isinstance(error, UnfitResource):
            logger.warning(
                "executor %r: a new resource failed its check (%d in a row), next attempt in %.2g s",
                self.name,
                failures,
                delay,
                exc_info=error,
                **fields,
            )
        else:
            logger.warning(
                "executor %r: on_create failed (%d in a row), next attempt in %.2g s",
                self.name,
                failures,
                delay,
                exc_info=error,
                **fields,
            )
        if self.hub.hears("creation_failed"):
            self.hub.tell("creation_failed", ResourceEvent(self.name, worker, 0.0, error))

    def gives_up(self, worker: Worker) -> None:
        """The worker is about to destroy its resource, which may take its time."""
        with self.lock:
            self._note_served()
            self._note_bare()
            bare = self.outage.bare_since is not None
        if bare:
            self.supervisor.kick()  # for create_timeout, of the tasks that come meanwhile

    def _note_served(self) -> None:
        """Tell the outage which resources have served a task. Lock held."""
        if self.outage.on_probation:
            for worker in self.workers:
                if worker.log.attempts():
                    self.outage.served(worker.started_at)

    def _note_bare(self) -> None:
        """Does no worker own a resource any more? Lock held."""
        if self.outage.bare_since is None and not any(worker.ready and worker.holding is not None for worker in self.workers):
            self.outage.bare(clock())

    def tend_creation(self, now: float) -> float | None:
        """Supervisor: try the factory again when it is time, or when an attempt takes too long; return when to look again."""
        paused_until = None
        with self.lock:
            late, due = self._note_late(now)
            tended = bool((self.outage.failures and not self._starting()) or late)
            if tended:
                paused_until = self.outage.next_attempt(now, self._starting())
        if tended and paused_until is None:
            self._populate_or_retry()
            with self.lock:
                paused_until = self.outage.next_attempt(now, self._starting())
        if paused_until is not None:
            due = paused_until if due is None else min(due, paused_until)
        for worker in late:
            logger.warning(
                "executor %r: worker %s has been starting for %.3g s, longer than create_timeout; another may try",
                self.name,
                worker.name,
                now - worker.started_at,
                executor=self.name,
                worker=worker.name,
            )
        if self.admission.blocked:  # there may be room for one, to try it with
            self.admission.refill()
        return due

    def _note_late(self, now: float) -> tuple[list[Worker], float | None]:
        """Return the workers that turn out to be late, and when the next will be. Lock held."""
        late: list[Worker] = []
        due: float | None = None
        for worker in self.workers if self.source is not None else ():
            if not worker.ready and not worker.late:
                when = worker.started_at + self.create_timeout
                if now >= when:
                    worker.late = True
                    late.append(worker)
                else:
                    due = when if due is None else min(due, when)
        return late, due

    def fail_starved(self, now: float) -> float | None:
        """Supervisor: fail the tasks that have waited too long for a worker with a resource; return when the next is due."""
        outage = self.outage
        if self.source is None or outage.bare_since is None or self.state >= State.KILLED:
            return None
        oldest = self.lanes.oldest()
        due = None if oldest is None else outage.gives_up_at(oldest)
        if due is not None and now >= due:
            self._fail_queue(outage.error, before=now - self.create_timeout)
            oldest = self.lanes.oldest()
            due = None if oldest is None else outage.gives_up_at(oldest)
        if due is not None:
            return due
        # Whatever is queued from now on is due later than this. It wakes us only if it starts a worker, which it does not
        # while one is on its way, or late, or ending, or the factory is left in peace; and that is when somebody must look.
        return now + max(self.create_timeout, BACKOFF_FIRST) if self.workers or now < outage.retry_at else None

    def creation_error(self, cause: BaseException | None, waited: float | None = None) -> ResourceCreationError:
        """The error for those who waited for a resource in vain."""
        spent = "" if waited is None else f" within {waited:.3g} s"
        why = "; ".join(self._why_no_resource(cause))
        error = ResourceCreationError(f"executor {self.name!r}: no worker has got a resource{spent}; {why}")
        error.__cause__ = cause
        return error

    def _why_no_resource(self, cause: BaseException | None) -> list[str]:
        why: list[str] = []
        if isinstance(cause, UnfitResource):
            why.append(str(cause))
        elif cause is not None:
            why.append(f"on_create failed: {safe_repr(cause)}")
        workers = self.workers.copy()
        late = [worker for worker in workers if worker.late]
        if late or not why:
            if not late and any(worker.ready for worker in workers):
                why.append("on_destroy has not returned")
            else:
                names = f" on {', '.join(sorted(worker.name for worker in late))}" if late else ""
                why.append(f"on_create has not returned{names} (create_timeout is {self.create_timeout:g} s)")
        return why

    def _fail_queue(self, cause: BaseException | None, before: float | None = None) -> None:
        """Fail the tasks queued, or those queued before that moment."""
        self._fail_each(lambda waited: self.creation_error(cause, waited), before)
        self.wake_if_waiting()
        self._check_terminated()

    def _fail_each(self, make_error: Callable[[float], BaseException], before: float | None = None) -> None:
        """Pop the tasks queued, or those queued before that moment, and fail them. `_check_terminated` follows."""
        token = object()
        try:
            self._failing.add(token)
            for lane in self.lanes:
                self._fail_lane(lane, make_error, before)
        finally:
            self._failing.discard(token)

    @staticmethod
    def _fail_lane(lane: Lane, make_error: Callable[[float], BaseException], before: float | None = None) -> None:
        """Pop and fail the tasks that are in the lane now, or those queued before that moment.

        If an error is thrown into this, it ends the task in hand, too.
        """
        try:
            # Each is popped and stored in one step of the interpreter. So are its two successors: the test, and the `try`.
            for future in starmap(lane.popleft, repeat((), len(lane))):
                if before is not None and future._submitted > before:
                    lane.appendleft(future)
                    break
                try:
                    future._fail_popped(make_error(clock() - future._submitted))
                except BaseException as thrown:  # thrown in
                    future._fail_popped(thrown)
                    raise
        except IndexError:  # another thread was quicker
            pass

    def wait_ready(self, timeout: float) -> Exception | None:
        """Block until the base workers are ready; return None, or what to raise."""
        begun = clock()
        change: Latch | None = None
        while True:
            if self.state is not State.RUNNING:
                return self.refusal()
            if sum(worker.ready for worker in self.workers.copy()) >= self.min_workers:
                return None
            failure = self.outage.error
            remaining = begun + timeout - clock()
            if isinstance(failure, NoResource) or remaining <= 0:
                return self.creation_error(failure, clock() - begun)
            if change is None:
                change = self.changed.listen()  # and look again, before the wait
            else:
                change.wait(remaining)
                change = None

    # -- wishes

    def want(self, wanted: int, reason: str) -> None:
        """So many workers are wanted from now on, within the bounds."""
        with self.lock:
            before = self._set_wanted(wanted)
            after = self.wanted
        self._tell_wanted(before, after, reason)

    def _set_wanted(self, wanted: int) -> int:
        """Take the number, within the bounds; return the number before. Lock held."""
        before, self.wanted = self.wanted, min(max(wanted, self.min_workers), self.max_workers)
        self._retire_idle()
        return before

    def _tell_wanted(self, before: int, after: int, reason: str) -> None:
        self._populate_or_retry()
        self.supervisor.start_if_wanted()
        self.wake_if_waiting()
        self._end_a_hopeless_wait()
        if self.admission.blocked:
            self.admission.refill()
        if after != before:
            logger.debug(
                "executor %r: %d workers wanted instead of %d: %s",
                self.name,
                after,
                before,
                reason,
                executor=self.name,
                before=before,
                after=after,
                reason=reason,
            )
            if self.hub.hears("scaled"):
                self.hub.tell("scaled", ScaleEvent(self.name, before, after, reason))

    def resize(self, min_workers: int, max_workers: int) -> None:
        """Change the bounds. Those too many leave: idle ones at once, busy ones after their task."""
        with self.lock:
            self.min_workers, self.max_workers = min_workers, max_workers
            before = self._set_wanted(max_workers if self.supervisor.policy is None else self.wanted)
            after = self.wanted
            if self._surplus() > 0:
                self.leave[:] = [None]
            if self.idle_limit is not None:
                self._wake_idle()
        self._tell_wanted(before, after, f"resize to {min_workers}..{max_workers}")

    def _retire_idle(self) -> None:
        """Retire idle workers above the number wanted, the longest idle first, so that warm resources stay. Lock held."""
        surplus = self._surplus()
        for worker in self.idle_stack[:]:  # from the bottom
            if surplus <= 0:
                break
            if isinstance(worker, Worker) and worker not in self.leaving:
                worker.told_to_leave = True
                if self._wake_worker(worker):
                    self.leaving.add(worker)
                    surplus -= 1
                else:
                    worker.told_to_leave = False

    def _wake_idle(self) -> None:
        """Have every idle worker look up: the state, the number wanted or the time that it may be idle has changed."""
        for worker in self.idle_stack[::-1]:
            if isinstance(worker, Worker):
                self._wake_worker(worker)

    def _wake_worker(self, worker: Worker) -> bool:
        """Wake this worker; False if it is not idle, or has just been woken. It is off the stack if and only if it is woken."""
        spend_stack()
        try:
            in_one_step(partial(self.idle_stack.remove, worker), worker.release)
        except ValueError:
            return False
        return True

    # -- the end

    def close(self, *, cancel: bool = False, kill: bool = False) -> None:
        """Accept nothing any more, and drain; `cancel` cancels what waits; `kill` also sets the tokens and aborts resources."""
        with self.lock:
            before = self.state
            if kill and self.state < State.KILLED:
                self.state = State.KILLED
                self.leave[:] = [None]  # no worker starts another task: before the tokens are set, and the tasks obey
            elif self.state < State.DRAINING:
                self.state = State.DRAINING
            with self._idle_lock:
                self.idle = _CLOSED
            handle = None if self._handle is None else self._handle()
            if handle is not None:  # from now on `submit` and `run_now` refuse at once
                handle._needs_care = True
                handle._open_reserve = None
            after = self.state
        self._populate_or_retry()  # tasks may wait with no worker there to run them
        self.changed.ring()
        if kill:
            self.killed.open()
        escaped: BaseException | None = None
        if cancel or kill:
            try:
                self._cancel_queue()
            except BaseException as error:  # first things first
                escaped = error
        self._wake_idle()
        self.admission.close()
        if after is not before and self.hub.hears("state_changed"):
            self.hub.tell("state_changed", StateEvent(self.name, after.name.lower()))
        if kill:
            self._abort_running()
        if self.reserve is not None:
            self.reserve.close()
        if self.supervisor.thread is not None:
            self.supervisor.kick()
        self.supervisor.start_if_wanted()
        self._check_terminated()
        if escaped is not None:
            raise escaped

    def _cancel_queue(self) -> None:
        """Cancel what waits. A task in between two attempts gets the error of the last.

        Cancelled tasks stay where they are, as tombstones: if Ctrl-C interrupts this, what is left waits as before.
        """
        escaped: BaseException | None = None
        for lane in self.lanes:
            for future in lane.snapshot():
                sidecar = future._sidecar
                last = None if sidecar is None else sidecar.error
                taken: list[object] = []
                try:
                    if last is None:
                        future.cancel()
                    else:
                        lane.withdraw(future, taken)
                        if taken:
                            future._fail_popped(last)
                except BaseException as error:  # of a done-callback, on the main thread; or thrown in
                    escaped = error
                    if taken and last is not None:
                        future._fail_popped(last)
        if escaped is not None:
            raise escaped

    def _abort_running(self) -> None:
        hook = None if self.source is None else self.source.hooks.on_abort
        if hook is None or self.reserve is None:
            return
        targets: list[Target] = []
        for worker in self.workers.copy():
            holding, item = worker.holding, worker.item
            if item is not None and holding is not None:
                targets.append((holding, partial(worker.runs, item)))
        self.reserve.abort(hook, targets)

    def destroy_in_use(self) -> None:
        """After a kill: destroy the resources that are still in use. See `ResourceExecutor.kill`."""
        if self.source is None or self.reserve is None:
            return
        held = [(worker.holding, worker.name) for worker in self.workers.copy()]
        self.reserve.destroy_in_use([(holding, name) for holding, name in held if holding is not None])

    def _break(self) -> None:
        """The initializer failed: as in the standard library, the pool is broken for good."""
        message = "A thread initializer failed, the thread pool is not usable anymore"
        self.refusal = lambda: BrokenThreadPool(message)
        self.close()
        self._fail_each(lambda _: BrokenThreadPool(message))
        self._check_terminated()

    def _check_terminated(self) -> None:
        """Draining, nothing waits, nobody lives: that was it."""
        with self.lock:
            # Not `state is CLOSED`: if Ctrl-C came between that and the end of this method, the next caller finishes it.
            if self.state < State.DRAINING or self.terminated.is_open or self.workers:
                return
            if self.lanes.look() and self.lanes.waiting():  # tombstones may stay
                return
            if self._failing or self.supervisor.herald.busy:  # looked at last: it is before tasks are popped or settled
                return
            first = self.state is not State.CLOSED
            self.state = State.CLOSED
        for thread in self.supervisor.threads():
            _ending.add(thread)
        if self.supervisor.thread is not None:
            self.supervisor.kick()
        _cores.pop(id(self), None)
        self._woken.clear()  # a worker refers to its thread: see `Endings`
        self.terminated.open()
        self.lanes.detach()
        if first and self.hub.hears("state_changed"):
            self.hub.tell("state_changed", StateEvent(self.name, "closed"))

    def join(self, timeout: float | None, *, daemons: bool = True) -> None:
        """Block until the end, threads included. Raises ShutdownTimeout.

        Without `daemons`, calls of ``run_now`` on daemon threads are not waited for: the end of the interpreter is not either.

        Returns at once on a thread of the executor itself, which would wait for itself; and in a signal handler that
        interrupted its thread inside of the lock, since the workers need that to end.
        """
        if current.owner is self or self._interrupted():
            return
        deadline = None if timeout is None else clock() + timeout
        done = self.terminated.is_open
        while not done and (deadline is None or clock() < deadline):
            done = self.terminated.wait(_GLANCE if deadline is None else min(_GLANCE, deadline - clock()))
            if not done:
                self._bury()
        while done:
            with self.lock:
                threads = self.ended.alive()
                threads += self.supervisor.threads()
            if not threads:
                break
            remaining = None if deadline is None else max(0.0, deadline - clock())
            threads[0].join(None if remaining is None else lock_timeout(remaining))
            done = not threads[0].is_alive()
        if done and self.reserve is not None:
            done = self.reserve.wait_until_returned(deadline, daemons=daemons)
        if not done:
            raise ShutdownTimeout(self._what_still_runs(timeout))

    def _interrupted(self) -> bool:
        """Is this a signal handler that has interrupted its thread while that held a lock which workers need to end?

        `_is_owned` is private, but Condition relies on it. Of the locks of futures nobody keeps a list; but what holds one is a
        function of their module.
        """
        if self._holds_a_lock():
            return True
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename == TaskFuture.result.__code__.co_filename:
                return frame.f_code.co_name not in ("_call", "_call_each")  # they call done-callbacks, with no lock held
            frame = frame.f_back
        return False

    def _holds_a_lock(self) -> bool:
        """Does this thread hold one of the locks that workers need?"""
        locks: list[Any] = [self.lock, self._idle_lock, self.recorder.lock, self.admission._lock, self.supervisor._lock]
        locks += [lane._lock for lane in self.lanes]
        if self.source is not None:
            locks.append(self.source.lock)
        return any(lock._is_owned() for lock in locks)

    def _what_still_runs(self, timeout: float | None) -> str:
        busy = [info for info in self.worker_infos() if info.function is not None]
        running = [f"{info.function} on {info.name} for {info.running_for:.3g} s" for info in busy]
        running += [
            f"{worker.name} has been starting for {clock() - worker.started_at:.3g} s"
            for worker in sorted(self.workers.copy(), key=lambda worker: worker.index)
            if not worker.ready
        ]
        running += [] if self.reserve is None else [f"run_now in thread {name}" for name in self.reserve.callers()]
        what = ", ".join(running) or f"{len(self.workers)} workers that are starting or ending"
        return (
            f"executor {self.name!r} has not shut down within {timeout} s: still running: {what}; "
            f"{self.lanes.waiting()} tasks are queued; the drain goes on, kill() would cut it short"
        )

    def _handle_gone(self, _: object, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if not exiting():  # or the modules may be empty by then: without the GIL they are
            self._dropped()

    def _dropped(self) -> None:
        """The user's last reference to the executor is gone. May be called by the garbage collector, anywhere."""
        if _exiting or self.state is State.CLOSED:  # all is done, and the lock may be held by a thread that is no more
            return
        if (self.reserve is not None and self.reserve.available) or self.hub.hears("state_changed"):
            # Hooks and observers have no business inside of the garbage collector: they get a thread of their own.
            try:
                make_thread(self.close, f"{self.thread_name_prefix}_closer").start()
                return
            except RuntimeError:
                pass
        self.close()

    # -- refusals

    def _refuse_after_shutdown(self) -> Exception:
        return RuntimeError("cannot schedule new futures after shutdown")

    def _refuse_at_exit(self) -> None:
        self.refusal = lambda: RuntimeError("cannot schedule new futures after interpreter shutdown")

    def reinit_after_fork(self) -> None:
        """In the child of a fork: the threads are gone, whatever they held is held for ever, and so are the tasks."""
        self.lock = threading.RLock()
        self._idle_lock = threading.RLock()
        for lane in self.lanes:
            lane.reinit_after_fork()
        self.recorder.reinit_after_fork()
        self.admission.reinit_after_fork()
        if self.source is not None and self.reserve is not None:
            self.source.reinit_after_fork()
            self.reserve.reinit_after_fork()
        self.state = State.CLOSED
        self.leave[:] = [None]
        self.idle = _CLOSED
        self.hub.silence()
        message = (
            f"executor {self.name!r} was inherited through fork(): its threads and resources belong to the parent process; "
            f"make a new executor in this one"
        )
        self.refusal = lambda: RuntimeError(message)
        lost = [worker.item for worker in self.workers if worker.item is not None]
        for lane in self.lanes:
            lost += lane
            lane.clear()
            lane.tombstones = 0
        for future in lost:
            if not future.done():
                future._fail_after_fork(RuntimeError(message))
        for worker in self.workers:
            worker.over = True
        self.workers.clear()
        self.leaving.clear()
        self.ended.clear()
        self.waiting_inside.clear()
        self.supervisor.reinit_after_fork()
        self.terminated.open()
        self.lanes.detach()

    # -- what it tells of itself

    def stats(self) -> ExecutorStats:
        """One consistent moment.

        Read against the way a task takes, its end first and its beginning last: one that moves meanwhile may be missed for this
        moment, but is never counted twice. `submitted` never decreases, and a task missed is one in hand. Only a retry goes
        the other way; if there was one, the reading is repeated.
        """
        with self.lock:
            normal, priority = self.lanes.normal, self.lanes.priority
            while True:
                counts = self.recorder.counts()
                retried = counts[False, Outcome.RETRIED] + counts[True, Outcome.RETRIED]
                settled = normal.settled_failed + priority.settled_failed
                cancelled = normal.cancelled + priority.cancelled
                withdrawn = normal.withdrawn + priority.withdrawn
                workers = self.workers.copy()
                busy = sum(worker.item is not None for worker in workers)
                queued, urgent = normal.waiting(), priority.waiting()
                counts_again = self.recorder.counts()
                if retried == counts_again[False, Outcome.RETRIED] + counts_again[True, Outcome.RETRIED]:
                    break
            completed = counts[False, Outcome.COMPLETED] + counts[True, Outcome.COMPLETED]
            failed = counts[False, Outcome.FAILED] + counts[True, Outcome.FAILED] + settled
            elsewhere = completed + failed + cancelled + queued + urgent
            # A task that was refused may have been seen in its lane for a moment.
            self._seen = max(self._seen, elsewhere + busy + withdrawn)
            submitted = self._seen - withdrawn
            base = min(len(workers), self.min_workers)
            reserve = self.reserve
            created, destroyed = (0, 0) if self.source is None else self.source.counts()
            return ExecutorStats(
                base_workers=base,
                active_workers=len(workers),
                burst_workers=len(workers) - base,
                idle_workers=len(workers) - busy,
                running_tasks=submitted - elsewhere,
                queued_tasks=queued,
                priority_tasks=urgent,
                available_resources=0 if reserve is None else reserve.available,
                submitted=submitted,
                completed=completed,
                failed=failed,
                cancelled=cancelled,
                retried=retried,
                resources_created=created,
                resources_destroyed=destroyed,
                workers_replaced=self.replaced,
                create_failures=self.outage.total,
                state=self.state.name.lower(),
            )

    def worker_infos(self) -> tuple[WorkerInfo, ...]:
        """What each worker is doing, in the order of their names."""
        return tuple(worker.info() for worker in sorted(self.workers.copy(), key=lambda worker: worker.index))

    def metrics(self, *, reset: bool) -> ExecutorMetrics:
        """Durations and rates of the period."""
        wait, run, create, counts = self.recorder.durations(reset=reset)
        arrival_rate, completion_rate, _ = self._rates()
        finished = counts[Outcome.COMPLETED] + counts[Outcome.FAILED]
        return ExecutorMetrics(
            wait=wait.summary(),
            run=run.summary(),
            create=create.summary(),
            arrival_rate=arrival_rate,
            completion_rate=completion_rate,
            success_rate=counts[Outcome.COMPLETED] / finished if finished else 0.0,
            failure_rate=counts[Outcome.FAILED] / finished if finished else 0.0,
        )

    def _rates(self) -> tuple[float, float, float]:
        in_hand = [item._submitted for worker in self.workers.copy() if (item := worker.item) is not None]
        return self.recorder.rates(self.lanes, in_hand)

    def sample(self) -> LoadSample:
        """What a policy is shown."""
        arrival_rate, completion_rate, service_time = self._rates()
        oldest = self.lanes.oldest()
        now = clock()
        with self.lock:
            workers = self.workers.copy()
            busy = sum(worker.item is not None for worker in workers)
            return LoadSample(
                time=now,
                workers=len(workers),
                busy=busy,
                idle=max(0, sum(worker.ready for worker in workers) - busy),
                queued_normal=self.lanes.normal.waiting(),
                queued_priority=self.lanes.priority.waiting(),
                oldest_wait=0.0 if oldest is None else max(0.0, now - oldest),
                arrival_rate=arrival_rate,
                completion_rate=completion_rate,
                mean_service_time=service_time,
                mean_create_time=self.recorder.mean_create_time(),
                create_failures=self.outage.failures,
                min_workers=self.min_workers,
                max_workers=self.max_workers,
                target=self.wanted,
            )

    def at_rest(self) -> bool:
        """Does nothing wait or run, and is nobody there but the base?"""
        with self.lock:
            busy = any(worker.item is not None for worker in self.workers)
            return not busy and not self.lanes.look() and len(self.workers) <= self.min_workers

    def check(self) -> None:
        """Assert the invariants that can be asked at any moment."""
        stats = self.stats()
        for name, value in vars(stats).items():
            assert isinstance(value, str) or value >= 0, f"{name} is {value}"
        final = stats.completed + stats.failed + stats.cancelled
        assert stats.submitted == final + stats.queued_tasks + stats.priority_tasks + stats.running_tasks, stats
        with self.lock:
            assert self.leaving <= self.workers
            assert len({worker.index for worker in self.workers}) == len(self.workers), "two workers have one name"
            assert self.min_workers <= self.max_workers
            for worker in self.workers:
                assert worker.thread.is_alive() or not worker.birth.locked() or worker.over, f"{worker} has no thread"
            if self.source is not None:
                created, destroyed = self.source.counts()
                assert created >= destroyed, "destroyed more resources than were made"
            if stats.state == "closed":  # of the same moment as the numbers
                assert not self.workers, "closed, with workers"
                assert stats.queued_tasks == stats.priority_tasks == stats.running_tasks == 0, stats


def _at_exit() -> None:
    """Before the interpreter joins its threads: refuse new tasks, finish those queued. As the standard library does."""
    global _exiting  # read by executors made later
    _exiting = True
    cores = list(_cores.values())
    for core in cores:
        if core.state is State.RUNNING:
            core._refuse_at_exit()
        core.close()
    for core in cores:
        if core.state is not State.KILLED:
            core.join(None, daemons=False)
    for thread in _ending.alive():
        thread.join()
    join_aborts()


def _after_fork_in_child() -> None:
    for core in list(_cores.values()):
        core.reinit_after_fork()
    _cores.clear()
    _ending.clear()


# Before threads are joined, and so before any `atexit` callback. Private, and what concurrent.futures itself uses.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # not in typeshed
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
