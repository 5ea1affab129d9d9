"""`run_now`: an error thrown in at every point (Ctrl-C, a time limit, the end of the stack), and signal handlers there.

See `interruptions`. More is asked than in `test_interrupts`: the caller gets the error, and the pool is whole at once, not only
in the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from engine import free_resources, reserve_of, stock_of
from interruptions import (
    AFTER_SHUTDOWN,
    ERRORS,
    AtPoint,
    Call,
    Pool,
    break_the_first,
    check_both_workers_run,
    check_the_end,
    make,
)
from support import DEADLINE, FakeResource, Ledger, ResourceBroken
from tasker_executor import TaskStopped

#: Lets `run_now` be stopped, and never stops it in time.
LIMIT = {"run_within": 2 * DEADLINE}
#: Makes `run_now` look at a resource before and after it is used.
CARE = {"max_age": DEADLINE, "max_uses": 2}


def use(pool: Pool) -> object:
    return pool.run_now(lambda resource: resource.use())


def use_in_use(pool: Pool) -> object:
    return pool.run_now(lambda resource: (resource.use(), pool.run_now(FakeResource.use)))


def shut_down_inside(pool: Pool) -> object:
    return pool.run_now(lambda resource: (pool.shutdown(timeout=DEADLINE), resource.use()))


def break_it(pool: Pool) -> object:
    return pool.with_options(max_retries=1).run_now(break_the_first)


def age(pool: Pool) -> None:
    for holding in free_resources(pool) or ():
        holding.expires = 0


def kill_and_destroy(pool: Pool) -> None:
    pool.kill(destroy=True)


def use_aborted(pool: Pool) -> object:
    def task(resource: FakeResource) -> None:
        for holding in stock_of(pool).all:
            holding.call.grip.claim()  # as an abort does
        resource.use()

    return pool.run_now(task)


def is_good(_: FakeResource) -> bool:
    return True


def number_of(resource: FakeResource) -> int:
    return resource.number


CALLS: dict[str, Call] = {
    "resource of the pool": Call(use, options={"resource_pool_size": 1}),
    "temporary resource": Call(use),
    "nested, the inner one temporary": Call(use_in_use, options={"resource_pool_size": 1}),
    "broken resource": Call(break_it, options={"resource_pool_size": 1}),
    "broken temporary resource": Call(break_it),
    "resource under care": Call(use, options={"resource_pool_size": 1, **CARE}),
    "temporary resource under care": Call(use, options=CARE),
    "resource that is used up": Call(use, use, options={"resource_pool_size": 1, **CARE}),
    "resource that is too old": Call(use, age, options={"resource_pool_size": 1, **CARE}),
    "resource of the pool, with a limit": Call(use, options={"resource_pool_size": 1, **LIMIT}),
    "temporary resource, with a limit": Call(use, options=LIMIT),
    "broken resource, with a limit": Call(break_it, options={"resource_pool_size": 1, **LIMIT}),
    "resource that is aborted": Call(use_aborted, options={"resource_pool_size": 1, **LIMIT}),
    "resource that is aborted and checked": Call(
        use_aborted, options={"resource_pool_size": 1, "check_resource": is_good, **LIMIT}
    ),
    "shutdown inside": Call(shut_down_inside, options={"resource_pool_size": 2}),
    "shutdown inside, temporary resource": Call(shut_down_inside),
    "shutdown": Call(Pool.shutdown, use, options={"resource_pool_size": 2}),
    "shutdown without wait": Call(lambda pool: pool.shutdown(wait=False), use, options={"resource_pool_size": 2}),
    "kill": Call(Pool.kill, use, options={"resource_pool_size": 2, "on_abort": repr}),
    "kill(destroy)": Call(kill_and_destroy, use, options={"resource_pool_size": 2}),
}

#: What is thrown in as `check_health` or `check_resource` returns is taken for the hook's own error, as what is thrown in while
#: the hook runs must be. The caller does not get it then, but it is logged.
HOOK_RAISED = "raised; the resource "


class Records(logging.Handler):
    """The errors that are logged as a hook's own."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[object] = []

    def emit(self, record: logging.LogRecord) -> None:
        if HOOK_RAISED in record.getMessage() and record.exc_info:
            self.errors.append(record.exc_info[0])


@pytest.fixture
def records() -> Iterator[Records]:
    handler = Records()
    logger = logging.getLogger("tasker_executor")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


HANDLERS: dict[str, Callable[[Pool], object]] = {
    "run_now": use_in_use,
    "shutdown without wait": lambda pool: pool.shutdown(wait=False),
    "shutdown": lambda pool: pool.shutdown(timeout=DEADLINE),
}


def check_the_pool_is_whole(pool: Pool, ledger: Ledger) -> None:
    """After one call more, each resource is either free or a worker's."""
    check_both_workers_run(pool)
    pool.run_now(FakeResource.use)
    stats = pool.stats()
    resources = reserve_of(pool)
    if not resources._care:
        assert stats.available_resources == resources._size
    assert len(ledger.alive) == stats.available_resources + stats.active_workers
    assert [holding for holding in stock_of(pool).all if holding.call is not None] == []
    assert resources.callers() == []


def attempt(
    scenario: Call, number: int, act: Callable[[Pool], object], error: type[BaseException] | None, logged: list[object]
) -> str | None:
    """Act at that point of the call. Return the point; None if there is no such point."""
    logged.clear()
    ledger = Ledger()
    ledger.any_thread = True
    pool = make(ledger, scenario.options)
    point = AtPoint(number, lambda: act(pool))
    caught: BaseException | None = None
    try:
        scenario.prepare(pool)
        with point:
            try:
                scenario.call(pool)
            except BaseException as raised:
                caught = raised
        # The rest of what ends a pool is in `test_interrupts`.
        if error is not None and point.where is not None and (pool.stats().state == "running" or "core.py" not in point.where):
            assert type(caught) is error or logged == [error], f"the caller gets {caught!r}"
        elif caught is not None and type(caught) is not error and str(caught) != AFTER_SHUTDOWN:
            raise caught
        if pool.stats().state == "running":
            check_the_pool_is_whole(pool, ledger)
        check_the_end(pool, ledger)
        assert ledger.alive == []
    except BaseException as failure:
        pool.kill()
        raise AssertionError(f"after acting at point {number}, {point.where}") from failure
    return point.where


def at_every_point(
    scenario: Call, act: Callable[[Pool], object], error: type[BaseException] | None = None, logged: list[object] | None = None
) -> int:
    """Return how many points there are."""
    number = 1
    logged = [] if logged is None else logged
    while attempt(scenario, number, act, error, logged):
        number += 1
    return number - 1


@pytest.mark.long
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_an_error_thrown_in_reaches_the_caller_and_costs_no_resource(
    scenario: Call, error: type[BaseException], records: Records
) -> None:
    def throw(_: Pool) -> None:
        raise error

    assert at_every_point(scenario, throw, error, records.errors) >= 5


@pytest.mark.long
@pytest.mark.parametrize("handler", list(HANDLERS.values()), ids=list(HANDLERS))
@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_a_signal_handler_may_use_and_end_the_pool(scenario: Call, handler: Callable[[Pool], object]) -> None:
    def act(pool: Pool) -> None:
        try:
            handler(pool)
        except RuntimeError as error:
            if str(error) != AFTER_SHUTDOWN:
                raise

    assert at_every_point(scenario, act) >= 5


@pytest.mark.long
@pytest.mark.parametrize("scenario", list(CALLS.values()), ids=list(CALLS))
def test_a_signal_handler_may_kill_the_pool_and_destroy_what_is_in_use(scenario: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that it interrupts may find its resource destroyed, and knows it; the books balance."""
    monkeypatch.setattr(FakeResource, "use", number_of)

    def call(pool: Pool) -> None:
        try:
            scenario.call(pool)
        except (ResourceBroken, TaskStopped):
            assert pool.stats().state != "running"

    assert at_every_point(replace(scenario, call=call), kill_and_destroy) >= 5
