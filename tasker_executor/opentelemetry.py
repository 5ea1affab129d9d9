"""Metrics and traces for OpenTelemetry: ``pip install tasker-executor[opentelemetry]``.

This needs OpenTelemetry's API alone. The application chooses the SDK. Without an SDK nothing happens, and it
costs nothing.

**Metrics.** One line for any number of executors:

    >>> from tasker_executor import ResourceExecutor
    >>> pool = ResourceExecutor(4, name="crawler")
    >>> instrument(pool)

All numbers are read when the SDK collects, and no task is slowed down. That goes for the histograms, too.
OpenTelemetry has no histogram that is observed. So each collection records what is new in the executor's own
histograms: about 5 us a value, each to within 3 %. If a histogram has more than 20,000 new values, an even
sample of 20,000 is recorded. Percentiles stay right, and ``tasker_executor.task.finished`` counts every task
anyway.

Executors are held weakly: one is reported for as long as it is referenced or has work to do. Executors that
share a name are added up. The attribute ``tasker_executor.name`` is the name given as
``ResourceExecutor(name=...)``.

**Traces.** A span for each task, on request:

    >>> with ResourceExecutor(4, observers=[TaskSpans()]) as traced:
    ...     traced.submit(len, "abc").result()
    3
    >>> pool.shutdown()

The span begins when the task is first started and ends with the task, retries included. It is a child of the
span that was current where the task was submitted, and it is the current span inside the task. Both come from
the context that each task runs in: with ``propagate_context=False`` each span begins a trace of its own. A
retry, the replacement of the resource that broke, and a stop are events of the span. Tasks that never start
have no span. ``run_now`` has none either: it runs in the caller's span.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from typing_extensions import override

from ._engine.gauges import Gauges
from ._executor import ResourceExecutor
from ._report import safe_str
from ._telemetry import BOUNDS, DISTRIBUTIONS, MEASURES, Distribution, Labels, Measure, Watched, as_label, histograms
from .observers import Observer, TaskEvent

try:
    from opentelemetry import context as otel_context
    from opentelemetry import metrics, trace
except ModuleNotFoundError as _error:
    raise ImportError("opentelemetry is missing: pip install tasker-executor[opentelemetry]") from _error

__all__ = ["TaskSpans", "instrument"]

_SCOPE = "tasker_executor"
_PREFIX = "tasker_executor."
_NAME = _PREFIX + "name"

#: The most values recorded into one histogram at one collection.
_MOST_VALUES = 20_000

#: Attributes by label of the table of measures.
_ATTRIBUTES = {
    "kind": "tasker_executor.worker.kind",
    "lane": "tasker_executor.task.lane",
    "outcome": "tasker_executor.outcome",
    "reason": "tasker_executor.stop.reason",
}


def instrument(*executors: ResourceExecutor[Any], meter_provider: metrics.MeterProvider | None = None) -> None:
    """Report the metrics of executors.

    Args:
        executors: Any number; more may follow in later calls.
        meter_provider: The provider of the meter. None for the global one, which may be set after this.
    """
    _exporter_for(meter_provider).watched.add(executors)


class _Exporter:
    """The instruments of this library at one meter provider. Their callbacks keep it alive."""

    def __init__(self, provider: metrics.MeterProvider) -> None:
        self.watched = Watched()
        # Guards the table below. Not held while a value is recorded. Reentrant, for signal handlers.
        self._lock = threading.RLock()
        #: What has been recorded, by core: counts by bucket.
        self._recorded: weakref.WeakKeyDictionary[Gauges, dict[tuple[Distribution, Labels], dict[int, int]]]
        self._recorded = weakref.WeakKeyDictionary()

        meter = provider.get_meter(_SCOPE)
        self._histograms = {
            distribution: meter.create_histogram(
                _PREFIX + distribution.otel_name,
                unit="s",
                description=distribution.help,
                explicit_bucket_boundaries_advisory=BOUNDS,
            )
            for distribution in DISTRIBUTIONS
        }
        create = {
            "counter": meter.create_observable_counter,
            "gauge sum": meter.create_observable_up_down_counter,
            "gauge max": meter.create_observable_gauge,
        }
        for number, measure in enumerate(MEASURES):
            callback = self._callback(measure, records=number == 0)
            create[measure.kind](_PREFIX + measure.otel_name, [callback], measure.unit, measure.help)

    def _callback(
        self, measure: Measure, *, records: bool
    ) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
        def observe(_: metrics.CallbackOptions) -> list[metrics.Observation]:
            if records:  # The SDK calls back before it collects from the histograms.
                self._record()
            observations: list[metrics.Observation] = []
            for name, cores in self.watched.by_name(closed=True).items():
                for labels, value in measure.combined([gauges.read() for gauges in cores]).items():
                    observations.append(metrics.Observation(value, _attributes(name, measure.labels, labels)))
            return observations

        return observe

    def _record(self) -> None:
        """Record what is new in the histograms since the last time."""
        for name, group in self.watched.by_name(closed=True).items():
            for gauges in group:
                self._record_one(name, gauges)

    def _record_one(self, name: str, gauges: Gauges) -> None:
        for distribution, by_labels in histograms([gauges]).items():
            record = self._histograms[distribution].record
            for labels, histogram in by_labels.items():
                with self._lock:
                    recorded = self._recorded.setdefault(gauges, {})
                    values = histogram.new_since(recorded.get((distribution, labels), {}))
                    # Another thread may have read the histogram later, and come here first. Then nothing is
                    # new, and what that thread noted stands. Else the next collection would record it again.
                    if values:
                        recorded[distribution, labels] = histogram.buckets
                attributes = _attributes(name, distribution.labels, labels)
                for value, count in _sampled(values, _MOST_VALUES):
                    for _ in range(count):
                        record(value, attributes)


def _attributes(name: str, labels: Labels, values: Labels) -> dict[str, str]:
    return {_NAME: name, **{_ATTRIBUTES[label]: value for label, value in zip(labels, values, strict=True)}}


def _sampled(values: list[tuple[float, int]], most: int) -> Iterable[tuple[float, int]]:
    """Yield values and their counts, thinned out evenly to `most` values in all."""
    total = sum(count for _, count in values)
    if total <= most:
        yield from values
        return
    before = taken = 0
    for value, count in values:
        before += count
        share = before * most // total
        yield value, share - taken
        taken = share


# Guards the two names below. The thread that holds it has the provider make instruments, and a destructor
# that runs on that thread may ask for an exporter, too. So it is reentrant.
_lock = threading.RLock()
_exporters: weakref.WeakKeyDictionary[metrics.MeterProvider, weakref.ref[_Exporter]] = weakref.WeakKeyDictionary()
_global_exporter: _Exporter | None = None


def _exporter_for(provider: metrics.MeterProvider | None) -> _Exporter:
    global _global_exporter  # One for the global provider, whichever the application sets.
    with _lock:
        if provider is None:
            if _global_exporter is None:
                _global_exporter = _Exporter(metrics.get_meter_provider())
            return _global_exporter
        known = _exporters.get(provider)
        exporter = None if known is None else known()
        if exporter is None:
            exporter = _Exporter(provider)
            _exporters[provider] = weakref.ref(exporter)
        return exporter


class TaskSpans(Observer):
    """Makes a span for each task of the executors that it observes. See the module's docstring.

    Args:
        tracer_provider: The provider of the tracer. None for the global one.
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        # The span of each task that has started and is not done. One thread at a time adds or removes a key,
        # in one step. No thread iterates. A thread that stops a task may add an event to a span that has just
        # ended: the SDK drops it, and logs that.
        self._spans: dict[int, trace.Span] = {}

    @override
    def task_started(self, event: TaskEvent) -> None:
        """Begin the span, at the first attempt."""
        span = self._spans.get(event.task)
        if span is not None:
            if event.attempt > 1:
                span.add_event(
                    "tasker_executor.attempt",
                    {"tasker_executor.attempt": event.attempt, "thread.name": as_label(event.worker or "")},
                )
                return
            # It is the span of an earlier task with the same number, whose end was interrupted.
            self._end(event.task)
        context = event.context
        parent = otel_context.Context() if context is None else context.run(otel_context.get_current)
        function = as_label(event.function)
        attributes: Mapping[str, str | float] = {
            _NAME: as_label(event.executor),
            _ATTRIBUTES["lane"]: event.lane,
            "tasker_executor.task.wait_time": event.wait,
            "code.function.name": function,
            "thread.name": as_label(event.worker or ""),
        }
        span = self._spans[event.task] = self._tracer.start_span(function, parent, attributes=attributes)
        if context is not None:
            # Never detached: the context ends with the task, and the next attempt must see the span, too.
            context.run(otel_context.attach, trace.set_span_in_context(span, parent))

    @override
    def task_retried(self, event: TaskEvent) -> None:
        """Add an event for the replaced resource and one for the retry."""
        span = self._spans.get(event.task)
        if span is not None:
            span.add_event("tasker_executor.resource.replaced", {"thread.name": as_label(event.worker or "")})
            span.add_event(
                "tasker_executor.task.retried",
                {
                    "tasker_executor.attempt": event.attempt,
                    "error.type": _type_of(event.error),
                    "exception.message": as_label(safe_str(event.error)),
                },
            )

    @override
    def task_stopped(self, event: TaskEvent) -> None:
        """Add an event for the stop; its task may run on."""
        span = self._spans.get(event.task)
        if span is not None:
            span.add_event("tasker_executor.task.stopped", {_ATTRIBUTES["reason"]: event.outcome})

    @override
    def task_finished(self, event: TaskEvent) -> None:
        """End the span."""
        try:
            span = self._spans.get(event.task)
            if span is None:
                return
            span.set_attribute(_ATTRIBUTES["outcome"], event.outcome)
            if event.attempt:
                span.set_attribute("tasker_executor.attempt", event.attempt)
            if event.error is not None:
                span.set_attribute("error.type", _type_of(event.error))
                span.set_status(trace.StatusCode.ERROR, as_label(safe_str(event.error)))
                span.record_exception(event.error)  # Last: the SDK asks for the text of the error, which may raise.
        finally:
            self._end(event.task)

    def _end(self, task: int) -> None:
        """End a span, then forget it: Ctrl-C may come between the two, and a forgotten span never ends."""
        span = self._spans.get(task)
        if span is not None:
            try:
                span.end()
            finally:
                self._spans.pop(task, None)


def _type_of(error: BaseException | None) -> str:
    """Return the name of an exception's class, as the semantic conventions spell it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
