"""Fields that threads share: what may happen between two steps of a thread. Each race is forced."""

from __future__ import annotations

import threading
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from engine import (
    Herald,
    Idle,
    Lane,
    Outage,
    Seat,
    core_of,
    engine_lock,
    idle_stack,
    is_terminated,
    normal_lane,
    patch_sleep,
    show_idle_stack,
    workers_of,
)
from races import Once, rest_all
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import ResourceExecutor
from timer_support import Script


def two_idle_workers(make_pool: MakePool) -> ResourceExecutor[None]:
    pool = make_pool(2)
    rest_all(pool, 2)
    return pool


# -- the idle stack --


def offered() -> tuple[Idle, Any]:
    """Return a stack with Room on it, and Room."""
    idle = Idle(int)
    idle.offer_room(True)
    return idle, idle.stack[0]


def test_a_submitter_that_popped_room_starts_a_worker_though_another_one_has_popped_it_again() -> None:
    # 1. Submitter A pops Room, and puts it back. 2. Submitter B pops it. 3. A asks whether it had Room.
    idle, _ = offered()
    wakes = idle._wakes

    def raced() -> Iterator[Any]:
        for released in wakes:
            idle.stack.pop()
            yield released

    idle._wakes = raced()

    assert idle.wake_top()


def test_room_that_was_offered_while_a_submitter_had_it_in_hand_is_on_the_stack_once() -> None:
    # 1. A submitter pops Room. 2. The crew misses Room, and offers it. 3. A worker becomes idle. 4. The submitter puts Room
    # back, above the worker: so the next one would start a worker, though one is idle. 5. The submitter calls the crew.
    idle, room = offered()
    seat = Seat(idle)
    idle.stack.pop()
    idle.offer_room(True)
    idle.stack.append(seat)
    room.release()

    idle.offer_room(True)

    assert idle.stack == [room, seat]


def test_room_that_was_withdrawn_while_a_submitter_had_it_in_hand_is_withdrawn_by_that() -> None:
    idle, room = offered()
    idle.stack.pop()
    idle.offer_room(False)
    room.release()

    idle.offer_room(False)

    assert idle.stack == []


class LateRemoval:
    """The idle stack. Another thread acts just before a seat is removed."""

    def __init__(self, stack: list[Any], act: Callable[[], object]) -> None:
        self._stack, self._act = stack, act

    def remove(self, seat: Seat) -> None:
        self._act()
        self._stack.remove(seat)

    def __getitem__(self, index: int | slice) -> Any:
        return self._stack[index]

    def __contains__(self, entry: object) -> bool:
        return entry in self._stack

    def __len__(self) -> int:
        return len(self._stack)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stack, name)


def test_a_worker_that_is_woken_for_a_task_as_it_is_chosen_to_retire_runs_the_task(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. resize() has chosen an idle worker. 2. A submitter takes its seat off the stack. 3. The worker asks whether it was
    # told to leave. 4. resize() finds that it came too late.
    pool = two_idle_workers(make_pool)
    futures: list[Future[None]] = []

    def take_both() -> None:
        futures.extend(pool.submit(gate.hold) for _ in range(2))
        gate.wait_until_held(2)

    show_idle_stack(monkeypatch, pool, LateRemoval(idle_stack(pool), Once(take_both)))
    pool.resize(max_workers=1)
    gate.release()

    assert [future.exception(DEADLINE) for future in futures] == [None, None]
    eventually(lambda: pool.stats().active_workers == 1, "one worker to leave")


def test_a_worker_that_becomes_idle_while_resize_looks_for_idle_ones_retires_at_once(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. resize() finds no idle worker. 2. Both become idle, find that none has to leave, and sleep. 3. resize() notes that
    # one has to leave.
    pool = make_pool(2)
    for _ in range(2):
        pool.submit(gate.hold)
    gate.wait_until_held(2)
    idle = core_of(pool).idle
    seats, asleep = idle.seats, list[float]()
    patch_sleep(monkeypatch, asleep.append)

    def look_early() -> list[Seat]:
        found = seats()
        if not asleep:
            gate.release()
            eventually(lambda: len(asleep) == 2, "two workers that sleep")
        return found

    monkeypatch.setattr(idle, "seats", look_early)
    pool.resize(max_workers=1)

    eventually(lambda: pool.stats().active_workers == 1, "one worker to leave")


# -- the lanes --


def test_workers_wait_while_the_tasks_to_be_cancelled_are_copied(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the GIL, a copy fails if a worker takes a task. Workers that go on would run all tasks before one succeeds.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ran = threading.Event()
    futures = [pool.submit(ran.set) for _ in range(3)]
    for future in futures:
        future.add_done_callback(repr)  # tasks that no thread observes are popped before
    snapshot, normal = Lane.snapshot, normal_lane(pool)
    seen: list[int] = []

    def copy(lane: Lane) -> tuple[Any, ...]:
        seen.append(len(lane))
        if lane is normal and len(lane) == 3:
            gate.release()
            eventually(lambda: len(lane) == 2, "the worker to have the next task in hand")
            assert not ran.wait(0.1)
        return snapshot(lane)

    monkeypatch.setattr(Lane, "snapshot", copy)
    pool.shutdown(cancel_futures=True)

    assert all(future.done() for future in futures)
    assert 3 in seen


def test_a_task_that_was_popped_and_put_back_while_the_last_worker_ended_is_run(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The executor drains. 2. The timer pops a task, to see whether it has waited too long. 3. The last worker finds no
    # task, and ends. 4. The timer puts the task back.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    future = pool.submit(int, "7")
    pool.shutdown(wait=False)
    with Gate() as in_hand:

        def put_back(lane: Lane, task: object) -> None:
            in_hand.hold()
            deque.appendleft(lane, task)

        monkeypatch.setattr(Lane, "appendleft", put_back, raising=False)
        timer = threading.Thread(target=core_of(pool).ending.fail_queue, args=(LookupError, 0.0))
        timer.start()
        in_hand.wait_until_held()
        gate.release()
        eventually(lambda: not workers_of(pool), "the last worker to end")
    assert not join_all([timer])

    assert future.result(DEADLINE) == 7
    assert is_terminated(pool, DEADLINE)


def test_a_task_that_outlives_its_executor_may_have_begun_to_wait_for_another_task(make_pool: MakePool) -> None:
    # 1. A task of a worker that was written off waits for another task. 2. The executor closes. 3. The wait begins.
    pool = make_pool(1)
    pool.submit(int).result(DEADLINE)
    pool.shutdown()
    permit, owner = allocate_lock(), normal_lane(pool).owner

    assert owner.wait_inside(object(), permit, None)
    assert not owner.wait_inside(object(), permit, 0.0)


# -- the timer's thread --


class Passing:
    """A herald, just after the timer has posted news. The news passes by between two looks."""

    _held = False

    def __init__(self) -> None:
        self._news: deque[Callable[[], object]] = deque([int])
        self._taken = False

    @property
    def _serving(self) -> bool:
        seen = self._taken
        if self._news:
            self._taken = True
            self._news.popleft()
        return seen


def test_news_that_the_herald_takes_at_this_moment_is_not_missed() -> None:
    busy: Any = Herald.busy

    assert busy.fget(Passing())


def test_the_outage_is_asked_under_the_lock_though_a_worker_gets_its_resource(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The timer asks since when no worker has owned a resource. 2. A worker gets one. 3. The timer adds to that time.
    locked: list[bool] = []
    gives_up_at = Outage.gives_up_at

    def note(outage: Outage, *args: Any) -> float | None:
        locked.append(engine_lock(pool)._is_owned())
        return gives_up_at(outage, *args)

    monkeypatch.setattr(Outage, "gives_up_at", note)

    def create() -> FakeResource:
        gate.hold()
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy)
    future = pool.submit(lambda _: 7)
    eventually(lambda: bool(locked), "the timer to look at the task")
    gate.release()

    assert future.result(DEADLINE) == 7
    assert all(locked)


def test_the_policy_is_asked_about_a_task_that_was_taken_as_the_tick_paused(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. All is at rest. 2. A task comes, and a worker takes it. Its submitter finds neither the alarm nor a pause. 3. The
    # pause begins, and finds no task that waits.
    policy = Script(1)
    pool = make_pool(4, min_workers=1, policy=policy)
    scaler = core_of(pool).scaler
    pause, came = scaler._pause, list[object]()

    def be_late() -> None:
        if not came:
            came.append(pool.submit(gate.hold))
            gate.wait_until_held()
        pause()

    monkeypatch.setattr(scaler, "_pause", be_late)
    pool.submit(int).result(DEADLINE)
    eventually(lambda: bool(came), "the tick to pause")

    policy.wait_until_asked(2)
    assert policy.loads[-1].busy == 1
