"""The same workloads, run by thread pools from PyPI, as far as they are installed.

pip install futurist more-executors pebble threadlet ThreadPoolExecutorPlus
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .compare import WORKLOADS
from .measure import OURS, STANDARD, Contestant, Scale, Table, as_json, in_rounds, read, times

#: These need nothing but `submit` and futures.
NAMES = ("result", "wait", "as_completed", "callbacks", "producers", "latency8", "sleep", "memory")


def _futurist(module: Any) -> Callable[..., Any]:
    return lambda workers: module.ThreadPoolExecutor(max_workers=workers)


def _more_executors(module: Any) -> Callable[..., Any]:
    return lambda workers: module.Executors.thread_pool(max_workers=workers)


def _more_executors_retry(module: Any) -> Callable[..., Any]:
    return lambda workers: module.Executors.thread_pool(max_workers=workers).with_retry(max_attempts=2)


def _pebble(module: Any) -> Callable[..., Any]:
    class Pool:
        """Its pool is an executor in all but the end: shutting down is `close`, then `join`."""

        def __init__(self, workers: int) -> None:
            self.pool = module.ThreadPool(max_workers=workers)

        def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
            return self.pool.schedule(function, args=args)

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *exc_info: object) -> None:
            self.pool.close()
            self.pool.join()

    return Pool


def _threadlet(module: Any) -> Callable[..., Any]:
    return lambda workers: module.ThreadPoolExecutor(max_workers=workers)


def _plus(module: Any) -> Callable[..., Any]:
    return lambda workers: module.ThreadPoolExecutor(max_workers=workers)


#: (title, distribution, module, how to make one)
PEERS = (
    ("futurist", "futurist", "futurist", _futurist),
    ("more-executors", "more-executors", "more_executors", _more_executors),
    ("more-executors, with_retry", "more-executors", "more_executors", _more_executors_retry),
    ("pebble", "Pebble", "pebble", _pebble),
    ("threadlet", "threadlet", "threadlet", _threadlet),
    ("ThreadPoolExecutorPlus", "ThreadPoolExecutorPlus", "ThreadPoolExecutorPlus", _plus),
)
#: Its queue is bounded: to submit many while the only worker is held would wait for ever.
CANNOT = {("ThreadPoolExecutorPlus", "memory")}


def installed() -> list[Contestant]:
    found = []
    for title, distribution, module, make in PEERS:
        try:
            found.append(Contestant(title, make(importlib.import_module(module)), version=version(distribution)))
        except (ImportError, PackageNotFoundError):
            continue
    return found


def run(scale: Scale) -> dict[str, Any]:
    contestants = [STANDARD, OURS, *installed()]
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {}
    for name in NAMES:
        workload = WORKLOADS[name]
        able = [contestant for contestant in contestants if (contestant.name, name) not in CANNOT]
        jobs[name] = (workload.unit, {c.name: partial(workload.measure, c, scale.tasks // 5) for c in able})
    costs = in_rounds(jobs, min(scale.rounds, 5), "peers")
    return {"versions": {c.name: c.version for c in contestants[1:]}, "costs": as_json(costs)}


def tables(found: dict[str, Any]) -> dict[str, Table]:
    costs = read(found["costs"])
    rows = []
    for name, release in found["versions"].items():
        cells = [times(cost.gains(name).median) if cost.by_name.get(name) else "" for cost in costs.values()]
        rows.append([f"{name} {release}".strip(), *cells])
    return {"peers": Table(["times less", *costs], rows)}
