"""`tasker_executor.dask`: calls, their arguments and results, `run_now`, numbers and context, on a cluster in this process."""

from __future__ import annotations

import contextvars
import operator
import pickle
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
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
    double,
    everything,
    fail,
    hooks,
    new_cluster,
    on_scheduler,
    use,
    worker_address,
)
from dask_support import FOREIGN_THREADS, Ref
from support import DEADLINE, Gate, Ledger, eventually
from tasker_executor import (
    ExecutorStats,
    NoCurrentTask,
    Observer,
    ResourceCreationError,
    TaskEvent,
    current_task,
)
from tasker_executor.dask import DaskResourceExecutor
from tasker_executor.exceptions import TaskLost

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


def test_future_is_that_of_concurrent_futures(make_dask: MakePool) -> None:
    future = make_dask().submit(abs, -1)

    assert isinstance(future, Future)
    assert future.result(DEADLINE) == 1


def test_task_gets_the_resource_and_its_arguments(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))

    assert pool.submit(describe_call, 1, key=2).result(DEADLINE) == ("FakeResource", (1,), {"key": 2})


def describe_call(resource: object, /, *args: object, **kwargs: object) -> object:
    return type(resource).__name__, args, kwargs


def test_wait_and_as_completed_work(make_dask: MakePool) -> None:
    pool = make_dask()
    futures = [pool.submit(abs, -number) for number in range(10)]

    assert sorted(future.result() for future in as_completed(futures, DEADLINE)) == list(range(10))
    assert not wait(futures, DEADLINE).not_done


def test_function_without_a_name_can_be_submitted(make_dask: MakePool) -> None:
    assert make_dask().submit(operator.itemgetter(1), "ab").result(DEADLINE) == "b"


def test_priority_task_overtakes_the_queue(client: AnyClient, make_dask: MakePool) -> None:
    with new_cluster(1, 1) as own, Gate() as gate:
        pool = make_dask(on=own)
        ran: list[str] = []
        blocker = pool.submit(Ref(gate.hold))
        gate.wait_until_held()
        tasks = [pool.submit(Ref(ran.append), f"normal {number}") for number in range(5)]
        tasks.append(pool.submit_priority(Ref(ran.append), "high"))
        eventually(lambda: on_scheduler(own, count_tasks) == 7, "the scheduler to know all tasks")

        gate.release()
        wait([blocker, *tasks], DEADLINE)
        pool.shutdown(timeout=DEADLINE)

    # Dask gave the worker one task more than it has threads before the urgent task came; that task may come first.
    assert ran.index("high") <= 1


def count_tasks(scheduler: Any) -> int:
    return len(scheduler.tasks)


def test_map_keeps_the_order(make_dask: MakePool) -> None:
    assert list(make_dask().map(abs, range(0, -20, -1), timeout=DEADLINE)) == list(range(20))


def test_chunk_of_map_is_one_dask_task(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))

    assert list(pool.map(double, range(10), chunksize=4, timeout=DEADLINE)) == [2 * number for number in range(10)]
    assert pool.stats().submitted == 3


def test_chunk_yields_the_results_before_its_error(make_dask: MakePool) -> None:
    results = make_dask().map(divide, [1, 2, 0, 3], chunksize=4, timeout=DEADLINE)

    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def divide(number: int) -> float:
    return 6 / number


def test_chunk_whose_resource_broke_goes_on_where_it_was(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    calls: list[int] = []
    broken: list[object] = []

    def call(resource: Any, number: int) -> int:
        calls.append(number)
        if number == 2 and not broken:
            broken.append(resource)
            resource.break_down()
        return number

    results = list(pool.map(Ref(call), range(4), chunksize=4, timeout=DEADLINE))

    assert results == [0, 1, 2, 3]
    assert calls == [0, 1, 2, 2, 3]


def test_map_takes_a_buffersize(make_dask: MakePool) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(10):
            taken.append(number)
            yield number

    results = make_dask().map(abs, source(), buffersize=2, timeout=DEADLINE)

    next(results)

    assert taken == [0, 1, 2]


def test_with_options_can_leave_the_resource_out(make_dask: MakePool, ledger: Ledger) -> None:
    view = make_dask(**hooks(ledger)).with_options(pass_resource=False)

    assert view.submit(abs, -3).result(DEADLINE) == 3


def test_task_is_one_to_current_task(make_dask: MakePool) -> None:
    assert make_dask().submit(attempt).result(DEADLINE) == 1


def attempt() -> int:
    return current_task().attempt


def test_task_knows_its_dask_worker(make_dask: MakePool) -> None:
    assert make_dask().submit(worker_address).result(DEADLINE).startswith("inproc://")


def test_observers_on_the_workers_hear_the_name_of_the_function(make_dask: MakePool) -> None:
    heard: list[str] = []
    pool = make_dask(observers=[Listener(Ref(heard.append))])

    pool.submit(abs, -1).result(DEADLINE)

    assert heard == ["abs"]


class Listener(Observer):
    def __init__(self, tell: Ref) -> None:
        self.tell = tell

    def task_started(self, event: TaskEvent) -> None:
        self.tell(event.function)


def test_task_that_does_not_start_in_time_expires(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask(max_workers=1)
    blockers = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS)]
    gate.wait_until_held(WORKERS)

    late = pool.with_options(start_within=0.01).submit(abs, -1)

    assert isinstance(late.exception(DEADLINE), TimeoutError)
    gate.release()
    wait(blockers, DEADLINE)


def test_run_now_overtakes_every_queue(make_dask: MakePool, gate: Gate, ledger: Ledger) -> None:
    pool = make_dask(on_create=Ref(ledger.create), on_destroy=Ref(ledger.destroy))
    ledger.any_thread = True
    tasks = [pool.submit(Ref(gate.hold)) for _ in range(20)]
    gate.wait_until_held(WORKERS * THREADS)

    assert pool.run_now(double, 4) == 8

    gate.release()
    wait(tasks, DEADLINE)


def test_run_now_raises_what_the_task_raises(make_dask: MakePool) -> None:
    with pytest.raises(KeyError, match="key"):
        make_dask().run_now(fail, KeyError("key"))


def test_run_now_asks_the_next_worker_when_one_is_dying(make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_dask()
    asked = fail_once(monkeypatch, pool._client, "run")

    assert pool.run_now(abs, -1) == 1
    assert len(asked) == 2
    assert asked[0]["workers"] != asked[1]["workers"]


def test_run_now_of_an_at_most_once_task_is_not_repeated(make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_dask(max_retries=0)
    asked = fail_once(monkeypatch, pool._client, "run")

    with pytest.raises(TaskLost, match="abs"):
        pool.run_now(abs, -1)
    assert len(asked) == 1


def fail_once(monkeypatch: pytest.MonkeyPatch, client: Any, method: str) -> list[dict[str, Any]]:
    """Make the first call of `Client.run` answer that the connection to the worker was closed."""
    original, asked = getattr(client, method), list[dict[str, Any]]()

    def call(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        if len(asked) == 1:
            return dict.fromkeys(kwargs["workers"], CommClosedError())
        return original(*args, **kwargs)

    monkeypatch.setattr(client, method, call)
    return asked


def test_run_now_without_any_worker_fails_in_time(make_dask: MakePool) -> None:
    with new_cluster(0) as own:
        pool = make_dask(on=own, on_create=object, create_timeout=0.05)

        with pytest.raises(ResourceCreationError, match="no worker"):
            pool.run_now(double, 1)
        pool.shutdown()


def test_run_now_waits_for_a_worker_that_is_about_to_join(make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_cluster(0) as own:
        pool = make_dask(on=own)
        wait_for_workers = own.wait_for_workers

        def join_late(*args: Any, **kwargs: Any) -> Any:
            own.cluster.scale(1)
            return wait_for_workers(*args, **kwargs)

        monkeypatch.setattr(own, "wait_for_workers", join_late)

        assert pool.run_now(abs, -1) == 1
        pool.shutdown()


def test_stats_are_those_of_the_cluster(make_dask: MakePool, gate: Gate, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    pool.submit(use).result(DEADLINE)
    pool.submit(fail).exception(DEADLINE)
    held = [pool.submit(Ref(gate.hold)) for _ in range(6)]
    urgent = pool.submit_priority(use)
    gate.wait_until_held(WORKERS * THREADS)

    stats = pool.stats()

    assert (stats.submitted, stats.completed, stats.failed, stats.cancelled) == (9, 1, 1, 0)
    assert (stats.running_tasks, stats.queued_tasks, stats.priority_tasks) == (4, 2, 1)
    assert (stats.active_workers, stats.resources_created, stats.state) == (4, 4, "running")
    gate.release()
    wait([*held, urgent], DEADLINE)


def test_stats_stay_after_shutdown(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    pool.submit(use).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    stats = pool.stats()

    assert (stats.completed, stats.resources_created, stats.resources_destroyed, stats.state) == (1, 1, 1, "closed")


def test_metrics_of_the_workers_add_up(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    list(pool.map(use, range(20), timeout=DEADLINE))
    pool.submit(fail).exception(DEADLINE)

    metrics = pool.metrics()

    assert metrics.run.count == metrics.wait.count == 21
    assert metrics.create.count == pool.stats().resources_created
    assert metrics.failure_rate == pytest.approx(1 / 21)
    assert metrics.completion_rate > 0


def test_metrics_can_start_a_new_period(make_dask: MakePool) -> None:
    pool = make_dask()
    pool.submit(abs, -1).result(DEADLINE)
    pool.metrics(reset=True)
    pool.submit(abs, -1).result(DEADLINE)

    assert pool.metrics().run.count == 1


def test_repr_is_a_status_line(make_dask: MakePool) -> None:
    assert repr(make_dask(name="crawler")).startswith("<DaskResourceExecutor 'crawler' running: 0 tasks | <Client: ")


def test_max_workers_is_that_of_the_cluster(make_dask: MakePool) -> None:
    assert make_dask()._max_workers == WORKERS * THREADS
    assert make_dask(max_workers=1)._max_workers == WORKERS


REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")


def read_request() -> str:
    return REQUEST.get()


def write_request(request: str) -> None:
    REQUEST.set(request)


CARRIER = (read_request, write_request)


def test_carrier_takes_the_context_to_the_task(make_dask: MakePool) -> None:
    pool = make_dask(carriers=[CARRIER])
    context = contextvars.copy_context()
    context.run(REQUEST.set, "r-1")

    future = context.run(pool.submit, read_request)

    assert future.result(DEADLINE) == "r-1"
    assert context.run(pool.run_now, read_request) == "r-1"


def test_context_does_not_leak_into_later_tasks(make_dask: MakePool) -> None:
    pool = make_dask(carriers=[CARRIER])
    contextvars.copy_context().run(submit_with, pool, "r-1").result(DEADLINE)

    assert {pool.submit(read_request).result(DEADLINE) for _ in range(10)} == {"none"}


def submit_with(pool: DaskResourceExecutor[None], request: str) -> Future[str]:
    REQUEST.set(request)
    return pool.submit(read_request)


def test_carrier_that_cannot_be_restored_fails_the_task(make_dask: MakePool) -> None:
    pool = make_dask(carriers=[(str, fail_to_restore)])

    assert isinstance(pool.submit(abs, -1).exception(DEADLINE), LookupError)


def fail_to_restore(value: str) -> None:
    raise LookupError("no such trace")


def test_equal_calls_are_calls_of_their_own(make_dask: MakePool) -> None:
    ran: list[int] = []
    pool = make_dask()

    wait([pool.submit(Ref(ran.append), 7) for _ in range(5)], DEADLINE)

    assert ran == [7] * 5


def test_keywords_reach_the_task(make_dask: MakePool) -> None:
    keywords = {"key": 1, "priority": 2, "workers": 3, "retries": 4, "pure": 5, "resources": 6, "fn": 7, "self": 8, "actor": 9}

    assert make_dask().submit(everything, **keywords).result(DEADLINE) == ((), keywords)


def test_argument_that_looks_like_a_key_stays_what_it_is(client: AnyClient, make_dask: MakePool) -> None:
    published = client.submit(abs, -5, key="a-key")
    published.result(timeout=DEADLINE)

    assert make_dask().submit(str.upper, "a-key").result(DEADLINE) == "A-KEY"


def test_no_task_is_current_in_the_client(make_dask: MakePool) -> None:
    make_dask().submit(abs, -1).result(DEADLINE)

    with pytest.raises(NoCurrentTask):
        current_task()


def test_stats_are_plain_data(make_dask: MakePool) -> None:
    stats = make_dask().stats()

    assert isinstance(stats, ExecutorStats)
    assert pickle.loads(pickle.dumps(stats)) == stats


def test_cancelled_error_of_a_task_is_its_own(make_dask: MakePool) -> None:
    error = make_dask().submit(fail, CancelledError()).exception(DEADLINE)

    assert isinstance(error, CancelledError)
