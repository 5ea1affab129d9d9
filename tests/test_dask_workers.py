"""`tasker_executor.dask`: resources on the workers, and workers that fail, close and die, on a cluster in this process."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

from distributed.comm.core import CommClosedError
from distributed.core import Status

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
    residue,
    use,
    worker_address,
)
from dask_support import FOREIGN_THREADS, Ref
from support import DEADLINE, Gate, Ledger, ResourceBroken, eventually
from tasker_executor import ResourceCreationError
from tasker_executor.dask import worker_side
from tasker_executor.dask.worker_side import WorkerSide
from tasker_executor.exceptions import TaskLost

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


def test_resources_are_made_on_the_workers_and_destroyed_by_their_makers(make_dask: MakePool, ledger: Ledger) -> None:
    pool = make_dask(**hooks(ledger))

    list(pool.map(Ref(use), range(50), timeout=DEADLINE))
    pool.shutdown(timeout=DEADLINE)

    assert 1 <= len(ledger.created) <= WORKERS * THREADS
    assert len(ledger.destroyed) == len(ledger.created)


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


def test_at_most_once_task_starts_once(client: AnyClient, make_dask: MakePool) -> None:
    """Dask starts a task a second time when the worker of the first start has died."""
    pool = make_dask(max_retries=0)
    name, key_number, ran = pool._plugin, 7, list[int]()
    key = f"Ref-{pool._key_prefix}{key_number:012x}"
    pool._keys = itertools.count(key_number)

    assert on_scheduler(client, lambda scheduler: scheduler.handlers[f"claim-{name}"](key=key))
    error = pool.submit(Ref(ran.append), 1).exception(DEADLINE)

    assert isinstance(error, TaskLost)
    assert not ran


def test_claims_of_at_most_once_tasks_are_forgotten(client: AnyClient, make_dask: MakePool) -> None:
    pool = make_dask()
    name = pool._plugin
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
    return sum(isinstance(plugin, WorkerSide) and plugin.failed for plugin in plugins)


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
        if isinstance(plugin, WorkerSide) and len(calls) == 2:
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
        if isinstance(plugin, WorkerSide):
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
    """`Worker.close` may hang in a call to its nanny, and then it does not come to the plugins."""
    with new_cluster(1) as own:
        pool = make_dask(on=own, **hooks(ledger))
        pool.submit(use).result(DEADLINE)
        worker = local_workers(own)[0]

        worker.status = Status.closing
        ledger.wait_until_destroyed(1)

        worker.status = Status.running
        pool.kill()


def test_resources_in_use_are_destroyed_when_a_nanny_closes_the_worker(
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

        assert "their resources are destroyed" in caplog.text
        worker.nanny = None
        worker.status = Status.running
        gate.release()
        pool.kill()


def test_resources_in_use_are_left_alone_where_no_nanny_kills_the_process(
    make_dask: MakePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_cluster(1, 2) as own, Gate() as gate:
        pool = make_dask(on=own, **hooks(ledger), grace=0.0)
        pool.submit(Ref(gate.hold))
        gate.wait_until_held()
        worker = local_workers(own)[0]
        plugin = worker.plugins[pool._plugin]
        destroyed: list[object] = []
        monkeypatch.setattr(worker_side, "kill_and_destroy", destroyed.append)

        worker.status = Status.closing
        eventually(lambda: plugin._drain is not None, "the worker to begin its end")
        gate.release()
        eventually(lambda: plugin._end.done(), "the worker to end")

        assert not destroyed
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
        eventually(lambda: len(closing.plugins[pool._plugin]._handed) == 1, "the task that waits to be given back")

        gate.release()
        assert not wait(held, DEADLINE).not_done
        assert [future.exception() for future in held] == [None] * 4
        closing.status = Status.running
        pool.shutdown(timeout=DEADLINE)
