"""A run: one call of ``run_now``, as the threads see it that may stop it. All its attempts are one run.

**An abort never hits another call.** The resource of a call serves the next call as soon as this one has
ended. So each attempt holds its resource in a `Grip`:

1. The thread of the abort announces itself (`Holding.abort`), and then claims the resource.
2. The call ends, and then lets go of the resource.
3. Both are one `deque.pop` of the same deque. So either the abort comes too late, and calls no hook; or the
   call knows that its resource has been aborted, or is about to be.

There is no lock: a signal handler may stop the very call that it has interrupted, at any point. And a lock
that a thread of the parent holds would stay locked in the child of a fork.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

from .._report import function_name
from .._sync import clock, pop_into
from .stopping import Reason, Stop, Token

__all__ = ["Grip", "Run", "stop_of"]


class Grip:
    """The grip of a call on its resource during one attempt."""

    __slots__ = ("_aborted", "_held", "_over", "_released", "holding")

    def __init__(self, holding: Any) -> None:
        self.holding = holding
        # The pop decides: one step. `_aborted` is stored by the thread that has popped, the others by the
        # call.
        self._held = deque([True])
        self._aborted = False
        self._over = False
        self._released: list[bool] = []

    def claim(self) -> bool:
        """Claim the resource for an abort; return False if the attempt is over, or another abort has the claim."""
        try:
            self._held.pop()
        except IndexError:
            return False
        self._aborted = True
        return not self._over  # `let_go` may have come while another abort had the claim

    def give_back(self) -> None:
        """Give a claim back, after the abort. So the resource may be aborted again."""
        self._held.append(True)

    def let_go(self) -> bool:
        """Let go of the resource; return whether an abort has claimed it. A second call gives the same answer."""
        self._over = True
        try:
            pop_into(self._held.pop, self._released.append)
        except IndexError:
            pass
        return self._aborted or not self._released


class Run(Token):
    """A call of ``run_now`` that can be stopped, and its cancel token.

    A call without a limit needs no run until it asks for its token. So most calls never have one.
    """

    __slots__ = ("_began", "_ran", "_watch", "due", "error", "grip", "limit", "over", "stops", "task")

    def __init__(self, limit: float | None = None, watch: Callable[[Run], object] | None = None, task: Any = None) -> None:
        """Let `watch` know of each attempt that has a limit. `task`: the future of this call, if it has one."""
        super().__init__()
        self.limit = limit
        self.task = task
        self._watch = watch
        self._began: float | None = None  # when the attempt in hand began
        self._ran = 0.0  # seconds that earlier attempts took
        #: When it has run for too long. Infinite between two attempts. Stored by the call and by the timer:
        #: if one store covers the other, the call has been stopped, and an abort comes a pause later.
        self.due = inf
        self.grip: Grip | None = None
        #: The error of the last attempt, while the next one is prepared.
        self.error: BaseException | None = None
        #: The first one counts. Appended to by any thread, in one step, and never shortened.
        self.stops: list[Stop] = []
        self.over = False

    @property
    def stop(self) -> Stop | None:
        """Why it was asked to end; None if it was not."""
        return self.stops[0] if self.stops else None

    def ask(self, reason: Reason) -> bool:
        """Ask the call to end, and set its token; return False if it is over. Its resource is the caller's business."""
        if self.over:
            return False
        self.stops.append(Stop(reason, self.limit))
        self.cancel(self.stops[0].why())
        return True

    def begin(self, holding: Any, executor: str, fn: object) -> None:
        """Note that an attempt to call `fn` begins, with this resource or with none (None).

        Raises the error of a call that has been stopped before, or that has no time left.
        """
        if self.limit is not None and self._ran >= self.limit and not self.stops:
            self.ask(Reason.TIMED_OUT)
        if self.stops:
            raise self.stops[0].error(executor, function_name(fn), self.error)
        self._began = clock()
        if holding is not None:
            self.grip = Grip(holding)
            holding.call = self
        if self.limit is not None:
            self.due = self._began + self.limit - self._ran
            if self._watch is not None:
                self._watch(self)

    def let_go(self) -> bool:
        """Note that the attempt has ended; return whether its resource was aborted, or is about to be.

        A second call, after an error was thrown in, gives the same answer.
        """
        if self._began is not None:
            self._ran += clock() - self._began
            self._began = None
        self.due = inf
        return self.grip is not None and self.grip.let_go()

    def end(self) -> None:
        """Note that the call is over. From here on it cannot be stopped, and it keeps nothing alive."""
        self.over = True
        self.due = inf
        self.grip = self.task = self.error = self._watch = None


def stop_of(run: Run | None, killed: Token) -> Stop | None:
    """Return why a call of ``run_now`` must end, and not be repeated; None if it may go on.

    `run` is that of the call, if it has one, and `killed` the token of the executor.
    """
    if run is not None and run.stop is not None:
        return run.stop
    return Stop(Reason.KILLED) if killed.is_open else None
