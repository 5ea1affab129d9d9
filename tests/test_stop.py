"""Stop means stop: the promises of `TaskFuture.stop` and of `run_within`, for an executor and its views, and their bad days."""

from __future__ import annotations

import gc
import logging
import signal
import threading
import weakref
from concurrent.futures import Future, wait
from typing import Any

import pytest

from engine import written_off_workers
from support import DEADLINE, HOUR, FakeResource, Gate, Ledger, MakePool, ResourceBroken, cause_of_stop, eventually, needs_gil
from tasker_executor import (
    Observer,
    ResourceExecutor,
    TaskCancelled,
    TaskEvent,
    TaskStopped,
    TaskTimeout,
    current_task,
)


def obey() -> None:
    """Run until the cancel token is set, and obey it."""
    task = current_task()
    assert task.wait(DEADLINE)
    task.raise_if_cancelled()


class Driver:
    """A resource in which calls hang until it is aborted."""

    def __init__(self) -> None:
        self.aborted = threading.Event()
        self.aborts = 0

    def abort(self) -> None:
        self.aborts += 1
        self.aborted.set()

    def query(self) -> None:
        assert self.aborted.wait(DEADLINE)
        self.aborted.clear()
        raise ConnectionError("aborted")


def running(future: Future[Any]) -> None:
    eventually(future.running, "the task to run")


@pytest.fixture
def drivers(make_pool: MakePool) -> ResourceExecutor[Driver]:
    """A pool of one worker whose task hangs until it is aborted."""
    return make_pool(1, on_create=Driver, on_abort=Driver.abort, abort_grace=HOUR)


# -- what stop() promises


@pytest.mark.parametrize("view", [False, True])
def test_task_that_waits_is_cancelled(make_pool: MakePool, gate: Gate, view: bool) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    future = (pool.with_options(priority=True) if view else pool).submit(int)

    assert future.stop()

    assert future.cancelled()


@pytest.mark.parametrize("view", [False, True])
def test_task_that_obeys_its_token_is_stopped(make_pool: MakePool, view: bool) -> None:
    pool = make_pool(1)
    future = (pool.with_options(max_retries=1) if view else pool).submit(obey)
    running(future)

    assert future.stop()

    cause = cause_of_stop(future)
    assert type(cause) is TaskCancelled
    assert str(cause) == "this task was stopped"
    assert not future.cancelled()


def test_call_that_hangs_in_a_resource_is_aborted(drivers: ResourceExecutor[Driver]) -> None:
    future = drivers.submit(Driver.query)
    running(future)

    assert future.stop()

    assert isinstance(cause_of_stop(future), ConnectionError)
    assert str(future.exception()) == f"executor {drivers._core.name!r}: task Driver.query was stopped"


def test_stop_after_the_end_says_so(make_pool: MakePool) -> None:
    pool = make_pool(1)
    good, bad = pool.submit(int), pool.submit(int, "x")
    wait([good, bad], DEADLINE)

    assert not good.stop()
    assert not bad.stop()
    pool.shutdown(timeout=DEADLINE)
    assert not good.stop()
    assert good.result() == 0


def test_stop_twice_is_one_stop(drivers: ResourceExecutor[Driver], gate: Gate) -> None:
    def work(driver: Driver) -> int:
        gate.hold()
        return driver.aborts

    future = drivers.submit(work)
    gate.wait_until_held()
    assert future.stop()
    assert future.stop()
    gate.release()

    future.result(DEADLINE)
    assert drivers._core.stops.stopped == 1


def test_stop_of_one_task_touches_no_other(make_pool: MakePool) -> None:
    pool = make_pool(2, on_create=Driver, on_abort=Driver.abort)
    with Gate() as gate:

        def work(driver: Driver) -> int:
            gate.hold()
            assert not current_task().cancelled
            return driver.aborts

        other = pool.submit(work)
        gate.wait_until_held()
        future = pool.submit(Driver.query)
        running(future)
        future.stop()
        assert isinstance(cause_of_stop(future), ConnectionError)
    assert other.result(DEADLINE) == 0


def test_stopped_task_is_never_run_again(make_pool: MakePool, ledger: Ledger, gate: Gate) -> None:
    ran: list[int] = []

    def work(resource: FakeResource) -> None:
        ran.append(resource.number)
        gate.hold()
        resource.break_down()

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=3)
    future = pool.submit(work)
    gate.wait_until_held()
    future.stop()
    gate.release()

    assert isinstance(cause_of_stop(future), ResourceBroken)
    assert ran == [0]
    assert pool.submit(FakeResource.use).result(DEADLINE) == 1  # the judge was asked, and the resource replaced


def test_what_a_stopped_task_returns_stands(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def work() -> int:
        gate.hold()
        return 7

    future = pool.submit(work)
    gate.wait_until_held()
    assert future.stop()
    gate.release()

    assert future.result(DEADLINE) == 7
    assert pool.stats().completed == 1


# -- bad days


def test_hook_that_raises_is_logged(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    def abort(driver: Driver) -> None:
        driver.abort()
        raise OSError("no route")

    pool = make_pool(1, on_create=Driver, on_abort=abort)
    future = pool.submit(Driver.query)
    running(future)

    future.stop()

    assert isinstance(cause_of_stop(future), ConnectionError)
    eventually(lambda: any("on_abort raised" in record.getMessage() for record in caplog.records), "the record")
    assert pool.submit(lambda _: 1).result(DEADLINE) == 1


def test_task_that_returns_at_the_moment_of_the_abort(make_pool: MakePool, ledger: Ledger) -> None:
    # The hook lets it return. The result stands, and the resource is good again before the next task.
    freed = threading.Event()
    checked: list[int] = []

    def check(resource: FakeResource) -> bool:
        checked.append(resource.number)
        return True

    def abort(_: FakeResource) -> None:
        freed.set()

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort, check_resource=check)
    future = pool.submit(lambda _: freed.wait(DEADLINE))
    running(future)

    future.stop()

    assert future.result(DEADLINE) is True
    assert pool.submit(FakeResource.use).result(DEADLINE) == 0
    assert checked[:1] == [0]


def test_task_that_swallows_the_error_and_goes_on(make_pool: MakePool) -> None:
    pool = make_pool(1, on_create=Driver, on_abort=Driver.abort)

    def work(driver: Driver) -> int:
        try:
            driver.query()
        except ConnectionError:
            pass
        return driver.aborts

    future = pool.submit(work)
    running(future)
    future.stop()

    assert future.result(DEADLINE) == 1
    assert pool.submit(lambda driver: driver.aborts).result(DEADLINE) == 0  # another one: nothing tells whether it is good


def test_stop_from_a_done_callback(make_pool: MakePool) -> None:
    pool = make_pool(2)
    answers: list[bool] = []
    other = pool.submit(obey)
    running(other)
    future = pool.submit(int)
    future.add_done_callback(lambda done: answers.extend([other.stop(), future.stop()]))

    assert isinstance(cause_of_stop(other), TaskCancelled)
    eventually(lambda: answers == [True, False], "the callback")


def test_stop_from_the_task_itself(drivers: ResourceExecutor[Driver]) -> None:
    futures: list[Any] = []
    submitted = threading.Event()

    def work(driver: Driver) -> None:
        submitted.wait(DEADLINE)
        assert futures[0].stop()
        driver.query()

    futures.append(drivers.submit(work))
    submitted.set()

    assert isinstance(cause_of_stop(futures[0]), ConnectionError)


def test_stop_from_an_observer_before_the_call(make_pool: MakePool) -> None:
    # The task is in hand, and an abort now would come before the call that it is to unblock. So there is no call.
    class Stopper(Observer):
        future: Any = None
        known = threading.Event()

        def task_started(self, event: TaskEvent) -> None:
            assert self.known.wait(DEADLINE)
            assert self.future.stop()

    stopper = Stopper()
    pool = make_pool(1, on_create=Driver, observers=[stopper], abort_grace=HOUR)
    stopper.future = pool.submit(Driver.query)
    stopper.known.set()

    assert type(cause_of_stop(stopper.future)) is TaskCancelled


def test_stop_from_a_task_of_another_executor(make_pool: MakePool, drivers: ResourceExecutor[Driver]) -> None:
    future = drivers.submit(Driver.query)
    running(future)

    assert make_pool(1).submit(future.stop).result(DEADLINE)

    assert isinstance(cause_of_stop(future), ConnectionError)


@needs_gil
def test_stop_from_a_destructor(drivers: ResourceExecutor[Driver]) -> None:
    future = drivers.submit(Driver.query)
    running(future)

    class Client:
        def __del__(self) -> None:
            future.stop()

    client = Client()
    client.me = client  # type: ignore[attr-defined]  # a cycle: the collector finds it
    del client
    gc.collect()

    assert isinstance(cause_of_stop(future), ConnectionError)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_stop_from_a_signal_handler(drivers: ResourceExecutor[Driver]) -> None:
    future = drivers.submit(Driver.query)
    running(future)

    def on_alarm(*_: object) -> None:
        future.stop()

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        assert isinstance(cause_of_stop(future), ConnectionError)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_thousand_tasks_at_once(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(8)
    started = [pool.submit(obey) for _ in range(8)]
    for future in started:
        running(future)
    futures = [*started, *(pool.submit(obey) for _ in range(992))]

    assert all(future.stop() for future in reversed(futures))

    assert wait(futures, DEADLINE).not_done == set()
    assert all(future.cancelled() or type(future.exception()) is TaskStopped for future in futures)
    pool.shutdown(timeout=DEADLINE)
    stats = pool.stats()
    assert (stats.submitted, stats.completed) == (1000, 0)
    assert stats.failed + stats.cancelled == 1000


@needs_gil
def test_stopped_task_is_not_kept(make_pool: MakePool) -> None:
    class Argument:
        pass

    def query(driver: Driver, _: Argument) -> None:
        driver.query()

    pool = make_pool(1, on_create=Driver, on_abort=Driver.abort, abort_grace=HOUR)
    argument = Argument()
    future = pool.submit(query, argument)
    running(future)
    future.stop()
    wait([future], DEADLINE)
    gone = weakref.ref(argument), weakref.ref(future)

    del argument, future

    eventually(lambda: [ref() for ref in gone] == [None, None], "the task and its argument to go")


# -- run_within


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("seconds", [1e-9, 0.01])
def test_task_that_runs_for_too_long_times_out(make_pool: MakePool, view: bool, seconds: float) -> None:
    pool = make_pool(1).with_options(run_within=seconds) if view else make_pool(1, run_within=seconds)
    future = pool.submit(obey)

    error = future.exception(DEADLINE)

    assert type(error) is TaskTimeout
    assert isinstance(error, TimeoutError)
    assert error.__cause__ is None or "has run for longer than run_within" in str(error.__cause__)


@pytest.mark.parametrize("seconds", [0, 0.0])
def test_task_without_any_time_is_never_called(make_pool: MakePool, seconds: float) -> None:
    called: list[int] = []

    error = make_pool(1).with_options(run_within=seconds).submit(called.append, 1).exception(DEADLINE)

    assert type(error) is TaskTimeout
    assert error.__cause__ is None
    assert called == []


def test_limit_of_the_view_goes_before_that_of_the_executor(make_pool: MakePool) -> None:
    pool = make_pool(2, run_within=0.01)
    free = pool.with_options(run_within=None).submit(obey)
    running(free)

    assert type(pool.submit(obey).exception(DEADLINE)) is TaskTimeout
    assert free.running()
    assert free.stop()
    assert isinstance(cause_of_stop(free), TaskCancelled)


def test_retry_that_has_no_time_left_is_a_time_out_and_counted(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=3)
    future = pool.with_options(run_within=0.0).submit(FakeResource.break_down)

    assert type(future.exception(DEADLINE)) is TaskTimeout

    eventually(lambda: pool._core.stops.timed_out == 1, "the count")


@pytest.mark.parametrize("act", ["drain", "kill", "refresh", "resize"])
def test_time_out_while_the_executor_is_about_something_else(make_pool: MakePool, act: str) -> None:
    pool = make_pool(2, on_create=Driver, on_abort=Driver.abort, abort_grace=HOUR)
    future = pool.with_options(run_within=0.05).submit(Driver.query)
    running(future)

    if act == "drain":
        pool.shutdown(wait=False)
    elif act == "kill":
        pool.kill()
    elif act == "refresh":
        pool.refresh()
    else:
        pool.resize(max_workers=1)

    error = future.exception(DEADLINE)
    assert isinstance(error, TaskTimeout | TaskStopped)
    assert isinstance(error.__cause__, ConnectionError)


def test_time_out_during_an_outage(make_pool: MakePool, ledger: Ledger) -> None:
    freed = threading.Event()

    def abort(_: FakeResource) -> None:
        freed.set()

    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort, create_timeout=0.5)
    future = pool.with_options(run_within=0.1).submit(lambda _: freed.wait(DEADLINE) and 1 / 0)
    running(future)
    ledger.outage = OSError
    waiting = pool.submit(FakeResource.use)

    assert type(future.exception(DEADLINE)) is TaskTimeout
    ledger.outage = None
    assert wait([waiting], DEADLINE).not_done == set()


def test_error_of_a_time_out_that_no_caller_asked_for_is_logged(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(1, run_within=0.01, abort_grace=0.0)
    with Gate() as gate:
        future = pool.submit(gate.hold)
        eventually(lambda: bool(written_off_workers(pool)), "the worker to be written off")
        assert future.done()
        with caplog.at_level(logging.ERROR, "tasker_executor.lost"):
            del future
            gate.release()  # the call keeps the task
            pool.shutdown()  # without the GIL the record goes when the timer, which has made it, comes by
            eventually(lambda: any(record.name == "tasker_executor.lost" for record in caplog.records), "the record")
