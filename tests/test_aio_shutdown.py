"""The end of an `AsyncView`: `shutdown` and ``async with``."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from typing_extensions import override

from aio_support import Run, Stoppable, run, until
from support import DEADLINE, Gate, MakePool
from tasker_executor import ShutdownTimeout, TaskCancelled, TaskFuture, TaskStopped
from tasker_executor.testing import InlineExecutor

__all__ = ["run"]


async def ticks(count: int) -> None:
    """Let the loop go round so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


def test_end_of_the_block_waits_for_the_tasks_and_leaves_the_pool_running(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    steps: list[str] = []

    async def main() -> None:
        async def leave() -> None:
            async with pool.as_async() as view:
                waiting.append(asyncio.ensure_future(view.run(gate.hold)))
                await until(lambda: pool.stats().running_tasks == 1, "the task to run")
            steps.append("left")

        waiting: list[Any] = []
        leaving = asyncio.ensure_future(leave())
        await until(lambda: bool(waiting) and pool.stats().running_tasks == 1, "the task to run")
        await ticks(10)
        steps.append("the loop goes on")
        gate.release()
        await leaving
        await waiting[0]

    run(main)

    assert steps == ["the loop goes on", "left"]
    assert pool.submit(int, "7").result() == 7


def test_view_that_was_shut_down_refuses_tasks(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)

    async def main() -> None:
        view = pool.as_async()
        await view.shutdown()
        with pytest.raises(RuntimeError, match="has been shut down"):
            await view.run(int)
        with pytest.raises(RuntimeError, match="has been shut down"):
            await anext(view.map(int, "7"))
        await view.shutdown()  # any number of times

    run(main)

    assert pool.stats().submitted == 0


def test_shutdown_takes_a_time_out(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    async def main() -> bool:
        view = pool.as_async()
        running = asyncio.ensure_future(view.run(gate.hold))
        await until(lambda: pool.stats().running_tasks == 1, "the task to run")
        with pytest.raises(ShutdownTimeout, match="1 tasks of <AsyncView"):
            await view.shutdown(timeout=0)
        gone_on = not running.done()
        gate.release()
        await running
        return gone_on

    assert run(main)


def test_time_out_is_a_number_of_seconds(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()
    wrong: Any = "soon"

    async def main() -> int:
        with pytest.raises(TypeError, match="timeout"):
            await view.shutdown(timeout=wrong)
        return await view.run(int, "7")

    assert run(main) == 7


def test_shutdown_that_does_not_wait_returns_at_once(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    async def main() -> None:
        view = pool.as_async()
        running = asyncio.ensure_future(view.run(gate.hold))
        await until(lambda: pool.stats().running_tasks == 1, "the task to run")
        await view.shutdown(wait=False)
        gate.release()
        await running

    run(main)


def test_shutdown_that_cancels_cancels_what_waits_and_not_what_runs(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    async def main() -> None:
        view = pool.as_async()
        running = asyncio.ensure_future(view.run(gate.hold))
        await until(lambda: pool.stats().running_tasks == 1, "the task to run")
        waiting = asyncio.ensure_future(view.run(int))
        others = asyncio.ensure_future(pool.as_async().run(int, "7"))
        await until(lambda: pool.stats().queued_tasks == 2, "two tasks to wait")
        ending = asyncio.ensure_future(view.shutdown(cancel_futures=True))
        with pytest.raises(TaskCancelled):
            await waiting
        assert not ending.done()
        gate.release()
        await ending
        await running
        assert await others == 7

    run(main)


def test_cancelled_shutdown_stops_nothing(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    task = Stoppable()

    async def main() -> None:
        view = pool.as_async()
        running = asyncio.ensure_future(view.run(task))
        await task.has_started()
        ending = asyncio.ensure_future(view.shutdown())
        await ticks(3)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert not task.stopped.is_set()
        running.cancel()

    run(main)

    assert task.stopped.wait(DEADLINE)


def test_error_in_the_block_stops_the_tasks_and_waits_for_them(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    task = Stoppable()

    async def main() -> None:
        view = pool.as_async()
        running = asyncio.ensure_future(view.run(task))
        await task.has_started()
        waiting = asyncio.ensure_future(view.run(int))
        await until(lambda: pool.stats().queued_tasks == 1, "the second task to wait")
        with pytest.raises(ValueError, match="mine"):
            async with view:
                raise ValueError("mine")
        assert task.stopped.is_set()
        with pytest.raises(TaskStopped):
            await running
        with pytest.raises(TaskCancelled):
            await waiting

    run(main)


class Recorded(TaskFuture[None]):
    """A future that is done, and notes what it is asked for."""

    def __init__(self, name: str, asked: list[str]) -> None:
        super().__init__()
        self.name = name
        self.asked = asked
        self.set_result(None)

    @override
    def cancel(self) -> bool:
        self.asked.append(f"cancel {self.name}")
        return False

    @override
    def stop(self) -> bool:
        self.asked.append(f"stop {self.name}")
        return False


def test_error_in_the_block_cancels_what_waits_before_it_stops_what_runs(run: Run, make_pool: MakePool) -> None:
    # Otherwise a worker that becomes free might start a task that waits.
    view = make_pool(1).as_async()
    asked: list[str] = []
    vars(view._view)["_close"] = lambda: [Recorded("running", asked), Recorded("waiting", asked)]

    async def main() -> None:
        async with view:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        run(main)
    assert asked == ["cancel running", "cancel waiting", "stop running", "stop waiting"]


def test_time_out_of_the_block_stops_the_tasks_of_other_coroutines_too(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(2)
    mine, theirs = Stoppable(), Stoppable()

    async def main() -> None:
        view = pool.as_async()
        other = asyncio.ensure_future(view.run(theirs))

        async def leave() -> None:
            async with view:
                await view.run(mine)

        leaving = asyncio.ensure_future(leave())
        await mine.has_started()
        await theirs.has_started()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(leaving, 0)
        with pytest.raises(TaskStopped):
            await other

    run(main)

    assert mine.stopped.is_set()
    assert theirs.stopped.is_set()


def test_second_cancellation_leaves_the_block_at_once(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)

    async def main() -> None:
        async def leave() -> None:
            async with pool.as_async() as view:
                running.append(asyncio.ensure_future(view.run(gate.hold)))
                await asyncio.Event().wait()

        running: list[Any] = []
        leaving = asyncio.ensure_future(leave())
        await until(lambda: pool.stats().running_tasks == 1, "the task to run")
        leaving.cancel()
        await ticks(5)
        assert not leaving.done()  # the task, which was stopped, takes its time
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.release()
        await asyncio.wait(running)

    run(main)


def test_shutdown_on_a_worker_does_not_wait_for_its_own_task(make_pool: MakePool) -> None:
    pool = make_pool(1)
    view = pool.as_async()

    def end() -> str:
        asyncio.run(view.shutdown())
        return "not blocked"

    assert asyncio.run(view.run(end)) == "not blocked"


def test_shutdown_needs_no_thread(run: Run, make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_pool(1)

    async def main() -> None:
        view = pool.as_async()
        running = asyncio.ensure_future(view.run(gate.hold))
        await until(lambda: pool.stats().running_tasks == 1, "the task to run")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", None)
            ending = asyncio.ensure_future(view.shutdown())
            await ticks(3)
            gate.release()
            await ending
        await running

    run(main)


def test_shutdown_of_a_view_of_an_inline_executor_runs_the_tasks_that_wait(run: Run) -> None:
    with InlineExecutor(deferred=True) as pool:

        async def main() -> int:
            view = pool.as_async()
            waiting = asyncio.ensure_future(view.run(int, "7"))
            await until(lambda: pool.stats().queued_tasks == 1, "the task to wait")
            await view.shutdown()
            return await waiting

        assert run(main) == 7
