"""See an executor at work, in the terminal: ``pip install tasker-executor[monitor]``.

For example::

    with monitor(pool):          # a live panel while the block runs
        do_the_work(pool)

    watch(pool)                  # the same, until the executor closes or Ctrl-C

    for page in progress(pool.map(fetch, urls), total=len(urls)):
        ...                      # a bar with rate and remaining time
    for future in progress(futures):
        ...                      # each as it completes

Where the output is no terminal (a log file, CI), a plain line every ten seconds stands for the panel and the
bar.

The panel is a pure function of a `Snapshot`, which needs no terminal: ``print(line(take_snapshot(pool)))``.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ._checks import check_seconds
from ._engine.gauges import Gauges
from ._engine.threads import make_thread
from ._executor import ResourceExecutor
from ._report import Logger, must_escape, safe_str
from ._sync import lock_timeout
from .stats import DurationSummary, ExecutorMetrics, ExecutorStats, WorkerInfo

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.panel import Panel
    from rich.segment import Segment
    from rich.table import Table
    from rich.text import Text

    from ._progress import LINE_INTERVAL, duration_text, progress
except ModuleNotFoundError as _error:
    raise ImportError("rich is missing: pip install tasker-executor[monitor]") from _error

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType, RenderResult

__all__ = ["Monitor", "Point", "Snapshot", "line", "monitor", "panel", "progress", "take_snapshot", "watch"]

logger: Logger = Logger(__name__)

_FRAME = 0.25  # seconds between two frames of the panel
_HISTORY = 600  # points of the sparklines
_ROWS = 10  # workers shown, at most
_STATE_STYLES = {"busy": "green", "starting": "yellow", "ending": "yellow", "written off": "red"}


# -- what is seen


@dataclass(frozen=True)
class Point:
    """A point of the history: how many workers lived, and how many tasks waited."""

    workers: int
    backlog: int


@dataclass(frozen=True)
class Snapshot:
    """What an executor was doing at one moment, and its history until then.

    Attributes:
        name: Name of the executor.
        stats: Gauges and counters.
        metrics: Durations and rates.
        workers: What each worker was doing.
        max_workers: The most workers allowed.
        wanted_workers: The number wanted.
        oldest_wait: How long the oldest waiting task had waited.
        failures: How often ``on_create`` has failed in a row.
        last_failure: The last error of ``on_create``; None if it does not fail.
        retry_in: Seconds until ``on_create`` is tried again.
        history: Earlier points, and the one of this moment.
    """

    name: str
    stats: ExecutorStats
    metrics: ExecutorMetrics
    workers: tuple[WorkerInfo, ...]
    max_workers: int
    wanted_workers: int
    oldest_wait: float
    failures: int
    last_failure: str | None
    retry_in: float
    history: tuple[Point, ...]

    @property
    def busy(self) -> int:
        """Workers that run a task."""
        return self.stats.active_workers - self.stats.idle_workers


def take_snapshot(pool: ResourceExecutor[Any], history: Iterable[Point] = ()) -> Snapshot:
    """Return a snapshot of what an executor is doing now.

    Args:
        pool: The executor.
        history: Earlier points, for the sparklines.
    """
    return _snapshot_of(pool._core.gauges, history)


def _snapshot_of(gauges: Gauges, history: Iterable[Point]) -> Snapshot:
    """Read all that is shown of an executor: no other function here looks at its numbers."""
    metrics = gauges.metrics(reset=False)
    # The names of functions come from the user's code. So they are not of the same moment as the rest.
    workers = gauges.worker_infos()
    reading = gauges.read()
    stats, failure = reading.stats, reading.last_failure
    return Snapshot(
        name=reading.name,
        stats=stats,
        metrics=metrics,
        workers=workers,
        max_workers=reading.max_workers,
        wanted_workers=reading.wanted_workers,
        oldest_wait=reading.oldest_wait,
        failures=reading.failures_in_a_row,
        last_failure=None if failure is None else f"{type(failure).__name__}: {safe_str(failure)}",
        retry_in=reading.retry_in,
        history=(*history, Point(stats.active_workers, stats.queued_tasks + stats.priority_tasks)),
    )


# -- how it looks


def line(snapshot: Snapshot) -> str:
    """Return a snapshot as one line of plain text."""
    stats, metrics = snapshot.stats, snapshot.metrics
    parts = [
        f"{stats.active_workers} of {snapshot.max_workers} workers ({snapshot.busy} busy)",
        f"{stats.queued_tasks + stats.priority_tasks} queued ({stats.priority_tasks} priority)",
        f"{metrics.completion_rate:.1f}/s done",
        f"{stats.failed} failed",
        *([f"{stats.written_off} written off"] if stats.written_off else []),
        f"wait p95 {duration_text(metrics.wait.p95)}",
        f"run p95 {duration_text(metrics.run.p95)}",
    ]
    if snapshot.failures:
        parts.append(f"{_factory(snapshot)}: {snapshot.last_failure}")
    return f"{snapshot.name}: {stats.state}, {', '.join(parts)}"


def panel(snapshot: Snapshot) -> Panel:
    """Return a snapshot as a panel, for any console of `rich`."""
    parts: list[RenderableType] = [_facts(snapshot), Text(), _times(snapshot.metrics)]
    if snapshot.workers:
        parts += [Text(), *_workers(snapshot)]
    parts += [
        Text(),
        _Sparkline("workers", [point.workers for point in snapshot.history], "cyan"),
        _Sparkline("backlog", [point.backlog for point in snapshot.history], "yellow"),
    ]
    title = Text.assemble(" ", (snapshot.name, "bold"), " ", snapshot.stats.state, " ")
    return Panel(Group(*parts), title=title, border_style="red" if snapshot.failures else "blue")


def _facts(snapshot: Snapshot) -> Table:
    stats, metrics = snapshot.stats, snapshot.metrics
    facts = {
        "workers": f"{stats.active_workers} of {snapshot.max_workers}: {snapshot.busy} busy, {stats.idle_workers} idle; "
        f"{stats.base_workers} base, {stats.burst_workers} burst; {snapshot.wanted_workers} wanted"
        + (f"; {stats.written_off} written off" if stats.written_off else ""),
        "queued": f"{stats.queued_tasks} normal, {stats.priority_tasks} priority"
        + (f"; the oldest waits for {duration_text(snapshot.oldest_wait)}" if snapshot.oldest_wait else ""),
        "rates": f"{metrics.arrival_rate:.1f}/s submitted, {metrics.completion_rate:.1f}/s done",
        "tasks": f"{stats.completed} completed, {stats.failed} failed, {stats.cancelled} cancelled; {stats.retried} retried",
    }
    if stats.stopped or stats.timed_out:
        facts["stops"] = f"{stats.stopped} stopped, {stats.timed_out} timed out"
    if stats.resources_created or stats.create_failures:
        facts["resources"] = (
            f"{stats.resources_created} made, {stats.resources_destroyed} given up; {stats.workers_replaced} replaced"
        )
    table = _grid(2)
    table.columns[0].min_width = len("resources")
    for name, fact in facts.items():
        table.add_row(Text(name, "bold"), fact)
    if snapshot.failures:
        table.add_row(Text("factory", "bold red"), Text(_factory(snapshot), "red"))
        table.add_row("", Text(snapshot.last_failure or "", "red"))
    return table


def _factory(snapshot: Snapshot) -> str:
    return f"on_create failed {snapshot.failures} times in a row, next attempt in {duration_text(snapshot.retry_in)}"


def _times(metrics: ExecutorMetrics) -> Table:
    table = _grid(6, numbers=range(1, 6))
    table.add_row("", *(Text(name, "bold") for name in ("p50", "p95", "p99", "max", "count")))
    for name, times in (("wait", metrics.wait), ("run", metrics.run), ("create", metrics.create)):
        if times.count:
            table.add_row(Text(name, "bold"), *_percentiles(times), str(times.count))
    return table


def _percentiles(times: DurationSummary) -> list[str]:
    return [duration_text(seconds) for seconds in (times.p50, times.p95, times.p99, times.maximum)]


def _workers(snapshot: Snapshot) -> list[RenderableType]:
    """Return a row for each worker, or, if they are too many, for those that have been busy longest."""
    shown = snapshot.workers
    if len(shown) > _ROWS:
        longest = sorted(shown, key=lambda worker: worker.running_for, reverse=True)[:_ROWS]
        shown = tuple(worker for worker in snapshot.workers if worker in longest)
    table = _grid(5, numbers=(2,))
    table.add_row(*(Text(name, "bold") for name in ("worker", "state", "for", "task", "resource")))
    with_resources = bool(snapshot.stats.resources_created)
    for worker in shown:
        resource = f"{duration_text(worker.resource_age)} old, {worker.resource_uses} uses"
        table.add_row(
            Text(worker.name),
            Text(worker.state, _STATE_STYLES.get(worker.state, "dim")),
            duration_text(worker.running_for) if worker.state != "idle" else "",
            Text(_task(worker)),
            resource if with_resources and worker.state in ("idle", "busy", "written off") else "",
        )
    rest = len(snapshot.workers) - len(shown)
    return [table, Text(f"and {rest} more", "dim")] if rest else [table]


def _task(worker: WorkerInfo) -> str:
    if worker.function is None:
        return ""
    remarks = ["priority"] * (worker.lane == "priority") + [f"attempt {worker.attempt}"] * (worker.attempt > 1)
    return f"{worker.function} ({', '.join(remarks)})" if remarks else worker.function


def _grid(columns: int, numbers: Collection[int] = ()) -> Table:
    """Return a table without lines. Text that is too long is cut."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in range(columns):
        table.add_column(justify="right" if column in numbers else "left", no_wrap=True, overflow="ellipsis")
    return table


class _Sparkline:
    """A curve as wide as the console. Each cell shows the largest of its values, so no peak is lost."""

    def __init__(self, name: str, values: list[int], style: str) -> None:
        self._name = name
        self._values = values
        self._style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        most = max(self._values, default=0)
        label = f" {most} at most"
        width = max(1, options.max_width - len(self._name) - 1 - len(label))
        steps = " .:-=+*#@" if options.ascii_only else "\N{BOX DRAWINGS LIGHT HORIZONTAL}▁▂▃▄▅▆▇█"
        yield Segment(f"{self._name} ", console.get_style("bold"))
        cells = [steps[-(-value * 8 // most) if most else 0] for value in _resampled(self._values, width)]
        yield Segment("".join(cells), console.get_style(self._style))
        yield Segment(label)
        yield Segment.line()


def _resampled(values: list[int], width: int) -> list[int]:
    """Return at most `width` values: for each cell the largest of the values that share it."""
    count = len(values)
    if count <= width:
        return values
    return [max(values[cell * count // width : (cell + 1) * count // width]) for cell in range(width)]


# -- live


class Monitor:
    """A live view of one executor: see `monitor`. It ends with the block, or when the executor is dropped."""

    def __init__(self, pool: ResourceExecutor[Any], console: Console | None, interval: float | None) -> None:
        gauges = pool._core.gauges
        self._gauges = weakref.ref(gauges)
        self._name = gauges.name
        self._console = Console() if console is None else console
        # One thread at a time shows: that of `_run`, and after its end the one that leaves the block. So
        # neither the history nor the flag needs a lock.
        self._working = True  # False once the console has failed
        self._live: Live | None = None
        if interval is None:
            interval = _FRAME if self._console.is_terminal else LINE_INTERVAL
        self._interval = check_seconds("interval", interval, above_zero=True)
        self._history: deque[Point] = deque(maxlen=_HISTORY)
        self._stop = threading.Event()
        self._thread = make_thread(self._run, f"{self._name}_monitor")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        try:
            self._thread.start()
        except BaseException:  # No thread can be started, or Ctrl-C came: Python calls no `__exit__`.
            self._stop.set()
            if self._live is not None:
                self._live.stop()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        try:
            self._thread.join()
            self._show_safely()
        finally:
            if self._live is not None:
                self._try(self._live.stop)

    def _run(self) -> None:
        while self._show_safely() and not self._stop.wait(lock_timeout(self._interval)):
            pass

    def _show_safely(self) -> bool:
        return self._working and self._try(self._show)

    def _try(self, show: Callable[[], bool | None]) -> bool:
        """Show something and return whether that worked, and whether the view goes on.

        A console that fails (a pipe without a reader) ends the view, and not the block that is watched.
        """
        try:
            return bool(show())
        except BaseException as error:
            broken_pipe = isinstance(error.__context__, BrokenPipeError)  # rich makes a SystemExit of it
            if must_escape(error) and not broken_pipe:
                raise
            self._working = False
            logger.warning(
                "executor %r: the console of its monitor fails; the view ends",
                self._name,
                exc_info=True,
                executor=self._name,
            )
            return False

    def _show(self) -> bool:
        """Show the executor as it is; return whether it will change."""
        gauges = self._gauges()
        if gauges is None:
            return False
        snapshot = _snapshot_of(gauges, self._history)
        self._history.append(snapshot.history[-1])
        if self._live is not None:
            self._live.update(panel(snapshot), refresh=True)
        else:
            self._console.print(line(snapshot), soft_wrap=True, highlight=False, markup=False)
        return snapshot.stats.state != "closed"


def monitor(pool: ResourceExecutor[Any], *, console: Console | None = None, interval: float | None = None) -> Monitor:
    """Return a live view of an executor, shown while a ``with`` block runs. It does not keep the executor alive.

    Args:
        pool: The executor.
        console: The console to show it on. None for the standard output.
        interval: Seconds between two frames, or between two lines where there is no terminal. None for 0.25
            and 10.
    """
    return Monitor(pool, console, interval)


def watch(pool: ResourceExecutor[Any], *, console: Console | None = None, interval: float | None = None) -> None:
    """Show an executor and block until it has closed. Ctrl-C ends the view and not the executor.

    Args:
        pool: The executor.
        console: As for `monitor`.
        interval: As for `monitor`.
    """
    with Monitor(pool, console, interval):
        try:
            pool._core.gauges.wait_until_closed()
        except KeyboardInterrupt:
            pass
