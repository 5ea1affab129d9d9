"""Clusters whose scheduler and workers live in this process, and what the tests of `tasker_executor.dask` do with them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from distributed import Client, LocalCluster, get_worker

from dask_support import Ref
from support import DEADLINE, Gate, Ledger
from tasker_executor.dask import DaskResourceExecutor

WORKERS, THREADS = 2, 2
AnyClient = Any  # A Client, whose methods have no types that checkers could use.
MakePool = Callable[..., DaskResourceExecutor[Any]]


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


def worker_address() -> str:
    address: str = get_worker().address
    return address


def use(resource: Any, *args: object) -> int:
    number: int = resource.use()
    return number


def handed(client: AnyClient, pool: DaskResourceExecutor[Any]) -> int:
    return sum(len(worker.plugins[pool._plugin]._handed) for worker in local_workers(client))


def residue(scheduler: Any) -> tuple[list[str], list[str], list[str]]:
    return sorted(scheduler.plugins), sorted(scheduler.worker_plugins), sorted(scheduler.handlers)
