"""What a task weighs that waits, and what that is made of."""

from __future__ import annotations

import json
import linecache
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .compare import bytes_waiting, nothing, nothing_with
from .measure import OURS, STANDARD, WITHOUT_CONTEXT, Contestant, Costs, Scale, Table, as_json, in_rounds, read

TASKS = 20_000
_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}


def without_arguments(contestant: Contestant, tasks: int) -> float:
    """Bytes of a task that waits and has no arguments."""
    with contestant.make(1) as pool:
        return sum(size for size, _ in by_line(pool, nothing, (), tasks)) / tasks


def weigh(tasks: int) -> dict[str, Costs]:
    """Bytes vary by nothing, so one round is enough."""

    def one_argument(contestant: Contestant) -> float:
        with contestant.make(1) as pool:
            return bytes_waiting(pool, tasks)

    contestants = (STANDARD, OURS, WITHOUT_CONTEXT)
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {
        "one argument": ("B", {c.name: partial(one_argument, c) for c in contestants}),
        "no argument": ("B", {c.name: partial(without_arguments, c, tasks) for c in contestants}),
    }
    return in_rounds(jobs, 1)


def by_line(pool: Any, function: Callable[..., object], args: tuple[Any, ...], tasks: int) -> list[tuple[int, str]]:
    """Queue so many tasks. Return the bytes of each line of code that allocated any of them, the most first."""
    gate, begun = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        gate.wait()

    pool.submit(hold)
    begun.wait()
    futures: list[Any] = [None] * tasks
    numbers = list(range(tasks))
    tracemalloc.start()
    try:
        before = tracemalloc.take_snapshot()
        for number in numbers:
            futures[number] = pool.submit(function, *args)
        after = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
        gate.set()
    here = (tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, linecache.__file__))
    changes = after.filter_traces(here).compare_to(before.filter_traces(here), "lineno")
    lines: list[tuple[int, str]] = []
    for change in changes:
        if change.size_diff >= tasks:  # at least a byte a task
            frame = change.traceback[0]
            place = f"{Path(frame.filename).name}: {linecache.getline(frame.filename, frame.lineno).strip()}"
            lines.append((change.size_diff, place))
    for future in futures:
        future.result()
    return sorted(lines, reverse=True)


def made_of(contestant: Contestant, tasks: int) -> list[tuple[float, str]]:
    """Return the bytes a task of each line, for a task of one argument that exists anyway."""
    with contestant.make(1) as pool:
        return [(size / tasks, place) for size, place in by_line(pool, nothing_with, (None,), tasks)]


def _measure(tasks: int) -> dict[str, Any]:
    return {"bytes": as_json(weigh(tasks)), "made of": {c.name: made_of(c, tasks) for c in (STANDARD, OURS)}}


def run(scale: Scale) -> dict[str, Any]:
    """Measure in a new interpreter: on Python 3.11 a Condition weighs 200 bytes more once other code has made some."""
    code = f"import json; from benchmarks import memory; print(json.dumps(memory._measure({min(scale.tasks, TASKS)})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=_ENVIRONMENT)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tables(found: dict[str, Any]) -> dict[str, Table]:
    rows = []
    for title, cost in read(found["bytes"]).items():
        row = [title, *(f"{cost.median(name):.0f}" for name in cost.by_name)]
        rows.append([*row, *(f"{cost.shares(name).median:.3f}" for name in (OURS.name, WITHOUT_CONTEXT.name))])
    head = ["bytes of one that waits", STANDARD.name, OURS.name, WITHOUT_CONTEXT.name]
    made = {"bytes": Table([*head, f"share, {OURS.name}", f"share, {WITHOUT_CONTEXT.name}"], rows)}
    for name, lines in found["made of"].items():
        shown = [[f"{size:.0f}", f"``{place}``"] for size, place in lines]
        made[name] = Table(["bytes", f"{name}: the line that allocates them"], shown)
    return made
