"""How the tasks of an `InlineExecutor` are stopped."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import CoroutineType
from typing import Any

from typing_extensions import override

from .._engine.calls import call_bare
from .._engine.invoke import refuse_async
from .._engine.reserve import Reserve
from .._engine.run import Run
from .._engine.stopping import KILLED, Reason, Token
from .._options import TaskOptions
from .._sync import clock
from .._types import AbortHook

__all__ = ["InlineRun", "InlineRuns"]


class InlineRun(Run):
    """What stops a task, or a call of ``run_now``. No thread watches its limit: it looks at the clock itself."""

    __slots__ = ()

    @override
    def look(self) -> bool:
        if not self.stops and clock() >= self.due:
            self.ask(Reason.TIMED_OUT)
        return self.is_open

    @override
    def wait(self, timeout: float | None = None) -> bool:
        end = inf if timeout is None else clock() + timeout
        while not self.look() and (left := min(end, self.due) - clock()) > 0:
            super().wait(None if left == inf else left)
        return self.is_open

    def was_late(self) -> bool:
        """Return whether it was stopped by its limit."""
        return self.stop is not None and self.stop.reason is Reason.TIMED_OUT

    def was_stopped(self) -> bool:
        """Return whether it was stopped by a thread."""
        return self.stop is not None and self.stop.reason is not Reason.TIMED_OUT

    @override
    def let_go(self) -> bool:
        self.look()  # a task that has not looked may have run for too long, too
        return super().let_go()


class InlineRuns:
    """What can be stopped now: tasks, and calls of ``run_now``."""

    def __init__(self, owner: object, name: str, run_within: float | None, hook: AbortHook[Any] | None) -> None:
        self._owner = owner
        self._name = name
        self._run_within = run_within
        self._hook = hook
        # Each thread adds and discards its own, in one step. A killer opens the token first, and then copies,
        # in one step; a thread adds, and then looks at the token. So one of the two sees the other.
        self._runs: set[InlineRun] = set()
        self.killed = Token()

    def new(self, options: TaskOptions) -> InlineRun:
        """Return what stops a task with these options, which has not begun."""
        return InlineRun(options.run_limit(self._run_within))

    def call(
        self,
        run: InlineRun,
        reserve: Reserve[Any] | None,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        max_retries: int,
    ) -> Any:
        """Make a call as the current task of this thread. If the resource broke, repeat it with another."""
        try:
            self._runs.add(run)
            if self.killed.is_open:  # the killer may have looked before
                run.ask(Reason.KILLED)
            if reserve is None:
                return call_bare(self._owner, self._name, self.killed, run, call, args, kwargs, slot=0)
            value = reserve.run(call, args, kwargs, max_retries, run)
            return refuse_async(call, value) if isinstance(value, CoroutineType) else value
        finally:
            self._runs.discard(run)
            run.end()

    def stop(self, run: InlineRun, reason: Reason = Reason.STOPPED) -> bool:
        """Ask what runs to stop, and abort its resource; return False if it is over."""
        if not run.ask(reason):
            return False
        grip = run.grip
        if grip is not None and self._hook is not None:
            grip.holding.abort(self._hook, self._name, grip.claim)
        return True

    def kill(self) -> None:
        """Stop all that runs, and all that has yet to begin."""
        self.killed.cancel(KILLED)
        for run in self._runs.copy():
            self.stop(run, Reason.KILLED)
