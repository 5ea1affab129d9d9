"""A retry on the same worker, refresh, and factories: what an adversary tried."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from engine import Worker, ask_to_leave, workers_of
from races import Thrown
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, ResourceBroken, eventually
from tasker_executor import ResourceCreationError
from tasker_executor._engine.attempt import Attempts
from tasker_executor._engine.crew import Crew
from tasker_executor.factory import ContextManagerFactory, Verdict
from tasker_executor.testing import InlineExecutor


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
    original, calls = Worker.begin_again, list[int]()

    def begin_again(worker: Worker, task: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise Thrown
        return original(worker, task)

    monkeypatch.setattr(Worker, "begin_again", begin_again)
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

    assert pool.submit(Recovering()).result(DEADLINE) >= 2
    gate.wait_until_held()
    assert pool.stats().active_workers >= 3


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
    task.before_breaking = lambda: hanging.append(1)  # type: ignore[method-assign]  # for this instance
    retried = pool.submit(task)
    gate.wait_until_held()
    clock.pass_time(3601.0, pool)

    assert retried.result(DEADLINE) >= 4


@pytest.mark.parametrize("priority", [False, True])
def test_poison_task_costs_one_resource_and_one_for_each_retry_among_idle_and_busy_workers(
    make_pool: MakePool, ledger: Ledger, priority: bool
) -> None:
    """No worker but those that the task has broken ends, whether it is idle or comes by after a task.

    One more may, in a rare case: 1. A new worker moves the retry to its lane. 2. A busy one ends its task, and takes it.
    """

    def destroy(resource: FakeResource) -> None:
        if not others:
            others.extend(pool.submit(FakeResource.use) for _ in range(50))
        ledger.destroy(resource)

    others: list[Any] = []
    pool = make_pool(16, min_workers=16, on_create=ledger.create, on_destroy=destroy, check_health=judge, max_retries=3)
    pool.wait_ready()
    poison = pool.with_options(priority=priority).submit(FakeResource.break_down)

    assert isinstance(poison.exception(DEADLINE), ResourceBroken)
    assert all(future.exception(DEADLINE) is None for future in others)
    eventually(lambda: len(ledger.alive) == 16 and len(ledger.created) > 19, "16 workers again")
    assert len(ledger.destroyed) <= 4 + 2


def test_retry_in_an_outage_takes_no_resource_from_other_workers(make_pool: MakePool, ledger: Ledger) -> None:
    """1. A resource breaks, and the factory fails. 2. Attempts fail, and other tasks run. 3. The factory works again."""
    pool = make_pool(8, min_workers=8, on_create=ledger.create, on_destroy=ledger.destroy, check_health=judge)
    pool.wait_ready()
    task = Recovering()
    task.before_breaking = lambda: setattr(ledger, "outage", OSError("refused"))  # type: ignore[method-assign]  # for this one
    retried = pool.submit(task)
    for attempts in range(9, 13):
        ledger.wait_until_attempted(attempts)
        assert pool.submit(FakeResource.use).exception(DEADLINE) is None
    during = len(ledger.destroyed)
    ledger.outage = None

    assert retried.result(DEADLINE) == 8
    assert during == 1


# -- a resource in doubt --


def test_urgent_task_that_comes_during_a_reset_does_not_get_an_unchecked_resource(
    make_pool: MakePool, ledger: Ledger, gate: Gate
) -> None:
    """1. A worker resets its resource. 2. Another one breaks, so this one is in doubt. 3. An urgent task comes."""
    other, successor = Gate(), Gate()

    def create() -> FakeResource:
        if ledger.attempts == 2:
            successor.hold()
        return ledger.create()

    def reset(resource: FakeResource) -> None:
        if resource.number == 0:
            gate.hold()

    pool = make_pool(
        2,
        on_create=create,
        on_destroy=ledger.destroy,
        check_health=judge,
        check_resource=ledger.is_usable,
        on_reset=reset,
        check_after_idle=3600.0,
        max_retries=0,
    )
    with successor, other:
        pool.submit(FakeResource.use).result()
        gate.wait_until_held()
        pool.submit(other.hold)
        other.wait_until_held()
        breaking = pool.submit_priority(FakeResource.break_down)
        other.release()
        assert isinstance(breaking.exception(DEADLINE), ResourceBroken)
        ledger.created[0].broken = True  # in the same event
        urgent = pool.submit_priority(FakeResource.use)
        gate.release()
        eventually(lambda: urgent.done() or ledger.created[0] in ledger.destroyed, "the first worker, which goes on")
        successor.release()

        assert urgent.result(DEADLINE) > 1


# -- refresh --


def test_destructor_that_submits_may_come_while_a_worker_asks_whether_it_is_stale(
    make_pool: MakePool, ledger: Ledger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A worker looks at all workers, under the lock. 2. A destructor runs on its thread, and its task starts a worker."""
    original, looks, futures = Crew._is_stale, list[int](), list[Any]()

    def is_stale(crew: Crew, worker: Worker) -> bool:
        looks.append(1)
        if len(looks) == 2:  # the first look is at the worker itself
            futures.append(pool.submit(FakeResource.use))
        return original(crew, worker)

    pool = make_pool(4, on_create=ledger.create, on_destroy=ledger.destroy)
    for _ in range(2):
        pool.submit(gate.hold)
    gate.wait_until_held(2)
    monkeypatch.setattr(Crew, "_is_stale", is_stale)
    ask_to_leave(pool)

    assert pool.submit(FakeResource.use).exception(DEADLINE) is None
    assert futures[0].exception(DEADLINE) is None


# -- context managers as resources --


def test_signal_handler_may_destroy_a_resource_while_its_thread_makes_one() -> None:
    """A handler may come inside of the factory, on the main thread, which is in `run_now`; and it may call `shutdown`."""

    @contextmanager
    def make() -> Generator[object]:
        yield object()

    factory = ContextManagerFactory(make)
    first, lines = factory.create(), list[str]()

    def handler(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code is not ContextManagerFactory.create.__code__:
            return None
        if event == "line" and frame.f_locals.get("resource") is not None:
            lines.append("before")
            if len(lines) == 3:  # the `try`, the `with`, and inside of it
                factory.destroy(first)
                lines.append("after")
        return handler

    def create() -> None:
        sys.settrace(handler)
        try:
            factory.create()
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=create, daemon=True)  # it would hang
    thread.start()
    thread.join(DEADLINE)

    assert lines[:4] == ["before"] * 3 + ["after"]


def test_context_manager_that_returns_none_is_left_again(make_pool: MakePool) -> None:
    steps: list[str] = []

    @contextmanager
    def page() -> Generator[None]:
        steps.append("entered")
        yield
        steps.append("left")

    pool = make_pool(1, resource=page)

    assert isinstance(pool.submit(lambda _: None).exception(DEADLINE), ResourceCreationError)
    pool.shutdown()
    assert steps == ["entered", "left"] * (len(steps) // 2)


# -- around --


def test_inline_task_sees_the_context_variables_that_its_scope_has_set(make_pool: MakePool) -> None:
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span", default="none")

    @contextmanager
    def around(_: object) -> Generator[None]:
        token = span.set("of the task")
        try:
            yield
        finally:
            span.reset(token)

    def task(_: object, *, prefix: str = "") -> str:
        return prefix + span.get()

    for pool in make_pool(1, on_create=object, around=around), InlineExecutor(on_create=object, around=around):
        with pool:
            assert pool.submit(task).result() == "of the task"
            assert pool.submit(task, prefix="span ").result() == "span of the task"
            assert pool.run_now(task) == "of the task"
    assert span.get() == "none"
