"""`map(stop_on_timeout=True)`: when the iterator's time is up, what runs is stopped, and what waits is cancelled."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
from typing_extensions import override

from engine import written_off_workers
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually
from tasker_executor import ResourceExecutor, TaskFuture, TaskStopped, current_task
from tasker_executor.testing import InlineExecutor

SHAPES: list[dict[str, Any]] = [
    {**shape, "ordered": ordered}
    for ordered in (True, False)
    for shape in ({}, {"chunksize": 2}, {"buffersize": 2}, {"chunksize": 2, "buffersize": 6})
]
SOON = 0.01  # seconds; the task that is waited for does not end by itself


class Failed(Exception):
    """What a task raises."""


class Until:
    """A task that runs until it is stopped, and notes what it sees."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.stopped: list[int] = []
        self.started = threading.Event()

    def __call__(self, number: int) -> None:
        self.ran.append(number)
        task = current_task()
        self.started.set()
        if task.wait(DEADLINE):
            self.stopped.append(number)
        task.raise_if_cancelled()


def spy_on_submit(pool: ResourceExecutor[Any], monkeypatch: pytest.MonkeyPatch) -> list[Future[Any]]:
    """Return a list that collects the future of every task that is submitted from now on."""
    futures: list[Future[Any]] = []
    original: Callable[..., Future[Any]] = pool.submit

    def submit(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = original(fn, *args, **kwargs)
        futures.append(future)
        return future

    monkeypatch.setattr(pool, "submit", submit)
    return futures


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_time_out_stops_what_runs_and_cancels_what_waits(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    pool = make_pool(1)
    futures = spy_on_submit(pool, monkeypatch)
    task = Until()

    results = pool.map(task, range(8), timeout=SOON, stop_on_timeout=True, **options)
    assert task.started.wait(DEADLINE)
    with pytest.raises(TimeoutError):
        next(results)

    assert isinstance(futures[0].exception(DEADLINE), TaskStopped)
    assert all(future.cancelled() for future in futures[1:])
    assert (task.ran, task.stopped) == ([0], [0])
    assert list(results) == []


def test_time_out_stops_the_tasks_of_all_workers(make_pool: MakePool) -> None:
    together = threading.Barrier(4)
    stopped: list[int] = []

    def task(number: int) -> None:
        together.wait(DEADLINE)
        if current_task().wait(DEADLINE):
            stopped.append(number)

    pool = make_pool(3)
    results = pool.map(task, range(3), timeout=SOON, stop_on_timeout=True)
    together.wait(DEADLINE)
    with pytest.raises(TimeoutError):
        next(results)
    pool.shutdown(timeout=DEADLINE)

    assert sorted(stopped) == [0, 1, 2]


def test_time_out_aborts_the_resource_of_a_task_that_hangs(make_pool: MakePool, ledger: Ledger) -> None:
    gate = Gate()

    def abort(_: FakeResource) -> None:
        gate.release()

    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort)
    results = pool.map(gate.hold, range(3), timeout=SOON, stop_on_timeout=True)
    gate.wait_until_held()

    with pytest.raises(TimeoutError):
        next(results)
    pool.shutdown(timeout=DEADLINE)  # does not end unless the gate opens


@pytest.mark.parametrize("ordered", [True, False])
def test_time_out_stops_nothing_unless_asked_to(make_pool: MakePool, gate: Gate, ordered: bool) -> None:
    cancelled: list[bool] = []

    def task(_: int) -> None:
        gate.hold()
        cancelled.append(current_task().cancelled)

    pool = make_pool(1)
    results = pool.map(task, range(2), timeout=SOON, ordered=ordered)
    gate.wait_until_held()
    with pytest.raises(TimeoutError):
        next(results)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert cancelled == [False]


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_only_the_time_out_stops_what_runs(make_pool: MakePool, gate: Gate, options: dict[str, Any]) -> None:
    """Neither an error of another task nor the end of the iterator does."""
    cancelled: list[bool] = []

    def task(number: int) -> None:
        if number == 0:
            gate.wait_until_held()
            raise Failed
        gate.hold()
        cancelled.append(current_task().cancelled)

    pool = make_pool(2)
    results: Any = pool.map(task, range(4), timeout=2 * DEADLINE, stop_on_timeout=True, **options)
    with pytest.raises(Failed):
        next(results)
    results.close()
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert cancelled
    assert not any(cancelled)


def test_without_a_time_out_nothing_is_stopped(make_pool: MakePool) -> None:
    assert list(make_pool(1).map(str, range(3), stop_on_timeout=True)) == ["0", "1", "2"]


def test_map_of_a_view_stops_what_runs(make_pool: MakePool) -> None:
    task = Until()
    pool = make_pool(1)
    results = pool.with_options(priority=True).map(task, range(3), timeout=SOON, stop_on_timeout=True)
    assert task.started.wait(DEADLINE)

    with pytest.raises(TimeoutError):
        next(results)
    pool.shutdown(timeout=DEADLINE)

    assert (task.ran, task.stopped) == ([0], [0])


# -- chunks --


@pytest.mark.parametrize("scoped", [False, True])
def test_chunk_that_is_stopped_makes_no_more_calls(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate, scoped: bool
) -> None:
    """Though the call that runs returns in spite of the stop."""
    ran: list[int] = []

    def task(number: int) -> int:
        ran.append(number)
        if number == 1:
            gate.hold()
        return number

    pool = make_pool(1)
    monkeypatch.setattr(type(pool), "_scoped", scoped)
    futures = spy_on_submit(pool, monkeypatch)
    results = pool.map(task, range(4), chunksize=4, timeout=SOON, stop_on_timeout=True)
    gate.wait_until_held()
    with pytest.raises(TimeoutError):
        next(results)
    gate.release()

    assert isinstance(futures[0].exception(DEADLINE), TaskStopped)
    assert ran == [0, 1]


def test_results_of_a_chunk_before_its_stop_are_handed_out(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    def task(number: int) -> int:
        if number == 2:
            gate.hold()
        return number

    pool = make_pool(1)
    futures = spy_on_submit(pool, monkeypatch)
    results = pool.map(task, range(5), chunksize=5)
    gate.wait_until_held()
    future: Any = futures[0]
    assert future.stop()
    gate.release()

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TaskStopped):
        next(results)


@pytest.mark.parametrize("ordered", [True, False])
def test_chunk_that_was_given_up_adds_nothing_to_what_is_handed_out(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate, ordered: bool
) -> None:
    # 1. The task is given up in its third call. 2. The caller takes the first result. 3. The third call returns, and
    # the worker notes its result. 4. The caller takes the next: it was the one of the third call.
    def task(number: int) -> int:
        if number == 2:
            gate.hold()
        return number

    pool = make_pool(1, abort_grace=0.0)
    futures = spy_on_submit(pool, monkeypatch)
    results = pool.map(task, range(5), chunksize=5, ordered=ordered)
    gate.wait_until_held()
    future: Any = futures[0]
    assert future.stop()
    assert isinstance(future.exception(DEADLINE), TaskStopped)
    eventually(lambda: len(written_off_workers(pool)) == 1, "the worker to be written off")
    first = next(results)
    gate.release()
    eventually(lambda: not written_off_workers(pool), "the call to return")

    assert (first, next(results)) == (0, 1)
    with pytest.raises(TaskStopped):
        next(results)


def test_kill_ends_a_chunk_after_the_call_that_runs(make_pool: MakePool, gate: Gate) -> None:
    ran: list[int] = []

    def task(number: int) -> None:
        ran.append(number)
        gate.hold()

    pool = make_pool(1)
    pool.map(task, range(4), chunksize=4)
    gate.wait_until_held()
    pool.kill()
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert ran == [0]


# -- futures of all kinds --


class Noted(TaskFuture[Any]):
    """A future whose task runs for ever. It notes what is asked of it."""

    def __init__(self, name: int, notes: list[str], error: type[BaseException] | None = None) -> None:
        super().__init__()
        self._name = name
        self._notes = notes
        self._error = error

    @override
    def stop(self) -> bool:
        self._notes.append(f"stop {self._name}")
        if self._error is not None:
            raise self._error
        return True

    @override
    def cancel(self) -> bool:
        self._notes.append(f"cancel {self._name}")
        return False


@pytest.mark.parametrize("options", [{}, {"buffersize": 4}, {"ordered": False}], ids=str)
def test_the_latest_task_is_stopped_first(make_pool: MakePool, options: dict[str, Any]) -> None:
    """So no worker that is let go takes a task that is about to be cancelled."""
    notes: list[str] = []
    pool: Any = make_pool(1)
    numbers = itertools.count()

    def submit(*_: object) -> Noted:
        return Noted(next(numbers), notes)

    pool.submit = submit

    with pytest.raises(TimeoutError):
        next(pool.map(abs, range(4), timeout=0, stop_on_timeout=True, **options))

    assert notes == ["stop 3", "stop 2", "stop 1", "stop 0"]


@pytest.mark.parametrize("options", [{}, {"buffersize": 4}, {"ordered": False}], ids=str)
def test_ctrl_c_among_the_stops_cancels_the_rest(make_pool: MakePool, options: dict[str, Any]) -> None:
    notes: list[str] = []
    pool: Any = make_pool(1)
    numbers = iter([(0, None), (1, None), (2, KeyboardInterrupt), (3, None)])

    def submit(*_: object) -> Noted:
        number, error = next(numbers)
        return Noted(number, notes, error)

    pool.submit = submit

    with pytest.raises(KeyboardInterrupt):
        next(pool.map(abs, range(4), timeout=0, stop_on_timeout=True, **options))

    assert notes[:2] == ["stop 3", "stop 2"]
    assert {"cancel 0", "cancel 1", "cancel 2"} <= set(notes[2:])


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_futures_of_another_library_are_cancelled(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, gate: Gate, options: dict[str, Any]
) -> None:
    ran: list[int] = []

    def task(number: int) -> None:
        ran.append(number)
        gate.hold()

    with ThreadPoolExecutor(1) as foreign, gate:
        pool = make_pool(1)
        monkeypatch.setattr(pool, "submit", foreign.submit)
        futures = spy_on_submit(pool, monkeypatch)
        results = pool.map(task, range(6), timeout=SOON, stop_on_timeout=True, **options)
        gate.wait_until_held()
        with pytest.raises(TimeoutError):
            next(results)
        gate.release()

        assert not futures[0].cancelled()
        assert all(future.cancelled() for future in futures[1:])
        wait(futures, DEADLINE)
    assert ran == list(range(options.get("chunksize", 1)))  # nothing tells a chunk elsewhere to stop


@pytest.mark.parametrize("ordered", [True, False])
def test_time_out_cancels_what_an_inline_executor_has_not_run(ordered: bool) -> None:
    ran: list[int] = []
    with InlineExecutor(deferred=True) as pool:
        results = pool.map(ran.append, range(3), timeout=0, ordered=ordered, stop_on_timeout=True)
        with pytest.raises(TimeoutError):
            next(results)
        assert pool.run_all() == 0

    assert ran == []
