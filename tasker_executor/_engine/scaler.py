"""The scaler: asks the scaling policy how many workers there should be.

It asks at the policy's interval, and pauses when the executor is at rest. While it pauses, an `Alarm` lies on
the idle stack. The next submitter that pops the alarm ends the pause. A submitter that finds a worker above
the alarm looks at `paused` itself.
"""

from __future__ import annotations

from typing import Any, Protocol

from .._report import Logger, safe_repr
from .._sync import clock
from ..policies import ScalingPolicy, ask, interval_of
from ..stats import LoadSample
from .lanes import Lanes
from .state import State
from .timer import Timer

__all__ = ["Alarm", "Scaler"]

logger = Logger("tasker_executor")


class Scaled(Protocol):
    """What the scaler asks of its executor."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> State: ...
    @property
    def lanes(self) -> Lanes: ...
    @property
    def idle_stack(self) -> list[Any]: ...

    def at_rest(self) -> bool:
        """Return whether no task waits or runs, and only the base workers are there."""
        ...

    def sample(self) -> LoadSample:
        """Return what the policy is shown."""
        ...

    def want(self, wanted: int, reason: str) -> object:
        """Have this number of workers from now on, within the bounds."""

    def wake_if_waiting(self) -> object:
        """Wake a worker if a task waits."""


class Alarm:
    """Lies on the idle stack while the scaler pauses. The next submitter pops it, which ends the pause."""

    def __init__(self, scaler: Scaler, scaled: Scaled) -> None:
        self._scaler = scaler
        self._scaled = scaled

    def release(self) -> None:
        """End the scaler's pause, and wake the worker that the submitter meant to wake."""
        self._scaler.resume()
        self._scaled.wake_if_waiting()


class Scaler:
    """Asks the policy, if there is one, and has the executor follow its answer."""

    def __init__(self, scaled: Scaled, timer: Timer, policy: ScalingPolicy | None) -> None:
        self.policy = policy
        self._scaled = scaled
        self._timer = timer
        self._next: float | None = None  # when the policy is asked next; None while the scaler pauses
        self.paused = False  # for a submitter that wakes a worker above the alarm: it resumes the scaler, too
        self._policy_failed = False
        self._alarm = Alarm(self, scaled)
        if policy is not None:
            self._interval = interval_of(policy)
            self._pause()

    def resume(self) -> None:
        """End the pause, if there is one. From any thread."""
        if self._next is None and self.policy is not None and self._scaled.state is State.RUNNING:
            self._next = clock() + self._interval
            self.paused = False
            self._timer.kick()

    def tick(self, now: float) -> float | None:
        """Ask the policy, if it is time. A duty."""
        policy, scaled = self.policy, self._scaled
        if policy is None or scaled.state >= State.KILLED:
            return None
        if self._next is None:
            if scaled.at_rest():
                return None
            # 1. A submitter popped the alarm. 2. An error was thrown into it before the alarm resumed.
            self._next = now + self._interval
            self.paused = False
        if now < self._next:
            return self._next
        load = scaled.sample()
        self._next = now + self._interval
        try:
            self._interval = interval_of(policy)
            wanted = ask(policy, load)
            reason = safe_repr(policy)
            self._policy_failed = False
        except BaseException:
            if not self._policy_failed:
                logger.exception(
                    "executor %r: policy %s raised; the last target stands",
                    scaled.name,
                    type(policy).__name__,
                    executor=scaled.name,
                    policy=type(policy).__name__,
                )
            self._policy_failed = True
        else:
            scaled.want(wanted, reason)
        if load.busy == 0 and load.queued == 0 and scaled.at_rest():
            self._pause()
            return None
        return self._next

    def _pause(self) -> None:
        """Ask no more until the next submission."""
        self._next = None
        self.paused = True
        stack = self._scaled.idle_stack
        if self._alarm not in stack:
            stack.append(self._alarm)
        if self._scaled.lanes.look():  # a task came before the alarm was on the stack
            self.resume()
