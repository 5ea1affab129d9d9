"""The supervisor: the one thread of an executor that deals with time.

It probes a failing factory, ends tasks whose time is up, and asks the scaling policy. Idle retirement needs no clock here: an
idle worker sleeps no longer than it may stay. The thread starts when there is first something to wait for, sleeps until the
next moment that matters (without a limit, if nothing does), and ends with the executor.

**How it sleeps.** On a plain lock, which a kick releases. A kick may come from a signal handler or a destructor, in the middle
of anything. It is never lost: it finds the lock taken and releases it, or it finds it released and the supervisor about to
look. Not on a queue: before Python 3.13, `SimpleQueue.get` sleeps for ever if its time runs out while it computes the rest.

**No user code runs here but the policy's.** A done-callback, an observer or a log handler may take its time, or wait for a task
of this executor. The supervisor settles a task and wakes the threads that wait for it. It leaves all else that follows to the
`Herald`, a thread that lives as long as there is something to tell. The policy is asked here, since its answer is the next
decision: a policy that raises costs its answer, and one that hangs stops the clock of its executor.

**How it starts.** On the thread that kicks it first, under no lock. The core, which kicks it under its lock, starts it
afterwards (`start_if_wanted`). A signal handler or a destructor that comes by under that lock leaves it to another thread.
"""

from __future__ import annotations

import _thread
import heapq
import itertools
import threading
import weakref
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._checks import check_seconds, whole
from .._report import Logger, aside, safe_repr
from .._sync import clock, lock_timeout
from ..exceptions import TaskExpired
from ..policies import ScalingPolicy
from .current import current
from .state import State
from .threads import CannotStart, make_thread, start_thread

if TYPE_CHECKING:
    from .core import Core
    from .task import TaskFuture

__all__ = ["Alarm", "Herald", "Supervisor"]

logger = Logger("tasker_executor")

#: Seconds until the supervisor looks again after a mistake of ours, which it may make again. A kick ends this pause.
AFTER_A_STUMBLE = 1.0


class Alarm:
    """Lies on the idle stack while the policy's tick pauses. The next submission pops it, and wakes the tick by that."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def release(self) -> None:
        """Resume the tick, and pass the wake-up on to whom the submitter meant."""
        self._supervisor.resume()
        self._supervisor.core.wake_if_waiting()


class Herald:
    """Tells callbacks, observers and log handlers what the supervisor did, on a thread that lives while there is news."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.thread: threading.Thread | None = None  # the last one that began to live
        self._news: deque[Callable[[], object]] = deque()
        # Guards `_serving`: a thread that ends and a supervisor that adds to the news must not miss each other. A leaf.
        self._lock = threading.RLock()
        self._serving = False  # is there a thread that will take what is in `_news`?
        self._held = False  # is the supervisor about to add to them?

    @property
    def busy(self) -> bool:
        """Is there something to tell, or may there be in a moment? The executor does not close before that is told."""
        return self._held or self._serving or bool(self._news)

    def hold(self) -> None:
        """The supervisor begins to settle tasks."""
        self._held = True

    def let_go(self) -> None:
        """The supervisor has settled what it had to: tell of it. On its thread, under no lock."""
        core = self._core
        self._held = False
        with core.lock:  # who else looked whether this is the end either found `_held` set, or sees the same as we
            last = core.state >= State.DRAINING and not core.workers and not core.terminated.is_open
        if last and not self.busy and not core.hub.hears("state_changed"):
            core._check_terminated()
        elif last:
            self._news.append(int)  # nothing, but after the news the herald looks whether this is the end, and tells of it
        self.tell()

    def tell(self) -> None:
        """See that a thread takes what is in the news. On the supervisor's thread, under no lock."""
        with self._lock:
            if self._serving or not self._news:
                return
            self._serving = True
        birth = allocate_lock()
        try:
            thread = make_thread(partial(self._main, birth), f"{self._core.thread_name_prefix}_herald")
            start_thread(thread)
            self.thread = thread  # if that has not come to it yet: who waits for the supervisor waits for this one next
        except CannotStart:
            self._run()  # late is better than never, and time can wait better than those who are to be told
        except BaseException:  # thrown in from outside
            if birth.acquire(False):
                self._serving = False
            raise

    def _main(self, birth: LockType) -> None:
        if birth.acquire(False):
            self.thread = threading.current_thread()
            current.owner = self._core  # it never waits at the door, nor for the end of the executor
            self._run()

    def _run(self) -> None:
        before, aside.post = aside.post, None
        try:
            while True:
                with self._lock:
                    if not self._news:
                        self._serving = False
                        break
                    news = self._news.popleft()
                try:
                    news()
                except BaseException:  # thrown in
                    name = self._core.name
                    logger.exception("executor %r: an error was thrown into the thread that calls back", name, executor=name)
                del news  # under no lock: it may be the last that refers to a future
            self._core._check_terminated()
        finally:
            aside.post = before

    def post(self, news: Callable[[], object]) -> None:
        """Add to the news. On the supervisor's thread, which calls `tell` when it holds no lock."""
        self._news.append(news)

    def reinit_after_fork(self) -> None:
        self._lock = threading.RLock()
        self._news.clear()
        self._serving = self._held = False
        self.thread = None


class Supervisor:
    """See the module's docstring."""

    def __init__(self, core: Core, policy: ScalingPolicy | None) -> None:
        self.core = core
        self.policy = policy
        self.herald = Herald(core)
        self.thread: threading.Thread | None = None  # once it has begun to live
        #: Taken by the thread when it begins to live, or by its starter, to disown it. None: there is no thread, nor will be.
        self._birth: LockType | None = None
        self.wanted = False  # is there something to wait for, and nobody to do it?
        self._park = allocate_lock()
        self._park.acquire()
        self._deadlines: list[tuple[float, int, weakref.ref[TaskFuture[Any]]]] = []
        self._numbers = itertools.count()
        self._forgetting = False
        self._lock = threading.RLock()  # guards _deadlines and _birth; a leaf
        self._next_tick: float | None = None  # None: the tick pauses
        self.paused = False  # set while it pauses: a task that wakes a worker above the alarm resumes it, too
        self._policy_failed = False
        self._alarm = Alarm(self)
        if policy is not None:
            self._interval = check_seconds("policy.interval", policy.interval, above_zero=True)
            self._pause()

    # -- called from other threads

    def kick(self, *, start: bool = True) -> None:
        """Look again what is due. Never blocks.

        Starts the thread if there is none yet. With ``start=False`` that is left to `start_if_wanted`, which the caller, or the
        worker that it starts, calls as soon as it holds no lock.
        """
        try:
            self._park.release()
        except RuntimeError:  # it was kicked before, and has yet to look
            pass
        if self._birth is not None or self.core.state >= State.CLOSED:
            return
        self.wanted = True
        lock: Any = self.core.lock
        if start and lock._is_owned():  # private, but Condition relies on it
            # A signal handler, or a destructor, inside of the core. A bare thread starts without being waited for.
            try:
                _thread.start_new_thread(self.start, (), {"quiet": True})
            except RuntimeError as error:  # the next kick tries again
                if type(error) is not RuntimeError:
                    raise
        elif start:
            self.start()

    def start_if_wanted(self) -> None:
        """Start the thread if it was kicked under a lock. Under no lock."""
        if self.wanted:
            self.start()

    def start(self, *, quiet: bool = False) -> None:
        """Start the thread, unless it is there. Under no lock."""
        birth = allocate_lock()
        try:
            with self._lock:
                if self._birth is not None or self.core.state >= State.CLOSED:
                    return
                self._birth = birth
            start_thread(make_thread(partial(self._main, birth), f"{self.core.thread_name_prefix}_supervisor"))
            self.wanted = False
        except BaseException as error:
            if birth.acquire(False) and self._birth is birth:  # it has not begun to live, and never will
                self._birth = None
                self.wanted = True
            if not isinstance(error, CannotStart):
                raise
            if not quiet:
                logger.exception("executor %r: cannot start the supervisor thread", self.core.name, executor=self.core.name)

    def threads(self) -> list[threading.Thread]:
        """Return the threads that the end of the executor waits for: its own and the herald's."""
        threads = self.thread, self.herald.thread
        return [thread for thread in threads if thread is not None and thread.is_alive()]

    def watch(self, future: TaskFuture[Any], deadline: float) -> None:
        """End `future` with TaskExpired if it has not started by `deadline`."""
        held: list[Any] = []  # futures, until the lock is free: the last reference to one may run a destructor
        with self._lock:
            number = next(self._numbers)
            many = len(self._deadlines)
            if many > 64 and many > 2 * self.core.lanes.waiting() and not self._forgetting:
                self._forget_the_done(number, held)
            heapq.heappush(self._deadlines, (deadline, number, weakref.ref(future)))
            first = self._deadlines[0][0]
        # An overdue first one: the supervisor should be awake, and is told so again. And it may have failed to start for it.
        if first >= deadline or first < future._submitted or self._birth is None:
            self.kick()

    def _forget_the_done(self, number: int, held: list[Any]) -> None:
        """Drop the deadlines of tasks that are done. Lock held. `number` is greater than those of all entries there are."""
        self._forgetting = True
        try:
            before = self._deadlines
            pairs = [(entry, entry[2]()) for entry in before[:]]
            held += pairs
            kept = [entry for entry, future in pairs if future is not None and not future.done()]
            heapq.heapify(kept)
            self._deadlines = kept
            for entry in before[:]:
                if entry[1] > number:  # a signal handler, or a destructor, came in between
                    heapq.heappush(self._deadlines, entry)
        finally:
            self._forgetting = False

    def resume(self) -> None:
        """The tick's pause is over."""
        if self._next_tick is None and self.policy is not None and self.core.state is State.RUNNING:
            self._next_tick = clock() + self._interval
            self.paused = False
            self.kick()

    # -- the thread

    def _main(self, birth: LockType) -> None:
        if not birth.acquire(False):  # the starter was interrupted, and has disowned this thread
            return
        self.thread = threading.current_thread()
        current.owner = self.core
        aside.post = self.herald.post
        while self.core.state < State.CLOSED:
            try:
                due = self._turn()
                self.herald.tell()
                self._park.acquire(True, lock_timeout(None if due is None else due - clock()))
            except BaseException:
                logger.exception("executor %r: the supervisor stumbled and goes on", self.core.name, executor=self.core.name)
                self.herald.tell()
                self._park.acquire(True, AFTER_A_STUMBLE)
        self.herald.tell()

    def _turn(self) -> float | None:
        """Do what is due; return when something is due next."""
        now = clock()
        self.herald.hold()
        try:
            dues = [self._expire(now), self.core.fail_starved(now)]
        finally:
            self.herald.let_go()
        dues.append(self.core.tend_creation(now))
        self.herald.tell()  # before the policy is asked, which may take its time
        dues.append(self._tick(now))
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
            self.paused = False
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
        self.paused = True
        if self._alarm not in self.core.idle_stack:
            self.core.idle_stack.append(self._alarm)
        if self.core.lanes.look():  # it came before the alarm was set
            self.resume()

    def reinit_after_fork(self) -> None:
        self._lock = threading.RLock()
        self._park = allocate_lock()
        self._park.acquire()
        self._birth = self.thread = None
        self.herald.reinit_after_fork()
