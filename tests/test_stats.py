"""`stats()`, `metrics()` and `repr()`: one consistent moment, exact numbers, constant memory."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import pytest

from engine import (
    KEPT_LOGS,
    LONG_LOG,
    SHORT_LOG,
    Histogram,
    Lane,
    Outcome,
    Recorder,
    TaskLog,
    Token,
    normal_lane,
    patch_recorder_clock,
    recorder_of,
    running_priority,
    stats_while_a_task_is_put_back,
    workers_of,
)
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import DurationSummary, ExecutorStats, ResourceExecutor, TaskStopped, TaskTimeout, current_task

COUNTERS = (
    "submitted",
    "completed",
    "failed",
    "cancelled",
    "retried",
    "resources_created",
    "resources_destroyed",
    "workers_replaced",
    "create_failures",
    "stopped",
    "timed_out",
)

S = TypeVar("S")


def open_log(recorder: Recorder) -> TaskLog:
    """The log of a worker that ran nothing else."""
    log = TaskLog()
    recorder.add_log(log)
    return log


def sum_of_all(stats: ExecutorStats) -> int:
    """Where the tasks are."""
    final = stats.completed + stats.failed + stats.cancelled
    return final + stats.queued_tasks + stats.priority_tasks + stats.running_tasks


# -- stats: gauges and counters --


def test_new_executor_has_done_nothing(make_pool: MakePool) -> None:
    numbers = dataclasses.asdict(make_pool(2).stats())

    assert numbers.pop("state") == "running"
    assert set(numbers.values()) == {0}


def test_every_task_is_counted_where_it_is(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(int).result()
    pool.submit(int, "no number").exception()
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(int)
    pool.submit(int).cancel()
    pool.submit_priority(int)
    pool.submit_priority(int)
    stats = pool.stats()

    assert (stats.submitted, stats.completed, stats.failed, stats.cancelled) == (7, 1, 1, 1)
    assert (stats.running_tasks, stats.queued_tasks, stats.priority_tasks) == (1, 1, 2)


def test_a_task_that_is_put_back_is_counted_once(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A worker has a task in hand, and a reader counts it there. 2. The worker puts it back. 3. The reader counts the lanes.
    pool = make_pool(1)
    with Gate() as returned:
        stats = stats_while_a_task_is_put_back(pool, monkeypatch, gate, returned)

        assert (stats.submitted, stats.queued_tasks, stats.running_tasks) == (1, 1, 0)
        monkeypatch.undo()


def test_a_task_that_fails_before_it_is_run_is_counted_once(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A worker takes a task, and finds that it is too late. 2. The task counts as failed, and is still in hand.
    pool = make_pool(1)
    seen: list[ExecutorStats] = []
    count = Lane.count_failed

    def count_and_look(lane: Lane, sidecar: Any) -> None:
        count(lane, sidecar)
        seen.append(pool.stats())

    monkeypatch.setattr(Lane, "count_failed", count_and_look)
    with pytest.raises(TaskTimeout):
        pool.with_options(run_within=0).submit(int).result(DEADLINE)

    [stats] = seen
    assert (stats.submitted, stats.failed, stats.running_tasks) == (1, 1, 0)


def test_result_is_counted_when_it_can_be_had(make_pool: MakePool) -> None:
    pool = make_pool(1)

    for number in range(1, 200):
        pool.submit(int).result()
        assert pool.stats().completed == number


def test_workers_are_base_or_burst_and_busy_or_idle(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3, min_workers=2)
    for _ in range(3):
        pool.submit(gate.hold)
    gate.wait_until_held(3)
    stats = pool.stats()

    assert (stats.active_workers, stats.base_workers, stats.burst_workers, stats.idle_workers) == (3, 2, 1, 0)
    gate.release()
    eventually(lambda: pool.stats().idle_workers == 3, "all workers to be idle")


def test_number_of_workers_is_the_number_of_threads(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3, thread_name_prefix="counted")
    for _ in range(3):
        pool.submit(gate.hold)
    gate.wait_until_held(3)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("counted_")]

    assert pool.stats().active_workers == len(threads) == 3


def test_resources_are_counted(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=2
    )
    pool.with_options(max_retries=0).submit(FakeResource.break_down).exception()
    pool.submit(FakeResource.use).result()
    stats = pool.stats()

    assert (stats.resources_created, stats.resources_destroyed) == (4, 1)
    assert (stats.workers_replaced, stats.available_resources) == (1, 2)
    pool.shutdown()
    assert pool.stats().resources_destroyed == 4


def test_resource_in_use_by_run_now_is_not_available(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=2)

    assert pool.run_now(lambda _: pool.stats().available_resources) == 1
    assert pool.stats().available_resources == 2


def test_run_now_passes_no_lane_and_is_not_counted(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.run_now(int)

    assert pool.stats().submitted == 0


def test_retries_are_counted_apart_from_tasks(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=3)
    pool.submit(FakeResource.break_down).exception()
    stats = pool.stats()

    assert (stats.submitted, stats.failed, stats.retried) == (1, 1, 3)


def test_failures_of_the_factory_are_counted(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("down")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    future = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(2)
    ledger.outage = None
    future.result(DEADLINE)
    stats = pool.stats()

    assert stats.create_failures == ledger.attempts - 1 >= 2
    assert stats.resources_created == 1


def until_told() -> None:
    """A task that ends as soon as it is asked to stop."""
    current_task().wait(DEADLINE)
    current_task().raise_if_cancelled()


def test_stops_of_running_tasks_are_counted_by_their_reason(make_pool: MakePool, busy: ResourceExecutor[None]) -> None:
    pool = make_pool(2)
    stopped = pool.submit(until_told)
    eventually(stopped.running, "the task to run")
    stopped.stop()
    stopped.stop()
    late = pool.with_options(run_within=0.001).submit(until_told)
    errors = stopped.exception(DEADLINE), late.exception(DEADLINE)
    eventually(lambda: pool.stats().timed_out == 1, "the timer to count a stop that has ended its task at once")
    never_ran = busy.submit(int).stop(), busy.stats()
    stats = pool.stats()

    assert [type(error) for error in errors] == [TaskStopped, TaskTimeout]
    assert (stats.stopped, stats.timed_out, stats.failed, stats.written_off) == (1, 1, 2, 0)
    assert never_ran[0]
    assert (never_ran[1].stopped, never_ran[1].cancelled) == (0, 1)


def test_a_stop_that_ends_its_task_at_once_is_counted(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The task sees its token, raises and is final, before the thread that stops it goes on.
    pool, ready, cancel = make_pool(1), threading.Event(), Token.cancel

    def task() -> None:
        token = current_task()
        ready.set()
        token.wait(DEADLINE)
        token.raise_if_cancelled()

    future = pool.submit(task)
    assert ready.wait(DEADLINE)

    def cancel_and_wait(token: Token, why: str) -> None:
        cancel(token, why)
        future.exception(DEADLINE)

    monkeypatch.setattr(Token, "cancel", cancel_and_wait)
    asked = future.stop()

    assert isinstance(future.exception(), TaskStopped)
    assert (asked, pool.stats().stopped) == (True, 1)


def test_a_task_that_a_kill_stops_is_counted(make_pool: MakePool) -> None:
    pool = make_pool(1)
    future = pool.submit(until_told)
    eventually(future.running, "the task to run")
    pool.kill()
    future.exception(DEADLINE)

    assert pool.stats().stopped == 1


def test_a_task_that_was_given_up_runs_no_more_though_its_call_does(make_pool: MakePool, gate: Gate) -> None:
    # One worker may be written off. So the second stays in the crew, with a task in hand that is over.
    pool = make_pool(1, abort_grace=0)
    for number in (1, 2):
        future = pool.submit_priority(gate.hold)
        gate.wait_until_held(number)
        future.stop()
        future.exception(DEADLINE)
        eventually(lambda: pool.stats().written_off == 1, "the first worker to be written off")
    stats = pool.stats()
    pool._check()

    assert (stats.submitted, stats.failed, stats.running_tasks) == (2, 2, 0)
    assert stats.submitted == sum_of_all(stats)
    assert (stats.active_workers, stats.idle_workers, stats.written_off) == (1, 0, 1)
    assert running_priority(pool) == 0


def test_a_running_task_is_of_its_lane(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3)
    pool.submit(gate.hold)
    for _ in range(2):
        pool.submit_priority(gate.hold)
    gate.wait_until_held(3)

    assert running_priority(pool) == 2


def test_a_new_executor_counts_from_the_first_look_however_a_task_ends(make_pool: MakePool, gate: Gate) -> None:
    """Nobody has looked at the numbers while the task ran: it is still counted, once."""
    pool = make_pool(1, abort_grace=0)
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    future.stop()
    future.exception(DEADLINE)
    stats = pool.stats()

    assert (stats.submitted, stats.failed, stats.running_tasks) == (1, 1, 0)
    gate.release()
    eventually(lambda: pool.stats().written_off == 0, "the call to return")
    assert pool.stats().submitted == sum_of_all(pool.stats()) == 1


def test_state_goes_from_running_to_closed(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    states = [pool.stats().state]
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.shutdown(wait=False)
    states.append(pool.stats().state)
    pool.kill()
    states.append(pool.stats().state)
    gate.release()
    pool.shutdown()
    states.append(pool.stats().state)

    assert states == ["running", "draining", "killed", "closed"]


def test_all_gauges_are_zero_at_the_end(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy)
    list(pool.map(FakeResource.use, range(50)))
    pool.shutdown()
    numbers = dataclasses.asdict(pool.stats())

    assert {name: value for name, value in numbers.items() if name not in COUNTERS} == {
        name: 0 for name in numbers if name not in COUNTERS
    } | {"state": "closed"}
    assert numbers["submitted"] == numbers["completed"] == 50


def test_snapshot_is_frozen_comparable_and_can_be_sent(make_pool: MakePool) -> None:
    pool = make_pool(1)
    stats, metrics = pool.stats(), pool.metrics()

    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.submitted = 1  # type: ignore[misc]  # frozen: that is the claim
    assert pickle.loads(pickle.dumps(stats)) == stats == pool.stats()
    assert pickle.loads(pickle.dumps(metrics)) == metrics


# -- stats: one consistent moment --


def test_task_cancelled_while_stats_are_taken_is_not_counted_twice(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    future = pool.submit(int)
    waiting = Lane.waiting

    def counted_and_then_cancelled(lane: Lane) -> int:
        count = waiting(lane)
        future.cancel()
        return count

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "waiting", counted_and_then_cancelled)
        during = pool.stats()
    after = pool.stats()

    assert during.submitted == sum_of_all(during) == 2
    assert (after.submitted, after.cancelled, after.running_tasks, after.queued_tasks) == (2, 1, 1, 0)


def test_task_retried_while_stats_are_taken_is_not_counted_twice(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)

    def task(resource: FakeResource) -> None:
        if resource.number == 0:
            gate.hold()
            resource.break_down()

    future = pool.submit(task)
    gate.wait_until_held()
    waiting = Lane.waiting

    def count_late(lane: Lane) -> int:
        gate.release()
        eventually(lambda: waiting(normal_lane(pool)) == 1, "the retried task to be back in its lane")
        return waiting(lane)

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "waiting", count_late)
        during = pool.stats()
    future.result(DEADLINE)

    assert during.submitted == sum_of_all(during) == 1
    assert pool.stats().submitted == 1


@pytest.mark.usefixtures("fast_switching")
def test_stats_are_consistent_at_every_moment(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        3, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=1, max_queued=50
    )
    begun: list[int] = []
    taken: list[tuple[ExecutorStats, int]] = []
    futures: list[Future[Any]] = []
    done = threading.Event()

    def submit(seed: int) -> None:
        choose = random.Random(seed)
        for number in range(150):
            begun.append(number)
            view = pool.with_options(priority=choose.random() < 0.3)
            future: Future[Any] = view.submit(FakeResource.break_down if number % 25 == 7 else FakeResource.use)
            futures.append(future)
            if choose.random() < 0.2:
                future.cancel()

    def watch() -> None:
        while not done.is_set():
            stats = pool.stats()
            taken.append((stats, len(begun)))
            pool._check()

    submitters = [threading.Thread(target=submit, args=(seed,)) for seed in range(3)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *submitters):
        thread.start()
    assert join_all(submitters) == []
    pool.shutdown()
    done.set()
    assert join_all([watcher]) == []
    last = pool.stats()
    for future in futures:
        assert future.cancelled() or future.exception() is None or not ledger.is_healthy(future.exception() or OSError())

    for stats, submissions in taken:
        assert stats.submitted == sum_of_all(stats)
        assert stats.submitted <= submissions
        assert all(value >= 0 for name, value in vars(stats).items() if name != "state")
    for (earlier, _), (later, _) in itertools.pairwise([*taken, (last, 450)]):
        for name in COUNTERS:
            assert getattr(earlier, name) <= getattr(later, name), name
    assert last.submitted == 450
    assert last.cancelled == sum(future.cancelled() for future in futures)
    assert last.failed == sum(not future.cancelled() and future.exception() is not None for future in futures)
    assert last.completed == 450 - last.cancelled - last.failed


# -- repr --


def test_executor_says_what_it_is_doing(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, name="crawler")
    seen = [repr(pool)]
    pool.submit(int).result()
    eventually(lambda: "0 busy, 1 idle" in repr(pool), "the worker to be idle")
    pool.submit(gate.hold)
    gate.wait_until_held()
    for _ in range(3):
        pool.submit(int)
    pool.submit_priority(int)
    seen.append(repr(pool))
    pool.shutdown(wait=False)
    seen.append(repr(pool))
    pool.kill()
    seen.append(repr(pool))
    gate.release()
    pool.shutdown()
    seen.append(repr(pool))

    assert seen == [
        "<ResourceExecutor 'crawler' running: 0 busy, 0 idle | 0 queued (0 high)>",
        "<ResourceExecutor 'crawler' running: 1 busy, 0 idle | 4 queued (1 high)>",
        "<ResourceExecutor 'crawler' draining: 1 busy, 0 idle | 4 queued (1 high)>",
        "<ResourceExecutor 'crawler' killed: 1 busy, 0 idle | 0 queued (0 high)>",
        "<ResourceExecutor 'crawler' closed: 0 busy, 0 idle | 0 queued (0 high)>",
    ]


def test_worker_says_what_it_is_doing(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, thread_name_prefix="crawler")
    future = pool.submit(gate.hold)
    gate.wait_until_held()
    (worker,) = workers_of(pool)
    busy = repr(worker)
    gate.release()
    future.result()
    eventually(lambda: pool.stats().idle_workers == 1, "the worker to be idle")

    assert busy == "<Worker crawler_0 Gate.hold>"
    assert repr(worker) == "<Worker crawler_0 idle>"


def test_what_is_being_folded_is_not_counted_twice(make_pool: MakePool, gate: Gate) -> None:
    # 1. A thread folds the log of a worker: the count is added, and the entries are not removed yet. 2. Another thread asks
    # what the worker does: it has to wait for the lock.
    class Held(list[float]):
        def __delitem__(self, index: Any) -> None:
            gate.hold()
            super().__delitem__(index)

    class Telling:
        """The recorder's lock; tells that a thread comes for it while the gate is closed."""

        def __enter__(self) -> None:
            if gate._held:
                gate.release()
            lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            lock.release()

    pool = make_pool(1)
    for _ in range(3):
        pool.submit(int).result()
    eventually(lambda: pool.stats().idle_workers == 1, "the worker to be idle")
    recorder: Any = recorder_of(pool)
    [worker] = workers_of(pool)
    waits, runs = worker.log.entries[False, Outcome.COMPLETED]
    worker.log.entries[False, Outcome.COMPLETED] = Held(waits), runs
    lock, recorder.lock = recorder.lock, Telling()
    folder = threading.Thread(target=recorder.fold, args=(worker.log,))
    folder.start()
    gate.wait_until_held()

    [info] = pool.workers()
    gate.release()
    folder.join(DEADLINE)
    recorder.lock = lock

    assert info.resource_uses == 3


def test_executors_without_a_name_are_told_apart(make_pool: MakePool) -> None:
    assert repr(make_pool(1)) != repr(make_pool(1))


def test_subclass_says_its_own_name() -> None:
    class Crawler(ResourceExecutor[None]):
        pass

    with Crawler(1) as pool:
        assert repr(pool).startswith("<Crawler 'Crawler-")


# -- durations --


def distributions() -> dict[str, list[float]]:
    chance = random.Random(7)
    return {
        "uniform": [chance.uniform(0.001, 1.0) for _ in range(5000)],
        "exponential": [chance.expovariate(20.0) for _ in range(5000)],
        "lognormal": [chance.lognormvariate(-5.0, 2.0) for _ in range(5000)],
        "two peaks": [chance.gauss(0.01, 0.001) for _ in range(900)] + [chance.gauss(3.0, 0.1) for _ in range(100)],
        "constant": [0.25] * 1000,
        "few": [0.1, 0.2, 0.3],
        "microseconds to days": [10.0**exponent for exponent in range(-7, 6)],
    }


DISTRIBUTIONS = distributions()


def histogram(values: list[float], batch: int = 100) -> Histogram:
    """A histogram of the values, added in batches."""
    made = Histogram()
    for start in range(0, len(values), batch):
        made.add(values[start : start + batch])
    return made


@pytest.mark.parametrize("values", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_count_total_and_extremes_are_exact(values: list[float]) -> None:
    summary = histogram(values).summary()

    assert (summary.count, summary.minimum, summary.maximum) == (len(values), min(values), max(values))
    assert summary.total == pytest.approx(math.fsum(values), rel=1e-12)
    assert summary.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 7, 512])
@pytest.mark.parametrize("values", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_percentiles_are_within_a_bucket_of_the_truth(values: list[float], batch: int) -> None:
    summary = histogram(values, batch).summary()
    ranked = sorted(values)

    for share, found in ((0.50, summary.p50), (0.95, summary.p95), (0.99, summary.p99)):
        truth = ranked[math.ceil(share * len(values)) - 1]
        assert found == pytest.approx(truth, rel=0.0625)
        assert summary.minimum <= found <= summary.maximum


def test_nothing_measured_is_all_zero() -> None:
    assert Histogram().summary() == DurationSummary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_zero_is_a_duration() -> None:
    assert histogram([0.0] * 10).summary() == DurationSummary(10, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_negative_duration_counts_as_zero() -> None:
    made = histogram([-0.5, 1.0, -1e-9])

    assert (made.count, made.total, made.minimum, made.maximum) == (3, 1.0, 0.0, 1.0)


def test_merged_histograms_are_that_of_all_values() -> None:
    first, second = DISTRIBUTIONS["lognormal"], DISTRIBUTIONS["two peaks"]
    merged = histogram(first)
    merged.merge(histogram(second))
    both = histogram(first + second)

    assert merged.buckets == both.buckets
    assert (merged.count, merged.minimum, merged.maximum) == (both.count, both.minimum, both.maximum)
    assert merged.total == pytest.approx(both.total, rel=1e-12)


def test_merging_with_nothing_changes_nothing() -> None:
    merged = histogram([1.0, 2.0])
    merged.merge(Histogram())

    assert merged.summary() == histogram([1.0, 2.0]).summary()


def test_copy_is_independent() -> None:
    original = histogram([1.0])
    copy = original.copy()
    copy.add([1.0, 5.0])

    assert original.summary() == histogram([1.0]).summary()
    assert copy.count == 3


@pytest.mark.parametrize("values", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_cumulative_counts_are_right_to_within_a_bucket(values: list[float]) -> None:
    bounds = [0.0, 1e-6, 0.001, 0.01, 0.1, 0.25, 1.0, 10.0, 1e6]
    counts = histogram(values).cumulative(bounds)

    assert counts == sorted(counts)
    assert counts[-1] == len(values)
    for bound, count in zip(bounds, counts, strict=True):
        assert sum(value <= bound / 1.0625 for value in values) <= count <= sum(value <= bound * 1.0625 for value in values)


# -- the recorder --


class Clock:
    """The clock of the recorder, set by hand."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1000.0)
    patch_recorder_clock(monkeypatch, clock)
    return clock


def feed(recorder: Recorder, count: int, wait: Callable[[int], float], run: Callable[[int], float]) -> None:
    """As if a worker had run so many tasks."""
    log = open_log(recorder)
    for number in range(count):
        log.note(False, Outcome.COMPLETED, wait(number), run(number))
        if number % 512 == 511:
            recorder.fold(log)
    recorder.close_log(log)


def footprint(root: object) -> int:
    """Bytes of the containers in `root`. Numbers are left out: Python shares small ones, so that they come and go."""
    seen, waiting, size = set[int](), [root], 0
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, (type, int, float, FunctionType, ModuleType)):
            seen.add(id(one))
            size += sys.getsizeof(one)
            waiting += gc.get_referents(one)
    return size


def test_metrics_tell_what_was_measured(make_pool: MakePool) -> None:
    pool = make_pool(1)
    log = open_log(recorder_of(pool))
    for wait, run, outcome in (
        (0.1, 1.0, Outcome.COMPLETED),
        (0.2, 2.0, Outcome.COMPLETED),
        (0.3, 3.0, Outcome.FAILED),
        (0.4, 4.0, Outcome.COMPLETED),
        (0.5, 5.0, Outcome.RETRIED),
    ):
        log.note(False, outcome, wait, run)
    recorder_of(pool).add_creation(0.25)
    metrics = pool.metrics()

    assert (metrics.wait.count, metrics.wait.minimum, metrics.wait.maximum) == (5, 0.1, 0.5)
    assert (metrics.run.count, metrics.run.total, metrics.run.mean) == (5, 15.0, 3.0)
    assert metrics.create == DurationSummary(1, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25)
    assert (metrics.success_rate, metrics.failure_rate) == (0.75, 0.25)


def test_metrics_of_a_task_are_there_when_its_result_is(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    for _ in range(20):
        pool.submit(lambda _: time.sleep(0.001)).result()
    metrics = pool.metrics()

    assert (metrics.wait.count, metrics.run.count, metrics.create.count) == (20, 20, 1)
    assert metrics.run.minimum >= 0.0009
    assert (metrics.success_rate, metrics.failure_rate) == (1.0, 0.0)


def test_metrics_of_workers_that_are_gone_are_kept(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=1)
    for _ in range(5):
        pool.submit(FakeResource.use).result()
    pool.shutdown()

    assert pool.metrics().run.count == 5


def test_reset_starts_a_new_period(make_pool: MakePool) -> None:
    pool = make_pool(1)
    for _ in range(10):
        pool.submit(int).result()
    pool.submit(int, "no number").exception()
    before = pool.metrics(reset=True)
    between = pool.metrics()
    for _ in range(3):
        pool.submit(int).result()
    after = pool.metrics()

    assert (before.run.count, between.run.count, after.run.count) == (11, 0, 3)
    assert [before.failure_rate, between.failure_rate, after.failure_rate] == pytest.approx([1 / 11, 0.0, 0.0])
    assert (between.success_rate, after.success_rate) == (0.0, 1.0)


def test_reset_may_be_repeated(make_pool: MakePool) -> None:
    pool = make_pool(1)
    counts: list[int] = []
    for number in range(1, 4):
        for _ in range(number):
            pool.submit(int).result()
        counts.append(pool.metrics(reset=True).wait.count)

    assert counts == [1, 2, 3]


def test_reset_starts_a_new_period_for_on_create_too(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=1)
    pool.wait_ready()
    counts = [pool.metrics(reset=True).create.count]
    pool.resize(min_workers=2)
    pool.wait_ready()
    counts += [pool.metrics(reset=True).create.count, pool.metrics().create.count]

    assert counts == [1, 1, 0]


def test_stats_count_on_after_a_reset(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.submit(int).result()
    pool.metrics(reset=True)
    pool.submit(int).result()

    assert pool.stats().completed == 2


def test_exporters_see_the_whole_life_whatever_was_reset(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.submit(int).result()
    pool.metrics(reset=True)
    pool.submit_priority(int).result()
    recorder = recorder_of(pool)
    counts = {(priority, outcome): run.count for priority, outcome, _, run in recorder.histograms() if run.count}

    assert counts == {(False, Outcome.COMPLETED): 1, (True, Outcome.COMPLETED): 1}


# -- rates --


def test_rate_is_that_of_the_last_seconds(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(1)
    log = open_log(recorder_of(pool))
    clock.now += 4.0
    for _ in range(100):
        log.note(False, Outcome.COMPLETED, 0.0, 0.01)
    metrics = pool.metrics()

    assert metrics.completion_rate == pytest.approx(25.0, rel=0.05)
    assert metrics.arrival_rate == pytest.approx(25.0, rel=0.05)


def test_rates_go_back_to_zero_when_nothing_happens(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(1)
    log = open_log(recorder_of(pool))
    clock.now += 2.0
    for _ in range(1000):
        log.note(False, Outcome.COMPLETED, 0.0, 0.001)
    busy = pool.metrics()
    clock.now += 30.0
    quiet = pool.metrics()

    assert busy.completion_rate > 100.0
    assert (quiet.arrival_rate, quiet.completion_rate) == (0.0, 0.0)
    assert quiet.run.count == 1000


def test_failures_are_completions(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(1)
    log = open_log(recorder_of(pool))
    clock.now += 4.0
    for _ in range(100):
        log.note(False, Outcome.FAILED, 0.0, 0.01)

    assert pool.metrics().completion_rate == pytest.approx(25.0, rel=0.05)


def test_retries_are_neither_arrivals_nor_completions(make_pool: MakePool, clock: Clock) -> None:
    pool = make_pool(1)
    log = open_log(recorder_of(pool))
    clock.now += 4.0
    for _ in range(100):
        log.note(False, Outcome.RETRIED, 0.0, 0.01)
    metrics = pool.metrics()

    assert (metrics.arrival_rate, metrics.completion_rate) == (0.0, 0.0)


def test_tasks_that_wait_and_run_have_arrived(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    for _ in range(9):
        pool.submit(int)
    metrics = pool.metrics()

    assert metrics.arrival_rate > 0.0
    assert metrics.completion_rate == 0.0


def test_first_task_is_no_flood(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.submit(int).result()

    assert pool.metrics().arrival_rate <= 1.0


# -- however many --


def varied(number: int) -> float:
    """Durations over some orders of magnitude, the same ones again and again."""
    return 1e-6 * 1.01 ** (number % 1000)


def test_memory_is_constant_however_many_tasks_have_run(clock: Clock) -> None:
    recorder = Recorder()
    sizes: list[int] = []
    for count in (20_000, 980_000):
        feed(recorder, count, varied, varied)
        clock.now += 100.0
        sizes.append(footprint(recorder))
    assert recorder.counts()[False, Outcome.COMPLETED] == 1_000_000

    assert sizes[1] <= 1.05 * sizes[0]
    assert sizes[1] < 200_000


def test_memory_does_not_grow_with_the_resources_made_though_nobody_asks() -> None:
    recorder = Recorder()
    for _ in range(10_000):
        recorder.add_creation(0.25)

    assert len(recorder._created) < 1000
    assert recorder.create_histogram().count == 10_000


def test_memory_does_not_grow_with_time(clock: Clock) -> None:
    recorder = Recorder()
    sizes: list[int] = []
    for _ in range(4):
        for _ in range(200):
            feed(recorder, 2, varied, varied)
            clock.now += 10.0
        sizes.append(footprint(recorder))

    assert sizes[-1] <= 1.3 * sizes[0]  # sets that change have now more room to spare, now less


def test_snapshot_of_a_million_tasks_is_no_more_work_than_one_of_a_thousand(make_pool: MakePool) -> None:
    pool = make_pool(1)

    def calls_of_a_snapshot() -> int:
        calls = itertools.count()
        sys.setprofile(lambda frame, event, arg: next(calls) and None)
        try:
            pool.metrics()
        finally:
            sys.setprofile(None)
        return next(calls)

    feed(recorder_of(pool), 1000, varied, varied)
    pool.metrics()
    small = calls_of_a_snapshot()
    feed(recorder_of(pool), 999_000, varied, varied)
    pool.metrics()
    large = calls_of_a_snapshot()

    assert pool.metrics().run.count == 1_000_000
    assert large <= 1.1 * small


# -- a worker that has filled its log --


@pytest.mark.parametrize("fails", [False, True])
def test_many_short_bursts_are_folded_too(make_pool: MakePool, fails: bool) -> None:
    """Or the log of a worker whose lane empties again and again would grow for ever."""
    pool = make_pool(1)
    longest = 0
    for _ in range(1500):
        pool.submit(int, "no number" if fails else "1").exception(DEADLINE)
        [worker] = workers_of(pool)
        longest = max(longest, sum(len(runs) for _, runs in worker.log.entries.values()))

    assert longest <= 514  # a task may end, and be listed, between two looks
    assert pool.metrics().run.count == 1500


class HeldRecorder(Recorder):
    """Holds, at a gate, the thread that folds `slow`."""

    def __init__(self, gate: Gate, slow: TaskLog) -> None:
        super().__init__()
        self.gate = gate
        self.slow = slow

    def fold(self, log: TaskLog) -> None:
        self.folder = log
        super().fold(log)

    def _add(self, key: Any, waits: list[float], runs: list[float], since: float, until: float) -> None:
        if self.folder is self.slow:
            self.gate.hold()
        super()._add(key, waits, runs, since, until)


class ToldLock:
    """Says when a thread begins to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.wanted = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.wanted.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_worker_leaves_its_log_while_another_thread_folds_until_it_is_long(gate: Gate) -> None:
    slow, log = TaskLog(), TaskLog()
    recorder = HeldRecorder(gate, slow)
    lock = ToldLock()
    recorder.lock = lock  # type: ignore[assignment]  # what is used of it
    for each in (slow, log):
        recorder.add_log(each)
        each.note(False, Outcome.COMPLETED, 0.1, 0.2)
    folding = threading.Thread(target=recorder.fold, args=(slow,))
    folding.start()
    gate.wait_until_held()

    recorder.fold_soon(log)  # does not wait

    assert (log.folded, log.attempts()) == (0, 1)
    for _ in range(LONG_LOG - 1):
        log.note(False, Outcome.COMPLETED, 0.1, 0.2)
    waiting = threading.Thread(target=recorder.fold_soon, args=(log,))
    waiting.start()
    assert lock.wanted.wait(DEADLINE)
    gate.release()
    for thread in (folding, waiting):
        thread.join(DEADLINE)
    assert (log.folded, log.attempts()) == (LONG_LOG, LONG_LOG)
    assert recorder.counts()[False, Outcome.COMPLETED] == LONG_LOG + 1


def test_a_fold_that_an_error_ends_does_not_keep_the_workers_from_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, log = Recorder(), TaskLog()
    log.note(False, Outcome.COMPLETED, 0.1, 0.2)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder, "_add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        recorder.fold(log)
    monkeypatch.undo()
    log.note(False, Outcome.COMPLETED, 0.1, 0.2)
    recorder.fold_soon(log)

    assert log.folded == 2


# -- the logs of workers that have ended --


def test_a_short_log_is_kept_until_it_is_asked_for_or_there_are_many() -> None:
    recorder = Recorder()
    logs = [open_log(recorder) for _ in range(KEPT_LOGS + 1)]
    for log in logs:
        log.note(False, Outcome.COMPLETED, 0.1, 0.2)
        recorder.close_log(log)
        recorder.close_log(log)  # an error came after the first call

    assert [log.folded for log in logs] == [1] + [0] * KEPT_LOGS
    assert recorder.counts()[False, Outcome.COMPLETED] == KEPT_LOGS + 1
    _, run, _, counts = recorder.durations(reset=False)
    assert (run.count, counts[Outcome.COMPLETED]) == (KEPT_LOGS + 1, KEPT_LOGS + 1)
    assert [log.folded for log in logs] == [1] * (KEPT_LOGS + 1)
    assert not recorder._logs
    assert not recorder._closed


def test_a_long_log_is_folded_when_its_worker_ends() -> None:
    recorder = Recorder()
    log = open_log(recorder)
    for _ in range(SHORT_LOG + 1):
        log.note(True, Outcome.FAILED, 0.1, 0.2)

    recorder.close_log(log)

    assert log.folded == SHORT_LOG + 1
    assert not recorder._logs


def test_the_end_of_a_kept_log_is_that_of_its_worker(clock: Clock) -> None:
    recorder = Recorder()
    log = open_log(recorder)
    log.note(False, Outcome.COMPLETED, 0.0, 0.0)
    recorder.close_log(log)
    clock.now += 100.0

    assert recorder.rates((), [])[1] == 0.0  # none within the last seconds


# -- a signal handler that asks for numbers --


class Interrupted(list[float]):
    """A list of durations. Once, after a look at it, a signal handler folds."""

    def __init__(self, durations: list[float], handler: Callable[[], object]) -> None:
        super().__init__(durations)
        self.handlers = [handler]

    def __len__(self) -> int:
        return self.then_handle(super().__len__())

    def __getitem__(self, index: slice) -> list[float]:  # type: ignore[override]  # nobody asks for one number
        return self.then_handle(self.copy()[index])

    def then_handle(self, seen: S) -> S:
        while seen and self.handlers:
            self.handlers.pop()()
        return seen


def interrupted_logs(recorder: Recorder) -> list[TaskLog]:
    """Two logs of one attempt each, and a signal handler comes while the second list of runs is looked at."""
    logs = [open_log(recorder) for _ in range(2)]
    for log in logs:
        log.note(False, Outcome.COMPLETED, 0.1, 0.2)
        waits, runs = log.entries[False, Outcome.COMPLETED]
        log.entries[False, Outcome.COMPLETED] = waits, Interrupted(runs, partial(recorder.durations, reset=False))
    return logs


def test_attempts_are_counted_once_though_a_handler_folds_while_they_are_counted() -> None:
    recorder = Recorder()
    logs = interrupted_logs(recorder)

    assert recorder.counts()[False, Outcome.COMPLETED] == len(logs)


def test_attempts_are_counted_once_though_a_handler_folds_while_they_are_folded() -> None:
    recorder = Recorder()
    logs = interrupted_logs(recorder)

    for log in logs:
        recorder.fold(log)

    assert [log.folded for log in logs] == [1, 1]
    assert recorder.counts()[False, Outcome.COMPLETED] == len(logs)
    _, run, _, _ = recorder.durations(reset=False)
    assert run.count == len(logs)


def test_attempts_of_one_worker_are_counted_once_though_a_handler_folds() -> None:
    recorder = Recorder()
    log = open_log(recorder)
    log.note(False, Outcome.COMPLETED, 0.1, 0.2)
    handlers = [partial(recorder.durations, reset=False)]

    class Entries(dict[Any, Any]):
        def copy(self) -> dict[Any, Any]:
            while handlers:
                handlers.pop()()
            return super().copy()

    log.entries = Entries(log.entries)

    assert log.attempts() == 1
    assert not handlers


def test_resources_made_are_counted_once_though_a_handler_folds() -> None:
    recorder = Recorder()
    recorder._created = Interrupted([0.1, 0.2], recorder.create_histogram)

    assert recorder.create_histogram().count == 2
