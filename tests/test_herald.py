"""The herald: callbacks, observers and log handlers hear of what the timer did on a thread of their own."""

from __future__ import annotations

import threading
from _thread import LockType
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from engine import (
    Herald,
    Step,
    deadlines_lock,
    herald_of,
    replace_step,
    thread_prefix_of,
)
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import (
    Observer,
    ResourceCreationError,
    ResourceExecutor,
    ShutdownTimeout,
    TaskExpired,
)
from tasker_executor.observers import ScaleEvent, StateEvent, TaskEvent
from timer_support import Script, refusing_start


def heralds() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.endswith("_herald")]


def expire_one(pool: ResourceExecutor[None], *callbacks: Callable[[Future[int]], object]) -> Future[int]:
    """Submit a task that expires, with these callbacks."""
    with deadlines_lock(pool):  # until they are there
        future = pool.with_options(start_within=0.0).submit(int)
        for callback in callbacks:
            future.add_done_callback(callback)
    return future


def test_callback_of_an_expired_task_may_take_its_time(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    names: list[str] = []
    with Gate() as callback:
        expire_one(pool, lambda _: names.append(threading.current_thread().name), lambda _: callback.hold())
        callback.wait_until_held()
        second = expire_one(pool, lambda _: names.append("second"))

        assert isinstance(second.exception(DEADLINE), TaskExpired)
        assert len(names) == 1
    eventually(lambda: len(names) == 2, "the callback of the second task")
    assert names[0].endswith("_herald")
    eventually(lambda: heralds() == [], "the herald to end when there is nothing to tell")


def test_callbacks_of_an_expired_task_are_called_in_their_order(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    called: list[int] = []

    def note(number: int) -> Callable[[Future[int]], None]:
        return lambda _: called.append(number)

    expire_one(pool, *map(note, range(10)))
    eventually(lambda: len(called) == 10, "all callbacks")

    assert called == list(range(10))


def test_callback_of_an_expired_task_may_wait_for_a_task(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    results: list[int] = []

    def fall_back(_: Future[int]) -> None:
        results.append(pool.submit(int, "7").result(DEADLINE))

    expire_one(pool, fall_back).exception(DEADLINE)
    gate.release()
    eventually(lambda: results == [7], "the result that the callback waits for")


def test_a_worker_leaves_the_callbacks_of_an_expired_task_to_the_thread_that_they_are_meant_for(
    make_pool: MakePool, gate: Gate
) -> None:
    # 1. The timer ends a task, and is about to have its callbacks called. 2. A worker pops that task.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    herald = herald_of(pool)
    tell, callers = herald.tell, list[str]()
    with Gate() as telling:

        def tell_late() -> None:
            if herald._news:
                telling.hold()
            tell()

        replace_step(pool, Step.TELL, tell_late)
        expire_one(pool, lambda _: callers.append(threading.current_thread().name))
        telling.wait_until_held()
        gate.release()
        assert pool.submit(int, "7").result(DEADLINE) == 7
        assert callers == []

    eventually(lambda: bool(callers), "the callback")
    assert callers == [f"{thread_prefix_of(pool)}_herald"]


class Witness(Observer):
    """Notes on which thread it is told of what."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def _note(self, event: str) -> None:
        self.told.append((event, threading.current_thread().name.rpartition("_")[2]))

    def task_finished(self, event: TaskEvent) -> None:
        self._note("finished")

    def scaled(self, event: ScaleEvent) -> None:
        self._note("scaled")

    def state_changed(self, event: StateEvent) -> None:
        self._note(event.state)


def test_observers_and_log_handlers_hear_nothing_on_the_thread_that_keeps_time(
    make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Script(3)
    witness = Witness()
    pool = make_pool(4, policy=policy, observers=[witness])
    with caplog.at_level("DEBUG"):
        for _ in range(4):
            pool.submit(gate.hold)
        expire_one(pool).exception(DEADLINE)
        eventually(lambda: {"finished", "scaled"} <= {event for event, _ in witness.told}, "the events")
        policy.error = LookupError("no such load")
        policy.wait_until_asked(2)
        eventually(lambda: "last target stands" in caplog.text, "the record")

    assert {thread for _, thread in witness.told} == {"herald"}
    assert "LookupError: no such load" in caplog.text
    assert [record.threadName for record in caplog.records if (record.threadName or "").endswith("_timer")] == []
    gate.release()


def test_task_that_starved_calls_back_elsewhere(make_pool: MakePool, clock: Clock, gate: Gate) -> None:
    names: list[str] = []

    def create() -> FakeResource:
        gate.hold()
        raise OSError("down")

    pool = make_pool(1, on_create=create, create_timeout=60.0)
    future = pool.submit(FakeResource.use)
    future.add_done_callback(lambda _: names.append(threading.current_thread().name))
    gate.wait_until_held()
    clock.pass_time(61.0, pool)
    assert isinstance(future.exception(DEADLINE), ResourceCreationError)
    eventually(lambda: bool(names), "the callback")

    assert names[0].endswith("_herald")


def test_shutdown_waits_for_callbacks_of_expired_tasks(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    with Gate() as callback:
        future = expire_one(pool, lambda _: callback.hold())
        callback.wait_until_held()
        gate.release()
        held.result(DEADLINE)

        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.05)
        assert future.done()
        assert pool.stats().state == "draining"
    pool.shutdown(timeout=DEADLINE)
    assert heralds() == []


def test_shutdown_waits_for_the_thread_that_called_back(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = Herald._main
    with Gate() as last_steps:

        def end_slowly(herald: Herald, birth: LockType) -> None:
            main(herald, birth)
            last_steps.hold()

        monkeypatch.setattr(Herald, "_main", end_slowly)
        pool = make_pool(1)
        held = pool.submit(gate.hold)
        gate.wait_until_held()
        expire_one(pool, id)
        last_steps.wait_until_held()
        gate.release()
        held.result(DEADLINE)

        with pytest.raises(ShutdownTimeout):
            pool.shutdown(timeout=0.05)
        eventually(lambda: pool.stats().state == "closed", "the executor to close")


def test_callback_of_an_expired_task_may_shut_the_pool_down(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ended: list[bool] = []

    def end(_: Future[int]) -> None:
        pool.shutdown()
        ended.append(True)

    expire_one(pool, end)
    eventually(lambda: ended == [True], "the shutdown to return")


def test_observers_hear_of_the_last_task_before_the_end(make_pool: MakePool) -> None:
    # The only task expires while the pool drains and no worker is left: the end comes right behind it.
    witness = Witness()
    pool = make_pool(1, observers=[witness], initializer=int)
    with deadlines_lock(pool):  # the timer cannot expire it yet
        replace_step(pool, Step.MAY_START, lambda: False)  # nor does a worker take it
        pool.with_options(start_within=0.0).submit(int)
        pool.shutdown(wait=False)
        assert witness.told == [("draining", "MainThread")]
    pool.shutdown()

    assert [event for event, _ in witness.told] == ["draining", "finished", "closed"]
    assert {thread for _, thread in witness.told[1:]} == {"herald"}


def test_callbacks_are_called_though_no_thread_can_be_started_for_them(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    refused = refusing_start(monkeypatch, "_herald")
    names: list[str] = []
    expire_one(pool, lambda _: names.append(threading.current_thread().name))
    eventually(lambda: len(names) == 1, "the callback")
    expire_one(pool, lambda _: names.append(threading.current_thread().name))
    eventually(lambda: len(names) == 2, "the next callback")

    assert len(refused) == 2
    assert [name.rpartition("_")[2] for name in names] == ["timer"] * 2
