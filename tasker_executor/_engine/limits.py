"""The limits of running tasks, as their workers see them: how long a task may run, and when one is due.

A worker takes a task in hand, and then notes here when it is due (`begins`). The watch resets `due`, and then
looks at what the workers have in hand (``watch.py``). So one of the two sees the other: a task that the watch
has missed finds `due` reset, and kicks the timer. Both store into this object before they look. So the order
holds without the GIL, too: see "Which thread goes first" in ``task.py``.

**No kick for each task.** A task that starts while another one is due earlier kicks nothing. If none is in
hand, the watch sets `due` to the time at which a task that starts now would be due (`shortest`), and looks
once more then. An idle executor sleeps.
"""

from __future__ import annotations

from math import inf
from typing import Any

from .._options import UNSET
from .settings import Settings
from .task import Task
from .timer import Timer

__all__ = ["Limits"]


class Limits:
    """The limits of the tasks of one executor."""

    __slots__ = ("_timer", "due", "for_all", "noted", "run_within", "shortest", "usual", "warn_after")

    def __init__(self, settings: Settings, timer: Timer) -> None:
        self._timer = timer
        self.run_within, self.warn_after = settings.run_within, settings.warn_after
        #: Whether each task has a limit.
        self.for_all = self.run_within is not None or self.warn_after is not None
        #: Seconds until the first limit of a task that has none of its own.
        self.usual = min(inf if limit is None else limit for limit in (self.run_within, self.warn_after))
        #: When the watch looks next. Only the watch makes it later, but for two workers that store at once:
        #: then each has kicked the timer, which looks at all.
        self.due = inf
        #: The shortest limit of a task that has begun since the watch looked last. A store may be lost
        #: between two workers; then the next task kicks the timer once more.
        self.shortest = inf
        self.noted = 0.0  # stored before the look at `due`

    def run_limit(self, task: Task[Any]) -> float | None:
        """Return for how many seconds a task may run, all its attempts together; None: without a limit."""
        sidecar = task._sidecar
        limit = UNSET if sidecar is None else sidecar.run_within
        return self.run_within if limit is UNSET else limit

    def begins(self, task: Task[Any], start: float) -> None:
        """Note that a task begins to run at `start`. It is in its worker's hand already."""
        if task._sidecar is None:  # not by calls: this is done for each task
            left = self.usual
        else:
            left = inf if (limit := self.run_limit(task)) is None else limit - task._sidecar.ran
            if self.warn_after is not None and self.warn_after < left:
                left = self.warn_after
        if left < self.shortest:
            self.shortest = left
        self.noted = due = start + left
        if due < self.due or self.due < start:  # it should have looked by now: perhaps its thread could not start
            self.due = due
            self._timer.kick()

    def note(self, due: float) -> None:
        """See that the watch looks at the time `due`."""
        self.noted = due
        if due < self.due:
            self.due = due
            self._timer.kick()
