"""`tasker_executor.dask`: the executor on a cluster whose scheduler and workers live in this process. Real processes die in
test_dask_chaos.py.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import itertools
import logging
import math
import operator
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError, Future, as_completed, wait
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any, cast

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from distributed import Client, LocalCluster, get_worker
from distributed.comm.core import CommClosedError
from distributed.core import Status

from dask_support import FOREIGN_THREADS, Ref
from engine import State
from interruptions import AtPoint, TimeLimit
from support import DEADLINE, Gate, Ledger, ResourceBroken, eventually, run_python
from tasker_executor import (
    BacklogPolicy,
    ExecutorStats,
    LoadSample,
    NoCurrentTask,
    Observer,
    QueueWaitPolicy,
    RatePolicy,
    ResourceCreationError,
    ShutdownTimeout,
    TaskEvent,
    TaskLost,
    current_task,
)
from tasker_executor._options import TaskOptions
from tasker_executor.dask import (
    DaskResourceExecutor,
    PolicyAdaptive,
    _at_exit,
    _call_on,
    _LoadMeter,
    _Outcome,
    _Plugin,
    _RemoteFuture,
)

WORKERS, THREADS = 2, 2
AnyClient = Any  # A Client, whose methods have no types that checkers could use.
MakePool = Callable[..., DaskResourceExecutor[Any]]

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)


@pytest.fixture(scope="module")
def client() -> Iterator[AnyClient]:
    """A cluster of two workers with two threads each, in this process."""
    with new_cluster(WORKERS, THREADS) as client:
        yield client


@pytest.fixture
def make_dask(client: AnyClient, ledger: Ledger) -> Iterator[MakePool]:
    """Makes executors on that cluster, or on that of another client; they are shut down after the test."""
    made: list[DaskResourceExecutor[Any]] = []

    def make(*, on: Client = client, **kwargs: Any) -> DaskResourceExecutor[Any]:
        pool: DaskResourceExecutor[Any] = DaskResourceExecutor(on, **kwargs)
        made.append(pool)
        return pool

    yield make

    for pool in made:
        pool.shutdown(timeout=DEADLINE)


@pytest.fixture
def gate(make_dask: MakePool) -> Iterator[Gate]:
    """A closed gate, which opens before the executors are shut down."""
    with Gate() as closed:
        yield closed


@contextmanager
def new_cluster(workers: int, threads: int = 1) -> Generator[AnyClient]:
    """The client of a cluster whose workers live in this process."""
    cluster: Any = LocalCluster(n_workers=workers, threads_per_worker=threads, processes=False, dashboard_address=":0")  # type: ignore[no-untyped-call]  # Dask has few types
    with cluster, new_client(cluster) as client:
        yield client


def new_client(cluster: Any) -> AnyClient:
    return Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]  # Dask has few types


def hooks(ledger: Ledger) -> dict[str, Any]:
    return {
        "on_create": Ref(ledger.create),
        "on_destroy": Ref(ledger.destroy),
        "check_health": Ref(ledger.is_healthy),
        "check_resource": Ref(ledger.is_usable),
    }


def on_scheduler(client: AnyClient, question: Callable[[Any], Any]) -> Any:

    def ask(dask_scheduler: Any) -> Any:
        return question(dask_scheduler)

    return client.run_on_scheduler(ask)


def local_workers(client: AnyClient) -> list[Any]:
    """The worker objects of a cluster in this process."""
    return list(client.cluster.workers.values())


def everything(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


def fail(error: BaseException) -> None:
    raise error


def double(resource: object, number: int) -> int:
    return 2 * number


# -- tasks and their results --


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


def test_error_reaches_the_future_untouched(make_dask: MakePool) -> None:
    error = make_dask().submit(fail_with_cause).exception(DEADLINE)

    assert type(error) is KeyError
    assert error.args == ("key",)
    assert isinstance(error.__cause__, ValueError)
    assert getattr(error, "__notes__", ["noted"]) == ["noted"]


def fail_with_cause() -> None:
    error = KeyError("key")
    if sys.version_info >= (3, 11):
        error.add_note("noted")
    raise error from ValueError("value")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_worker_survives_whatever_a_task_raises(make_dask: MakePool, error: BaseException) -> None:
    pool = make_dask()

    assert type(pool.submit(fail, error).exception(DEADLINE)) is type(error)
    assert pool.submit(abs, -1).result(DEADLINE) == 1


def test_error_reaches_the_future_though_its_class_takes_other_arguments(make_dask: MakePool) -> None:
    error = make_dask().submit(fail_stubbornly).exception(DEADLINE)

    assert type(error) is Stubborn
    assert str(error) == "no 7"


class Stubborn(Exception):
    def __init__(self, number: int, *, why: object) -> None:
        super().__init__(f"no {number}")
        self.why = why


def fail_stubbornly(why: object = "because") -> None:
    raise Stubborn(7, why=why)


def test_error_that_cannot_be_pickled_has_a_stand_in(make_dask: MakePool) -> None:
    error = make_dask().submit(fail_stubbornly_over_a_lock).exception(DEADLINE)

    assert type(error) is RuntimeError
    assert "Stubborn: no 7" in str(error)
    assert "fail_stubbornly" in str(error.__cause__)


def fail_stubbornly_over_a_lock() -> None:
    fail_stubbornly(why=threading.Lock())


def test_call_that_cannot_be_pickled_is_refused_by_submit(make_dask: MakePool) -> None:
    pool = make_dask()

    with pytest.raises(TypeError, match="pickle"):
        pool.submit(everything, threading.Lock())
    assert pool.stats().submitted == 0


def test_call_that_cannot_be_unpickled_fails_and_no_resource_is_blamed(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(on_create=Ref(ledger.create), on_destroy=Ref(ledger.destroy), check_health=never_healthy)

    error = pool.submit(everything, FailsToUnpickle()).exception(DEADLINE)

    assert isinstance(error, ImportError)
    assert pool.stats().workers_replaced == 0


class FailsToUnpickle:
    def __reduce__(self) -> tuple[Callable[[BaseException], None], tuple[BaseException]]:
        return fail, (ImportError("not here"),)


def never_healthy(error: BaseException) -> bool:
    return False


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

    # The worker was given one task more than it has threads before the urgent one came; that one may come first.
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


def worker_address() -> str:
    address: str = get_worker().address
    return address


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


# -- resources --


def test_resources_are_made_on_the_workers_and_destroyed_by_their_makers(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))

    list(pool.map(Ref(use), range(50), timeout=DEADLINE))
    pool.shutdown(timeout=DEADLINE)

    assert 1 <= len(ledger.created) <= WORKERS * THREADS
    assert len(ledger.destroyed) == len(ledger.created)


def use(resource: Any, *args: object) -> int:
    number: int = resource.use()
    return number


def test_worker_has_no_more_resources_than_threads(make_dask: MakePool, ledger: Ledger, gate: Gate) -> None:
    pool = make_dask(**hooks(ledger))
    tasks = [pool.submit(Ref(gate.hold)) for _ in range(20)]

    gate.wait_until_held(WORKERS * THREADS)

    assert len(ledger.created) == WORKERS * THREADS
    gate.release()
    wait(tasks, DEADLINE)


def test_max_workers_out_of_reach_is_a_warning(make_dask: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    make_dask(max_workers=THREADS + 1)

    assert f"this Dask worker has {THREADS} threads" in caplog.text


def test_broken_resource_is_replaced_and_its_task_retried(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))
    broken: list[object] = []

    def break_once(resource: Any) -> int:
        if not broken:
            broken.append(resource)
            resource.break_down()
        number: int = resource.use()
        return number

    pool.submit(Ref(break_once)).result(DEADLINE)

    assert pool.stats().retried == 1
    eventually(lambda: pool.stats().resources_destroyed == 1, "the broken resource to be destroyed")


def test_task_out_of_retries_fails_with_its_own_error(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger), max_retries=2)

    error = pool.submit(Ref(break_down)).exception(DEADLINE)

    assert isinstance(error, ResourceBroken) or "ResourceBroken" in str(error)
    assert len(ledger.created) == 3


def break_down(resource: Any) -> None:
    resource.break_down()


# -- run_now --


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
    """Make a call of `Client.run` answer, the first time, that the connection to the worker was closed."""
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


# -- numbers --


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


# -- context --

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


# -- what Dask's own executor gets wrong --


def test_equal_calls_are_calls_of_their_own(make_dask: MakePool) -> None:
    ran: list[int] = []
    pool = make_dask()

    wait([pool.submit(Ref(ran.append), 7) for _ in range(5)], DEADLINE)

    assert ran == [7] * 5


@pytest.mark.parametrize("when", ["submit", "run_now"])
def test_result_that_cannot_be_pickled_is_an_error(make_dask: MakePool, when: str) -> None:
    pool = make_dask(max_retries=0)

    with pytest.raises(TypeError, match="pickle"):
        _ = pool.run_now(threading.Lock) if when == "run_now" else pool.submit(threading.Lock).result(DEADLINE)


def test_result_that_cannot_be_pickled_is_not_the_fault_of_the_resource(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(on_create=Ref(ledger.create), on_destroy=Ref(ledger.destroy), check_health=never_healthy)

    assert isinstance(pool.submit(identity).exception(DEADLINE), TypeError)
    assert pool.stats().workers_replaced == 0


def identity(resource: object) -> object:
    return threading.Lock()


def test_keywords_reach_the_task(make_dask: MakePool) -> None:
    keywords = {"key": 1, "priority": 2, "workers": 3, "retries": 4, "pure": 5, "resources": 6, "fn": 7, "self": 8, "actor": 9}

    assert make_dask().submit(everything, **keywords).result(DEADLINE) == ((), keywords)


def test_argument_that_looks_like_a_key_stays_what_it_is(client: AnyClient, make_dask: MakePool) -> None:
    published = client.submit(abs, -5, key="a-key")
    published.result(timeout=DEADLINE)

    assert make_dask().submit(str.upper, "a-key").result(DEADLINE) == "A-KEY"


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


def test_cancelled_future_is_seen_by_those_who_wait(make_dask: MakePool, gate: Gate) -> None:
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
    """Dask has handed it over, and takes it for one that runs; but the worker's own executor has fewer threads than Dask."""
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


def handed(client: AnyClient, pool: DaskResourceExecutor[Any]) -> int:
    return sum(len(worker.plugins[pool._pool]._handed) for worker in local_workers(client))


def test_running_task_can_be_cancelled_only_by_name(make_dask: MakePool, gate: Gate) -> None:
    """Dask tells clients nothing of a start: the future is cancelled, its task runs on. Documented, and pinned here."""
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
    """On the client's event loop, where Dask's own methods return coroutines that nobody awaits."""
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


def test_at_most_once_task_starts_once(client: AnyClient, make_dask: MakePool) -> None:
    """The second start is what happens when the worker of the first one has died."""
    pool = make_dask(max_retries=0)
    name, key_number, ran = pool._pool, 7, list[int]()
    key = f"Ref-{pool._key_prefix}{key_number:012x}"
    pool._keys = itertools.count(key_number)

    assert on_scheduler(client, lambda scheduler: scheduler.handlers[f"claim-{name}"](key=key))
    error = pool.submit(Ref(ran.append), 1).exception(DEADLINE)

    assert isinstance(error, TaskLost)
    assert not ran


def test_claims_of_at_most_once_tasks_are_forgotten(client: AnyClient, make_dask: MakePool) -> None:
    pool = make_dask()
    name = pool._pool
    wait([pool.with_options(max_retries=0).submit(abs, -1) for _ in range(20)], DEADLINE)

    eventually(lambda: not on_scheduler(client, lambda scheduler: scheduler.plugins[name]._claims), "no claim to be left")


def test_worker_whose_set_up_failed_takes_no_task(make_dask: MakePool) -> None:
    with new_cluster(1) as own:
        sabotage = Sabotage()
        pool = make_dask(on=own, initargs=(sabotage,))
        first = local_workers(own)[0].address
        sabotage.active = True
        own.cluster.scale(2)
        eventually(lambda: failed_plugins(own) == 1, "the set-up of the second worker to fail")

        futures = [pool.submit(Ref(worker_address)) for _ in range(20)]

        assert {future.result(DEADLINE) for future in futures} == {first}
        pool.shutdown(timeout=DEADLINE)


class Sabotage:
    """While active, it cannot be unpickled."""

    active = False

    def __reduce__(self) -> tuple[Callable[[Ref], Ref], tuple[Ref]]:
        return unpickle_unless_sabotaged, (Ref(self),)


def unpickle_unless_sabotaged(sabotage: Ref) -> Ref:
    if sabotage.target.active:
        raise ImportError("sabotaged")
    return sabotage


def failed_plugins(client: AnyClient) -> int:
    plugins = [plugin for worker in local_workers(client) for plugin in worker.plugins.values()]
    return sum(isinstance(plugin, _Plugin) and plugin.failed for plugin in plugins)


def test_worker_that_cannot_be_set_up_is_an_error_of_the_constructor(client: AnyClient, make_dask: MakePool) -> None:
    before = on_scheduler(client, lambda scheduler: (len(scheduler.plugins), len(scheduler.worker_plugins)))

    with pytest.raises(ResourceCreationError, match="for run_now"):
        make_dask(on_create=partial(operator.truediv, 1, 0), resource_pool_size=1)

    assert on_scheduler(client, lambda scheduler: (len(scheduler.plugins), len(scheduler.worker_plugins))) == before


def test_worker_that_dies_during_registration_does_not_spoil_it(
    client: AnyClient, make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = client.register_plugin, list[object]()

    def register(plugin: Any, name: str | None = None) -> Any:
        calls.append(plugin)
        result = original(plugin, name)
        if isinstance(plugin, _Plugin) and len(calls) == 2:
            raise CommClosedError
        return result

    monkeypatch.setattr(client, "register_plugin", register)

    assert make_dask().submit(abs, -1).result(DEADLINE) == 1
    assert len(calls) == 3


def test_registration_that_fails_again_and_again_is_an_error(
    client: AnyClient, make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, original, calls = on_scheduler(client, residue), client.register_plugin, list[object]()

    def register(plugin: Any, name: str | None = None) -> Any:
        if isinstance(plugin, _Plugin):
            calls.append(plugin)
            raise CommClosedError
        return original(plugin, name)

    monkeypatch.setattr(client, "register_plugin", register)

    with pytest.raises(CommClosedError):
        make_dask()
    assert len(calls) == 5
    assert on_scheduler(client, residue) == before


def test_worker_that_dies_during_shutdown_does_not_spoil_it(
    client: AnyClient, make_dask: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask(**hooks(ledger))
    pool.submit(use).result(DEADLINE)
    original = client.unregister_worker_plugin

    def unregister(name: str) -> None:
        original(name)
        raise CommClosedError

    monkeypatch.setattr(client, "unregister_worker_plugin", unregister)
    pool.shutdown(timeout=DEADLINE)

    assert pool.stats().state == "closed"
    assert not on_scheduler(client, lambda scheduler: [name for name in scheduler.plugins if name.startswith("tasker-Dask")])


def test_worker_that_closes_without_removing_its_plugins_destroys_its_resources(make_dask: MakePool, ledger: Ledger) -> None:
    """`Worker.close` may hang in a call to its nanny, which is gone, until that kills it. Nobody tells plugins."""
    with new_cluster(1) as own:
        pool = make_dask(on=own, **hooks(ledger))
        pool.submit(use).result(DEADLINE)
        worker = local_workers(own)[0]

        worker.status = Status.closing
        ledger.wait_until_destroyed(1)

        worker.status = Status.running
        pool.kill()


def test_resources_in_use_are_abandoned_when_a_nanny_closes_the_worker(
    make_dask: MakePool, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    with new_cluster(1) as own, Gate() as gate:
        ledger.any_thread = True
        pool = make_dask(on=own, **hooks(ledger), grace=0.01)
        pool.submit(Ref(gate.hold))
        gate.wait_until_held()
        worker = local_workers(own)[0]

        worker.nanny = "there is one"
        worker.status = Status.closing
        ledger.wait_until_destroyed(1)

        assert "abandoned" in caplog.text
        worker.nanny = None
        worker.status = Status.running
        gate.release()
        pool.kill()


def test_resources_in_use_are_left_alone_where_nobody_kills_the_process(
    make_dask: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_cluster(1, 2) as own, Gate() as gate:
        pool = make_dask(on=own, **hooks(ledger), grace=0.0)
        pool.submit(Ref(gate.hold))
        gate.wait_until_held()
        worker = local_workers(own)[0]
        plugin = worker.plugins[pool._pool]
        abandoned: list[str] = []
        monkeypatch.setattr(plugin.pool, "abandon", partial(abandoned.append, "here"))

        worker.status = Status.closing
        eventually(lambda: plugin._drain is not None, "the worker to begin its end")
        gate.release()
        eventually(lambda: plugin._end.done(), "the worker to end")

        assert not abandoned
        assert not ledger.alive
        worker.status = Status.running
        pool.kill()


def test_task_that_waits_on_a_worker_that_closes_goes_elsewhere(make_dask: MakePool, gate: Gate) -> None:
    with new_cluster(2, 2) as own:
        pool = make_dask(on=own, max_workers=1)
        held = [pool.submit(Ref(gate.hold)) for _ in range(4)]  # one runs and one waits, on each worker
        gate.wait_until_held(2)
        eventually(lambda: handed(own, pool) == 4, "all tasks to be handed over")
        closing = local_workers(own)[0]

        closing.status = Status.closing
        eventually(lambda: len(closing.plugins[pool._pool]._handed) == 1, "the task that waits to be given back")

        gate.release()
        assert not wait(held, DEADLINE).not_done
        assert [future.exception() for future in held] == [None] * 4
        closing.status = Status.running
        pool.shutdown(timeout=DEADLINE)


# -- the end --


def test_shutdown_runs_what_was_accepted(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    futures = [pool.submit(Ref(gate.hold)) for _ in range(10)]
    pool.shutdown(wait=False)

    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert all(future.result(0) is None for future in futures)


def test_nothing_is_accepted_after_shutdown(make_dask: MakePool) -> None:
    pool = make_dask()
    pool.shutdown(timeout=DEADLINE)

    for call in (partial(pool.submit, abs, -1), partial(pool.map, abs, [1]), partial(pool.run_now, abs, -1)):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()


def test_shutdown_cancels_what_no_worker_has_started(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    futures = [pool.submit(Ref(gate.hold)) for _ in range(10)]
    gate.wait_until_held(WORKERS * THREADS)

    pool.shutdown(wait=False, cancel_futures=True)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert sum(future.cancelled() for future in futures) == 10 - WORKERS * THREADS
    assert pool.stats().completed == WORKERS * THREADS


def test_shutdown_gives_up_in_time_and_goes_on(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    future = pool.submit(Ref(gate.hold))
    gate.wait_until_held()

    with pytest.raises(ShutdownTimeout, match="1 tasks are not done"):
        pool.shutdown(timeout=0.01)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert future.result(0) is None


def test_kill_cancels_what_waits_and_tells_what_runs(make_dask: MakePool) -> None:
    pool = make_dask()
    started = threading.Barrier(WORKERS * THREADS + 1)

    def wait_for_cancellation() -> bool:
        started.wait(DEADLINE)
        return current_task().wait(DEADLINE)

    futures = [pool.submit(Ref(wait_for_cancellation)) for _ in range(10)]
    started.wait(DEADLINE)
    pool.kill()
    pool.shutdown(timeout=DEADLINE)

    assert sorted("cancelled" if future.cancelled() else str(future.result(0)) for future in futures) == [
        *["True"] * (WORKERS * THREADS),
        *["cancelled"] * (10 - WORKERS * THREADS),
    ]


def test_kill_in_a_done_callback_does_not_wait(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS * THREADS)]
    waiting = [pool.submit(Ref(gate.hold)) for _ in range(4)]
    pool.submit_priority(fail, ValueError()).add_done_callback(lambda _: pool.kill())

    wait_until_held_or_done(gate, held)
    gate.release()
    pool.shutdown(timeout=DEADLINE)

    assert all(future.done() for future in held + waiting)


def wait_until_held_or_done(gate: Gate, futures: list[Future[Any]]) -> None:
    eventually(lambda: gate._held > 0 or any(future.done() for future in futures), "something to run")


def test_kill_cancels_everything_when_the_cluster_cannot_be_asked(
    make_dask: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    futures = [pool.submit(Ref(gate.hold)) for _ in range(6)]
    gate.wait_until_held(WORKERS * THREADS)

    async def run(*args: Any, **kwargs: Any) -> None:
        raise CommClosedError

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "_run", run)
        pool.kill()

        assert all(future.cancelled() for future in futures)
    gate.release()


def test_executor_that_is_killed_on_a_worker_cancels_what_waits_there(
    client: AnyClient, make_dask: MakePool, gate: Gate
) -> None:
    pool = make_dask(max_workers=1)
    held = [pool.submit(Ref(gate.hold)) for _ in range(WORKERS)]
    gate.wait_until_held(WORKERS)
    waits = pool.submit(abs, -1)
    eventually(lambda: handed(client, pool) == WORKERS + 1, "the task to be handed over")

    for worker in local_workers(client):
        worker.plugins[pool._pool].pool.kill()

    with pytest.raises(CancelledError):
        waits.result(DEADLINE)
    gate.release()
    wait(held, DEADLINE)


def test_submit_that_fails_leaves_nothing_behind(make_dask: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make_dask()

    def submit(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "submit", submit)
        with pytest.raises(MemoryError):
            pool.submit(abs, -1)

    assert pool.stats().submitted == 0
    pool.shutdown(timeout=DEADLINE)


def test_task_that_is_submitted_while_another_thread_shuts_down_is_cancelled_or_run(
    make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_dask()
    original = pool._client.submit

    def submit(*args: Any, **kwargs: Any) -> Any:
        shutting_down = threading.Thread(target=pool.shutdown, kwargs={"wait": False, "cancel_futures": True})
        shutting_down.start()
        shutting_down.join(DEADLINE)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pool._client, "submit", submit)
        future = pool.submit(abs, -1)

    assert future.cancelled()
    pool.shutdown(timeout=DEADLINE)


def test_future_is_settled_though_the_loop_stops_to_follow_it(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    future = pool.submit(Ref(gate.hold))
    gate.wait_until_held()
    eventually(lambda: bool(pool._followers), "somebody to follow the task")

    for follower in list(pool._followers):
        pool._loop.add_callback(follower.cancel)

    assert isinstance(future.exception(DEADLINE), TaskLost)
    gate.release()


def test_result_counts_though_its_worker_died_right_after_it_had_sent_it(make_dask: MakePool) -> None:
    pool = make_dask()
    future: _RemoteFuture[int] = _RemoteFuture()

    asyncio.run(pool._follow(LostMeanwhile(), future))

    assert future.result(0) == 7


class LostMeanwhile:
    """A future of Dask's whose result has arrived, and is then lost where it came from."""

    status = "lost"

    async def _result(self, raiseit: bool) -> bytes:
        return pickle.dumps(_Outcome(7))


def test_error_of_dask_itself_reaches_the_future(client: AnyClient, make_dask: MakePool) -> None:
    pool = make_dask(max_retries=0)
    name = pool._pool
    on_scheduler(client, lambda scheduler: scheduler.handlers.update({f"claim-{name}": refuse_to_answer}))

    assert "no answer" in str(pool.submit(abs, -1).exception(DEADLINE))


def refuse_to_answer(key: str) -> bool:
    raise ValueError("no answer")


def test_exit_shuts_down_what_is_left(make_dask: MakePool) -> None:
    pool = make_dask()
    future = pool.submit(abs, -1)

    _at_exit()

    assert future.done()
    assert pool.stats().state == "closed"


def test_with_block_ends_when_all_is_done(client: AnyClient, ledger: Ledger) -> None:
    with DaskResourceExecutor(client, **hooks(ledger)) as pool:
        future = pool.submit(Ref(use))

    assert future.done()
    assert not ledger.alive


def test_view_shuts_down_and_the_executor_goes_on(make_dask: MakePool) -> None:
    pool = make_dask()
    view = pool.with_options(priority=True)
    future = view.submit(abs, -1)
    view.shutdown(timeout=DEADLINE)

    assert future.done()
    with pytest.raises(RuntimeError):
        view.submit(abs, -1)
    assert pool.submit(abs, -2).result(DEADLINE) == 2


def test_nothing_stays_on_the_cluster(client: AnyClient, make_dask: MakePool) -> None:
    before = on_scheduler(client, residue)
    pool = make_dask()
    pool.submit(abs, -1).result(DEADLINE)
    pool.shutdown(timeout=DEADLINE)

    assert on_scheduler(client, residue) == before
    assert not [name for worker in local_workers(client) for name in worker.plugins if name.startswith("tasker-")]


def residue(scheduler: Any) -> tuple[list[str], list[str], list[str]]:
    return sorted(scheduler.plugins), sorted(scheduler.worker_plugins), sorted(scheduler.handlers)


def test_client_that_is_closed_first_settles_every_future(client: AnyClient, gate: Gate, ledger: Ledger) -> None:
    own = new_client(client.scheduler.address)
    pool: DaskResourceExecutor[Any] = DaskResourceExecutor(own, **hooks(ledger))
    futures = [pool.submit(Ref(gate.hold)) for _ in range(10)]
    gate.wait_until_held(WORKERS * THREADS)
    plugins = [worker.plugins[pool._pool] for worker in local_workers(client)]

    own.close()

    assert {type(future.exception(DEADLINE)) for future in futures} == {TaskLost}
    pool.shutdown(timeout=DEADLINE)
    gate.release()
    eventually(lambda: all(plugin._end and plugin._end.done() for plugin in plugins), "the workers to clear up")
    assert not ledger.alive


def test_task_of_an_executor_that_is_gone_fails(make_dask: MakePool) -> None:
    pool = make_dask()
    pool._client.unregister_worker_plugin(pool._pool)

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
    monkeypatch.setattr(pool, "_loop", Closed())

    assert future.cancel()

    monkeypatch.undo()
    assert pool.stats().cancelled == 1


def test_result_for_an_event_loop_that_has_closed_is_dropped() -> None:
    called: list[str] = []
    loop = asyncio.new_event_loop()
    loop.close()

    _call_on(loop, called.append, "late")

    assert called == []


def test_interpreter_exit_finishes_what_was_accepted() -> None:
    done = run_python(EXITING)

    assert done.stdout.split() == ["created", "ran", "ran", "ran", "destroyed"], done.stderr
    assert done.returncode == 0


EXITING = """
import sys
from distributed import Client, LocalCluster
from tasker_executor.dask import DaskResourceExecutor

def say(word, *args):
    print(word, flush=True)
    return word

def ran(resource):
    say("ran")

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")
    client = Client(cluster)
    pool = DaskResourceExecutor(client, on_create=lambda: say("created"), on_destroy=lambda resource: say("destroyed"))
    for _ in range(3):
        pool.submit(ran)
"""


# -- arguments --


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"max_workers": 0}, ValueError, "max_workers"),
        ({"min_workers": 3, "max_workers": 2}, ValueError, "min_workers"),
        ({"on_create": 7}, TypeError, "on_create must be callable, not 7"),
        ({"on_destroy": print}, ValueError, "on_destroy"),
        ({"resource_pool_size": 1}, ValueError, "resource_pool_size"),
        ({"on_create": object, "resource_pool_size": -1}, ValueError, "resource_pool_size"),
        ({"max_retries": -1}, ValueError, "max_retries"),
        ({"observers": ["no observer"]}, TypeError, "observers"),
        ({"policy": 3}, TypeError, "policy"),
        ({"grace": -1}, ValueError, "grace"),
        ({"carriers": [(str, 3)]}, TypeError, r"carriers\[0\]\[1\]"),
        ({"on_create": partial(everything, threading.Lock())}, TypeError, "pickle"),
    ],
    ids=str,
)
def test_bad_argument_is_refused_in_the_callers_thread(
    client: AnyClient, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = on_scheduler(client, residue)

    with pytest.raises(error, match=message):
        DaskResourceExecutor(client, **arguments)
    assert on_scheduler(client, residue) == before


def test_client_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"client must be a distributed\.Client"):
        DaskResourceExecutor("tcp://scheduler:8786")  # type: ignore[call-overload]  # that is the point


def test_client_must_not_be_asynchronous(client: AnyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Client, "asynchronous", True)

    with pytest.raises(TypeError, match="must not be asynchronous"):
        DaskResourceExecutor(client)


@pytest.mark.parametrize(
    "thing",
    [BacklogPolicy(3), RatePolicy(), QueueWaitPolicy(), TaskOptions(max_retries=2), BacklogPolicy() | RatePolicy()],
    ids=lambda thing: type(thing).__name__,
)
def test_settings_can_be_pickled(thing: object) -> None:
    assert repr(pickle.loads(pickle.dumps(thing))) == repr(thing)


def test_no_task_is_current_in_the_client(make_dask: MakePool) -> None:
    make_dask().submit(abs, -1).result(DEADLINE)

    with pytest.raises(NoCurrentTask):
        current_task()


def test_stats_are_plain_data(make_dask: MakePool) -> None:
    stats = make_dask().stats()

    assert isinstance(stats, ExecutorStats)
    assert pickle.loads(pickle.dumps(stats)) == stats


# -- how many machines --


class Wanted:
    """A policy that wants what the test wants, and keeps what it was shown."""

    interval = 0.02

    def __init__(self, wanted: int) -> None:
        self.wanted: Any = wanted
        self.shown: list[LoadSample] = []

    def target(self, load: LoadSample, /) -> int:
        self.shown.append(load)
        if isinstance(self.wanted, Exception):
            raise self.wanted
        answer: int = self.wanted
        return answer


def adapt(cluster: Any, policy: Wanted) -> None:
    cluster.adapt(Adaptive=PolicyAdaptive, policy=policy, minimum=1, maximum=3, wait_count=1)


def test_policy_scales_the_cluster_up_and_down(make_dask: MakePool) -> None:
    policy = Wanted(3)
    with new_cluster(1, 1) as own:
        adapt(own.cluster, policy)
        eventually(lambda: len(local_workers(own)) == 3, "three workers")

        policy.wanted = 0
        eventually(lambda: len(local_workers(own)) == 1, "one worker")

    assert {load.target for load in policy.shown} >= {1, 3}
    assert {(load.min_workers, load.max_workers) for load in policy.shown} == {(1, 3)}


def test_policy_is_shown_the_load_of_the_cluster(make_dask: MakePool) -> None:
    policy = Wanted(1)
    with new_cluster(1, 2) as own, Gate() as gate:
        adapt(own.cluster, policy)
        eventually(lambda: bool(policy.shown), "the policy to be asked")
        pool = make_dask(on=own)
        tasks = [pool.submit(Ref(gate.hold)) for _ in range(5)]
        tasks += [pool.submit_priority(Ref(gate.hold)) for _ in range(3)]
        gate.wait_until_held(2)

        eventually(lambda: policy.shown[-1].queued == 6 and policy.shown[-1].oldest_wait > 0, "six tasks to wait")
        load = policy.shown[-1]
        gate.release()
        wait(tasks, DEADLINE)
        eventually(lambda: policy.shown[-1].completion_rate > 0, "tasks to have ended")
        pool.shutdown(timeout=DEADLINE)

    assert (load.workers, load.busy, load.idle) == (1, 1, 0)
    assert load.queued_priority in (2, 3)
    assert load.arrival_rate > 0
    assert policy.shown[0].queued == 0
    assert policy.shown[-1].mean_service_time > 0


def test_scaling_down_takes_no_busy_worker(make_dask: MakePool, ledger: Ledger) -> None:
    policy = Wanted(3)
    with new_cluster(1, 1) as own, Gate() as gate:
        pool = make_dask(on=own, **hooks(ledger))
        adapt(own.cluster, policy)
        eventually(lambda: len(own.nthreads()) == 3, "three workers")
        starts: list[int] = []

        def task(resource: Any) -> int:
            starts.append(resource.use())
            gate.hold()
            return resource.number  # type: ignore[no-any-return]  # a FakeResource

        busy = [pool.submit(Ref(task)) for _ in range(2)]
        gate.wait_until_held(2)
        policy.wanted = 1
        eventually(lambda: len(own.nthreads()) == 2, "the idle worker to leave")
        asked = len(policy.shown)
        eventually(lambda: len(policy.shown) > asked + 3, "the policy to be asked again")

        assert len(own.nthreads()) == 2
        gate.release()
        assert len({future.result(DEADLINE) for future in busy}) == 2
        eventually(lambda: len(own.nthreads()) == 1, "those that were busy to leave, but one")
        assert len(starts) == 2
        eventually(lambda: len(ledger.alive) <= 1, "their resources to be destroyed")
        pool.shutdown(timeout=DEADLINE)


def test_dask_scales_down_idle_workers_only(make_dask: MakePool, gate: Gate) -> None:
    """With any kind of `adapt`, not with ours alone, as long as there is an executor."""
    with new_cluster(3) as own:
        pool = make_dask(on=own)
        held = [pool.submit(Ref(gate.hold)) for _ in range(2)]
        gate.wait_until_held(2)

        assert len(on_scheduler(own, lambda scheduler: scheduler.workers_to_close(n=3))) == 1

        gate.release()
        wait(held, DEADLINE)
        pool.shutdown(timeout=DEADLINE)


def test_worker_that_got_a_task_meanwhile_is_not_retired(make_dask: MakePool, gate: Gate) -> None:
    """Between the question who is idle and the order to retire it."""
    with new_cluster(2) as own:
        own.register_plugin(_LoadMeter())
        pool = make_dask(on=own)
        held = pool.submit(Ref(gate.hold))
        gate.wait_until_held()

        async def retire(dask_scheduler: Any) -> Any:
            everybody = [worker.name for worker in dask_scheduler.workers.values()]
            return await dask_scheduler.handlers["tasker-retire"](names=[*everybody, "planned only"])

        retired = own.run_on_scheduler(retire)

        assert len(retired) == 2
        assert "planned only" in retired
        assert len(own.nthreads()) == 1
        gate.release()
        wait([held], DEADLINE)
        pool.shutdown(timeout=DEADLINE)


@pytest.mark.parametrize("answer", [ValueError("no idea"), "many"], ids=["raises", "answers nonsense"])
def test_policy_that_fails_is_logged_once_and_its_last_target_stands(
    make_dask: MakePool, caplog: pytest.LogCaptureFixture, answer: object
) -> None:
    policy = Wanted(2)
    with new_cluster(1, 1) as own:
        adapt(own.cluster, policy)
        eventually(lambda: len(own.nthreads()) == 2, "two workers")

        policy.wanted = answer
        asked = len(policy.shown)
        eventually(lambda: len(policy.shown) > asked + 3, "the policy to be asked again")

        assert len(own.nthreads()) == 2
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len([message for message in messages if "the last target stands" in message]) == 1


def test_policy_must_be_one() -> None:
    with pytest.raises(TypeError, match="policy must have an interval"):
        PolicyAdaptive(None, policy=3)  # type: ignore[arg-type]  # that is the point


def test_cancelled_error_of_a_task_is_its_own(make_dask: MakePool) -> None:
    error = make_dask().submit(fail, CancelledError()).exception(DEADLINE)

    assert isinstance(error, CancelledError)


# -- what errors may do to us --


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """An error that refuses attributes, its traceback and its state when it is unpickled among them."""

    code: int


class FrozenWithSlots(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        object.__setattr__(self, "code", code)
        super().__init__(code)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class FrozenKey(KeyError):
    def __init__(self, code: int, *, also: str) -> None:
        super().__init__(code)
        vars(self).update(code=code, also=also)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Shy(Exception):
    """Neither pickles nor can be shown."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise LookupError

    __repr__ = __str__


class Deadly(Exception):
    """Ends the thread that pickles it."""

    def __reduce__(self) -> Any:
        raise SystemExit


def raise_error(error: Any) -> None:
    raise error()


@pytest.mark.parametrize(
    "make", [partial(Frozen, 3), partial(FrozenWithSlots, 3), partial(FrozenKey, 3, also="x")], ids=["frozen", "slots", "key"]
)
def test_an_error_that_refuses_attributes_arrives_as_what_it_is(make_dask: MakePool, make: Callable[[], Any]) -> None:
    pool = make_dask()
    error: Any = pool.submit(raise_error, make).exception(DEADLINE)

    assert type(error) is type(make())
    assert error.code == 3
    assert vars(error) == vars(make())
    kind = cast("type[Exception]", type(make()))
    with pytest.raises(kind):
        pool.run_now(raise_error, make)


def test_the_traceback_of_an_error_that_refuses_one_arrives_as_a_text(make_dask: MakePool) -> None:
    error = make_dask().submit(raise_error, partial(Frozen, 3)).exception(DEADLINE)

    assert error is not None
    assert "in raise_error" in str(error.__cause__)


def test_an_error_that_cannot_travel_is_told_of(make_dask: MakePool) -> None:
    pool = make_dask()
    error = pool.submit(raise_error, Shy).exception(DEADLINE)

    assert type(error) is RuntimeError
    assert str(error).startswith("Shy: <Shy, whose str() raised LookupError> (stands in for the error itself")
    assert "raise_error" in str(error.__cause__)
    assert pool.submit(int).result(DEADLINE) == 0


def test_an_error_that_exits_when_it_is_pickled_arrives_by_another_way(make_dask: MakePool) -> None:
    assert isinstance(make_dask().submit(raise_error, Deadly).exception(DEADLINE), Deadly)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError, GeneratorExit])
def test_an_error_that_would_end_an_event_loop_ends_none(make_dask: MakePool, kind: type[BaseException]) -> None:
    pool = make_dask()

    assert type(pool.submit(raise_error, kind).exception(DEADLINE)) is kind
    with pytest.raises(kind):
        pool.run_now(raise_error, kind)
    assert pool.run_now(int) == 0


def exit_when_made(*_: object) -> None:
    raise SystemExit("in unpickling")


class DeadlyHere:
    """Pickles well, and ends the thread that unpickles it."""

    def __reduce__(self) -> Any:
        return exit_when_made, ()


def test_a_result_that_ends_the_thread_that_unpickles_it_ends_no_loop(make_dask: MakePool) -> None:
    pool = make_dask()

    assert isinstance(pool.submit(DeadlyHere).exception(DEADLINE), SystemExit)
    assert isinstance(pool.submit(str, DeadlyHere()).exception(DEADLINE), SystemExit)
    assert pool.submit(int).result(DEADLINE) == 0


def test_a_carrier_that_exits_costs_its_task_only(make_dask: MakePool) -> None:
    pool = make_dask(carriers=[(bool, exit_when_made)])

    assert isinstance(pool.submit(int).exception(DEADLINE), SystemExit)
    with pytest.raises(SystemExit):
        pool.run_now(int)


def test_a_resource_pool_whose_factory_exits_is_an_error_of_the_constructor(make_dask: MakePool) -> None:
    with pytest.raises(RuntimeError, match="SystemExit"):
        make_dask(on_create=exit_when_made, resource_pool_size=1)
    assert make_dask().submit(int).result(DEADLINE) == 0  # the workers live


def test_a_done_callback_that_exits_is_logged(make_dask: MakePool, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_dask(name="crawler")
    future = pool.submit(Ref(gate.hold))
    future.add_done_callback(exit_when_made)
    gate.release()

    assert future.result(DEADLINE) is None
    assert pool.submit(int).result(DEADLINE) == 0
    assert "executor 'crawler': a done-callback raised and was ignored" in caplog.messages


class Unnamed:
    """A callable that has no attribute that it is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError

    def __reduce__(self) -> Any:
        return Unnamed, ()

    def __call__(self) -> str:
        return "called"


def test_a_callable_that_raises_whatever_it_is_asked_for_is_a_task(make_dask: MakePool) -> None:
    assert make_dask().submit(Unnamed()).result(DEADLINE) == "called"


@pytest.mark.parametrize("kwargs", [{}, {"x": 1}])
def test_what_cannot_be_called_has_a_type_error_in_its_future(make_dask: MakePool, kwargs: dict[str, int]) -> None:
    nothing: Any = None

    assert isinstance(make_dask().submit(nothing, **kwargs).exception(DEADLINE), TypeError)


# -- errors thrown in


class TracedDask(AtPoint):
    """Points of `tasker_executor.dask` itself: what lies below it runs on other threads, or has tests of its own."""

    def _enter_function(self, frame: Any, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith("dask.py"):
            return None
        return super()._enter_function(frame, event, _)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeLimit])
def test_an_error_thrown_into_submit_leaves_nothing_to_wait_for(make_dask: MakePool, error: type[BaseException]) -> None:
    def throw() -> None:
        raise error

    pool = make_dask()
    points = 0
    while True:
        point = TracedDask(points + 1, throw)
        try:
            with point:
                pool.submit(int)
        except (KeyboardInterrupt, TimeLimit):
            pass
        assert pool.submit(int).result(DEADLINE) == 0, point.where  # the loop is awake
        if point.where is None:
            break
        points += 1
    assert points >= 10
    pool.shutdown(timeout=DEADLINE)
    stats = pool.stats()
    assert stats.submitted == stats.completed + stats.failed + stats.cancelled


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeLimit])
@pytest.mark.parametrize("method", ["shutdown", "kill"])
def test_an_error_thrown_into_the_end_does_not_keep_it_from_coming(
    make_dask: MakePool, error: type[BaseException], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def throw(**_: object) -> None:
        raise error

    pool = make_dask()
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_cancel_waiting", throw)
        with pytest.raises(error):
            pool.kill() if method == "kill" else pool.shutdown(cancel_futures=True)

    assert pool._wound_down.wait(DEADLINE)
    assert pool._state is State.CLOSED


def test_a_closer_that_cannot_be_started_is_started_by_the_next_shutdown(
    make_dask: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = make_dask()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.shutdown(wait=False)

    pool.shutdown(timeout=DEADLINE)
    assert pool._state is State.CLOSED


# -- numbers


def test_numbers_are_those_of_every_other_executor(make_dask: MakePool) -> None:
    pool = make_dask(
        max_workers=Whole(2),
        on_create=list,
        max_retries=Whole(1),
        max_uses=Whole(9),
        create_timeout=math.inf,
        max_age=Decimal(10),
        idle_timeout=10**400,
        grace=Decimal(2),
    )

    options: dict[str, Any] = {"chunksize": Whole(2), "timeout": Decimal(30)}
    assert list(pool.map(returns_item, range(4), **options)) == [0, 1, 2, 3]
    assert pool.submit(returns_item, 5).result(math.inf) == 5
    assert pool.submit(returns_item, 5).exception(10**400) is None
    assert pool._max_workers == WORKERS * THREADS
    pool.shutdown(timeout=math.inf)


@pytest.mark.parametrize("name", ["max_workers", "min_workers", "max_retries", "grace", "create_timeout"])
def test_a_bool_is_no_number(make_dask: MakePool, name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be .*, not True"):
        make_dask(**{name: True})


def returns_item(_: list[Any], item: int) -> int:
    return item


class Whole:
    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value
