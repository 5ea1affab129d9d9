"""The recovery: tasks and workers while resources or initializers fail, and the way back."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future

import pytest

from engine import fail_queue, patch_pauses, shorten_pauses, timer_of
from races import Once, RacedLane
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import QueueFull, ResourceCreationError

# -- a queue that fails while a worker takes a task from it --


def test_a_task_that_a_worker_takes_while_the_queue_is_failed_is_run(make_pool: MakePool, gate: Gate) -> None:
    # 1. The timer counts the tasks that have waited too long for a resource. 2. A worker takes the only one.
    pool = make_pool(1)
    lane = RacedLane(pool, "normal")
    pool.submit(gate.hold)
    gate.wait_until_held()
    queued = pool.submit(int, "7")

    def let_the_worker_take_it() -> None:
        gate.release()
        queued.result(DEADLINE)

    lane.on_pop = Once(let_the_worker_take_it)

    fail_queue(pool, OSError("outage"))

    assert queued.result(0) == 7
    assert pool.stats().failed == 0


def test_a_task_that_a_worker_takes_while_the_pool_breaks_is_run(make_pool: MakePool, gate: Gate) -> None:
    # 1. The initializer of a second worker fails, which breaks the pool. 2. The first worker takes the only task queued.
    threads = itertools.count()

    def initializer() -> None:
        if next(threads):
            raise LookupError("no such setting")

    # At first one worker: a second may start for a task that the first is about to take.
    pool = make_pool(1, initializer=initializer)
    lane = RacedLane(pool, "normal")
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.resize(max_workers=2)
    ran = threading.Event()

    def let_the_worker_take_it() -> None:
        gate.release()
        assert ran.wait(DEADLINE)

    lane.on_pop = Once(let_the_worker_take_it)

    queued = pool.submit(ran.set)

    assert queued.exception(DEADLINE) is None


# -- workers that are missing --


def test_a_resource_that_breaks_when_all_other_workers_have_drained_is_replaced(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. One worker is busy, one idle. 2. shutdown() ends the idle one. 3. The busy one's task breaks its
    # resource. No worker is left to take the task, so a replacement starts although the pool drains.
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, min_workers=2)
    pool.wait_ready()

    def work(resource: FakeResource) -> int:
        gate.hold()
        if resource.number < 2:
            resource.break_down()
        return resource.number

    future = pool.submit(work)
    gate.wait_until_held()
    pool.shutdown(wait=False)
    ledger.wait_until_destroyed(1)
    eventually(lambda: pool.stats().active_workers == 1, "the idle worker to end")

    gate.release()
    pool.shutdown()

    assert future.result(0) == 2


def test_tasks_fail_in_time_while_the_initializer_hangs(make_pool: MakePool, ledger: Ledger, clock: Clock) -> None:
    with Gate() as hung:
        pool = make_pool(
            1, initializer=hung.hold, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600.0, max_retries=0
        )
        future = pool.submit(id)
        hung.wait_until_held()
        eventually(lambda: timer_of(pool).thread is not None, "the timer")
        hung.wait_until_held()  # still: the end of the worker would start the timer, too
        clock.pass_time(3601.0, pool)
        with pytest.raises(ResourceCreationError):
            future.result(DEADLINE)


# -- a queue that takes no task --


def test_with_max_queued_0_the_pool_recovers_from_an_outage_too(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The factory fails, so there is no worker. 2. The task that wanted one goes away. 3. Without a worker
    # there is no place for a task, and without a task no thread tries the factory again. So one task must be
    # let in when it is time to try.
    shorten_pauses(monkeypatch, 0.001)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_queued=0, on_full="raise")
    ledger.outage = OSError("outage")
    future = pool.submit(lambda resource: resource.use())
    ledger.wait_until_attempted(1)
    eventually(lambda: pool.stats().create_failures > 0, "the failure")
    future.cancel()

    ledger.outage = None

    futures: list[Future[int]] = []

    def let_in() -> bool:
        try:
            futures.append(pool.submit(lambda resource: resource.use()))
        except QueueFull:
            return False
        return True

    eventually(let_in, "the pool to let a task in")
    assert futures[0].result(DEADLINE) == 0


def test_with_max_queued_0_a_blocked_submit_gets_in_after_an_outage(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_queued=0)
    patch_pauses(monkeypatch, 1.0)
    ledger.outage = OSError("outage")
    future = pool.submit(lambda resource: resource.use())
    eventually(lambda: pool.stats().create_failures > 0, "the failure")
    future.cancel()
    ledger.outage = None

    futures: list[Future[int]] = []
    submitter = threading.Thread(target=lambda: futures.append(pool.submit(lambda resource: resource.use())))
    submitter.start()
    submitter.join(DEADLINE)

    assert futures[0].result(DEADLINE) == 0
