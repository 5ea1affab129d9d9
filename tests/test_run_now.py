"""`run_now`: a task in the calling thread, ahead of every queue, on a resource of the reserve."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine import patch_reserve_clock, reserve_of, source_of, stock_of
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, Watched, eventually
from tasker_executor import (
    NoCurrentTask,
    ResourceCreationError,
    ResourceExecutor,
    ShutdownTimeout,
    TaskCancelled,
    current_task,
)

Pool = ResourceExecutor[FakeResource]


@pytest.fixture(autouse=True)
def _any_thread(ledger: Ledger) -> None:
    """The pool's resources are used by whichever thread calls."""
    ledger.any_thread = True


class Background(Watched):
    """Calls a function in another thread; `result` is what it returned, or the error it raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__()
        self._function = function
        self._result: object = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except Exception as error:
            self._result = error

    def result(self) -> object:
        self.thread.join()
        return self._result


class CountingLock:
    """Says how often it is held."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.depth = 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self.depth += 1

    def __exit__(self, *exc_info: object) -> None:
        self.depth -= 1
        self._lock.release()


def hold_and_use(gate: Gate) -> Callable[[FakeResource], int]:
    def task(resource: FakeResource) -> int:
        gate.hold()
        return resource.use()

    return task


# -- where it runs, and on what --


def test_it_runs_in_the_calling_thread_and_returns_the_result(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)

    def task(resource: FakeResource, first: int, *, second: int) -> tuple[int, int, int, threading.Thread]:
        return resource.number, first, second, threading.current_thread()

    assert pool.run_now(task, 1, second=2) == (0, 1, 2, threading.current_thread())


def test_it_raises_what_the_task_raises(make_pool: MakePool, ledger: Ledger) -> None:
    error = ValueError("mine")

    def fail(_: FakeResource) -> None:
        raise error

    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=1
    )
    with pytest.raises(ValueError, match="mine") as caught:
        pool.run_now(fail)

    assert caught.value is error
    assert pool.run_now(FakeResource.use) == 0


def test_it_does_not_wait_for_busy_workers(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    waiting = pool.submit(FakeResource.use)

    assert pool.run_now(FakeResource.use) == 0
    assert not waiting.done()


def test_without_on_create_it_calls_the_function_as_given(make_pool: MakePool) -> None:
    assert make_pool(1).run_now(divmod, 7, 2) == (3, 1)


def test_resources_are_made_in_the_constructor(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=3)

    assert [resource.maker for resource in ledger.created] == [threading.current_thread()] * 3
    assert pool.stats().available_resources == 3


def test_constructor_that_cannot_make_all_resources_destroys_those_made_and_raises(ledger: Ledger) -> None:
    outage = OSError("connection refused")

    def create() -> FakeResource:
        if len(ledger.created) == 2:
            raise outage
        return ledger.create()

    with pytest.raises(ResourceCreationError) as caught:
        ResourceExecutor(1, min_workers=1, on_create=create, on_destroy=ledger.destroy, resource_pool_size=3)

    assert caught.value.__cause__ is outage
    assert len(ledger.created) == len(ledger.destroyed) == 2


def test_constructor_refuses_a_factory_that_returns_none() -> None:
    def create() -> object:
        return None

    with pytest.raises(ResourceCreationError) as caught:
        ResourceExecutor(1, on_create=create, resource_pool_size=1)

    assert "return the resource, or use initializer=" in str(caught.value.__cause__)


def test_resource_used_last_is_used_next(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=3)

    def nested(resource: FakeResource) -> tuple[int, int]:
        return resource.use(), pool.run_now(FakeResource.use)

    outer, inner = pool.run_now(nested)

    assert outer != inner
    assert {pool.run_now(FakeResource.use) for _ in range(5)} == {outer}


def test_resource_is_used_by_several_threads(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    results = [Background(lambda: pool.run_now(FakeResource.use)).result() for _ in range(3)]

    assert results == [0, 0, 0]


def test_no_two_calls_have_one_resource_at_the_same_time(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=2)
    calls = [Background(lambda: pool.run_now(hold_and_use(gate))) for _ in range(4)]
    gate.wait_until_held(4)
    available = pool.stats().available_resources
    gate.release()

    assert {call.result() for call in calls} == {0, 1, 2, 3}
    assert available == 0


# -- temporary resources --


def test_without_a_resource_pool_each_call_has_a_temporary_resource(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    results = [pool.run_now(FakeResource.use) for _ in range(3)]

    assert results == [0, 1, 2]
    assert ledger.destroyed == ledger.created


def test_call_that_finds_no_free_resource_gets_a_temporary_one(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    holder = Background(lambda: pool.run_now(hold_and_use(gate)))
    gate.wait_until_held()

    assert pool.run_now(FakeResource.use) == 1
    gate.release()
    assert holder.result() == 0


def test_no_more_resources_are_kept_than_the_resource_pool_has_room_for(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=2)
    calls = [Background(lambda: pool.run_now(hold_and_use(gate))) for _ in range(6)]
    gate.wait_until_held(6)
    gate.release()
    for call in calls:
        call.result()

    assert len(ledger.created) == 6
    assert len(ledger.alive) == pool.stats().available_resources == 2


def test_temporary_resource_is_made_used_and_destroyed_by_its_caller_alone(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    """1. A call gives its temporary resource back. 2. Another call of that moment must neither use nor destroy it."""
    ledger.any_thread = False

    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy)
    first = Background(lambda: pool.run_now(FakeResource.use))
    gate.wait_until_held()
    available = pool.stats().available_resources
    second = Background(lambda: pool.run_now(FakeResource.use))
    gate.wait_until_held(2)
    gate.release()

    assert (first.result(), second.result()) == (0, 1)
    assert available == 0
    assert [resource.maker for resource in ledger.created] == [first.thread, second.thread]
    assert [resource.destroyers for resource in ledger.created] == [[first.thread], [second.thread]]


def test_call_beside_a_full_pool_destroys_its_own_resource_and_no_other(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    """1. One call has the pool's resource, another a temporary one. 2. The pool's comes back first."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    with Gate() as later:
        owner = Background(lambda: pool.run_now(hold_and_use(gate)))
        gate.wait_until_held()
        guest = Background(lambda: pool.run_now(hold_and_use(later)))
        later.wait_until_held()
        gate.release()
        owner.result()
        later.release()
        guest.result()

    assert [resource.destroyers for resource in ledger.created] == [[], [guest.thread]]
    assert pool.run_now(FakeResource.use) == 0


def test_two_calls_that_find_one_vacancy_do_not_both_fill_it(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The pool lacks a resource. 2. Two calls find none free, and each makes one. 3. Both count, before either decides."""
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=1
    )
    stock = stock_of(pool)
    ledger.outage = OSError("connection refused")
    with pytest.raises(ResourceBroken):
        pool.with_options(max_retries=0).run_now(FakeResource.break_down)
    ledger.outage = None
    lock = CountingLock(source_of(pool).lock)
    monkeypatch.setattr(source_of(pool), "lock", lock)
    together = threading.Barrier(2)
    count = stock._count_kept

    def ask() -> int:
        if lock.depth == 0:  # nothing keeps the other call from asking, too
            together.wait()
        answer = count()
        if lock.depth == 0:
            together.wait()
        return answer

    monkeypatch.setattr(stock, "_count_kept", ask)
    calls = [Background(lambda: pool.run_now(hold_and_use(gate))) for _ in range(2)]
    gate.wait_until_held(2)
    gate.release()
    for call in calls:
        call.result()
    monkeypatch.undo()

    assert len(ledger.created) == 3
    assert len(ledger.alive) == pool.stats().available_resources == 1


def test_temporary_resource_that_cannot_be_made_is_an_error_of_the_call(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.outage = OSError("connection refused")
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)

    with pytest.raises(ResourceCreationError) as caught:
        pool.run_now(FakeResource.use)
    assert caught.value.__cause__ is ledger.outage


# -- health --


def test_broken_resource_is_destroyed_and_the_call_tried_again(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=1
    )
    ledger.created[0].broken = True

    assert pool.run_now(FakeResource.use) == 1
    assert ledger.destroyed == ledger.created[:1]


def test_broken_resource_is_replaced_and_never_handed_out_again(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        resource_pool_size=2,
        max_retries=0,
    )
    with pytest.raises(ResourceBroken):
        pool.run_now(FakeResource.break_down)
    [broken] = [resource for resource in ledger.created if resource.broken]
    uses_before = broken.uses
    for _ in range(10):
        pool.run_now(FakeResource.use)

    assert broken in ledger.destroyed
    assert broken.uses == uses_before
    assert pool.stats().available_resources == 2


def test_check_resource_condemns_a_resource_of_the_pool_as_well(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_resource=ledger.is_usable, resource_pool_size=1
    )
    ledger.created[0].broken = True

    with pytest.raises(ResourceBroken):
        pool.run_now(FakeResource.use)
    assert pool.run_now(FakeResource.use) == 1


def test_resource_that_lay_idle_is_checked_before_it_is_used(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=ledger.is_usable,
        check_after_idle=0,
        resource_pool_size=1,
        max_retries=0,
    )
    ledger.created[0].broken = True

    assert pool.run_now(FakeResource.use) == 1
    assert ledger.created[0].uses == 0


def test_break_in_a_worker_puts_the_resource_pool_under_suspicion(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=ledger.is_usable,
        check_after_idle=3600,
        resource_pool_size=1,
        max_retries=0,
    )
    ledger.created[0].broken = True
    pool.submit(FakeResource.break_down).exception()
    pool.run_now(FakeResource.use)

    assert ledger.created[0].uses == 0


def test_call_out_of_retries_raises_the_original_exception_with_a_note(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        resource_pool_size=1,
        max_retries=2,
    )
    with pytest.raises(ResourceBroken) as caught:
        pool.run_now(FakeResource.break_down)

    assert vars(caught.value)["__notes__"] == ["gave up after 2 retries; the last resource broke, too"]
    assert sum(resource.broken for resource in ledger.created) == 3
    assert pool.stats().available_resources == 1


def test_view_says_how_often_a_call_is_tried(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=1
    )
    with pytest.raises(ResourceBroken):
        pool.with_options(max_retries=0).run_now(FakeResource.break_down)

    assert sum(resource.broken for resource in ledger.created) == 1


def test_broken_resource_that_cannot_be_replaced_yet_is_replaced_later(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        resource_pool_size=1,
        max_retries=0,
    )
    ledger.outage = OSError("connection refused")
    with pytest.raises(ResourceBroken):
        pool.run_now(FakeResource.break_down)
    empty = pool.stats().available_resources
    ledger.outage = None
    pool.run_now(FakeResource.use)

    assert empty == 0
    assert pool.run_now(FakeResource.use) == 1
    assert pool.stats().available_resources == 1


def test_interrupted_call_gives_its_resource_back(make_pool: MakePool, ledger: Ledger) -> None:
    def interrupt(_: FakeResource) -> None:
        raise KeyboardInterrupt

    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=1
    )
    with pytest.raises(KeyboardInterrupt):
        pool.run_now(interrupt)

    assert pool.run_now(FakeResource.use) == 0


# -- age and uses --


def test_resource_of_the_pool_serves_max_uses_calls(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1, max_uses=2)

    assert [pool.run_now(FakeResource.use) for _ in range(5)] == [0, 0, 1, 1, 2]
    assert len(ledger.alive) == 1


@pytest.mark.parametrize("uses", [0, 1])
def test_resource_of_the_pool_that_is_too_old_is_replaced(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, uses: int
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1, max_age=1000)
    for _ in range(uses):
        pool.run_now(FakeResource.use)
    patch_reserve_clock(monkeypatch, lambda: time.perf_counter() + 1101)

    assert pool.run_now(FakeResource.use) == 1
    assert ledger.created[0].uses == uses
    assert pool.stats().available_resources == 1


# -- inside --


def test_current_task_is_the_call(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)

    def task(resource: FakeResource) -> tuple[str, bool, bool]:
        return current_task().worker_name, current_task().cancelled, pool.current_resource() is resource

    assert pool.run_now(task) == (threading.current_thread().name, False, True)


def test_after_the_call_there_is_no_current_task(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    pool.run_now(FakeResource.use)

    with pytest.raises(NoCurrentTask):
        current_task()


def test_nested_call_has_a_resource_of_its_own_and_gives_the_outer_one_back(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=2)

    def outer(resource: FakeResource) -> tuple[bool, bool]:
        inner = pool.run_now(lambda other: (other, pool.current_resource()))
        return inner[0] is inner[1] is not resource, pool.current_resource() is resource

    assert pool.run_now(outer) == (True, True)


def test_task_of_a_worker_may_call_it(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)

    def task(resource: FakeResource) -> tuple[int, int, bool]:
        return resource.use(), pool.run_now(FakeResource.use), pool.current_resource() is resource

    assert pool.submit(task).result() == (1, 0, True)


def test_view_without_the_resource_calls_the_function_as_given(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)

    assert pool.with_options(pass_resource=False).run_now(lambda: pool.current_resource().number) == 0


# -- the end --


def test_closed_executor_refuses_the_call(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    pool.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.run_now(FakeResource.use)
    assert ledger.destroyed == ledger.created


def test_closed_executor_without_resources_refuses_the_call(make_pool: MakePool) -> None:
    pool = make_pool(1)
    pool.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.run_now(int)


@pytest.mark.parametrize("size", [0, 1])
def test_shutdown_waits_for_a_call_in_another_thread_and_destroys_its_resource(
    make_pool: MakePool, ledger: Ledger, gate: Gate, size: int
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=size)
    call = Background(lambda: pool.run_now(hold_and_use(gate)))
    gate.wait_until_held()
    with pytest.raises(ShutdownTimeout, match="run_now"):
        pool.shutdown(timeout=0.01)
    destroyed_early = list(ledger.destroyed)
    gate.release()
    pool.shutdown()

    assert destroyed_early == []
    assert ledger.destroyed == ledger.created
    assert call.result() == 0


def test_shutdown_waits_for_a_call_whose_resource_is_still_being_made(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy)
    call = Background(lambda: pool.run_now(FakeResource.use))
    gate.wait_until_held()
    with pytest.raises(ShutdownTimeout):
        pool.shutdown(timeout=0.01)
    gate.release()
    pool.shutdown()

    assert call.result() == 0
    assert len(ledger.destroyed) == 1


def test_shutdown_waits_for_a_call_that_is_tried_again(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def create() -> FakeResource:
        if ledger.created:
            gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, resource_pool_size=1)
    ledger.created[0].broken = True
    call = Background(lambda: pool.run_now(FakeResource.use))
    gate.wait_until_held()
    with pytest.raises(ShutdownTimeout):
        pool.shutdown(timeout=0.01)
    gate.release()
    pool.shutdown()

    assert call.result() == ledger.created[-1].number > 0
    assert len(ledger.destroyed) == len(ledger.created)


def test_shutdown_from_inside_a_call_does_not_wait_for_itself(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)

    def task(resource: FakeResource) -> int:
        pool.shutdown(timeout=10)
        return resource.use()

    assert pool.run_now(task) == 0
    assert ledger.destroyed == ledger.created


def test_shutdown_does_not_wait_for_a_call_that_was_interrupted_in_a_check(make_pool: MakePool, ledger: Ledger) -> None:
    def check_resource(resource: FakeResource) -> bool:
        raise KeyboardInterrupt

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_resource=check_resource,
        check_after_idle=0,
        resource_pool_size=1,
    )
    with pytest.raises(KeyboardInterrupt):
        pool.run_now(FakeResource.use)
    pool.shutdown(timeout=10)

    assert ledger.destroyed == ledger.created


def test_kill_reaches_a_call_in_another_thread(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    aborted: list[FakeResource] = []

    def task(_: FakeResource) -> None:
        gate.hold()
        current_task().raise_if_cancelled()

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        on_abort=aborted.append,
        resource_pool_size=2,
    )
    call = Background(lambda: pool.run_now(task))
    gate.wait_until_held()
    pool.kill()
    eventually(lambda: len(aborted) == 1, "the abort")
    gate.release()

    assert isinstance(call.result(), TaskCancelled)
    assert len(aborted) == 1
    eventually(lambda: len(ledger.destroyed) == 2, "both resources to be destroyed")


def test_shutdown_waits_for_a_resource_that_another_shutdown_is_destroying(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    """1. One thread's shutdown has taken the free resource, and is destroying it. 2. Another thread's waits for the end."""

    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, resource_pool_size=1)
    other = Background(lambda: pool.shutdown(wait=False))
    gate.wait_until_held()
    with pytest.raises(ShutdownTimeout):
        pool.shutdown(timeout=0.01)
    gate.release()
    pool.shutdown()

    assert ledger.destroyed == ledger.created
    assert other.result() is None


def test_resource_that_an_interrupted_call_has_left_is_destroyed_and_not_handed_out(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A shutdown begins while a call runs. 2. That gives its resource back, and Ctrl-C keeps it from clearing up.
    3. The shutdown sees the call gone, and destroys what is left. 4. A call comes that has been accepted before all this.
    """

    def be_interrupted(place: object) -> None:
        raise KeyboardInterrupt

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    resources = reserve_of(pool)
    monkeypatch.setattr(resources, "_leave", be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.run_now(lambda _: pool.shutdown(wait=False))
    monkeypatch.undo()

    assert resources.wait_until_returned(None)
    assert ledger.destroyed == ledger.created
    with pytest.raises(RuntimeError, match="after shutdown"):
        resources.run(FakeResource.use, (), {}, None)


# -- which call waits for which --


def test_two_calls_that_both_shut_down_do_not_wait_for_each_other(make_pool: MakePool, ledger: Ledger) -> None:
    """Each shutdown begins when the other call is inside, so each would wait for the end of the other."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=2)
    both_inside = threading.Barrier(2)

    def task(resource: FakeResource) -> int:
        both_inside.wait()
        pool.shutdown(timeout=DEADLINE)
        return resource.use()

    calls = [Background(lambda: pool.run_now(task)) for _ in range(2)]

    assert {call.result() for call in calls} == {0, 1}
    pool.shutdown(timeout=DEADLINE)
    assert len(ledger.destroyed) == 2


def test_shutdown_outside_waits_for_a_call_that_waits_in_shutdown(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    """1. A call waits, in shutdown, for another one. 2. A thread in no call waits for both."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=2)
    resources = reserve_of(pool)
    with Gate() as later:

        def task(resource: FakeResource) -> int:
            pool.shutdown(timeout=DEADLINE)
            later.hold()
            return resource.use()

        other = Background(lambda: pool.run_now(hold_and_use(gate)))
        gate.wait_until_held()
        call = Background(lambda: pool.run_now(task))
        places = resources._places
        eventually(lambda: any(place.waiting for place in places.others(places.arrive())), "the call to wait in shutdown")
        with pytest.raises(ShutdownTimeout) as caught:
            pool.shutdown(timeout=0.01)
        gate.release()
        later.wait_until_held()
        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.01)
        later.release()
        pool.shutdown(timeout=DEADLINE)

    assert other.thread.name in str(caught.value)
    assert call.thread.name in str(caught.value)
    assert len(ledger.destroyed) == 2
    assert isinstance(call.result(), int)


def test_thread_that_has_ended_is_not_waited_for(make_pool: MakePool, ledger: Ledger) -> None:
    """A greenlet that is never resumed leaves its call without a step of ours."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    resources = reserve_of(pool)

    def vanish() -> None:
        resources._places.arrive().calls += 1

    Background(vanish).result()
    pool.shutdown(timeout=DEADLINE)

    assert ledger.destroyed == ledger.created


def test_a_thread_that_ends_while_it_is_looked_at(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A look at a place finds its thread. 2. The thread ends. 3. Another look would find none."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, resource_pool_size=1)
    places = reserve_of(pool)._places
    call = Background(lambda: pool.run_now(gate.hold))
    gate.wait_until_held()
    mine = places.arrive()
    looks: list[threading.Thread] = []
    monkeypatch.setattr(type(mine), "thread", property(lambda _: looks.pop() if looks else None))

    looks.append(call.thread)
    names = places.names(mine)
    looks.append(call.thread)
    waited_for = places.others(mine, daemons=False)

    assert names == [call.thread.name]
    assert [place.ident for place in waited_for] == [call.thread.ident]


def test_two_shutdowns_that_destroy_what_is_left_wait_for_each_others_hooks(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    """1. An interrupted call has left its resource. 2. Two shutdowns see no thread inside. 3. One of them destroys it."""

    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, resource_pool_size=1)
    stock_of(pool).free.clear()  # as if it were lost
    other = Background(lambda: pool.shutdown(timeout=DEADLINE))
    gate.wait_until_held()
    with pytest.raises(ShutdownTimeout):
        pool.shutdown(timeout=0.01)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert other.result() is None
    assert ledger.destroyed == ledger.created


# -- hooks that raise what is no Exception --

ODD = [StopIteration, SystemExit, GeneratorExit, asyncio.CancelledError]


@pytest.mark.parametrize("error", ODD)
@pytest.mark.parametrize("size", [0, 1])
def test_on_destroy_that_raises_anything_costs_nothing_else(
    make_pool: MakePool, ledger: Ledger, error: type[BaseException], size: int
) -> None:
    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        raise error

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, max_uses=1, resource_pool_size=size)
    results = [Background(lambda: pool.run_now(FakeResource.use)).result() for _ in range(3)]
    Background(lambda: pool.shutdown(timeout=DEADLINE)).result()

    assert results == [0, 1, 2]
    assert pool.stats().resources_created == pool.stats().resources_destroyed


@pytest.mark.parametrize("error", ODD)
def test_on_create_that_raises_anything_loses_nothing(make_pool: MakePool, ledger: Ledger, error: type[BaseException]) -> None:
    ledger.outage = error()
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    caught: list[BaseException] = []

    def call() -> None:
        try:
            pool.run_now(FakeResource.use)
        except BaseException as raised:
            caught.append(raised)

    Background(call).result()
    ledger.outage = None

    assert isinstance(caught[0], (error, ResourceCreationError))
    assert pool.run_now(FakeResource.use) == 0


@pytest.mark.parametrize("error", ODD)
def test_refill_whose_on_create_raises_anything_is_logged_and_made_good_later(
    make_pool: MakePool, ledger: Ledger, error: type[BaseException]
) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        resource_pool_size=1,
        max_retries=0,
    )
    ledger.outage = error()
    raised = Background(lambda: pool.run_now(FakeResource.break_down)).result()
    ledger.outage = None

    assert isinstance(raised, ResourceBroken)
    assert pool.run_now(FakeResource.use) == 1
    assert pool.stats().available_resources == 1
