"""`as_async` of an executor on a Dask cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("distributed", reason="tasker_executor.dask needs dask.distributed")

import dask_cluster
from aio_support import until
from dask_cluster import MakePool, double, hooks
from dask_support import FOREIGN_THREADS, Ref
from support import Gate, Ledger

pytestmark = pytest.mark.foreign_threads(*FOREIGN_THREADS)

client = dask_cluster.client
make_dask = dask_cluster.make_dask
gate = dask_cluster.gate


def test_task_of_a_cluster_is_awaited(make_dask: MakePool, ledger: Ledger) -> None:
    async def main() -> tuple[int, list[int]]:
        async with make_dask(**hooks(ledger)).as_async() as view:
            one = await view.run(double, 4)
            return one, [result async for result in view.map(double, range(5), buffersize=2)]

    assert asyncio.run(main()) == (8, [0, 2, 4, 6, 8])


def test_cancelled_coroutine_ends_though_its_task_on_a_cluster_goes_on(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    reference: Any = Ref(gate.hold)

    async def main() -> bool:
        running = asyncio.ensure_future(pool.as_async().run(reference))
        await until(lambda: gate._held == 1, "the task to run")
        running.cancel()
        await asyncio.wait([running])
        return running.cancelled()

    assert asyncio.run(main())
    gate.release()


def test_end_of_the_block_waits_for_the_cluster_and_does_not_block_the_loop(make_dask: MakePool, gate: Gate) -> None:
    pool = make_dask()
    reference: Any = Ref(gate.hold)

    async def main() -> None:
        async with pool.as_async() as view:
            running = asyncio.ensure_future(view.run(reference))
            await until(lambda: gate._held == 1, "the task to run")
            asyncio.get_running_loop().call_soon(gate.release)
        assert running.done()

    asyncio.run(main())
