"""`map`: order, errors, chunks, and a buffer that is exact."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import pytest

from engine import patch_map_clock
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
)
from tasker_executor import ResourceExecutor


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


@pytest.mark.parametrize("chunksize, first, then", [(2, 4, 6), (3, 3, 6), (100, 5, 10)])
def test_buffer_counts_calls_and_not_chunks(make_pool: MakePool, chunksize: int, first: int, then: int) -> None:
    source = Source()
    results = make_pool(1).map(identity, source, chunksize=chunksize, buffersize=5)
    before = source.read
    next(results)

    assert (before, source.read) == (first, then)


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


def test_source_that_raises_later_cancels_what_was_submitted(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[int] = []

    def task(number: int) -> int:
        ran.append(number)
        if number == 1:
            gate.hold()
        return number

    results = pool.map(task, failing_source(4, Failed()), buffersize=4)
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
