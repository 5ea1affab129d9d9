"""`on_abort` hooks, each called on a thread of its own.

A hook that hangs, in a half-open network for instance, holds up neither the killer nor the other hooks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

from .._sync import clock, lock_timeout
from .._types import AbortHook
from .holding import Holding
from .process import at_exit
from .threads import CannotStart, make_thread, start_thread

__all__ = ["ABORT_PATIENCE", "Target", "abort_all", "join_aborts", "start_abort"]

R = TypeVar("R")

#: Seconds that `kill(destroy=True)`, and the end of the interpreter, wait for `on_abort` hooks, in all.
ABORT_PATIENCE = 1.0

#: A resource to abort, and whether it is still in use for the task that the killer means.
Target: TypeAlias = tuple[Holding[Any], Callable[[], bool]]

#: Threads that call, or are about to call, an `on_abort` hook. Each change is one step; looked at in a copy.
_aborting: set[threading.Thread] = set()


def abort_all(targets: list[Target], hook: AbortHook[Any], executor: str) -> list[threading.Thread]:
    """Call the `on_abort` hook for each of these resources that is still in use. Do not wait for the hooks.

    At most as many threads start as there are resources in use. If the system refuses a thread, the threads
    that run do the rest. If none runs, the killer itself does.
    """
    todo = deque(targets)

    def work() -> None:
        while todo:
            try:
                holding, in_use = todo.popleft()
            except IndexError:  # another thread was quicker
                break
            holding.abort(hook, executor, in_use)

    threads: list[threading.Thread] = []
    for number in range(len(targets)):
        try:
            threads.append(_start(work, f"{executor}_abort_{number}"))
        except CannotStart:
            if not threads:
                work()
            break
    return threads


def start_abort(holding: Holding[R], hook: AbortHook[R], executor: str, in_use: Callable[[], bool]) -> bool:
    """Call the `on_abort` hook on a thread of its own, if the resource is `in_use` by then. Do not wait for it.

    Return False if the system refuses the thread. Then nothing has been called.
    """
    try:
        _start(partial(holding.abort, hook, executor, in_use), f"{executor}_abort")
    except CannotStart:
        return False
    return True


def _start(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread for `work`, for which `join_aborts` waits. Raises CannotStart."""

    def run() -> None:
        try:
            work()
        finally:
            _aborting.discard(threading.current_thread())

    thread = make_thread(run, name)
    _aborting.add(thread)
    try:
        start_thread(thread)
    except BaseException:
        if thread.ident is None:
            _aborting.discard(thread)
        raise
    return thread


def join_aborts(threads: list[threading.Thread] | None = None) -> None:
    """Wait for the `on_abort` hooks of these threads, or of all threads.

    At most `ABORT_PATIENCE` seconds: a hook may hang.
    """
    deadline = clock() + ABORT_PATIENCE
    for thread in list(_aborting.copy()) if threads is None else threads.copy():  # another kill may extend it
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join(lock_timeout(max(0.0, deadline - clock())))


at_exit(join_aborts, last=True)
