"""The process: the exit of the interpreter and the child of a fork, for all executors alike.

This module alone registers with the interpreter: one hook for the exit, and one for a fork.

**At exit**, the hook runs before the interpreter joins its threads, and so before each `atexit` callback. The
standard library's thread pools do the same. It takes these steps, in this order:

1. The calls of `at_exit`, the last one registered first. All executors still accept tasks.
2. From now on `exiting` is true, so each executor that is made later refuses all tasks.
3. All living executors are closed: they refuse new tasks and drain.
4. The hook joins each executor, unless it was killed.
5. The hook joins the threads that are about to end. The interpreter would stop a daemon thread at any point
   of its code, where the thread may hold a lock.
6. The calls of ``at_exit(last=True)``, the last one registered first.

**In the child of a fork**, the hook runs the calls of `after_fork_in_child` in the order in which they were
registered. Then it tells all executors that their threads are gone, and forgets them.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # pyright: ignore[reportUnusedImport]  # see the end
import os
import threading
from collections.abc import Callable
from typing import Protocol

from .threads import Endings

__all__ = ["Member", "after_fork_in_child", "at_exit", "ending", "enter", "executors", "exiting", "leave"]


class Member(Protocol):
    """What the process asks of an executor."""

    def refuse_at_exit(self) -> None:
        """Refuse new tasks because the interpreter exits. Do nothing if the executor refuses them already."""

    def close(self) -> None:
        """Accept no new task, and drain."""

    def join_at_exit(self) -> None:
        """Block until the executor has ended, unless it was killed."""

    def reinit_after_fork(self) -> None:
        """Give up the threads, the tasks and the resources, which are the parent's."""


#: All executors that may still have threads or resources, by their id. The references are strong until the
#: executor is closed: the exit hook drains an executor that the user has dropped, too. Changed without
#: a lock, by single calls. An executor enters and then looks at `_exiting`; the hook sets that and then copies.
#: So one of the two sees the other.
_executors: dict[int, Member] = {}
#: Threads that have done all for their executor, and may still take a moment to end.
ending = Endings()
_exiting = False
#: What `at_exit` and `after_fork_in_child` have registered, as modules were imported.
_first: list[Callable[[], object]] = []
_last: list[Callable[[], object]] = []
_forked: list[Callable[[], object]] = []


def enter(executor: Member) -> None:
    """Keep `executor` until it leaves: it is drained at exit."""
    _executors[id(executor)] = executor


def leave(executor: Member) -> None:
    """Forget `executor`, which has no more threads and resources. A second call does nothing."""
    _executors.pop(id(executor), None)


def executors() -> list[Member]:
    """Return the executors that have entered and not left."""
    return list(_executors.copy().values())


def exiting() -> bool:
    """Return whether the interpreter exits."""
    return _exiting


def at_exit(call: Callable[[], object], *, last: bool = False) -> None:
    """Register `call` for the exit: before the executors are closed or, if `last`, after they have ended."""
    (_last if last else _first).append(call)


def after_fork_in_child(call: Callable[[], object]) -> None:
    """Register `call` for the child of each fork: before the executors are told."""
    _forked.append(call)


def _at_exit() -> None:
    """Take the steps of the module's docstring."""
    global _exiting
    for call in reversed(_first):
        call()
    _exiting = True
    living = executors()
    for executor in living:
        executor.refuse_at_exit()
        executor.close()
    for executor in living:
        executor.join_at_exit()
    for thread in ending.alive():
        thread.join()
    for call in reversed(_last):
        call()


def _after_fork_in_child() -> None:
    try:
        for call in _forked:
            call()
    finally:  # even if a call raises (EMFILE): an executor that is not told waits for the parent's threads
        for executor in executors():
            executor.reinit_after_fork()
        _executors.clear()
        ending.clear()


# The interpreter calls the last one registered first. Our hook drains before that of the standard library's
# thread pools, so a task of ours may still use such a pool. The function is private, and it is what
# `concurrent.futures` itself uses.
threading._register_atexit(_at_exit)  # type: ignore[attr-defined]  # not in typeshed
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
