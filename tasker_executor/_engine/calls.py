"""Calls: how a call becomes a task.

Its keywords are bound, it is wrapped if it wants no resource, and a future carries it. If a task ran in the
thread that submitted it, its error leads to our frames. `drop_frames` removes the call from these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from .._report import drop_frame, traceback_of
from .._sync import clock
from .lanes import Lane
from .task import PENDING, Task

__all__ = ["WithoutResource", "bind", "drop_frames", "new_task"]

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
