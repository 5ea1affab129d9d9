"""The iterator that `map` returns, whatever the order of the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterable
from concurrent.futures import Future
from itertools import chain
from typing import Any, TypeVar

from .futures import TaskFuture

__all__ = ["Results", "cancel_all", "stop_all"]

T = TypeVar("T")


def cancel_all(futures: Iterable[Future[Any]]) -> None:
    """Cancel the tasks that have not started."""
    for future in futures:
        future.cancel()


def stop_all(futures: deque[Future[Any]]) -> None:
    """Cancel the tasks that have not started, stop those that run, and empty `futures`.

    The latest comes first: so the tasks that wait are cancelled before the worker of a stopped task could
    take them. A future of another library cannot stop its task, so it is cancelled at most.
    """
    while futures:
        future = futures[-1]
        if isinstance(future, TaskFuture):
            future.stop()
        else:
            future.cancel()
        futures.pop()  # last: after Ctrl-C the caller cancels those that are left


class Results(chain[T]):
    """The results of a generator, at no cost for each, with a `close` that works before the first result.

    A generator that has not begun does nothing when it is closed, so `close` cancels the futures itself. Such
    a generator does nothing when it is dropped either. That is wanted: a caller who ignores the results of
    `map` wants its tasks run.

    It has no lock. A second thread that asks while the first one is inside gets the ValueError of the generator,
    and changes nothing. (Early Pythons without the GIL may crash if two threads enter a generator at one instant.)
    """

    _generator: Generator[T]
    _futures: Collection[Future[Any]]

    def __new__(cls, generator: Generator[T], futures: Collection[Future[Any]]) -> Results[T]:
        results = super().__new__(cls, generator)
        results._generator = generator
        results._futures = futures
        return results

    def close(self) -> None:
        """Hand out no more results, and cancel the tasks that have not started."""
        self._generator.close()
        cancel_all(self._futures)
