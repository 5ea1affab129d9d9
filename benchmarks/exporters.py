"""What being watched costs: a burst of empty tasks, watched in each way.

    python -m benchmarks.exporters
    python -m benchmarks.exporters --tasks 20000 --rounds 5

What counts is the processor time of the whole process, that of the watchers' own threads included, so that
what else runs on the machine matters little. The ways take turns in each round, in a new order each time;
medians are shown. An empty task is the worst case: what an observer takes for each task is weighed against
the microseconds of a task that does nothing.
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from tasker_executor import Observer, ResourceExecutor
from tasker_executor.monitor import monitor
from tasker_executor.opentelemetry import TaskSpans, instrument
from tasker_executor.prometheus import register
from tasker_executor.recording import LoadRecorder

Pool = ResourceExecutor[Any]
Watch = Callable[[Pool], AbstractContextManager[object]]


def task() -> None:
    pass


@contextmanager
def repeated(action: Callable[[], object], interval: float) -> Generator[None]:
    """Do something now and then in a thread of its own."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(interval):
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def unwatched(_: Pool) -> Iterator[None]:
    yield


@contextmanager
def prometheus(pool: Pool) -> Iterator[None]:
    registry = CollectorRegistry()
    register(pool, registry=registry)
    with repeated(lambda: generate_latest(registry), 0.25):  # sixty times as often as is usual
        yield


@contextmanager
def opentelemetry(pool: Pool) -> Iterator[None]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    instrument(pool, meter_provider=provider)
    # Once a minute is usual. No burst here takes so long, so what a collection after it costs is shown apart.
    yield
    begun = time.perf_counter()
    reader.get_metrics_data()
    collections.append(time.perf_counter() - begun)
    provider.shutdown()


@contextmanager
def panel(pool: Pool) -> Iterator[None]:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with monitor(pool, console=console):
        yield


#: Seconds that the collections by OpenTelemetry took.
collections: list[float] = []

WAYS: dict[str, tuple[Watch, Callable[[], list[Observer]]]] = {
    "unwatched": (unwatched, list),
    "unwatched, again": (unwatched, list),
    "prometheus, 4 scrapes a second": (prometheus, list),
    "opentelemetry metrics": (opentelemetry, list),
    "monitor, 4 frames a second": (panel, list),
    "load recorder": (unwatched, lambda: [LoadRecorder(io.StringIO())]),
    "spans, none sampled": (unwatched, lambda: [TaskSpans()]),
    "spans, all recorded": (unwatched, lambda: [TaskSpans(TracerProvider(shutdown_on_exit=False))]),
}


def burst(way: str, tasks: int) -> float:
    """Return the processor time of a task, in microseconds."""
    watch, observers = WAYS[way]
    with ResourceExecutor(4, min_workers=4, observers=observers()) as pool:
        pool.wait_ready()
        with watch(pool):
            begun = time.process_time()
            for future in [pool.submit(task) for _ in range(tasks)]:
                future.result()
            seconds = time.process_time() - begun
    return seconds / tasks * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200_000, help="in a burst")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()

    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in random.sample(list(WAYS), len(WAYS)):
            costs[way].append(burst(way, options.tasks))
    bare = statistics.median(costs["unwatched"])
    print(f"{'':32} us a task   throughput")
    for way, values in costs.items():
        cost = statistics.median(values)
        print(f"{way:32} {cost:9.2f} {bare / cost:12.0%}")
    print(f"a collection by OpenTelemetry after a burst takes its reader's thread {statistics.median(collections):.2f} s")


if __name__ == "__main__":
    main()
