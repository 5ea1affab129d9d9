"""Idle workers and `resize`: how many workers there really are."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine import (
    End,
    Worker,
    bounds_of,
    idle_workers,
)
from support import FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import (
    ResourceExecutor,
)
from tasker_executor._sync import clock
from timer_support import Script, threads_of


def busy_workers(pool: ResourceExecutor[FakeResource], gates: list[Gate]) -> list[Callable[[], None]]:
    """Make a worker busy with each gate, one after the other. Each function returned makes one of them idle again."""

    def idle_again(gate: Gate, finished: Callable[[], object]) -> Callable[[], None]:
        def release() -> None:
            gate.release()
            finished()

        return release

    releases: list[Callable[[], None]] = []
    for gate in gates:
        future = pool.submit(gate.hold)
        gate.wait_until_held()
        releases.append(idle_again(gate, future.result))
    return releases


def test_idle_timeout_retires_the_workers_above_the_base(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(5, min_workers=2, idle_timeout=0.01, thread_name_prefix="idle")
    futures = [pool.submit(gate.hold) for _ in range(5)]
    gate.wait_until_held(5)
    gate.release()
    for future in futures:
        future.result()
    eventually(lambda: len(threads_of("idle")) == 2, "the burst workers to end")

    assert pool.stats().active_workers == pool.stats().base_workers == 2
    assert pool.stats().burst_workers == 0


def test_without_a_base_idle_timeout_retires_every_worker(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    pool.submit(FakeResource.use).result()
    ledger.wait_until_destroyed(1)
    eventually(lambda: pool.stats().active_workers == 0, "the worker to end")

    assert pool.submit(FakeResource.use).result() == 1


def test_busy_worker_is_not_retired(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(FakeResource.use).result()
    ledger.wait_until_destroyed(1)
    destroyed = list(ledger.destroyed)
    gate.release()
    held.result()

    assert [resource.number for resource in destroyed] == [1]


def test_time_in_a_done_callback_is_not_idle_time(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    idle_since: list[float] = []
    called: list[float] = []
    rest = Worker._rest

    def observed(worker: Worker) -> End | None:
        assert worker.log.until is not None
        idle_since.append(worker.log.until)
        return rest(worker)

    monkeypatch.setattr(Worker, "_rest", observed)
    pool = make_pool(1, idle_timeout=3600)
    future = pool.submit(gate.hold)
    future.add_done_callback(lambda _: called.append(clock()))
    gate.release()
    eventually(lambda: bool(idle_since), "the worker to be idle")

    assert idle_since[0] >= called[0]


def test_without_idle_timeout_idle_workers_stay(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as first, Gate() as second:
        for release in busy_workers(pool, [first, second]):
            release()

    assert pool.stats().idle_workers == 2
    assert ledger.destroyed == []


def test_base_worker_that_is_idle_goes_and_a_burst_worker_that_is_busy_takes_its_place(
    make_pool: MakePool, ledger: Ledger
) -> None:
    """The resource used last is the one to keep, whoever made it."""
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    with Gate() as base, Gate() as burst:
        [make_base_idle] = busy_workers(pool, [base])
        pool.resize(max_workers=2)  # not before, or a second worker may start for a task that the first is about to take
        [make_burst_idle] = busy_workers(pool, [burst])
        make_base_idle()
        ledger.wait_until_destroyed(1)
        make_burst_idle()

    assert [resource.number for resource in ledger.destroyed] == [0]
    assert [resource.number for resource in ledger.alive] == [1]


@pytest.mark.parametrize("most, stay", [(2, {2, 0}), (1, {0})])
def test_workers_idle_for_the_longest_are_retired_first(make_pool: MakePool, ledger: Ledger, most: int, stay: set[int]) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as a, Gate() as b, Gate() as c:
        idle_0, idle_1, idle_2 = busy_workers(pool, [a, b, c])
        idle_1()
        idle_2()
        idle_0()
    pool.resize(max_workers=most)
    ledger.wait_until_destroyed(3 - most)

    assert {resource.number for resource in ledger.alive} == stay


def test_worker_that_became_idle_last_is_the_first_to_be_woken(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    with Gate() as a, Gate() as b, Gate() as c:
        idle_0, idle_1, idle_2 = busy_workers(pool, [a, b, c])
        idle_2()
        idle_0()
        idle_1()
    from_the_bottom = [worker.resource for worker in idle_workers(pool)]

    assert [resource.number for resource in from_the_bottom] == [2, 0, 1]


def test_resize_up_starts_workers_for_the_tasks_that_wait(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    for _ in range(5):
        pool.submit(gate.hold)
    gate.wait_until_held(1)
    pool.resize(max_workers=4)
    gate.wait_until_held(4)

    assert pool.stats().active_workers == 4


def test_resize_of_the_base_starts_workers_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(4, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.resize(min_workers=3)
    pool.wait_ready()

    assert len(ledger.created) == 3


def test_resize_down_retires_idle_workers_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(4, min_workers=4, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.wait_ready()
    pool.resize(min_workers=1, max_workers=1)
    ledger.wait_until_destroyed(3)
    eventually(lambda: pool.stats().active_workers == 1, "three workers to end")

    assert len(ledger.alive) == 1


def test_resize_down_lets_busy_workers_finish_their_task_and_then_leave(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3, thread_name_prefix="smaller")
    futures = [pool.submit(gate.hold) for _ in range(3)]
    gate.wait_until_held(3)
    waiting = [pool.submit(int) for _ in range(10)]
    pool.resize(max_workers=1)
    busy = len(threads_of("smaller"))
    gate.release()
    for future in futures:
        future.result()
    results = [future.result() for future in waiting]
    eventually(lambda: len(threads_of("smaller")) == 1, "two workers to end")

    assert busy == 3
    assert results == [0] * 10
    assert pool.stats().active_workers == 1


def test_resize_down_and_up_again_before_busy_workers_are_through_keeps_them(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    futures = [pool.submit(gate.hold) for _ in range(3)]
    gate.wait_until_held(3)
    pool.resize(max_workers=1)
    pool.resize(max_workers=3)
    gate.release()
    for future in futures:
        future.result()

    assert pool.stats().active_workers == 3
    assert ledger.destroyed == []


def test_lower_base_gives_idle_workers_to_idle_timeout(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(3, min_workers=3, on_create=ledger.create, on_destroy=ledger.destroy, idle_timeout=0.01)
    pool.wait_ready()
    pool.resize(min_workers=1)
    ledger.wait_until_destroyed(2)
    eventually(lambda: pool.stats().active_workers == 1, "two workers to end")

    assert len(ledger.alive) == 1


def test_resize_bounds_what_a_policy_may_want(make_pool: MakePool, gate: Gate) -> None:
    policy = Script(100)
    pool = make_pool(2, policy=policy)
    for _ in range(8):
        pool.submit(gate.hold)
    gate.wait_until_held(2)
    pool.resize(max_workers=4)
    gate.wait_until_held(4)
    policy.wait_until_asked(3)

    assert pool.stats().active_workers == 4


@pytest.mark.parametrize(
    "bounds, message",
    [
        ({"max_workers": 0}, "max_workers must be greater than 0"),
        ({"min_workers": -1}, "min_workers must be at least 0, not -1"),
        ({"min_workers": 5}, "min_workers=5 is more than max_workers=4"),
    ],
)
def test_resize_refuses_bounds_that_make_no_sense_and_changes_nothing(
    make_pool: MakePool, bounds: dict[str, int], message: str
) -> None:
    pool = make_pool(4, min_workers=1)
    with pytest.raises(ValueError, match=message):
        pool.resize(**bounds)

    assert bounds_of(pool) == (1, 4)
