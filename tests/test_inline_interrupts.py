"""`InlineExecutor`: an error thrown in at every point of a call, and what other threads do in the middle of one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

import tasker_executor.testing.inline
from interruptions import ERRORS, AtPoint
from support import DEADLINE
from tasker_executor import ResourceCreationError
from tasker_executor.testing import InlineExecutor, assert_no_leaks

Pool = InlineExecutor[list[str]]

# An error thrown into a generator that is just being closed is lost, and Python says so.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class AtInlinePoint(AtPoint):
    skipped = ""


def use(resource: list[str], *_: object) -> str:
    resource.append("used")
    return "done"


def break_first(resource: list[str]) -> None:
    if not resource:
        resource.append("broken")
        raise ConnectionError


def queue_two(pool: Pool) -> list[Future[str]]:
    return [pool.submit(use), pool.submit_priority(use)]


def kill_inside(pool: Pool) -> None:
    pool.run_now(lambda _: pool.kill(destroy=True))


EXPECTED: tuple[type[BaseException], ...] = (*ERRORS, CancelledError, ResourceCreationError)
Prepare = Callable[[Pool], list[Future[str]]]
#: What is called, what is done before, and whether tasks are queued.
CALLS: dict[str, tuple[Callable[[Pool], object], Prepare, bool]] = {
    "submit": (lambda pool: pool.submit(use), lambda _: [], False),
    "submit, broken resource": (lambda pool: pool.submit(break_first), lambda _: [], False),
    "submit, deferred": (lambda pool: pool.submit(use), lambda _: [], True),
    "map": (lambda pool: list(pool.map(use, range(2))), lambda _: [], False),
    "map, deferred chunks": (lambda pool: list(pool.map(use, range(4), chunksize=2)), lambda _: [], True),
    "step": (lambda pool: pool.step(), queue_two, True),
    "run_all": (lambda pool: pool.run_all(), queue_two, True),
    "result": (lambda pool: pool.submit(use).result(), queue_two, True),
    "cancel": (lambda pool: pool.submit(use).cancel(), queue_two, True),
    "run_now": (lambda pool: pool.run_now(use), lambda _: [], False),
    "wait_ready": (lambda pool: pool.wait_ready(), lambda _: [], False),
    "shutdown": (lambda pool: pool.shutdown(), queue_two, True),
    "shutdown(cancel_futures)": (lambda pool: pool.shutdown(cancel_futures=True), queue_two, True),
    "kill": (lambda pool: pool.kill(), queue_two, True),
    "kill(destroy)": (kill_inside, queue_two, True),
}


def attempt(
    call: Callable[[Pool], object], prepare: Prepare, deferred: bool, number: int, error: type[BaseException]
) -> str | None:
    """Throw at that point; then everything works, and everything ends. None: there is no such point."""
    destroyed: list[int] = []
    pool: Pool = InlineExecutor(
        on_create=list[str],
        on_destroy=lambda resource: destroyed.append(id(resource)),
        check_health=lambda raised: not isinstance(raised, ConnectionError),
        deferred=deferred,
    )

    def throw() -> None:
        raise error

    known = prepare(pool)
    point = AtInlinePoint(number, throw)
    with point:
        try:
            call(pool)
        except EXPECTED:
            pass
    try:
        if pool.stats().state == "running":
            assert pool.submit(use).result() == "done"
        pool.shutdown()
        stats = pool.stats()
        assert stats.state == "closed"
        assert stats.running_tasks == stats.queued_tasks == stats.priority_tasks == 0
        assert stats.submitted == stats.completed + stats.failed + stats.cancelled
        assert stats.resources_created == stats.resources_destroyed == len(destroyed)
        assert all(future.done() for future in known)
    except BaseException as failure:
        raise AssertionError(f"after {error.__name__} at point {number}, {point.where}") from failure
    return point.where


@pytest.mark.long
@pytest.mark.parametrize("error", ERRORS[:2], ids=lambda error: error.__name__)
@pytest.mark.parametrize("call, prepare, deferred", list(CALLS.values()), ids=list(CALLS))
def test_an_error_thrown_in_anywhere_leaves_nothing_under_way(
    call: Callable[[Pool], object], prepare: Prepare, deferred: bool, error: type[BaseException]
) -> None:
    points = 0
    while attempt(call, prepare, deferred, points + 1, error):
        points += 1

    assert points >= 5


def test_no_queued_task_starts_once_the_executor_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: InlineExecutor[None] = InlineExecutor(deferred=True)
    ran: list[int] = []
    future = pool.submit(ran.append, 1)
    stepped: list[bool] = []
    cancel_queued = pool._cancel_queued

    def step_first() -> None:  # the killer has marked the executor, and has yet to look at the lanes
        stepper = threading.Thread(target=lambda: stepped.append(pool.step()))
        stepper.start()
        stepper.join(DEADLINE)
        cancel_queued()

    monkeypatch.setattr(pool, "_cancel_queued", step_first)
    pool.kill()

    assert (stepped, ran) == ([False], [])
    assert future.cancelled()
    assert pool.stats().state == "closed"


def test_who_waits_for_a_task_of_a_killed_executor_gets_it_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: InlineExecutor[None] = InlineExecutor(deferred=True)
    future = pool.submit(int)
    cancel_queued = pool._cancel_queued
    outcomes: list[type[BaseException]] = []

    def ask_first() -> None:
        def ask() -> None:
            try:
                future.result()
            except CancelledError as error:
                outcomes.append(type(error))

        asker = threading.Thread(target=ask)
        asker.start()
        asker.join(DEADLINE)
        cancel_queued()

    monkeypatch.setattr(pool, "_cancel_queued", ask_first)
    pool.kill()

    assert outcomes == [CancelledError]


def test_a_resource_made_while_the_executor_shuts_down_is_destroyed() -> None:
    destroyed: list[list[str]] = []
    states: list[str] = []

    def create() -> list[str]:
        closer = threading.Thread(target=pool.shutdown)
        closer.start()
        closer.join(DEADLINE)
        states.append(pool.stats().state)
        return []

    pool: Pool = InlineExecutor(on_create=create, on_destroy=destroyed.append)
    pool.wait_ready()

    assert states == ["draining"]  # not closed before the last resource is gone
    assert destroyed == [[]]
    assert pool.stats().state == "closed"


def test_an_error_of_the_factory_that_cannot_be_shown_is_the_cause_all_the_same() -> None:
    class Shy(Exception):
        def __repr__(self) -> str:
            raise LookupError

    def create() -> list[str]:
        raise Shy

    pool: Pool = InlineExecutor(on_create=create)
    error = pool.submit(use).exception()

    assert isinstance(error, ResourceCreationError)
    assert isinstance(error.__cause__, Shy)
    pool.shutdown()


def test_the_leak_check_bears_executors_that_come_and_go_while_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(dict[int, Any]):
        """A table to which another thread adds while it is looked through, if it lets itself be looked through."""

        def __iter__(self) -> Any:
            for key in super().__iter__():
                extra.append(InlineExecutor())
                yield key

    extra: list[InlineExecutor[None]] = []
    with InlineExecutor(), InlineExecutor():
        table = Busy(tasker_executor.testing.inline.open_executors)
        monkeypatch.setattr(tasker_executor.testing.inline, "open_executors", table)
        with assert_no_leaks(0.0):
            pass
    for executor in extra:
        executor.shutdown()
