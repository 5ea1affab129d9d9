"""Each interleaving of a stop and the end of its task, forced: see the stories in `_engine/stops.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from engine import (
    End,
    Sidecar,
    Step,
    Task,
    abort_again,
    aborts_under_way,
    look_at,
    note_tasks_that_come_back,
    on_dismissal,
    refuse_abort_threads,
    replace_step,
    step_of,
    workers_of,
    written_off_workers,
)
from support import (
    DEADLINE,
    HOUR,
    FakeResource,
    Gate,
    Hook,
    Ledger,
    MakePool,
    ResourceBroken,
    cause_of_stop,
    eventually,
    join_all,
)
from tasker_executor import ResourceExecutor, TaskFuture, TaskTimeout, Verdict


def hold_claim_of(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, wanted: Callable[[Task[Any]], bool] = lambda _: True
) -> list[bool]:
    """Hold the abort of a task right before it claims the resource; return the answers to the claims."""
    original: Any = Task[Any]._claim
    answers: list[bool] = []

    def claim(task: Task[Any], *args: Any, **kwargs: Any) -> bool:
        if wanted(task):
            gate.hold()
        answers.append(original(task, *args, **kwargs))
        return answers[-1]

    monkeypatch.setattr(Task, "_claim", claim)
    return answers


# -- before the worker looks at the task


def test_stop_of_a_task_in_hand_that_has_not_begun_cancels_it(make_pool: MakePool, gate: Gate) -> None:
    # 1. The worker has the task in hand. 2. The stopper finds it PENDING, and cancels it. 3. The worker finds the tombstone.
    pool = make_pool(1)
    ran: list[int] = []

    def look(_: object) -> None:
        gate.hold()

    on_dismissal(pool, look)
    future = pool.submit(ran.append, 1)
    gate.wait_until_held()

    assert future.stop()

    assert future.cancelled()
    gate.release()
    assert pool.submit(int).result(DEADLINE) == 0
    assert ran == []


@pytest.mark.parametrize("observed", [False, True], ids=["with options", "observed"])
def test_stop_between_running_and_the_look_at_the_sidecar(
    make_pool: MakePool, ledger: Ledger, hook: Hook, gate: Gate, monkeypatch: pytest.MonkeyPatch, observed: bool
) -> None:
    # 1. The worker has stored RUNNING. 2. The stop is noted: too late to cancel. 3. The worker finds it, and runs nothing.
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=hook)
    original: Any = Task[Any]._may_start
    ran: list[object] = []

    def may_start(task: Task[Any]) -> bool:
        gate.hold()
        may: bool = original(task)
        return may

    monkeypatch.setattr(Task, "_may_start", may_start)
    if observed:
        seen = threading.Event()
        pool.submit(lambda _: seen.wait(DEADLINE))
        future = pool.submit(ran.append)
        cast("Any", future)._observe()
        seen.set()
    else:
        future = pool.with_options(start_within=HOUR).submit(ran.append)
    gate.wait_until_held()

    assert future.stop()
    gate.release()

    assert cause_of_stop(future) is None
    assert ran == []
    assert pool.submit(FakeResource.use).result(DEADLINE) in (0, 1)


def test_task_that_is_ended_in_hand_is_never_counted_twice(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. The worker has a task in hand that is not to be run. 2. It counts it as failed. 3. A caller asks for stats.
    pool = make_pool(1)
    finish: Any = Task[Any]._finish

    def look(task: Task[Any], *args: Any) -> None:
        pool._check()
        finish(task, *args)

    monkeypatch.setattr(Task, "_finish", look)

    assert type(pool.with_options(run_within=0.0).submit(int).exception(DEADLINE)) is TaskTimeout

    eventually(lambda: pool.stats().idle_workers == 1, "the worker to let go")
    stats = pool.stats()
    assert (stats.submitted, stats.failed, stats.running_tasks) == (1, 1, 0)


# -- while it runs, and as it ends


@pytest.mark.parametrize("checked", [True, False])
def test_worker_waits_for_the_hook_and_then_has_a_good_resource(
    make_pool: MakePool, ledger: Ledger, gate: Gate, checked: bool
) -> None:
    # 1. The hook is inside. 2. The task ends, and its future has its error. 3. The hook returns. 4. The resource is used.
    freed = threading.Event()
    done: list[str] = []

    def abort(_: FakeResource) -> None:
        freed.set()
        gate.hold()
        done.append("aborted")

    def check(_: FakeResource) -> bool:
        done.append("checked")
        return True

    def use(resource: FakeResource) -> int:
        done.append("used")
        return resource.use()

    def reset(_: FakeResource) -> None:
        done.append("reset")

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        on_abort=abort,
        on_reset=reset,
        check_resource=check if checked else None,
    )

    def work(_: FakeResource) -> None:
        assert freed.wait(DEADLINE)
        raise LookupError

    future = pool.submit(work)
    eventually(future.running, "the task to run")
    assert future.stop()
    gate.wait_until_held()
    assert isinstance(cause_of_stop(future), LookupError)  # published before the hook returns
    later = pool.submit(use)
    assert not later.running()
    assert done == []
    gate.release()

    assert later.result(DEADLINE) == (0 if checked else 1)
    assert done[:4] == (["aborted", "reset", "checked", "used"] if checked else ["aborted", "used", *done[2:4]])


def test_abort_that_comes_late_does_not_hit_the_next_task(
    make_pool: MakePool, ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    # 1. The abort is about to claim the resource. 2. The task ends. 3. The next one is in hand: no hook is called.
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=hook)
    with Gate() as first, Gate() as second:
        answers = hold_claim_of(monkeypatch, gate)
        future = pool.submit(first.hold)
        first.wait_until_held()
        assert future.stop()
        gate.wait_until_held()
        first.release()
        assert future.result(DEADLINE) is None
        pool.submit(second.hold)
        second.wait_until_held()
        gate.release()
        eventually(lambda: answers == [False], "the claim to be refused")

    assert hook.calls == []


def task_after_an_abort_that_looks_late(
    make_pool: MakePool, ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> tuple[ResourceExecutor[Any], TaskFuture[Any]]:
    """Return a pool and its task in hand; the abort of the task before it is about to claim the resource, in `gate`."""
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=hook, abort_grace=HOUR)
    with Gate() as first:
        early: Any = pool.submit(first.hold)
        hold_claim_of(monkeypatch, gate, lambda task: task is early)
        first.wait_until_held()
        early.stop()
        gate.wait_until_held()
    assert early.result(DEADLINE) is None
    late = pool.submit(hook.hang)
    eventually(late.running, "the next task to run")
    return pool, late


def test_abort_that_is_about_to_look_does_not_keep_the_next_task_from_being_aborted(
    make_pool: MakePool, ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    # 1. The abort of the first task has announced itself, and looks late. 2. The next task is stopped, and aborted at once.
    _, late = task_after_an_abort_that_looks_late(make_pool, ledger, hook, monkeypatch, gate)

    assert late.stop()

    assert isinstance(cause_of_stop(late), LookupError)
    gate.release()


def test_kill_aborts_the_next_task_although_an_abort_is_about_to_look(
    make_pool: MakePool, ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    pool, late = task_after_an_abort_that_looks_late(make_pool, ledger, hook, monkeypatch, gate)

    pool.kill()

    assert isinstance(cause_of_stop(late), LookupError)
    gate.release()


def test_two_stops_abort_once(make_pool: MakePool, ledger: Ledger, hook: Hook) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=hook, abort_grace=HOUR)
    with Gate() as held:
        future = pool.submit(held.hold)
        held.wait_until_held()
        assert future.stop()
        eventually(lambda: hook.calls == [0], "the hook")
        assert future.stop()
        abort_again(pool, future)  # as if an interruption, or a refused thread, had left that unclear
        assert join_all(aborts_under_way()) == []

    assert future.result(DEADLINE) is None
    assert hook.calls == [0]


def test_refused_thread_of_an_abort_is_tried_again_long_before_the_grace(
    make_pool: MakePool, ledger: Ledger, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=hook, abort_grace=HOUR)
    turns: list[float | None] = []
    turn: Any = step_of(pool, Step.TURN)

    def note_turn() -> float | None:
        turns.append(turn())
        return turns[-1]

    replace_step(pool, Step.TURN, note_turn)
    # The watch has looked before the thread is refused, so it does not look again by itself.
    before: list[int] = []
    refused = refuse_abort_threads(monkeypatch, 2, lambda: eventually(lambda: len(turns) > before[0], "the watch to look"))
    future = pool.submit(hook.hang)
    eventually(future.running, "the task to run")
    eventually(lambda: bool(turns), "the first turn")
    before.append(len(turns))

    assert future.stop()

    assert isinstance(cause_of_stop(future), LookupError)
    assert len(refused) == 2


# -- between two attempts


def test_stop_and_verdict_meet_under_the_lock(make_pool: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. The judge says that the task is run again. 2. It is stopped. 3. The retry does not begin, and nothing is judged twice.
    judged: list[BaseException] = []

    def check_health(error: BaseException) -> bool:
        judged.append(error)
        return False

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=check_health, max_retries=3)
    original: Any = Sidecar.begin_retry

    def begin_retry(sidecar: Sidecar, *args: Any) -> bool:
        assert future.stop()
        begun: bool = original(sidecar, *args)
        return begun

    monkeypatch.setattr(Sidecar, "begin_retry", begin_retry)
    with Gate() as gate:

        def work(resource: FakeResource) -> None:
            gate.hold()
            resource.break_down()

        future = pool.submit(work)
        gate.wait_until_held()

    assert isinstance(cause_of_stop(future), ResourceBroken)
    assert len(judged) == 1
    assert pool.stats().retried == 0
    assert pool.submit(FakeResource.use).result(DEADLINE) == 1


def test_stop_while_the_resource_is_reset_for_another_attempt(make_pool: MakePool, ledger: Ledger) -> None:
    # 1. The verdict is AGAIN. 2. The task is stopped while no worker has it in hand. 3. It is not run again.
    ran: list[int] = []
    stopped: list[bool] = []
    error = LookupError()

    def work(resource: FakeResource) -> None:
        ran.append(resource.number)
        raise error

    def reset(_: FakeResource) -> None:
        if ran and not stopped:
            stopped.append(future.stop())

    def judge(_: FakeResource) -> Verdict:
        return Verdict.AGAIN

    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=judge,
        on_reset=reset,
        max_retries=3,
    )
    with Gate() as gate:
        pool.submit(gate.hold)
        gate.wait_until_held()
        future = pool.submit(work)

    assert cause_of_stop(future) is error
    assert (stopped, ran) == ([True], [0])


def test_stop_of_a_task_that_waits_for_a_new_resource_ends_it_at_once(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    # It is in its lane, or parked beside it, and no worker is there to find it.
    made: list[FakeResource] = []

    def create() -> FakeResource:
        if made:
            gate.hold()
        made.append(ledger.create())
        return made[-1]

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=3)
    future = pool.submit(FakeResource.break_down)
    gate.wait_until_held()

    assert future.stop()

    assert isinstance(cause_of_stop(future), ResourceBroken)
    pool._check()
    assert pool.stats().queued_tasks == 0
    gate.release()
    assert pool.submit(FakeResource.use).result(DEADLINE) == 1


def test_retry_that_is_given_up_as_its_worker_is_dismissed_does_not_come_back(make_pool: MakePool, ledger: Ledger) -> None:
    # 1. A worker has a retry in hand, and is to go. 2. The retry is stopped, and given up. 3. It is no queued task then.
    pool = make_pool(
        1,
        on_create=ledger.create,
        on_destroy=ledger.destroy,
        check_health=ledger.is_healthy,
        check_resource=ledger.is_usable,
        abort_grace=0.0,
    )

    def dismiss(worker: Any) -> End | None:
        if worker.attempt == 1:
            return None
        assert future.stop()
        eventually(future.done, "the task to be given up")
        return End.RETIRED

    came_back = note_tasks_that_come_back(pool)
    with Gate() as gate:

        def work(resource: FakeResource) -> None:
            gate.hold()
            resource.break_down()

        future = pool.submit(work)
        gate.wait_until_held()
        on_dismissal(pool, dismiss)

    assert cause_of_stop(future) is None
    eventually(lambda: not written_off_workers(pool) and not workers_of(pool), "the workers to end")
    assert len(came_back) == 1  # after the first attempt
    pool._check()
    stats = pool.stats()
    assert (stats.submitted, stats.failed, stats.queued_tasks, stats.running_tasks) == (1, 1, 0, 0)


def test_time_that_attempts_took_is_not_counted_twice(make_pool: MakePool) -> None:
    # 1. The watch reads since when the task is in hand: the first attempt. 2. That ends after 6 s, and the second begins.
    # 3. The watch reads that attempts took 6 s. Together that would be 12 s of 10, when the task has run for 6.
    pool = make_pool(1)
    with Gate() as gate:
        future: Any = pool.with_options(run_within=10.0).submit(gate.hold)
        gate.wait_until_held()

        class Busy:
            """A worker whose task begins its second attempt once the watch has looked since when it runs."""

            task = future

            def __init__(self) -> None:
                self.moments = [0.0, 6.0]

            @property
            def since(self) -> float:
                moment = self.moments[0]
                if len(self.moments) > 1:
                    del self.moments[0]
                    future._sidecar.ran = 6.0
                return moment

        assert look_at(pool, Busy(), future, now=6.0) == 10.0
        assert future._sidecar.stop is None
        future._sidecar.ran = 0.0


def test_a_cancelled_task_whose_condition_foreign_code_keeps_holds_no_worker_up(make_pool: MakePool, gate: Gate) -> None:
    # `concurrent.futures.wait` that Ctrl-C interrupts may leave the condition of a future acquired for ever.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    cancelled: Any = pool.submit(int)
    assert cancelled.cancel()
    condition = cancelled._condition

    with condition:
        following = pool.submit(int)
        gate.release()
        assert following.result(DEADLINE) == 0
