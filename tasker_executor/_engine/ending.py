"""The ending: how an executor stops accepting tasks, drains or is killed, closes, and is waited for.

**The end of submission.** A submitter queues its task and then looks at `Idle.line`. `close` replaces that by
a list that is always true (`CLOSED`). So the submitter takes the task back and refuses it, unless a worker
has it already. A worker ends when it finds the executor draining and, looking afterwards, the lanes empty. So
a task is either refused or run, without a lock.

**The kill.** No task starts once its token is set:

1. `close` puts an entry into `leave`.
2. Each worker looks there with its next task in hand, before it starts it, and puts the task back.
3. `close` sets the tokens, and cancels the queue.

**The close.** The executor closes when it drains, no task waits, no worker lives, and no thread has yet to
tell of a task. Each thread that makes one of these true calls `check_terminated`, so the last one closes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from typing import Any

from .._report import Logger, refusal
from .._sync import clock, lock_timeout, spend_stack, takes
from ..exceptions import ShutdownTimeout
from . import process
from .crew import Crew
from .current import current
from .gauges import worker_info
from .idle import CLOSED
from .lanes import Lane
from .nesting import Nesting
from .reserve import Reserve
from .sidecar import locks_task
from .state import State
from .stopping import KILLED
from .stops import Stops
from .threads import make_thread
from .workplace import Workplace

__all__ = ["Ending"]

logger = Logger("tasker_executor")

#: Seconds between two looks for threads that have died unnoticed, while `join` waits.
_GLANCE = 1.0


class Ending:
    """The end of one executor."""

    def __init__(
        self,
        place: Workplace,
        crew: Crew,
        stops: Stops,
        reserve: Reserve[Any] | None,
        nesting: Nesting,
        owner: process.Member,
    ) -> None:
        """Use `owner`, the engine, as the name of this executor for its threads and for the process."""
        self._name = place.settings.name
        self._place = place
        self._life = place.life
        self._crew = crew
        self._stops = stops
        self._roster = crew.roster
        self._reserve = reserve
        self._timer = place.timer
        self._nesting = nesting
        self._owner = owner
        #: Makes the error for a submission that is refused.
        self.refusal: Callable[[], Exception] = partial(refusal, f"executor {self._name!r} has been shut down")
        #: A token for each thread that pops tasks to fail or cancel them. It keeps the executor from closing. Added, by
        #: one call, before the thread pops.
        self._failing: set[object] = set()
        #: The last of these tokens that was discarded, or is about to be. Stored when the tasks that were popped
        #: and put back are in their lane. So a thread that finds the same one before and after its look at the
        #: lanes has missed none of them.
        self._failed: object = None
        #: The user's executor, while it lives.
        self.handle: weakref.ref[Any] | None = None

    # -- how it begins

    def close(self, *, cancel: bool = False, kill: bool = False) -> None:
        """Accept no more tasks, and drain.

        `cancel` cancels the queued tasks. `kill` also sets the tokens and aborts resources.
        """
        life, idle = self._life, self._place.idle
        with life.lock:
            before = life.state
            if kill and life.state < State.KILLED:
                life.state = State.KILLED
                self._crew.leave[:] = [None]  # no worker starts another task: set before the tokens, which tasks obey
            elif life.state < State.DRAINING:
                life.state = State.DRAINING
            # Not a call: Ctrl-C may come at the first step of a function, before it stores this.
            with idle._lock:
                idle.line = CLOSED
            handle = None if self.handle is None else self.handle()
            if handle is not None:  # `submit` and `run_now` refuse at once from now on
                handle._needs_care = True
                handle._open_reserve = None
            after = life.state
        self._crew.populate_or_retry()  # tasks may wait while no worker lives to run them
        life.changed.ring()
        if kill:
            life.killed.cancel(KILLED)
            self._place.runs.kill()
            self._stop_running()
        escaped: BaseException | None = None
        if cancel or kill:
            try:
                self.cancel_queue()
            except BaseException as error:  # raised after the rest is done
                escaped = error
                self._crew.populate_or_retry()  # a worker may have ended while a task that was put back was in hand
        idle.wake_all()
        self._place.admission.close()
        if after is not before and self._place.hub.hears("state_changed"):
            from ..observers import StateEvent

            self._place.hub.tell("state_changed", StateEvent(self._name, after.name.lower()))
        if self._reserve is not None:
            self._reserve.close()
        if self._timer.thread is not None:
            self._timer.kick()
        self._timer.start_if_wanted()
        self.check_terminated()
        if escaped is not None:
            raise escaped

    def close_broken(self) -> None:
        """Close because the initializer failed, as in the standard library, and fail all tasks."""
        message = "A thread initializer failed, the thread pool is not usable anymore"
        self.refusal = lambda: BrokenThreadPool(message)
        self.close()
        self.fail_queue(lambda _: BrokenThreadPool(message))

    def close_dropped(self) -> None:
        """Close because the user's last reference is gone. The garbage collector may call this anywhere."""
        # Nothing is left to do, and a thread that no longer exists may hold the lock.
        if process.exiting() or self._life.state is State.CLOSED:
            return
        if (self._reserve is not None and self._reserve.available) or self._place.hub.hears("state_changed"):
            # Hooks and observers must not run inside of the garbage collector. So they get a thread of
            # their own.
            try:
                make_thread(self.close, f"{self._place.settings.thread_name_prefix}_closer").start()
                return
            except RuntimeError:
                pass
        self.close()

    def refuse_at_exit(self) -> None:
        """Refuse new tasks because the interpreter exits, unless they are refused already."""
        if self._life.state is State.RUNNING:
            message = "cannot schedule new futures after interpreter shutdown"
            self.refusal = partial(refusal, f"the interpreter exits, and executor {self._name!r} with it", message)

    # -- what becomes of tasks and resources

    def cancel_queue(self) -> None:
        """Cancel the queued tasks. A task between two attempts gets the error of the last one.

        The tasks that no thread observes come first: see `_cancel_unobserved`. The others stay in their lane, as
        tombstones. So if Ctrl-C interrupts this, the remaining tasks wait as before.
        """
        escaped: BaseException | None = None
        if not self._place.hub.hears("task_finished"):
            try:
                self._cancel_unobserved()
            except BaseException as error:  # thrown in
                escaped = error
        for lane in self._place.lanes:
            for task in self._copy(lane):
                sidecar = task._sidecar
                last = None if sidecar is None else sidecar.error
                taken: list[object] = []
                try:
                    if last is None:
                        task.cancel()
                    else:
                        lane.withdraw(task, taken)
                        if taken:
                            task._fail_popped(last)
                except BaseException as error:  # raised by a done-callback, on the main thread; or thrown in
                    escaped = error
                    if taken and last is not None:
                        task._fail_popped(last)
        if escaped is not None:
            raise escaped

    @locks_task
    def _cancel_unobserved(self) -> None:
        """Pop and cancel the queued tasks that no thread observes.

        These need no sidecar, no tombstone and no callback: that takes a seventh of the time. A task that is in
        hand here can neither start nor be seen in its lane. So a token keeps the executor open, and the marks keep
        a signal handler on this thread from waiting for the end. No code of the user's runs but destructors.
        """
        token = object()
        try:
            self._failing.add(token)
            for lane in self._place.lanes:
                _cancel_lane(lane)
        finally:
            self._failed = token
            self._failing.discard(token)

    def _copy(self, lane: Lane) -> tuple[Any, ...]:
        """Return the tasks of a lane, in spite of workers that take tasks from it.

        Without the GIL, a copy fails if a worker takes a task while it is made. The copy of a long lane would
        fail until the workers have run most of the tasks. So each worker is asked to call `Crew.dismisses` with
        its next task in hand, and waits there for the lock.
        """
        with self._life.lock:
            self._crew.leave[:] = [None]
            lane.unpark()  # under the lock: `check_terminated` would miss a retry between both places
            return lane.snapshot()

    def tend_parked(self) -> None:
        """Wake a worker for a task that was parked, and is in its lane now; or cancel it, if no worker comes.

        1. A thread decides to let the task in. 2. `kill` sets the state, and cancels what is in the lanes; or
        the drain ends. 3. The first thread queues the task, and then looks at the state.
        """
        if self._life.state >= State.KILLED:
            self.cancel_queue()
            self.check_terminated()
        else:
            self._place.idle.pass_on()

    def fail_queue(self, make_error: Callable[[float], BaseException], before: float | None = None) -> None:
        """Pop the queued tasks, and fail each with ``make_error(seconds waited)``.

        With `before`, only those queued before that moment.
        """
        token = object()
        try:
            self._failing.add(token)
            for lane in self._place.lanes:
                lane.unpark()
                _fail_lane(lane, make_error, before)
        finally:
            self._failed = token
            self._failing.discard(token)
        # A worker that missed a task which was put back may have ended. While the executor drains, there is no
        # Room for the next call to find.
        self._crew.populate_or_retry()
        self._place.idle.pass_on()
        self.check_terminated()

    def _stop_running(self) -> None:
        """Stop all that runs: tasks and calls of ``run_now``."""
        targets, news = self._stops.stop_all()
        source = self._place.source
        hook = None if source is None else source.hooks.abort
        if hook is not None and self._reserve is not None:
            self._reserve.abort(hook, targets)
        for tell in news:  # observers are user code, and may take long
            tell()

    def destroy_resources(self) -> None:
        """Destroy the resources that are still in use, after a kill: see `ResourceExecutor.kill`."""
        if self._reserve is not None:
            workers = self._roster.workers.copy() | self._roster.written_off.copy()
            held = [(worker.holding, worker.name) for worker in workers]
            self._reserve.destroy_in_use([(holding, name) for holding, name in held if holding is not None])

    # -- the close

    def is_near(self) -> bool:
        """Return whether the executor drains, no worker lives, and it has yet to close."""
        with self._life.lock:
            return self._life.state >= State.DRAINING and not self._roster.workers and not self._life.terminated.is_open

    def check_terminated(self) -> None:
        """Close the executor if nothing is left to do: see "The close" in the module's docstring."""
        life, lanes, timer = self._life, self._place.lanes, self._timer
        with life.lock:
            failed = self._failed
            # Not `state is CLOSED`: if Ctrl-C comes after that store, the next caller finishes this method.
            if life.state < State.DRAINING or life.terminated.is_open or self._roster.workers:
                return
            if lanes.parked() or (lanes.look() and lanes.waiting()):  # tombstones may stay
                return
            # Looked at last: these are set before tasks are popped or settled. (A copy: that locks the set.)
            if self._failing.copy() or self._failed is not failed or timer.herald.busy:
                return
            first = life.state is not State.CLOSED
            life.state = State.CLOSED
        for thread in timer.threads():
            process.ending.add(thread)
        if timer.thread is not None:
            timer.kick()
        process.leave(self._owner)
        self._place.idle.forget_woken()
        life.terminated.open()
        lanes.detach()
        if first and self._place.hub.hears("state_changed"):
            from ..observers import StateEvent

            self._place.hub.tell("state_changed", StateEvent(self._name, "closed"))

    def join(self, timeout: float | None, *, daemons: bool = True) -> None:
        """Block until the executor has closed and its threads have ended. Raises ShutdownTimeout.

        Without `daemons`, calls of ``run_now`` on daemon threads are left out, as by the interpreter.

        Returns at once on a thread of the executor itself, which would wait for itself. So it does in a
        signal handler that interrupted its thread under a lock, since the workers need the lock to end.
        """
        if current.owner is self._owner or self._nesting.must_not_join():
            return
        deadline = None if timeout is None else clock() + timeout
        terminated = self._life.terminated
        done = terminated.is_open
        while not done and (deadline is None or clock() < deadline):
            done = terminated.wait(_GLANCE if deadline is None else min(_GLANCE, deadline - clock()))
            if not done:
                self._crew.bury()
                self.check_terminated()
        done = done and self._await_threads(deadline)
        if done and self._reserve is not None:
            done = self._reserve.wait_until_returned(deadline, daemons=daemons)
        if done and daemons:  # the interpreter does not wait for calls that nothing can end
            done = self._await_written_off(deadline) and self._await_threads(deadline)
        if not done:
            raise ShutdownTimeout(self._what_still_runs(timeout))

    def _await_threads(self, deadline: float | None) -> bool:
        """Wait for the threads that are about to end; return whether they have by `deadline`."""
        while True:
            with self._life.lock:
                threads = self._roster.ended.alive()
                threads += self._timer.threads()
            if not threads:
                return True
            remaining = None if deadline is None else max(0.0, deadline - clock())
            threads[0].join(None if remaining is None else lock_timeout(remaining))
            if threads[0].is_alive():
                return False

    def _await_written_off(self, deadline: float | None) -> bool:
        """Wait for the workers written off; return whether they have ended by `deadline`.

        Without a deadline, they have ``abort_grace`` seconds more. Workers that are left then are logged. That
        is no error: the caller has set no limit.
        """
        limit = clock() + self._place.settings.abort_grace if deadline is None else deadline
        while True:
            changed = self._life.changed.listen()  # before the look; rung when a worker has ended
            if not (written_off := self._roster.written_off.copy()):
                return True
            remaining = limit - clock()
            if remaining <= 0:
                if deadline is None:
                    names = ", ".join(sorted(worker.name for worker in written_off))
                    logger.warning(
                        "executor %r: shut down, but for workers that were written off, and whose calls have not returned: %s",
                        self._name,
                        names,
                        executor=self._name,
                    )
                return deadline is None
            changed.wait(min(remaining, _GLANCE))

    def _what_still_runs(self, timeout: float | None) -> str:
        """Return what keeps the executor from its end: the names of tasks, workers and calls."""
        workers = sorted(self._roster.workers.copy(), key=lambda worker: worker.index)
        infos = [worker_info(worker, self._roster.ending.get(worker)) for worker in workers]
        does = {"starting": "has been starting", "ending": "has been in on_destroy"}
        running = [
            f"{info.function} on {info.name} for {info.running_for:.3g} s" for info in infos if info.function is not None
        ]
        running += [f"{info.name} {does[info.state]} for {info.running_for:.3g} s" for info in infos if info.state in does]
        running += [f"{worker.name} was written off: its call has not returned" for worker in self._roster.written_off.copy()]
        running += [] if self._reserve is None else [f"run_now in thread {name}" for name in self._reserve.callers()]
        what = ", ".join(running) or f"{len(self._roster.workers)} workers that are starting or ending"
        return (
            f"executor {self._name!r} has not shut down within {timeout} s: still running: {what}; "
            f"{self._place.lanes.waiting()} tasks are queued; the drain goes on, kill() would cut it short"
        )

    def refuse_inherited(self) -> None:
        """Refuse every submission in the child of a fork."""
        message = (
            f"executor {self._name!r} was inherited through fork(): its threads and resources belong to the parent process; "
            f"make a new executor in this one"
        )
        self.refusal = lambda: RuntimeError(message)


@locks_task
def _cancel_lane(lane: Lane) -> None:
    """Pop the tasks that are in the lane now. Cancel those that no thread observes, and put the others back.

    If an error is thrown into this, the task in hand is cancelled or put back all the same.
    """
    spend_stack()  # or the end of the stack comes with a task in hand
    try:
        for task in takes(lane.popleft, times=len(lane)):  # for the steps see `_fail_lane`
            try:
                if task._sidecar is None and task._cancel_popped():
                    continue
                put_back, task = task, None  # no error comes between this and the append
                lane.append(put_back)
            except BaseException:  # thrown in
                if task is not None and not task._cancel_popped():
                    lane.append(task)
                raise
    except IndexError:  # another thread was quicker
        pass


def _fail_lane(lane: Lane, make_error: Callable[[float], BaseException], before: float | None) -> None:
    """Pop and fail the tasks that are in the lane now, or those queued before that moment.

    If an error is thrown into this, the task in hand fails with it.
    """
    try:
        # Each task is popped and stored in one step of the interpreter. So are the next two: the test, and
        # the `try`.
        for task in takes(lane.popleft, times=len(lane)):
            if before is not None and task._submitted > before:
                lane.appendleft(task)
                break
            try:
                task._fail_popped(make_error(clock() - task._submitted))
            except BaseException as thrown:  # thrown in
                task._fail_popped(thrown)
                raise
    except IndexError:  # another thread was quicker
        pass
