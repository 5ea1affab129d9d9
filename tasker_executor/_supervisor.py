"""The supervisor: the one thread of an executor that deals with time.

It probes a failing factory, ends tasks whose time is up, and asks the scaling policy. Idle retirement needs no clock here: an
idle worker sleeps no longer than it may stay. The thread starts when there is first something to wait for, sleeps until the
next moment that matters (without a limit, if nothing does), and ends with the executor.

It never runs under a lock of the executor, and it is woken through a `SimpleQueue`, whose `put` may be interrupted by a signal
handler or a destructor that puts as well.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
import weakref
from contextvars import Context
from typing import TYPE_CHECKING, Any

from ._checks import check_seconds, whole
from ._current import current
from ._report import Logger, safe_repr
from ._types import DAEMON, State, clock, lock_timeout
from .exceptions import TaskExpired
from .policies import ScalingPolicy

if TYPE_CHECKING:
    from ._core import Core
    from ._work_item import TaskFuture

__all__ = ["Alarm", "Supervisor"]

logger = Logger(__name__)


class Alarm:
    """Lies on the idle stack while the policy's tick pauses. The next submission pops it, and wakes the tick by that."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def release(self) -> None:
        """Resume the tick, and pass the wake-up on to whom the submitter meant."""
        self._supervisor.resume()
        self._supervisor.core.wake_if_waiting()


class Supervisor:
    """See the module's docstring."""

    def __init__(self, core: Core, policy: ScalingPolicy | None) -> None:
        self.core = core
        self.policy = policy
        self.thread: threading.Thread | None = None
        self._mail: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._deadlines: list[tuple[float, int, weakref.ref[TaskFuture[Any]]]] = []
        self._numbers = itertools.count()
        self._lock = threading.RLock()  # guards _deadlines and the start of the thread; a leaf
        self._next_tick: float | None = None  # None: the tick pauses
        self._policy_failed = False
        self._alarm = Alarm(self)
        if policy is not None:
            self._interval = check_seconds("policy.interval", policy.interval, above_zero=True)
            self._pause()

    # -- called from other threads

    def kick(self) -> None:
        """Look again what is due. Starts the thread if there is none yet."""
        with self._lock:
            if self.thread is None and self.core.state < State.CLOSED:
                self._start()
        self._mail.put(None)

    def _start(self) -> None:
        thread = threading.Thread(
            target=Context().run,
            args=(self._run,),
            name=f"{self.core.thread_name_prefix}_supervisor",
            daemon=DAEMON,
        )
        self.thread = thread
        try:
            thread.start()
        except Exception:
            self.thread = None
            logger.exception("executor %r: cannot start the supervisor thread", self.core.name, executor=self.core.name)
        except BaseException:
            if thread.ident is None:
                self.thread = None
            raise

    def watch(self, future: TaskFuture[Any], deadline: float) -> None:
        """End `future` with TaskExpired if it has not started by `deadline`."""
        with self._lock:
            if len(self._deadlines) > 64 and len(self._deadlines) > 2 * self.core.lanes.waiting():
                self._deadlines = [entry for entry in self._deadlines if (f := entry[2]()) is not None and not f.done()]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (deadline, next(self._numbers), weakref.ref(future)))
            first = self._deadlines[0][0] == deadline
        if first or self.thread is None:  # it may have failed to start for the one that is first
            self.kick()

    def resume(self) -> None:
        """The tick's pause is over."""
        if self._next_tick is None and self.policy is not None and self.core.state is State.RUNNING:
            self._next_tick = clock() + self._interval
            self.kick()

    # -- the thread

    def _run(self) -> None:
        current.owner = self.core
        while self.core.state < State.CLOSED:
            try:
                due = self._turn()
                self._mail.get(timeout=None if due is None else lock_timeout(due - clock()))
                while not self._mail.empty():
                    self._mail.get_nowait()
            except queue.Empty:
                pass
            except BaseException:
                logger.exception("executor %r: the supervisor stumbled and goes on", self.core.name, executor=self.core.name)

    def _turn(self) -> float | None:
        """Do what is due; return when something is due next."""
        now = clock()
        dues = [self._expire(now), self.core.fail_starved(now), self.core.tend_creation(now), self._tick(now)]
        return min((due for due in dues if due is not None), default=None)

    def _expire(self, now: float) -> float | None:
        """End the tasks that have not started in time."""
        while True:
            with self._lock:
                if not self._deadlines:
                    return None
                deadline, _, reference = self._deadlines[0]
                if deadline > now:
                    return deadline
                heapq.heappop(self._deadlines)
            future = reference()
            if future is not None:
                waited = now - future._submitted
                future._settle(TaskExpired(f"the task had not started {waited:.3g} s after it was submitted, and was not run"))

    def _tick(self, now: float) -> float | None:
        """Ask the policy, if it is time."""
        policy, core = self.policy, self.core
        if policy is None or core.state >= State.KILLED:
            return None
        if self._next_tick is None:
            if core.at_rest():
                return None
            self._next_tick = now + self._interval  # whoever popped the alarm was interrupted before it rang
        if now < self._next_tick:
            return self._next_tick
        load = core.sample()
        self._next_tick = now + self._interval
        try:
            self._interval = check_seconds("policy.interval", policy.interval, above_zero=True)
            wanted = whole(answer := policy.target(load))
            if wanted is None:
                raise TypeError(f"{safe_repr(policy)} answered {safe_repr(answer)}, which is no number of workers")
            reason = safe_repr(policy)
            self._policy_failed = False
        except BaseException:
            if not self._policy_failed:
                ids = {"executor": core.name, "policy": type(policy).__name__}
                name = type(policy).__name__
                logger.exception("executor %r: policy %s raised; the last target stands", core.name, name, **ids)
            self._policy_failed = True
        else:
            core.want(wanted, reason)
        if load.busy == 0 and load.queued == 0 and core.at_rest():
            self._pause()
            return None
        return self._next_tick

    def _pause(self) -> None:
        """Stop ticking until the next submission."""
        self._next_tick = None
        if self._alarm not in self.core.idle_stack:
            self.core.idle_stack.append(self._alarm)
        if self.core.lanes.look():  # it came before the alarm was set
            self.resume()
