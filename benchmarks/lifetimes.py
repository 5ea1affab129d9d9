"""How long it takes to begin and to end: workers, a burst's first extra worker, a very long queue, the import."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tasker_executor import ResourceExecutor
from tasker_executor.policies import BacklogPolicy, RatePolicy

from .compare import nothing_with
from .measure import OURS, STANDARD, WITHOUT_CONTEXT, Contestant, Costs, Scale, Table, as_json, in_rounds, now, read, start_all
from .views import held

#: Seconds that the factory of the burst takes.
CREATE_TIME = 1.0
FACTORY = "the factory"
POLICIES: dict[str, Any] = {"BacklogPolicy": BacklogPolicy, "RatePolicy": RatePolicy}


# -- workers


def start_and_stop(contestant: Contestant, workers: int, repeat: int) -> float:
    """Start so many workers, use each once, at the same time, and end them."""
    begun = now()
    for _ in range(repeat):
        with contestant.make(workers) as pool:
            start_all(pool, workers)
    return (now() - begun) / repeat


def workers(rounds: int, counts: tuple[int, ...] = (1, 8, 64)) -> dict[str, Costs]:
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {}
    for count in counts:
        jobs[str(count)] = (
            "s",
            {c.name: partial(start_and_stop, c, count, max(2, 160 // count)) for c in (STANDARD, OURS, WITHOUT_CONTEXT)},
        )
    return in_rounds(jobs, rounds, "workers")


# -- a burst


def _first_extra_worker(policy: Callable[[], Any]) -> float:
    """Return the seconds from the burst to the first task on an extra worker."""
    gate, lock = threading.Event(), threading.Lock()
    second = threading.Event()
    started: list[float] = []

    def task(_: object) -> None:
        with lock:
            started.append(time.perf_counter())
            if len(started) == 2:
                second.set()
        gate.wait()

    def create() -> object:
        time.sleep(CREATE_TIME if pool_is_ready.is_set() else 0)
        return object()

    pool_is_ready = threading.Event()
    with ResourceExecutor(8, min_workers=1, on_create=create, policy=policy()) as pool:
        pool.wait_ready()
        pool_is_ready.set()
        begun = time.perf_counter()
        for _ in range(100):
            pool.submit(task)
        second.wait()
        gate.set()
        return started[1] - begun


def burst(rounds: int) -> dict[str, Costs]:
    runs: dict[str, Callable[[], float]] = {FACTORY: lambda: CREATE_TIME}
    for title, policy in POLICIES.items():
        runs[title] = partial(_first_extra_worker, policy)
    return in_rounds({"burst": ("s", runs)}, rounds, "burst")


# -- a very long queue

CANCEL = "shutdown(cancel_futures=True)"
KILL = "kill()"
ENDINGS: dict[str, Callable[[Any], object]] = {
    CANCEL: lambda pool: pool.shutdown(wait=False, cancel_futures=True),
    KILL: lambda pool: pool.kill(),
}


def _ending(make: Callable[..., Any], end: Callable[[Any], object], waiting: int) -> float:
    """Return the seconds from the call to the end of the last thread. All tasks but one wait, and are cancelled."""
    pool = make(1)
    with held(pool):
        futures = [pool.submit(nothing_with, None) for _ in range(waiting)]
        begun = now()
        end(pool)
        took = now() - begun
    begun = now()
    pool.shutdown()
    took += now() - begun
    assert all(future.cancelled() for future in futures)
    return took


def endings(rounds: int, waiting: int) -> dict[str, Costs]:
    runs: dict[str, Callable[[], float]] = {
        "ThreadPoolExecutor": partial(_ending, ThreadPoolExecutor, ENDINGS[CANCEL], waiting),
        CANCEL: partial(_ending, ResourceExecutor, ENDINGS[CANCEL], waiting),
        KILL: partial(_ending, ResourceExecutor, ENDINGS[KILL], waiting),
    }
    return in_rounds({"waiting": ("s", runs)}, rounds, "endings")


# -- the import

STANDARD_IMPORT = "from concurrent.futures.thread import ThreadPoolExecutor"
#: The second loads what the first only promises.
OUR_IMPORTS = ("import tasker_executor", "from tasker_executor import ResourceExecutor")
_TYPING = ("typing", "typing_extensions")
_PROGRAM = """
from time import perf_counter
took = [perf_counter()]
{statements}
import sys
print(*(after - before for before, after in zip(took, took[1:])), *(name for name in {typing} if name in sys.modules))
"""


def _seconds(*statements: str) -> tuple[list[float], list[str]]:
    """Run one after the other in a new interpreter. Return the seconds of each, and what is loaded of typing."""
    lines = "\n".join(f"{statement}; took.append(perf_counter())" for statement in statements)
    program = _PROGRAM.format(statements=lines, typing=_TYPING)
    columns: list[list[float]] = [[] for _ in statements]
    words: list[str] = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        words = done.stdout.split()
        for column, word in zip(columns, words, strict=False):
            column.append(float(word))
    return [min(column) for column in columns], words[len(statements) :]


def _without_typing(statement: str) -> float:
    """Return the seconds of our import, less those that it takes to import what it loads of typing."""
    [whole], loaded = _seconds(statement)
    if not loaded:
        return whole
    [_, typing], _ = _seconds(STANDARD_IMPORT, f"import {', '.join(loaded)}")
    return whole - typing


def imports(rounds: int) -> dict[str, Costs]:
    """What an import takes, without that which it takes to import typing: no typed library does without."""
    for statement in OUR_IMPORTS:
        _seconds(statement)  # writes the byte code
    runs: dict[str, Callable[[], float]] = {STANDARD_IMPORT: lambda: _seconds(STANDARD_IMPORT)[0][0]}
    runs |= {statement: partial(_without_typing, statement) for statement in OUR_IMPORTS}
    return in_rounds({"import": ("s", runs)}, rounds, "import")


PARTS: dict[str, Callable[[Scale], dict[str, Costs]]] = {
    "workers": lambda scale: workers(scale.rounds),
    "burst": lambda scale: burst(min(scale.rounds, 3)),
    "endings": lambda scale: endings(min(scale.rounds, 5), scale.tasks * 10),
    "import": lambda scale: imports(scale.rounds),
}


def run(scale: Scale) -> dict[str, Any]:
    return {name: as_json(measure(scale)) for name, measure in PARTS.items() if scale.wants(name)}


def _show(name: str, costs: dict[str, Costs]) -> Table:
    if name == "workers":
        rows = [[count, *(cost.cell(c.name) for c in (OURS, WITHOUT_CONTEXT))] for count, cost in costs.items()]
        return Table(["start workers, use each once, end them", "times less [quartiles]", WITHOUT_CONTEXT.name], rows)
    [cost] = costs.values()
    others = list(cost.by_name)[1:]
    if name == "burst":
        head = ["the first task on an extra worker", "times the factory's time [quartiles]"]
        return Table(head, [[other, cost.cell(other, share=True)] for other in others])
    if name == "endings":
        return Table(["end a queue", "times less [quartiles]"], [[other, cost.cell(other)] for other in others])
    return Table(
        ["import", "times as much as ThreadPoolExecutor's"], [[other, cost.cell(other, share=True)] for other in others]
    )


def tables(found: dict[str, Any]) -> dict[str, Table]:
    return {name: _show(name, read(costs)) for name, costs in found.items()}
