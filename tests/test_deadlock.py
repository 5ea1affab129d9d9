"""Deadlock: tasks that wait for a task of their own executor, and an executor that waits for itself."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from typing import Any

import pytest

from engine import (
    RUNNING,
    Task,
    WaitInside,
    busy_workers,
    end_a_hopeless_wait,
    normal_lane,
    waiting_inside,
    worker_limit,
    workers_of,
)
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import (
    BacklogPolicy,
    Hysteresis,
    LoadSample,
    PoolDeadlockError,
    QueueWaitPolicy,
    RatePolicy,
    ResourceExecutor,
    ScalingPolicy,
    current_task,
)

# -- a pool that waits for itself --


Pool = ResourceExecutor[None]


def wait_for_a_task_of(pool: Pool) -> int:
    return pool.submit(int, "7").result()


def test_the_only_worker_that_waits_for_a_queued_task_is_told(make_pool: MakePool) -> None:
    pool = make_pool(1, name="solo")

    with pytest.raises(PoolDeadlockError, match=r"'solo'.*all 1 workers"):
        pool.submit(wait_for_a_task_of, pool).result(DEADLINE)


def test_exception_is_told_as_result_is(make_pool: MakePool) -> None:
    pool = make_pool(1)

    def task() -> BaseException | None:
        return pool.submit(int).exception()

    with pytest.raises(PoolDeadlockError):
        pool.submit(task).result(DEADLINE)


def test_the_pool_goes_on_after_a_deadlock_was_told(make_pool: MakePool) -> None:
    pool = make_pool(1)
    inner: list[Future[int]] = []

    def task() -> int:
        inner.append(pool.submit(int, "7"))
        return inner[0].result()

    outer = pool.submit(task)

    assert isinstance(outer.exception(DEADLINE), PoolDeadlockError)
    assert inner[0].result(DEADLINE) == 7


def test_a_task_that_waits_for_itself_is_told(make_pool: MakePool) -> None:
    pool = make_pool(1)
    known = Gate()
    futures: list[Future[int]] = []

    def task() -> int:
        known.hold()
        return futures[0].result()

    futures.append(pool.submit(task))
    known.release()

    with pytest.raises(PoolDeadlockError):
        futures[0].result(DEADLINE)


def test_of_two_tasks_that_wait_for_each_other_the_last_is_told_and_the_other_gets_its_error(make_pool: MakePool) -> None:
    pool = make_pool(2)
    known = Gate()
    futures: list[Future[int]] = []

    def task(other: int) -> int:
        known.hold()
        return futures[other].result()

    futures += [pool.submit(task, 1), pool.submit(task, 0)]
    known.release()
    errors = [future.exception(DEADLINE) for future in futures]

    assert isinstance(errors[0], PoolDeadlockError)
    assert errors[1] is errors[0]


def test_a_chain_of_waits_is_told_at_its_end_and_falls_back_link_by_link(make_pool: MakePool) -> None:
    pool = make_pool(3)

    def task(depth: int) -> int:
        return 0 if depth == 0 else 1 + pool.submit(task, depth - 1).result()

    assert pool.submit(task, 2).result(DEADLINE) == 2
    with pytest.raises(PoolDeadlockError):
        pool.submit(task, 3).result(DEADLINE)


def test_nobody_is_told_while_another_worker_is_free(make_pool: MakePool) -> None:
    pool = make_pool(2)

    assert pool.submit(wait_for_a_task_of, pool).result(DEADLINE) == 7


def until_waiting_inside(pool: ResourceExecutor[Any], n: int = 1) -> None:
    eventually(lambda: len(waiting_inside(pool)) == n, f"{n} workers to wait")


def test_nobody_is_told_while_another_worker_is_busy_with_a_task_that_waits_for_nothing(
    make_pool: MakePool, gate: Gate
) -> None:
    pool = make_pool(2)
    pool.submit(gate.hold)
    gate.wait_until_held()
    outer = pool.submit(wait_for_a_task_of, pool)
    until_waiting_inside(pool)

    gate.release()

    assert outer.result(DEADLINE) == 7


def test_nobody_is_told_who_waits_for_a_task_that_is_done(make_pool: MakePool) -> None:
    pool = make_pool(1)
    done = pool.submit(int, "7")
    wait_for([done], DEADLINE)

    assert pool.submit(done.result).result(DEADLINE) == 7


def test_nobody_is_told_while_one_of_those_who_wait_has_his_result_and_only_has_to_wake_up(
    make_pool: MakePool, gate: Gate
) -> None:
    # 1. A waits for a task, and that is done, but A has not woken up. 2. B, on the only other worker, waits for a task that is
    # queued. 3. A wakes up, ends, and its worker runs what B waits for. Step 1 is pretended: A is held at the gate instead.
    pool = make_pool(2)
    done = pool.submit(int)
    wait_for([done], DEADLINE)
    a = pool.submit(gate.hold)
    gate.wait_until_held()
    worker = busy_workers(pool)[0]
    assert worker.thread.ident is not None
    assert isinstance(done, Task)
    waiting_inside(pool)[worker.thread.ident] = WaitInside(done, threading.Lock(), timed=False)
    b = pool.submit(wait_for_a_task_of, pool)
    until_waiting_inside(pool, 2)

    gate.release()

    assert a.result(DEADLINE) is None
    assert b.result(DEADLINE) == 7


def test_a_wait_with_a_timeout_is_left_to_its_timeout(make_pool: MakePool) -> None:
    pool = make_pool(1)

    def task() -> int:
        return pool.submit(int).result(timeout=0.01)

    with pytest.raises(TimeoutError):
        pool.submit(task).result(DEADLINE)


def test_a_task_that_expires_is_waited_for(make_pool: MakePool) -> None:
    pool = make_pool(1)

    def task() -> BaseException | None:
        return pool.with_options(start_within=0.01).submit(int).exception()

    assert type(pool.submit(task).result(DEADLINE)).__name__ == "TaskExpired"


def test_a_task_that_has_started_expires_no_more_and_is_not_waited_for(make_pool: MakePool, gate: Gate) -> None:
    # 1. A task waits for one that must start within an hour. 2. That has started, and then waits for a third one, in vain.
    pool = make_pool(2)

    def wait_in_vain() -> int:
        gate.hold()
        return wait_for_a_task_of(pool)

    def task() -> BaseException | None:
        return pool.with_options(start_within=3600).submit(wait_in_vain).exception()

    outer = pool.submit(task)
    gate.wait_until_held()
    until_waiting_inside(pool)
    gate.release()

    assert isinstance(outer.result(DEADLINE), PoolDeadlockError)


def test_a_policy_that_may_still_add_workers_is_waited_for(make_pool: MakePool) -> None:
    pool = make_pool(2, min_workers=1, policy=BacklogPolicy(threshold=1, step=1, interval=0.01))

    assert pool.submit(wait_for_a_task_of, pool).result(DEADLINE) == 7


def test_when_the_policy_can_add_no_more_it_is_told(make_pool: MakePool) -> None:
    pool = make_pool(2, min_workers=1, policy=BacklogPolicy(threshold=1, step=1, interval=0.01))

    def task(depth: int) -> int:
        return 0 if depth == 0 else pool.submit(task, depth - 1).result()

    with pytest.raises(PoolDeadlockError):
        pool.submit(task, 2).result(DEADLINE)


def test_a_task_of_another_executor_is_waited_for(make_pool: MakePool) -> None:
    pool, other = make_pool(1), make_pool(1)

    assert pool.submit(wait_for_a_task_of, other).result(DEADLINE) == 7


def test_threads_that_are_no_workers_wait_as_long_as_they_like(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    got: list[int] = []
    waiter = threading.Thread(target=lambda: got.append(pool.submit(int, "7").result()))
    waiter.start()
    eventually(lambda: pool.stats().queued_tasks == 1, "the task to be queued")

    gate.release()
    waiter.join(DEADLINE)

    assert got == [7]


# -- a policy, and a number of workers that changes --


class WantsOne:
    """A policy that never wants a second worker."""

    interval = 3600.0

    def target(self, load: LoadSample) -> int:
        return 1


POLICIES: dict[str, ScalingPolicy] = {
    "wants one": WantsOne(),
    "backlog": BacklogPolicy(threshold=5, step=2),
    "hysteresis": Hysteresis(RatePolicy(), 30),
    "queue wait": QueueWaitPolicy(),
}


@pytest.mark.parametrize("policy", list(POLICIES.values()), ids=list(POLICIES))
def test_another_worker_starts_for_what_is_waited_for_whatever_the_policy_wants(
    make_pool: MakePool, policy: ScalingPolicy
) -> None:
    pool = make_pool(4, min_workers=1, policy=policy)

    assert pool.submit(wait_for_a_task_of, pool).result(DEADLINE) == 7


def nest(pool: Pool, depth: int) -> int:
    return 0 if depth == 0 else 1 + pool.submit(nest, pool, depth - 1).result()


def test_tasks_nested_three_deep_have_as_many_workers_as_there_may_be(make_pool: MakePool) -> None:
    pool = make_pool(4, min_workers=1, policy=WantsOne())

    assert pool.submit(nest, pool, 3).result(DEADLINE) == 3
    with pytest.raises(PoolDeadlockError, match="all 4 workers"):
        pool.submit(nest, pool, 4).result(DEADLINE)


def test_another_worker_starts_for_a_task_that_is_waited_for_with_a_timeout(make_pool: MakePool) -> None:
    pool = make_pool(2, min_workers=1, policy=WantsOne())

    assert pool.submit(lambda: pool.submit(int, "7").result(DEADLINE)).result(2 * DEADLINE) == 7
    assert pool.submit(lambda: pool.submit(int, "7").exception(DEADLINE)).result(2 * DEADLINE) is None


def test_a_wait_with_a_timeout_ends_at_its_time_though_others_wait_without(make_pool: MakePool) -> None:
    pool = make_pool(2)

    def task() -> int:
        return pool.submit(int).result(0.01)

    outer = [pool.submit(task), pool.submit(wait_for_a_task_of, pool)]
    errors = [future.exception(DEADLINE) for future in outer]

    assert errors[0] is None or type(errors[0]) is TimeoutError
    assert outer[1].result() == 7


def test_nobody_is_told_while_one_of_those_who_wait_has_a_timeout(make_pool: MakePool) -> None:
    # 1. Each of two tasks waits for one that is queued, the first with a timeout. 2. The first wait ends. 3. Its worker runs
    # what the second task waits for.
    pool = make_pool(2)
    inner: list[Future[int]] = []

    def task() -> int:
        both.wait(DEADLINE)
        inner.append(pool.submit(int))
        return inner[0].result(DEADLINE)

    def other() -> int:
        both.wait(DEADLINE)
        until_waiting_inside(pool)
        return wait_for_a_task_of(pool)

    both = threading.Barrier(2)
    outer = [pool.submit(task), pool.submit(other)]
    until_waiting_inside(pool, 2)
    assert not outer[1].done()

    inner[0].cancel()

    assert outer[1].result(DEADLINE) == 7
    assert outer[0].cancelled() or outer[0].exception(DEADLINE) is not None


def test_a_timeout_that_has_run_out_is_no_wait(make_pool: MakePool) -> None:
    pool = make_pool(2, min_workers=1, policy=WantsOne())

    def task() -> None:
        pool.submit(int).result(0)

    assert type(pool.submit(task).exception(DEADLINE)) is TimeoutError
    assert worker_limit(pool) == 1


def test_it_is_told_when_the_worker_that_was_left_to_run_the_task_leaves(make_pool: MakePool, gate: Gate) -> None:
    # 1. One worker is busy, the other waits for a task that is queued. 2. resize() wants one worker. 3. The busy one leaves.
    pool = make_pool(2)
    pool.submit(gate.hold)
    gate.wait_until_held()
    outer = pool.submit(wait_for_a_task_of, pool)
    until_waiting_inside(pool)

    pool.resize(max_workers=1)
    gate.release()

    assert isinstance(outer.exception(DEADLINE), PoolDeadlockError)


@pytest.mark.parametrize("limit", [None, 3600], ids=["", "with a time to start within"])
@pytest.mark.parametrize("checks", [False, True], ids=["parked", "in its lane"])
def test_it_is_told_when_no_worker_is_left_for_the_next_attempt(
    make_pool: MakePool, ledger: Ledger, gate: Gate, checks: bool, limit: float | None
) -> None:
    # 1. One worker waits for a task that the other one runs. 2. resize() wants one worker. 3. The task breaks its resource.
    hooks: dict[str, Any] = {"on_create": ledger.create, "on_destroy": ledger.destroy, "check_health": ledger.is_healthy}
    pool: ResourceExecutor[Any] = make_pool(2, **hooks, check_resource=ledger.is_usable if checks else None)

    def break_the_first(resource: FakeResource) -> int:
        gate.hold()
        if current_task().attempt == 1:
            resource.break_down()
        return resource.number

    def wait_inside(_: FakeResource) -> int:
        inner.append(pool.with_options(start_within=limit).submit(break_the_first))
        return inner[0].result()

    inner: list[Future[int]] = []
    outer = pool.submit(wait_inside)
    gate.wait_until_held()
    until_waiting_inside(pool)

    pool.resize(max_workers=1)
    gate.release()

    assert isinstance(outer.exception(DEADLINE), PoolDeadlockError)
    assert inner[0].result(DEADLINE) in (0, 2)


def test_the_worker_that_broke_has_a_successor_that_runs_the_task(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=0)

    def break_down(resource: FakeResource) -> None:
        gate.hold()
        resource.break_down()

    broken = pool.submit(break_down)
    gate.wait_until_held()
    outer = pool.submit(lambda _: pool.submit(FakeResource.use).result())
    until_waiting_inside(pool)

    gate.release()

    assert outer.result(DEADLINE) == 2
    assert broken.exception(DEADLINE) is not None


def test_after_the_other_worker_has_retired_another_one_starts(make_pool: MakePool) -> None:
    pool = make_pool(2, min_workers=1, policy=WantsOne(), idle_timeout=0.0)

    def task() -> list[int]:
        results: list[int] = []
        for _ in range(3):
            results.append(pool.submit(int, "7").result())
            eventually(lambda: len(workers_of(pool)) == 1, "the other worker to retire")
        return results

    assert pool.submit(task).result(DEADLINE) == [7, 7, 7]


def test_of_two_tasks_that_wait_for_others_the_last_is_told_and_the_first_gets_its_result(
    make_pool: MakePool,
) -> None:
    pool = make_pool(2)
    both = threading.Barrier(2)

    def first() -> int:
        both.wait(DEADLINE)
        return wait_for_a_task_of(pool)

    def second() -> int:
        both.wait(DEADLINE)
        until_waiting_inside(pool)
        return wait_for_a_task_of(pool)

    outer = [pool.submit(first), pool.submit(second)]

    assert outer[0].result(DEADLINE) == 7
    assert isinstance(outer[1].exception(DEADLINE), PoolDeadlockError)


def test_a_task_that_runs_in_the_thread_of_its_caller_is_waited_for(make_pool: MakePool) -> None:
    # 1. A task runs in a thread that is no worker's, as on_full="caller" has it. 2. The only worker waits for it. Step 1 is
    # pretended: the task is out of its lane, and said to run.
    pool = make_pool(1)
    known = Gate()
    elsewhere: list[Task[int]] = []

    def task() -> int:
        known.hold()
        return elsewhere[0].result()

    outer = pool.submit(task)
    known.wait_until_held()
    future: Any = pool.submit(int)
    normal_lane(pool).remove(future)
    future._status = RUNNING
    elsewhere.append(future)
    known.release()
    until_waiting_inside(pool)
    end_a_hopeless_wait(pool)
    assert not waiting_inside(pool)[next(iter(waiting_inside(pool)))].hopeless

    future.set_result(7)

    assert outer.result(DEADLINE) == 7
    normal_lane(pool).withdrawn += 1  # for the books: the test's remove() did not count it


def test_a_callback_may_shut_down_the_pool_whose_worker_waits_for_its_task(make_pool: MakePool, gate: Gate) -> None:
    # 1. A task has a callback that shuts the pool down. 2. A worker waits for that task. 3. Another thread cancels it. 4. The
    # callback waits for the worker, so the worker must hear of the end of the task before the callback is called.
    pool = make_pool(2)
    pool.submit(gate.hold)
    gate.wait_until_held()
    waiting = threading.Event()
    futures: list[Future[int]] = []

    def wait_for_it() -> None:
        assert waiting.wait(DEADLINE)
        futures[0].result()

    outer = pool.submit(wait_for_it)
    futures.append(pool.submit(int))
    futures[0].add_done_callback(lambda _: pool.shutdown())
    waiting.set()
    until_waiting_inside(pool, 1)
    canceller = threading.Thread(target=futures[0].cancel)

    canceller.start()

    assert isinstance(outer.exception(DEADLINE), CancelledError)
    gate.release()
    assert join_all([canceller]) == []
