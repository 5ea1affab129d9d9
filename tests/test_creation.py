"""A factory that fails: back-off, waiting tasks, and the way back to health."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import wait
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from queue import Queue
from typing import Any

import pytest

from engine import Timer, UnfitResource, Worker, kick, living_holdings, patch_random, patch_sleep, timer_of, workers_of
from interruptions import AtPoint, TimeLimit
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, Watched, eventually
from tasker_executor import LoadSample, Observer, ResourceCreationError, ResourceEvent, ResourceExecutor, ShutdownTimeout


class Jitter:
    """Takes the place of `random.uniform` where the back-off is drawn: books the ranges, and answers a share of the longest."""

    def __init__(self) -> None:
        self.share = 0.0
        self.pause: float | None = None  # the answer to every question, if it is given
        self.ranges: list[tuple[float, float]] = []

    def __call__(self, low: float, high: float) -> float:
        self.ranges.append((low, high))
        return low + self.share * (high - low) if self.pause is None else self.pause


@pytest.fixture
def jitter(monkeypatch: pytest.MonkeyPatch) -> Jitter:
    """By default there is no pause between two attempts: a long outage takes no time."""
    jitter = Jitter()
    patch_random(monkeypatch, jitter)
    return jitter


class Factory(Watched):
    """Makes resources, and knows how many calls are under way. It fails in the first `failures` calls.

    All calls but the first are held at `gate`, if it has one.
    """

    def __init__(self, ledger: Ledger, failures: int = 0) -> None:
        super().__init__()
        self._ledger = ledger
        self.failures = failures
        self.probes = failures + 1  # attempts before the factory is known to work; the one that succeeds is a probe, too
        self.gate: Gate | None = None
        self.calls = 0
        self.under_way = 0
        self.most_after_failure = 0
        self.error = OSError("connection refused")

    def __call__(self) -> FakeResource:
        with self._changed:
            self.calls += 1
            call = self.calls
            self.under_way += 1
            if 1 < call <= self.probes:
                self.most_after_failure = max(self.most_after_failure, self.under_way)
            self._changed.notify_all()
        try:
            if call > 1 and self.gate is not None:
                self.gate.hold()
            if call <= self.failures:
                raise self.error
            return self._ledger.create()
        finally:
            with self._changed:
                self.under_way -= 1

    def wait_until_called(self, n: int) -> None:
        self._wait_until(lambda: self.calls >= n, f"{n} calls")


class Told(Observer):
    """Keeps the failures that it is told of."""

    def __init__(self) -> None:
        self.failures: list[ResourceEvent] = []

    def creation_failed(self, event: ResourceEvent) -> None:
        self.failures.append(event)


def has_length(items: list[float | None], least: int) -> bool:
    return len(items) >= least


def hour_long_back_off(jitter: Jitter) -> None:
    """From the next failure on there is no second attempt within the time of this test."""
    jitter.share = 36_000.0


# -- outages that end --


def test_factory_that_fails_once_costs_a_task_nothing_but_time(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=Factory(ledger, failures=1), on_destroy=ledger.destroy, max_retries=0)

    assert pool.submit(FakeResource.use).result() == 0
    assert pool.stats().create_failures == 1
    assert pool.stats().retried == 0


def test_worker_whose_first_attempt_fails_is_not_missed_for_ever(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, min_workers=2, on_create=Factory(ledger, failures=1), on_destroy=ledger.destroy)
    for _ in range(2):
        pool.submit(gate.hold)
    gate.wait_until_held(2)

    assert pool.stats().active_workers == 2


def test_tasks_wait_out_an_outage_of_two_seconds(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    jitter.share = 0.2
    ends_at = time.monotonic() + 2.0

    def create() -> FakeResource:
        if time.monotonic() < ends_at:
            raise OSError("connection refused")
        return ledger.create()

    pool = make_pool(4, on_create=create, on_destroy=ledger.destroy)
    results = [future.result() for future in [pool.submit(FakeResource.use) for _ in range(50)]]

    assert len(results) == 50
    assert pool.stats().completed == 50


def test_outage_in_mid_life_does_not_lose_the_task_that_met_it(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    pool.submit(FakeResource.use).result()
    ledger.created[0].broken = True
    ledger.outage = OSError("connection refused")
    future = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(5)
    done_early = future.done()
    ledger.outage = None

    assert not done_early
    assert future.result() == 1


def test_after_an_outage_the_pool_grows_to_its_full_size(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, gate: Gate
) -> None:
    pool = make_pool(4, on_create=Factory(ledger, failures=10), on_destroy=ledger.destroy)
    for _ in range(4):
        pool.submit(gate.hold)
    gate.wait_until_held(4)

    assert len(ledger.created) == 4


def test_base_workers_come_back_by_themselves(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    pool = make_pool(3, min_workers=3, on_create=Factory(ledger, failures=10), on_destroy=ledger.destroy)
    pool.wait_ready()

    assert len(ledger.created) == 3


def test_thread_that_cannot_be_started_for_a_successor_is_tried_again(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refusals = [RuntimeError("can't start new thread")] * 3

    def start_or_refuse(thread: threading.Thread) -> None:
        if refusals and "timer" not in thread.name:
            raise refusals.pop()
        start(thread)

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)

    def break_down(resource: FakeResource) -> int:
        if resource.number == 0:
            monkeypatch.setattr(threading.Thread, "start", start_or_refuse)
            resource.break_down()
        return resource.use()

    assert pool.submit(break_down).result() == 1
    assert refusals == []


# -- back-off --


def test_back_off_doubles_from_a_tenth_of_a_second_to_thirty_seconds_with_full_jitter(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    pool = make_pool(1, on_create=Factory(ledger, failures=12), on_destroy=ledger.destroy, create_timeout=3600)
    pool.submit(FakeResource.use).result()

    assert [low for low, _ in jitter.ranges] == [0.0] * 12
    assert [high for _, high in jitter.ranges] == pytest.approx([0.1 * 2**n for n in range(9)] + [30.0] * 3)


def test_back_off_starts_anew_after_a_success(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=1)
    for _ in range(2):
        ledger.outage = OSError("connection refused")
        attempted = ledger.attempts
        future = pool.submit(FakeResource.use)
        ledger.wait_until_attempted(attempted + 3)
        ledger.outage = None
        future.result()
    starts = [high for _, high in jitter.ranges if high < 0.15]

    assert len(starts) == 2


def test_next_attempt_waits_for_the_end_of_the_pause(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    hour_long_back_off(jitter)
    factory = Factory(ledger, failures=1)
    pool = make_pool(4, on_create=factory, on_destroy=ledger.destroy, create_timeout=0.2)
    futures = [pool.submit(FakeResource.use)]
    eventually(lambda: pool.stats().create_failures == 1, "the first failure")
    futures += [pool.submit(FakeResource.use) for _ in range(10)]
    errors = [future.exception() for future in futures]

    assert factory.calls == 1
    assert all(isinstance(error, ResourceCreationError) for error in errors)


def test_at_most_one_worker_probes_a_factory_that_is_down(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, gate: Gate
) -> None:
    factory = Factory(ledger, failures=30)
    factory.gate = gate
    pool = make_pool(8, on_create=factory, on_destroy=ledger.destroy)
    futures = [pool.submit(FakeResource.use)]
    gate.wait_until_held()
    futures += [pool.submit(FakeResource.use) for _ in range(8)]
    eventually(lambda: factory.under_way == pool.stats().active_workers, "every worker to try")
    gate.release()
    for future in futures:
        future.result()

    assert factory.calls > 30
    assert factory.most_after_failure == 1


def test_while_a_probe_is_under_way_nobody_else_tries(make_pool: MakePool, ledger: Ledger, jitter: Jitter, gate: Gate) -> None:
    def create() -> FakeResource:
        if ledger.attempts == 1:
            gate.hold()
            ledger.outage = None
        return ledger.create()

    ledger.outage = OSError("connection refused")
    pool = make_pool(4, on_create=create, on_destroy=ledger.destroy)
    futures = [pool.submit(FakeResource.use)]
    gate.wait_until_held()
    futures += [pool.submit(FakeResource.use) for _ in range(8)]
    workers = pool.stats().active_workers
    gate.release()
    for future in futures:
        future.result()

    assert workers == 1


def test_attempts_that_fail_together_count_as_one_round(make_pool: MakePool, jitter: Jitter, clock: Clock) -> None:
    together = threading.Barrier(4)

    def create() -> object:
        together.wait(DEADLINE)
        raise OSError("connection refused")

    hour_long_back_off(jitter)
    pool = make_pool(4, on_create=create, create_timeout=3000)
    futures = [pool.submit(lambda _: None) for _ in range(4)]
    eventually(lambda: pool.stats().create_failures == 4, "four failures")
    rounds = list(jitter.ranges)
    clock.pass_time(3001, pool)  # not the hour of the back-off

    assert rounds == [(0.0, 0.1)]
    assert all(isinstance(future.exception(), ResourceCreationError) for future in futures)


def test_factory_is_tried_again_after_the_last_attempt_of_a_round_has_failed(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. Two attempts begin. 2. One fails. 3. The timer sees that another is under way. 4. That one fails as well."""
    turns: list[float | None] = []
    turn = Timer._turn

    def count_turn(timer: Timer) -> float | None:
        due = turn(timer)
        turns.append(due)
        return due

    def create() -> FakeResource:
        call = next(calls)
        if call == 0:
            gate.hold()
        if call < 2:
            raise OSError("connection refused")
        return ledger.create()

    monkeypatch.setattr(Timer, "_turn", count_turn)
    jitter.share = 5.0  # half a second, so that the pause is not over when the other attempt fails
    calls = itertools.count()
    pool = make_pool(2, on_create=create, on_destroy=ledger.destroy)
    futures = [pool.submit(FakeResource.use) for _ in range(2)]
    gate.wait_until_held()
    eventually(lambda: pool.stats().create_failures == 1, "the first failure")
    for expected in (len(turns) + 1, len(turns) + 2):  # the first of these turns may have begun before that
        kick(pool)
        eventually(partial(has_length, turns, expected), "a turn of the timer")
    gate.release()

    assert {future.result(timeout=10) for future in futures} <= {0, 1}


def test_each_failure_is_logged_once(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(1, on_create=Factory(ledger, failures=5), on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result()
    pool.shutdown()
    records = [record for record in caplog.records if "on_create failed" in record.message]

    assert [record.levelno for record in records] == [logging.WARNING] * 5
    assert all(record.exc_info is not None for record in records)


# -- create_timeout --


def test_task_that_waited_too_long_for_a_resource_fails_and_names_the_last_error(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, clock: Clock
) -> None:
    jitter.share = 0.05
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    future = pool.submit(FakeResource.use)
    eventually(lambda: pool.stats().create_failures > 0, "a failure")
    clock.pass_time(3601, pool)
    error = future.exception()

    assert isinstance(error, ResourceCreationError)
    assert error.__cause__ is ledger.outage
    assert "connection refused" in str(error)


def test_task_that_came_later_fails_with_the_first_once_the_outage_is_old(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, clock: Clock
) -> None:
    jitter.pause = 0.005
    ledger.outage = OSError("connection refused")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    first = pool.submit(FakeResource.use)
    eventually(lambda: pool.stats().create_failures > 0, "a failure")
    clock.pass_time(1800, pool)
    second = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(ledger.attempts + 2)
    done_early = first.done() or second.done()
    clock.pass_time(1801, pool)

    assert not done_early
    assert isinstance(first.exception(DEADLINE), ResourceCreationError)
    assert "no attempt has succeeded for 3.6e+03 s (create_timeout is 3600 s)" in str(second.exception(DEADLINE))


def test_pool_whose_tasks_timed_out_lives_on(make_pool: MakePool, ledger: Ledger, jitter: Jitter, clock: Clock) -> None:
    jitter.pause = 500.0
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    future = pool.submit(FakeResource.use)
    eventually(lambda: pool.stats().create_failures == 1, "the failure")
    clock.pass_time(3601, pool)
    future.exception()
    eventually(lambda: pool.stats().active_workers == 0, "the end of the second attempt")
    ledger.outage = None
    clock.pass_time(501, pool)

    assert pool.submit(FakeResource.use).result() == 0
    assert pool.stats().failed == 1


def test_tasks_in_both_lanes_time_out(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    jitter.share = 0.05
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=0.1)
    futures = [submit(FakeResource.use) for submit in (pool.submit, pool.submit_priority) for _ in range(3)]

    assert all(isinstance(future.exception(), ResourceCreationError) for future in futures)
    assert pool.stats().failed == 6


def test_task_submitted_during_a_long_pause_does_not_wait_for_its_end(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    hour_long_back_off(jitter)
    pool = make_pool(1, on_create=Factory(ledger, failures=1), on_destroy=ledger.destroy, create_timeout=0.05)
    pool.submit(FakeResource.use).exception()
    late = pool.submit(FakeResource.use)

    assert isinstance(late.exception(timeout=10), ResourceCreationError)


def test_while_one_worker_has_a_resource_tasks_do_not_time_out(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, gate: Gate, clock: Clock
) -> None:
    jitter.pause = 0.005
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ledger.outage = OSError("connection refused")
    waiting = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(2)
    clock.pass_time(7200, pool)
    ledger.wait_until_attempted(ledger.attempts + 2)  # the timer, which has them made, has looked at the queue before
    done_early = waiting.done()
    gate.release()

    assert not done_early
    assert waiting.result() == 0


def test_shutdown_during_an_outage_waits_for_create_timeout_at_most(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    jitter.share = 0.05
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, min_workers=2, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=0.1)
    future = pool.submit(FakeResource.use)
    pool.shutdown()

    assert isinstance(future.exception(), ResourceCreationError)


def test_shutdown_of_an_idle_pool_does_not_wait_for_a_factory_that_is_down(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    hour_long_back_off(jitter)
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, min_workers=2, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    ledger.wait_until_attempted(1)
    pool.shutdown(timeout=10)

    assert pool.stats().state == "closed"


# -- a resource that fails its first check --


def refuse(resource: FakeResource) -> bool:
    """What `check_resource` says of each resource of a server that accepts connections and is not fit to work."""
    return False


def approve(_: object) -> bool:
    return True


def test_resource_that_fails_its_first_check_is_a_failed_creation(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, caplog: pytest.LogCaptureFixture
) -> None:
    hour_long_back_off(jitter)
    told = Told()
    pool = make_pool(
        2,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=refuse,
        check_after_idle=0,
        create_timeout=0.2,
        observers=[told],
    )
    error = pool.submit(FakeResource.use).exception(DEADLINE)
    pool.shutdown()
    stats = pool.stats()

    assert isinstance(error, ResourceCreationError)
    assert "check_resource returned no for a new resource" in str(error)
    assert isinstance(error.__cause__, UnfitResource)
    assert error.__cause__.__cause__ is None
    assert (stats.resources_created, stats.create_failures, stats.workers_replaced) == (1, 1, 0)
    assert [event.error for event in told.failures] == [error.__cause__]
    [record] = [record for record in caplog.records if "failed its check" in record.message]
    assert record.levelno == logging.WARNING
    assert "(1 in a row)" in record.message
    assert record.exc_info is not None
    assert record.exc_info[1] is error.__cause__


def test_first_check_that_raises_is_the_cause_of_the_failed_creation(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    def check(resource: FakeResource) -> bool:
        raise read_only

    read_only = OSError("the server is read-only")
    hour_long_back_off(jitter)
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=check,
        check_after_idle=0,
        create_timeout=0.2,
    )
    error = pool.submit(FakeResource.use).exception(DEADLINE)

    assert isinstance(error, ResourceCreationError)
    assert "the server is read-only" in str(error)
    assert error.__cause__ is not None
    assert error.__cause__.__cause__ is read_only
    assert len(ledger.created) == 1


@pytest.mark.parametrize("asked", [1, 2], ids=["the check says no", "the check says yes once, and then no"])
def test_pauses_grow_while_each_new_resource_fails_before_it_has_served(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, asked: int
) -> None:
    def check(resource: FakeResource) -> bool:
        checks[resource.number] += 1
        return resource.number > 6 or (resource.number > 0 and checks[resource.number] < asked)

    checks: Counter[int] = Counter()
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=check,
        check_after_idle=0,
        create_timeout=3600,
    )

    assert pool.submit(FakeResource.use).result(DEADLINE) == 7
    assert [high for _, high in jitter.ranges] == pytest.approx([0.1 * 2**n for n in range(7)])


def test_tasks_that_a_flapping_check_keeps_from_running_fail_after_create_timeout(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    """Each resource but the first passes the check that ends the outage, and fails the one before its first task."""

    def check(resource: FakeResource) -> bool:
        checks[resource.number] += 1
        return resource.number > 0 and checks[resource.number] < 2

    checks: Counter[int] = Counter()
    jitter.pause = 0.01
    pool = make_pool(
        2,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=check,
        check_after_idle=0,
        create_timeout=0.3,
    )

    assert isinstance(pool.submit(FakeResource.use).exception(DEADLINE), ResourceCreationError)
    assert len(ledger.created) > 2


def test_a_bad_server_costs_each_round_one_resource_however_many_tasks_wait(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    def break_down(resource: FakeResource) -> None:
        raise ConnectionError("in recovery")

    hour_long_back_off(jitter)
    pool = make_pool(
        8,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=refuse,
        check_after_idle=0,
        create_timeout=0.3,
    )
    errors = [future.exception(DEADLINE) for future in [pool.submit(break_down) for _ in range(40)]]
    failures = pool.stats().create_failures

    # A worker has a successor only if it has served.
    assert all(isinstance(error, (ResourceCreationError, ConnectionError)) for error in errors)
    assert failures >= 1
    assert len(ledger.created) <= 8 + pool.stats().workers_replaced


def test_after_a_failed_check_the_pool_grows_only_when_a_new_resource_has_passed(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter
) -> None:
    """Without that, each attempt would look like the end of the outage, and all workers would be started on its strength."""
    factory = Factory(ledger)
    factory.probes = 20

    def check(resource: FakeResource) -> bool:
        return resource.number >= 20

    pool = make_pool(8, on_create=factory, on_destroy=ledger.destroy, check_resource=check, check_after_idle=0)
    futures = [pool.submit(FakeResource.use)]
    factory.wait_until_called(2)
    futures += [pool.submit(FakeResource.use) for _ in range(20)]
    factory.wait_until_called(20)
    most = factory.most_after_failure
    results = [future.result(DEADLINE) for future in futures]

    assert most == 1
    assert min(results) >= 20


def test_served_resource_that_fails_its_check_is_replaced_at_once(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    hour_long_back_off(jitter)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=ledger.is_usable, check_after_idle=0)
    pool.submit(FakeResource.use).result(DEADLINE)
    ledger.created[0].broken = True

    assert pool.submit(FakeResource.use).result(DEADLINE) == 1
    assert (pool.stats().create_failures, pool.stats().workers_replaced) == (0, 1)


@pytest.mark.parametrize("during", [False, True], ids=["made after the break", "making began before the break"])
def test_new_resource_is_in_doubt_whether_its_making_began_before_a_break_or_after_it(
    make_pool: MakePool, ledger: Ledger, gate: Gate, during: bool
) -> None:
    def create() -> FakeResource:
        resource = ledger.create()
        if resource.number == 1 and during:
            gate.hold()
        return resource

    def check(resource: FakeResource) -> bool:
        asked.append(resource.number)
        return not resource.broken

    def break_down(resource: FakeResource) -> int:
        if resource.number == 0:
            if during:
                gate.wait_until_held()
            resource.break_down()
        return resource.number

    asked: list[int] = []
    pool = make_pool(2, on_create=create, on_destroy=ledger.destroy, check_resource=check, check_after_idle=3600, max_retries=0)
    first = pool.submit(break_down)
    if during:
        second = pool.submit(break_down)
        broken = first.exception(DEADLINE)
        eventually(lambda: 0 in asked, "the check of the broken resource")
        gate.release()
    else:
        broken = first.exception(DEADLINE)
        eventually(lambda: 0 in asked, "the check of the broken resource")
        second = pool.submit(break_down)

    assert broken is not None
    assert second.result(DEADLINE) in ({1, 2} if during else {1})
    assert 1 in asked  # made after the break, it is checked until one has passed


def test_worker_that_crashes_before_its_first_task_has_no_successor_at_once(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it died of (no memory, say) may meet its successor: 5,000 threads in a second."""

    def crash(worker: Worker) -> None:
        raise MemoryError

    monkeypatch.setattr(Worker, "_serve", crash)
    hour_long_back_off(jitter)
    pool = make_pool(4, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=0.1)
    error = pool.submit(FakeResource.use).exception(DEADLINE)

    assert isinstance(error, ResourceCreationError)
    assert len(ledger.created) == 1


def test_idle_resource_that_has_not_served_does_not_age_within_a_second(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps: Queue[float] = Queue()
    patch_sleep(monkeypatch, sleeps.put)
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy, max_age=1e-9)
    pool.wait_ready()
    [worker] = workers_of(pool)
    holding = worker.holding
    assert holding is not None
    new = (holding.rests_until - holding.born, sleeps.get(timeout=DEADLINE))
    pool.submit(FakeResource.use).result(DEADLINE)

    assert new[0] == 1.0
    assert 0.0 < new[1] <= 1.0
    assert holding.rests_until == holding.expires


# -- None is no resource --


def test_factory_that_returns_none_fails_the_task_at_once_with_the_cure(make_pool: MakePool) -> None:
    def create() -> object:
        return None

    pool = make_pool(1, on_create=create, create_timeout=3600)
    error = pool.submit(lambda _: "never run").exception(timeout=10)

    assert isinstance(error, ResourceCreationError)
    assert isinstance(error.__cause__, TypeError)
    assert "on_create returned None" in str(error)
    assert "initializer=" in str(error)


def test_wait_ready_reports_a_factory_that_returns_none_at_once(make_pool: MakePool) -> None:
    def create() -> object:
        return None

    pool = make_pool(1, min_workers=1, on_create=create, create_timeout=3600)

    with pytest.raises(ResourceCreationError, match="on_create returned None"):
        pool.wait_ready()


# -- a factory that hangs --


def test_task_does_not_wait_for_ever_for_a_factory_that_hangs(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, create_timeout=0.05)
    error = pool.submit(FakeResource.use).exception()

    assert isinstance(error, ResourceCreationError)
    assert error.__cause__ is None
    assert "on_create has not returned" in str(error)


def test_every_task_that_waits_for_a_factory_that_hangs_times_out(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, create_timeout=0.05)
    errors = [pool.submit(FakeResource.use).exception(timeout=10) for _ in range(3)]

    assert all(isinstance(error, ResourceCreationError) for error in errors)


def test_factory_that_hangs_is_not_blamed_for_the_error_of_an_earlier_outage(
    make_pool: MakePool, ledger: Ledger, jitter: Jitter, gate: Gate, clock: Clock
) -> None:
    def create() -> FakeResource:
        if ledger.created:
            gate.hold()
        return ledger.create()

    ledger.outage = OSError("an old story")
    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, max_uses=1, create_timeout=3600)
    recovered = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(1)
    ledger.outage = None
    recovered.result()
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()
    clock.pass_time(3601, pool)
    error = future.exception()

    assert isinstance(error, ResourceCreationError)
    assert error.__cause__ is None


def test_pool_is_back_when_a_factory_that_hung_returns(make_pool: MakePool, ledger: Ledger, gate: Gate, clock: Clock) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, create_timeout=3600)
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()
    clock.pass_time(3601, pool)
    assert isinstance(future.exception(), ResourceCreationError)
    gate.release()

    assert pool.submit(FakeResource.use).result() == 0


class HangsOnce:
    """A factory whose call number `hangs` hangs at the gate; those before it fail."""

    def __init__(self, ledger: Ledger, gate: Gate, hangs: int = 0) -> None:
        self._ledger = ledger
        self._gate = gate
        self._hangs = hangs
        self._calls = itertools.count()

    def __call__(self) -> FakeResource:
        call = next(self._calls)
        if call < self._hangs:
            raise ConnectionRefusedError("the server restarts")
        if call == self._hangs:
            self._gate.hold()
        return self._ledger.create()


@pytest.mark.parametrize("hangs", [0, 1], ids=["hangs at once", "is refused, then hangs"])
def test_attempt_that_hangs_does_not_keep_others_from_trying(
    make_pool: MakePool, ledger: Ledger, gate: Gate, jitter: Jitter, clock: Clock, caplog: pytest.LogCaptureFixture, hangs: int
) -> None:
    pool = make_pool(
        4,
        on_create=HangsOnce(ledger, gate, hangs),
        on_destroy=ledger.destroy,
        create_timeout=3600,
        thread_name_prefix="db",
    )
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()
    clock.pass_time(3601, pool)
    first = future.exception(DEADLINE)
    second = pool.submit(FakeResource.use).result(DEADLINE)
    workers = pool.stats().active_workers
    gate.release()
    pool.shutdown()

    assert first is None or isinstance(first, ResourceCreationError)
    assert second >= 0
    assert workers in (2, 3)  # A third begins if the second is not back from the first task yet.
    [record] = [record for record in caplog.records if "longer than create_timeout" in record.message]
    assert record.levelno == logging.WARNING


def test_error_of_a_start_that_takes_too_long_names_the_worker_and_create_timeout(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    pool = make_pool(
        1, on_create=HangsOnce(ledger, gate), on_destroy=ledger.destroy, create_timeout=0.05, thread_name_prefix="db"
    )
    pool.submit(FakeResource.use).exception(DEADLINE)
    error = pool.submit(FakeResource.use).exception(DEADLINE)

    assert "on_create has not returned on db_0 (create_timeout is 0.05 s)" in str(error)


def test_attempts_that_hang_are_as_many_as_there_may_be_workers(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(3, on_create=create, on_destroy=ledger.destroy, create_timeout=0.02)
    errors = [pool.submit(FakeResource.use).exception(DEADLINE) for _ in range(8)]
    gate.wait_until_held(3)
    errors += [pool.submit(FakeResource.use).exception(DEADLINE) for _ in range(3)]
    held = pool.stats().active_workers

    assert all(isinstance(error, ResourceCreationError) for error in errors)
    assert held == 3


def test_task_that_waits_while_an_attempt_hangs_and_another_worker_is_busy_gets_a_third(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker starts or ends, and no task is submitted: the timer must see it."""

    def hold_first(resource: FakeResource) -> int:
        if resource.number == 0:
            busy.set()
            gate.hold()
        return resource.number

    def create() -> FakeResource:
        if next(calls) == 1:
            gate.hold()
        return ledger.create()

    calls = itertools.count()
    busy = threading.Event()
    pool = make_pool(3, on_create=create, on_destroy=ledger.destroy, create_timeout=0.1)
    timer = timer_of(pool)
    turn, dues = timer._turn, list[float | None]()

    def note_due() -> float | None:
        dues.append(turn())
        return dues[-1]

    monkeypatch.setattr(timer, "_turn", note_due)
    pool.submit(hold_first)
    assert busy.wait(DEADLINE)
    timer.kick()
    eventually(lambda: bool(dues) and dues[-1] is None, "a timer that sleeps until it is woken")
    waiting = pool.submit(hold_first)

    assert waiting.result(DEADLINE) == 1


def test_worker_that_is_late_takes_no_place_of_those_a_policy_wants_and_leaves_when_it_comes(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    class One:
        interval = 3600.0

        def target(self, load: LoadSample, /) -> int:
            return 1

    pool = make_pool(
        3, on_create=HangsOnce(ledger, gate), on_destroy=ledger.destroy, create_timeout=0.1, policy=One(), min_workers=1
    )
    pool.submit(FakeResource.use).exception(DEADLINE)
    pool.submit(FakeResource.use).result(DEADLINE)
    during = pool.stats().active_workers
    gate.release()
    eventually(lambda: pool.stats().active_workers == 1, "one of the two workers to leave")

    assert during == 2


def test_base_worker_that_hangs_is_not_waited_for(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, min_workers=1, on_create=HangsOnce(ledger, gate), on_destroy=ledger.destroy, create_timeout=0.1)

    pool.wait_ready(DEADLINE)


def test_shutdown_while_an_attempt_hangs_ends_in_time_and_names_it(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=HangsOnce(ledger, gate), on_destroy=ledger.destroy, thread_name_prefix="db")
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()

    with pytest.raises(ShutdownTimeout, match="db_0 has been starting for"):
        pool.shutdown(timeout=0.05)
    gate.release()
    assert future.result(DEADLINE) == 0


def test_destroy_that_hangs_holds_up_only_its_own_thread(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        if resource.number == 0:
            gate.hold()

    pool = make_pool(2, on_create=ledger.create, on_destroy=destroy, max_uses=1)
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()

    assert [pool.submit(FakeResource.use).result(DEADLINE) for _ in range(3)] == [1, 2, 3]


def test_tasks_that_wait_for_a_destroy_that_hangs_fail_after_create_timeout(
    make_pool: MakePool, ledger: Ledger, gate: Gate, clock: Clock
) -> None:
    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        gate.hold()

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, max_uses=1, create_timeout=3600)
    pool.submit(FakeResource.use).result(DEADLINE)
    gate.wait_until_held()
    errors: list[BaseException | None] = []
    for _ in range(2):
        future = pool.submit(FakeResource.use)
        clock.pass_time(3601, pool)
        errors.append(future.exception(DEADLINE))

    assert all("on_destroy has not returned" in str(error) for error in errors)


def test_kill_while_a_resource_is_being_made_cancels_its_task_and_destroys_the_resource(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy)
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()
    pool.kill()
    cancelled_at_once = future.cancelled()
    gate.release()
    pool.shutdown()

    assert cancelled_at_once
    assert [resource.uses for resource in ledger.destroyed] == [0]


def test_kill_during_an_outage_ends_the_pool(make_pool: MakePool, ledger: Ledger, jitter: Jitter) -> None:
    hour_long_back_off(jitter)
    ledger.outage = OSError("connection refused")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600)
    future = pool.submit(FakeResource.use)
    ledger.wait_until_attempted(1)
    pool.kill()
    pool.shutdown(timeout=10)

    assert future.cancelled()


# -- the initializer --


def test_initializer_that_fails_breaks_the_pool(make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    def initializer() -> None:
        raise LookupError("no such setting")

    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, initializer=initializer)
    error = pool.submit(FakeResource.use).exception()

    assert isinstance(error, BrokenThreadPool)
    with pytest.raises(BrokenThreadPool):
        pool.submit(FakeResource.use)
    assert ledger.attempts == 0
    assert "Exception in initializer" in caplog.text


def test_initializer_runs_before_the_resource_is_made_on_the_same_thread(make_pool: MakePool, ledger: Ledger) -> None:
    ran: list[tuple[threading.Thread, int, str]] = []

    def initializer(argument: str) -> None:
        ran.append((threading.current_thread(), ledger.attempts, argument))

    pool: ResourceExecutor[FakeResource] = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, initializer=initializer, initargs=("argument",)
    )
    pool.submit(FakeResource.use).result()

    assert ran == [(ledger.created[0].maker, 0, "argument")]


def test_kill_during_the_initializer_makes_no_resource(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, initializer=gate.hold)
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()
    pool.kill()
    gate.release()
    pool.shutdown()

    assert future.cancelled()
    assert ledger.attempts == 0


def test_initializer_that_fails_leaves_cancelled_tasks_cancelled(make_pool: MakePool, gate: Gate) -> None:
    def initializer() -> None:
        gate.hold()
        raise LookupError("no such setting")

    pool = make_pool(1, initializer=initializer)
    fails, cancelled = pool.submit(int), pool.submit(int)
    gate.wait_until_held()
    cancelled.cancel()
    gate.release()

    assert isinstance(fails.exception(), BrokenThreadPool)
    pool.shutdown()
    assert cancelled.cancelled()
    assert (pool.stats().failed, pool.stats().cancelled) == (1, 1)


def test_factory_that_raises_stop_iteration_is_told_so() -> None:
    with pytest.raises(ResourceCreationError) as caught:
        ResourceExecutor(1, on_create=iter(list[object]()).__next__, resource_pool_size=1)

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert str(caught.value.__cause__) == "on_create raised StopIteration"


# -- hooks that raise anything --


class Unspeakable(Exception):
    """Refuses to be described."""

    def __repr__(self) -> str:
        raise LookupError("no repr")

    __str__ = __repr__


ANYTHING = [SystemExit, GeneratorExit, KeyboardInterrupt, asyncio.CancelledError, StopIteration, RecursionError, Unspeakable]


@pytest.mark.parametrize("error", ANYTHING)
@pytest.mark.parametrize(
    "hook, record",
    [
        ("on_create", "on_create failed"),
        ("on_destroy", "on_destroy raised"),
        ("check_health", "check_health raised"),
        ("check_resource", "check_resource raised"),
    ],
)
def test_hook_may_raise_anything(
    make_pool: MakePool,
    ledger: Ledger,
    jitter: Jitter,
    caplog: pytest.LogCaptureFixture,
    hook: str,
    record: str,
    error: type[BaseException],
) -> None:
    def wrapped(*args: object) -> object:
        first = next(calls) == 0
        if first and hook == "on_create":  # before it makes what would be lost
            raise error
        answer = hooks[hook](*args)
        if first:
            raise error
        return answer

    def break_the_first(resource: FakeResource) -> int:
        if hook in {"check_health", "check_resource"}:
            raise ZeroDivisionError
        return resource.use()

    calls = itertools.count()
    hooks: dict[str, Callable[..., object]] = {
        "on_create": ledger.create,
        "on_destroy": ledger.destroy,
        "check_health": approve,
        "check_resource": approve,
    }
    options: dict[str, Any] = {**hooks, hook: wrapped}
    on_create: Callable[[], FakeResource] = options.pop("on_create")
    pool = make_pool(1, on_create=on_create, check_after_idle=3600, **options)
    first = pool.submit(break_the_first)
    wait([first], DEADLINE)
    result = pool.submit(FakeResource.use).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    # The task keeps its error in any case, and a resource whose judge raised is replaced.
    assert isinstance(first.exception(), ZeroDivisionError) is hook.startswith("check")
    assert result == (1 if hook.startswith("check") else 0)
    assert len([entry for entry in caplog.records if record in entry.message]) == 1
    assert pool.stats().resources_created == pool.stats().resources_destroyed


@pytest.mark.parametrize("error", ANYTHING)
def test_initializer_may_raise_anything(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def initializer() -> None:
        raise error

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, initializer=initializer)

    assert isinstance(pool.submit(FakeResource.use).exception(DEADLINE), BrokenThreadPool)
    pool.shutdown(timeout=DEADLINE)
    assert len([entry for entry in caplog.records if "Exception in initializer" in entry.message]) == 1


# -- what is thrown into a worker's thread while it makes, or gives up, its resource --


def throw_into_life(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], number: int) -> bool:
    """Throw an error at that point of a worker's life but for its tasks. Then all must work. False: there is no such point."""

    def live(worker: Worker) -> Any:
        if points:
            return original(worker)
        with AtPoint(number, throw) as point:
            points.append(point)
            return original(worker)

    def throw() -> None:
        raise TimeLimit

    def serve(worker: Worker) -> Any:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return original_serve(worker)
        finally:
            sys.settrace(trace)

    points: list[AtPoint] = []
    original, original_serve = Worker._live, Worker._serve
    ledger = Ledger()
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_live", live)
        patch.setattr(Worker, "_serve", serve)
        pool: ResourceExecutor[FakeResource] = ResourceExecutor(
            1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=1, **options
        )
        where = None
        try:
            results = [pool.submit(FakeResource.use).result(DEADLINE) for _ in range(2)]
            where = points[0].where
            pool._check()
            pool.shutdown(timeout=DEADLINE)
            stats = pool.stats()
            assert len(set(results)) == 2
            assert stats.resources_created == stats.resources_destroyed
            assert all(holding.gone for holding in living_holdings(pool))
            ledger.check()
        except BaseException as error:
            pool.kill()
            raise AssertionError(f"after throwing at point {number}, {points[0].where}") from error
    return where is not None


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "with a check"])
def test_what_is_thrown_into_a_worker_anywhere_loses_no_resource(
    monkeypatch: pytest.MonkeyPatch, jitter: Jitter, checked: bool
) -> None:
    options: dict[str, Any] = {"check_resource": approve, "check_after_idle": 0} if checked else {}
    number = 1
    while throw_into_life(monkeypatch, options, number):
        number += 1

    assert number > 30
