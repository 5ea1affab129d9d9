"""A worker's hand: the task in it, what that task may ask, and the stop that may be at work on it.

`Worker` takes a task in hand and lets go of it, in line. What is rare, so that the cost of a call does not
matter, is here: another attempt, and the way back to work after a stop. For the rule of the hand see
``stops.py``.
"""

from __future__ import annotations

from typing import Any

from .._sync import clock
from ..exceptions import TaskStopped, TaskTimeout
from .care import Care
from .holding import Holding
from .resources import End
from .state import State
from .stopping import Stop, Token
from .task import RUNNING, Task
from .workplace import Employer, Workplace

__all__ = ["Hand"]


class Hand:
    """The hand of one worker. To its task it is the `Holder`."""

    __slots__ = ("asks", "care", "employer", "holding", "index", "judging", "place", "since", "stopped", "task")

    def __init__(self, place: Workplace, employer: Employer, index: int) -> None:
        self.place = place
        self.employer = employer
        self.index = index
        #: None before the resource is made, after it is destroyed, and without `on_create`.
        self.holding: Holding[Any] | None = None
        self.care = Care(place)
        # Stored by the worker alone, `stopped` also by `Crew.wrote_off` on its thread. Other threads look,
        # each once into a variable of its own: the next look may see the next task, or none.
        self.task: Task[Any] | None = None  # the task in hand
        self.since = clock()  # when it was taken in hand
        self.asks = False  # whether a hook is asked about the resource, with a task in hand
        self.judging = False  # whether the fate of the task that was in hand is being decided
        self.stopped: Stop | None = None  # that of the last task, until the resource is known to be good again

    # -- as the holder of the current task

    @property
    def owner(self) -> object:
        """The engine whose tasks it runs."""
        return self.employer

    def token(self) -> Token:
        """Return the cancel token of the task in hand."""
        task = self.task
        sidecar = None if task is None else task._observe()
        return self.place.life.killed if sidecar is None else sidecar.token_of(self.place.life.killed)

    @property
    def given(self) -> Any:
        """What its tasks are given: the resource that it owns, or what `around` returned in its place."""
        return None if self.holding is None else self.holding.given

    @property
    def slot(self) -> int:
        """The number of its place: see `current_slot`."""
        return self.index

    @property
    def busy(self) -> bool:
        """Whether a task is in hand, and may ask for itself."""
        return self.task is not None and not self.asks

    @property
    def attempt(self) -> int:
        """1 in the first run of the task in hand, 2 in its first retry, and so on."""
        sidecar = None if (task := self.task) is None else task._sidecar
        return 1 if sidecar is None else 1 + sidecar.retries

    def runs(self, task: Task[Any]) -> bool:
        """Return whether that task is still in hand."""
        return self.task is task

    # -- what follows for the worker

    def begin_again(self, task: Task[Any]) -> End | None:
        """Take the task in hand for another attempt, on a clean resource; return why there is none.

        No attempt begins after a kill. The task is in hand before the look at the state. So the worker sees
        the kill, or the killer sees the task, and stops it. `End.STOPPED`: the task was stopped, and is final.
        """
        if (end := self.care.clean_for_retry(self.holding, task)) is not None:
            return end
        self.since = clock()
        self.task = task
        task._status = RUNNING  # a store into the task, and then the look: see "Which thread goes first"
        killed = self.place.life.state >= State.KILLED
        if killed and self.let_go(task) is None:
            return End.DRAINED
        if not task._may_start():
            self.let_go(task)
            return End.STOPPED
        self.place.limits.begins(task, self.since)
        return None

    def let_go(self, task: Task[Any]) -> Stop | None:
        """Take the task out of hand; return the stop that has been at work, if there is one."""
        self.task = None
        self.stopped = task._stop_at_work()
        return self.stopped

    def waits_for_abort(self, stop: Stop) -> bool:
        """Return whether the worker waits for the hook that aborts its resource for `stop`."""
        holding = self.holding  # None: it is being given up, which waits for the hook
        return self.stopped is stop and stop.aborted and (holding is None or holding.being_aborted)

    def recover(self) -> End | None:
        """Return to work after a task that was stopped; or return why the worker ends.

        While a hook hangs in the abort of the resource, this waits, and the worker may be written off.
        """
        stop, holding = self.stopped, self.holding
        aborted = stop is not None and stop.aborted and holding is not None
        if aborted:
            holding.wait_for_aborts()  # type: ignore[union-attr]  # `aborted` says so
        if self.employer.wrote_off(self):
            return End.WRITTEN_OFF
        if self.place.life.state >= State.KILLED:
            return End.DRAINED
        return self.care.after_abort(holding) if aborted else None

    def take_cause(self) -> BaseException | None:
        """Return what broke the resource, and forget it. After a stop that is what the task has raised."""
        cause, self.care.broken_by = self.care.broken_by, None
        return cause.__cause__ if self.stopped is not None and isinstance(cause, TaskStopped | TaskTimeout) else cause
