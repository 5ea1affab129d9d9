"""Stopping tasks on six real drivers: what hangs is let go, and nothing of it meets the next task."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import pytest

from drivers import DRIVERS, TRANSACTIONAL, Driver, Transactional
from support import DEADLINE, Gate, MakePool, eventually
from tasker_executor import ResourceExecutor, TaskStopped, TaskTimeout, current_task
from tasker_executor.factory import ResourceFactory

#: Need no service.
ALONE = {"http", "sqlite3"}
#: Tasks of a storm.
TASKS = 300


def closing(driver: Driver) -> Iterator[Any]:
    yield driver

    eventually(lambda: driver.left() == 0, "the server to have no connection of the test")
    driver.close()


def each(drivers: dict[str, Any]) -> list[Any]:
    return [pytest.param(drivers[name], id=name, marks=[] if name in ALONE else pytest.mark.services) for name in drivers]


@pytest.fixture(params=each(DRIVERS))
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Driver]:
    yield from closing(request.param(tmp_path))


@pytest.fixture(params=each(TRANSACTIONAL))
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Transactional]:
    yield from closing(request.param(tmp_path))


class Aborts:
    """The aborts of a factory, which can be held before they do anything."""

    def __init__(self, factory: ResourceFactory[Any]) -> None:
        self._abort: Callable[[Any], None] = factory.abort
        self.held = threading.Event()
        self.go_on = threading.Event()
        self.done = threading.Event()
        vars(factory)["abort"] = self

    def __call__(self, resource: Any) -> None:
        self.held.set()
        assert self.go_on.wait(DEADLINE)
        try:
            self._abort(resource)
        finally:
            self.done.set()


# -- a call that hangs --


def test_a_call_that_hangs_is_stopped_and_the_worker_serves_the_next_task(driver: Driver, make_pool: MakePool) -> None:
    pool: ResourceExecutor[Any] = make_pool(1, resource=driver.factory())
    for number in range(3):
        hanging = pool.submit(driver.hang)
        driver.wait_until_hanging()

        assert hanging.stop()

        error = hanging.exception(DEADLINE)
        assert isinstance(error, TaskStopped)
        assert isinstance(error.__cause__, driver.errors)
        assert pool.submit(driver.ask, number).result(DEADLINE) == number
    pool.shutdown()
    assert (pool.stats().stopped, pool.stats().written_off, pool.stats().retried) == (3, 0, 0)


def test_a_call_that_hangs_is_timed_out(driver: Driver, make_pool: MakePool) -> None:
    pool: ResourceExecutor[Any] = make_pool(1, resource=driver.factory())
    assert pool.submit(driver.ask, 1).result(DEADLINE) == 1
    error = pool.with_options(run_within=0.1).submit(driver.hang).exception(DEADLINE)

    assert isinstance(error, TaskTimeout)
    assert isinstance(error.__cause__, driver.errors)
    assert pool.submit(driver.ask, 2).result(DEADLINE) == 2
    pool.shutdown()
    assert (pool.stats().timed_out, pool.stats().written_off, pool.stats().retried) == (1, 0, 0)


def test_a_task_that_may_be_run_again_is_not_when_it_was_stopped(driver: Driver, make_pool: MakePool) -> None:
    runs: list[int] = []

    def task(resource: Any) -> object:
        runs.append(current_task().attempt)
        return driver.hang(resource)

    options = {"retry_broken": True} if driver.__class__.__name__ in ("Redis", "Pika", "HTTP") else {"retry_conflicts": True}
    pool: ResourceExecutor[Any] = make_pool(1, resource=driver.factory(**options))
    hanging = pool.submit(task)
    driver.wait_until_hanging()
    hanging.stop()

    assert isinstance(hanging.exception(DEADLINE), TaskStopped)
    assert pool.submit(driver.ask, 1).result(DEADLINE) == 1
    assert runs == [1]


# -- a task that does not obey --


def test_a_task_that_swallows_the_error_returns_its_value(driver: Driver, make_pool: MakePool) -> None:
    def stubborn(resource: Any) -> str:
        try:
            driver.hang(resource)
        except driver.errors:
            return "swallowed"
        return "never"

    pool: ResourceExecutor[Any] = make_pool(1, resource=driver.factory())
    future = pool.submit(stubborn)
    after = pool.submit(driver.ask, 1)
    driver.wait_until_hanging()
    future.stop()

    assert future.result(DEADLINE) == "swallowed"
    assert after.result(DEADLINE) == 1


def test_a_task_that_goes_on_with_the_resource_gets_its_own_answer_or_an_error(driver: Driver, make_pool: MakePool) -> None:
    def stubborn(resource: Any) -> int:
        try:
            driver.hang(resource)
        except driver.errors:
            pass
        return driver.ask(resource, 1)

    pool: ResourceExecutor[Any] = make_pool(1, resource=driver.factory())
    future = pool.submit(stubborn)
    after = pool.submit(driver.ask, 2)
    driver.wait_until_hanging()
    future.stop()
    error = future.exception(DEADLINE)

    assert after.result(DEADLINE) == 2
    if error is None:
        assert future.result() == 1
    else:
        assert isinstance(error, TaskStopped)
        assert isinstance(error.__cause__, driver.errors)


# -- when the abort comes --


def test_an_abort_between_two_calls_does_not_reach_the_next_task(driver: Driver, make_pool: MakePool, gate: Gate) -> None:
    def task(resource: Any) -> int:
        driver.ask(resource, 1)
        gate.hold()
        return driver.ask(resource, 2)

    factory = driver.factory()
    aborts = Aborts(factory)
    aborts.go_on.set()
    pool: ResourceExecutor[Any] = make_pool(1, resource=factory)
    future = pool.submit(task)
    after = pool.submit(driver.ask, 3)
    gate.wait_until_held()
    future.stop()
    assert aborts.done.wait(DEADLINE)
    gate.release()
    error = future.exception(DEADLINE)

    assert after.result(DEADLINE) == 3
    assert error is None or (isinstance(error, TaskStopped) and isinstance(error.__cause__, driver.errors))


def test_a_call_that_begins_after_the_abort_is_ended_too(driver: Driver, make_pool: MakePool, gate: Gate) -> None:
    def task(resource: Any) -> object:
        driver.ask(resource, 1)
        gate.hold()
        return driver.hang(resource)

    factory = driver.factory()
    aborts = Aborts(factory)
    aborts.go_on.set()
    pool: ResourceExecutor[Any] = make_pool(1, resource=factory, abort_grace=DEADLINE)
    future = pool.submit(task)
    after = pool.submit(driver.ask, 2)
    gate.wait_until_held()
    future.stop()
    assert aborts.done.wait(DEADLINE)
    gate.release()
    error = future.exception(DEADLINE)

    assert isinstance(error, TaskStopped)
    assert isinstance(error.__cause__, driver.errors)
    assert after.result(DEADLINE) == 2
    assert pool.stats().written_off == 0


def test_an_abort_that_comes_after_the_call_is_over_before_the_next_task_begins(
    driver: Driver, make_pool: MakePool, gate: Gate
) -> None:
    def task(resource: Any) -> int:
        gate.hold()
        return driver.ask(resource, 1)

    factory = driver.factory()
    aborts = Aborts(factory)
    pool: ResourceExecutor[Any] = make_pool(1, resource=factory)
    future = pool.submit(task)
    after = pool.submit(driver.ask, 2)
    gate.wait_until_held()
    future.stop()
    assert aborts.held.wait(DEADLINE)
    gate.release()

    assert future.result(DEADLINE) == 1  # the result does not wait for the abort, and stands
    with pytest.raises(FutureTimeout):
        after.result(0.05)
    aborts.go_on.set()
    assert after.result(DEADLINE) == 2


# -- storms --


def storm(pool: ResourceExecutor[Any], task: Callable[[Any, int], int], seed: int) -> list[int]:
    """Stop every second task at some moment, with the next one right behind it; return those that have their result."""
    luck = random.Random(seed)
    returned: list[int] = []
    hit: set[int] = set()

    def run(resource: Any, number: int, begun: threading.Event) -> int:
        begun.set()
        try:
            return task(resource, number)
        except Exception:
            hit.add(number)
            raise

    for number in range(0, TASKS, 2):
        begun = threading.Event()
        victim = pool.submit(run, number, begun)
        after = pool.submit(run, number + 1, threading.Event())
        assert begun.wait(DEADLINE)
        threading.Event().wait(luck.random() * 0.003)
        stopped = victim.stop()
        error = victim.exception(DEADLINE)

        if error is None:
            assert victim.result() == number
            returned.append(number)
        else:
            assert stopped, (seed, number, error)
            assert isinstance(error, TaskStopped), (seed, number, error)
        assert after.result(DEADLINE) == number + 1, seed
        returned.append(number + 1)
    assert not {number for number in hit if number % 2}, seed
    return returned


def test_in_a_storm_of_stops_each_task_has_its_own_answer(driver: Driver, make_pool: MakePool) -> None:
    pool: ResourceExecutor[Any] = make_pool(1, resource=driver.factory(), max_retries=0)

    assert len(storm(pool, driver.ask, random.randrange(2**32))) >= TASKS / 2
    pool.shutdown()
    assert pool.stats().written_off == 0


def test_in_a_storm_of_stops_a_transaction_is_committed_if_and_only_if_its_task_returned(
    database: Transactional, make_pool: MakePool
) -> None:
    def insert(resource: Any, number: int) -> int:
        database.insert(resource, number)
        return database.ask(resource, number)

    pool: ResourceExecutor[Any] = make_pool(1, resource=database.factory(transaction=True), max_retries=0)
    returned = storm(pool, insert, random.randrange(2**32))

    assert database.rows() == returned


# -- in COMMIT --


def test_a_task_that_is_stopped_in_commit_has_committed_nothing(database: Transactional, make_pool: MakePool) -> None:
    options = {"timeout": 0.5} if "SQLite" in type(database).__name__ else {}
    pool: ResourceExecutor[Any] = make_pool(1, resource=database.factory(transaction=True, **options))
    pool.submit(database.ask, 1).result(DEADLINE)
    with database.holding_commits():
        future = pool.submit(database.insert, 1)
        database.wait_until_committing()
        future.stop()
        error = future.exception(DEADLINE)

    assert isinstance(error, TaskStopped)
    assert isinstance(error.__cause__, database.errors)
    pool.submit(database.insert, 2).result(DEADLINE)
    assert database.rows() == [2]
