"""The crew: which workers are started, and which have to leave.

**One place decides** whether a worker is started: `Crew._hire`, under the lock. It decides from the facts
(how many workers live, how many are starting, how many tasks wait), never from a count of requests. Each
thread that changes a fact calls it: a submitter that finds no idle worker, a worker that ends, the timer
when the factory may be tried again, a call of `resize`. So the next change repairs what an interruption has
left undone.

**Decided under the lock, done outside of it.** `_hire` adds workers to the crew, and `populate` then starts
their threads without the lock: see ``threads.py``.

**A call may be interrupted** between the two, by a signal handler that calls it again, or by an error. Its
workers are *unborn*: in the crew, without a thread. The nested call disowns them; after an error the
interrupted call does.
"""

from __future__ import annotations

import threading
from _thread import get_ident
from collections.abc import Callable

from .._report import Logger
from .._sync import clock, spend_stack
from . import process
from .idle import Seat
from .resources import REPLACED, End, UnfitResource
from .roster import Roster
from .state import State
from .supply import Supply
from .threads import CannotStart, start_thread
from .worker import Worker
from .workplace import Workplace

__all__ = ["Crew"]

logger = Logger("tasker_executor")


class Crew:
    """Starts and dismisses the workers of one executor. "Lock held" means `Lifecycle.lock`."""

    def __init__(self, place: Workplace, roster: Roster, make_worker: Callable[[int], Worker]) -> None:
        """Keep the workers in `roster`; ``make_worker(index)`` makes a worker for that slot."""
        settings = place.settings
        self._name = settings.name
        self._owns_resources = settings.hooks is not None
        self._life = place.life
        self._idle = place.idle
        self._lanes = place.lanes
        self._recorder = place.recorder
        self._timer = place.timer
        self._make_worker = make_worker
        self._source = place.source
        self.roster = roster
        self.supply = Supply(place, roster)
        self.outage = self.supply.outage
        #: Not empty while there may be a worker that has to go: one too many, or one whose resource is of an
        #: earlier epoch. A worker that is about to start a task then asks `dismisses`.
        self.leave = place.leave

        # The lock guards all that follows.
        self._hiring = False
        self._missed = False  # whether a call of `_hire` came while another one, on the same thread, was hiring
        #: The workers of the roster whose thread is yet to be started, each with the thread that is to start it.
        #: Added under the lock, before the worker is in the roster; removed without it, by one call.
        self._unborn: dict[Worker, int] = {}
        self.broken = False  # an initializer failed; a worker that ends reads its own store without the lock

    # -- is another worker needed?

    def _may_start(self) -> bool:
        """Return whether a worker may be started, if one is needed. Lock held."""
        if self.broken or self._life.state >= State.KILLED or not self.roster.has_room():
            return False
        return not self.outage.failures or self.outage.may_try(clock(), self.roster.starting())

    def _has_lost_tasks(self) -> bool:
        """Return whether tasks wait in an old outage, without hope: the timer lets them fail. Lock held."""
        now = clock()
        if not (self._owns_resources and self.outage.is_old(now) and self.outage.bare_since is not None):
            return False
        return self.supply.hope(now) is None and self._lanes.waiting() > 0

    def _needed(self) -> bool:
        """Return whether another worker is needed.

        Workers that are starting look at the lanes, so only the tasks beyond their number count. One that has its
        resource counts no more, though it has yet to look: an observer, or its first check, may hold it up. So a look
        at that moment may start one worker more than tasks need. The other mistake would leave a task without any.
        """
        # A submitter whose task is not seen here sees what was stored before. If there is none, no worker is counted:
        # workers that end together all ask this.
        if self._lanes.look() or self._lanes.parked():
            starting = self.roster.starting()
            while (waiting := self._lanes.waiting()) and starting != (now := self.roster.starting()):
                starting = now  # a worker became ready, and may have taken a task: count again
            if waiting > starting:
                return True
        least = self.roster.least()
        return self._life.state is State.RUNNING and least > 0 and self.roster.present() < least

    def overflow(self) -> int:
        """Return how many tasks wait beyond those that free workers are about to take; for `max_queued`."""
        if self.outage.failures == 0:
            limit = self.roster.limit()
        else:
            # One more worker may try the factory, in time: else no task ever comes in at `max_queued=0`.
            limit = sum(worker.ready for worker in self.roster.workers.copy()) + self._may_start()
        busy, waiting = -1, 0
        while busy != (now := self.roster.busy()):  # else a task that is taken at this moment counts twice
            busy, waiting = now, self._lanes.waiting()
        return waiting - max(0, limit - busy)

    # -- starting workers

    def populate(self) -> None:
        """Start the workers that are needed. Called without the lock. Raises CannotStart."""
        hired: list[Worker] = []
        try:
            with self._life.lock:
                self._hire(hired)
                lost = not hired and self._has_lost_tasks()
            if lost:
                self._timer.kick()
            elif hired and self._owns_resources:
                self._timer.kick(start=False)  # for `create_timeout`; the new worker starts the timer
            elif not hired:
                self._timer.start_if_wanted()  # for the pause that may be the reason; perhaps no other thread starts the timer
            while hired:
                if not hired[-1].over:  # no signal handler that interrupted this call has disowned it
                    start_thread(hired[-1].thread)
                self._unborn.pop(hired.pop(), None)
        except BaseException:
            for worker in hired:
                self._disown(worker)
            raise

    def populate_or_retry(self) -> None:
        """Start the workers that are needed. If the system refuses a thread, the timer tries again."""
        try:
            self.populate()
        except CannotStart as error:
            self.retry_later(error)

    def retry_later(self, error: CannotStart) -> None:
        """Have the timer start workers for the tasks that wait, after the system has refused a thread."""
        self._note_failure(error, clock())
        self._timer.start_if_wanted()
        logger.error("executor %r: cannot start a worker", self._name, exc_info=error, executor=self._name)

    def _hire(self, hired: list[Worker]) -> None:
        """Add the workers that are needed to the crew, and to `hired`, whose owner starts them. Lock held.

        Room is offered before the last look at the lanes. So this look sees the task of a submitter that
        found the stack empty.
        """
        roster = self.roster
        if self._unborn:
            self._disown_interrupted(hired)
        # A signal handler, or a destructor, that interrupts this leaves the work to the interrupted call.
        self._missed = True
        while self._missed and not self._hiring:
            self._hiring = True
            try:
                self._missed = False
                may_start = self._offer_room()
                while self._needed() and may_start:
                    if not hired:
                        spend_stack()
                    worker = self._make_worker(roster.free_index())
                    hired.append(worker)
                    self._recorder.add_log(worker.log)
                    roster.unready.add(worker)
                    # In one step, as an error, or a signal handler, comes only after a call:
                    self._unborn[worker] = get_ident()
                    worker.seat.occupied = True
                    roster.workers.add(worker)
                    may_start = self._offer_room()
            finally:
                self._hiring = False

    def _offer_room(self) -> bool:
        """Offer Room if a worker may be started, and withdraw it if none may; return which. Lock held.

        Room stays while the timer's thread could not be started: only a submitter then sees the end of
        a pause. It stays in an outage, too: a submitter then looks whether its task has to fail at once.
        """
        may_start = self._may_start()
        outage = self._owns_resources and self.outage.failures > 0 and self.outage.bare_since is not None
        self._idle.offer_room(self._life.state is State.RUNNING and (may_start or self._timer.wanted or outage))
        return may_start

    def _disown_interrupted(self, hired: list[Worker]) -> None:
        """Disown the workers that an interrupted call on this thread has hired and not started. Lock held.

        An error, or the signal handler that calls this and might wait for the workers, has interrupted that
        call. The workers in `hired` belong to the present call.
        """
        me = get_ident()
        for worker, starter in self._unborn.copy().items():
            if starter == me and worker not in hired:
                self._disown(worker)

    def _disown(self, worker: Worker) -> None:
        """Remove a worker that is not to live: its start was refused, or an error was thrown in before it."""
        if worker.birth.acquire(False):  # it has not begun to live, and now cannot
            worker.over = True
            with self._life.lock:
                self._forget(worker)
                self._offer_room()
            worker.thread = threading.main_thread()  # its own thread never ran, and refers to it: see `Endings`
        self._unborn.pop(worker, None)

    def bury(self) -> None:
        """End the workers whose thread has died while they are still in the crew.

        An error was thrown into the first steps of the thread, before our code could catch it, or repeatedly
        into its last ones. Another worker runs the task that waits for such a worker.
        """
        for worker in self.roster.workers.copy() | self.roster.written_off.copy():
            if worker not in self._unborn and not worker.thread.is_alive():
                self._disown(worker)  # if it has not begun to live
                if not worker.over:
                    worker.end(End.CRASHED, None)
        self.populate_or_retry()

    def _forget(self, worker: Worker, *, replaced: bool = False) -> None:
        """Remove a worker from the crew. Lock held."""
        roster = self.roster
        self.supply.note_served()
        self._recorder.close_log(worker.log)
        roster.unready.discard(worker)
        roster.replaced += replaced
        worker.seat.occupied = False
        # Last: an error thrown in before this leaves the worker in the crew, and the removal is repeated.
        roster.workers.discard(worker)
        self.supply.note_bare()

    # -- what workers report

    def note_ready(self, worker: Worker, *, in_doubt: bool) -> bool:
        """Count a worker that owns its resource and is about to look at the lanes for the first time.

        Return False if the factory fails and the resource is `in_doubt`: it must pass its check before it
        ends the outage. Otherwise each new resource of a bad server would end it, and start all the workers.

        Without resources this takes no lock, which all the workers that start together would wait for.
        """
        if not self._owns_resources and not self.outage.failures:
            worker.ready = True
            self.roster.unready.discard(worker)
            return True
        with self._life.lock:
            held = self.outage.error  # until the lock is free: to drop an error may run destructors
            if in_doubt and self.outage.failures:
                return False
            recovered = self.outage.made(clock())
        del held
        if recovered:
            self.populate_or_retry()  # this worker still counts as starting: it has yet to look at the lanes
        with self._life.lock:
            worker.ready = True
            self.roster.unready.discard(worker)
            self.outage.bare_since = None  # whatever happened while the lock was free
            if self.outage.failures:  # the timer may have seen this worker still starting, and waits for it
                self._timer.kick(start=False)
            if worker.late:
                worker.late = False
                if self.roster.surplus() > 0:
                    self.leave[:] = [None]  # another worker has taken its place
        return True

    def note_unfit(self, worker: Worker, fault: UnfitResource) -> bool:
        """Note that a resource failed its check before it had served a task; return whether that counts."""
        return self._note_failure(fault, worker.started_at)

    def _note_failure(self, error: BaseException, begun: float) -> bool:
        """Note that an attempt, begun at `begun`, made no resource that serves; return whether that counts."""
        with self._life.lock:
            held = self.outage.error  # until the lock is free: to drop an error may run destructors
            counts = self.supply.note_failure(error, begun)
            self._offer_room()
        del held
        return counts

    def note_giving_up(self, worker: Worker) -> None:
        """Note that a worker is about to destroy its resource, and start its successor if there is room.

        A worker that has served no task may have crashed, and its successor may, too. So it gets one only
        when its end has told why.
        """
        with self._life.lock:
            self.supply.note_giving_up(worker)
            self._offer_room()
        self._timer.start_if_wanted()
        if worker.log.attempts():
            self.populate_or_retry()

    def note_end(self, worker: Worker, end: End, error: BaseException | None) -> bool:
        """Remove a worker that ends; return whether it reports a failure of the factory."""
        failed = False
        with self._life.lock:
            held = self.outage.error  # until the lock is free: to drop an error may run destructors
            known, written_off = worker in self.roster.workers, worker in self.roster.written_off
            if known or written_off:
                self.roster.ended.add(worker.thread)
                process.ending.add(worker.thread)
            if known:
                self.broken = self.broken or end is End.INITIALIZER_FAILED
                failed = self.supply.note_end(worker, end, error)
                self._forget(worker, replaced=end in REPLACED)
            elif written_off:
                self.roster.written_off.discard(worker)
                self._timer.kick(start=False)  # another one may be written off now
            self.roster.note_left(worker)
        del held
        return failed

    def write_off(self, worker: Worker, hangs: Callable[[], bool]) -> bool:
        """Write a worker off if it still `hangs` and there is room; return whether it is written off now.

        It leaves the crew. Its thread lives on until the call returns; then it destroys the resource and ends.
        """
        roster = self.roster
        with self._life.lock:
            if worker not in roster.workers or len(roster.written_off) >= roster.max_workers or not hangs():
                return False
            roster.written_off.add(worker)
            self._forget(worker)
            roster.note_left(worker)
            return True

    def wrote_off(self, worker: Worker) -> bool:
        """Return whether a worker was written off, whose task and abort have ended. If not, that stop is over."""
        with self._life.lock:
            worker.stopped = None
            return worker in self.roster.written_off

    def dismisses(self, worker: Worker) -> End | None:
        """Return why this worker must go instead of taking a task; None if it may stay.

        A worker asks this while `leave` is not empty.
        """
        with self._life.lock:
            if worker in self.roster.written_off:
                return End.WRITTEN_OFF
            if self._life.state >= State.KILLED:
                return End.DRAINED
            if self._is_stale(worker):
                return End.REFRESHED
            if self.roster.surplus() <= 0:
                if not any(map(self._is_stale, self.roster.workers.copy())):  # a destructor may add one
                    self.leave.clear()
                return None
            self.roster.leaving.add(worker)
            return End.RETIRED

    def _is_stale(self, worker: Worker) -> bool:
        """Return whether a worker's resource is, or may be, of an earlier epoch: see `ResourceSource.epoch`."""
        source, holding = self._source, worker.holding
        return source is not None and (holding is None or holding.epoch != source.epoch)

    def may_retire(self, worker: Worker) -> bool:
        """Return whether a worker that was idle for `idle_timeout` may go: it is above the base."""
        with self._life.lock:
            if self._life.state is State.RUNNING and self.roster.present() <= self.roster.least():
                return False
            self.roster.leaving.add(worker)
            return True

    # -- wishes

    def refresh(self) -> None:
        """Let workers leave whose resource is of an earlier epoch: idle ones at once, others after their task."""
        with self._life.lock:
            self.leave[:] = [None]
            self._idle.wake_all()

    def want(self, wanted: int) -> tuple[int, int]:
        """Set the number of workers wanted, within the bounds; return it before and after."""
        with self._life.lock:
            return self._set_wanted(wanted)

    def resize(self, min_workers: int, max_workers: int, *, wanted: int | None, wake_idle: bool) -> tuple[int, int]:
        """Change the bounds; return the number of workers wanted before and after.

        Surplus workers leave: idle ones at once, busy ones after their task. `wake_idle` wakes the idle
        workers, whose idle time depends on the bounds.
        """
        roster = self.roster
        with self._life.lock:
            roster.min_workers, roster.max_workers = min_workers, max_workers
            change = self._set_wanted(roster.wanted if wanted is None else wanted)
            if self.roster.surplus() > 0:
                self.leave[:] = [None]
                # Once more: a worker that became idle after the first look, and before `leave` was set, sleeps.
                self._retire_idle()
            if wake_idle:
                self._idle.wake_all()
            if roster.written_off:  # another one may be written off now
                self._timer.kick(start=False)
        return change

    def _set_wanted(self, wanted: int) -> tuple[int, int]:
        """Set the number of workers wanted, and retire idle workers above it. Lock held."""
        roster = self.roster
        before, roster.wanted = roster.wanted, min(max(wanted, roster.min_workers), roster.max_workers)
        self._retire_idle()
        return before, roster.wanted

    def _retire_idle(self) -> None:
        """Retire the longest idle workers above the number wanted, so that warm ones stay. Lock held."""
        roster = self.roster
        surplus = roster.surplus()
        # Over a copy: a destructor that submits may interrupt this, and add a worker.
        owners: dict[Seat, Worker] = {worker.seat: worker for worker in roster.workers.copy()} if surplus > 0 else {}
        for seat in self._idle.seats() if surplus > 0 else ():
            worker = owners.get(seat)
            if surplus <= 0:
                break
            if worker is not None and worker not in roster.leaving and self._idle.wake(seat, to_leave=True):
                roster.leaving.add(worker)
                surplus -= 1

    # -- the end

    def reinit_after_fork(self) -> None:
        """Forget the workers, in the child of a fork: their threads belong to the parent."""
        self.leave[:] = [None]
        self.roster.reinit_after_fork()
