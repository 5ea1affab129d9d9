"""Draw what an executor did, or would do: ``pip install tasker-executor[plot]``.

For example::

    with record(pool) as timeline:
        do_the_work(pool)
    result = simulate(policy, "load.csv", min_workers=2, max_workers=16)
    draw([Run.recorded("real", timeline, base=2), Run.simulated("simulated", result, base=2)], "burst.svg")

The picture has a column for each run. A column shows, from top to bottom, the backlog, the workers (the base,
and the burst above it) and the waits of the tasks. The module uses neither pyplot nor a backend. So it works in
any thread and on a server. While it draws, two settings of matplotlib, for SVG, are changed for all threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ._checks import check_seconds
from ._engine.threads import make_thread
from ._executor import ResourceExecutor
from ._sync import clock, lock_timeout
from .observers import Observer, TaskEvent

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as _error:
    raise ImportError("matplotlib is missing: pip install tasker-executor[plot]") from _error

if TYPE_CHECKING:
    from .simulation import Simulation

__all__ = ["Point", "Run", "Timeline", "Waits", "draw", "record"]

# Guards the settings of matplotlib, from their change until they are as before. 1. A thread changes them.
# 2. So does another one. 3. The first thread restores what was, and the other draws with that. 4. The other
# restores what it found: the settings of the first, for good. Reentrant, for a signal handler that draws.
_drawing = threading.RLock()

_BASE, _BURST, _BACKLOG, _WAIT = "#4477aa", "#66ccee", "#ccbb44", "#aa3377"


@dataclass(frozen=True)
class Point:
    """A point of a timeline: how many workers lived and how many tasks waited at that time."""

    time: float
    workers: int
    queued: int


@dataclass(frozen=True)
class Run:
    """What is drawn in one column.

    Attributes:
        title: Stands above it.
        base: Workers that are always kept.
        points: The timeline; each point holds until the next.
        waits: When each task arrived and how long it waited.
    """

    title: str
    base: int
    points: tuple[Point, ...]
    waits: tuple[tuple[float, float], ...] = ()

    @property
    def worker_seconds(self) -> float:
        """What the run cost, the sum of the times that the workers lived."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return sum(point.workers * (following.time - point.time) for point, following in pairs)

    @classmethod
    def simulated(cls, title: str, result: Simulation, *, base: int, arrivals: Sequence[float] = ()) -> Self:
        """Return the run that `simulate` found, with the waits if the `arrivals` are given, in any order."""
        points = tuple(Point(moment.time, moment.workers, moment.queued) for moment in result.timeline)
        return cls(title, base, points, tuple(zip(sorted(arrivals), result.waits, strict=bool(arrivals))))

    @classmethod
    def recorded(cls, title: str, timeline: Timeline, *, base: int, waits: Waits | None = None) -> Self:
        """Return the run that `record` saw, with the waits that an observer noted, if there was one."""
        since = timeline.begun
        heard = () if waits is None else tuple((arrival - since, wait) for arrival, wait in waits.heard)
        return cls(title, base, tuple(timeline.points), heard)


class Waits(Observer):
    """Notes when tasks arrive and how long they wait. It keeps every note, so use it for runs that end."""

    def __init__(self) -> None:
        #: When each task arrived, and how long it waited, in order of their starts. Workers append. The
        #: list only grows, so it may be read at any time.
        self.heard: list[tuple[float, float]] = []

    def task_started(self, event: TaskEvent) -> None:
        """Note the first attempt of a task."""
        if event.attempt == 1:
            self.heard.append((clock() - event.wait, event.wait))


class Timeline:
    """Looks at an executor at short intervals and keeps what it saw. Obtained from `record`."""

    def __init__(self, pool: ResourceExecutor[Any], interval: float) -> None:
        self._pool = pool
        self._interval = check_seconds("interval", interval, above_zero=True)
        self._stop = threading.Event()
        self._thread = make_thread(self._run, "tasker_timeline")
        #: When the timeline began, on the library's clock. The times of `points` count from there.
        self.begun: float = 0.0
        #: What it saw. Our thread appends; before its start and after its end, the thread of the block does.
        self.points: list[Point] = []

    def __enter__(self) -> Self:
        self.begun = clock()
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(lock_timeout(self._interval)):
            self._look()

    def _look(self) -> None:
        stats = self._pool.stats()
        queued = stats.queued_tasks + stats.priority_tasks
        self.points.append(Point(clock() - self.begun, stats.active_workers, queued))


def record(pool: ResourceExecutor[Any], *, interval: float = 0.01) -> Timeline:
    """Return a `Timeline` that looks at an executor while a ``with`` block runs.

    Args:
        pool: The executor.
        interval: Seconds between two looks at it.
    """
    return Timeline(pool, interval)


def draw(runs: Sequence[Run], file: str | os.PathLike[str], *, title: str = "") -> None:
    """Draw some runs side by side, to the same scale, and write the picture to a file.

    Args:
        runs: One or more.
        file: Path of the picture. Its suffix names the format: ``.svg``, ``.png``, ``.pdf``. The same runs
            give the same SVG, byte for byte.
        title: Stands above all columns.
    """
    if not runs:
        raise ValueError("there must be at least one run to draw")
    # The salt makes the names inside an SVG the same each time. A date would differ each time, so there is
    # none.
    with _drawing, matplotlib.rc_context({"svg.hashsalt": "tasker_executor", "svg.fonttype": "none"}):
        figure = Figure(figsize=(1.0 + 4.5 * len(runs), 6.5), layout="constrained")
        axes = figure.subplots(3, len(runs), sharex=True, sharey="row", squeeze=False)
        rows: list[tuple[str, Callable[[Axes, Run], None]]] = [
            ("tasks waiting", _draw_backlog),
            ("workers", _draw_workers),
            ("wait [s]", _draw_waits),
        ]
        for row, (label, draw_row) in enumerate(rows):
            for column, run in enumerate(runs):
                draw_row(axes[row][column], run)
                axes[row][column].set_ylim(bottom=0)
            axes[row][0].set_ylabel(label)
        for column, run in enumerate(runs):
            axes[0][column].set_title(run.title)
            axes[2][column].set_xlabel("time [s]")
        axes[1][0].legend(loc="upper right", frameon=False)
        if title:
            figure.suptitle(title)
        is_svg = os.fspath(file).lower().endswith(".svg")
        figure.savefig(file, metadata={"Date": None} if is_svg else None)


def _draw_backlog(axes: Axes, run: Run) -> None:
    times, queued = [point.time for point in run.points], [point.queued for point in run.points]
    axes.fill_between(times, queued, step="post", color=_BACKLOG, linewidth=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_workers(axes: Axes, run: Run) -> None:
    times, workers = [point.time for point in run.points], [point.workers for point in run.points]
    base = [min(run.base, number) for number in workers]
    axes.fill_between(times, base, step="post", color=_BASE, linewidth=0, label="base")
    axes.fill_between(times, base, workers, step="post", color=_BURST, linewidth=0, label="burst")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_waits(axes: Axes, run: Run) -> None:
    axes.scatter([arrival for arrival, _ in run.waits], [wait for _, wait in run.waits], s=4, color=_WAIT, linewidths=0)
