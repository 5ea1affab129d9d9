"""Claims that nothing else in the suite would have missed: each test is here because `mutations.py` found that out.

A lying idle stack or a lying set stands in for the real one, and acts, or looks around, at the moment that counts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from engine import (
    PENDING,
    RUNNING,
    Lane,
    Lanes,
    Seat,
    TaskFuture,
    admission_of,
    engine_lock,
    idle_stack,
    lanes_of,
    normal_lane,
    note_may_retire,
    show_submitters,
    use_idle_stack,
    use_leaving_workers,
    use_workers,
    workers_of,
)
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually, join_all
from tasker_executor import Observer, QueueFull, ResourceExecutor, TaskEvent


class LyingStack(list[Any]):
    """An idle stack that calls `action` at the first registration of a worker: right before it, or right after."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None

    def append(self, someone: Any, /) -> None:
        if not isinstance(someone, Seat):
            super().append(someone)
            return
        before, self.before = self.before, None
        if before is not None:
            before()
        super().append(someone)
        after, self.after = self.after, None
        if after is not None:
            after()

    @property
    def workers(self) -> int:
        return sum(isinstance(someone, Seat) for someone in self[:])


def lie(pool: ResourceExecutor[Any]) -> LyingStack:
    """Let a pool that has no workers yet use a lying stack."""
    stack = LyingStack()
    use_idle_stack(pool, stack)
    return stack


class GuardedSet(set[Any]):
    """Notes the changes that are made while the lock is not held by who makes them."""

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self._lock = lock
        self.changes = 0
        self.unguarded = 0

    def _note(self) -> None:
        self.changes += 1
        self.unguarded += not self._lock._is_owned()

    def add(self, element: Any, /) -> None:
        self._note()
        super().add(element)

    def discard(self, element: Any, /) -> None:
        self._note()
        super().discard(element)


# -- going idle --


def test_a_task_that_is_queued_while_its_worker_goes_idle_is_run(make_pool: MakePool, gate: Gate) -> None:
    # 1. The only worker has called the callbacks of its task and finds both lanes empty. 2. A task is queued, and no worker is
    # on the stack to be woken. 3. The worker registers as idle, and has to look at the lanes once more.
    pool = make_pool(1)
    stack = lie(pool)
    futures: list[Future[int]] = []
    held = pool.submit(gate.hold)
    held.add_done_callback(lambda _: setattr(stack, "before", lambda: futures.append(pool.submit(int, "7"))))

    gate.release()

    eventually(lambda: bool(futures), "the task to be queued")
    assert futures[0].result(DEADLINE) == 7


def test_a_wake_up_for_a_worker_that_has_callbacks_to_call_is_passed_on(make_pool: MakePool, gate: Gate) -> None:
    # 1. One worker sleeps, another has a result and registers as idle. 2. A task is queued and wakes the other, who is on top
    # of the stack. 3. That one has a callback to call, which takes its time, so the first is to be woken.
    pool = make_pool(2)
    stack = lie(pool)
    barrier = threading.Barrier(2)
    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(2)]:
        future.result(DEADLINE)
    eventually(lambda: stack.workers == 2, "two idle workers")
    futures: list[Future[int]] = []
    outcomes: list[int] = []
    held = pool.submit(gate.hold)
    held.add_done_callback(lambda _: outcomes.append(futures[0].result(DEADLINE)))
    gate.wait_until_held()
    stack.after = lambda: futures.append(pool.submit(int, "7"))

    gate.release()

    eventually(lambda: outcomes == [7], "the callback to have the result of the other worker")


@pytest.mark.parametrize("lane", ["submit", "submit_priority"])
def test_a_worker_that_is_woken_before_it_sleeps_has_no_permit_left_when_it_works(make_pool: MakePool, lane: str) -> None:
    # 1. A worker has a result and registers as idle. 2. A task is queued, and wakes it. 3. It finds that task without ever
    # having slept, and takes the permit, too; or it would wake for nothing later.
    pool = make_pool(1)
    stack = lie(pool)
    futures: list[Future[bool]] = []

    def submit() -> None:
        [worker] = workers_of(pool)
        futures.append(getattr(pool, lane)(worker.seat.park.locked))

    pool.submit(setattr, stack, "after", submit)

    eventually(lambda: bool(futures), "the task to be queued")
    assert futures[0].result(DEADLINE)


def test_a_worker_that_is_retired_while_it_finds_a_task_leaves_it_to_another(make_pool: MakePool, gate: Gate) -> None:
    # 1. One worker is busy, the other has a result and registers as idle. 2. resize() takes it off the stack and tells it to
    # leave; an urgent task is queued. 3. It finds the task, puts it back, and leaves, though no other thread wakes it again.
    pool = make_pool(2)
    stack = lie(pool)
    pool.submit(gate.hold)
    gate.wait_until_held()
    futures: list[Future[int]] = []

    def trouble() -> None:
        pool.resize(max_workers=1)
        futures.append(pool.submit_priority(int, "7"))

    pool.submit(setattr, stack, "after", trouble)

    eventually(lambda: bool(futures), "the task to be queued")
    eventually(lambda: pool.stats().active_workers == 1, "the worker to leave")
    gate.release()
    assert futures[0].result(DEADLINE) == 7


def test_a_worker_that_is_woken_while_it_finds_the_task_itself_starts_no_other(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A worker registers as idle. 2. A task is queued and wakes it. 3. It looks at the lanes once more and sees that task,
    # which is the one that it was woken for: nobody else is needed.
    pool = make_pool(8)
    stack = lie(pool)
    pool.submit(int).result(DEADLINE)
    workers = len(workers_of(pool))
    futures: list[Future[int]] = []
    look = Lanes.look

    def look_late(lanes: Lanes) -> bool:
        if lanes is lanes_of(pool) and stack.workers and not futures:
            futures.append(pool.submit(int, "7"))
        return look(lanes)

    monkeypatch.setattr(Lanes, "look", look_late)
    pool.submit(int).result(DEADLINE)

    eventually(lambda: bool(futures), "the worker to look")
    assert futures[0].result(DEADLINE) == 7
    assert pool.stats().active_workers == workers


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_a_worker_is_not_replaced_whatever_a_task_raises(make_pool: MakePool, error: BaseException) -> None:
    def fail() -> None:
        raise error

    pool = make_pool(1)
    before = pool.submit(threading.get_ident).result(DEADLINE)
    assert pool.submit(fail).exception(DEADLINE) is error

    assert pool.submit(threading.get_ident).result(DEADLINE) == before
    assert pool.stats().workers_replaced == 0


# -- the population --


def test_the_workers_there_are_change_only_under_the_lock(make_pool: MakePool) -> None:
    pool = make_pool(4)
    workers = use_workers(pool, GuardedSet(engine_lock(pool)))
    barrier = threading.Barrier(4)

    for future in [pool.submit(barrier.wait, DEADLINE) for _ in range(4)]:
        future.result(DEADLINE)
    pool.shutdown()

    assert workers.changes == 8
    assert workers.unguarded == 0


def test_the_workers_that_leave_change_only_under_the_lock(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(4)
    leaving = use_leaving_workers(pool, GuardedSet(engine_lock(pool)))
    for _ in range(4):
        pool.submit(gate.hold)
    gate.wait_until_held(4)

    pool.resize(max_workers=1)
    gate.release()
    eventually(lambda: pool.stats().active_workers == 1, "three workers to leave")

    assert leaving.changes >= 3
    assert leaving.unguarded == 0


def test_a_base_worker_is_asked_whether_it_may_retire_and_stays(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = note_may_retire(monkeypatch)
    pool = make_pool(4, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=2, idle_timeout=0.001)
    eventually(lambda: len(answers) == 2, "two workers to be idle for long enough")
    stack = idle_stack(pool)  # where they are now for good: a task that comes at no other moment starts no third worker
    eventually(lambda: sum(isinstance(idle, Seat) for idle in stack[:]) == 2, "them to be asleep")
    for _ in range(2):
        pool.submit(FakeResource.use).result(DEADLINE)

    eventually(lambda: len(answers) >= 3, "a worker to be idle again for long enough")
    assert not any(answers)
    assert len(ledger.destroyed) == 0


def test_a_constructor_that_can_start_no_worker_has_destroyed_its_resources_when_it_raises(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="new thread") as caught:
        ResourceExecutor(1, on_create=ledger.create, on_destroy=ledger.destroy, min_workers=1, resource_pool_size=2)

    assert len(ledger.created) == 2
    assert ledger.alive == []
    assert caught.tb is not None  # which keeps the executor: it was not that somebody dropped it


# -- retries --


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


def test_a_task_whose_retry_the_killer_prevents_fails_at_once(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # 1. A resource breaks, and the task may be run again. 2. kill() cancels what waits. 3. The task is queued again, which
    # nobody will look at: it gets its error now, and not when its worker has got rid of the resource.
    class Killer(Observer):
        def task_retried(self, event: TaskEvent) -> None:
            pool.kill()

    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = make_pool(1, on_create=ledger.create, on_destroy=destroy, check_health=ledger.is_healthy, observers=[Killer()])
    future = pool.submit(FakeResource.break_down)
    gate.wait_until_held()

    assert isinstance(future.exception(0), ResourceBroken)


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

    assert pool.submit(work).result(DEADLINE) == 1


# -- lanes and futures --


def test_a_cancelled_task_that_was_passed_by_is_not_missing_from_those_that_wait(make_pool: MakePool) -> None:
    pool = make_pool(1)
    with Gate() as first, Gate() as second:
        pool.submit(first.hold)
        first.wait_until_held()
        assert pool.submit(int).cancel()
        pool.submit(second.hold)
        first.release()
        second.wait_until_held()
        pool.submit(int)

        assert pool.stats().queued_tasks == 1


def test_an_end_that_two_want_to_tell_is_told_once(make_pool: MakePool, gate: Gate) -> None:
    # 1. A worker ends a task. 2. A listener that came at the same time ends it, too. 3. wait() counts what it is told.
    class Waiter:
        def __init__(self) -> None:
            self.add_result = told.append

    told: list[Any] = []
    future: Any = make_pool(1).submit(gate.hold)
    with future._condition:
        future._waiters.append(Waiter())
    gate.release()
    future.result(DEADLINE)

    future._conclude()

    assert told == [future]


class Trapped(TaskFuture[Any]):
    """Ends right after somebody has seen that it has not started."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "_status" and value is PENDING:
            self._status = RUNNING
            self._finish("result", None)
        return value


def test_a_task_that_ends_while_somebody_begins_to_listen_is_heard_of(make_pool: MakePool) -> None:
    # 1. A listener finds no sidecar, and PENDING. 2. The worker starts, ends, finds no sidecar and tells nobody. 3. The
    # listener stores its sidecar, and has to look at the status once more.
    future: Any = Trapped()
    future._sidecar, future._context, future._lane = None, None, normal_lane(make_pool(1))
    future._status = PENDING
    told: list[Any] = []

    future.add_done_callback(told.append)

    assert told == [future]


# -- the door --


def test_a_place_that_comes_free_before_the_caller_at_the_door_can_be_seen_is_taken(make_pool: MakePool) -> None:
    # 1. The queue is full: a caller finds no place. 2. The worker takes the queued task and looks whether anybody waits at the
    # door: nobody. 3. The caller begins to wait there, and has to look for a place once more.
    pool = make_pool(1, max_queued=1)
    admission = admission_of(pool)
    waiting = admission._waiting
    with Gate() as first, Gate() as second:
        pool.submit(first.hold)
        first.wait_until_held()
        pool.submit(second.hold)

        def look_late() -> int:
            admission._waiting = waiting
            found = waiting()
            first.release()
            second.wait_until_held()
            return found

        admission._waiting = look_late
        caller = threading.Thread(target=pool.submit, args=(int,))
        caller.start()

        assert join_all([caller]) == []
        assert pool.stats().queued_tasks == 1


def test_a_place_is_taken_from_the_moment_when_somebody_is_let_in(make_pool: MakePool, gate: Gate) -> None:
    # 1. A caller finds a place in the queue. 2. Another comes before the first has queued its task: there is none left.
    class LateLane:
        def __init__(self, lane: Lane) -> None:
            self._lane = lane

        def __getattr__(self, name: str) -> Any:
            return getattr(self._lane, name)

        def append(self, future: Any) -> None:
            if not refused:
                refused.append(False)
                with pytest.raises(QueueFull):
                    pool.submit(int)
                refused[0] = True
            self._lane.append(future)

    pool = make_pool(1, max_queued=1, on_full="raise")
    pool.submit(gate.hold)
    gate.wait_until_held()
    refused: list[bool] = []
    show_submitters(pool, LateLane(normal_lane(pool)))

    pool.submit(int)

    assert refused == [True]
    assert pool.stats().queued_tasks == 1
