"""`Task`: the protocol of `concurrent.futures`, method by method, and the races that its module tells of.

`Trapped` lets the other side act exactly between a store and the load that follows it.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError, as_completed, wait
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from pathlib import Path
from typing import Any, cast

import pytest

import tasker_executor
from engine import WITHDRAWN, Lane, Sidecar, Task, adopt, holds_task_lock, must_go_on, patch_permit_of_wait
from engine import first_of as firsts
from support import DEADLINE, Gate, MakePool, collected, eventually
from tasker_executor import ResourceExecutor

Listen = Callable[[Future[Any]], Any]


class Falsey(Exception):
    """An exception that counts as false."""

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0


def nothing(*args: object) -> None:
    pass


def fail(error: BaseException) -> None:
    raise error


def in_thread(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def task(fn: Callable[..., Any] = nothing, *args: Any, future: Task[Any] | None = None) -> Task[Any]:
    """A task as `submit` makes it, in a lane of its own."""
    made: Task[Any] = Task() if future is None else future
    lane = Lane("normal", cast("Any", None), nothing)
    made._status, made._sidecar, made._context = PENDING, None, None
    made._result, made._exception, made._lane, made._submitted = fn, args, lane, 0.0
    lane.append(made)
    return made


# -- result and exception --


def test_result_returns_what_the_task_returned(make_pool: MakePool) -> None:
    assert make_pool(1).submit(divmod, 7, 2).result() == (3, 1)


def test_result_raises_the_very_exception_that_the_task_raised(make_pool: MakePool) -> None:
    error = ValueError("mine")

    future = make_pool(1).submit(fail, error)

    with pytest.raises(ValueError, match="mine") as caught:
        future.result()
    assert caught.value is error


def test_result_waits_for_the_task(busy: ResourceExecutor[None], gate: Gate) -> None:
    future = busy.submit(int, "7")
    results: list[int] = []
    waiter = in_thread(lambda: results.append(future.result(DEADLINE)))

    gate.release()
    waiter.join(DEADLINE)

    assert results == [7]


def test_result_gives_up_after_its_timeout(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.001)


def test_a_zero_or_negative_timeout_does_not_wait(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    for timeout in (0, -1):
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(timeout)


def test_a_timed_out_result_can_be_asked_for_again(busy: ResourceExecutor[None], gate: Gate) -> None:
    future = busy.submit(int, "7")
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0)

    gate.release()

    assert future.result(DEADLINE) == 7


def test_waiters_that_time_out_leave_nothing_behind(busy: ResourceExecutor[None], gate: Gate) -> None:
    future: Any = busy.submit(int)
    busy.submit(int)  # one of many, so that it is waited for in this way
    for _ in range(3):
        with pytest.raises(concurrent.futures.TimeoutError):
            future.result(0)
    assert future._sidecar.permits == []

    gate.release()

    assert [future.result(DEADLINE), future.result(DEADLINE)] == [0, 0]


def test_many_threads_can_wait_for_one_result(busy: ResourceExecutor[None], gate: Gate) -> None:
    future = busy.submit(int, "7")
    results: list[int] = []
    waiters = [in_thread(lambda: results.append(future.result(DEADLINE))) for _ in range(8)]

    gate.release()
    for waiter in waiters:
        waiter.join(DEADLINE)

    assert results == [7] * 8


def test_a_result_that_comes_at_the_moment_of_the_timeout_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    future = task()
    future._lane.append(future)  # one of many, so that it is waited for in this way

    class Permit:
        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if timeout == 0:  # 1. The wait has timed out. 2. The task ends. 3. The waiter looks again.
                future._finish("in time", None)
            return False

        def release(self) -> None:
            pass

    patch_permit_of_wait(monkeypatch, Permit)

    assert future.result(0) == "in time"


def test_result_raises_cancelled_error_for_a_cancelled_task(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)
    future.cancel()

    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        future.exception()


def test_cancelling_wakes_a_blocked_result(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            future.result(DEADLINE)
        except BaseException as error:
            errors.append(error)

    waiter = in_thread(ask)

    future.cancel()
    waiter.join(DEADLINE)

    assert isinstance(errors[0], CancelledError)


def test_exception_is_none_after_success(make_pool: MakePool) -> None:
    assert make_pool(1).submit(int).exception() is None


def test_exception_returns_what_the_task_raised(make_pool: MakePool) -> None:
    error = ValueError()

    assert make_pool(1).submit(fail, error).exception() is error


def test_exception_gives_up_after_its_timeout(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    with pytest.raises(concurrent.futures.TimeoutError):
        future.exception(0.001)


def test_an_exception_that_counts_as_false_is_an_exception_all_the_same(make_pool: MakePool) -> None:
    error = Falsey()

    future = make_pool(1).submit(fail, error)

    assert future.exception() is error
    with pytest.raises(Falsey):
        future.result()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=lambda error: type(error).__name__)
def test_errors_that_end_programs_go_to_the_future_and_the_worker_lives_on(make_pool: MakePool, error: BaseException) -> None:
    pool = make_pool(1)
    before = pool.submit(threading.get_ident).result()

    future = pool.submit(fail, error)

    assert future.exception() is error
    assert pool.submit(threading.get_ident).result() == before


def test_the_traceback_of_a_failed_task_begins_in_the_task(make_pool: MakePool) -> None:
    error = make_pool(1).submit(fail, ValueError()).exception()

    assert error is not None
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code is fail.__code__


# -- cancel, cancelled, running, done --


def test_a_queued_task_can_be_cancelled_and_never_runs(busy: ResourceExecutor[None], gate: Gate) -> None:
    ran: list[str] = []
    future = busy.submit(ran.append, "cancelled")

    assert future.cancel()
    gate.release()
    busy.shutdown()

    assert future.cancelled()
    assert future.done()
    assert not future.running()
    assert ran == []


def test_cancelling_twice_says_yes_twice_and_counts_once(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    assert [future.cancel(), future.cancel()] == [True, True]
    assert busy.stats().cancelled == 1


def test_a_running_task_cannot_be_cancelled(make_pool: MakePool, gate: Gate) -> None:
    future = make_pool(1).submit(gate.hold)
    gate.wait_until_held()

    assert not future.cancel()
    assert future.running()
    assert not future.done()
    assert not future.cancelled()


def test_a_finished_task_cannot_be_cancelled(make_pool: MakePool) -> None:
    future = make_pool(1).submit(int)
    future.result()

    assert not future.cancel()
    assert future.done()
    assert not future.running()
    assert not future.cancelled()


def test_a_queued_task_is_neither_running_nor_done(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    assert not future.running()
    assert not future.done()
    assert not future.cancelled()


# -- done-callbacks --


def test_callbacks_are_called_once_each_and_in_order(busy: ResourceExecutor[None], gate: Gate) -> None:
    called: list[tuple[int, Future[Any]]] = []
    future = busy.submit(int)
    for number in range(5):
        future.add_done_callback(lambda f, number=number: called.append((number, f)))  # type: ignore[misc]  # a lambda's default

    gate.release()
    busy.shutdown()

    assert called == [(number, future) for number in range(5)]


def test_a_callback_on_a_final_future_is_called_at_once_and_here(make_pool: MakePool) -> None:
    future = make_pool(1).submit(int)
    future.result()
    called: list[int] = []

    future.add_done_callback(lambda _: called.append(threading.get_ident()))

    assert called == [threading.get_ident()]


def test_a_callback_sees_a_final_future(busy: ResourceExecutor[None], gate: Gate) -> None:
    seen: list[Any] = []
    future = busy.submit(int, "7")
    future.add_done_callback(lambda f: seen.append((f.done(), f.running(), f.result(0))))

    gate.release()
    busy.shutdown()

    assert seen == [(True, False, 7)]


def test_callbacks_are_called_by_cancel(busy: ResourceExecutor[None]) -> None:
    seen: list[bool] = []
    future = busy.submit(int)
    future.add_done_callback(lambda f: seen.append(f.cancelled()))

    future.cancel()

    assert seen == [True]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_means_the_program_comes_out_of_a_callback_on_the_main_thread_after_the_others_were_called(
    busy: ResourceExecutor[None], kind: type[BaseException]
) -> None:
    called: list[str] = []
    future = busy.submit(int)
    future.add_done_callback(lambda _: fail(kind()))
    future.add_done_callback(lambda _: called.append("after"))

    with pytest.raises(kind):
        future.cancel()

    assert called == ["after"]
    assert future.cancelled()


@pytest.mark.parametrize("error", [ValueError("callback"), SystemExit(1)], ids=lambda error: type(error).__name__)
def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    busy: ResourceExecutor[None], gate: Gate, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    called: list[str] = []
    future = busy.submit(int, "7")
    future.add_done_callback(lambda _: called.append("before"))
    future.add_done_callback(lambda _: fail(error))
    future.add_done_callback(lambda _: called.append("after"))

    gate.release()
    after = busy.submit(int, "8")

    assert after.result(DEADLINE) == 8
    assert called == ["before", "after"]
    assert future.result(DEADLINE) == 7
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


def test_a_callback_that_raises_on_a_final_future_is_logged(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    future = make_pool(1).submit(int)
    future.result()

    future.add_done_callback(lambda _: fail(ValueError("late")))

    assert "exception calling callback" in caplog.text


def test_a_callback_may_add_a_callback(busy: ResourceExecutor[None], gate: Gate) -> None:
    called: list[str] = []
    future = busy.submit(int)
    future.add_done_callback(lambda f: f.add_done_callback(lambda _: called.append("inner")))

    gate.release()
    busy.shutdown()

    assert called == ["inner"]


# -- set_running_or_notify_cancel, set_result, set_exception: for foreign executors --


def test_set_running_starts_a_pending_future_once() -> None:
    future = task()

    assert future.set_running_or_notify_cancel()
    assert future.running()
    with pytest.raises(InvalidStateError):
        future.set_running_or_notify_cancel()


def test_set_running_refuses_a_cancelled_future_however_often_it_is_asked() -> None:
    future = task()
    future.cancel()

    assert [future.set_running_or_notify_cancel(), future.set_running_or_notify_cancel()] == [False, False]


def test_set_result_makes_the_future_final() -> None:
    future = task()
    future.set_running_or_notify_cancel()
    called: list[Future[Any]] = []
    future.add_done_callback(called.append)

    future.set_result(7)

    assert future.result(0) == 7
    assert called == [future]


def test_set_exception_makes_the_future_final() -> None:
    future = task()
    error = ValueError()

    future.set_exception(error)

    assert future.exception(0) is error


def test_a_final_future_takes_no_other_result() -> None:
    future = task()
    future.set_result(7)

    with pytest.raises(InvalidStateError):
        future.set_result(8)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())
    assert future.result(0) == 7


def test_a_cancelled_future_takes_no_result() -> None:
    future = task()
    future.cancel()

    with pytest.raises(InvalidStateError):
        future.set_result(7)


# -- what concurrent.futures looks at --


def test_the_state_has_the_words_of_the_standard_library(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    running: Any = pool.submit(gate.hold)
    gate.wait_until_held()
    pending: Any = pool.submit(int)
    cancelled: Any = pool.submit(int)
    cancelled.cancel()
    observed: Any = pool.submit(int)
    observed.add_done_callback(nothing)

    states = [future._state for future in (running, pending, cancelled, observed)]
    gate.release()
    pool.shutdown()

    assert states == [RUNNING, PENDING, CANCELLED_AND_NOTIFIED, PENDING]
    assert [future._state for future in (running, pending, cancelled, observed)] == [
        FINISHED,
        FINISHED,
        CANCELLED_AND_NOTIFIED,
        FINISHED,
    ]


def test_repr_tells_the_state(busy: ResourceExecutor[None], gate: Gate) -> None:
    future = busy.submit(int)

    assert "pending" in repr(future)
    gate.release()
    future.result(DEADLINE)
    assert "finished returned int" in repr(future)


def test_the_condition_is_a_lock_of_its_own_for_each_future(busy: ResourceExecutor[None]) -> None:
    first, second = busy.submit(int), busy.submit(int)

    with first._condition, second._condition, first._condition:
        assert first._condition is first._condition
        assert first._condition is not second._condition


def test_the_condition_of_a_final_future_can_be_used_though_nobody_needs_it() -> None:
    future = task()
    future.set_result(None)

    with future._condition:
        future._condition.notify_all()
    assert future._condition.acquire()
    future._condition.release()
    future._waiters.append(object())
    future._waiters.remove(object())

    assert list(future._waiters) == []
    assert list(future._done_callbacks) == []


def test_foreign_code_may_notify_the_condition_of_a_waiting_future(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    with future._condition:
        future._condition.notify_all()

    assert not future.done()


def test_done_callbacks_can_be_looked_at(busy: ResourceExecutor[None]) -> None:
    future: Any = busy.submit(int)
    future.add_done_callback(nothing)

    assert future._done_callbacks == [nothing]


# -- wait, as_completed, asyncio --


def test_wait_for_all(make_pool: MakePool) -> None:
    pool = make_pool(2)
    futures = [pool.submit(int, number) for number in range(20)]

    done, not_done = wait(futures, DEADLINE)

    assert done == set(futures)
    assert not_done == set()


def test_wait_for_all_times_out_with_what_it_has(busy: ResourceExecutor[None], make_pool: MakePool) -> None:
    finished = make_pool(1).submit(int)
    finished.result()
    queued = busy.submit(int)

    done, not_done = wait([finished, queued], 0.001)

    assert (done, not_done) == ({finished}, {queued})


def test_wait_takes_itself_off_the_futures_that_are_not_done(busy: ResourceExecutor[None]) -> None:
    queued: Any = busy.submit(int)

    wait([queued], 0.001)

    assert queued._waiters == []


def test_wait_counts_a_future_given_twice_once(make_pool: MakePool) -> None:
    future = make_pool(1).submit(int)

    done, not_done = wait([future, future], DEADLINE)

    assert (done, not_done) == ({future}, set())


def test_wait_for_the_first_completed(busy: ResourceExecutor[None], make_pool: MakePool) -> None:
    queued = busy.submit(int)
    other = make_pool(1).submit(int)

    done, not_done = wait([queued, other], DEADLINE, concurrent.futures.FIRST_COMPLETED)

    assert (done, not_done) == ({other}, {queued})


@pytest.mark.parametrize("error", [ValueError(), Falsey()], ids=["error", "falsey error"])
def test_wait_for_the_first_exception(make_pool: MakePool, gate: Gate, error: Exception) -> None:
    pool = make_pool(2)
    held: Future[Any] = pool.submit(gate.hold)
    gate.wait_until_held()
    good: Future[Any] = pool.submit(int)
    bad: Future[Any] = pool.submit(fail, error)

    done, not_done = wait([held, good, bad], DEADLINE, concurrent.futures.FIRST_EXCEPTION)

    assert bad in done
    assert not_done == {held}


def test_a_success_does_not_end_a_wait_for_the_first_exception(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(2)
    held: Future[Any] = pool.submit(gate.hold)
    gate.wait_until_held()
    good: Future[Any] = pool.submit(int)
    good.result()

    _, not_done = wait([held, good], 0.001, concurrent.futures.FIRST_EXCEPTION)

    assert not_done == {held}


@pytest.mark.parametrize("when", ["ALL_COMPLETED", "FIRST_COMPLETED", "FIRST_EXCEPTION"])
def test_every_wait_ends_when_its_only_future_is_cancelled(busy: ResourceExecutor[None], when: str) -> None:
    queued: Any = busy.submit(int)
    results: list[Any] = []
    waiter = in_thread(lambda: results.append(wait([queued], DEADLINE, when)))
    # So it is the cancellation that ends the wait.
    eventually(lambda: bool(queued._waiters), "the waiter to register")

    queued.cancel()
    waiter.join(DEADLINE)

    assert results[0].done == {queued}


def test_wait_mixes_our_futures_with_those_of_the_standard_library(make_pool: MakePool) -> None:
    foreign: Future[int] = Future()
    ours = make_pool(1).submit(int)
    foreign.set_result(7)

    assert wait([foreign, ours], DEADLINE).not_done == set()


def test_as_completed_yields_each_future_once(make_pool: MakePool) -> None:
    pool = make_pool(2)
    futures = [pool.submit(int, number) for number in range(50)]

    seen = list(as_completed([*futures, *futures], DEADLINE))

    assert len(seen) == 50
    assert set(seen) == set(futures)


def test_as_completed_yields_in_the_order_of_completion(busy: ResourceExecutor[None], make_pool: MakePool, gate: Gate) -> None:
    last = busy.submit(int)
    first = make_pool(1).submit(int)
    order: list[Future[int]] = []

    for future in as_completed([last, first], DEADLINE):
        order.append(future)
        gate.release()

    assert order == [first, last]


def test_as_completed_times_out(busy: ResourceExecutor[None]) -> None:
    queued = busy.submit(int)

    with pytest.raises(concurrent.futures.TimeoutError):
        list(as_completed([queued], 0.001))


def test_as_completed_sees_a_cancellation(busy: ResourceExecutor[None]) -> None:
    queued = busy.submit(int)
    results = as_completed([queued], DEADLINE)
    canceller = in_thread(queued.cancel)

    assert next(results) is queued
    canceller.join()


def test_asyncio_awaits_a_wrapped_future(make_pool: MakePool) -> None:
    pool = make_pool(1)

    async def main() -> tuple[int, BaseException | None]:
        good = await asyncio.wrap_future(pool.submit(int, "7"))
        bad = await asyncio.gather(asyncio.wrap_future(pool.submit(fail, ValueError("mine"))), return_exceptions=True)
        return good, bad[0]

    good, bad = asyncio.run(main())

    assert good == 7
    assert isinstance(bad, ValueError)


def test_cancelling_an_asyncio_wrapper_cancels_the_queued_task(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    async def main() -> None:
        asyncio.wrap_future(future).cancel()
        await asyncio.sleep(0)

    asyncio.run(main())

    assert future.cancelled()


def test_cancelling_the_task_cancels_the_asyncio_wrapper(busy: ResourceExecutor[None]) -> None:
    future = busy.submit(int)

    async def main() -> None:
        wrapper = asyncio.wrap_future(future)
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapper

    asyncio.run(main())


# -- which thread goes first: every clause of the module's docstring, forced --


class Trapped(Task[Any]):
    """Calls an action, once, right after a slot was stored or loaded."""

    def __init__(self) -> None:
        self.after_store: dict[tuple[str, Any], Callable[[], object]] = {}
        self.after_load: dict[tuple[str, Any], Callable[[], object]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("_status", "_sidecar"):
            self._spring(self.after_store, name, value)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in ("_status", "_sidecar"):
            self._spring(self.after_load, name, value)
        return value

    @staticmethod
    def _spring(traps: dict[tuple[str, Any], Callable[[], object]], name: str, value: Any) -> None:
        key = (name, value if name == "_status" else value is not None)
        action = traps.pop(key, None)
        if action is not None:
            action()


class Story:
    """A trapped task, and what became of it."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.future = Trapped()
        task(self.ran.append, "ran", future=self.future)
        self.told: list[Any] = []

    def work(self) -> None:
        """What a worker does with a task that it has popped."""
        future = self.future
        future._status = RUNNING
        if future._sidecar is not None and not future._may_start():
            return
        future._result(*future._exception)
        future._finish("result", None)

    def cancel(self) -> None:
        self.told.append(self.future.cancel())

    def wait_until_running(self) -> None:
        """Until the worker has stored RUNNING. Looks past the traps."""
        status: Any = vars(Task)["_status"]  # the slot's descriptor
        eventually(lambda: status.__get__(self.future) is not PENDING, "the worker to store RUNNING")


@pytest.fixture
def story() -> Story:
    return Story()


def test_start_the_whole_cancel_comes_between_the_workers_store_and_its_load(story: Story) -> None:
    # 1. The worker stores RUNNING. 2. The canceller stores its verdict, finds RUNNING and takes the verdict back.
    # 3. The worker finds the sidecar, and no verdict in it.
    story.future.after_store["_status", RUNNING] = story.cancel

    story.work()

    assert story.told == [False]
    assert story.ran == ["ran"]
    assert story.future.result(0) == "result"


def test_start_the_worker_comes_between_the_cancellers_store_and_its_load(story: Story) -> None:
    # 1. The canceller stores verdict and sidecar. 2. The worker stores RUNNING, finds the sidecar and waits for its lock.
    # 3. The canceller finds RUNNING and takes the verdict back. 4. The worker finds no verdict.
    story.future._observe()
    workers: list[threading.Thread] = []

    def let_worker_in() -> None:
        workers.append(in_thread(story.work))
        story.wait_until_running()

    story.future.after_store["_sidecar", True] = let_worker_in

    story.cancel()
    workers[0].join(DEADLINE)

    assert story.told == [False]
    assert story.ran == ["ran"]
    assert story.future.result(0) == "result"


def test_start_the_worker_comes_right_after_the_cancellers_load(story: Story) -> None:
    # 1. The canceller stores its verdict and finds PENDING. 2. The worker stores RUNNING, finds the sidecar and waits for
    # its lock. 3. The canceller lets go, and has kept its verdict. 4. The worker finds it and does not run the task.
    story.future._observe()
    workers: list[threading.Thread] = []

    def let_worker_in() -> None:
        workers.append(in_thread(story.work))
        story.wait_until_running()

    def arm() -> None:
        story.future.after_load["_status", PENDING] = let_worker_in

    story.future.after_store["_sidecar", True] = arm

    story.cancel()
    workers[0].join(DEADLINE)

    assert story.told == [True]
    assert story.ran == []
    assert story.future.cancelled()


def test_start_a_cancel_after_the_workers_load_is_too_late(story: Story) -> None:
    # 1. The worker stores RUNNING and finds no sidecar. 2. The canceller stores its verdict and finds RUNNING.
    story.future.after_load["_sidecar", False] = story.cancel

    story.work()

    assert story.told == [False]
    assert story.ran == ["ran"]


def test_start_two_cancels_at_once_count_one_tombstone(story: Story) -> None:
    # 1. A canceller stores its verdict. 2. Another comes by, and waits. 3. Both say yes, once it is settled.
    others: list[threading.Thread] = []
    story.future._observe()
    story.future.after_store["_sidecar", True] = lambda: others.append(in_thread(story.cancel))

    story.cancel()
    others[0].join(DEADLINE)

    assert story.told == [True, True]
    assert story.future._lane.tombstones == story.future._lane.cancelled == 1


def test_a_cancel_that_comes_before_the_first_has_told_anybody_says_yes_too(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. A canceller has settled the task, and has yet to publish that. 2. Another one comes: it is cancelled for that one, too,
    # and from then on says so. 3. The first goes on, and calls the callbacks, once.
    publish = cast("Any", Task)._publish
    told_after: list[bool] = []
    story.future.add_done_callback(lambda _: story.told.append("called"))

    def late(future: Task[Any]) -> Any:
        monkeypatch.undo()
        story.cancel()
        told_after.append(future.cancelled())
        return publish(future)

    monkeypatch.setattr(Task, "_publish", late)

    story.cancel()

    assert story.told == [True, "called", True]
    assert told_after == [True]


def test_a_withdrawn_task_never_runs_and_is_not_counted(story: Story) -> None:
    assert story.future._settle(WITHDRAWN)
    story.work()

    assert story.ran == []
    assert story.future.cancelled()
    assert story.future._lane.cancelled == story.future._lane.settled_failed == 0


def call_back(future: Future[Any]) -> Any:
    told: list[Any] = []
    future.add_done_callback(lambda f: told.append(f.result(0)))
    assert told == ["result"]
    return told[0]


def wait_for(future: Future[Any]) -> Any:
    done, _ = wait([future], DEADLINE)
    return done.pop().result(0)


LISTENERS: dict[str, Listen] = {
    "callback": call_back,
    "result": lambda future: future.result(DEADLINE),
    "wait": wait_for,
    "as_completed": lambda future: next(as_completed([future], DEADLINE)).result(0),
}


@pytest.mark.parametrize("listen", list(LISTENERS.values()), ids=list(LISTENERS))
def test_end_the_listener_comes_between_the_workers_store_and_its_load(story: Story, listen: Listen) -> None:
    # 1. The worker stores FINISHED. 2. The listener stores its sidecar, finds FINISHED and publishes.
    # 3. The worker finds the sidecar, and every waiter told.
    story.future.after_store["_status", FINISHED] = lambda: story.told.append(listen(story.future))

    story.work()

    assert story.told == ["result"]


@pytest.mark.parametrize("listen", list(LISTENERS.values()), ids=list(LISTENERS))
def test_end_the_worker_comes_between_the_listeners_store_and_its_load(story: Story, listen: Listen) -> None:
    # 1. The listener stores its sidecar. 2. The worker starts, ends, finds it and publishes. 3. The listener
    # finds FINISHED, and every waiter told.
    story.future.after_store["_sidecar", True] = story.work

    assert listen(story.future) == "result"
    assert story.ran == ["ran"]


@pytest.mark.parametrize("listen", list(LISTENERS.values()), ids=list(LISTENERS))
def test_end_the_worker_comes_before_the_listeners_store(story: Story, listen: Listen) -> None:
    # 1. The listener finds no sidecar, and has yet to store its own. 2. The worker ends the task, finds no
    # sidecar and tells no listener. 3. The listener stores its sidecar, finds FINISHED and publishes.
    story.future.after_load["_sidecar", False] = story.work

    assert listen(story.future) == "result"


def test_end_both_publish_and_each_callback_is_called_once(story: Story) -> None:
    # 1. A caller adds a callback. 2. The worker stores FINISHED. 3. A listener publishes the end. 4. The
    # worker publishes it, too.
    story.future.add_done_callback(lambda _: story.told.append("called"))
    story.future.after_store["_status", FINISHED] = story.future._conclude

    story.work()

    assert story.told == ["called"]


def test_end_both_publish_and_each_waiter_is_told_once(story: Story) -> None:
    # As above, but for wait() and as_completed(), which count how often they are told.
    class Waiter:
        def add_result(self, future: Future[Any]) -> None:
            story.told.append(future)

    with story.future._condition:
        story.future._waiters.append(Waiter())
    story.future.after_store["_status", FINISHED] = story.future._publish

    story.work()

    assert story.told == [story.future]


def test_end_a_final_future_that_waiters_were_not_told_of_still_says_running(story: Story) -> None:
    # wait() and as_completed() look at the state and count on being told of all that were not final then.
    states: list[str] = []
    story.future._observe()
    story.future.after_store["_status", FINISHED] = lambda: states.append(story.future._state)

    story.work()

    assert states == [RUNNING]
    assert story.future._state == FINISHED


def test_two_observers_at_once_share_one_sidecar(story: Story) -> None:
    # 1. An observer finds no sidecar. 2. Another one makes it. 3. The first must not make its own.
    second: list[Sidecar | None] = []
    story.future.after_load["_sidecar", False] = lambda: second.append(story.future._observe())

    first = story.future._observe()

    assert first is not None
    assert second == [first]


def test_an_observer_that_looked_twice_shares_the_sidecar_with_one_who_came_after(story: Story) -> None:
    # 1. An observer finds no sidecar, makes one, and looks again: still none. 2. Another one comes, and stores one. 3. The
    # first goes on to store its own, which must be the same.
    second: list[Sidecar | None] = []
    traps = story.future.after_load

    def spring_at_the_next_look() -> None:
        traps["_sidecar", False] = lambda: second.append(story.future._observe())

    traps["_sidecar", False] = spring_at_the_next_look

    first = story.future._observe()

    assert first is not None
    assert second == [first]
    assert story.future._sidecar is first


@pytest.mark.parametrize("looks", [1, 0], ids=["observe", "adopt"])
def test_an_observer_that_ctrl_c_ends_leaves_the_sidecar_that_another_one_has_stored(story: Story, looks: int) -> None:
    # 1. Observer A is entered first, and Ctrl-C ends it before its store. It finds the slot empty. 2. Observer B stores the
    # sidecar, and leaves. 3. Observer C, who looked before that, is entered. 4. A must not store the sidecar of C.
    future, traps = story.future, story.future.after_load
    stored: list[Sidecar] = []

    def interrupt() -> None:
        traps["_sidecar", False] = let_others_in
        raise KeyboardInterrupt

    def let_others_in() -> None:
        stored.append(firsts.pop(future))
        future._sidecar = stored[0]
        firsts[future] = Sidecar()

    traps["_sidecar", False] = (lambda: traps.update({("_sidecar", False): interrupt})) if looks else interrupt
    with pytest.raises(KeyboardInterrupt):
        future._observe() if looks else adopt(future, Sidecar())

    assert future._sidecar is stored[0]
    assert future not in firsts


def test_an_observer_that_a_garbage_collection_lets_in_shares_the_sidecar(make_pool: MakePool, gate: Gate) -> None:
    # 1. An observer makes a sidecar. 2. Before Python 3.12 each object that it makes for that may set off a collection, which
    # lets others in. 3. One of those observes the same future.
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    others: list[Sidecar | None] = []

    def observe(phase: str, _: object) -> None:
        if phase == "stop" and not others:
            others.append(None)  # not again from in here
            others.append(future._observe())

    threshold = gc.get_threshold()
    hoard: list[dict[str, int]] = []
    for object_number in range(8):  # the one that sets it off
        future = cast("Task[int]", pool.submit(int))
        gc.collect()
        hoard += [{} for _ in range(200)]  # or the next dict would be one that lies in reserve, and not be made
        others.clear()
        gc.callbacks.append(observe)
        gc.set_threshold(gc.get_count()[0] + object_number)
        first = future._observe()
        gc.set_threshold(*threshold)
        gc.callbacks.remove(observe)

        assert future._sidecar is first
        assert others in ([], [None, first])
        assert future not in firsts
    assert len(hoard) == 8 * 200


# -- one condition for life --


def test_the_condition_of_a_future_that_ends_unseen_stays_the_same(story: Story) -> None:
    # 1. Thread B is about to give the future a sidecar. 2. The task ends, and the worker finds no listener to
    # tell. 3. Thread A, in wait(), acquires the condition. 4. B goes on, and must take A's condition.
    conditions: list[Any] = []
    future: Any = story.future

    def end_and_acquire() -> None:
        story.work()
        conditions.append(future._condition)

    story.future.after_load["_status", PENDING] = end_and_acquire
    future.add_done_callback(story.told.append)

    assert future._condition is conditions[0]
    assert story.told == [future]
    with concurrent.futures._base._AcquireFutures([future]):  # what wait() uses
        future.add_done_callback(story.told.append)
    assert story.told == [future, future]


def test_a_waiter_that_is_added_while_the_worker_ends_the_task_is_told(story: Story) -> None:
    # 1. A waiter holds the condition, and has found the task running. 2. The worker stores FINISHED, and wants the lock.
    # 3. The waiter registers: that must not publish the end on the worker's behalf. 4. The worker tells it.
    class Waiter:
        def add_result(self, future: Future[Any]) -> None:
            story.told.append(future)

    future: Any = story.future
    future._status = RUNNING
    with future._condition:
        assert future._state == RUNNING
        worker = in_thread(lambda: future._finish("result", None))
        status: Any = vars(Task)["_status"]
        while status.__get__(future) is not FINISHED:
            threading.Event().wait(0.0001)
        future._waiters.append(Waiter())
    worker.join(DEADLINE)

    assert story.told == [future]


def test_a_snapshot_counts_as_retrieved(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(1)
    future: Any = pool.submit(fail, ValueError("handled"))
    wait([future])

    done, cancelled, result, error = future._get_snapshot()
    assert (done, cancelled, result, type(error)) == (True, False, None, ValueError)
    del future, error
    gc.collect()

    assert "never retrieved" not in caplog.text


def test_a_snapshot_tells_every_state(busy: ResourceExecutor[None], gate: Gate) -> None:
    waiting: Any = busy.submit(int, "7")
    cancelled: Any = busy.submit(int)
    cancelled.cancel()

    assert waiting._get_snapshot() == (False, False, None, None)
    assert cancelled._get_snapshot() == (True, True, None, None)
    gate.release()
    wait([waiting])
    assert waiting._get_snapshot() == (True, False, 7, None)


def test_a_future_that_is_kept_keeps_nothing_of_a_closed_executor() -> None:
    class App:
        def set_up(self) -> None:
            pass

    app = App()
    reference = weakref.ref(app)
    pool = ResourceExecutor(1, initializer=app.set_up)
    kept = [pool.submit(int), pool.submit(int)]
    kept[1].cancel()
    pool.shutdown()
    del app, pool

    assert collected(reference)
    assert kept[0].result() == 0


def test_all_who_wait_without_a_limit_are_let_go(busy: ResourceExecutor[None], gate: Gate) -> None:
    future: Any = busy.submit(int)
    busy.submit(int)  # one of many, so that it is waited for in this way
    waiters = [in_thread(future.result) for _ in range(3)]
    while future._sidecar is None or len(future._sidecar.permits or ()) < 3:
        threading.Event().wait(0.001)

    gate.release()
    for waiter in waiters:
        waiter.join(DEADLINE)

    assert not any(waiter.is_alive() for waiter in waiters)


# -- marks: what a signal handler must not wait for


PACKAGE = Path(tasker_executor.__file__).parent


def takes_a_sidecar(function: ast.FunctionDef, in_class: str) -> bool:
    """Return whether the function itself has a ``with`` block that takes the lock of a task."""
    return any(
        isinstance(item.context_expr, ast.Name)
        and (item.context_expr.id == "sidecar" or (in_class == "Sidecar" and item.context_expr.id == "self"))
        for node in ast.walk(function)
        if isinstance(node, ast.With)
        for item in node.items
    )


def functions_that_take_a_sidecar() -> dict[str, bool]:
    """Return by name whether each function of the package that takes the lock of a task is marked."""
    found: dict[str, bool] = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        scopes = [("", tree.body)] + [(node.name, node.body) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for in_class, body in scopes:
            for node in body:
                if isinstance(node, ast.FunctionDef) and takes_a_sidecar(node, in_class):
                    marks = [mark.id for mark in node.decorator_list if isinstance(mark, ast.Name)]
                    found[f"{path.name}: {in_class}.{node.name}"] = "locks_task" in marks
    return found


def test_each_function_that_takes_the_lock_of_a_task_is_marked() -> None:
    found = functions_that_take_a_sidecar()

    assert [name for name, marked in found.items() if not marked] == []
    assert {"task.py: Settling._publish", "sidecar.py: Sidecar.is_news", "sidecar.py: Sidecar.begin_retry"} <= set(found)


class Asked:
    """A waiter that asks, when it is told of a future, what a signal handler would be told in that moment."""

    def __init__(self) -> None:
        self.answers: list[tuple[bool, bool]] = []

    def add_result(self, future: object) -> None:
        self.__call__(future)

    def __call__(self, future: object) -> None:
        self.answers.append((holds_task_lock(sys._getframe()), must_go_on(sys._getframe())))


def test_a_waiter_is_told_under_the_lock_and_a_callback_is_called_under_none() -> None:
    future, asked = task(), Asked()
    with future._condition:
        future._waiters.append(asked)
    future.add_done_callback(asked)

    future._finish("result", None)
    future.add_done_callback(asked)

    assert asked.answers == [(True, True), (False, False), (False, False)]


def test_a_callback_that_is_called_in_the_middle_of_another_task_knows_of_that_lock() -> None:
    # 1. A thread tells the waiters of a task, under its lock. 2. A signal handler asks another task to call it back.
    future, other, asked = task(), task(), Asked()
    other._finish("result", None)

    class Handler:
        def add_result(self, _: object) -> None:
            other.add_done_callback(asked)

    with future._condition:
        future._waiters.append(Handler())
    future._finish("result", None)

    assert asked.answers == [(True, False)]


def test_a_task_has_no_room_for_attributes_beside_its_slots() -> None:
    # From Python 3.14 on, an object has room in line for each name that its class assigns to `self`.
    tree = ast.parse((PACKAGE / "_engine" / "task.py").read_text(encoding="utf-8"))
    [body] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Task"]
    assigned = {
        node.attr
        for node in ast.walk(body)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }

    assert assigned == set()
    assert vars(Task).get("__static_attributes__", ()) == ()
    assert sys.getsizeof(task()) <= 112
