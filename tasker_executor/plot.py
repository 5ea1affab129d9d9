"""Draw what an executor did, or would do: ``pip install tasker-executor[plot]``.

    with record(pool) as recording:
        do_the_work(pool)
    result = simulate(policy, "trace.csv", min_workers=2, max_workers=16)
    draw([Run.recorded("real", recording, base=2), Run.simulated("simulated", result, base=2)], "burst.svg")

The picture has a column for each run, and below each other the backlog, the workers (those of the base, and the burst above
them) and the waits of the tasks. Nothing global is touched: no pyplot, no backend; so it works in any thread and on a server.
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
except ModuleNotFoundError as error:
    raise ImportError("matplotlib is missing: pip install tasker-executor[plot]") from error

if TYPE_CHECKING:
    from .simulation import Simulation

__all__ = ["Point", "Recording", "Run", "Waits", "draw", "record"]

_BASE, _BURST, _BACKLOG, _WAIT = "#4477aa", "#66ccee", "#ccbb44", "#aa3377"


@dataclass(frozen=True)
class Point:
    """A point of a timeline: at that time, so many workers lived and so many tasks waited."""

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
        """What it cost: the time that workers lived, summed up over them."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return sum(point.workers * (following.time - point.time) for point, following in pairs)

    @classmethod
    def simulated(cls, title: str, result: Simulation, *, base: int, arrivals: Sequence[float] = ()) -> Self:
        """What `simulate` found. Its waits are drawn if the `arrivals` of the tasks are given, in any order."""
        points = tuple(Point(moment.time, moment.workers, moment.queued) for moment in result.timeline)
        return cls(title, base, points, tuple(zip(sorted(arrivals), result.waits, strict=bool(arrivals))))

    @classmethod
    def recorded(cls, title: str, recording: Recording, *, base: int, waits: Waits | None = None) -> Self:
        """What `record` recorded, with the waits that an observer heard of, if there was one."""
        since = recording.begun
        heard = () if waits is None else tuple((arrival - since, wait) for arrival, wait in waits.heard)
        return cls(title, base, tuple(recording.points), heard)


class Waits(Observer):
    """An observer that notes when tasks arrive and how long they wait. It keeps them all: for runs that end."""

    def __init__(self) -> None:
        #: When each task arrived, and how long it waited, in order of their starts.
        self.heard: list[tuple[float, float]] = []

    def task_started(self, event: TaskEvent) -> None:
        """Note the first attempt of a task."""
        if event.attempt == 1:
            self.heard.append((clock() - event.wait, event.wait))


class Recording:
    """Looks at an executor at short intervals. Obtained from `record`."""

    def __init__(self, pool: ResourceExecutor[Any], interval: float) -> None:
        self._pool = pool
        self._interval = check_seconds("interval", interval, above_zero=True)
        self._stop = threading.Event()
        self._thread = make_thread(self._run, "tasker_recording")
        #: When it began, on the clock of `points`' own zero.
        self.begun = 0.0
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


def record(pool: ResourceExecutor[Any], *, interval: float = 0.01) -> Recording:
    """Record what an executor does while a ``with`` block runs.

    Args:
        pool: The executor.
        interval: Seconds between two looks at it.
    """
    return Recording(pool, interval)


def draw(runs: Sequence[Run], file: str | os.PathLike[str], *, title: str = "") -> None:
    """Write a picture of some runs, side by side and to the same scale.

    Args:
        runs: One or more.
        file: Where to; its suffix says what it is: ``.svg``, ``.png``, ``.pdf``. The same runs give the same SVG, byte for
            byte.
        title: Stands above all.
    """
    if not runs:
        raise ValueError("there must be at least one run to draw")
    # The salt makes the names inside of an SVG the same each time; a date would change them.
    with matplotlib.rc_context({"svg.hashsalt": "tasker_executor", "svg.fonttype": "none"}):
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
