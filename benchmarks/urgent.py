"""An urgent task on a pool that is saturated: how long is it away, compared with a pool of its own that is idle?

The pool has 100,000 tasks of a millisecond that wait, and all its workers are busy. Now and then the caller
needs something at once: by ``submit_priority``, or, in turn, by an idle `ThreadPoolExecutor` kept for that, in the same
process and under the same load. Both are measured from the submission until the caller has the result. An
urgent task must wait for the end of one task that runs, so that is added to the time of the idle pool.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tasker_executor import ResourceExecutor

from .compare import nothing
from .measure import Scale, Spread, Table
from .scale import _loop, _turns

WAITING = 100_000
TASK_TIME = 1e-3  # seconds
#: Between two urgent tasks.
PAUSE = 3e-3  # seconds
CASES: dict[str, tuple[int, Callable[[], Callable[[], object]]]] = {
    "tasks wait, 8 workers": (8, lambda: partial(time.sleep, TASK_TIME)),
    "tasks wait, 1 worker": (1, lambda: partial(time.sleep, TASK_TIME)),
    "tasks compute, 1 worker": (1, lambda: partial(_loop, _turns(TASK_TIME))),
}
IDLE, REST, URGENT = "an idle pool", "one task", "submit_priority"


def _percentile(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def _measure(workers: int, task: Callable[[], object], waiting: int, samples: int) -> dict[str, list[float]]:
    """Return the seconds that each urgent task took, by the pool that it was submitted to."""
    away: dict[str, list[float]] = {IDLE: [], URGENT: []}
    took: list[float] = []

    def measured() -> None:
        begun = time.perf_counter()
        task()
        took.append(time.perf_counter() - begun)

    with ResourceExecutor(workers) as pool, ThreadPoolExecutor(1) as idle:
        idle.submit(nothing).result()
        for _ in range(waiting):
            pool.submit(task)
        for submit, into in [(pool.submit_priority, away[URGENT]), (idle.submit, away[IDLE])] * samples:
            time.sleep(PAUSE)
            begun = time.perf_counter()
            submit(nothing).result()
            into.append(time.perf_counter() - begun)
        for _ in range(100):
            pool.submit_priority(measured).result()
        assert pool.stats().queued_tasks > 0, "the pool was not saturated until the end"
        pool.kill()
    return {**away, REST: took}


def run(scale: Scale) -> dict[str, Any]:
    samples = 100 if scale.quick else 500
    found: dict[str, Any] = {}
    for title, (workers, make) in CASES.items():
        task = make()
        rounds = [_measure(workers, task, WAITING, samples) for _ in range(min(scale.rounds, 5))]
        found[title] = {
            IDLE: [_percentile(one[IDLE]) for one in rounds],
            URGENT: [_percentile(one[URGENT]) for one in rounds],
            REST: [statistics.median(one[REST]) for one in rounds],
        }
    return found


def allowed(one: dict[str, list[float]]) -> Spread:
    """Return p99 of the urgent task, as a share of what it may be: 1 task more than in an idle pool."""
    return Spread.of([urgent / (idle + rest) for urgent, idle, rest in zip(one[URGENT], one[IDLE], one[REST], strict=True)])


def tables(found: dict[str, Any]) -> dict[str, Table]:
    rows = []
    for title, one in found.items():
        alone = Spread.of([urgent / idle for urgent, idle in zip(one[URGENT], one[IDLE], strict=True)])
        rows.append([title, str(alone), str(allowed(one))])
    head = ["submit_priority under load, p99 [quartiles]", "of an idle pool's", "of an idle pool's, and one task"]
    return {"urgent": Table(head, rows)}
