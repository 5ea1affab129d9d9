"""Calls: how a call becomes a task.

Its keywords are bound, it is wrapped if it wants no resource, and a future carries it. If a task ran in the
thread that submitted it, its error leads to our frames. `drop_frames` removes the call from these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from .._report import drop_frame, function_name, traceback_of
from .._sync import clock
from .current import Caller, current
from .lanes import Lane
from .run import Run, stop_of
from .stopping import Token
from .task import PENDING, Task

__all__ = ["WithoutResource", "bind", "call_bare", "drop_frames", "new_task"]

T = TypeVar("T")


def new_task(
    call: Callable[..., T], args: tuple[Any, ...], lane: Lane, propagate_context: bool, kind: type[Task[Any]] = Task
) -> Task[T]:
    """Return a task for `lane`, of that `kind`, which is not appended to it yet.

    `ResourceExecutor.submit` and `map` have these lines in line: there a call of this function costs 7 to
    14 %.
    """
    future: Task[T] = kind()
    future._status = PENDING
    future._sidecar = None
    future._result = call
    future._exception = args
    future._context = copy_context() if propagate_context else None
    future._lane = lane
    future._submitted = clock()
    return future


def bind(fn: Callable[..., T], kwargs: dict[str, Any]) -> Callable[..., T]:
    """Return a call of `fn` with keywords.

    If `fn` is not callable, the returned call raises that error, so the future gets it.
    """
    try:
        return partial(fn, **kwargs)
    except TypeError:
        return lambda *args: fn(*args, **kwargs)


def call_bare(
    owner: object,
    executor: str,
    killed: Token,
    run: Run | None,
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    slot: int | None = None,
) -> T:
    """Call a function, without a resource, as the current task of this thread; raise the error of its stop.

    `run`: what stops the call, if it has a limit or a future. `slot`: what `current_slot` returns.
    """
    here = current.here
    before, here.holder = here.holder, Caller(owner, killed if run is None else run, fn, slot)
    try:
        if run is not None:
            run.begin(None, executor, fn)
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            if run is not None:
                run.let_go()
            if (stop := stop_of(run, killed)) is None:
                raise
            raise stop.error(executor, function_name(fn), error) from error
    finally:
        here.holder = before
        if run is not None:
            run.let_go()


class WithoutResource:
    """Calls a function without the resource that the worker hands out."""

    __slots__ = ("__wrapped__",)

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.__wrapped__ = fn

    def __call__(self, _resource: object, /, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)


def drop_frames(error: BaseException, files: Collection[str]) -> BaseException:
    """Drop our outermost frames, and their locals, from an error's traceback; return the error.

    Ours are those from `files`. A frame of the task leads to the frames of its callers (`f_back`), with or
    without a traceback. So each of our frames must let go of the executor, the arguments and the future.
    Otherwise an error that the user keeps would keep them all.
    """
    while (trace := traceback_of(error)) is not None and trace.tb_frame.f_code.co_filename in files:
        frame = trace.tb_frame
        drop_frame(error)
        del trace
        try:
            frame.clear()
        except RuntimeError:  # it is our caller's, which is running: the caller deletes its locals itself
            pass
    return error
