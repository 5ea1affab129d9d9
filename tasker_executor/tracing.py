"""Record the load of an executor, to try scaling policies on it.

`TraceRecorder` is an observer that writes one row for each task to a CSV file, which `tasker_executor.simulate` reads:

    >>> import os, tempfile
    >>> from tasker_executor import BacklogPolicy, ResourceExecutor, simulate
    >>> path = os.path.join(tempfile.mkdtemp(), "trace.csv")
    >>> with TraceRecorder(path) as recorder, ResourceExecutor(4, observers=[recorder]) as pool:
    ...     results = list(pool.map(str, range(100)))
    >>> simulate(BacklogPolicy(), path, max_workers=4).completed
    100
"""

from __future__ import annotations

import csv
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Self, TextIO

from typing_extensions import override

from ._sync import clock
from .observers import Observer, StateEvent, TaskEvent

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["TraceRecorder"]

#: Rows between two writes to the file.
_BATCH = 256


class TraceRecorder(Observer):
    """Writes the tasks of the executors that it observes to a CSV file, each when it is done.

    Columns, in seconds:

    - ``arrival``: when the task was submitted, since the recorder was made;
    - ``wait``: from there to its first start; to its end, if it never ran;
    - ``duration``: how long it ran, in all its attempts; blank if it never ran;
    - ``lane``: ``normal`` or ``priority``;
    - ``outcome``: ``completed``, ``failed`` or ``cancelled``.

    Rows are written in batches; what is left is written when an executor closes, and by `close`. One recorder may observe
    several executors: it then records the load of all of them. After `close` it records nothing.

    Args:
        file: Path of a file, which is replaced if it exists; or a text file opened for writing, which stays open in the end.
    """

    def __init__(self, file: str | os.PathLike[str] | SupportsWrite[str]) -> None:
        self._begun = clock()
        # Of tasks that were retried: when they arrived, how long they waited at first, how long they ran until now. Each key is
        # touched by one thread at a time.
        self._retried: dict[int, tuple[float, float, float]] = {}
        # Workers append and go on; who gets the lock writes. Nobody ever waits for it, so neither a slow disk nor a signal
        # handler that cancels a task can make tasks wait for each other here. `close` alone waits; reentrant, since Ctrl-C may
        # leave the lock with the thread that closes.
        self._rows: deque[tuple[str, str, str, str, str]] = deque()
        self._writing = threading.RLock()
        self._busy = False  # the holder of the lock is about to write, or a signal handler has come between
        self._closed = False
        self._opened: TextIO | None = None
        if isinstance(file, (str, os.PathLike)):
            self._opened = file = open(file, "w", newline="", encoding="utf-8")  # noqa: SIM115  # closed by close()
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(["arrival", "wait", "duration", "lane", "outcome"])

    @override
    def task_retried(self, event: TaskEvent) -> None:
        """Keep what the row will need."""
        arrival, wait, ran = self._so_far(event)
        self._retried[event.task] = arrival, wait, ran + event.run

    @override
    def task_finished(self, event: TaskEvent) -> None:
        """Record the task."""
        retried = event.attempt != 1 and event.task in self._retried
        arrival, wait, ran = self._so_far(event)
        self._retried.pop(event.task, None)
        duration = f"{ran + event.run:.6f}" if retried or event.attempt else ""
        self._rows.append((f"{arrival:.6f}", f"{wait:.6f}", duration, event.lane, event.outcome))
        if len(self._rows) >= _BATCH:
            self.flush()

    def _so_far(self, event: TaskEvent) -> tuple[float, float, float]:
        """When the task arrived, how long it waited at first, and how long it ran in the attempts before this one."""
        before = self._retried.get(event.task)
        if before is not None and event.attempt != 1:  # else left by another task of that number, whose end was interrupted
            return before
        return max(0.0, clock() - event.run - event.wait - self._begun), event.wait, 0.0

    @override
    def state_changed(self, event: StateEvent) -> None:
        """Write what is left when an executor has closed."""
        if event.state == "closed":
            self.flush()

    def flush(self) -> None:
        """Write the rows that have not been written yet. If somebody is writing already, that thread writes them."""
        while self._rows and not self._busy and self._writing.acquire(False):
            try:
                self._write()
            finally:
                self._writing.release()

    def close(self) -> None:
        """Write what is left, and close the file if it was opened here."""
        with self._writing:
            self._write()
            self._closed = True
            if self._opened is not None:
                self._opened.close()

    def _write(self) -> None:
        try:
            self._busy = True
            rows = [self._rows.popleft() for _ in range(len(self._rows))]
            if rows and not self._closed:
                self._writer.writerows(rows)
                if self._opened is not None:
                    self._opened.flush()
        finally:
            self._busy = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
