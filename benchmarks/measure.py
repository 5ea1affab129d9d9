"""What all benchmarks share: contestants, rounds, ratios, tables."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import statistics
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tasker_executor import ResourceExecutor

#: What costs are measured with; see `use_cpu_time`.
clock: Callable[[], float] = time.perf_counter


def use_cpu_time() -> None:
    """Measure the CPU time of this process, all threads together, in place of the time that passes.

    For a machine that is busy with other things: it does not count the time in which other processes had the
    CPU. Nor does it count the time that threads wait for each other, or for a CPU to wake up.
    """
    global clock
    clock = time.process_time


def now() -> float:
    return clock()


GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()


@dataclass(frozen=True)
class Contestant:
    name: str
    make: Callable[..., Any]
    #: Does it know on_create, submit_priority and the rest?
    ours: bool = False
    version: str = ""


STANDARD = Contestant("ThreadPoolExecutor", ThreadPoolExecutor)
OURS = Contestant("ResourceExecutor", ResourceExecutor, ours=True)
WITHOUT_CONTEXT = Contestant("propagate_context=False", partial(ResourceExecutor, propagate_context=False), ours=True)


@dataclass
class Costs:
    """The cost of each contestant, round by round. All are compared with the first contestant."""

    unit: str
    by_name: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, cost: float) -> None:
        self.by_name.setdefault(name, []).append(cost)

    def median(self, name: str) -> float:
        return statistics.median(self.by_name[name])

    def ratios(self, name: str, to: str | None = None) -> list[float]:
        """How many times less than that of `to`, by default the first, in each round."""
        theirs = self.by_name[to] if to is not None else next(iter(self.by_name.values()))
        return [his / ours for his, ours in zip(theirs, self.by_name.get(name, []), strict=False)]

    def ratio(self, name: str, to: str | None = None) -> tuple[float, float, float]:
        """(lower quartile, median, upper quartile)."""
        ratios = self.ratios(name, to)
        if len(ratios) < 3:
            return min(ratios), statistics.median(ratios), max(ratios)
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high

    def as_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "costs": self.by_name,
            "ratios": {name: self.ratio(name) for name in list(self.by_name)[1:] if self.ratios(name)},
            "errors": self.errors,
        }


def in_rounds(jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]], rounds: int, progress: str = "") -> dict[str, Costs]:
    """Do every job ``rounds`` times, and inside each round once by each contestant, one right after the other.

    A machine that slows down slows both down, so the ratio inside a round is worth more than the numbers it
    is made of. The order changes from round to round.
    """
    costs = {job: Costs(unit, {name: [] for name in runs}) for job, (unit, runs) in jobs.items()}
    for number in range(rounds):
        for job, (_, runs) in jobs.items():
            names = list(runs)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                if name in costs[job].errors:
                    continue
                gc.collect()
                try:
                    costs[job].add(name, runs[name]())
                except Exception as error:  # a peer that lacks something
                    costs[job].errors[name] = f"{type(error).__name__}: {error}"
        if progress and sys.stderr.isatty():
            print(f"{progress}: round {number + 1} of {rounds}", end="\r", file=sys.stderr, flush=True)
    return costs


def start_all(pool: Executor, workers: int) -> None:
    """Let every worker start, where the pool starts them on demand: each must hold a task at the same time."""
    meeting = threading.Barrier(workers)

    def meet() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):  # a pool that starts fewer: it has those it wants
            meeting.wait(1.0)

    for future in [pool.submit(meet) for _ in range(workers)]:
        future.result()


@contextlib.contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this thread, and the threads that it starts in the block, on one CPU, where the system allows it.

    To wake a thread that sleeps on another CPU takes several times as long as all that a pool does, and which
    CPU it sleeps on is the system's choice. Without a GIL there is no such hand-over to measure.
    """
    before = os.sched_getaffinity(0) if GIL and hasattr(os, "sched_setaffinity") else None
    if before:
        os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(0, before)


def environment() -> dict[str, Any]:
    build = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "gil": GIL,
        "profile guided build": "--enable-optimizations" in build,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "load": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that reStructuredText understands."""
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
    rule = "  ".join("=" * width for width in widths)
    print(rule)
    for number, line in enumerate([head, *rows]):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if not number:
            print(rule)
    print(rule)


def nanoseconds(seconds: float) -> str:
    """A duration as people say it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def amount(value: float, unit: str) -> str:
    return nanoseconds(value) if unit == "s" else f"{value:.0f} {unit}"


def times(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 3 else f"{value:.2f}"


def ratio_cell(costs: Costs, name: str) -> str:
    if name in costs.errors:
        return "cannot"
    if not costs.ratios(name):
        return ""
    low, middle, high = costs.ratio(name)
    return f"{times(middle)} [{times(low)} - {times(high)}]"
