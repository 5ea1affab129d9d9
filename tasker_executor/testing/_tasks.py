"""The tasks of an `InlineExecutor`, their calls, and their futures."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures._base import CANCELLED
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from typing_extensions import override

from .._checks import wait_seconds
from .._engine.holding import Holding
from .._engine.invoke import CALLERS, run_in_scope
from .._types import AroundHook
from ..futures import TaskFuture
from ._runs import InlineRun

__all__ = ["Call", "InHand", "InlineFuture", "Task", "call_in_scope"]

T = TypeVar("T")


class Runner(Protocol):
    """What a future needs of the executor."""

    def _run_until(self, future: InlineFuture[Any], timeout: float | None) -> None: ...
    def _withdraw(self, future: InlineFuture[Any]) -> None: ...
    @property
    def _stop(self) -> Callable[[InlineRun], bool]: ...
    def _close_if_drained(self) -> None: ...


@dataclass(eq=False)
class Call:
    """What a queued task runs.

    It refers to no future: a future keeps its task's error, and the error refers to frames that have this.
    """

    fn: Callable[..., Any]
    kwargs: dict[str, Any]
    context: Context = field(default_factory=copy_context)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function, for those who look for its name."""
        return self.fn

    def __call__(self, *arguments: Any) -> Any:
        """Call the function in a copy of the context: an attempt must not see what an earlier one has set."""
        return self.context.copy().run(self.fn, *arguments, **self.kwargs)


def call_in_scope(around: AroundHook[Any], holding: Holding[Any], call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Make a call in the scope that ``around`` returns for it, and both in the context of the task, if it is one's."""
    if not isinstance(call, Call):  # `run_now`: in the context of the caller
        return run_in_scope(around, holding, call, args)
    bare = partial(call.fn, **call.kwargs) if call.kwargs else call.fn
    return call.context.copy().run(run_in_scope, around, holding, bare, args)


CALLERS.update({Call.__call__.__code__, call_in_scope.__code__})


@dataclass(eq=False)
class Task:
    """A queued call and its future."""

    future: InlineFuture[Any]
    call: Call
    args: tuple[Any, ...]
    max_retries: int
    deadline: float | None
    run: InlineRun
    # Guarded by the executor's lock.
    counted: bool = False  # as one of those that run
    in_hand: bool = False
    outcome: tuple[Any, BaseException | None] | None = None  # once it has run


class InHand:
    """A call of `run_now` or `wait_ready`."""

    in_hand = False


class InlineFuture(TaskFuture[T]):
    """A future on which no thread works: a thread that waits for it has to run its task."""

    def __init__(self, executor: Runner, lane: deque[Task], run: InlineRun) -> None:
        super().__init__()
        self._executor = executor
        self.lane = lane
        self._run = run
        # The thread that runs the task, or has run it. It stores that itself; others compare it with themselves.
        self.runner = 0
        # The task was taken out of its lane, and must not run. Set once, under the executor's lock.
        self.withdrawn = False

    @override
    def result(self, timeout: float | None = None) -> T:
        timeout = wait_seconds(timeout)
        self._executor._run_until(self, timeout)
        return super().result(timeout)

    @override
    def exception(self, timeout: float | None = None) -> BaseException | None:
        timeout = wait_seconds(timeout)
        self._executor._run_until(self, timeout)
        return super().exception(timeout)

    @override
    def cancel(self) -> bool:
        try:
            self._end_if_withdrawn()
        finally:  # Ctrl-C may interrupt the first; if it did not, the second does nothing
            self._end_if_withdrawn()
        return self.cancelled()

    @override
    def stop(self) -> bool:
        """Cancel the task if it is queued; if it runs, ask it to stop: see `TaskFuture.stop`.

        It ends when it looks at its token, or when ``on_abort`` ends what it does. This calls ``on_abort``
        itself: there is no other thread.
        """
        return self.cancel() or self._executor._stop(self._run)

    def _end_if_withdrawn(self) -> None:
        self._executor._withdraw(self)
        if self.withdrawn:
            super().cancel()
            with self._condition:  # or two threads that cancel could both find it not told
                if self._state == CANCELLED:
                    self.set_running_or_notify_cancel()  # tells wait() and as_completed()
            self._executor._close_if_drained()
