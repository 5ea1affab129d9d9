"""Call done-callbacks. No lock is held then, and all threads that wait for the task have been told."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from itertools import repeat
from typing import Any, TypeVar

from .._report import Logger, must_escape
from .sidecar import calls_back

__all__ = ["call_each", "call_one"]

T = TypeVar("T")

futures_logger = Logger("concurrent.futures")

_ZEROS = repeat(0)  # has no end, and so no state: all threads may share it


@calls_back
def call_each(callbacks: list[Callable[[Future[Any]], object]], task: Future[Any]) -> None:
    """Call the callbacks of `task`, taking each off the list. Raise what must escape, after the last one."""
    # `for callback in take: break` takes one off the list and stores it in one step. Its call follows before
    # an error can come. So no callback is lost, and none is called twice.
    take = map(callbacks.pop, _ZEROS)  # `_sync.takes(callbacks.pop, 0)`, in line, without its frame
    callback: Any = None
    escaped = None
    while callbacks:
        try:
            for callback in take:  # noqa: B007  # see above
                break
        except IndexError:  # another thread was quicker
            break
        try:
            callback(task)
        except BaseException as error:  # SystemExit, too: the other callbacks are still called, and the worker does not end
            if must_escape(error):
                escaped = error
            else:
                futures_logger.exception("exception calling callback for %r", task)
    if escaped is not None:
        try:
            raise escaped
        finally:
            del escaped


@calls_back
def call_one(callback: Callable[[Future[T]], object], task: Future[T]) -> None:
    """Call a callback that comes when `task` is final already. An exception is logged."""
    try:
        callback(task)
    except Exception:
        futures_logger.exception("exception calling callback for %r", task)
