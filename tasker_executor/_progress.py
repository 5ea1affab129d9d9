"""How far is the work? `tasker_executor.monitor.progress`: a bar in the terminal, plain lines elsewhere."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, as_completed
from typing import TypeVar

from rich.console import Console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ._checks import check_count
from ._sync import clock

__all__ = ["LINE_INTERVAL", "duration_text", "progress"]

T = TypeVar("T")

LINE_INTERVAL = 10.0  # seconds between two plain lines


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed or (task.completed / task.elapsed if task.elapsed else 0.0)
        return Text(f"{rate:.1f}/s", "cyan")


def progress(
    work: Iterable[T],
    *,
    total: int | None = None,
    description: str = "",
    console: Console | None = None,
) -> Iterator[T]:
    """Yield results and show how far the work is, how fast it goes, and how long it will take.

    Closing the iterator closes `work`, if it can be closed: leaving the loop early cancels the rest of
    ``pool.map(...)``.

    Args:
        work: Results, such as ``pool.map(...)``, which come in their order; or a collection of futures, which
            come as they complete.
        total: How many results there will be. None for ``len(work)``; if it has no length, no remaining time
            is shown.
        description: What is being done.
        console: The console to show it on. None for the standard output.
    """
    console = Console() if console is None else console
    if total is not None:
        total = check_count("total", total, 0)
    if isinstance(work, Collection):
        total = len(work) if total is None else total
        if work and all(isinstance(item, Future) for item in work):
            work = as_completed(work)  # type: ignore[assignment]  # T is Future, which the checker cannot see
    elif total is None:
        total = operator.length_hint(work) or None
    return _shown(iter(work), total, description, console)


def _shown(work: Iterator[T], total: int | None, description: str, console: Console) -> Iterator[T]:
    try:
        if console.is_terminal:
            bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            try:
                bar.start()
            except LiveError:  # an old rich, and another live display is shown, such as the panel
                yield from _with_lines(work, total, description, console)
                return
            with bar:
                yield from bar.track(work, total, description=description)
        else:
            yield from _with_lines(work, total, description, console)
    finally:
        close = getattr(work, "close", None)
        if close is not None:
            close()


def _with_lines(work: Iterator[T], total: int | None, description: str, console: Console) -> Iterator[T]:
    done = 0
    begun = shown = clock()
    for item in work:
        yield item
        done += 1
        now = clock()
        if now - shown >= LINE_INTERVAL:
            shown = now
            console.print(_line(description, done, total, now - begun), soft_wrap=True, highlight=False, markup=False)
    text = _line(description, done, done, clock() - begun)
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _line(description: str, done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds if seconds > 0.0 else 0.0
    parts = [f"{done} done" if total is None else f"{done} of {total} done", f"{rate:.1f}/s"]
    if total is not None and done < total and rate:
        parts.append(f"{duration_text((total - done) / rate)} to go")
    else:
        parts.append(f"in {duration_text(seconds)}")
    return f"{description}: {', '.join(parts)}" if description else ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Return a duration as text, in the unit that suits it."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us" if seconds >= 5e-7 else "0 s"
    if seconds < 1.0:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 60.0:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
