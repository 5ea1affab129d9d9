"""The timer: the one thread of an executor that waits for a time.

It runs *duties*. A duty is given the time, does what is due, and returns the time when something is due next,
or None. The timer runs all duties in their order, and sleeps until the earliest of these times; without a
limit, if there is none. The thread starts with the first kick, and ends with the executor. Idle retirement
needs no duty: an idle worker itself sleeps no longer than it may stay.

**How it sleeps.** On a plain lock, which a kick releases. A signal handler or a destructor may kick at any
point of the code. No kick is lost: the kick finds the lock taken and releases it, or it finds the lock
released, and then the timer is about to look. A queue would not do: before Python 3.13, `SimpleQueue.get`
sleeps for ever if its time runs out while it computes the rest.

**One duty alone runs user code**, the scaler's, which asks the policy: the answer is the next decision. A
policy that raises loses its answer, and a policy that hangs stops all duties of its executor. A
done-callback, an observer or a log handler may take long, or may wait for a task of this executor. So the
timer leaves all these calls to the `Herald`: after each duty, and so before the policy is asked.

**How it starts.** On the thread that kicks it first, under no lock. The core kicks it under the core's lock,
and starts it afterwards (`start_if_wanted`). A signal handler or a destructor may interrupt a thread that
holds this lock. Its kick has another thread start the timer.
"""

from __future__ import annotations

import _thread
import threading
from _thread import LockType, allocate_lock
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .._report import Logger, aside
from .._sync import clock, lock_timeout
from .current import current
from .herald import Duty, Herald
from .settings import Settings
from .state import Lifecycle, State
from .threads import CannotStart, make_thread, start_thread

__all__ = ["Timer"]

logger = Logger("tasker_executor")

#: Seconds until the timer runs its duties again after a mistake of ours. A kick ends this pause.
AFTER_A_STUMBLE = 1.0


class Timer:
    """Runs the duties of an executor, on one thread."""

    def __init__(self, settings: Settings, life: Lifecycle, herald: Herald, owner: object) -> None:
        """Use `owner`, the engine, as the owner of the timer's thread."""
        self._name = settings.name
        self._thread_name = f"{settings.thread_name_prefix}_timer"
        self._life = life
        self._owner = owner
        self.herald = herald
        self.duties: Sequence[Duty] = ()  # set once, before the first kick
        self.refused: Callable[[], object] = int  # called when the thread could not start; a single store
        self.farewell: Callable[[], object] = int  # called when the thread has run its last duty; `int` does nothing
        #: Once it has begun to live, or its starter goes on: whichever comes first. It looks at the state after its
        #: own store; the thread that closes the executor stores the state first, and looks here afterwards.
        self.thread: threading.Thread | None = None
        # Guards the decision which thread starts it: `birth` is None, and is set. A leaf.
        self._lock = threading.RLock()
        #: Acquired by the thread when it begins to live, or by its starter, to disown it. None: there is no
        #: thread, and none is about to start. Read without the lock: `start` looks again under it.
        self.birth: LockType | None = None
        #: Whether the timer was kicked while it had no thread. An old value costs one look more in `start`.
        self.wanted = False
        self._park = allocate_lock()
        self._park.acquire()

    # -- called from other threads

    def kick(self, *, start: bool = True) -> None:
        """Have the timer run its duties now. Never block.

        Starts the thread if there is none yet. With ``start=False`` that is left to `start_if_wanted`. The
        caller, or the worker that it starts, calls that as soon as it holds no lock.
        """
        try:
            self._park.release()
        except RuntimeError as error:  # the timer was kicked before, and has yet to look
            if type(error) is not RuntimeError:  # the end of the stack
                raise
        if self.birth is not None or self._life.state >= State.CLOSED:
            return
        self.wanted = True
        lock: Any = self._life.lock
        if start and lock._is_owned():  # private, but Condition relies on it
            # A signal handler or destructor interrupted the core, so start a thread without waiting for it.
            try:
                _thread.start_new_thread(self.start, (), {"quiet": True})
            except RuntimeError as error:  # the next kick tries again
                if type(error) is not RuntimeError:
                    raise
                self.refused()
        elif start:
            self.start()

    def start_if_wanted(self) -> None:
        """Start the thread if it was kicked under a lock. Called without a lock."""
        if self.wanted:
            self.start()

    def start(self, *, quiet: bool = False) -> None:
        """Start the thread, unless there is one. Called without a lock."""
        birth = allocate_lock()
        try:
            with self._lock:
                if self.birth is not None or self._life.state >= State.CLOSED:
                    return
                self.birth = birth
            thread = make_thread(partial(self._main, birth), self._thread_name)
            start_thread(thread)
            self.thread = thread  # perhaps before the thread itself does: `threads` must know it from now on
            self.wanted = False
        except BaseException as error:
            if birth.acquire(False) and self.birth is birth:  # the thread has not begun to live, and never will
                self.birth = None
                self.wanted = True
                self.refused()
            if not isinstance(error, CannotStart):
                raise
            if not quiet:
                name = self._name
                logger.exception("executor %r: cannot start the timer thread", name, executor=name)

    def threads(self) -> list[threading.Thread]:
        """Return the living threads that the end of the executor waits for: the timer's and the herald's."""
        threads = self.thread, self.herald.thread
        return [thread for thread in threads if thread is not None and thread.is_alive()]

    # -- the thread

    def _main(self, birth: LockType) -> None:
        if not birth.acquire(False):  # the starter was interrupted, and has disowned this thread
            return
        self.thread = threading.current_thread()
        current.owner = self._owner
        aside.post = self.herald.post
        while self._life.state < State.CLOSED:
            try:
                due = self._turn()
                self._park.acquire(True, lock_timeout(None if due is None else due - clock()))
            except BaseException:
                name = self._name
                logger.exception("executor %r: the timer stumbled and goes on", name, executor=name)
                self.herald.tell()
                self._park.acquire(True, AFTER_A_STUMBLE)
        self.farewell()
        self.herald.tell()

    def _turn(self) -> float | None:
        """Run all duties; return the time when something is due next."""
        now = clock()
        dues: list[float] = []
        for duty in self.duties:
            due = duty(now)
            self.herald.tell()
            if due is not None:
                dues.append(due)
        return min(dues, default=None)

    def reinit_after_fork(self) -> None:
        """Give up the threads, in the child of a fork."""
        self._lock = threading.RLock()
        self._park = allocate_lock()
        self._park.acquire()
        self.birth = self.thread = None
        self.herald.reinit_after_fork()
