"""The collector for Prometheus, seen through a real scrape and the client's own parser."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
import urllib.request
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine import core_of
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, collected, eventually
from tasker_executor import ResourceExecutor, current_task

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, Gauge, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from tasker_executor.prometheus import register, unregister

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

EXAMPLES = Path(__file__).parent.parent / "examples"
DASHBOARD = EXAMPLES / "grafana" / "tasker_executor.json"
PREFIX = "tasker_executor_"


class Scrape:
    """What one scrape brought."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The one sample that has all these labels."""
        (value,) = [
            sample.value for sample in self.samples if sample.name == PREFIX + name and labels.items() <= sample.labels.items()
        ]
        return value

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    @property
    def executors(self) -> set[str]:
        return {sample.labels["executor"] for sample in self.samples}


def scrape(registry: CollectorRegistry) -> Scrape:
    return Scrape(generate_latest(registry).decode())


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[str]:
    """The address of a page that shows the registry."""
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"http://127.0.0.1:{server.server_port}/metrics"

    server.shutdown()
    server.server_close()
    thread.join(DEADLINE)


def fetch(url: str) -> Scrape:
    with urllib.request.urlopen(url, timeout=DEADLINE) as response:
        return Scrape(response.read().decode())


def fail(resource: object) -> None:
    raise ValueError(resource)


# -- over HTTP --


def test_a_scrape_over_http_tells_what_the_pool_did(
    make_pool: MakePool, ledger: Ledger, registry: CollectorRegistry, endpoint: str
) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, name="db", min_workers=1)
    register(pool, registry=registry)
    pool.submit(FakeResource.use).result(DEADLINE)
    pool.submit_priority(FakeResource.use).result(DEADLINE)
    pool.submit(fail).exception(DEADLINE)

    page = fetch(endpoint)

    assert page.value("tasks_submitted_total", executor="db") == 3
    assert page.value("tasks_total", executor="db", lane="normal", outcome="completed") == 1
    assert page.value("tasks_total", executor="db", lane="normal", outcome="failed") == 1
    assert page.value("tasks_total", executor="db", lane="priority", outcome="completed") == 1
    assert page.value("workers", executor="db", kind="base") == 1
    assert page.value("queue_wait_seconds_count", executor="db", lane="normal") == 2
    assert page.value("run_seconds_count", executor="db", outcome="completed") == 2
    assert page.value("resource_creations_total", executor="db", outcome="created") == len(ledger.created)


def test_the_example_service_can_be_scraped(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "metrics_service.py"), "--address", "127.0.0.1:0"]
    service = subprocess.Popen([*command, "--seconds", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with service:
        assert service.stdout is not None
        url = service.stdout.readline().removeprefix("serving ").strip()

        page = fetch(url)
        _, errors = service.communicate(timeout=DEADLINE)

    assert page.value("max_workers", executor="database") == 16
    assert service.returncode == 0, errors


# -- the numbers --


def test_lanes_and_running_tasks_are_gauges_of_this_moment(
    make_pool: MakePool, gate: Gate, registry: CollectorRegistry
) -> None:
    pool = make_pool(1, name="held")
    register(pool, registry=registry)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(gate.hold)
    pool.submit(gate.hold)
    pool.submit_priority(gate.hold)

    page = scrape(registry)

    assert page.value("running_tasks") == 1
    assert page.value("queued_tasks", lane="normal") == 2
    assert page.value("queued_tasks", lane="priority") == 1
    assert page.value("oldest_wait_seconds") > 0.0
    assert page.value("idle_workers") == 0


def test_cancelled_tasks_are_counted_by_lane(make_pool: MakePool, gate: Gate, registry: CollectorRegistry) -> None:
    pool = make_pool(1)
    register(pool, registry=registry)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit_priority(gate.hold).cancel()

    page = scrape(registry)

    assert page.value("tasks_total", lane="priority", outcome="cancelled") == 1
    assert page.value("tasks_total", lane="normal", outcome="cancelled") == 0


def test_stops_and_written_off_workers_show(make_pool: MakePool, clock: Clock, gate: Gate, registry: CollectorRegistry) -> None:
    pool = make_pool(2, abort_grace=0)
    register(pool, registry=registry)
    hanging = pool.submit(gate.hold)
    pool.with_options(run_within=3600).submit(gate.hold)
    gate.wait_until_held(2)
    hanging.stop()
    clock.pass_time(3601, pool)
    eventually(lambda: pool.stats().written_off == 2, "the workers to be written off")

    page = scrape(registry)

    assert page.value("tasks_stopped_total", reason="stopped") == 1
    assert page.value("tasks_stopped_total", reason="timed out") == 1
    assert page.value("written_off_workers") == 2
    assert page.value("running_tasks") == 0


def test_a_task_that_expired_in_the_queue_has_failed(make_pool: MakePool, gate: Gate, registry: CollectorRegistry) -> None:
    pool = make_pool(1)
    register(pool, registry=registry)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.with_options(start_within=0.0).submit(gate.hold).exception(DEADLINE)

    page = scrape(registry)

    assert page.value("tasks_total", lane="normal", outcome="failed") == 1
    assert page.value("run_seconds_count", outcome="failed") == 0


def test_a_retry_and_the_replacement_of_its_worker_are_counted(
    make_pool: MakePool, ledger: Ledger, registry: CollectorRegistry
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    register(pool, registry=registry)
    pool.submit(break_once).result(DEADLINE)
    eventually(lambda: pool.stats().workers_replaced == 1, "the replacement")

    page = scrape(registry)

    assert page.value("task_retries_total", lane="normal") == 1
    assert page.value("worker_replacements_total") == 1
    assert page.value("resource_destructions_total") == 1
    assert page.value("run_seconds_count", outcome="retried") == 1


def break_once(resource: FakeResource) -> None:
    if current_task().attempt == 1:
        resource.break_down()


def test_an_outage_of_the_factory_shows(make_pool: MakePool, ledger: Ledger, registry: CollectorRegistry) -> None:
    ledger.outage = ConnectionError("down")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    register(pool, registry=registry)
    waiting = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(2)
    eventually(lambda: pool.stats().create_failures >= 2, "two failures")

    page = scrape(registry)
    ledger.outage = None
    waiting.result(DEADLINE)
    after = scrape(registry)

    assert page.value("resource_creations_total", outcome="failed") >= 2
    assert page.value("resource_failures_in_a_row") >= 2
    assert after.value("resource_failures_in_a_row") == 0
    assert after.value("resource_creations_total", outcome="created") == 1


def test_a_histogram_is_cumulative_and_ends_with_the_count(make_pool: MakePool, registry: CollectorRegistry) -> None:
    pool = make_pool(2)
    register(pool, registry=registry)
    list(pool.map(str, range(1000)))

    page = scrape(registry)
    buckets = [
        (float(sample.labels["le"]), sample.value)
        for sample in page.samples
        if sample.name == "tasker_executor_run_seconds_bucket" and sample.labels["outcome"] == "completed"
    ]

    assert buckets == sorted(buckets)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1] == (float("inf"), 1000)
    assert page.value("run_seconds_sum", outcome="completed") == pytest.approx(pool.metrics().run.total)


def test_counters_never_decrease_while_tasks_run(
    make_pool: MakePool, registry: CollectorRegistry, fast_switching: None
) -> None:
    pool = make_pool(3)
    register(pool, registry=registry)
    futures = [pool.submit(str, number) for number in range(3000)]

    pages = [scrape(registry) for _ in range(20)]
    for future in futures:
        future.result(DEADLINE)
    pages.append(scrape(registry))

    for name, labels in [
        ("tasks_total", {"lane": "normal", "outcome": "completed"}),
        ("tasks_submitted_total", {}),
        ("queue_wait_seconds_count", {"lane": "normal"}),
        ("run_seconds_bucket", {"outcome": "completed", "le": "1.0"}),
    ]:
        values = [page.value(name, **labels) for page in pages]
        assert values == sorted(values), name
    assert pages[-1].value("tasks_total", lane="normal", outcome="completed") == 3000


def test_metrics_reset_leaves_the_counters_alone(make_pool: MakePool, registry: CollectorRegistry) -> None:
    pool = make_pool(1)
    register(pool, registry=registry)
    pool.submit(str).result(DEADLINE)
    pool.metrics(reset=True)

    page = scrape(registry)

    assert page.value("queue_wait_seconds_count", lane="normal") == 1
    assert page.value("run_seconds_count", outcome="completed") == 1


# -- many executors --


def test_one_line_registers_any_number_of_executors(make_pool: MakePool, registry: CollectorRegistry) -> None:
    first, second, third = make_pool(1, name="a"), make_pool(1, name="b"), make_pool(1, name="c")

    register(first, second, registry=registry)
    register(third, registry=registry)

    assert scrape(registry).executors == {"a", "b", "c"}


def test_an_executor_registered_twice_is_counted_once(make_pool: MakePool, registry: CollectorRegistry) -> None:
    pool = make_pool(4)
    register(pool, pool, registry=registry)
    register(pool, registry=registry)

    page = scrape(registry)

    assert page.value("max_workers") == 4


def test_executors_of_one_name_are_added_up(make_pool: MakePool, registry: CollectorRegistry) -> None:
    one, other = make_pool(4, name="twin"), make_pool(5, name="twin")
    register(one, other, registry=registry)
    one.submit(str).result(DEADLINE)
    other.submit(str).result(DEADLINE)

    page = scrape(registry)

    assert page.value("max_workers", executor="twin") == 9
    assert page.value("tasks_total", lane="normal", outcome="completed") == 2
    assert page.value("run_seconds_count", outcome="completed") == 2


def test_every_name_is_described_once_with_help_and_type(make_pool: MakePool, registry: CollectorRegistry) -> None:
    register(make_pool(1, name="a"), make_pool(1, name="b"), registry=registry)

    text = generate_latest(registry).decode()

    described = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    assert all(family.documentation for family in Scrape(text).families.values())
    assert all(name.startswith(PREFIX) for name in described)


def test_names_follow_the_conventions(make_pool: MakePool, registry: CollectorRegistry) -> None:
    register(make_pool(1), registry=registry)

    families = scrape(registry).families.values()

    for family in families:
        suffixed = any(sample.name.endswith("_total") for sample in family.samples)
        assert suffixed == (family.type == "counter"), family.name
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


# -- the end of an executor --


def test_a_closed_executor_vanishes(make_pool: MakePool, registry: CollectorRegistry) -> None:
    stays, goes = make_pool(1, name="stays"), make_pool(1, name="goes")
    register(stays, goes, registry=registry)

    goes.shutdown()

    assert scrape(registry).executors == {"stays"}


def test_the_collector_does_not_keep_an_executor_alive(registry: CollectorRegistry) -> None:
    pool = ResourceExecutor(1, name="dropped")
    register(pool, registry=registry)
    pool.submit(str).result(DEADLINE)
    core, reference = weakref.ref(core_of(pool)), weakref.ref(pool)
    assert scrape(registry).executors == {"dropped"}

    del pool

    assert collected(reference)
    eventually(lambda: gc.collect() >= 0 and core() is None, "the end of the core")
    assert scrape(registry).samples == []


def test_a_dropped_executor_is_seen_until_it_has_drained(gate: Gate, registry: CollectorRegistry) -> None:
    pool = ResourceExecutor(1, name="draining")
    register(pool, registry=registry)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(gate.hold)

    del pool
    gc.collect()

    assert scrape(registry).value("queued_tasks", executor="draining", lane="normal") == 1


def test_an_executor_can_be_taken_off_the_page(make_pool: MakePool, registry: CollectorRegistry) -> None:
    stays, goes = make_pool(1, name="stays"), make_pool(1, name="goes")
    register(stays, goes, registry=registry)

    unregister(goes, registry=registry)

    assert scrape(registry).executors == {"stays"}


def test_unregistering_where_nothing_was_registered_is_ignored(make_pool: MakePool, registry: CollectorRegistry) -> None:
    unregister(make_pool(1), registry=registry)

    assert not scrape(registry).names


def test_an_executor_can_be_registered_again_after_its_collector_was_unregistered(
    make_pool: MakePool, registry: CollectorRegistry
) -> None:
    pool = make_pool(1, name="again")
    registry.unregister(register(pool, registry=registry))
    assert scrape(registry).samples == []

    register(pool, registry=registry)

    assert scrape(registry).executors == {"again"}


# -- mistakes --


def test_names_that_somebody_else_uses_are_refused(make_pool: MakePool, registry: CollectorRegistry) -> None:
    Gauge("tasker_executor_workers", "somebody else's", registry=registry)

    with pytest.raises(ValueError, match="tasker_executor_workers"):
        register(make_pool(1), registry=registry)


def test_only_executors_of_ours_can_be_registered(registry: CollectorRegistry, make_pool: MakePool) -> None:
    with pytest.raises(TypeError, match="ResourceExecutor"):
        register(make_pool(1).with_options(priority=True), registry=registry)  # type: ignore[arg-type]  # the mistake


# -- the dashboard --


def expressions() -> list[str]:
    """Every query of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return queries + [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]


def test_every_metric_of_the_dashboard_is_exported(make_pool: MakePool, registry: CollectorRegistry) -> None:
    register(make_pool(1), registry=registry)

    used = {name for query in expressions() for name in re.findall(r"\btasker_executor_\w+", query)}

    assert used
    assert used <= scrape(registry).names


def test_every_label_of_the_dashboard_is_exported(make_pool: MakePool, registry: CollectorRegistry) -> None:
    register(make_pool(1), registry=registry)
    exported: dict[str, set[str]] = {}
    for sample in scrape(registry).samples:
        exported.setdefault(sample.name, set()).update(sample.labels)

    for query in expressions():
        selected = re.findall(r"(tasker_executor_\w+)\{([^}]*)\}", query)
        common = set[str]().union(*exported.values()).intersection(*(exported[name] for name, _ in selected))
        for name, selector in selected:
            used = set(re.findall(r"(\w+)\s*[=!]~?", selector))
            assert used - {"job", "instance"} <= exported[name], query
        for grouping in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", query):
            assert set(re.split(r"[\s,]+", grouping)) - {"job", "instance"} <= common, query


def test_every_metric_has_a_place_on_the_dashboard(make_pool: MakePool, registry: CollectorRegistry) -> None:
    register(make_pool(1), registry=registry)
    shown = " ".join(expressions())

    families = {family.name for family in scrape(registry).families.values()}

    assert not {name for name in families if name not in shown}


def test_a_name_that_utf_8_does_not_take_is_spelled_out_and_hurts_no_other(make_pool: MakePool) -> None:
    registry = CollectorRegistry()
    register(make_pool(1, name="half \udcff"), make_pool(1, name="whole"), registry=registry)

    assert scrape(registry).executors == {"half \\udcff", "whole"}


def test_a_destructor_may_register_while_a_registry_looks_at_the_collector(make_pool: MakePool) -> None:
    class Curious(CollectorRegistry):
        def register(self, collector: Any) -> None:
            if nested:
                register(nested.pop(), registry=CollectorRegistry())
            super().register(collector)

    nested = [make_pool(1)]
    done = threading.Thread(target=lambda: register(make_pool(1), registry=Curious()), daemon=True)
    done.start()
    done.join(DEADLINE / 3)

    assert not done.is_alive()
