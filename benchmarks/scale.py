"""What a task costs when there are many workers, many tasks, or tasks that do something."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from .compare import burst_result, bytes_waiting, nothing_with, one_by_one
from .measure import OURS, STANDARD, Contestant, Costs, Scale, Table, as_json, in_rounds, now, one_cpu, read, start_all, times

CONTESTANTS = [STANDARD, OURS]
BARE = "threads without a pool"
WORKERS = (1, 2, 8, 32, 128, 512)
WAITING = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)


def _jobs(cases: Any, run: Callable[[Contestant, Any], float]) -> Any:
    return {str(case): ("s", {c.name: partial(run, c, case) for c in CONTESTANTS}) for case in cases}


# -- workers


def by_workers(rounds: int, tasks: int, most: int = 512) -> dict[str, dict[str, Costs]]:
    def burst(contestant: Contestant, workers: int) -> float:
        with contestant.make(workers) as pool:
            start_all(pool, workers)
            return burst_result(pool, tasks)

    def latency(contestant: Contestant, workers: int) -> float:
        with one_cpu(), contestant.make(workers) as pool:
            start_all(pool, workers)
            return one_by_one(pool, tasks // 10)

    counts = [workers for workers in WORKERS if workers <= most]
    return {
        "burst": in_rounds(_jobs(counts, burst), rounds, "workers, burst"),
        "latency": in_rounds(_jobs(counts, latency), rounds, "workers, one by one"),
    }


def _show_by_workers(found: dict[str, Any]) -> Table:
    burst, latency = read(found["burst"]), read(found["latency"])
    rows = [[workers, burst[workers].cell(OURS.name), latency[workers].cell(OURS.name)] for workers in burst]
    return Table(["workers", "burst: times less [quartiles]", "one by one: times less [quartiles]"], rows)


# -- tasks that wait


def _waiting(contestant: Contestant, waiting: int) -> tuple[float, float]:
    """(seconds to submit a task behind so many, on average; seconds to run and fetch it)."""
    gate, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        gate.wait()

    repeat = max(1, 1_000 // waiting)
    submitting = fetching = 0.0
    for _ in range(repeat):
        gate.clear()
        held.clear()
        with contestant.make(1) as pool:
            pool.submit(hold)
            held.wait()
            gc.collect() if waiting > 1000 else None
            begun = now()
            futures = [pool.submit(nothing_with, number) for number in range(waiting)]
            submitted = now()
            gate.set()
            futures[-1].result()
            for future in futures:
                future.result()
            fetching += now() - submitted
            submitting += submitted - begun
    return submitting / repeat / waiting, fetching / repeat / waiting


def by_waiting(rounds: int, most: int = 1_000_000) -> dict[str, list[tuple[int, float, float, float]]]:
    """For each contestant: (tasks waiting, seconds to submit, seconds to run and fetch, bytes); the best of the rounds.

    The standard library's pool stops at a tenth of the most: a million of its tasks need two gigabytes.
    """
    found: dict[str, list[tuple[int, float, float, float]]] = {c.name: [] for c in CONTESTANTS}
    for waiting in WAITING:
        for contestant in CONTESTANTS:
            if waiting > (most if contestant.ours else most // 10):
                continue
            pairs = [_waiting(contestant, waiting) for _ in range(rounds if waiting < 1_000_000 else min(rounds, 2))]
            with contestant.make(1) as pool:
                weight = bytes_waiting(pool, waiting)
            found[contestant.name].append((waiting, min(p[0] for p in pairs), min(p[1] for p in pairs), weight))
    return found


def _show_by_waiting(found: dict[str, Any]) -> Table:
    standard = {row[0]: row for row in found[STANDARD.name]}
    [base] = [row for row in found[OURS.name] if row[0] == 1_000]
    rows = []
    for waiting, *ours in found[OURS.name]:
        theirs = standard.get(waiting)
        row = [f"{waiting:,}"]
        row += [times(his / mine) for his, mine in zip(theirs[1:], ours, strict=True)] if theirs else ["", "", ""]
        rows.append([*row, *(times(mine / usual) for mine, usual in zip(ours, base[1:], strict=True))])
    head = ["waiting", "times less: submit", "run, fetch", "bytes", "of ours at 1,000: submit", "run, fetch", "bytes"]
    return Table(head, rows)


# -- tasks that do something


def _loop(turns: int) -> int:
    total = 0
    for number in range(turns):
        total += number
    return total


def _turns(seconds: float) -> int:
    """Return how many turns of the loop take that long on an idle machine."""
    best = float("inf")
    for _ in range(20):
        begun = now()
        _loop(2000)
        best = min(best, now() - begun)
    return max(1, round(2000 * seconds / best))


def _clock_for(function: Callable[[Any], object]) -> Callable[[], float]:
    """Tasks that compute are measured by their CPU time, which other programs do not disturb; those that wait cannot be."""
    return time.perf_counter if function is time.sleep else time.process_time


def _bare_threads(function: Callable[[Any], object], argument: Any, workers: int, tasks: int) -> float:
    """No pool: so many threads, each of which calls the function its share of times."""
    now = _clock_for(function)

    def calls() -> None:
        for _ in range(tasks // workers):
            function(argument)

    threads = [threading.Thread(target=calls) for _ in range(workers)]
    begun = now()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (now() - begun) / (tasks // workers * workers)


def _pool(pool: Executor, function: Callable[[Any], object], argument: Any, tasks: int) -> float:
    now = _clock_for(function)
    begun = now()
    for future in [pool.submit(function, argument) for _ in range(tasks)]:
        future.result()
    return (now() - begun) / tasks


def by_duration(rounds: int, scale: float = 1.0) -> dict[str, Costs]:
    cases: dict[str, tuple[Callable[[Any], object], Any, int, int]] = {
        "does nothing, 1 worker": (nothing_with, None, 1, 20_000),
        "computes 10 us, 1 worker": (_loop, _turns(10e-6), 1, 10_000),
        "computes 1 ms, 1 worker": (_loop, _turns(1e-3), 1, 300),
        "waits 1 ms, 8 workers": (time.sleep, 0.001, 8, 2_400),
        "computes 100 ms, 1 worker": (_loop, _turns(100e-3), 1, 5),
        "waits 100 ms, 8 workers": (time.sleep, 0.1, 8, 40),
    }
    jobs: dict[str, tuple[str, dict[str, Callable[[], float]]]] = {}
    for title, (function, argument, workers, tasks) in cases.items():
        tasks = max(workers, int(tasks * scale) // workers * workers)

        def in_pool(contestant: Contestant, f: Any = function, a: Any = argument, w: int = workers, n: int = tasks) -> float:
            with contestant.make(w) as pool:
                start_all(pool, w)
                return _pool(pool, f, a, n)

        def bare(f: Any = function, a: Any = argument, w: int = workers, n: int = tasks) -> float:
            return _bare_threads(f, a, w, n)

        runs: dict[str, Callable[[], float]] = {BARE: bare}
        runs |= {c.name: partial(in_pool, c) for c in CONTESTANTS}
        jobs[title] = ("s", runs)
    return in_rounds(jobs, rounds, "durations")


def _show_by_duration(found: dict[str, Any]) -> Table:
    """The best round of each: noise only adds, and it would drown these differences."""
    rows = []
    for title, costs in read(found).items():
        best = {name: min(values) for name, values in costs.by_name.items()}
        rows.append([title, *(f"{max(1 - best[BARE] / best[contestant.name], 0):.1%}" for contestant in CONTESTANTS)])
    return Table(["a task", *(f"share of {contestant.name}" for contestant in CONTESTANTS)], rows)


def run(scale: Scale) -> dict[str, Any]:
    few = min(scale.rounds, 3)
    workers = by_workers(few, scale.tasks // 5, 32 if scale.quick else 512)
    return {
        "workers": {kind: as_json(costs) for kind, costs in workers.items()},
        "waiting": by_waiting(few, 10_000 if scale.quick else 1_000_000),
        "durations": as_json(by_duration(scale.rounds, 0.1 if scale.quick else 1.0)),
    }


def tables(found: dict[str, Any]) -> dict[str, Table]:
    return {
        "workers": _show_by_workers(found["workers"]),
        "waiting": _show_by_waiting(found["waiting"]),
        "durations": _show_by_duration(found["durations"]),
    }
