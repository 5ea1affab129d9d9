"""Metrics and spans, seen through the SDK's in-memory exporters."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from engine import Histogram, core_of
from interruptions import AtPoint, TimeLimit
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, ResourceBroken, collected, eventually
from tasker_executor import Observer, ResourceCreationError, ResourceExecutor, TaskEvent, current_task

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, StatusCode

from tasker_executor import opentelemetry
from tasker_executor._telemetry import MEASURES, histograms
from tasker_executor.opentelemetry import TaskSpans, instrument

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import Metric


# -- metrics --


class Collected:
    """What one collection brought."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        data = reader.get_metrics_data()
        self.metrics: dict[str, Metric] = {}
        resources = () if data is None else data.resource_metrics
        for resource in resources:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    assert metric.name not in self.metrics, "two streams of one name"
                    self.metrics[metric.name] = metric

    def point(self, name: str, **attributes: str) -> Any:
        """The one data point that has these attributes, given without their prefix."""
        wanted = {f"tasker_executor.{key.replace('__', '.')}": value for key, value in attributes.items()}
        metric = self.metrics[f"tasker_executor.{name}"]
        (point,) = [point for point in metric.data.data_points if wanted.items() <= dict(point.attributes or {}).items()]
        return point

    def value(self, name: str, **attributes: str) -> float:
        value: float = self.point(name, **attributes).value
        return value

    def histogram(self, name: str, **attributes: str) -> HistogramDataPoint:
        point = self.point(name, **attributes)
        assert isinstance(point, HistogramDataPoint)
        return point

    @property
    def executors(self) -> set[str]:
        points = [point for metric in self.metrics.values() for point in metric.data.data_points]
        return {str((point.attributes or {})["tasker_executor.name"]) for point in points}


MakeReader = Callable[..., tuple[InMemoryMetricReader, MeterProvider]]


@pytest.fixture
def make_reader() -> Iterator[MakeReader]:
    providers: list[MeterProvider] = []

    def make(**kwargs: Any) -> tuple[InMemoryMetricReader, MeterProvider]:
        reader = InMemoryMetricReader(**kwargs)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        providers.append(provider)
        return reader, provider

    yield make

    for provider in providers:
        provider.shutdown()


def test_a_collection_tells_what_the_pool_did(make_pool: MakePool, ledger: Ledger, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, name="db", min_workers=1)
    instrument(pool, meter_provider=provider)
    pool.submit(FakeResource.use).result(DEADLINE)
    pool.submit_priority(FakeResource.use).result(DEADLINE)
    pool.submit(FakeResource.break_down).exception(DEADLINE)

    seen = Collected(reader)

    assert seen.executors == {"db"}
    assert seen.value("task.submitted") == 3
    assert seen.value("task.finished", task__lane="normal", outcome="failed") == 1
    assert seen.value("task.finished", task__lane="priority", outcome="completed") == 1
    assert seen.value("worker.count", worker__kind="base") == 1
    assert seen.value("worker.max") == 2
    assert seen.value("resource.creations", outcome="created") == len(ledger.created)
    assert seen.histogram("task.wait_time", task__lane="normal").count == 2
    assert seen.histogram("task.run_time", outcome="completed").count == 2
    assert seen.histogram("resource.create_time").count == len(ledger.created)


def test_every_measure_has_a_unit_and_a_description(make_pool: MakePool, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    instrument(make_pool(1), meter_provider=provider)

    seen = Collected(reader).metrics

    assert {f"tasker_executor.{measure.otel_name}" for measure in MEASURES} <= seen.keys()
    assert all(metric.unit and metric.description for metric in seen.values())


def test_what_can_go_down_is_no_monotonic_sum(make_pool: MakePool, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    instrument(make_pool(1), meter_provider=provider)

    seen = Collected(reader).metrics

    monotonic = {name for name, metric in seen.items() if getattr(metric.data, "is_monotonic", False)}
    assert monotonic == {f"tasker_executor.{measure.otel_name}" for measure in MEASURES if measure.kind == "counter"}


def test_a_histogram_gets_each_value_once_and_nearly_right(make_pool: MakePool, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    pool = make_pool(2)
    instrument(pool, meter_provider=provider)

    points: list[HistogramDataPoint] = []
    for _ in range(3):
        list(pool.map(str, range(100)))
        points.append(Collected(reader).histogram("task.run_time", outcome="completed"))

    run, seen = pool.metrics().run, points[-1]
    assert [point.count for point in points] == [100, 200, 300]
    assert seen.sum == pytest.approx(run.total, rel=0.04)
    assert (seen.min, seen.max) == pytest.approx((run.minimum, run.maximum), rel=0.04)


def test_two_readers_see_the_same_histogram(make_pool: MakePool) -> None:
    readers = [InMemoryMetricReader(), InMemoryMetricReader()]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    pool = make_pool(1)
    instrument(pool, meter_provider=provider)
    list(pool.map(str, range(100)))

    counts = [Collected(reader).histogram("task.run_time", outcome="completed").count for reader in readers]
    provider.shutdown()

    assert counts == [100, 100]


def test_a_collection_that_read_earlier_and_notes_later_records_nothing_twice(
    make_pool: MakePool, make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A thread reads the histograms. 2. Tasks end; another thread reads them, records what is new, and notes how far it
    # has come. 3. The first thread has nothing to record, and must not note that it has come less far.
    reader, provider = make_reader()
    pool = make_pool(1)
    instrument(pool, meter_provider=provider)
    list(pool.map(str, range(100)))
    exporter = opentelemetry._exporter_for(provider)
    read = histograms
    overtake = [exporter._record]

    def read_and_be_overtaken(executors: Any) -> Any:
        found = read(executors)
        if overtake:
            later = overtake.pop()
            list(pool.map(str, range(100)))
            thread = threading.Thread(target=later)
            thread.start()
            thread.join(DEADLINE)
        return found

    monkeypatch.setattr(opentelemetry, "histograms", read_and_be_overtaken)
    exporter._record()

    assert Collected(reader).histogram("task.run_time", outcome="completed").count == 200


def test_delta_temporality_gets_only_what_is_new(make_pool: MakePool, make_reader: MakeReader) -> None:
    from opentelemetry.sdk.metrics import Histogram as SdkHistogram

    reader, provider = make_reader(preferred_temporality={SdkHistogram: AggregationTemporality.DELTA})
    pool = make_pool(1)
    instrument(pool, meter_provider=provider)
    list(pool.map(str, range(100)))
    Collected(reader)
    list(pool.map(str, range(7)))

    assert Collected(reader).histogram("task.run_time", outcome="completed").count == 7


def test_a_flood_of_values_is_sampled_evenly(
    make_pool: MakePool, make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opentelemetry, "_MOST_VALUES", 50)
    reader, provider = make_reader()
    pool = make_pool(1)
    instrument(pool, meter_provider=provider)
    list(pool.map(str, range(1000)))

    seen = Collected(reader)
    again = Collected(reader)

    assert seen.histogram("task.run_time", outcome="completed").count == 50
    assert again.histogram("task.run_time", outcome="completed").count == 50
    assert seen.value("task.finished", outcome="completed", task__lane="normal") == 1000


def test_a_sample_keeps_the_shares() -> None:
    values = [(0.1, 900), (0.2, 90), (0.3, 10)]

    assert list(opentelemetry._sampled(values, 100)) == [(0.1, 90), (0.2, 9), (0.3, 1)]
    assert list(opentelemetry._sampled(values, 1000)) == values


def test_new_values_of_a_histogram_lie_within_half_a_bucket() -> None:
    histogram = Histogram()
    histogram.add([0.001, 0.5])
    before = histogram.buckets
    histogram.add([0.5, 0.5, 2.0])

    new = histogram.new_since(before)

    assert [count for _, count in new] == [2, 1]
    assert [value for value, _ in new] == pytest.approx([0.5, 2.0], rel=0.032)


def test_executors_of_one_provider_share_its_instruments(make_pool: MakePool, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    instrument(make_pool(1, name="a"), make_pool(1, name="b"), meter_provider=provider)
    instrument(make_pool(1, name="c"), meter_provider=provider)

    assert Collected(reader).executors == {"a", "b", "c"}  # and no warning of a duplicate instrument


def test_executors_of_one_name_are_one_stream(make_pool: MakePool, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    one, other = make_pool(4, name="twin"), make_pool(5, name="twin")
    instrument(one, other, meter_provider=provider)
    list(one.map(str, range(10)))
    list(other.map(str, range(20)))

    seen = Collected(reader)

    assert seen.value("worker.max") == 9
    assert seen.histogram("task.run_time", outcome="completed").count == 30


def test_a_closed_executor_is_reported_to_the_end(make_pool: MakePool, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    pool = make_pool(1)
    instrument(pool, meter_provider=provider)
    list(pool.map(str, range(10)))
    pool.shutdown()

    seen = Collected(reader)

    assert seen.value("task.finished", task__lane="normal", outcome="completed") == 10
    assert seen.histogram("task.run_time", outcome="completed").count == 10


def test_instruments_keep_no_executor_alive(make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    pool = ResourceExecutor(1)
    instrument(pool, meter_provider=provider)
    pool.submit(str).result(DEADLINE)
    Collected(reader)
    core, reference = weakref.ref(core_of(pool)), weakref.ref(pool)

    del pool

    assert collected(reference)
    eventually(lambda: gc.collect() >= 0 and core() is None, "the end of the core")


def test_without_an_sdk_nothing_happens(make_pool: MakePool) -> None:
    pool = make_pool(1, observers=[TaskSpans(trace.NoOpTracerProvider())])
    instrument(pool)

    assert pool.submit(str, 1).result(DEADLINE) == "1"


# -- spans --


class Traces:
    """A tracer whose finished spans can be looked at."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.observer = TaskSpans(self.provider)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def traces() -> Iterator[Traces]:
    made = Traces()
    yield made

    assert made.observer._spans == {}, "a span was left open"
    made.provider.shutdown()


def context_of(span: ReadableSpan | SpanContext | None) -> SpanContext:
    context = span.get_span_context() if isinstance(span, ReadableSpan) else span
    assert context is not None
    return context


def here() -> SpanContext:
    return trace.get_current_span().get_span_context()


def test_a_task_has_a_span_that_is_current_inside_of_it(make_pool: MakePool, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer], name="db")

    inside = pool.submit_priority(here).result(DEADLINE)

    span = traces.named("here")
    assert inside == context_of(span)
    assert span.attributes is not None
    assert span.attributes["tasker_executor.name"] == "db"
    assert span.attributes["tasker_executor.task.lane"] == "priority"
    assert span.attributes["tasker_executor.outcome"] == "completed"
    assert span.attributes["thread.name"] == "db_0"


def test_a_task_is_a_child_of_its_submitters_span(make_pool: MakePool, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer])
    pool.submit(str).result(DEADLINE)  # the worker is there already, from outside of any span

    with traces.tracer.start_as_current_span("request") as request:
        pool.submit(here).result(DEADLINE)

    assert context_of(traces.named("here").parent) == request.get_span_context()


def test_spans_begin_a_trace_where_there_is_none(make_pool: MakePool, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer])

    with traces.tracer.start_as_current_span("request"):
        make_pool(1)  # a worker that starts here would carry the span, were its context not empty
        pool.submit(str).result(DEADLINE)
    pool.submit(here).result(DEADLINE)

    assert traces.named("here").parent is None


def test_a_task_submitted_by_a_task_is_a_child_of_its_span(make_pool: MakePool, traces: Traces) -> None:
    pool = make_pool(2, observers=[traces.observer])

    def outer() -> SpanContext:
        return pool.submit(here).result(DEADLINE)

    pool.submit(outer).result(DEADLINE)

    (parent,) = [span for span in traces.spans if span.name.endswith("outer")]
    assert context_of(traces.named("here").parent) == context_of(parent)


def test_the_span_is_gone_when_the_task_is(make_pool: MakePool, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer])
    pool.submit(here).result(DEADLINE)

    with traces.tracer.start_as_current_span("request") as request:
        pool.submit(here).result(DEADLINE)
        assert here() == request.get_span_context()

    assert not here().is_valid


def test_without_propagation_each_span_begins_a_trace(make_pool: MakePool, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer], propagate_context=False)

    with traces.tracer.start_as_current_span("request"):
        inside = pool.submit(here).result(DEADLINE)

    assert traces.named("here").parent is None
    assert not inside.is_valid


def test_an_error_is_recorded(make_pool: MakePool, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer])

    pool.submit(int, "seven").exception(DEADLINE)

    span = traces.named("int")
    assert span.status.status_code is StatusCode.ERROR
    assert "seven" in (span.status.description or "")
    assert [event.name for event in span.events] == ["exception"]
    assert (span.attributes or {})["error.type"] == "ValueError"


def test_a_stop_is_an_event_of_the_span(make_pool: MakePool, clock: Clock, traces: Traces) -> None:
    begun, told = threading.Event(), threading.Event()

    class Listener(Observer):
        def task_stopped(self, event: TaskEvent) -> None:
            told.set()

    def until_told() -> None:
        begun.set()
        told.wait(DEADLINE)  # its token is set before observers hear of it
        current_task().raise_if_cancelled()

    pool = make_pool(1, observers=[traces.observer, Listener()])
    future = pool.with_options(run_within=3600).submit(until_told)
    assert begun.wait(DEADLINE)
    clock.pass_time(3601, pool)
    future.exception(DEADLINE)
    pool.shutdown()

    (span,) = traces.spans
    stop = next(event for event in span.events if event.name == "tasker_executor.task.stopped")
    assert stop.attributes == {"tasker_executor.stop.reason": "timed out"}
    assert (span.attributes or {})["error.type"] == "tasker_executor.exceptions.TaskTimeout"
    assert (span.attributes or {})["tasker_executor.outcome"] == "failed"


def test_a_task_that_was_given_up_ends_its_span(make_pool: MakePool, clock: Clock, gate: Gate, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer], abort_grace=3600)
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    future.stop()
    clock.pass_time(3601, pool)
    eventually(lambda: len(traces.spans) == 1, "the end of the span")
    future.exception(DEADLINE)
    gate.release()
    pool.shutdown()

    (span,) = traces.spans
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["tasker_executor.task.stopped", "exception"]


def test_a_stop_of_a_task_that_has_no_span_is_ignored(traces: Traces) -> None:
    traces.observer.task_stopped(TaskEvent("db", 1, "int", "normal", outcome="stopped"))

    assert traces.spans == []


def break_once(resource: FakeResource, inside: list[SpanContext]) -> None:
    inside.append(here())
    if current_task().attempt == 1:
        resource.break_down()


def test_a_retry_and_the_replaced_resource_are_events_of_the_span(make_pool: MakePool, ledger: Ledger, traces: Traces) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        observers=[traces.observer],
    )
    inside: list[SpanContext] = []

    with traces.tracer.start_as_current_span("request") as request:
        pool.submit(break_once, inside).result(DEADLINE)

    span = traces.named("break_once")
    assert [event.name.removeprefix("tasker_executor.") for event in span.events] == [
        "resource.replaced",
        "task.retried",
        "attempt",
    ]
    assert (span.events[1].attributes or {})["error.type"] == f"{ResourceBroken.__module__}.ResourceBroken"
    assert (span.attributes or {})["tasker_executor.attempt"] == 2
    assert inside == [context_of(span)] * 2
    assert context_of(span.parent) == request.get_span_context()


def test_a_task_out_of_retries_ends_its_span(make_pool: MakePool, ledger: Ledger, traces: Traces) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        max_retries=1,
        observers=[traces.observer],
    )

    pool.submit(FakeResource.break_down).exception(DEADLINE)

    span = traces.named("FakeResource.break_down")
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events].count("tasker_executor.task.retried") == 1


def test_a_task_that_starves_between_two_attempts_ends_its_span(make_pool: MakePool, ledger: Ledger, traces: Traces) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        create_timeout=0.01,
        min_workers=1,
        observers=[traces.observer],
    )
    pool.wait_ready(DEADLINE)  # or the task starves before its first attempt

    def cause_an_outage(resource: FakeResource) -> None:
        ledger.outage = ConnectionError("down")
        resource.break_down()

    error = pool.submit(cause_an_outage).exception(DEADLINE)
    eventually(lambda: len(traces.spans) == 1, "the span")
    ledger.outage = None

    assert isinstance(error, ResourceCreationError)
    assert traces.spans[0].status.status_code is StatusCode.ERROR


def test_a_task_that_never_ran_has_no_span(make_pool: MakePool, gate: Gate, traces: Traces) -> None:
    pool = make_pool(1, observers=[traces.observer])
    pool.submit(gate.hold)
    gate.wait_until_held()

    pool.submit(here).cancel()
    gate.release()
    pool.shutdown()

    assert [span.name for span in traces.spans] == ["Gate.hold"]


def test_an_unsampled_trace_costs_no_task_its_result(make_pool: MakePool) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    pool = make_pool(1, observers=[TaskSpans(provider)])

    inside = pool.submit(here).result(DEADLINE)

    assert not inside.trace_flags.sampled


def finished(task: int, error: BaseException | None = None) -> TaskEvent:
    return TaskEvent("pool", task, "f", "normal", 1, outcome="completed", error=error)


def test_a_span_whose_end_was_interrupted_is_not_taken_for_that_of_the_next_task(traces: Traces) -> None:
    spans = TaskSpans(traces.provider)
    spans.task_started(TaskEvent("pool", 7, "first", "normal", 1))  # its `task_finished` never came: Ctrl-C
    spans.task_started(TaskEvent("pool", 7, "second", "normal", 1))
    spans.task_started(TaskEvent("pool", 7, "second", "normal", 2))
    spans.task_finished(finished(7))

    assert [(span.name, len(span.events)) for span in traces.spans] == [("first", 0), ("second", 1)]
    assert spans._spans == {}


def test_a_span_ends_wherever_an_error_is_thrown_into_its_end(traces: Traces) -> None:
    def throw() -> None:
        raise TimeLimit

    points = 0
    while True:
        spans = TaskSpans(traces.provider)
        spans.task_started(TaskEvent("pool", 1, "f", "normal", 1))
        point = AtPoint(points + 1, throw)
        try:
            with point:
                spans.task_finished(finished(1, ValueError("x")))
        except TimeLimit:
            spans.task_started(TaskEvent("pool", 1, "g", "normal", 1))  # at the latest, it ends here
        if point.where is None:
            break
        points += 1
        assert any(span.name == "f" for span in traces.spans), point.where
        traces.exporter.clear()
    assert points >= 5


def test_names_that_utf_8_does_not_take_are_spelled_out(traces: Traces, make_reader: MakeReader) -> None:
    reader, provider = make_reader()
    spans = TaskSpans(traces.provider)
    with ResourceExecutor(1, name="half \udcff", observers=[spans]) as pool:
        instrument(pool, meter_provider=provider)
        pool.submit(int).result(DEADLINE)
        collected = Collected(reader)

    assert collected.executors == {"half \\udcff"}
    (span,) = traces.spans
    assert all(str(value).encode() for value in (span.attributes or {}).values())
