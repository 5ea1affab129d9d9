"""A failing factory: whether and when it may be tried again, and which tasks have waited too long.

Pure: no clock, no thread, no lock. Each method is told the time. The executor's lock guards its `Outage`.
Without it, other threads read a single field, for the log and the gauges; and the bound of the queue asks
`may_try`, and is asked again.

**Back-off.** The pause between two attempts doubles, with full jitter. So the clients of a server that comes
back do not all connect at once. The pause is at most a quarter of `create_timeout`: a task that waits its
whole time sees at least 3 attempts. A new task does not shorten the pause: a stream of tasks would leave none.

**What ends a row of failures.** A new resource ends the outage for the time being. But it may fail its check
before it has served a task. Then the row goes on, and so does the wait of the tasks. Only a resource that has
*served* a task, or that has lasted for `create_timeout`, ends the row for good.

**How long a task waits** while no worker owns a resource: `create_timeout`. An outage counts from the begin of
its first failed attempt. Once it is older than `create_timeout`, it is *old*, and a task waits only while there
is hope:

1. During a pause there is none: the task fails at once.
2. An attempt is under way. The task waits for it, and fails when it fails.
3. The pause is over. The task starts an attempt, and waits for it. So the first task after a long outage is
   served.

An attempt that has taken `create_timeout` is no hope, and another may begin.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Outage"]

BACKOFF_FIRST, BACKOFF_LIMIT = 0.1, 30.0  # seconds between two attempts; doubled after each, with full jitter
#: The longest pause is this fraction of `create_timeout`, but at least `BACKOFF_FIRST`.
ATTEMPTS = 4


class Outage:
    """Decides about the attempts of one executor's factory: see the module's docstring.

    While `failures` is above 0, one attempt is made at a time, and none before `retry_at`.
    """

    # fmt: off
    __slots__ = (
        "_made_at", "_row", "_waited_since", "bare_since", "create_timeout", "error", "failed_at", "failures", "retry_at",
        "since", "total",
    )
    # fmt: on

    def __init__(self, create_timeout: float, now: float) -> None:
        self.create_timeout = create_timeout
        #: The number of failures in a row; 0 while the factory works.
        self.failures = 0
        self.total = 0
        self.error: BaseException | None = None  # of the last failure in the row
        self.failed_at = self.retry_at = 0.0
        #: The time since which the factory has failed, while `failures` is above 0.
        self.since: float | None = None
        #: The time since which no worker has owned a resource; None while one does.
        self.bare_since: float | None = now
        # What goes on if the resource that ended an outage fails before it has served.
        self._row = 0
        self._waited_since: float | None = None
        self._made_at = float("-inf")  # when the last resource was made

    # -- what happened

    def failed(self, error: BaseException, begun: float, now: float, draw: Callable[[float, float], float]) -> bool:
        """Note that an attempt that began at `begun` failed; return whether it counts.

        `draw` picks the pause between two bounds. An attempt that began before the last failure is of the
        same round, and does not stretch the pause.
        """
        self.total += 1
        self.error = error
        if self.failures and begun < self.failed_at:
            return False
        if not self.failures:
            if now - self._made_at >= self.create_timeout:
                self._row = 0
            if not self._row:
                # If a resource was made after the attempt began, the factory did not fail all the time.
                self.since = begun if begun > self._made_at else now
        self.failures = max(self.failures, self._row) + 1
        self.failed_at = now
        self.retry_at = now + draw(0.0, self.longest_pause())
        return True

    def longest_pause(self) -> float:
        """Return the longest pause allowed after the failures so far."""
        limit = min(BACKOFF_LIMIT, max(BACKOFF_FIRST, self.create_timeout / ATTEMPTS))
        return min(limit, BACKOFF_FIRST * 2.0 ** min(self.failures - 1, 16))

    def made(self, now: float) -> bool:
        """Note that a worker owns a new resource; return whether that ended an outage."""
        over = self.failures > 0
        self._made_at = now
        self._row = max(self._row, self.failures)
        self.failures, self.error = 0, None
        if self.bare_since is not None:
            self._waited_since, self.bare_since = self.bare_since, None
        return over

    @property
    def on_probation(self) -> bool:
        """Whether it matters that a resource has served a task."""
        return self._row > 0 or self._waited_since is not None

    def served(self, begun: float) -> None:
        """Note that a resource whose making began at `begun` has served a task."""
        self._waited_since = None
        if begun > self.failed_at:
            self._row = 0

    def bare(self, now: float) -> None:
        """Note that no worker owns a resource any more."""
        if self.bare_since is None:
            self.bare_since = now if self._waited_since is None else self._waited_since

    # -- what follows

    def may_try(self, now: float, starting: int) -> bool:
        """Return whether another attempt may begin while `starting` attempts are under way."""
        return not self.failures or (now >= self.retry_at and not starting)

    def next_attempt(self, now: float, starting: int) -> float | None:
        """Return when the pause before the next attempt ends; None if there is no pause."""
        return self.retry_at if self.failures and not starting and now < self.retry_at else None

    def is_old(self, now: float) -> bool:
        """Return whether the factory has failed for `create_timeout`."""
        return self.failures > 0 and self.since is not None and now >= self.since + self.create_timeout

    def gives_up_on(self, now: float, hope: float | None) -> float | None:
        """Return the moment until which a task that fails now was queued; None if no task fails now.

        `hope`: when the attempt that may yet help a task began; None if there is none.
        """
        since = self.bare_since
        if since is None:
            return None
        until = now - self.create_timeout if now >= since + self.create_timeout else None
        if self.is_old(now):
            if hope is None:
                return now
            if self.is_old(self.failed_at):  # the attempt for which these tasks waited has failed
                until = self.failed_at if until is None else max(self.failed_at, until)
        return until

    def gives_up_at(self, queued: float, now: float, hope: float | None) -> float | None:
        """Return when to look at a task queued at `queued`; None while a worker owns a resource.

        It fails then at the earliest, unless an attempt ends before. `hope`: see `gives_up_on`.
        """
        if self.bare_since is None:
            return None
        due = max(self.bare_since, queued) + self.create_timeout
        if not self.failures or self.since is None:
            return due
        if not self.is_old(now):
            return min(due, self.since + self.create_timeout)
        return now if hope is None else min(due, hope + self.create_timeout)
