"""The calls of ``run_now`` that can be stopped: by their limit, by `kill`, and by their future, if they have one.

**The alarm.** `Runs.expire` is a duty of the timer. A call that begins kicks the timer only if that would
wake up too late. So calls that are short, one after the other, wake it up once in a `run_within`:

1. A call stores when it is due, and enters itself. Then it looks at the alarm, and kicks the timer if that is
   later, or if there is none.
2. The timer takes the alarm away, and then looks at all calls. Then it sets the alarm again, to the earliest
   of these times. It keeps an alarm that is yet to come, even if no call needs that any more.
3. So the timer sees the call, or the call sees that there is no alarm. A kick while the timer looks makes it
   look again. Calls never set the alarm: an error thrown into one of them leaves no alarm that never rings.

**After the timer.** An executor closes when its workers have ended, and its timer ends with it. Calls of
``run_now`` may still run. Another thread then keeps their limits. It ends with the last call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from .._report import Logger
from .._sync import Bell, clock
from .._types import AbortHook
from .aborts import start_abort
from .run import Run
from .settings import Settings
from .state import Lifecycle, State
from .stopping import AGAIN, Reason
from .threads import CannotStart, make_thread, start_thread
from .timer import Timer

__all__ = ["Runs"]

logger = Logger("tasker_executor")

#: Seconds until an abort is tried again, if the system has refused its thread.
AFTER_A_REFUSAL = 1.0


class Runs:
    """The calls of ``run_now`` of one executor that can be stopped. Its methods take no lock, and never block."""

    def __init__(
        self,
        settings: Settings,
        life: Lifecycle,
        timer: Timer,
        hook: AbortHook[Any] | None,
        others: Callable[[], list[Run]],
    ) -> None:
        """Use `hook` to abort resources. `others` returns the calls without a limit that have asked for their token."""
        self._name = settings.name
        self._thread_name = f"{settings.thread_name_prefix}_limits"
        self._life = life
        self._timer = timer
        self._hook = hook
        self._others = others
        # Each change is one step; looked at in a copy. Entering and the copy lock the set: see "The alarm".
        self._runs: set[Run] = set()
        self._alarm = inf  # when the timer looks next; stored by the timer alone
        self._changed = Bell()  # rung for the thread that goes on after the timer
        # Taken by that thread while it lives, and by its starter before.
        self._late = deque([True])

    # -- the call

    def enter(self, run: Run) -> None:
        """Let a call be stopped from here on."""
        self._runs.add(run)
        if self._life.killed.is_open:  # the killer may have looked before
            run.ask(Reason.KILLED)

    def watch(self, run: Run) -> None:
        """Stop the call when it is due."""
        self._runs.add(run)
        if run.over:  # it has just left
            self._runs.discard(run)
            return
        if run.due < self._alarm:
            self._timer.kick()
        if self._life.state >= State.CLOSED:
            self.outlive_timer()

    def leave(self, run: Run) -> None:
        """Note that a call is over: it cannot be stopped from here on. A second call does no harm."""
        run.end()
        self._runs.discard(run)  # afterwards: see `watch`
        if not self._late:
            self._changed.ring()

    # -- the stop

    def stop(self, task: object) -> bool:
        """Stop the call that runs for this future; return False if there is none. Never blocks."""
        for run in self._runs.copy():
            if run.task is task and run.ask(Reason.STOPPED):
                self._abort(run)
                self.watch(run)
                return True
        return False

    def kill(self) -> None:
        """Set the token of each call in hand. The killer aborts their resources itself: see `Reserve.abort`."""
        for run in (*self._runs.copy(), *self._others()):
            run.ask(Reason.KILLED)

    def expire(self, now: float) -> float | None:
        """Stop the calls that have run for too long. A duty."""
        alarm, self._alarm = self._alarm, inf
        first = alarm if alarm > now else inf
        for run in self._runs.copy():
            if run.due <= now:
                run.due = inf
                if not run.stops:
                    run.ask(Reason.TIMED_OUT)
                self._abort(run)
            first = min(first, run.due)
        self._alarm = first
        return None if first == inf else first

    def _abort(self, run: Run) -> None:
        """Start the abort of the resource in hand, and set the time at which it is repeated.

        It is repeated, after growing pauses, while the call still runs: see `AGAIN`. It is also repeated if the
        system refuses its thread.
        """
        grip, hook, stop = run.grip, self._hook, run.stop
        if grip is None or hook is None or stop is None:
            return

        def abort(resource: Any) -> None:
            try:
                hook(resource)
            finally:
                grip.give_back()

        started = start_abort(grip.holding, abort, self._name, grip.claim)
        now = clock()
        run.due = now + (max(AGAIN, now - stop.at) if started else AFTER_A_REFUSAL)

    # -- after the timer

    def outlive_timer(self) -> None:
        """Keep the limits of the calls that still run, on a thread of their own. Called when the timer has ended."""
        if not self._runs:
            return
        try:
            self._late.pop()
        except IndexError:  # there is one
            self._changed.ring()
            return
        try:
            start_thread(make_thread(self._go_on, self._thread_name))
        except BaseException as error:
            if not self._late:
                self._late.append(True)
            if not isinstance(error, CannotStart):
                raise
            logger.exception("executor %r: cannot start the timer thread", self._name, executor=self._name)

    def _go_on(self) -> None:
        while self._runs:
            change = self._changed.listen()  # before the look
            due = self.expire(clock())
            if self._runs:
                change.wait(None if due is None else due - clock())
        self._late.append(True)
        self.outlive_timer()  # a call may have come since

    def reinit_after_fork(self) -> None:
        """Forget all calls, in the child of a fork: no timer is there to stop them."""
        self._runs.clear()
        self._changed = Bell()
        self._alarm = inf
