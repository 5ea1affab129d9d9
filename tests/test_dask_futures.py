"""`tasker_executor.dask`: the client's futures, cancelled, released, and settled in every case."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import warnings
import weakref
from concurrent.futures import Future, as_completed, wait
from functools import partial
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")


import dask_cluster
from dask_cluster import THREADS, WORKERS, AnyClient, MakePool, handed, on_scheduler
from dask_support import FOREIGN_THREADS, Ref
from support import DEADLINE, Gate, eventually
from tasker_executor.dask import DaskResourceExecutor
from tasker_executor.dask.futures import RemoteFuture
from tasker_executor.dask.wire import Answer
from tasker_executor.dask.worker_side import call_on
from tasker_executor.exceptions import TaskLost

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


def test_results_are_released_on_the_workers_though_futures_are_kept(client: AnyClient, make_dask: MakePool) -> None:
    pool = make_dask()
    futures = [pool.submit(abs, -number) for number in range(50)]
    wait(futures, DEADLINE)

    eventually(lambda: on_scheduler(client, ours) == 0, "the scheduler to forget the results")
    assert futures[7].result() == 7


def count_refs(scheduler: Any) -> int:
    return sum(str(key).startswith("Ref-") for key in scheduler.tasks)


def ours(scheduler: Any) -> int:
    return sum(str(key).startswith("abs-") for key in scheduler.tasks)


def test_wait_and_as_completed_see_a_cancelled_future(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS * THREADS)]
    gate.wait_until_held(WORKERS * THREADS)
    waits = pool.submit(abs, -1)

    assert waits.cancel()

    assert wait([waits], DEADLINE).done == {waits}
    assert list(as_completed([waits], DEADLINE)) == [waits]
    gate.release()
    wait(held, DEADLINE)


def test_cancelled_task_that_waits_never_runs(client: AnyClient, make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    ran: list[str] = []
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS * THREADS)]
    gate.wait_until_held(WORKERS * THREADS)
    cancelled = pool.submit(Ref(ran.append), "cancelled")
    eventually(lambda: on_scheduler(client, count_refs) == WORKERS * THREADS + 1, "the scheduler to know of it")
    cancelled.cancel()
    eventually(lambda: on_scheduler(client, count_refs) == WORKERS * THREADS, "the scheduler to forget it")

    gate.release()
    wait(held, DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    assert not ran
    assert pool.stats().cancelled == 1


def test_cancelled_task_that_waits_on_its_worker_never_runs(client: AnyClient, make_dask: MakePool, gate: Gate) -> None:
    """Dask counts the task as running; but the worker's own executor has fewer threads than Dask."""
    pool = make_dask(max_workers=1)
    ran: list[str] = []
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS)]
    gate.wait_until_held(WORKERS)
    waits = pool.submit(Ref(ran.append), "cancelled")
    eventually(lambda: handed(client, pool) == WORKERS + 1, "the task to be handed over")

    waits.cancel()
    eventually(lambda: handed(client, pool) == WORKERS, "the task to be taken back")

    gate.release()
    wait(held, DEADLINE)
    pool.shutdown(timeout=DEADLINE)
    assert not ran


def test_running_task_can_be_cancelled_only_by_name(make_dask: MakePool, gate: Gate) -> None:
    """Dask does not tell clients of a start. So the future is cancelled, and its task runs on, as documented."""
    pool = make_dask()
    ran: list[str] = []

    def task() -> None:
        gate.hold()
        ran.append("to its end")

    future = pool.submit(Ref(task))
    gate.wait_until_held()

    assert not future.running()
    assert future.cancel()

    gate.release()
    eventually(lambda: ran == ["to its end"], "the task to end")


def test_done_callback_may_cancel_and_submit_and_shut_down(client: AnyClient, make_dask: MakePool, gate: Gate) -> None:
    """The callback runs on the client's event loop, where Dask's own methods return coroutines that must be awaited."""
    pool = make_dask()
    outcome: list[object] = []
    seen = threading.Event()

    def callback(future: Future[None]) -> None:
        for call in (victim.cancel, partial(pool.submit, abs, -2), pool.stats, partial(pool.run_now, abs, -1), pool.shutdown):
            try:
                outcome.append(call())
            except RuntimeError as error:
                outcome.append(error)
        seen.set()

    with Gate() as first, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ends = pool.submit(Ref(first.hold))
        first.wait_until_held()
        for _ in range(WORKERS * THREADS - 1):
            pool.submit(Ref(gate.hold))
        gate.wait_until_held(WORKERS * THREADS - 1)
        victim = pool.submit(Ref(gate.hold))  # may start when the first has ended, but cannot end before it is cancelled
        ends.add_done_callback(callback)
        first.release()
        assert seen.wait(DEADLINE)
        gate.release()
        pool.shutdown(timeout=DEADLINE)

    cancelled, submitted, stats, ran_now, shut_down = outcome
    assert cancelled is True
    assert isinstance(submitted, Future)
    assert submitted.result(DEADLINE) == 2
    assert "event loop" in str(stats)
    assert "event loop" in str(ran_now)
    assert shut_down is None
    assert not [warning for warning in caught if "never awaited" in str(warning.message)]


def test_future_is_settled_though_the_loop_stops_to_follow_it(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    future = pool.submit(Ref(gate.hold))
    gate.wait_until_held()
    eventually(lambda: bool(pool._following._followers), "the loop to follow the task")

    for follower in list(pool._following._followers):
        pool._loop.add_callback(follower.cancel)

    assert isinstance(future.exception(DEADLINE), TaskLost)
    gate.release()


def test_result_counts_though_its_worker_died_right_after_it_had_sent_it(make_dask: MakePool) -> None:
    pool = make_dask()
    future: RemoteFuture[int] = RemoteFuture(pool._books)

    asyncio.run(pool._following._follow(LostOnArrival(), future))

    assert future.result(0) == 7


class LostOnArrival:
    """A future of Dask's whose result has arrived, and whose worker died right after that."""

    status = "lost"

    async def _result(self, raiseit: bool) -> bytes:
        return pickle.dumps(Answer(7))


def test_error_of_dask_itself_reaches_the_future(client: AnyClient, make_dask: MakePool) -> None:
    pool = make_dask(max_retries=0)
    name = pool._plugin
    on_scheduler(client, lambda scheduler: scheduler.handlers.update({f"claim-{name}": refuse_to_answer}))

    assert "no answer" in str(pool.submit(abs, -1).exception(DEADLINE))


def refuse_to_answer(key: str) -> bool:
    raise ValueError("no answer")


def test_task_of_an_executor_that_is_gone_fails(make_dask: MakePool) -> None:
    pool = make_dask()
    pool._client.unregister_worker_plugin(pool._plugin)

    assert isinstance(pool.submit(abs, -1).exception(DEADLINE), TaskLost)
    with pytest.raises(TaskLost):
        pool.run_now(abs, -1)


def test_cancel_after_the_event_loop_has_closed_is_for_this_side_only(
    make_dask: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed:
        def add_callback(self, *args: object) -> None:
            raise RuntimeError("Event loop is closed")

    pool = make_dask()
    future = pool.submit(Ref(gate.hold))
    gate.wait_until_held()
    monkeypatch.setattr(pool._books, "_loop", Closed())

    assert future.cancel()

    monkeypatch.undo()
    assert pool.stats().cancelled == 1


def test_executor_that_is_dropped_lives_until_its_tasks_are_done(client: AnyClient) -> None:
    """The exit of the interpreter finds it then, and finishes them."""
    with Gate() as gate:
        pool: DaskResourceExecutor[None] | None = DaskResourceExecutor(client)
        assert pool is not None
        future = pool.submit(Ref(gate.hold))
        gate.wait_until_held()
        living = weakref.ref(pool)

        pool = None
        gc.collect()
        pool = living()

        assert pool is not None
        gate.release()
    assert future.result(DEADLINE) is None
    pool.shutdown(timeout=DEADLINE)


def test_result_for_an_event_loop_that_has_closed_is_dropped() -> None:
    called: list[str] = []
    loop = asyncio.new_event_loop()
    loop.close()

    call_on(loop, called.append, "late")

    assert called == []
