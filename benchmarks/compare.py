"""The comparison with `ThreadPoolExecutor`: what one task costs, in the ways in which tasks are used.

Each workload gets a pool and a number of tasks, and returns the seconds (or bytes) that one task cost.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import Executor, as_completed, wait
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any

from tasker_executor import ResourceExecutor

from .measure import (
    OURS,
    STANDARD,
    WITHOUT_CONTEXT,
    Contestant,
    Costs,
    Scale,
    Table,
    as_json,
    in_rounds,
    now,
    one_cpu,
    read,
    start_all,
    times,
)


def nothing() -> None:
    pass


def nothing_with(thing: object) -> None:
    pass


def nothing_with_two(resource: object, thing: object) -> None:
    pass


def burst_result(pool: Executor, tasks: int) -> float:
    begun = now()
    futures = [pool.submit(nothing) for _ in range(tasks)]
    for future in futures:
        future.result()
    return (now() - begun) / tasks


def burst_wait(pool: Executor, tasks: int) -> float:
    begun = now()
    futures = [pool.submit(nothing) for _ in range(tasks)]
    wait(futures)
    return (now() - begun) / tasks


def burst_as_completed(pool: Executor, tasks: int) -> float:
    begun = now()
    futures = [pool.submit(nothing) for _ in range(tasks)]
    for _ in as_completed(futures):
        pass
    return (now() - begun) / tasks


def callbacks(pool: Executor, tasks: int) -> float:
    called: SimpleQueue[Any] = SimpleQueue()
    begun = now()
    for _ in range(tasks):
        pool.submit(nothing).add_done_callback(called.put)
    for _ in range(tasks):
        called.get()
    return (now() - begun) / tasks


def map_one(pool: Executor, tasks: int) -> float:
    begun = now()
    for _ in pool.map(nothing_with, range(tasks)):
        pass
    return (now() - begun) / tasks


def map_chunks(pool: Executor, tasks: int) -> float:
    begun = now()
    for _ in pool.map(nothing_with, range(tasks), chunksize=64):
        pass
    return (now() - begun) / tasks


def every_second_urgent(pool: Any, tasks: int) -> float:
    urgent = getattr(pool, "submit_priority", pool.submit)
    begun = now()
    futures = []
    for _ in range(tasks // 2):
        futures.append(pool.submit(nothing))
        futures.append(urgent(nothing))
    for future in futures:
        future.result()
    return (now() - begun) / len(futures)


def with_resource(pool: Any, tasks: int) -> float:
    task = nothing_with if isinstance(pool, ResourceExecutor) else nothing
    begun = now()
    futures = [pool.submit(task) for _ in range(tasks)]
    for future in futures:
        future.result()
    return (now() - begun) / tasks


def four_producers(pool: Executor, tasks: int) -> float:
    go = threading.Event()

    def produce() -> None:
        go.wait()
        futures = [pool.submit(nothing) for _ in range(tasks // 4)]
        for future in futures:
            future.result()

    producers = [threading.Thread(target=produce) for _ in range(4)]
    for producer in producers:
        producer.start()
    begun = now()
    go.set()
    for producer in producers:
        producer.join()
    return (now() - begun) / (tasks // 4 * 4)


def one_by_one(pool: Executor, tasks: int) -> float:
    """Return the median of stretches of 50: another program that gets the CPU spoils a few stretches only."""
    submit = pool.submit
    stretches = []
    for _ in range(max(tasks // 50, 1)):
        begun = now()
        for _ in range(50):
            submit(nothing).result()
        stretches.append((now() - begun) / 50)
    return statistics.median(stretches)


def sleeps(pool: Executor, tasks: int) -> float:
    begun = now()
    wait([pool.submit(time.sleep, 0.001) for _ in range(tasks)])
    return (now() - begun) / tasks


def bytes_waiting(pool: Executor, tasks: int) -> float:
    """Bytes of a task that waits, with one argument: the future, the place in the queue, and all that hangs on them."""
    gate, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()

    pool.submit(hold)
    held.wait()
    arguments = list(range(1000, 1000 + tasks))
    futures: list[Any] = [None] * tasks  # their places in this list are not the pool's cost
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number, argument in enumerate(arguments):
            futures[number] = pool.submit(nothing_with, argument)
        del argument, number
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gate.set()
    for future in futures:
        future.result()
    return (after - before) / tasks


@dataclass(frozen=True)
class Workload:
    title: str
    run: Callable[[Any, int], float]
    workers: int = 8
    #: Part of the tasks that the run was asked for: slow ones need fewer.
    part: float = 1.0
    started: bool = False
    pinned: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    unit: str = "s"

    def measure(self, contestant: Contestant, tasks: int) -> float:
        options = self.options if contestant.ours else {}
        if not self.pinned:
            return self._measure(contestant, tasks, options)
        with one_cpu():
            return self._measure(contestant, tasks, options)

    def _measure(self, contestant: Contestant, tasks: int, options: dict[str, Any]) -> float:
        with contestant.make(self.workers, **options) as pool:
            if self.started:
                start_all(pool, self.workers)
            elif "on_create" not in options:
                pool.submit(nothing).result()
            return self.run(pool, max(int(tasks * self.part), 4))


WORKLOADS = {
    "result": Workload("burst, then result() of each", burst_result),
    "wait": Workload("burst, then wait()", burst_wait),
    "as_completed": Workload("burst, then as_completed()", burst_as_completed),
    "callbacks": Workload("add_done_callback() to each", callbacks),
    "map": Workload("map", map_one),
    "map64": Workload("map, chunksize=64", map_chunks),
    "priority": Workload("every second one urgent", every_second_urgent),
    "resource": Workload("each with a resource", with_resource, options={"on_create": object}),
    "producers": Workload("four threads submit", four_producers),
    "many_workers": Workload("burst, 64 workers", burst_result, workers=64, started=True),
    "latency1": Workload("one by one, 1 worker, pinned", one_by_one, workers=1, part=0.1, started=True, pinned=True),
    "latency8": Workload("one by one, 8 workers, pinned", one_by_one, part=0.1, started=True, pinned=True),
    "unpinned": Workload("one by one, 8 workers, not pinned", one_by_one, part=0.05, started=True),
    "sleep": Workload("sleep(1 ms), 64 workers", sleeps, workers=64, part=0.05, started=True),
    "memory": Workload("bytes of one that waits", bytes_waiting, workers=1, unit="B"),
}
CONTESTANTS = [STANDARD, OURS, WITHOUT_CONTEXT]


#: Measured in a way of its own.
RUN_NOW = "run_now"
PLAIN = "a plain call"


def run(scale: Scale) -> dict[str, Any]:
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {}
    for name, workload in WORKLOADS.items():
        if scale.wants(name):
            runs: dict[str, Callable[[], float]] = {c.name: partial(workload.measure, c, scale.tasks) for c in CONTESTANTS}
            jobs[name] = (workload.unit, runs)
    found = in_rounds(jobs, scale.rounds, "compare")
    if scale.wants(RUN_NOW):
        found[RUN_NOW] = _run_now(scale.rounds, scale.tasks)
    return as_json(found)


def tables(found: dict[str, Any]) -> dict[str, Table]:
    costs = read(found)
    made: dict[str, Table] = {}
    rows = []
    for name, workload in WORKLOADS.items():
        if name in costs:
            cost = costs[name]
            worst = times(cost.gains(OURS.name).least) if cost.by_name.get(OURS.name) else ""
            rows.append([workload.title, cost.cell(OURS.name), worst, cost.cell(WITHOUT_CONTEXT.name)])
    if rows:
        made["workloads"] = Table(["workload", "times less [quartiles]", "worst round", "propagate_context=False"], rows)
    if RUN_NOW in costs:
        calls = costs[RUN_NOW]
        rows = [[name, calls.cell(name, share=True)] for name in list(calls.by_name)[1:]]
        made["run_now"] = Table(["in the caller's thread", "times as much as a plain call"], rows)
    return made


def _run_now(rounds: int, calls: int) -> Costs:
    """`run_now` runs a task in its caller. So it is compared with calling the function: the best stretch of 500 calls."""

    def best(call: Callable[..., object], *args: object) -> float:
        stretches = []
        for _ in range(max(calls // 500, 1)):
            begun = now()
            for _ in range(500):
                call(*args)
            stretches.append((now() - begun) / 500)
        return min(stretches)

    def plain() -> float:
        return best(nothing_with_two, None, 1)

    def without_resource() -> float:
        with ResourceExecutor(1) as pool:
            return best(pool.run_now, nothing_with_two, None, 1)

    def from_pool() -> float:
        with ResourceExecutor(1, on_create=object, resource_pool_size=1) as pool:
            return best(pool.run_now, nothing_with_two, 1)

    runs = {PLAIN: plain, "run_now": without_resource, "run_now with a resource": from_pool}
    return in_rounds({RUN_NOW: ("s", runs)}, rounds)[RUN_NOW]
