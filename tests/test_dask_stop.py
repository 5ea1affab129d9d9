"""`tasker_executor.dask`: tasks that are stopped, and that run out of time, on a cluster in this process."""

from __future__ import annotations

import itertools
import pickle
import random
import threading
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from distributed.comm.core import CommClosedError

import dask_cluster
from dask_cluster import (
    THREADS,
    WORKERS,
    AnyClient,
    MakePool,
    handed,
    hooks,
    local_workers,
    new_cluster,
    on_scheduler,
)
from dask_support import FOREIGN_THREADS, Ref
from support import DEADLINE, FakeResource, Gate, Ledger, eventually
from tasker_executor import TaskFuture, TaskStopped, TaskTimeout, current_task
from tasker_executor._options import UNSET, TaskOptions
from tasker_executor.exceptions import TaskCancelled, TaskLost

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


class Until:
    """A task that runs until it is stopped, and counts its starts."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.started = threading.Semaphore(0)

    def __call__(self, number: int = 0) -> None:
        self.starts.append(number)
        task = current_task()
        self.started.release()
        assert task.wait(DEADLINE), "not stopped"
        task.raise_if_cancelled()

    def wait_until_started(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.started.acquire(timeout=DEADLINE)


def occupy(pool: Any, gate: Gate, count: int = WORKERS * THREADS) -> list[Future[Any]]:
    held = [pool.submit(Ref(gate.hold)) for _ in range(count)]
    gate.wait_until_held(count)
    return held


def known(scheduler: Any) -> int:
    return sum(str(key).startswith("Ref-") for key in scheduler.tasks)


# -- what waits


def test_task_that_waits_at_the_scheduler_is_cancelled(client: AnyClient, make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    ran: list[int] = []
    held = occupy(pool, gate)
    futures = [pool.submit(Ref(ran.append), number) for number in range(20)]
    eventually(lambda: on_scheduler(client, known) == len(held) + 20, "the scheduler to know all tasks")

    assert all(future.stop() for future in futures)

    assert not wait(futures, DEADLINE).not_done
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    assert all(future.cancelled() for future in futures)
    assert ran == []
    assert pool.stats().cancelled == 20


def test_task_that_waits_on_its_worker_is_cancelled(client: AnyClient, make_dask: MakePool, gate: Gate) -> None:
    """Dask counts the task as running; but the worker's own executor has fewer threads than Dask."""
    pool = make_dask(max_workers=1)
    ran: list[int] = []
    occupy(pool, gate, WORKERS)
    waits = pool.submit(Ref(ran.append), 1)
    eventually(lambda: handed(client, pool) == WORKERS + 1, "the task to be handed over")

    assert waits.stop()

    with pytest.raises(CancelledError):
        waits.result(DEADLINE)
    gate.release()
    pool.shutdown(timeout=DEADLINE)
    assert ran == []


def test_task_that_waits_at_the_scheduler_is_forgotten_in_the_step_that_finds_it(
    client: AnyClient, make_dask: MakePool, gate: Gate
) -> None:
    """Or it could start before the client cancels it."""
    pool = make_dask()
    held = occupy(pool, gate)
    futures: list[Any] = [pool.submit(Ref(abs), -number) for number in range(20)]
    keys, name = [future._remote.key for future in futures], pool._plugin
    eventually(lambda: on_scheduler(client, known) == len(held) + 20, "the scheduler to know all tasks")

    def stop(scheduler: Any) -> dict[str, str]:
        places: dict[str, str] = scheduler.handlers[f"stop-{name}"](keys=keys)
        assert not any(key in scheduler.tasks for key, place in places.items() if place == "waits")
        return places

    places = on_scheduler(client, stop)
    assert "waits" in places.values()
    gate.release()
    pool.kill()


def test_stopped_task_that_waits_on_a_worker_does_not_go_elsewhere_when_that_ends(
    client: AnyClient, make_dask: MakePool, gate: Gate
) -> None:
    pool = make_dask(max_workers=1)
    occupy(pool, gate, WORKERS)
    waits: Any = pool.submit(Ref(abs), -1)
    eventually(lambda: handed(client, pool) == WORKERS + 1, "the task to be handed over")
    [plugin] = [
        worker.plugins[pool._plugin]
        for worker in local_workers(client)
        if waits._remote.key in worker.plugins[pool._plugin]._handed
    ]

    plugin._end = object()  # as if the worker ended
    plugin.stop([waits._remote.key])

    assert not wait([waits], DEADLINE).not_done
    plugin._end = None
    assert waits.cancelled()
    gate.release()


def test_task_whose_submission_is_on_its_way_is_cancelled(
    client: AnyClient, make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop may overtake the submission: it asks again until the scheduler knows the task."""
    pool = make_dask()
    asked: list[int] = []
    scheduler_side = client.cluster.scheduler.plugins[pool._plugin]
    handlers = client.cluster.scheduler.handlers
    original = handlers[f"stop-{pool._plugin}"]

    def stop(keys: list[str]) -> Any:
        asked.append(len(keys))
        return {} if len(asked) < 3 else original(keys=keys)

    assert scheduler_side is not None
    monkeypatch.setitem(handlers, f"stop-{pool._plugin}", stop)
    task = Until()
    future = pool.submit(Ref(task))

    assert future.stop()
    assert not wait([future], DEADLINE).not_done
    assert len(asked) == 3


def test_task_that_has_not_come_to_its_worker_does_not_run_there(client: AnyClient, make_dask: MakePool) -> None:
    """1. The scheduler gives the task to a worker. 2. The stop overtakes it. 3. The task comes, and is refused."""
    pool = make_dask()
    ran: list[int] = []
    key = f"Ref-{pool._key_prefix}{7:012x}"
    for worker in local_workers(client):
        assert worker.plugins[pool._plugin].stop([key]) == [key]
    pool._keys = itertools.count(7)

    future = pool.submit(Ref(ran.append), 1)

    with pytest.raises(CancelledError):
        future.result(DEADLINE)
    assert ran == []


def test_worker_keeps_a_limited_number_of_keys(client: AnyClient, make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasker_executor.dask.worker_side._MOST_STOPPED", 10)
    pool = make_dask()
    plugin = local_workers(client)[0].plugins[pool._plugin]

    plugin.stop([f"key {number}" for number in range(25)])

    assert list(plugin._stopped) == [f"key {number}" for number in range(15, 25)]


# -- what runs


def test_task_that_runs_is_stopped_on_its_worker(make_dask: MakePool) -> None:
    pool = make_dask()
    task = Until()
    future = pool.submit(Ref(task))
    task.wait_until_started()

    assert isinstance(future, TaskFuture)
    assert future.stop()

    error = future.exception(DEADLINE)
    assert isinstance(error, TaskStopped)
    assert isinstance(error.__cause__, TaskCancelled)
    assert task.starts == [0]
    stats = pool.stats()
    assert (stats.failed, stats.cancelled, stats.stopped) == (1, 0, 1)


def test_stop_aborts_the_resource_of_the_task(make_dask: MakePool, ledger: Ledger) -> None:
    with Gate() as gate:

        def abort(_: FakeResource) -> None:
            gate.release()

        pool = make_dask(**hooks(ledger), on_abort=Ref(abort))
        future = pool.submit(Ref(gate.hold))
        gate.wait_until_held()
        assert future.stop()

        assert future.result(DEADLINE) is None  # it returned in spite of the stop: its value stands


def test_stopped_task_is_not_run_again_on_its_worker(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    starts: list[int] = []
    started = threading.Event()

    def task(resource: FakeResource) -> None:
        starts.append(1)
        started.set()
        current_task().wait(DEADLINE)
        resource.break_down()

    future = pool.submit(Ref(task))
    assert started.wait(DEADLINE)
    assert future.stop()

    assert isinstance(future.exception(DEADLINE), TaskStopped)
    pool.shutdown(timeout=DEADLINE)
    assert starts == [1]


def test_task_that_ignores_the_stop_is_given_up_and_its_worker_written_off(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask(abort_grace=0.01)
    [future] = occupy(pool, gate, 1)
    stopping: Any = future
    assert stopping.stop()

    error = future.exception(DEADLINE)
    assert isinstance(error, TaskStopped)
    assert error.__cause__ is None
    assert pool.stats().written_off == 1
    assert pool.submit(abs, -1).result(DEADLINE) == 1
    gate.release()
    eventually(lambda: pool.stats().written_off == 0, "the call to return")


def test_stop_twice_asks_once_and_after_the_end_not_at_all(
    client: AnyClient, make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    asked: list[Any] = []
    original = pool._books._stops.ask

    def ask(future: Any) -> None:
        asked.append(future)
        original(future)

    monkeypatch.setattr(pool._books._stops, "ask", ask)
    task = Until()
    future = pool.submit(Ref(task))
    task.wait_until_started()

    assert future.stop()
    assert future.stop()
    assert isinstance(future.exception(DEADLINE), TaskStopped)
    assert not future.stop()
    assert asked == [future]


def test_stop_in_a_done_callback_does_not_block(make_dask: MakePool) -> None:
    pool = make_dask()
    task = Until()
    future = pool.submit(Ref(task))
    task.wait_until_started()
    pool.submit(abs, -1).add_done_callback(lambda _: future.stop())

    assert isinstance(future.exception(DEADLINE), TaskStopped)


def test_many_stops_at_once_are_few_messages(client: AnyClient, make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_dask()
    task = Until()
    futures = [pool.submit(Ref(task)) for _ in range(100)]
    task.wait_until_started(WORKERS * THREADS)
    eventually(lambda: on_scheduler(client, known) == 100, "the scheduler to know all tasks")
    messages: list[Any] = []
    original = pool._client._run

    async def run(*args: Any, **kwargs: Any) -> Any:
        messages.append(args)
        return await original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "_run", run)
        for future in reversed(futures):
            assert future.stop()
        assert not wait(futures, DEADLINE).not_done

    outcomes = [future.cancelled() or isinstance(future.exception(), TaskStopped) for future in futures]
    assert all(outcomes)
    assert len(messages) < 50


def test_stop_after_the_event_loop_has_closed_is_for_this_side_only(
    make_dask: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    [future] = occupy(pool, gate, 1)
    stopping: Any = future

    def refuse(*_: object) -> None:
        raise RuntimeError("closed")

    with monkeypatch.context() as patch:
        patch.setattr(pool._books._stops, "ask", refuse)
        assert stopping.stop()
    assert future.cancelled()
    gate.release()


@pytest.mark.parametrize("seed", range(2))
def test_random_stops_hit_the_tasks_that_they_are_meant_for(make_dask: MakePool, seed: int) -> None:
    dice = random.Random(seed)
    hit: list[int] = []
    starts: list[int] = []

    def task(number: int, seconds: float) -> int:
        starts.append(number)
        if current_task().wait(seconds):
            hit.append(number)
            current_task().raise_if_cancelled()
        return number

    pool = make_dask()
    futures: list[TaskFuture[int]] = []
    asked: set[int] = set()
    for number in range(150):
        futures.append(pool.submit(Ref(task), number, dice.choice([0.0, 0.002, 0.01])))
        if dice.random() < 0.5:
            chosen = dice.randrange(len(futures))
            asked.add(chosen)
            futures[chosen].stop()

    assert not wait(futures, DEADLINE).not_done
    assert set(hit) <= asked
    assert len(starts) == len(set(starts)), "run twice"
    for number, future in enumerate(futures):
        if number not in asked:
            assert future.result() == number
        elif not future.cancelled():
            error = future.exception()
            assert error is None or isinstance(error, TaskStopped)
    pool.shutdown(timeout=DEADLINE)
    stats = pool.stats()
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled


# -- a worker, or a scheduler, that does not answer


def test_worker_that_does_not_answer_is_asked_again(make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_dask()
    task = Until()
    future = pool.submit(Ref(task))
    task.wait_until_started()
    original = pool._client._run
    asked: list[Any] = []

    async def run(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        if len(asked) == 1:
            raise CommClosedError
        if len(asked) == 2:
            return {}
        return await original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "_run", run)
        assert future.stop()
        assert isinstance(future.exception(DEADLINE), TaskStopped)
    assert len(asked) == 3


def test_scheduler_that_does_not_answer_is_asked_again(
    client: AnyClient, make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    task = Until()
    future = pool.submit(Ref(task))
    task.wait_until_started()
    handlers = client.cluster.scheduler.handlers
    original = handlers[f"stop-{pool._plugin}"]
    asked: list[Any] = []

    def stop(keys: list[str]) -> Any:
        asked.append(keys)
        if len(asked) == 1:
            raise ValueError("busy")
        return original(keys=keys)

    monkeypatch.setitem(handlers, f"stop-{pool._plugin}", stop)
    assert future.stop()
    assert isinstance(future.exception(DEADLINE), TaskStopped)
    assert len(asked) == 2


def test_stopped_task_is_not_run_again_when_its_worker_leaves(make_dask: MakePool) -> None:
    """Dask runs the tasks of a worker that is retired elsewhere. Not one that was stopped."""
    with new_cluster(2) as own, Gate() as gate:
        pool = make_dask(on=own)
        starts: list[int] = []

        def task() -> None:
            starts.append(1)
            gate.hold()

        future = pool.submit(Ref(task))
        gate.wait_until_held()
        eventually(lambda: handed(own, pool) == 1, "the worker to have noted the task")
        [worker] = [worker for worker in local_workers(own) if worker.plugins[pool._plugin]._handed]
        assert future.stop()
        eventually(lambda: bool(worker.plugins[pool._plugin]._stopped), "the worker to be told")
        own.retire_workers([worker.address])

        error = future.exception(DEADLINE)
        assert isinstance(error, TaskStopped)
        assert isinstance(error.__cause__, TaskLost)
        assert pool.submit(abs, -1).result(DEADLINE) == 1
        gate.release()
        pool.shutdown(timeout=DEADLINE)
        assert starts == [1]


# -- time


@pytest.mark.parametrize("view", [False, True])
def test_task_that_runs_for_too_long_is_stopped(make_dask: MakePool, view: bool) -> None:
    task = Until()
    root = make_dask() if view else make_dask(run_within=0.01)
    pool = root.with_options(run_within=0.01) if view else root

    error = pool.submit(Ref(task)).exception(DEADLINE)

    assert isinstance(error, TaskTimeout)
    assert isinstance(error.__cause__, TaskCancelled)
    assert task.starts == [0]
    assert root.stats().timed_out == 1


def test_a_view_may_lift_the_limit(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask(run_within=0.01)
    future = pool.with_options(run_within=None).submit(Ref(gate.hold))
    gate.wait_until_held()
    assert isinstance(pool.submit(Ref(Until())).exception(DEADLINE), TaskTimeout)  # so that much time has passed
    gate.release()

    assert future.result(DEADLINE) is None


def test_run_now_has_the_limit_too(make_dask: MakePool) -> None:
    with pytest.raises(TaskTimeout):
        make_dask(run_within=0.01).run_now(Ref(Until()))


def test_long_task_is_warned_of_on_its_worker(make_dask: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_dask(warn_after=0.01)
    occupy(pool, gate, 1)

    eventually(lambda: "hold" in caplog.text, "the warning")


def test_options_that_are_not_given_stay_so_on_their_way() -> None:
    assert pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert pickle.loads(pickle.dumps(TaskOptions())).run_within is UNSET


def test_kill_stops_what_runs(make_dask: MakePool) -> None:
    pool = make_dask()
    task = Until()
    futures = [pool.submit(Ref(task)) for _ in range(10)]
    task.wait_until_started(WORKERS * THREADS)

    pool.kill()
    pool.shutdown(timeout=DEADLINE)

    errors = [future.exception() for future in futures if not future.cancelled()]
    assert len(errors) == WORKERS * THREADS
    assert all(isinstance(error, TaskStopped) for error in errors)


def test_killed_executor_does_not_wait_for_a_task_that_ignores_it(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask(abort_grace=0.01)
    [future] = occupy(pool, gate, 1)

    pool.kill()
    pool.shutdown(timeout=DEADLINE)

    assert isinstance(future.exception(0), TaskStopped)
    assert pool.stats().state == "closed"


@pytest.mark.parametrize("name, value", [("run_within", -1), ("run_within", 0), ("abort_grace", "1 s"), ("warn_after", True)])
def test_bad_limits_are_refused_in_the_callers_thread(make_dask: MakePool, name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        make_dask(**{name: value})
