"""Two lanes: which task starts next, and how many wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any, cast

import pytest

from engine import Lane, Task, use_lane
from support import FakeResource, Gate, Ledger, MakePool


def test_priority_task_comes_first_in_400_of_400_rounds(make_pool: MakePool) -> None:
    pool = make_pool(1)
    firsts: list[str] = []
    for _ in range(400):
        ran: list[str] = []
        with Gate() as gate:
            pool.submit(gate.hold)
            gate.wait_until_held()
            futures = [pool.submit(ran.append, "normal"), pool.submit_priority(ran.append, "priority")]
        wait(futures)
        firsts.append(ran[0])

    assert firsts == ["priority"] * 400


def test_no_normal_task_starts_while_a_priority_task_waits(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[str] = []

    def normal(number: int) -> None:
        ran.append(f"normal {number}")
        if number < 3:
            pool.submit_priority(ran.append, f"priority {number}")  # comes while normal tasks wait

    pool.submit(gate.hold)
    futures = [pool.submit(normal, number) for number in range(5)]
    gate.release()
    wait(futures)

    assert ran == [
        *("normal 0", "priority 0"),
        *("normal 1", "priority 1"),
        *("normal 2", "priority 2"),
        *("normal 3", "normal 4"),
    ]


def test_tasks_of_a_lane_start_in_the_order_of_their_submission(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[tuple[str, int]] = []
    pool.submit(gate.hold)
    gate.wait_until_held()
    for number in range(20):
        pool.submit(ran.append, ("normal", number))
        pool.submit_priority(ran.append, ("priority", number))

    gate.release()
    pool.shutdown()

    assert ran == [("priority", number) for number in range(20)] + [("normal", number) for number in range(20)]


def test_view_and_method_use_the_same_lane(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[int] = []
    urgent = pool.with_options(priority=True)
    pool.submit(gate.hold)
    gate.wait_until_held()
    for number in range(0, 10, 2):
        pool.submit_priority(ran.append, number)
        urgent.submit(ran.append, number + 1)

    gate.release()
    pool.shutdown()

    assert ran == list(range(10))


@pytest.mark.parametrize("priority", [False, True], ids=["normal", "priority"])
def test_task_that_is_retried_goes_to_the_front_of_its_lane(
    make_pool: MakePool, ledger: Ledger, gate: Gate, priority: bool
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    view = pool.with_options(priority=priority)
    ran: list[str] = []

    def unlucky(resource: FakeResource) -> None:
        ran.append("unlucky")
        if resource.number == 0:
            gate.hold()
            resource.break_down()

    future = view.submit(unlucky)
    gate.wait_until_held()
    for name in ("first", "second"):
        view.with_options(pass_resource=False).submit(ran.append, name)
    gate.release()
    pool.shutdown()

    assert future.exception() is None
    assert ran == ["unlucky", "unlucky", "first", "second"]


def test_normal_task_that_is_retried_does_not_overtake_priority_tasks(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    ran: list[str] = []

    def unlucky(resource: FakeResource) -> None:
        if resource.number == 0:
            gate.hold()
            resource.break_down()
        ran.append("unlucky")

    pool.submit(unlucky)
    gate.wait_until_held()
    pool.submit(lambda _: ran.append("normal"))
    pool.submit_priority(lambda _: ran.append("priority"))
    gate.release()
    pool.shutdown()

    assert ran == ["priority", "unlucky", "normal"]


def test_retry_needs_no_room_in_a_full_queue(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        max_queued=1,
        on_full="raise",
    )

    def unlucky(resource: FakeResource) -> int:
        if resource.number == 0:
            gate.hold()
            resource.break_down()
        return resource.use()

    future = pool.submit(unlucky)
    gate.wait_until_held()
    pool.submit(FakeResource.use)  # the queue is full
    gate.release()

    assert future.result() == 1


def test_lanes_are_counted_apart(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    for _ in range(3):
        pool.submit(int)
    for _ in range(2):
        pool.submit_priority(int)
    stats = pool.stats()

    assert (stats.queued_tasks, stats.priority_tasks) == (3, 2)


@pytest.mark.parametrize("priority", [False, True], ids=["normal", "priority"])
def test_cancelled_tasks_count_as_queued_no_more(make_pool: MakePool, gate: Gate, priority: bool) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    futures = [pool.with_options(priority=priority).submit(int) for _ in range(5)]
    for future in futures[1:4]:
        future.cancel()
    stats = pool.stats()

    assert stats.queued_tasks + stats.priority_tasks == 2
    assert stats.cancelled == 3


def test_cancelled_tasks_are_skipped(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[int] = []
    pool.submit(gate.hold)
    gate.wait_until_held()
    futures = [pool.submit(ran.append, number) for number in range(6)]
    for future in futures[::2]:
        future.cancel()

    gate.release()
    pool.shutdown()

    assert ran == [1, 3, 5]
    assert pool.stats().completed == 4


# -- a lane that changes while it is looked at --


class Crowded(Lane):
    """Others come in, or go, while the first look at it is under way."""

    def __init__(self) -> None:
        super().__init__("normal", cast(Any, None), lambda _: None)
        self.changes: Callable[[], object] | None = None

    def put(self, submitted: float) -> Task[Any]:
        future: Task[Any] = Task()
        future._submitted = submitted
        self.append(future)
        return future

    def __iter__(self) -> Iterator[Task[Any]]:
        changes, self.changes = self.changes, None
        looked_at = super().__iter__()
        if changes is not None:
            changes()
        return looked_at  # raises RuntimeError, if that has changed anything

    def __len__(self) -> int:
        length = super().__len__()
        changes, self.changes = self.changes, None
        if changes is not None:
            changes()
        return length


def test_snapshot_is_taken_again_if_somebody_comes_in_between() -> None:
    lane = Crowded()
    first = lane.put(1.0)
    lane.changes = lambda: lane.put(2.0)

    assert lane.snapshot() == (first, lane[-1])


@pytest.mark.parametrize("left, oldest", [(2, 2.0), (1, None)])
def test_oldest_is_that_of_the_head_if_workers_pop_in_between(left: int, oldest: float | None) -> None:
    lane = Crowded()
    for number in range(left):
        lane.put(1.0 + number)
    lane.changes = lane.popleft

    assert lane.oldest() == oldest


def test_lane_that_shrinks_while_arrivals_are_counted_had_none() -> None:
    lane = Crowded()
    lane.put(1.0)
    lane.changes = lambda: setattr(lane, "changes", lane.clear)  # at the second look at its length, that of the search

    assert lane.submitted_since(0.5) == 0


# -- cancelled tasks that are passed by --


def test_a_cancelled_task_that_a_worker_is_just_popping_is_not_counted_as_waiting(make_pool: MakePool, gate: Gate) -> None:
    # 1. stats() asks how long the lane is. 2. A worker pops a cancelled task and takes it off the count of those. 3. stats()
    # asks for that count. To count the task as cancelled and as waiting would be wrong for ever: `submitted` never decreases.
    pool = make_pool(1)
    pop: list[Callable[[], object]] = []

    class Raced(Lane):
        def __len__(self) -> int:
            length = super().__len__()
            if pop:
                pop.pop()()
                self.tombstones -= 1
            return length

    lane = use_lane(pool, Raced)
    pool.submit(gate.hold)
    gate.wait_until_held()
    pool.submit(int).cancel()
    pop.append(lane.popleft)

    stats = pool.stats()

    assert (stats.submitted, stats.cancelled, stats.queued_tasks) == (2, 1, 0)


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
