"""Deadlines: tasks that do not start in time expire."""

from __future__ import annotations

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from engine import (
    WITHDRAWN,
    Step,
    core_of,
    deadlines_lock,
    deadlines_of,
    expire,
    kick,
    pretend_asleep,
    pretend_awake,
    replace_step,
)
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import (
    TaskExpired,
)
from tasker_executor._engine.deadlines import MANY_NEWS
from tasker_executor._sync import clock
from timer_support import Turns, refusing_start, watch_turns


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return watch_turns(monkeypatch)


def test_later_deadline_wakes_a_timer_that_has_overslept(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        replace_step(pool, Step.KICK, int, patch)
        pretend_asleep(pool)
        first = pool.with_options(start_within=0.0).submit(int)  # the timer is not told of it
    kicks: list[None] = []
    with monkeypatch.context() as patch:
        replace_step(pool, Step.KICK, partial(kicks.append, None), patch)
        pool.with_options(start_within=3600).submit(int)
    pretend_awake(pool)
    kick(pool)

    assert kicks == [None]
    assert isinstance(first.exception(DEADLINE), TaskExpired)


def test_timer_that_could_not_start_is_kicked_again(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    with monkeypatch.context() as patch:
        refusing_start(patch, "_timer")
        pool.with_options(start_within=60.0).submit(int)
    kicks: list[None] = []
    with monkeypatch.context() as patch:
        replace_step(pool, Step.KICK, partial(kicks.append, None), patch)
        pool.with_options(start_within=3600).submit(int)

    assert kicks == [None]


def test_many_deadlines_kick_the_timer_once(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    view = pool.with_options(start_within=3600)
    kicks: list[None] = []
    pretend_asleep(pool)
    with monkeypatch.context() as patch:
        replace_step(pool, Step.KICK, partial(kicks.append, None), patch)
        for _ in range(3 * MANY_NEWS):
            view.submit(int)
    pretend_awake(pool)

    assert kicks == [None]
    assert len(deadlines_of(pool)) == 3 * MANY_NEWS


def test_deadline_that_a_signal_handler_adds_while_others_are_sorted_is_kept(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    view = pool.with_options(start_within=3600)
    deadlines = core_of(pool).deadlines
    open_all = deadlines._open
    came: list[Future[int]] = []

    def come_in_between(*args: Any) -> list[Any]:
        monkeypatch.undo()
        came.extend(pool.with_options(start_within=0.01).submit(int) for _ in range(100))
        return open_all(*args)

    late = [view.submit(int)]
    eventually(lambda: not deadlines.news, "the timer to look")
    late += [view.submit(int) for _ in range(MANY_NEWS)]
    while len(late) > 10:
        late.pop().cancel()  # is forgotten by both: the one that is interrupted, and the one that comes in between
    monkeypatch.setattr(deadlines, "_open", come_in_between)
    for _ in range(3 * MANY_NEWS):
        late.append(view.submit(int))

    assert len(came) == 100
    for future in came:
        assert isinstance(future.exception(DEADLINE / 2), TaskExpired)  # not when the gate gives up, and the worker finds it
    assert len(deadlines_of(pool)) == len(late)


def test_deadlines_of_tasks_that_are_done_are_forgotten_though_many_wait(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    view = pool.with_options(start_within=3600)
    view.submit(int)
    eventually(lambda: not core_of(pool).deadlines.news, "the timer to look")  # not again, before that one is due
    for future in [view.submit(int) for _ in range(1000)]:
        future.cancel()
    for _ in range(1100):
        view.submit(int)

    assert len(deadlines_of(pool)) < 1300


def test_a_submission_that_comes_while_the_timer_looks_kicks_it(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The timer has looked at the news. 2. A task comes. 3. The timer is about to say when it looks next."""
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    view = pool.with_options(start_within=3600)
    came: list[Future[int]] = []
    open_all = core_of(pool).deadlines._open

    def come_in_between(*args: Any) -> list[Any]:  # called after the copy was made
        if not came:
            came.append(pool.with_options(start_within=0.01).submit(int))
        return open_all(*args)

    with deadlines_lock(pool):  # the timer waits for it
        view.submit(int)
        monkeypatch.setattr(core_of(pool).deadlines, "_open", come_in_between)
    kick(pool)

    eventually(lambda: bool(came), "the timer to look")
    assert isinstance(came[0].exception(DEADLINE / 2), TaskExpired)


def test_threads_that_submit_at_once_lose_no_deadline(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    def submit(thread: int) -> list[Future[int]]:
        return [pool.with_options(start_within=0.02 + n % 7 / 100 + thread / 1000).submit(int) for n in range(1000)]

    with ThreadPoolExecutor(4) as threads:
        futures = [future for done in threads.map(submit, range(4)) for future in done]

    assert {type(future.exception(DEADLINE / 2)) for future in futures} == {TaskExpired}
    assert deadlines_of(pool) == []


def test_task_expires_without_a_free_worker(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ran: list[int] = []
    future = pool.with_options(start_within=0.01).submit(ran.append, 1)
    error = future.exception()
    gate.release()
    pool.shutdown()

    assert isinstance(error, TaskExpired)
    assert ran == []


def test_task_that_starts_in_time_does_not_expire(make_pool: MakePool, turns: Turns) -> None:
    pool = make_pool(1)

    assert pool.with_options(start_within=3600).submit(int).result() == 0


def test_task_that_runs_for_longer_than_it_may_wait_does_not_expire(make_pool: MakePool, gate: Gate, clock: Clock) -> None:
    pool = make_pool(2)
    running = pool.with_options(start_within=3600).submit(gate.hold)
    gate.wait_until_held()
    others = Gate()
    with others:
        pool.submit(others.hold)
        others.wait_until_held()
        waiting = pool.with_options(start_within=3700).submit(int)
        clock.pass_time(3701, pool)
        expired = waiting.exception()  # so the timer has looked at both
        done_early = running.done()
    gate.release()

    assert isinstance(expired, TaskExpired)
    assert not done_early
    assert running.exception() is None


def test_deadlines_are_kept_in_their_own_order(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    late = pool.with_options(start_within=3600).submit(int)
    soon = pool.with_options(start_within=0.01).submit(int)

    assert isinstance(soon.exception(), TaskExpired)
    assert not late.done()


def test_deadlines_of_tasks_that_are_done_are_forgotten(make_pool: MakePool) -> None:
    pool = make_pool(1)
    view = pool.with_options(start_within=3600)
    for _ in range(1000):
        view.submit(int).result()

    assert len(deadlines_of(pool)) < 200


@pytest.fixture
def half_settled(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pool, and a task with a deadline that was settled by a thread that Ctrl-C hit before it told that."""
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    replace_step(pool, Step.KICK, int, monkeypatch)  # the test looks, and not the timer
    future: Any = pool.with_options(start_within=3600).submit(int)
    with future._sidecar:
        future._sidecar.verdict = WITHDRAWN
    return pool, future


def test_the_timer_goes_on_with_what_another_thread_has_settled(half_settled: Any) -> None:
    pool, future = half_settled

    assert expire(pool, clock()) is None
    assert future._sidecar.published
    assert future.cancelled()


def test_the_timer_waits_for_the_lock_of_a_task_under_no_lock(half_settled: Any) -> None:
    pool, future = half_settled
    with ThreadPoolExecutor(1) as other, future._sidecar:
        expires = other.submit(expire, pool, clock())
        eventually(lambda: deadlines_of(pool) == [], "the timer to forget the task")
        lock = deadlines_lock(pool)

        assert lock.acquire(timeout=DEADLINE)
        lock.release()
        assert not expires.done()


def test_deadline_of_a_future_that_nobody_holds_any_more_is_dropped(make_pool: MakePool) -> None:
    pool = make_pool(1)
    future = pool.with_options(start_within=3600).submit(int)
    reference = weakref.ref(future)
    future.result()
    del future
    eventually(lambda: reference() is None, "the worker to forget the future")

    assert expire(pool, clock() + 3601) is None
    assert deadlines_of(pool) == []


def test_a_task_that_has_started_does_not_expire_before_its_retry(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)

    def work(resource: FakeResource) -> int:
        if resource.number == 0:
            gate.hold()
            resource.break_down()
        return resource.use()

    future: Any = pool.with_options(start_within=DEADLINE).submit(work)
    gate.wait_until_held()
    future._sidecar.deadline = 0.0  # is over, as if the first attempt had taken so long

    gate.release()

    assert future.result(DEADLINE) == 1
