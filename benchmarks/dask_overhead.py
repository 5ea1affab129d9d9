"""What does `DaskResourceExecutor` cost on top of Dask's own `ClientExecutor`? Both in turn, on one cluster of processes.

    .venv/bin/python benchmarks/dask_overhead.py [rounds] [tasks a round]

Prints microseconds a task, from the first submission to the last result. The first number is the median of
all rounds. The second is the median of the ratios of two neighbouring rounds, which other load on the machine
disturbs least. The order alternates.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from statistics import median
from typing import Any

from distributed import Client, LocalCluster

from tasker_executor.dask import DaskResourceExecutor


def work(resource: object, number: int) -> int:
    return number + 1


def seconds(submit: Callable[[int], Future[int]], tasks: int) -> float:
    begun = time.perf_counter()
    futures = [submit(number) for number in range(tasks)]
    for future in futures:
        future.result()
    return time.perf_counter() - begun


def main(rounds: int = 10, tasks: int = 500) -> None:
    cluster: Any = LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0")  # type: ignore[no-untyped-call]  # so
    client: Any
    with cluster, Client(cluster) as client, DaskResourceExecutor(client, on_create=object) as ours:  # type: ignore[no-untyped-call]  # too
        theirs = client.get_executor(pure=False)
        once = ours.with_options(max_retries=0)
        contestants: dict[str, Callable[[int], Future[int]]] = {
            "ClientExecutor": lambda number: theirs.submit(work, None, number),
            "DaskResourceExecutor": lambda number: ours.submit(work, number),
            "max_retries=0": lambda number: once.submit(work, number),
        }
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(rounds + 1):
            names = list(contestants) if number % 2 else list(reversed(contestants))
            for name in names:
                spent = seconds(contestants[name], tasks)
                if number:  # the first round makes the resources
                    times[name].append(spent)

        for name, spent_in_rounds in times.items():
            ratio = median(mine / other for mine, other in zip(spent_in_rounds, times["ClientExecutor"], strict=True))
            print(f"{name:21} {median(spent_in_rounds) / tasks * 1e6:7.0f} us a task   {ratio:.2f} x")
        begun = time.perf_counter()
        many = 20 * tasks
        assert sum(1 for _ in ours.map(work, range(many), chunksize=100)) == many
        print(f"{'map, chunksize=100':21} {(time.perf_counter() - begun) / many * 1e6:7.0f} us a call")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
