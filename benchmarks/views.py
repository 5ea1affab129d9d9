"""What options cost: a view that is kept, a view made for one task, and limits of time while very many tasks wait."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tasker_executor import ResourceExecutor

from .compare import nothing
from .measure import Costs, Scale, Table, as_json, in_rounds, now, read

BATCH = 500
KEPT = "a kept view"
NEW = "a new view, and its submit"
#: The options that the bars speak of.
PLAIN = {"max_retries": 0}
#: (title, options)
VIEWS: dict[str, dict[str, Any]] = {
    "priority=True": {"priority": True},
    "max_retries=0": PLAIN,
    "pass_resource=False": {"pass_resource": False},
    "start_within=60": {"start_within": 60},
    "run_within=60": {"run_within": 60},
}
NO_LIMIT = "no limit"
FEW, MANY = 1_000, 100_000


@contextmanager
def held(pool: Any) -> Iterator[None]:
    """Hold the only worker, so that all that is submitted waits."""
    gate, begun = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        gate.wait()

    pool.submit(hold)
    begun.wait()
    try:
        yield
    finally:
        gate.set()


def _submissions(prepare: Callable[[Any], Callable[[], object]], tasks: int) -> float:
    """Return the median of batches: what else the machine does spoils a few."""
    with ResourceExecutor(1) as pool:
        submit = prepare(pool)
        kept: list[object] = []
        batches: list[float] = []
        with held(pool):
            for _ in range(max(tasks // BATCH, 1)):
                begun = now()
                for _ in range(BATCH):
                    kept.append(submit())
                batches.append((now() - begun) / BATCH)
    return statistics.median(batches)


def _direct(pool: Any) -> Callable[[], object]:
    return lambda: pool.submit(nothing)


def _priority(pool: Any) -> Callable[[], object]:
    return lambda: pool.submit_priority(nothing)


def _kept(options: dict[str, Any], pool: Any) -> Callable[[], object]:
    view = pool.with_options(**options)
    return lambda: view.submit(nothing)


def _new(options: dict[str, Any], pool: Any) -> Callable[[], object]:
    return lambda: pool.with_options(**options).submit(nothing)


def views(rounds: int, tasks: int) -> dict[str, Costs]:
    """Compare with `submit` of the executor: a row for each option, a column for each way."""
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {
        "submit_priority": (
            "s",
            {"submit": partial(_submissions, _direct, tasks), "submit_priority": partial(_submissions, _priority, tasks)},
        )
    }
    for title, options in VIEWS.items():
        jobs[title] = (
            "s",
            {
                "submit": partial(_submissions, _direct, tasks),
                KEPT: partial(_submissions, partial(_kept, options), tasks),
                NEW: partial(_submissions, partial(_new, options), tasks),
            },
        )
    return in_rounds(jobs, rounds, "views")


def _lives(options: dict[str, Any], waiting: int) -> float:
    """Queue so many tasks behind one that is held, then let them run, and fetch each result."""
    took = 0.0
    repeat = max(1, 10_000 // waiting)
    for _ in range(repeat):
        with ResourceExecutor(1) as pool:
            submit = pool.with_options(**options).submit if options else pool.submit
            with held(pool):
                begun = now()
                futures = [submit(nothing) for _ in range(waiting)]
            for future in futures:
                future.result()
            took += now() - begun
    return took / repeat / waiting


def pending(rounds: int, many: int) -> dict[str, Costs]:
    """A task's whole life among a thousand that wait, and among very many: does a limit cost more there?"""
    cases: dict[str, dict[str, Any]] = {
        NO_LIMIT: {},
        "start_within=60": {"start_within": 60},
        "run_within=60": {"run_within": 60},
    }
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {
        title: (
            "s",
            {f"{number:,}": partial(_lives, options, number) for number in (FEW, many)},
        )
        for title, options in cases.items()
    }
    return in_rounds(jobs, rounds, "pending")


def run(scale: Scale) -> dict[str, Any]:
    most = 10_000 if scale.quick else MANY
    return {
        "views": as_json(views(scale.rounds, max(scale.tasks // 20, 10 * BATCH))),
        "pending": as_json(pending(min(scale.rounds, 5), most)),
    }


def tables(found: dict[str, Any]) -> dict[str, Table]:
    rows = []
    for title, costs in read(found["views"]).items():
        cells = [costs.cell(name, share=True) for name in list(costs.by_name)[1:]]
        rows.append([title, *cells, *[""] * (2 - len(cells))])
    pending = read(found["pending"])
    many = list(next(iter(pending.values())).by_name)[-1]
    return {
        "views": Table(["times as much as submit [quartiles]", KEPT, NEW], rows),
        "pending": Table(
            [f"a task among {many} that wait", f"times as much as among {FEW:,} [quartiles]"],
            [[title, costs.cell(many, share=True)] for title, costs in pending.items()],
        ),
    }
