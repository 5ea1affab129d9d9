"""The hallway of the engine: it connects the rooms, and submitters and workers enter here.

The executor object that the user holds is a handle, and holds the core. Workers and the timer hold the core
and never the handle. So a dropped executor is collected, and its core drains and ends.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from .._hub import ObserverHub
from .._report import Logger
from .._sync import Latch, Permit, clock
from . import process
from .admission import Admission
from .crew import Crew
from .deadlines import Deadlines
from .deadlock import WaitInside, WaitsInside
from .ending import Ending
from .gauges import Gauges
from .herald import Herald
from .idle import CLOSED, ENOUGH, Idle
from .lanes import Lanes
from .limits import Limits
from .nesting import Nesting
from .notices import Notices
from .recorder import Recorder
from .recovery import Recovery
from .reserve import Reserve
from .resources import End, NoResource, ResourceSource, UnfitResource
from .roster import Roster
from .runs import Runs
from .scaler import Scaler
from .settings import Settings
from .slow import Slow
from .state import Lifecycle, State
from .stopping import Reason
from .stops import Stops
from .task import WITHDRAWN, Task
from .threads import CannotStart
from .timer import Timer
from .watch import Watch
from .worker import Worker
from .workplace import Workplace

__all__ = ["Core"]

logger = Logger("tasker_executor")


class Core:
    """The engine of one executor: see the module's docstring. All attributes are private to this package."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.name
        self.propagate_context = settings.propagate_context
        self.life = life = Lifecycle()
        self.hub = ObserverHub(settings.observers)
        self.notices = Notices(self.name, self.hub)
        self.recorder = Recorder()
        self.lanes = Lanes(self, self._task_settled)
        self.source: ResourceSource[Any] | None = None
        self.reserve: Reserve[Any] | None = None
        if settings.hooks is not None:
            self.source = ResourceSource(self.name, settings.hooks, self.recorder, self.hub)
            size, retries = settings.resource_pool_size, settings.max_retries
            self.reserve = Reserve(self.source, size, self, life.killed, retries, self.refuse)
        self.idle = Idle(self.wake_if_waiting)
        herald = Herald(settings, self.hub, self, lambda: self.ending.is_near(), lambda: self.ending.check_terminated())
        self.timer = Timer(settings, life, herald, self)
        hook = None if self.source is None else self.source.hooks.abort
        self.runs = Runs(settings, life, self.timer, hook, list if self.reserve is None else self.reserve.runs)
        self.timer.farewell = self.runs.outlive_timer
        waits: dict[int, WaitInside] = {}
        self.limits = Limits(settings, self.timer)
        self.admission = Admission(
            settings.max_queued, lambda: self.crew.overflow(), self._may_wait_at_the_door, lambda: self.ending.tend_parked()
        )
        place = Workplace(
            settings=settings,
            life=life,
            idle=self.idle,
            lanes=self.lanes,
            admission=self.admission,
            source=self.source,
            recorder=self.recorder,
            hub=self.hub,
            timer=self.timer,
            limits=self.limits,
            runs=self.runs,
            leave=[],
        )
        self.roster = Roster(settings, waits)
        self.crew = Crew(place, self.roster, lambda index: Worker(place, self, index))
        self.nesting = Nesting(self._locks)
        self.stops = Stops(place, self.crew, self.notices, self._made_room)
        self.ending = Ending(place, self.crew, self.stops, self.reserve, self.nesting, self)
        self.deadlock = WaitsInside(self.name, life, self.crew, waits)
        self.recovery = Recovery(place, self.crew, self.ending.fail_queue)
        self.gauges = Gauges(place, self.roster, self.crew.outage, self.reserve, self.stops)
        self.deadlines = Deadlines(self.timer, self.lanes)
        self.watch = Watch(self.limits, self.roster, self.stops, Slow(settings))
        self.scaler = Scaler(place, self.gauges, self.want)
        self.timer.duties = (
            herald.settling(self.deadlines.expire),
            herald.settling(self.recovery.tend),
            herald.settling(self.watch.tend),
            self.runs.expire,
            self.scaler.tick,
        )

    def start(self, handle: object) -> None:
        """Make the reserve and start the base workers. If that raises, nothing is left behind."""
        process.enter(self)
        self.ending.handle = weakref.ref(handle, self._handle_gone)
        try:
            if process.exiting():
                self.refuse_at_exit()
                self.close()
                return
            if self.reserve is not None:
                self.reserve.fill()
            self.crew.populate()
        except BaseException:
            self.close()
            raise

    def refuse(self) -> Exception:
        """Return the error for a submission that is refused."""
        return self.ending.refusal()

    # -- submission, the slow half

    def wake(self, task: Task[Any]) -> None:
        """Wake a worker for `task`, which was queued; or take the task back if the executor accepts no more.

        Raises RuntimeError if the task was refused; then it does not run.
        """
        idle = self.idle
        if idle.line is CLOSED:
            self._take_back(task)
            return
        try:
            if not (idle.enough_on_their_way() and idle.hold_back()):
                self._wake_top()
        except CannotStart:
            # If other workers live, one of them runs the task.
            if not self.roster.workers and task._settle(WITHDRAWN):
                self.wake_if_waiting()  # other submitters may have relied on the worker that did not start
                raise
            logger.warning("executor %r: cannot start another worker", self.name, exc_info=True, executor=self.name)
        except BaseException:
            # Ctrl-C, a time limit or the end of the stack comes here. The caller gets no future, so the task
            # must not run. The steps without a frame in Python come first: perhaps none is left.
            with idle._lock:
                if idle.line is ENOUGH:
                    idle.line = idle.stack
            try:
                task._settle(WITHDRAWN)
            finally:
                self.scaler.resume()  # the policy's alarm may have been popped without being released
                self.wake_if_waiting()  # other submitters may have relied on the wake-up that this call did not make
            raise

    def _wake_top(self) -> None:
        """Wake the worker on top of the idle stack; start one if there is none. Raises CannotStart."""
        if self.idle.wake_top():
            self.crew.populate()
        elif self.scaler.paused:  # the policy's alarm lies further down
            self.scaler.resume()

    def _take_back(self, task: Task[Any]) -> None:
        """Take the task back and raise, unless a worker was quicker and has it."""
        if task._settle(WITHDRAWN) or task.cancel():
            self.ending.check_terminated()
            raise self.refuse()

    def wake_if_waiting(self) -> None:
        """Wake a worker if tasks wait: a woken worker took none, or tasks came back to their lanes.

        If no new worker is to come for the retries that are parked, a worker that there is takes one, and ends.
        """
        if self.lanes.parked() and not self.crew.supply.expects_worker():
            self.unpark()
        if self.lanes.look():
            try:
                self._wake_top()
            except CannotStart as error:
                self.crew.retry_later(error)

    def _may_wait_at_the_door(self) -> bool:
        """Return whether this thread may block: not in a signal handler that must return first."""
        may_block = self.nesting.of_submission()
        if may_block:
            # The interrupted call may have queued a task, or taken Room off the stack, and got no further.
            self.crew.populate_or_retry()
            self.timer.start_if_wanted()
            self.wake_if_waiting()
        return may_block is not False

    def _task_settled(self, task: Task[Any]) -> None:
        """Let submissions in, and tell observers, after a task has ended without being run."""
        if self.admission.blocked:
            self.admission.refill()
        sidecar = task._sidecar
        if self.hub.hears("task_finished") and (sidecar is None or (sidecar.verdict is not WITHDRAWN and sidecar.is_news())):
            from ..observers import TaskEvent

            error = None if task.cancelled() else task._exception
            waited = max(0.0, clock() - task._submitted)
            outcome = "cancelled" if error is None else "failed"
            event = TaskEvent(self.name, id(task), "", task._lane.name, 0, None, waited, 0.0, outcome, error)
            self.hub.tell("task_finished", event, task)
        if self.life.state >= State.DRAINING:  # afterwards: observers hear of the executor's end last
            self.ending.check_terminated()

    def stop(self, task: Task[Any]) -> bool:
        """Ask a task that runs to stop; return whether it was not over yet."""
        return self.runs.stop(task) or self.stops.stop(task, Reason.STOPPED)

    def wait_inside(self, task: Task[Any], permit: Permit, timeout: float | None) -> bool:
        """Wait for a task of this executor on one of its own threads: see `WaitsInside.wait`."""
        return self.deadlock.wait(task, permit, timeout)

    # -- what workers report, and ask: see `Employer`

    def worker_ready(self, worker: Worker, *, checked: bool) -> bool:
        """Count a worker that owns its resource; return False if that must pass its check first."""
        in_doubt = not checked and self.source is not None and self.source.hooks.check is not None
        if not self.crew.note_ready(worker, in_doubt=in_doubt):
            return False
        self.life.changed.ring()
        self.timer.start_if_wanted()
        if self.admission.blocked:
            self.admission.refill()
        self.notices.worker_started(worker)
        return True

    def resource_unfit(self, worker: Worker, fault: UnfitResource) -> None:
        """Report a resource that failed its first check; another worker takes the tasks that wait."""
        if self.crew.note_unfit(worker, fault):
            self.recovery.report(worker.name, fault)
        self.wake_if_waiting()

    def resource_given_up(self, worker: Worker) -> None:
        """Note that a worker is about to destroy its resource."""
        self.crew.note_giving_up(worker)

    def task_came_back(self, worker: Worker) -> None:
        """Make another worker take a task that was put back into its lane, or a new worker one that was parked."""
        if worker.yields:
            self.retry_parked(worker)
        elif self.life.state >= State.KILLED:
            self.ending.cancel_queue()  # the killer may have looked at the lane before
        else:
            self.wake_if_waiting()

    def retry_parked(self, worker: Worker) -> bool:
        """Start a worker for a retry that was parked; return False if this worker must make room for it.

        The retry was parked before. So a worker that is expected here finds it, at its beginning or at its end.
        """
        if self.life.state >= State.KILLED:
            self.ending.cancel_queue()  # the killer may have looked at the lane before
            return True
        self.crew.populate_or_retry()
        with self.life.lock:
            if not self.crew.supply.expects_worker():
                worker.yields = True
                return False
        self.timer.kick()  # the worker that is expected may not come: see `Recovery.try_again`
        return True

    def unpark(self) -> None:
        """Move the parked retries to the heads of their lanes."""
        if self.lanes.parked():
            with self.life.lock:  # no reader of `stats` sees a retry in both places
                self.lanes.unpark()

    def dismisses(self, worker: Worker) -> End | None:
        """Return why a worker must go; None if it may stay."""
        return self.crew.dismisses(worker)

    def wrote_off(self, worker: Worker) -> bool:
        """Return whether a worker whose task was stopped has been written off."""
        if (stop := worker.stopped) is not None and stop.unasked:
            self.stops.count(stop)
        return self.crew.wrote_off(worker)

    def may_retire(self, worker: Worker) -> bool:
        """Return whether an idle worker may go."""
        return self.crew.may_retire(worker)

    def worker_ended(self, worker: Worker, end: End, error: BaseException | None) -> None:
        """Walk the exit path of a worker, on its thread, after its resource is gone.

        It alone decides whether a successor starts. If an error is thrown into it, it is called again.
        """
        self.notices.worker_ended(worker, end, error)  # before observers hear of a successor of the same name
        failed = self.crew.note_end(worker, end, error)
        self.crew.populate_or_retry()
        self.life.changed.ring()
        self.timer.start_if_wanted()
        self.notices.log_end(worker, end, error)
        self.idle.note_arrival()  # submitters must not wait for this worker to take its permit
        if self.crew.broken:
            self.ending.close_broken()
        elif self.life.state >= State.KILLED:
            self.ending.cancel_queue()  # a task may have come back after the killer looked
        if failed:
            self.recovery.report(worker.name, error)
        if end is End.CREATION_FAILED and isinstance(error, NoResource):  # a mistake, not an outage: waiting does not help
            self.recovery.fail_queue(error)
        if self.admission.blocked:  # a place may be free now, even if no successor is needed yet
            self.admission.refill()
        self.wake_if_waiting()
        self.deadlock.end_a_hopeless_wait()
        self.ending.check_terminated()
        worker.over = True

    # -- what the executor and the scaler wish

    def _made_room(self) -> None:
        """Start a successor for a worker that was written off."""
        self.crew.populate_or_retry()
        self.timer.start_if_wanted()
        if self.admission.blocked:
            self.admission.refill()
        self.wake_if_waiting()
        self.deadlock.end_a_hopeless_wait()
        self.ending.check_terminated()

    def want(self, wanted: int, reason: str) -> None:
        """Set the number of workers wanted, within the bounds."""
        self._follow(*self.crew.want(wanted), reason)

    def resize(self, min_workers: int, max_workers: int) -> None:
        """Change the bounds. Surplus workers leave: idle ones at once, busy ones after their task."""
        wanted = max_workers if self.settings.policy is None else None
        wake_idle = self.settings.idle_timeout is not None
        change = self.crew.resize(min_workers, max_workers, wanted=wanted, wake_idle=wake_idle)
        self._follow(*change, f"resize to {min_workers}..{max_workers}")

    def refresh(self) -> None:
        """Replace every resource, between two tasks."""
        if self.source is None or self.reserve is None:
            return
        self.source.refresh()
        self.crew.refresh()
        self.reserve.refresh()

    def _follow(self, before: int, after: int, reason: str) -> None:
        """Act on a new number of workers wanted: start workers, let submissions in, tell observers."""
        self.crew.populate_or_retry()
        self.timer.start_if_wanted()
        self.wake_if_waiting()
        self.deadlock.end_a_hopeless_wait()
        if self.admission.blocked:
            self.admission.refill()
        if after != before:
            self.notices.scaled(before, after, reason)

    def wait_ready(self, timeout: float) -> Exception | None:
        """Block until the base workers are ready, at least one; return None, or the error to raise.

        Without a base this starts a worker, unless there is one.
        """
        begun = clock()
        crew, roster, life = self.crew, self.roster, self.life
        change: Latch | None = None
        token = object()
        try:
            roster.awaited.add(token)
            crew.populate_or_retry()
            self.timer.start_if_wanted()
            while True:
                if life.state is not State.RUNNING:
                    return self.refuse()
                if roster.ready() >= roster.least():
                    return None
                failure = crew.outage.error
                remaining = begun + timeout - clock()
                if isinstance(failure, NoResource) or remaining <= 0:
                    return self.recovery.error(failure, clock() - begun)
                if change is None:
                    change = life.changed.listen()  # look once more before the wait
                else:
                    change.wait(remaining)
                    change = None
        finally:
            roster.awaited.discard(token)

    # -- the end, as the process and the garbage collector see it

    def close(self) -> None:
        """Accept no more tasks, and drain."""
        self.ending.close()

    def refuse_at_exit(self) -> None:
        """Refuse new tasks because the interpreter exits."""
        self.ending.refuse_at_exit()

    def join_at_exit(self) -> None:
        """Block until the executor has ended, unless it was killed; for ``run_now`` see `Ending.join`."""
        if self.life.state is not State.KILLED:
            self.ending.join(None, daemons=False)

    def _handle_gone(self, _: object, exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if not exiting():  # the modules may be empty then; without the GIL they are
            self.ending.close_dropped()

    def _locks(self) -> list[Any]:
        """Return the locks that workers need, those of tasks left out."""
        locks: list[Any] = [self.life.lock, self.idle._lock, self.recorder.lock, self.admission._lock, self.timer._lock]
        locks += [self.deadlines._lock, *(lane._lock for lane in self.lanes)]
        if self.source is not None:
            locks.append(self.source.lock)
        return locks

    def reinit_after_fork(self) -> None:
        """Give up everything, in the child of a fork: threads, tasks and resources belong to the parent."""
        for room in (self.life, self.idle, *self.lanes, self.recorder, self.admission):
            room.reinit_after_fork()
        if self.source is not None and self.reserve is not None:
            self.source.reinit_after_fork()
            self.reserve.reinit_after_fork()
        self.hub.silence()
        self.ending.refuse_inherited()
        lost = [worker.task for worker in self.roster.workers if worker.task is not None]
        lost += self.admission.forget_parked()
        for lane in self.lanes:
            lane.unpark()
            lost += lane
            lane.clear()
            lane.tombstones = 0
        for task in lost:
            if not task.done():
                task._fail_after_fork(self.refuse())
        self.crew.reinit_after_fork()
        self.deadlock.reinit_after_fork()
        self.timer.reinit_after_fork()
        self.deadlines.reinit_after_fork()
        self.stops.reinit_after_fork()
        self.runs.reinit_after_fork()
        self.life.terminated.open()
        self.lanes.detach()
