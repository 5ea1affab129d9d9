"""`map` on a Dask cluster: results as they come, and chunks in a scope."""

from __future__ import annotations

import threading
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from typing_extensions import override

import dask_cluster
from dask_cluster import THREADS, WORKERS, AnyClient, MakePool, double, hooks
from dask_support import FOREIGN_THREADS, Ref
from support import DEADLINE, FakeResource, Gate, Ledger
from tasker_executor import current_task
from tasker_executor.dask import DaskResourceExecutor

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


@pytest.mark.parametrize("options", [{}, {"buffersize": 2}], ids=str)
def test_results_of_a_cluster_are_handed_out_as_they_come(make_dask: MakePool, gate: Gate, options: dict[str, Any]) -> None:
    def task(number: int) -> int:
        if number == 0:
            gate.hold()
        return number

    results = make_dask().map(Ref(task), range(4), timeout=DEADLINE, ordered=False, **options)
    first = [next(results) for _ in range(3)]
    gate.release()

    assert sorted(first) == [1, 2, 3]
    assert list(results) == [0]


def test_chunks_of_a_cluster_come_as_they_are_done(make_dask: MakePool, ledger: Ledger) -> None:
    results = make_dask(**hooks(ledger)).map(double, range(10), chunksize=4, timeout=DEADLINE, ordered=False)

    assert sorted(results) == [2 * number for number in range(10)]


class Scoped(DaskResourceExecutor[FakeResource]):
    """An executor that says that it enters a scope for each task."""

    @property
    @override
    def _scoped(self) -> bool:
        return True


def test_chunk_that_is_retried_in_a_scope_on_a_cluster_makes_all_calls_again(client: AnyClient, ledger: Ledger) -> None:
    calls: list[int] = []

    def task(resource: FakeResource, number: int) -> int:
        calls.append(number)
        if calls.count(2) == 1 and number == 2:
            resource.break_down()
        return number

    reference: Any = Ref(task)
    with Scoped(client, **hooks(ledger)) as pool:
        assert list(pool.map(reference, range(4), chunksize=4, timeout=DEADLINE)) == [0, 1, 2, 3]

    assert calls == [0, 1, 2, 0, 1, 2, 3]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("chunksize", [1, 3])
def test_time_out_of_map_stops_what_runs_on_the_cluster(make_dask: MakePool, ordered: bool, chunksize: int) -> None:
    started = threading.Semaphore(0)
    ran: list[int] = []
    stopped: list[int] = []

    def task(number: int) -> None:
        ran.append(number)
        started.release()
        if current_task().wait(DEADLINE):
            stopped.append(number)

    pool = make_dask()
    function: Any = Ref(task)
    results = pool.map(function, range(30), timeout=0.01, ordered=ordered, chunksize=chunksize, stop_on_timeout=True)
    for _ in range(WORKERS * THREADS):
        assert started.acquire(timeout=DEADLINE)
    with pytest.raises(TimeoutError):
        next(results)
    pool.shutdown(timeout=DEADLINE)

    assert sorted(stopped) == sorted(ran)
    assert len(ran) < 30 / chunksize
    assert pool.stats().cancelled > 0
