"""`tasker_executor.dask`: what the constructor takes and refuses."""

from __future__ import annotations

import math
import pickle
import threading
from decimal import Decimal
from functools import partial
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from distributed import Client

import dask_cluster
from dask_cluster import THREADS, WORKERS, AnyClient, MakePool, everything, on_scheduler, residue
from dask_support import FOREIGN_THREADS
from tasker_executor import (
    BacklogPolicy,
    Observer,
    QueueWaitPolicy,
    RatePolicy,
)
from tasker_executor._options import TaskOptions
from tasker_executor.dask import DaskResourceExecutor

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask


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


def test_observers_may_come_from_an_iterator(make_dask: MakePool) -> None:
    pool = make_dask(observers=iter([Observer()]))

    assert pool.submit(len, "abc").result() == 3


def test_client_must_be_one() -> None:
    with pytest.raises(TypeError, match=r"client must be a distributed\.Client"):
        DaskResourceExecutor("tcp://scheduler:8786")  # type: ignore[arg-type]  # that is the point


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
