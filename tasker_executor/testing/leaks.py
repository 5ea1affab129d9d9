"""The leak check."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from .._checks import check_seconds
from .._engine import process
from .._sync import clock, lock_timeout
from . import inline as _inline
from .inline import InlineExecutor

__all__ = ["assert_no_leaks"]


@contextmanager
def assert_no_leaks(timeout: float = 5.0, *, ignore_threads: Iterable[str] = ()) -> Generator[None]:
    """Fail at the end of the block if it leaves threads or unfinished executors that were not there before.

    An error raised in the block is passed on; nothing is checked then.

    Args:
        timeout: Seconds that threads and executors may take to end.
        ignore_threads: How the names of another library's threads begin that outlive the block by design.

    Raises:
        AssertionError: Something is left; the message names it.

    Example:
        >>> from tasker_executor import ResourceExecutor
        >>> with assert_no_leaks():
        ...     with ResourceExecutor(2) as pool:
        ...         pool.submit(pow, 2, 5).result()
        32
        >>> with assert_no_leaks(timeout=0.0):
        ...     pool = ResourceExecutor(1, name="crawler", min_workers=1)
        Traceback (most recent call last):
        AssertionError: left behind: thread crawler_0; executor 'crawler' (running)
        >>> pool.shutdown()
    """
    timeout = check_seconds("timeout", timeout)
    ignored = tuple(ignore_threads)
    threads_before = set(threading.enumerate())
    cores_before = weakref.WeakSet(process.executors())  # only asked whether it has one, which is one step
    inline_before = _inline.open_executors.copy()
    yield
    deadline = clock() + timeout
    collected = False
    while True:
        cores: list[Any] = [core for core in process.executors() if core not in cores_before]
        threads = [
            thread
            for thread in threading.enumerate()
            if thread not in threads_before and not thread.name.startswith(ignored) and thread is not threading.current_thread()
        ]
        inline = _open_since(inline_before)
        if not (cores or threads or inline):
            return
        if not collected:  # an executor in a reference cycle ends when that is found
            collected = True
            del cores, inline
            gc.collect()
            continue
        remaining = deadline - clock()
        if remaining <= 0 or not (cores or threads):
            break
        if cores:
            cores[0].gauges.wait_until_closed(remaining)
        else:
            threads[0].join(lock_timeout(remaining))
    left = [f"thread {thread.name}" for thread in threads]
    left += [f"executor {core.name!r} ({core.life.state.name.lower()})" for core in cores]
    left += [f"executor {executor.name!r} ({executor._state.name.lower()})" for executor in inline]
    raise AssertionError(f"left behind: {'; '.join(left)}")


def _open_since(before: dict[int, weakref.ref[InlineExecutor[Any]]]) -> list[InlineExecutor[Any]]:
    """Return the inline executors that are open and were not before."""
    now = _inline.open_executors.copy()
    new = [reference() for number, reference in now.items() if before.get(number) is not reference]
    return [executor for executor in new if executor is not None]
