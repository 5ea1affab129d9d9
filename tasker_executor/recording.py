"""Record the load of an executor, to try scaling policies on it.

`LoadRecorder` is an observer that writes one row for each task to a file. The file is a *recording*, and
`tasker_executor.simulation.simulate` reads it:

    >>> import os, tempfile
    >>> from tasker_executor import BacklogPolicy, ResourceExecutor
    >>> from tasker_executor.simulation import simulate
    >>> path = os.path.join(tempfile.mkdtemp(), "load.csv")
    >>> with LoadRecorder(path) as recorder, ResourceExecutor(4, observers=[recorder]) as pool:
    ...     results = list(pool.map(str, range(100)))
    >>> simulate(BacklogPolicy(), path, max_workers=4).completed
    100

A recording is a CSV file with a header. Its columns, with times in seconds:

- ``arrival``: when the task was submitted, since the recorder was made;
- ``wait``: from there to its first start; to its end, if it never ran;
- ``duration``: how long it ran, in all its attempts; blank if it never ran;
- ``lane``: ``normal`` or ``priority``;
- ``outcome``: ``completed``, ``failed`` or ``cancelled``.

`read_recording` needs the column ``arrival`` alone, uses ``duration`` and ``lane`` if they are there, and
ignores other columns. A file without a header holds one arrival a line. Empty lines, and lines that begin
with ``#``, are skipped.
"""

from __future__ import annotations

import csv
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Self, TextIO

from typing_extensions import override

from ._checks import check_finite
from ._sync import clock
from .observers import Observer, StateEvent, TaskEvent

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

__all__ = ["LoadRecorder", "Recording", "read_recording"]

_COLUMNS = ["arrival", "wait", "duration", "lane", "outcome"]

#: Rows between two writes to the file.
_BATCH = 256


class LoadRecorder(Observer):
    """Writes a row to a recording for each task of the executors that it observes, when the task is done.

    The recorder writes rows in batches. It writes the rest when an executor closes, and in `close`. One
    recorder may observe several executors: the recording then has the load of all of them. After `close` it
    records nothing.

    Args:
        file: Path of a file, which is replaced if it exists; or a text file opened for writing, which stays
            open.
    """

    def __init__(self, file: str | os.PathLike[str] | SupportsWrite[str]) -> None:
        self._begun = clock()
        # For each task that was retried: when it arrived, how long it waited at first, how long it ran until
        # now. One thread at a time touches a key.
        self._retried: dict[int, tuple[float, float, float]] = {}
        # A worker appends its row and goes on; the thread that gets the lock writes. No worker waits for the
        # lock. So neither a slow disk nor a signal handler that cancels a task makes tasks wait for each
        # other here. Only `close` waits. The lock is reentrant, since Ctrl-C may leave it with the thread
        # that closes. To append is one step, and only the thread with the lock takes rows out. A thread appends
        # before it looks for a writer, and a writer looks for rows after it let go. So no row is left behind.
        self._rows: deque[tuple[str, str, str, str, str]] = deque()
        self._writing = threading.RLock()
        self._busy = False  # True while the holder of the lock writes: a signal handler on its thread must not.
        self._closed = False
        self._opened: TextIO | None = None
        if isinstance(file, (str, os.PathLike)):
            self._opened = file = open(file, "w", newline="", encoding="utf-8")  # noqa: SIM115  # closed by close()
        self._writer = csv.writer(file, lineterminator="\n")
        self._writer.writerow(_COLUMNS)

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
        """Return when the task arrived, how long it waited first, and how long its earlier attempts ran."""
        before = self._retried.get(event.task)
        # In its first attempt a task has no entry. An entry with its number is that of another task, whose
        # end was interrupted.
        if before is not None and event.attempt != 1:
            return before
        return max(0.0, clock() - event.run - event.wait - self._begun), event.wait, 0.0

    @override
    def state_changed(self, event: StateEvent) -> None:
        """Write the rows that are left when an executor has closed."""
        if event.state == "closed":
            self.flush()

    def flush(self) -> None:
        """Write the rows that are not in the file yet. If another thread is writing, it writes them, too."""
        while self._rows and not self._busy and self._writing.acquire(False):
            try:
                self._write()
            finally:
                self._writing.release()

    def close(self) -> None:
        """Write the rows that are left, and close the file if the recorder opened it."""
        with self._writing:
            self._write()
            self._closed = True
            if self._opened is not None:
                self._opened.close()

    def _write(self) -> None:
        """Write the rows that are there. Lock held."""
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


class Recording(NamedTuple):
    """The tasks of a recording, in the order of its rows: the order in which they were done, not of arrival.

    Attributes:
        arrivals: When each task arrived.
        durations: How long each task ran; None if the recording does not say, or was not asked.
        priority: Whether each task was in the priority lane; None if the recording does not say.
    """

    arrivals: list[float]
    durations: list[float] | None = None
    priority: list[bool] | None = None


def read_recording(path: str | os.PathLike[str], *, use_durations: bool = True) -> Recording:
    """Return the tasks of the recording in a file.

    Args:
        path: Path of the file. The module's description says what may be in it.
        use_durations: True to read the durations and to leave out tasks that never ran; False to read every
            arrival.

    Raises:
        ValueError: The file is not a recording. The message names the line.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    with open(name, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        rows = [(f"{name}, line {reader.line_num}", row) for row in reader if "".join(row).strip() and row[0][0:1] != "#"]
    if not rows:
        return Recording([], [])
    first_line, first_row = rows[0]
    header = [column.strip().lower() for column in first_row]
    if "arrival" not in header:
        if len(header) > 1:
            raise ValueError(f"{first_line}: a header with a column 'arrival' is needed, not {','.join(first_row)!r}")
        header = ["arrival"]
    else:
        del rows[0]

    use_durations = use_durations and "duration" in header
    recording = Recording([], [] if use_durations else None, [] if "lane" in header else None)
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{line}: {len(header)} columns are needed, not {','.join(row)!r}")
        cells = dict(zip(header, row, strict=True))
        if recording.durations is not None:
            if not cells["duration"].strip():
                continue
            recording.durations.append(_parse(line, "duration", cells["duration"]))
        recording.arrivals.append(_parse(line, "arrival", cells["arrival"]))
        if recording.priority is not None:
            recording.priority.append(cells["lane"].strip().lower() == "priority")
    return recording


def _parse(line: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{line}: {column} must be a number, not {text!r}") from None
    return check_finite(f"{line}: {column}", value)
