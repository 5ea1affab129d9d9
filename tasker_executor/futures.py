"""The future of a task: that of `concurrent.futures`, and a way to stop the task."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

__all__ = ["TaskFuture"]

T = TypeVar("T")


class TaskFuture(Future[T]):
    """A `concurrent.futures.Future` that can also stop its task. `submit` returns it; only executors make it."""

    __slots__ = ()

    def stop(self) -> bool:
        """Cancel the task if it has not started; if it runs, ask it to stop.

        A task that runs sees its cancel token set (`current_task`). Its resource is aborted (``on_abort``, or
        `ResourceFactory.abort`), on a thread of its own. An abort that comes between two calls of the task may
        unblock neither. So it is repeated, with growing pauses, until the task ends or is given up.

        If the task then raises, its future has `TaskStopped`, and ``__cause__`` is what it raised. If it
        returns in spite of the stop, its result stands. A stopped task is never run again. A task that still
        runs ``abort_grace`` seconds after the stop is given up: its future has `TaskStopped` then, and its
        worker is written off.

        This never blocks. It may be called from any thread, from the task itself, from a done-callback and
        from a signal handler, and any number of times.

        Returns:
            True: the task is cancelled, or has been asked to stop. False: it was over before.
        """
        return self.cancel()

    def _waits_for_place(self) -> bool:
        """Return whether the queue is full, and the task stands in line for a place in it."""
        return False
