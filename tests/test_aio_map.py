"""`AsyncView.map`."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from aio_support import Run, Stoppable, run, until
from engine import admission_of
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool
from tasker_executor import QueueFull, ResourceExecutor, TaskCancelled
from tasker_executor.testing import InlineExecutor

__all__ = ["run"]


def fail(error: BaseException) -> None:
    raise error


class Source:
    """An iterable of numbers, which counts how many were read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.read += 1
            yield number


# -- results


@pytest.mark.parametrize("buffersize", [None, 1, 3])
@pytest.mark.parametrize("limit", [None, 0, 2])
def test_results_come_in_the_order_of_the_calls(
    run: Run, make_pool: MakePool, buffersize: int | None, limit: int | None
) -> None:
    view = make_pool(2, max_queued=limit).as_async()

    async def main() -> list[int]:
        return [result async for result in view.map(pow, range(150), [2] * 150, buffersize=buffersize)]

    assert run(main) == [number**2 for number in range(150)]


@pytest.mark.parametrize("buffersize", [None, 1, 3])
@pytest.mark.parametrize("limit", [None, 0, 2])
def test_all_results_come_without_an_order(run: Run, make_pool: MakePool, buffersize: int | None, limit: int | None) -> None:
    view = make_pool(2, max_queued=limit).as_async()

    async def main() -> list[int]:
        return [result async for result in view.map(abs, range(150), buffersize=buffersize, ordered=False)]

    assert sorted(run(main)) == list(range(150))


def test_order_of_arrival_is_that_in_which_tasks_end(run: Run, make_pool: MakePool, gate: Gate) -> None:
    view = make_pool(2).as_async()

    def call(name: str) -> str:
        if name == "slow":
            gate.hold()
        return name

    async def main() -> list[str]:
        names: list[str] = []
        async for name in view.map(call, ["slow", "a", "b"], ordered=False):
            names.append(name)
            if len(names) == 2:
                gate.release()
        return names

    assert run(main) == ["a", "b", "slow"]


def test_tasks_get_the_resource(run: Run, make_pool: MakePool, ledger: Ledger) -> None:
    view = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy).as_async()

    def call(resource: FakeResource, left: str, right: str) -> str:
        return f"{resource.number}{left}{right}"

    async def main() -> list[str]:
        return [result async for result in view.map(call, "abc", "xy")]

    assert run(main) == ["0ax", "0by"]


def test_no_calls_are_no_results(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()

    async def main() -> list[int]:
        return [result async for result in view.map(int, [])]

    assert run(main) == []


# -- how far it reads


def test_nothing_is_read_before_the_first_result_is_asked_for(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    source = Source(3)

    async def main() -> None:
        results = pool.as_async().map(abs, source)
        await asyncio.sleep(0)
        assert source.read == 0
        await anext(results)
        assert source.read == 3

    run(main)


@pytest.mark.parametrize("ordered", [True, False])
def test_buffersize_is_exact(run: Run, make_pool: MakePool, ordered: bool) -> None:
    view = make_pool(1).as_async()
    source = Source(10)

    async def main() -> list[int]:
        read: list[int] = []
        async for _ in view.map(abs, source, buffersize=3, ordered=ordered):
            read.append(source.read)
        return read

    assert run(main) == [4, 5, 6, 7, 8, 9, 10, 10, 10, 10]


@pytest.mark.parametrize("wrong, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError)])
def test_bad_buffersize_is_refused_by_the_call(make_pool: MakePool, wrong: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="buffersize"):
        make_pool(1).as_async().map(int, "1", buffersize=wrong)


@pytest.mark.parametrize("ordered", [True, False])
def test_one_task_of_a_map_stands_in_line_and_the_next_follows_when_it_is_let_in(
    run: Run, make_pool: MakePool, gate: Gate, ordered: bool
) -> None:
    # The first task is held. So if the map waited for a result alone, the second worker would have nothing to do.
    pool = make_pool(2, max_queued=1)
    ran: list[int] = []
    most = 0

    def call(number: int) -> int:
        nonlocal most
        most = max(most, len(admission_of(pool).blocked))
        ran.append(number)
        if number == 0:
            gate.hold()
        return number

    async def main() -> list[int]:
        async def consume() -> list[int]:
            return [result async for result in pool.as_async().map(call, range(20), ordered=ordered)]

        results = asyncio.ensure_future(consume())
        await until(lambda: len(ran) == 20, "the other worker to run all the rest")
        gate.release()
        return await results

    assert sorted(run(main)) == list(range(20))
    assert most <= 1


def test_full_queue_that_raises_ends_the_map(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0, on_full="raise")
    task = Stoppable()

    async def main() -> None:
        results = pool.as_async().map(task, range(2))
        with pytest.raises(QueueFull):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    run(main)
    pool.shutdown()


# -- errors


@pytest.mark.parametrize("ordered", [True, False])
def test_error_of_a_task_comes_in_its_place_and_stops_the_rest(
    run: Run, make_pool: MakePool, gate: Gate, ordered: bool
) -> None:
    pool = make_pool(1)
    ran: list[int] = []

    def call(number: int) -> int:
        if number == 1:
            raise ValueError("mine")
        if number == 2:
            task()
        ran.append(number)
        return number

    task = Stoppable()

    async def main() -> None:
        results = pool.as_async().map(call, range(5), ordered=ordered)
        assert await anext(results) == 0
        await task.has_started()
        with pytest.raises(ValueError, match="mine"):
            await anext(results)
        with pytest.raises(StopAsyncIteration):
            await anext(results)

    run(main)

    assert task.stopped.wait(DEADLINE)
    pool.shutdown()
    assert ran == [0]


def test_error_of_an_iterable_stops_the_map(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    def numbers() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("mine")

    async def main() -> None:
        pool.submit(gate.hold)
        with pytest.raises(ValueError, match="mine"):
            await anext(pool.as_async().map(abs, numbers()))

    run(main)

    gate.release()
    pool.shutdown()
    assert pool.stats().cancelled == 2


def test_results_of_accepted_tasks_come_before_the_refusal(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)

    async def main() -> list[int]:
        found: list[int] = []
        results = pool.as_async().map(abs, range(9), buffersize=3)
        found.append(await anext(results))
        pool.shutdown(wait=False)
        for _ in range(3):
            found.append(await anext(results))
        with pytest.raises(RuntimeError, match="has been shut down"):
            await anext(results)
        return found

    assert run(main) == [0, 1, 2, 3]


def test_cancelled_error_of_a_task_does_not_cancel_the_coroutine(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()

    async def main() -> None:
        with pytest.raises(TaskCancelled):
            await anext(view.map(fail, [asyncio.CancelledError()]))

    run(main)


# -- it is left early


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("way", ["break", "error", "cancelled", "aclose", "closed while awaited"])
def test_map_that_is_left_stops_the_tasks_that_are_left(run: Run, make_pool: MakePool, way: str, ordered: bool) -> None:
    pool = make_pool(1)
    ran: list[int] = []
    task = Stoppable()

    def call(number: int) -> int:
        ran.append(number)
        if number == 1:
            task()
        return number

    async def consume() -> None:
        async for _ in pool.as_async().map(call, range(9), ordered=ordered):
            await task.has_started()
            if way == "break":
                break
            if way == "error":
                raise ValueError

    async def main() -> None:
        if way == "aclose":
            async with aclosing(pool.as_async().map(call, range(9), ordered=ordered)) as results:
                assert await anext(results) == 0
                await task.has_started()
        elif way == "closed while awaited":
            results = pool.as_async().map(call, range(9), ordered=ordered)
            assert await anext(results) == 0
            waiting = asyncio.ensure_future(anext(results, "the end"))
            await task.has_started()
            await asyncio.sleep(0)
            await results.aclose()
            assert await waiting == "the end"
        else:
            consuming = asyncio.ensure_future(consume())
            await task.has_started()
            if way == "cancelled":
                consuming.cancel()
            await asyncio.wait([consuming])
            assert consuming.cancelled() == (way == "cancelled")
            if way == "error":
                assert isinstance(consuming.exception(), ValueError)
        gc.collect()

    run(main)

    assert task.stopped.wait(DEADLINE)
    pool.shutdown()
    assert ran == [0, 1]


def test_map_that_is_left_takes_its_task_out_of_the_line(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    pool.submit(gate.hold)
    gate.wait_until_held()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(pool.as_async().map(abs, range(9)))

    run(main)

    assert not admission_of(pool).blocked


@pytest.mark.parametrize("ordered", [True, False])
def test_map_that_is_closed_ends_the_coroutine_that_waits_though_its_task_goes_on(
    run: Run, make_pool: MakePool, gate: Gate, ordered: bool
) -> None:
    pool = make_pool(1, abort_grace=3600.0)

    async def main() -> str | None:
        results = pool.as_async().map(gate.hold, range(3), ordered=ordered)
        waiting = asyncio.ensure_future(anext(results, "the end"))
        await until(lambda: pool.stats().running_tasks == 1, "the first task to run")
        await results.aclose()
        last = await waiting
        assert pool.stats().running_tasks == 1  # it was not the end of the task that woke the coroutine
        return last

    assert run(main) == "the end"
    gate.release()


def test_unused_map_runs_nothing(make_pool: MakePool) -> None:
    pool = make_pool(1)

    pool.as_async().map(abs, range(9))

    assert pool.stats().submitted == 0


# -- the loop goes on


@pytest.mark.parametrize("ordered", [True, False])
def test_loop_goes_on_though_all_results_are_there(run: Run, ordered: bool) -> None:
    with InlineExecutor() as pool:

        async def main() -> int:
            count = 0

            async def tick() -> None:
                nonlocal count
                while True:
                    count += 1
                    await asyncio.sleep(0)

            ticking = asyncio.ensure_future(tick())
            async for _ in pool.as_async().map(abs, range(1000), ordered=ordered):
                pass
            ticking.cancel()
            return count

        assert run(main) >= 10


def test_two_coroutines_do_not_ask_one_map_at_once(run: Run, make_pool: MakePool, gate: Gate) -> None:
    view = make_pool(1).as_async()

    async def main() -> None:
        results = view.map(gate.hold, range(2))
        first = asyncio.ensure_future(anext(results))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another coroutine"):
            await anext(results)
        gate.release()
        await first
        await anext(results)

    run(main)


def test_maps_of_many_loops_share_a_full_queue(make_pool: MakePool, fast_switching: None) -> None:
    pool: ResourceExecutor[None] = make_pool(2, max_queued=1)
    found: list[int] = []

    async def main(ordered: bool) -> None:
        found.append(sum([result async for result in pool.as_async().map(abs, range(100), ordered=ordered)]))

    def run_loop(ordered: bool) -> None:
        asyncio.run(main(ordered))

    threads = [threading.Thread(target=run_loop, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)

    assert found == [4950] * 4


# -- all of it


@pytest.mark.usefixtures("fast_switching")
def test_nothing_is_lost_though_many_go_away(make_pool: MakePool) -> None:
    """Coroutines of two loops, of which a third is cancelled at any moment, share a pool with threads that block."""
    pool = make_pool(2, max_queued=2)
    seed = random.randrange(1000)
    ran: list[int] = []
    wrong: list[str] = []

    def call(number: int) -> int:
        ran.append(number)
        return number

    async def main(first: int) -> None:
        chance = random.Random(seed + first)
        async with pool.as_async() as view:
            numbers = range(first, first + 150)
            tasks = [asyncio.ensure_future(view.run(call, number)) for number in numbers]
            await asyncio.sleep(0)  # all of them submit
            while any(not task.done() for task in tasks):
                if chance.random() < 0.3:
                    chance.choice(tasks).cancel()
                await asyncio.sleep(0)
            for number, task in zip(numbers, tasks, strict=True):
                if not task.cancelled() and task.result() != number:
                    wrong.append(f"{number}: {task!r}")

    def run_loop(first: int) -> None:
        asyncio.run(main(first))

    def submit() -> None:
        futures = [pool.submit(call, number) for number in range(2000, 2100)]
        wrong.extend(repr(future) for number, future in enumerate(futures, 2000) if future.result(DEADLINE) != number)

    threads = [threading.Thread(target=run_loop, args=(first,)) for first in (0, 1000)]
    threads.append(threading.Thread(target=submit))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    pool.shutdown()

    assert wrong == [], f"seed {seed}"
    assert len(ran) == len(set(ran)), f"seed {seed}"
    stats = pool.stats()
    assert stats.submitted == 400 == stats.completed + stats.cancelled + stats.failed, f"seed {seed}"
    assert not admission_of(pool).blocked
