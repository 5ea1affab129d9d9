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

STANDARD_MODULE = "concurrent.futures.thread"
_TYPING = "typing, typing_extensions"


def _seconds(*imports: str) -> list[float]:
    """Import one after the other in a new interpreter; return what each took. The best of five."""
    lines = ["from time import perf_counter", "took = [perf_counter()]"]
    for name in imports:
        lines += [f"import {name}", "took.append(perf_counter())"]
    lines.append("print(*(after - before for before, after in zip(took, took[1:])))")
    code = "\n".join(lines)
    found = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(5)]
    return [min(column) for column in zip(*(map(float, one.stdout.split()) for one in found), strict=True)]


def imports(rounds: int) -> dict[str, Costs]:
    """What an import takes, without that which it takes to import typing: no typed library does without."""
    _seconds("tasker_executor")  # writes the byte code

    def standard() -> float:
        return _seconds(STANDARD_MODULE, _TYPING)[0]

    def ours() -> float:
        _, typing = _seconds(STANDARD_MODULE, _TYPING)
        [whole] = _seconds("tasker_executor")
        return whole - typing

    return in_rounds({"import": ("s", {STANDARD_MODULE: standard, "tasker_executor": ours})}, rounds, "import")


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
    return Table(["import", f"times as much as {cost.first}"], [[other, cost.cell(other, share=True)] for other in others])


def tables(found: dict[str, Any]) -> dict[str, Table]:
    return {name: _show(name, read(costs)) for name, costs in found.items()}
