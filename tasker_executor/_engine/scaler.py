"""The scaler: asks the scaling policy how many workers there should be.

It asks at the policy's interval, and pauses when the executor is at rest. While it pauses, an `Alarm` lies on
the idle stack. The next submitter that pops the alarm ends the pause. A submitter that finds a worker above
the alarm looks at `paused` itself.

The first question after a pause comes soon if tasks wait: see `tasker_executor.policies.first_look`.
"""

from __future__ import annotations

from collections.abc import Callable

from .._report import Logger, safe_repr
from .._sync import clock
from .gauges import Gauges
from .idle import Idle
from .state import State
from .workplace import Workplace

__all__ = ["Alarm", "Scaler"]

logger = Logger("tasker_executor")


class Alarm:
    """Lies on the idle stack while the scaler pauses. The next submitter pops it, which ends the pause."""

    def __init__(self, scaler: Scaler, idle: Idle) -> None:
        self._scaler = scaler
        self._idle = idle

    def release(self) -> None:
        """End the scaler's pause, and wake the worker that the submitter meant to wake."""
        self._scaler.resume()
        self._idle.pass_on()


class Scaler:
    """Asks the policy, if there is one, and has the executor follow its answer."""

    def __init__(self, place: Workplace, gauges: Gauges, want: Callable[[int, str], object]) -> None:
        """Call ``want(workers, reason)`` with each answer of the policy."""
        self.policy = policy = place.settings.policy
        self._name = place.settings.name
        self._life = place.life
        self._idle = place.idle
        self._lanes = place.lanes
        self._gauges = gauges
        self._timer = place.timer
        self._want = want
        #: When the policy is asked next; None while the scaler pauses. Only the timer's thread stores None.
        #: Two threads that end the pause at once store nearly the same.
        self._next: float | None = None
        #: When the policy was asked last; and when it is asked after a pause although no task waits.
        self._asked = self._regular = float("-inf")
        self._earliest = float("-inf")  # an interval after the last question
        self.paused = False  # for a submitter that wakes a worker above the alarm: it resumes the scaler, too
        self._policy_failed = False
        self._alarm = Alarm(self, place.idle)
        if policy is not None:
            from ..policies import interval_of

            self._interval = interval_of(policy)
            self._pause()

    def resume(self) -> None:
        """End the pause, if there is one. Any thread may call this."""
        if self._next is None and self.policy is not None and self._life.state is State.RUNNING:
            self._next = self._first(clock())
            self.paused = False
            self._timer.kick()

    def _first(self, now: float) -> float:
        from ..policies import first_look

        self._regular = now + self._interval
        return first_look(self._interval, now, self._asked)

    def tick(self, now: float) -> float | None:
        """Ask the policy, if it is time. A duty."""
        policy, gauges = self.policy, self._gauges
        if policy is None or self._life.state >= State.KILLED:
            return None
        if self._next is None:
            if gauges.at_rest():
                return None
            # 1. A submitter popped the alarm. 2. An error was thrown into it before the alarm resumed.
            self._next = self._first(now)
            self.paused = False
        # `_earliest`: of two threads that end a pause at once, one may store what it found before the last question.
        if now < (due := max(self._next, self._earliest)):
            return due
        if now < self._regular and not self._lanes.waiting():
            self._next = self._regular
            return self._next
        from ..policies import answer, interval_of

        load = gauges.sample()
        self._asked = self._regular = now
        self._next = self._earliest = now + self._interval
        try:
            self._interval = interval_of(policy)
            wanted = answer(policy, load)  # the crew clamps it: the bounds may change while the policy is asked
            reason = safe_repr(policy)
            self._policy_failed = False
        except BaseException:
            if not self._policy_failed:
                logger.exception(
                    "executor %r: policy %s raised; the last target stands",
                    self._name,
                    type(policy).__name__,
                    executor=self._name,
                    policy=type(policy).__name__,
                )
            self._policy_failed = True
        else:
            self._want(wanted, reason)
        if load.busy == 0 and load.queued == 0 and gauges.at_rest():
            self._pause()
            # One look more. 1. All was at rest. 2. A worker took a task, and its submitter found neither the
            # alarm nor `paused`. 3. The pause began.
            return now + self._interval
        return self._next

    def _pause(self) -> None:
        """Ask the policy no more until the next submission."""
        self._next = None
        self.paused = True
        stack = self._idle.stack
        if self._alarm not in stack:  # only the timer's thread puts it there
            stack.append(self._alarm)
        if self._lanes.look():  # a task came before the alarm was on the stack
            self.resume()
