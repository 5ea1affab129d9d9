"""`AsyncView.run`: results and errors, cancellation, loops that go, and threads that do not start."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextvars import ContextVar
from operator import methodcaller
from typing import Any

import pytest
from typing_extensions import override

from aio_support import Run, Stoppable, forget, log_of_submissions, run, until
from engine import CannotStart, patch_thread_start
from support import DEADLINE, FakeResource, Gate, Ledger, MakePool, eventually, needs_gil
from tasker_executor import ResourceExecutor, TaskCancelled, TaskFuture, TaskStopped, TaskTimeout, current_task
from tasker_executor._async_map import tell
from tasker_executor.aio import AsyncView
from tasker_executor.testing import InlineExecutor

__all__ = ["run"]


def fail(error: BaseException) -> None:
    raise error


# -- results and errors


def test_result_is_awaited(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()

    async def main() -> int:
        return await view.run(int, "ff", base=16)

    assert run(main) == 255


def test_task_gets_the_resource(run: Run, make_pool: MakePool, ledger: Ledger) -> None:
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy)

    async def main() -> tuple[int, int]:
        return await pool.as_async().run(FakeResource.use), await pool.as_async(pass_resource=False).run(int, "7")

    assert run(main) == (0, 7)


def test_options_are_those_of_with_options(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[str] = []
    pool.submit(gate.hold)
    gate.wait_until_held()

    async def main() -> None:
        normal = asyncio.ensure_future(pool.as_async().run(ran.append, "normal"))
        await until(lambda: pool.stats().queued_tasks == 1, "the first task to be queued")
        urgent = asyncio.ensure_future(pool.with_options(max_retries=0).as_async(priority=True).run(ran.append, "urgent"))
        await until(lambda: pool.stats().priority_tasks == 1, "the second task to be queued")
        gate.release()
        await asyncio.gather(normal, urgent)

    run(main)

    assert ran == ["urgent", "normal"]


def test_bad_option_is_refused_by_the_call(make_pool: MakePool) -> None:
    with pytest.raises(ValueError, match="max_retries"):
        make_pool(1).as_async(max_retries=-1)


@pytest.mark.parametrize(
    "error",
    [ValueError("mine"), TimeoutError(), CancelledError(), TaskCancelled(), TaskStopped(), TaskTimeout(), GeneratorExit()],
    ids=repr,
)
def test_error_of_a_task_passes_through(run: Run, make_pool: MakePool, error: BaseException) -> None:
    view = make_pool(1).as_async()

    async def main() -> BaseException | None:
        try:
            await view.run(fail, error)
        except BaseException as raised:
            return raised
        return None

    assert run(main) is error


def test_stop_iteration_is_a_runtime_error_as_in_every_coroutine(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()
    error = StopIteration("mine")

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        run(view.run, fail, error)
    assert caught.value.__cause__ is error


def test_cancelled_error_of_a_task_is_no_cancellation_of_the_coroutine(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()
    error = asyncio.CancelledError("mine")

    with pytest.raises(TaskCancelled, match=r"raised asyncio\.CancelledError") as caught:
        run(view.run, fail, error)
    assert caught.value.__cause__ is error


class Argument:
    """What a task is called with."""


@needs_gil
def test_error_of_a_task_keeps_no_argument_and_no_future(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    futures = log_of_submissions(pool)
    arguments: list[weakref.ref[Argument]] = []

    def refuse(argument: Argument) -> None:
        arguments.append(weakref.ref(argument))
        del argument
        raise ValueError

    async def main() -> BaseException | None:
        try:
            await pool.as_async().run(refuse, Argument())
        except ValueError as error:
            return error
        return None

    gc.disable()
    try:
        error = run(main)
        future = weakref.ref(futures.pop())
        eventually(lambda: future() is None and arguments[0]() is None, "all of the task but its error to be gone")
    finally:
        gc.enable()
    assert isinstance(error, ValueError)


def test_task_runs_in_the_context_of_its_coroutine(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()
    variable: ContextVar[str] = ContextVar("variable", default="none")

    async def in_context(value: str) -> str:
        variable.set(value)
        return await view.run(variable.get)

    async def main() -> list[str]:
        return list(await asyncio.gather(in_context("a"), in_context("b")))

    assert run(main) == ["a", "b"]


def test_without_a_loop_nothing_is_submitted(make_pool: MakePool) -> None:
    pool = make_pool(1)
    coroutine = pool.as_async().run(int)

    with pytest.raises(RuntimeError, match="no running event loop"):
        coroutine.send(None)
    assert pool.stats().submitted == 0


def test_view_says_whose_it_is(make_pool: MakePool) -> None:
    assert "'crawler'" in repr(make_pool(1, name="crawler").as_async())


# -- the coroutine is cancelled


def test_time_out_cancels_a_task_that_waits(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    ran: list[int] = []
    pool.submit(gate.hold)
    gate.wait_until_held()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await pool.as_async().run(ran.append, 1)

    run(main)

    assert pool.stats().cancelled == 1
    gate.release()
    pool.shutdown()
    assert ran == []


def test_time_out_stops_a_task_that_runs(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    task = Stoppable()

    async def main() -> None:
        running = asyncio.ensure_future(pool.as_async().run(task))
        await task.has_started()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(running, 0)

    run(main)

    assert task.stopped.wait(DEADLINE)


def test_cancelled_coroutine_does_not_wait_for_its_task(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1)
    task = Stoppable()

    def stop_slowly() -> None:
        try:
            task()
        finally:
            gate.hold()

    async def main() -> bool:
        running = asyncio.ensure_future(pool.as_async().run(stop_slowly))
        await task.has_started()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        gate.wait_until_held()  # the task is still at it
        return running.cancelled()

    assert run(main)
    gate.release()


def test_cancelled_coroutine_aborts_the_resource(run: Run, make_pool: MakePool, ledger: Ledger) -> None:
    aborted = threading.Event()

    def hang(_: FakeResource) -> None:
        started.set()
        assert aborted.wait(DEADLINE)

    def abort(_: FakeResource) -> None:
        aborted.set()

    started = threading.Event()
    pool = make_pool(1, on_create=ledger.create, on_destroy=ledger.destroy, on_abort=abort)

    async def main() -> None:
        running = asyncio.ensure_future(pool.as_async().run(hang))
        await until(started.is_set, "the task to start")
        running.cancel()

    run(main)

    assert aborted.wait(DEADLINE)


def test_closed_coroutine_stops_its_task(make_pool: MakePool) -> None:
    pool = make_pool(1)
    task = Stoppable()
    loop = asyncio.new_event_loop()
    coroutine = pool.as_async().run(task)

    async def main() -> None:
        coroutine.send(None)  # up to its wait
        await task.has_started()
        coroutine.close()

    loop.run_until_complete(main())
    loop.close()

    assert task.stopped.wait(DEADLINE)


def test_cancel_scope_of_anyio_stops_a_task(make_pool: MakePool) -> None:
    anyio = pytest.importorskip("anyio")
    pool = make_pool(1)
    task = Stoppable()

    async def main() -> bool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.as_async().run, task)
            await task.has_started()
            group.cancel_scope.cancel()
        return bool(group.cancel_scope.cancelled_caught)

    assert anyio.run(main)
    assert task.stopped.wait(DEADLINE)


def test_task_that_is_stopped_from_another_loop_tells_its_coroutine(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    task = Stoppable()
    futures = log_of_submissions(pool)

    async def stop() -> bool:
        return futures[0].stop()

    async def main() -> str:
        running = asyncio.ensure_future(pool.as_async().run(task))
        await task.has_started()
        stopper = threading.Thread(target=asyncio.run, args=(stop(),))
        stopper.start()
        with pytest.raises(TaskStopped):
            await running
        stopper.join()
        return "cancelled" if running.cancelled() else "failed"

    assert run(main) == "failed"


def test_stop_that_fails_does_not_hide_that_the_coroutine_was_cancelled(run: Run, make_pool: MakePool) -> None:
    class Stuck(TaskFuture[None]):
        """A future whose client is closed."""

        @override
        def stop(self) -> bool:
            raise RuntimeError("the event loop of the client is closed")

    def stuck(*_: object) -> Stuck:
        return Stuck()

    pool = make_pool(1)
    vars(pool)["_enqueue_soon"] = stuck

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await pool.as_async().run(int)

    run(main)


def test_run_within_is_a_time_out_of_the_task(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    task = Stoppable()

    with pytest.raises(TaskTimeout):
        run(pool.as_async(run_within=0.001).run, task)


# -- the task is cancelled, and not the coroutine


@pytest.mark.parametrize(
    "end",
    [methodcaller("kill"), methodcaller("shutdown", False, cancel_futures=True)],
    ids=["kill", "shutdown"],
)
def test_task_that_others_cancel_does_not_cancel_its_coroutine(
    run: Run, make_pool: MakePool, gate: Gate, end: Callable[[Any], None]
) -> None:
    pool = make_pool(1)
    pool.submit(gate.hold)
    gate.wait_until_held()

    async def main() -> bool:
        waiting = asyncio.ensure_future(pool.as_async().run(int))
        await until(lambda: pool.stats().queued_tasks == 1, "the task to be queued")
        end(pool)
        with pytest.raises(TaskCancelled, match="not by the coroutine"):
            await waiting
        return waiting.cancelled()

    assert not run(main)
    gate.release()


def test_kill_stops_a_task_that_runs_and_its_coroutine_learns_that(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1)
    task = Stoppable()

    async def main() -> bool:
        running = asyncio.ensure_future(pool.as_async().run(task))
        await task.has_started()
        pool.kill()
        with pytest.raises(TaskStopped):
            await running
        return running.cancelled()

    assert not run(main)


# -- the loop is gone


def test_task_outlives_its_loop_without_noise(make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(1)
    futures = log_of_submissions(pool)

    def held() -> int:
        gate.hold()
        return 7

    for factory in (asyncio.new_event_loop, *uvloops()):
        loop = factory()
        task = loop.create_task(pool.as_async().run(held))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        forget(task)
    gate.release()
    pool.shutdown()

    assert [future.result() for future in futures] == [7] * len(futures)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def uvloops() -> list[Any]:
    try:
        import uvloop
    except ImportError:
        return []
    return [uvloop.new_event_loop]


class Waiter:
    """A future of a loop."""

    def __init__(self, *, done: bool) -> None:
        self.done = lambda: done


class ClosingLoop:
    """A loop that is closed by another thread at the worst moment."""

    def __init__(self, *, closed: bool) -> None:
        self.closed = closed

    def call_soon_threadsafe(self, *_: object) -> None:
        raise RuntimeError("Event loop is closed")

    def is_closed(self) -> bool:
        return self.closed


def test_callback_of_a_closed_loop_raises_nothing() -> None:
    waiter: Any = Waiter(done=False)
    loop: Any = ClosingLoop(closed=True)

    tell(loop, waiter)


def test_callback_does_not_hide_another_error() -> None:
    waiter: Any = Waiter(done=False)
    loop: Any = ClosingLoop(closed=False)

    with pytest.raises(RuntimeError):
        tell(loop, waiter)


def test_loop_of_a_cancelled_coroutine_is_not_woken() -> None:
    waiter: Any = Waiter(done=True)
    loop: Any = ClosingLoop(closed=False)

    tell(loop, waiter)


# -- the loop goes on


def test_pool_that_cannot_start_a_thread_refuses_at_once(
    run: Run, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1)

    def refuse(_: threading.Thread) -> None:
        raise CannotStart("can't start new thread")

    async def main() -> int:
        async with pool.as_async() as view:
            with monkeypatch.context() as patch:
                patch_thread_start(patch, refuse)
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await view.run(int)
            return await view.run(int, "7")

    assert run(main) == 7


def test_one_view_serves_many_loops(make_pool: MakePool, fast_switching: None) -> None:
    view = make_pool(3, max_queued=2).as_async()
    sums: list[int] = []

    async def main() -> int:
        return sum(await asyncio.gather(*(view.run(int, number) for number in range(50))))

    threads = [threading.Thread(target=lambda: sums.append(asyncio.run(main()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)

    assert sums == [1225] * 4


def test_dropped_pool_ends_when_its_coroutines_have(run: Run) -> None:
    async def main() -> Any:
        pool = ResourceExecutor(1)
        core = weakref.ref(pool._core)
        assert await pool.as_async().run(int, "7") == 7
        return core

    core = run(main)
    gc.collect()
    eventually(lambda: core() is None or core().life.terminated.is_open, "the end of the pool")


# -- executors without threads


def test_inline_executor_runs_the_task_in_the_loop_and_lets_it_go_on(run: Run) -> None:
    with InlineExecutor() as pool:

        async def main() -> tuple[int, int]:
            ticks: list[int] = []

            async def tick() -> None:
                while True:
                    ticks.append(1)
                    await asyncio.sleep(0)

            ticking = asyncio.ensure_future(tick())
            thread = 0
            for _ in range(5):
                thread = await pool.as_async().run(threading.get_ident)
            ticking.cancel()
            return thread, len(ticks)

        thread, ticks = run(main)

    assert thread == threading.get_ident()
    assert ticks >= 4


def test_deferred_task_waits_for_its_step(run: Run) -> None:
    with InlineExecutor(deferred=True) as pool:

        async def main() -> int:
            waiting = asyncio.ensure_future(pool.as_async().run(int, "7"))
            await until(lambda: pool.stats().queued_tasks == 1, "the task to be queued")
            assert pool.step()
            return await waiting

        assert run(main) == 7


def test_cancelled_deferred_task_does_not_run(run: Run) -> None:
    ran: list[int] = []
    with InlineExecutor(deferred=True) as pool:

        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await pool.as_async().run(ran.append, 1)

        run(main)

    assert ran == []


def test_token_of_the_task_is_its_own(run: Run, make_pool: MakePool) -> None:
    view = make_pool(1).as_async()
    task = Stoppable()

    async def main() -> bool:
        running = asyncio.ensure_future(view.run(task))
        await task.has_started()
        running.cancel()
        return await view.run(lambda: current_task().cancelled)

    assert not run(main)


def test_view_is_typed_by_its_executor(make_pool: MakePool) -> None:
    assert isinstance(make_pool(1).as_async(), AsyncView)
