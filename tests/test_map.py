"""`map`: order or none, errors, chunks, and a buffer that is exact."""

from __future__ import annotations

import itertools
import signal
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from types import BuiltinMethodType
from typing import Any

import pytest
from typing_extensions import override

from engine import note_fork, patch_map_clock
from interruptions import ERRORS, Call, at_every_point, thrower
from support import (
    DEADLINE,
    FakeResource,
    Gate,
    Ledger,
    MakePool,
    ResourceBroken,
    eventually,
    is_waited_for,
    join_all,
    needs_gil,
    run_python,
)
from tasker_executor import ResourceExecutor
from tasker_executor.exceptions import PoolDeadlockError
from tasker_executor.testing import InlineExecutor


class Source:
    """Numbers without end, and how many of them were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.read += 1
        return self.read - 1


class Failed(Exception):
    """What a source or a task raises."""


def failing_source(count: int, error: BaseException) -> Iterator[int]:
    yield from range(count)
    raise error


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


def identity(value: Any) -> Any:
    return value


def both(*options: dict[str, int]) -> list[dict[str, Any]]:
    """Return the options as they are, and with ``ordered=False``: one worker ends its tasks in their order."""
    return [*options, *({**some, "ordered": False} for some in options)]


# -- order and errors --


def test_results_come_in_order_though_tasks_end_out_of_order(make_pool: MakePool) -> None:
    pool = make_pool(2)
    later_is_done = threading.Event()

    def task(number: int) -> int:
        if number == 0:
            assert later_is_done.wait(DEADLINE)
        else:
            later_is_done.set()
        return number

    assert list(pool.map(task, range(2))) == [0, 1]


def test_tasks_get_the_resource_first(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(2, on_create=ledger.create, on_destroy=ledger.destroy)

    def task(resource: FakeResource, left: int, right: int) -> tuple[bool, int]:
        return isinstance(resource, FakeResource), left + right

    assert list(pool.map(task, [1, 2], [10, 20])) == [(True, 11), (True, 22)]
    assert list(pool.map(task, [1, 2, 3], [10, 20, 30], chunksize=2)) == [(True, 11), (True, 22), (True, 33)]


@pytest.mark.parametrize("options", both({}, {"chunksize": 3}, {"buffersize": 2}, {"chunksize": 2, "buffersize": 4}), ids=str)
def test_error_comes_in_its_place_after_the_results_before_it(make_pool: MakePool, options: dict[str, Any]) -> None:
    results = make_pool(1).map((12).__floordiv__, range(4, -5, -1), **options)

    assert [next(results) for _ in range(4)] == [3, 4, 6, 12]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 2}), ids=str)
def test_error_cancels_what_has_not_started(make_pool: MakePool, gate: Gate, options: dict[str, Any]) -> None:
    pool = make_pool(1)
    ran: list[int] = []

    def task(number: int) -> None:
        ran.append(number)
        if number == 0:
            raise Failed
        gate.hold()

    results = pool.map(task, range(20), **options)
    with pytest.raises(Failed):
        next(results)
    gate.release()
    pool.shutdown()

    # The failing task ran. A worker may have started one more chunk before the rest were cancelled.
    assert len(ran) <= 1 + options.get("chunksize", 1)


# -- timeout --


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 2}), ids=str)
def test_time_is_up_for_a_result_that_is_not_there(make_pool: MakePool, gate: Gate, options: dict[str, Any]) -> None:
    pool = make_pool(1)
    ran: list[int] = []

    def task(number: int) -> None:
        ran.append(number)
        gate.hold()

    results = pool.map(task, range(8), timeout=0.01, **options)
    gate.wait_until_held()
    with pytest.raises(FutureTimeoutError):
        next(results)
    gate.release()
    pool.shutdown()

    assert ran == list(range(options.get("chunksize", 1)))  # what had not started was cancelled


def test_time_counts_from_the_call_of_map(make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    patch_map_clock(monkeypatch, lambda: now)
    results = make_pool(1).map(gate.hold, [1], timeout=60.0)
    now += 61.0

    with pytest.raises(FutureTimeoutError):
        next(results)


def test_result_that_is_there_is_handed_out_though_time_is_up(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    patch_map_clock(monkeypatch, lambda: now)
    pool = make_pool(1)
    results = pool.map(str, [1, 2], timeout=60.0)
    pool.shutdown()
    now += 61.0

    assert list(results) == ["1", "2"]


# -- chunks --


@pytest.mark.parametrize("chunksize, tasks", [(1, 10), (3, 4), (5, 2), (100, 1)])
def test_chunk_of_calls_is_one_task(make_pool: MakePool, chunksize: int, tasks: int) -> None:
    pool = make_pool(2)

    assert list(pool.map(identity, range(10), chunksize=chunksize)) == list(range(10))
    assert pool.stats().submitted == tasks


def test_retried_chunk_goes_on_with_the_call_that_failed(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    calls: list[int] = []

    def task(resource: FakeResource, number: int) -> int:
        calls.append(number)
        if number == 2 and resource.number == 0:
            resource.break_down()
        return number

    assert list(pool.map(task, range(5), chunksize=5)) == [0, 1, 2, 3, 4]
    assert calls == [0, 1, 2, 2, 3, 4]


def test_chunk_that_runs_out_of_retries_yields_the_results_before_the_error(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=1)

    def task(resource: FakeResource, number: int) -> int:
        if number == 2:
            resource.break_down()
        return number

    results = pool.map(task, range(5), chunksize=5)

    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ResourceBroken):
        next(results)


# -- the buffer --


def test_source_is_read_no_further_than_the_buffer_when_map_returns(make_pool: MakePool) -> None:
    source = Source()
    make_pool(1).map(identity, source, buffersize=3)

    assert source.read == 3


def test_exactly_the_buffer_is_in_flight_while_the_consumer_waits_for_the_first_result(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, source = make_pool(1), Source()
    futures = spy_on_submit(pool, monkeypatch)
    results = pool.map(gate.hold, source, buffersize=2)
    consumer = threading.Thread(target=next, args=(results,))
    consumer.start()

    eventually(lambda: is_waited_for(futures[0]), "the consumer to wait in next()")

    assert source.read == 2
    assert len(futures) == 2
    gate.release()
    assert join_all([consumer]) == []


def test_each_result_that_is_fetched_lets_one_more_in(make_pool: MakePool) -> None:
    source = Source()
    results = make_pool(2).map(identity, source, buffersize=4)
    read = [source.read for _ in itertools.islice(results, 10)]

    assert read == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]  # with one fetched, four others are under way: five read, and so on


@pytest.mark.parametrize("chunksize, first, then", [(2, 4, 6), (3, 3, 6), (100, 5, 5)])
def test_buffer_counts_calls_and_not_chunks(make_pool: MakePool, chunksize: int, first: int, then: int) -> None:
    source = Source()
    results = make_pool(1).map(identity, source, chunksize=chunksize, buffersize=5)
    before = source.read
    next(results)

    assert (before, source.read) == (first, then)


@pytest.mark.parametrize("chunksize", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("buffersize", [1, 2, 4, 5])
@pytest.mark.parametrize("ordered", [True, False])
def test_buffer_is_exact(make_pool: MakePool, chunksize: int, buffersize: int, ordered: bool) -> None:
    source = Source()
    results = make_pool(2).map(identity, source, chunksize=chunksize, buffersize=buffersize, ordered=ordered)
    unfetched = [source.read]
    for fetched, _ in enumerate(itertools.islice(results, 20), 1):
        unfetched.append(source.read - fetched)

    assert max(unfetched) <= buffersize
    assert min(unfetched) + min(chunksize, buffersize) > buffersize  # there is no room for one more chunk


def test_endless_source_is_fine_with_a_buffer(make_pool: MakePool) -> None:
    pool = make_pool(2)

    assert list(itertools.islice(pool.map(identity, itertools.count(), buffersize=2), 100)) == list(range(100))


def test_buffer_larger_than_the_source_does_no_harm(make_pool: MakePool) -> None:
    assert list(make_pool(2).map(identity, range(3), buffersize=10)) == [0, 1, 2]


# -- the source --


@pytest.mark.parametrize("options", both({}, {"chunksize": 1, "buffersize": 5}), ids=str)
def test_tasks_start_while_the_source_is_still_being_read(make_pool: MakePool, options: dict[str, Any]) -> None:
    pool = make_pool(1)
    started = threading.Event()

    def slow_source() -> Iterator[int]:
        yield 1
        assert started.wait(DEADLINE), "the first task did not start before the second item was asked for"
        yield 2

    def task(number: int) -> int:
        started.set()
        return number

    assert list(pool.map(task, slow_source(), **options)) == [1, 2]


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 100}), ids=str)
@pytest.mark.parametrize("error", [Failed(), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_source_that_raises_cancels_what_was_submitted(
    make_pool: MakePool, gate: Gate, options: dict[str, Any], error: BaseException
) -> None:
    pool = make_pool(1)
    ran: list[int] = []
    pool.submit(gate.hold)
    gate.wait_until_held()

    with pytest.raises(type(error)):
        pool.map(ran.append, failing_source(50, error), **options)
    assert pool.stats().queued_tasks == 0
    gate.release()
    pool.shutdown()
    assert ran == []


@pytest.mark.parametrize("ordered", [True, False])
def test_source_that_raises_later_cancels_what_was_submitted(make_pool: MakePool, gate: Gate, ordered: bool) -> None:
    pool = make_pool(1)
    ran: list[int] = []

    def task(number: int) -> int:
        ran.append(number)
        if number == 1:
            gate.hold()
        return number

    results = pool.map(task, failing_source(4, Failed()), buffersize=4, ordered=ordered)
    gate.wait_until_held()  # so the first is done, and the source about to raise when the next item is asked for

    with pytest.raises(Failed):
        next(results)
    gate.release()
    pool.shutdown()
    assert ran == [0, 1]


def test_submission_that_fails_half_way_cancels_what_was_submitted(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    original = pool.submit

    def submit(fn: Callable[..., Any], number: int, /) -> Future[Any]:
        if number == 3:
            raise OSError("no more")
        return original(fn, number)

    monkeypatch.setattr(pool, "submit", submit)

    with pytest.raises(OSError, match="no more"):
        pool.map(identity, range(5))
    assert pool.stats().cancelled == 3


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 6}, {"chunksize": 2, "buffersize": 6}), ids=str)
def test_closing_the_iterator_cancels_what_has_not_started(make_pool: MakePool, gate: Gate, options: dict[str, Any]) -> None:
    pool = make_pool(1)
    ran: list[int] = []
    chunk = options.get("chunksize", 1)

    def task(number: int) -> int:
        ran.append(number)
        if number == chunk:
            gate.hold()
        return number

    results = pool.map(task, range(20), **options)
    assert next(results) == 0
    gate.wait_until_held()
    results.close()  # type: ignore[attr-defined]  # a generator, as in the standard library

    gate.release()
    pool.shutdown()
    assert ran == list(range(2 * chunk))


# -- one thread at a time --


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 2}), ids=str)
def test_second_thread_that_asks_is_refused_and_takes_nothing_away(
    make_pool: MakePool, gate: Gate, options: dict[str, Any]
) -> None:
    def task(number: int) -> int:
        if number == 0:
            gate.hold()
        return number

    results = make_pool(1).map(task, range(4), **options)
    gate.wait_until_held()
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(next, results)
        eventually(lambda: is_asked(results), "the other thread to be inside")
        with pytest.raises(ValueError, match="already executing"):
            next(results)
        gate.release()

        assert first.result(DEADLINE) == 0
    assert list(results) == [1, 2, 3]


def is_asked(results: Any) -> bool:
    """Return whether a thread is inside of the generator of these results."""
    return bool(results._generator.gi_running)


# -- letting go --


class Thing:
    """Something to refer to weakly."""


@needs_gil
@pytest.mark.parametrize("options", both({}, {"chunksize": 3}, {"buffersize": 2}), ids=str)
def test_result_that_was_handed_out_is_not_kept(make_pool: MakePool, options: dict[str, Any]) -> None:
    def task(_: int) -> Thing:
        return Thing()

    pool = make_pool(1)
    results = pool.map(task, range(6), **options)
    for _ in range(4):
        reference = weakref.ref(next(results))
        eventually(lambda reference=reference: reference() is None, "the result to be let go")  # type: ignore[misc]  # a bound default

    results.close()  # type: ignore[attr-defined]  # a generator, as in the standard library


# -- through submit --


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 2}), ids=str)
def test_map_goes_through_a_submit_set_on_the_instance(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    pool = make_pool(1)
    futures = spy_on_submit(pool, monkeypatch)

    assert list(pool.map(identity, range(6), **options)) == list(range(6))
    assert len(futures) == 6 // options.get("chunksize", 1)


def test_map_goes_through_a_submit_that_a_subclass_overrides() -> None:
    class Counting(ResourceExecutor[None]):
        submissions = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            self.submissions += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(1) as pool:
        assert list(pool.map(identity, range(3))) == [0, 1, 2]

    assert pool.submissions == 3


def test_map_goes_through_submit_of_a_subclass_of_the_overriding_class() -> None:
    class Counting(ResourceExecutor[None]):
        submissions = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            self.submissions += 1
            return super().submit(fn, *args, **kwargs)

    class Derived(Counting):
        pass

    with Derived(1) as pool:
        assert list(pool.map(identity, range(3), buffersize=2)) == [0, 1, 2]

    assert pool.submissions == 3


def test_map_of_a_view_uses_the_options_of_the_view(make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy)
    results = pool.with_options(max_retries=0).map(FakeResource.break_down, [1])

    with pytest.raises(ResourceBroken):
        next(results)
    assert pool.stats().retried == 0


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 4}), ids=str)
def test_an_iterator_that_is_closed_before_its_first_result_cancels_what_has_not_started(
    make_pool: MakePool, gate: Gate, options: dict[str, Any]
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ran: list[int] = []
    results: Any = pool.map(ran.append, range(4), **options)

    results.close()
    gate.release()
    pool.shutdown()

    assert ran == []
    assert list(results) == []


@pytest.mark.parametrize("options", both({}, {"chunksize": 2}, {"buffersize": 4}), ids=str)
def test_an_iterator_that_is_dropped_before_its_first_result_cancels_nothing(
    make_pool: MakePool, gate: Gate, options: dict[str, Any]
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()
    ran: list[int] = []

    pool.map(ran.append, range(4), **options)
    gate.release()
    pool.shutdown()

    assert ran == [0, 1, 2, 3]


def test_an_executor_that_accepts_no_more_hands_out_the_results_that_are_there_first(make_pool: MakePool) -> None:
    pool = make_pool(1)
    results = pool.map(identity, range(8), buffersize=3)
    assert next(results) == 0
    pool.shutdown()

    got: list[int] = []
    with pytest.raises(RuntimeError, match="after shutdown"):
        got.extend(results)

    assert got == [1, 2, 3]


def test_stop_iteration_in_a_chunk_keeps_its_value(make_pool: MakePool) -> None:
    def stop(number: int) -> int:
        if number == 1:
            raise StopIteration("value")
        return number

    results = make_pool(1).map(stop, range(4), chunksize=4)

    assert next(results) == 0
    with pytest.raises(RuntimeError) as caught:
        next(results)
    assert isinstance(caught.value.__cause__, StopIteration)
    assert caught.value.__cause__.value == "value"


# -- chunks in a scope --


class Scoped(ResourceExecutor[FakeResource]):
    """An executor that says that it enters a scope for each task."""

    @property
    @override
    def _scoped(self) -> bool:
        return True


@pytest.fixture
def scoped(ledger: Ledger) -> Iterator[Scoped]:
    with Scoped(1, on_create=ledger.create, on_destroy=ledger.destroy, check_health=ledger.is_healthy, max_retries=1) as pool:
        yield pool


@pytest.mark.parametrize("options", both({"chunksize": 5}), ids=str)
@pytest.mark.parametrize("view", [False, True], ids=["executor", "view"])
def test_chunk_that_is_retried_in_a_scope_makes_all_calls_again(scoped: Scoped, options: dict[str, Any], view: bool) -> None:
    calls: list[int] = []

    def task(resource: FakeResource, number: int) -> tuple[int, int]:
        calls.append(number)
        if number == 2 and resource.number == 0:
            resource.break_down()
        return number, resource.number

    pool = scoped.with_options(priority=True) if view else scoped

    assert list(pool.map(task, range(5), **options)) == [(number, 1) for number in range(5)]
    assert calls == [0, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("options", both({"chunksize": 3}), ids=str)
def test_chunk_that_fails_in_a_scope_has_no_results(scoped: Scoped, options: dict[str, Any]) -> None:
    def task(_: FakeResource, number: int) -> int:
        if number == 4:
            raise Failed
        return number

    results = scoped.map(task, range(6), **options)

    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Failed):
        next(results)


# -- results as they come --


class Doors:
    """Tasks that end when the test says so."""

    def __init__(self) -> None:
        self._doors: dict[int, Gate] = {}
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> Gate:
        with self._lock:
            return self._doors.setdefault(number, Gate())

    def task(self, number: int) -> int:
        self[number].hold()
        return number

    def open(self, *numbers: int) -> None:
        for number in numbers:
            self[number].release()


@pytest.fixture
def doors() -> Iterator[Doors]:
    doors = Doors()
    yield doors
    doors.open(*range(20))


def before_it_blocks(pool: ResourceExecutor[Any], monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have the thread that has found no result, and is about to block, call `action` first. Once."""
    original, actions = pool._wait_for_one, [action]

    def wait(*args: Any) -> bool:
        if actions:
            actions.pop()()
        return original(*args)

    monkeypatch.setattr(pool, "_wait_for_one", wait)


@pytest.mark.parametrize("options", [{}, {"buffersize": 3}], ids=str)
def test_results_are_handed_out_as_soon_as_they_are_there(make_pool: MakePool, doors: Doors, options: dict[str, Any]) -> None:
    results = make_pool(3).map(doors.task, range(3), ordered=False, **options)
    got: list[int] = []
    for number in (2, 0, 1):
        doors.open(number)
        got.append(next(results))

    assert got == [2, 0, 1]
    assert list(results) == []


def test_results_that_are_there_come_in_the_order_in_which_their_tasks_ended(make_pool: MakePool, doors: Doors) -> None:
    pool = make_pool(4)
    results = pool.map(doors.task, range(4), ordered=False)
    for ended, number in enumerate((3, 1, 2, 0), 1):
        doors.open(number)
        eventually(lambda ended=ended: pool.stats().completed == ended, "the task to end")  # type: ignore[misc]  # a bound default
    pool.shutdown()

    assert list(results) == [3, 1, 2, 0]


def test_results_of_a_chunk_come_together(make_pool: MakePool, doors: Doors) -> None:
    results = make_pool(2).map(doors.task, range(6), chunksize=3, ordered=False)
    doors.open(3, 4, 5)
    second = [next(results) for _ in range(3)]
    doors.open(0, 1, 2)

    assert second == [3, 4, 5]
    assert list(results) == [0, 1, 2]


def test_an_error_comes_when_its_task_ends_and_cancels_the_rest(make_pool: MakePool, doors: Doors) -> None:
    pool = make_pool(2)
    ran: list[int] = []

    def task(number: int) -> int:
        ran.append(number)
        doors.task(number)
        if number == 1:
            raise Failed
        return number

    results = pool.map(task, range(6), ordered=False)
    doors[0].wait_until_held()
    doors[1].wait_until_held()
    doors.open(1)
    with pytest.raises(Failed):
        next(results)

    assert list(results) == []
    doors.open(*range(6))
    pool.shutdown()
    assert sorted(ran)[:2] == [0, 1]
    assert len(ran) <= 3  # the worker of the failed task may have started one more before the rest were cancelled


def test_a_task_that_ends_when_the_caller_is_about_to_block_wakes_it(
    make_pool: MakePool, doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(2)
    results = pool.map(doors.task, range(2), ordered=False)

    def end_one() -> None:
        doors.open(1)
        eventually(lambda: pool.stats().completed == 1, "the task to end")

    before_it_blocks(pool, monkeypatch, end_one)

    assert next(results) == 1


def test_a_caller_that_is_blocked_is_woken_by_any_task(
    make_pool: MakePool, doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, blocks = make_pool(2), threading.Event()
    results = pool.map(doors.task, range(2), ordered=False)
    before_it_blocks(pool, monkeypatch, blocks.set)
    got: list[int] = []
    consumer = threading.Thread(target=lambda: got.append(next(results)))
    consumer.start()
    assert blocks.wait(DEADLINE)
    doors.open(1)

    assert join_all([consumer]) == []
    assert got == [1]


def test_a_task_that_is_cancelled_while_the_caller_waits_raises(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, blocks = make_pool(1), threading.Event()
    pool.submit(gate.hold)
    gate.wait_until_held()
    results = pool.map(identity, range(3), ordered=False)
    before_it_blocks(pool, monkeypatch, blocks.set)
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            next(results)
        except CancelledError as error:
            errors.append(error)

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert blocks.wait(DEADLINE)
    pool.shutdown(wait=False, cancel_futures=True)

    assert join_all([consumer]) == []
    assert len(errors) == 1
    assert list(results) == []


def test_time_may_be_up_for_all_but_the_results_that_are_there(
    make_pool: MakePool, doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    patch_map_clock(monkeypatch, lambda: now)
    pool = make_pool(2)
    results = pool.map(doors.task, range(2), timeout=60.0, ordered=False)
    doors.open(1)
    eventually(lambda: pool.stats().completed == 1, "the task to end")
    now += 61.0

    assert next(results) == 1
    with pytest.raises(FutureTimeoutError):
        next(results)


def test_an_iterable_at_its_end_is_not_read_again(make_pool: MakePool) -> None:
    source = Source()
    results = make_pool(1).map(max, source, range(3), ordered=False)

    assert list(results) == [0, 1, 2]
    assert source.read == 4  # as by `zip`: the fourth was read before the second iterable was found to end


def test_results_of_accepted_tasks_come_before_the_refusal(make_pool: MakePool) -> None:
    pool = make_pool(1)
    results = pool.map(identity, range(8), buffersize=3, ordered=False)
    assert next(results) == 0
    pool.shutdown()

    got: list[int] = []
    with pytest.raises(RuntimeError, match="after shutdown"):
        got.extend(results)

    assert got == [1, 2, 3]


def test_the_end_of_the_stack_is_no_refusal(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)
    results = pool.map(identity, range(8), buffersize=3, ordered=False)

    def submit(fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        raise RecursionError

    monkeypatch.setattr(pool, "submit", submit)

    with pytest.raises(RecursionError):
        next(results)


def test_stop_iteration_in_an_unordered_chunk_keeps_its_value(make_pool: MakePool) -> None:
    def stop(number: int) -> int:
        if number == 1:
            raise StopIteration("value")
        return number

    results = make_pool(1).map(stop, range(4), chunksize=4, ordered=False)

    assert next(results) == 0
    with pytest.raises(RuntimeError) as caught:
        next(results)
    assert isinstance(caught.value.__cause__, StopIteration)


@needs_gil
@pytest.mark.parametrize("close", [False, True], ids=["dropped", "closed"])
def test_results_that_no_caller_will_fetch_are_not_kept(make_pool: MakePool, gate: Gate, close: bool) -> None:
    made: list[weakref.ref[Thing]] = []

    def task(number: int) -> Thing:
        if number == 2:
            gate.hold()
        thing = Thing()
        made.append(weakref.ref(thing))
        return thing

    pool = make_pool(1)
    results: Any = pool.map(task, range(3), ordered=False)
    gate.wait_until_held()  # so two results are there, and the third task is yet to call back
    assert [reference() is None for reference in made] == [False, False]
    if close:
        results.close()
    del results

    eventually(lambda: [reference() for reference in made] == [None, None], "the results to be let go")


def test_any_true_value_means_in_order(make_pool: MakePool) -> None:
    value: Any
    for value in (1, "yes", [0]):
        assert list(make_pool(2).map(identity, range(9), ordered=value)) == list(range(9))
    for value in (0, "", None):
        assert sorted(make_pool(2).map(identity, range(9), ordered=value)) == list(range(9))


def test_a_wake_up_for_nothing_does_no_harm(make_pool: MakePool, doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, blocks = make_pool(2), threading.Event()
    results = pool.map(doors.task, range(4), ordered=False)
    doors.open(1)
    first = next(results)
    doors.open(2)
    eventually(lambda: pool.stats().completed == 2, "the task to end")
    note_fork()  # so a number will come twice
    second = next(results)
    before_it_blocks(pool, monkeypatch, blocks.set)
    got: list[int] = []
    consumer = threading.Thread(target=lambda: got.extend(results))
    consumer.start()
    assert blocks.wait(DEADLINE)
    note_fork()
    doors.open(0, 3)

    assert join_all([consumer]) == []
    assert (first, second, sorted(got)) == (1, 2, [0, 3])


def test_tasks_that_are_done_and_have_not_called_back_are_found_in_the_child_of_a_fork(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(Future[int]):
        @override
        def add_done_callback(self, fn: Callable[[Future[int]], object]) -> None:
            pass

    futures = [Silent() for _ in range(3)]

    def submit(_: Callable[..., int], /, number: int) -> Future[int]:
        return futures[number]

    pool = make_pool(1)
    monkeypatch.setattr(pool, "submit", submit)
    results = pool.map(identity, range(3), ordered=False)
    futures[2].set_result(2)
    futures[1].set_exception(Failed())
    note_fork()

    with pytest.raises(Failed):
        next(results)
    assert futures[0].cancelled()


def test_a_callback_that_fails_at_once_loses_no_result(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the stack there is no frame left for it, and the future logs the error."""

    class Done(Future[int]):
        @override
        def add_done_callback(self, fn: Callable[[Future[int]], object]) -> None:
            pass

    def submit(fn: Callable[..., int], /, *args: Any) -> Future[int]:
        future = Done()
        future.set_result(fn(*args))
        return future

    pool = make_pool(1)
    monkeypatch.setattr(pool, "submit", submit)

    assert list(pool.map(identity, range(3), ordered=False)) == [0, 1, 2]


# -- results as they come, of other executors and on other threads --


def test_a_task_may_take_results_as_they_come(make_pool: MakePool, doors: Doors) -> None:
    """The task on the first worker blocks for two tasks; the wait starts their workers, and any of them ends it."""
    pool = make_pool(3)

    def outer() -> list[int]:
        results = pool.map(doors.task, range(2), ordered=False)
        doors.open(1)
        got = [next(results)]
        doors.open(0)
        return [*got, *results]

    assert pool.submit(outer).result(DEADLINE) == [1, 0]


class One:
    """A policy that wants one worker."""

    interval = 60.0

    def target(self, load: object) -> int:
        return 1


def test_a_task_that_waits_for_results_starts_a_worker_whatever_the_policy_says(make_pool: MakePool) -> None:
    pool = make_pool(2, policy=One())

    def outer() -> list[int]:
        return sorted(pool.map(identity, range(5), ordered=False))

    assert pool.submit(outer).result(DEADLINE) == [0, 1, 2, 3, 4]


def test_a_task_that_waits_for_results_that_no_worker_is_left_for_is_told_so(make_pool: MakePool) -> None:
    pool = make_pool(1)

    def outer() -> list[int]:
        return list(pool.map(identity, range(3), ordered=False))

    with pytest.raises(PoolDeadlockError):
        pool.submit(outer).result(DEADLINE)


def test_a_task_that_asks_for_results_and_does_not_wait_starts_no_worker(make_pool: MakePool) -> None:
    pool = make_pool(2, policy=One())

    def outer() -> int:
        with pytest.raises(FutureTimeoutError):
            next(pool.map(identity, range(3), ordered=False, timeout=0))
        return len(pool.workers())

    assert pool.submit(outer).result(DEADLINE) == 1


def test_views_hand_results_out_as_they_come(make_pool: MakePool, doors: Doors) -> None:
    results = make_pool(2).with_options(priority=True).map(doors.task, range(2), ordered=False)
    doors.open(1)

    assert next(results) == 1


def test_an_executor_without_threads_runs_tasks_until_a_result_is_there() -> None:
    ran: list[int] = []

    def task(number: int) -> int:
        ran.append(number)
        return number

    with InlineExecutor(deferred=True) as pool:
        results = pool.map(task, range(4), ordered=False)
        before = ran.copy()
        first = next(results)
        after = ran.copy()
        rest = list(results)

    assert (before, first, after, rest) == ([], 0, [0], [1, 2, 3])


def test_an_executor_that_runs_tasks_at_once_has_all_results() -> None:
    with InlineExecutor() as pool:
        assert list(pool.map(identity, range(4), ordered=False, chunksize=3)) == [0, 1, 2, 3]


@pytest.mark.parametrize("options", [{}, {"chunksize": 2}, {"buffersize": 3}], ids=str)
def test_submit_may_be_one_of_another_executor(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, doors: Doors, options: dict[str, Any]
) -> None:
    pool = make_pool(1)
    with ThreadPoolExecutor(3) as foreign:
        monkeypatch.setattr(pool, "submit", foreign.submit)
        results = pool.map(doors.task, range(3), ordered=False, **options)
        doors.open(2)
        first = next(results)
        doors.open(0, 1)

        assert [first, *sorted(results)] == [2, 0, 1]
    assert pool.stats().submitted == 0


# -- interrupted --


def test_ctrl_c_on_the_thread_that_ends_a_task_cannot_split_the_callback(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread may be the main one, which cancels tasks while another thread waits. The callback has no Python in it."""
    callbacks: list[Any] = []

    class Noted(Future[int]):
        @override
        def add_done_callback(self, fn: Callable[[Future[int]], object]) -> None:
            callbacks.append(fn)

    def submit(_: Callable[..., int], /, number: int) -> Future[int]:
        return Noted()

    pool = make_pool(1)
    monkeypatch.setattr(pool, "submit", submit)
    pool.map(identity, range(2), ordered=False)

    assert [(type(callback), type(callback.func)) for callback in callbacks] == [(partial, BuiltinMethodType)] * 2


@pytest.mark.long
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("options", [{}, {"chunksize": 2, "buffersize": 2}], ids=str)
def test_an_error_thrown_in_anywhere_loses_nothing(error: type[BaseException], options: dict[str, Any]) -> None:
    scenario = Call(lambda pool: list(pool.map(FakeResource.use, range(4), ordered=False, **options)))

    assert at_every_point(scenario, thrower(error)) >= 5


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pthread_kill")
def test_ctrl_c_ends_the_wait_for_a_result_and_cancels_the_rest(
    make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, blocks = make_pool(1), threading.Event()
    ran: list[int] = []

    def task(number: int) -> None:
        ran.append(number)
        gate.hold()

    results = pool.map(task, range(3), ordered=False)
    before_it_blocks(pool, monkeypatch, blocks.set)
    interrupted: list[int] = []

    def handler(number: int, _: object) -> None:
        if not interrupted:
            interrupted.append(number)
            raise KeyboardInterrupt

    def send() -> bool:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        return bool(interrupted)

    def interrupt() -> None:
        assert blocks.wait(DEADLINE)
        eventually(send, "the signal to be seen")  # one that comes right before the thread blocks is seen with the next

    gate.wait_until_held()
    killer = threading.Thread(target=interrupt)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        killer.start()
        with pytest.raises(KeyboardInterrupt):
            next(results)
        assert join_all([killer]) == []
    finally:
        signal.signal(signal.SIGUSR1, before)

    gate.release()
    pool.shutdown()
    assert ran == [0]


FORK = """
import os, signal, threading, warnings
from tasker_executor import ResourceExecutor

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
gate, held = threading.Event(), threading.Event()
pool = ResourceExecutor(1)

def task(number):
    if number == 1:
        held.set()
        gate.wait()
    return number

def say(*words):
    os.write(1, (" ".join(map(str, words)) + chr(10)).encode())

def consume(results):
    try:
        for result in results:
            say(result)
    except RuntimeError as error:
        say(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("in_a_handler", [False, True], ids=["before the wait", "in a signal handler, during the wait"])
def test_the_child_of_a_fork_waits_for_no_result_of_the_parent(in_a_handler: bool) -> None:
    before = """
        child = os.fork()
        if child == 0:
            consume(results)
            os._exit(0)
        os.waitpid(child, 0)
        say("parent")
        gate.set()
        consume(results)
    """
    during = """
        begun, children = [], []
        def fork(*_):
            if begun:  # another signal, which may come before `fork` has returned
                return
            begun.append(True)
            children.append(os.fork())
            if children[0]:
                os.waitpid(children[0], 0)
                say("parent")
                gate.set()
        signal.signal(signal.SIGUSR1, fork)
        original, blocks = pool._wait_for_one, threading.Event()
        def wait(*args):
            blocks.set()
            return original(*args)
        pool._wait_for_one = wait
        def interrupt():
            blocks.wait()
            while not begun:  # a signal that comes right before the thread blocks is seen with the next
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                gate.wait(0.001)
        threading.Thread(target=interrupt, daemon=True).start()
        consume(results)
        if not children[0]:
            os._exit(0)
    """
    start = "results = pool.map(task, range(3), ordered=False)\nheld.wait()\n"
    end = "\npool.shutdown()\n"
    process = run_python(FORK + start + textwrap.dedent(during if in_a_handler else before) + end)

    assert process.stderr == ""
    lines = process.stdout.splitlines()
    if in_a_handler:
        assert lines[0] == "0"
        assert lines[-3:] == ["parent", "1", "2"]
    else:
        assert lines[0] == "0"
        assert lines[-4:] == ["parent", "0", "1", "2"]
    assert len(lines) == (5 if in_a_handler else 6)
