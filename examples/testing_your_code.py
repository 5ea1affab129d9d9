"""Tests of code that uses a pool, which need no server, no sleep and no luck: docs/howto/testing.rst.

    python examples/testing_your_code.py
    pytest examples/testing_your_code.py

The code under test sends reminders. It is handed its executor, so a test may hand it another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Protocol

from tasker_executor import BacklogPolicy, Hysteresis, ResourceCreationError, ResourceExecutor, TaskStopped, current_task
from tasker_executor.simulation import simulate
from tasker_executor.testing import FakeResource, Gate, InlineExecutor, Ledger, ResourceBroken, assert_no_leaks

# -- the code under test


class Connection(Protocol):
    def use(self, *args: object) -> int: ...


def remind(connection: Connection, name: str) -> str:  # the task
    connection.use("send a mail to", name)
    return f"reminded {name}"


def remind_all(pool: ResourceExecutor[FakeResource] | InlineExecutor[FakeResource], names: Iterable[str]) -> list[str]:
    futures: list[Future[str]] = [pool.submit(remind, name) for name in names]
    return [future.result() if not future.exception() else f"failed: {future.exception()!r}" for future in futures]


# -- the tests


def test_a_task_is_a_function() -> None:
    assert remind(Ledger().create(), "Ada") == "reminded Ada"


def test_all_are_reminded() -> None:
    with InlineExecutor(on_create=Ledger().create) as pool:
        assert remind_all(pool, ["Ada", "Grace"]) == ["reminded Ada", "reminded Grace"]


def test_a_broken_connection_costs_nobody_a_reminder() -> None:
    ledger = Ledger()
    with InlineExecutor(on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy) as pool:
        pool.wait_ready()
        ledger.alive[0].broken = True
        assert remind_all(pool, ["Ada", "Grace"]) == ["reminded Ada", "reminded Grace"]
        assert pool.stats().retried == 1
    ledger.check()  # each connection was closed once


def test_an_outage_is_reported() -> None:
    ledger = Ledger()
    ledger.outage = OSError("the server is down")
    with InlineExecutor(on_create=ledger.create) as pool:
        assert remind_all(pool, ["Ada"])[0].startswith(f"failed: {ResourceCreationError.__name__}")


def test_a_task_that_always_breaks_its_connection_takes_two() -> None:
    ledger = Ledger()
    with InlineExecutor(on_create=ledger.create, check_health=ledger.is_healthy, max_retries=1) as pool:
        assert isinstance(pool.submit(FakeResource.break_down).exception(), ResourceBroken)
    assert len(ledger.created) == 2


def test_an_urgent_reminder_overtakes_the_others() -> None:
    order: list[str] = []
    ledger = Ledger()
    with assert_no_leaks(), ResourceExecutor(1, on_create=ledger.create, on_destroy=ledger.destroy) as pool, Gate() as gate:
        pool.submit(gate.hold)
        gate.wait_until_held()  # the only worker is busy now, and we know it
        pool.submit(lambda _connection: order.append("normal"))
        pool.submit_priority(lambda _connection: order.append("urgent"))
    assert order == ["urgent", "normal"]
    ledger.check()


def test_a_reminder_can_be_stopped() -> None:
    def remind_for_ever() -> None:
        gate.hold()
        while not current_task().wait(1.0):
            pass
        current_task().raise_if_cancelled()

    with ResourceExecutor(1) as pool, Gate() as gate:
        future = pool.submit(remind_for_ever)
        gate.wait_until_held()
        assert future.stop()
        gate.release()
        assert isinstance(future.exception(), TaskStopped)


def test_the_policy_keeps_up_on_a_monday() -> None:
    monday = [second + task / 40 for second in range(60) for task in range(40)]  # arrivals, in seconds
    policy = Hysteresis(BacklogPolicy(), shrink_after=30)
    result = simulate(policy, monday, service_time=0.1, create_time=0.5, min_workers=2, max_workers=16)
    assert result.p99_wait < 1.0
    assert result.creations <= 16  # none was given up too early


TESTS: list[Callable[[], None]] = [test for name, test in globals().items() if name.startswith("test_")]

if __name__ == "__main__":
    for test in TESTS:
        test()
        print("passed:", test.__name__.removeprefix("test_").replace("_", " "))
