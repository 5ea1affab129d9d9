"""Stories in which two parts of the executor meet, each of which is right by itself."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import pytest

from engine import (
    CannotStart,
    End,
    UnfitResource,
    Worker,
    ask_to_leave,
    dismisses,
    engine_lock,
    idle_workers,
    is_terminated,
    leaving_workers,
    may_retire,
    patch_thread_start,
    pretend_outage,
    report_end,
    report_ready,
    report_unfit,
    retry_later,
    start_thread,
    stats_of,
    stranger,
    timer_of,
    use_waiting_inside,
    use_workers,
    waiting_inside,
    want,
    worker_limit,
    workers_of,
)
from support import DEADLINE, Clock, FakeResource, Gate, Ledger, MakePool, eventually, join_all
from tasker_executor import Observer, ResourceCreationError, ResourceExecutor
from tasker_executor.observers import StateEvent, TaskEvent
from tasker_executor.testing.fakes import Watched


def says_no(error: BaseException) -> bool:
    return False


class Ends(Observer):
    """What an observer hears of the ends of tasks and of the executor's states."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def task_finished(self, event: TaskEvent) -> None:
        self.heard.append(event.outcome)

    def state_changed(self, event: StateEvent) -> None:
        self.heard.append(event.state)


# -- a task that is settled, and the end of the executor


def test_an_observer_hears_of_a_task_whose_callback_outlasts_the_executor(make_pool: MakePool, gate: Gate) -> None:
    # 1. A thread cancels a task; the done-callback takes its time. 2. The executor ends. 3. The callback returns.
    ends = Ends()
    with Gate() as late:
        pool = make_pool(1, observers=[ends])
        pool.submit(gate.hold)
        gate.wait_until_held()
        future = pool.submit(int)
        future.add_done_callback(late.hold)
        canceller = threading.Thread(target=future.cancel)
        canceller.start()
        late.wait_until_held()
        gate.release()
        pool.shutdown(timeout=DEADLINE)
        late.release()
        assert not join_all([canceller])
    assert ends.heard.count("cancelled") == 1


def test_the_executor_does_not_close_before_the_tasks_that_it_fails_are_told_of(make_pool: MakePool) -> None:
    # 1. An initializer fails. 2. Its worker is in the books no more; it fails the task queued, whose done-callback takes its
    # time. 3. The executor is shut down: no worker lives, and nothing is queued.
    ends = Ends()
    with Gate() as started, Gate() as called:

        def initializer() -> None:
            started.hold()
            raise LookupError("no")

        pool = make_pool(1, initializer=initializer, observers=[ends])
        future = pool.submit(int)
        future.add_done_callback(called.hold)
        started.release()
        called.wait_until_held()
        pool.shutdown(wait=False)
        assert not is_terminated(pool)
        called.release()
        pool.shutdown(timeout=DEADLINE)
        with pytest.raises(BrokenThreadPool):
            future.result(DEADLINE)
    assert ends.heard == ["draining", "failed", "closed"]


# -- workers that are late, and how many there are


def test_a_worker_that_is_late_makes_no_other_one_too_many(make_pool: MakePool, ledger: Ledger, clock: Clock) -> None:
    attempts = itertools.count()
    with Gate() as hung:

        def create() -> FakeResource:
            if next(attempts) == 1:
                hung.hold()
            return ledger.create()

        pool = make_pool(4, min_workers=2, on_create=create, on_destroy=ledger.destroy, create_timeout=3600.0)
        hung.wait_until_held()
        clock.pass_time(3601.0, pool)
        eventually(lambda: len(idle_workers(pool)) == 2, "the base, beside the worker that hangs")

        want(pool, 2, "as the policy says at each tick")
        assert not leaving_workers(pool)
        ask_to_leave(pool)
        assert dismisses(pool, idle_workers(pool)[0]) is None
        assert not may_retire(pool, idle_workers(pool)[0])

        hung.release()
        eventually(lambda: len(workers_of(pool)) == 2, "the one too many to go when it is no longer late")
    assert stats_of(pool).resources_destroyed == 1


# -- threads that the system refuses


class Refusals(Watched):
    """Takes the place of `start_thread`; the first threads of workers are refused, when the gate opens."""

    def __init__(self, count: int, gate: Gate | None = None) -> None:
        super().__init__()
        self.left = count
        self.gate = gate

    def __call__(self, thread: threading.Thread) -> None:
        if self.left:
            self.left -= 1
            if self.gate is not None:
                self.gate.hold()
            raise CannotStart("can't start new thread")
        start_thread(thread)


def submit_in_vain(pool: ResourceExecutor[None], refused: list[type[Exception]]) -> None:
    try:
        pool.submit(int, "1")
    except RuntimeError as error:
        refused.append(type(error))


def test_a_submitter_whose_thread_is_refused_leaves_no_other_task_behind(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    # 1. A submitter is about to start the one worker that there may be. 2. Another queues its task and relies on that worker.
    # 3. The system refuses the thread. The first task is withdrawn.
    pool = make_pool(1)
    patch_thread_start(monkeypatch, Refusals(1, gate))
    refused: list[type[Exception]] = []
    first = threading.Thread(target=submit_in_vain, args=(pool, refused))
    first.start()
    gate.wait_until_held()
    second = pool.submit(int, "2")
    gate.release()
    assert not join_all([first])
    assert second.result(DEADLINE) == 2
    assert refused == [CannotStart]


def test_a_task_that_nobody_is_left_to_hear_of_waits_until_the_system_has_threads(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    # As above, but the second attempt is refused as well, and no submitter is there any more to be told.
    pool = make_pool(1)
    patch_thread_start(monkeypatch, Refusals(2, gate))
    first = threading.Thread(target=submit_in_vain, args=(pool, []))
    first.start()
    gate.wait_until_held()
    second = pool.submit(int, "2")
    gate.release()
    assert not join_all([first])
    assert second.result(DEADLINE) == 2


def test_a_wait_inside_gets_its_worker_when_the_system_has_threads_again(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(2)
    want(pool, 1, "one worker is wanted")

    def outer() -> int:
        inner = pool.submit(int, "7")
        patch_thread_start(monkeypatch, Refusals(1))
        return inner.result()

    assert pool.submit(outer).result(DEADLINE) == 7


def test_tasks_fail_in_time_while_the_initializer_hangs(make_pool: MakePool, ledger: Ledger, clock: Clock) -> None:
    with Gate() as hung:
        pool = make_pool(
            1, initializer=hung.hold, on_create=ledger.create, on_destroy=ledger.destroy, create_timeout=3600.0, max_retries=0
        )
        future = pool.submit(id)
        hung.wait_until_held()
        eventually(lambda: timer_of(pool).thread is not None, "the timer")
        hung.wait_until_held()  # still: the end of the worker would start the timer, too
        clock.pass_time(3601.0, pool)
        with pytest.raises(ResourceCreationError):
            future.result(DEADLINE)


# -- what is looked at without the lock


def test_the_door_may_count_while_another_thread_hires(make_pool: MakePool) -> None:
    # A submitter at the door counts the workers that wait inside, without the lock; another thread starts a worker meanwhile.
    pool = make_pool(3, max_queued=5)

    class Hiring(dict[int, Any]):
        def __contains__(self, ident: object) -> bool:
            workers_of(pool).add(stranger(pool, 100 + len(workers_of(pool))))
            return False

    pool.submit(int).result(DEADLINE)
    real, before = workers_of(pool).copy(), waiting_inside(pool)
    use_waiting_inside(pool, Hiring({0: None}))
    try:
        assert worker_limit(pool) == 3
    finally:
        use_waiting_inside(pool, before)
        use_workers(pool, real)


# -- destructors


def never_healthy(_: BaseException) -> bool:
    return False


class Told:
    """Calls `ask` when it goes, and notes the answer."""

    def __init__(self, ask: Callable[[], bool], answers: list[bool]) -> None:
        self._ask = ask
        self._answers = answers

    def __call__(self) -> None:
        """To be submitted."""

    def __del__(self) -> None:
        self._answers.append(self._ask())


class ErrorWithLuggage(Exception):
    """Has a `Told` among its arguments."""


def test_what_a_cancelled_task_was_given_goes_under_no_lock(busy: ResourceExecutor[None]) -> None:
    held: list[bool] = []
    futures: list[Future[Any]] = []

    def lock_is_held() -> bool:
        return futures[0]._condition._is_owned()  # type: ignore[attr-defined, no-any-return]  # not in typeshed

    futures.append(busy.submit(id, Told(lock_is_held, held)))
    futures[0].cancel()
    eventually(lambda: len(held) == 1, "the argument to go")
    assert held == [False]


def test_the_error_of_the_attempt_before_goes_under_no_lock(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    held: list[bool] = []

    def fail_once(resource: FakeResource) -> None:
        if not resource.number:
            raise LookupError

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=says_no)
    pool.submit(gate.hold)
    future = pool.submit(fail_once)
    sidecar: Any = future._condition
    sidecar.error = ErrorWithLuggage(Told(sidecar._is_owned, held))  # with no traceback, which would make a cycle
    gate.release()
    assert future.result(DEADLINE) is None
    assert held == [False]


def check_failed(pool: ResourceExecutor[Any], worker: Worker) -> None:
    report_unfit(pool, worker, UnfitResource("a second one"))


def worker_ready(pool: ResourceExecutor[Any], worker: Worker) -> None:
    report_ready(pool, worker)


def worker_ended(pool: ResourceExecutor[Any], worker: Worker) -> None:
    workers_of(pool).add(another := stranger(pool, 8))
    report_end(pool, another, End.CREATION_FAILED, LookupError("no"))


def cannot_start(pool: ResourceExecutor[Any], worker: Worker) -> None:
    retry_later(pool, CannotStart("no"))


@pytest.mark.parametrize("event", [check_failed, worker_ready, worker_ended, cannot_start])
def test_the_error_of_a_failing_factory_goes_under_no_lock(
    event: Callable[[ResourceExecutor[Any], Worker], None], make_pool: MakePool, ledger: Ledger
) -> None:
    held: list[bool] = []
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)
    pool.submit(FakeResource.use).result(DEADLINE)
    [worker] = workers_of(pool)
    pretend_outage(pool, ErrorWithLuggage(Told(engine_lock(pool)._is_owned, held)))
    event(pool, worker)
    assert held == [False]


class Failed(Exception):
    """Can be referred to weakly."""


@pytest.mark.parametrize("where", ["in a task", "in on_create"])
def test_the_error_of_an_attempt_goes_with_the_next(
    where: str, make_pool: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    # Without the garbage collector: the traceback of an error leads to the frames of the worker, which had the error in hand.
    caplog.set_level(logging.CRITICAL, "tasker_executor")  # or its records would keep the errors
    errors: list[weakref.ref[Failed]] = []

    def fail_twice(place: str) -> None:
        if place == where and len(errors) < 2:
            error = [Failed()]
            errors.append(weakref.ref(error[0]))
            raise error.pop()

    def create() -> FakeResource:
        fail_twice("in on_create")
        return ledger.create()

    pool = make_pool(1, on_create=create, on_destroy=ledger.destroy, check_health=never_healthy)
    gc.disable()
    try:
        pool.submit(lambda resource: fail_twice("in a task")).result(DEADLINE)
        eventually(lambda: [error() for error in errors] == [None, None], "both errors to go")
    finally:
        gc.enable()
