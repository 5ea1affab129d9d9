"""Request ids and OpenTelemetry's spans on the threads of a pool: docs/howto/contextvars-and-opentelemetry.rst.

    pip install tasker-executor[opentelemetry] opentelemetry-sdk
    python examples/request_tracing.py

Each log record of a task has the id of its request, and each task has a span below that of its request. One
connection breaks, so one task is run twice: its span tells. The spans and metrics, which an exporter of yours
would send, are kept in memory and printed.
"""

from __future__ import annotations

import itertools
import logging
import sys
from contextvars import ContextVar

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tasker_executor import ResourceExecutor
from tasker_executor.opentelemetry import TaskSpans, instrument

request_id = ContextVar("request_id", default="-")
numbers = itertools.count(1)
log = logging.getLogger("service")


class Connection:
    def __init__(self) -> None:
        self.number = next(numbers)

    def get(self, feed: str) -> int:
        log.info("request %s asks connection %d for %s", request_id.get(), self.number, feed)
        if self.number == 1:
            raise ConnectionResetError("by peer")
        return len(feed)


def is_own(error: Exception) -> bool:
    return not isinstance(error, ConnectionError)


# [set-up]
spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracing, metering = TracerProvider(), MeterProvider([reader])
tracing.add_span_processor(SimpleSpanProcessor(spans))
tracer = tracing.get_tracer("service")

pool = ResourceExecutor(1, on_create=Connection, check_health=is_own, observers=[TaskSpans(tracing)], name="feeds")
instrument(pool, meter_provider=metering)


def handle(request: str, feeds: list[str]) -> list[int]:
    request_id.set(request)
    with tracer.start_as_current_span(f"request {request}"):
        return list(pool.map(Connection.get, feeds))  # each task gets this context: the id, and the span


# [end]


def show(span: ReadableSpan) -> str:
    parts = [span.name, str((span.attributes or {}).get("tasker_executor.outcome", ""))]
    parts += [event.name.removeprefix("tasker_executor.") for event in span.events]
    return " ".join(filter(None, parts))


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(threadName)s: %(message)s")
    logging.getLogger("tasker_executor").setLevel(logging.ERROR)  # it would warn of the connection
    handle("A", ["news", "weather"])
    handle("B", ["sports"])
    pool.shutdown()

    children = {"A": 0, "B": 0}
    for parent in (span for span in spans.get_finished_spans() if span.parent is None):
        print(show(parent))
        for span in spans.get_finished_spans():
            if span.parent and parent.context and span.parent.span_id == parent.context.span_id:
                print("  ", show(span))
                children[parent.name[-1]] += 1

    data = reader.get_metrics_data()
    reported = data is not None and "tasker_executor.task.finished" in data.to_json()
    print("metrics are reported" if reported else "no metrics")
    metering.shutdown()
    if children != {"A": 2, "B": 1} or not reported:
        sys.exit("FAILED: a span is missing, or there are no metrics")


if __name__ == "__main__":
    main()
