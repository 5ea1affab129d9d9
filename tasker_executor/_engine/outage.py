"""A failing factory: may it be tried, when next, and which tasks have waited too long.

Pure: no clock, no thread, no lock. Each method is told what time it is. `Core` has one `Outage` and guards it with its lock.

**Back-off.** The pause between two attempts doubles, with full jitter, so that the clients of a server that comes back do not
all connect in the same moment. It is never longer than a quarter of `create_timeout`: a task that waits its whole time sees at
least three attempts, and the first task after a long outage is served. A new task does not cut the pause short. A stream of
tasks would do so all the time, and there would be no pause.

**What ends a row of failures.** A resource that is made ends the outage, as far as anybody can know. But a resource may fail
before it has served a task: its check says no. Then the row goes on where it was, and so does the time that tasks have waited
without a resource. Only a resource that has *served* wipes the row out.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Outage"]

BACKOFF_FIRST, BACKOFF_LIMIT = 0.1, 30.0  # seconds between attempts of a failing factory: doubling, with full jitter
#: The longest pause is so small a part of `create_timeout`, but no less than the first.
ATTEMPTS = 4


class Outage:
    """See the module's docstring. While `failures` is above 0, one attempt is made at a time, and none before `retry_at`."""

    __slots__ = ("_row", "_waited_since", "bare_since", "create_timeout", "error", "failed_at", "failures", "retry_at", "total")

    def __init__(self, create_timeout: float, now: float) -> None:
        self.create_timeout = create_timeout
        #: Failures in a row; 0 while the factory works.
        self.failures = 0
        self.total = 0
        self.error: BaseException | None = None  # of the last failure in the row
        self.failed_at = self.retry_at = 0.0
        #: Since when no worker has owned a resource; None while one does.
        self.bare_since: float | None = now
        # What goes on if the resource that ended an outage fails before it has served: see the module's docstring.
        self._row = 0
        self._waited_since: float | None = None

    # -- what happened

    def failed(self, error: BaseException, begun: float, now: float, draw: Callable[[float, float], float]) -> bool:
        """An attempt that began at `begun` failed. Return whether it counts. `draw` picks the pause between two bounds.

        Attempts that were under way when another failed are of the same round, and do not stretch the pause.
        """
        self.total += 1
        self.error = error
        if self.failures and begun < self.failed_at:
            return False
        self.failures = max(self.failures, self._row) + 1
        self.failed_at = now
        self.retry_at = now + draw(0.0, self.longest_pause())
        return True

    def longest_pause(self) -> float:
        """How long the pause may be after the failures so far."""
        limit = min(BACKOFF_LIMIT, max(BACKOFF_FIRST, self.create_timeout / ATTEMPTS))
        return min(limit, BACKOFF_FIRST * 2.0 ** min(self.failures - 1, 16))

    def made(self) -> bool:
        """A worker owns a new resource. Return whether that ended an outage."""
        over = self.failures > 0
        self._row = max(self._row, self.failures)
        self.failures, self.error = 0, None
        if self.bare_since is not None:
            self._waited_since, self.bare_since = self.bare_since, None
        return over

    @property
    def on_probation(self) -> bool:
        """Does it matter whether a resource has served a task?"""
        return self._row > 0 or self._waited_since is not None

    def served(self, begun: float) -> None:
        """A resource whose making began at `begun` has served a task."""
        self._waited_since = None
        if begun > self.failed_at:
            self._row = 0

    def bare(self, now: float) -> None:
        """No worker owns a resource any more."""
        if self.bare_since is None:
            self.bare_since = now if self._waited_since is None else self._waited_since

    # -- what follows

    def may_try(self, now: float, starting: int) -> bool:
        """May another attempt begin, while `starting` are under way?"""
        return not self.failures or (now >= self.retry_at and not starting)

    def next_attempt(self, now: float, starting: int) -> float | None:
        """When the pause ends that keeps the factory from being tried; None if no pause does."""
        return self.retry_at if self.failures and not starting and now < self.retry_at else None

    def gives_up_at(self, queued: float) -> float | None:
        """When a task queued at `queued` has waited `create_timeout` with no worker owning a resource; None while one does."""
        since = self.bare_since
        return None if since is None else max(since, queued) + self.create_timeout
