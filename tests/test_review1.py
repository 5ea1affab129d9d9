"""A retry on the same worker, refresh, and factories: what an adversary tried."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine import Worker, workers_of
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually
from tasker_executor._engine.attempt import Attempts
from tasker_executor.factory import Verdict


class Thrown(BaseException):
    """What some libraries throw into a thread to stop a task that hangs."""


class Conflict(Exception):
    """A task meets it in its first attempts."""


def judge(error: Exception) -> Verdict:
    if isinstance(error, Conflict):
        return Verdict.AGAIN
    return Verdict.BROKEN if isinstance(error, ResourceBroken) else Verdict.OWN


class Conflicting:
    """A task that meets a conflict in its first attempt, and then returns the number of its resource."""

    def __init__(self) -> None:
        self.runs: list[FakeResource] = []

    def __call__(self, resource: FakeResource) -> int:
        self.runs.append(resource)
        if len(self.runs) == 1:
            raise Conflict
        return resource.use()


# -- run again on the same worker --


def test_error_thrown_in_between_two_attempts_is_not_taken_for_a_result(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. An attempt has raised, and the next is to begin on the same worker. 2. An error is thrown in. 3. The task goes on."""
    original, calls = Worker._begin_again, list[int]()

    def begin_again(worker: Worker, task: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise Thrown
        return original(worker, task)

    monkeypatch.setattr(Worker, "_begin_again", begin_again)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=judge)

    assert pool.submit(Conflicting()).result(DEADLINE) == 1
    assert (pool.stats().completed, pool.stats().failed, pool.stats().retried) == (1, 0, 1)


def test_error_thrown_in_as_the_next_attempt_begins_is_the_error_of_the_task(
    make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Attempts.begin, list[int]()

    def begin(attempts: Attempts, task: Any, start: float) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Thrown
        original(attempts, task, start)

    monkeypatch.setattr(Attempts, "begin", begin)
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=judge, max_uses=10)

    assert isinstance(pool.submit(Conflicting()).exception(DEADLINE), Thrown)


@pytest.mark.parametrize("destroy", [False, True])
def test_killed_pool_begins_no_other_attempt_on_the_same_worker(
    make_pool: MakePool, ledger: Ledger, gate: Gate, destroy: bool
) -> None:
    """1. An attempt has raised, and the resource is being reset for the next. 2. `kill` finds no task to abort."""
    ledger.any_thread = True
    task = Conflicting()
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=judge, on_reset=gate.hold)
    future = pool.submit(task)
    gate.wait_until_held()
    pool.kill(destroy=destroy)
    gate.release()

    assert isinstance(future.exception(DEADLINE), Conflict)
    assert len(task.runs) == 1


# -- a retry that needs a new resource --


class Recovering:
    """A task that breaks its first resource, and then returns the number of the one that it runs on."""

    def __init__(self) -> None:
        self.runs: list[FakeResource] = []

    def __call__(self, resource: FakeResource) -> int:
        self.runs.append(resource)
        if len(self.runs) == 1:
            self.before_breaking()
            resource.break_down()
        return resource.use()

    def before_breaking(self) -> None:
        """Do nothing; a test may put something else here."""


def test_retry_is_not_starved_by_a_worker_that_waits_for_no_successor(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    """1. The broken worker has no successor: there are fewer now. 2. The other one always finds another task to run first."""
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, check_health=judge)
    breaking, enough = Gate(), threading.Event()
    task, links = Recovering(), list[int]()
    task.before_breaking = breaking.hold  # type: ignore[method-assign]  # for this instance

    def chain(_: FakeResource) -> None:
        links.append(1)
        if len(links) < 1000 and not enough.is_set():
            pool.submit(chain)

    with breaking:
        retried = pool.submit(task)
        breaking.wait_until_held()
        pool.submit(gate.hold)
        gate.wait_until_held()
        pool.resize(max_workers=1)
        pool.submit(chain)
    eventually(lambda: len(workers_of(pool)) == 1, "one worker")
    gate.release()
    retried.add_done_callback(lambda _: enough.set())

    assert retried.result(DEADLINE) == 2
    assert len(links) < 1000


def test_retry_runs_on_a_new_worker_while_on_destroy_hangs_if_there_is_room(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    """1. The broken worker hangs in `on_destroy`. 2. An idle worker that took the retry would have to end, too, and hang."""

    def destroy(resource: FakeResource) -> None:
        gate.hold()
        ledger.destroy(resource)

    pool = make_pool(4, min_workers=2, on_create=ledger.create, on_destroy=destroy, check_health=judge)
    pool.wait_ready()

    assert pool.submit(Recovering()).result(DEADLINE) == 2
    gate.wait_until_held()
    assert pool.stats().active_workers == 3


def test_retry_that_was_left_to_workers_that_hang_is_taken_by_an_idle_one(
    make_pool: MakePool, ledger: Ledger, gate: Gate, clock: Clock
) -> None:
    """1. Successors are starting, so no idle worker was woken for the retry. 2. They hang in `on_create`, in all places."""
    hanging: list[int] = []

    def create() -> FakeResource:
        if hanging:
            hanging.pop()
            gate.hold()
        return ledger.create()

    pool = make_pool(4, min_workers=4, on_create=create, on_destroy=ledger.destroy, check_health=judge, create_timeout=3600.0)
    pool.wait_ready()
    task = Recovering()
    task.before_breaking = lambda: hanging.extend([1, 1])  # type: ignore[method-assign]  # for this instance
    retried = pool.submit(task)
    gate.wait_until_held(2)
    clock.pass_time(3601.0, pool)

    assert retried.result(DEADLINE) == 4
