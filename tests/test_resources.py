"""The life of a resource: which thread makes, uses, checks and destroys it, and when it is replaced."""

from __future__ import annotations

import logging
import threading

import pytest

from engine import patch_random, source_of
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually, join_all
from tasker_executor import ResourceCreationError, ResourceExecutor, current_task


class Checks:
    """A `check_resource` that keeps count of which resources it was asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, resource: FakeResource) -> bool:
        self.asked.append(resource.number)
        return not resource.broken


class Rehashed(str):
    """A name that two threads look up at once: whenever one of them hashes it, it waits until the other does."""

    __slots__ = ("meet",)

    meet: threading.Barrier

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        self.meet.wait(DEADLINE)
        return super().__hash__()


# -- made, used and destroyed --


def test_each_worker_makes_a_resource_of_its_own(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    for _ in range(3):
        pool.submit(gate.hold)
    gate.wait_until_held(3)

    assert len({resource.maker for resource in ledger.created}) == 3


def test_resource_is_made_used_and_destroyed_on_one_thread(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    user = pool.submit(lambda _: threading.current_thread()).result()
    pool.shutdown()

    [resource] = ledger.created
    assert resource.maker is user
    assert resource.destroyers == [user]
    assert user is not threading.current_thread()


def test_worker_keeps_its_resource_from_task_to_task(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)

    assert {pool.submit(FakeResource.use).result() for _ in range(20)} == {0}
    assert ledger.created[0].uses == 20


def test_task_gets_the_resource_before_its_own_arguments(make_pool: MakePool, ledger: Ledger) -> None:
    def task(resource: FakeResource, first: int, *, second: int) -> tuple[object, int, int]:
        return resource, first, second

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)

    assert pool.submit(task, 1, second=2).result() == (ledger.created[0], 1, 2)


def test_resources_are_destroyed_when_shutdown_returns(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(3, on_create=ledger.create, on_destroy=ledger.destroy)
    for _ in range(3):
        pool.submit(gate.hold)
    gate.wait_until_held(3)

    gate.release()
    pool.shutdown()

    assert len(ledger.destroyed) == 3
    assert pool.stats().resources_created == pool.stats().resources_destroyed == 3


def test_pool_without_on_destroy_counts_its_resources_as_destroyed(make_pool: MakePool) -> None:
    pool = make_pool(2, on_create=object)
    pool.submit(lambda _: None).result()
    pool.shutdown()

    assert pool.stats().resources_created == pool.stats().resources_destroyed == 1


def test_resource_that_is_false_is_a_resource(make_pool: MakePool) -> None:
    pool = make_pool(1, on_create=list[int])

    assert pool.submit(lambda resource: resource).result() == []


@pytest.mark.parametrize("error", [OSError("already closed"), StopIteration()], ids=["error", "StopIteration"])
def test_on_destroy_that_raises_is_logged_and_costs_nothing_else(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        raise error

    caplog.set_level(logging.DEBUG)
    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, check_health=ledger.is_healthy, max_retries=0)
    pool.submit(FakeResource.break_down).exception()
    after = pool.submit(FakeResource.use).result()
    pool.shutdown()

    assert after == 1
    # The first resource was known to be broken, so its objection is no news.
    levels = [record.levelno for record in caplog.records if "on_destroy raised" in record.message]
    assert levels == [logging.DEBUG, logging.ERROR]
    assert pool.stats().resources_destroyed == 2


# -- check_health: a task raised, is it the resource's fault? --


def test_unhealthy_resource_is_replaced_and_its_task_run_again(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    pool.submit(FakeResource.use).result()
    ledger.created[0].broken = True

    assert pool.submit(FakeResource.use).result() == 1
    assert ledger.destroyed[:1] == ledger.created[:1]
    assert pool.stats().workers_replaced == 1


def test_error_that_is_not_the_resources_fault_reaches_the_caller_and_the_resource_stays(
    make_pool: MakePool, ledger: Ledger
) -> None:
    error = ValueError("mine")

    def fail(_: FakeResource) -> None:
        raise error

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    raised = pool.submit(fail).exception()

    assert raised is error
    assert "__notes__" not in vars(error)
    assert pool.submit(FakeResource.use).result() == 0


def test_check_health_is_asked_about_the_error_itself(make_pool: MakePool, ledger: Ledger) -> None:
    asked: list[BaseException] = []

    def check_health(error: BaseException) -> bool:
        asked.append(error)
        return True

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=check_health)
    raised = pool.submit(FakeResource.break_down).exception()

    assert asked == [raised]


def test_without_hooks_every_error_is_the_tasks_own(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    raised = pool.submit(FakeResource.break_down).exception()
    pool.submit(lambda _: None).result()

    assert isinstance(raised, ResourceBroken)
    assert len(ledger.created) == 1


def test_base_workers_are_replaced_even_if_nothing_waits(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        2, min_workers=2, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=0
    )
    pool.wait_ready()
    pool.submit(FakeResource.break_down).exception()
    ledger.wait_until_created(3)
    eventually(lambda: pool.stats().base_workers == 2, "two base workers")

    assert len(ledger.alive) == 2


# -- check_resource: after an error, after a rest, and under suspicion --


def test_check_resource_is_asked_when_a_task_raised(make_pool: MakePool, ledger: Ledger) -> None:
    checks = Checks()
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=checks,
        check_after_idle=3600,
    )
    pool.submit(FakeResource.use).result()
    asked_before = list(checks.asked)
    raised = pool.submit(FakeResource.break_down).exception()
    eventually(lambda: pool.stats().workers_replaced == 1, "the end of the worker")

    assert asked_before == []
    assert isinstance(raised, ResourceBroken)
    assert checks.asked == [0]
    assert ledger.created[0] in ledger.destroyed
    assert pool.stats().retried == 0


def test_task_that_raised_on_a_good_resource_is_not_retried(make_pool: MakePool, ledger: Ledger) -> None:
    runs: list[int] = []

    def fail(resource: FakeResource) -> None:
        runs.append(resource.number)
        raise ValueError

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=ledger.is_usable)
    raised = pool.submit(fail).exception()

    assert isinstance(raised, ValueError)
    assert runs == [0]


def test_resource_that_was_idle_for_long_is_checked_before_it_is_used(
    make_pool: MakePool, ledger: Ledger, clock: Clock
) -> None:
    checks = Checks()
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=checks, check_after_idle=60)
    pool.submit(FakeResource.use).result()
    asked_before = list(checks.asked)
    clock.ahead += 61
    pool.submit(FakeResource.use).result()

    assert asked_before == []
    assert checks.asked == [0]


def test_resource_in_steady_use_is_never_checked(make_pool: MakePool, ledger: Ledger, clock: Clock) -> None:
    checks = Checks()
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=checks, check_after_idle=3600)
    for _ in range(10):
        pool.submit(FakeResource.use).result()

    assert checks.asked == []


def test_resource_found_broken_before_a_task_costs_the_task_no_retry(make_pool: MakePool, ledger: Ledger) -> None:
    def attempt(resource: FakeResource) -> tuple[int, int]:
        return resource.use(), current_task().attempt

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=ledger.is_usable,
        check_after_idle=0,
        max_retries=0,
    )
    pool.submit(FakeResource.use).result()
    ledger.created[0].broken = True

    assert pool.submit(attempt).result() == (1, 1)
    assert ledger.created[0].uses == 1
    assert pool.stats().retried == 0
    assert pool.stats().workers_replaced == 1


def test_task_of_an_unfit_worker_keeps_its_place(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=ledger.is_usable, check_after_idle=0)
    order: list[int] = []

    def note(_: FakeResource, number: int) -> None:
        order.append(number)

    pool.submit(gate.hold)
    gate.wait_until_held()
    ledger.created[0].broken = True
    futures = [pool.submit(note, number) for number in range(3)]
    gate.release()
    for future in futures:
        future.result()

    assert order == [0, 1, 2]


def break_one_of_two(pool: ResourceExecutor[FakeResource]) -> None:
    """Leave the pool with one idle worker, the one that owns resource 0, after resource 1 broke."""
    with Gate() as first, Gate() as second:

        def break_later(resource: FakeResource) -> None:
            second.hold()
            resource.break_down()

        bystander = pool.with_options(max_retries=0).submit(first.hold)
        first.wait_until_held()
        victim = pool.with_options(max_retries=0).submit(break_later)
        second.wait_until_held()
        second.release()
        assert isinstance(victim.exception(), ResourceBroken)
        first.release()
        bystander.result()
    eventually(lambda: pool.stats().active_workers == 1, "the worker to end whose resource broke")
    pool.resize(max_workers=1)  # no other worker shall take the next task


def test_after_a_break_the_other_resources_are_checked_before_their_next_task(make_pool: MakePool, ledger: Ledger) -> None:
    checks = Checks()
    pool = make_pool(
        2,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=checks,
        check_after_idle=3600,
    )
    break_one_of_two(pool)
    asked_before = list(checks.asked)
    pool.submit(FakeResource.use).result()

    assert asked_before == []
    assert checks.asked == [0]


def test_break_found_by_check_resource_alone_raises_suspicion_too(make_pool: MakePool, ledger: Ledger) -> None:
    checks = Checks()
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=checks, check_after_idle=3600)
    break_one_of_two(pool)
    asked_before = list(checks.asked)
    pool.submit(FakeResource.use).result()

    assert asked_before == [1]
    assert checks.asked == [1, 0]


def test_suspicion_ends_with_the_check(make_pool: MakePool, ledger: Ledger) -> None:
    checks = Checks()
    pool = make_pool(
        2,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=checks,
        check_after_idle=3600,
    )
    break_one_of_two(pool)
    for _ in range(5):
        pool.submit(FakeResource.use).result()

    assert checks.asked == [0]


def test_resource_under_suspicion_that_broke_is_replaced_at_no_cost_to_the_task(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        2,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=ledger.is_usable,
        check_after_idle=3600,
        max_retries=0,
    )
    break_one_of_two(pool)
    ledger.created[0].broken = True

    assert pool.submit(FakeResource.use).result() == 2
    assert ledger.created[0].uses == 0
    assert pool.stats().retried == 0


def test_resource_made_after_the_break_is_checked_until_one_has_passed(make_pool: MakePool, ledger: Ledger) -> None:
    """The server may accept connections and serve none."""
    checks = Checks()
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=checks,
        check_after_idle=3600,
        max_retries=0,
    )
    pool.submit(FakeResource.break_down).exception()

    assert pool.submit(FakeResource.use).result() == 1
    assert pool.submit(FakeResource.use).result() == 1
    assert checks.asked == [1]


def test_resource_whose_task_was_interrupted_is_checked_before_the_next(make_pool: MakePool, ledger: Ledger) -> None:
    def interrupt(_: FakeResource) -> None:
        raise SystemExit

    checks = Checks()
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=checks, check_after_idle=3600)
    pool.submit(interrupt).exception()
    pool.submit(FakeResource.use).result()

    assert checks.asked == [0]


# -- max_age --


def test_resource_too_old_is_replaced_before_the_next_task(make_pool: MakePool, ledger: Ledger, clock: Clock) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_age=1000, max_retries=0)
    before = pool.submit(FakeResource.use).result()
    clock.ahead += 1101

    assert before == 0
    assert pool.submit(FakeResource.use).result() == 1
    assert pool.stats().workers_replaced == 1


def test_task_that_runs_when_its_resource_comes_of_age_is_left_alone(
    make_pool: MakePool, ledger: Ledger, gate: Gate, clock: Clock
) -> None:
    def hold_and_use(resource: FakeResource) -> int:
        gate.hold()
        return resource.use()

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_age=1000, max_retries=0)
    running = pool.submit(hold_and_use)
    waiting = pool.submit(hold_and_use)
    gate.wait_until_held()
    clock.ahead += 1101
    gate.release()

    assert (running.result(), waiting.result()) == (0, 1)


def test_resource_of_an_idle_base_worker_is_replaced_when_it_is_too_old(make_pool: MakePool, ledger: Ledger) -> None:
    make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy, max_age=0.01)
    ledger.wait_until_created(3)

    assert len(ledger.alive) <= 1


def test_resource_of_an_idle_burst_worker_is_given_up_when_it_is_too_old(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_age=0.01)
    pool.submit(lambda _: None).result()
    eventually(lambda: pool.stats().active_workers == 0, "the worker to end")

    assert len(ledger.created) == len(ledger.destroyed)


@pytest.mark.parametrize("share", [0.9, 1.0, 1.1])
def test_max_age_has_a_jitter_of_ten_percent(
    make_pool: MakePool, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    ranges: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        ranges.append((low, high))
        return share

    patch_random(monkeypatch, uniform)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_age=100_000)
    pool.submit(FakeResource.use).result()
    clock.ahead += 100_000 * share - 1000
    shortly_before = pool.submit(FakeResource.use).result()
    clock.ahead += 1001
    shortly_after = pool.submit(FakeResource.use).result()

    assert (shortly_before, shortly_after) == (0, 1)
    assert ranges == [pytest.approx((0.9, 1.1))] * 2


# -- max_uses --


def test_resource_serves_max_uses_tasks(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=3)

    assert [pool.submit(FakeResource.use).result() for _ in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert pool.stats().workers_replaced == 2


def test_used_up_resource_is_destroyed_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=1)
    pool.submit(FakeResource.use).result()
    ledger.wait_until_destroyed(1)

    assert ledger.alive == []


def test_tasks_that_fail_use_a_resource_up_as_well(make_pool: MakePool, ledger: Ledger) -> None:
    def fail(_: FakeResource) -> None:
        raise ValueError

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=2)
    for _ in range(2):
        pool.submit(fail).exception()

    assert pool.submit(FakeResource.use).result() == 1


def test_used_up_resource_of_a_base_worker_is_replaced(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy, max_uses=1)
    pool.submit(FakeResource.use).result()
    ledger.wait_until_created(2)

    assert len(ledger.alive) == 1


# -- wait_ready --


def test_wait_ready_returns_when_the_base_workers_have_their_resources(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(5, min_workers=3, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.wait_ready()

    assert len(ledger.created) == 3


def test_wait_ready_blocks_while_a_resource_is_being_made(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, min_workers=1, on_create=create, on_destroy=ledger.destroy)
    gate.wait_until_held()
    with pytest.raises(ResourceCreationError, match="on_create has not returned") as caught:
        pool.wait_ready(timeout=0.01)
    gate.release()
    pool.wait_ready()

    assert caught.value.__cause__ is None
    assert len(ledger.created) == 1


def test_wait_ready_names_the_last_error_of_the_factory(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("connection refused")
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy)
    ledger.wait_until_attempted(1)
    eventually(lambda: pool.stats().create_failures > 0, "the failure to be counted")
    with pytest.raises(ResourceCreationError, match="connection refused") as caught:
        pool.wait_ready(timeout=0.01)

    assert caught.value.__cause__ is ledger.outage


def test_wait_ready_without_a_timeout_waits_for_create_timeout(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("connection refused")
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=0.05)

    with pytest.raises(ResourceCreationError):
        pool.wait_ready()


def test_wait_ready_after_an_outage_returns(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("connection refused")
    pool = make_pool(2, min_workers=2, on_create=ledger.create, on_destroy=ledger.destroy)
    ledger.wait_until_attempted(2)
    ledger.outage = None
    pool.wait_ready()

    assert len(ledger.created) == 2


def test_wait_ready_raises_when_the_executor_is_shut_down(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, min_workers=1, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.wait_ready()


# -- a check that raises --


def test_a_resource_whose_check_raises_is_replaced(make_pool: MakePool, ledger: Ledger) -> None:
    def check(resource: FakeResource) -> bool:
        if resource.number == 0:
            raise OSError("no answer")
        return True

    def work(resource: FakeResource) -> int:
        if resource.number == 0:
            raise ValueError("half an answer")
        return resource.number

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=check)

    assert isinstance(pool.submit(work).exception(DEADLINE), ValueError)
    assert pool.submit(work).result(DEADLINE) == 1


def test_a_mistake_that_two_hooks_make_at_once_is_logged_once(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # 1. Two workers find that the mistake was not logged. 2. Each notes that it logs it: one of them has to see the other.
    source = source_of(make_pool(1, on_create=ledger.create))
    hook = Rehashed("check_health")
    hook.meet = threading.Barrier(2)
    threads = [threading.Thread(target=source._note_mistake, args=(hook, None, "a Verdict")) for _ in range(2)]
    for thread in threads:
        thread.start()

    assert join_all(threads) == []
    assert len([message for message in caplog.messages if "a hook returned what it must not" in message]) == 1
