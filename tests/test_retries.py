"""A task whose resource broke is run again on another worker; its own error is delivered untouched."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, cause_of_stop, eventually
from tasker_executor import QueueFull, ResourceExecutor, current_task

Pool = ResourceExecutor[FakeResource]

GAVE_UP = "gave up after {} retries; the last resource broke, too"


@pytest.fixture
def pool(make_pool: MakePool, ledger: Ledger) -> Pool:
    """One worker, with the default of three retries."""
    return make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)


class Recovering:
    """A task that breaks its resource in its first runs, and then returns the number of the resource it runs on."""

    def __init__(self, bad_runs: int = 1) -> None:
        self._bad_runs = bad_runs
        self.resources: list[FakeResource] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, resource: FakeResource) -> int:
        self.resources.append(resource)
        self.threads.append(threading.current_thread())
        if len(self.resources) <= self._bad_runs:
            resource.break_down()
        return resource.use()


def queue_behind(pool: Pool, gate: Gate) -> None:
    """Occupy the only worker, so that what is submitted next stays queued until the gate opens."""
    pool.submit(gate.hold)
    gate.wait_until_held()


# -- where a retry runs --


def test_task_is_run_again_on_another_worker_and_another_resource(pool: Pool) -> None:
    task = Recovering()

    assert pool.submit(task).result() == 1
    assert [resource.number for resource in task.resources] == [0, 1]
    assert task.threads[0] is not task.threads[1]


def test_retry_does_not_wait_for_a_new_resource_if_another_worker_is_idle(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    def create() -> FakeResource:
        if ledger.attempts >= 2:
            gate.hold()
        return ledger.create()

    pool = make_pool(
        2,
        min_workers=2,
        on_create=create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=ledger.is_usable,
    )
    pool.wait_ready()
    result = pool.submit(Recovering()).result()

    assert result in {0, 1}


def test_task_may_be_retried_as_often_as_max_retries_says(pool: Pool) -> None:
    assert pool.submit(Recovering(bad_runs=3)).result() == 3
    assert pool.stats().retried == 3


def test_result_of_a_retried_task_is_an_ordinary_success(pool: Pool) -> None:
    future = pool.submit(Recovering())
    future.result()
    stats = pool.stats()

    assert (stats.submitted, stats.completed, stats.failed, stats.retried) == (1, 1, 0, 1)


def test_current_task_tells_the_attempt(pool: Pool) -> None:
    attempts: list[int] = []

    def task(resource: FakeResource) -> None:
        attempts.append(current_task().attempt)
        resource.break_down()

    pool.submit(task).exception()

    assert attempts == [1, 2, 3, 4]


# -- out of retries --


def test_out_of_retries_the_future_gets_the_original_exception_with_a_note(pool: Pool) -> None:
    raised: list[ResourceBroken] = []

    def task(_: FakeResource) -> None:
        error = ResourceBroken(len(raised))
        raised.append(error)
        raise error

    error = pool.submit(task).exception()

    assert error is not None
    assert error is raised[-1]
    assert vars(error)["__notes__"] == [GAVE_UP.format(3)]
    assert error.__cause__ is None
    assert len(raised) == 4


def test_exception_that_a_task_raises_anew_each_time_is_noted_once(pool: Pool) -> None:
    error = ResourceBroken("the same each time")

    def task(_: FakeResource) -> None:
        raise error

    assert pool.submit(task).exception() is error
    assert vars(error)["__notes__"] == [GAVE_UP.format(3)]


def test_last_attempt_that_fails_by_its_own_fault_gets_its_own_error(pool: Pool) -> None:
    def task(resource: FakeResource) -> None:
        if current_task().attempt == 1:
            resource.break_down()
        raise ValueError("mine")

    error = pool.submit(task).exception()

    assert isinstance(error, ValueError)
    assert "__notes__" not in vars(error)


def test_max_retries_zero_is_at_most_once(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=0)
    task = Recovering()
    error = pool.submit(task).exception()

    assert isinstance(error, ResourceBroken)
    assert len(task.resources) == 1
    assert "__notes__" not in vars(error)


def test_max_retries_of_a_view_counts_for_its_tasks_only(pool: Pool) -> None:
    once, often = Recovering(), Recovering()
    error = pool.with_options(max_retries=0).submit(once).exception()
    pool.submit(often).result()

    assert isinstance(error, ResourceBroken)
    assert (len(once.resources), len(often.resources)) == (1, 2)


def test_view_may_allow_more_retries_than_the_pool(pool: Pool) -> None:
    assert pool.with_options(max_retries=5).submit(Recovering(bad_runs=5)).result() == 5


# -- its place in the queue --


def test_retry_goes_to_the_front_of_its_lane(pool: Pool, gate: Gate) -> None:
    order: list[str] = []

    def poisoned(resource: FakeResource) -> None:
        order.append("poisoned")
        if current_task().attempt == 1:
            resource.break_down()

    queue_behind(pool, gate)
    futures: list[Future[None]] = [pool.submit(poisoned), pool.submit(lambda _: order.append("next"))]
    gate.release()
    for future in futures:
        future.result()

    assert order == ["poisoned", "poisoned", "next"]


def test_retry_of_a_normal_task_does_not_overtake_a_priority_task(pool: Pool, gate: Gate) -> None:
    order: list[str] = []

    def poisoned(resource: FakeResource) -> None:
        order.append("poisoned")
        if current_task().attempt == 1:
            pool.submit_priority(lambda _: order.append("urgent"))
            resource.break_down()

    queue_behind(pool, gate)
    futures: list[Future[None]] = [pool.submit(poisoned), pool.submit(lambda _: order.append("next"))]
    gate.release()
    for future in futures:
        future.result()

    assert order == ["poisoned", "urgent", "poisoned", "next"]


def test_retry_of_a_priority_task_stays_in_the_priority_lane(pool: Pool, gate: Gate) -> None:
    order: list[str] = []

    def poisoned(resource: FakeResource) -> None:
        order.append("poisoned")
        if current_task().attempt == 1:
            resource.break_down()

    queue_behind(pool, gate)
    futures: list[Future[None]] = [
        pool.submit(lambda _: order.append("normal")),
        pool.submit_priority(poisoned),
        pool.submit_priority(lambda _: order.append("urgent")),
    ]
    gate.release()
    for future in futures:
        future.result()

    assert order == ["poisoned", "poisoned", "urgent", "normal"]


def test_retry_needs_no_room_in_a_full_queue(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        max_queued=1,
        on_full="raise",
    )
    task = Recovering()

    def hold_and_run(resource: FakeResource) -> int:
        gate.hold()
        return task(resource)

    retried = pool.submit(hold_and_run)
    gate.wait_until_held()
    waiting = pool.submit(FakeResource.use)
    with pytest.raises(QueueFull):
        pool.submit(FakeResource.use)
    gate.release()

    assert (retried.result(), waiting.result()) == (1, 1)


def test_retry_passes_submitters_that_block_at_a_full_queue(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_queued=1, on_full="block"
    )
    order: list[str] = []

    def poisoned(resource: FakeResource) -> None:
        order.append("poisoned")
        gate.hold()
        if current_task().attempt == 1:
            resource.break_down()

    futures: list[Future[None]] = [pool.submit(poisoned)]
    gate.wait_until_held()
    futures.append(pool.submit(lambda _: order.append("queued")))
    blocked = threading.Thread(target=lambda: futures.append(pool.submit(lambda _: order.append("blocked"))))
    blocked.start()
    gate.release()
    blocked.join()
    for future in futures:
        future.result()

    assert order == ["poisoned", "poisoned", "queued", "blocked"]


# -- what a retry sees --


def test_retry_does_not_see_what_the_attempt_before_it_set(pool: Pool) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    seen: list[str] = []

    def task(resource: FakeResource) -> None:
        seen.append(request.get())
        request.set("a leftover")
        if current_task().attempt < 3:
            resource.break_down()

    request.set("the submitter's")
    pool.submit(task).result()

    assert seen == ["the submitter's"] * 3


def test_task_that_is_to_be_retried_is_running_and_cannot_be_cancelled(pool: Pool, gate: Gate, ledger: Ledger) -> None:
    first = Gate()

    def task(resource: FakeResource) -> int:
        if current_task().attempt == 1:
            first.hold()
            resource.break_down()
        return resource.use()

    with first:
        future = pool.submit(task)
        first.wait_until_held()
        pool.submit_priority(gate.hold)  # the successor runs this, and the retry waits
    gate.wait_until_held()

    assert future.running()
    assert not future.cancel()
    gate.release()
    assert future.result() == 1


def test_task_cancelled_between_two_attempts_by_shutdown_gets_its_last_error(pool: Pool, gate: Gate) -> None:
    first = Gate()

    def task(resource: FakeResource) -> None:
        first.hold()
        resource.break_down()

    with first:
        future = pool.submit(task)
        first.wait_until_held()
        pool.submit_priority(gate.hold)
    gate.wait_until_held()
    pool.shutdown(wait=False, cancel_futures=True)

    assert isinstance(future.exception(), ResourceBroken)


def test_drain_includes_retries(pool: Pool, gate: Gate) -> None:
    task = Recovering(bad_runs=2)

    queue_behind(pool, gate)
    future = pool.submit(task)
    pool.shutdown(wait=False)
    gate.release()

    assert future.result() == 2


def test_killed_pool_retries_nothing(pool: Pool, gate: Gate) -> None:
    task = Recovering()

    def hold_and_run(resource: FakeResource) -> int:
        gate.hold()
        return task(resource)

    future = pool.submit(hold_and_run)
    gate.wait_until_held()
    pool.kill()
    gate.release()

    assert isinstance(cause_of_stop(future), ResourceBroken)
    assert len(task.resources) == 1


# -- errors that are no Exception --


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_base_exception_goes_to_its_future_and_the_worker_lives_on(
    make_pool: MakePool, ledger: Ledger, kind: type[BaseException]
) -> None:
    asked: list[BaseException] = []

    def check_health(error: BaseException) -> bool:
        asked.append(error)
        return False

    def task(_: FakeResource) -> None:
        raise kind

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=check_health)
    worker = pool.submit(lambda _: threading.current_thread()).result()
    error = pool.submit(task).exception()

    assert type(error) is kind
    assert asked == []
    assert pool.submit(lambda _: threading.current_thread()).result() is worker


# -- poison --


def test_poison_task_takes_one_resource_and_one_more_for_each_retry(pool: Pool, ledger: Ledger) -> None:
    error = pool.submit(FakeResource.break_down).exception()
    pool.submit(FakeResource.use).result()

    assert isinstance(error, ResourceBroken)
    assert len(ledger.created) == 4 + 1


def test_other_tasks_flow_while_a_poison_task_takes_its_resources(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        4, min_workers=4, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=3
    )
    poison = [pool.submit(FakeResource.break_down) for _ in range(3)]
    others = [pool.submit(FakeResource.use) for _ in range(200)]
    for future in others:
        future.result()

    assert all(isinstance(future.exception(), ResourceBroken) for future in poison)
    pool.shutdown()
    assert sum(resource.broken for resource in ledger.created) == 3 * 4


# -- hooks that raise --


def test_check_health_that_raises_condemns_the_resource_and_not_the_task(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def check_health(error: BaseException) -> bool:
        raise LookupError("no such code")

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=check_health)
    error = pool.submit(FakeResource.break_down).exception()
    after = pool.submit(FakeResource.use).result()

    assert isinstance(error, ResourceBroken)
    assert after == 1
    assert pool.stats().retried == 0
    [record] = [record for record in caplog.records if "check_health raised" in record.message]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


def test_check_resource_that_raises_condemns_the_resource(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    def check_resource(resource: FakeResource) -> bool:
        if resource.broken:
            raise LookupError("no such code")
        return True

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=check_resource)
    error = pool.submit(FakeResource.break_down).exception()
    after = pool.submit(FakeResource.use).result()

    assert isinstance(error, ResourceBroken)
    assert after == 1
    assert pool.stats().retried == 0
    [record] = [record for record in caplog.records if "check_resource raised" in record.message]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


def test_check_resource_that_raises_before_a_task_costs_the_task_nothing(make_pool: MakePool, ledger: Ledger) -> None:
    def check_resource(resource: FakeResource) -> bool:
        if resource.number == 0:
            raise LookupError("no such code")
        return True

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=check_resource,
        check_after_idle=0,
        max_retries=0,
    )

    assert pool.submit(FakeResource.use).result() == 1


@pytest.mark.parametrize("hook", ["check_health", "check_resource"])
def test_a_hook_that_judges_an_error_may_wait_for_another_executor(make_pool: MakePool, hook: str, gate: Gate) -> None:
    # The hook runs inside of our code; but no lock is held, so a shutdown of another executor waits as anywhere else.
    done: list[str] = []

    def slowly() -> None:
        gate.hold()
        done.append("ran")

    def release_when_held() -> None:
        gate.wait_until_held()
        gate.release()

    def judge(_: object) -> bool:
        with ResourceExecutor(1) as other:
            other.submit(slowly)
            threading.Thread(target=release_when_held).start()
        done.append("shut down")
        return True

    def fail(_: object) -> None:
        raise ResourceBroken

    options: dict[str, Any] = {hook: judge}
    pool = make_pool(1, on_create=object, check_after_idle=100, **options)

    assert isinstance(pool.submit(fail).exception(DEADLINE), ResourceBroken)
    eventually(lambda: len(done) >= 2, "the hook to have waited")  # a check comes after the result
    assert done[:2] == ["ran", "shut down"]
