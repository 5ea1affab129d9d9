"""The recovery: tasks and workers while resources or initializers fail, and the way back."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from engine import (
    UnfitResource,
    count_starting,
    engine_lock,
    fail_queue,
    outage_of,
    patch_pauses,
    patch_random,
    shorten_pauses,
    timer_of,
    use_engine_lock,
    workers_of,
)
from races import Once, RacedLane
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import LoadSample, Observer, QueueFull, ResourceCreationError, ResourceEvent, ResourceExecutor
from timer_support import Turns, watch_turns

REFUSED = OSError("connection refused")


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    return watch_turns(monkeypatch)


def has_turned(turns: Turns, seen: int) -> bool:
    return len(turns.dues) > seen


def let_the_timer_look(pool: ResourceExecutor[Any], turns: Turns) -> None:
    """Block until the timer has looked at all that is due now. The first turn may have begun before."""
    for _ in range(2):
        seen = len(turns.dues)
        timer_of(pool).kick()
        eventually(partial(has_turned, turns, seen), "a turn of the timer")


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

    assert future.result(0) in (2, 3)  # 3 if another worker was started at the moment in which the first one was ready


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


# -- an attempt that fails while others are under way --


class LyingLock:
    """The lock of an engine, which acts each time that a thread has let go of it."""

    def __init__(self, pool: ResourceExecutor[Any], on_free: Callable[[], object]) -> None:
        self._lock = engine_lock(pool)
        self._on_free = on_free
        use_engine_lock(pool, self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        if not self._lock._is_owned():
            self._on_free()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)


def test_an_attempt_that_fails_while_another_worker_becomes_ready_is_followed_by_a_third(
    make_pool: MakePool, ledger: Ledger, turns: Turns, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    # 1. Worker B has its resource, and is not ready yet. 2. The attempt of worker A fails. 3. The timer sees
    # that B is starting, and waits for it. 4. B is ready. So B must wake the timer.
    def create() -> FakeResource:
        if next(calls) == 0:
            first.hold()
            raise REFUSED
        makers.append(threading.current_thread())
        return ledger.create()

    def let_a_fail() -> None:
        if makers and threading.current_thread() is makers[0]:
            once()

    def fail_a() -> None:
        first.release()
        eventually(lambda: outage_of(pool).failures == 1, "the failure")
        let_the_timer_look(pool, turns)

    patch_random(monkeypatch, lambda low, high: 0.0)
    calls = itertools.count()
    makers: list[threading.Thread] = []
    once = Once(fail_a)
    with Gate() as first:
        pool = make_pool(2, on_create=create, on_destroy=ledger.destroy)
        LyingLock(pool, let_a_fail)
        pool.submit(gate.hold)
        first.wait_until_held()
        pool.submit(gate.hold)
        gate.wait_until_held(2)

    assert len(ledger.created) == 2


def test_an_unfit_resource_that_is_being_destroyed_keeps_no_worker_from_trying(
    make_pool: MakePool, ledger: Ledger, turns: Turns, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """While another worker is busy, so that the timer has nothing else to wait for."""

    class Looks(Observer):
        """Lets the timer look between the failed check and `on_destroy`: the worker is still starting then."""

        def creation_failed(self, event: ResourceEvent) -> None:
            if isinstance(event.error, UnfitResource):
                let_the_timer_look(pool, turns)

    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        if resource.number == 1:
            gate.hold()

    def check(resource: FakeResource) -> bool:
        return resource.number != 1

    patch_random(monkeypatch, lambda low, high: 0.0)
    pool = make_pool(
        3, on_create=ledger.create, on_destroy=destroy, check_resource=check, check_after_idle=0, observers=[Looks()]
    )
    with Gate() as busy:
        pool.submit(busy.hold)
        busy.wait_until_held()
        timer_of(pool).kick()
        turns.wait_until_asleep()
        ledger.outage = REFUSED
        waits = pool.submit(FakeResource.use)
        ledger.wait_until_attempted(3)
        ledger.outage = None
        gate.wait_until_held()

        assert waits.result(DEADLINE) == 2


# -- an outage that is older than create_timeout --


class Factory:
    """Makes the resources of a ledger. Each call is held at the present gate, if there is one."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.gate: Gate | None = None

    def __call__(self) -> FakeResource:
        gate = self.gate
        if gate is not None:
            gate.hold()
        return self.ledger.create()


@pytest.fixture
def factory(ledger: Ledger) -> Factory:
    return Factory(ledger)


MakeOld = Callable[..., ResourceExecutor[FakeResource]]


@pytest.fixture
def make_old(make_pool: MakePool, factory: Factory, clock: Clock, turns: Turns, monkeypatch: pytest.MonkeyPatch) -> MakeOld:
    """Make a pool whose factory has failed for longer than `create_timeout`, and that is in a pause of 500 s."""

    def make(max_workers: int = 1, **options: Any) -> ResourceExecutor[FakeResource]:
        ledger = factory.ledger
        ledger.outage = REFUSED
        patch_random(monkeypatch, lambda low, high: 500.0)
        pool = make_pool(max_workers, on_create=factory, on_destroy=ledger.destroy, create_timeout=3600.0, **options)
        first = pool.submit(FakeResource.use)
        eventually(lambda: outage_of(pool).failures == 1, "the first failure")
        clock.pass_time(3601.0, pool)
        assert isinstance(first.exception(DEADLINE), ResourceCreationError)
        assert isinstance(pool.submit(FakeResource.use).exception(DEADLINE), ResourceCreationError)
        eventually(lambda: outage_of(pool).failures == 2 and not workers_of(pool), "the second failure")
        return pool

    return make


def test_in_an_old_outage_a_task_fails_at_once(make_old: MakeOld, ledger: Ledger) -> None:
    pool = make_old()
    attempts = ledger.attempts
    errors = [submit(FakeResource.use).exception(DEADLINE) for submit in (pool.submit, pool.submit_priority) for _ in range(3)]

    assert all(isinstance(error, ResourceCreationError) for error in errors)
    assert all(error is not None and error.__cause__ is REFUSED for error in errors)
    assert "no attempt has succeeded for 3.6e+03 s (create_timeout is 3600 s)" in str(errors[0])
    assert ledger.attempts == attempts


def test_the_first_task_after_a_pause_of_a_long_outage_is_served(make_old: MakeOld, ledger: Ledger, clock: Clock) -> None:
    pool = make_old()
    ledger.outage = None
    clock.pass_time(501.0, pool)

    assert pool.submit(FakeResource.use).result(DEADLINE) == 0


def test_each_task_that_comes_after_a_pause_starts_an_attempt(make_old: MakeOld, ledger: Ledger, clock: Clock) -> None:
    pool = make_old()
    for _ in range(3):
        attempts = ledger.attempts
        clock.pass_time(501.0, pool)
        assert isinstance(pool.submit(FakeResource.use).exception(DEADLINE), ResourceCreationError)
        assert ledger.attempts == attempts + 1
        eventually(lambda: not workers_of(pool), "the end of the worker")


def test_in_an_old_outage_tasks_wait_for_the_attempt_that_is_under_way(
    make_old: MakeOld, factory: Factory, ledger: Ledger, clock: Clock, turns: Turns, gate: Gate
) -> None:
    pool = make_old(4)
    ledger.outage, factory.gate = None, gate
    clock.pass_time(501.0, pool)
    futures = [pool.submit(FakeResource.use) for _ in range(3)]
    gate.wait_until_held()
    let_the_timer_look(pool, turns)
    done_early = [future.done() for future in futures]
    gate.release()

    assert done_early == [False] * 3
    assert all(future.exception(DEADLINE) is None for future in futures)


def test_when_that_attempt_fails_the_tasks_fail(
    make_old: MakeOld, factory: Factory, ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """Without a pause, too: the tasks do not wait for the attempt that follows."""
    pool = make_old()
    factory.gate = gate
    clock.pass_time(501.0, pool)
    futures = [pool.submit(FakeResource.use) for _ in range(3)]
    gate.wait_until_held()
    patch_random(monkeypatch, lambda low, high: 0.0)
    with Gate() as second:
        factory.gate = second
        gate.release()
        errors = [future.exception(DEADLINE) for future in futures]
        patch_random(monkeypatch, lambda low, high: 500.0)

    assert all(isinstance(error, ResourceCreationError) for error in errors)


def test_in_an_old_outage_a_task_waits_no_longer_than_create_timeout_for_an_attempt_that_hangs(
    make_old: MakeOld, factory: Factory, ledger: Ledger, clock: Clock, gate: Gate
) -> None:
    pool = make_old()
    ledger.outage, factory.gate = None, gate
    clock.pass_time(501.0, pool)
    waits = pool.submit(FakeResource.use)
    gate.wait_until_held()
    clock.pass_time(3601.0, pool)
    waited = waits.exception(DEADLINE)
    # No attempt is under way, and there is no room for one.
    late = pool.submit(FakeResource.use).exception(DEADLINE)
    gate.release()

    for error in (waited, late):
        assert isinstance(error, ResourceCreationError)
        assert "on_create has not returned on" in str(error)
        assert "(create_timeout is 3600 s)" in str(error)
    eventually(lambda: outage_of(pool).failures == 0, "the resource")
    assert pool.submit(FakeResource.use).result(DEADLINE) == 0


def test_in_a_row_of_failures_an_attempt_that_hangs_counts_until_it_is_late(
    make_old: MakeOld, factory: Factory, ledger: Ledger, clock: Clock, gate: Gate
) -> None:
    class One:
        interval = 1e6

        def target(self, load: LoadSample, /) -> int:
            return 1

    pool = make_old(2, policy=One())
    ledger.outage, factory.gate = None, gate
    clock.pass_time(501.0, pool)
    first = pool.submit(FakeResource.use)
    gate.wait_until_held()
    clock.pass_time(3000.0, pool)
    second = pool.submit(FakeResource.use)
    workers = len(workers_of(pool))
    factory.gate = None
    clock.pass_time(601.0, pool)

    assert workers == 1
    assert isinstance(first.exception(0 if first.done() else DEADLINE), ResourceCreationError | None)
    assert second.result(DEADLINE) >= 0


@pytest.mark.parametrize("during", ["a pause", "an attempt"])
def test_base_workers_are_tried_again_in_an_old_outage(
    make_old: MakeOld, factory: Factory, ledger: Ledger, clock: Clock, gate: Gate, during: str
) -> None:
    pool = make_old(1, min_workers=1)
    if during == "a pause":
        assert isinstance(pool.submit(FakeResource.use).exception(DEADLINE), ResourceCreationError)
    ledger.outage, factory.gate = None, gate
    clock.pass_time(501.0, pool)  # no task waits
    gate.wait_until_held()
    future = pool.submit(FakeResource.use) if during == "an attempt" else None
    gate.release()
    pool.wait_ready(DEADLINE)

    assert future is None or future.result(DEADLINE) == 0
    assert len(ledger.created) == 1


def test_in_an_old_outage_a_task_is_served_while_a_worker_has_a_resource(
    make_pool: MakePool, factory: Factory, ledger: Ledger, clock: Clock, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_random(monkeypatch, lambda low, high: 500.0)
    pool = make_pool(2, on_create=factory, on_destroy=ledger.destroy, create_timeout=3600.0)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ledger.outage = REFUSED
    pool.submit(FakeResource.use)
    eventually(lambda: outage_of(pool).failures == 1, "the failure")
    clock.pass_time(3601.0, pool)
    eventually(lambda: outage_of(pool).failures == 2, "the second failure")
    future = pool.submit(FakeResource.use)
    gate.release()

    assert future.result(DEADLINE) >= 0


def test_when_the_last_resource_breaks_in_an_old_outage_its_task_fails_at_once(
    make_pool: MakePool, factory: Factory, ledger: Ledger, clock: Clock, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker hangs in `on_destroy`, so no worker has ended since."""

    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        gate.hold()

    def break_down(resource: FakeResource) -> None:
        assert busy.wait(DEADLINE)
        resource.break_down()

    busy = threading.Event()
    patch_random(monkeypatch, lambda low, high: 500.0)
    pool = make_pool(
        2, on_create=factory, on_destroy=destroy, check_health=ledger.is_healthy, create_timeout=3600.0, max_retries=9
    )
    breaks = pool.submit(break_down)
    eventually(breaks.running, "the task that breaks its resource to run")
    ledger.outage = REFUSED
    waits = pool.submit(FakeResource.use)
    eventually(lambda: outage_of(pool).failures == 1, "the failure")
    clock.pass_time(3601.0, pool)
    eventually(lambda: outage_of(pool).failures == 2, "the second failure")
    busy.set()

    assert isinstance(breaks.exception(DEADLINE), ResourceCreationError)
    assert isinstance(waits.exception(DEADLINE), ResourceCreationError)
    gate.wait_until_held()
    assert isinstance(pool.submit(FakeResource.use).exception(DEADLINE), ResourceCreationError)


def test_shutdown_in_an_old_outage_does_not_wait(make_old: MakeOld, factory: Factory, clock: Clock, gate: Gate) -> None:
    pool = make_old()
    factory.gate = gate
    clock.pass_time(501.0, pool)
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()
    pool.shutdown(wait=False)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert isinstance(future.exception(0), ResourceCreationError)


# -- an on_destroy that hangs --


def test_while_an_unfit_resource_is_destroyed_another_worker_may_try(
    make_pool: MakePool, ledger: Ledger, clock: Clock, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that destroys a resource that has never served is no attempt under way."""

    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        if resource.number < 2:
            gate.hold()

    def check(resource: FakeResource) -> bool:
        return resource.number > 1

    patch_random(monkeypatch, lambda low, high: 500.0)
    pool = make_pool(
        3,
        on_create=ledger.create,
        on_destroy=destroy,
        check_resource=check,
        check_after_idle=0,
        create_timeout=3600.0,
    )
    future = pool.submit(FakeResource.use)
    gate.wait_until_held()
    # The second one fails the check that would have ended the outage, so its worker is never ready.
    clock.pass_time(501.0, pool)
    gate.wait_until_held(2)
    starting = count_starting(pool)
    clock.pass_time(501.0, pool)

    assert starting == 0
    assert future.result(DEADLINE) == 2


@pytest.mark.parametrize("served", [True, False])
def test_in_an_old_outage_a_task_waits_for_an_on_destroy_that_makes_room(
    make_pool: MakePool, ledger: Ledger, clock: Clock, turns: Turns, monkeypatch: pytest.MonkeyPatch, gate: Gate, served: bool
) -> None:
    """No resource is fit before the one that the waiting task gets."""

    def destroy(resource: FakeResource) -> None:
        ledger.destroy(resource)
        gate.hold()

    def check(resource: FakeResource) -> bool:
        return resource.number > 0

    patch_random(monkeypatch, lambda low, high: 500.0)
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=destroy,
        check_resource=check,
        check_after_idle=0,
        create_timeout=3600.0,
    )
    ledger.outage = REFUSED
    first = pool.submit(FakeResource.use)
    eventually(lambda: outage_of(pool).failures == 1, "the failure")
    ledger.outage = None
    clock.pass_time(3601.0, pool)
    assert isinstance(first.exception(DEADLINE), ResourceCreationError)
    assert isinstance(pool.submit(FakeResource.use).exception(DEADLINE), ResourceCreationError)
    gate.wait_until_held()
    in_the_pause = pool.submit(FakeResource.use).exception(DEADLINE)
    clock.pass_time(501.0, pool)
    waits = pool.submit(FakeResource.use)
    let_the_timer_look(pool, turns)
    done_early = waits.done()
    if served:
        gate.release()
        assert waits.result(DEADLINE) == 1
    else:
        clock.pass_time(3600.0, pool)
        assert "on_destroy has not returned on" in str(waits.exception(DEADLINE))
        assert "on_destroy has not returned on" in str(pool.submit(FakeResource.use).exception(DEADLINE))

    assert isinstance(in_the_pause, ResourceCreationError)
    assert not done_early
