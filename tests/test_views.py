"""Views: executors with other options that share the workers of another; and the one that is a ThreadPoolExecutor by class."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Any

import pytest

from engine import Deadlines, Step, replace_step
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, ResourceBroken
from tasker_executor import ExecutorView, ResourceExecutor, ShutdownTimeout, TaskExpired, current_task


@pytest.fixture
def resource_pool(make_pool: MakePool, ledger: Ledger) -> ResourceExecutor[FakeResource]:
    """One worker, whose resource is checked."""
    return make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)


def break_down_twice(resource: FakeResource) -> int:
    if resource.number < 2:
        resource.break_down()
    return resource.use()


# -- options --


def test_view_is_an_executor(make_pool: MakePool) -> None:
    view = make_pool(1).with_options(priority=True)

    assert isinstance(view, Executor)
    assert isinstance(view, ExecutorView)
    assert view.submit(int).result() == 0


def test_view_without_options_behaves_like_its_executor(resource_pool: ResourceExecutor[FakeResource]) -> None:
    view = resource_pool.with_options()

    assert view.submit(FakeResource.use).result() == 0
    assert list(view.map(FakeResource.use, [1, 2])) == [0, 0]
    assert resource_pool.submit(FakeResource.use).result() == 0


def test_view_shares_workers_and_resources(resource_pool: ResourceExecutor[FakeResource], ledger: Ledger) -> None:
    for view in (resource_pool.with_options(priority=True), resource_pool.with_options(max_retries=0)):
        view.submit(FakeResource.use).result()

    assert len(ledger.created) == 1


def test_priority_view_overtakes(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[str] = []
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(ran.append, "normal")
    pool.with_options(priority=True).submit(ran.append, "priority")

    gate.release()
    pool.shutdown()

    assert ran == ["priority", "normal"]


def test_priority_view_maps_in_the_priority_lane(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.with_options(priority=True).map(str, range(4))

    assert pool.stats().priority_tasks == 4


def test_submit_priority_of_a_view_keeps_its_other_options(resource_pool: ResourceExecutor[FakeResource], gate: Gate) -> None:
    view = resource_pool.with_options(pass_resource=False)
    view.submit(gate.hold)
    gate.wait_until_held()
    future = view.submit_priority(int, "7")

    assert resource_pool.stats().priority_tasks == 1
    gate.release()
    assert future.result() == 7


def test_task_without_retries_runs_at_most_once(resource_pool: ResourceExecutor[FakeResource], ledger: Ledger) -> None:
    future = resource_pool.with_options(max_retries=0).submit(break_down_twice)

    assert isinstance(future.exception(), ResourceBroken)
    assert resource_pool.stats().retried == 0


def test_view_may_allow_more_retries_than_the_executor(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=0)

    assert pool.with_options(max_retries=2).submit(break_down_twice).result() == 2


def test_retries_of_a_view_apply_to_run_now(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)

    with pytest.raises(ResourceBroken):
        pool.with_options(max_retries=1).run_now(break_down_twice)
    assert len(ledger.created) == 2


def test_view_can_call_tasks_without_the_resource(resource_pool: ResourceExecutor[FakeResource]) -> None:
    view = resource_pool.with_options(pass_resource=False)

    assert view.submit(int, "ff", base=16).result() == 255
    assert list(view.map(str, [1, 2])) == ["1", "2"]
    assert list(view.map(pow, [2, 3], [2, 2], chunksize=2)) == [4, 9]
    assert view.run_now(int, "7") == 7


def test_task_without_the_resource_can_ask_for_it(resource_pool: ResourceExecutor[FakeResource], ledger: Ledger) -> None:
    view = resource_pool.with_options(pass_resource=False)

    assert view.submit(resource_pool.current_resource).result() is ledger.created[0]


def test_task_without_the_resource_is_retried_when_the_resource_broke(
    resource_pool: ResourceExecutor[FakeResource],
) -> None:
    view = resource_pool.with_options(pass_resource=False)

    assert view.submit(lambda: break_down_twice(resource_pool.current_resource())).result() == 2


def test_task_that_has_not_started_in_time_expires(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[int] = []
    pool.submit(gate.hold)
    gate.wait_until_held()
    future = pool.with_options(start_within=0.01).submit(ran.append, 1)

    with pytest.raises(TaskExpired, match="was not run"):
        future.result(DEADLINE)  # though the only worker is still held
    gate.release()
    pool.shutdown()
    assert ran == []


def test_expired_task_counts_as_failed_and_waits_no_more(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.with_options(start_within=0.0).submit(int).exception(DEADLINE)
    stats = pool.stats()

    assert (stats.failed, stats.queued_tasks, stats.running_tasks, stats.submitted) == (1, 0, 1, 2)


def test_expiry_is_a_timeout(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    with pytest.raises(TimeoutError):
        pool.with_options(start_within=0.0).submit(int).result(DEADLINE)


def test_task_that_has_started_in_time_may_take_its_time(make_pool: MakePool, gate: Gate, clock: Clock) -> None:
    pool = make_pool(1)
    started = pool.with_options(start_within=100.0).submit(gate.hold)
    gate.wait_until_held()
    waiting = pool.with_options(start_within=200.0).submit(int)
    clock.pass_time(1000.0, pool)

    assert isinstance(waiting.exception(DEADLINE), TaskExpired)  # so the timer has looked at both
    assert not started.done()
    gate.release()
    assert started.result() is None


def test_expired_task_can_be_found_by_a_worker_before_the_timer_comes(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:

    def sleep(*_: object) -> None:
        pass

    monkeypatch.setattr(Deadlines, "watch", sleep)
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    future = pool.with_options(start_within=0.0).submit(int)
    gate.release()

    assert isinstance(future.exception(DEADLINE), TaskExpired)


def test_expired_task_leaves_the_lane_of_those_that_follow(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    expired = pool.with_options(start_within=0.0).submit(int)
    following = pool.submit(int)
    expired.exception(DEADLINE)
    gate.release()

    assert following.result() == 0


# -- composition --


def test_views_compose(resource_pool: ResourceExecutor[FakeResource], gate: Gate) -> None:
    view = resource_pool.with_options(priority=True).with_options(max_retries=0).with_options(pass_resource=False)

    def fragile() -> None:
        assert current_task().attempt == 1
        gate.hold()
        resource_pool.current_resource().break_down()

    resource_pool.with_options(pass_resource=False).submit(gate.hold)
    gate.wait_until_held()
    future = view.submit(fragile)

    assert resource_pool.stats().priority_tasks == 1
    gate.release()
    assert isinstance(future.exception(), ResourceBroken)
    assert resource_pool.stats().retried == 0


def test_later_option_replaces_the_earlier_one(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.with_options(priority=True).with_options(priority=False).submit(int)
    stats = pool.stats()

    assert (stats.queued_tasks, stats.priority_tasks) == (1, 0)


def test_time_limit_can_be_lifted(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    limited = pool.with_options(start_within=0.0)
    future = limited.with_options(start_within=None).submit(int)
    limited.submit(int).exception(DEADLINE)
    gate.release()

    assert future.result() == 0


def test_view_of_a_view_outlives_it(make_pool: MakePool) -> None:
    first = make_pool(1).with_options(priority=True)
    second = first.with_options(max_retries=1)
    first.shutdown()

    assert second.submit(int).result() == 0


def test_view_says_what_it_is(make_pool: MakePool) -> None:
    pool = make_pool(1, name="crawler")
    view = pool.with_options(priority=True, max_retries=0)

    assert repr(view) == f"<ExecutorView priority=True, max_retries=0 of {pool!r}>"


def test_view_knows_how_many_workers_there_may_be(make_pool: MakePool) -> None:
    pool = make_pool(3)

    assert pool._max_workers == 3
    assert pool.with_options(priority=True)._max_workers == 3


# -- the end of a view --


def test_shutting_a_view_down_waits_for_its_tasks_and_not_for_others(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    view = pool.with_options(max_retries=1)
    other = pool.submit(gate.hold)
    gate.wait_until_held()
    mine = [view.submit(int) for _ in range(10)]
    view.shutdown()

    assert all(future.done() for future in mine)
    assert not other.done()


def test_shutting_a_view_down_leaves_the_executor_running(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.with_options(priority=True).shutdown()

    assert pool.submit(int).result() == 0
    assert pool.stats().state == "running"


USES: dict[str, Callable[[ExecutorView[None]], object]] = {
    "submit": lambda view: view.submit(int),
    "submit_priority": lambda view: view.submit_priority(int),
    "map": lambda view: view.map(int, ["1"]),
    "run_now": lambda view: view.run_now(int),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_view_accepts_nothing_after_shutdown(make_pool: MakePool, use: Callable[[ExecutorView[None]], object]) -> None:
    pool = make_pool(1)
    view = pool.with_options(priority=True)
    view.shutdown()

    with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown") as caught:
        use(view)
    assert str(caught.value) == "cannot schedule new futures after shutdown"
    assert "ExecutorView" in caught.value.__notes__[0]
    assert pool.stats().submitted == 0


def test_view_accepts_nothing_when_its_executor_is_shut_down(make_pool: MakePool) -> None:
    pool = make_pool(1)
    view = pool.with_options(priority=True)
    pool.shutdown()

    with pytest.raises(RuntimeError) as caught:
        view.submit(int)
    view.shutdown()

    assert str(caught.value) == "cannot schedule new futures after shutdown"


def test_with_block_of_a_view_waits_for_its_tasks(make_pool: MakePool) -> None:
    pool = make_pool(2)
    with pool.with_options(priority=True) as view:
        futures = [view.submit(int) for _ in range(10)]

    assert all(future.done() for future in futures)
    assert pool.submit(int).result() == 0


def test_shutting_a_view_down_can_cancel_its_tasks_and_only_those(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    view = pool.with_options(priority=True)
    running = view.submit(gate.hold)
    gate.wait_until_held()
    mine, other = [view.submit(int) for _ in range(3)], pool.submit(int)
    view.shutdown(wait=False, cancel_futures=True)

    assert all(future.cancelled() for future in mine)
    assert not running.done()
    assert not other.done()
    gate.release()
    assert other.result() == 0


def test_shutdown_of_a_view_gives_up_in_time_and_its_tasks_go_on(make_pool: MakePool, gate: Gate) -> None:
    view = make_pool(1).with_options(priority=True)
    future = view.submit(gate.hold)

    with pytest.raises(ShutdownTimeout, match="1 tasks of <ExecutorView priority=True"):
        view.shutdown(timeout=0.01)
    gate.release()
    assert future.result() is None
    view.shutdown()


def test_task_may_shut_down_the_view_it_came_through(make_pool: MakePool) -> None:
    view = make_pool(1).with_options(priority=True)
    view.submit(view.shutdown).result(DEADLINE)

    with pytest.raises(RuntimeError):
        view.submit(int)


@pytest.mark.parametrize("bound", [None, 9], ids=["in line", "with care"])
def test_submission_that_meets_the_shutdown_of_the_view_is_refused_and_does_not_run(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch, bound: int | None
) -> None:
    pool = make_pool(1, max_queued=bound)
    view = pool.with_options(start_within=DEADLINE)
    ran: list[int] = []
    pool.submit(gate.hold)
    gate.wait_until_held()

    def late(*_: Any) -> None:
        view.shutdown()  # by another thread, in the worst moment: the task is queued, and the view does not know it yet

    replace_step(pool, Step.WATCH, late, monkeypatch)

    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        view.submit(ran.append, 1)
    gate.release()
    pool.shutdown()
    assert ran == []


# -- as_thread_pool --


def test_thread_pool_is_one_by_class(make_pool: MakePool) -> None:
    assert isinstance(make_pool(1).as_thread_pool(), ThreadPoolExecutor)


def test_thread_pool_has_as_many_workers_as_the_executor(make_pool: MakePool) -> None:
    assert make_pool(3).as_thread_pool()._max_workers == 3


def test_thread_pool_runs_tasks_on_the_workers_without_the_resource(
    resource_pool: ResourceExecutor[FakeResource], ledger: Ledger
) -> None:
    thread = resource_pool.as_thread_pool().submit(threading.current_thread).result()

    assert thread is ledger.created[0].maker


def test_thread_pool_starts_no_threads_of_its_own(make_pool: MakePool) -> None:
    threads = make_pool(1).as_thread_pool()
    threads.submit(int).result()

    assert threads._threads == set()


def test_thread_pool_maps_with_chunks_and_a_buffer(make_pool: MakePool) -> None:
    pool = make_pool(1)
    options: dict[str, Any] = {"chunksize": 2, "buffersize": 4}

    assert list(pool.as_thread_pool().map(str, range(6), **options)) == ["0", "1", "2", "3", "4", "5"]
    assert pool.stats().submitted == 3


def test_shutting_the_thread_pool_down_leaves_the_executor_running(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with pool.as_thread_pool() as threads:
        future = threads.submit(int)

    assert future.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        threads.submit(int)
    assert pool.submit(int).result() == 0


def test_thread_pool_can_be_the_default_executor_of_asyncio(
    resource_pool: ResourceExecutor[FakeResource], ledger: Ledger
) -> None:
    async def main() -> threading.Thread:
        asyncio.get_running_loop().set_default_executor(resource_pool.as_thread_pool())
        return await asyncio.to_thread(threading.current_thread)

    thread = asyncio.run(main())  # which shuts its default executor down

    assert thread is ledger.created[0].maker
    assert resource_pool.submit(FakeResource.use).result() == 0


def test_shutdown_of_a_view_while_its_futures_are_dropped(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The view looks through its futures. 2. Others drop theirs.
    pool = make_pool(1)
    view = pool.with_options(priority=True)
    futures = [view.submit(int) for _ in range(50)]
    kept = futures[0]
    wait(futures)

    def drop(_: object) -> bool:
        futures.clear()
        return True

    monkeypatch.setattr(type(kept), "done", drop)
    view.shutdown()

    assert futures == []
    assert [reference() for reference in view._futures if reference() is not None] == [kept]


# -- signatures --


def test_options_that_were_not_mentioned_show_as_unset(make_pool: MakePool) -> None:
    signature = inspect.signature(make_pool(1).with_options)

    assert str(signature.parameters["priority"]).endswith(" = UNSET")
