"""`refresh`: every resource is replaced, between two tasks. `current_slot`: the number of a worker's place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest

from doors import Door, door, hooks_of, pool_of
from engine import core_of, free_resources, idle_workers, reserve_of, shorten_pauses, source_of, workers_of
from races import wait_until_idle
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually, join_all
from tasker_executor import NoCurrentTask, Observer, ResourceCreationError, ResourceExecutor, WorkerEvent, current_slot
from tasker_executor.testing import InlineExecutor

__all__ = ["door"]

REFRESHED = "the resources were refreshed"


def use(resource: FakeResource) -> int:
    return resource.use()


class Ends(Observer):
    """Notes why workers ended."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def worker_ended(self, event: WorkerEvent) -> None:
        self.reasons.append(event.reason)


# -- refresh --


def test_the_resource_of_an_idle_worker_is_replaced_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    ends = Ends()
    pool = pool_of(make_pool, ledger, 1, observers=[ends])
    pool.submit(use).result(DEADLINE)
    wait_until_idle(pool)
    pool.refresh()
    ledger.wait_until_destroyed(1)

    assert pool.submit(use).result(DEADLINE) == 1
    assert ends.reasons == [REFRESHED]
    assert pool.stats().workers_replaced == 1


def test_all_idle_workers_are_replaced(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = pool_of(make_pool, ledger, 4)
    for _ in range(4):
        pool.submit(gate.hold)
    gate.wait_until_held(4)
    gate.release()
    eventually(lambda: len(idle_workers(pool)) == 4, "all workers to rest")
    pool.refresh()
    ledger.wait_until_destroyed(4)

    assert pool.submit(use).result(DEADLINE) >= 4


def test_base_workers_are_replaced(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 3, min_workers=2)
    pool.wait_ready()
    pool.refresh()
    ledger.wait_until_destroyed(2)
    ledger.wait_until_created(4)
    pool.wait_ready()

    assert [resource.number for resource in ledger.alive] == [2, 3]
    assert len(workers_of(pool)) == 2


def test_a_busy_worker_is_replaced_after_its_task(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ends = Ends()
    pool = pool_of(make_pool, ledger, 1, observers=[ends])

    def hold(resource: FakeResource) -> int:
        gate.hold()
        return resource.use()

    held = pool.submit(hold)
    gate.wait_until_held()
    before = pool.submit(use)
    pool.refresh()
    after = pool.submit(use)

    assert not held.done()
    assert ledger.destroyed == []
    gate.release()
    assert (held.result(DEADLINE), before.result(DEADLINE), after.result(DEADLINE)) == (0, 1, 1)
    assert ends.reasons == [REFRESHED]


def test_a_busy_worker_is_replaced_after_its_task_though_nothing_waits(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = pool_of(make_pool, ledger, 1, min_workers=1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.refresh()
    gate.release()
    ledger.wait_until_destroyed(1)
    ledger.wait_until_created(2)


@pytest.mark.parametrize("careful", [False, True], ids=["", "with a reset"])
def test_a_resource_that_is_being_made_serves_no_task(make_pool: MakePool, ledger: Ledger, gate: Gate, careful: bool) -> None:
    # 1. A worker reads the credentials. 2. They are rotated, and `refresh` is called. 3. It connects, with the old ones.
    def create() -> FakeResource:
        if ledger.attempts == 0:
            ledger.attempts += 1
            gate.hold()
        return ledger.create()

    options: dict[str, Any] = {**hooks_of(ledger), "on_create": create}
    if careful:
        options["on_reset"] = use
    pool = pool_of(make_pool, ledger, 1, **options)
    before = pool.submit(use)
    gate.wait_until_held()
    pool.refresh()
    after = pool.submit(use)
    gate.release()

    assert (before.result(DEADLINE), after.result(DEADLINE)) == (1, 1)
    assert ledger.created[0].uses == 0


def test_the_flag_stays_up_while_a_resource_is_being_made(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    """Another worker, which is new already, must not tell all workers that there is nothing to look for."""

    def create() -> FakeResource:
        first = ledger.attempts == 0
        if first:
            ledger.attempts += 1
            gate.hold()
        resource = ledger.create()
        if first:
            stale.append(resource)
        return resource

    stale: list[FakeResource] = []
    pool = pool_of(make_pool, ledger, 2, on_create=create)
    old = pool.submit(use)
    gate.wait_until_held()
    pool.refresh()
    others = [pool.submit(use) for _ in range(3)]
    results = {future.result(DEADLINE) for future in [*others, old]}
    gate.release()
    ledger.wait_until_created(2)
    results |= {pool.submit(use).result(DEADLINE) for _ in range(5)}

    assert stale[0].uses == 0
    assert stale[0].number not in results


def test_a_refresh_twice_in_a_row_replaces_once_or_twice_and_ends(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 2, min_workers=2)
    pool.wait_ready()
    pool.refresh()
    pool.refresh()
    pool.wait_ready()
    old = set(ledger.created[:2])
    eventually(lambda: not old & set(ledger.alive), "the first resources to go")
    eventually(lambda: len(ledger.alive) == 2, "two resources")

    assert len(ledger.created) in {4, 5, 6}
    assert pool.submit(use).result(DEADLINE) >= 2


def test_a_refresh_during_an_outage_fails_no_task(make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch, 0.001, 0.01)
    pool = pool_of(make_pool, ledger, 2, min_workers=1)
    pool.wait_ready()
    ledger.outage = OSError("down")
    pool.refresh()
    ledger.wait_until_destroyed(1)
    waiting = pool.submit(use)
    ledger.wait_until_attempted(4)
    pool.refresh()

    assert not waiting.done()
    ledger.outage = None
    assert waiting.result(DEADLINE) >= 1


def test_a_refresh_without_resources_does_nothing(gate: Gate) -> None:
    with ResourceExecutor(1) as pool:
        pool.submit(int).result(DEADLINE)
        worker = wait_until_idle(pool)
        pool.refresh()
        assert pool.submit(int).result(DEADLINE) == 0
        assert worker in workers_of(pool)
    with InlineExecutor() as inline:
        inline.refresh()
        assert inline.submit(int).result() == 0


def test_a_refresh_after_the_end_does_nothing(door: Door, ledger: Ledger) -> None:
    ledger.any_thread = True
    options = {} if door.inline else {"resource_pool_size": 1}
    pool = door.open(**hooks_of(ledger), **options)
    door.call(use)
    made = len(ledger.created)
    pool.shutdown()
    pool.refresh()

    assert len(ledger.created) == made
    assert pool.stats().state == "closed"


def test_a_refresh_while_the_executor_drains_replaces_what_is_still_needed(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=1)
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    waiting = pool.submit(use)
    pool.shutdown(wait=False)
    pool.refresh()
    gate.release()

    assert held.result(DEADLINE) is None
    assert waiting.result(DEADLINE) == 2
    pool.shutdown(timeout=DEADLINE)
    assert len(ledger.created) == 3


def test_a_retry_after_a_refresh_runs_on_a_new_resource(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def work(resource: FakeResource) -> int:
        if resource.number == 0:
            gate.hold()
            resource.break_down()
        return resource.use()

    pool = pool_of(make_pool, ledger, 1)
    future = pool.submit(work)
    gate.wait_until_held()
    pool.refresh()
    gate.release()

    assert future.result(DEADLINE) == 1
    assert pool.stats().retried == 1


def test_refresh_may_be_called_from_a_task(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 1)

    def rotate(resource: FakeResource) -> int:
        pool.refresh()
        return resource.use()

    assert pool.submit(rotate).result(DEADLINE) == 0
    assert pool.submit(use).result(DEADLINE) == 1


def test_a_task_that_waits_keeps_its_place_in_a_refresh(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ran: list[int] = []
    pool = pool_of(make_pool, ledger, 1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    def note(_: FakeResource, number: int) -> None:
        ran.append(number)

    futures = [pool.submit(note, number) for number in range(5)]
    pool.refresh()
    gate.release()
    for future in futures:
        future.result(DEADLINE)

    assert ran == [0, 1, 2, 3, 4]


def test_the_flag_comes_down_when_all_is_new(make_pool: MakePool, ledger: Ledger) -> None:
    # Or each task would cost a look under the lock for ever.
    pool = pool_of(make_pool, ledger, 1)
    pool.submit(use).result(DEADLINE)
    wait_until_idle(pool)
    pool.refresh()
    for _ in range(2):
        pool.submit(use).result(DEADLINE)

    assert core_of(pool).crew.leave == []


# -- the reserve --


def test_the_free_resources_of_the_reserve_are_replaced_at_once(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=2)
    pool.refresh()

    assert [resource.number for resource in ledger.destroyed] == [0, 1]
    assert [resource.number for resource in ledger.alive] == [2, 3]
    assert pool.stats().available_resources == 2
    ledger.any_thread = True
    assert pool.run_now(use) in {2, 3}


@pytest.mark.parametrize("options", [{}, {"max_uses": 100}], ids=["no care", "care"])
@pytest.mark.parametrize("ending", ["returns", "raises"])
def test_a_resource_of_the_reserve_that_is_in_use_is_replaced_after_its_call(
    make_pool: MakePool, ledger: Ledger, options: dict[str, Any], ending: str
) -> None:
    # 1. A call without care is under way. 2. `refresh` finds no free resource. 3. The call puts an old one on the stack.
    ledger.any_thread = True
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=1, **options)

    def work(resource: FakeResource) -> int:
        pool.refresh()
        if ending == "raises":
            raise LookupError
        return resource.use()

    if ending == "raises":
        with pytest.raises(LookupError):
            pool.run_now(work)
    else:
        assert pool.run_now(work) == 0

    assert [resource.number for resource in ledger.destroyed] == [0]
    assert pool.stats().available_resources == 1
    assert pool.run_now(use) == 1


def test_two_calls_that_are_under_way_leave_no_old_resource(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ledger.any_thread = True
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=2)
    threads = [threading.Thread(target=pool.run_now, args=(gate.hold,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    gate.wait_until_held(2)
    pool.refresh()
    assert ledger.destroyed == []
    gate.release()
    assert join_all(threads) == []

    # Both calls replace what is stale. One may make what the other is about to make, which is then not kept.
    assert {resource.number for resource in ledger.destroyed} >= {0, 1}
    assert pool.stats().available_resources == len(ledger.alive) == 2


def test_a_temporary_resource_goes_after_its_call_as_ever(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = pool_of(make_pool, ledger, 1)

    def work(resource: FakeResource) -> int:
        pool.refresh()
        return resource.use()

    assert [pool.run_now(work) for _ in range(2)] == [0, 1]
    assert len(ledger.destroyed) == 2


def test_a_resource_of_the_reserve_that_is_being_made_is_replaced_before_it_serves_another_call(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. A call has used a resource up, and makes another. 2. `refresh` finds no free one.
    ledger.any_thread = True
    first = threading.Event()

    def create() -> FakeResource:
        if len(ledger.created) == 1 and not first.is_set():
            first.set()
            gate.hold()
        return ledger.create()

    pool = pool_of(make_pool, ledger, 1, on_create=create, resource_pool_size=1, max_uses=1)
    threads = [threading.Thread(target=pool.run_now, args=(use,))]
    threads[0].start()
    gate.wait_until_held()
    pool.refresh()
    gate.release()
    assert join_all(threads) == []

    # `refresh` has made one, too, for the one that was missing. The one that was being made all the time is not kept.
    assert pool.run_now(use) == 1
    assert ledger.created[2].uses == 0
    assert ledger.created[2] in ledger.destroyed


def test_a_resource_of_the_reserve_that_cannot_be_replaced_yet_is_logged_and_made_later(
    make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.any_thread = True
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=1)
    ledger.outage = OSError("down")
    pool.refresh()

    assert pool.stats().available_resources == 0
    assert [record.levelname for record in caplog.records if "cannot replace a resource" in record.message] == ["WARNING"]
    with pytest.raises(ResourceCreationError):
        pool.run_now(use)
    ledger.outage = None
    assert pool.run_now(use) == 1
    assert pool.stats().available_resources == 1


def test_a_refresh_during_an_outage_tries_to_make_one_resource_alone(make_pool: MakePool, ledger: Ledger) -> None:
    # An attempt may take long, and blocks the caller.
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=3)
    ledger.outage = OSError("down")
    pool.refresh()

    assert ledger.attempts == 4
    assert len(ledger.destroyed) == 3


def test_calls_fill_a_reserve_that_a_refresh_has_left_empty(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=2)
    ledger.outage = OSError("down")
    pool.refresh()
    ledger.outage = None
    pool.run_now(use)

    assert pool.stats().available_resources == 2


def test_a_refresh_destroys_one_resource_at_a_time(make_pool: MakePool, ledger: Ledger) -> None:
    # Calls of other threads go on with what is left.
    alive: list[int] = []

    def create() -> FakeResource:
        alive.append(len(ledger.alive))
        return ledger.create()

    pool = pool_of(make_pool, ledger, 1, on_create=create, resource_pool_size=3)
    pool.refresh()

    assert alive == [0, 1, 2, 2, 2, 2]


def test_a_broken_resource_that_cannot_be_replaced_yet_is_made_by_a_later_call(make_pool: MakePool, ledger: Ledger) -> None:
    def work(resource: FakeResource) -> None:
        ledger.outage = OSError("down")
        resource.break_down()

    pool = pool_of(make_pool, ledger, 1, resource_pool_size=2, max_retries=0, max_uses=100)
    with pytest.raises(ResourceBroken):
        pool.run_now(work)
    assert pool.stats().available_resources == 1
    ledger.outage = None
    pool.run_now(use)

    assert pool.stats().available_resources == 2


def test_a_refresh_after_an_interrupted_one_goes_on(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=2)
    ledger.outage = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pool.refresh()
    ledger.outage = None
    pool.refresh()
    ledger.any_thread = True

    assert pool.run_now(use) == 3
    assert len(ledger.destroyed) == 2
    assert pool.stats().available_resources == 2


def test_inline_resources_are_replaced(ledger: Ledger) -> None:
    with InlineExecutor(**hooks_of(ledger)) as pool:
        assert pool.submit(use).result() == 0
        pool.refresh()
        assert [resource.number for resource in ledger.destroyed] == [0]
        assert pool.submit(use).result() == 1

        def rotate(resource: FakeResource) -> int:
            pool.refresh()
            return resource.use()

        assert pool.submit(rotate).result() == 1
        assert pool.submit(use).result() == 2
        assert pool.run_now(rotate) == 2
        assert pool.run_now(use) == 3
    assert pool.stats().resources_created == pool.stats().resources_destroyed == 4


# -- races --


def test_a_task_that_is_submitted_after_a_refresh_meets_no_older_resource(make_pool: MakePool) -> None:
    """Several threads rotate, submit and call at the same time."""
    lock = threading.Lock()
    epochs = [0]

    class Resource:
        def __init__(self) -> None:
            self.epoch = epochs[0]

    def epoch_of(resource: Resource) -> int:
        return resource.epoch

    stale: list[tuple[str, int, int]] = []
    stop = threading.Event()
    pool: Any = make_pool(4, on_create=Resource, resource_pool_size=2, min_workers=1)

    def rotate() -> None:
        for _ in range(60):
            with lock:
                epochs[0] += 1
            pool.refresh()
            done[0] = max(done[0], epochs[0] - 1)
        stop.set()

    done = [0]

    def submit(how: str) -> None:
        while not stop.is_set():
            least = done[0]
            got = pool.run_now(epoch_of) if how == "run_now" else pool.submit(epoch_of).result(DEADLINE)
            if got < least:
                stale.append((how, got, least))

    def burst() -> None:
        while not stop.is_set():
            least = done[0]
            futures = [pool.submit(epoch_of) for _ in range(20)]
            stale.extend(("burst", got, least) for future in futures if (got := future.result(DEADLINE)) < least)

    threads = [threading.Thread(target=submit, args=(how,)) for how in ("submit", "run_now", "run_now")]
    threads += [threading.Thread(target=burst), threading.Thread(target=rotate)]
    for thread in threads:
        thread.start()
    assert join_all(threads) == []
    pool.shutdown(timeout=DEADLINE)

    assert stale == []
    stats = pool.stats()
    assert stats.resources_created == stats.resources_destroyed
    assert stats.submitted == stats.completed


def test_threads_that_refresh_at_the_same_time_leave_the_reserve_full(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    pool = pool_of(make_pool, ledger, 2, resource_pool_size=3)
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait(DEADLINE)
        for _ in range(20):
            pool.refresh()
            pool.run_now(use)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert join_all(threads) == []
    newest = source_of(pool).epoch
    pool.refresh()

    assert newest == 80
    assert pool.stats().available_resources == 3
    free = free_resources(pool)
    assert free is not None
    assert {holding.epoch for holding in free} == {81}
    assert len(ledger.alive) == 3


@pytest.mark.parametrize("why", ["stale", "unfit"])
def test_calls_fill_a_reserve_of_which_one_call_has_found_several_unfit(make_pool: MakePool, ledger: Ledger, why: str) -> None:
    # 1. All resources have gone stale together. 2. A call takes one after the other, and makes one. 3. Three are promised.
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=3, check_resource=ledger.is_usable, check_after_idle=0)
    if why == "stale":
        source_of(pool).refresh()
    else:
        for resource in ledger.created:
            resource.broken = True

    assert pool.run_now(use) == 3
    assert len(ledger.destroyed) == 3
    assert pool.stats().available_resources == 2  # no caller waits for more than one
    pool.run_now(use)
    assert pool.stats().available_resources == 3
    pool.run_now(use)
    assert len(ledger.created) == 6


def test_a_reserve_that_could_not_be_filled_is_filled_by_a_later_call(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=3, max_uses=100)
    ledger.outage = OSError("down")
    source_of(pool).refresh()
    with pytest.raises(ResourceCreationError):
        pool.run_now(use)
    assert pool.stats().available_resources == 0
    ledger.outage = None

    assert pool.run_now(use) == 3
    pool.run_now(use)
    assert pool.stats().available_resources == 3


def test_a_refresh_fills_the_reserve(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=2)
    ledger.outage = OSError("down")
    pool.refresh()
    ledger.outage = None
    pool.refresh()

    assert pool.stats().available_resources == 2


def test_a_call_that_ends_while_the_executor_refreshes_leaves_no_old_resource(make_pool: MakePool, ledger: Ledger) -> None:
    # 1. `refresh` has put the flag up. 2. A call ends, and puts its resource on the stack. 3. `refresh` looks at the stack.
    ledger.any_thread = True
    pool = pool_of(make_pool, ledger, 1, resource_pool_size=1)
    reserve = reserve_of(pool)
    source_of(pool).refresh()
    reserve._care = True
    pool.run_now(use)  # it sees the flag: a call with care
    reserve.refresh()

    assert [resource.number for resource in ledger.alive] == [1]
    assert pool.stats().available_resources == 1


def test_a_worker_that_takes_a_task_while_the_executor_refreshes_gives_it_back_or_began_before(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The epoch is new, the flag is down. 2. A worker runs a task on an old resource: it was submitted before the refresh
    # returned. 3. The flag goes up. 4. A task that is submitted now runs on a new one.
    pool = pool_of(make_pool, ledger, 1)
    pool.submit(use).result(DEADLINE)
    source_of(pool).refresh()
    during = pool.submit(use).result(DEADLINE)
    core_of(pool).crew.refresh()
    after = pool.submit(use).result(DEADLINE)

    assert (during, after) == (0, 1)


# -- current_slot --


def slot(*_: object) -> int:
    return current_slot()


def no_slot() -> bool:
    try:
        current_slot()
    except NoCurrentTask as error:
        return "there is no slot: this was not called on the thread of a worker, or from inside run_now" in str(error)
    return False


def test_tasks_know_the_slot_of_their_worker(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3)
    barrier = threading.Barrier(3)

    def work() -> int:
        barrier.wait(DEADLINE)
        return current_slot()

    assert sorted(future.result(DEADLINE) for future in [pool.submit(work) for _ in range(3)]) == [0, 1, 2]


def test_all_that_is_called_on_the_thread_of_a_worker_knows_its_slot(make_pool: MakePool) -> None:
    seen: list[tuple[str, int]] = []

    def note(what: str, result: Any = None) -> Callable[..., Any]:
        def hook(*_: object) -> Any:
            seen.append((what, current_slot()))
            return result

        return hook

    @contextmanager
    def around(_: object) -> Generator[None]:
        seen.append(("enter", current_slot()))
        yield
        seen.append(("leave", current_slot()))

    def fail(_: object) -> None:
        raise LookupError

    pool = make_pool(
        1,
        initializer=note("initializer"),
        on_create=note("create", object()),
        on_destroy=note("destroy"),
        check_health=note("judge", True),
        check_resource=note("check", True),
        on_reset=note("reset"),
        around=around,
    )
    pool.submit(note("task")).result(DEADLINE)
    pool.submit(fail).exception(DEADLINE)
    wait_until_idle(pool)
    pool.shutdown()

    assert {number for _, number in seen} == {0}
    names = [what for what, _ in seen]
    assert names[:5] == ["initializer", "create", "enter", "task", "leave"]
    assert set(names) == {"initializer", "create", "enter", "task", "leave", "reset", "judge", "check", "destroy"}


def test_slots_are_below_the_number_of_workers(make_pool: MakePool, ledger: Ledger) -> None:
    """Though workers break, age and come again."""
    seen: set[int] = set()

    def work(resource: FakeResource, number: int) -> None:
        seen.add(current_slot())
        if number % 7 == 0:
            resource.break_down()

    pool = pool_of(make_pool, ledger, 3, max_uses=5, max_retries=0)
    futures = [pool.submit(work, number) for number in range(200)]
    for future in futures:
        future.exception(DEADLINE)

    assert seen <= {0, 1, 2}


def test_no_two_resources_have_a_slot_at_the_same_time(make_pool: MakePool) -> None:
    lock = threading.Lock()
    taken: set[int] = set()
    clashes: list[int] = []

    def create() -> int:
        number = current_slot()
        with lock:
            if number in taken:
                clashes.append(number)
            taken.add(number)
        return number

    def destroy(number: int) -> None:
        with lock:
            taken.discard(number)
        assert number == current_slot()

    pool = make_pool(4, on_create=create, on_destroy=destroy, max_uses=1)
    for future in [pool.submit(lambda number: None) for _ in range(300)]:
        future.result(DEADLINE)
    pool.shutdown()

    assert clashes == []
    assert taken == set()


def test_a_successor_has_the_slot_once_the_resource_of_its_predecessor_is_destroyed(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    # 1. Worker 0 destroys its resource, and hangs in that. 2. Another worker may start: it has slot 1.
    def destroy(resource: FakeResource) -> None:
        if resource.number == 0:
            gate.hold()
        ledger.destroy(resource)

    pool = pool_of(make_pool, ledger, 2, on_destroy=destroy, max_uses=1)
    assert pool.submit(slot).result(DEADLINE) == 0
    gate.wait_until_held()
    during = [pool.submit(slot).result(DEADLINE) for _ in range(3)]
    gate.release()
    eventually(lambda: len(workers_of(pool)) == 0, "both workers to end")

    assert during == [1, 1, 1]
    assert pool.submit(slot).result(DEADLINE) == 0


def test_with_one_worker_the_successor_waits_for_its_slot(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = pool_of(make_pool, ledger, 1, on_destroy=destroy, max_uses=1)
    pool.submit(slot).result(DEADLINE)
    gate.wait_until_held()
    waiting = pool.submit(slot)
    pool._check()

    assert len(ledger.created) == 1
    assert not waiting.done()
    gate.release()
    assert waiting.result(DEADLINE) == 0


def test_there_is_no_slot_outside(make_pool: MakePool, ledger: Ledger) -> None:
    pool = pool_of(make_pool, ledger, 1)
    answers: list[bool] = []
    assert no_slot()
    thread = threading.Thread(target=lambda: answers.append(no_slot()))
    thread.start()
    thread.join(DEADLINE)
    pool.submit(use).result(DEADLINE)

    assert answers == [True]


def test_there_is_no_slot_in_run_now(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    answers: list[tuple[str, bool]] = []

    def create() -> FakeResource:
        answers.append(("create", no_slot()))
        return ledger.create()

    def destroy(resource: FakeResource) -> None:
        answers.append(("destroy", no_slot()))
        ledger.destroy(resource)

    def work(_: object = None) -> None:
        answers.append(("call", no_slot()))

    with_reserve = make_pool(1, on_create=create, on_destroy=destroy, resource_pool_size=1)
    temporary = make_pool(1, on_create=create, on_destroy=destroy)
    without = make_pool(1)
    for pool in (with_reserve, temporary, without):
        pool.run_now(work)
    with_reserve.shutdown()

    assert len(answers) == 7
    assert {answer for _, answer in answers} == {True}


def test_there_is_no_slot_in_a_reserve_that_a_task_of_another_executor_uses(make_pool: MakePool, ledger: Ledger) -> None:
    # Or the resources of two executors would believe in the same port.
    ledger.any_thread = True
    answers: list[tuple[str, bool]] = []

    def create() -> FakeResource:
        answers.append(("create", no_slot()))
        return ledger.create()

    def destroy(resource: FakeResource) -> None:
        answers.append(("destroy", no_slot()))
        ledger.destroy(resource)

    def call(_: object) -> None:
        answers.append(("call", no_slot()))

    other = make_pool(1, on_create=create, on_destroy=destroy, resource_pool_size=1)

    def task() -> list[int]:
        before = current_slot()
        other.run_now(call)
        other.refresh()
        other.shutdown()
        return [before, current_slot()]

    pool = make_pool(1)
    assert pool.submit(task).result(DEADLINE) == [0, 0]
    assert [what for what, _ in answers] == ["create", "call", "destroy", "create", "destroy"]
    assert {answer for _, answer in answers} == {True}


def test_the_slot_of_a_task_is_back_after_a_call_that_failed(make_pool: MakePool, ledger: Ledger) -> None:
    ledger.any_thread = True
    other = pool_of(make_pool, ledger, 1, max_retries=1)

    def task() -> int:
        with pytest.raises(ResourceBroken):
            other.run_now(FakeResource.break_down)
        return current_slot()

    assert make_pool(1).submit(task).result(DEADLINE) == 0


def test_inline_the_slot_is_zero(ledger: Ledger) -> None:
    seen: list[int] = []

    def create() -> FakeResource:
        seen.append(current_slot())
        return ledger.create()

    def destroy(resource: FakeResource) -> None:
        seen.append(current_slot())
        ledger.destroy(resource)

    def reset(_: FakeResource) -> None:
        seen.append(current_slot())

    with InlineExecutor(on_create=create, on_destroy=destroy, on_reset=reset) as pool:
        seen += [pool.submit(slot).result(), pool.run_now(slot)]
    with InlineExecutor() as without:
        seen += [without.submit(slot).result(), without.run_now(slot)]

    assert seen == [0] * 8
    assert no_slot()


def test_resize_leaves_each_worker_its_slot(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(3)
    barrier = threading.Barrier(3)

    def work() -> int:
        barrier.wait(DEADLINE)
        gate.hold()
        return current_slot()

    held = [pool.submit(work) for _ in range(3)]
    gate.wait_until_held(3)
    pool.resize(max_workers=1)
    gate.release()

    assert sorted(future.result(DEADLINE) for future in held) == [0, 1, 2]
