"""Metrics for Prometheus: ``pip install tasker-executor[prometheus]``.

One line makes any number of executors visible on the page that ``prometheus_client`` serves:

    >>> from prometheus_client import REGISTRY
    >>> from tasker_executor import ResourceExecutor
    >>> pool = ResourceExecutor(4, name="crawler")
    >>> collector = register(pool)
    >>> pool.submit(len, "abc").result()
    3
    >>> REGISTRY.get_sample_value("tasker_executor_tasks_submitted_total", {"executor": "crawler"})
    1
    >>> pool.shutdown()

Numbers are read when Prometheus scrapes. Between scrapes nothing happens, and no task is slowed down.
Executors are held weakly: one that has closed, or was dropped and has drained, is no longer on the page.
Executors that share a name are added up.

Every metric has the label ``executor``; its value is the name given as ``ResourceExecutor(name=...)``. Rates,
shares and percentiles are left to PromQL, which can add them up over machines. The multiprocess mode of
``prometheus_client`` (for servers that fork, such as gunicorn) knows only its own metric classes, not
collectors such as this one.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import Any

from typing_extensions import override

from ._engine.gauges import Gauges
from ._engine.histogram import Histogram
from ._executor import ResourceExecutor
from ._telemetry import BOUNDS, DISTRIBUTIONS, MEASURES, Distribution, Measure, Reading, Watched, histograms

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _error:
    raise ImportError("prometheus_client is missing: pip install tasker-executor[prometheus]") from _error

__all__ = ["ExecutorCollector", "register", "unregister"]

_PREFIX = "tasker_executor_"

# Guards the table of collectors. The thread that registers a collector holds it, and a destructor that runs
# on that thread may register, too. So it is reentrant.
_lock = threading.RLock()
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, ExecutorCollector] = weakref.WeakKeyDictionary()


class ExecutorCollector(Collector):
    """Yields the metrics of executors on request. Obtained from `register`; each registry has one."""

    def __init__(self) -> None:
        self._watched = Watched()

    def add(self, *executors: ResourceExecutor[Any]) -> None:
        """Show these executors, too."""
        self._watched.add(executors)

    def discard(self, *executors: ResourceExecutor[Any]) -> None:
        """Show these executors no longer."""
        self._watched.discard(executors)

    @override
    def collect(self) -> Iterator[Metric]:
        """Yield every metric, with the numbers of this moment."""
        cores = self._watched.by_name(closed=False)
        return self._families(cores)

    def describe(self) -> Iterator[Metric]:
        """Yield every metric without numbers, so the registry sees whether another collector uses the names."""
        return self._families({})

    @staticmethod
    def _families(executors: dict[str, list[Gauges]]) -> Iterator[Metric]:
        readings = {name: [gauges.read() for gauges in group] for name, group in executors.items()}
        for measure in MEASURES:
            yield _numbers(measure, readings)
        by_name = {name: histograms(group) for name, group in executors.items()}
        for distribution in DISTRIBUTIONS:
            family = _family_of(distribution)
            for name, of_name in by_name.items():
                for labels, histogram in of_name[distribution].items():
                    family.add_metric([name, *labels], _buckets(histogram), histogram.total)
            yield family


def _numbers(measure: Measure, readings: dict[str, list[Reading]]) -> Metric:
    make = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
    family = make(_PREFIX + measure.name, measure.help, labels=["executor", *measure.labels])
    for name, of_name in readings.items():
        for labels, value in measure.combined(of_name).items():
            family.add_metric([name, *labels], value)
    return family


def _family_of(distribution: Distribution) -> HistogramMetricFamily:
    return HistogramMetricFamily(_PREFIX + distribution.name, distribution.help, labels=["executor", *distribution.labels])


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    counts = histogram.cumulative(BOUNDS)
    return [*((repr(bound), count) for bound, count in zip(BOUNDS, counts, strict=True)), ("+Inf", histogram.count)]


def register(*executors: ResourceExecutor[Any], registry: CollectorRegistry = REGISTRY) -> ExecutorCollector:
    """Show executors on the page of a registry.

    Args:
        executors: Any number; more may follow in later calls.
        registry: The registry. By default the one that `prometheus_client.start_http_server` serves.

    Returns:
        The registry's collector of executors, the same each time.

    Raises:
        ValueError: Another collector has registered metrics of the same names there.
    """
    with _lock:
        collector = _collectors.get(registry)
        known = collector is not None
        if collector is None:
            collector = ExecutorCollector()
        collector.add(*executors)
        try:
            registry.register(collector)
        except ValueError:
            if not known:  # Otherwise the registry refuses it because it is still registered there.
                raise
        _collectors[registry] = collector
        return collector


def unregister(*executors: ResourceExecutor[Any], registry: CollectorRegistry = REGISTRY) -> None:
    """Take executors off the page of a registry before they close; ignore those that are not there."""
    with _lock:
        collector = _collectors.get(registry)
    if collector is not None:
        collector.discard(*executors)
