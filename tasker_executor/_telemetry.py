"""What the exporters export: the table of measures, and where each comes from.

There is one table, so Prometheus and OpenTelemetry export the same numbers. They read on request: a watched
executor does nothing for it, and does not know. The gauges of the watched executors are held weakly. They
live as long as their executor is referenced or has work to do. So a dropped executor is exported until its
queue is empty.

The numbers come from the gauges: a `Reading` from ``gauges.read()``, and the histograms. Only `Watched` looks
into an executor, for its gauges.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ._engine.gauges import Gauges, Reading
from ._engine.histogram import Histogram
from ._engine.state import State
from ._report import safe_repr

if TYPE_CHECKING:
    from ._executor import ResourceExecutor

__all__ = [
    "BOUNDS",
    "DISTRIBUTIONS",
    "MEASURES",
    "Distribution",
    "Labels",
    "Measure",
    "Reading",
    "Watched",
    "as_label",
    "histograms",
]

#: Upper bounds of the buckets that are exported, in seconds.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

#: The values of a measure's labels.
Labels = tuple[str, ...]


@dataclass(frozen=True)
class Measure:
    """One number, or one for each combination of labels.

    Attributes:
        kind: A ``counter`` only grows. A ``gauge`` goes up and down; ``sum`` and ``max`` say how the gauges
            of two executors that share a name are combined.
        name: In Prometheus, without prefix and ``_total``.
        otel_name: In OpenTelemetry, without prefix.
        unit: In OpenTelemetry (UCUM).
        help: What it is.
        labels: Names of the labels.
        read: Returns the numbers, by labels.
    """

    kind: Literal["counter", "gauge sum", "gauge max"]
    name: str
    otel_name: str
    unit: str
    help: str
    labels: Labels
    read: Callable[[Reading], Mapping[Labels, float]]

    def combined(self, readings: Iterable[Reading]) -> Mapping[Labels, float]:
        """Return the numbers of executors that share a name."""
        combined: dict[Labels, float] = {}
        for reading in readings:
            for labels, value in self.read(reading).items():
                before = combined.get(labels, 0)
                combined[labels] = max(before, value) if self.kind == "gauge max" else before + value
        return combined


def _one(read: Callable[[Reading], float]) -> Callable[[Reading], Mapping[Labels, float]]:
    """Return what `read` reads as the one number of a measure without labels."""
    return lambda reading: {(): read(reading)}


MEASURES = (
    Measure(
        "gauge sum",
        "workers",
        "worker.count",
        "{worker}",
        "Live workers: of the base, and of the burst above it.",
        ("kind",),
        lambda reading: {("base",): reading.stats.base_workers, ("burst",): reading.stats.burst_workers},
    ),
    Measure(
        "gauge sum",
        "idle_workers",
        "worker.idle",
        "{worker}",
        "Live workers without a task.",
        (),
        _one(lambda reading: reading.stats.idle_workers),
    ),
    Measure(
        "gauge sum",
        "min_workers",
        "worker.min",
        "{worker}",
        "Workers always kept.",
        (),
        _one(lambda reading: reading.min_workers),
    ),
    Measure(
        "gauge sum",
        "max_workers",
        "worker.max",
        "{worker}",
        "The most workers allowed.",
        (),
        _one(lambda reading: reading.max_workers),
    ),
    Measure(
        "gauge sum",
        "wanted_workers",
        "worker.wanted",
        "{worker}",
        "The number of workers that the policy wants now.",
        (),
        _one(lambda reading: reading.wanted_workers),
    ),
    Measure(
        "counter",
        "worker_replacements",
        "worker.replacements",
        "{worker}",
        "Workers that ended because their resource was broken, too old or used up.",
        (),
        _one(lambda reading: reading.stats.workers_replaced),
    ),
    Measure(
        "gauge sum",
        "written_off_workers",
        "worker.written_off",
        "{worker}",
        "Workers that were written off, whose call has yet to return.",
        (),
        _one(lambda reading: reading.stats.written_off),
    ),
    Measure(
        "gauge sum",
        "queued_tasks",
        "task.queued",
        "{task}",
        "Tasks that wait.",
        ("lane",),
        lambda reading: {("normal",): reading.stats.queued_tasks, ("priority",): reading.stats.priority_tasks},
    ),
    Measure(
        "gauge sum",
        "running_tasks",
        "task.running",
        "{task}",
        "Tasks that a worker has in hand.",
        (),
        _one(lambda reading: reading.stats.running_tasks),
    ),
    Measure(
        "gauge max",
        "oldest_wait_seconds",
        "task.oldest_wait",
        "s",
        "How long the task that waits longest has waited.",
        (),
        _one(lambda reading: reading.oldest_wait),
    ),
    Measure(
        "counter",
        "tasks_submitted",
        "task.submitted",
        "{task}",
        "Tasks accepted into a lane.",
        (),
        _one(lambda reading: reading.stats.submitted),
    ),
    Measure(
        "counter",
        "tasks",
        "task.finished",
        "{task}",
        "Tasks whose future is done.",
        ("lane", "outcome"),
        lambda reading: reading.tasks,
    ),
    Measure(
        "counter",
        "task_retries",
        "task.retries",
        "{retry}",
        "Times that a task was queued again because its resource broke.",
        ("lane",),
        lambda reading: reading.retries,
    ),
    Measure(
        "counter",
        "tasks_stopped",
        "task.stopped",
        "{task}",
        "Tasks that were asked to stop while they ran.",
        ("reason",),
        lambda reading: {("stopped",): reading.stats.stopped, ("timed out",): reading.stats.timed_out},
    ),
    Measure(
        "counter",
        "resource_creations",
        "resource.creations",
        "{resource}",
        "Calls of on_create that ended.",
        ("outcome",),
        lambda reading: {
            ("created",): reading.stats.resources_created,
            ("failed",): reading.stats.create_failures,
        },
    ),
    Measure(
        "gauge max",
        "resource_failures_in_a_row",
        "resource.failures_in_a_row",
        "{failure}",
        "How often on_create has failed since it last succeeded.",
        (),
        _one(lambda reading: reading.failures_in_a_row),
    ),
    Measure(
        "counter",
        "resource_destructions",
        "resource.destructions",
        "{resource}",
        "Resources given up.",
        (),
        _one(lambda reading: reading.stats.resources_destroyed),
    ),
    Measure(
        "gauge sum",
        "available_resources",
        "resource.available",
        "{resource}",
        "Free resources in the reserve of run_now.",
        (),
        _one(lambda reading: reading.stats.available_resources),
    ),
)


@dataclass(frozen=True)
class Distribution:
    """A histogram of seconds, or one for each combination of labels."""

    name: str
    otel_name: str
    help: str
    labels: Labels


_WAIT = Distribution(
    "queue_wait_seconds",
    "task.wait_time",
    "From submission, or from being queued again, to the start of an attempt.",
    ("lane",),
)
_RUN = Distribution(
    "run_seconds",
    "task.run_time",
    "From start to end of an attempt.",
    ("outcome",),
)
_CREATE = Distribution(
    "resource_create_seconds",
    "resource.create_time",
    "Duration of on_create, when it succeeded.",
    (),
)
DISTRIBUTIONS = (_WAIT, _RUN, _CREATE)


def histograms(executors: Iterable[Gauges]) -> dict[Distribution, dict[Labels, Histogram]]:
    """Return the histograms of executors that share a name, over their whole lives, added up."""
    added: dict[Distribution, dict[Labels, Histogram]] = {
        _WAIT: {("normal",): Histogram(), ("priority",): Histogram()},
        _RUN: {("completed",): Histogram(), ("failed",): Histogram(), ("retried",): Histogram()},
        _CREATE: {(): Histogram()},
    }
    for gauges in executors:
        for priority, outcome, wait, run in gauges.histograms():
            added[_WAIT]["priority" if priority else "normal",].merge(wait)
            added[_RUN][outcome.name.lower(),].merge(run)
        added[_CREATE][()].merge(gauges.create_histogram())
    return added


def as_label(text: str) -> str:
    """Return a text that every exporter can encode.

    A name from a file name may hold half of a surrogate pair, which UTF-8 does not encode. One such name
    would cost the whole page, or the whole batch, with the metrics of all other executors.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Watched:
    """Executors whose numbers are exported, held weakly."""

    def __init__(self) -> None:
        # Guards the exchange of the tuple below. A reader takes the tuple as it is, in one load.
        self._lock = threading.RLock()
        self._watched: tuple[weakref.ref[Gauges], ...] = ()

    def add(self, executors: Iterable[ResourceExecutor[Any]]) -> None:
        """Watch these executors, too."""
        members = [self._gauges_of(executor) for executor in executors]
        with self._lock:
            watched = {id(gauges): weakref.ref(gauges) for gauges in [*self, *members]}
            self._watched = tuple(watched.values())

    def discard(self, executors: Iterable[ResourceExecutor[Any]]) -> None:
        """Watch these executors no longer."""
        gone = [self._gauges_of(executor) for executor in executors]
        with self._lock:
            self._watched = tuple(weakref.ref(gauges) for gauges in self if gauges not in gone)

    def __iter__(self) -> Iterator[Gauges]:
        for reference in self._watched:
            gauges = reference()
            if gauges is not None:
                yield gauges

    def by_name(self, *, closed: bool) -> dict[str, list[Gauges]]:
        """Return the executors that are left, by name. `closed` says whether closed ones are among them."""
        named: dict[str, list[Gauges]] = {}
        for gauges in self:
            if closed or gauges.state is not State.CLOSED:
                named.setdefault(as_label(gauges.name), []).append(gauges)
        return named

    @staticmethod
    def _gauges_of(executor: ResourceExecutor[Any]) -> Gauges:
        gauges = getattr(getattr(executor, "_core", None), "gauges", None)
        if not isinstance(gauges, Gauges):
            raise TypeError(f"only a ResourceExecutor can be watched, not {safe_repr(executor)}")
        return gauges
