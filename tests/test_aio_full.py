"""A full queue is awaited: `AsyncView.run` and ``max_queued``."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from operator import methodcaller
from typing import Any

import pytest

from aio_support import Run, Stoppable, forget, run, until
from engine import (
    Admission,
    CannotStart,
    Lane,
    Ticket,
    admission_of,
    busy_workers,
    is_terminated,
    kick,
    patch_thread_start,
    use_lane,
    workers_of,
)
from support import DEADLINE, Clock, Gate, MakePool, eventually, join_all
from tasker_executor import Observer, QueueFull, ResourceExecutor, TaskEvent, TaskExpired
from tasker_executor._engine.admission import Parked

__all__ = ["run"]


def fill(pool: ResourceExecutor[None], gate: Gate, waiting: int) -> Future[None]:
    """Occupy the only worker, and queue so many tasks behind. Return the future of the task that occupies it."""
    held = pool.submit(gate.hold)
    gate.wait_until_held()
    for _ in range(waiting):
        pool.submit(int)
    return held


def drop(_: object) -> None:
    """Take the place of the `append` of a lane."""


def in_line(pool: ResourceExecutor[Any]) -> int:
    """Return how many submissions wait for a place in the queue."""
    return len(admission_of(pool).blocked)


async def until_in_line(pool: ResourceExecutor[Any], count: int) -> None:
    await until(lambda: in_line(pool) == count, f"{count} submissions in the line for a place")


# -- a place is awaited


@pytest.mark.parametrize("on_full", ["block", "caller"])
@pytest.mark.parametrize("limit", [0, 1])
def test_place_is_awaited_and_the_task_runs_on_a_worker(
    run: Run, make_pool: MakePool, gate: Gate, on_full: str, limit: int
) -> None:
    pool = make_pool(1, max_queued=limit, on_full=on_full)
    fill(pool, gate, limit)

    async def main() -> int:
        running = asyncio.ensure_future(pool.as_async().run(threading.get_ident))
        await until_in_line(pool, 1)
        assert pool.stats().queued_tasks == limit
        gate.release()  # by the loop, which is not blocked
        return await running

    assert run(main) != threading.get_ident()


def test_full_queue_raises_if_the_executor_was_made_so(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0, on_full="raise")
    fill(pool, gate, 0)

    with pytest.raises(QueueFull):
        run(pool.as_async().run, int)
    assert pool.stats().submitted == 1


def test_coroutines_and_threads_are_served_in_the_order_of_their_coming(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1)
    view = pool.as_async()
    ran: list[int] = []
    threads: list[threading.Thread] = []
    fill(pool, gate, 1)

    async def main() -> None:
        tasks: list[Any] = []
        for number in range(6):
            if number % 2:
                threads.append(threading.Thread(target=pool.submit, args=(ran.append, number)))
                threads[-1].start()
            else:
                tasks.append(asyncio.ensure_future(view.run(ran.append, number)))
            await until_in_line(pool, number + 1)
        gate.release()
        await asyncio.gather(*tasks)

    run(main)

    assert join_all(threads) == []
    pool.shutdown()
    assert ran == list(range(6))


def test_busy_loop_does_not_hold_up_the_others_in_the_line(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    ran: list[str] = []
    fill(pool, gate, 0)
    thread = threading.Thread(target=pool.submit, args=(ran.append, "thread"))

    async def main() -> None:
        parked = asyncio.ensure_future(pool.as_async().run(ran.append, "coroutine"))
        await until_in_line(pool, 1)
        thread.start()
        await until_in_line(pool, 2)
        gate.release()
        assert join_all([thread]) == []  # the loop does nothing else until the thread was served
        eventually(lambda: len(ran) == 2, "both tasks to run")
        await parked

    asyncio.run(main())

    assert ran == ["coroutine", "thread"]


def test_worker_that_is_free_is_woken_for_a_task_that_gets_its_place(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    fill(pool, gate, 0)

    async def main() -> int:
        running = asyncio.ensure_future(pool.as_async().run(int, "7"))
        await until_in_line(pool, 1)
        pool.resize(max_workers=2)
        return await running

    assert run(main) == 7


def test_place_that_comes_free_before_the_task_is_in_the_line_is_taken() -> None:
    # 1. A submission finds the queue full. 2. A worker takes the queued task, and sees nobody in the line.
    # 3. The task stands in line, and looks once more.
    queued: list[str] = []
    woken: list[int] = []
    admission = Admission(1, lambda: 0, wake=lambda: woken.append(len(queued)))

    admission.park(Parked(admission, "task", queued.append, int, None))

    assert queued == ["task"]
    assert woken == [1]
    assert not admission.blocked


def test_thread_that_lets_a_parked_task_in_on_its_own_way_to_the_line_wakes_a_worker() -> None:
    queued: list[str] = []
    woken: list[int] = []
    places = 0
    admission = Admission(0, lambda: len(queued) - places, wake=lambda: woken.append(len(queued)))
    admission.park(Parked(admission, "task", queued.append, int, None))
    places = 1  # and no other thread looks at the line
    ticket = Ticket()
    thread = threading.Thread(target=admission.enter, args=(ticket,), kwargs={"block": True})
    thread.start()

    eventually(lambda: woken == [1], "the wake-up")
    places = 2
    admission.refill()
    assert join_all([thread]) == []


def test_task_of_a_worker_is_always_let_in(make_pool: MakePool) -> None:
    pool = make_pool(1, max_queued=0)

    def submit_from_a_loop() -> Any:
        async def main() -> Any:
            task = asyncio.ensure_future(pool.as_async().run(int, "7"))
            await asyncio.sleep(0)
            return task.done(), in_line(pool)

        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(main())
        finally:
            loop.close()

    assert pool.submit(submit_from_a_loop).result() == (False, 0)


# -- a task leaves the line


def test_cancelled_coroutine_leaves_the_line_and_its_task_never_runs(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    ran: list[int] = []
    fill(pool, gate, 0)

    async def main() -> int:
        cancelled = asyncio.ensure_future(pool.as_async().run(ran.append, 1))
        await until_in_line(pool, 1)
        behind = asyncio.ensure_future(pool.as_async().run(int, "7"))
        await until_in_line(pool, 2)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert in_line(pool) == 1
        pool._check()
        gate.release()
        return await behind

    assert run(main) == 7
    pool.shutdown()
    assert ran == []
    assert pool.stats().cancelled == 1
    assert pool.stats().submitted == 3


def test_task_that_leaves_the_line_is_not_taken_off_the_queue(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=1)
    fill(pool, gate, 1)

    async def main() -> None:
        parked = asyncio.ensure_future(pool.as_async().run(int))
        await until_in_line(pool, 1)
        parked.cancel()
        await asyncio.wait([parked])

    run(main)

    assert pool.stats().queued_tasks == 1


def test_task_is_queued_or_withdrawn_and_not_both() -> None:
    for first, second in (("queue", "withdraw"), ("withdraw", "queue")):
        queued: list[str] = []
        admission = Admission(1, lambda: 1)
        ticket = Parked(admission, "task", queued.append, int, None)
        admission.park(ticket)
        assert ticket.waits

        results = [getattr(ticket, step)() for step in (first, second)]

        assert not ticket.waits
        assert queued == (["task"] if first == "queue" else [])
        assert (True in results) == (first == "withdraw")


def test_cancelled_while_the_last_place_is_given_away(make_pool: MakePool) -> None:
    # 1. A worker lets the task in. 2. Its coroutine is cancelled. 3. The worker puts it into the lane.
    waiting = 1
    admission = Admission(1, lambda: waiting)
    lane: list[str] = []

    def append(task: str) -> None:
        withdrawn.append(ticket.withdraw())
        lane.append(task)

    withdrawn: list[bool] = []
    ticket = Parked(admission, "task", append, int, None)
    admission.park(ticket)
    waiting = 0
    admission.refill()

    assert withdrawn == [False]  # it is taken, so the canceller has to cancel it as a queued one
    assert lane == ["task"]


@pytest.mark.parametrize("end", [methodcaller("kill"), methodcaller("shutdown", wait=False)], ids=["kill", "shutdown"])
def test_pool_that_ends_refuses_the_tasks_in_the_line(
    run: Run, make_pool: MakePool, gate: Gate, end: Callable[[Any], None]
) -> None:
    pool = make_pool(1, max_queued=0, name="crawler")
    ran: list[int] = []
    fill(pool, gate, 0)

    async def main() -> None:
        parked = asyncio.ensure_future(pool.as_async().run(ran.append, 1))
        await until_in_line(pool, 1)
        end(pool)
        with pytest.raises(RuntimeError, match="'crawler' has been shut down"):
            await parked

    run(main)

    gate.release()
    pool.shutdown()
    assert ran == []


def test_time_in_the_line_counts_for_start_within(run: Run, make_pool: MakePool, gate: Gate, clock: Clock) -> None:
    pool = make_pool(1, max_queued=0)
    fill(pool, gate, 0)

    async def main() -> None:
        parked = asyncio.ensure_future(pool.as_async(start_within=3600.0).run(int))
        await until_in_line(pool, 1)
        clock.pass_time(3601, pool)
        with pytest.raises(TaskExpired):
            await parked

    run(main)

    assert in_line(pool) == 0
    pool._check()


def test_shutdown_of_the_view_cancels_a_task_in_the_line(run: Run, make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    ran: list[int] = []
    fill(pool, gate, 0)

    async def main() -> None:
        view = pool.as_async()
        parked = asyncio.ensure_future(view.run(ran.append, 1))
        await until_in_line(pool, 1)
        await view.shutdown(cancel_futures=True)
        assert in_line(pool) == 0
        parked.cancel()

    run(main)

    gate.release()
    pool.shutdown()
    assert ran == []


def test_task_in_the_line_outlives_its_loop(make_pool: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(1, max_queued=0)
    ran: list[int] = []
    fill(pool, gate, 0)
    loop = asyncio.new_event_loop()
    task = loop.create_task(pool.as_async().run(ran.append, 1))
    loop.run_until_complete(until_in_line(pool, 1))
    loop.close()
    forget(task)

    gate.release()
    eventually(lambda: ran == [1], "the task to run")
    pool.shutdown()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_coroutine_that_is_dropped_with_its_loop_leaves_the_line(make_pool: MakePool, gate: Gate) -> None:
    pool = make_pool(1, max_queued=0)
    ran: list[int] = []
    fill(pool, gate, 0)
    loop = asyncio.new_event_loop()
    coroutine = pool.as_async().run(ran.append, 1)

    async def begin() -> None:
        coroutine.send(None)

    loop.run_until_complete(begin())
    assert in_line(pool) == 1
    loop.close()
    coroutine.close()

    assert in_line(pool) == 0
    gate.release()
    pool.shutdown()
    assert ran == []


# -- what is told


def test_observers_hear_of_a_task_in_the_line_and_of_its_end(run: Run, make_pool: MakePool, gate: Gate) -> None:
    heard: list[str] = []

    class Listener(Observer):
        def task_submitted(self, event: TaskEvent) -> None:
            heard.append(f"submitted {event.function}")

        def task_finished(self, event: TaskEvent) -> None:
            heard.append(event.outcome)

    pool = make_pool(1, max_queued=0, observers=[Listener()])
    fill(pool, gate, 0)
    heard.clear()

    async def main() -> None:
        parked = asyncio.ensure_future(pool.as_async().run(int))
        await until_in_line(pool, 1)
        parked.cancel()
        await asyncio.wait([parked])

    run(main)

    assert heard == ["submitted int", "cancelled"]


def test_future_of_a_task_that_stood_in_line_keeps_no_executor_alive(gate: Gate, make_pool: MakePool) -> None:
    with Gate() as mine:
        pool = ResourceExecutor(1, max_queued=0)
        core = weakref.ref(pool._core)
        pool.submit(mine.hold)
        mine.wait_until_held()
        futures = [pool._enqueue_soon(int, (), {}, pool._options) for _ in range(2)]
        assert [future._waits_for_place() for future in futures] == [True, True]
        futures[1].cancel()
        mine.release()
        assert futures[0].result(DEADLINE) == 0
        pool.shutdown()
        del pool

        def gone() -> bool:
            gc.collect()
            return core() is None

        eventually(gone, "the engine to be collected")


def test_worker_that_cannot_be_started_for_a_task_from_the_line_is_tried_again(
    run: Run, make_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(1, max_queued=0)
    fill(pool, gate, 0)
    refused = threading.Event()

    def refuse(_: threading.Thread) -> None:
        refused.set()
        raise CannotStart("can't start new thread")

    async def main() -> int:
        running = asyncio.ensure_future(pool.as_async().run(int, "7"))
        await until_in_line(pool, 1)
        with monkeypatch.context() as patch:
            patch_thread_start(patch, refuse)
            pool.resize(max_workers=2)
            await until(refused.is_set, "the thread to be refused")
        await asyncio.sleep(0)  # the loop goes on
        gate.release()
        kick(pool)
        return await running

    assert run(main) == 7


# -- on the thread itself


def test_thread_that_was_promised_a_place_is_let_in_by_a_loop_in_its_signal_handler() -> None:
    # 1. A thread is promised a place, and a signal handler interrupts it. 2. The handler runs a loop, whose
    # task finds no place. 3. The thread cannot take its own place before the handler returns: no waiting for it.
    queued: list[str] = []
    waiting = 0
    admission = Admission(1, lambda: waiting)
    interrupted = Ticket()
    assert admission.enter(interrupted, block=True)

    admission.park(Parked(admission, "nested", queued.append, int, None))
    assert queued == ["nested"]

    admission.leave(interrupted)


def test_loop_that_interrupted_its_thread_under_a_lock_is_let_in() -> None:
    queued: list[str] = []
    admission = Admission(1, lambda: 1, lambda: False)

    admission.park(Parked(admission, "nested", queued.append, int, None))

    assert queued == ["nested"]


def test_what_is_decided_under_the_lock_is_done_without_it() -> None:
    held: list[bool] = []
    waiting = 1

    def note() -> None:
        held.append(admission._lock._is_owned())  # type: ignore[attr-defined]  # as Condition does

    admission = Admission(1, lambda: waiting, wake=note)
    admission.park(Parked(admission, "task", drop, note, note))
    admission.park(Parked(admission, "refused", drop, note, note))
    with admission._lock:  # a signal handler comes here, and must not wake a worker that needs the lock
        waiting = 0
        admission._waiting = lambda: len(held)
        admission.refill()
        assert held == []
    waiting = 1
    admission.close()

    assert held == [False] * len(held)
    assert len(held) >= 3  # woken, told, refused


@pytest.mark.parametrize("point", ["wake", "told"])
def test_error_that_is_thrown_into_the_wake_up_does_not_lose_it(point: str) -> None:
    steps: list[str] = []
    waiting = 1

    def step(name: str) -> None:
        steps.append(name)
        if name == point and steps.count(name) == 1:
            raise KeyboardInterrupt

    admission = Admission(1, lambda: waiting, wake=lambda: step("wake"))
    admission.park(Parked(admission, "task", drop, int, lambda: step("told")))
    waiting = 0

    with pytest.raises(KeyboardInterrupt):
        admission.refill()
    assert steps[-2:] == ["wake", "told"]


def test_stop_of_a_running_task_makes_room_for_the_line(run: Run, make_pool: MakePool) -> None:
    pool = make_pool(1, max_queued=0)
    task = Stoppable()

    async def main() -> int:
        running = asyncio.ensure_future(pool.as_async().run(task))
        await task.has_started()
        parked = asyncio.ensure_future(pool.as_async().run(int, "7"))
        await until_in_line(pool, 1)
        running.cancel()
        return await parked

    assert run(main) == 7


# -- the end, while a task is let in


@pytest.mark.parametrize("how", ["kill", "drain"])
def test_task_that_gets_its_place_just_after_the_end_is_cancelled(make_pool: MakePool, gate: Gate, how: str) -> None:
    # 1. A thread lets a parked task in. 2. kill() cancels what is in the lanes, and the worker ends, after it has looked
    # there, too; or the drain ends. 3. The first thread queues the task. No worker comes for it.
    looked: list[str] = []

    class Raced(Lane):
        def append(self, task: Any) -> None:
            if task is parked:
                end()
            super().append(task)

        def snapshot(self) -> tuple[Any, ...]:
            looked.append(threading.current_thread().name)
            return super().snapshot()

    def end() -> None:
        if how == "kill":
            pool.kill()
            gate.release()
            eventually(lambda: worker.name in looked, "the last look of the worker")
        else:
            pool.shutdown(wait=False)
            gate.release()
            eventually(lambda: not workers_of(pool), "the end of the worker")
            pool.shutdown(wait=False)
            assert is_terminated(pool)

    pool = make_pool(1, max_queued=1)
    use_lane(pool, Raced)
    parked: Future[int] | None = None
    fill(pool, gate, 0)
    (worker,) = busy_workers(pool)
    other = pool.submit(int)
    parked = pool._enqueue_soon(int, (), {}, pool._options)
    assert in_line(pool) == 1

    other.cancel()  # its place is free: this thread lets the parked task in

    assert parked.cancelled()
