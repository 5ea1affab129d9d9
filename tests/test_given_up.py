"""A task that does not end when it is stopped is given up, and what that must not do: races, forced."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from engine import (
    Task,
    pending_stops,
    tend_stops,
    workers_of,
    written_off_workers,
)
from support import DEADLINE, HOUR, FakeResource, Gate, Hook, Ledger, MakePool, cause_of_stop, eventually
from tasker_executor import Observer, TaskEvent, TaskStopped, TaskTimeout


def test_given_up_task_leaves_a_clean_resource(make_pool: MakePool, ledger: Ledger) -> None:
    # There is no room for one more worker that is written off. So the worker goes on, and its resource was used.
    done: list[str] = []

    def reset(resource: FakeResource) -> None:
        done.append(f"reset {resource.number}")

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        on_reset=reset,
        abort_grace=0.0,
    )
    with Gate() as first, Gate() as second:
        lost = [pool.submit(first.hold)]
        first.wait_until_held()
        lost[0].stop()
        eventually(lambda: len(written_off_workers(pool)) == 1, "the worker to be written off")
        lost.append(pool.submit(second.hold))
        second.wait_until_held()
        lost[1].stop()
        assert all(type(future.exception(DEADLINE)) is TaskStopped for future in lost)
        tend_stops(pool, HOUR)
        assert len(written_off_workers(pool)) == 1
        second.release()
        later = pool.submit(lambda resource: done.append(f"use {resource.number}"))
        later.result(DEADLINE)
        assert done[:2] == ["reset 1", "use 1"]


def test_given_up_task_that_breaks_its_resource_leaves_no_broken_one(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, abort_grace=0.0, max_retries=0
    )
    with Gate() as first, Gate() as second:
        early = pool.submit(first.hold)
        first.wait_until_held()
        early.stop()
        eventually(lambda: len(written_off_workers(pool)) == 1, "the worker to be written off")

        def work(resource: FakeResource) -> None:
            second.hold()
            resource.break_down()

        future = pool.submit(work)
        second.wait_until_held()
        future.stop()
        assert type(future.exception(DEADLINE)) is TaskStopped
        second.release()
        assert pool.submit(FakeResource.use).result(DEADLINE) == 2


def test_task_that_ends_as_it_is_given_up_keeps_its_result_and_loses_no_error(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # 1. The watch is about to give the task up. 2. The task returns. 3. The result stands, and no error is told of or logged.
    class Ear(Observer):
        def __init__(self) -> None:
            self.told: list[str] = []

        def task_finished(self, event: TaskEvent) -> None:
            self.told.append(event.outcome)

    ear = Ear()
    pool = make_pool(1, abort_grace=0.0, observers=[ear])
    original: Any = Task[Any]._give_up
    answers: list[bool] = []
    with Gate() as gate:

        def give_up(task: Task[Any], *args: Any) -> bool:
            gate.release()
            eventually(task.done, "the task to end")
            answers.append(original(task, *args))
            return answers[-1]

        monkeypatch.setattr(Task, "_give_up", give_up)
        future = pool.with_options(run_within=0.01).submit(gate.hold)
        eventually(lambda: answers == [False], "the watch to be too late")

    assert future.result(DEADLINE) is None
    eventually(lambda: bool(ear.told), "the observer")
    with caplog.at_level(logging.ERROR, "tasker_executor.lost"):
        del future
        pool.shutdown(timeout=DEADLINE)
    assert ear.told == ["completed"]
    assert caplog.records == []


def test_task_that_is_out_of_hand_is_not_given_up(make_pool: MakePool, ledger: Ledger) -> None:
    # 1. The task has raised, and its error is being judged. 2. The watch gives up what has not ended: not this task.
    answers: list[bool] = []

    def check_health(_: BaseException) -> bool:
        [worker] = workers_of(pool)
        answers.append(future._give_up(TaskStopped("given up"), worker.runs))
        return True

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=check_health, abort_grace=HOUR)
    with Gate() as gate:

        def work(_: FakeResource) -> None:
            gate.hold()
            raise LookupError

        future: Any = pool.submit(work)
        gate.wait_until_held()
        future.stop()

    assert isinstance(cause_of_stop(future), LookupError)
    assert answers == [False]


def test_given_up_task_is_told_once(make_pool: MakePool) -> None:
    told: list[tuple[str, str | None, BaseException | None]] = []

    class Ear(Observer):
        def task_finished(self, event: TaskEvent) -> None:
            told.append((event.outcome, event.worker, event.error))

    pool = make_pool(1, abort_grace=0.0, observers=[Ear()], name="pool")
    with Gate() as gate:
        future = pool.with_options(run_within=0.01).submit(gate.hold)
        error = future.exception(DEADLINE)
        assert type(error) is TaskTimeout
        eventually(lambda: len(written_off_workers(pool)) == 1, "the worker to be written off")
    pool.shutdown(timeout=DEADLINE)

    assert told == [("failed", "pool_0", error)]


def test_long_callback_after_an_abort_is_no_reason_to_write_the_worker_off(
    make_pool: MakePool, ledger: Ledger, hook: Hook, gate: Gate
) -> None:
    # 1. The hook has returned, and the task has ended. 2. A done-callback takes longer than the grace. 3. The worker lives on.
    pool = make_pool(
        1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=hook, check_resource=ledger.is_usable, abort_grace=HOUR
    )
    future = pool.submit(hook.hang)
    future.add_done_callback(gate.hold)
    eventually(future.running, "the task to run")
    future.stop()
    gate.wait_until_held()

    tend_stops(pool, 2 * HOUR)

    assert written_off_workers(pool) == set()
    gate.release()
    assert pool.submit(FakeResource.use).result(DEADLINE) == 0


def test_watch_forgets_stops_of_tasks_that_are_over(make_pool: MakePool) -> None:
    pool = make_pool(1, abort_grace=0.0)
    with Gate() as gate:
        future = pool.submit(gate.hold)
        gate.wait_until_held()
        future.stop()
        eventually(lambda: len(written_off_workers(pool)) == 1, "the worker to be written off")
        eventually(lambda: pending_stops(pool) == 0, "the watch to forget the stop")
