"""The call of a task: how it is made inside a scope, and what its error says of it.

A worker makes a plain call itself, in its loop; the reserve does so for ``run_now``. Both come here for a
scope, and for what an error should tell the user. The worker also asks here about a coroutine.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, TypeVar

from .._report import add_note, drop_frame, function_name, innermost, traceback_of
from .._types import AroundHook
from .holding import Holding

__all__ = ["CALLERS", "drop_scope", "note_giving_up", "note_missing_argument", "refuse_async", "run_in_scope"]

T = TypeVar("T")


def run_in_scope(around: AroundHook[Any], holding: Holding[Any], call: Callable[..., T], args: tuple[Any, ...]) -> T:
    """Make the call of a task inside the scope that ``around`` returns for it.

    At its end no variable holds the call: an error that the user keeps leads to this frame.
    """
    holding.called = False
    try:
        with around(holding.resource) as scope:
            holding.scope, holding.called = scope, True
            return call(holding.given, *args)
    finally:
        holding.scope = scope = None
        del call, args


#: The functions of ours that may stand between a traceback's first frame and the task's own.
CALLERS = {run_in_scope.__code__}


def drop_scope(error: BaseException) -> BaseException:
    """Drop the worker's frame, and that of `run_in_scope`, from an error's traceback; return the error."""
    drop_frame(error)
    trace = traceback_of(error)
    return drop_frame(error) if trace is not None and trace.tb_frame.f_code is run_in_scope.__code__ else error


def refuse_async(call: object, made: Any) -> Any:
    """Return the coroutine that a task has returned. Raises TypeError if the task is an ``async def`` function.

    A function that makes a coroutine, for its caller to await, is a task like others. So is every function
    without a resource, as in the standard library: then the worker does not ask. It asks once the task has
    returned, since to look at every function would cost 12 % of a submission.
    """
    if iscoroutinefunction(innermost(call)):
        made.close()
        raise TypeError(
            f"the task {function_name(call)} is an async function; workers are threads, and await nothing: "
            "submit a plain function, or asyncio.run with the coroutine as its argument"
        )
    return made


def note_missing_argument(error: BaseException, trace: TracebackType | None, executor: str, *, called: bool = True) -> None:
    """Say in a TypeError of the call itself that a task gets the resource first.

    `trace` is the traceback below our frame. The error of a call that does not fit has no frame of the task.
    `called`: whether there was a call. If not, the error is that of a scope.
    """
    while trace is not None and trace.tb_frame.f_code in CALLERS:
        trace = trace.tb_next
    if trace is None and called and type(error) is TypeError:
        add_note(
            error,
            f"executor {executor!r} calls tasks with its resource as the first argument; "
            "with_options(pass_resource=False) calls them as they are submitted",
        )


def note_giving_up(error: BaseException, retries: int) -> None:
    """Say in the error of a task's last attempt how many retries there were, if there were any."""
    if retries:
        add_note(error, f"gave up after {retries} retries; the last resource broke, too")
