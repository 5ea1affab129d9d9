"""What all benchmarks share: contestants, rounds, ratios, tables.

A part of the benchmarks is a module with two functions. ``run(scale)`` measures, and returns what may be written as
JSON. ``tables(found)`` makes tables of that, by name. So what is shown is made of the same numbers, whether they
were measured a moment ago, or read from a file that another Python has written.
"""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

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


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 7
    #: In a burst.
    tasks: int = 100_000
    quick: bool = False
    #: The workloads that were asked for; None: all.
    only: tuple[str, ...] | None = None

    def wants(self, name: str) -> bool:
        return self.only is None or name in self.only


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


#: Quartiles that are further apart than this share of the median are noise, and are marked.
NOISY = 0.2
MARK = "~"
LEGEND = f"{MARK}: noisy. The quartiles are further apart than {NOISY:.0%} of the median."


class Spread(NamedTuple):
    """What a ratio was in all rounds."""

    least: float
    low: float
    median: float
    high: float
    most: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Spread:
        if len(ratios) < 3:
            return cls(min(ratios), min(ratios), statistics.median(ratios), max(ratios), max(ratios))
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(min(ratios), low, median, high, max(ratios))

    @property
    def noisy(self) -> bool:
        return self.high - self.low > NOISY * self.median

    def __str__(self) -> str:
        mark = f" {MARK}" if self.noisy else ""
        if self.low == self.high:
            return times(self.median)  # measured once, or it does not vary
        return f"{times(self.median)} [{times(self.low)} - {times(self.high)}]{mark}"


@dataclass
class Costs:
    """The cost of each contestant, round by round. All are compared with the first contestant."""

    unit: str
    by_name: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, found: dict[str, Any]) -> Costs:
        """Take what `as_json` has made."""
        return cls(found["unit"], found["costs"], found["errors"])

    def add(self, name: str, cost: float) -> None:
        self.by_name.setdefault(name, []).append(cost)

    @property
    def first(self) -> str:
        return next(iter(self.by_name))

    def median(self, name: str) -> float:
        return statistics.median(self.by_name[name])

    def gains(self, name: str, against: str | None = None) -> Spread:
        """How many times less than that of `against`, by default the first: above 1 is better."""
        return Spread.of([his / ours for ours, his in self._pairs(name, against)])

    def shares(self, name: str, against: str | None = None) -> Spread:
        """How many times as much as that of `against`, by default the first: below 1 is better."""
        return Spread.of([ours / his for ours, his in self._pairs(name, against)])

    def _pairs(self, name: str, against: str | None) -> list[tuple[float, float]]:
        theirs = self.by_name[against or self.first]
        return list(zip(self.by_name[name], theirs, strict=False))  # inside of each round; who fails stops early

    def cell(self, name: str, against: str | None = None, *, share: bool = False) -> str:
        """Return the ratio as it is shown in a table."""
        if name in self.errors:
            return "cannot"
        if not self.by_name.get(name):
            return ""
        return str(self.shares(name, against) if share else self.gains(name, against))

    def as_json(self) -> dict[str, Any]:
        costs = {name: [float(f"{value:.4g}") for value in values] for name, values in self.by_name.items()}
        return {"unit": self.unit, "costs": costs, "errors": self.errors}


def as_json(costs: Mapping[str, Costs]) -> dict[str, Any]:
    return {job: cost.as_json() for job, cost in costs.items()}


def read(found: Mapping[str, Any]) -> dict[str, Costs]:
    return {job: Costs.read(cost) for job, cost in found.items()}


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


@dataclass(frozen=True)
class Table:
    """A table that reStructuredText understands."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        rule = "  ".join("=" * width for width in widths)
        # An empty cell in the first column would continue the row above.
        lines = [[line[0] or "\\", *line[1:]] for line in lines]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([rule, text[0], rule, *text[1:], rule])


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}\n")


def nanoseconds(seconds: float) -> str:
    """A duration as people say it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def amount(value: float, unit: str) -> str:
    return nanoseconds(value) if unit == "s" else f"{value:.0f} {unit}"


def times(value: float) -> str:
    digits = 0 if value >= 20 else 1 if value >= 3 else 2 if value >= 0.2 else 3
    return f"{value:.{digits}f}"
