"""What users get for their tests: an executor without threads, books, a gate, a leak check."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor, as_completed, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, ResourceBroken
from tasker_executor import (
    NoCurrentTask,
    PoolDeadlockError,
    ResourceCreationError,
    ResourceExecutor,
    TaskCancelled,
    TaskExpired,
    TaskStopped,
    current_task,
)
from tasker_executor.testing import InlineExecutor, assert_no_leaks, fakes

MakeInline = Callable[..., InlineExecutor[Any]]


@pytest.fixture
def make_inline(ledger: Ledger) -> Iterator[MakeInline]:
    """Makes inline executors on the ledger, which are shut down at the end."""
    made: list[InlineExecutor[Any]] = []

    def make(**kwargs: Any) -> InlineExecutor[Any]:
        hooks: dict[str, Any] = {
            "on_create": ledger.create,
            "on_destroy": ledger.destroy,
            "check_health": ledger.is_healthy,
            "check_resource": ledger.is_usable,
        }
        made.append(InlineExecutor(**{**hooks, **kwargs}))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown()
        assert executor.stats().state == "closed"


def fail(*_: object) -> None:
    raise ValueError("its own")


def add(_: FakeResource, a: int, b: int) -> int:
    return a + b


# -- tasks --


def test_a_task_has_run_in_the_calling_thread_when_submit_returns(make_inline: MakeInline) -> None:
    future = make_inline().submit(lambda _: threading.current_thread())

    assert future.done()
    assert future.result() is threading.current_thread()


def test_a_task_gets_the_resource_and_its_arguments(make_inline: MakeInline) -> None:
    def task(resource: FakeResource, a: int, *, b: int) -> tuple[int, int, int]:
        return resource.use(), a, b

    assert make_inline().submit(task, 1, b=2).result() == (0, 1, 2)


def test_without_a_factory_tasks_are_called_as_given() -> None:
    with InlineExecutor() as pool:
        assert pool.submit(divmod, 7, 2).result() == (3, 1)


def test_a_tasks_own_error_is_its_result(make_inline: MakeInline) -> None:
    pool = make_inline()

    assert isinstance(pool.submit(fail).exception(), ValueError)
    assert pool.stats().failed == 1


def test_map_keeps_the_order(make_inline: MakeInline) -> None:
    assert list(make_inline().map(add, [1, 2, 3], [10, 20, 30], chunksize=2)) == [11, 22, 33]


def test_run_now_is_no_submission(make_inline: MakeInline) -> None:
    pool = make_inline()

    assert pool.run_now(FakeResource.use) == 0
    assert pool.stats().submitted == 0


def test_run_now_raises_what_the_task_raised(make_inline: MakeInline) -> None:
    with pytest.raises(ValueError, match="its own"):
        make_inline().run_now(fail)


def test_a_view_without_resource_calls_tasks_as_given(make_inline: MakeInline) -> None:
    assert make_inline().with_options(pass_resource=False).submit(int, "7").result() == 7


def test_as_a_thread_pool_it_is_one(make_inline: MakeInline) -> None:
    pool = make_inline().as_thread_pool()

    assert isinstance(pool, ThreadPoolExecutor)
    assert list(pool.map(int, "12")) == [1, 2]


def test_it_is_an_executor_for_wait_and_as_completed(make_inline: MakeInline) -> None:
    pool: Executor = make_inline().with_options(pass_resource=False)
    futures = [pool.submit(int, digit) for digit in "123"]

    assert wait(futures, 0).not_done == set()
    assert sorted(future.result() for future in as_completed(futures, 0)) == [1, 2, 3]


def test_a_task_may_submit_tasks_and_each_has_a_resource_of_its_own(make_inline: MakeInline) -> None:
    pool = make_inline()

    def outer(resource: FakeResource) -> tuple[int, int]:
        return resource.use(), pool.submit(FakeResource.use).result()

    assert pool.submit(outer).result() == (0, 1)


def test_a_task_runs_in_a_copy_of_its_submitters_context(make_inline: MakeInline) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="before")

    def task(_: object) -> str:
        seen = variable.get()
        variable.set("by the task")
        return seen

    assert make_inline().submit(task).result() == "before"
    assert variable.get() == "before"


def test_current_task_and_current_resource_work_inside_and_only_there(make_inline: MakeInline) -> None:
    pool = make_inline()

    def task(resource: FakeResource) -> tuple[int, bool]:
        return current_task().attempt, pool.current_resource() is resource

    assert pool.submit(task).result() == (1, True)
    with pytest.raises(NoCurrentTask):
        current_task()
    with pytest.raises(NoCurrentTask):
        pool.current_resource()


def test_an_exit_is_the_tasks_result_and_on_the_main_thread_goes_on() -> None:
    futures: list[Future[None]] = []
    with InlineExecutor(deferred=True) as pool:
        futures.append(pool.submit(exit_with, 3))
        with pytest.raises(SystemExit):
            pool.step()

    assert isinstance(futures[0].exception(), SystemExit)


def exit_with(status: int) -> None:
    raise SystemExit(status)


# -- resources --


def test_the_resource_is_made_for_the_first_task_and_used_for_all(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()
    assert ledger.created == []

    assert [pool.submit(FakeResource.use).result() for _ in range(3)] == [0, 0, 0]


def test_a_task_whose_resource_broke_is_run_again_on_another(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()
    attempts: list[int] = []

    def task(resource: FakeResource) -> int:
        attempts.append(current_task().attempt)
        if len(attempts) == 1:
            resource.break_down()
        return resource.use()

    assert pool.submit(task).result() == 1
    assert attempts == [1, 2]
    assert [resource.number for resource in ledger.destroyed] == [0]
    assert (pool.stats().retried, pool.stats().workers_replaced) == (1, 1)


def test_out_of_retries_the_future_gets_the_original_error_with_a_note(make_inline: MakeInline, ledger: Ledger) -> None:
    error = make_inline(max_retries=2).submit(FakeResource.break_down).exception()

    assert isinstance(error, ResourceBroken)
    assert vars(error)["__notes__"] == ["gave up after 2 retries; the last resource broke, too"]
    assert len(ledger.created) == len(ledger.destroyed) == 3


def test_a_view_may_forbid_retries(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()

    assert isinstance(pool.with_options(max_retries=0).submit(FakeResource.break_down).exception(), ResourceBroken)
    assert len(ledger.created) == 1


def test_run_now_has_the_same_health_rule(make_inline: MakeInline, ledger: Ledger) -> None:
    with pytest.raises(ResourceBroken):
        make_inline(max_retries=1).run_now(FakeResource.break_down)

    assert len(ledger.destroyed) == 2


def test_check_resource_alone_finds_a_broken_resource(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline(check_health=None, max_retries=1)

    assert isinstance(pool.submit(FakeResource.break_down).exception(), ResourceBroken)
    assert len(ledger.destroyed) == 1
    assert pool.stats().retried == 0


def test_a_retry_for_which_no_resource_can_be_made_is_counted(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()

    def task(resource: FakeResource) -> None:
        ledger.outage = OSError("outage")
        resource.break_down()

    assert isinstance(pool.submit(task).exception(), ResourceCreationError)
    ledger.outage = None
    stats = pool.stats()
    assert (stats.retried, stats.workers_replaced, stats.create_failures) == (1, 1, 1)


def test_a_retry_of_run_now_is_not_counted(make_inline: MakeInline) -> None:
    pool = make_inline(max_retries=1)

    with pytest.raises(ResourceBroken):
        pool.run_now(FakeResource.break_down)

    assert (pool.stats().retried, pool.stats().workers_replaced) == (0, 2)


def test_a_free_resource_that_is_found_broken_is_replaced(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline(max_retries=0)
    pool.submit(lambda _: pool.run_now(FakeResource.use)).result()  # there are two now
    for resource in ledger.alive:
        resource.broken = True
    pool.submit(FakeResource.use).exception()  # puts the other one under suspicion

    assert pool.submit(FakeResource.use).result() == 2
    assert pool.stats().workers_replaced == 2


def test_where_the_factory_fails_the_task_fails_at_once_and_the_next_may_succeed(
    make_inline: MakeInline, ledger: Ledger
) -> None:
    pool = make_inline()
    ledger.outage = OSError("outage")
    error = pool.submit(FakeResource.use).exception()
    ledger.outage = None

    assert isinstance(error, ResourceCreationError)
    assert isinstance(error.__cause__, OSError)
    assert pool.submit(FakeResource.use).result() == 0
    assert pool.stats().create_failures == 1


def test_after_an_exit_in_mid_task_the_resource_is_checked_before_it_is_used_again(
    make_inline: MakeInline, ledger: Ledger
) -> None:
    def interrupted(resource: FakeResource) -> None:
        resource.broken = True
        raise SystemExit

    pool = make_inline(max_retries=0)
    with ThreadPoolExecutor(1) as threads:  # where an exit is the task's result, and nothing more
        ledger.any_thread = True
        error = threads.submit(pool.submit, interrupted).result().exception()

    assert isinstance(error, SystemExit)
    assert pool.submit(FakeResource.use).result() == 1
    assert [resource.number for resource in ledger.destroyed] == [0]


def test_a_factory_that_returns_none_is_told_the_cure() -> None:
    with InlineExecutor(on_create=lambda: None) as pool:
        error = pool.submit(lambda _: None).exception()

    assert "return the resource" in str(error)


def test_wait_ready_makes_the_resource(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()

    pool.wait_ready()

    assert pool.stats().available_resources == len(ledger.alive) == 1


def test_wait_ready_makes_no_second_resource(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()

    pool.wait_ready()
    pool.wait_ready()

    assert len(ledger.created) == 1


def test_current_resource_of_another_executor_is_refused(make_inline: MakeInline) -> None:
    pool, other = make_inline(), make_inline(name="other")

    with pytest.raises(NoCurrentTask, match="not one of executor 'other'"):
        pool.submit(lambda _: other.current_resource()).result()


def test_hooks_without_a_factory_are_refused() -> None:
    with pytest.raises(ValueError, match="on_destroy"):
        InlineExecutor(on_destroy=print)


# -- deferred --


def test_deferred_tasks_run_when_the_test_says_so_priority_first(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    ran: list[str] = []
    for name in ("a", "b"):
        pool.with_options(pass_resource=False).submit(ran.append, name)
    pool.submit_priority(lambda _: ran.append("urgent"))

    assert ran == []
    assert pool.step()
    assert ran == ["urgent"]
    assert pool.run_all() == 2
    assert ran == ["urgent", "a", "b"]
    assert not pool.step()


def test_who_asks_a_deferred_task_for_its_result_runs_tasks_until_it_is_there(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    first, second, third = (pool.submit(FakeResource.use) for _ in range(3))

    assert second.result() == 0
    assert (first.done(), third.done()) == (True, False)


def test_with_timeout_0_a_result_is_only_asked_for(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    future = pool.submit(FakeResource.use)

    with pytest.raises(FutureTimeoutError):
        future.result(timeout=0)
    assert not future.done()


def test_a_cancelled_task_never_runs_and_wait_is_told(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    future = pool.submit(fail)

    assert future.cancel()
    assert future.cancel()
    assert pool.run_all() == 0
    assert wait([future], 0).done == {future}
    assert pool.stats().cancelled == 1


def test_two_threads_may_cancel_a_task_at_once(make_inline: MakeInline, monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    # 1. A thread has taken the task out of its lane, and is about to cancel the future. 2. Another one cancels it, and
    # tells those that wait. 3. The first goes on, and must not tell them again.
    pool = make_inline(deferred=True)
    future = pool.submit(fail)
    cancel: Callable[[Any], bool] = vars(Future)["cancel"]

    def hold(self: Any) -> bool:
        if threading.current_thread() is not threading.main_thread():
            gate.hold()
        return cancel(self)

    monkeypatch.setattr(Future, "cancel", hold)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(future.cancel)
        gate.wait_until_held()
        assert future.cancel()
        gate.release()

        assert other.result(DEADLINE)
    assert wait([future], 0).done == {future}
    assert pool.stats().cancelled == 1


def test_who_waits_is_told_of_a_cancel_that_was_interrupted(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    future = pool.submit(fail)
    future.add_done_callback(lambda _: exit_with(3))

    with pytest.raises(SystemExit):
        future.cancel()

    assert wait([future], 0).done == {future}


def test_a_mode_that_another_thread_changes_in_mid_submit_is_that_of_the_next_task(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True, False])

    def look(_: object) -> bool:
        return next(looks)

    def change(_: object, value: object) -> None:
        pass

    monkeypatch.setattr(InlineExecutor, "deferred", property(look, change), raising=False)
    ran: list[int] = []
    with InlineExecutor() as pool:
        pool.submit(ran.append, 1)
        assert ran == []

    stats = pool.stats()
    assert (ran, stats.completed, stats.failed) == ([1], 1, 0)


def test_a_cancelled_task_leaves_those_before_and_after_it(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    futures = [pool.submit(FakeResource.use) for _ in range(3)]

    assert futures[1].cancel()
    assert [future.cancelled() for future in futures] == [False, True, False]
    assert pool.run_all() == 2


def test_it_says_what_it_is_doing(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True, name="crawler")
    pool.submit(FakeResource.use)
    pool.submit_priority(FakeResource.use)

    assert repr(pool) == "<InlineExecutor 'crawler' running: 2 queued (1 high)>"


def test_a_task_that_has_run_cannot_be_cancelled(make_inline: MakeInline) -> None:
    assert not make_inline().submit(FakeResource.use).cancel()


def test_a_task_that_starts_too_late_expires(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    future = pool.with_options(start_within=0.0).submit(FakeResource.use)
    current = pool.with_options(start_within=DEADLINE).submit(FakeResource.use)

    assert isinstance(future.exception(), TaskExpired)
    assert current.result() == 0


def test_a_task_that_waits_for_itself_is_told(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    futures: list[Future[Any]] = []
    futures.append(pool.submit(lambda _: futures[0].result()))

    with pytest.raises(PoolDeadlockError):
        futures[0].result()


def test_another_thread_may_wait_for_a_task_that_runs_here(make_inline: MakeInline, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = make_inline(deferred=True)
    with ThreadPoolExecutor(1) as threads, Gate() as gate:
        future = pool.submit(gate.hold)
        threads.submit(pool.step)
        gate.wait_until_held()
        with pytest.raises(FutureTimeoutError):
            future.result(timeout=0.001)
        gate.release()

        assert future.result(DEADLINE) is None


def test_the_numbers_add_up_at_every_moment(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)

    def look(_: object) -> tuple[int, int, int, int]:
        stats = pool.stats()
        return stats.submitted, stats.running_tasks, stats.queued_tasks, stats.priority_tasks

    urgent = pool.submit_priority(look)
    pool.submit(fail)
    pool.submit_priority(FakeResource.use)

    assert urgent.result() == (3, 1, 1, 1)
    pool.run_all()
    stats = pool.stats()
    assert (stats.submitted, stats.completed, stats.failed, stats.running_tasks) == (3, 2, 1, 0)


# -- the end --


def test_shutdown_runs_what_is_queued_and_destroys_every_resource(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline(deferred=True)
    future = pool.submit(FakeResource.use)

    pool.shutdown()

    assert future.done()
    assert ledger.alive == []
    assert pool.stats().state == "closed"


def test_shutdown_without_wait_leaves_the_queue_to_the_test(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline(deferred=True)
    pool.wait_ready()
    future = pool.submit(FakeResource.use)

    pool.shutdown(wait=False)
    assert (future.done(), pool.stats().state, len(ledger.alive)) == (False, "draining", 1)
    pool.step()

    assert (future.done(), pool.stats().state, len(ledger.alive)) == (True, "closed", 0)


def test_shutdown_may_cancel_what_is_queued(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    future = pool.submit(FakeResource.use)

    pool.shutdown(cancel_futures=True)

    with pytest.raises(CancelledError):
        future.result()


def test_after_shutdown_tasks_are_refused_as_by_the_standard_library(make_inline: MakeInline) -> None:
    pool = make_inline()
    pool.shutdown()

    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(FakeResource.use)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.run_now(FakeResource.use)


def test_shutdown_from_a_task_does_not_take_its_resource_away(make_inline: MakeInline) -> None:
    pool = make_inline()

    def task(resource: FakeResource) -> int:
        pool.shutdown()
        return resource.use()

    assert pool.submit(task).result() == 0
    assert pool.stats().state == "closed"


def test_kill_cancels_the_queue_and_sets_the_token_of_the_task_that_runs(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)

    def task(_: object) -> None:
        assert not current_task().cancelled
        pool.kill()
        current_task().raise_if_cancelled()

    running, waiting = pool.submit(task), pool.submit(FakeResource.use)
    pool.step()

    assert isinstance(running.exception(), TaskCancelled)
    assert waiting.cancelled()
    assert pool.stats().state == "closed"


def test_kill_after_the_end_changes_nothing(make_inline: MakeInline) -> None:
    pool = make_inline()
    pool.shutdown()

    pool.kill()

    assert pool.stats().state == "closed"


def test_a_negative_timeout_is_refused_and_nothing_is_shut_down(make_inline: MakeInline) -> None:
    pool = make_inline()

    with pytest.raises(ValueError, match="timeout must not be negative"):
        pool.shutdown(timeout=-1.0)
    pool.shutdown(timeout=0.0)

    assert pool.stats().state == "closed"


def test_a_negative_timeout_of_wait_ready_is_refused_as_by_the_real_executor(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()

    with pytest.raises(ValueError, match="timeout must not be negative"):
        pool.wait_ready(-1.0)
    assert ledger.created == []
    pool.wait_ready(0.0)

    assert len(ledger.created) == 1


def test_after_kill_nothing_is_retried(make_inline: MakeInline, ledger: Ledger) -> None:
    pool = make_inline()

    def task(resource: FakeResource) -> None:
        pool.kill()
        resource.break_down()

    error = pool.submit(task).exception()

    assert isinstance(error, TaskStopped)
    assert isinstance(error.__cause__, ResourceBroken)
    assert len(ledger.created) == 1


def test_shutting_a_view_down_runs_its_tasks_and_leaves_the_executor_running(make_inline: MakeInline) -> None:
    pool = make_inline(deferred=True)
    with pool.with_options(priority=True) as view:
        future = view.submit(FakeResource.use)

    assert future.done()
    assert pool.submit(FakeResource.use).result() == 0


# -- the books --


def test_the_ledger_tells_a_resource_that_was_not_destroyed() -> None:
    ledger = Ledger()
    ledger.create()

    with pytest.raises(AssertionError, match=r"<FakeResource 0> was destroyed 0 times"):
        ledger.check()


def test_the_ledger_tells_a_resource_that_was_destroyed_twice() -> None:
    ledger = Ledger()
    resource = ledger.create()
    ledger.destroy(resource)
    ledger.destroy(resource)

    with pytest.raises(AssertionError, match="destroyed 2 times"):
        ledger.check()


def test_the_ledger_tells_a_use_after_the_end() -> None:
    ledger = Ledger()
    resource = ledger.create()
    ledger.destroy(resource)
    resource.use()

    with pytest.raises(AssertionError, match="after it was destroyed"):
        ledger.check()


@pytest.mark.parametrize("any_thread", [False, True])
def test_the_ledger_tells_a_use_by_another_thread_unless_that_is_allowed(any_thread: bool) -> None:
    ledger = Ledger()
    ledger.any_thread = any_thread
    resource = ledger.create()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(resource.use).result()
    ledger.destroy(resource)

    if any_thread:
        ledger.check()
    else:
        with pytest.raises(AssertionError, match=r"was made by .* and used by"):
            ledger.check()


def test_the_ledger_tells_a_destruction_by_another_thread() -> None:
    ledger = Ledger()
    resource = ledger.create()
    with ThreadPoolExecutor(1, "stranger") as threads:
        threads.submit(ledger.destroy, resource).result()

    with pytest.raises(AssertionError, match=r"<FakeResource 0> was made by MainThread and destroyed by stranger_0"):
        ledger.check()


def test_who_waits_in_vain_is_told_for_what_and_how_things_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes, "DEADLINE", 0.001)
    ledger = Ledger()
    ledger.create()

    message = "waited 0.001 s in vain for 1 destructions: <Ledger: 1 attempts, 1 created, 0 destroyed>"
    with pytest.raises(AssertionError, match=f"^{message}$"):
        ledger.wait_until_destroyed(1)
    with pytest.raises(AssertionError, match=r"in vain for 2 held tasks: <Gate closed: 0 held>$"):
        Gate().wait_until_held(2)


# -- leaks --


def test_what_has_ended_is_no_leak() -> None:
    with assert_no_leaks(), ResourceExecutor(2, min_workers=2) as pool, InlineExecutor() as inline:
        assert pool.submit(int).result() == inline.submit(int).result()


def test_what_was_there_before_is_no_leak() -> None:
    with ResourceExecutor(1, min_workers=1), InlineExecutor(), assert_no_leaks(timeout=0.0):
        pass


def test_a_thread_that_is_left_is_named() -> None:
    with Gate() as gate:
        thread = threading.Thread(target=gate.hold, name="forgotten")
        with pytest.raises(AssertionError, match=r"left behind: thread forgotten$"), assert_no_leaks(timeout=0.0):
            thread.start()
    thread.join()


def test_a_thread_that_ends_in_time_is_no_leak() -> None:
    with Gate() as gate, assert_no_leaks(timeout=DEADLINE):
        threading.Thread(target=gate.hold).start()
        gate.wait_until_held()
        threading.Timer(0.01, gate.release).start()


def test_threads_of_another_library_can_be_ignored() -> None:
    with Gate() as gate:
        thread = threading.Thread(target=gate.hold, name="foreign-1")
        with assert_no_leaks(timeout=0.0, ignore_threads=["foreign"]):
            thread.start()
    thread.join()


@pytest.mark.parametrize("kind", [ResourceExecutor, InlineExecutor])
def test_an_executor_that_is_left_is_named(kind: Callable[..., Any]) -> None:
    made: list[Any] = []

    with pytest.raises(AssertionError, match=r"left behind: executor 'left' \(running\)"), assert_no_leaks(timeout=0.0):
        made.append(kind(name="left"))

    made[0].shutdown()


def test_an_executor_in_a_cycle_is_collected_first() -> None:
    with assert_no_leaks():
        cycle: list[Any] = [ResourceExecutor(1, min_workers=1), InlineExecutor()]
        cycle.append(cycle)
        del cycle


def test_an_error_of_the_block_is_passed_on() -> None:
    made: list[ResourceExecutor[None]] = []

    def leak_and_fail() -> None:
        made.append(ResourceExecutor(1))
        fail()

    with pytest.raises(ValueError, match="its own"), assert_no_leaks(timeout=0.0):
        leak_and_fail()

    made[0].shutdown()
