"""The numbers of an executor on a cluster: each worker makes a report, and the client adds the reports up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from .._engine.histogram import Histogram
from .._engine.recorder import Outcome, Period
from .._executor import ResourceExecutor
from ..stats import ExecutorMetrics, ExecutorStats

__all__ = ["Report", "add_up_metrics", "add_up_stats", "report_of"]


@dataclass(frozen=True)
class Report:
    """The gauges, counters and durations of one worker's executor."""

    stats: ExecutorStats
    running_priority: int
    period: Period


def report_of(executor: ResourceExecutor[Any], *, reset: bool = False) -> Report:
    """Read the numbers of a worker's executor; with `reset`, a new period of its durations begins.

    This function is the only one of the package `dask` that looks into the engine.
    """
    gauges = executor._core.gauges
    return Report(gauges.stats(), gauges.urgent(), gauges.period(reset=reset))


def add_up_stats(reports: Iterable[Report]) -> dict[str, Any]:
    """Return the sum over all workers of each number in `ExecutorStats`, by its name."""
    sums: dict[str, int] = dict.fromkeys((field.name for field in fields(ExecutorStats)), 0)
    for report in reports:
        for name in sums:
            value = getattr(report.stats, name)
            if isinstance(value, int):
                sums[name] += value
    return sums


def add_up_metrics(reports: Iterable[Report]) -> ExecutorMetrics:
    """Return the durations and rates of all workers together."""
    wait, run, create = Histogram(), Histogram(), Histogram()
    counts = Counter[Outcome]()
    arrival_rate = completion_rate = 0.0
    for period in (report.period for report in reports):
        wait.merge(period.wait)
        run.merge(period.run)
        create.merge(period.create)
        counts.update(period.counts)
        arrival_rate += period.arrival_rate
        completion_rate += period.completion_rate
    return Period(wait, run, create, counts, arrival_rate, completion_rate).metrics()
