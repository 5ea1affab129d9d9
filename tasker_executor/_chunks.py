"""The chunks of a `map`: several calls that make one task, and the function of that task."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from ._engine.current import current, current_task
from .exceptions import NoCurrentTask

__all__ = ["Chunk", "ChunkRunner", "chunked"]


class Chunk:
    """The calls of one task, and their results so far."""

    __slots__ = ("calls", "results")

    def __init__(self, calls: tuple[tuple[Any, ...], ...]) -> None:
        self.calls = calls
        # The thread that runs the task appends. Other threads copy the list, in one step, and change no list that
        # this thread has.
        self.results: list[Any] = []

    def final_results(self, error: BaseException | None, *, scoped: bool) -> list[Any]:
        """Return the results that count, the last one first, when the task has ended with `error` or none.

        The caller gets a list of its own. A task that was given up may go on: its worker may note one more.
        """
        noted, self.results = self.results, []
        return [] if error is not None and scoped else noted[::-1]  # the scope undid what those calls did


class ChunkRunner:
    """The function of a chunk's task: makes each call of the chunk.

    A retry goes on with the call that failed. But if the executor enters a scope for each task, such as a
    transaction, the scope has undone all calls of the failed attempt. So the retry makes all calls.

    A task that is stopped makes none of the calls that are left.
    """

    __slots__ = ("__wrapped__", "scoped")

    def __init__(self, fn: Callable[..., Any], *, scoped: bool = False) -> None:
        self.__wrapped__ = fn
        self.scoped = scoped

    def __call__(self, *args: Any) -> None:
        """Make the calls that have no result yet. `args` are the resource, if there is one, and the chunk."""
        *resource, chunk = args
        fn = partial(self.__wrapped__, *resource) if resource else self.__wrapped__
        if self.scoped:
            chunk.results.clear()
        # The results are noted one by one, so those before a call that raises are kept. This is a plain loop:
        # loops of the standard library (`map`, `starmap`) take a StopIteration of the function for the end of
        # the calls.
        note = chunk.results.append
        # A stop comes to a worker's task in its sidecar. As long as there is none, the task asks for no token:
        # that would make one, and cost 4 us for each chunk.
        task: Any = getattr(current.here.holder, "task", None)
        raise_if_cancelled = None if task else _look_out()
        for call in chunk.calls[len(chunk.results) :]:
            if raise_if_cancelled is not None:
                raise_if_cancelled()
            elif task._sidecar is not None:
                raise_if_cancelled = _look_out()
                raise_if_cancelled()
            note(fn(*call))


def _look_out() -> Callable[[], object]:
    """Return a function that raises if the task that calls this is to stop."""
    try:
        return current_task().raise_if_cancelled
    except NoCurrentTask:  # `submit` was replaced: this is the thread of another library
        return int  # does nothing


def chunked(calls: Iterator[tuple[Any, ...]], size: int, chunks: deque[Chunk]) -> Iterator[tuple[Chunk]]:
    """Yield the arguments of each task, and append its chunk to `chunks`."""
    while part := tuple(islice(calls, size)):
        chunk = Chunk(part)
        chunks.append(chunk)
        yield (chunk,)
