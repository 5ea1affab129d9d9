"""Tasks that compute, on all CPUs: how much of what bare threads get done does a pool get done?

Without the GIL, that is what threads are for. With it, all contestants do about as much as one thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .measure import OURS, STANDARD, Contestant, Scale, Table, as_json, in_rounds, now, read, start_all

BARE = "bare threads"
TASK_TIME = 100e-6  # seconds


def _steps() -> int:
    """Return how many steps of `spin` take about `TASK_TIME` on a CPU of its own, once that has warmed up."""
    fastest = float("inf")
    until = time.perf_counter() + 0.3
    while (begun := time.perf_counter()) < until:
        spin(2_000)
        fastest = min(fastest, time.perf_counter() - begun)
    return max(50, int(2_000 * TASK_TIME / fastest))


def spin(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step
    return total


def _bare(cpus: int, tasks: int, steps: int) -> float:
    """Each thread makes its share of the calls in a loop."""

    def loop() -> None:
        go.wait()
        for _ in range(tasks // cpus):
            spin(steps)

    go = threading.Event()
    threads = [threading.Thread(target=loop) for _ in range(cpus)]
    for thread in threads:
        thread.start()
    begun = now()
    go.set()
    for thread in threads:
        thread.join()
    return (now() - begun) / (tasks // cpus * cpus)


def _pooled(contestant: Contestant, cpus: int, tasks: int, steps: int) -> float:
    with contestant.make(cpus) as pool:
        start_all(pool, cpus)
        begun = now()
        for future in [pool.submit(spin, steps) for _ in range(tasks)]:
            future.result()
        return (now() - begun) / tasks


JOB = "on all CPUs"


def run(scale: Scale) -> dict[str, Any]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tasks, steps = scale.tasks // 20, _steps()
    runs: dict[str, Callable[[], float]] = {BARE: partial(_bare, cpus, tasks, steps)}
    for contestant in (STANDARD, OURS):
        runs[contestant.name] = partial(_pooled, contestant, cpus, tasks, steps)
    return as_json(in_rounds({JOB: ("s", runs)}, scale.rounds, "parallel"))


def tables(found: dict[str, Any]) -> dict[str, Table]:
    costs = read(found)[JOB]
    rows = [[name, costs.cell(name)] for name in (STANDARD.name, OURS.name)]
    return {"parallel": Table(["of what bare threads get done", "share [quartiles]"], rows)}
