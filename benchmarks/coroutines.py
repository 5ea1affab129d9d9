"""What a task costs that a coroutine awaits: `as_async`, compared with what asyncio itself has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tasker_executor import ResourceExecutor

from .measure import Scale, Table, as_json, in_rounds, now, one_cpu, read, start_all

WORKERS = 4
AT_ONCE = 100

Call = Callable[[], Awaitable[Any]]


def nothing() -> None:
    pass


async def one_by_one(call: Call, tasks: int) -> None:
    for _ in range(tasks):
        await call()


async def at_once(call: Call, tasks: int) -> None:
    for _ in range(tasks // AT_ONCE):
        await asyncio.gather(*(call() for _ in range(AT_ONCE)))


WORKLOADS = {"one by one, on one CPU": one_by_one, f"{AT_ONCE} at once": at_once}


def _standard(pool: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop) -> Call:
    return lambda: loop.run_in_executor(pool, nothing)


def _to_thread(pool: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop) -> Call:
    loop.set_default_executor(pool)
    return lambda: asyncio.to_thread(nothing)


def _view(pool: ResourceExecutor, _: asyncio.AbstractEventLoop) -> Call:
    view = pool.as_async()
    return lambda: view.run(nothing)


#: The way in, and the pool behind it.
WAYS: dict[str, tuple[Callable[..., Any], Callable[..., Call]]] = {
    "run_in_executor(ThreadPoolExecutor)": (ThreadPoolExecutor, _standard),
    "asyncio.to_thread": (ThreadPoolExecutor, _to_thread),
    "run_in_executor(ResourceExecutor)": (ResourceExecutor, _standard),
    "as_async().run": (ResourceExecutor, _view),
    "as_async().run, max_queued=10": (partial(ResourceExecutor, max_queued=10), _view),
}


def measure(workload: Callable[[Call, int], Any], way: str, tasks: int) -> float:
    """Return the seconds that a task costs."""
    make_pool, make_call = WAYS[way]

    async def main() -> float:
        call = make_call(pool, asyncio.get_running_loop())
        await workload(call, AT_ONCE)
        begun = now()
        await workload(call, tasks)
        return (now() - begun) / tasks

    with make_pool(WORKERS) as pool:
        start_all(pool, WORKERS)
        return asyncio.run(main())


def measure_on_one_cpu(workload: Callable[[Call, int], Any], way: str, tasks: int) -> float:
    with one_cpu():
        return measure(workload, way, tasks)


def run(scale: Scale) -> dict[str, Any]:
    tasks = scale.tasks // 20
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {}
    for name, workload in WORKLOADS.items():
        how = measure_on_one_cpu if workload is one_by_one else measure
        jobs[name] = ("s", {way: partial(how, workload, way, tasks) for way in WAYS})
    return as_json(in_rounds(jobs, scale.rounds, "coroutines"))


def tables(found: dict[str, Any]) -> dict[str, Table]:
    costs = read(found)
    rows = [[way, *(cost.cell(way) for cost in costs.values())] for way in WAYS]
    return {"coroutines": Table(["times less [quartiles]", *costs], rows)}
