"""The herald: the thread that calls back for the timer.

The timer's thread settles tasks, and must run no user code. So it posts the calls of done-callbacks,
observers and log handlers as *news*, and the herald makes these calls in their order. The herald's thread
lives as long as there is news.

**The end of the executor is the last news.** The executor does not close between the end of a task and the
calls that tell of it. `busy` is true from the start of a duty that settles tasks (`settling`) until the
herald has made the last call.
"""

from __future__ import annotations

import threading
from _thread import LockType, allocate_lock
from collections import deque
from collections.abc import Callable
from functools import partial

from .._hub import ObserverHub
from .._report import Logger, aside
from .current import current
from .settings import Settings
from .threads import CannotStart, make_thread, start_thread

__all__ = ["Duty", "Herald"]

logger = Logger("tasker_executor")

#: Does what is due at the time given; returns the time when something is due next, or None.
Duty = Callable[[float], float | None]


class Herald:
    """Makes the calls that the timer posts, on a thread that lives as long as there are any."""

    def __init__(
        self,
        settings: Settings,
        hub: ObserverHub,
        owner: object,
        is_ending: Callable[[], bool],
        check_terminated: Callable[[], object],
    ) -> None:
        """Use `owner`, the engine, as the owner of the herald's thread."""
        self._name = settings.name
        self._thread_name = f"{settings.thread_name_prefix}_herald"
        self._hub = hub
        self._owner = owner
        self._is_ending = is_ending  # whether no worker lives while the executor drains
        self._check_terminated = check_terminated  # closes the executor, if this is its end
        self.thread: threading.Thread | None = None  # the last one that began to live
        #: Added to by the timer's thread, by one call; taken under the lock.
        self._news: deque[Callable[[], object]] = deque()
        # Guards `_serving`: a thread that ends and a timer that adds news must not miss each other. A leaf.
        self._lock = threading.RLock()
        self._serving = False  # whether a thread will take all of `_news`; read without the lock: see `busy`
        self._held = False  # whether the timer is about to add news; stored by the timer's thread alone

    @property
    def busy(self) -> bool:
        """Return whether there is news, or may soon be. The executor closes only when this is false.

        Three looks, in the direction in which the news moves. It is in `_news` before `_held` is false, and
        until `_serving` is true. In another order it could pass by, between two looks.
        """
        return self._held or bool(self._news) or self._serving

    def settling(self, duty: Duty) -> Duty:
        """Return `duty`, which settles tasks, for the timer: the executor closes after the news of them."""

        def settle(now: float) -> float | None:
            self.hold()
            try:
                return duty(now)
            finally:
                self.let_go()

        return settle

    def hold(self) -> None:
        """Note that the timer begins to settle tasks."""
        self._held = True

    def let_go(self) -> None:
        """Tell of the tasks that the timer has settled. Called on the timer's thread, without a lock."""
        self._held = False
        # This takes the core's lock. A thread that checked for the end before it either found `_held` set, or
        # saw these facts.
        last = self._is_ending()
        if last and not self.busy and not self._hub.hears("state_changed"):
            self._check_terminated()
        elif last:
            self._news.append(int)  # does nothing; after the last news, the herald closes the executor
        self.tell()

    def tell(self) -> None:
        """Make a thread take the news, if there is any. Called on the timer's thread, without a lock."""
        with self._lock:
            if self._serving or not self._news:
                return
            self._serving = True
        birth = allocate_lock()
        try:
            thread = make_thread(partial(self._main, birth), self._thread_name)
            start_thread(thread)
            self.thread = thread  # perhaps before the thread itself does: `threads` must know it from now on
        except CannotStart:
            self._run()  # late: a delayed duty does less harm than a delayed callback
        except BaseException:  # thrown in from outside
            if birth.acquire(False):
                self._serving = False
            raise

    def _main(self, birth: LockType) -> None:
        if birth.acquire(False):
            self.thread = threading.current_thread()
            current.owner = self._owner  # so it waits neither for a place in the queue nor for the executor's end
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
                    name = self._name
                    logger.exception("executor %r: an error was thrown into the thread that calls back", name, executor=name)
                del news  # under no lock: it may be the last reference to a future
            self._check_terminated()
        finally:
            aside.post = before

    def post(self, news: Callable[[], object]) -> None:
        """Add to the news. Called on the timer's thread, which calls `tell` when it holds no lock."""
        self._news.append(news)

    def reinit_after_fork(self) -> None:
        """Give up the thread and the news, in the child of a fork."""
        self._lock = threading.RLock()
        self._news.clear()
        self._serving = self._held = False
        self.thread = None
